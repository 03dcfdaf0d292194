//! Start and stop order of the process.
//!
//! Start: listening sockets (so that a taken address fails before anything runs), store, shards, mesh, ready, accepting.
//! Stop, on SIGTERM, SIGINT or [`Operator::drain`]: tell (`/readyz`), accept no more, end connections at the configured
//! pace with what is due to them, stop shards, flush the store. A second signal stops at once. SIGHUP reads the
//! configuration again.

mod cluster;
mod kept;
mod operator;
mod people;
mod reload;
mod shard_thread;
mod sockets;
mod stop;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use glommio::channels::channel_mesh::MeshBuilder;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::broker::BrokerReply;
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::ids::{Placement as ChannelPlacement, ShardId};
use shardwire_proto::record::StoreReply;
use shardwire_proto::shard::KeptMember;
use shardwire_proto::webhook::{Raised, Wanted, What};
use socket2::Socket;

use crate::accept::{Acceptor, INBOX_CONNECTIONS};
use crate::activation::Inherited;
use crate::broker::{self, BrokerHandle};
use crate::cluster::{ClusterHandle, Incoming};
use crate::config::Config;
use crate::http::AdminStart;
use crate::keys::{self, Opened};
use crate::records;
use crate::registry::{self, RegistryHandle};
use crate::shard::inbox::{self, Inbox, InboxSender};
use crate::shard::{LANE_BATCHES, read_clock, start_clock};
use crate::side::push::{self, PushHandle, WhoIsThere};
use crate::side::webhooks::{self, Surroundings, WebhookHandle};
use crate::store::mongo::{MongoStorage, Regime};
use crate::store::sqlite::Sqlite;
use crate::store::{self, StoreHandle};
use crate::takeover::{self, Offered};
use crate::tls::Acceptors;
use crate::usage::{self, AppTotals, UsageHandle};
use crate::watchdog::{Beats, Watchdog};
use crate::{notify, sys};
use cluster::Joined;
pub use operator::Operator;
use operator::Order;
pub use people::reachable;
use reload::options;
use shard_thread::{Control, Plan, WantedEvents};
use sockets::Sockets;
use stop::stop;

/// Name of the embedded store in the data folder.
const MESSAGES_FILE: &str = "messages.db";

/// How long a stop waits for the store to commit what it has accepted.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a start waits for the broker.
const BROKER_START_PATIENCE: Duration = Duration::from_secs(2);

/// How long a stop waits for publishes that are under way to the broker.
const BROKER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a stop waits for Redis to take this node's members.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(3);

/// What a stop takes beside draining and the store.
const STOP_MARGIN: Duration = Duration::from_secs(3);

/// Orders that may wait for a shard: more than are ever given in a row.
const CONTROL_QUEUE: usize = 16;

/// Memory for direct I/O that every executor sets aside: the least it accepts, as no file is read
/// on a shard.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// Entries of a shard's submission ring: a burst of this many sockets is armed in one system call.
const RING_DEPTH: usize = 1024;

/// The addresses that are served.
#[derive(Debug, Clone)]
pub struct Ready {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// Where the dashboard is; none without one.
    pub dashboard: Option<String>,
    /// The page that makes the first account, while there is none. A secret.
    pub setup: Option<String>,
}

