//! Recognising a message id that was published before (contract D15).
//!
//! One [`DedupTable`] per home shard holds the ids of all its channels: entries in order of arrival, their ids end to
//! end in one byte queue, and an index from hash to entry. So a channel without publishes costs nothing, and an entry
//! costs no allocation of its own: 48 bytes, its id, and about 8 bytes of index. All that is cut by hash into parts of
//! at most 4096 entries, because a part that grows is moved as a whole while its shard waits: one table of a million
//! entries stood still for tens of milliseconds.
//!
//! It does not give out sequences and does not make acks; it returns what the caller stored. Invariants: a hit has the
//! very id and channel that were asked for, and is younger than the window; the table never holds more than its bound:
//! when a part is full, its oldest entry goes first, though the window is not over, and is counted. Each operation does
//! a bounded amount of work, expiry included.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use hashbrown::HashTable;

use crate::limits::{DEDUP_ENTRIES_MAX, DEDUP_WINDOW_MS, MESSAGE_ID_BYTES_MAX};

/// Entries of one part at most: moving so many takes well under a millisecond.
const PART_ENTRIES_MAX: usize = 4096;
/// Expired entries removed by each insert: more than one, so that a part shrinks while in use.
const EXPIRE_PER_INSERT: usize = 2;
/// Entries up to which an emptied part keeps its memory.
const KEEP_ENTRIES: usize = 64;

/// What the first publish of an id was acknowledged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Server clock in milliseconds.
    pub timestamp: u64,
    /// Place in the channel, from 1; `None` for an ephemeral message.
    pub sequence: Option<u64>,
}

/// The ids published to the channels of one home shard within the window.
///
/// **Time does not step back between calls; the caller inserts only what [`lookup`](Self::lookup) did not find.**
#[derive(Debug)]
pub struct DedupTable {
    parts: Box<[Part]>,
    part_entries_max: usize,
    window_ms: u64,
    evicted: u64,
    hasher: foldhash::fast::RandomState,
}

impl DedupTable {
    /// A table that remembers ids for `window_ms` milliseconds, at most `entries_max` of them (bounded to 1..=2^24).
    #[must_use]
    pub fn new(window_ms: u64, entries_max: usize) -> Self {
        let entries_max = entries_max.clamp(1, 1 << 24);
        let parts = entries_max.div_ceil(PART_ENTRIES_MAX);
        Self {
            parts: (0..parts).map(|_| Part::default()).collect(),
            part_entries_max: entries_max / parts,
            window_ms,
            evicted: 0,
            hasher: foldhash::fast::RandomState::default(),
        }
    }

    /// Remembers that `id` was published to `channel` at `now_ms`. An id longer than [`MESSAGE_ID_BYTES_MAX`] is not
    /// remembered: it is never taken from a publisher.
    ///
    /// `channel` is any number that stands for this channel alone for as long as the window: not an index that another
    /// channel may get sooner, whose publishes would pass for repeats.
    pub fn insert(&mut self, channel: u64, id: &str, entry: Entry, now_ms: u64) {
        debug_assert!(self.lookup(channel, id, now_ms).is_none(), "inserted twice");
        let Some(id_len) = u8::try_from(id.len())
            .ok()
            .filter(|_| id.len() <= MESSAGE_ID_BYTES_MAX)
        else {
            return;
        };
        let hash = self.hash(channel, id);
        let (window_ms, entries_max, part) =
            (self.window_ms, self.part_entries_max, self.part_index(hash));
        let Some(part) = self.parts.get_mut(part) else {
            return;
        };
        part.expire(now_ms, window_ms, EXPIRE_PER_INSERT);
        if part.slots.len() >= entries_max {
            part.remove_oldest();
            self.evicted += 1;
        }
        let slot = Slot {
            timestamp: entry.timestamp,
            sequence: entry.sequence.unwrap_or(0),
            channel,
            inserted_ms: now_ms,
            hash,
            id_start: 0,
            id_len,
        };
        part.push(slot, id.as_bytes());
    }

    /// Removes up to `at_most` entries whose window is over at `now_ms`, and returns how many. For a timer, so that a
    /// quiet table gives its memory back.
    pub fn expire(&mut self, now_ms: u64, at_most: usize) -> usize {
        let window_ms = self.window_ms;
        self.parts.iter_mut().fold(0, |removed, part| {
            removed + part.expire(now_ms, window_ms, at_most - removed)
        })
    }

