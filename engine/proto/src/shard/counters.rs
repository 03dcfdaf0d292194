//! What a shard has counted since its start.

use crate::error::{CloseCause, ErrorCode};
use crate::rate::table::{Class, Scope};

/// Plain numbers: the shard is their only writer, the driver publishes copies.
#[derive(Debug, Default, Clone)]
pub struct Counters {
    /// Handshakes that became connections.
    pub opened: u64,
    /// Handshakes refused with an HTTP status.
    pub refused: u64,
    /// Current subscriptions of all connections.
    pub subscriptions: u64,
    /// Messages of clients, of every kind.
    pub messages_in: u64,
    /// Payload bytes of those.
    pub bytes_in: u64,
    /// Publishes accepted by this shard as home.
    pub published: u64,
    /// Publishes whose id was known.
    pub duplicates: u64,
    /// Publishes refused, for whatever reason.
    pub publishes_refused: u64,
    /// Messages put into subscribers' outboxes.
    pub deliveries: u64,
    /// Messages of the past sent to connections that came (back).
    pub replayed: u64,
    /// Holes in what the broker told of a channel, and messages that filled such or came after a time of not hearing it.
    pub broker_gaps: u64,
    pub broker_filled: u64,
    /// Messages that the broker could not give any more; at least one for each change of numbering.
    pub broker_lost: u64,
    /// Messages that came a second time.
    pub broker_repeated: u64,
    /// Messages put into the store for a node that has not said that it did.
    pub broker_repaired: u64,
    /// Presence notices put into outboxes.
    pub presence_notices: u64,
    /// Memberships that their client came back to, as home.
    pub presence_returns: u64,
    /// Events raised for back ends, and those of them that did not fit.
    pub hook_events: u64,
    pub hook_events_dropped: u64,
    /// Bytes put into outboxes.
    pub bytes_queued: u64,
    /// Messages from and to other shards.
    pub mesh_in: u64,
    pub mesh_out: u64,
    /// Connections that ended, by [`CloseCause::label`].
    pub closed: Vec<(&'static str, u64)>,
    /// Errors told to clients, by code.
    pub errors: Vec<(u16, u64)>,
    /// What was refused for a rate, by class and scope.
    pub limited: [[u64; Scope::ALL.len()]; Class::ALL.len()],
    /// Requests of the HTTP API.
    pub http_requests: u64,
    /// Connections that ended before a request or handshake was read: garbage, deadline, gone.
    pub heads_failed: u64,
    /// TLS handshakes, by what became of them.
    pub tls_handshakes: Vec<(&'static str, u64)>,
    /// Bytes the kernel took, and the sends that it took for them.
    pub bytes_sent: u64,
    pub sends: u64,
    /// Sends that the kernel could not take whole.
    pub sends_blocked: u64,
    /// CPU time of the shard's thread, us, as of the last question for these numbers.
    pub cpu_us: u64,
    /// From acceptance at the home shard until a shard has flushed its subscribers.
    pub delivery: Histogram,
    /// Length of a flush.
    pub flush: Histogram,
}

/// A shard's counters, and what it holds at this moment.
#[derive(Debug, Clone)]
pub struct Stats {
    pub counters: Counters,
    pub connections: usize,
    /// Channels with a subscriber, or somebody who watches presence, on this shard.
    pub channels: usize,
    /// Channels that this shard orders.
    pub home_channels: usize,
    /// Presence members of those channels, and how many of them are away.
    pub members: usize,
    pub members_away: usize,
    /// Bytes of messages kept in memory for replays.
    pub ring_bytes: usize,
    /// Operations and reads that wait for the store.
    pub store_pending: usize,
    pub outbox_bytes: usize,
    /// Messages that wait for the lane to each peer.
    pub mesh_pending: Vec<usize>,
}

/// Durations in buckets that double: bucket `n` holds those up to 2^(n + 4) us, the last the rest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Histogram {
    pub buckets: [u64; Self::BUCKETS],
    pub sum_us: u64,
}

impl Histogram {
    /// 16 us to 8 s, and beyond.
    pub const BUCKETS: usize = 21;

    pub fn record(&mut self, us: u64) {
        let index = (0..Self::BUCKETS - 1).find(|n| us <= Self::bound_us(*n));
        if let Some(bucket) = self.buckets.get_mut(index.unwrap_or(Self::BUCKETS - 1)) {
            *bucket += 1;
        }
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// Upper bound of a bucket but the last, in us.
    pub fn bound_us(bucket: usize) -> u64 {
        16 << bucket
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl Counters {
    pub fn count_close(&mut self, cause: &CloseCause) {
        bump(&mut self.closed, cause.label(), 1);
    }

    pub fn count_limited(&mut self, class: Class, scope: Scope) {
        let scopes = self.limited.get_mut(class.index());
        if let Some(count) = scopes.and_then(|scopes| scopes.get_mut(scope.index())) {
            *count += 1;
        }
    }

    pub fn count_error(&mut self, code: ErrorCode) {
        bump(&mut self.errors, code.code(), 1);
    }

    pub fn count_tls_handshakes(&mut self, outcome: &'static str, count: u64) {
        if count > 0 {
            bump(&mut self.tls_handshakes, outcome, count);
        }
    }
}

fn bump<K: PartialEq>(counts: &mut Vec<(K, u64)>, key: K, more: u64) {
    match counts.iter_mut().find(|(k, _)| *k == key) {
        Some((_, n)) => *n += more,
        None => counts.push((key, more)),
    }
}
