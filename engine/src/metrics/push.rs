//! Push on the page.

use super::Page;
use crate::side::push::PushStats;

/// The families of push, to follow the others.
#[must_use]
pub fn render(stats: &PushStats) -> String {
    let mut page = Page(String::new());
    let name = "shardwire_push_notifications_total";
    let help = "Notifications by platform and outcome; expired ones are among the failed.";
    page.family(name, "counter", help);
    for (platform, counts) in &stats.counts {
        for (outcome, count) in [
            ("sent", counts.sent),
            ("failed", counts.failed),
            ("expired", counts.expired),
            ("retried", counts.retries),
        ] {
            page.sample(
                name,
                &[("platform", platform), ("outcome", &outcome)],
                count,
            );
        }
    }
    for (name, kind, help, value) in [
        (
            "shardwire_push_jobs",
            "gauge",
            "Sends that are not done.",
            stats.jobs,
        ),
        (
            "shardwire_push_in_flight",
            "gauge",
            "Notifications given to the sender and not settled.",
            stats.in_flight,
        ),
        (
            "shardwire_push_write_failures_total",
            "counter",
            "Writes to the store of push that failed; progress is kept and written later.",
            stats.failures,
        ),
        (
            "shardwire_push_notices_dropped_total",
            "counter",
            "Messages whose absent members were not told, as too many waited.",
            stats.notices_dropped,
        ),
        (
            "shardwire_push_failures_untold_total",
            "counter",
            "Failures that no webhook was told of, as too much waited for them.",
            stats.failures_untold,
        ),
    ] {
        page.family(name, kind, help);
        page.sample(name, &[], value);
    }
    page.0
}
