//! The way to the broker for shards, scrapes and whoever starts and stops it; and its thread.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shardwire_proto::broker::{BrokerOp, BrokerReply};
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::{StoreError, StoreRead};
use tokio::sync::mpsc;

use super::config::RedisConfig;
use super::connect::Access;
use super::core::{Core, Held};
use super::lane::{Done, Failure, Job};
use super::scripts::{self, Settings};
use super::stats::{BrokerStats, Shared};
use super::{layout, repair, topics};
use crate::shard::inbox::InboxSender;

/// Batches of replies that a shard's inbox should hold; a full one loses nothing but messages, whose holes are filled.
pub const INBOX_BATCHES: usize = 1024;

/// Submissions that may wait for the thread: bounded by their operations, too.
const SUBMISSIONS_MAX: usize = 16_384;

enum Request {
    Ops {
        shard: ShardId,
        ops: Vec<BrokerOp>,
        asked: Instant,
    },
    Read(ShardId, StoreRead),
    Stop,
}

/// Access to a running broker, for any thread. Clones are the same one.
#[derive(Debug, Clone)]
pub struct BrokerHandle {
    inner: Arc<Inner>,
}

struct Inner {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    queue_ops_max: usize,
    queue_bytes_max: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

/// Starts the broker's thread. It serves though Redis is away, and connects when it is there.
///
/// # Errors
/// The configuration is of no use; the text says why.
///
/// # Panics
/// The thread or its runtime cannot be made: there is no process without it.
pub fn start(
    config: &RedisConfig,
    settings: Settings,
    inboxes: Vec<InboxSender<Vec<BrokerReply>>>,
) -> Result<BrokerHandle, String> {
    let access = Access::new(config)?;
    let shared = Arc::new(Shared::default());
    shared.down_since_ms.store(crate::clock::now_ms(), Relaxed);
    let (requests, queue) = mpsc::channel(SUBMISSIONS_MAX);
    let thread = {
        let (config, shared) = (config.clone(), shared.clone());
        let body = move || run(config, access, settings, shared, inboxes, queue);
        let thread = std::thread::Builder::new().name("broker".to_owned());
        thread.spawn(body).expect("a thread can be started")
    };
    Ok(BrokerHandle {
        inner: Arc::new(Inner {
            requests,
            shared,
            queue_ops_max: config.queue_ops_max,
            queue_bytes_max: config.queue_bytes_max,
            thread: Mutex::new(Some(thread)),
        }),
    })
}

impl BrokerHandle {
    /// Hands over what a shard has left in one turn, in its order. Does not wait.
    ///
    /// # Errors
    /// Gives all of them back when the queue is full or the broker is stopping.
    pub fn submit(&self, shard: ShardId, ops: Vec<BrokerOp>) -> Result<(), Vec<BrokerOp>> {
        let Inner {
            requests, shared, ..
        } = &*self.inner;
        let publishes = ops.iter().filter(|op| matches!(op, BrokerOp::Publish(_)));
        let count = publishes.count();
        let bytes = ops.iter().map(op_bytes).sum();
        if count > 0 && !self.reserve(count, bytes) {
            shared.publishes_refused.fetch_add(count as u64, Relaxed);
            return Err(ops);
        }
        let request = Request::Ops {
            shard,
            ops,
            asked: Instant::now(),
        };
        requests.try_send(request).map_err(|refused| {
            shared.queue_ops.fetch_sub(count, Relaxed);
            shared.queue_bytes.fetch_sub(bytes, Relaxed);
            match refused.into_inner() {
                Request::Ops { ops, .. } => ops,
                Request::Read(..) | Request::Stop => Vec::new(),
            }
        })
    }

    /// Asks a question; the answer comes as [`BrokerReply::Answer`]. Does not wait.
    ///
    /// # Errors
    /// [`StoreError::Overloaded`] when too much waits.
    pub fn read(&self, shard: ShardId, read: StoreRead) -> Result<(), StoreError> {
        let request = Request::Read(shard, read);
        let sent = self.inner.requests.try_send(request);
        sent.map_err(|_| StoreError::Failed)
    }

    /// The broker's numbers, for metrics and readiness.
    #[must_use]
    pub fn stats(&self) -> BrokerStats {
        self.inner.shared.stats()
    }

