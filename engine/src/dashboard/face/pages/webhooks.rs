//! Webhooks of an app: the endpoints, and one with its attempts and its dead letters.

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::keys::{Secret, shown_once};
use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, button, card, csrf, empty, more, select, table, tile, time,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, format, paths};

/// Events that can be asked for, and when they happen.
const EVENTS: [(&str, &str); 11] = [
    ("channel.occupied", "a channel has its first subscriber"),
    ("channel.vacated", "its last one is gone"),
    ("presence.enter", "somebody enters"),
    ("presence.update", "changes their state"),
    ("presence.leave", "leaves"),
    ("message.published", "a message is published"),
    ("client.connected", "a client connects"),
    ("client.disconnected", "is gone"),
    ("subscription.count", "the number of subscribers changes"),
    ("push.failed", "a notification is given up"),
    ("quota.reached", "80 or 100 % of a quota are used"),
];

/// As the admin API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    pub id: String,
    pub url: String,
    pub name: String,
    /// Empty: the usual ones.
    pub events: Vec<String>,
    /// Patterns; empty: all.
    pub channels: Vec<String>,
    pub batch: Batch,
    pub concurrency: u64,
    /// `wsocket` or `pusher`.
    pub names: String,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    pub created_at: u64,
    pub previous_secret_until: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Batch {
    pub max_events: u64,
    pub max_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Webhooks {
    pub webhooks: Vec<Webhook>,
    pub cursor: Option<String>,
    /// Of the one that was made just now.
    pub secret: Option<Secret>,
}

pub fn list(shell: &Shell, view: &Webhooks) -> Markup {
    let head = Head::of_app("Webhooks", Place::Webhooks, shell)
        .lead(html! { "Your back end is told what happens: signed, in order per channel, again until it says yes." });
    let path = paths::app(shell.app_id(), &["webhooks"]);
    let next = view
        .cursor
        .as_deref()
        .map(|cursor| paths::with_query(&path, &[("cursor", cursor)]));
    let rows: Vec<_> = view
        .webhooks
        .iter()
        .map(|webhook| row(shell, webhook))
        .collect();
    let body = html! {
        @if let Some(secret) = &view.secret { (shown_once(shell, secret)) }
        @if rows.is_empty() {
            (empty("No webhooks", "Give the address of your back end below."))
        } @else {
            (table("Webhooks", &["Endpoint", "Events", "Channels", "State", "Made"], &rows))
            (more(next.as_deref()))
        }
        @if may_change(shell) {
            details class="card disclosure" open[shell.sent_to(&path).is_some() || rows.is_empty()] {
                summary { h2 { "New webhook" } }
                (edit(shell, &path, &Webhook::default(), "Make the webhook"))
            }
        }
    };
    page(shell, &head, &body)
}

fn may_change(shell: &Shell) -> bool {
    shell.can("POST", "/apps/{app}/webhooks")
}

fn row(shell: &Shell, webhook: &Webhook) -> Markup {
    html! {
        tr {
            th scope="row" {
                a href=(paths::app(shell.app_id(), &["webhooks", &webhook.id])) {
                    @if webhook.name.is_empty() { (webhook.url) } @else { (webhook.name) }
                }
                @if !webhook.name.is_empty() { span class="sub" { (webhook.url) } }
            }
            td { (names(&webhook.events, "the usual ones")) }
            td { (names(&webhook.channels, "all")) }
            td { (state(webhook)) }
            td { (time(shell, webhook.created_at)) }
        }
    }
}

fn names(names: &[String], otherwise: &str) -> Markup {
    html! {
        @match names {
            [] => { span class="muted" { (otherwise) } }
            [first] => { code { (first) } }
            [first, rest @ ..] => { code { (first) } " and " (rest.len()) " more" }
        }
    }
}

fn state(webhook: &Webhook) -> Markup {
    html! {
        @if webhook.enabled { (badge(Tone::Good, "active")) } @else { (badge(Tone::Bad, "disabled")) }
        @if let Some(reason) = &webhook.disabled_reason { span class="sub" { (reason) } }
    }
}

/// Fields: `name`, `url`, `channels` (a pattern a line), `events` (one per box), `max_events`, `max_ms`, `concurrency`,
/// `names`.
fn edit(shell: &Shell, action: &str, form: &Webhook, verb: &str) -> Markup {
    let number = |value: u64, usual: u64| if value == 0 { usual } else { value }.to_string();
    let (events_max, wait, concurrency) = (
        number(form.batch.max_events, 100),
        number(form.batch.max_ms, 1000),
        number(form.concurrency, 1),
    );
    let channels = form.channels.join("\n");
    let sent = shell.sent_to(action);
    let kinds = [
        ("wsocket", "channel.occupied"),
        ("pusher", "channel_occupied, as Pusher has them"),
    ];
    html! {
        form method="post" action=(action) class="form" {
            (csrf(shell))
            div class="columns" {
                (Field::new("url", "URL").kind("url").value(&form.url).required().max(2048).sent(sent))
                (Field::new("name", "Name").value(&form.name).max(128).sent(sent))
            }
            fieldset class="checks" {
                legend class="legend" { "Events" }
                @for (event, when) in EVENTS {
                    @let is_on = sent.ticked("events", event, form.events.iter().any(|known| known == event));
                    div class="check" {
                        input type="checkbox" id={ "ev-" (event) } name="events" value=(event) checked[is_on];
                        label for={ "ev-" (event) } { code { (event) } span class="sub" { (when) } }
                    }
                }
            }
            p class="hint" { "None ticked: all but messages and the number of subscribers." }
            (Field::new("channels", "Channels").value(&channels).rows(2).sent(sent)
                .hint("Patterns such as chat:*, one a line. Left empty: all."))
            details class="quiet" open[sent.is_some()] {
                summary { "Batches, order and names" }
                div class="columns" {
                    (Field::new("max_events", "Events of a delivery").kind("number").value(&events_max).sent(sent)
                        .hint("1 to 100."))
                    (Field::new("max_ms", "Wait for more, ms").kind("number").value(&wait).sent(sent)
                        .hint("Up to 60,000."))
                    (Field::new("concurrency", "Deliveries at once").kind("number").value(&concurrency).sent(sent)
                        .hint("1: all in order. More: those of a channel."))
                    (select("f-names", "names", "Names of events", &kinds, sent.or("names", &form.names)))
                }
            }
            div class="actions" { button type="submit" class="button primary" { (verb) } }
        }
    }
}

/// As the admin API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attempt {
    pub id: String,
    pub attempt: u64,
    pub events: u64,
    pub at: u64,
    pub ms: u64,
    pub status: Option<u64>,
    pub response: Option<String>,
    pub error: Option<String>,
}

