//! What a scrape sees: the numbers of all shards and of the process, in the Prometheus text format 0.0.4.
//!
//! Nothing is counted here: shards and the store's threads count for themselves. What the store says is in `store`.
//! Names and units follow the Prometheus conventions: seconds, bytes, `_total` for what only rises.

use std::fmt::{Display, Write as _};
use std::fs;

use shardwire_proto::ids::ShardId;
use shardwire_proto::shard::{Counters, Histogram, Stats};

use crate::broker::BrokerStats;
use crate::store::StoreStats;
use crate::usage::UsageStats;

mod broker;
pub(crate) mod cluster;
pub mod push;
mod store;
mod usage;
pub mod webhooks;

/// Media type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Clock ticks per second in `/proc` (`USER_HZ`): fixed by the kernel's interface, whatever its own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the kernel says about the process; `None` where it does not.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Process {
    /// Memory that is in RAM.
    pub resident_bytes: Option<u64>,
    /// User and system time of all threads.
    pub cpu_seconds: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
}

impl Process {
    /// Reads `/proc/self`. May take milliseconds where descriptors have to be counted one by one.
    #[must_use]
    pub fn read() -> Self {
        Self {
            resident_bytes: fs::read_to_string("/proc/self/status")
                .ok()
                .as_deref()
                .and_then(resident_bytes),
            cpu_seconds: fs::read_to_string("/proc/self/stat")
                .ok()
                .as_deref()
                .and_then(cpu_seconds),
            open_fds: open_fds(),
        }
    }
}

/// `VmRSS:     1234 kB` of `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// User and system time of `/proc/self/stat`: fields 14 and 15, counted behind the name, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

/// Since Linux 6.2 the size of the folder is their number; before, they are counted.
fn open_fds() -> Option<u64> {
    let folder = "/proc/self/fd";
    match fs::metadata(folder).ok()?.len() {
        0 => Some(fs::read_dir(folder).ok()?.count() as u64),
        count => Some(count),
    }
}

/// The whole page. Shards of the process that are not among `shards` have not answered; without a store nothing is said
/// of it.
#[must_use]
pub fn render(
    shard_count: usize,
    shards: &[(ShardId, Box<Stats>)],
    store: Option<&StoreStats>,
    usage: Option<&UsageStats>,
    broker: Option<&BrokerStats>,
    process: &Process,
) -> String {
    let mut page = Page(String::with_capacity(4096 + 4096 * shards.len()));
    page.family(
        "shardwire_build_info",
        "gauge",
        "Version of the server; always 1.",
    );
    page.sample(
        "shardwire_build_info",
        &[("version", &env!("CARGO_PKG_VERSION"))],
        1,
    );
    page.family(
        "shardwire_shard_up",
        "gauge",
        "1 where the shard answered this scrape.",
    );
    for index in 0..shard_count {
        let up = shards.iter().any(|(shard, _)| shard.index() == index);
        page.sample("shardwire_shard_up", &[("shard", &index)], u8::from(up));
    }
    render_simple(&mut page, shards);
    page.family(
        "shardwire_shard_cpu_seconds_total",
        "counter",
        "CPU time of the shard's thread.",
    );
    for (shard, stats) in shards {
        let seconds = stats.counters.cpu_us as f64 / 1e6;
        page.sample(
            "shardwire_shard_cpu_seconds_total",
            &[("shard", &shard.0)],
            seconds,
        );
    }
    render_labelled(&mut page, shards);
    render_histograms(&mut page, shards);
    if let Some(store) = store {
        store::render(&mut page, store);
    }
    if let Some(broker) = broker {
        broker::render(&mut page, broker, shards);
    }
    usage::render_limited(&mut page, shards);
    if let Some(usage) = usage {
        usage::render(&mut page, usage);
    }
    render_process(&mut page, process);
    page.0
}

