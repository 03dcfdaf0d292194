//! The channels that one shard is home to: the one place that orders each of them.
//!
//! Gives every message its sequence and timestamp, recognises ids that were published before,
//! knows which shards have subscribers, and keeps the newest messages and the members. Does not
//! deliver and does not talk to the store: that is the shard's work.
//!
//! ```text
//!            stored publish, history, resume            loaded
//!  Unknown ──────────────────────────────► Loading ────────────► Known(log)
//!                                          (work waits)            (numbers, dedup, ring)
//! ```
//! Ephemeral publishes need no log: they go through in every state.
//!
//! Invariants of a log: `committed` messages are in the store, numbered 1.. without a hole;
//! `pending` ones follow in order, and are delivered when the store has committed them and not
//! before, so no client ever sees a sequence that a crash could give to another message.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashTable;

use super::following::Following;
use super::log::{Log, Pending};
use super::presence::Members;
use super::ring::RingBudget;
use super::shared::Shared;
use crate::dedup::{DedupTable, Entry};
use crate::ids::{ChannelKey, Now, ShardId};
use crate::limits::{LATE_COMMIT_MS, LATE_DELIVERY_MS};
use crate::msg::{LocalRef, Origin};
use crate::namespace::Settings;
use crate::rate::RateWindow;
use crate::record::{Loaded, Record, StoredChannel};
use crate::wire::wsocket::Position;

/// How long a channel without subscribers and publishes is remembered. Longer than the dedup
/// window; a log is loaded again when it is needed.
pub const IDLE_CHANNEL_MS: u64 = 5 * 60 * 1000;

/// Ids dropped per tick at most: 3 ms of work. While a table is in use its inserts drop more.
const EXPIRE_PER_TICK: usize = 16_384;

#[derive(Debug)]
pub struct HomeChannel {
    pub key: ChannelKey,
    hash: u64,
    /// Stands for this channel alone in the dedup table; never given twice.
    pub number: u64,
    pub settings: Settings,
    /// Index of the app among those of the shard.
    pub account: u32,
    /// Publishes, where the channel is limited.
    pub window: Option<Box<RateWindow>>,
    last_timestamp: u64,
    pub log: LogState,
    /// Up to which sequence everything was delivered, where a log had to be given up.
    delivered: Option<u64>,
    interested: Vec<(ShardId, LocalRef)>,
    /// How it keeps up with the broker, where it does.
    pub following: Option<Box<Following>>,
    /// Presence, where anybody uses it.
    pub members: Option<Box<Members>>,
    /// This node's part in them, where there are several nodes.
    pub shared: Option<Box<Shared>>,
    /// Monotonic ms of the last use.
    used_ms: u64,
}

#[derive(Debug)]
pub enum LogState {
    Unknown,
    Loading,
    Known(Log),
}

#[derive(Debug)]
pub struct HomeChannels {
    entries: Vec<Option<HomeChannel>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    dedup: DedupTable,
    rings: RingBudget,
    /// Channels made so far.
    made: u64,
}

/// What became of a publish at its home.
#[derive(Debug)]
pub enum Ordered {
    /// An ephemeral message: to be delivered at once.
    Ephemeral(Position),
    /// To be stored: delivered when that is done.
    Stored(Arc<Record>),
    /// The id is known and its message committed.
    Duplicate(Position),
    /// The id is known and its message on its way to the store: the publisher waits with it.
    Joined,
}

/// A message as it is put in order.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    pub id: &'a str,
    pub publisher: &'a str,
    pub data: &'a str,
    pub origin: Origin,
}

impl HomeChannels {
    pub fn new(dedup: DedupTable, rings: RingBudget) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            dedup,
            rings,
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

    /// Bytes of messages held in memory.
    pub fn ring_bytes(&self) -> usize {
        self.rings.bytes()
    }

    pub fn iter(&self) -> impl Iterator<Item = &HomeChannel> {
        self.entries.iter().filter_map(Option::as_ref)
    }

