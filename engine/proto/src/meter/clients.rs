//! Leases of client ids on one shard.
//!
//! A client id has an entry while a connection of it is open here, and for a while after: coming back at once must not
//! give it debt anew. Entries without a connection are at most [`IDLE_MAX`]; of more, those that have been idle longest
//! are forgotten, which gives each at most its debt again.

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
/// Entries without a connection.
const IDLE_MAX: usize = 65_536;
/// Longest time that one is kept, ms.
const HOLD_MS_MAX: u64 = 10 * 60 * 1000;
/// Entries forgotten per tick.
const FORGET_PER_TICK: usize = 8192;

#[derive(Debug)]
struct Client {
    account: u32,
    id: Arc<str>,
    slots: SmallVec<[(Bucket, RateLimit, Slot); 1]>,
    connections: u32,
    /// Monotonic ms since which it has no connection.
    idle_ms: u64,
}

#[derive(Debug)]
pub(super) struct Clients {
    entries: Vec<Option<Client>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    hasher: FixedState,
    /// Entries that had no connection when they were put here, by time.
    idle: VecDeque<(u64, u32)>,
    hold_ms: u64,
}

impl Clients {
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

    pub(super) fn enter(&mut self, account: u32, id: &Arc<str>) -> u32 {
        let hash = self.hash(account, id);
        if let Some(slot) = self.find(account, id, hash) {
            if let Some(client) = self.get_mut(slot) {
                client.connections += 1;
            }
            return slot;
        }
        let client = Client {
            account,
            id: id.clone(),
            slots: SmallVec::new(),
            connections: 1,
            idle_ms: 0,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(NO_CLIENT)
        });
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            *entry = Some(client);
        }
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.by_name.insert_unique(hash, slot, |s| {
            let client = entries.get(*s as usize).and_then(Option::as_ref);
            client.map_or(0, |c| hasher.hash_one((c.account, &*c.id)))
        });
        slot
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn leave(&mut self, slot: u32, now_ms: u64) {
        let Some(client) = self.get_mut(slot) else {
            return;
        };
        client.connections = client.connections.saturating_sub(1);
        if client.connections == 0 {
            client.idle_ms = now_ms;
            self.idle.push_back((now_ms, slot));
            if self.idle.len() > IDLE_MAX
                && let Some((since, oldest)) = self.idle.pop_front()
            {
                self.forget(oldest, since);
            }
        }
    }

    pub(super) fn name(&self, slot: u32) -> Option<(u32, Arc<str>)> {
        let client = self.entries.get(slot as usize)?.as_ref()?;
        Some((client.account, client.id.clone()))
    }

    pub(super) fn slot(
        &mut self,
        client: u32,
        bucket: Bucket,
        limit: RateLimit,
        home: ShardId,
        here: ShardId,
        shards: u16,
    ) -> Option<&mut Slot> {
        let client = self.get_mut(client)?;
        Some(slot_in(
            &mut client.slots,
            bucket,
            limit,
            home,
            here,
            shards,
        ))
    }

    pub(super) fn known_slot(&mut self, client: u32, bucket: Bucket) -> Option<&mut Slot> {
        let slots = &mut self.get_mut(client)?.slots;
        let found = slots.iter_mut().find(|(own, ..)| *own == bucket);
        found.map(|(.., slot)| slot)
    }

    pub(super) fn find_slot(
        &mut self,
        account: u32,
        id: &str,
        bucket: Bucket,
    ) -> Option<&mut Slot> {
        let client = self.find(account, id, self.hash(account, id))?;
        self.known_slot(client, bucket)
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
        let is_idle = |c: &Client| c.connections == 0 && c.idle_ms == since;
        let entry = self.entries.get_mut(slot as usize);
        let Some(entry) = entry.filter(|e| e.as_ref().is_some_and(is_idle)) else {
            return;
        };
        if let Some(client) = entry.take() {
            let hash = self.hash(client.account, &client.id);
            if let Ok(found) = self.by_name.find_entry(hash, |s| *s == slot) {
                found.remove();
                self.free.push(slot);
            }
        }
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut Client> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    fn hash(&self, account: u32, id: &str) -> u64 {
        self.hasher.hash_one((account, id))
    }

    fn find(&self, account: u32, id: &str, hash: u64) -> Option<u32> {
        let is_it = |slot: &u32| {
            let client = self.entries.get(*slot as usize).and_then(Option::as_ref);
            client.is_some_and(|c| c.account == account && &*c.id == id)
        };
        self.by_name.find(hash, is_it).copied()
    }
}
