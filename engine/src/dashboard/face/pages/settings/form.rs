//! The form of an app's settings. Its fields are named by where they are in the document: see `dashboard::pages::settings`,
//! which reads it.

use maud::{Markup, html};
use serde_json::Value;
use shardwire_proto::rate::table::{Class, Place as RatePlace, Scope, counts};

use super::{Settings, pretty};
use crate::dashboard::face::components::{Field, card, checkbox, form, select};
use crate::dashboard::face::{Sent, Shell, paths};

/// Switches of a namespace: field, label, whether it is on in one that does not say.
pub const NAMESPACE_SWITCHES: [(&str, &str, bool); 4] = [
    ("history", "Clients may read history", true),
    ("persist", "Messages are stored", true),
    (
        "push_offline",
        "Members who are away are notified by push",
        false,
    ),
    (
        "ephemeral_when_degraded",
        "Ephemeral messages also while the broker is away",
        false,
    ),
];

/// Numbers of a namespace: field, label, unit or meaning.
pub const NAMESPACE_NUMBERS: [(&str, &str, &str); 5] = [
    ("messages_max", "Messages kept", "Of a channel."),
    ("ttl_s", "Kept for, seconds", "At least 120."),
    (
        "presence_members_max",
        "Members at most",
        "Present in a channel.",
    ),
    (
        "presence_events_max",
        "Members told one by one",
        "Above it only their number is told.",
    ),
    (
        "push_debounce_s",
        "Seconds between notifications",
        "Messages meanwhile are one.",
    ),
];

/// What the fields stand for: what was sent, or the document.
struct Values<'a> {
    sent: &'a Sent,
    settings: &'a Value,
}

impl Values<'_> {
    /// What is at a path such as `limits.connectionsMax`; empty where nothing is.
    fn of(&self, name: &str) -> String {
        match self
            .settings
            .pointer(&format!("/{}", name.replace('.', "/")))
        {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
            _ => String::new(),
        }
    }

    fn number(&self, name: &str, label: &str, hint: &str) -> Markup {
        let value = self.of(name);
        let field = Field::new(name, label).number(0).value(&value).hint(hint);
        html! { (field.bare().sent(self.sent)) }
    }

    fn text(&self, name: &str, label: &str, hint: &str) -> Markup {
        let value = self.of(name);
        let field = Field::new(name, label).max(2048).value(&value).hint(hint);
        html! { (field.bare().sent(self.sent)) }
    }

    /// A choice of yes, no, and whatever the server has.
    fn switch(&self, name: &str, label: &str, [yes, no]: [&str; 2]) -> Markup {
        let value = self.of(name);
        let options = [("", "As the server has it"), ("true", yes), ("false", no)];
        let chosen = self.sent.or(name, &value);
        select(&format!("f-{name}"), name, label, &options, chosen)
    }

    fn tick(&self, name: &str, label: &str, is_on: bool) -> Markup {
        let is_on = self.sent.ticked(name, "1", is_on);
        checkbox(&format!("f-{name}"), name, "1", label, is_on)
    }
}

pub(super) fn edit(shell: &Shell, view: &Settings) -> Markup {
    let app = &view.app;
    let action = paths::app(&app.id, &[]);
    let values = Values {
        sent: shell.sent_to(&action),
        settings: &app.settings,
    };
    let body = html! {
        (card("general", "General", html! {
            (Field::new("name", "Name").value(&app.name).max(128).bare().sent(values.sent).hint("For people."))
            p class="hint" { "Whatever is left empty below is as the server has it." }
        }))
        (card("clients", "Who may connect", clients(shell, view, &values)))
        (card("limits", "Limits", limits(view, shell, &values)))
        (card("namespaces", "Channels", namespaces(&values)))
        div class="actions save" { button type="submit" class="button primary" { "Save the settings" } }
    };
    html! {
        (form(shell, &action, body))
        (json(shell, view))
    }
}

fn clients(shell: &Shell, view: &Settings, values: &Values) -> Markup {
    let origins = view.app.settings["allowedOrigins"].as_array();
    let list: Vec<&str> = origins
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let list = list.join("\n");
    let is_any = origins.is_some_and(Vec::is_empty);
    html! {
        div class="columns" {
            (values.switch("selfAssertedIds", "Clients choose their id", ["Yes, with ?clientId=", "No, tokens say who they are"]))
            (values.switch("hello", "First a “connected” frame", ["Yes", "No"]))
            @if shell.has_push {
                (values.switch("pushOpenMembers", "Client keys change push enrolments", ["Yes", "No, they only add them"]))
            }
        }
        (Field::new("allowedOrigins", "Pages that may open sockets").value(&list).rows(3).bare().sent(values.sent)
            .hint("Origins such as https://example.com, one a line."))
        (values.tick("origins.any", "Any page may", is_any))
        (values.text("jwksUrl", "Public keys of tokens", "An address that begins with https:// and answers with a JSON Web Key Set."))
        @if shell.is_operator() {
            (values.text("jwksFile", "The same, from a file", "A path on the server."))
        }
    }
}

