//! A sliding window in two counters.
//!
//! One [`RateWindow`] per limited thing (connection, client id, channel, app); the [`RateLimit`] is shared and passed
//! in, and so is the time. It decides and counts; what a refusal leads to is the caller's (contract D25).
//!
//! **Meaning.** A limit of 50 per second with a burst of 100 is a window of 2 s holding at most 100. Time is cut into
//! spans of the window's length; the estimate for the sliding window is the count of the current span plus the
//! previous one's, weighted by how much of it the window still covers.
//!
//! Invariants: at most `burst` are admitted in any one span, hence at most `burst · (n + 1)` in any `n` window lengths;
//! never more than `2 · burst` in one window length, wherever it starts, because the weighting takes the previous
//! span as evenly spread (the same bound as a token bucket of that burst). Refused attempts do not count against later
//! ones. A clock that steps back admits nothing extra.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rate: so many per window on average, and so many at once. In a file `{per_window, window_ms = 1000, burst =
/// per_window}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Source", into = "Source")]
pub struct RateLimit {
    per_window: u32,
    window_ms: u32,
    /// Most that one sliding window may hold.
    burst: u32,
    /// Length of that window in milliseconds.
    span_ms: u64,
}

impl RateLimit {
    /// `per_window` per `window_ms` milliseconds sustained, up to `burst` at once. `None` if a value is 0 or the burst
    /// is below `per_window`, which could then never be reached.
    #[must_use]
    pub const fn new(per_window: u32, window_ms: u32, burst: u32) -> Option<Self> {
        if per_window == 0 || window_ms == 0 || burst < per_window {
            return None;
        }
        // At least window_ms, since burst >= per_window; the product of two u32 fits.
        let span_ms = window_ms as u64 * burst as u64 / per_window as u64;
        Some(Self {
            per_window,
            window_ms,
            burst,
            span_ms,
        })
    }

    /// Most admitted at once.
    #[must_use]
    pub const fn burst(&self) -> u32 {
        self.burst
    }

    /// `share` thousandths of it, at least one in its window.
    #[must_use]
    pub fn part(&self, share: u32) -> Self {
        let of = |count: u32| {
            let part = u64::from(count) * u64::from(share.min(1000)) / 1000;
            u32::try_from(part).unwrap_or(count).max(1)
        };
        let per_window = of(self.per_window);
        let burst = of(self.burst).max(per_window);
        Self::new(per_window, self.window_ms, burst).unwrap_or(*self)
    }

    /// Length of the sliding window in milliseconds.
    #[must_use]
    pub const fn span_ms(&self) -> u64 {
        self.span_ms
    }
}

/// A limit as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    per_window: u32,
    window_ms: Option<u32>,
    burst: Option<u32>,
}

impl TryFrom<Source> for RateLimit {
    type Error = RateLimitError;

    fn try_from(source: Source) -> Result<Self, Self::Error> {
        let burst = source.burst.unwrap_or(source.per_window);
        Self::new(source.per_window, source.window_ms.unwrap_or(1000), burst).ok_or(RateLimitError)
    }
}

impl From<RateLimit> for Source {
    fn from(limit: RateLimit) -> Self {
        Self {
            per_window: limit.per_window,
            window_ms: Some(limit.window_ms),
            burst: Some(limit.burst),
        }
    }
}

/// The values of a rate limit contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitError;

impl fmt::Display for RateLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rate limit needs per_window and window_ms above 0, and a burst of at least per_window")
    }
}

impl std::error::Error for RateLimitError {}

/// The counters of one limited thing. [`Default`] is an unused one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateWindow {
    /// When the current span began, in milliseconds on the caller's clock.
    start_ms: u64,
    /// Admitted in the span before the current one.
    previous: u32,
    /// Admitted in the current span.
    current: u32,
    /// Spans in a row, ending just before the current one, in which something was refused.
    over_before: u16,
    /// Whether something was refused in the current span.
    over_current: bool,
}

const _: () = assert!(size_of::<RateWindow>() <= 24, "one per connection");