/// Why the process cannot go on.
#[derive(Debug)]
pub enum RunError {
    /// An address cannot be listened on.
    Listen { addr: SocketAddr, error: io::Error },
    /// A shard's thread or its ring could not be made.
    Shard { shard: u16, error: String },
    /// Signals cannot be caught.
    Signals(io::Error),
    /// The record of usage cannot be used.
    Usage(String),
    /// The store of messages cannot be used.
    Store(String),
    /// The outbox of webhooks cannot be used.
    Webhooks(String),
    /// Push cannot be used.
    Push(String),
    /// The way to other nodes is configured wrongly.
    Broker(String),
    /// Redis cannot be used as configured.
    Cluster(String),
    /// The thread that follows certificate files cannot be made.
    Tls(io::Error),
    /// The admin token cannot be read.
    AdminToken(String),
    /// Accounts cannot be used.
    Accounts(String),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen { addr, error } => write!(
                f,
                "cannot listen on {addr}: {error}; choose another with --listen or --admin-listen"
            ),
            Self::Shard { shard, error } => write!(
                f,
                "shard {shard} cannot start: {error}; `shardwire check` says what this host lacks"
            ),
            Self::Signals(error) => write!(f, "cannot catch signals: {error}"),
            Self::Usage(error) => write!(f, "cannot use the record of usage: {error}"),
            Self::Webhooks(error) => write!(f, "cannot use the outbox of webhooks: {error}"),
            Self::Push(error) => write!(f, "cannot start push: {error}"),
            Self::Store(error) => write!(f, "cannot use the store of messages: {error}"),
            Self::Broker(error) => write!(f, "broker.redis: {error}"),
            Self::Cluster(error) => write!(f, "cannot use [broker.redis]: {error}"),
            Self::Tls(error) => write!(f, "cannot follow certificate files: {error}"),
            Self::AdminToken(error) => write!(f, "cannot read the admin token: {error}"),
            Self::Accounts(error) => write!(f, "cannot use the accounts: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

/// What a reload brings: a configuration that has been read and checked.
pub type Reload<'a> = &'a dyn Fn() -> Result<Config, String>;

/// Serves until a signal ends it, on the sockets that were passed on, or its own. Blocks; the caller's thread is the one
/// that orders start and end.
pub fn run(
    config: Config,
    tls: Acceptors,
    opened: Opened,
    inherited: Inherited,
    reload: Reload<'_>,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), RunError> {
    let (operator, orders) = Operator::new();
    operator.follow_signals().map_err(RunError::Signals)?;
    let sockets = Sockets::open(&config, inherited)?;
    let (inboxes, replies): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(store::INBOX_ENTRIES))
        .unzip();
    let store = match &opened.mongo {
        Some(mongo) => {
            let regime = if config.redis.is_on() {
                Regime::Cluster
            } else {
                Regime::Alone
            };
            let storage = MongoStorage::new(mongo.clone(), regime);
            store::start(storage, &config.store, inboxes)
        }
        None => {
            let storage = Sqlite::new(config.data_dir.join(MESSAGES_FILE));
            store::start(storage, &config.store, inboxes)
        }
    };
    let store = store.map_err(|error| RunError::Store(error.to_string()))?;
    let offered = offer_takeover(&config, &sockets, operator.clone());
    let (listen, admin) = sockets
        .addresses()
        .unwrap_or((config.listen, config.admin_listen));
    let token = keys::read_admin_token(&config.data_dir)
        .map_err(|error| RunError::AdminToken(error.to_string()))?;
    let (shard_inboxes, snapshots): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(registry::SNAPSHOTS_WAITING_MAX))
        .unzip();
    let Opened {
        documents,
        registry,
        mongo,
        ..
    } = opened;
    let registry = registry::start(
        documents,
        registry,
        shard_inboxes,
        config.auth.jwks_allow_http,
    );
    let (usage_inboxes, totals): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(usage::TOTALS_WAITING_MAX))
        .unzip();
    let (wanted_inboxes, wanted_later): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(webhooks::WANTED_WAITING_MAX))
        .unzip();
    let records = records::storage(mongo.as_ref(), &config.data_dir);
    let (webhooks, wanted) = webhooks::start(Surroundings {
        storage: records.clone(),
        config: config.webhooks.clone(),
        registry: registry.clone(),
        store: store.clone(),
        shards: wanted_inboxes,
        grace_ms: config.limits.presence_grace_ms,
    })
    .map_err(RunError::Webhooks)?;
    // Another process may work on the same database.
    let alone = mongo.is_none();
    let (usage, used) = usage::start(
        &config.data_dir,
        mongo,
        registry.clone(),
        usage_inboxes,
        tell_quotas(webhooks.clone()),
    )
    .map_err(RunError::Usage)?;
    let (ask_who, who) = inbox::bounded(push::WHO_WAITING_MAX);
    let push = push::start(
        &*records,
        &config.push,
        &config.data_dir,
        registry.clone(),
        ask_who,
        alone,
        push_ears(usage.clone(), webhooks.clone()),
    )
    .map_err(RunError::Push)?;
    let (broker_inboxes, heard): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(broker::INBOX_BATCHES))
        .unzip();
    let broker = start_broker(&config, broker_inboxes)?;
    let placement = placement(&config);
    let Joined {
        cluster,
        shared,
        calls,
    } = cluster::start(&config, &placement, &registry, (listen, admin))
        .map_err(RunError::Cluster)?;
    if let Some(cluster) = &cluster {
        usage.join(cluster.clone());
    }
    let inboxes = Inboxes {
        replies,
        snapshots,
        totals,
        wanted: wanted_later,
        heard,
        shared,
    };
    let people = people::start(&config, &sockets, &*records).map_err(RunError::Accounts)?;
    let clock = start_clock();
    let served = Served {
        registry: registry.clone(),
        placement,
        cluster: cluster.clone(),
        calls: Some(calls),
        store: store.clone(),
        broker: broker.clone(),
        usage: usage.clone(),
        push: push.clone(),
        who,
        used,
        webhooks: webhooks.clone(),
        wanted,
        tls: tls.clone(),
        admin: sockets.admin,
        dashboard: sockets.dashboard,
        members: {
            let now_ms = read_clock(clock).unix_ms;
            kept::take(&config.data_dir, config.limits.presence_grace_ms, now_ms).into()
        },
        clock,
        admin_start: AdminStart {
            token,
            config: Arc::new(config.clone()),
            listen,
            admin,
            operator,
            accounts: people.accounts.clone(),
        },
    };
    let (shards, connections) = start_shards(&config, served, inboxes)?;
    let failed = |error| RunError::Listen {
        addr: listen,
        error,
    };
    let acceptor = Acceptor::start(sockets.client, connections).map_err(failed)?;
    let _watch = tls.watch().map_err(RunError::Tls)?;
    if let Some(broker) = &broker {
        // Who is told that it is ready may publish at once. Without Redis it serves all the same.
        broker.wait_connected(BROKER_START_PATIENCE);
    }
    on_ready(&Ready {
        listen,
        admin,
        dashboard: people.url,
        setup: people.setup,
    });
    let mut pulse = Pulse::new(&shards.beats);
    let mut current = config;
    while pulse.next(&orders) == Order::Reload {
        reload::reload(&shards, &tls, &registry, &mut current, reload);
    }
    let accepting = Accepting { acceptor, offered };
    stop(shards, accepting, &current, &orders, pulse);
    push.shutdown();
    if let Some(accounts) = people.accounts {
        accounts.shutdown();
    }
    if broker.is_some_and(|broker| !broker.shutdown(BROKER_PATIENCE)) {
        log::error!("the broker did not finish; unacknowledged messages may be lost");
    }
    if let Some(cluster) = cluster {
        cluster.shutdown(CLUSTER_PATIENCE);
    }
    usage.shutdown();
    webhooks.shutdown(Duration::from_millis(current.webhooks.timeout_ms));
    registry.shutdown();
    if !store.shutdown(STORE_PATIENCE) {
        log::error!("the store did not finish; unacknowledged messages may be lost");
    }
    log::info!("stopped");
    Ok(())
}

