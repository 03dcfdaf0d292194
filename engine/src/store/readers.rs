//! Threads that answer questions. Each owns a connection; all take from one bounded queue, so answers come out of order.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::{StoreAnswer, StoreError, StoreRead, StoreReply};

use super::stats::Shared;
use super::{Backend, BackendError, Role, Storage, now_ms};
use crate::shard::inbox::InboxSender;

/// Longest wait for a full inbox. A shard drains its inbox every turn: past this it is stuck or gone.
const INBOX_WAIT_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether a full inbox has room.
const INBOX_POLL: Duration = Duration::from_millis(1);
/// Shortest time between two attempts to open the storage.
const REOPEN_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) enum ReadJob {
    Read(ShardId, StoreRead),
    /// Of a thread that waits.
    Ask(StoreRead, Sender<Result<StoreAnswer, StoreError>>),
    /// One reader ends.
    Stop,
}

pub(super) struct Reader<S: Storage> {
    storage: Arc<S>,
    /// `None` while the storage cannot be opened.
    backend: Option<S::Backend>,
    queue: Receiver<ReadJob>,
    inboxes: Vec<InboxSender<StoreReply>>,
    shared: Arc<Shared>,
    /// [`Shared::reopened`] at the time of opening.
    opened_at: u64,
    /// No attempt to open before.
    try_from: Instant,
}

impl<S: Storage> Reader<S> {
    pub(super) fn new(
        storage: Arc<S>,
        backend: S::Backend,
        queue: Receiver<ReadJob>,
        inboxes: Vec<InboxSender<StoreReply>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            storage,
            backend: Some(backend),
            queue,
            inboxes,
            shared,
            opened_at: 0,
            try_from: Instant::now(),
        }
    }

    /// Answers until told to stop or nobody is left to ask.
    pub(super) fn run(mut self) {
        while let Ok(job) = self.queue.recv() {
            let (ReadJob::Read(_, read) | ReadJob::Ask(read, _)) = &job else {
                return;
            };
            let started = Instant::now();
            let answer = self.answer(read);
            let us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.shared.read.record(us);
            self.note(&answer);
            let answer = answer.map_err(|_| StoreError::Failed);
            match job {
                ReadJob::Read(shard, StoreRead { ticket, .. }) => {
                    self.deliver(shard, StoreReply::Answer { ticket, answer });
                }
                // Whoever asked may have given up.
                ReadJob::Ask(_, reply) => _ = reply.try_send(answer),
                ReadJob::Stop => return,
            }
        }
    }

    fn answer(&mut self, read: &StoreRead) -> Result<StoreAnswer, BackendError> {
        self.keep_open();
        match self.read(read) {
            Err(BackendError::Busy(_)) => self.read(read),
            Err(BackendError::Broken(_)) => {
                self.backend = None;
                self.keep_open();
                self.read(read)
            }
            answer => answer,
        }
    }

    fn read(&mut self, read: &StoreRead) -> Result<StoreAnswer, BackendError> {
        match &mut self.backend {
            Some(backend) => backend.read(read, now_ms()),
            None => Err(BackendError::Broken("the store is not open".to_owned())),
        }
    }

    /// Opens the storage where it is not open, or where the writer has opened it again: the file may be another one.
    fn keep_open(&mut self) {
        let reopened = self.shared.reopened.load(Relaxed);
        let too_early = Instant::now() < self.try_from;
        if self.opened_at == reopened && (self.backend.is_some() || too_early) {
            return;
        }
        self.try_from = Instant::now() + REOPEN_EVERY;
        // Why it fails is told by the writer, and by the answer that fails.
        self.backend = self.storage.open(Role::Reader).ok();
        self.opened_at = reopened;
    }

    /// Counts a failure; logs the first after an answer and the first answer after it.
    fn note(&self, answer: &Result<StoreAnswer, BackendError>) {
        let failed = answer.is_err();
        if failed {
            self.shared.reads_failed.fetch_add(1, Relaxed);
        }
        if self.shared.reads_failing.swap(failed, Relaxed) == failed {
            return;
        }
        match answer {
            Err(error) => log::error!("store: reading fails: {error}"),
            Ok(_) => log::info!("store: reading works again"),
        }
    }

    fn deliver(&self, shard: ShardId, mut reply: StoreReply) {
        let Some(inbox) = self.inboxes.get(shard.index()) else {
            return;
        };
        let deadline = Instant::now() + INBOX_WAIT_MAX;
        while let Err(back) = inbox.try_send(reply) {
            if Instant::now() > deadline {
                log::warn!("store: shard {} takes no answers", shard.0);
                return;
            }
            reply = back;
            std::thread::sleep(INBOX_POLL);
        }
    }
}
