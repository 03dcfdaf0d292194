//! Proof of life for the service manager: as long as every shard has moved.
//!
//! A process whose main thread runs while a shard hangs is not well: its clients are served by nobody. So each shard
//! counts up, and the service manager hears of it only while all do ([`Watchdog::is_due`]). Not here: sending
//! ([`crate::notify`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The counter of each shard, which it raises once in a while ([`Watchdog::period`]).
#[derive(Debug, Clone)]
pub struct Beats(Arc<[AtomicU64]>);

impl Beats {
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| AtomicU64::new(0)).collect())
    }

    /// Called by a shard, on its own thread.
    pub fn beat(&self, shard: usize) {
        if let Some(beats) = self.0.get(shard) {
            beats.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Vec<u64> {
        self.0
            .iter()
            .map(|beats| beats.load(Ordering::Relaxed))
            .collect()
    }
}

/// Decides when to send a sign of life.
#[derive(Debug)]
pub struct Watchdog {
    beats: Beats,
    interval: Duration,
    /// What the counters were when each shard was last seen to move.
    seen: Vec<(u64, Instant)>,
    sent: Option<Instant>,
    /// Shards that stand still and have been told of.
    silent: Vec<usize>,
}

impl Watchdog {
    /// `interval` is the service manager's: without a sign of life for so long it ends the process.
    #[must_use]
    pub fn new(beats: Beats, interval: Duration, now: Instant) -> Self {
        let seen = beats.read().into_iter().map(|count| (count, now)).collect();
        Self {
            beats,
            interval,
            seen,
            sent: None,
            silent: Vec::new(),
        }
    }

    /// How often shards count and this is asked.
    #[must_use]
    pub fn period(interval: Duration) -> Duration {
        (interval / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }

    /// Whether to send a sign of life at `now`: a third of the interval has passed since the last, and no shard has
    /// stood still for half of it.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let mut silent = Vec::new();
        for (shard, (count, seen)) in self
            .beats
            .read()
            .into_iter()
            .zip(&mut self.seen)
            .enumerate()
        {
            if count != seen.0 {
                *seen = (count, now);
            } else if now.duration_since(seen.1) > self.interval / 2 {
                silent.push(shard);
            }
        }
        if silent != self.silent {
            if !silent.is_empty() {
                log::error!(
                    "watchdog: shards that stand still: {silent:?}; no sign of life is sent"
                );
            }
            self.silent = silent;
        }
        let due = self.silent.is_empty()
            && self
                .sent
                .is_none_or(|sent| now.duration_since(sent) >= self.interval / 3);
        if due {
            self.sent = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(12);

    #[test]
    fn signs_of_life_are_sent_while_every_shard_moves_and_not_when_one_stands_still() {
        let beats = Beats::new(2);
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut watchdog = Watchdog::new(beats.clone(), INTERVAL, start);
        let mut sent = Vec::new();
        for second in 0..60 {
            beats.beat(0);
            // The second shard stands still from 20 to 40.
            if !(20..40).contains(&second) {
                beats.beat(1);
            }
            if watchdog.is_due(at(second)) {
                sent.push(second);
            }
        }
        assert_eq!(sent, [0, 4, 8, 12, 16, 20, 24, 40, 44, 48, 52, 56]);
        let longest = sent.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(
            longest > INTERVAL.as_secs(),
            "the service manager would act"
        );
    }

    #[test]
    fn a_shard_that_never_moves_is_seen_too() {
        let beats = Beats::new(1);
        let start = Instant::now();
        let mut watchdog = Watchdog::new(beats, INTERVAL, start);
        let sent = (0..30)
            .filter(|s| watchdog.is_due(start + Duration::from_secs(*s)))
            .count();
        assert_eq!(sent, 2);
    }

    #[test]
    fn shards_count_often_enough_for_any_interval() {
        for ms in [10, 100, 1000, 30_000, 3_600_000] {
            let interval = Duration::from_millis(ms);
            assert!(Watchdog::period(interval) * 2 <= interval);
        }
    }
}
