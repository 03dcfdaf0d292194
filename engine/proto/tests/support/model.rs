//! What a store has to do, as plainly as it can be said: every message ever committed in one list
//! per channel, and what of it is gone worked out anew for each question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shardwire_proto::record::{
    Change, Loaded, Page, Question, Record, Retention, StoreAnswer, StoreOp, StoreRead,
};

type Key = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
pub struct Model {
    channels: BTreeMap<Key, Stored>,
}

#[derive(Debug)]
pub struct Stored {
    pub epoch: Box<str>,
    /// All messages ever committed: the one of sequence n at n - 1.
    pub all: Vec<Arc<Record>>,
    /// Messages removed by a clear.
    pub cleared: usize,
    /// Sequences of messages that were reported to have failed.
    pub lost: BTreeSet<u64>,
    retention: Retention,
}

impl Stored {
    /// Messages gone at `now_ms`: always the oldest.
    pub fn gone(&self, now_ms: u64) -> usize {
        let old = now_ms.saturating_sub(self.retention.age_ms);
        let by_age = self.all.partition_point(|r| r.timestamp <= old);
        let most = usize::try_from(self.retention.messages_max).unwrap();
        let by_number = self.all.len().saturating_sub(most);
        self.cleared.max(by_age).max(by_number)
    }

    fn load(&self, messages_max: usize, bytes_max: usize, ids_after: u64, now_ms: u64) -> Loaded {
        let gone = self.gone(now_ms);
        let mut bytes = 0;
        let mut newest: Vec<_> = self.all[gone..]
            .iter()
            .rev()
            .take(messages_max)
            .take_while(|r| {
                bytes += r.weight();
                bytes <= bytes_max
            })
            .cloned()
            .collect();
        newest.reverse();
        let ids = self.all[self.cleared..]
            .iter()
            .filter(|r| r.timestamp >= ids_after);
        Loaded {
            epoch: self.epoch.clone(),
            last_sequence: self.all.len() as u64,
            last_timestamp: self.all.last().map_or(0, |r| r.timestamp),
            gone_sequence: gone as u64,
            gone_timestamp: gone.checked_sub(1).map_or(0, |i| self.all[i].timestamp),
            newest,
            recent_ids: ids
                .map(|r| (r.id.clone(), r.timestamp, r.sequence))
                .collect(),
        }
    }

    pub fn page(&self, page: &Page, now_ms: u64) -> (Vec<Arc<Record>>, bool) {
        let is_in = |r: &&Arc<Record>| {
            page.after_sequence.is_none_or(|s| r.sequence > s)
                && page.before_sequence.is_none_or(|s| r.sequence < s)
                && page.after_ms.is_none_or(|t| r.timestamp > t)
                && page.before_ms.is_none_or(|t| r.timestamp < t)
        };
        let kept = self.all[self.gone(now_ms)..].iter().filter(is_in);
        let mut matching: Vec<Arc<Record>> = kept.cloned().collect();
        if !page.forward {
            matching.reverse();
        }
        let same = |a: usize, b: usize| matching[a].timestamp == matching[b].timestamp;
        let (mut given, mut bytes) = (0, 0);
        for (index, record) in matching.iter().enumerate() {
            let ties = index > 0 && same(index, index - 1);
            let room = page.limit.max(1) + if ties { page.ties_max } else { 0 };
            bytes += record.weight();
            if index > 0 && (index >= room || bytes > page.bytes_max) {
                let run = (0..index).find(|i| same(*i, index)).unwrap_or(index);
                given = if run > 0 { run } else { index };
                break;
            }
            given = index + 1;
        }
        let has_more = given < matching.len();
        matching.truncate(given);
        (matching, has_more)
    }
}

impl Model {
    pub fn get(&self, channel: &str) -> Option<&Stored> {
        self.channels.get(&("app".into(), channel.into()))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.channels.iter().map(|((_, name), s)| (&**name, s))
    }

    /// Forgets everything, as a lost file does.
    pub fn wipe(&mut self) {
        self.channels.clear();
    }

    /// Does an operation, perhaps one that is reported to have failed; for a clear, returns the number of messages removed. Panics where the
    /// operation contradicts what is there.
    pub fn apply(&mut self, op: &StoreOp, lost: bool, now_ms: u64) -> u64 {
        let key = (op.channel.app.clone(), op.channel.name.clone());
        match &op.change {
            Change::Append { record, retention } => {
                let stored = self.channels.entry(key).or_insert_with(|| Stored {
                    epoch: op.channel.epoch.clone(),
                    all: Vec::new(),
                    cleared: 0,
                    lost: BTreeSet::new(),
                    retention: *retention,
                });
                stored.retention = *retention;
                let last = stored.all.last();
                assert_eq!(stored.epoch, op.channel.epoch, "epoch of {op:?}");
                assert_eq!(record.sequence, stored.all.len() as u64 + 1, "{op:?}");
                assert!(last.is_none_or(|l| l.timestamp <= record.timestamp));
                stored.all.push(record.clone());
                if lost {
                    stored.lost.insert(record.sequence);
                }
                0
            }
            Change::Clear => {
                let Some(stored) = self.channels.get_mut(&key) else {
                    return 0;
                };
                let gone = stored.gone(now_ms);
                stored.cleared = stored.all.len();
                (stored.cleared - gone) as u64
            }
        }
    }

    pub fn read(&self, read: &StoreRead, now_ms: u64) -> StoreAnswer {
        let stored = self.channels.get(&(read.app.clone(), read.channel.clone()));
        match read.question {
            Question::Load {
                messages_max,
                bytes_max,
                ids_after_ms,
            } => {
                let load = |s: &Stored| s.load(messages_max, bytes_max, ids_after_ms, now_ms);
                StoreAnswer::Loaded(stored.map(load).map(Box::new))
            }
            Question::Page(page) => {
                let page = stored.map(|s| s.page(&page, now_ms));
                let (messages, has_more) = page.unwrap_or_default();
                StoreAnswer::Page { messages, has_more }
            }
            Question::ChangedSince { .. } => {
                unreachable!("no shard asks for what has changed")
            }
            Question::CountAt { timestamp } => StoreAnswer::Count(stored.map_or(0, |s| {
                let kept = &s.all[s.gone(now_ms)..];
                kept.iter().filter(|r| r.timestamp == timestamp).count() as u64
            })),
        }
    }
}
