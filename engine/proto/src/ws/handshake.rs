//! The head of a conn's first request, and the answer to an upgrade (RFC 6455 section 4, RFC 9112).
//!
//! The head decides what the conn is: a WebSocket, or HTTP that is read again by the HTTP server. Not here: routing,
//! credentials, and Origin policy, which look at the [`Head`].
//!
//! Invariants: at most [`HEAD_BYTES_MAX`] bytes are looked at; a header that may appear once and decides something
//! does appear once, in an upgrade.

use std::fmt;
use std::io::Write as _;

use data_encoding::BASE64;
use tungstenite::handshake::derive_accept_key;

/// Longest request head in bytes. 8 KiB: room for a 4 KiB JWT in the query and for a browser's cookies.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most headers in one head.
pub const HEADERS_MAX: usize = 100;

/// A complete request head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head<'b> {
    /// Bytes of the head with its empty line; what follows belongs to the protocol chosen.
    pub len: usize,
    pub method: &'b str,
    /// Request target as sent: path and query, not decoded.
    pub target: &'b str,
    pub kind: HeadKind<'b>,
}

/// What the client wants the conn to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadKind<'b> {
    /// `GET` with `Upgrade: websocket`; not yet validated.
    Upgrade(Upgrade<'b>),
    /// Any other request.
    Http,
}

/// The headers of a WebSocket upgrade, as sent, without the spaces around them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upgrade<'b> {
    /// `Sec-WebSocket-Key`, empty if absent.
    pub key: &'b str,
    /// `Sec-WebSocket-Version`, empty if absent.
    pub version: &'b str,
    pub origin: Option<&'b str>,
    pub authorization: Option<&'b str>,
    /// `X-Forwarded-For` as the last proxy wrote it; means something only when that proxy is trusted.
    pub forwarded_for: Option<&'b str>,
    has_host: bool,
    has_connection_upgrade: bool,
    is_http_11: bool,
}

/// Why the bytes are no head. The conn cannot be used further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// Over [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`]: 431.
    TooLarge,
    /// Not HTTP/1, or an upgrade with a header repeated or unreadable: 400.
    Malformed,
}

/// Why an upgrade is refused (section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeError {
    /// HTTP/1.0.
    HttpVersion,
    MissingHost,
    /// `Connection` does not name `upgrade`.
    MissingConnectionUpgrade,
    /// Any version but 13.
    Version,
    MissingKey,
    /// Not 16 bytes in Base64.
    InvalidKey,
}

/// Reads the head at the start of `buf`; `None` when more bytes are needed.
///
/// # Errors
/// [`HeadError::TooLarge`] once [`HEAD_BYTES_MAX`] bytes hold no end, [`HeadError::Malformed`] as soon as they cannot
/// become a head.
pub fn parse_head(buf: &[u8]) -> Result<Option<Head<'_>>, HeadError> {
    let window = buf.get(..HEAD_BYTES_MAX).unwrap_or(buf);
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(window) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if window.len() == HEAD_BYTES_MAX => {
            return Err(HeadError::TooLarge);
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(_) => return Err(HeadError::Malformed),
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(HeadError::Malformed);
    };
    let wants_websocket = method == "GET"
        && request.headers.iter().any(|header| {
            header.name.eq_ignore_ascii_case("upgrade") && has_token(header.value, "websocket")
        });
    let kind = if wants_websocket {
        HeadKind::Upgrade(read_upgrade(request.headers, version)?)
    } else {
        HeadKind::Http
    };
    Ok(Some(Head {
        len,
        method,
        target,
        kind,
    }))
}

