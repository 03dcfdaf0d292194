//! The broker's part of the page: one per process, absent where there is none; and what shards have seen of it.

use shardwire_proto::ids::ShardId;
use shardwire_proto::shard::Stats;

use super::Page;
use crate::broker::BrokerStats;

pub(super) fn render(page: &mut Page, broker: &BrokerStats, shards: &[(ShardId, Box<Stats>)]) {
    let families = [
        (
            "shardwire_broker_connected",
            "gauge",
            "1 while messages can be published through Redis, at least to some of its servers.",
            u64::from(broker.up),
        ),
        (
            "shardwire_broker_servers",
            "gauge",
            "Redis servers in use: the masters of a cluster.",
            broker.servers as u64,
        ),
        (
            "shardwire_broker_connections",
            "gauge",
            "Open sockets to Redis.",
            broker.connections,
        ),
        (
            "shardwire_broker_reconnects_total",
            "counter",
            "Sockets that were lost and opened again.",
            broker.reconnects,
        ),
        (
            "shardwire_broker_redirects_total",
            "counter",
            "Commands that a Redis Cluster has sent to another of its servers.",
            broker.redirects,
        ),
        (
            "shardwire_broker_retries_total",
            "counter",
            "Commands sent again as Redis could not serve their slot for a moment.",
            broker.retries,
        ),
        (
            "shardwire_broker_queue_operations",
            "gauge",
            "Publishes that wait for Redis.",
            broker.queue_ops as u64,
        ),
        (
            "shardwire_broker_queue_bytes",
            "gauge",
            "Bytes of those.",
            broker.queue_bytes as u64,
        ),
        (
            "shardwire_broker_batches_total",
            "counter",
            "Pipelines sent; commands per pipeline are the mean batch.",
            broker.batches,
        ),
        (
            "shardwire_broker_topics",
            "gauge",
            "Channels that this node follows.",
            broker.topics as u64,
        ),
        (
            "shardwire_broker_topics_heard",
            "gauge",
            "Those of them whose subscription Redis has confirmed.",
            broker.topics_heard as u64,
        ),
        (
            "shardwire_broker_received_total",
            "counter",
            "Messages heard of Redis.",
            broker.received,
        ),
        (
            "shardwire_broker_dropped_total",
            "counter",
            "Messages heard that there was no room for; stored ones are fetched later.",
            broker.dropped,
        ),
        (
            "shardwire_broker_unreadable_total",
            "counter",
            "Messages heard that were not understood: another version's, or another program's.",
            broker.unreadable,
        ),
    ];
    for (name, kind, help, value) in families {
        page.family(name, kind, help);
        page.sample(name, &[], value);
    }
    let name = "shardwire_broker_publishes_total";
    page.family(name, "counter", "Publishes by what became of them.");
    for (result, count) in [
        ("published", broker.published),
        ("failed", broker.publishes_failed),
        ("refused", broker.publishes_refused),
    ] {
        page.sample(name, &[("result", &result)], count);
    }
    let name = "shardwire_broker_publish_seconds";
    page.family(
        name,
        "histogram",
        "From a shard's hand-over to the answer of Redis.",
    );
    page.histogram(name, &[], &broker.publish);
    render_seen(page, shards);
}

/// What home shards have made of it.
fn render_seen(page: &mut Page, shards: &[(ShardId, Box<Stats>)]) {
    type Value = fn(&Stats) -> u64;
    let families: [(&str, &str, Value); 5] = [
        (
            "shardwire_broker_gaps_total",
            "Holes in what was heard of channels.",
            |s| s.counters.broker_gaps,
        ),
        (
            "shardwire_broker_filled_total",
            "Messages fetched that had not been heard.",
            |s| s.counters.broker_filled,
        ),
        (
            "shardwire_broker_lost_total",
            "Messages that could not be fetched any more; subscribers were told.",
            |s| s.counters.broker_lost,
        ),
        (
            "shardwire_broker_repaired_total",
            "Messages put into the shared store for a node that has not said that it did.",
            |s| s.counters.broker_repaired,
        ),
        (
            "shardwire_broker_repeated_total",
            "Messages heard a second time, and not delivered again.",
            |s| s.counters.broker_repeated,
        ),
    ];
    for (name, help, value) in families {
        page.family(name, "counter", help);
        for (shard, stats) in shards {
            page.sample(name, &[("shard", &shard.0)], value(stats));
        }
    }
}
