//! Every address that pages link to or send forms to. [`ROUTES`] is the whole list; a test holds pages to it.

use std::fmt::Write as _;

/// What all of them begin with.
pub const BASE: &str = "/dashboard";

/// Method and path below [`BASE`] of all that pages link to (`GET`) and send forms to (`POST`).
pub const ROUTES: &[(&str, &str)] = &[
    ("GET", "/"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("GET", "/login/code"),
    ("POST", "/login/code"),
    ("GET", "/signup"),
    ("POST", "/signup"),
    ("GET", "/setup"),
    ("POST", "/setup"),
    ("GET", "/verify"),
    ("POST", "/verify"),
    ("GET", "/email/confirm"),
    ("POST", "/email/confirm"),
    ("GET", "/email/undo"),
    ("POST", "/email/undo"),
    ("GET", "/forgot"),
    ("POST", "/forgot"),
    ("GET", "/reset"),
    ("POST", "/reset"),
    ("GET", "/join"),
    ("POST", "/join"),
    ("POST", "/logout"),
    ("GET", "/apps"),
    ("POST", "/teams/{team}/apps"),
    ("GET", "/apps/{app}"),
    ("POST", "/apps/{app}"),
    ("POST", "/apps/{app}/settings"),
    ("POST", "/apps/{app}/disable"),
    ("POST", "/apps/{app}/enable"),
    ("POST", "/apps/{app}/delete"),
    ("POST", "/apps/{app}/transfer"),
    ("GET", "/apps/{app}/keys"),
    ("POST", "/apps/{app}/keys"),
    ("POST", "/apps/{app}/keys/{id}/rotate"),
    ("POST", "/apps/{app}/keys/{id}/disable"),
    ("POST", "/apps/{app}/keys/{id}/enable"),
    ("POST", "/apps/{app}/keys/{id}/delete"),
    ("POST", "/apps/{app}/signing-keys"),
    ("POST", "/apps/{app}/signing-keys/{id}/disable"),
    ("POST", "/apps/{app}/signing-keys/{id}/enable"),
    ("POST", "/apps/{app}/signing-keys/{id}/delete"),
    ("GET", "/apps/{app}/channels"),
    ("GET", "/apps/{app}/channels/{channel}"),
    ("POST", "/apps/{app}/channels/{channel}/clear"),
    ("GET", "/apps/{app}/console"),
    ("GET", "/apps/{app}/usage"),
    ("GET", "/apps/{app}/webhooks"),
    ("POST", "/apps/{app}/webhooks"),
    ("GET", "/apps/{app}/webhooks/{id}"),
    ("POST", "/apps/{app}/webhooks/{id}"),
    ("POST", "/apps/{app}/webhooks/{id}/enable"),
    ("POST", "/apps/{app}/webhooks/{id}/disable"),
    ("POST", "/apps/{app}/webhooks/{id}/delete"),
    ("POST", "/apps/{app}/webhooks/{id}/rotate"),
    ("POST", "/apps/{app}/webhooks/{id}/test"),
    ("POST", "/apps/{app}/webhooks/{id}/dead-letters/replay"),
    ("POST", "/apps/{app}/webhooks/{id}/dead-letters/purge"),
    (
        "POST",
        "/apps/{app}/webhooks/{id}/dead-letters/{item}/replay",
    ),
    (
        "POST",
        "/apps/{app}/webhooks/{id}/dead-letters/{item}/purge",
    ),
    ("GET", "/apps/{app}/push"),
    ("POST", "/apps/{app}/push/send"),
    ("POST", "/apps/{app}/push/providers/{id}"),
    ("POST", "/apps/{app}/push/providers/{id}/delete"),
    ("POST", "/apps/{app}/push/subscriptions/{id}/delete"),
    ("GET", "/apps/{app}/push/jobs/{id}"),
    ("POST", "/apps/{app}/push/jobs/{id}/cancel"),
    ("GET", "/teams"),
    ("POST", "/teams"),
    ("GET", "/teams/{team}"),
    ("POST", "/teams/{team}"),
    ("POST", "/teams/{team}/members/{id}"),
    ("POST", "/teams/{team}/members/{id}/remove"),
    ("POST", "/teams/{team}/invitations"),
    ("POST", "/teams/{team}/invitations/{id}/remove"),
    ("POST", "/teams/{team}/leave"),
    ("POST", "/teams/{team}/transfer"),
    ("POST", "/teams/{team}/delete"),
    ("GET", "/teams/{team}/audit"),
    ("GET", "/connections"),
    ("POST", "/connections/{id}/end"),
    ("GET", "/accounts"),
    ("POST", "/accounts/{id}/disable"),
    ("POST", "/accounts/{id}/enable"),
    ("POST", "/accounts/{id}/reset"),
    ("GET", "/audit"),
    ("GET", "/account"),
    ("POST", "/account"),
    ("GET", "/account/sessions"),
    ("POST", "/account/sessions/{id}/end"),
    ("POST", "/account/sessions/end-others"),
    ("GET", "/account/security"),
    ("POST", "/account/email"),
    ("POST", "/account/email/keep"),
    ("POST", "/account/password"),
    ("POST", "/account/totp"),
    ("POST", "/account/totp/confirm"),
    ("POST", "/account/totp/remove"),
    ("POST", "/account/recovery-codes"),
    ("GET", "/assets/{version}/{name}"),
];

/// [`BASE`] with parts behind it, each encoded so that it stays one part of the path.
pub(crate) fn to(parts: &[&str]) -> String {
    let mut path = BASE.to_owned();
    if parts.is_empty() {
        path.push('/');
    }
    for part in parts {
        path.push('/');
        encode(&mut path, part);
    }
    path
}

/// As [`to`], below the app's pages.
pub(crate) fn app(id: &str, parts: &[&str]) -> String {
    below("apps", id, parts)
}

/// As [`to`], below the team's pages.
pub(crate) fn team(id: &str, parts: &[&str]) -> String {
    below("teams", id, parts)
}

fn below(kind: &str, id: &str, parts: &[&str]) -> String {
    let mut all = vec![kind, id];
    all.extend_from_slice(parts);
    to(&all)
}

/// A path with a query; pairs without a value are left out.
pub(crate) fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    let mut mark = '?';
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        target.push(mark);
        mark = '&';
        encode(&mut target, name);
        target.push('=');
        encode(&mut target, value);
    }
    target
}

/// Percent-encodes all but what RFC 3986, 2.3 calls unreserved.
fn encode(to: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            to.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(to, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stay_parts() {
        assert_eq!(to(&[]), "/dashboard/");
        assert_eq!(
            app("a", &["channels", "x/y?z#ü"]),
            "/dashboard/apps/a/channels/x%2Fy%3Fz%23%C3%BC"
        );
        assert_eq!(with_query("/p", &[("a", ""), ("b", "1&2")]), "/p?b=1%262");
        assert_eq!(with_query("/p", &[("a", "x"), ("b", "y")]), "/p?a=x&b=y");
    }
}
