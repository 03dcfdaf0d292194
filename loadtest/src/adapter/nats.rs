//! The NATS client protocol inside binary WebSocket messages.
//!
//! The protocol is a stream of lines: the server may put several operations into one WebSocket message
//! and cut one operation across two. [`split`] finds where one ends.

use memchr::memmem;

use super::{Duty, Event, Outgoing};
use crate::frame::{self, Opcode};
use crate::stamp::encode_payload;

/// The adapter; it has no settings.
#[derive(Clone, Copy, Debug)]
pub struct Nats;

/// The first whole operation in `bytes` (a `MSG` with its payload) and how many bytes it takes.
pub fn split(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let line_end = memmem::find(bytes, b"\r\n")?;
    let line = &bytes[..line_end];
    if !line.starts_with(b"MSG ") {
        return Some((line, line_end + 2));
    }
    let size = line.rsplit(|&b| b == b' ').next()?;
    let size: usize = std::str::from_utf8(size).ok()?.parse().ok()?;
    let end = line_end.checked_add(2)?.checked_add(size)?.checked_add(2)?;
    Some((bytes.get(..end)?, end))
}

impl Nats {
    pub(super) fn on_open(self, duty: Duty, channel: &str, out: &mut Vec<u8>) -> Event {
        // The PONG to this PING tells that CONNECT and SUB were taken.
        let echo = duty == Duty::Echo;
        let mut text = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"echo\":{echo},\"protocol\":1}}\r\n"
        );
        if !matches!(duty, Duty::Publish | Duty::Member) {
            text.push_str(&format!("SUB {channel} 1\r\n"));
        }
        text.push_str("PING\r\n");
        frame::encode(Opcode::Binary, text.as_bytes(), out);
        Event::None
    }

    pub(super) fn on_message(self, operation: &[u8], out: &mut Vec<u8>) -> Event {
        if operation == b"PONG" {
            return Event::Ready;
        }
        if operation == b"PING" {
            frame::encode(Opcode::Binary, b"PONG\r\n", out);
        } else if operation.starts_with(b"-ERR") {
            return Event::Error(String::from_utf8_lossy(operation).into_owned());
        }
        Event::None
    }

    pub(super) fn encode_publish(self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        frame::encode_with(Opcode::Binary, out, |out| {
            out.extend_from_slice(b"PUB ");
            out.extend_from_slice(message.channel.as_bytes());
            let size = message.size.max(crate::stamp::PAYLOAD_BYTES_MIN);
            out.extend_from_slice(format!(" {size}\r\n").as_bytes());
            encode_payload(message.stamp, size, out);
            out.extend_from_slice(b"\r\n");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::unmask;
    use super::*;
    use crate::stamp::{Scanner, Stamp};

    #[test]
    fn operations_come_apart_and_cut_ones_wait() {
        let stream = b"INFO {}\r\nMSG c 1 4\r\na\r\nb\r\nPING\r\nMSG c 1 3\r\nab";
        let mut rest = &stream[..];
        let mut seen = Vec::new();
        while let Some((operation, used)) = split(rest) {
            seen.push(operation);
            rest = &rest[used..];
        }
        assert_eq!(seen, [&b"INFO {}"[..], b"MSG c 1 4\r\na\r\nb\r\n", b"PING"]);
        assert_eq!(rest, b"MSG c 1 3\r\nab");
    }

    #[test]
    fn publish_carries_a_stamp_of_the_declared_size() {
        let stamp = Stamp {
            stream: 1,
            seq: 2,
            sent_ns: 3,
        };
        let mut out = Vec::new();
        Nats.encode_publish(
            Outgoing {
                channel: "c",
                stamp,
                size: 100,
            },
            &mut out,
        );
        let text = unmask(&out);
        assert!(text.starts_with(b"PUB c 100\r\n{") && text.ends_with(b"}\r\n"));
        assert_eq!(text.len(), 11 + 100 + 2);
        assert_eq!(Scanner::default().find(&text), Some(stamp));
    }

    #[test]
    fn ping_is_answered() {
        let mut out = Vec::new();
        assert_eq!(Nats.on_message(b"PING", &mut out), Event::None);
        assert_eq!(unmask(&out), b"PONG\r\n");
        assert_eq!(Nats.on_message(b"PONG", &mut out), Event::Ready);
        assert!(matches!(
            Nats.on_message(b"-ERR 'Unknown'", &mut out),
            Event::Error(_)
        ));
    }
}
