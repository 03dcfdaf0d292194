//! What the broker has counted, for metrics and readiness. Written by its thread and by whoever submits, read by anybody.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use shardwire_proto::shard::Histogram;

use crate::store::SharedHistogram;

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) up: AtomicBool,
    /// Since when it is not up, ms since the Unix epoch.
    pub(super) down_since_ms: AtomicU64,
    pub(super) queue_ops: AtomicUsize,
    pub(super) queue_bytes: AtomicUsize,
    pub(super) published: AtomicU64,
    pub(super) publishes_failed: AtomicU64,
    pub(super) publishes_refused: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) publish: SharedHistogram,
    pub(super) received: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) unreadable: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) redirects: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) topics: AtomicUsize,
    pub(super) topics_heard: AtomicUsize,
    pub(super) servers: AtomicUsize,
    pub(super) closing: AtomicBool,
}

/// The broker's numbers at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerStats {
    /// Publishing works, at least with some of its servers.
    pub up: bool,
    /// Since when it does not, ms since the Unix epoch.
    pub down_since_ms: Option<u64>,
    /// Operations under way, and their bytes.
    pub queue_ops: usize,
    pub queue_bytes: usize,
    /// Publishes that Redis has carried out, that failed, and that there was no room for.
    pub published: u64,
    pub publishes_failed: u64,
    pub publishes_refused: u64,
    /// Pipelines sent.
    pub batches: u64,
    /// From hand-over to answer.
    pub publish: Histogram,
    /// Messages heard on topics; those that there was no room for; those that were not understood.
    pub received: u64,
    pub dropped: u64,
    pub unreadable: u64,
    /// Open sockets, and those that had to be opened again.
    pub connections: u64,
    pub reconnects: u64,
    /// Commands that a cluster has sent elsewhere.
    pub redirects: u64,
    /// Commands that could not be served for a moment and were sent again.
    pub retries: u64,
    /// Topics wanted, and those heard.
    pub topics: usize,
    pub topics_heard: usize,
    /// Redis servers in use.
    pub servers: usize,
}

impl Shared {
    pub(super) fn stats(&self) -> BrokerStats {
        let up = self.up.load(Relaxed);
        let since = self.down_since_ms.load(Relaxed);
        BrokerStats {
            up,
            down_since_ms: (!up).then_some(since),
            queue_ops: self.queue_ops.load(Relaxed),
            queue_bytes: self.queue_bytes.load(Relaxed),
            published: self.published.load(Relaxed),
            publishes_failed: self.publishes_failed.load(Relaxed),
            publishes_refused: self.publishes_refused.load(Relaxed),
            batches: self.batches.load(Relaxed),
            publish: self.publish.load(),
            received: self.received.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            unreadable: self.unreadable.load(Relaxed),
            connections: self.connections.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            redirects: self.redirects.load(Relaxed),
            retries: self.retries.load(Relaxed),
            topics: self.topics.load(Relaxed),
            topics_heard: self.topics_heard.load(Relaxed),
            servers: self.servers.load(Relaxed),
        }
    }
}
