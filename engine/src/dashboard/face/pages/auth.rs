//! Pages for whoever is not signed in. What was wrong with a whole form, such as a wrong password, is said in
//! [`Shell::flash`], the same whether the account exists or not.

use maud::{Markup, html};
use shardwire_proto::account::password::PASSWORD_CHARS_MIN;

use crate::dashboard::face::components::{Field, csrf};
use crate::dashboard::face::layout::{Head, Place, plain_page};
use crate::dashboard::face::{Sent, Shell, paths};

#[derive(Debug, Clone, Default)]
pub struct Login {
    /// Where to go after it: a path of the dashboard.
    pub next: String,
    pub is_signup_open: bool,
}

pub fn login(shell: &Shell, view: &Login) -> Markup {
    let action = paths::to(&["login"]);
    let sent = shell.sent_to(&action);
    let body = html! {
        (form(shell, &action, "Sign in", html! {
            @if !view.next.is_empty() { input type="hidden" name="next" value=(view.next); }
            (email(sent))
            (Field::new("password", "Password").kind("password").required()
                .autocomplete("current-password").sent(sent))
        }))
        p class="aside" {
            a href=(paths::to(&["forgot"])) { "Forgot your password?" }
            @if view.is_signup_open { a href=(paths::to(&["signup"])) { "Make an account" } }
        }
    };
    plain_page(shell, &Head::new("Sign in", Place::Nowhere), &body)
}

/// The second factor.
pub fn code(shell: &Shell) -> Markup {
    let action = paths::to(&["login", "code"]);
    let sent = shell.sent_to(&action);
    let body = html! {
        (form(shell, &action, "Go on", html! {
            (Field::new("code", "Code").required().autocomplete("one-time-code").max(32).sent(sent)
                .hint("Six digits from your authenticator app, or one of your recovery codes."))
        }))
        p class="aside" { a href=(paths::to(&["login"])) { "Start again" } }
    };
    plain_page(shell, &Head::new("Second step", Place::Nowhere), &body)
}

pub fn signup(shell: &Shell) -> Markup {
    let action = paths::to(&["signup"]);
    let sent = shell.sent_to(&action);
    let body = html! {
        (form(shell, &action, "Make the account", html! {
            (name(sent))
            (email(sent))
            (new_password(sent))
        }))
        p class="aside" { a href=(paths::to(&["login"])) { "I have an account" } }
    };
    plain_page(shell, &Head::new("Make an account", Place::Nowhere), &body)
}

/// After [`signup`] and [`forgot`]: whether there is such an account is said by mail alone.
pub fn look_at_mail(shell: &Shell, text: &str) -> Markup {
    let body = html! {
        p { (text) }
        p class="aside" { a href=(paths::to(&["login"])) { "Back to sign in" } }
    };
    plain_page(
        shell,
        &Head::new("Look at your mail", Place::Nowhere),
        &body,
    )
}

/// The first administrator's form.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    pub token: String,
}

pub fn setup(shell: &Shell, view: &Setup) -> Markup {
    let action = paths::to(&["setup"]);
    let sent = shell.sent_to(&action);
    let head = Head::new("Welcome", Place::Nowhere)
        .lead(html! { "Make the first account. It runs this server." });
    let body = form(
        shell,
        &action,
        "Make the account",
        html! {
            (token(&view.token))
            (name(sent))
            (email(sent))
            (new_password(sent))
        },
    );
    plain_page(shell, &head, &body)
}

/// Confirms an address. It is a form, because programs that look at mail open links.
pub fn verify(shell: &Shell, token_of_link: &str) -> Markup {
    let body = form(
        shell,
        &paths::to(&["verify"]),
        "Confirm my address",
        token(token_of_link),
    );
    let head = Head::new("Confirm your address", Place::Nowhere)
        .lead(html! { "One click, and you can sign in." });
    plain_page(shell, &head, &body)
}