fn read_upgrade<'b>(
    headers: &[httparse::Header<'b>],
    http_minor: u8,
) -> Result<Upgrade<'b>, HeadError> {
    let (mut key, mut version, mut host) = (None, None, None);
    let mut upgrade = Upgrade {
        is_http_11: http_minor == 1,
        ..Upgrade::default()
    };
    for header in headers {
        let name = header.name;
        if name.eq_ignore_ascii_case("sec-websocket-key") {
            set_once(&mut key, header.value)?;
        } else if name.eq_ignore_ascii_case("sec-websocket-version") {
            set_once(&mut version, header.value)?;
        } else if name.eq_ignore_ascii_case("connection") {
            upgrade.has_connection_upgrade |= has_token(header.value, "upgrade");
        } else if name.eq_ignore_ascii_case("host") {
            set_once(&mut host, header.value)?;
        } else if name.eq_ignore_ascii_case("origin") {
            set_once(&mut upgrade.origin, header.value)?;
        } else if name.eq_ignore_ascii_case("authorization") {
            set_once(&mut upgrade.authorization, header.value)?;
        } else if name.eq_ignore_ascii_case("x-forwarded-for") {
            upgrade.forwarded_for = Some(text(header.value)?);
        }
    }
    upgrade.has_host = host.is_some();
    upgrade.key = key.unwrap_or_default();
    upgrade.version = version.unwrap_or_default();
    Ok(upgrade)
}

/// A second value is refused and not ignored: a proxy in front may have judged the other one.
fn set_once<'b>(slot: &mut Option<&'b str>, value: &'b [u8]) -> Result<(), HeadError> {
    match slot.replace(text(value)?) {
        None => Ok(()),
        Some(_) => Err(HeadError::Malformed),
    }
}

fn text(value: &[u8]) -> Result<&str, HeadError> {
    str::from_utf8(value)
        .map(|value| value.trim_matches([' ', '\t']))
        .map_err(|_| HeadError::Malformed)
}

/// Whether a comma-separated header value names `token`, in any case.
fn has_token(value: &[u8], token: &str) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

impl Upgrade<'_> {
    /// Checks what section 4.2.1 demands of the client's handshake.
    ///
    /// # Errors
    /// The first demand that is not met; see [`UpgradeError::status`].
    pub fn validate(&self) -> Result<(), UpgradeError> {
        if !self.is_http_11 {
            return Err(UpgradeError::HttpVersion);
        }
        if !self.has_host {
            return Err(UpgradeError::MissingHost);
        }
        if !self.has_connection_upgrade {
            return Err(UpgradeError::MissingConnectionUpgrade);
        }
        if self.version != "13" {
            return Err(UpgradeError::Version);
        }
        if self.key.is_empty() {
            return Err(UpgradeError::MissingKey);
        }
        let mut nonce = [0; 18];
        let is_nonce =
            self.key.len() == 24 && BASE64.decode_mut(self.key.as_bytes(), &mut nonce) == Ok(16);
        if is_nonce {
            Ok(())
        } else {
            Err(UpgradeError::InvalidKey)
        }
    }
}

impl UpgradeError {
    /// HTTP status to refuse with.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Version => 426,
            Self::HttpVersion
            | Self::MissingHost
            | Self::MissingConnectionUpgrade
            | Self::MissingKey
            | Self::InvalidKey => 400,
        }
    }

    /// What was wrong, for the body and the log.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::HttpVersion => "WebSocket needs HTTP/1.1",
            Self::MissingHost => "missing Host header",
            Self::MissingConnectionUpgrade => "missing Connection: Upgrade header",
            Self::Version => "unsupported Sec-WebSocket-Version",
            Self::MissingKey => "missing Sec-WebSocket-Key header",
            Self::InvalidKey => "invalid Sec-WebSocket-Key header",
        }
    }

    /// Headers to add to the refusal: with 426, what is supported (section 4.4).
    #[must_use]
    pub const fn extra_headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Version => &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
            Self::HttpVersion
            | Self::MissingHost
            | Self::MissingConnectionUpgrade
            | Self::MissingKey
            | Self::InvalidKey => &[],
        }
    }
}

