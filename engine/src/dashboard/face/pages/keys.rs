//! The keys of an app: those that clients and back ends connect with, and those that tokens are signed with.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, button, card, copyable, csrf, empty, select, table, time, time_or,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, paths};

/// As the admin API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Key {
    pub id: String,
    pub name: String,
    /// `client` or `server`.
    pub kind: String,
    pub prefix: String,
    pub capabilities: Capabilities,
    pub disabled: bool,
    pub created_ms: u64,
    pub expires_ms: Option<u64>,
    pub last_used_ms: Option<u64>,
}

/// Channel patterns with the operations granted on them.
pub type Capabilities = BTreeMap<String, Vec<String>>;

/// As the admin API shows it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SigningKey {
    pub kid: String,
    pub algorithm: String,
    pub capabilities: Capabilities,
    pub disabled: bool,
    pub created_ms: u64,
    pub expires_ms: Option<u64>,
}

/// What is shown once, in the answer that makes it.
#[derive(Debug, Clone, Default)]
pub struct Secret {
    /// What it is: `Client key “web”`.
    pub label: String,
    pub value: String,
    pub is_client_key: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Keys {
    pub keys: Vec<Key>,
    pub signing_keys: Vec<SigningKey>,
    pub secret: Option<Secret>,
}

pub fn render(shell: &Shell, view: &Keys) -> Markup {
    let head = Head::of_app("Keys", Place::Keys, shell)
        .lead(html! { "Only a key’s first characters are kept in readable form." });
    let may = shell.can("POST", "/apps/{app}/keys");
    let may_sign = shell.can("POST", "/apps/{app}/signing-keys");
    let body = html! {
        @if let Some(secret) = &view.secret { (shown_once(shell, secret)) }
        (card("keys", "API keys", html! {
            @if view.keys.is_empty() {
                (empty("No keys", "Nobody can connect to this app."))
            } @else {
                @let rows: Vec<_> = view.keys.iter().map(|key| key_row(shell, key, may)).collect();
                (table("API keys", &["Key", "Kind", "Rights", "Created", "Last used", "State", ""], &rows))
            }
            @if may { (new_key(shell, view)) }
        }))
        (card("signing-keys", "Signing keys", html! {
            p class="hint" {
                "Your back end signs short-lived tokens (JWT) with them, so that each client has an identity and rights of its own."
            }
            @if view.signing_keys.is_empty() {
                (empty("No signing keys", "Clients can connect with API keys only."))
            } @else {
                @let rows: Vec<_> = view.signing_keys.iter().map(|key| signing_row(shell, key, may_sign)).collect();
                (table("Signing keys", &["Key id", "Algorithm", "Rights", "Created", "State", ""], &rows))
            }
            @if may_sign { (new_signing_key(shell)) }
        }))
    };
    page(shell, &head, &body)
}

pub(super) fn shown_once(shell: &Shell, secret: &Secret) -> Markup {
    html! {
        section class="card secret" aria-labelledby="secret-title" {
            h2 id="secret-title" { (secret.label) }
            p { strong { "This is shown once." } " Copy it and keep it where secrets are kept." }
            (copyable("secret", "The secret", &secret.value))
            @if secret.is_client_key {
                p { a class="button" href=(paths::app(shell.app_id(), &["console"])) { "Try it in the console" } }
            }
        }
    }
}

fn key_row(shell: &Shell, key: &Key, may_change: bool) -> Markup {
    let action = |verb: &str| paths::app(shell.app_id(), &["keys", &key.id, verb]);
    let label = if key.name.is_empty() {
        &key.id
    } else {
        &key.name
    };
    html! {
        tr {
            th scope="row" { (label) code class="sub" { (key.prefix) "…" } }
            td { (badge(if key.kind == "server" { Tone::Accent } else { Tone::Plain }, &key.kind)) }
            td { (rights(&key.capabilities)) }
            td { (time(shell, key.created_ms)) }
            td { (time_or(shell, key.last_used_ms, "never")) }
            td { (state(shell, key.disabled, key.expires_ms)) }
            td class="row-actions" {
                @if may_change {
                    (rotate(shell, key, label, &action("rotate")))
                    (on_off(shell, key.disabled, &action("enable"), &action("disable"), &format!("off-{}", key.id), label))
                    (delete(shell, &action("delete"), &format!("del-{}", key.id), label))
                }
            }
        }
    }
}

fn rotate(shell: &Shell, key: &Key, label: &str, action: &str) -> Markup {
    let id = format!("rot-{}", key.id);
    let overlaps = [
        ("0", "Not at all: it ends now"),
        ("3600", "1 hour"),
        ("86400", "1 day"),
        ("604800", "7 days"),
    ];
    Confirm {
        id: &id,
        label: "Rotate",
        title: &format!("Rotate {label}?"),
        text: "A second key with the same rights is made. The old one stays valid for a while, so that you can exchange it everywhere.",
        action,
        verb: "Rotate",
        fields: select(&format!("{id}-overlap"), "overlap_s", "The old key stays valid for", &overlaps, "86400"),
        is_dangerous: false,
    }
    .render(shell)
}

/// Turning on needs no second thought; turning off ends connections.
fn on_off(
    shell: &Shell,
    is_off: bool,
    enable: &str,
    disable: &str,
    id: &str,
    label: &str,
) -> Markup {
    if is_off {
        return button(shell, enable, "Enable");
    }
    Confirm {
        id,
        label: "Disable",
        title: &format!("Disable {label}?"),
        text: "Its connections end at once, and new ones are refused until it is enabled again.",
        action: disable,
        verb: "Disable",
        fields: html! {},
        is_dangerous: false,
    }
    .render(shell)
}

fn delete(shell: &Shell, action: &str, id: &str, label: &str) -> Markup {
    Confirm {
        id,
        label: "Delete",
        title: &format!("Delete {label}?"),
        text: "Whoever uses it is cut off at once. This cannot be undone.",
        action,
        verb: "Delete",
        fields: html! {},
        is_dangerous: true,
    }
    .render(shell)
}

/// Rights in a line; all of them behind a click where there are many.
fn rights(capabilities: &Capabilities) -> Markup {
    let line = |pattern: &str, operations: &[String]| {
        let all = operations.iter().any(|operation| operation == "*");
        let operations = if all {
            "everything".to_owned()
        } else {
            operations.join(", ")
        };
        html! { code { (pattern) } " " (operations) }
    };
    let mut entries = capabilities.iter();
    html! {
        @match (entries.next(), entries.len()) {
            (None, _) => { span class="muted" { "none" } }
            (Some((pattern, operations)), 0) => { (line(pattern, operations)) }
            (Some(_), more) => {
                details class="quiet" {
                    summary { (more + 1) " patterns" }
                    ul class="bare" { @for (pattern, operations) in capabilities { li { (line(pattern, operations)) } } }
                }
            }
        }
    }
}

fn state(shell: &Shell, is_disabled: bool, expires_ms: Option<u64>) -> Markup {
    html! {
        @match expires_ms {
            _ if is_disabled => { (badge(Tone::Bad, "disabled")) }
            Some(end_ms) if end_ms <= shell.now_ms => { (badge(Tone::Bad, "expired")) }
            Some(end_ms) => { (badge(Tone::Warn, "ends")) " " (time(shell, end_ms)) }
            None => { (badge(Tone::Good, "active")) }
        }
    }
}

fn new_key(shell: &Shell, view: &Keys) -> Markup {
    let kinds = [
        ("client", "Client: in browsers and devices"),
        ("server", "Server: in your back end only"),
    ];
    let ends = [
        ("", "Never"),
        ("86400", "In 1 day"),
        ("2592000", "In 30 days"),
        ("31536000", "In 1 year"),
    ];
    let action = paths::app(shell.app_id(), &["keys"]);
    let sent = shell.sent_to(&action);
    html! {
        details class="disclosure" open[sent.is_some() || view.keys.is_empty()] {
            summary { h3 { "New key" } }
            form method="post" action=(action) class="form" {
                (csrf(shell))
                div class="columns" {
                    (Field::new("name", "Name").max(128).sent(sent).scope("key")
                        .hint("Where it is used."))
                    (select("key-kind", "kind", "Kind", &kinds, sent.or("kind", "client")))
                    (select("key-ends", "expires_in_s", "Ends", &ends, sent.or("expires_in_s", "")))
                }
                (Field::new("capabilities", "Rights").rows(3).sent(sent).scope("key")
                    .hint("JSON of channel patterns and operations, such as {\"chat:*\": [\"subscribe\", \"publish\"]}. Left empty: what its kind usually may."))
                div class="actions" { button type="submit" class="button primary" { "Make the key" } }
            }
        }
    }
}

fn signing_row(shell: &Shell, key: &SigningKey, may_change: bool) -> Markup {
    let action = |verb: &str| paths::app(shell.app_id(), &["signing-keys", &key.kid, verb]);
    let id = |verb: &str| format!("s{verb}-{}", key.kid);
    html! {
        tr {
            th scope="row" { code { (key.kid) } }
            td { (key.algorithm) }
            td { (rights(&key.capabilities)) }
            td { (time(shell, key.created_ms)) }
            td { (state(shell, key.disabled, key.expires_ms)) }
            td class="row-actions" {
                @if may_change {
                    (on_off(shell, key.disabled, &action("enable"), &action("disable"), &id("off"), &key.kid))
                    (delete(shell, &action("delete"), &id("del"), &key.kid))
                }
            }
        }
    }
}

fn new_signing_key(shell: &Shell) -> Markup {
    let algorithms = [
        ("HS256", "HS256: a shared secret"),
        ("RS256", "RS256: your public RSA key"),
        ("ES256", "ES256: your public P-256 key"),
        ("EdDSA", "EdDSA: your public Ed25519 key"),
    ];
    let action = paths::app(shell.app_id(), &["signing-keys"]);
    let sent = shell.sent_to(&action);
    html! {
        details class="disclosure" open[sent.is_some()] {
            summary { h3 { "New signing key" } }
            form method="post" action=(action) class="form" {
                (csrf(shell))
                div class="columns" {
                    (select("sign-algorithm", "algorithm", "Algorithm", &algorithms, sent.or("algorithm", "HS256")))
                    (Field::new("kid", "Key id").max(64).sent(sent).scope("sign")
                        .hint("Goes into the token’s head. Left empty, one is made."))
                }
                (Field::new("pem", "Public key").rows(4).sent(sent).scope("sign")
                    .hint("PEM. For HS256 leave it empty: a random secret is made and shown once."))
                div class="actions" { button type="submit" class="button primary" { "Add the signing key" } }
            }
        }
    }
}
