//! Request targets: the path and the query of an upgrade or REST request (contract D1, D2).
//!
//! Splits and decodes; it does not route, and does not decide what a credential is worth. The path is kept
//! percent-encoded for the router.
//!
//! SDKs append `?key=…` or `/?key=…` to whatever URL they were given, hence: repeated slashes collapse, a `?` inside
//! the query counts as `&`, and a `/` right before such a `?` is dropped. `+` is a plus: not all SDKs encode it.
//!
//! Invariant: `key` and `token` never appear in `Debug` output.

use std::borrow::Cow;
use std::fmt;

use crate::error::ErrorCode;

/// A request target in its two parts, neither decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// Begins with `/`; repeated slashes are collapsed and one at the end is dropped (SDKs make `/ws/` of `/ws`).
    pub path: Cow<'a, str>,
    /// What follows the first `?`, empty without one. May hold secrets.
    pub query: &'a str,
}

impl fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Splits a request target. Accepts the absolute form too (RFC 9112, 3.2.2), of which scheme and authority are dropped.
/// A target of another form stands for no resource; its path is given as if it began with `/`.
#[must_use]
pub fn parse_target(target: &str) -> Target<'_> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = match path.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => {
            rest.find('/').map_or("/", |at| rest.split_at(at).1)
        }
        Some(_) | None => path,
    };
    Target {
        path: normalise(path),
        query,
    }
}

/// How frames are shaped for a connection (contract D21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// Nested, with the fields that flat clients read mirrored at the top level.
    #[default]
    Mirrored,
    /// Nested only.
    Standard,
    /// Flat only.
    Flat,
}

/// What the query of an upgrade request says.
#[derive(Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// API key, as presented.
    pub key: Option<Cow<'a, str>>,
    /// JWT, as presented.
    pub token: Option<Cow<'a, str>>,
    /// Shape of frames.
    pub shape: Shape,
    /// Whether the connection receives its own publishes.
    pub echo: bool,
    /// Whether publishes that were accepted are acknowledged.
    pub ack: bool,
    /// Self-asserted client id; honoured only where the app allows it, and not checked here.
    pub client_id: Option<Cow<'a, str>>,
}

impl Default for Query<'_> {
    fn default() -> Self {
        Self {
            key: None,
            token: None,
            shape: Shape::default(),
            echo: true,
            ack: true,
            client_id: None,
        }
    }
}

impl fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<Cow<'_, str>>| secret.as_ref().map(|_| "…");
        f.debug_struct("Query")
            .field("key", &hidden(&self.key))
            .field("token", &hidden(&self.token))
            .field("shape", &self.shape)
            .field("echo", &self.echo)
            .field("ack", &self.ack)
            .field("client_id", &self.client_id)
            .finish()
    }
}

impl<'a> Query<'a> {
    /// Parses a query. Unknown names are ignored, the first of a repeated name counts, and an empty value is as good as
    /// none.
    ///
    /// # Errors
    /// [`ErrorCode::BadRequest`] for a malformed percent sequence, text that is not UTF-8, and a value of `shape`,
    /// `echo` or `ack` that is not one.
    pub fn parse(query: &'a str) -> Result<Self, ErrorCode> {
        let (mut key, mut token, mut shape) = (None, None, None);
        let (mut echo, mut ack, mut client_id) = (None, None, None);
        for pair in pairs(query) {
            let (name, value) = pair?;
            let slot = match &*name {
                "key" => &mut key,
                "token" => &mut token,
                "shape" => &mut shape,
                "echo" => &mut echo,
                "ack" => &mut ack,
                "clientId" => &mut client_id,
                _ => continue,
            };
            if slot.is_none() && !value.is_empty() {
                *slot = Some(value);
            }
        }
        Ok(Self {
            key,
            token,
            shape: match shape.as_deref() {
                None => Shape::Mirrored,
                Some("standard") => Shape::Standard,
                Some("flat") => Shape::Flat,
                Some(_) => return Err(ErrorCode::BadRequest),
            },
            echo: parse_switch(echo.as_deref())?,
            ack: parse_switch(ack.as_deref())?,
            client_id,
        })
    }
}

/// A setting that is on where nothing is said.
fn parse_switch(value: Option<&str>) -> Result<bool, ErrorCode> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(_) => Err(ErrorCode::BadRequest),
    }
}

/// The names and values of a query, decoded, in order. A name without `=` has an empty value; empty pairs are skipped.
/// An item is [`ErrorCode::BadRequest`] when it cannot be decoded.
pub fn pairs(query: &str) -> impl Iterator<Item = Result<(Cow<'_, str>, Cow<'_, str>), ErrorCode>> {
    let mut parts = query.split('?').peekable();
    let parts = std::iter::from_fn(move || {
        let part = parts.next()?;
        let followed = parts.peek().is_some();
        Some(if followed {
            part.strip_suffix('/').unwrap_or(part)
        } else {
            part
        })
    });
    parts
        .flat_map(|part| part.split('&'))
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((percent_decode(name)?, percent_decode(value)?))
        })
}