fn limits(view: &Settings, shell: &Shell, values: &Values) -> Markup {
    let plan = values.of("plan");
    let mut wrong = values.sent.errors.keys();
    let is_open = values.settings["limits"]["rates"].is_object()
        || wrong.any(|name| name.starts_with("limits.rates."));
    html! {
        @if shell.is_operator() {
            @let mut options = vec![("", "None: nothing is limited in all")];
            @let () = options.extend(view.plans.iter().map(|id| (id.as_str(), id.as_str())));
            (select("f-plan", "plan", "Plan", &options, values.sent.or("plan", &plan)))
        } @else if !plan.is_empty() {
            p { "Plan: " strong { (plan) } }
        }
        div class="columns" {
            (values.number("limits.connectionsMax", "Connections", "At the same time."))
            (values.number("limits.channelsPerConnMax", "Channels of a connection", "Subscribed at the same time."))
            (values.number("limits.publishBytesMax", "Bytes of a message", "Of its data; not above the server’s."))
        }
        (rate(values, "limits.publishRate", "Publishes of a connection", false))
        details class="quiet" open[is_open] {
            summary { "Rates of what clients do" }
            div class="rates" {
                @for class in Class::ALL {
                    @for scope in Scope::ALL {
                        @if counts(class, scope, RatePlace::App) {
                            @let name = format!("limits.rates.{}.{}", class.label(), scope.label());
                            (rate(values, &name, &format!("{}, {}", class_name(class), scope_name(scope)), true))
                        }
                    }
                }
            }
        }
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Publish => "Publishing",
        Class::Subscribe => "Subscribing",
        Class::Presence => "Presence",
        Class::History => "Reading history",
        Class::Connect => "Connecting",
        Class::Http => "HTTP calls",
    }
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Connection => "of a connection",
        Scope::Client => "of a client id",
        Scope::Channel => "of a channel",
        Scope::App => "of the app",
        Scope::Address => "of an address",
    }
}

/// Number, window and burst of a rate; with `has_off` also a box that lifts what the server has.
fn rate(values: &Values, name: &str, title: &str, has_off: bool) -> Markup {
    let part = |part: &str| format!("{name}.{part}");
    html! {
        fieldset class="part" {
            legend class="legend" { (title) }
            div class="triple" {
                (values.number(&part("per_window"), "Number", ""))
                (values.number(&part("window_ms"), "Window, ms", ""))
                (values.number(&part("burst"), "At once", ""))
            }
            @if has_off { (values.tick(&part("off"), "No limit", values.of(name) == "false")) }
        }
    }
}

fn namespaces(values: &Values) -> Markup {
    let kept = values.settings["namespaces"].as_array().map_or(0, Vec::len);
    html! {
        p class="hint" {
            "What is kept of channels whose names match a pattern such as chat:*. The first that matches counts. \
             Without its pattern one is removed."
        }
        @for n in 0..kept { (namespace(values, n, false)) }
        @let is_sent = !values.sent.or(&format!("namespaces.{kept}.pattern"), "").is_empty();
        details class="disclosure" open[is_sent] {
            summary { h3 { "Another pattern" } }
            (namespace(values, kept, true))
        }
    }
}

fn namespace(values: &Values, n: usize, is_another: bool) -> Markup {
    let name = |field: &str| format!("namespaces.{n}.{field}");
    let pattern = values.of(&name("pattern"));
    let place = (n + 1).to_string();
    let sync = values.of(&name("sync"));
    let syncs = [
        ("process", "Survives the end of the process"),
        ("disk", "Survives a power cut"),
    ];
    let legend = if is_another {
        "Another pattern"
    } else {
        &pattern
    };
    html! {
        fieldset class="part" {
            legend class=(if is_another { "sr" } else { "legend" }) { (legend) }
            input type="hidden" name=(name("was")) value=(pattern);
            div class="columns wide-first" {
                (values.text(&name("pattern"), "Pattern", ""))
                (Field::new(&name("place"), "Place").number(1).value(&place).bare().sent(values.sent))
            }
            div class="checks" {
                @for (field, label, otherwise) in NAMESPACE_SWITCHES {
                    @let value = values.of(&name(field));
                    (values.tick(&name(field), label, if value.is_empty() { otherwise } else { value == "true" }))
                }
            }
            div class="columns" {
                @for (field, label, hint) in NAMESPACE_NUMBERS { (values.number(&name(field), label, hint)) }
                (select(&format!("f-{}", name("sync")), &name("sync"), "An acknowledged message", &syncs,
                    values.sent.or(&name("sync"), &sync)))
            }
        }
    }
}

/// The whole document as it is.
fn json(shell: &Shell, view: &Settings) -> Markup {
    let action = paths::app(&view.app.id, &["settings"]);
    let sent = shell.sent_to(&action);
    let body = html! {
        (Field::new("settings", "Settings").value(&pretty(&view.app.settings)).rows(12).bare().sent(sent)
            .hint("JSON, as the admin API has it; rates of namespaces can be set here alone. What is left out is as the server has it."))
        div class="actions" { button type="submit" class="button" { "Save the JSON" } }
    };
    html! {
        details class="card disclosure" open[sent.is_some()] {
            summary { h2 { "Advanced: the settings as JSON" } }
            (form(shell, &action, body))
        }
    }
}
