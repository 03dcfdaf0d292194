//! The scripts that Redis runs, and what goes in and comes out of them.
//!
//! All of a channel's state changes in one script, so that nodes never see half of a change. Not here: when they are run.

use std::sync::{Arc, LazyLock};

use redis::{Cmd, Value};
use shardwire_proto::broker::{BrokerError, BrokerPublish, BrokerPublished, Follow};
use shardwire_proto::record::{Loaded, Page, Question, Record, StoreAnswer};

use super::codec;
use super::keys::ChannelKeys;

/// One script; Redis knows it by its hash once it was loaded.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) text: String,
    hash: String,
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        let digest = sha1_hex(text.as_bytes());
        Self { text, hash: digest }
    }

    /// A call with these keys; arguments follow.
    fn call(&self, keys: &[&str]) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.hash).arg(keys.len()).arg(keys);
        cmd
    }
}

/// SHA-1 in hex, which is how Redis names scripts.
fn sha1_hex(text: &[u8]) -> String {
    use sha1::Digest;
    data_encoding::HEXLOWER.encode(&sha1::Sha1::digest(text))
}

const PLACE: &str = include_str!("scripts/place.lua");

pub(super) static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[include_str!("scripts/publish.lua")]));
static LOAD: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[PLACE, include_str!("scripts/load.lua")]));
static PAGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[PLACE, include_str!("scripts/page.lua")]));
static COUNT: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[PLACE, include_str!("scripts/count.lua")]));
static CLEAR: LazyLock<Script> =
    LazyLock::new(|| Script::new(&[PLACE, include_str!("scripts/clear.lua")]));

static OWED: LazyLock<Script> = LazyLock::new(|| Script::new(&[include_str!("scripts/owed.lua")]));

/// Every script, to be loaded on every server.
pub(super) fn all() -> [&'static Script; 6] {
    [&PUBLISH, &LOAD, &PAGE, &COUNT, &CLEAR, &OWED]
}

/// What scripts are told of this node.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Stands for this process in messages; random.
    pub node: u64,
    /// How long ids are remembered at least, ms.
    pub dedup_window_ms: u64,
    /// All nodes write one store, and see to it that it lacks nothing.
    pub is_shared_store: bool,
}

pub(super) fn publish(
    keys: &ChannelKeys,
    op: &BrokerPublish,
    epoch: &str,
    settings: &Settings,
) -> Cmd {
    let item = op.publish.borrow();
    let [even, odd] = keys.ids();
    let (meta, stream, topic) = (keys.meta(), keys.stream(), keys.topic());
    let owed = keys.owed();
    let mut cmd = PUBLISH.call(&[&meta, &stream, &even, &odd, &topic, &owed]);
    cmd.arg(if item.is_made { "" } else { item.id });
    cmd.arg(settings.dedup_window_ms);
    match op.retention {
        Some(retention) => cmd.arg(retention.messages_max).arg(retention.age_ms),
        None => cmd.arg("").arg(0),
    };
    cmd.arg(epoch).arg(codec::encode(&item, settings.node));
    cmd.arg(u8::from(op.is_owed));
    match op.base {
        Some((sequence, timestamp)) => cmd.arg(sequence).arg(timestamp),
        None => cmd.arg("").arg(""),
    };
    cmd
}

/// The store has a message.
pub(super) fn stored(keys: &ChannelKeys, sequence: u64) -> Cmd {
    let mut cmd = redis::cmd("ZREM");
    cmd.arg(keys.owed()).arg(sequence);
    cmd
}

/// Messages that the store is owed for `age_ms` already, at most `most`.
pub(super) fn owed(keys: &ChannelKeys, age_ms: u64, most: usize) -> Cmd {
    let mut cmd = OWED.call(&[&keys.meta(), &keys.stream(), &keys.owed()]);
    cmd.arg(age_ms).arg(most);
    cmd
}

/// Epoch and messages of such an answer.
pub(super) fn owed_messages(value: Value) -> Option<(Box<str>, Vec<Arc<Record>>)> {
    let Value::Array(parts) = value else {
        return None;
    };
    let mut parts = parts.into_iter();
    let Value::BulkString(epoch) = parts.next()? else {
        return None;
    };
    let epoch = String::from_utf8(epoch).ok()?;
    Some((epoch.into(), records(parts)?))
}

/// The place of a message; an error where the script has done nothing. `None` where it has not answered so.
pub(super) fn published(value: &Value) -> Option<Result<BrokerPublished, BrokerError>> {
    let Value::Array(parts) = value else {
        return None;
    };
    let [duplicate, sequence, timestamp, Value::BulkString(epoch)] = parts.as_slice() else {
        return None;
    };
    let kind = integer(duplicate)?;
    if kind == 2 {
        return Some(Err(BrokerError::Unplaced));
    }
    Some(Ok(BrokerPublished {
        epoch: std::str::from_utf8(epoch).ok()?.into(),
        sequence: Some(integer(sequence)?).filter(|s| *s > 0),
        timestamp: integer(timestamp)?,
        duplicate: kind == 1,
    }))
}