impl HeadError {
    /// HTTP status to refuse with.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::TooLarge => 431,
            Self::Malformed => 400,
        }
    }

    /// What was wrong, for the body and the log.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "request head too large",
            Self::Malformed => "malformed request head",
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for HeadError {}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for UpgradeError {}

/// Appends the 101 that accepts an upgrade with this `Sec-WebSocket-Key` (section 4.2.2).
pub fn write_accept(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(derive_accept_key(key.as_bytes()).as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a whole HTTP/1.1 response that refuses a request and ends the conn (contract D5). `reason` is the reason
/// phrase; neither it nor the extra headers may contain a line break.
pub fn write_refusal(
    out: &mut Vec<u8>,
    status: u16,
    reason: &str,
    extra_headers: &[(&str, &str)],
    json_body: &str,
) {
    debug_assert!(!reason.contains(['\r', '\n']));
    // Writing to a `Vec` does not fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n",
        json_body.len()
    );
    for (name, value) in extra_headers {
        debug_assert!(!name.contains(['\r', '\n']) && !value.contains(['\r', '\n']));
        let _ = write!(out, "{name}: {value}\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(json_body.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /?key=abc HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn upgrade(request: &str) -> Upgrade<'_> {
        match parse_head(request.as_bytes()) {
            Ok(Some(Head {
                kind: HeadKind::Upgrade(upgrade),
                ..
            })) => upgrade,
            other => panic!("{other:?}"),
        }
    }

    fn validate(find: &str, replace: &str) -> Result<(), UpgradeError> {
        assert!(REQUEST.contains(find));
        upgrade(&REQUEST.replace(find, replace)).validate()
    }

    fn parse_error(find: &str, replace: &str) -> Option<HeadError> {
        assert!(REQUEST.contains(find));
        parse_head(REQUEST.replace(find, replace).as_bytes()).err()
    }

    #[test]
    fn upgrade_is_read_and_what_follows_is_left() {
        let request = format!("{REQUEST}\u{1}rest");
        let head = parse_head(request.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (head.len, head.method, head.target),
            (REQUEST.len(), "GET", "/?key=abc")
        );
        let upgrade = upgrade(REQUEST);
        assert_eq!(
            (upgrade.key, upgrade.version),
            ("dGhlIHNhbXBsZSBub25jZQ==", "13")
        );
        assert_eq!(upgrade.validate(), Ok(()));
    }

    #[test]
    fn every_prefix_waits_for_more() {
        for len in 0..REQUEST.len() {
            assert_eq!(parse_head(&REQUEST.as_bytes()[..len]), Ok(None), "{len}");
        }
    }

    #[test]
    fn optional_headers() {
        let request = REQUEST.replace(
            "Host: h\r\n",
            "host: h\r\norigin: https://a.example \r\nAuthorization: Bearer t\r\nX-Forwarded-For: 1.2.3.4, 10.0.0.1\r\n",
        );
        let upgrade = upgrade(&request);
        assert_eq!(upgrade.origin, Some("https://a.example"));
        assert_eq!(upgrade.authorization, Some("Bearer t"));
        assert_eq!(upgrade.forwarded_for, Some("1.2.3.4, 10.0.0.1"));
        assert_eq!(upgrade.validate(), Ok(()));
    }

    #[test]
    fn requests_without_the_upgrade_are_http() {
        for request in [
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocketx\r\nOrigin: a\r\nOrigin: b\r\n\r\n",
        ] {
            assert_eq!(
                parse_head(request.as_bytes()).unwrap().unwrap().kind,
                HeadKind::Http,
                "{request}"
            );
        }
        assert!(matches!(
            parse_head(
                REQUEST
                    .replace("WebSocket\r", "foo, websocket\r")
                    .as_bytes()
            ),
            Ok(Some(Head {
                kind: HeadKind::Upgrade(_),
                ..
            }))
        ));
    }

    #[test]
    fn each_demand_is_checked() {
        assert_eq!(
            validate("HTTP/1.1", "HTTP/1.0"),
            Err(UpgradeError::HttpVersion)
        );
        assert_eq!(validate("Host: h\r\n", ""), Err(UpgradeError::MissingHost));
        assert_eq!(
            validate("keep-alive, Upgrade", "keep-alive"),
            Err(UpgradeError::MissingConnectionUpgrade)
        );
        assert_eq!(
            validate("Connection:", "X:"),
            Err(UpgradeError::MissingConnectionUpgrade)
        );
        assert_eq!(
            validate("Version: 13", "Version: 8"),
            Err(UpgradeError::Version)
        );
        assert_eq!(
            validate("Sec-WebSocket-Version: 13\r\n", ""),
            Err(UpgradeError::Version)
        );
        assert_eq!(
            validate("Sec-WebSocket-Key:", "X:"),
            Err(UpgradeError::MissingKey)
        );
        for key in [
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=*",
            "dGhlIHNhbXBsZSBub25jZTEy",
            "Zg==",
        ] {
            assert_eq!(
                validate("dGhlIHNhbXBsZSBub25jZQ==", key),
                Err(UpgradeError::InvalidKey),
                "{key}"
            );
        }
    }

    #[test]
    fn malformed_heads_are_refused() {
        assert_eq!(
            parse_error("HTTP/1.1", "HTTP/2.0"),
            Some(HeadError::Malformed)
        );
        assert_eq!(
            parse_error("Host: h", "Ho st: h"),
            Some(HeadError::Malformed)
        );
        assert_eq!(
            parse_error("Host: h\r\n", "Host: h\r\nHost: i\r\n"),
            Some(HeadError::Malformed)
        );
        assert_eq!(
            parse_error("Host: h\r\n", "Host: h\r\nOrigin: a\r\nOrigin: b\r\n"),
            Some(HeadError::Malformed)
        );
        assert_eq!(
            parse_error("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8"),
            Some(HeadError::Malformed)
        );
        assert_eq!(
            parse_head(b"\x16\x03\x01\x02\x00"),
            Err(HeadError::Malformed)
        ); // TLS on a plain port
        let mut latin1 = REQUEST
            .replace("Host: h\r\n", "Host: h\r\nOrigin: ~\r\n")
            .into_bytes();
        *latin1.iter_mut().find(|byte| **byte == b'~').unwrap() = 0xE9;
        assert_eq!(parse_head(&latin1), Err(HeadError::Malformed));
    }

    #[test]
    fn size_is_bounded() {
        let endless = "GET / HTTP/1.1\r\nX: ".to_owned() + &"a".repeat(HEAD_BYTES_MAX);
        assert_eq!(
            parse_head(&endless.as_bytes()[..HEAD_BYTES_MAX - 1]),
            Ok(None)
        );
        assert_eq!(
            parse_head(&endless.as_bytes()[..HEAD_BYTES_MAX]),
            Err(HeadError::TooLarge)
        );
        assert_eq!(parse_head(endless.as_bytes()), Err(HeadError::TooLarge));
        let many = "GET / HTTP/1.1\r\n".to_owned() + &"X: a\r\n".repeat(HEADERS_MAX + 1);
        assert_eq!(parse_head(many.as_bytes()), Err(HeadError::TooLarge));
    }

    #[test]
    fn accept_is_that_of_the_rfc() {
        let mut out = Vec::new();
        write_accept(&mut out, "dGhlIHNhbXBsZSBub25jZQ==");
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(str::from_utf8(&out).unwrap(), expected);
    }

    #[test]
    fn refusal_is_a_whole_response() {
        let mut out = Vec::new();
        let error = UpgradeError::Version;
        write_refusal(
            &mut out,
            error.status(),
            "Upgrade Required",
            error.extra_headers(),
            "{\"é\":1}",
        );
        let expected = "HTTP/1.1 426 Upgrade Required\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\
            Connection: close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n{\"é\":1}";
        assert_eq!(str::from_utf8(&out).unwrap(), expected);
    }
}
