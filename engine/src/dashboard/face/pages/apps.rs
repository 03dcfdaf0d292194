//! The list of apps.

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::face::components::{Field, Tone, badge, csrf, empty, table};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Named, Shell, format, paths};

/// An app in a list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AppSummary {
    pub id: String,
    pub name: String,
    /// The name of the team it belongs to.
    pub team: String,
    pub disabled: bool,
    /// Now.
    pub connections: u64,
    /// In use now.
    pub channels: u64,
    pub messages_today: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Apps {
    pub apps: Vec<AppSummary>,
    /// Teams in which the account may make apps.
    pub teams: Vec<Named>,
}

pub fn render(shell: &Shell, view: &Apps) -> Markup {
    let head = Head::new("Apps", Place::Apps)
        .lead(html! { "An app has its own keys, channels, limits and plan." });
    let body = html! {
        @if view.apps.is_empty() {
            (empty("No apps yet", "Make one below; its first key comes with a page to try it on."))
        } @else { (app_table(shell, &view.apps)) }
        @if !view.teams.is_empty() { (new_app(shell, view)) }
    };
    page(shell, &head, &body)
}

fn new_app(shell: &Shell, view: &Apps) -> Markup {
    // It may have been sent to any of the teams.
    let actions = view
        .teams
        .iter()
        .map(|team| paths::team(&team.id, &["apps"]));
    let mut actions: Vec<String> = actions.collect();
    actions.sort_by_key(|action| *action != shell.sent.action);
    let action = actions.first().map_or("", String::as_str);
    let sent = shell.sent_to(action);
    let is_open = sent.is_some() || view.apps.is_empty();
    html! {
        details class="card disclosure" open[is_open] {
            summary { h2 { "New app" } }
            form method="post" action=(action) class="form" {
                (csrf(shell))
                div class="columns" {
                    (Field::new("name", "Name").required().max(128).sent(sent)
                        .hint("For people."))
                    (Field::new("id", "Id").max(64).sent(sent)
                        .hint("Letters, digits, - and _. Left empty, one is made."))
                }
                div class="actions" {
                    @if let [_] = view.teams.as_slice() {
                        button type="submit" class="button primary" { "Make the app" }
                    } @else {
                        @for team in &view.teams {
                            button type="submit" class="button primary"
                                formaction=(paths::team(&team.id, &["apps"])) { "Make it in " (team.label()) }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn app_table(shell: &Shell, apps: &[AppSummary]) -> Markup {
    let rows: Vec<_> = apps.iter().map(|app| row(shell, app)).collect();
    let head = [
        "App",
        "Team",
        "State",
        "#Connections",
        "#Channels",
        "#Messages today",
        "",
    ];
    table("Apps", &head, &rows)
}

fn row(shell: &Shell, app: &AppSummary) -> Markup {
    let label = if app.name.is_empty() {
        &app.id
    } else {
        &app.name
    };
    html! {
        tr data-app=(app.id) {
            th scope="row" {
                a href=(paths::app(&app.id, &["channels"])) { (label) }
                @if *label != app.id { span class="sub" { (app.id) } }
            }
            td { (app.team) }
            td {
                @if app.disabled { (badge(Tone::Bad, "disabled")) } @else { (badge(Tone::Good, "active")) }
            }
            td class="num" data-cell="connections" { (format::count(app.connections)) }
            td class="num" data-cell="channels" { (format::count(app.channels)) }
            td class="num" data-cell="today" { (format::count(app.messages_today)) }
            td class="row-actions" {
                @if shell.account.is_some() {
                    a href=(paths::app(&app.id, &["console"])) {
                        "Console" span class="sr" { " of " (label) }
                    }
                }
            }
        }
    }
}
