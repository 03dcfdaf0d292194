//! How the outbox lies in records: one place for kinds, ids, ranks and bodies.
//!
//! Events of one commit and one endpoint lie together in a chunk, ranked by the number of the first: what a busy server
//! writes is a few records per commit, however many events there are.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shardwire_proto::webhook::sender::{Cursor, Queued};
use shardwire_proto::webhook::standing::{Fact, Kept};
use shardwire_proto::webhook::{Endpoint, Note};

use super::deliver::Entry;
use crate::records::{Change, Condition, Record, RecordError, Records, Scan};

pub(super) const ENDPOINT: &str = "endpoint";
pub(super) const CHUNK: &str = "events";
pub(super) const CURSOR: &str = "cursor";
pub(super) const STANDING: &str = "standing";
pub(super) const DEAD: &str = "dead";
pub(super) const LOG: &str = "log";
pub(super) const NODE: &str = "node";
pub(super) const OWNER: &str = "owner";
pub(super) const INBOX: &str = "inbox";
/// Dead letters that are to be sent again, by their ids.
pub(super) const REPLAY: &str = "replay";

/// Label of what belongs to an endpoint.
pub(super) const OF: &str = "endpoint";
/// Events of a chunk.
const CHUNK_EVENTS_MAX: usize = 500;
/// Bytes of them, but for one that is larger.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// Records that one scan reads.
pub(super) const PAGE: usize = 500;

/// Events of one endpoint with successive numbers.
#[derive(Debug, Deserialize)]
pub(super) struct Chunk {
    /// When it was made, ms since the Unix epoch.
    pub(super) ms: u64,
    pub(super) first: u64,
    keys: Vec<u64>,
    times: Vec<u64>,
    events: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct ChunkText<'a> {
    ms: u64,
    first: u64,
    keys: Vec<u64>,
    times: Vec<u64>,
    events: Vec<&'a RawValue>,
}

impl Chunk {
    /// Its events, in order.
    pub(super) fn events(self) -> impl Iterator<Item = Queued> {
        let numbered = (self.first..).zip(self.keys).zip(self.times);
        numbered
            .zip(self.events)
            .map(|(((number, key), at_ms), text)| Queued {
                number,
                key,
                at_ms,
                text: text.get().into(),
            })
    }
}

/// The changes that keep an endpoint's events; their numbers follow each other.
pub(super) fn chunks(endpoint: &str, events: &[Queued], now_ms: u64, until_ms: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut rest = events;
    while let Some(first) = rest.first() {
        let (mut count, mut bytes) = (0, 0);
        for event in rest.iter().take(CHUNK_EVENTS_MAX) {
            if count > 0 && bytes + event.text.len() > CHUNK_BYTES_MAX {
                break;
            }
            bytes += event.text.len();
            count += 1;
        }
        let (chunk, others) = rest.split_at(count);
        rest = others;
        let text = ChunkText {
            ms: now_ms,
            first: first.number,
            keys: chunk.iter().map(|e| e.key).collect(),
            times: chunk.iter().map(|e| e.at_ms).collect(),
            events: chunk
                .iter()
                .filter_map(|e| serde_json::from_str(&e.text).ok())
                .collect(),
        };
        debug_assert_eq!(text.events.len(), chunk.len(), "events are JSON");
        changes.push(Change::put(
            CHUNK,
            Record {
                id: format!("{endpoint}/{:020}", first.number),
                labels: vec![(OF.into(), endpoint.into())],
                rank: rank(first.number),
                expires_ms: Some(until_ms),
                body: json(&text),
                version: 0,
            },
        ));
    }
    changes
}

/// The chunks of an endpoint that hold events from `from` on, up to `limit` of them.
pub(super) fn read_chunks(
    records: &mut dyn Records,
    endpoint: &str,
    from: u64,
    limit: usize,
    now_ms: u64,
) -> Result<Vec<Chunk>, RecordError> {
    let mut before = Scan::of(CHUNK, 1).labelled(OF, endpoint);
    before.rank_max = Some(rank(from));
    before.newest_first = true;
    let start = records.scan(&before, now_ms)?.pop();
    let mut scan = Scan::of(CHUNK, limit).labelled(OF, endpoint);
    scan.rank_min = Some(start.map_or(rank(from), |record| record.rank));
    let found = records.scan(&scan, now_ms)?;
    Ok(found.iter().filter_map(parse).collect())
}

pub(super) fn put_cursor(endpoint: &str, cursor: &Cursor) -> Change {
    Change::put(CURSOR, plain(endpoint, endpoint, json(cursor)))
}

pub(super) fn put_endpoint(endpoint: &Endpoint, when: Condition) -> Change {
    let record = Record {
        id: endpoint.id.clone(),
        labels: vec![("app".into(), endpoint.app.clone())],
        rank: rank(endpoint.created_ms),
        body: json(endpoint),
        ..Record::default()
    };
    Change::Put {
        kind: ENDPOINT,
        record,
        when,
    }
}

pub(super) fn put_log(endpoint: &str, entries: &[Entry]) -> Change {
    Change::put(LOG, plain(endpoint, endpoint, json(&entries)))
}

/// Keeps what stands, or forgets it.
pub(super) fn standing(fact: &Fact, kept: Option<&Kept>) -> Change {
    match kept {
        Some(kept) => Change::put(
            STANDING,
            Record {
                id: fact.id(),
                body: json(kept),
                ..Record::default()
            },
        ),
        None => Change::delete(STANDING, fact.id()),
    }
}

