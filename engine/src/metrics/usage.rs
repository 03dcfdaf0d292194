//! Limits on the page: what was refused for which of them, and how far quotas are used up.

use shardwire_proto::ids::ShardId;
use shardwire_proto::rate::table::{Class, Scope};
use shardwire_proto::shard::Stats;

use super::Page;
use crate::usage::UsageStats;

pub(super) fn render_limited(page: &mut Page, shards: &[(ShardId, Box<Stats>)]) {
    let name = "shardwire_rate_limited_total";
    page.family(name, "counter", "Refused for a rate, by class and scope.");
    for (shard, stats) in shards {
        for (class, scopes) in Class::ALL.into_iter().zip(&stats.counters.limited) {
            let counted = Scope::ALL.into_iter().zip(scopes).filter(|(_, n)| **n > 0);
            for (scope, count) in counted {
                let labels: [(&str, &dyn std::fmt::Display); 3] = [
                    ("shard", &shard.0),
                    ("class", &class.label()),
                    ("scope", &scope.label()),
                ];
                page.sample(name, &labels, *count);
            }
        }
    }
}

pub(super) fn render(page: &mut Page, usage: &UsageStats) {
    page.family(
        "shardwire_usage_lag_seconds",
        "gauge",
        "Age of usage that is not written yet.",
    );
    let lag = usage.lag_ms as f64 / 1e3;
    page.sample("shardwire_usage_lag_seconds", &[], lag);
    page.family(
        "shardwire_usage_write_failures_total",
        "counter",
        "Writes of usage that failed; it is kept and tried again.",
    );
    page.sample("shardwire_usage_write_failures_total", &[], usage.failures);
    let name = "shardwire_quota_marks_total";
    page.family(
        name,
        "counter",
        "Quotas that have passed a mark, in percent.",
    );
    for (percent, count) in [80, 100].into_iter().zip(usage.marks_passed) {
        page.sample(name, &[("percent", &percent)], count);
    }
    let name = "shardwire_quota_ratio";
    page.family(
        name,
        "gauge",
        "Used of a quota; 1 is all. At most 1000 series.",
    );
    for (app, quota, ratio) in &usage.ratios {
        page.sample(name, &[("app", app), ("quota", quota)], ratio);
    }
}
