//! Pages for whoever runs the server: connections and accounts.

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, button, empty, more, table, time, time_or,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, format, paths};

/// As the admin API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Connection {
    pub id: String,
    pub app: String,
    pub client_id: String,
    pub key_id: Option<String>,
    pub kid: Option<String>,
    pub connected_ms: u64,
    pub remote: String,
    pub subscriptions: u64,
    pub outbox_bytes: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Connections {
    pub connections: Vec<Connection>,
    pub cursor: Option<String>,
    /// What was asked for.
    #[serde(skip)]
    pub app: String,
    #[serde(skip)]
    pub client_id: String,
}

pub fn connections(shell: &Shell, view: &Connections) -> Markup {
    let head =
        Head::new("Connections", Place::Connections).lead(html! { "Open now, on this node." });
    let path = paths::to(&["connections"]);
    let next = view.cursor.as_deref().map(|cursor| {
        let asked = [
            ("app", view.app.as_str()),
            ("clientId", &view.client_id),
            ("cursor", cursor),
        ];
        paths::with_query(&path, &asked)
    });
    let rows: Vec<_> = view
        .connections
        .iter()
        .map(|one| connection_row(shell, one))
        .collect();
    let columns = [
        "Client",
        "App",
        "With",
        "From",
        "Since",
        "#Channels",
        "#Unsent",
        "",
    ];
    let body = html! {
        form method="get" action=(path) class="filter" role="search" {
            (Field::new("app", "App").value(&view.app).max(64))
            (Field::new("clientId", "Client id").value(&view.client_id).max(128))
            button type="submit" class="button" { "Show" }
        }
        @if rows.is_empty() { (empty("No such connections", "Nobody is connected who fits.")) }
        @else { (table("Connections", &columns, &rows)) }
        (more(next.as_deref()))
    };
    page(shell, &head, &body)
}

fn connection_row(shell: &Shell, connection: &Connection) -> Markup {
    let with = match (&connection.kid, &connection.key_id) {
        (Some(kid), _) => format!("token of {kid}"),
        (None, Some(key)) => format!("key {key}"),
        (None, None) => "–".to_owned(),
    };
    html! {
        tr {
            th scope="row" { (connection.client_id) span class="sub" { (connection.id) } }
            td { (connection.app) }
            td { (with) }
            td { (connection.remote) }
            td { (time(shell, connection.connected_ms)) }
            td class="num" { (format::count(connection.subscriptions)) }
            td class="num" { (format::bytes(connection.outbox_bytes)) }
            td class="row-actions" {
                (Confirm {
                    id: &format!("end-{}", connection.id),
                    label: "End",
                    title: "End the connection?",
                    text: "The client is told not to come back (4010).",
                    action: &paths::to(&["connections", &connection.id, "end"]),
                    verb: "End it",
                    fields: html! {},
                    is_dangerous: true,
                }.render(shell))
            }
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Account {
    pub id: String,
    pub email: String,
    pub name: String,
    pub operator: bool,
    pub disabled: bool,
    pub verified: bool,
    pub second_factor: bool,
    pub created_ms: u64,
    pub last_login_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Accounts {
    pub accounts: Vec<Account>,
    pub cursor: Option<String>,
}

pub fn accounts(shell: &Shell, view: &Accounts) -> Markup {
    let head = Head::new("Accounts", Place::Accounts)
        .lead(html! { "Make more with " code { "shardwirectl accounts create" } ", or by inviting people to a team." });
    let path = paths::to(&["accounts"]);
    let next = view
        .cursor
        .as_deref()
        .map(|cursor| paths::with_query(&path, &[("cursor", cursor)]));
    let rows: Vec<_> = view
        .accounts
        .iter()
        .map(|account| account_row(shell, account))
        .collect();
    let body = html! {
        (table("Accounts", &["Account", "State", "Second factor", "Made", "Last seen", ""], &rows))
        (more(next.as_deref()))
    };
    page(shell, &head, &body)
}

fn account_row(shell: &Shell, account: &Account) -> Markup {
    let action = |verb: &str| paths::to(&["accounts", &account.id, verb]);
    let is_own = shell
        .account
        .as_ref()
        .is_some_and(|own| own.email == account.email);
    html! {
        tr {
            th scope="row" {
                (account.name) @if account.operator { " " (badge(Tone::Accent, "runs the server")) }
                span class="sub" { (account.email) }
            }
            td {
                @if account.disabled { (badge(Tone::Bad, "disabled")) }
                @else if account.verified { (badge(Tone::Good, "active")) }
                @else { (badge(Tone::Warn, "not confirmed")) }
            }
            td { @if account.second_factor { (badge(Tone::Good, "on")) } @else { (badge(Tone::Plain, "off")) } }
            td { (time(shell, account.created_ms)) }
            td { (time_or(shell, account.last_login_ms, "never")) }
            td class="row-actions" {
                (Confirm {
                    id: &format!("reset-{}", account.id),
                    label: "Reset password",
                    title: &format!("Let {} set a new password?", account.email),
                    text: "They get a link by mail.",
                    action: &action("reset"),
                    verb: "Send the link",
                    fields: html! {},
                    is_dangerous: false,
                }.render(shell))
                @if account.disabled { (button(shell, &action("enable"), "Enable")) }
                @else if !is_own {
                    (Confirm {
                        id: &format!("off-{}", account.id),
                        label: "Disable",
                        title: &format!("Disable {}?", account.email),
                        text: "All their sessions end, and they cannot sign in.",
                        action: &action("disable"),
                        verb: "Disable",
                        fields: html! {},
                        is_dangerous: true,
                    }.render(shell))
                }
            }
        }
    }
}