    /// The channels with their slots.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &HomeChannel)> {
        (0u32..)
            .zip(&self.entries)
            .filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }

    pub fn find(&self, app: &str, name: &str, hash: u64) -> Option<u32> {
        self.by_name
            .find(hash, |slot| {
                self.get(*slot)
                    .is_some_and(|c| &*c.key.name == name && &*c.key.app == app)
            })
            .copied()
    }

    /// Finds or makes the channel; `settings` is asked for those of one that is made, and for its app's index.
    pub fn enter(
        &mut self,
        app: &Arc<str>,
        name: &str,
        hash: u64,
        now: Now,
        settings: impl FnOnce() -> (Settings, u32),
    ) -> u32 {
        if let Some(slot) = self.find(app, name, hash) {
            if let Some(channel) = self.get_mut(slot) {
                channel.used_ms = now.mono_ms();
            }
            return slot;
        }
        self.made += 1;
        let (settings, account) = settings();
        let channel = HomeChannel {
            number: self.made,
            key: ChannelKey {
                app: app.clone(),
                name: name.into(),
            },
            hash,
            settings,
            account,
            window: None,
            last_timestamp: 0,
            log: LogState::Unknown,
            delivered: None,
            interested: Vec::new(),
            following: None,
            members: None,
            shared: None,
            used_ms: now.mono_ms(),
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

    pub fn get(&self, slot: u32) -> Option<&HomeChannel> {
        self.entries.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut HomeChannel> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    /// A channel's log, if it is known and not in doubt.
    pub fn log(&self, slot: u32) -> Option<&Log> {
        match &self.get(slot)?.log {
            LogState::Known(log) if !log.in_doubt => Some(log),
            LogState::Known(_) | LogState::Unknown | LogState::Loading => None,
        }
    }

    pub fn log_mut(&mut self, slot: u32) -> Option<&mut Log> {
        match &mut self.get_mut(slot)?.log {
            LogState::Known(log) => Some(log),
            LogState::Unknown | LogState::Loading => None,
        }
    }

    /// The shards with subscribers, and their entry there.
    pub fn interested(&self, slot: u32) -> &[(ShardId, LocalRef)] {
        self.get(slot).map_or(&[], |c| &c.interested)
    }

    /// Takes note of what the store has of a channel. `epoch` is for one that it does not know.
    pub fn set_loaded(&mut self, slot: u32, loaded: Option<Loaded>, epoch: Box<str>, now: Now) {
        let Some(channel) = self.entries.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let mut stored = StoredChannel {
            app: channel.key.app.clone(),
            name: channel.key.name.clone(),
            epoch,
        };
        let mut log = match loaded {
            None => Log::new(stored, 0, 0, 0),
            Some(loaded) => {
                stored.epoch = loaded.epoch;
                channel.last_timestamp = channel.last_timestamp.max(loaded.last_timestamp);
                for (id, timestamp, sequence) in loaded.recent_ids {
                    let age = now.unix_ms.saturating_sub(timestamp);
                    let entry = Entry {
                        timestamp,
                        sequence: Some(sequence),
                    };
                    let seen_ms = now.mono_ms().saturating_sub(age);
                    if self.dedup.lookup(channel.number, &id, seen_ms).is_none() {
                        self.dedup.insert(channel.number, &id, entry, seen_ms);
                    }
                }
                let mut log = Log::new(
                    stored,
                    loaded.last_sequence,
                    loaded.gone_sequence,
                    loaded.gone_timestamp,
                );
                for record in loaded.newest {
                    let delivered_by = record.timestamp + LATE_COMMIT_MS;
                    self.rings
                        .push(&mut log.ring, (slot, channel.number), record, delivered_by);
                }
                log
            }
        };
        log.trim();
        channel.log = LogState::Known(log);
    }

    /// Gives a message its place (contract D15, D16): dedup by id; the next sequence if it is to be
    /// stored; a timestamp that never falls within the channel. For a stored message the log must
    /// be known.
    pub fn order(
        &mut self,
        slot: u32,
        draft: Draft<'_>,
        stored: bool,
        generation: u32,
        now: Now,
    ) -> Option<Ordered> {
        let channel = self.entries.get_mut(slot as usize)?.as_mut()?;
        let known = self.dedup.lookup(channel.number, draft.id, now.mono_ms());
        if let Some(known) = known {
            let position = Position {
                timestamp: known.timestamp,
                sequence: known.sequence,
            };
            if let (Some(sequence), LogState::Known(log)) = (known.sequence, &mut channel.log)
                && log.join(sequence, draft.id, draft.origin)
            {
                return Some(Ordered::Joined);
            }
            return Some(Ordered::Duplicate(position));
        }
        let timestamp = channel.next_timestamp(now);
        channel.last_timestamp = timestamp;
        let mut sequence = None;
        let mut ordered = Ordered::Ephemeral(Position {
            timestamp,
            sequence,
        });
        if stored {
            let LogState::Known(log) = &mut channel.log else {
                return None;
            };
            let record = Arc::new(Record {
                sequence: log.next_sequence(generation),
                timestamp,
                id: draft.id.into(),
                publisher: draft.publisher.into(),
                data: draft.data.into(),
            });
            sequence = Some(record.sequence);
            log.pending.push_back(Pending {
                record: record.clone(),
                origins: vec![draft.origin],
                generation,
                accepted_us: now.mono_us,
            });
            ordered = Ordered::Stored(record);
        }
        let entry = Entry {
            timestamp,
            sequence,
        };
        self.dedup
            .insert(channel.number, draft.id, entry, now.mono_ms());
        Some(ordered)
    }

    /// The channel's oldest pending message is committed: it becomes part of the log.
    pub fn commit(&mut self, slot: u32, unix_ms: u64) -> Option<Pending> {
        let channel = self.entries.get_mut(slot as usize)?.as_mut()?;
        let LogState::Known(log) = &mut channel.log else {
            return None;
        };
        let pending = log.pending.pop_front()?;
        debug_assert_eq!(pending.record.sequence, log.committed + 1);
        log.committed = pending.record.sequence;
        self.rings.push(
            &mut log.ring,
            (slot, channel.number),
            pending.record.clone(),
            unix_ms + LATE_DELIVERY_MS,
        );
        log.apply(&channel.settings.retention);
        self.trim_rings(unix_ms);
        self.settle(slot);
        Some(pending)
    }

    /// The broker's next message becomes part of a log that has none pending.
    pub fn accept(&mut self, slot: u32, record: Arc<Record>, unix_ms: u64) {
        let Some(channel) = self.entries.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let LogState::Known(log) = &mut channel.log else {
            return;
        };
        debug_assert_eq!(record.sequence, log.committed + 1);
        channel.last_timestamp = channel.last_timestamp.max(record.timestamp);
        log.committed = record.sequence;
        self.rings.push(
            &mut log.ring,
            (slot, channel.number),
            record,
            unix_ms + LATE_DELIVERY_MS,
        );
        log.apply(&channel.settings.retention);
        self.trim_rings(unix_ms);
    }

    /// The channel's oldest pending message failed: its id may be published again.
    ///
    /// What the store has of it by now only the store can tell (a commit whose answer was lost), so
    /// the log is in doubt until it is loaded again, which it can be when nothing is pending.
    pub fn fail_oldest(&mut self, slot: u32) -> Option<Pending> {
        let channel = self.entries.get_mut(slot as usize)?.as_mut()?;
        let LogState::Known(log) = &mut channel.log else {
            return None;
        };
        log.in_doubt = true;
        let pending = log.pending.pop_front();
        if let Some(pending) = &pending {
            self.dedup.forget(channel.number, &pending.record.id);
        }
        self.settle(slot);
        pending
    }

    /// Gives up a log in doubt when nothing of it is pending any more.
    fn settle(&mut self, slot: u32) {
        if let Some(channel) = self.get_mut(slot)
            && let LogState::Known(log) = &channel.log
            && log.in_doubt
            && log.pending.is_empty()
        {
            channel.delivered = Some(log.committed);
            channel.log = LogState::Unknown;
        }
    }

    /// Messages that turned out to be stored although they were reported to have failed: nobody
    /// has been sent them.
    pub fn take_undelivered(&mut self, slot: u32) -> Vec<Arc<Record>> {
        let Some(channel) = self.get_mut(slot) else {
            return Vec::new();
        };
        let (Some(delivered), LogState::Known(log)) = (channel.delivered.take(), &channel.log)
        else {
            return Vec::new();
        };
        log.ring
            .iter()
            .filter(|r| r.sequence > delivered)
            .cloned()
            .collect()
    }

    /// The channel's newest pending message was not taken by the store's queue.
    pub fn refuse_newest(&mut self, slot: u32) -> Option<Pending> {
        let number = self.get(slot)?.number;
        let pending = self.log_mut(slot)?.pending.pop_back()?;
        self.dedup.forget(number, &pending.record.id);
        self.settle(slot);
        Some(pending)
    }

    /// All messages were removed; the numbering goes on.
    pub fn clear(&mut self, slot: u32) {
        if let Some(log) = self.log_mut(slot) {
            log.clear();
        }
    }

    /// A shard has subscribers from here on; replaces what it said before.
    pub fn add_interest(&mut self, slot: u32, shard: ShardId, local: LocalRef) {
        if let Some(channel) = self.get_mut(slot) {
            channel.interested.retain(|(s, _)| *s != shard);
            channel.interested.push((shard, local));
        }
    }

    /// A shard's last subscriber left, unless it has asked anew since.
    pub fn remove_interest(&mut self, slot: u32, shard: ShardId, local: LocalRef, now: Now) {
        if let Some(channel) = self.get_mut(slot) {
            channel.used_ms = now.mono_ms();
            channel.interested.retain(|entry| *entry != (shard, local));
            if channel.interested.is_empty() {
                channel.interested = Vec::new();
            }
        }
    }

    /// Gives the channels in these slots the settings that count for them. False when there are none behind.
    pub fn resettle(
        &mut self,
        slots: std::ops::Range<u32>,
        settings: impl Fn(&str, &str) -> Settings,
    ) -> bool {
        let (from, count) = (slots.start as usize, slots.len());
        for channel in self.entries.iter_mut().skip(from).take(count).flatten() {
            channel.settings = settings(&channel.key.app, &channel.key.name);
        }
        slots.end as usize <= self.entries.len()
    }

    /// Drops ids whose window is over and messages that are too old for a ring.
    pub fn expire(&mut self, now: Now) {
        self.dedup.expire(now.mono_ms(), EXPIRE_PER_TICK);
        self.trim_rings(now.unix_ms);
    }

    /// Forgets channels that nobody has used for [`IDLE_CHANNEL_MS`].
    pub fn forget_idle(&mut self, now_ms: u64) {
        for slot in 0..self.entries.len() {
            let Some(entry) = self.entries.get_mut(slot) else {
                return;
            };
            let idle = entry
                .as_ref()
                .is_some_and(|c| c.is_idle() && now_ms.saturating_sub(c.used_ms) > IDLE_CHANNEL_MS);
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

    fn trim_rings(&mut self, unix_ms: u64) {
        while let Some(held) = self.rings.take_excess(unix_ms) {
            if let Some(channel) = self.get_mut(held.slot)
                && channel.number == held.number
                && let LogState::Known(log) = &mut channel.log
            {
                log.ring.drop_through(held.sequence);
            }
        }
    }
}

impl HomeChannel {
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether a log had to be given up and is not loaded again yet.
    pub fn is_given_up(&self) -> bool {
        self.delivered.is_some()
    }

    /// The lowest timestamp that a message may get from here on.
    pub fn next_timestamp(&self, now: Now) -> u64 {
        now.unix_ms.max(self.last_timestamp)
    }

    /// Whether nobody here needs to hear of it.
    pub fn is_unwanted(&self) -> bool {
        self.interested.is_empty()
            && self.members.is_none()
            && self.shared.as_ref().is_none_or(|shared| shared.is_idle())
    }

    fn is_idle(&self) -> bool {
        self.is_unwanted()
            && self.following.is_none()
            && match &self.log {
                LogState::Unknown => true,
                LogState::Loading => false,
                LogState::Known(log) => log.pending.is_empty(),
            }
    }
}

/// Pending messages of a channel, oldest first.
pub type PendingQueue = VecDeque<Pending>;
