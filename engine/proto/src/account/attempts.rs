//! Who fails too often: by whatever names an attempt, in a bounded table.
//!
//! After a few failures each further one doubles the wait, up to a bound: a person who mistypes hardly notices, a machine
//! that guesses gets a hundred tries a day. It never locks for good, as that would let anybody lock others out.

use hashbrown::HashMap;

/// Names in the table. A full one forgets those that have been quiet, and if there are none, all.
const NAMES_MAX: usize = 16_384;
/// The first wait, ms.
const FIRST_WAIT_MS: u64 = 1000;
/// The longest wait, ms.
const WAIT_MS_MAX: u64 = 15 * 60 * 1000;
/// Quiet for this long, a name is forgotten.
const QUIET_MS: u64 = 60 * 60 * 1000;

/// Failures by name.
#[derive(Debug, Default)]
pub struct Attempts(HashMap<String, Failed, foldhash::fast::RandomState>);

#[derive(Debug, Default, Clone, Copy)]
struct Failed {
    count: u32,
    last_ms: u64,
}

impl Attempts {
    /// Milliseconds to wait before the next attempt under this name, of which `free` cost nothing; 0: it may be made.
    #[must_use]
    pub fn wait_ms(&self, name: &str, free: u32, now_ms: u64) -> u64 {
        let Some(failed) = self.0.get(name) else {
            return 0;
        };
        let Some(over) = failed.count.checked_sub(free) else {
            return 0;
        };
        let wait_ms = FIRST_WAIT_MS
            .saturating_mul(1 << over.min(20))
            .min(WAIT_MS_MAX);
        failed
            .last_ms
            .saturating_add(wait_ms)
            .saturating_sub(now_ms)
    }

    /// Counts a failure.
    pub fn note(&mut self, name: &str, now_ms: u64) {
        if self.0.len() >= NAMES_MAX && !self.0.contains_key(name) {
            self.0
                .retain(|_, failed| now_ms.saturating_sub(failed.last_ms) < QUIET_MS);
            if self.0.len() >= NAMES_MAX {
                self.0.clear();
            }
        }
        let failed = self.0.entry_ref(name).or_default();
        if now_ms.saturating_sub(failed.last_ms) >= QUIET_MS {
            failed.count = 0;
        }
        failed.count = failed.count.saturating_add(1);
        failed.last_ms = now_ms;
    }

    /// Forgets a name: its owner has shown who they are.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_forgotten() {
        let mut attempts = Attempts::default();
        for _ in 0..4 {
            attempts.note("a", 0);
            assert_eq!(attempts.wait_ms("a", 5, 0), 0);
        }
        let waits: Vec<u64> = (0..12)
            .map(|_| {
                attempts.note("a", 0);
                attempts.wait_ms("a", 5, 0) / 1000
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        assert_eq!(attempts.wait_ms("a", 5, 900_000), 0);
        assert_eq!(attempts.wait_ms("b", 5, 0), 0);
        attempts.note("a", QUIET_MS);
        assert_eq!(attempts.wait_ms("a", 5, QUIET_MS), 0);
        attempts.forget("a");
        assert_eq!(attempts.wait_ms("a", 0, QUIET_MS), 0);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut attempts = Attempts::default();
        for n in 0..NAMES_MAX + 10 {
            attempts.note(&n.to_string(), 1);
        }
        assert!(attempts.0.len() <= NAMES_MAX);
    }
}