/// Decodes `%XX` (RFC 3986, 2.1) and nothing else.
///
/// # Errors
/// [`ErrorCode::BadRequest`] for `%` without two hex digits, and when the result is not UTF-8.
pub fn percent_decode(text: &str) -> Result<Cow<'_, str>, ErrorCode> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let digit = |byte: Option<u8>| {
        byte.and_then(|byte| char::from(byte).to_digit(16))
            .ok_or(ErrorCode::BadRequest)
    };
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let value = digit(bytes.next())? << 4 | digit(bytes.next())?;
                u8::try_from(value).map_err(|_| ErrorCode::BadRequest)?
            }
            plain => plain,
        };
        decoded.push(byte);
    }
    String::from_utf8(decoded)
        .map(Cow::Owned)
        .map_err(|_| ErrorCode::BadRequest)
}

fn normalise(path: &str) -> Cow<'_, str> {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    if trimmed.starts_with('/') && !trimmed.ends_with('/') && !trimmed.contains("//") {
        return Cow::Borrowed(trimmed);
    }
    let mut normalised = String::with_capacity(path.len() + 1);
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        normalised.push('/');
        normalised.push_str(segment);
    }
    if normalised.is_empty() {
        Cow::Borrowed("/")
    } else {
        Cow::Owned(normalised)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(target: &str) -> Result<Query<'_>, ErrorCode> {
        Query::parse(parse_target(target).query)
    }

    #[test]
    fn paths_are_normalised() {
        let cases = [
            ("/", "/"),
            ("//", "/"),
            ("///ws?x", "/ws"),
            ("/ws/", "/ws"),
            ("/ws//?key=a", "/ws"),
            ("//api//push/register", "/api/push/register"),
            ("http://host:9001/ws?key=a", "/ws"),
            ("http://host", "/"),
            ("/a%2Fb", "/a%2Fb"),
            ("/http://x", "/http:/x"),
        ];
        for (target, path) in cases {
            assert_eq!(parse_target(target).path, path, "{target}");
        }
        for (target, path) in [("", "/"), ("?key=a", "/"), ("ws", "/ws"), ("*", "/*")] {
            assert_eq!(parse_target(target).path, path, "{target}");
        }
    }

    #[test]
    fn every_sdk_form_yields_its_credentials() {
        let key = |k: &'static str| Query {
            key: Some(k.into()),
            ..Query::default()
        };
        assert_eq!(query("/?key=K").unwrap(), key("K"));
        assert_eq!(query("//?key=K").unwrap(), key("K"));
        assert_eq!(
            query("/?shape=flat?key=K").unwrap(),
            Query {
                shape: Shape::Flat,
                ..key("K")
            }
        );
        assert_eq!(
            query("/?shape=standard/?key=K").unwrap(),
            Query {
                shape: Shape::Standard,
                ..key("K")
            }
        );
        let both = query("/?shape=flat&key=K&token=a.b-c_d").unwrap();
        assert_eq!(
            (both.key.as_deref(), both.token.as_deref()),
            (Some("K"), Some("a.b-c_d"))
        );
        assert_eq!(
            query("/?key=&token=T").unwrap(),
            Query {
                token: Some("T".into()),
                ..Query::default()
            }
        );
        assert_eq!(query("/").unwrap(), Query::default());
    }

    #[test]
    fn the_first_occurrence_counts_and_unknown_names_do_not() {
        let parsed = query("/?a=1&key=one&key=two&b&&=c&echo=false&echo=true").unwrap();
        assert_eq!((parsed.key.as_deref(), parsed.echo), (Some("one"), false));
    }

    #[test]
    fn values_are_percent_decoded_and_plus_stays() {
        let parsed = query("/?k%65y=a%2Bb+c%26d%3F&clientId=Zo%C3%AB").unwrap();
        assert_eq!(
            (parsed.key.as_deref(), parsed.client_id.as_deref()),
            (Some("a+b+c&d?"), Some("Zoë"))
        );
    }

    #[test]
    fn what_cannot_be_understood_is_a_bad_request() {
        for target in [
            "/?key=%",
            "/?key=%4",
            "/?key=%4g",
            "/?x=%+1",
            "/?x=%ff",
            "/?shape=round",
            "/?echo=maybe",
            "/?ack=no",
            "/?key=%F0%9F",
        ] {
            assert_eq!(query(target), Err(ErrorCode::BadRequest), "{target}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let target = parse_target("/?key=SECRET&token=SECRET&shape=flat");
        let shown = format!("{target:?} {:?}", Query::parse(target.query));
        assert!(
            !shown.contains("SECRET") && shown.contains("Flat"),
            "{shown}"
        );
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(percent_decode(&encoded).unwrap(), text);
        }

        #[test]
        fn normalised_paths_stay_as_they_are(target in "[/a?:&=%]{0,12}") {
            let target = format!("/{target}");
            let Target { path, query } = parse_target(&target);
            prop_assert!(path.starts_with('/') && !path.contains("//") && (path == "/" || !path.ends_with('/')));
            prop_assert_eq!(&parse_target(&path).path, &path);
            let _ = Query::parse(query);
        }
    }
}
