//! What is shown where a page cannot be.

use maud::{Markup, html};

use crate::dashboard::face::layout::{Head, Place, page, plain_page};
use crate::dashboard::face::{Shell, paths};

/// A page for an HTTP status. `text` says more, where there is more to say.
pub fn render(shell: &Shell, status: u16, text: &str) -> Markup {
    let (title, usual) = match status {
        400 => (
            "That was not understood",
            "Something in the address or the form is wrong.",
        ),
        401 => ("Sign in first", "Your session has ended."),
        403 => ("Not for you", "Your role does not allow that."),
        404 => (
            "Nothing here",
            "It does not exist, or not any more, or it is not yours to see.",
        ),
        409 => (
            "That has changed meanwhile",
            "Somebody else was faster. Load the page again.",
        ),
        429 => ("Too many tries", "Wait a little, then try again."),
        503 => (
            "Not right now",
            "The server is busy or about to restart. Try again in a moment.",
        ),
        _ => ("That went wrong", "It is in the server’s log."),
    };
    let head = Head::new(title, Place::Nowhere).lead(html! { (usual) });
    let body = html! {
        @if !text.is_empty() { p { (text) } }
        p class="actions" {
            @if shell.account.is_some() {
                a class="button primary" href=(paths::to(&[])) { "To the overview" }
            } @else {
                a class="button primary" href=(paths::to(&["login"])) { "Sign in" }
            }
            span class="muted num" { "Status " (status) }
        }
    };
    if shell.account.is_some() {
        page(shell, &head, &body)
    } else {
        plain_page(shell, &head, &body)
    }
}
