//! The thread that changes the store: group commit, and in between expiry, probing and healing.
//!
//! ```text
//!            batch fails            probe or batch succeeds
//!   well ─────────────────► failing ─────────────────────► well
//!                             │  ▲
//!              Broken: closed ▼  │ opened again, with back-off
//!                           closed: batches fail untried
//! ```
//!
//! Invariants: a shard is told of an operation once, after its transaction, in ticket order; an operation of a failed
//! generation is not tried. What cannot be told at once is kept and told with what follows.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::{StoreOp, StoreReply, Ticket};

use super::handle::release;
use super::stats::Shared;
use super::{Applied, Backend, BackendError, Role, Storage, StoreConfig, now_ms};
use crate::shard::inbox::InboxSender;

/// Length of one step of expiry: what it adds to an ack at worst, but for a checkpoint of the database.
const EXPIRE_STEP: Duration = Duration::from_millis(2);
/// From the end of a step to the next: expiry takes a tenth of the thread at most.
const EXPIRE_EVERY: Duration = Duration::from_millis(20);
/// From the end of a round to the question whether another is due.
const EXPIRE_ROUND_EVERY: Duration = Duration::from_secs(1);
/// Between two looks whether the storage is well: how soon it is seen that it is again, without traffic. Tests wait for
/// several.
const CHECK_EVERY: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });
/// Back-off of opening again.
const REOPEN_AFTER_MIN: Duration = Duration::from_millis(100);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(5);
/// Until a full inbox is tried again.
const INBOX_RETRY: Duration = Duration::from_millis(1);
/// Longest wait at the end for full inboxes.
const INBOX_LAST_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Job {
    Ops {
        shard: ShardId,
        ops: Vec<StoreOp>,
        /// What they were counted as against the queue's bytes.
        bytes: usize,
    },
    /// Commit what was queued before, and end.
    Stop,
}

pub(super) struct Writer<S: Storage> {
    storage: Arc<S>,
    /// Kept while broken until another one is open.
    backend: S::Backend,
    queue: Receiver<Job>,
    shards: Vec<Book>,
    shared: Arc<Shared>,
    batch_ops_max: usize,
    batch_bytes_max: usize,
    commit_wait: Duration,
    batch: Batch,
    /// When to open the storage again; `Some` while the backend is broken.
    reopen_at: Option<Instant>,
    /// From the next break to the opening: grows until a batch or a probe has succeeded.
    reopen_after: Duration,
    /// A batch has failed since the last check: what a probe says is of no interest.
    failed_lately: bool,
    expire_at: Instant,
    check_at: Instant,
    stopping: bool,
}

/// One transaction in the making.
#[derive(Default)]
struct Batch {
    ops: Vec<StoreOp>,
    /// The submissions they came in, in this order and without gaps.
    parts: Vec<Part>,
    /// What it holds of the queue's bounds, with operations that are not tried.
    count: usize,
    bytes: usize,
}

/// What one submission has put into a batch.
struct Part {
    shard: ShardId,
    /// Where its operations end; they begin where those of the one before end.
    end: usize,
}

impl Batch {
    /// Indexes of the operations of some parts.
    fn ops_of(&self, parts: &Range<usize>) -> Range<usize> {
        let end = |part: Option<usize>| part.map_or(0, |part| self.parts[part].end);
        end(parts.start.checked_sub(1))..end(parts.end.checked_sub(1))
    }
}

/// What is known of one shard.
struct Book {
    inbox: InboxSender<StoreReply>,
    /// Operations of this generation and of those before fail.
    failed_generation: Option<u32>,
    /// Done and not told; complete once the batch is committed.
    done: Option<Done>,
}

struct Done {
    up_to: Ticket,
    failed: Vec<Ticket>,
    removed: Vec<(Ticket, u64)>,
}