    /// What `id` on `channel` was first acknowledged with, if that was less than the window before `now_ms`.
    #[must_use]
    pub fn lookup(&self, channel: u64, id: &str, now_ms: u64) -> Option<Entry> {
        let hash = self.hash(channel, id);
        let part = self.parts.get(self.part_index(hash))?;
        let slot = part.find(hash, |slot| {
            slot.channel == channel
                && slot.is_live(now_ms, self.window_ms)
                && part.has_id(slot, id.as_bytes())
        })?;
        Some(Entry {
            timestamp: slot.timestamp,
            sequence: (slot.sequence != 0).then_some(slot.sequence),
        })
    }

    /// Forgets `id`, whose message failed: it may be published again.
    pub fn forget(&mut self, channel: u64, id: &str) {
        let hash = self.hash(channel, id);
        let index = self.part_index(hash);
        if let Some(part) = self.parts.get_mut(index) {
            part.forget(hash, channel, id.as_bytes());
        }
    }

    /// Entries held, expired ones not yet removed included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.slots.len()).sum()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.slots.is_empty())
    }

    /// Entries that had to go before their window was over, since the table was made. For a metric: while it rises, the
    /// window is shorter than promised.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The upper half of the hash, which foldhash mixes best: enough to spread 2^24 entries.
    fn hash(&self, channel: u64, id: &str) -> u32 {
        (self.hasher.hash_one((channel, id)) >> 32) as u32
    }

    /// Maps the whole range of the hash evenly onto the parts.
    fn part_index(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.parts.len() as u64) >> 32) as usize
    }
}

impl Default for DedupTable {
    fn default() -> Self {
        Self::new(DEDUP_WINDOW_MS, DEDUP_ENTRIES_MAX)
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    timestamp: u64,
    /// 0 for none: sequences start at 1.
    sequence: u64,
    channel: u64,
    inserted_ms: u64,
    /// Kept so that growth and removal do not hash the id again.
    hash: u32,
    /// Position of the id in the part's endless row of ids, wrapping.
    id_start: u32,
    id_len: u8,
}

const _: () = assert!(MESSAGE_ID_BYTES_MAX <= u8::MAX as usize, "id_len is a byte");
const _: () = assert!(
    PART_ENTRIES_MAX * MESSAGE_ID_BYTES_MAX <= u32::MAX as usize,
    "positions are u32"
);
const _: () = assert!(size_of::<Slot>() <= 48);

impl Slot {
    fn is_live(&self, now_ms: u64, window_ms: u64) -> bool {
        now_ms.saturating_sub(self.inserted_ms) < window_ms
    }
}

/// Channel of a forgotten entry.
const NO_CHANNEL: u64 = u64::MAX;

/// The entries of one range of hashes.
#[derive(Debug, Default)]
struct Part {
    /// Hash to entry number.
    index: HashTable<u32>,
    /// Oldest first.
    slots: VecDeque<Slot>,
    /// The ids of `slots`, in the same order, end to end.
    ids: VecDeque<u8>,
    /// Number of the oldest entry; numbers rise by one and wrap.
    first_number: u32,
    /// Position of the first byte of `ids` in the endless row of ids, wrapping.
    first_byte: u32,
}

impl Part {
    fn push(&mut self, slot: Slot, id: &[u8]) {
        let number = self.first_number.wrapping_add(self.slots.len() as u32);
        let id_start = self.first_byte.wrapping_add(self.ids.len() as u32);
        self.slots.push_back(Slot { id_start, ..slot });
        self.ids.extend(id);
        let (slots, first) = (&self.slots, self.first_number);
        let hash_of =
            |number: &u32| slot_at(slots, first, *number).map_or(0, |slot| spread(slot.hash));
        self.index.insert_unique(spread(slot.hash), number, hash_of);
    }

