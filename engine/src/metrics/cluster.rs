//! The other nodes on the page: who is there, and what goes through Redis for them.

use std::sync::atomic::Ordering::Relaxed;

use super::Page;
use crate::cluster::ClusterHandle;

/// This node's part, as text to follow the rest.
pub(crate) fn render(cluster: &ClusterHandle) -> String {
    let mut page = Page(String::new());
    let gauges: [(&str, &str, u64); 2] = [
        (
            "shardwire_cluster_up",
            "1 while Redis answers what nodes share: members, calls, leases.",
            u64::from(cluster.is_up()),
        ),
        (
            "shardwire_cluster_nodes",
            "Nodes whose leases hold, this one among them.",
            cluster.nodes().len() as u64,
        ),
    ];
    for (name, help, value) in gauges {
        page.family(name, "gauge", help);
        page.sample(name, &[], value);
    }
    let counters = cluster.counters();
    let counts = [
        (
            "shardwire_cluster_operations_total",
            "Operations on members in Redis.",
            &counters.operations,
        ),
        (
            "shardwire_cluster_operations_failed_total",
            "Of those, not done as far as this node knows.",
            &counters.operations_failed,
        ),
        (
            "shardwire_cluster_connects_total",
            "Connections to Redis, each with a lease of its own.",
            &counters.connects,
        ),
        (
            "shardwire_cluster_calls_total",
            "Questions to the other nodes.",
            &counters.calls_sent,
        ),
        (
            "shardwire_cluster_calls_answered_total",
            "Questions of other nodes answered.",
            &counters.calls_answered,
        ),
        (
            "shardwire_cluster_leases_ended_total",
            "Leases of other nodes that were over and whose members this node has ended.",
            &counters.nodes_buried,
        ),
        (
            "shardwire_cluster_members_expired_total",
            "Members that did not come back within their grace, ended by this node.",
            &counters.members_expired,
        ),
    ];
    for (name, help, count) in counts {
        page.family(name, "counter", help);
        page.sample(name, &[], count.load(Relaxed));
    }
    page.0
}
