//! Frame headers in both directions (RFC 6455 section 5.2), and server frames whole.
//!
//! A payload whose length is known is encoded without patching or moving: [`write_header`], then the payload. Server
//! frames are never masked and never fragmented (contract 4.3, rule 10).

use super::close;
use super::decoder::{DecoderConfig, Role};
use super::error::DecodeError;
use super::mask;

pub use super::close::{write_close, write_close_reply};

/// Longest payload of a control frame in bytes (section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Longest header in bytes: two, a 64-bit length, a mask.
pub const HEADER_BYTES_MAX: usize = 14;

const _: () = assert!(close::REASON_BYTES_MAX + 2 == CONTROL_BYTES_MAX);

/// What a frame is (section 5.2); reserved opcodes have no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum OpCode {
    Continuation = 0x0,
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xA,
}

impl OpCode {
    /// The opcode in the low four bits of a frame's first byte; `None` when it is reserved.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xA => Some(Self::Pong),
            _ => None,
        }
    }

    /// Control frames may come between the fragments of a message and are never fragmented themselves.
    #[must_use]
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// A received header that broke no rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameHeader {
    pub(super) opcode: OpCode,
    /// Last frame of its message.
    pub(super) fin: bool,
    /// Key of a masked payload.
    pub(super) mask: Option<[u8; 4]>,
    /// Bytes of payload, within the limit.
    pub(super) payload_len: usize,
    /// Bytes of the header itself.
    pub(super) len: usize,
}

impl FrameHeader {
    /// Bytes of header and payload.
    #[inline]
    pub(super) fn frame_len(&self) -> usize {
        self.len.saturating_add(self.payload_len)
    }

    /// Reads the header at the start of `bytes`; `None` when more bytes are needed. `message` is the number of bytes
    /// announced by the earlier fragments of an unfinished message.
    ///
    /// Checks go in the order of the bytes, and those of the first two bytes do not wait for the rest, so the error
    /// does not depend on how many bytes are there.
    #[inline]
    pub(super) fn parse(
        bytes: &[u8],
        message: Option<usize>,
        config: &DecoderConfig,
    ) -> Result<Option<Self>, DecodeError> {
        let Some((&first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let (opcode, fin) = parse_first(first, message.is_some())?;
        let Some((&second, rest)) = rest.split_first() else {
            return Ok(None);
        };
        let masked = parse_mask_bit(second, opcode, config)?;
        let short_len = second & 0x7F;
        if opcode.is_control() && short_len as usize > CONTROL_BYTES_MAX {
            return Err(DecodeError::ControlTooLong);
        }

        let (payload_len, rest) = match short_len {
            126 => match rest.split_first_chunk::<2>() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                None => return Ok(None),
            },
            len => (u64::from(len), rest),
        };
        if payload_len >> 63 != 0 {
            return Err(DecodeError::LengthOverflow);
        }
        let room = config
            .message_bytes_max
            .saturating_sub(message.unwrap_or(0));
        let payload_len = match usize::try_from(payload_len) {
            Ok(len) if len <= room || opcode.is_control() => len,
            Ok(_) | Err(_) => return Err(DecodeError::TooLarge),
        };

        let (mask, rest) = match (masked, rest.split_first_chunk::<4>()) {
            (false, _) => (None, rest),
            (true, Some((key, rest))) => (Some(*key), rest),
            (true, None) => return Ok(None),
        };
        Ok(Some(Self {
            opcode,
            fin,
            mask,
            payload_len,
            len: bytes.len() - rest.len(),
        }))
    }
}

/// FIN, RSV and opcode, against whether a fragmented message is open.
#[inline]
fn parse_first(first: u8, message_open: bool) -> Result<(OpCode, bool), DecodeError> {
    if first & 0x70 != 0 {
        return Err(DecodeError::ReservedBits);
    }
    let Some(opcode) = OpCode::from_bits(first & 0x0F) else {
        return Err(DecodeError::ReservedOpcode);
    };
    let fin = first & 0x80 != 0;
    match opcode {
        OpCode::Close | OpCode::Ping | OpCode::Pong if !fin => Err(DecodeError::FragmentedControl),
        OpCode::Continuation if !message_open => Err(DecodeError::UnexpectedContinuation),
        OpCode::Text | OpCode::Binary if message_open => Err(DecodeError::ExpectedContinuation),
        OpCode::Continuation
        | OpCode::Text
        | OpCode::Binary
        | OpCode::Close
        | OpCode::Ping
        | OpCode::Pong => Ok((opcode, fin)),
    }
}

/// Clients mask every frame and servers none (section 5.1), but for what the configuration tolerates.
#[inline]
fn parse_mask_bit(second: u8, opcode: OpCode, config: &DecoderConfig) -> Result<bool, DecodeError> {
    let masked = second & 0x80 != 0;
    match (config.role, masked) {
        (Role::Server, true) | (Role::Client, false) => Ok(masked),
        (Role::Server, false)
            if config.tolerate_unmasked_control
                && matches!(opcode, OpCode::Pong | OpCode::Close) =>
        {
            Ok(masked)
        }
        (Role::Server, false) => Err(DecodeError::Unmasked),
        (Role::Client, true) => Err(DecodeError::Masked),
    }
}

/// Bytes of a server frame's header, for sizing a buffer exactly.
#[must_use]
pub const fn header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Appends the header of a server frame (FIN set, unmasked, shortest length form). The caller appends exactly
/// `payload_len` bytes next. A control frame's payload is at most [`CONTROL_BYTES_MAX`].
#[inline]
pub fn write_header(out: &mut Vec<u8>, opcode: OpCode, payload_len: usize) {
    write_header_with(out, opcode, payload_len, 0);
}

/// Appends a whole server frame.
#[inline]
pub fn write_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    out.reserve(header_len(payload.len()) + payload.len());
    write_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// A server's text frame in a buffer of exactly its size. `payload` must be UTF-8.
#[must_use]
pub fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(header_len(payload.len()) + payload.len());
    write_frame(&mut out, OpCode::Text, payload);
    out
}