    /// The entry stays in its place in time, as one of no channel.
    fn forget(&mut self, hash: u32, channel: u64, id: &[u8]) {
        let found = self.index.find(spread(hash), |number| {
            slot_at(&self.slots, self.first_number, *number).is_some_and(|slot| {
                slot.hash == hash && slot.channel == channel && self.has_id(slot, id)
            })
        });
        if let Some(slot) = found
            .map(|number| number.wrapping_sub(self.first_number) as usize)
            .and_then(|index| self.slots.get_mut(index))
        {
            slot.channel = NO_CHANNEL;
        }
    }

    fn expire(&mut self, now_ms: u64, window_ms: u64, at_most: usize) -> usize {
        let mut removed = 0;
        while removed < at_most
            && self
                .slots
                .front()
                .is_some_and(|slot| !slot.is_live(now_ms, window_ms))
        {
            self.remove_oldest();
            removed += 1;
        }
        if self.slots.is_empty() && self.slots.capacity() > KEEP_ENTRIES {
            *self = Self::default();
        }
        removed
    }

    fn remove_oldest(&mut self) {
        let Some(slot) = self.slots.pop_front() else {
            return;
        };
        let number = self.first_number;
        self.first_number = number.wrapping_add(1);
        self.first_byte = self.first_byte.wrapping_add(u32::from(slot.id_len));
        self.ids.drain(..usize::from(slot.id_len));
        let entry = self
            .index
            .find_entry(spread(slot.hash), |other| *other == number);
        debug_assert!(entry.is_ok(), "every slot is indexed");
        if let Ok(entry) = entry {
            entry.remove();
        }
    }

    fn find(&self, hash: u32, is_it: impl Fn(&Slot) -> bool) -> Option<&Slot> {
        let slot = |number: &u32| slot_at(&self.slots, self.first_number, *number);
        let found = self.index.find(spread(hash), |number| {
            slot(number).is_some_and(|slot| slot.hash == hash && is_it(slot))
        });
        found.and_then(slot)
    }

