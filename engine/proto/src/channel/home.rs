//! The channels that one shard is home to: the one place that orders each of them.
//!
//! Gives every message its sequence and timestamp, recognises ids that were published before, and
//! knows which shards have subscribers. Does not deliver: that is the shard's work.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::dedup::{DedupTable, Entry};
use crate::ids::{ChannelKey, ShardId};
use crate::msg::LocalRef;
use crate::wire::wsocket::Position;

/// How long a channel without subscribers and publishes is remembered: its numbering begins anew
/// after that.
pub const IDLE_CHANNEL_MS: u64 = 24 * 60 * 60 * 1000;

/// Ids dropped per tick at most: 3 ms of work. While a table is in use its inserts drop more.
const EXPIRE_PER_TICK: usize = 16_384;

#[derive(Debug)]
pub struct HomeChannel {
    key: ChannelKey,
    hash: u64,
    /// Stands for this channel alone in the dedup table; never given twice.
    number: u64,
    last: Position,
    /// Sequence of the last stored message, 0 before the first.
    sequence: u64,
    interested: Vec<(ShardId, LocalRef)>,
    /// Monotonic ms of the last publish or change of interest.
    used_ms: u64,
}

#[derive(Debug)]
pub struct HomeChannels {
    entries: Vec<Option<HomeChannel>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    dedup: DedupTable,
    /// Channels made so far.
    made: u64,
}

/// A publish that got its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordered {
    pub position: Position,
    pub duplicate: bool,
}

impl HomeChannels {
    pub fn new(dedup: DedupTable) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            dedup,
            made: 0,
        }
    }

    /// Number of channels remembered.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn find(&self, app: &str, name: &str, hash: u64) -> Option<u32> {
        self.by_name
            .find(hash, |slot| {
                self.get(*slot)
                    .is_some_and(|c| &*c.key.name == name && &*c.key.app == app)
            })
            .copied()
    }

    /// Finds or makes the channel.
    pub fn enter(&mut self, app: &Arc<str>, name: &str, hash: u64, now_ms: u64) -> u32 {
        if let Some(slot) = self.find(app, name, hash) {
            return slot;
        }
        self.made += 1;
        let channel = HomeChannel {
            number: self.made,
            key: ChannelKey {
                app: app.clone(),
                name: name.into(),
            },
            hash,
            last: Position {
                timestamp: 0,
                sequence: None,
            },
            sequence: 0,
            interested: Vec::new(),
            used_ms: now_ms,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            *entry = Some(channel);
        }
        let entries = &self.entries;
        self.by_name.insert_unique(hash, slot, |s| {
            entries
                .get(*s as usize)
                .and_then(Option::as_ref)
                .map_or(0, |c| c.hash)
        });
        slot
    }

    /// The shards with subscribers, and their entry there.
    pub fn interested(&self, slot: u32) -> &[(ShardId, LocalRef)] {
        self.get(slot).map_or(&[], |c| &c.interested)
    }

    /// Sequence of the last stored message, 0 before the first.
    pub fn last_sequence(&self, slot: u32) -> u64 {
        self.get(slot).map_or(0, |c| c.sequence)
    }

    /// Gives a message its place: dedup by id, then the next sequence (stored messages only) and
    /// a timestamp that never falls within the channel (contract D15, D16).
    pub fn order(
        &mut self,
        slot: u32,
        id: &str,
        persist: bool,
        now_ms: u64,
        unix_ms: u64,
    ) -> Option<Ordered> {
        let channel = self.entries.get_mut(slot as usize)?.as_mut()?;
        if let Some(known) = self.dedup.lookup(channel.number, id, now_ms) {
            return Some(Ordered {
                position: Position {
                    timestamp: known.timestamp,
                    sequence: known.sequence,
                },
                duplicate: true,
            });
        }
        channel.used_ms = now_ms;
        if persist {
            channel.sequence += 1;
        }
        channel.last = Position {
            timestamp: unix_ms.max(channel.last.timestamp),
            sequence: persist.then_some(channel.sequence),
        };
        let position = channel.last;
        let entry = Entry {
            timestamp: position.timestamp,
            sequence: position.sequence,
        };
        self.dedup.insert(channel.number, id, entry, now_ms);
        Some(Ordered {
            position,
            duplicate: false,
        })
    }

    /// A shard has subscribers from here on; replaces what it said before.
    pub fn add_interest(&mut self, slot: u32, shard: ShardId, local: LocalRef, now_ms: u64) {
        if let Some(channel) = self.get_mut(slot) {
            channel.used_ms = now_ms;
            channel.interested.retain(|(s, _)| *s != shard);
            channel.interested.push((shard, local));
        }
    }

    /// A shard's last subscriber left, unless it has asked anew since.
    pub fn remove_interest(&mut self, slot: u32, shard: ShardId, local: LocalRef, now_ms: u64) {
        if let Some(channel) = self.get_mut(slot) {
            channel.used_ms = now_ms;
            channel.interested.retain(|entry| *entry != (shard, local));
            if channel.interested.is_empty() {
                channel.interested = Vec::new();
            }
        }
    }

    /// Drops ids whose window is over, up to [`EXPIRE_PER_TICK`].
    pub fn expire_ids(&mut self, now_ms: u64) {
        self.dedup.expire(now_ms, EXPIRE_PER_TICK);
    }

    /// Forgets channels that nobody has used for [`IDLE_CHANNEL_MS`].
    pub fn forget_idle(&mut self, now_ms: u64) {
        for slot in 0..self.entries.len() {
            let Some(entry) = self.entries.get_mut(slot) else {
                return;
            };
            let idle = entry.as_ref().is_some_and(|c| {
                c.interested.is_empty() && now_ms.saturating_sub(c.used_ms) > IDLE_CHANNEL_MS
            });
            if !idle {
                continue;
            }
            let slot = u32::try_from(slot).unwrap_or(u32::MAX);
            if let Some(channel) = entry.take()
                && let Ok(found) = self.by_name.find_entry(channel.hash, |s| *s == slot)
            {
                found.remove();
                self.free.push(slot);
            }
        }
    }

    fn get(&self, slot: u32) -> Option<&HomeChannel> {
        self.entries.get(slot as usize)?.as_ref()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut HomeChannel> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }
}