    /// Waits until publishing works, at most for `patience`; whether it does.
    pub fn wait_connected(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while !self.inner.shared.up.load(Relaxed) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Carries out what was submitted and ends. Returns whether all that was done within `patience`.
    pub fn shutdown(&self, patience: Duration) -> bool {
        self.inner.shared.closing.store(true, Relaxed);
        let thread = self.inner.thread.lock();
        let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() else {
            return true;
        };
        let deadline = Instant::now() + patience;
        while self.inner.requests.try_send(Request::Stop).is_err() && !thread.is_finished() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        while !thread.is_finished() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().is_ok()
    }

    fn reserve(&self, count: usize, bytes: usize) -> bool {
        let Inner { shared, .. } = &*self.inner;
        let ops_before = shared.queue_ops.fetch_add(count, Relaxed);
        let bytes_before = shared.queue_bytes.fetch_add(bytes, Relaxed);
        let fits = !shared.closing.load(Relaxed)
            && (ops_before == 0
                || (ops_before + count <= self.inner.queue_ops_max
                    && bytes_before + bytes <= self.inner.queue_bytes_max));
        if !fits {
            shared.queue_ops.fetch_sub(count, Relaxed);
            shared.queue_bytes.fetch_sub(bytes, Relaxed);
        }
        fits
    }
}

/// What an operation counts against the queue's bytes; only publishes do.
fn op_bytes(op: &BrokerOp) -> usize {
    match op {
        BrokerOp::Publish(publish) => size_of::<Job>() + publish.publish.text_len(),
        BrokerOp::Follow(_)
        | BrokerOp::Unfollow { .. }
        | BrokerOp::Stored { .. }
        | BrokerOp::Clear { .. } => 0,
    }
}

/// The thread.
fn run(
    config: RedisConfig,
    access: Access,
    settings: Settings,
    shared: Arc<Shared>,
    inboxes: Vec<InboxSender<Vec<BrokerReply>>>,
    requests: mpsc::Receiver<Request>,
) {
    if let Ok(core) = usize::try_from(config.core) {
        pin(core);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let (pushes, heard) = mpsc::unbounded_channel();
        let core = Core::new(config, access, settings, shared, inboxes, pushes);
        tokio::task::spawn_local(layout::keep(core.clone()));
        tokio::task::spawn_local(topics::hear(core.clone(), heard));
        tokio::task::spawn_local(core.clone().keep_flushing());
        if core.settings.is_shared_store {
            tokio::task::spawn_local(repair::keep(core.clone()));
        }
        serve(&core, requests).await;
        finish(&core).await;
    });
}

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        log::warn!("broker.redis.core {core}: {error}; the broker runs on any");
    }
}

/// Takes what shards ask until told to stop.
async fn serve(core: &std::rc::Rc<Core>, mut requests: mpsc::Receiver<Request>) {
    let mut batch = Vec::new();
    while requests.recv_many(&mut batch, 256).await > 0 {
        for request in batch.drain(..) {
            match request {
                Request::Ops { shard, ops, asked } => {
                    for op in ops {
                        take(core, shard, op, asked);
                    }
                }
                Request::Read(shard, read) => {
                    tokio::task::spawn_local(answer(core.clone(), shard, read));
                }
                Request::Stop => return,
            }
        }
        core.flush();
        tokio::task::yield_now().await;
    }
}

fn take(core: &std::rc::Rc<Core>, shard: ShardId, op: BrokerOp, asked: Instant) {
    match op {
        BrokerOp::Publish(publish) => {
            let item = publish.publish.borrow();
            let keys = core.keys.channel(item.app, item.channel);
            let bytes = size_of::<Job>() + publish.publish.text_len();
            let job = Job {
                cmd: scripts::publish(&keys, &publish, &core.next_epoch(), &core.settings),
                slot: keys.slot(),
                deadline: asked + Duration::from_millis(core.config.publish_timeout_ms),
                done: Done::Publish {
                    shard,
                    ticket: publish.ticket,
                    asked,
                },
                asking: false,
                held: Some(Held::counted(core.shared.clone(), bytes)),
            };
            core.push(job, true);
        }
        BrokerOp::Follow(follow) => topics::follow(core, shard, follow),
        BrokerOp::Stored { channel, sequence } => {
            let keys = core.keys.channel(&channel.app, &channel.name);
            let job = Job {
                cmd: scripts::stored(&keys, sequence),
                slot: keys.slot(),
                deadline: asked + Duration::from_millis(core.config.publish_timeout_ms),
                // Whether it is done is of no matter: a repair finds nothing to do.
                done: Done::Call(tokio::sync::oneshot::channel().0),
                asking: false,
                held: None,
            };
            core.push(job, true);
        }
        BrokerOp::Unfollow { channel, follow } => topics::unfollow(core, &channel, follow),
        BrokerOp::Clear { ticket, channel } => {
            let core = core.clone();
            tokio::task::spawn_local(async move {
                let keys = core.keys.channel(&channel.app, &channel.name);
                let cleared = topics::call(&core, scripts::clear(&keys), keys.slot()).await;
                let result = cleared
                    .and_then(|value| scripts::integer(&value).ok_or(Failure::Refused))
                    .map_err(Failure::into);
                core.reply(shard, BrokerReply::ClearDone { ticket, result });
                core.flush();
            });
        }
    }
}

async fn answer(core: std::rc::Rc<Core>, shard: ShardId, read: StoreRead) {
    let keys = core.keys.channel(&read.app, &read.channel);
    let value = match scripts::ask(&keys, &read.question) {
        Some(cmd) => topics::call(&core, cmd, keys.slot()).await.ok(),
        None => None,
    };
    let answer = value
        .and_then(|value| scripts::answer(&read.question, value))
        .ok_or(StoreError::Failed);
    let ticket = read.ticket;
    core.reply(shard, BrokerReply::Answer { ticket, answer });
    core.flush();
}

/// Waits until publishes under way are decided, for as long as one may take.
async fn finish(core: &Core) {
    let patience = Duration::from_millis(core.config.publish_timeout_ms);
    let deadline = Instant::now() + patience;
    while core.shared.queue_ops.load(Relaxed) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    core.stop();
    core.flush();
}
