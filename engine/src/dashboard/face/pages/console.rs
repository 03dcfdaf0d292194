//! The live console: a client of the server in the page. `console.js` makes it work; here are its controls.

use maud::{Markup, html};

use crate::dashboard::face::components::{Field, checkbox, select};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, paths};

#[derive(Debug, Clone, Default)]
pub struct Console {
    /// Where clients connect: `ws://host:9001/`.
    pub ws_url: String,
    /// To begin with; may be empty.
    pub channel: String,
}

pub fn render(shell: &Shell, view: &Console) -> Markup {
    let head = Head::of_app("Console", Place::Console, shell)
        .lead(html! { "A real client in this page, against " code { (view.ws_url) } })
        .scripts(&["console.js"]);
    let api = paths::to(&["api", "apps", shell.app_id()]);
    let may_mint = shell.can("POST", "/apps/{app}/tokens");
    let body = html! {
        noscript { div class="flash bad" { "The console needs JavaScript. All else here works without." } }
        div class="console" id="console" data-ws=(view.ws_url) data-api=(api) data-app=(shell.app_id())
            data-mint=[may_mint.then_some("yes")] {
            div class="console-controls" {
                (connect(may_mint))
                (subscribe(&view.channel))
                (publish(&view.channel))
                (presence())
                (history())
            }
            (log())
        }
    };
    page(shell, &head, &body)
}

/// A group of controls, open or closed.
fn group(id: &str, title: &str, is_open: bool, body: Markup) -> Markup {
    html! {
        details class="card disclosure" open[is_open] id=(id) {
            summary { h2 { (title) } }
            (body)
        }
    }
}

fn connect(may_mint: bool) -> Markup {
    let ways: &[(&str, &str)] = if may_mint {
        &[
            ("token", "A token made here"),
            ("key", "An API key"),
            ("jwt", "A token of mine"),
        ]
    } else {
        &[("key", "An API key"), ("jwt", "A token of mine")]
    };
    let body = html! {
        form class="form" id="connect-form" autocomplete="off" {
            (select("connect-way", "way", "With", ways, ""))
            div data-way="key" { (Field::new("key", "Key").scope("connect").required()) }
            div data-way="jwt" { (Field::new("jwt", "Token").scope("connect").required()) }
            div data-way="token" {
                div class="columns tight" {
                    (Field::new("client", "Client id").scope("connect").max(128).hint("Empty: anonymous."))
                    (Field::new("pattern", "Channels").scope("connect").value("*").required().hint("A pattern it may use."))
                }
            }
            div class="flash warn" id="sign-notice" role="alert" hidden {
                p { "This app has no signing key of kind HS256 to make tokens with." }
                button type="button" class="button small" id="sign-make" { "Make one and connect" }
            }
            (checkbox("connect-echo", "echo", "1", "Get what I publish myself", true))
            div class="actions" {
                button type="submit" class="button primary" id="connect" { "Connect" }
            }
        }
    };
    group("g-connect", "Connection", true, body)
}

fn subscribe(channel: &str) -> Markup {
    let body = html! {
        form class="form" id="subscribe-form" autocomplete="off" {
            div class="columns wide-first" {
                (Field::new("channel", "Channel").scope("sub").value(channel).required().max(255))
                (Field::new("rewind", "Rewind").scope("sub").kind("number"))
            }
            div class="actions" { button type="submit" class="button" id="subscribe" disabled { "Subscribe" } }
        }
        ul class="chips" id="subscriptions" aria-label="Subscribed channels" {}
    };
    group("g-subscribe", "Subscribe", true, body)
}

fn publish(channel: &str) -> Markup {
    let body = html! {
        form class="form" id="publish-form" autocomplete="off" {
            (Field::new("channel", "Channel").scope("pub").value(channel).required().max(255))
            (Field::new("data", "Data").scope("pub").rows(4).value("{\"text\": \"hello\"}").required()
                .hint("JSON. Ctrl+Enter publishes."))
            (checkbox("pub-persist", "persist", "1", "Keep in history", true))
            div class="actions" { button type="submit" class="button primary" id="publish" disabled { "Publish" } }
        }
    };
    group("g-publish", "Publish", true, body)
}

fn presence() -> Markup {
    let body = html! {
        form class="form" id="presence-form" autocomplete="off" {
            (Field::new("channel", "Channel").scope("presence").required().max(255))
            (Field::new("state", "State").scope("presence").rows(2).hint("A JSON object."))
            div class="actions" {
                button type="submit" class="button" value="enter" disabled { "Enter" }
                button type="submit" class="button" value="update" disabled { "Update" }
                button type="submit" class="button" value="leave" disabled { "Leave" }
                button type="submit" class="button" value="get" disabled { "Who is there?" }
            }
        }
        div class="table" id="members-box" role="region" aria-label="Members" tabindex="0" hidden {
            table {
                caption class="sr" { "Members" }
                thead { tr { th scope="col" { "Member" } th scope="col" { "State" } th scope="col" { "Since" } } }
                tbody id="members" {}
            }
        }
    };
    group("g-presence", "Presence", false, body)
}

fn history() -> Markup {
    let directions = [("backward", "Newest first"), ("forward", "Oldest first")];
    let body = html! {
        form class="form" id="history-form" autocomplete="off" {
            (Field::new("channel", "Channel").scope("history").required().max(255))
            div class="columns tight" {
                (Field::new("limit", "Limit").scope("history").kind("number").value("20"))
                (select("history-direction", "direction", "Order", &directions, "backward"))
            }
            div class="actions" {
                button type="submit" class="button" id="history" disabled { "Fetch" }
                button type="button" class="button" id="history-more" disabled { "Next page" }
            }
        }
    };
    group("g-history", "History", false, body)
}

fn log() -> Markup {
    html! {
        section class="card console-log" aria-labelledby="log-title" {
            div class="log-head" {
                h2 id="log-title" { "Log" }
                span class="badge" id="state" role="status" { "not connected" }
                button type="button" class="button small" id="disconnect" disabled { "Disconnect" }
                button type="button" class="button small" id="reconnect" disabled
                    title="Ends the connection and comes back, with what was missed" { "Reconnect" }
                span class="muted num" id="log-count" {}
            }
            div class="log-tools" {
                label class="sr" for="log-filter" { "Show lines that contain" }
                input type="search" id="log-filter" placeholder="Filter" autocomplete="off";
                label class="sr" for="log-kind" { "Kind" }
                select id="log-kind" {
                    option value="" { "Everything" }
                    option value="message" { "Messages" }
                    option value="presence" { "Presence" }
                    option value="error" { "Errors" }
                    option value="sent" { "Sent" }
                }
                button type="button" class="button small" id="log-pause" aria-pressed="false" { "Pause" }
                button type="button" class="button small" id="log-clear" { "Clear" }
                button type="button" class="button small" id="log-save" { "Save" }
            }
            div id="log" class="log" role="log" aria-label="Frames, the newest last" tabindex="0" {
                p class="empty-title" id="log-empty" { "What comes and goes is listed here." }
            }
        }
    }
}
