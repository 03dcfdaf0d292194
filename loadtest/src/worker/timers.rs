//! What a generator thread has to do at set times, in one heap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The next message of an open-loop stream.
    Stream(u32),
    /// The next connect of an open-loop churn.
    Churn,
    /// The next connection is to be cut.
    Cut,
    /// Another try to connect a slot.
    Retry(u32),
    /// A look at stalled streams.
    Tick,
}

/// Pending times, in nanoseconds of the run's clock.
#[derive(Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(u64, Due)>>,
}

impl Timers {
    pub(super) fn at(&mut self, ns: u64, due: Due) {
        self.heap.push(Reverse((ns, due)));
    }

    /// The earliest entry, removed, if its time has come.
    pub(super) fn pop_due(&mut self, now_ns: u64) -> Option<(u64, Due)> {
        let &Reverse((ns, _)) = self.heap.peek()?;
        if ns > now_ns {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }

    pub(super) fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|&Reverse((ns, _))| ns)
    }

    /// Forgets what belongs to the load, keeps retries and ticks.
    pub(super) fn stop_load(&mut self) {
        self.heap
            .retain(|Reverse((_, due))| matches!(due, Due::Retry(_) | Due::Tick));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_and_not_early() {
        let mut timers = Timers::default();
        timers.at(30, Due::Tick);
        timers.at(10, Due::Stream(4));
        timers.at(20, Due::Churn);
        assert_eq!(timers.next_ns(), Some(10));
        assert_eq!(timers.pop_due(9), None);
        assert_eq!(timers.pop_due(25), Some((10, Due::Stream(4))));
        assert_eq!(timers.pop_due(25), Some((20, Due::Churn)));
        assert_eq!(timers.pop_due(25), None);
        timers.at(5, Due::Stream(1));
        timers.stop_load();
        assert_eq!(timers.pop_due(100), Some((30, Due::Tick)));
    }
}
