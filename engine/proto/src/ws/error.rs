//! Why a byte stream is refused, and the close code that says so (RFC 6455 section 7.4.1).

use std::fmt;

use super::utf8::InvalidUtf8;

/// A breach of RFC 6455 or of a limit: the conn is to be closed with [`DecodeError::close_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// RSV1 to RSV3 without an extension (section 5.2).
    ReservedBits,
    /// Opcode 3 to 7 or 11 to 15 (section 5.2).
    ReservedOpcode,
    /// Control frame without FIN (section 5.5).
    FragmentedControl,
    /// Control frame over 125 bytes (section 5.5).
    ControlTooLong,
    /// Continuation with no message to continue (section 5.4).
    UnexpectedContinuation,
    /// A message begun inside another (section 5.4).
    ExpectedContinuation,
    /// Client frame without a mask (section 5.1).
    Unmasked,
    /// Server frame with a mask (section 5.1).
    Masked,
    /// 64-bit length with its highest bit set (section 5.2).
    LengthOverflow,
    /// Close payload of one byte (section 5.5.1).
    CloseTooShort,
    /// Close code that may not be sent (section 7.4).
    CloseCodeInvalid,
    /// Text or close reason that is not UTF-8 (section 8.1).
    InvalidUtf8,
    /// Message over `message_bytes_max`.
    TooLarge,
}

impl DecodeError {
    /// The status code to close with: 1002, 1007 or 1009 (section 7.4.1).
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::ReservedBits
            | Self::ReservedOpcode
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::UnexpectedContinuation
            | Self::ExpectedContinuation
            | Self::Unmasked
            | Self::Masked
            | Self::LengthOverflow
            | Self::CloseTooShort
            | Self::CloseCodeInvalid => 1002,
            Self::InvalidUtf8 => 1007,
            Self::TooLarge => 1009,
        }
    }

    /// What to say in the Close frame and the log.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bit set",
            Self::ReservedOpcode => "reserved opcode",
            Self::FragmentedControl => "fragmented control frame",
            Self::ControlTooLong => "control frame too long",
            Self::UnexpectedContinuation => "nothing to continue",
            Self::ExpectedContinuation => "expected a continuation frame",
            Self::Unmasked => "frame not masked",
            Self::Masked => "frame masked by server",
            Self::LengthOverflow => "invalid frame length",
            Self::CloseTooShort => "close payload too short",
            Self::CloseCodeInvalid => "invalid close code",
            Self::InvalidUtf8 => "invalid UTF-8",
            Self::TooLarge => "message too large",
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for DecodeError {}

impl From<InvalidUtf8> for DecodeError {
    fn from(InvalidUtf8: InvalidUtf8) -> Self {
        Self::InvalidUtf8
    }
}