impl Book {
    /// What is to be told, with `ticket` and all before it done.
    fn done_up_to(&mut self, ticket: Ticket) -> &mut Done {
        let done = self.done.get_or_insert(Done {
            up_to: ticket,
            failed: Vec::new(),
            removed: Vec::new(),
        });
        done.up_to = done.up_to.max(ticket);
        done
    }
}

impl<S: Storage> Writer<S> {
    pub(super) fn new(
        storage: Arc<S>,
        backend: S::Backend,
        queue: Receiver<Job>,
        inboxes: Vec<InboxSender<StoreReply>>,
        shared: Arc<Shared>,
        config: &StoreConfig,
    ) -> Self {
        let book = |inbox| Book {
            inbox,
            failed_generation: None,
            done: None,
        };
        let now = Instant::now();
        Self {
            storage,
            backend,
            queue,
            shards: inboxes.into_iter().map(book).collect(),
            shared,
            batch_ops_max: config.batch_ops_max.max(1),
            batch_bytes_max: config.batch_bytes_max,
            commit_wait: Duration::from_micros(config.commit_wait_us),
            batch: Batch::default(),
            reopen_at: None,
            reopen_after: Duration::ZERO,
            failed_lately: false,
            expire_at: now + EXPIRE_EVERY,
            check_at: now + CHECK_EVERY,
            stopping: false,
        }
    }

