//! Leases of what has a name that clients choose, on one shard: of client ids, and of channels.
//!
//! A name has an entry while somebody uses it here, a client id while a connection of it is open, and for a while after:
//! coming back at once must not give it debt anew. Entries that nobody uses are at most [`IDLE_MAX`]; of more, those that
//! have been idle longest are forgotten, which gives each at most its debt again.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::account::{Slot, slot_in};
use crate::ids::ShardId;
use crate::rate::RateLimit;
use crate::rate::table::Bucket;

/// Stands for no entry.
pub const NO_CLIENT: u32 = u32::MAX;
/// Entries that nobody uses.
const IDLE_MAX: usize = 65_536;
/// Longest time that one is kept, ms.
const HOLD_MS_MAX: u64 = 10 * 60 * 1000;
/// Entries forgotten per tick.
const FORGET_PER_TICK: usize = 8192;

#[derive(Debug)]
struct Entry {
    account: u32,
    name: Arc<str>,
    slots: SmallVec<[(Bucket, RateLimit, Slot); 1]>,
    users: u32,
    /// Monotonic ms since which it has none.
    idle_ms: u64,
}

#[derive(Debug)]
pub(super) struct Named {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    hasher: FixedState,
    /// Entries that had no user when they were put here, by time.
    idle: VecDeque<(u64, u32)>,
    hold_ms: u64,
}

impl Named {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            hasher: FixedState::with_seed(seed),
            idle: VecDeque::new(),
            hold_ms: 0,
        }
    }

    /// Entries are kept at least as long as a window of `span_ms`.
    pub(super) fn hold_for(&mut self, span_ms: u64) {
        self.hold_ms = self.hold_ms.max(span_ms).min(HOLD_MS_MAX);
    }

    /// Finds or makes the entry of a name, and uses it until it is left.
    pub(super) fn enter<N>(&mut self, account: u32, name: N) -> u32
    where
        N: AsRef<str> + Into<Arc<str>>,
    {
        let hash = self.hash(account, name.as_ref());
        if let Some(slot) = self.find(account, name.as_ref(), hash) {
            if let Some(entry) = self.get_mut(slot) {
                entry.users += 1;
            }
            return slot;
        }
        let made = Entry {
            account,
            name: name.into(),
            slots: SmallVec::new(),
            users: 1,
            idle_ms: 0,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(NO_CLIENT)
        });
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            *entry = Some(made);
        }
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.by_name.insert_unique(hash, slot, |s| {
            let entry = entries.get(*s as usize).and_then(Option::as_ref);
            entry.map_or(0, |e| hasher.hash_one((e.account, &*e.name)))
        });
        slot
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn leave(&mut self, slot: u32, now_ms: u64) {
        let Some(entry) = self.get_mut(slot) else {
            return;
        };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            entry.idle_ms = now_ms;
            self.idle.push_back((now_ms, slot));
            if self.idle.len() > IDLE_MAX
                && let Some((since, oldest)) = self.idle.pop_front()
            {
                self.forget(oldest, since);
            }
        }
    }

    pub(super) fn name(&self, slot: u32) -> Option<(u32, Arc<str>)> {
        let entry = self.entries.get(slot as usize)?.as_ref()?;
        Some((entry.account, entry.name.clone()))
    }

    pub(super) fn slot(
        &mut self,
        at: u32,
        bucket: Bucket,
        limit: RateLimit,
        home: ShardId,
        here: ShardId,
        shards: u16,
    ) -> Option<&mut Slot> {
        let slots = &mut self.get_mut(at)?.slots;
        Some(slot_in(slots, bucket, limit, home, here, shards))
    }

    pub(super) fn known_slot(&mut self, at: u32, bucket: Bucket) -> Option<&mut Slot> {
        let slots = &mut self.get_mut(at)?.slots;
        let found = slots.iter_mut().find(|(own, ..)| *own == bucket);
        found.map(|(.., slot)| slot)
    }

    pub(super) fn find_slot(
        &mut self,
        account: u32,
        name: &str,
        bucket: Bucket,
    ) -> Option<&mut Slot> {
        let at = self.find(account, name, self.hash(account, name))?;
        self.known_slot(at, bucket)
    }

    pub(super) fn forget_idle(&mut self, now_ms: u64) {
        for _ in 0..FORGET_PER_TICK {
            match self.idle.front() {
                Some((since, _)) if now_ms.saturating_sub(*since) > self.hold_ms => {
                    if let Some((since, slot)) = self.idle.pop_front() {
                        self.forget(slot, since);
                    }
                }
                Some(_) | None => return,
            }
        }
    }

    /// Forgets an entry, unless it has been in use since it was put on the list.
    fn forget(&mut self, slot: u32, since: u64) {
        let is_idle = |e: &Entry| e.users == 0 && e.idle_ms == since;
        let entry = self.entries.get_mut(slot as usize);
        let Some(entry) = entry.filter(|e| e.as_ref().is_some_and(is_idle)) else {
            return;
        };
        if let Some(entry) = entry.take() {
            let hash = self.hash(entry.account, &entry.name);
            if let Ok(found) = self.by_name.find_entry(hash, |s| *s == slot) {
                found.remove();
                self.free.push(slot);
            }
        }
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    fn hash(&self, account: u32, name: &str) -> u64 {
        self.hasher.hash_one((account, name))
    }

    fn find(&self, account: u32, name: &str, hash: u64) -> Option<u32> {
        let is_it = |slot: &u32| {
            let entry = self.entries.get(*slot as usize).and_then(Option::as_ref);
            entry.is_some_and(|e| e.account == account && &*e.name == name)
        };
        self.by_name.find(hash, is_it).copied()
    }
}