/// Makes another address an account's. A form, as [`verify`] is.
pub fn confirm_email(shell: &Shell, token_of_link: &str) -> Markup {
    let body = form(
        shell,
        &paths::to(&["email", "confirm"]),
        "Make it my address",
        token(token_of_link),
    );
    let head = Head::new("Your new address", Place::Nowhere)
        .lead(html! { "You sign in with it afterwards, and letters go there." });
    plain_page(shell, &head, &body)
}

/// Gives an account back to whoever had the address `email` in it.
pub fn undo_email(shell: &Shell, token_of_link: &str, email: &str) -> Markup {
    let body = html! {
        ul class="bare" {
            li { strong { (email) } " is the account’s address." }
            li { "Everybody is signed out." }
            li { "You set another password." }
        }
        (form(shell, &paths::to(&["email", "undo"]), "It was not me", token(token_of_link)))
    };
    let head = Head::new("Take your account back", Place::Nowhere)
        .lead(html! { "If you changed the address yourself, close this page." });
    plain_page(shell, &head, &body)
}

pub fn forgot(shell: &Shell) -> Markup {
    let action = paths::to(&["forgot"]);
    let sent = shell.sent_to(&action);
    let head = Head::new("Set a new password", Place::Nowhere)
        .lead(html! { "You get a link by mail that is good for a short time." });
    let body = html! {
        (form(shell, &action, "Send the link", email(sent)))
        p class="aside" { a href=(paths::to(&["login"])) { "Back to sign in" } }
    };
    plain_page(shell, &head, &body)
}

pub fn reset(shell: &Shell, token_of_link: &str) -> Markup {
    let action = paths::to(&["reset"]);
    let sent = shell.sent_to(&action);
    let head = Head::new("Set a new password", Place::Nowhere)
        .lead(html! { "All sessions of the account end." });
    let body = form(
        shell,
        &action,
        "Set the password",
        html! { (token(token_of_link)) (new_password(sent)) },
    );
    plain_page(shell, &head, &body)
}

/// An invitation.
#[derive(Debug, Clone, Default)]
pub struct Join {
    pub token: String,
    pub team: String,
    /// As it is written: `developer`.
    pub role: String,
    pub email: String,
    /// Whether there is an account with the address already, or somebody is signed in: then a click is enough.
    pub has_account: bool,
}

pub fn join(shell: &Shell, view: &Join) -> Markup {
    let action = paths::to(&["join"]);
    let sent = shell.sent_to(&action);
    let title = format!("Join {}", view.team);
    let head = Head::new(&title, Place::Nowhere).lead(html! {
        "You are invited as " strong { (view.role) }
        @if !view.email.is_empty() { ", as " strong { (view.email) } } "."
    });
    let body = form(
        shell,
        &action,
        "Join the team",
        html! {
            (token(&view.token))
            @if !view.has_account {
                (name(sent))
                (new_password(sent))
            }
        },
    );
    plain_page(shell, &head, &body)
}

fn form(shell: &Shell, action: &str, verb: &str, fields: Markup) -> Markup {
    html! {
        form method="post" action=(action) class="form" {
            (csrf(shell))
            (fields)
            button type="submit" class="button primary wide" { (verb) }
        }
    }
}

fn token(token: &str) -> Markup {
    html! { input type="hidden" name="token" value=(token); }
}

fn email(sent: &Sent) -> Markup {
    let field = Field::new("email", "E-mail").kind("email");
    html! { (field.required().autocomplete("username").max(254).sent(sent)) }
}

fn name(sent: &Sent) -> Markup {
    let field = Field::new("name", "Your name").required();
    html! { (field.autocomplete("name").max(80).sent(sent)) }
}

fn new_password(sent: &Sent) -> Markup {
    let field = Field::new("password", "Password")
        .kind("password")
        .required();
    html! {
        (field.autocomplete("new-password").sent(sent)
            .hint(&format!("{PASSWORD_CHARS_MIN} characters or more. A few words in a row are good.")))
    }
}