    fn has_id(&self, slot: &Slot, id: &[u8]) -> bool {
        if usize::from(slot.id_len) != id.len() {
            return false;
        }
        let start = slot.id_start.wrapping_sub(self.first_byte) as usize;
        let (head, tail) = self.ids.as_slices();
        let Some(in_head) = head.get(start..) else {
            return tail
                .get(start - head.len()..)
                .is_some_and(|stored| stored.starts_with(id));
        };
        match id.split_at_checked(in_head.len()) {
            None => in_head.starts_with(id),
            Some((first, rest)) => in_head == first && tail.starts_with(rest),
        }
    }
}

fn slot_at(slots: &VecDeque<Slot>, first_number: u32, number: u32) -> Option<&Slot> {
    slots.get(number.wrapping_sub(first_number) as usize)
}

/// Both ends of the word vary again: the index takes its bucket from the low bits and its tag from the high ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(n: u64) -> Entry {
        Entry {
            timestamp: n,
            sequence: Some(n),
        }
    }

    #[test]
    fn a_forgotten_id_is_as_good_as_new() {
        let mut table = DedupTable::new(1000, 10);
        table.insert(1, "a", entry(1), 0);
        table.insert(1, "b", entry(2), 0);
        table.forget(1, "a");
        assert_eq!(table.lookup(1, "a", 1), None);
        assert_eq!(table.lookup(1, "b", 1), Some(entry(2)));
        table.insert(1, "a", entry(3), 1);
        assert_eq!(table.lookup(1, "a", 1), Some(entry(3)));
        assert_eq!(table.expire(5000, 100), 3);
    }

    #[test]
    fn a_repeat_is_found_until_the_window_is_over() {
        let mut table = DedupTable::new(1000, 10);
        table.insert(
            1,
            "id",
            Entry {
                timestamp: 5,
                sequence: None,
            },
            100,
        );
        assert_eq!(
            table.lookup(1, "id", 1099),
            Some(Entry {
                timestamp: 5,
                sequence: None
            })
        );
        assert_eq!(table.lookup(1, "id", 1100), None);
        assert_eq!(table.lookup(2, "id", 100), None, "another channel");
        assert_eq!(table.lookup(1, "i", 100), None);
        assert_eq!(table.lookup(1, "ie", 100), None);
    }

    #[test]
    fn an_id_may_come_again_after_its_window_though_the_old_entry_is_still_held() {
        let mut table = DedupTable::new(1000, 10);
        for n in 0..5 {
            table.insert(n, "old", entry(1), 0);
        }
        table.insert(4, "old", entry(77), 1000);
        assert_eq!(table.len(), 4, "two of five went with the insert");
        assert_eq!(table.lookup(4, "old", 1000), Some(entry(77)));
    }

    #[test]
    fn many_parts_share_the_load_and_the_bound() {
        let mut table = DedupTable::new(1000, 100_000);
        for n in 0..90_000_u64 {
            table.insert(n % 100, &n.to_string(), entry(n + 1), 0);
        }
        assert!(
            table.evicted() < 500,
            "{} gone early from parts 90 % full",
            table.evicted()
        );
        assert_eq!(table.len() as u64 + table.evicted(), 90_000);
        assert_eq!(table.lookup(99, "89999", 0), Some(entry(90_000)));
        for n in 90_000..300_000_u64 {
            table.insert(n % 100, &n.to_string(), entry(n + 1), 0);
        }
        assert_eq!(table.len(), 100_000);
    }

    #[test]
    fn a_full_table_lets_the_oldest_go_and_counts_it() {
        let mut table = DedupTable::new(1000, 3);
        for n in 1..=5 {
            table.insert(1, &n.to_string(), entry(n), 0);
        }
        assert_eq!((table.len(), table.evicted()), (3, 2));
        assert_eq!(table.lookup(1, "2", 0), None);
        assert_eq!(table.lookup(1, "3", 0), Some(entry(3)));
    }

    #[test]
    fn a_burst_gives_its_memory_back() {
        let mut table = DedupTable::new(1000, 1 << 20);
        for n in 0..10_000_u64 {
            table.insert(1, &n.to_string(), entry(n + 1), 0);
        }
        assert_eq!(table.expire(999, 20_000), 0);
        assert_eq!(table.expire(1000, 9_999), 9_999);
        assert_eq!(table.expire(1000, 9_999), 1);
        assert!(table.is_empty());
        for part in &table.parts {
            assert!(
                part.slots.capacity() <= KEEP_ENTRIES && part.index.capacity() <= 2 * KEEP_ENTRIES
            );
        }
    }

    #[test]
    fn an_overlong_id_is_not_remembered() {
        let mut table = DedupTable::default();
        table.insert(1, &"x".repeat(129), entry(1), 0);
        table.insert(1, &"x".repeat(300), entry(1), 0);
        assert!(table.is_empty());
    }

    #[test]
    fn numbers_and_positions_wrap() {
        let mut table = DedupTable::new(1000, 7);
        let part = &mut table.parts[0];
        (part.first_number, part.first_byte) = (u32::MAX - 3, u32::MAX - 10);
        for n in 0..100_u64 {
            table.insert(1, &format!("id-{n}"), entry(n + 1), 0);
            for seen in n.saturating_sub(6)..=n {
                assert_eq!(
                    table.lookup(1, &format!("id-{seen}"), 0),
                    Some(entry(seen + 1))
                );
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(
            entries_max in 1..40_usize,
            publishes in prop::collection::vec((0..3_u64, "[ab]{1,3}|[ab]{120,128}", 0..60_u64), 1..300),
        ) {
            let mut table = DedupTable::new(500, entries_max);
            let mut list: Vec<(u64, String, u64, Entry)> = Vec::new();
            let mut now = 0;
            for (n, (channel, id, step)) in publishes.into_iter().enumerate() {
                now += step;
                let entry = Entry { timestamp: now, sequence: (n % 3 != 0).then_some(n as u64) };
                let known = list.iter().rev().find(|(c, i, at, _)| *c == channel && *i == id && now - at < 500);
                prop_assert_eq!(table.lookup(channel, &id, now), known.map(|known| known.3));
                if known.is_none() {
                    table.insert(channel, &id, entry, now);
                    // As the table states it: up to two expired, then the oldest if full.
                    let expired = list.iter().take(2).take_while(|(_, _, at, _)| now - at >= 500).count();
                    list.drain(..expired);
                    if list.len() == entries_max {
                        list.remove(0);
                    }
                    list.push((channel, id, now, entry));
                }
                prop_assert_eq!(table.len(), list.len());
            }
        }
    }
}
