//! The way into the store for shards, scrapes and whoever starts and stops it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::{Change, StoreAnswer, StoreError, StoreOp, StoreRead, StoreReply};

use super::readers::{self, ReadJob};
use super::stats::{Shared, StoreStats};
use super::writer::{self, Job};
use super::{BackendError, READS_QUEUED_MAX, Role, Storage, StoreConfig};
use crate::shard::inbox::InboxSender;

/// How long a thread waits that may.
const ASK_PATIENCE: Duration = Duration::from_secs(10);

/// Access to a running store, for any thread. Clones are the same store.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    jobs: Sender<Job>,
    reads: Sender<ReadJob>,
    shared: Arc<Shared>,
    queue_ops_max: usize,
    queue_bytes_max: usize,
    /// Readers and writer, until they are shut down. Not touched by shards.
    threads: Mutex<Option<[Threads; 2]>>,
}

/// Threads that end together.
#[derive(Debug)]
struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Disconnected when all have ended.
    ended: Receiver<()>,
}

/// Opens the storage and starts its threads. `inboxes` are the shards', by index; see [`super::INBOX_ENTRIES`].
///
/// # Errors
/// The storage cannot be used; the text says why. Later failures heal by themselves.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start<S: Storage>(
    storage: S,
    config: &StoreConfig,
    inboxes: Vec<InboxSender<StoreReply>>,
) -> Result<StoreHandle, BackendError> {
    let storage = Arc::new(storage);
    let shared = Arc::new(Shared::default());
    // The writer first: it makes what readers expect.
    let writing = storage.open(Role::Writer)?;
    // Bounded by the two counters: a submission holds at least one operation.
    let (jobs, job_queue) = crossbeam_channel::unbounded();
    let (reads, read_queue) = crossbeam_channel::bounded(READS_QUEUED_MAX);
    let mut readers = Vec::new();
    for _ in 0..config.readers.max(1) {
        let backend = storage.open(Role::Reader)?;
        readers.push(readers::Reader::new(
            storage.clone(),
            backend,
            read_queue.clone(),
            inboxes.clone(),
            shared.clone(),
        ));
    }
    let writer = writer::Writer::new(storage, writing, job_queue, inboxes, shared.clone(), config);
    let threads = [
        spawn("store-read", readers, readers::Reader::run),
        spawn("store-write", vec![writer], writer::Writer::run),
    ];
    Ok(StoreHandle {
        inner: Arc::new(Inner {
            jobs,
            reads,
            shared,
            queue_ops_max: config.queue_ops_max,
            queue_bytes_max: config.queue_bytes_max,
            threads: Mutex::new(Some(threads)),
        }),
    })
}

fn spawn<T: Send + 'static>(name: &str, each: Vec<T>, run: fn(T)) -> Threads {
    let (alive, ended) = crossbeam_channel::bounded(0);
    let start = |state: T| {
        let alive: Sender<()> = alive.clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let body = move || {
            run(state);
            drop(alive);
        };
        thread.spawn(body).expect("a thread can be started")
    };
    Threads {
        handles: each.into_iter().map(start).collect(),
        ended,
    }
}

impl StoreHandle {
    /// Hands over what a shard has left in one turn, in the order of its tickets. Does not wait. Accepted operations
    /// are told to the shard's inbox by [`StoreReply::Done`].
    ///
    /// # Errors
    /// Gives all of them back when the queue is full or the store is stopping: none will be done. The shard takes their
    /// numbers back as if it had never given them. It keeps its generation: what is still queued of it may fail, and
    /// then what is numbered behind that has to fail with it.
    pub fn submit(&self, shard: ShardId, ops: Vec<StoreOp>) -> Result<(), Vec<StoreOp>> {
        if ops.is_empty() {
            return Ok(());
        }
        let Inner { jobs, shared, .. } = &*self.inner;
        let (count, bytes) = (ops.len(), ops.iter().map(op_bytes).sum());
        if !self.reserve(count, bytes) {
            shared.ops_refused.fetch_add(count as u64, Relaxed);
            return Err(ops);
        }
        jobs.send(Job::Ops { shard, ops, bytes }).map_err(|gone| {
            release(shared, count, bytes);
            match gone.0 {
                Job::Ops { ops, .. } => ops,
                Job::Stop => Vec::new(),
            }
        })
    }

