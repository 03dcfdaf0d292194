//! Resume tokens as the SDKs make them (contract 5.6, D19): base64 of a JSON object with the
//! client's channels and the highest server timestamp it has received.

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD};
use serde::Deserialize;
use serde_json::Value;

use crate::error::ErrorCode;

/// What a client says it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeToken {
    pub channels: Vec<String>,
    /// Highest server timestamp received on any channel, ms.
    pub last_ms: u64,
}

#[derive(Deserialize)]
struct Content {
    channels: Vec<String>,
    /// Group A's name, and group B's.
    #[serde(alias = "since", rename = "lastTs")]
    last: Value,
}

/// Reads a token: standard or url-safe alphabet, padded or not; UTF-8, or Latin-1 as JavaScript's
/// `btoa` leaves it; `lastTs` or `since`, a number that may have a fraction.
///
/// Errors: 40020.
pub fn parse_token(token: &str) -> Result<ResumeToken, ErrorCode> {
    let bare = token.trim().trim_end_matches('=');
    let bytes = BASE64URL_NOPAD
        .decode(bare.as_bytes())
        .or_else(|_| BASE64_NOPAD.decode(bare.as_bytes()))
        .map_err(|_| ErrorCode::BadResumeToken)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => error.as_bytes().iter().map(|b| char::from(*b)).collect(),
    };
    let content: Content = serde_json::from_str(&text).map_err(|_| ErrorCode::BadResumeToken)?;
    Ok(ResumeToken {
        channels: content.channels,
        last_ms: floor_ms(&content.last).ok_or(ErrorCode::BadResumeToken)?,
    })
}

/// A timestamp: a whole number or one with a fraction, which is dropped (python sends floats).
pub fn floor_ms(value: &Value) -> Option<u64> {
    /// The largest integer below which every one is a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_u64().or_else(|| {
        let ms = value.as_f64().filter(|ms| (0.0..EXACT).contains(ms))?;
        // In range: checked above.
        Some(ms as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::{BASE64, BASE64URL};

    fn expected(channels: &[&str]) -> ResumeToken {
        ResumeToken {
            channels: channels.iter().map(|c| (*c).to_owned()).collect(),
            last_ms: 1_700_000_000_123,
        }
    }

    #[test]
    fn every_sdk_s_form_is_read() {
        let a = br#"{"channels":["chat?>","b"],"lastTs":1700000000123}"#;
        let spaced = br#"{"channels": ["chat?>", "b"], "lastTs": 1700000000123.75}"#;
        let b = br#"{"channels":["chat?>","b"],"since":1700000000123}"#;
        for json in [a.as_slice(), spaced, b] {
            for token in [
                BASE64.encode(json),
                BASE64_NOPAD.encode(json),
                BASE64URL.encode(json),
                BASE64URL_NOPAD.encode(json),
            ] {
                assert_eq!(
                    parse_token(&token),
                    Ok(expected(&["chat?>", "b"])),
                    "{token}"
                );
            }
        }
    }

    #[test]
    fn latin_1_names_of_javascript_are_read() {
        let json: Vec<u8> = "{\"channels\":[\"café\"],\"lastTs\":1700000000123}"
            .chars()
            .map(|c| u8::try_from(u32::from(c)).unwrap())
            .collect();
        assert_eq!(parse_token(&BASE64.encode(&json)), Ok(expected(&["café"])));
        let utf8 = "{\"channels\":[\"日本\"],\"lastTs\":1700000000123}";
        assert_eq!(
            parse_token(&BASE64URL.encode(utf8.as_bytes())),
            Ok(expected(&["日本"]))
        );
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for token in ["", "%%%", "bm9wZQ", "e30", "eyJjaGFubmVscyI6W119"] {
            assert_eq!(
                parse_token(token),
                Err(ErrorCode::BadResumeToken),
                "{token}"
            );
        }
        for json in [
            r#"{"channels":"a","lastTs":1}"#,
            r#"{"channels":[1],"lastTs":1}"#,
            r#"{"channels":[],"lastTs":"1"}"#,
            r#"{"channels":[],"lastTs":-1}"#,
            r#"{"channels":[],"lastTs":1e300}"#,
            r#"{"channels":[],"lastTs":null}"#,
        ] {
            let token = BASE64.encode(json.as_bytes());
            assert_eq!(
                parse_token(&token),
                Err(ErrorCode::BadResumeToken),
                "{json}"
            );
        }
    }
}
