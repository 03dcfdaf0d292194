//! Frames to clients (contract section 9), encoded whole: WebSocket header and JSON payload.

use std::sync::Arc;

use crate::error::ProtocolError;
use crate::record::Record;
use crate::url::Shape;
use crate::ws::frame::{OpCode, write_header};

/// Encodes text frames into one buffer that is used again for each.
///
/// The payload is written behind room for the longest header, whose bytes are then put right
/// before it: the frame is contiguous and nothing moves.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    buf: Vec<u8>,
    header: Vec<u8>,
}

/// The longest server frame header (RFC 6455 section 5.2: 2 bytes and a 64-bit length, no mask).
const HEADER_ROOM: usize = 10;

impl FrameEncoder {
    /// One text frame whose payload `write` appends to the buffer it is given.
    pub fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        self.buf.clear();
        self.buf.resize(HEADER_ROOM, 0);
        write(&mut self.buf);
        self.header.clear();
        write_header(
            &mut self.header,
            OpCode::Text,
            self.buf.len().saturating_sub(HEADER_ROOM),
        );
        let start = HEADER_ROOM.saturating_sub(self.header.len());
        if let Some(room) = self.buf.get_mut(start..HEADER_ROOM) {
            room.copy_from_slice(&self.header);
        }
        self.buf.get(start..).unwrap_or_default()
    }
}

/// Where and when a message stands in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Server time of acceptance, ms since the Unix epoch; never falls within a channel.
    pub timestamp: u64,
    /// Place in the channel's log, from 1; none for an ephemeral message (contract D15).
    pub sequence: Option<u64>,
}

pub fn write_message(out: &mut Vec<u8>, channel: &str, data: &str, id: &str, position: Position) {
    out.extend_from_slice(b"{\"action\":\"message\",\"channel\":");
    write_string(out, channel);
    out.extend_from_slice(b",\"data\":");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b",\"id\":");
    write_string(out, id);
    write_position(out, position);
    out.push(b'}');
}

/// A message of the past (contract D18, D19).
pub fn write_replay(out: &mut Vec<u8>, channel: &str, record: &Record) {
    let position = Position {
        timestamp: record.timestamp,
        sequence: Some(record.sequence),
    };
    write_message(out, channel, &record.data, &record.id, position);
    out.pop();
    out.extend_from_slice(b",\"replay\":true}");
}

pub fn write_ack(out: &mut Vec<u8>, id: &str, channel: &str, position: Position) {
    out.extend_from_slice(b"{\"action\":\"ack\",\"id\":");
    write_string(out, id);
    out.extend_from_slice(b",\"channel\":");
    write_string(out, channel);
    write_position(out, position);
    out.push(b'}');
}

fn write_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(b",\"timestamp\":");
    write_integer(out, position.timestamp);
    if let Some(sequence) = position.sequence {
        out.extend_from_slice(b",\"sequence\":");
        write_integer(out, sequence);
    }
}

pub fn write_subscribed(out: &mut Vec<u8>, channel: &str) {
    out.extend_from_slice(b"{\"action\":\"subscribed\",\"channel\":");
    write_string(out, channel);
    out.push(b'}');
}

/// The answer to a `subscribe` with `since`: where the channel stands and whether everything since
/// follows. An extension of the contract.
pub fn write_subscribed_since(
    out: &mut Vec<u8>,
    channel: &str,
    recovered: bool,
    epoch: &str,
    sequence: u64,
) {
    write_subscribed(out, channel);
    out.pop();
    out.extend_from_slice(b",\"recovered\":");
    out.extend_from_slice(if recovered { b"true" } else { b"false" });
    out.extend_from_slice(b",\"epoch\":");
    write_string(out, epoch);
    out.extend_from_slice(b",\"sequence\":");
    write_integer(out, sequence);
    out.push(b'}');
}

/// The end of a resume: per channel whether everything missed was replayed (contract D19).
pub fn write_resume_ack(out: &mut Vec<u8>, channels: &[(Arc<str>, Resumed)]) {
    out.extend_from_slice(b"{\"action\":\"ack\",\"id\":\"resume\",\"data\":{\"channels\":{");
    for (index, (channel, resumed)) in channels.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, channel);
        out.extend_from_slice(b":{\"recovered\":");
        out.extend_from_slice(if resumed.recovered { b"true" } else { b"false" });
        out.extend_from_slice(b",\"replayed\":");
        write_integer(out, resumed.replayed);
        out.push(b'}');
    }
    out.extend_from_slice(b"}}}");
}

/// What a resume came to on one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resumed {
    pub recovered: bool,
    pub replayed: u64,
}