/// One number per shard.
fn render_simple(page: &mut Page, shards: &[(ShardId, Box<Stats>)]) {
    type Read = fn(&Stats) -> u64;
    let families: [(&str, &str, &str, Read); 21] = [
        (
            "shardwire_connections",
            "gauge",
            "WebSocket connections.",
            |s| s.connections as u64,
        ),
        (
            "shardwire_channels",
            "gauge",
            "Channels with a subscriber on the shard.",
            |s| s.channels as u64,
        ),
        (
            "shardwire_home_channels",
            "gauge",
            "Channels that the shard orders.",
            |s| s.home_channels as u64,
        ),
        (
            "shardwire_presence_members",
            "gauge",
            "Presence members of the channels that the shard orders.",
            |s| s.members as u64,
        ),
        (
            "shardwire_presence_away",
            "gauge",
            "Members whose connection was lost and who may come back.",
            |s| s.members_away as u64,
        ),
        (
            "shardwire_presence_returns_total",
            "counter",
            "Members who came back in time.",
            |s| s.counters.presence_returns,
        ),
        (
            "shardwire_presence_notices_total",
            "counter",
            "Presence events and numbers queued for connections.",
            |s| s.counters.presence_notices,
        ),
        (
            "shardwire_subscriptions",
            "gauge",
            "Subscriptions of all connections.",
            |s| s.counters.subscriptions,
        ),
        (
            "shardwire_outbox_bytes",
            "gauge",
            "Bytes that wait for connections to take them.",
            |s| s.outbox_bytes as u64,
        ),
        (
            "shardwire_ring_bytes",
            "gauge",
            "Recent messages in memory, for rewind and resume.",
            |s| s.ring_bytes as u64,
        ),
        (
            "shardwire_store_pending",
            "gauge",
            "What the shard has asked of the store and waits for.",
            |s| s.store_pending as u64,
        ),
        (
            "shardwire_replayed_total",
            "counter",
            "Messages of the past sent by rewind and resume.",
            |s| s.counters.replayed,
        ),
        (
            "shardwire_messages_received_total",
            "counter",
            "WebSocket messages from clients.",
            |s| s.counters.messages_in,
        ),
        (
            "shardwire_received_bytes_total",
            "counter",
            "Payload bytes of those messages.",
            |s| s.counters.bytes_in,
        ),
        (
            "shardwire_deliveries_total",
            "counter",
            "Messages queued for subscribers.",
            |s| s.counters.deliveries,
        ),
        (
            "shardwire_queued_bytes_total",
            "counter",
            "Bytes queued for connections.",
            |s| s.counters.bytes_queued,
        ),
        (
            "shardwire_sent_bytes_total",
            "counter",
            "Bytes that the kernel took, counted before TLS.",
            |s| s.counters.bytes_sent,
        ),
        (
            "shardwire_sends_total",
            "counter",
            "Send calls to the kernel.",
            |s| s.counters.sends,
        ),
        (
            "shardwire_sends_blocked_total",
            "counter",
            "Sends that the kernel did not take whole.",
            |s| s.counters.sends_blocked,
        ),
        (
            "shardwire_slow_consumers_total",
            "counter",
            "Connections ended because they read too slowly.",
            |s| closed(&s.counters, "slow_consumer"),
        ),
        (
            "shardwire_http_requests_total",
            "counter",
            "Requests of the HTTP API.",
            |s| s.counters.http_requests,
        ),
    ];
    for (name, kind, help, read) in families {
        page.family(name, kind, help);
        for (shard, stats) in shards {
            page.sample(name, &[("shard", &shard.0)], read(stats));
        }
    }
}

fn closed(counters: &Counters, cause: &str) -> u64 {
    counters
        .closed
        .iter()
        .find(|(label, _)| *label == cause)
        .map_or(0, |(_, count)| *count)
}

