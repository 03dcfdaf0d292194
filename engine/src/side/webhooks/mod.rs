//! Webhooks: events of apps, delivered to the back ends that asked for them (contract D24).
//!
//! ```text
//! shards, usage, push ──Job──► webhooks thread ──Shipment──► webhook-send threads ──► endpoints
//!                                │      ▲ └── wanted ──► shards   │
//!                                ▼      └────────Report───────────┘
//!                              outbox (records): events, deliveries under way, what stands, dead letters
//! ```
//! What is due to whom, when and in which order is decided in `shardwire_proto::webhook`; [`keeper`] owns it, and the
//! outbox. One process of those that share an outbox owns it ([`ownership`]): it numbers and delivers. The others write
//! what they raise into it, and one of them takes over when the owner ends or dies.
//!
//! Invariants: an event is in the outbox before anybody is sent it; what was raised and taken is there, or in memory, or
//! its raiser still has it; for a message that was acknowledged as stored there is an event whatever process dies when
//! ([`catchup`]); secrets leave this module in the answer that makes them only.

mod attempts;
mod calls;
mod catchup;
mod deliver;
mod endpoints;
mod guard;
mod keeper;
mod lines;
mod outbox;
mod ownership;
mod peers;

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};
use futures_lite::future;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::ids::ShardId;
use shardwire_proto::shard::HookEvents;
use shardwire_proto::webhook::{RETRY_MS, Raised, Wanted};

pub use self::calls::{Call, Order};
use self::keeper::Keeper;
use crate::records::RecordStorage;
use crate::registry::RegistryHandle;
use crate::shard::inbox::{self, InboxSender};
use crate::store::StoreHandle;
use crate::sync::lock;

/// Batches of events and calls that may wait; of more, events stay with whoever raised them, and calls are refused.
const JOBS_MAX: usize = 256;
/// Snapshots of what is wanted that may wait for a shard; of more the last counts.
pub const WANTED_WAITING_MAX: usize = 4;
/// A call that is not answered by then is given up.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// File section `[webhooks]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhooksConfig {
    /// Whether targets may be in private, loopback and link-local networks.
    pub allow_private: bool,
    /// Whether targets must be `https://`.
    pub require_https: bool,
    /// From the name lookup to the answer's head, ms.
    pub timeout_ms: u64,
    /// Attempts under way at once; a failing endpoint has one of them, and all failing ones half.
    pub threads: usize,
    /// Pauses before each further attempt at a delivery, ms; after the last it is a dead letter.
    pub retry_ms: Vec<u64>,
    /// How long events can be had again, seconds. What is not delivered by then is not delivered.
    pub retention_s: u64,
    /// How long dead letters are kept, seconds.
    pub dead_letters_s: u64,
}

impl Default for WebhooksConfig {
    fn default() -> Self {
        Self {
            allow_private: false,
            require_https: false,
            timeout_ms: 5_000,
            threads: 16,
            retry_ms: RETRY_MS.to_vec(),
            retention_s: 3 * 24 * 3600,
            dead_letters_s: 30 * 24 * 3600,
        }
    }
}

