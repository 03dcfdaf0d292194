//! The stamp that every measured message carries, and the payload around it.
//!
//! A payload is the JSON object `{"d":"~lt~PPPPPPPPNNNNNNNNTTTTTTTTTTTTTTTTxxxx"}`: the stream (8 hex
//! digits), the sequence within the stream (8), the send time in nanoseconds of the run's clock (16),
//! then padding up to the wanted size. The stamp holds no character that JSON escapes, so it reads the
//! same in a payload that a protocol carries as a JSON object, as a JSON string, or as raw bytes.
//!
//! It is not a JSON parser: a receiver finds the marker and decodes fixed-width digits in place.

use memchr::memmem::Finder;

/// What starts a stamp.
pub const MARKER: &[u8; 4] = b"~lt~";
/// Bytes of a stamp: marker, stream, sequence, time.
pub const STAMP_BYTES: usize = 4 + 8 + 8 + 16;
const HEAD: &[u8] = b"{\"d\":\"";
const TAIL: &[u8] = b"\"}";
/// Smallest payload that holds a stamp, in bytes.
pub const PAYLOAD_BYTES_MIN: usize = HEAD.len() + STAMP_BYTES + TAIL.len();

/// Who sent a message, which one it is, and when it was (or should have been) sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Index of the stream (one publisher on one channel) within the run.
    pub stream: u32,
    /// Place in the stream, from 0, without gaps.
    pub seq: u32,
    /// Nanoseconds of the run's clock; in open loop the time it was due, not the time it left.
    pub sent_ns: u64,
}

/// Appends a payload of `size` bytes (at least [`PAYLOAD_BYTES_MIN`]) that carries `stamp`.
pub fn encode_payload(stamp: Stamp, size: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(HEAD);
    out.extend_from_slice(MARKER);
    push_hex8(stamp.stream, out);
    push_hex8(stamp.seq, out);
    push_hex8((stamp.sent_ns >> 32) as u32, out);
    push_hex8(stamp.sent_ns as u32, out);
    let padding = size.saturating_sub(PAYLOAD_BYTES_MIN);
    out.resize(out.len() + padding, b'x');
    out.extend_from_slice(TAIL);
}

/// Appends `value` as eight lower-case hex digits.
pub fn push_hex8(value: u32, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits: [u8; 8] = std::array::from_fn(|i| DIGITS[(value >> (28 - 4 * i)) as usize & 0xf]);
    out.extend_from_slice(&digits);
}

/// Decodes eight hex digits at the start of `bytes`; `None` when there are fewer or others.
pub fn parse_hex8(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.first_chunk::<8>()?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    // Eight digits at once: low nibble, plus nine where it is a letter, then nibbles joined pairwise.
    let word = u64::from_be_bytes(*digits);
    let nibbles = (word & 0x0f0f_0f0f_0f0f_0f0f) + ((word >> 6) & 0x0101_0101_0101_0101) * 9;
    let bytes = (nibbles | nibbles >> 4) & 0x00ff_00ff_00ff_00ff;
    let words = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    Some((words | words >> 16) as u32)
}

/// Finds stamps, trying first where the last one was: frames of one channel put it at the same place.
pub struct Scanner {
    finder: Finder<'static>,
    hint: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            finder: Finder::new(MARKER).into_owned(),
            hint: 0,
        }
    }
}

impl Scanner {
    /// The first stamp in `message`, if it has a whole one.
    pub fn find(&mut self, message: &[u8]) -> Option<Stamp> {
        let at_hint = message
            .get(self.hint..)
            .is_some_and(|rest| rest.starts_with(MARKER));
        if !at_hint {
            self.hint = self.finder.find(message)?;
        }
        parse_stamp(&message[self.hint + MARKER.len()..])
    }
}

fn parse_stamp(digits: &[u8]) -> Option<Stamp> {
    let high = parse_hex8(digits.get(16..)?)?;
    let low = parse_hex8(digits.get(24..)?)?;
    Some(Stamp {
        stream: parse_hex8(digits)?,
        seq: parse_hex8(digits.get(8..)?)?,
        sent_ns: u64::from(high) << 32 | u64::from(low),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payload_is_json_of_the_wanted_size() {
        let stamp = Stamp {
            stream: 3,
            seq: 123,
            sent_ns: 1_234_567_890_123,
        };
        let mut payload = Vec::new();
        encode_payload(stamp, 100, &mut payload);
        assert_eq!(payload.len(), 100);
        let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert!(
            json["d"]
                .as_str()
                .unwrap()
                .starts_with("~lt~000000030000007b")
        );
    }

    #[test]
    fn too_small_a_size_still_holds_the_stamp() {
        let mut payload = Vec::new();
        encode_payload(
            Stamp {
                stream: 0,
                seq: 0,
                sent_ns: 0,
            },
            1,
            &mut payload,
        );
        assert_eq!(payload.len(), PAYLOAD_BYTES_MIN);
    }

    #[test]
    fn a_cut_or_foreign_stamp_is_none() {
        let mut payload = Vec::new();
        encode_payload(
            Stamp {
                stream: 1,
                seq: 2,
                sent_ns: 3,
            },
            0,
            &mut payload,
        );
        let mut scanner = Scanner::default();
        assert!(scanner.find(&payload[..payload.len() - 3]).is_none());
        assert!(scanner.find(b"{\"action\":\"subscribed\"}").is_none());
        payload[12] = b'g';
        assert!(scanner.find(&payload).is_none());
    }

    #[test]
    fn hex_takes_both_cases_and_nothing_else() {
        assert_eq!(parse_hex8(b"DEADbeef"), Some(0xdead_beef));
        assert_eq!(parse_hex8(b"0000000"), None);
        assert_eq!(parse_hex8(b"00000 00"), None);
    }

    proptest! {
        #[test]
        fn round_trip(stream: u32, seq: u32, sent_ns: u64, lead in "[a-z{},:\"]{0,60}", size in 0usize..300) {
            let stamp = Stamp { stream, seq, sent_ns };
            let mut message = lead.into_bytes();
            encode_payload(stamp, size, &mut message);
            let mut scanner = Scanner::default();
            prop_assert_eq!(scanner.find(&message), Some(stamp));
            prop_assert_eq!(scanner.find(&message), Some(stamp));
        }
    }
}
