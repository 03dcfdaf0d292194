//! Who may do what: apps, API keys, tokens, capabilities per channel, and revocations.
//!
//! Holds no secrets beyond hashes and the signing keys' own, makes no random numbers and looks nothing up outside what
//! it is given. Where all of it is stored is decided elsewhere.
//!
//! Invariants: what is not granted is refused; an unreadable grant is an error, never a smaller or larger grant.

pub mod app;
pub mod capability;
pub mod change;
pub mod key;
mod ops;
pub mod registry;
pub mod revocation;
pub mod signing;

use crate::limits::CLIENT_ID_BYTES_MAX;

/// Whether `id` may be a client id (contract D8): 1 to 128 bytes, no control characters.
#[must_use]
pub fn is_valid_client_id(id: &str) -> bool {
    (1..=CLIENT_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::is_valid_client_id;

    #[test]
    fn client_ids_are_bounded_in_bytes_and_free_of_controls() {
        assert!(is_valid_client_id("Zoë 1"));
        assert!(is_valid_client_id(&"x".repeat(128)));
        for id in [
            String::new(),
            "x".repeat(129),
            "é".repeat(65),
            "a\nb".into(),
            "a\u{85}".into(),
        ] {
            assert!(!is_valid_client_id(&id), "{id:?}");
        }
    }
}
