//! One's own account: profile, sessions, password, second factor.

use maud::{Markup, html};
use qrcode::{Color, EcLevel, QrCode};
use serde::Deserialize;
use shardwire_proto::account::password::PASSWORD_CHARS_MIN;

use super::audit::{Entry, entries};
use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, card, copyable, form, table, time,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, paths};

#[derive(Debug, Clone, Default)]
pub struct Profile {
    pub name: String,
    pub email: String,
    pub is_verified: bool,
    /// The address that waits to be confirmed.
    pub pending_email: Option<String>,
    /// Whether a code is asked for too.
    pub has_second_factor: bool,
}

pub fn profile(shell: &Shell, view: &Profile) -> Markup {
    let action = paths::to(&["account"]);
    let body = html! {
        div class="grid-2" {
            (card("you", "You", form(shell, &action, html! {
                (Field::new("name", "Name").value(&view.name).required().max(80).autocomplete("name")
                    .sent(shell.sent_to(&action)))
                div class="actions" { button type="submit" class="button primary" { "Save" } }
            })))
            (card("address", "E-mail address", address(shell, view)))
        }
    };
    page(shell, &Head::new("Profile", Place::Account), &body)
}

fn address(shell: &Shell, view: &Profile) -> Markup {
    let action = paths::to(&["account", "email"]);
    let sent = shell.sent_to(&action);
    let fields = html! {
        (Field::new("email", "New address").kind("email").required().max(254).autocomplete("email").sent(sent)
            .hint("A link goes there; until it is opened nothing changes. Your address so far is told too."))
        (Field::new("password", "Your password").kind("password").required().autocomplete("current-password")
            .scope("address").sent(sent))
        @if view.has_second_factor {
            (Field::new("code", "Code").required().autocomplete("one-time-code").max(32).sent(sent)
                .hint("Of your authenticator app, or a recovery code."))
        }
        div class="actions" { button type="submit" class="button" { "Change the address" } }
    };
    html! {
        p {
            (view.email) " "
            @if view.is_verified { (badge(Tone::Good, "confirmed")) } @else { (badge(Tone::Warn, "not confirmed")) }
        }
        @if let Some(pending) = &view.pending_email {
            div class="line" {
                p { (pending) " " (badge(Tone::Warn, "waits for its link to be opened")) }
                (crate::dashboard::face::components::button(shell, &paths::to(&["account", "email", "keep"]), "Keep the old one"))
            }
        }
        details class="disclosure" open[sent.is_some()] {
            summary { h3 { "Change the address" } }
            (form(shell, &action, fields))
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Session {
    pub id: String,
    pub created_ms: u64,
    pub seen_ms: u64,
    pub expires_ms: u64,
    pub address: String,
    /// What the browser calls itself.
    pub agent: String,
    /// The one that looks.
    pub current: bool,
}

pub fn sessions(shell: &Shell, sessions: &[Session]) -> Markup {
    let end_others = Confirm {
        id: "end-others",
        label: "End all others",
        title: "End all other sessions?",
        text: "Wherever else you are signed in you have to sign in again.",
        action: &paths::to(&["account", "sessions", "end-others"]),
        verb: "End them",
        fields: html! {},
        is_dangerous: true,
    };
    let head = Head::new("Sessions", Place::Sessions)
        .lead(html! { "Where you are signed in." })
        .actions(html! { @if sessions.len() > 1 { (end_others.render(shell)) } });
    let rows: Vec<_> = sessions
        .iter()
        .map(|session| {
            let end = paths::to(&["account", "sessions", &session.id, "end"]);
            html! {
                tr {
                    th scope="row" {
                        (browser(&session.agent)) @if session.current { " " (badge(Tone::Accent, "this one")) }
                        span class="sub" { (session.address) }
                    }
                    td { (time(shell, session.created_ms)) }
                    td { (time(shell, session.seen_ms)) }
                    td { (time(shell, session.expires_ms)) }
                    td class="row-actions" {
                        @if !session.current { (crate::dashboard::face::components::button(shell, &end, "End")) }
                    }
                }
            }
        })
        .collect();
    let body = table(
        "Sessions",
        &["Browser", "Signed in", "Last seen", "Ends", ""],
        &rows,
    );
    page(shell, &head, &body)
}

/// `Firefox on Linux`; what it calls itself where that says nothing known.
fn browser(agent: &str) -> String {
    // Order matters: most of them claim to be Safari, and several to be Chrome.
    let browsers = [
        ("Firefox/", "Firefox"),
        ("Edg/", "Edge"),
        ("OPR/", "Opera"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
        ("curl/", "curl"),
    ];
    let systems = [
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    ];
    let find = |known: &[(&str, &'static str)]| {
        let found = known.iter().find(|(part, _)| agent.contains(part));
        found.map(|(_, name)| *name)
    };
    match (find(&browsers), find(&systems)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(name), None) => name.to_owned(),
        _ if agent.is_empty() => "Unknown".to_owned(),
        _ => agent.chars().take(60).collect(),
    }
}

#[derive(Debug, Clone, Default)]
pub struct Security {
    pub has_second_factor: bool,
    /// Recovery codes that are left, where it is known.
    pub codes_left: Option<u64>,
    /// What happened to the account of late.
    pub entries: Vec<Entry>,
}

pub fn security(shell: &Shell, view: &Security) -> Markup {
    let head = Head::new("Security", Place::Security);
    let body = html! {
        div class="grid-2" {
            (card("password", "Password", password(shell)))
            (card("second-factor", "Second factor", second_factor(shell, view)))
        }
        (card("events", "What happened", entries(shell, &view.entries)))
    };
    page(shell, &head, &body)
}

fn password(shell: &Shell) -> Markup {
    let action = paths::to(&["account", "password"]);
    let sent = shell.sent_to(&action);
    let hint = format!("{PASSWORD_CHARS_MIN} characters or more.");
    let fields = html! {
        (Field::new("current", "Password now").kind("password").required().autocomplete("current-password")
            .scope("pw").sent(sent))
        (Field::new("password", "New password").kind("password").required().autocomplete("new-password")
            .scope("pw").sent(sent).hint(&hint))
        div class="actions" { button type="submit" class="button primary" { "Change the password" } }
    };
    html! {
        p class="hint" { "Your other sessions end." }
        (form(shell, &action, fields))
    }
}

fn second_factor(shell: &Shell, view: &Security) -> Markup {
    let [begin, end, codes] = [
        &["account", "totp"][..],
        &["account", "totp", "remove"],
        &["account", "recovery-codes"],
    ]
    .map(paths::to);
    let own_password = |scope: &'static str, action: &str| {
        html! {
            (Field::new("password", "Your password").kind("password").required()
                .autocomplete("current-password").scope(scope).sent(shell.sent_to(action)))
        }
    };
    html! {
        @if view.has_second_factor {
            p {
                (badge(Tone::Good, "on")) " Signing in asks for a code from your app."
                @if let Some(left) = view.codes_left { " " (left) " recovery codes are left." }
            }
            div class="actions" {
                (Confirm {
                    id: "codes",
                    label: "New recovery codes",
                    title: "Make new recovery codes?",
                    text: "The old ones are worth nothing afterwards.",
                    action: &codes,
                    verb: "Make them",
                    fields: own_password("codes", &codes),
                    is_dangerous: false,
                }.render(shell))
                (Confirm {
                    id: "totp-off",
                    label: "Turn off",
                    title: "Turn the second factor off?",
                    text: "Your password alone is enough to sign in afterwards.",
                    action: &end,
                    verb: "Turn it off",
                    fields: own_password("totp-off", &end),
                    is_dangerous: true,
                }.render(shell))
            }
        } @else {
            p { (badge(Tone::Warn, "off")) " With it, a stolen password is not enough." }
            (form(shell, &begin, html! {
                (own_password("totp-on", &begin))
                div class="actions" { button type="submit" class="button primary" { "Set it up" } }
            }))
        }
    }
}

/// What an authenticator app is to be told.
#[derive(Debug, Clone, Default)]
pub struct Enrolment {
    /// To be typed.
    pub secret: String,
    /// To be read from the picture: `otpauth://…`.
    pub url: String,
}

pub fn enrolment(shell: &Shell, view: &Enrolment) -> Markup {
    let mut head = Head::new("Set up the second factor", Place::Security);
    head.crumb("Security", paths::to(&["account", "security"]));
    let confirm = paths::to(&["account", "totp", "confirm"]);
    let body = card(
        "scan",
        "1. Tell your app",
        html! {
            p { "Scan the picture with an authenticator app, or type the key into it." }
            (qr(&view.url))
            (copyable("totp-secret", "Key", &view.secret))
            h2 { "2. Prove that it works" }
            (form(shell, &confirm, html! {
                (Field::new("code", "Code").required().autocomplete("one-time-code").max(8).sent(shell.sent_to(&confirm))
                    .hint("The six digits that the app shows now."))
                div class="actions" {
                    button type="submit" class="button primary" { "Turn it on" }
                    a class="button" href=(paths::to(&["account", "security"])) { "Not now" }
                }
            }))
        },
    );
    page(shell, &head, &body)
}

/// Shown once.
pub fn recovery_codes(shell: &Shell, codes: &[String]) -> Markup {
    let mut head = Head::new("Recovery codes", Place::Security);
    head.crumb("Security", paths::to(&["account", "security"]));
    let body = html! {
        section class="card secret" aria-labelledby="codes-title" {
            h2 id="codes-title" { "Keep these codes" }
            p {
                strong { "They are shown once." }
                " Each gets you in once in place of a code of the app, should you lose it."
            }
            ul class="codes" id="recovery-codes" { @for code in codes { li { (code) } } }
            div class="actions" {
                button type="button" class="button" data-copy="recovery-codes" hidden { "Copy" }
                a class="button primary" href=(paths::to(&["account", "security"])) { "I have kept them" }
            }
        }
    };
    page(shell, &head, &body)
}

/// A QR code as one path. Nothing where the text is too long for one: the key to be typed is there too.
fn qr(text: &str) -> Markup {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::M) else {
        return html! {};
    };
    let width = code.width();
    // Readers need a rim of four.
    let rim = 4;
    let side = width + 2 * rim;
    let colors = code.to_colors();
    let dark = colors
        .iter()
        .enumerate()
        .filter(|(_, color)| **color == Color::Dark);
    let path: String = dark
        .map(|(index, _)| format!("M{} {}h1v1h-1z", index % width + rim, index / width + rim))
        .collect();
    html! {
        svg class="qr" role="img" aria-label="QR code of the key below" viewBox={ "0 0 " (side) " " (side) }
            shape-rendering="crispEdges" {
            path d=(path) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_known_by_name() {
        let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
        let edge =
            "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0";
        assert_eq!(browser(firefox), "Firefox on Linux");
        assert_eq!(browser(edge), "Edge on Windows");
        assert_eq!(browser("curl/8.5"), "curl");
        assert_eq!(browser(""), "Unknown");
    }

    #[test]
    fn a_key_has_a_picture_and_a_text_too_long_has_none() {
        assert!(
            qr("otpauth://totp/x?secret=ABC")
                .into_string()
                .contains("<path d=\"M4 4h1v1h-1z")
        );
        assert_eq!(qr(&"x".repeat(5000)).into_string(), "");
    }
}
