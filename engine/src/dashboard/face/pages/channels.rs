//! Channels in use, and one of them with who is there and what was said last.

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, card, empty, more, table, tile, time,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, format, paths};

/// As the admin API lists it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChannelSummary {
    pub channel: String,
    pub subscribers: u64,
    pub members: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Channels {
    pub channels: Vec<ChannelSummary>,
    /// Of the next page.
    pub cursor: Option<String>,
    /// What names were asked to begin with.
    #[serde(skip)]
    pub prefix: String,
}

pub fn render(shell: &Shell, view: &Channels) -> Markup {
    let head = Head::of_app("Channels", Place::Channels, shell)
        .lead(html! { "In use now: somebody is subscribed or present." });
    let path = paths::app(shell.app_id(), &["channels"]);
    let next = view
        .cursor
        .as_deref()
        .map(|cursor| paths::with_query(&path, &[("prefix", &view.prefix), ("cursor", cursor)]));
    let rows: Vec<_> = view
        .channels
        .iter()
        .map(|channel| row(shell, channel))
        .collect();
    let body = html! {
        form method="get" action=(path) class="filter" role="search" {
            (Field::new("prefix", "Name begins with").value(&view.prefix).max(255))
            button type="submit" class="button" { "Show" }
        }
        @if rows.is_empty() && view.prefix.is_empty() {
            (empty("No channels in use", "A channel is there as soon as somebody subscribes to it."))
            p { a class="button" href=(paths::app(shell.app_id(), &["console"])) { "Try it in the console" } }
        } @else if rows.is_empty() {
            (empty("No such channel is in use", "Those that nobody uses have a page too: by their full name."))
            p { a class="button" href=(paths::app(shell.app_id(), &["channels", &view.prefix])) { "Open " (view.prefix) } }
        } @else {
            (table("Channels", &["Channel", "#Subscribers", "#Members", ""], &rows))
            (more(next.as_deref()))
        }
    };
    page(shell, &head, &body)
}

fn row(shell: &Shell, channel: &ChannelSummary) -> Markup {
    let name = &channel.channel;
    let console = paths::app(shell.app_id(), &["console"]);
    html! {
        tr {
            th scope="row" {
                a class="code" href=(paths::app(shell.app_id(), &["channels", name])) { (name) }
            }
            td class="num" { (format::count(channel.subscribers)) }
            td class="num" { (format::count(channel.members)) }
            td class="row-actions" {
                a href=(paths::with_query(&console, &[("channel", name)])) {
                    "Console" span class="sr" { " on " (name) }
                }
            }
        }
    }
}

/// A channel: the answers of three calls.
#[derive(Debug, Clone, Default)]
pub struct Channel {
    pub state: ChannelState,
    pub presence: Presence,
    /// The newest first.
    pub history: History,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChannelState {
    pub channel: String,
    pub occupied: bool,
    pub subscribers: u64,
    pub members: u64,
    pub last_sequence: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Presence {
    pub members: Vec<Member>,
    pub total: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    pub client_id: String,
    pub data: Value,
    pub joined_at: u64,
    pub connections: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    pub messages: Vec<Message>,
    pub has_more: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Message {
    pub id: String,
    pub data: Value,
    pub publisher_id: String,
    pub timestamp: u64,
    pub sequence: u64,
}

/// Characters of a message's data that are shown before a click.
const TEASER_CHARS: usize = 120;

pub fn one(shell: &Shell, view: &Channel) -> Markup {
    let state = &view.state;
    let name = &state.channel;
    let mut head = Head::of_app(name, Place::Channels, shell)
        .lead(html! {
            @if state.occupied { (badge(Tone::Good, "in use")) } @else { (badge(Tone::Plain, "not in use")) }
        })
        .actions(html! {
            @let console = paths::app(shell.app_id(), &["console"]);
            a class="button" href=(paths::with_query(&console, &[("channel", name)])) { "Open in the console" }
            @if shell.can("DELETE", "/apps/{app}/channels/{channel}/messages") { (clear(shell, name)) }
        });
    head.crumb("Channels", paths::app(shell.app_id(), &["channels"]));
    let members: Vec<_> = view
        .presence
        .members
        .iter()
        .map(|member| member_row(shell, member))
        .collect();
    let messages: Vec<_> = view
        .history
        .messages
        .iter()
        .map(|message| message_row(shell, message))
        .collect();
    let body = html! {
        dl class="tiles" {
            (tile("t-subscribers", "Subscribers", &format::count(state.subscribers), "connections"))
            (tile("t-members", "Members", &format::count(state.members), "present"))
            (tile("t-sequence", "Last sequence", &format::count(state.last_sequence), "messages ever stored"))
        }
        (card("messages", "Last messages", html! {
            @if messages.is_empty() {
                (empty("No messages are kept", "What is published is listed here, if the channel keeps history."))
            } @else {
                (table("Last messages", &["#Seq", "Time", "From", "Data"], &messages))
                @if view.history.has_more { p class="hint" { "Older ones are in the history: fetch them in the console." } }
            }
        }))
        (card("members", "Members", html! {
            @if members.is_empty() {
                (empty("Nobody is present", "Being present is more than being subscribed: clients enter and leave."))
            } @else {
                (table("Members", &["Client", "State", "#Connections", "Since"], &members))
                @let shown = members.len() as u64;
                @if shown < view.presence.total {
                    p class="hint" { (format::count(shown)) " of " (format::count(view.presence.total)) " are shown." }
                }
            }
        }))
    };
    page(shell, &head, &body)
}

fn clear(shell: &Shell, channel: &str) -> Markup {
    Confirm {
        id: "clear",
        label: "Remove messages",
        title: "Remove all messages of the channel?",
        text: "History is emptied for everybody; clients that come back cannot get them. This cannot be undone.",
        action: &paths::app(shell.app_id(), &["channels", channel, "clear"]),
        verb: "Remove them",
        fields: html! {},
        is_dangerous: true,
    }
    .render(shell)
}

fn member_row(shell: &Shell, member: &Member) -> Markup {
    html! {
        tr {
            th scope="row" { (member.client_id) }
            td { (data(&member.data)) }
            td class="num" { (format::count(member.connections.max(1))) }
            td { (time(shell, member.joined_at)) }
        }
    }
}

fn message_row(shell: &Shell, message: &Message) -> Markup {
    html! {
        tr {
            td class="num" { (message.sequence) }
            td { (time(shell, message.timestamp)) }
            td { (message.publisher_id) }
            td { (data(&message.data)) }
        }
    }
}

/// JSON in a line; all of it behind a click where it is long.
fn data(value: &Value) -> Markup {
    if value.is_null() {
        return html! { span class="muted" { "–" } };
    }
    let line = value.to_string();
    let teaser: String = line.chars().take(TEASER_CHARS).collect();
    html! {
        @if teaser.len() == line.len() {
            code { (line) }
        } @else {
            details class="quiet" {
                summary { code { (teaser) "…" } }
                pre tabindex="0" { (serde_json::to_string_pretty(value).unwrap_or(line)) }
            }
        }
    }
}
