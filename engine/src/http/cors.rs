//! Cross-origin rules for browsers (contract D29; the Fetch standard, "CORS protocol").
//!
//! Only tells browsers what they may do; nothing is refused here, and no origin replaces a credential: cookies are
//! never used, so credentials mode is not offered. Invariant: an answer that depends on the origin says so with `Vary`.

use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE");
const HEADERS: HeaderValue =
    HeaderValue::from_static("Authorization, Content-Type, X-App-Id, Idempotency-Key");
/// Seconds a browser may keep the answer to a preflight: the most that Chromium honours.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// Which origins may call the API from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cors {
    Any,
    /// None when empty.
    Listed(Vec<String>),
}

impl Cors {
    /// From a list of origins, where `*` stands for any.
    pub(super) fn new(origins: &[String]) -> Self {
        if origins.iter().any(|origin| origin == "*") {
            Self::Any
        } else {
            Self::Listed(origins.to_vec())
        }
    }

    /// Adds what every answer says.
    pub(super) fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        match self {
            Self::Any => {
                headers.insert(
                    header::ACCESS_CONTROL_ALLOW_ORIGIN,
                    HeaderValue::from_static("*"),
                );
            }
            Self::Listed(listed) => {
                headers.append(header::VARY, HeaderValue::from_static("Origin"));
                let allowed = origin.filter(|origin| {
                    listed
                        .iter()
                        .any(|known| known.as_bytes() == origin.as_bytes())
                });
                if let Some(origin) = allowed {
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                }
            }
        }
    }

    /// Adds what the answer to `OPTIONS` says, besides [`Self::allow`].
    pub(super) fn allow_preflight(headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(cors: &Cors, origin: Option<&'static str>) -> (Option<String>, bool) {
        let mut headers = HeaderMap::new();
        cors.allow(origin.map(HeaderValue::from_static).as_ref(), &mut headers);
        let value = headers
            .get(header::ACCESS_CONTROL_ALLOW_ORIGIN)
            .map(|v| v.to_str().unwrap().to_owned());
        (value, headers.contains_key(header::VARY))
    }

    #[test]
    fn any_origin_is_one_answer_for_all() {
        let cors = Cors::new(&["https://a.example".into(), "*".into()]);
        assert_eq!(allowed(&cors, None), (Some("*".into()), false));
        assert_eq!(
            allowed(&cors, Some("https://b.example")),
            (Some("*".into()), false)
        );
    }

    #[test]
    fn a_listed_origin_is_echoed_and_others_are_not() {
        let cors = Cors::new(&["https://a.example".into(), "https://b.example:8443".into()]);
        assert_eq!(
            allowed(&cors, Some("https://b.example:8443")),
            (Some("https://b.example:8443".into()), true)
        );
        for origin in [
            None,
            Some("https://b.example"),
            Some("https://a.example.evil"),
            Some("null"),
        ] {
            assert_eq!(allowed(&cors, origin), (None, true), "{origin:?}");
        }
        assert_eq!(
            allowed(&Cors::new(&[]), Some("https://a.example")),
            (None, true)
        );
    }
}
