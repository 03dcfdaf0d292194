//! Commands that wait until their slot can be served again, while those of other slots go on.
//!
//! Redis answers a command of several keys with `TRYAGAIN` from the first key of its slot that migrates to the last: a
//! script names keys that need not exist, and what does not exist may as well have left. Pure: time is passed in.
//!
//! Invariants: what is of one slot keeps its order; what is parked is tried again within [`AFTER_MAX`].

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Until the first attempt after a refusal, and the longest between two.
const AFTER_MIN: Duration = Duration::from_millis(10);
const AFTER_MAX: Duration = Duration::from_millis(80);

/// Bounded by whoever fills it: what is in here has its room in the broker's queue.
#[derive(Debug)]
pub(super) struct Parked<T> {
    items: VecDeque<T>,
    slots: BTreeSet<u16>,
    due: Option<Instant>,
    after: Duration,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            slots: BTreeSet::new(),
            due: None,
            after: AFTER_MIN,
        }
    }
}

impl<T> Parked<T> {
    /// Whether something of this slot waits, so that what comes later has to as well.
    pub(super) fn has(&self, slot: u16) -> bool {
        self.slots.contains(&slot)
    }

    /// Behind all that waits already.
    pub(super) fn push(&mut self, slot: u16, item: T, now: Instant) {
        self.due.get_or_insert(now + self.after);
        self.slots.insert(slot);
        self.items.push_back(item);
    }

    /// Until it is to be tried again; `None` where nothing waits.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }

    /// All of it, in its order, once it is due. Each time that it has to be parked again it waits twice as long.
    pub(super) fn release(&mut self, now: Instant) -> VecDeque<T> {
        if self.due.is_none_or(|due| due > now) {
            return VecDeque::new();
        }
        self.after = (self.after * 2).min(AFTER_MAX);
        self.take()
    }

    /// All of it at once.
    pub(super) fn take(&mut self) -> VecDeque<T> {
        self.slots.clear();
        self.due = None;
        std::mem::take(&mut self.items)
    }

    /// A pipeline was carried out: where nothing waits, the next refusal is a first one.
    pub(super) fn settled(&mut self) {
        if self.items.is_empty() {
            self.after = AFTER_MIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_each_time_up_to_its_bound_and_keeps_the_order() {
        let mut parked = Parked::default();
        let mut now = Instant::now();
        for wait in [10, 20, 40, 80, 80] {
            parked.push(7, 'a', now);
            parked.push(9, 'b', now + Duration::from_millis(3));
            assert_eq!(parked.wait(now), Some(Duration::from_millis(wait)));
            assert!(parked.has(7) && parked.has(9) && !parked.has(8));
            assert!(
                parked
                    .release(now + Duration::from_millis(wait - 1))
                    .is_empty()
            );
            now += Duration::from_millis(wait);
            assert_eq!(parked.release(now), ['a', 'b']);
            assert!(!parked.has(7) && parked.wait(now).is_none());
        }
        parked.settled();
        parked.push(7, 'a', now);
        assert_eq!(parked.wait(now), Some(AFTER_MIN));
        parked.settled();
        assert_eq!(parked.take(), ['a']);
    }
}
