//! Who did what.

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::face::components::{Tone, badge, empty, more, table, time};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, paths};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    pub time_ms: u64,
    pub actor: String,
    pub address: Option<String>,
    /// A call, `POST /apps/{app}/keys`, or an event, `login failed`.
    pub call: String,
    pub app: Option<String>,
    pub target: Option<String>,
    pub detail: Option<String>,
    /// HTTP status of the answer; 0: none.
    pub status: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Audit {
    pub entries: Vec<Entry>,
    /// Of the next page.
    pub cursor: Option<String>,
}

/// Of a team where the shell has one and `is_server` is not set; otherwise of the whole server.
pub fn render(shell: &Shell, view: &Audit, is_server: bool) -> Markup {
    let (head, path) = match &shell.team {
        Some(team) if !is_server => {
            let mut head = Head::new("Audit log", Place::TeamAudit);
            head.crumb("Teams", paths::to(&["teams"]));
            head.crumb(team.label(), paths::team(&team.id, &[]));
            (head, paths::team(&team.id, &["audit"]))
        }
        _ => (
            Head::new("Audit log", Place::ServerAudit),
            paths::to(&["audit"]),
        ),
    };
    let head = head.lead(html! { "Every change, and every try to sign in. The newest first." });
    let next = view
        .cursor
        .as_deref()
        .map(|cursor| paths::with_query(&path, &[("cursor", cursor)]));
    let body = html! {
        (entries(shell, &view.entries))
        (more(next.as_deref()))
    };
    page(shell, &head, &body)
}

pub(super) fn entries(shell: &Shell, entries: &[Entry]) -> Markup {
    let rows: Vec<_> = entries.iter().map(|entry| row(shell, entry)).collect();
    if rows.is_empty() {
        return empty("Nothing yet", "What is done is listed here.");
    }
    table(
        "Audit log",
        &["Time", "Who", "What", "On", "Outcome"],
        &rows,
    )
}

fn row(shell: &Shell, entry: &Entry) -> Markup {
    let (tone, outcome) = match entry.status {
        0 => (Tone::Plain, "noted".to_owned()),
        200..=399 => (Tone::Good, "done".to_owned()),
        401 | 403 | 429 => (Tone::Bad, format!("refused ({})", entry.status)),
        status => (Tone::Warn, format!("failed ({status})")),
    };
    html! {
        tr {
            td { (time(shell, entry.time_ms)) }
            th scope="row" {
                (entry.actor)
                @if let Some(address) = &entry.address { span class="sub" { (address) } }
            }
            td { code { (entry.call) } @if let Some(detail) = &entry.detail { span class="sub" { (detail) } } }
            td {
                @if let Some(app) = &entry.app { (app) }
                @if let Some(target) = &entry.target { span class="sub" { (target) } }
            }
            td { (badge(tone, &outcome)) }
        }
    }
}
