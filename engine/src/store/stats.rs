//! What the store's threads count, and what they are at. Shared with scrapes: relaxed atomics, written per commit and
//! per question, never per operation.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use shardwire_proto::shard::Histogram;

/// The store's numbers at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStats {
    /// Operations that wait or are in the making, and bytes of their records.
    pub queue_ops: usize,
    pub queue_bytes: usize,
    /// Questions that wait for a reader.
    pub reads_queued: usize,
    /// Operations committed.
    pub ops: u64,
    /// Operations that failed after they had been accepted.
    pub ops_failed: u64,
    /// Operations refused because the queue was full.
    pub ops_refused: u64,
    /// Transactions committed. `ops / commits` is the mean batch.
    pub commits: u64,
    pub commits_failed: u64,
    /// Batches that contradicted what was stored: 0, or this program has a mistake.
    pub order_errors: u64,
    /// Length of transactions, failed ones too.
    pub commit: Histogram,
    /// The last one's, µs.
    pub last_commit_us: u64,
    /// Questions answered, and those among them that failed.
    pub reads: u64,
    pub reads_failed: u64,
    /// Questions refused because the queue was full.
    pub reads_refused: u64,
    /// Time to answer, without the wait for a reader.
    pub read: Histogram,
    /// Messages removed by expiry; those trimmed while appending are not counted.
    pub expired: u64,
    /// Times the storage was opened again.
    pub reopened: u64,
    /// Since when writing fails, ms since the Unix epoch; `None` while the store is well.
    pub failing_since_ms: Option<u64>,
    /// Since when the writer waits for the storage, ms since the Unix epoch. Far back: the disk hangs.
    pub writing_since_ms: Option<u64>,
}

impl StoreStats {
    /// Whether publishes can be expected to be stored: nothing fails, and the writer waits no longer than
    /// `wait_max_ms`.
    #[must_use]
    pub fn is_well(&self, now_ms: u64, wait_max_ms: u64) -> bool {
        let hangs = |since| now_ms.saturating_sub(since) > wait_max_ms;
        self.failing_since_ms.is_none() && !self.writing_since_ms.is_some_and(hangs)
    }
}

/// [`StoreStats`] as the threads keep them. A time of 0 means none.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) queue_ops: AtomicUsize,
    pub(super) queue_bytes: AtomicUsize,
    pub(super) ops: AtomicU64,
    pub(super) ops_failed: AtomicU64,
    pub(super) ops_refused: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) commits_failed: AtomicU64,
    pub(super) order_errors: AtomicU64,
    pub(super) commit: SharedHistogram,
    pub(super) last_commit_us: AtomicU64,
    pub(super) reads_failed: AtomicU64,
    pub(super) reads_refused: AtomicU64,
    pub(super) read: SharedHistogram,
    pub(super) expired: AtomicU64,
    /// Readers open theirs again when it has changed: the file may be another one.
    pub(super) reopened: AtomicU64,
    pub(super) failing_since_ms: AtomicU64,
    pub(super) writing_since_ms: AtomicU64,
    /// Whether the last question failed, so that this is logged once.
    pub(super) reads_failing: AtomicBool,
    /// Nothing more is accepted.
    pub(super) closing: AtomicBool,
}

impl Shared {
    pub(super) fn stats(&self, reads_queued: usize) -> StoreStats {
        let time = |value: &AtomicU64| Some(value.load(Relaxed)).filter(|ms| *ms > 0);
        let read = self.read.load();
        StoreStats {
            queue_ops: self.queue_ops.load(Relaxed),
            queue_bytes: self.queue_bytes.load(Relaxed),
            reads_queued,
            ops: self.ops.load(Relaxed),
            ops_failed: self.ops_failed.load(Relaxed),
            ops_refused: self.ops_refused.load(Relaxed),
            commits: self.commits.load(Relaxed),
            commits_failed: self.commits_failed.load(Relaxed),
            order_errors: self.order_errors.load(Relaxed),
            commit: self.commit.load(),
            last_commit_us: self.last_commit_us.load(Relaxed),
            reads: read.count(),
            reads_failed: self.reads_failed.load(Relaxed),
            reads_refused: self.reads_refused.load(Relaxed),
            read,
            expired: self.expired.load(Relaxed),
            reopened: self.reopened.load(Relaxed),
            failing_since_ms: time(&self.failing_since_ms),
            writing_since_ms: time(&self.writing_since_ms),
        }
    }
}

/// A [`Histogram`] with several writers.
#[derive(Debug, Default)]
pub(crate) struct SharedHistogram {
    buckets: [AtomicU64; Histogram::BUCKETS],
    sum_us: AtomicU64,
}

impl SharedHistogram {
    pub(crate) fn record(&self, us: u64) {
        let last = Histogram::BUCKETS - 1;
        let index = (0..last).find(|n| us <= Histogram::bound_us(*n));
        self.buckets[index.unwrap_or(last)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub(crate) fn load(&self) -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|n| self.buckets[n].load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
        }
    }
}
