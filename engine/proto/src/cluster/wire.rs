//! Presence as the scripts in Redis write it: a change on a channel's topic, and a channel's members as a hash.
//!
//! ```text
//! topic:  P{"e":epoch,"v":version,"k":"enter|update|leave","n":members after,"c":client,"j":joined at,"s":state JSON text}
//! hash:   "e" epoch, "v" version, "n" members,
//!         "m:<client>" → "<joined at>:<state JSON text>", "h:<client>" → who holds it (the scripts' alone)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::view::{Position, Shown, Snapshot, Told};
use crate::channel::presence::{Event, EventKind};

/// The first byte of a topic's payload that is about presence.
pub const PRESENCE: u8 = b'P';

#[derive(Deserialize)]
struct Change {
    e: u64,
    v: u64,
    k: Kind,
    n: u64,
    c: String,
    j: u64,
    #[serde(default)]
    s: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Enter,
    Update,
    Leave,
}

/// A payload of a topic that begins with [`PRESENCE`].
#[must_use]
pub fn parse_told(payload: &[u8]) -> Option<Told> {
    let change: Change = serde_json::from_slice(payload.strip_prefix(&[PRESENCE])?).ok()?;
    let kind = match change.k {
        Kind::Enter => EventKind::Enter,
        Kind::Update => EventKind::Update,
        Kind::Leave => EventKind::Leave,
    };
    Some(Told {
        at: Position {
            epoch: change.e,
            version: change.v,
        },
        ended: change.n == 0,
        event: Event {
            kind,
            client_id: change.c.into(),
            joined_at: change.j,
            state: state_of(&change.s),
        },
    })
}

/// A channel's hash as it was at `now_us`, Redis's time.
#[must_use]
pub fn parse_snapshot(now_us: u64, fields: BTreeMap<String, String>) -> Snapshot {
    let number = |name: &str| fields.get(name).and_then(|text| text.parse().ok());
    let at = match (number("e"), number("v")) {
        (Some(epoch), Some(version)) => Position { epoch, version },
        _ => Position {
            epoch: now_us,
            version: 0,
        },
    };
    let members = fields.into_iter().filter_map(|(name, value)| {
        let client_id = name.strip_prefix("m:")?;
        let (joined_at, state) = value.split_once(':')?;
        Some(Shown {
            client_id: client_id.into(),
            joined_at: joined_at.parse().ok()?,
            state: state_of(state),
        })
    });
    Snapshot {
        at,
        members: members.collect(),
    }
}

/// The empty text stands for none.
fn state_of(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_and_what_is_none_is_refused() {
        let payload = br#"P{"e":5,"v":2,"k":"leave","n":0,"c":"a","j":7,"s":"{\"x\":1}"}"#;
        let told = parse_told(payload).unwrap();
        assert_eq!((told.at.epoch, told.at.version, told.ended), (5, 2, true));
        assert_eq!(told.event.kind, EventKind::Leave);
        assert_eq!(told.event.state.as_deref(), Some("{\"x\":1}"));
        for bad in [&b"M{}"[..], b"P", b"P{}", b"", br#"P{"e":-1}"#] {
            assert_eq!(parse_told(bad), None);
        }
    }

    #[test]
    fn a_snapshot_without_members_is_of_its_moment() {
        assert_eq!(parse_snapshot(9, BTreeMap::new()).at.epoch, 9);
        let fields = [("e", "5"), ("v", "3"), ("m:a:b", "7:"), ("h:a:b", "n1")];
        let fields = fields.map(|(k, v)| (k.to_owned(), v.to_owned()));
        let snapshot = parse_snapshot(9, fields.into());
        assert_eq!((snapshot.at.epoch, snapshot.at.version), (5, 3));
        assert_eq!(&*snapshot.members[0].client_id, "a:b");
    }
}