/// As the admin API lists it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeadLetter {
    pub id: String,
    pub at: u64,
    pub attempts: u64,
    pub error: String,
    pub count: u64,
    pub events: Vec<Value>,
}

#[derive(Debug, Clone, Default)]
pub struct WebhookView {
    pub webhook: Webhook,
    /// The newest first.
    pub attempts: Vec<Attempt>,
    /// Events that wait.
    pub behind: Option<u64>,
    pub failures_in_a_row: Option<u64>,
    pub dead_letters: Vec<DeadLetter>,
    /// Of a rotation just now.
    pub secret: Option<Secret>,
}

pub fn one(shell: &Shell, view: &WebhookView) -> Markup {
    let webhook = &view.webhook;
    let title = if webhook.name.is_empty() {
        &webhook.url
    } else {
        &webhook.name
    };
    let action = |verb: &str| paths::app(shell.app_id(), &["webhooks", &webhook.id, verb]);
    let may = may_change(shell);
    let mut head = Head::of_app(title, Place::Webhooks, shell)
        .lead(html! { (state(webhook)) " " code { (webhook.url) } })
        .actions(html! {
            @if may {
                (button(shell, &action("test"), "Send a sample"))
                (rotate(shell, &action("rotate")))
                @if webhook.enabled { (button(shell, &action("disable"), "Disable")) }
                @else { (button(shell, &action("enable"), "Enable")) }
                (delete(shell, &action("delete")))
            }
        });
    head.crumb("Webhooks", paths::app(shell.app_id(), &["webhooks"]));
    let dead: u64 = view.dead_letters.len() as u64;
    let number = |value: Option<u64>| value.map_or("–".to_owned(), format::count);
    let attempts: Vec<_> = view
        .attempts
        .iter()
        .map(|attempt| attempt_row(shell, attempt))
        .collect();
    let body = html! {
        @if let Some(secret) = &view.secret { (shown_once(shell, secret)) }
        @if let Some(until) = webhook.previous_secret_until.filter(|until| *until > shell.now_ms) {
            p class="hint" { "Two secrets sign: the old one ends " (time(shell, until)) "." }
        }
        dl class="tiles" {
            (tile("t-behind", "Waiting", &number(view.behind), "events to be delivered"))
            (tile("t-failures", "Failures", &number(view.failures_in_a_row), "in a row"))
            (tile("t-dead", "Dead letters", &format::count(dead), "given up"))
        }
        (dead_letters(shell, view, may))
        (card("log", "Deliveries", html! {
            @if attempts.is_empty() { (empty("No deliveries yet", "The last attempts are listed here.")) }
            @else { (table("Deliveries", &["Time", "Outcome", "#Attempt", "#Events", "#Took", "Delivery"], &attempts)) }
        }))
        @if may {
            @let path = paths::app(shell.app_id(), &["webhooks", &webhook.id]);
            details class="card disclosure" open[shell.sent_to(&path).is_some()] {
                summary { h2 { "Settings" } }
                (edit(shell, &path, webhook, "Save"))
            }
        }
    };
    page(shell, &head, &body)
}

