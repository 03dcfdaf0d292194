//! A message as it is in the stream and on the topic.
//!
//! In the stream: `version, flags, [origin], id length, publisher length, id, publisher, data`. On the topic a line is
//! before it: `s <sequence> <timestamp> <epoch>\n` (`e` for an ephemeral one, whose sequence is 0). Other lines there:
//! `c <sequence> …` for messages that were removed; what begins with `P` is of presence.

use shardwire_proto::ids::{ConnId, ShardId};
use shardwire_proto::msg::{Origin, Publish};
use shardwire_proto::record::Record;

const VERSION: u8 = 1;
/// The publishing connection does not want it back; its name follows.
const FLAG_ORIGIN: u8 = 1;
const ORIGIN_BYTES: usize = 8 + 2 + 4 + 4;

/// A connection of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeConn {
    pub(super) node: u64,
    pub(super) shard: ShardId,
    pub(super) conn: ConnId,
}

/// What a node hears.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    Message {
        /// 0 in an ephemeral message.
        sequence: u64,
        timestamp: u64,
        epoch: &'a str,
        text: &'a [u8],
    },
    Cleared {
        through: u64,
    },
    Presence,
}

pub(super) fn encode(item: &Publish<'_>, node: u64) -> Vec<u8> {
    let texts = item.id.len() + item.publisher.len() + item.data.len();
    let mut out = Vec::with_capacity(2 + ORIGIN_BYTES + 3 + texts);
    out.push(VERSION);
    match item.origin {
        Origin::Conn {
            shard,
            conn,
            echo: false,
            ..
        } => {
            out.push(FLAG_ORIGIN);
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&shard.0.to_le_bytes());
            out.extend_from_slice(&conn.slot.to_le_bytes());
            out.extend_from_slice(&conn.generation.to_le_bytes());
        }
        Origin::Conn { .. } | Origin::Request { .. } => out.push(0),
    }
    // Both are bounded by the protocol, far below.
    out.push(u8::try_from(item.id.len()).unwrap_or(0));
    let publisher = u16::try_from(item.publisher.len()).unwrap_or(0);
    out.extend_from_slice(&publisher.to_le_bytes());
    out.extend_from_slice(item.id.as_bytes());
    out.extend_from_slice(item.publisher.as_bytes());
    out.extend_from_slice(item.data.as_bytes());
    out
}

/// The message of a text, and who does not want it back; `None` where it is not one.
pub(super) fn decode(
    text: &[u8],
    sequence: u64,
    timestamp: u64,
) -> Option<(Record, Option<NodeConn>)> {
    let mut rest = text;
    if take::<1>(&mut rest)? != [VERSION] {
        return None;
    }
    let origin = match take::<1>(&mut rest)? {
        [0] => None,
        [FLAG_ORIGIN] => Some(NodeConn {
            node: u64::from_le_bytes(take(&mut rest)?),
            shard: ShardId(u16::from_le_bytes(take(&mut rest)?)),
            conn: ConnId {
                slot: u32::from_le_bytes(take(&mut rest)?),
                generation: u32::from_le_bytes(take(&mut rest)?),
            },
        }),
        _ => return None,
    };
    let [id] = take(&mut rest)?;
    let publisher = u16::from_le_bytes(take(&mut rest)?);
    let (id, rest) = rest.split_at_checked(usize::from(id))?;
    let (publisher, data) = rest.split_at_checked(usize::from(publisher))?;
    let text = |bytes| std::str::from_utf8(bytes).ok();
    let record = Record {
        sequence,
        timestamp,
        id: text(id)?.into(),
        publisher: text(publisher)?.into(),
        data: text(data)?.into(),
    };
    Some((record, origin))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*bytes)
}

/// What came over a channel's topic; `None` where nobody of this version says such a thing.
pub(super) fn hear(payload: &[u8]) -> Option<Heard<'_>> {
    if payload.first() == Some(&b'P') {
        return Some(Heard::Presence);
    }
    let end = payload.iter().position(|b| *b == b'\n')?;
    let (line, text) = (payload.get(..end)?, payload.get(end + 1..)?);
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let kind = words.next()?;
    let sequence = words.next()?.parse().ok()?;
    let timestamp = words.next()?.parse().ok()?;
    let epoch = words.next()?;
    match kind {
        "s" | "e" => Some(Heard::Message {
            sequence,
            timestamp,
            epoch,
            text,
        }),
        "c" => Some(Heard::Cleared { through: sequence }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn publish<'a>(app: &'a Arc<str>, id: &'a str, data: &'a str, echo: bool) -> Publish<'a> {
        Publish {
            app,
            channel: "c",
            hash: 0,
            data,
            id,
            publisher: "me",
            persist: true,
            is_made: false,
            origin: Origin::Conn {
                shard: ShardId(3),
                conn: ConnId {
                    slot: 5,
                    generation: 7,
                },
                echo,
                ack: true,
            },
        }
    }

    #[test]
    fn messages_read_back_as_they_were() {
        let app: Arc<str> = "app".into();
        for echo in [true, false] {
            let text = encode(&publish(&app, "é", "{\"a\":1}", echo), 9);
            let mut payload = b"s 12 1700 EPOCH\n".to_vec();
            payload.extend_from_slice(&text);
            let Some(Heard::Message {
                sequence: 12,
                timestamp: 1700,
                epoch: "EPOCH",
                text: heard,
            }) = hear(&payload)
            else {
                panic!("{:?}", hear(&payload));
            };
            let (record, origin) = decode(heard, 12, 1700).unwrap();
            assert_eq!((&*record.id, &*record.publisher), ("é", "me"));
            assert_eq!(&*record.data, "{\"a\":1}");
            assert_eq!(origin.is_some(), !echo);
            assert!(
                origin.is_none_or(|o| o.node == 9 && o.shard == ShardId(3) && o.conn.slot == 5)
            );
        }
    }

    #[test]
    fn other_lines_are_told_apart() {
        assert_eq!(hear(b"c 5 1 E\n"), Some(Heard::Cleared { through: 5 }));
        assert_eq!(hear(b"Panything"), Some(Heard::Presence));
        assert_eq!(hear(b"z 5 1 E\n"), None);
        assert_eq!(hear(b"s 5 1\n"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_that_comes_breaks_it(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            _ = hear(&bytes);
            _ = decode(&bytes, 1, 1);
            let mut cut = vec![VERSION, 1];
            cut.extend_from_slice(&bytes);
            _ = decode(&cut, 1, 1);
        }
    }
}
