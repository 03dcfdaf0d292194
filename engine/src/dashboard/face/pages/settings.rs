//! An app and what it sets for itself.

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, button, card, form, select, table, time,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Errors, Named, Shell, paths};

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
    /// The settings as they were sent, where that was refused; otherwise those of the app are shown.
    pub settings_text: Option<String>,
    pub errors: Errors,
    /// Teams it could be moved to.
    pub other_teams: Vec<Named>,
}

/// Names of settings and what they do.
const REFERENCE: [(&str, &str); 7] = [
    (
        "namespaces",
        "What is kept of the channels that match a pattern: history, persist, messages_max, ttl_s, sync",
    ),
    (
        "selfAssertedIds",
        "Whether a client may choose its id with ?clientId=",
    ),
    ("allowedOrigins", "Pages that may open sockets; empty: all"),
    ("hello", "Whether a connected frame is sent first"),
    ("jwksUrl", "Where public keys of tokens are fetched from"),
    ("jwksFile", "The same, from a file of the server"),
    (
        "limits",
        "publishRate, publishBytesMax, channelsPerConnMax, connectionsMax",
    ),
];

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
        (card("general", "General", html! {
            @if may { (edit(shell, view)) } @else { (read_only(app)) }
        }))
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

fn edit(shell: &Shell, view: &Settings) -> Markup {
    let app = &view.app;
    let settings = match &view.settings_text {
        Some(text) => text.clone(),
        None => pretty(&app.settings),
    };
    let body = html! {
        (Field::new("name", "Name").value(&app.name).max(128).errors(&view.errors))
        (Field::new("settings", "Settings").value(&settings).rows(12).errors(&view.errors)
            .hint("JSON. What is left out is as the server has it."))
        details class="quiet" {
            summary { "What can be set" }
            @let rows = REFERENCE.map(|(name, text)| html! {
                tr { th scope="row" { code { (name) } } td { (text) } }
            });
            (table("Settings", &["Setting", "What it does"], &rows))
        }
        div class="actions" { button type="submit" class="button primary" { "Save" } }
    };
    form(shell, &paths::app(&app.id, &[]), body)
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
                            .errors(&view.errors))
                    },
                    is_dangerous: true,
                }.render(shell)))
            }
        },
    )
}