/// The way to the webhooks' thread, for any thread. Clones are the same.
#[derive(Debug, Clone)]
pub struct WebhookHandle {
    jobs: Sender<Job>,
    /// When the thread has to end.
    stop: Sender<Instant>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stats: Mutex<WebhookStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Numbers for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebhookStats {
    /// This process delivers.
    pub is_owner: bool,
    pub endpoints: usize,
    /// Of them, those that get nothing for now because they fail.
    pub endpoints_open: usize,
    /// Events numbered for an endpoint.
    pub events: u64,
    /// Of them delivered.
    pub delivered: u64,
    /// Neither delivered nor given up, over all endpoints.
    pub behind: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts under way.
    pub in_flight: usize,
    /// Deliveries given up.
    pub dead: u64,
    /// Writes of the outbox that failed.
    pub write_failures: u64,
    /// From an event to its receipt, ms: sums by bound of [`LATENCY_BOUNDS_MS`], and all.
    pub latency: [u64; LATENCY_BOUNDS_MS.len() + 1],
    pub latency_sum_ms: u64,
}

/// Upper bounds of the histogram of latencies, ms.
pub const LATENCY_BOUNDS_MS: [u64; 10] = [10, 25, 50, 100, 250, 500, 1000, 2500, 10_000, 60_000];

#[derive(Debug)]
enum Job {
    Shard(ShardId, HookEvents),
    Raise(Box<Raised>),
    Call(Box<Call>, InboxSender<Result<Value, ProtocolError>>),
}

/// What the webhooks' thread needs of others.
pub struct Surroundings {
    pub storage: Arc<dyn RecordStorage>,
    pub config: WebhooksConfig,
    pub registry: RegistryHandle,
    pub store: StoreHandle,
    /// Who is told what is wanted.
    pub shards: Vec<InboxSender<Arc<Wanted>>>,
    /// How long what stood before a crash may come back before it counts as ended, ms.
    pub grace_ms: u64,
}

/// Opens the outbox and starts the thread; returns what is wanted, for the shards' start.
///
/// # Errors
/// The outbox cannot be used.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start(surroundings: Surroundings) -> Result<(WebhookHandle, Arc<Wanted>), String> {
    let (jobs, queue) = crossbeam_channel::bounded(JOBS_MAX);
    let (stop, stopped) = crossbeam_channel::bounded(1);
    let shared = Arc::new(Shared::default());
    let keeper = Keeper::open(surroundings, shared.clone())?;
    let wanted = keeper.wanted();
    let thread = std::thread::Builder::new().name("webhooks".to_owned());
    let thread = thread.spawn(move || keeper.run(&queue, &stopped));
    *lock(&shared.thread) = Some(thread.expect("a thread can be started"));
    let handle = WebhookHandle { jobs, stop, shared };
    Ok((handle, wanted))
}

impl WebhookHandle {
    /// Hands over what a shard has raised.
    ///
    /// # Errors
    /// Gives it back where too much waits: it is for the next time.
    pub fn take(&self, shard: ShardId, events: HookEvents) -> Result<(), Vec<Raised>> {
        let sent = self.jobs.try_send(Job::Shard(shard, events));
        sent.map_err(|refused| match refused.into_inner() {
            Job::Shard(_, events) => events.raised,
            _ => Vec::new(),
        })
    }

    /// Raises an event, from any thread.
    ///
    /// # Errors
    /// Gives it back where too much waits.
    pub fn raise(&self, event: Raised) -> Result<(), Raised> {
        let sent = self.jobs.try_send(Job::Raise(Box::new(event)));
        sent.or_else(|refused| match refused {
            TrySendError::Full(Job::Raise(event))
            | TrySendError::Disconnected(Job::Raise(event)) => Err(*event),
            _ => Ok(()),
        })
    }

    /// An operator's call; waits on a shard's executor.
    ///
    /// # Errors
    /// What is wrong with it; 50300 when too much waits or the outbox cannot be used.
    pub async fn call(&self, call: Call) -> Result<Value, ProtocolError> {
        let (reply, answer) = inbox::bounded(1);
        self.jobs
            .try_send(Job::Call(Box::new(call), reply))
            .map_err(|_| ProtocolError::from(ErrorCode::Unavailable))?;
        let late = async {
            glommio::timer::sleep(CALL_DEADLINE).await;
            Err(ErrorCode::Unavailable.into())
        };
        future::or(answer.recv(), late).await
    }

    /// For metrics.
    #[must_use]
    pub fn stats(&self) -> WebhookStats {
        lock(&self.shared.stats).clone()
    }

    /// Ends the thread: all that was raised is in the outbox then, and what could be was delivered within `patience`.
    pub fn shutdown(&self, patience: Duration) {
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread {
            // There is room: it is sent once.
            _ = self.stop.try_send(Instant::now() + patience);
            if thread.join().is_err() {
                log::error!("the webhooks' thread ended badly");
            }
        }
    }
}