/// Appends a whole client frame (FIN set, masked with `key`), for load generators and tests.
pub fn write_masked_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], key: [u8; 4]) {
    out.reserve(HEADER_BYTES_MAX + payload.len());
    write_header_with(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask::apply(out.get_mut(start..).unwrap_or_default(), key);
}

#[inline]
fn write_header_with(out: &mut Vec<u8>, opcode: OpCode, payload_len: usize, mask_bit: u8) {
    debug_assert!(
        !opcode.is_control() || payload_len <= CONTROL_BYTES_MAX,
        "control frame of {payload_len} bytes"
    );
    let first = 0x80 | opcode as u8;
    // The arms bound the casts.
    match payload_len {
        0..=125 => out.extend_from_slice(&[first, mask_bit | payload_len as u8]),
        126..=0xFFFF => {
            let [a, b] = (payload_len as u16).to_be_bytes();
            out.extend_from_slice(&[first, mask_bit | 126, a, b]);
        }
        _ => {
            out.extend_from_slice(&[first, mask_bit | 127]);
            out.extend_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tungstenite::protocol::frame::{FrameHeader as Reference, coding};

    const SERVER: DecoderConfig = DecoderConfig {
        message_bytes_max: 1 << 20,
        role: Role::Server,
        tolerate_unmasked_control: false,
    };

    #[test]
    fn partial_header_waits_for_more() {
        let mut bytes = Vec::new();
        write_masked_frame(&mut bytes, OpCode::Binary, &[0; 70_000], [1, 2, 3, 4]);
        for len in 0..HEADER_BYTES_MAX {
            assert!(
                FrameHeader::parse(&bytes[..len], None, &SERVER)
                    .unwrap()
                    .is_none(),
                "{len}"
            );
        }
        let header = FrameHeader::parse(&bytes, None, &SERVER).unwrap().unwrap();
        assert_eq!(
            (header.len, header.payload_len, header.mask),
            (14, 70_000, Some([1, 2, 3, 4]))
        );
    }

    #[test]
    fn first_byte_is_judged_alone() {
        let judge = |first: u8, message| FrameHeader::parse(&[first], message, &SERVER).map(|_| ());
        assert_eq!(judge(0xC1, None), Err(DecodeError::ReservedBits));
        assert_eq!(judge(0x83, None), Err(DecodeError::ReservedOpcode));
        assert_eq!(judge(0x8B, None), Err(DecodeError::ReservedOpcode));
        assert_eq!(judge(0x09, None), Err(DecodeError::FragmentedControl));
        assert_eq!(judge(0x80, None), Err(DecodeError::UnexpectedContinuation));
        assert_eq!(judge(0x81, Some(0)), Err(DecodeError::ExpectedContinuation));
        assert_eq!(judge(0x80, Some(0)), Ok(()));
        assert_eq!(judge(0x89, Some(0)), Ok(()));
    }

    #[test]
    fn mask_rules_follow_the_role() {
        let judge = |bytes: [u8; 2], config: &DecoderConfig| {
            FrameHeader::parse(&bytes, None, config).map(|_| ())
        };
        let tolerant = DecoderConfig {
            tolerate_unmasked_control: true,
            ..SERVER
        };
        let client = DecoderConfig {
            role: Role::Client,
            ..SERVER
        };
        for first in [0x81, 0x82, 0x89] {
            assert_eq!(
                judge([first, 0], &tolerant),
                Err(DecodeError::Unmasked),
                "{first:x}"
            );
        }
        for first in [0x88, 0x8A] {
            assert_eq!(
                judge([first, 0], &SERVER),
                Err(DecodeError::Unmasked),
                "{first:x}"
            );
            assert_eq!(judge([first, 0], &tolerant), Ok(()), "{first:x}");
        }
        assert_eq!(judge([0x81, 0x80], &client), Err(DecodeError::Masked));
        assert_eq!(judge([0x81, 0x00], &client), Ok(()));
    }

    #[test]
    fn lengths_are_judged_before_the_payload() {
        let judge = |bytes: &[u8], message| FrameHeader::parse(bytes, message, &SERVER).map(|_| ());
        assert_eq!(judge(&[0x89, 0xFE], None), Err(DecodeError::ControlTooLong));
        assert_eq!(
            judge(&[0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            Err(DecodeError::LengthOverflow)
        );
        assert_eq!(
            judge(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0x10, 0, 1], None),
            Err(DecodeError::TooLarge)
        );
        assert_eq!(
            judge(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0x10, 0, 0], None),
            Ok(())
        );
        assert_eq!(
            judge(&[0x80, 0x82], Some((1 << 20) - 1)),
            Err(DecodeError::TooLarge)
        );
        assert_eq!(judge(&[0x89, 0x82, 0, 0, 0, 0], Some(1 << 20)), Ok(())); // a PING does not count
    }

    #[test]
    fn longer_length_forms_than_needed_are_read() {
        for bytes in [
            &[0x82, 0xFE, 0, 3, 0, 0, 0, 0][..],
            &[0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0],
        ] {
            let header = FrameHeader::parse(bytes, None, &SERVER).unwrap().unwrap();
            assert_eq!((header.payload_len, header.len), (3, bytes.len()));
        }
    }

    proptest! {
        #[test]
        fn headers_equal_those_of_tungstenite(
            len in prop_oneof![0usize..300, 65_000usize..66_000],
            key in proptest::option::of(any::<[u8; 4]>()),
        ) {
            let reference =
                Reference { opcode: coding::OpCode::Data(coding::Data::Text), mask: key, ..Reference::default() };
            let payload = vec![b'x'; len];
            let mut expected = Vec::new();
            reference.format(len as u64, &mut expected).unwrap();
            let mut ours = Vec::new();
            match key {
                Some(key) => write_masked_frame(&mut ours, OpCode::Text, &payload, key),
                None => {
                    ours = text_frame(&payload);
                    prop_assert_eq!(ours.len(), ours.capacity());
                    prop_assert_eq!(expected.len(), header_len(len));
                }
            }
            prop_assert_eq!(&ours[..expected.len()], &expected[..]);
            prop_assert_eq!(ours.len(), expected.len() + len);
        }
    }
}
