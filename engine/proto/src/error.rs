//! Error codes and close causes: what a client is told, and how a connection ends.
//!
//! The tables are those of the wire contract (D10 error codes, D11 close codes). This module holds the numbers, their
//! default texts and their consequences; it does not decide when they apply, and it writes only the HTTP form (the
//! socket form belongs to the wSocket encoder, which adds channel and id).
//!
//! Invariants: an error code never closes a connection by itself; the first three digits of a code are its HTTP status;
//! every close cause states its code, its reason and whether a Close frame is sent, without a catch-all.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

/// What a request was refused with. The number goes over the wire (contract D10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// The request cannot be understood as a whole.
    BadRequest = 40000,
    /// The message is not JSON, or not a JSON object.
    NotJson = 40001,
    /// The `action` is not one the server knows.
    UnknownAction = 40002,
    /// A field is missing or has the wrong type or value.
    BadField = 40003,
    /// The channel name breaks the rules of D14.
    BadChannelName = 40009,
    /// Presence state is not an object, or is too large.
    BadPresenceState = 40010,
    /// History is not enabled for this channel.
    HistoryDisabled = 40011,
    /// The resume token cannot be read. The connection stays open.
    BadResumeToken = 40020,
    /// Neither key nor token was given.
    NoCredentials = 40100,
    /// No such API key.
    UnknownKey = 40101,
    /// The token is malformed, wrongly signed, or not for this app.
    BadToken = 40102,
    /// The token's `exp` has passed.
    TokenExpired = 40142,
    /// The credentials do not allow the operation on this channel.
    NotPermitted = 40300,
    /// The app or the key is disabled.
    Disabled = 40301,
    /// No such resource (REST).
    NotFound = 40400,
    /// The message or body is larger than the limit.
    TooLarge = 41300,
    /// Too many messages for a rate limit.
    RateExceeded = 42900,
    /// Too many connections.
    ConnectionLimit = 42910,
    /// Too many channels on one connection.
    ChannelLimit = 42911,
    /// The app's quota is used up.
    QuotaExhausted = 42912,
    /// The channel's presence set is full.
    PresenceFull = 42913,
    /// The server is at fault.
    Internal = 50000,
    /// Draining or overloaded: try again later.
    Unavailable = 50300,
}

impl ErrorCode {
    /// Every code, in ascending order.
    pub const ALL: [Self; 23] = [
        Self::BadRequest,
        Self::NotJson,
        Self::UnknownAction,
        Self::BadField,
        Self::BadChannelName,
        Self::BadPresenceState,
        Self::HistoryDisabled,
        Self::BadResumeToken,
        Self::NoCredentials,
        Self::UnknownKey,
        Self::BadToken,
        Self::TokenExpired,
        Self::NotPermitted,
        Self::Disabled,
        Self::NotFound,
        Self::TooLarge,
        Self::RateExceeded,
        Self::ConnectionLimit,
        Self::ChannelLimit,
        Self::QuotaExhausted,
        Self::PresenceFull,
        Self::Internal,
        Self::Unavailable,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The HTTP status: the first three digits of the code.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        self.code() / 100
    }

    /// The text used when nothing more precise is known. Without the code: the socket encoder appends ` [<code>]`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::BadRequest => "bad request",
            Self::NotJson => "message is not a JSON object",
            Self::UnknownAction => "unknown action",
            Self::BadField => "missing or wrong field",
            Self::BadChannelName => "invalid channel name",
            Self::BadPresenceState => "presence state is not an object or too large",
            Self::HistoryDisabled => "history is not enabled for this channel",
            Self::BadResumeToken => "resume token unreadable",
            Self::NoCredentials => "credentials missing",
            Self::UnknownKey => "unknown key",
            Self::BadToken => "invalid token",
            Self::TokenExpired => "token expired",
            Self::NotPermitted => "operation not permitted on this channel",
            Self::Disabled => "app or key disabled",
            Self::NotFound => "no such resource",
            Self::TooLarge => "message too large",
            Self::RateExceeded => "message rate exceeded",
            Self::ConnectionLimit => "connection limit reached",
            Self::ChannelLimit => "too many channels on this connection",
            Self::QuotaExhausted => "quota used up",
            Self::PresenceFull => "presence set full",
            Self::Internal => "internal error",
            Self::Unavailable => "server is draining or overloaded",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.text(), self.code())
    }
}

impl std::error::Error for ErrorCode {}

/// An [`ErrorCode`] with the text the client is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError {
    /// The number and its consequences.
    pub code: ErrorCode,
    /// What is wrong, for a person; without the code. Must not hold secrets: it is sent and may be logged.
    pub text: Cow<'static, str>,
}

impl ProtocolError {
    /// The code with its default text.
    #[must_use]
    pub const fn new(code: ErrorCode) -> Self {
        Self {
            code,
            text: Cow::Borrowed(code.text()),
        }
    }