/// Several numbers per shard, told apart by a second label.
fn render_labelled(page: &mut Page, shards: &[(ShardId, Box<Stats>)]) {
    type Split = fn(&Stats) -> Vec<(String, u64)>;
    let families: [(&str, &str, &str, &str, Split); 7] = [
        (
            "shardwire_publishes_total",
            "counter",
            "Publishes by what became of them.",
            "result",
            |s| {
                let c = &s.counters;
                named([
                    ("accepted", c.published),
                    ("duplicate", c.duplicates),
                    ("refused", c.publishes_refused),
                ])
            },
        ),
        (
            "shardwire_handshakes_total",
            "counter",
            "Connection attempts by what became of them.",
            "result",
            |s| {
                let c = &s.counters;
                named([
                    ("accepted", c.opened),
                    ("refused", c.refused),
                    ("failed", c.heads_failed),
                ])
            },
        ),
        (
            "shardwire_tls_handshakes_total",
            "counter",
            "TLS handshakes by what became of them.",
            "result",
            |s| named(s.counters.tls_handshakes.iter().copied()),
        ),
        (
            "shardwire_connections_closed_total",
            "counter",
            "Connections that ended, by cause.",
            "cause",
            |s| named(s.counters.closed.iter().copied()),
        ),
        (
            "shardwire_errors_total",
            "counter",
            "Errors told to clients, by code.",
            "code",
            |s| {
                s.counters
                    .errors
                    .iter()
                    .map(|(code, count)| (code.to_string(), *count))
                    .collect()
            },
        ),
        (
            "shardwire_mesh_messages_total",
            "counter",
            "Messages between shards.",
            "direction",
            |s| named([("in", s.counters.mesh_in), ("out", s.counters.mesh_out)]),
        ),
        (
            "shardwire_mesh_pending",
            "gauge",
            "Messages that wait for the way to a shard.",
            "peer",
            |s| {
                s.mesh_pending
                    .iter()
                    .enumerate()
                    .map(|(peer, count)| (peer.to_string(), *count as u64))
                    .collect()
            },
        ),
    ];
    for (name, kind, help, label, split) in families {
        page.family(name, kind, help);
        for (shard, stats) in shards {
            for (value, count) in split(stats) {
                page.sample(name, &[("shard", &shard.0), (label, &value)], count);
            }
        }
    }
}

fn named<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<(String, u64)> {
    counts
        .into_iter()
        .map(|(label, count)| (label.to_owned(), count))
        .collect()
}

fn render_histograms(page: &mut Page, shards: &[(ShardId, Box<Stats>)]) {
    type Read = fn(&Stats) -> &Histogram;
    let families: [(&str, &str, Read); 2] = [
        (
            "shardwire_delivery_seconds",
            "From acceptance at the home shard until a shard has sent.",
            |s| &s.counters.delivery,
        ),
        (
            "shardwire_turn_seconds",
            "Length of the flush that ends a turn.",
            |s| &s.counters.flush,
        ),
    ];
    for (name, help, read) in families {
        page.family(name, "histogram", help);
        for (shard, stats) in shards {
            page.histogram(name, &[("shard", &shard.0)], read(stats));
        }
    }
}

fn render_process(page: &mut Page, process: &Process) {
    if let Some(bytes) = process.resident_bytes {
        page.family("process_resident_memory_bytes", "gauge", "Resident memory.");
        page.sample("process_resident_memory_bytes", &[], bytes);
    }
    if let Some(seconds) = process.cpu_seconds {
        page.family(
            "process_cpu_seconds_total",
            "counter",
            "User and system time.",
        );
        page.sample("process_cpu_seconds_total", &[], seconds);
    }
    if let Some(fds) = process.open_fds {
        page.family("process_open_fds", "gauge", "Open file descriptors.");
        page.sample("process_open_fds", &[], fds);
    }
}

/// The text so far. Label values here are numbers and fixed names: none needs an escape.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a `String` does not fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(
                self.0,
                "{}{label}=\"{text}\"",
                if at == 0 { '{' } else { ',' }
            );
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// Buckets are cumulative on the page.
    fn histogram(&mut self, name: &str, labels: &[(&str, &dyn Display)], histogram: &Histogram) {
        let bucket_name = format!("{name}_bucket");
        let mut bucket = |bound: &dyn Display, count: u64| {
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound)]).collect();
            self.sample(&bucket_name, &labels, count);
        };
        let mut below = 0;
        let finite = histogram.buckets.iter().take(Histogram::BUCKETS - 1);
        for (index, count) in finite.enumerate() {
            below += count;
            bucket(&(Histogram::bound_us(index) as f64 / 1e6), below);
        }
        bucket(&"+Inf", histogram.count());
        let sum = histogram.sum_us as f64 / 1e6;
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }
}

#[cfg(test)]
mod tests;