fn rotate(shell: &Shell, action: &str) -> Markup {
    let overlaps = [
        ("0", "Not at all"),
        ("3600", "1 hour"),
        ("86400", "1 day"),
        ("604800", "7 days"),
    ];
    Confirm {
        id: "rotate",
        label: "Rotate secret",
        title: "Make another secret?",
        text: "For a while deliveries carry two signatures, so that your back end can take over the new secret.",
        action,
        verb: "Rotate",
        fields: select("rotate-overlap", "overlap_s", "The old secret signs for", &overlaps, "86400"),
        is_dangerous: false,
    }
    .render(shell)
}

fn delete(shell: &Shell, action: &str) -> Markup {
    Confirm {
        id: "delete",
        label: "Delete",
        title: "Delete the webhook?",
        text: "With what waits to be delivered and its dead letters. This cannot be undone.",
        action,
        verb: "Delete",
        fields: html! {},
        is_dangerous: true,
    }
    .render(shell)
}

fn dead_letters(shell: &Shell, view: &WebhookView, may_change: bool) -> Markup {
    let base = |rest: &[&str]| {
        let mut parts = vec!["webhooks", view.webhook.id.as_str(), "dead-letters"];
        parts.extend_from_slice(rest);
        paths::app(shell.app_id(), &parts)
    };
    let row = |letter: &DeadLetter| {
        html! {
            tr {
                td { (time(shell, letter.at)) }
                th scope="row" { (letter.error) code class="sub" { (letter.id) } }
                td class="num" { (letter.attempts) }
                td class="num" { (letter.count) }
                td class="row-actions" {
                    @if may_change {
                        (button(shell, &base(&[&letter.id, "replay"]), "Replay"))
                        (Confirm {
                            id: &format!("purge-{}", letter.id),
                            label: "Remove",
                            title: "Remove the dead letter?",
                            text: "Its events are never delivered.",
                            action: &base(&[&letter.id, "purge"]),
                            verb: "Remove",
                            fields: html! {},
                            is_dangerous: true,
                        }.render(shell))
                    }
                }
            }
        }
    };
    let rows: Vec<_> = view.dead_letters.iter().map(row).collect();
    card(
        "dead-letters",
        "Dead letters",
        html! {
            @if rows.is_empty() {
                (empty("No dead letters", "What could not be delivered after all attempts is kept here."))
            } @else {
                (table("Dead letters", &["Time", "Why", "#Attempts", "#Events", ""], &rows))
                @if may_change {
                    div class="actions" {
                        (button(shell, &base(&["replay"]), "Replay all"))
                        (Confirm {
                            id: "purge-all",
                            label: "Remove all",
                            title: "Remove all dead letters?",
                            text: "Their events are never delivered.",
                            action: &base(&["purge"]),
                            verb: "Remove all",
                            fields: html! {},
                            is_dangerous: true,
                        }.render(shell))
                    }
                }
            }
        },
    )
}

fn attempt_row(shell: &Shell, attempt: &Attempt) -> Markup {
    let (tone, outcome) = match (attempt.status, &attempt.error) {
        (Some(status @ 200..=299), None) => (Tone::Good, status.to_string()),
        (Some(status), _) => (Tone::Bad, status.to_string()),
        (None, _) => (Tone::Bad, "no answer".to_owned()),
    };
    html! {
        tr {
            td { (time(shell, attempt.at)) }
            td {
                (badge(tone, &outcome))
                @if let Some(error) = &attempt.error { span class="sub" { (error) } }
                @if let Some(response) = attempt.response.as_ref().filter(|text| !text.is_empty()) {
                    details class="quiet" { summary { "Answer" } pre tabindex="0" { (response) } }
                }
            }
            td class="num" { (attempt.attempt) }
            td class="num" { (attempt.events) }
            td class="num" { (format::count(attempt.ms)) " ms" }
            td { code { (attempt.id) } }
        }
    }
}