    /// The code with a text that says more than the default.
    #[must_use]
    pub fn with_text(code: ErrorCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// Appends the HTTP body of contract D10: `{"error":"<text>","code":N,"status":N}`.
    pub fn write_http_json(&self, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
            code: u16,
            status: u16,
        }
        let body = Body {
            error: &self.text,
            code: self.code.code(),
            status: self.code.http_status(),
        };
        let written = serde_json::to_writer(out, &body);
        debug_assert!(
            written.is_ok(),
            "strings and integers into a Vec cannot fail"
        );
    }
}

impl From<ErrorCode> for ProtocolError {
    fn from(code: ErrorCode) -> Self {
        Self::new(code)
    }
}

impl fmt::Display for ProtocolError {
    /// The text with its code, as the socket form shows it (SDKs surface only the text).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.text, self.code.code())
    }
}

impl std::error::Error for ProtocolError {}

/// Longest close reason in bytes: a control frame carries 125, two of them the code (RFC 6455, 5.5 and 5.5.1).
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Why a connection ends. Fixes the close code, the reason and the manner (contract D11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseCause {
    /// The peer broke RFC 6455 framing.
    ProtocolError,
    /// A text message was not UTF-8 (RFC 6455, 8.1).
    InvalidUtf8,
    /// A frame or message was above the hard cap.
    FrameTooLarge,
    /// The peer kept breaking the protocol above the framing.
    Violation,
    /// The app or key was disabled while connected.
    Disabled,
    /// The app's quota is exhausted.
    Quota,
    /// The token expired while connected.
    TokenExpired,
    /// An administrator ended it, or the credentials were revoked.
    EndedByAdmin,
    /// The server holds more than it can serve.
    OverCapacity,
    /// The peer stayed above its rate limit.
    RateAbuse,
    /// The peer reads too slowly: its outbox is full.
    SlowConsumer,
    /// The server restarts or drains.
    Drain,
    /// The peer has shown no sign of life for too long.
    IdleTimeout,
    /// The peer sent a Close frame, with this code if it gave one.
    PeerClosed {
        /// The code the peer sent, `None` for an empty Close frame.
        code: Option<u16>,
    },
    /// The TCP connection went away without a Close frame.
    PeerGone,
    /// Ended through the disconnect API with a code chosen by the caller.
    Admin(Box<AdminClose>),
}

/// A close code and reason chosen by the caller of the disconnect API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminClose {
    code: u16,
    reason: Box<str>,
}

impl AdminClose {
    /// Codes are 4000..=4999 (RFC 6455, 7.4.2: private use), reasons at most [`CLOSE_REASON_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`ErrorCode::BadField`] when either is out of bounds.
    pub fn new(code: u16, reason: &str) -> Result<Self, ErrorCode> {
        if !(4000..=4999).contains(&code) || reason.len() > CLOSE_REASON_BYTES_MAX {
            return Err(ErrorCode::BadField);
        }
        Ok(Self {
            code,
            reason: reason.into(),
        })
    }
}

impl CloseCause {
    /// The close code. For [`PeerClosed`](Self::PeerClosed) without a code it is 1005 and for
    /// [`PeerGone`](Self::PeerGone) 1006, which stand in logs and metrics and never go over the wire
    /// (RFC 6455, 7.4.1).
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::ProtocolError => 1002,
            Self::InvalidUtf8 => 1007,
            Self::FrameTooLarge => 1009,
            Self::Violation => 4000,
            Self::Disabled => 4003,
            Self::Quota => 4004,
            Self::TokenExpired => 4009,
            Self::EndedByAdmin => 4010,
            Self::OverCapacity => 4100,
            Self::RateAbuse => 4150,
            Self::SlowConsumer => 4151,
            Self::Drain => 4200,
            Self::IdleTimeout => 4201,
            Self::PeerClosed { code } => code.unwrap_or(1005),
            Self::PeerGone => 1006,
            Self::Admin(close) => close.code,
        }
    }

    /// The reason in the Close frame, at most [`CLOSE_REASON_BYTES_MAX`] bytes. Empty when the peer closed.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::ProtocolError => "framing error",
            Self::InvalidUtf8 => "text is not UTF-8",
            Self::FrameTooLarge => "message too large",
            Self::Violation => "protocol violation",
            Self::Disabled => "app or key disabled",
            Self::Quota => "quota used up",
            Self::TokenExpired => "token expired",
            Self::EndedByAdmin => "ended by an administrator",
            Self::OverCapacity => "over capacity",
            Self::RateAbuse => "message rate exceeded",
            Self::SlowConsumer => "client too slow",
            Self::Drain => "server restarting",
            Self::IdleTimeout => "idle timeout",
            Self::PeerClosed { .. } | Self::PeerGone => "",
            Self::Admin(close) => &close.reason,
        }
    }

    /// Whether a Close frame goes out before TCP is closed. Where the client should come back (41xx, 42xx) it does
    /// not: a bare TCP close is the only one from which every SDK recovers (contract 5.8). A peer's Close frame is
    /// answered with its own code (RFC 6455, 5.5.1).
    #[must_use]
    pub fn sends_close_frame(&self) -> bool {
        match self {
            Self::ProtocolError
            | Self::InvalidUtf8
            | Self::FrameTooLarge
            | Self::Violation
            | Self::Disabled
            | Self::Quota
            | Self::TokenExpired
            | Self::EndedByAdmin
            | Self::PeerClosed { .. } => true,
            Self::OverCapacity
            | Self::RateAbuse
            | Self::SlowConsumer
            | Self::Drain
            | Self::IdleTimeout
            | Self::PeerGone => false,
            Self::Admin(close) => !(4100..=4299).contains(&close.code),
        }
    }

    /// Whether the client may be expected back, so that what it has in presence waits for it (D20): after every end
    /// that neither side has meant to be one.
    #[must_use]
    pub fn may_return(&self) -> bool {
        match self {
            Self::ProtocolError
            | Self::InvalidUtf8
            | Self::FrameTooLarge
            | Self::Violation
            | Self::TokenExpired
            | Self::OverCapacity
            | Self::RateAbuse
            | Self::SlowConsumer
            | Self::Drain
            | Self::IdleTimeout
            | Self::PeerGone => true,
            Self::Disabled | Self::Quota | Self::EndedByAdmin | Self::PeerClosed { .. } => false,
            Self::Admin(_) => !self.sends_close_frame(),
        }
    }

    /// A fixed name for metrics and logs.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::ProtocolError => "protocol_error",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::FrameTooLarge => "frame_too_large",
            Self::Violation => "violation",
            Self::Disabled => "disabled",
            Self::Quota => "quota",
            Self::TokenExpired => "token_expired",
            Self::EndedByAdmin => "ended_by_admin",
            Self::OverCapacity => "over_capacity",
            Self::RateAbuse => "rate_abuse",
            Self::SlowConsumer => "slow_consumer",
            Self::Drain => "drain",
            Self::IdleTimeout => "idle_timeout",
            Self::PeerClosed { .. } => "peer_closed",
            Self::PeerGone => "peer_gone",
            Self::Admin(_) => "admin",
        }
    }
}

