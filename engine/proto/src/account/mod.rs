//! People who use the dashboard: what they may do, how they prove who they are, and how long that holds.
//!
//! [`permissions`] has the one table of who may make which call, [`session`] how refresh tokens follow each other,
//! [`access`] the short tokens that a session gives out, [`password`] and [`second_factor`] what is asked for at a login.
//!
//! Not here: storage, hashing of passwords (it takes a thread of its own), mail, and pages. Invariant: a call that is not
//! in the table is nobody's.

pub mod access;
pub mod attempts;
pub mod password;
pub mod permissions;
pub mod second_factor;
pub mod session;

use crate::error::{ErrorCode, ProtocolError};

/// Longest e-mail address (RFC 5321, 4.5.3.1.3, without the angle brackets).
const EMAIL_BYTES_MAX: usize = 254;
/// Longest name of an account or a team.
const NAME_CHARS_MAX: usize = 80;

/// An e-mail address in the form in which it is compared: trimmed, in lower case.
///
/// # Errors
/// 40003 for what cannot be one.
pub fn normalize_email(text: &str) -> Result<String, ProtocolError> {
    let text = text.trim();
    let wrong =
        || ProtocolError::with_text(ErrorCode::BadField, "`email` is not an e-mail address");
    let (local, domain) = text.rsplit_once('@').ok_or_else(wrong)?;
    let is_plain = |text: &str| {
        !text.is_empty()
            && !text.contains(|c: char| {
                c.is_whitespace() || c.is_control() || "<>()[],;:\\\"@".contains(c)
            })
    };
    let is_domain = is_plain(domain)
        && !domain.starts_with(['.', '-'])
        && !domain.ends_with(['.', '-'])
        && !domain.contains("..");
    if text.len() > EMAIL_BYTES_MAX || !is_plain(local) || !is_domain {
        return Err(wrong());
    }
    Ok(text.to_lowercase())
}

/// A name for people to read: of an account or a team.
///
/// # Errors
/// 40003 for one that is empty, too long, or has control characters.
pub fn check_name(text: &str) -> Result<String, ProtocolError> {
    let text = text.trim();
    let fits = !text.is_empty()
        && text.chars().count() <= NAME_CHARS_MAX
        && !text.chars().any(char::is_control);
    if fits {
        return Ok(text.to_owned());
    }
    let text = "`name` must be 1 to 80 characters without control characters";
    Err(ProtocolError::with_text(ErrorCode::BadField, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_without_case_and_space() {
        assert_eq!(
            normalize_email(" Ann@Example.COM ").unwrap(),
            "ann@example.com"
        );
        assert_eq!(normalize_email("a+b@host").unwrap(), "a+b@host");
        let long = format!("{}@example.com", "a".repeat(250));
        for wrong in [
            "",
            "ann",
            "@example.com",
            "ann@",
            "a b@example.com",
            "a@b@c",
            "a@-b.c",
            "a@b..c",
            "a@b.",
            "<a@b.c>",
            "a\r\nBcc:x@b.c",
            &long,
        ] {
            assert!(normalize_email(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_are_short_and_printable() {
        assert_eq!(check_name("  The team ").unwrap(), "The team");
        assert!(check_name(" ").is_err() && check_name("a\nb").is_err());
        assert!(check_name(&"é".repeat(80)).is_ok() && check_name(&"é".repeat(81)).is_err());
    }
}