/// Has notifications counted, and back ends told of those that failed.
fn push_ears(usage: UsageHandle, webhooks: WebhookHandle) -> push::Ears {
    push::Ears {
        used: Box::new(move |app, counts| usage.note_push(app, counts.sent, counts.failed)),
        failed: Box::new(move |failed| webhooks.raise(failed).is_ok()),
    }
}

/// Lets back ends know how far quotas are used up.
fn tell_quotas(webhooks: WebhookHandle) -> impl Fn(&usage::Mark) -> bool {
    move |mark| {
        let event = Raised {
            app: mark.app.clone(),
            timestamp: crate::clock::now_ms(),
            what: What::Quota {
                quota: mark.quota.to_owned(),
                percent: mark.percent,
                used: mark.used,
                limit: mark.limit,
            },
        };
        webhooks.raise(event).is_ok()
    }
}

/// Joins the other nodes, where there may be any.
fn start_broker(
    config: &Config,
    inboxes: Vec<InboxSender<Vec<BrokerReply>>>,
) -> Result<Option<BrokerHandle>, RunError> {
    if !config.redis.is_on() {
        return Ok(None);
    }
    let settings = broker::Settings {
        node: random_u64(),
        dedup_window_ms: config.limits.dedup_window_ms,
        is_shared_store: config.has_shared_store(),
    };
    broker::start(&config.redis, settings, inboxes)
        .map(Some)
        .map_err(RunError::Broker)
}