    /// Commits until told to stop or nobody is left to submit.
    pub(super) fn run(mut self) {
        while !self.stopping {
            match self.queue.recv_deadline(self.next_due()) {
                Ok(job) => self.commit_from(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
            self.tell();
            self.keep_house();
        }
        // What was submitted while the order to stop was on its way.
        while let Ok(job) = self.queue.try_recv() {
            self.commit_from(job);
        }
        let deadline = Instant::now() + INBOX_LAST_WAIT;
        while !self.tell() && Instant::now() < deadline {
            std::thread::sleep(INBOX_RETRY);
        }
    }

    fn next_due(&self) -> Instant {
        let untold = self.shards.iter().any(|book| book.done.is_some());
        let retry = untold.then(|| Instant::now() + INBOX_RETRY);
        let due = self.check_at.min(self.expire_at);
        [retry, self.reopen_at]
            .into_iter()
            .flatten()
            .fold(due, Instant::min)
    }

    /// Gathers a batch that begins with `job`, and commits it.
    fn commit_from(&mut self, job: Job) {
        self.take(job);
        let deadline = Instant::now() + self.commit_wait;
        while !self.stopping
            && self.batch.count < self.batch_ops_max
            && self.batch.bytes < self.batch_bytes_max
        {
            let more = match self.queue.try_recv() {
                Ok(job) => Some(job),
                Err(_) if self.commit_wait.is_zero() => None,
                Err(_) => self.queue.recv_deadline(deadline).ok(),
            };
            match more {
                Some(job) => self.take(job),
                None => break,
            }
        }
        self.commit();
    }

    /// Puts operations into the batch, but for those whose generation has failed.
    fn take(&mut self, job: Job) {
        let Job::Ops { shard, ops, bytes } = job else {
            self.stopping = true;
            return;
        };
        self.batch.count += ops.len();
        self.batch.bytes += bytes;
        let Some(book) = self.shards.get_mut(shard.index()) else {
            log::error!(
                "store: shard {} has no inbox: its operations are ignored",
                shard.0
            );
            return;
        };
        let Some(last) = ops.last() else {
            return;
        };
        let failed_generation = book.failed_generation;
        let done = book.done_up_to(last.ticket);
        for op in ops {
            if failed_generation.is_some_and(|failed| op.generation <= failed) {
                done.failed.push(op.ticket);
                self.shared.ops_failed.fetch_add(1, Relaxed);
            } else {
                self.batch.ops.push(op);
            }
        }
        let end = self.batch.ops.len();
        self.batch.parts.push(Part { shard, end });
    }

    /// Ends the batch: committed or failed, and written into the shards' books.
    fn commit(&mut self) {
        let all = 0..self.batch.parts.len();
        if self.reopen_at.is_some() {
            self.on_failed(all);
        } else if !self.batch.ops.is_empty()
            && let Err(BackendError::Order(_)) = self.commit_parts(all.clone())
        {
            // One shard's mistake is not the others': each submission by itself.
            for part in all {
                if self.is_failed(part) {
                    self.on_failed(part..part + 1);
                } else if let Err(error) = self.commit_parts(part..part + 1) {
                    self.on_failed(part..part + 1);
                    self.note(Err(&error));
                }
            }
        }
        release(&self.shared, self.batch.count, self.batch.bytes);
        self.batch.ops.clear();
        self.batch.parts.clear();
        (self.batch.count, self.batch.bytes) = (0, 0);
    }

    /// One transaction. Its outcome is in the books, but for [`BackendError::Order`].
    fn commit_parts(&mut self, parts: Range<usize>) -> Result<(), BackendError> {
        let ops = self.batch.ops_of(&parts);
        let started = Instant::now();
        let applied = self.writing(|backend, batch, now| {
            let ops = batch.ops.get(ops).unwrap_or_default();
            match backend.apply(ops, now) {
                Err(BackendError::Busy(_)) => backend.apply(ops, now),
                applied => applied,
            }
        });
        let us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.commit.record(us);
        self.shared.last_commit_us.store(us, Relaxed);
        match applied {
            Ok(applied) => {
                self.on_committed(parts, &applied);
                self.note(Ok(()));
                Ok(())
            }
            Err(BackendError::Order(text)) => Err(BackendError::Order(text)),
            Err(error) => {
                self.on_failed(parts);
                self.note(Err(&error));
                Ok(())
            }
        }
    }

    fn on_committed(&mut self, parts: Range<usize>, applied: &Applied) {
        let ops = self.batch.ops_of(&parts);
        self.shared.ops.fetch_add(ops.len() as u64, Relaxed);
        self.shared.commits.fetch_add(1, Relaxed);
        for (index, messages) in &applied.removed {
            let index = ops.start + index;
            let part = self.batch.parts.partition_point(|part| part.end <= index);
            let op = self.batch.ops.get(index);
            if let (Some(op), Some(part)) = (op, self.batch.parts.get(part)) {
                let done = self.shards[part.shard.index()].done_up_to(op.ticket);
                done.removed.push((op.ticket, *messages));
            }
        }
    }

    /// Fails operations, and whatever still comes of their generations.
    fn on_failed(&mut self, parts: Range<usize>) {
        self.failed_lately = true;
        let failed = self.batch.ops_of(&parts).len() as u64;
        self.shared.commits_failed.fetch_add(failed.min(1), Relaxed);
        self.shared.ops_failed.fetch_add(failed, Relaxed);
        for index in parts {
            let ops = self.batch.ops_of(&(index..index + 1));
            let book = &mut self.shards[self.batch.parts[index].shard.index()];
            for op in &self.batch.ops[ops] {
                book.done_up_to(op.ticket).failed.push(op.ticket);
                book.failed_generation = book.failed_generation.max(Some(op.generation));
            }
        }
    }

    /// Whether a part may not be tried, its generation having failed since it was taken.
    fn is_failed(&self, part: usize) -> bool {
        let first = self
            .batch
            .ops
            .get(self.batch.ops_of(&(part..part + 1)).start);
        let failed = self.shards[self.batch.parts[part].shard.index()].failed_generation;
        first.is_some_and(|op| Some(op.generation) <= failed)
    }

    /// Does something with the backend that may take long, visibly so.
    fn writing<T>(&mut self, work: impl FnOnce(&mut S::Backend, &Batch, u64) -> T) -> T {
        let now = now_ms();
        self.shared.writing_since_ms.store(now, Relaxed);
        let outcome = work(&mut self.backend, &self.batch, now);
        self.shared.writing_since_ms.store(0, Relaxed);
        outcome
    }

    /// Tells shards what is done. Whether all have been told.
    fn tell(&mut self) -> bool {
        for book in &mut self.shards {
            let Some(done) = book.done.take() else {
                continue;
            };
            let reply = StoreReply::Done {
                up_to: done.up_to,
                failed: done.failed,
                removed: done.removed,
            };
            if let Err(StoreReply::Done {
                up_to,
                failed,
                removed,
            }) = book.inbox.try_send(reply)
            {
                book.done = Some(Done {
                    up_to,
                    failed,
                    removed,
                });
            }
        }
        self.shards.iter().all(|book| book.done.is_none())
    }

    /// What is due besides batches; each a short step.
    fn keep_house(&mut self) {
        let now = Instant::now();
        if let Some(reopen_at) = self.reopen_at {
            // Nothing else can be done meanwhile.
            self.expire_at = now + EXPIRE_EVERY;
            self.check_at = now + CHECK_EVERY;
            if now >= reopen_at {
                self.open_again();
            }
        } else if now >= self.check_at {
            self.check_at = now + CHECK_EVERY;
            self.check();
        } else if now >= self.expire_at {
            self.expire();
        }
    }

    fn check(&mut self) {
        let probe = self.is_failing() && !std::mem::take(&mut self.failed_lately);
        let checked = self.writing(|backend, _, _| {
            backend.check()?;
            if probe { backend.probe() } else { Ok(()) }
        });
        if probe || checked.is_err() {
            self.note(checked.as_ref().copied());
        }
    }

    fn expire(&mut self) {
        let expired = self.writing(|backend, _, now| backend.expire(now, EXPIRE_STEP));
        let pause = match &expired {
            Ok(expired) if !expired.round_done => EXPIRE_EVERY,
            Ok(_) | Err(_) => EXPIRE_ROUND_EVERY,
        };
        self.expire_at = Instant::now() + pause;
        match expired {
            Ok(expired) => _ = self.shared.expired.fetch_add(expired.messages, Relaxed),
            Err(error) => self.note(Err(&error)),
        }
    }

    /// The other connection is opened before the broken one is closed: closing the last one of a file would make the
    /// next recover what a failed transaction may have left.
    fn open_again(&mut self) {
        match self.storage.open(Role::Writer) {
            // The next batch or probe says whether that was all.
            Ok(backend) => {
                self.backend = backend;
                self.reopen_at = None;
                self.shared.reopened.fetch_add(1, Relaxed);
            }
            Err(error) => self.note(Err(&BackendError::Broken(error.to_string()))),
        }
    }

    fn is_failing(&self) -> bool {
        self.shared.failing_since_ms.load(Relaxed) > 0
    }

    /// Keeps the state of the store; logs where it changes.
    fn note(&mut self, outcome: Result<(), &BackendError>) {
        let failing = self.is_failing();
        let Err(error) = outcome else {
            if failing {
                self.reopen_after = Duration::ZERO;
                self.shared.failing_since_ms.store(0, Relaxed);
                log::info!("store: writing works again");
            }
            return;
        };
        match error {
            // The storage is well; each one is a mistake to be found.
            BackendError::Order(_) => {
                self.shared.order_errors.fetch_add(1, Relaxed);
                log::error!("store: a batch was refused: {error}");
                return;
            }
            BackendError::Broken(_) => {
                let at = Instant::now() + self.reopen_after;
                self.reopen_at = Some(at);
                self.reopen_after =
                    (self.reopen_after * 2).clamp(REOPEN_AFTER_MIN, REOPEN_AFTER_MAX);
            }
            BackendError::Busy(_) | BackendError::Refused(_) => {}
        }
        if !failing {
            self.shared.failing_since_ms.store(now_ms(), Relaxed);
            log::error!("store: writing fails, messages with history are refused: {error}");
        }
    }
}