/// A limit that may be switched off: in a file `false`.
pub(crate) mod or_off {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::RateLimit;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Limit(RateLimit),
        Switch(bool),
    }

    pub(crate) fn serialize<S: Serializer>(
        limit: &Option<RateLimit>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        limit
            .map_or(Form::Switch(false), Form::Limit)
            .serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<RateLimit>, D::Error> {
        match Form::deserialize(deserializer) {
            Ok(Form::Limit(limit)) => Ok(Some(limit)),
            Ok(Form::Switch(false)) => Ok(None),
            Ok(Form::Switch(true)) | Err(_) => Err(serde::de::Error::custom(
                "expected { per_window, window_ms, burst }, or false",
            )),
        }
    }
}

impl RateWindow {
    /// Counts one and returns true if the limit admits it at `now_ms`; otherwise counts a refusal.
    pub fn try_acquire(&mut self, now_ms: u64, limit: &RateLimit) -> bool {
        self.advance(now_ms, limit.span_ms);
        let admitted = self.has_room(self.elapsed(now_ms, limit), limit);
        if admitted {
            self.current += 1;
        } else {
            self.over_current = true;
        }
        admitted
    }

    /// Counts `count` together and returns true if the limit admits them all at `now_ms`; otherwise counts a refusal
    /// and none of them.
    pub fn try_acquire_all(&mut self, now_ms: u64, limit: &RateLimit, count: u32) -> bool {
        let admitted = count <= self.room(now_ms, limit);
        if admitted {
            self.current += count;
        } else {
            self.over_current = true;
        }
        admitted
    }

    /// How many the limit admits at `now_ms`.
    pub fn room(&mut self, now_ms: u64, limit: &RateLimit) -> u32 {
        self.advance(now_ms, limit.span_ms);
        let span = u128::from(limit.span_ms);
        let left = limit.span_ms - self.elapsed(now_ms, limit);
        let free = (u128::from(limit.burst) * span)
            .saturating_sub(u128::from(self.previous) * u128::from(left));
        let room = free.div_ceil(span.max(1));
        u32::try_from(room)
            .unwrap_or(u32::MAX)
            .saturating_sub(self.current)
    }

    /// Counts `count` whether or not there is room for them.
    pub fn charge(&mut self, now_ms: u64, limit: &RateLimit, count: u32) {
        self.advance(now_ms, limit.span_ms);
        self.current = self.current.saturating_add(count);
    }

    /// Takes back `count` of those counted at `at_ms`. What has left the window by `now_ms` is gone anyway.
    pub fn give_back(&mut self, now_ms: u64, limit: &RateLimit, at_ms: u64, count: u32) {
        self.advance(now_ms, limit.span_ms);
        if at_ms >= self.start_ms {
            self.current = self.current.saturating_sub(count);
        } else if self.start_ms - at_ms <= limit.span_ms {
            self.previous = self.previous.saturating_sub(count);
        }
    }

    /// Counts a refusal that another limit has brought about, in spans of this one.
    pub fn note_refused(&mut self, now_ms: u64, limit: &RateLimit) {
        self.advance(now_ms, limit.span_ms);
        self.over_current = true;
    }

    /// Whether it is as good as unused at `now_ms`: nothing of it counts any more.
    #[must_use]
    pub fn is_over(&self, now_ms: u64, limit: &RateLimit) -> bool {
        now_ms.saturating_sub(self.start_ms) >= 2 * limit.span_ms
    }

    /// Spans in a row, the current one included, in which at least one was refused, as of the last
    /// [`try_acquire`](Self::try_acquire). A span without a refusal, or without any attempt, ends the row.
    #[must_use]
    pub fn windows_over(&self) -> u16 {
        self.over_before
            .saturating_add(u16::from(self.over_current))
    }

    /// Milliseconds from `now_ms` until one more would be admitted if nothing else is; 0 if it would be at once. For
    /// `Retry-After`.
    #[must_use]
    pub fn retry_after_ms(&self, now_ms: u64, limit: &RateLimit) -> u64 {
        let mut then = *self;
        then.advance(now_ms, limit.span_ms);
        let elapsed = then.elapsed(now_ms, limit);
        if then.has_room(elapsed, limit) {
            return 0;
        }
        let left = limit.span_ms - elapsed;
        if then.current < limit.burst {
            // Room comes within this span, when the previous one has lost enough weight.
            return then.room_at_ms(limit).saturating_sub(elapsed).min(left);
        }
        then.advance(then.start_ms.saturating_add(limit.span_ms), limit.span_ms);
        left + then.room_at_ms(limit)
    }