/// Lets a successor have the listening sockets. Without that the server runs as well.
fn offer_takeover(config: &Config, sockets: &Sockets, operator: Operator) -> Option<Offered> {
    let gone_within = stop_within(config);
    let taken = move || {
        log::info!("a successor has the listening sockets");
        operator.drain();
    };
    sockets
        .share()
        .and_then(|shared| takeover::offer(&config.data_dir, shared, gone_within, taken))
        .inspect_err(|error| log::warn!("no successor can take over from this process: {error}"))
        .ok()
}

/// How long a stop may take.
fn stop_within(config: &Config) -> Duration {
    let drain = &config.drain;
    let webhooks = Duration::from_millis(config.webhooks.timeout_ms);
    Duration::from_secs(drain.announce_s + drain.deadline_s)
        + webhooks
        + STORE_PATIENCE
        + STOP_MARGIN
}

/// Waits for orders, and gives signs of life meanwhile.
struct Pulse {
    /// With how often it is looked at; none where nobody wants to know.
    watchdog: Option<(Watchdog, Duration)>,
}

impl Pulse {
    fn new(beats: &Beats) -> Self {
        let watchdog = notify::watchdog_interval().map(|interval| {
            let watchdog = Watchdog::new(beats.clone(), interval, Instant::now());
            (watchdog, Watchdog::period(interval))
        });
        Self { watchdog }
    }

    /// The next order; a queue that nobody can fill any more means the end.
    fn next(&mut self, orders: &Receiver<Order>) -> Order {
        loop {
            if let Some(order) = self.next_within(orders, Duration::from_secs(3600)) {
                return order;
            }
        }
    }

