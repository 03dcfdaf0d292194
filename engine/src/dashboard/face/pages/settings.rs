//! An app and what it sets for itself.

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::dashboard::face::components::{Confirm, Field, Tone, badge, button, card, select, time};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Named, Shell, paths};

mod form;

use self::form::edit;
pub use self::form::{NAMESPACE_NUMBERS, NAMESPACE_SWITCHES};

/// As the admin API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct App {
    pub id: String,
    pub name: String,
    pub disabled: bool,
    pub settings: Value,
    pub created_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub app: App,
    /// Plans that there are, where whoever looks may choose one.
    pub plans: Vec<String>,
    /// Teams it could be moved to.
    pub other_teams: Vec<Named>,
}

pub fn render(shell: &Shell, view: &Settings) -> Markup {
    let app = &view.app;
    let state = if app.disabled {
        badge(Tone::Bad, "disabled")
    } else {
        badge(Tone::Good, "active")
    };
    let head = Head::of_app("Settings", Place::Settings, shell).lead(html! {
        code { (app.id) } " · " (state) " · made " (time(shell, app.created_ms))
        @if let Some(team) = &shell.team { " · team " a href=(paths::team(&team.id, &[])) { (team.label()) } }
    });
    let may = shell.can("PATCH", "/apps/{app}");
    let body = html! {
        @if may { (edit(shell, view)) } @else { (card("general", "General", read_only(app))) }
        @if may { (danger(shell, view)) }
    };
    page(shell, &head, &body)
}

fn pretty(value: &Value) -> String {
    match value {
        Value::Null => "{}".to_owned(),
        value => serde_json::to_string_pretty(value).unwrap_or_default(),
    }
}

fn read_only(app: &App) -> Markup {
    html! {
        dl class="facts" {
            dt { "Name" } dd { (app.name) }
            dt { "Settings" } dd { pre tabindex="0" { (pretty(&app.settings)) } }
        }
    }
}

fn danger(shell: &Shell, view: &Settings) -> Markup {
    let app = &view.app;
    let action = |verb: &str| paths::app(&app.id, &[verb]);
    let line = |title: &str, text: &str, control: Markup| {
        html! {
            div class="line" {
                div { h3 { (title) } p class="hint" { (text) } }
                div { (control) }
            }
        }
    };
    let moves: Vec<_> = view
        .other_teams
        .iter()
        .map(|team| (team.id.as_str(), team.label()))
        .collect();
    card(
        "danger",
        "Careful",
        html! {
            @if app.disabled {
                (line("Enable the app", "Clients can connect again.", button(shell, &action("enable"), "Enable")))
            } @else {
                (line("Disable the app", "Its connections end and new ones are refused. Nothing is deleted.", Confirm {
                    id: "app-off",
                    label: "Disable",
                    title: "Disable the app?",
                    text: "All its connections end at once.",
                    action: &action("disable"),
                    verb: "Disable",
                    fields: html! {},
                    is_dangerous: true,
                }.render(shell)))
            }
            @if !moves.is_empty() && shell.can("POST", "/apps/{app}/transfer") {
                (line("Move to another team", "Its keys and connections stay as they are.", Confirm {
                    id: "app-move",
                    label: "Move",
                    title: "Move the app?",
                    text: "Members of this team lose it.",
                    action: &action("transfer"),
                    verb: "Move",
                    fields: select("app-move-team", "team", "To", &moves, ""),
                    is_dangerous: false,
                }.render(shell)))
            }
            @if shell.can("DELETE", "/apps/{app}") {
                (line("Delete the app", "With its keys. Its connections end.", Confirm {
                    id: "app-delete",
                    label: "Delete",
                    title: "Delete the app?",
                    text: "This cannot be undone.",
                    action: &action("delete"),
                    verb: "Delete the app",
                    fields: html! {
                        (Field::new("confirm", &format!("Type {} to confirm", app.id)).required().scope("app-delete")
                            .sent(shell.sent_to(&action("delete"))))
                    },
                    is_dangerous: true,
                }.render(shell)))
            }
        },
    )
}
