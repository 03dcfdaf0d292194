//! The nodes of a cluster, through Redis: who is there, members of channels on all of them, calls from one to the others.
//!
//! ```text
//!  shards ──SharedOp──► cluster thread ──scripts──► Redis: members, clients, nodes and their leases
//!     ▲                   │  ▲                        │
//!     └──SharedReply──────┘  └───── bus (pub/sub) ◄───┴──► cluster threads of other nodes
//! ```
//! A thread of its own, with connections of its own: what happens here is rare beside messages (`broker`) and must not
//! wait behind them. Changes of members reach the shards over the channels' topics, which the broker hears. What a shard
//! makes of all that is decided in `shardwire_proto`.
//!
//! A node has a lease. Each connection to Redis begins another one, under another name: what a node held by the last is
//! held by both until that one is over, so that a node that comes back never races with who tidies up behind it. One node
//! at a time, the sweeper, ends the members of leases that are over.
//!
//! Invariants: every operation with a ticket is answered; operations of one channel are carried out in their order; a
//! member whose lease is over leaves once, whoever sweeps.

mod bus;
mod limits;
mod mirror;
mod nodes;
mod presence;
mod session;
mod thread;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_lite::future;
use serde_json::Value;
use shardwire_proto::cluster::{SharedOp, SharedReply};
use shardwire_proto::ids::{Placement, ShardId};
use tokio::sync::mpsc;

pub use self::bus::{Call, CallReply};
pub use self::limits::AppUse;
pub use self::mirror::{CommitError, Mirrored};
pub use self::nodes::Node;
use crate::broker::RedisConfig;
use crate::broker::connect::Access;
use crate::broker::keys::Keys;
use crate::registry::RegistryHandle;
use crate::shard::inbox::{self, InboxSender};
use crate::sync::lock;

/// Batches of operations, and calls, that may wait for the thread; a shard keeps what finds no room.
const JOBS_MAX: usize = 4096;
/// Replies that may wait for a shard; the thread waits then.
pub const REPLIES_WAITING_MAX: usize = 16_384;
/// Calls of other nodes that may wait; beyond it they are not answered.
pub const CALLS_WAITING_MAX: usize = 1024;
/// A node that has not answered a call by then is left out.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// What the thread is told at its start.
#[derive(Debug)]
pub struct Setup {
    pub redis: RedisConfig,
    pub placement: Placement,
    /// By shard.
    pub replies: Vec<InboxSender<SharedReply>>,
    pub calls: InboxSender<Incoming>,
    /// Takes over what other nodes have changed of apps and credentials.
    pub registry: RegistryHandle,
    /// What other nodes are told of this one.
    pub about: Value,
    /// How long it is remembered where a client has connected, ms.
    pub opened_remembered_ms: u64,
}

/// A call of another node, to be answered by [`ClusterHandle::answer`].
#[derive(Debug)]
pub struct Incoming {
    pub call: Call,
    /// Who asks, and its number of the call.
    pub from: (Arc<str>, u64),
}

/// The way to the other nodes, for any thread. Clones are the same.
#[derive(Debug, Clone)]
pub struct ClusterHandle {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

/// What others look at.
#[derive(Debug)]
struct Shared {
    /// Name of this node, for as long as the process lives.
    name: Arc<str>,
    is_up: AtomicBool,
    /// As of the last beat.
    nodes: Mutex<Vec<Node>>,
    gauges: Gauges,
    /// What apps use on this node.
    uses: Mutex<HashMap<Arc<str>, AppUse>>,
    counters: Counters,
    /// The process ends: shards do not listen any more.
    is_ending: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// Nodes beside this one.
    fn others(&self) -> usize {
        let nodes = lock(&self.nodes);
        nodes.iter().filter(|node| node.name != self.name).count()
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Relaxed)
    }
}

/// Of this node, by shard, as of its last tick.
#[derive(Debug, Default)]
struct Gauges {
    shards: Box<[(AtomicU64, AtomicU64)]>,
}

impl Gauges {
    /// Connections and channels.
    fn sum(&self) -> (u64, u64) {
        let both = self.shards.iter();
        let both = both.map(|(a, b)| (a.load(Relaxed), b.load(Relaxed)));
        both.fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
    }
}

/// What the thread has counted.
#[derive(Debug, Default)]
pub struct Counters {
    pub operations: AtomicU64,
    pub operations_failed: AtomicU64,
    pub connects: AtomicU64,
    pub calls_sent: AtomicU64,
    pub calls_answered: AtomicU64,
    pub nodes_buried: AtomicU64,
    pub members_expired: AtomicU64,
}

#[derive(Debug)]
enum Job {
    Ops {
        shard: ShardId,
        ops: Vec<SharedOp>,
    },
    Call {
        call: Call,
        /// Of each other node that has answered in time.
        reply: InboxSender<Vec<CallReply>>,
    },
    Answer {
        to: (Arc<str>, u64),
        answer: Value,
    },
    Commit(mirror::Commit),
    /// The other nodes are to look at the store that all share.
    TellStored,
    /// Give up what this node holds, then end.
    Stop,
}