    /// An order that comes before `wait` is over.
    fn next_within(&mut self, orders: &Receiver<Order>, wait: Duration) -> Option<Order> {
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            let mut step = until.saturating_duration_since(now);
            if let Some((watchdog, period)) = &mut self.watchdog {
                if watchdog.is_due(now) {
                    notify::alive();
                }
                step = step.min(*period);
            }
            match orders.recv_timeout(step) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Disconnected) => return Some(Order::Stop),
                Err(RecvTimeoutError::Timeout) if Instant::now() >= until => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// What shards hear from other threads, by index.
struct Inboxes {
    replies: Vec<Inbox<StoreReply>>,
    snapshots: Vec<Inbox<Arc<Registry>>>,
    totals: Vec<Inbox<AppTotals>>,
    wanted: Vec<Inbox<Arc<Wanted>>>,
    heard: Vec<Inbox<Vec<BrokerReply>>>,
    shared: Vec<Inbox<SharedReply>>,
}

/// Whoever holds the clients' listening sockets in this process.
struct Accepting {
    acceptor: Acceptor,
    offered: Option<Offered>,
}

impl Accepting {
    fn stop(self) {
        self.acceptor.stop();
        if let Some(offered) = self.offered {
            offered.withdraw();
        }
    }
}

/// What the shards are given beside their inboxes.
struct Served {
    registry: RegistryHandle,
    placement: ChannelPlacement,
    cluster: Option<ClusterHandle>,
    /// For the first shard.
    calls: Option<Inbox<Incoming>>,
    store: StoreHandle,
    broker: Option<BrokerHandle>,
    usage: UsageHandle,
    push: PushHandle,
    who: Inbox<WhoIsThere>,
    /// What apps have used before this start.
    used: AppTotals,
    webhooks: WebhookHandle,
    /// Which events back ends want at the start.
    wanted: Arc<Wanted>,
    tls: Acceptors,
    admin: Vec<Socket>,
    dashboard: Vec<Socket>,
    admin_start: AdminStart,
    /// Presence members from before.
    members: Arc<[KeptMember]>,
    clock: Instant,
}

/// A running shard as the main thread sees it.
struct Running {
    control: InboxSender<Control>,
    thread: ExecutorJoinHandle<()>,
}

struct Shards {
    running: Vec<Running>,
    drained: mpsc::Receiver<()>,
    kept: mpsc::Receiver<Vec<KeptMember>>,
    beats: Beats,
    clock: Instant,
}

/// Where each shard's connections go in.
type Connections = Vec<InboxSender<Socket>>;

fn start_shards(
    config: &Config,
    served: Served,
    inboxes: Inboxes,
) -> Result<(Shards, Connections), RunError> {
    let placement = served.placement;
    let count = placement.shards();
    let mut calls = served.calls;
    let mesh = MeshBuilder::full(config.cores.len(), LANE_BATCHES);
    let (up, started) = mpsc::channel();
    let (done, drained) = mpsc::channel();
    let (keep, kept) = mpsc::channel();
    let beats = Beats::new(config.cores.len());
    let beat_every = notify::watchdog_interval().map(Watchdog::period);
    let (mut running, mut connections) = (Vec::new(), Vec::new());
    // The first shard has the admin port.
    let mut admin = Some((served.admin, served.dashboard));
    let mut who = Some(served.who);
    let inboxes = inboxes
        .replies
        .into_iter()
        .zip(inboxes.snapshots)
        .zip(inboxes.totals)
        .zip(inboxes.wanted)
        .zip(inboxes.heard)
        .zip(inboxes.shared);
    for ((index, core), (((((replies, snapshots), totals), later), heard), shared)) in
        (0u16..).zip(&config.cores).zip(inboxes)
    {
        let (control, orders) = inbox::bounded(CONTROL_QUEUE);
        let (admin, dashboard) = admin.take().unwrap_or_default();
        let (to_shard, accepted) = inbox::bounded(INBOX_CONNECTIONS);
        connections.push(to_shard);
        let plan = Plan {
            id: ShardId(index),
            placement: placement.clone(),
            registry: served.registry.clone(),
            cluster: served.cluster.clone(),
            shared,
            calls: calls.take(),
            usage: served.usage.clone(),
            used: served.used.clone(),
            totals,
            webhooks: served.webhooks.clone(),
            wanted: WantedEvents {
                now: served.wanted.clone(),
                later,
            },
            snapshots,
            push: served.push.clone(),
            who: who.take(),
            options: options(config),
            seed: random_u64(),
            clock: served.clock,
            members: served.members.clone(),
            keep: keep.clone(),
            connections_max: config.runtime.connections_max.div_ceil(usize::from(count)),
            cors_origins: config.http.cors_origins.clone(),
            connections: accepted,
            admin,
            dashboard,
            admin_start: served.admin_start.clone(),
            tls: served.tls.clone(),
            beats: beat_every.map(|every| (beats.clone(), every)),
            store: served.store.clone(),
            broker: served.broker.clone(),
            heard,
            replies,
            mesh: (count > 1).then(|| mesh.clone()),
            orders,
            up: up.clone(),
            drained: done.clone(),
        };
        let thread = LocalExecutorBuilder::new(Placement::Fixed(*core))
            .name(&format!("shard-{index}"))
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .spin_before_park(Duration::from_micros(config.runtime.spin_before_park_us))
            .spawn(move || shard_thread::run(plan))
            .map_err(|error| RunError::Shard {
                shard: index,
                error: error.to_string(),
            })?;
        running.push(Running { control, thread });
    }
    drop(up);
    for _ in &running {
        if started.recv_timeout(Duration::from_secs(30)).is_err() {
            return Err(RunError::Shard {
                shard: 0,
                error: "not every shard came up within 30 s".into(),
            });
        }
    }
    let shards = Shards {
        running,
        drained,
        kept,
        beats,
        clock: served.clock,
    };
    Ok((shards, connections))
}

fn order(shard: &Running, control: Control) {
    if shard.control.try_send(control).is_err() {
        log::error!("a shard does not take orders");
    }
}

/// Where channels are at home in this process.
fn placement(config: &Config) -> ChannelPlacement {
    let count = u16::try_from(config.cores.len()).unwrap_or(u16::MAX);
    ChannelPlacement::new(random_u64(), count)
}

fn random_u64() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = sys::random();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
