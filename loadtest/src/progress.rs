//! The progress line on a terminal; nothing when standard error is none, or when asked to be quiet.

use std::sync::atomic::Ordering;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::table::count;
use crate::shared::Shared;

/// Steps of the bar.
const STEPS: u64 = 1000;

/// A progress line.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shown on standard error unless `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:>10} [{bar:40}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// So many of so many connections are ready.
    pub(crate) fn connecting(&self, ready: u64, connections: u64) {
        self.bar.set_prefix("connecting");
        self.bar.set_position(STEPS * ready / connections.max(1));
        self.bar.set_message(format!(
            "{} of {}",
            count(ready as f64),
            count(connections as f64)
        ));
    }

    /// So many seconds of the window are over.
    pub(crate) fn running(&self, seconds: f64, of_seconds: f64, shared: &Shared) {
        self.bar.set_prefix("running");
        self.bar
            .set_position((STEPS as f64 * seconds / of_seconds) as u64);
        let delivered = shared.delivered.load(Ordering::Relaxed);
        let churned = shared.churned.load(Ordering::Relaxed);
        let connects = if churned > 0 {
            format!(", {} connects", count(churned as f64))
        } else {
            String::new()
        };
        let text = format!(
            "{seconds:.0} of {of_seconds:.0} s, {} deliveries{connects}",
            count(delivered as f64)
        );
        self.bar.set_message(text);
    }

    /// A round begins.
    pub(crate) fn round(&self, round: u32, rounds: u32) {
        self.bar.set_prefix(format!("round {round}/{rounds}"));
    }

    /// Takes the line away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
