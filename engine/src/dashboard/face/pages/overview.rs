//! The first page: how the server does, for whoever runs it, and how the apps do, for everybody.

use maud::{Markup, html};
use serde::Deserialize;

use super::apps::{AppSummary, app_table};
use crate::dashboard::face::components::{Tone, badge, card, empty, table, tile};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, format, paths};

/// What `GET /admin/nodes` says of a process.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    pub version: String,
    pub pid: u64,
    pub started_ms: u64,
    pub time_ms: u64,
    pub stage: String,
    pub listen: String,
    pub cpu_seconds: Option<f64>,
    pub resident_bytes: Option<u64>,
    pub open_files: Option<u64>,
    pub store_failing: bool,
    pub latency_bounds_us: Vec<u64>,
    pub shards: Vec<Shard>,
}

/// A shard of it. Counts rise from its start on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Shard {
    pub shard: u64,
    pub core: Option<u64>,
    pub up: bool,
    pub connections: u64,
    pub channels: u64,
    pub home_channels: u64,
    pub subscriptions: u64,
    pub cpu_seconds: f64,
    pub messages_in: u64,
    pub published: u64,
    pub deliveries: u64,
    pub slow_consumers: u64,
    pub outbox_bytes: u64,
    pub delivery: Latency,
}

/// From acceptance to the kernel.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Latency {
    pub count: u64,
    pub sum_us: u64,
    pub buckets: Vec<u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// For operators; empty for others.
    pub nodes: Vec<Node>,
    /// The account's.
    pub apps: Vec<AppSummary>,
}

pub fn render(shell: &Shell, view: &Overview) -> Markup {
    let lead = match view.nodes.as_slice() {
        [] => html! { "Your apps, as of now." },
        [node] => {
            html! { "One node, " (node.shards.len()) " shard" @if node.shards.len() != 1 { "s" } "." }
        }
        nodes => html! { (nodes.len()) " nodes." },
    };
    let head = Head::new("Overview", Place::Overview)
        .lead(lead)
        .scripts(&["live.js"]);
    let body = html! {
        @if view.nodes.is_empty() { (own_tiles(view)) } @else { (server(shell, view)) }
        (card("apps", "Apps", html! {
            @if view.apps.is_empty() {
                (empty("No apps yet", "An app has its own keys, channels and limits."))
                p { a class="button primary" href=(paths::to(&["apps"])) { "Make one" } }
            } @else { (app_table(shell, &view.apps)) }
        }))
    };
    page(shell, &head, &body)
}

fn own_tiles(view: &Overview) -> Markup {
    let sum = |of: fn(&AppSummary) -> u64| format::count(view.apps.iter().map(of).sum());
    html! {
        dl class="tiles" id="live-apps" data-apps=(paths::to(&["api", "apps"])) {
            (tile("t-connections", "Connections", &sum(|app| app.connections), "now"))
            (tile("t-channels", "Channels", &sum(|app| app.channels), "in use now"))
            (tile("t-today", "Messages", &sum(|app| app.messages_today), "today, UTC"))
        }
    }
}

fn server(shell: &Shell, view: &Overview) -> Markup {
    let shards = || view.nodes.iter().flat_map(|node| &node.shards);
    let sum = |of: fn(&Shard) -> u64| shards().map(of).sum::<u64>();
    let p99 = view.nodes.first().and_then(|node| percentile_us(node, 99));
    let memory = view.nodes.iter().filter_map(|node| node.resident_bytes);
    let first = view.nodes.first();
    html! {
        div id="live" data-nodes=(paths::to(&["api", "nodes"])) {
            dl class="tiles" {
                (tile("t-connections", "Connections", &format::count(sum(|shard| shard.connections)), "open now"))
                (tile("t-in", "Published", &format::short(sum(|shard| shard.published)), "since start"))
                (tile("t-out", "Delivered", &format::short(sum(|shard| shard.deliveries)), "since start"))
                (tile("t-latency", "Latency p99", &p99.map_or("–".to_owned(), latency), "to the kernel, since start"))
                (tile("t-slow", "Slow consumers", &format::count(sum(|shard| shard.slow_consumers)), "ended since start"))
                (tile("t-memory", "Memory", &format::bytes(memory.sum()), "resident"))
            }
            p class="live-state" {
                span id="live-state" class="badge" role="status" { "Live view needs JavaScript" }
            }
            div class="charts" id="live-charts" hidden {
                div id="c-messages" {}
                div id="c-latency" {}
                div id="c-connections" {}
                div id="c-cpu" {}
            }
        }
        (card("nodes", "Nodes", html! {
            (table("Nodes", &["Node", "State", "Up", "#CPU time", "#Memory", "#Files", "Version"],
                &view.nodes.iter().map(|node| node_row(shell, node)).collect::<Vec<_>>()))
        }))
        (card("shards", "Shards", html! {
            @let last = first.map_or(0, |node| node.time_ms);
            p class="hint" { "Rates are those of the last seconds while the page is live, otherwise the mean since start." }
            (table("Shards",
                &["Shard", "#Core", "#Connections", "#Channels", "#Subscriptions", "#Published/s", "#Delivered/s",
                    "#CPU %", "#Unsent"],
                &view.nodes.iter().enumerate().flat_map(|(index, node)| {
                    node.shards.iter().map(move |shard| shard_row(index, node, shard, last))
                }).collect::<Vec<_>>()))
        }))
    }
}

