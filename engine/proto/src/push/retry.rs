//! When a notification is tried again, and when a provider is left alone.
//!
//! ```text
//!          FAILURES_MAX in a row           the pause is over
//!  open ───────────────────────► paused ──────────────────────► probing ──success──► open
//!                                   ▲                               │
//!                                   └────── failure: twice as long ─┘
//! ```
//! Pure: time and randomness are passed in. Invariant: while a [`Gate`] is paused nobody is let through; while it
//! probes, one is.

/// Tries of one notification, the first included.
pub const ATTEMPTS_MAX: u32 = 8;
/// A notification that has not got through by then is given up, however long its `ttl`.
pub const LIFETIME_MS_MAX: u64 = 24 * 3600 * 1000;
/// Longest wait that a provider may ask for.
pub const RETRY_AFTER_MS_MAX: u64 = 3600 * 1000;
/// First wait; doubled with each further try.
const WAIT_MS_FIRST: u64 = 1000;
/// Longest wait that we choose.
const WAIT_MS_MAX: u64 = 300_000;
/// Failures in a row after which a provider is left alone.
const FAILURES_MAX: u32 = 5;
/// First pause of a provider that fails, and the longest.
const PAUSE_MS_FIRST: u64 = 1000;
const PAUSE_MS_MAX: u64 = 60_000;
/// How long others wait while one probes.
const PROBE_MS: u64 = 1000;
/// A probe without an answer is forgotten by then.
const PROBE_MS_MAX: u64 = 60_000;

/// How long to wait before the try after `attempts` tries: what the provider asked for, else doubling, with a quarter
/// of jitter from `random` so that many do not come back at once.
#[must_use]
pub fn wait_ms(attempts: u32, asked_ms: Option<u64>, random: u32) -> u64 {
    let wait = match asked_ms {
        Some(asked) => asked.min(RETRY_AFTER_MS_MAX),
        None => WAIT_MS_FIRST
            .saturating_mul(1 << attempts.saturating_sub(1).min(16))
            .min(WAIT_MS_MAX),
    };
    wait + (wait / 4).saturating_mul(u64::from(random)) / u64::from(u32::MAX)
}

/// Lets requests to one provider through, or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gate {
    /// In a row.
    failures: u32,
    /// Pauses since the last success.
    pauses: u32,
    /// 0: open.
    paused_until_ms: u64,
    /// When the one that probes was let through.
    probing_since_ms: Option<u64>,
}

impl Gate {
    /// Whether a request may be made.
    ///
    /// # Errors
    /// When to ask again, in ms.
    pub fn admit(&mut self, now_ms: u64) -> Result<(), u64> {
        if self.paused_until_ms == 0 {
            return Ok(());
        }
        if now_ms < self.paused_until_ms {
            return Err(self.paused_until_ms);
        }
        match self.probing_since_ms {
            Some(since) if now_ms < since + PROBE_MS_MAX => Err(now_ms + PROBE_MS),
            _ => {
                self.probing_since_ms = Some(now_ms);
                Ok(())
            }
        }
    }

    /// The provider answered, whatever it thought of the notification.
    pub fn on_answer(&mut self) {
        *self = Self::default();
    }

    /// It could not be reached or is in trouble.
    pub fn on_failure(&mut self, now_ms: u64) {
        self.failures += 1;
        let was_probe = self.probing_since_ms.take().is_some();
        if (was_probe || self.failures >= FAILURES_MAX) && now_ms >= self.paused_until_ms {
            let pause = PAUSE_MS_FIRST << self.pauses.min(16);
            self.pauses += 1;
            self.paused_until_ms = now_ms + pause.min(PAUSE_MS_MAX);
        }
    }

    /// It asks for a pause.
    pub fn on_pause(&mut self, now_ms: u64, pause_ms: u64) {
        self.probing_since_ms = None;
        let until = now_ms + pause_ms.min(RETRY_AFTER_MS_MAX);
        self.paused_until_ms = self.paused_until_ms.max(until);
    }

    /// Whether it has something to remember.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_honour_what_is_asked() {
        assert_eq!(wait_ms(1, None, 0), 1000);
        assert_eq!(wait_ms(3, None, 0), 4000);
        assert_eq!(wait_ms(40, None, 0), WAIT_MS_MAX);
        assert_eq!(wait_ms(1, Some(7000), 0), 7000);
        assert_eq!(wait_ms(1, Some(u64::MAX), 0), RETRY_AFTER_MS_MAX);
        let most = wait_ms(1, None, u32::MAX);
        assert_eq!(most, 1250);
    }

    #[test]
    fn a_failing_provider_is_left_alone_and_probed_by_one() {
        let mut gate = Gate::default();
        for _ in 0..FAILURES_MAX {
            assert_eq!(gate.admit(10), Ok(()));
            gate.on_failure(10);
        }
        assert_eq!(gate.admit(11), Err(1010));
        assert_eq!(gate.admit(1010), Ok(()), "the probe");
        assert_eq!(gate.admit(1010), Err(2010), "nobody beside it");
        gate.on_failure(1020);
        assert_eq!(gate.admit(1021), Err(3020), "twice as long");
        assert_eq!(gate.admit(3020), Ok(()));
        gate.on_answer();
        assert!(gate.is_open());
        assert_eq!(gate.admit(3021), Ok(()));
    }

    #[test]
    fn late_failures_of_one_burst_pause_once() {
        let mut gate = Gate::default();
        for _ in 0..50 {
            gate.on_failure(10);
        }
        assert_eq!(gate.admit(11), Err(1010));
    }

    #[test]
    fn a_pause_that_is_asked_for_holds() {
        let mut gate = Gate::default();
        gate.on_pause(0, 30_000);
        assert_eq!(gate.admit(29_999), Err(30_000));
        assert_eq!(gate.admit(30_000), Ok(()));
        assert_eq!(
            gate.admit(30_000 + PROBE_MS_MAX),
            Ok(()),
            "a lost probe does not close it for ever"
        );
    }
}