/// A delivery that was given up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Dead {
    pub(super) endpoint: String,
    pub(super) app: String,
    pub(super) id: String,
    /// When it was put together, and when it was given up, ms since the Unix epoch.
    pub(super) time_ms: u64,
    pub(super) at: u64,
    pub(super) attempts: u32,
    pub(super) error: String,
    pub(super) events: Vec<Box<RawValue>>,
    pub(super) times: Vec<u64>,
}

pub(super) fn put_dead(dead: &Dead, until_ms: u64, when: Condition) -> Change {
    let record = Record {
        id: dead.id.clone(),
        labels: vec![(OF.into(), dead.endpoint.clone())],
        rank: rank(dead.at),
        expires_ms: Some(until_ms),
        body: json(dead),
        version: 0,
    };
    Change::Put {
        kind: DEAD,
        record,
        when,
    }
}

/// A dead letter that is to be sent again: there until that was tried, whichever process tries it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Replay {
    pub(super) endpoint: String,
    pub(super) letter: String,
}

/// Asks for a dead letter to be sent again; asking twice is asking once.
pub(super) fn put_replay(endpoint: &str, letter: &str, now_ms: u64, until_ms: u64) -> Change {
    let replay = Replay {
        endpoint: endpoint.into(),
        letter: letter.into(),
    };
    let mut record = plain(letter, endpoint, json(&replay));
    record.rank = rank(now_ms);
    record.expires_ms = Some(until_ms);
    Change::put(REPLAY, record)
}

/// A process that raises events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) id: String,
    /// It is gone from then on, ms since the Unix epoch.
    pub(super) alive_until_ms: u64,
    /// Of the messages that it accepted before then and stored, all events are in the outbox; none where nobody wants any.
    pub(super) complete_ms: Option<u64>,
}

pub(super) fn put_node(node: &Node) -> Change {
    Change::put(
        NODE,
        Record {
            id: node.id.clone(),
            body: json(node),
            ..Record::default()
        },
    )
}

/// What a process that is not the owner has raised.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Raisings {
    pub(super) node: String,
    pub(super) notes: Vec<Note>,
}

pub(super) fn put_raisings(id: String, raisings: &Raisings, now_ms: u64) -> Change {
    Change::put(
        INBOX,
        Record {
            id,
            rank: rank(now_ms),
            body: json(raisings),
            ..Record::default()
        },
    )
}

/// Every record of a kind, or those of an endpoint.
pub(super) fn read_all<T: DeserializeOwned>(
    records: &mut dyn Records,
    kind: &'static str,
    now_ms: u64,
) -> Result<Vec<T>, RecordError> {
    let mut all = Vec::new();
    let mut scan = Scan::of(kind, PAGE);
    loop {
        let page = records.scan(&scan, now_ms)?;
        let last = page.last().map(|record| (record.rank, record.id.clone()));
        all.extend(page.iter().filter_map(parse::<T>));
        if page.len() < PAGE {
            return Ok(all);
        }
        scan.after = last;
    }
}

/// Removes up to a page of an endpoint's records; whether there were as many.
pub(super) fn remove_some(
    records: &mut dyn Records,
    kind: &'static str,
    endpoint: &str,
    now_ms: u64,
) -> Result<usize, RecordError> {
    let scan = Scan::of(kind, PAGE).labelled(OF, endpoint);
    let found = records.scan(&scan, now_ms)?;
    let changes: Vec<Change> = found
        .iter()
        .map(|record| Change::delete(kind, record.id.clone()))
        .collect();
    records.apply(&changes, now_ms)?;
    Ok(changes.len())
}

/// A record's body. What cannot be read was written by a later version, or by hand: it is left out, and told.
pub(super) fn parse<T: DeserializeOwned>(record: &Record) -> Option<T> {
    serde_json::from_str(&record.body)
        .inspect_err(
            |error| log::error!(id = record.id, error:%; "webhooks: a record cannot be read"),
        )
        .ok()
}

/// Ranks are signed.
pub(super) fn rank(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn plain(id: &str, endpoint: &str, body: String) -> Record {
    Record {
        id: id.into(),
        labels: vec![(OF.into(), endpoint.into())],
        body,
        ..Record::default()
    }
}

fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value);
    debug_assert!(text.is_ok(), "what is kept has string keys");
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::sqlite::SqliteRecordStorage;
    use crate::records::{Area, RecordStorage};

    #[test]
    fn events_are_found_again_from_any_number() {
        let folder = tempfile::tempdir().unwrap();
        let storage = SqliteRecordStorage::new(folder.path());
        let mut records = storage.open(Area::Webhooks).unwrap();
        let events: Vec<Queued> = (1..=1200)
            .map(|number| Queued {
                number,
                key: number * 3,
                at_ms: number,
                text: format!("{{\"number\":{number}}}").into(),
            })
            .collect();
        records
            .apply(&chunks("wh", &events, 7, u64::MAX / 2), 0)
            .unwrap();
        for from in [1, 2, 500, 501, 777, 1200] {
            let found = read_chunks(&mut *records, "wh", from, 9, 0).unwrap();
            let numbers: Vec<Queued> = found
                .into_iter()
                .flat_map(Chunk::events)
                .filter(|event| event.number >= from)
                .collect();
            assert_eq!(numbers, events[from as usize - 1..], "{from}");
        }
        assert!(
            read_chunks(&mut *records, "other", 1, 9, 0)
                .unwrap()
                .is_empty()
        );
    }
}