    /// Asks a question; the answer comes as [`StoreReply::Answer`]. Does not wait.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] when too many questions wait, [`StoreError::Failed`] when the store is stopping.
    pub fn read(&self, shard: ShardId, read: StoreRead) -> Result<(), StoreError> {
        let Inner { reads, shared, .. } = &*self.inner;
        if shared.closing.load(Relaxed) {
            return Err(StoreError::Failed);
        }
        reads
            .try_send(ReadJob::Read(shard, read))
            .map_err(|refused| match refused {
                TrySendError::Full(_) => {
                    shared.reads_refused.fetch_add(1, Relaxed);
                    StoreError::Overloaded
                }
                TrySendError::Disconnected(_) => StoreError::Failed,
            })
    }

    /// Asks a question and waits for the answer: for threads that may, never for a shard.
    ///
    /// # Errors
    /// As [`StoreHandle::read`], and [`StoreError::Failed`] where there is no answer in time.
    pub fn ask(&self, read: StoreRead) -> Result<StoreAnswer, StoreError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let Inner { reads, shared, .. } = &*self.inner;
        if shared.closing.load(Relaxed) {
            return Err(StoreError::Failed);
        }
        let sent = reads.send_timeout(ReadJob::Ask(read, reply), ASK_PATIENCE);
        sent.map_err(|_| StoreError::Overloaded)?;
        answer
            .recv_timeout(ASK_PATIENCE)
            .unwrap_or(Err(StoreError::Failed))
    }

    /// The store's numbers, for metrics and readiness.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        self.inner.shared.stats(self.inner.reads.len())
    }

    /// Answers what was asked, commits what was submitted, closes the storage. Shards have stopped submitting. Returns
    /// whether all that was done within `patience`; where it was not (a disk that hangs) the threads are left behind.
    pub fn shutdown(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let inner = &*self.inner;
        inner.shared.closing.store(true, Relaxed);
        let threads = inner.threads.lock();
        let Some([readers, writer]) = threads.unwrap_or_else(PoisonError::into_inner).take() else {
            return true;
        };
        for _ in &readers.handles {
            // Fails where a reader is gone, which is as well.
            _ = inner.reads.send_deadline(ReadJob::Stop, deadline);
        }
        // The writer last: the last connection to close folds the log into the database.
        let read = readers.end(deadline);
        _ = inner.jobs.send(Job::Stop);
        let written = writer.end(deadline);
        read && written
    }

    /// Whether there is room, which is then taken. A submission above a bound is taken when it is alone.
    fn reserve(&self, count: usize, bytes: usize) -> bool {
        let Inner { shared, .. } = &*self.inner;
        if shared.closing.load(Relaxed) {
            return false;
        }
        let ops_before = shared.queue_ops.fetch_add(count, Relaxed);
        let bytes_before = shared.queue_bytes.fetch_add(bytes, Relaxed);
        let fits = ops_before == 0
            || (ops_before + count <= self.inner.queue_ops_max
                && bytes_before + bytes <= self.inner.queue_bytes_max);
        if !fits {
            release(shared, count, bytes);
        }
        fits
    }
}

impl Threads {
    /// Whether all have ended well by `deadline`.
    fn end(self, deadline: Instant) -> bool {
        let ended = self.ended.recv_deadline(deadline) == Err(RecvTimeoutError::Disconnected);
        ended && self.handles.into_iter().all(|thread| thread.join().is_ok())
    }
}

/// Gives room back.
pub(super) fn release(shared: &Shared, count: usize, bytes: usize) {
    shared.queue_ops.fetch_sub(count, Relaxed);
    shared.queue_bytes.fetch_sub(bytes, Relaxed);
}

/// What an operation counts against the queue's bytes.
fn op_bytes(op: &StoreOp) -> usize {
    let record = match &op.change {
        Change::Append { record, .. } => record.weight(),
        Change::Clear => 0,
    };
    size_of::<StoreOp>() + record
}
