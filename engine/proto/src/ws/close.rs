//! Closing (RFC 6455 sections 5.5.1 and 7): which codes may appear in a Close frame, and how to answer one.

use super::error::DecodeError;
use super::frame::{self, OpCode};

/// Longest reason in bytes: a control frame carries 125 bytes and the code takes two (section 5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// Whether `code` may be on the wire: section 7.4.1 and the IANA registry (1012 to 1014), libraries (3000s) and
/// applications (4000s). 1004 is undefined; 1005, 1006 and 1015 are for local use only.
#[must_use]
pub const fn is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads the payload of a Close frame: nothing, or a code and a UTF-8 reason.
///
/// # Errors
/// 1002 for a single byte or a code that may not be sent, 1007 for a reason that is not UTF-8.
pub(super) fn parse(payload: &[u8]) -> Result<Option<(u16, &str)>, DecodeError> {
    match payload {
        [] => Ok(None),
        [_] => Err(DecodeError::CloseTooShort),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !is_valid(code) {
                return Err(DecodeError::CloseCodeInvalid);
            }
            let reason = str::from_utf8(reason).map_err(|_| DecodeError::InvalidUtf8)?;
            Ok(Some((code, reason)))
        }
    }
}

/// Appends a server's Close frame. A reason over [`REASON_BYTES_MAX`] is cut at a character boundary.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    debug_assert!(is_valid(code), "close code {code} may not be sent");
    let (reason, _) = reason.split_at(reason.floor_char_boundary(REASON_BYTES_MAX));
    frame::write_header(out, OpCode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends the answer to a received Close: the same code, or no payload if there was none (section 5.5.1). The peer's
/// reason is not repeated.
pub fn write_close_reply(out: &mut Vec<u8>, received: Option<u16>) {
    match received {
        Some(code) => write_close(out, code, ""),
        None => frame::write_header(out, OpCode::Close, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_not_be_sent() {
        for code in [
            0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ] {
            assert!(!is_valid(code), "{code}");
        }
        for code in [
            1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999,
            4000, 4999,
        ] {
            assert!(is_valid(code), "{code}");
        }
    }

    #[test]
    fn payload_forms() {
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"\x03"), Err(DecodeError::CloseTooShort));
        assert_eq!(parse(b"\x03\xe8"), Ok(Some((1000, ""))));
        assert_eq!(parse(b"\x0f\xa0bye"), Ok(Some((4000, "bye"))));
        assert_eq!(parse(b"\x03\xed"), Err(DecodeError::CloseCodeInvalid));
        assert_eq!(parse(b"\x03\xe8\xff"), Err(DecodeError::InvalidUtf8));
    }

    #[test]
    fn long_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        write_close(&mut out, 4000, &format!("a{}", "é".repeat(100)));
        assert_eq!(out[..4], [0x88, 125, 0x0f, 0xa0]);
        assert_eq!(
            str::from_utf8(&out[4..]).unwrap(),
            format!("a{}", "é".repeat(61))
        );
    }

    #[test]
    fn reply_echoes_the_code_or_its_absence() {
        let mut out = Vec::new();
        write_close_reply(&mut out, Some(1001));
        write_close_reply(&mut out, None);
        assert_eq!(out, b"\x88\x02\x03\xe9\x88\x00");
    }
}
