//! Which passwords are taken: long ones that are not the first to be guessed (NIST SP 800-63B, 3.1.1.2).
//!
//! No rules of composition, as those make passwords worse. Not here: hashing.

use crate::error::{ErrorCode, ProtocolError};

/// Characters at least.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// Bytes at most: hashing a longer one would only cost time.
pub const PASSWORD_BYTES_MAX: usize = 256;
/// Different characters at least.
const DIFFERENT_MIN: usize = 5;

/// Long enough, and tried first by whoever guesses.
const COMMON: [&str; 24] = [
    "password1234",
    "password12345",
    "password123456",
    "passwordpassword",
    "123456789012",
    "1234567890123",
    "qwertyuiop12",
    "qwertyuiop123",
    "qwertyuiop[]",
    "administrator",
    "administrator1",
    "letmein12345",
    "letmeinletmein",
    "iloveyou1234",
    "welcome12345",
    "welcome123456",
    "changeme1234",
    "changemenow12",
    "correcthorsebatterystaple",
    "correct horse battery staple",
    "1q2w3e4r5t6y",
    "qwerty123456",
    "abcdefghijkl",
    "shardwire1234",
];

/// Says whether a password is taken for the account with this address.
///
/// # Errors
/// 40003 that says what is wrong with it.
pub fn check_password(password: &str, email: &str) -> Result<(), ProtocolError> {
    let refuse = |text: &'static str| Err(ProtocolError::with_text(ErrorCode::BadField, text));
    if password.chars().count() < PASSWORD_CHARS_MIN {
        return refuse("`password` is too short: 12 characters or more");
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return refuse("`password` is too long: 256 bytes at most");
    }
    let lower = password.to_lowercase();
    let mut characters: Vec<char> = lower.chars().collect();
    characters.sort_unstable();
    characters.dedup();
    let local = email.split('@').next().unwrap_or_default();
    let is_address = lower == email
        || (local.len() >= 4 && lower.starts_with(local) && lower.len() < local.len() + 6);
    if COMMON.contains(&&*lower) || characters.len() < DIFFERENT_MIN || is_address {
        return refuse(
            "`password` is easily guessed; take a few words that do not belong together",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_ones_are_taken_whatever_they_are_made_of() {
        for good in ["wide lamp seven roots", "jKq9!xTr2#Lm", "пароль для стола"] {
            assert!(check_password(good, "ann@example.com").is_ok(), "{good}");
        }
    }

    #[test]
    fn what_is_tried_first_is_not() {
        let long = "abcdefg ".repeat(40);
        for bad in [
            "short",
            "Password1234",
            "aaaaaaaaaaaaaa",
            "121212121212",
            "annabelle@example.com",
            "annabelle123",
            &long,
        ] {
            assert!(
                check_password(bad, "annabelle@example.com").is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn the_list_holds_none_that_is_refused_anyway() {
        for common in COMMON {
            assert!(common.chars().count() >= PASSWORD_CHARS_MIN, "{common}");
        }
    }
}
