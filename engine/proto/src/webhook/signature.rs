//! The signature of a delivery: what a receiver checks before it believes anything.

use std::fmt::Write;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The value of `X-WSocket-Signature`: `t=<seconds>,v1=<hex>` with one `v1` per secret.
///
/// What is signed is the time, a dot and the body.
#[must_use]
pub fn header<'a>(secrets: impl Iterator<Item = &'a str>, unix_s: u64, body: &[u8]) -> String {
    let mut header = format!("t={unix_s}");
    for secret in secrets {
        // A key of any length will do.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
            continue;
        };
        mac.update(unix_s.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        let digest = mac.finalize().into_bytes();
        _ = write!(header, ",v1={}", data_encoding::HEXLOWER.encode(&digest));
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_others_compute() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac whsec_test
        let expected =
            "t=1700000000,v1=35495024f4ef3f94e5a93e22221544c4b75e9a42300cd965ab81cb85cd994e91";
        let header = header(["whsec_test"].into_iter(), 1_700_000_000, b"{}");
        assert_eq!(header, expected);
    }

    #[test]
    fn a_rotation_has_both() {
        let header = header(["a", "b"].into_iter(), 1, b"x");
        assert_eq!(header.matches(",v1=").count(), 2);
    }
}
