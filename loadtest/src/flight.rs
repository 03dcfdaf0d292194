//! When a message has reached its last subscriber.
//!
//! Each thread counts arrivals at its own subscribers in a [`Window`]; a thread that has counted all of
//! its own reports to [`SharedFlights`], and the report that completes the message says so. Neither
//! checks order or loss (see `order`): a message overtaken by a whole window is given up silently here.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Sequence plus one; 0 is unused.
    tag: u32,
    count: u32,
}

/// Arrivals per (stream, sequence) on one thread.
pub struct Window {
    mask: u32,
    slots: Vec<Slot>,
}

impl Window {
    /// For `streams` streams with `window` slots each (a power of two).
    pub fn new(streams: usize, window: u32) -> Self {
        debug_assert!(window.is_power_of_two());
        Self {
            mask: window - 1,
            slots: vec![Slot::default(); streams * window as usize],
        }
    }

    /// Counts one arrival; true when it is the `needed`-th.
    pub fn arrived(&mut self, stream: u32, seq: u32, needed: u32) -> bool {
        let index = stream as usize * (self.mask as usize + 1) + (seq & self.mask) as usize;
        let slot = &mut self.slots[index];
        let tag = seq.wrapping_add(1);
        if slot.tag != tag {
            if slot.tag > tag {
                return false;
            }
            *slot = Slot { tag, count: 0 };
        }
        slot.count += 1;
        slot.count == needed
    }
}

/// Threads done per (stream, sequence), for channels whose subscribers are on several threads.
pub struct SharedFlights {
    mask: u32,
    /// Tag (sequence plus one) in the upper half, count in the lower.
    slots: Vec<AtomicU64>,
}

impl SharedFlights {
    /// As [`Window::new`].
    pub fn new(streams: usize, window: u32) -> Self {
        debug_assert!(window.is_power_of_two());
        let slots = (0..streams * window as usize)
            .map(|_| AtomicU64::new(0))
            .collect();
        Self {
            mask: window - 1,
            slots,
        }
    }

    /// Counts one thread; true when it is the `needed`-th.
    pub fn thread_done(&self, stream: u32, seq: u32, needed: u32) -> bool {
        let index = stream as usize * (self.mask as usize + 1) + (seq & self.mask) as usize;
        let tag = u64::from(seq.wrapping_add(1)) << 32;
        let step = |old: u64| match (old & !0xffff_ffff).cmp(&tag) {
            std::cmp::Ordering::Equal => Some(old + 1),
            std::cmp::Ordering::Less => Some(tag | 1),
            std::cmp::Ordering::Greater => None,
        };
        match self.slots[index].fetch_update(Ordering::AcqRel, Ordering::Acquire, step) {
            Ok(old) => step(old).is_some_and(|now| now == tag | u64::from(needed)),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_arrival_completes() {
        let mut window = Window::new(2, 4);
        assert!(!window.arrived(1, 9, 3));
        assert!(!window.arrived(1, 10, 3));
        assert!(!window.arrived(1, 9, 3));
        assert!(window.arrived(1, 9, 3));
        assert!(!window.arrived(1, 9, 3));
        assert!(window.arrived(0, 9, 1));
    }

    #[test]
    fn a_slot_taken_over_forgets_the_older_message() {
        let mut window = Window::new(1, 2);
        assert!(!window.arrived(0, 0, 2));
        assert!(!window.arrived(0, 2, 2));
        assert!(!window.arrived(0, 0, 2));
        assert!(window.arrived(0, 2, 2));
    }

    #[test]
    fn shared_flights_need_every_thread_once() {
        let flights = SharedFlights::new(1, 2);
        assert!(!flights.thread_done(0, 0, 2));
        assert!(flights.thread_done(0, 0, 2));
        assert!(!flights.thread_done(0, 2, 2));
        assert!(!flights.thread_done(0, 0, 2), "overtaken");
        assert!(flights.thread_done(0, 2, 2));
        assert!(flights.thread_done(0, 3, 1));
    }
}
