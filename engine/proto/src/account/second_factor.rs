//! The second factor: codes of an authenticator app (TOTP, RFC 6238), and recovery codes for when it is lost.
//!
//! Codes are the `totp-rs` crate's work. Not here: how the secret is kept. Invariants: a time step is taken once; a
//! recovery code is taken once.

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use totp_rs::{Builder, Secret};

use crate::auth::key::KeyHash;

/// Bytes of a secret (RFC 4226, section 4).
pub const SECRET_BYTES: usize = 20;
/// Seconds of a step.
const STEP_S: u64 = 30;
/// Recovery codes that are made at once.
pub const RECOVERY_CODES: usize = 10;
/// Random bytes of a recovery code: 80 bits, so that a plain hash is enough.
pub const RECOVERY_BYTES: usize = 10;

/// The step whose code this is, if it is later than the last one that was taken. Clocks may differ by a step.
#[must_use]
pub fn check_code(
    secret: &[u8; SECRET_BYTES],
    code: &str,
    last_step: u64,
    now_ms: u64,
) -> Option<u64> {
    let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
    let is_code = code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit());
    let totp = Builder::new()
        .with_secret(Secret::new_stack(*secret))
        .with_digits(6)
        .with_skew(1)
        .with_step_duration(STEP_S)
        .build()
        .ok()?;
    let step = totp.check(&code, now_ms / 1000).filter(|_| is_code)?;
    (step > last_step).then_some(step)
}

/// The code at a time: what the authenticator app shows.
#[must_use]
pub fn code_at(secret: &[u8; SECRET_BYTES], now_ms: u64) -> Option<String> {
    let totp = Builder::new()
        .with_secret(Secret::new_stack(*secret))
        .with_digits(6)
        .with_step_duration(STEP_S);
    Some(totp.build().ok()?.generate(now_ms / 1000).to_string())
}

/// The secret as people type it.
#[must_use]
pub fn secret_text(secret: &[u8; SECRET_BYTES]) -> String {
    BASE32_NOPAD.encode(secret)
}

/// What the authenticator app reads from a picture.
#[must_use]
pub fn provisioning_url(secret: &[u8; SECRET_BYTES], email: &str) -> String {
    let secret = secret_text(secret);
    let email: String = email
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect();
    format!("otpauth://totp/Shardwire:{email}?secret={secret}&issuer=Shardwire")
}

/// Recovery codes that are left, as hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryCodes(Vec<KeyHash>);

impl RecoveryCodes {
    /// Makes codes of random bytes; returns them as they are shown, this once.
    #[must_use]
    pub fn make(random: &[[u8; RECOVERY_BYTES]]) -> (Self, Vec<String>) {
        let codes: Vec<String> = random
            .iter()
            .map(|bytes| {
                let text = BASE32_NOPAD.encode(bytes).to_lowercase();
                let (a, b) = text.split_at_checked(8).unwrap_or((&text, ""));
                format!("{a}-{b}")
            })
            .collect();
        let hashes = codes.iter().map(|code| KeyHash::of(&plain(code))).collect();
        (Self(hashes), codes)
    }

    /// How many are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a code; false if it is none that is left.
    pub fn take(&mut self, code: &str) -> bool {
        let hash = KeyHash::of(&plain(code));
        let before = self.0.len();
        self.0.retain(|left| *left != hash);
        self.0.len() < before
    }
}

/// A code as it is compared: however it was typed.
fn plain(code: &str) -> String {
    let kept = code.chars().filter(|c| c.is_ascii_alphanumeric());
    kept.collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of RFC 6238, appendix B.
    const SECRET: &[u8; SECRET_BYTES] = b"12345678901234567890";

    #[test]
    fn codes_are_those_of_the_rfc() {
        for (time_s, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (2_000_000_000, "279037"),
        ] {
            assert_eq!(
                check_code(SECRET, code, 0, time_s * 1000),
                Some(time_s / 30),
                "{time_s}"
            );
            assert_eq!(code_at(SECRET, time_s * 1000).unwrap(), code);
        }
        assert_eq!(
            check_code(SECRET, "279 037", 0, 2_000_000_000_000),
            Some(66_666_666)
        );
        for wrong in ["", "279038", "27903", "2790370", "abcdef", "２７９０３７"] {
            assert_eq!(
                check_code(SECRET, wrong, 0, 2_000_000_000_000),
                None,
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_step_is_taken_once_and_clocks_may_differ_by_one() {
        let now_ms = 2_000_000_000_000;
        let step = check_code(SECRET, "279037", 0, now_ms).unwrap();
        assert_eq!(check_code(SECRET, "279037", step, now_ms), None);
        assert_eq!(
            check_code(SECRET, "279037", step - 1, now_ms + 30_000),
            Some(step)
        );
        assert_eq!(check_code(SECRET, "279037", 0, now_ms + 90_000), None);
    }

    #[test]
    fn recovery_codes_are_good_once_however_they_are_typed() {
        let random: Vec<_> = (0..3).map(|n| [n; RECOVERY_BYTES]).collect();
        let (mut left, codes) = RecoveryCodes::make(&random);
        assert_eq!(codes[0], "aaaaaaaa-aaaaaaaa");
        assert!(left.take(&codes[1].to_uppercase().replace('-', " ")));
        assert!(!left.take(&codes[1]) && !left.take("") && !left.take("x"));
        assert_eq!(left.len(), 2);
        let kept = serde_json::to_string(&left).unwrap();
        assert!(!kept.contains("aaaaaaaa"));
    }

    #[test]
    fn the_url_has_no_stray_characters() {
        let url = provisioning_url(SECRET, "a&b=c@example.com");
        assert_eq!(
            url,
            "otpauth://totp/Shardwire:a%26b%3Dc%40example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Shardwire"
        );
    }
}
