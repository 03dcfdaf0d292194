//! Deadlines of many connections at a resolution of one second.
//!
//! Each connection is in the wheel once. An entry that comes due is looked at and put back with
//! its next deadline, so activity costs nothing here.

use crate::ids::ConnId;

/// Buckets of one second; longer deadlines come round early and are put back.
const BUCKETS: u32 = 128;

#[derive(Debug)]
pub struct Wheel {
    buckets: Vec<Vec<ConnId>>,
    /// The last second that was handed out.
    at: u32,
}

impl Wheel {
    pub fn new(now_s: u32) -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            at: now_s,
        }
    }

    /// Schedules a look at `conn` at `due_s`, at the latest 127 seconds ahead.
    pub fn schedule(&mut self, conn: ConnId, due_s: u32) {
        let due = due_s.clamp(self.at + 1, self.at + BUCKETS - 1);
        if let Some(bucket) = self.buckets.get_mut((due % BUCKETS) as usize) {
            bucket.push(conn);
        }
    }

    /// Takes what is due up to `now_s`, one second's bucket at a time; `None` when all is done.
    pub fn take_due(&mut self, now_s: u32) -> Option<Vec<ConnId>> {
        if self.at >= now_s {
            return None;
        }
        // After a long stall one full round has seen every bucket.
        self.at = (self.at + 1).max(now_s.saturating_sub(BUCKETS));
        self.buckets
            .get_mut((self.at % BUCKETS) as usize)
            .map(std::mem::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: 0,
        }
    }

    fn due(wheel: &mut Wheel, now_s: u32) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some(batch) = wheel.take_due(now_s) {
            all.extend(batch.into_iter().map(|c| c.slot));
        }
        all
    }

    #[test]
    fn entries_come_due_at_their_second() {
        let mut wheel = Wheel::new(1000);
        wheel.schedule(conn(1), 1025);
        wheel.schedule(conn(2), 1090);
        wheel.schedule(conn(3), 900);
        assert_eq!(due(&mut wheel, 1001), [3]);
        assert!(due(&mut wheel, 1024).is_empty());
        assert_eq!(due(&mut wheel, 1025), [1]);
        assert!(due(&mut wheel, 1089).is_empty());
        assert_eq!(due(&mut wheel, 1090), [2]);
    }

    #[test]
    fn a_stall_longer_than_the_wheel_loses_nobody() {
        let mut wheel = Wheel::new(5);
        wheel.schedule(conn(1), 30);
        wheel.schedule(conn(2), 9999);
        let mut all = due(&mut wheel, 100_000);
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    }
}
