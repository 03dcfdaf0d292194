//! The newest messages of the channels that one shard is home to, in memory: what rewind and
//! resume need most is read without the store.
//!
//! Each channel's ring is its newest messages without a hole. All rings of a shard share one
//! budget: beyond it the shard's oldest message goes, whichever channel it is of, so channels that
//! fall idle give up their memory to those in use.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::record::Record;

/// One channel's newest messages, oldest first.
#[derive(Debug, Default)]
pub struct Ring {
    /// With the time up to which a message may have been delivered, see [`Ring::iter_delivered`].
    records: VecDeque<(Arc<Record>, u64)>,
}

impl Ring {
    /// Sequence of the oldest message held.
    pub fn first_sequence(&self) -> Option<u64> {
        self.records.front().map(|(r, _)| r.sequence)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Oldest first, newest first from the back.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Record>> + ExactSizeIterator {
        self.records.iter().map(|(record, _)| record)
    }

    /// Likewise, with the server's time, ms, by which a message that was delivered to a connection
    /// had been: later than any of those, a connection may not have got it.
    pub fn iter_delivered(&self) -> impl DoubleEndedIterator<Item = (&Arc<Record>, u64)> {
        self.records.iter().map(|(record, by)| (record, *by))
    }

    pub fn clear(&mut self) {
        self.records = VecDeque::new();
    }

    fn push(&mut self, record: Arc<Record>, delivered_by: u64) {
        let follows = self
            .records
            .back()
            .is_none_or(|(last, _)| last.sequence + 1 == record.sequence);
        debug_assert!(follows, "a ring has no hole");
        if !follows {
            self.clear();
        }
        self.records.push_back((record, delivered_by));
    }

    /// Drops messages up to a sequence.
    pub fn drop_through(&mut self, sequence: u64) {
        while self
            .records
            .front()
            .is_some_and(|(r, _)| r.sequence <= sequence)
        {
            self.records.pop_front();
        }
        if self.records.is_empty() {
            self.records = VecDeque::new();
        }
    }
}

/// What all rings of a shard hold together.
#[derive(Debug)]
pub struct RingBudget {
    /// Messages in the order in which they came: channel slot, channel number, sequence, weight,
    /// and timestamp.
    order: VecDeque<Held>,
    bytes: usize,
    bytes_max: usize,
    age_ms_max: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub slot: u32,
    /// The channel's number: tells tenants of the slot apart.
    pub number: u64,
    pub sequence: u64,
    weight: u32,
    timestamp: u64,
}

impl RingBudget {
    pub fn new(bytes_max: usize, age_ms_max: u64) -> Self {
        Self {
            order: VecDeque::new(),
            bytes: 0,
            bytes_max,
            age_ms_max,
        }
    }

    /// Bytes held, messages that their ring has let go of already included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a message into its channel's ring; for `delivered_by` see [`Ring::iter_delivered`].
    pub fn push(
        &mut self,
        ring: &mut Ring,
        (slot, number): (u32, u64),
        record: Arc<Record>,
        delivered_by: u64,
    ) {
        let weight = u32::try_from(record.weight() + size_of::<Held>()).unwrap_or(u32::MAX);
        self.bytes += weight as usize;
        self.order.push_back(Held {
            slot,
            number,
            sequence: record.sequence,
            weight,
            timestamp: record.timestamp,
        });
        ring.push(record, delivered_by);
    }

    /// The next message that has to go, for being too many or too old; the caller drops it from
    /// its ring.
    pub fn take_excess(&mut self, unix_ms: u64) -> Option<Held> {
        let oldest = self.order.front()?;
        let too_old = unix_ms.saturating_sub(oldest.timestamp) > self.age_ms_max;
        if self.bytes <= self.bytes_max && !too_old {
            return None;
        }
        let held = self.order.pop_front()?;
        self.bytes -= held.weight as usize;
        Some(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, timestamp: u64) -> Arc<Record> {
        Arc::new(Record {
            sequence,
            timestamp,
            id: "i".into(),
            publisher: "p".into(),
            data: "x".repeat(1000).into(),
        })
    }

    #[test]
    fn the_oldest_goes_first_whichever_channel_it_is_of() {
        let (mut a, mut b) = (Ring::default(), Ring::default());
        let mut budget = RingBudget::new(3500, u64::MAX);
        for n in 1..=2 {
            budget.push(&mut a, (0, 7), record(n, n), 0);
        }
        for n in 1..=2 {
            budget.push(&mut b, (1, 8), record(n, 10 + n), 0);
        }
        let held = budget.take_excess(20).unwrap();
        assert_eq!((held.slot, held.number, held.sequence), (0, 7, 1));
        a.drop_through(held.sequence);
        assert_eq!(a.first_sequence(), Some(2));
        assert!(budget.take_excess(20).is_none());
    }

    #[test]
    fn old_messages_go_within_the_budget_too() {
        let mut ring = Ring::default();
        let mut budget = RingBudget::new(1 << 20, 1000);
        budget.push(&mut ring, (0, 1), record(1, 5000), 0);
        assert!(budget.take_excess(6000).is_none());
        assert_eq!(budget.take_excess(6001).unwrap().sequence, 1);
        assert_eq!(budget.bytes(), 0);
    }
}
