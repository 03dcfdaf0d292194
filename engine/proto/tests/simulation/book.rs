//! What all clients together have been told: what must agree whoever was told.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::support::model::{Model, Stored};

#[derive(Debug, Default)]
pub struct Book {
    /// Number of the step, for what came before what.
    pub step: u64,
    pub now_ms: u64,
    /// Which id a client has seen at a sequence of a channel.
    seen: BTreeMap<(String, u64), String>,
    /// Sequence that a stored message was acknowledged with, by channel and id.
    acked: BTreeMap<(String, String), u64>,
    /// Step of the first publish of an id.
    pub sent: BTreeMap<String, u64>,
    /// Messages that a resume by timestamp cannot know to be missing, see [`crate::sdk`].
    pub excused: u64,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Book {
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Whether messages were reported to have failed, though stored, and were gone before anybody
    /// learned of that: cleared, or pushed out.
    pub fn are_lost(&self, channel: &str, missing: Range<u64>, model: &Model) -> bool {
        model.get(channel).is_some_and(|stored| {
            missing.end <= stored.gone(self.now_ms) as u64 + 1
                && missing.into_iter().all(|s| stored.lost.contains(&s))
        })
    }

    /// A client was sent a message.
    pub fn see(&mut self, channel: &str, sequence: u64, id: &str) {
        let place = (channel.to_owned(), sequence);
        let known = self.seen.entry(place).or_insert_with(|| id.to_owned());
        assert_eq!(known, id, "{channel}#{sequence} was given twice");
    }

    /// A publisher was told that its message is stored.
    pub fn ack(&mut self, channel: &str, id: &str, sequence: u64) {
        self.count("acks");
        let message = (channel.to_owned(), id.to_owned());
        let known = *self.acked.entry(message).or_insert(sequence);
        assert_eq!(
            known, sequence,
            "{id} on {channel} was acknowledged at two places"
        );
        self.see(channel, sequence, id);
    }

    /// Holds all of it against the store.
    pub fn check(&self, model: &Model) {
        for (channel, stored) in model.iter() {
            let mut ids: BTreeMap<&str, u64> = BTreeMap::new();
            for record in &stored.all {
                if let Some(first) = ids.insert(&record.id, record.sequence) {
                    // The store forgets the ids of what is cleared, and the shard those of what is
                    // reported to have failed.
                    let forgotten = stored.lost.contains(&first) && first <= stored.cleared as u64;
                    assert!(forgotten, "{} is stored twice on {channel}", record.id);
                }
            }
            for (record, sequence) in stored.all.iter().zip(1..) {
                assert_eq!(record.sequence, sequence);
            }
        }
        for ((channel, sequence), id) in &self.seen {
            let record = model.get(channel).and_then(|s| at(s, *sequence));
            let stored = record.map(|r| &*r.id);
            assert_eq!(stored, Some(&**id), "{channel}#{sequence} was told of");
        }
    }
}

/// The message at a sequence.
pub fn at(stored: &Stored, sequence: u64) -> Option<&shardwire_proto::record::Record> {
    let index = usize::try_from(sequence).ok()?.checked_sub(1)?;
    stored.all.get(index).map(|r| &**r)
}