/// Starts the thread. It connects by itself, and again whenever that is lost.
///
/// # Errors
/// The configuration is of no use; the text says why.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start(setup: Setup) -> Result<ClusterHandle, String> {
    let access = Access::new(&setup.redis)?;
    let keys = Keys::new(&setup.redis.key_prefix);
    let (jobs, queue) = mpsc::channel(JOBS_MAX);
    let gauges = setup.replies.iter().map(|_| Default::default());
    let shared = Arc::new(Shared {
        name: node_name(),
        is_up: AtomicBool::new(false),
        nodes: Mutex::default(),
        gauges: Gauges {
            shards: gauges.collect(),
        },
        uses: Mutex::default(),
        counters: Counters::default(),
        is_ending: AtomicBool::new(false),
        thread: Mutex::default(),
    });
    let run = thread::Thread::new(setup, access, keys, queue, shared.clone());
    let thread = std::thread::Builder::new().name("cluster".to_owned());
    let thread = thread.spawn(move || run.run());
    *lock(&shared.thread) = Some(thread.expect("a thread can be started"));
    Ok(ClusterHandle { jobs, shared })
}

impl ClusterHandle {
    /// Hands over what a shard has left in one turn. Does not wait.
    ///
    /// # Errors
    /// Gives all of it back when there is no room.
    pub fn submit(&self, shard: ShardId, ops: Vec<SharedOp>) -> Result<(), Vec<SharedOp>> {
        self.jobs
            .try_send(Job::Ops { shard, ops })
            .map_err(|refused| match refused.into_inner() {
                Job::Ops { ops, .. } => ops,
                _ => Vec::new(),
            })
    }

    /// Asks all other nodes that are there, on a shard's executor.
    ///
    /// # Errors
    /// Not all of them have answered in time, or nobody knows which there are.
    pub async fn call(&self, call: Call) -> Result<Vec<CallReply>, Unanswered> {
        if !self.is_up() {
            return Err(Unanswered);
        }
        let wanted = self.shared.others();
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let (reply, answers) = inbox::bounded(1);
        self.jobs
            .try_send(Job::Call { call, reply })
            .map_err(|_| Unanswered)?;
        let late = async {
            // The thread keeps the deadline; this is for one that hangs.
            glommio::timer::sleep(CALL_DEADLINE * 2).await;
            Vec::new()
        };
        let answers = future::or(answers.recv(), late).await;
        if answers.len() < wanted.min(self.shared.others()) {
            return Err(Unanswered);
        }
        Ok(answers)
    }

    /// Answers a call of another node; lost where there is no room, as any call may be.
    pub fn answer(&self, to: (Arc<str>, u64), answer: Value) {
        _ = self.jobs.try_send(Job::Answer { to, answer });
    }

    /// Tells the other nodes that there is something else in the store of apps and credentials that all share. Lost where
    /// Redis is away or there is no room: they look by themselves too.
    pub fn tell_stored(&self) {
        _ = self.jobs.try_send(Job::TellStored);
    }

    /// Takes note of how many connections and channels a shard has.
    pub fn gauge(&self, shard: ShardId, connections: usize, channels: usize) {
        if let Some((a, b)) = self.shared.gauges.shards.get(shard.index()) {
            a.store(connections as u64, Relaxed);
            b.store(channels as u64, Relaxed);
        }
    }

    /// Takes note of what an app uses here.
    pub fn note_use(&self, app: &Arc<str>, add: impl FnOnce(&mut AppUse)) {
        let mut uses = lock(&self.shared.uses);
        add(uses.entry(app.clone()).or_default());
    }

    /// The name of this node.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Whether Redis answers.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.is_up.load(Relaxed)
    }

    /// The nodes whose leases hold, this one among them, as of about a second ago.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        lock(&self.shared.nodes).clone()
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Lets other nodes have the members that may come back, ends the others, and the thread.
    pub fn shutdown(&self, patience: Duration) {
        let thread = lock(&self.shared.thread).take();
        let Some(thread) = thread else {
            return;
        };
        self.shared.is_ending.store(true, Relaxed);
        let until = std::time::Instant::now() + patience;
        while self.jobs.try_send(Job::Stop).is_err() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        while !thread.is_finished() {
            if std::time::Instant::now() >= until {
                log::warn!(
                    "cluster: Redis does not answer; this node's members leave with its lease"
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.join().is_err() {
            log::error!("the cluster's thread ended badly");
        }
    }
}

/// Somebody has not answered: a part of the truth would look like the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered;

/// Not a secret, never given twice.
fn node_name() -> Arc<str> {
    let [a, b, c, d, e, f, ..] = crate::sys::random();
    let parts = [a, b, c, d, e, f].map(|byte| format!("{byte:02x}"));
    parts.concat().into()
}