/// A page of history (contract section 9, D21).
pub fn write_history(
    out: &mut Vec<u8>,
    channel: &str,
    messages: &[Arc<Record>],
    has_more: bool,
    shape: Shape,
) {
    out.extend_from_slice(b"{\"action\":\"history\",\"channel\":");
    write_string(out, channel);
    if shape != Shape::Flat {
        out.extend_from_slice(b",\"data\":");
        write_page(out, channel, messages, has_more);
    }
    if shape != Shape::Standard {
        out.extend_from_slice(b",\"messages\":");
        write_messages(out, channel, messages);
        write_has_more(out, has_more);
    }
    out.push(b'}');
}

/// `{channel, messages, hasMore}`: the body of the HTTP twin too (contract D23).
pub fn write_page(out: &mut Vec<u8>, channel: &str, messages: &[Arc<Record>], has_more: bool) {
    out.extend_from_slice(b"{\"channel\":");
    write_string(out, channel);
    out.extend_from_slice(b",\"messages\":");
    write_messages(out, channel, messages);
    write_has_more(out, has_more);
    out.push(b'}');
}

fn write_has_more(out: &mut Vec<u8>, has_more: bool) {
    out.extend_from_slice(b",\"hasMore\":");
    out.extend_from_slice(if has_more { b"true" } else { b"false" });
}

fn write_messages(out: &mut Vec<u8>, channel: &str, messages: &[Arc<Record>]) {
    out.push(b'[');
    for (index, record) in messages.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"id\":");
        write_string(out, &record.id);
        out.extend_from_slice(b",\"channel\":");
        write_string(out, channel);
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(record.data.as_bytes());
        out.extend_from_slice(b",\"publisherId\":");
        write_string(out, &record.publisher);
        write_position(
            out,
            Position {
                timestamp: record.timestamp,
                sequence: Some(record.sequence),
            },
        );
        out.push(b'}');
    }
    out.push(b']');
}

pub fn write_unsubscribed(out: &mut Vec<u8>, channel: &str) {
    out.extend_from_slice(b"{\"action\":\"unsubscribed\",\"channel\":");
    write_string(out, channel);
    out.push(b'}');
}

/// The answer to `ping`.
pub fn write_pong(out: &mut Vec<u8>, timestamp: u64) {
    out.extend_from_slice(b"{\"action\":\"pong\",\"timestamp\":");
    write_integer(out, timestamp);
    out.push(b'}');
}

/// The frame that breaks outbound silence (contract D12): every SDK swallows it.
pub fn write_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"action\":\"pong\"}");
}

/// The hello frame (contract D9).
pub fn write_connected(out: &mut Vec<u8>, connection: &str, client_id: &str, server_time: u64) {
    out.extend_from_slice(b"{\"action\":\"connected\",\"id\":");
    write_string(out, connection);
    out.extend_from_slice(b",\"data\":{\"clientId\":");
    write_string(out, client_id);
    out.extend_from_slice(b",\"serverTime\":");
    write_integer(out, server_time);
    out.extend_from_slice(b"}}");
}

/// An error (contract D10): the text repeats the code because SDKs surface only the text.
pub fn write_error(
    out: &mut Vec<u8>,
    error: &ProtocolError,
    channel: Option<&str>,
    id: Option<&str>,
) {
    let code = error.code.code();
    out.extend_from_slice(b"{\"action\":\"error\",\"error\":");
    write_string(out, &format!("{} [{code}]", error.text));
    out.extend_from_slice(b",\"code\":");
    write_integer(out, u64::from(code));
    if let Some(channel) = channel {
        out.extend_from_slice(b",\"channel\":");
        write_string(out, channel);
    }
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write_string(out, id);
    }
    out.push(b'}');
}

/// A JSON string; escapes only where JSON demands it (RFC 8259 section 7).
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        for byte in text.bytes() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(byte),
            }
        }
    }
    out.push(b'"');
}

/// A plain JSON integer (contract 4.3.3).
pub fn write_integer(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut used = 0usize;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        used += 1;
        if value == 0 {
            break;
        }
    }
    out.extend(digits.iter().skip(digits.len() - used));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use proptest::prelude::*;

    #[test]
    fn header_lengths_fit_every_payload_size() {
        let mut encoder = FrameEncoder::default();
        for (len, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = encoder.text(|out| out.extend(std::iter::repeat_n(b'x', len)));
            assert_eq!(frame.len(), len + header);
            assert_eq!(frame[0], 0x81);
        }
    }

    #[test]
    fn error_frame_repeats_the_code_in_its_text() {
        let mut out = Vec::new();
        let error = ProtocolError::with_text(ErrorCode::BadField, "`id` must be a string");
        write_error(&mut out, &error, Some("c"), None);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"action":"error","error":"`id` must be a string [40003]","code":40003,"channel":"c"}"#
        );
    }

    proptest! {
        #[test]
        fn strings_and_integers_read_back(text in any::<String>(), value in any::<u64>()) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            out.clear();
            write_integer(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
