//! Which strings are channel names (contract D14).
//!
//! Validation only: no app, no rights, no lookup. A name that passes needs no escaping inside a JSON string and holds
//! no `*`, so a capability pattern can never be mistaken for a name.

use crate::error::ErrorCode;
use crate::limits::CHANNEL_NAME_BYTES_MAX;

/// Checks that `name` may be used as a channel by a client: 1 to 255 bytes of printable ASCII without space, `"`, `\`
/// and `*`, not starting with `$` (reserved for the server). `allow_utf8` admits characters beyond ASCII too, except
/// control characters and white space; off by default because sdk-js cannot resume such channels.
///
/// # Errors
/// [`ErrorCode::BadChannelName`].
pub fn validate(name: &str, allow_utf8: bool) -> Result<(), ErrorCode> {
    let bytes = name.as_bytes();
    let reserved = bytes.first() == Some(&b'$');
    if bytes.is_empty() || bytes.len() > CHANNEL_NAME_BYTES_MAX || reserved {
        return Err(ErrorCode::BadChannelName);
    }
    if bytes.iter().copied().all(is_name_byte) {
        return Ok(());
    }
    if allow_utf8 && name.chars().all(is_name_char) {
        Ok(())
    } else {
        Err(ErrorCode::BadChannelName)
    }
}

const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'\\' | b'*')
}

fn is_name_char(c: char) -> bool {
    match u8::try_from(c) {
        Ok(byte) if byte.is_ascii() => is_name_byte(byte),
        Ok(_) | Err(_) => !c.is_control() && !c.is_whitespace(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok(name: &str) -> bool {
        validate(name, false).is_ok()
    }

    #[test]
    fn plain_names_pass() {
        for name in [
            "a",
            "chat:room-1",
            "private-x",
            "a:",
            ":",
            "support:o:conv:1",
            "x$",
            "!~'<>{}",
        ] {
            assert!(ok(name), "{name}");
        }
    }

    #[test]
    fn length_is_counted_in_bytes() {
        assert!(!ok(""));
        assert!(ok(&"x".repeat(255)));
        assert!(!ok(&"x".repeat(256)));
        assert!(validate(&"é".repeat(127), true).is_ok());
        assert!(validate(&"é".repeat(128), true).is_err());
    }

    #[test]
    fn reserved_and_special_characters_are_refused_in_both_modes() {
        for name in [
            "$sys",
            "a b",
            "a\"b",
            "a\\b",
            "a*",
            "a\n",
            "a\u{7f}",
            "é\u{85}",
            "é\u{2028}",
            "é b",
            "é*",
        ] {
            assert_eq!(
                validate(name, false),
                Err(ErrorCode::BadChannelName),
                "{name:?}"
            );
            assert_eq!(
                validate(name, true),
                Err(ErrorCode::BadChannelName),
                "{name:?}"
            );
        }
    }

    #[test]
    fn utf8_only_where_allowed() {
        assert!(!ok("caf\u{e9}"));
        assert!(validate("caf\u{e9}:\u{1f680}", true).is_ok());
    }

    proptest! {
        #[test]
        fn a_valid_name_is_its_own_json_string(name in any::<String>(), utf8 in any::<bool>()) {
            if validate(&name, utf8).is_ok() {
                prop_assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{name}\""));
            }
        }
    }
}