    /// Moves on to the span that holds `now_ms`.
    fn advance(&mut self, now_ms: u64, span_ms: u64) {
        let elapsed = now_ms.saturating_sub(self.start_ms);
        if elapsed < span_ms {
            return;
        }
        if elapsed - span_ms < span_ms {
            self.start_ms += span_ms;
            self.previous = self.current;
            self.over_before = if self.over_current {
                self.over_before.saturating_add(1)
            } else {
                0
            };
        } else {
            self.start_ms = now_ms;
            self.previous = 0;
            self.over_before = 0;
        }
        self.current = 0;
        self.over_current = false;
    }

    fn elapsed(&self, now_ms: u64, limit: &RateLimit) -> u64 {
        now_ms.saturating_sub(self.start_ms).min(limit.span_ms)
    }

    /// Whether previous · (span - elapsed) / span + current < burst, without the division. In u128, since both factors
    /// may be large.
    fn has_room(&self, elapsed_ms: u64, limit: &RateLimit) -> bool {
        let span = u128::from(limit.span_ms);
        let weighted = u128::from(self.previous) * (span - u128::from(elapsed_ms));
        weighted + u128::from(self.current) * span < u128::from(limit.burst) * span
    }

    /// Milliseconds into the current span at which [`has_room`](Self::has_room) becomes true, at most the span.
    fn room_at_ms(&self, limit: &RateLimit) -> u64 {
        let span = u128::from(limit.span_ms);
        let free = u128::from(limit.burst.saturating_sub(self.current)) * span;
        let covered = free
            .saturating_sub(1)
            .checked_div(u128::from(self.previous))
            .map_or(span, |ms| ms.min(span));
        // At most span, which is a u64.
        u64::try_from(span - covered).unwrap_or(limit.span_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(per_window: u32, window_ms: u32, burst: u32) -> RateLimit {
        RateLimit::new(per_window, window_ms, burst).unwrap()
    }

    #[test]
    fn a_burst_is_admitted_at_once_and_then_the_rate_holds() {
        let limit = limit(50, 1000, 100);
        let mut window = RateWindow::default();
        assert_eq!(
            (0..150)
                .filter(|_| window.try_acquire(5000, &limit))
                .count(),
            100
        );
        // From the second span on, a greedy client gets 50 per second.
        let admitted = (0..10_000_u64)
            .filter(|ms| window.try_acquire(7000 + ms, &limit))
            .count();
        assert!((499..=501).contains(&admitted), "{admitted}");
    }

    #[test]
    fn zero_and_unreachable_limits_do_not_exist() {
        assert_eq!(RateLimit::new(0, 1000, 10), None);
        assert_eq!(RateLimit::new(10, 0, 10), None);
        assert_eq!(RateLimit::new(10, 1000, 9), None);
    }

    #[test]
    fn the_rate_holds_for_a_burst_of_one_too() {
        let limit = limit(1, 1000, 1);
        let mut window = RateWindow::default();
        let admitted = (0..60_000_u64)
            .filter(|ms| window.try_acquire(*ms, &limit))
            .count();
        assert_eq!(admitted, 60);
    }

    #[test]
    fn a_steady_client_below_the_rate_is_never_refused() {
        let limit = limit(50, 1000, 100);
        let mut window = RateWindow::default();
        assert!((0..10_000_u64).all(|n| window.try_acquire(n * 21, &limit)));
        assert_eq!(window.windows_over(), 0);
    }

    #[test]
    fn windows_over_counts_a_row_and_forgets_it() {
        let limit = limit(10, 1000, 10);
        let mut window = RateWindow::default();
        for span in 0..12_u64 {
            for _ in 0..20 {
                window.try_acquire(span * 1000, &limit);
            }
            assert_eq!(u64::from(window.windows_over()), span + 1);
        }
        assert!(window.try_acquire(12_999, &limit), "one in a quiet span");
        assert_eq!(window.windows_over(), 12, "the quiet span is not over yet");
        assert!(window.try_acquire(13_500, &limit));
        assert_eq!(window.windows_over(), 0);
    }

    #[test]
    fn a_long_silence_ends_the_row() {
        let limit = limit(1, 1000, 1);
        let mut window = RateWindow::default();
        assert!(window.try_acquire(0, &limit));
        assert!(!window.try_acquire(1, &limit));
        assert!(window.try_acquire(60_000, &limit));
        assert_eq!(window.windows_over(), 0);
    }

    #[test]
    fn a_clock_stepping_back_admits_nothing_extra() {
        let limit = limit(10, 1000, 10);
        let mut window = RateWindow::default();
        assert_eq!(
            (0..20_u64)
                .filter(|n| window.try_acquire(100_000 - n * 5000, &limit))
                .count(),
            10
        );
    }

    #[test]
    fn what_is_given_back_is_admitted_again_and_in_its_own_span_alone() {
        let limit = limit(10, 1000, 10);
        let mut window = RateWindow::default();
        assert!(window.try_acquire_all(5000, &limit, 10));
        assert!(!window.try_acquire_all(5001, &limit, 1));
        window.give_back(5002, &limit, 5000, 4);
        assert_eq!(window.room(5002, &limit), 4);
        window.charge(5003, &limit, 4);
        // Half of the previous span's ten are in the window, none of the current one's.
        assert_eq!(window.room(6500, &limit), 5);
        window.give_back(6500, &limit, 5000, 10);
        assert_eq!(window.room(6500, &limit), 10);
        window.give_back(6500, &limit, 1000, 10);
        assert_eq!(window.room(6500, &limit), 10);
    }

    #[test]
    fn extreme_limits_do_not_overflow() {
        let limit = limit(1, u32::MAX, u32::MAX);
        let mut window = RateWindow {
            start_ms: 0,
            previous: u32::MAX,
            current: u32::MAX - 1,
            ..Default::default()
        };
        window.try_acquire(1, &limit);
        window.try_acquire(u64::MAX, &limit);
    }

    proptest! {
        #[test]
        fn no_window_holds_more_than_the_stated_bound(
            per_window in 1..20_u32,
            extra in 0..20_u32,
            steps in prop::collection::vec(prop_oneof![4 => 0..3_u64, 2 => 0..200_u64, 1 => 0..3000_u64], 1..400),
        ) {
            let limit = limit(per_window, 200, per_window + extra);
            let mut window = RateWindow::default();
            let mut now = 1_000_000;
            let mut admitted = Vec::new();
            for step in steps {
                now += step;
                if window.try_acquire(now, &limit) {
                    admitted.push(now);
                }
            }
            for (i, from) in admitted.iter().enumerate() {
                for spans in [1_u64, 2, 5] {
                    let held = admitted[i..].iter().take_while(|at| **at < from + spans * limit.span_ms()).count() as u64;
                    prop_assert!(held <= u64::from(limit.burst()) * (spans + 1), "{held} in {spans} spans");
                    prop_assert!(spans > 1 || held <= 2 * u64::from(limit.burst()), "{held} in one span");
                }
            }
        }

        #[test]
        fn room_is_what_is_admitted_one_by_one(
            per_window in 1..20_u32,
            extra in 0..20_u32,
            steps in prop::collection::vec((0..300_u64, 0..10_u32), 1..100),
        ) {
            let limit = limit(per_window, 200, per_window + extra);
            let mut window = RateWindow::default();
            let mut now = 1_000_000;
            for (step, count) in steps {
                now += step;
                window.charge(now, &limit, count);
                let mut one_by_one = window;
                let admitted = (0..1000).take_while(|_| one_by_one.try_acquire(now, &limit)).count();
                prop_assert_eq!(admitted as u32, window.room(now, &limit));
            }
        }

        #[test]
        fn retry_after_is_the_first_moment_that_admits(
            per_window in 1..20_u32,
            extra in 0..20_u32,
            steps in prop::collection::vec(0..40_u64, 1..300),
        ) {
            let limit = limit(per_window, 200, per_window + extra);
            let mut window = RateWindow::default();
            let mut now = 1_000_000;
            for step in steps {
                now += step;
                let wait = window.retry_after_ms(now, &limit);
                if window.try_acquire(now, &limit) {
                    prop_assert_eq!(wait, 0);
                    continue;
                }
                prop_assert!(wait > 0);
                let mut early = window;
                prop_assert!(!early.try_acquire(now + wait - 1, &limit));
                let mut due = window;
                prop_assert!(due.try_acquire(now + wait, &limit));
            }
        }
    }
}