fn node_row(shell: &Shell, node: &Node) -> Markup {
    let up_s = shell.now_ms.saturating_sub(node.started_ms) / 1000;
    let tone = match node.stage.as_str() {
        "serving" => Tone::Good,
        _ => Tone::Warn,
    };
    html! {
        tr {
            th scope="row" { (node.listen) span class="sub" { "process " (node.pid) } }
            td {
                (badge(tone, &node.stage))
                @if node.store_failing { " " (badge(Tone::Bad, "store failing")) }
            }
            td { (format::duration_s(up_s)) }
            td class="num" { (node.cpu_seconds.map_or("–".to_owned(), |seconds| format::duration_s(seconds as u64))) }
            td class="num" { (node.resident_bytes.map_or("–".to_owned(), format::bytes)) }
            td class="num" { (node.open_files.map_or("–".to_owned(), format::count)) }
            td { (node.version) }
        }
    }
}

fn shard_row(index: usize, node: &Node, shard: &Shard, now_ms: u64) -> Markup {
    let up_s = (now_ms.saturating_sub(node.started_ms) as f64 / 1000.0).max(1.0);
    let rate = |count: u64| format::short((count as f64 / up_s) as u64);
    html! {
        tr data-shard={ (index) "-" (shard.shard) } {
            th scope="row" {
                (shard.shard)
                @if !shard.up { " " (badge(Tone::Bad, "no answer")) }
            }
            td class="num" { (shard.core.map_or("any".to_owned(), |core| core.to_string())) }
            td class="num" data-cell="connections" { (format::count(shard.connections)) }
            td class="num" data-cell="channels" { (format::count(shard.channels)) }
            td class="num" data-cell="subscriptions" { (format::count(shard.subscriptions)) }
            td class="num" data-cell="published" { (rate(shard.published)) }
            td class="num" data-cell="deliveries" { (rate(shard.deliveries)) }
            td class="num" data-cell="cpu" { (format!("{:.0}", shard.cpu_seconds / up_s * 100.0)) }
            td class="num" data-cell="outbox" { (format::bytes(shard.outbox_bytes)) }
        }
    }
}

/// The bound of the bucket in which the percentile lies; `None` without deliveries.
fn percentile_us(node: &Node, percent: u64) -> Option<u64> {
    let buckets = node.shards.iter().map(|shard| &shard.delivery.buckets);
    let total: u64 = buckets.clone().flatten().sum();
    let mut below = 0;
    for (index, bound) in node.latency_bounds_us.iter().enumerate() {
        below += buckets
            .clone()
            .filter_map(|buckets| buckets.get(index))
            .sum::<u64>();
        if total > 0 && below * 100 >= total * percent {
            return Some(*bound);
        }
    }
    (total > 0).then(|| node.latency_bounds_us.last().copied())?
}

fn latency(us: u64) -> String {
    if us < 1000 {
        format!("{us} µs")
    } else {
        format!("{:.1} ms", us as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_bounds_of_buckets() {
        let node = |buckets: Vec<u64>| Node {
            latency_bounds_us: vec![10, 100, 1000],
            shards: vec![Shard {
                delivery: Latency {
                    buckets,
                    ..Latency::default()
                },
                ..Shard::default()
            }],
            ..Node::default()
        };
        assert_eq!(percentile_us(&node(vec![0, 0, 0, 0]), 99), None);
        assert_eq!(percentile_us(&node(vec![99, 1, 0, 0]), 99), Some(10));
        assert_eq!(percentile_us(&node(vec![98, 2, 0, 0]), 99), Some(100));
        assert_eq!(percentile_us(&node(vec![0, 0, 0, 5]), 99), Some(1000));
    }
}