impl fmt::Display for CloseCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.label(), self.code())
    }
}

impl std::error::Error for CloseCause {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_map_to_the_status_of_their_first_digits() {
        for code in ErrorCode::ALL {
            assert!(
                [400, 401, 403, 404, 413, 429, 500, 503].contains(&code.http_status()),
                "{code:?}"
            );
        }
        assert_eq!(ErrorCode::TokenExpired.http_status(), 401);
        assert_eq!(ErrorCode::PresenceFull.http_status(), 429);
        assert!(ErrorCode::ALL.windows(2).all(|w| w[0].code() < w[1].code()));
    }

    #[test]
    fn http_body_escapes_the_text() {
        let mut out = Vec::new();
        ProtocolError::with_text(ErrorCode::BadField, "field \"limit\" is wrong")
            .write_http_json(&mut out);
        assert_eq!(
            out,
            br#"{"error":"field \"limit\" is wrong","code":40003,"status":400}"#
        );
    }

    #[test]
    fn display_repeats_the_code_for_sdks_that_show_only_text() {
        assert_eq!(
            ProtocolError::from(ErrorCode::RateExceeded).to_string(),
            "message rate exceeded [42900]"
        );
    }

    #[test]
    fn only_the_come_back_ranges_close_without_a_frame() {
        let causes = [
            CloseCause::ProtocolError,
            CloseCause::InvalidUtf8,
            CloseCause::FrameTooLarge,
            CloseCause::Violation,
            CloseCause::Disabled,
            CloseCause::Quota,
            CloseCause::TokenExpired,
            CloseCause::EndedByAdmin,
            CloseCause::OverCapacity,
            CloseCause::RateAbuse,
            CloseCause::SlowConsumer,
            CloseCause::Drain,
            CloseCause::IdleTimeout,
        ];
        for cause in causes {
            assert_eq!(
                cause.sends_close_frame(),
                !(4100..=4299).contains(&cause.code()),
                "{cause}"
            );
            assert!(
                cause.code() != 1000 && cause.code() != 1001,
                "these strand a client: {cause}"
            );
            assert!(!cause.reason().is_empty() && cause.reason().len() <= CLOSE_REASON_BYTES_MAX);
        }
    }

    #[test]
    fn admin_codes_follow_the_ranges_and_are_bounded() {
        let close = |code| CloseCause::Admin(Box::new(AdminClose::new(code, "bye").unwrap()));
        assert!(close(4321).sends_close_frame());
        assert!(!close(4200).sends_close_frame());
        assert_eq!((close(4999).code(), close(4999).reason()), (4999, "bye"));
        assert_eq!(AdminClose::new(3999, ""), Err(ErrorCode::BadField));
        assert_eq!(AdminClose::new(5000, ""), Err(ErrorCode::BadField));
        assert_eq!(
            AdminClose::new(4000, &"x".repeat(124)),
            Err(ErrorCode::BadField)
        );
    }
}