pub(super) fn follow(keys: &ChannelKeys, follow: &Follow, epoch: &str) -> Cmd {
    let mut cmd = LOAD.call(&[&keys.meta(), &keys.stream()]);
    cmd.arg(follow.messages_max).arg(follow.bytes_max);
    match &follow.after {
        Some(place) => cmd.arg(place.sequence).arg(&*place.epoch),
        None => cmd.arg("").arg(""),
    };
    cmd.arg(epoch);
    cmd
}

/// Where a channel stands, and behind which sequence its epoch begins.
pub(super) fn loaded(value: Value) -> Option<(Loaded, u64)> {
    let Value::Array(parts) = value else {
        return None;
    };
    let mut parts = parts.into_iter();
    let Value::BulkString(epoch) = parts.next()? else {
        return None;
    };
    let mut number = || integer(&parts.next()?);
    let (last_sequence, last_timestamp) = (number()?, number()?);
    let (gone_sequence, gone_timestamp) = (number()?, number()?);
    let from = number()?;
    let mut newest = records(parts)?;
    newest.reverse();
    // A hole would be a mistake somewhere; what is behind it is whole.
    let whole = |r: &(usize, &Arc<Record>)| r.1.sequence + r.0 as u64 == last_sequence;
    let run = newest.iter().rev().enumerate().take_while(whole).count();
    newest.drain(..newest.len() - run);
    let loaded = Loaded {
        epoch: String::from_utf8(epoch).ok()?.into(),
        last_sequence,
        last_timestamp,
        gone_sequence,
        gone_timestamp,
        newest,
        recent_ids: Vec::new(),
    };
    Some((loaded, from))
}

/// None where the question is not of one channel: Redis has no list of them.
pub(super) fn ask(keys: &ChannelKeys, question: &Question) -> Option<Cmd> {
    let (meta, stream) = (keys.meta(), keys.stream());
    let keys = [meta.as_str(), stream.as_str()];
    Some(match question {
        Question::Load {
            messages_max,
            bytes_max,
            ids_after_ms: _,
        } => {
            let mut cmd = LOAD.call(&keys);
            cmd.arg(*messages_max).arg(*bytes_max);
            cmd.arg("").arg("").arg("");
            cmd
        }
        Question::Page(page) => {
            let Page {
                after_sequence,
                before_sequence,
                after_ms,
                before_ms,
                forward,
                limit,
                ties_max,
                bytes_max,
            } = *page;
            let mut cmd = PAGE.call(&keys);
            for bound in [after_sequence, before_sequence, after_ms, before_ms] {
                match bound {
                    Some(bound) => cmd.arg(bound),
                    None => cmd.arg(""),
                };
            }
            cmd.arg(u8::from(forward))
                .arg(limit)
                .arg(ties_max)
                .arg(bytes_max);
            cmd
        }
        Question::CountAt { timestamp } => {
            let mut cmd = COUNT.call(&keys);
            cmd.arg(*timestamp);
            cmd
        }
        Question::ChangedSince { .. } => return None,
    })
}

pub(super) fn answer(question: &Question, value: Value) -> Option<StoreAnswer> {
    match question {
        Question::Load { .. } => {
            let (loaded, _) = loaded(value)?;
            Some(StoreAnswer::Loaded(
                (!loaded.epoch.is_empty()).then(|| Box::new(loaded)),
            ))
        }
        Question::Page(_) => {
            let Value::Array(parts) = value else {
                return None;
            };
            let mut parts = parts.into_iter();
            let has_more = integer(&parts.next()?)? == 1;
            let messages = records(parts)?;
            Some(StoreAnswer::Page { messages, has_more })
        }
        Question::CountAt { .. } => integer(&value).map(StoreAnswer::Count),
        Question::ChangedSince { .. } => None,
    }
}

pub(super) fn clear(keys: &ChannelKeys) -> Cmd {
    CLEAR.call(&[&keys.meta(), &keys.stream(), &keys.topic()])
}

pub(super) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Sequence, timestamp and text of each, in their order.
fn records(mut parts: impl Iterator<Item = Value>) -> Option<Vec<Arc<Record>>> {
    let mut records = Vec::new();
    while let Some(sequence) = parts.next() {
        let (sequence, timestamp) = (integer(&sequence)?, integer(&parts.next()?)?);
        let Value::BulkString(text) = parts.next()? else {
            return None;
        };
        let (record, _) = codec::decode(&text, sequence, timestamp)?;
        records.push(Arc::new(record));
    }
    Some(records)
}
