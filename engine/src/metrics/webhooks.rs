//! Webhooks on the page.

use super::Page;
use crate::side::webhooks::{LATENCY_BOUNDS_MS, WebhookStats};

/// The families of webhooks, to follow the others.
#[must_use]
pub fn render(stats: &WebhookStats) -> String {
    let mut page = Page(String::new());
    let gauges: [(&str, &str, u64); 5] = [
        (
            "shardwire_webhooks_owner",
            "1 where this process delivers.",
            u64::from(stats.is_owner),
        ),
        (
            "shardwire_webhooks_endpoints",
            "Endpoints of all apps.",
            stats.endpoints as u64,
        ),
        (
            "shardwire_webhooks_endpoints_open",
            "Endpoints that get nothing for now because they fail.",
            stats.endpoints_open as u64,
        ),
        (
            "shardwire_webhooks_behind",
            "Events that are neither delivered nor given up.",
            stats.behind,
        ),
        (
            "shardwire_webhooks_in_flight",
            "Attempts under way.",
            stats.in_flight as u64,
        ),
    ];
    for (name, help, value) in gauges {
        page.family(name, "gauge", help);
        page.sample(name, &[], value);
    }
    let counters: [(&str, &str, u64); 5] = [
        (
            "shardwire_webhooks_events_total",
            "Events numbered for an endpoint.",
            stats.events,
        ),
        (
            "shardwire_webhooks_delivered_total",
            "Events delivered.",
            stats.delivered,
        ),
        (
            "shardwire_webhooks_failures_total",
            "Attempts that failed.",
            stats.failures,
        ),
        (
            "shardwire_webhooks_dead_total",
            "Deliveries given up.",
            stats.dead,
        ),
        (
            "shardwire_webhooks_write_failures_total",
            "Failures of the outbox; what was raised is kept and tried again.",
            stats.write_failures,
        ),
    ];
    for (name, help, value) in counters {
        page.family(name, "counter", help);
        page.sample(name, &[], value);
    }
    let name = "shardwire_webhooks_latency_seconds";
    page.family(name, "histogram", "From an event to its receipt.");
    let bucket = "shardwire_webhooks_latency_seconds_bucket";
    let mut sum = 0;
    for (bound, count) in LATENCY_BOUNDS_MS.into_iter().zip(stats.latency) {
        sum += count;
        let seconds = bound as f64 / 1e3;
        page.sample(bucket, &[("le", &seconds)], sum);
    }
    let all: u64 = stats.latency.iter().sum();
    page.sample(bucket, &[("le", &"+Inf")], all);
    page.sample(
        "shardwire_webhooks_latency_seconds_sum",
        &[],
        stats.latency_sum_ms as f64 / 1e3,
    );
    page.sample("shardwire_webhooks_latency_seconds_count", &[], all);
    page.0
}
