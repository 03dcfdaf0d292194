//! Start and stop order of the process.
//!
//! Start: listeners (so that a taken address fails before anything runs), shards, mesh, accepting,
//! then ready. Stop, on SIGTERM or SIGINT: accept no more, end connections at the configured pace,
//! stop shards. A second signal stops at once. SIGHUP reads the configuration again.

mod shard_thread;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use glommio::channels::channel_mesh::MeshBuilder;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use shardwire_proto::auth::jwt::TokenRules;
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::ids::{Placement as ChannelPlacement, ShardId};
use shardwire_proto::namespace::Namespaces;
use shardwire_proto::record::StoreReply;
use shardwire_proto::shard::Options;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::Socket;

use crate::config::{Auth, Config, OnExpiry};
use crate::http::AdminStart;
use crate::keys::{self, Opened};
use crate::registry::{self, RegistryHandle};
use crate::shard::inbox::{self, Inbox, InboxSender};
use crate::shard::{LANE_BATCHES, start_clock};
use crate::store::sqlite::Sqlite;
use crate::store::{self, StoreHandle};
use crate::sys;
use crate::usage::{self, AppTotals, UsageHandle};
use shard_thread::{Control, Plan};

/// Name of the embedded store in the data folder.
const MESSAGES_FILE: &str = "messages.db";

/// How long a stop waits for the store to commit what it has accepted.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// Orders that may wait for a shard: more than are ever given in a row.
const CONTROL_QUEUE: usize = 16;

/// Memory for direct I/O that every executor sets aside: the least it accepts, as no file is read
/// on a shard.
const IO_MEMORY_BYTES: usize = 64 * 1024;

/// Entries of a shard's submission ring: a burst of this many sockets is armed in one system call.
const RING_DEPTH: usize = 1024;

/// The addresses that are served.
#[derive(Debug, Clone, Copy)]
pub struct Ready {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
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
    /// The admin token cannot be read.
    AdminToken(String),
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
            Self::Store(error) => write!(f, "cannot use the store of messages: {error}"),
            Self::AdminToken(error) => write!(f, "cannot read the admin token: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

/// What a reload brings: a configuration that has been read and checked.
pub type Reload<'a> = &'a dyn Fn() -> Result<Config, String>;

/// Serves until a signal ends it. Blocks; the caller's thread handles the signals.
pub fn run(
    config: Config,
    opened: Opened,
    reload: Reload<'_>,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), RunError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(RunError::Signals)?;
    let (listeners, listen) = bind_all(&config, config.listen, config.cores.len())?;
    let (admin_listeners, admin) = bind_all(&config, config.admin_listen, 1)?;
    let (inboxes, replies): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(store::INBOX_ENTRIES))
        .unzip();
    let storage = Sqlite::new(config.data_dir.join(MESSAGES_FILE));
    let store = store::start(storage, &config.store, inboxes)
        .map_err(|error| RunError::Store(error.to_string()))?;
    let token = keys::read_admin_token(&config.data_dir)
        .map_err(|error| RunError::AdminToken(error.to_string()))?;
    let admin_start = AdminStart {
        token,
        config: Arc::new(config.clone()),
        listen,
        admin,
    };
    let sockets = Sockets {
        listeners,
        admin: admin_listeners,
        admin_start,
    };
    let (shard_inboxes, snapshots): (Vec<_>, Vec<_>) = config
        .cores
        .iter()
        .map(|_| inbox::bounded(registry::SNAPSHOTS_WAITING_MAX))
        .unzip();
    let Opened {
        documents,
        registry,
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
    let (usage, used) =
        usage::start(&config.data_dir, registry.clone(), usage_inboxes).map_err(RunError::Usage)?;
    let inboxes = Inboxes {
        replies,
        snapshots,
        totals,
    };
    let keepers = Keepers {
        registry: registry.clone(),
        store: store.clone(),
        usage: usage.clone(),
        used,
    };
    let shards = start_shards(&config, &keepers, sockets, inboxes)?;
    on_ready(&Ready { listen, admin });
    let mut current = config;
    for signal in &mut signals {
        if signal != SIGHUP {
            break;
        }
        match reload() {
            Ok(next) => {
                tell_changes(&current, &next);
                current = keep_fixed(&current, next);
                apply(&shards, &current);
                registry.reload();
            }
            Err(error) => log::error!("reload refused, the old configuration stays: {error}"),
        }
    }
    stop(shards, &current, signals);
    usage.shutdown();
    registry.shutdown();
    if !store.shutdown(STORE_PATIENCE) {
        log::error!("the store did not finish; unacknowledged messages may be lost");
    }
    Ok(())
}

/// Listening sockets for one address, one per shard; the first settles the port.
fn bind_all(
    config: &Config,
    addr: SocketAddr,
    count: usize,
) -> Result<(Vec<Socket>, SocketAddr), RunError> {
    let unacked = Duration::from_millis(config.limits.unacked_data_ms);
    let failed = |error| RunError::Listen { addr, error };
    let first = sys::listen_exclusively(addr, unacked).map_err(failed)?;
    let bound = first
        .local_addr()
        .map_err(failed)?
        .as_socket()
        .unwrap_or(addr);
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(sys::listen(bound, unacked).map_err(failed)?);
    }
    Ok((sockets, bound))
}

/// What shards hear from other threads, by index.
struct Inboxes {
    replies: Vec<Inbox<StoreReply>>,
    snapshots: Vec<Inbox<Arc<Registry>>>,
    totals: Vec<Inbox<AppTotals>>,
}

/// What is kept on disk, by threads of its own.
struct Keepers {
    registry: RegistryHandle,
    store: StoreHandle,
    usage: UsageHandle,
    /// What apps have used before this start.
    used: AppTotals,
}

/// Listening sockets: one per shard, and the admin port's.
struct Sockets {
    listeners: Vec<Socket>,
    admin: Vec<Socket>,
    admin_start: AdminStart,
}

/// A running shard as the main thread sees it.
struct Running {
    control: InboxSender<Control>,
    thread: ExecutorJoinHandle<()>,
}

struct Shards {
    running: Vec<Running>,
    drained: mpsc::Receiver<()>,
}

fn start_shards(
    config: &Config,
    keepers: &Keepers,
    sockets: Sockets,
    inboxes: Inboxes,
) -> Result<Shards, RunError> {
    let Sockets {
        listeners,
        mut admin,
        admin_start,
    } = sockets;
    let count = u16::try_from(config.cores.len()).unwrap_or(u16::MAX);
    let placement = ChannelPlacement::new(random_u64(), count);
    let mesh = MeshBuilder::full(config.cores.len(), LANE_BATCHES);
    let clock = start_clock();
    let (up, started) = mpsc::channel();
    let (done, drained) = mpsc::channel();
    let mut running = Vec::new();
    let inboxes = inboxes
        .replies
        .into_iter()
        .zip(inboxes.snapshots)
        .zip(inboxes.totals);
    let sockets = listeners.into_iter().zip(inboxes);
    for ((index, core), (listener, ((replies, snapshots), totals))) in
        (0u16..).zip(&config.cores).zip(sockets)
    {
        let (control, orders) = inbox::bounded(CONTROL_QUEUE);
        let plan = Plan {
            id: ShardId(index),
            placement: placement.clone(),
            registry: keepers.registry.clone(),
            usage: keepers.usage.clone(),
            used: keepers.used.clone(),
            totals,
            snapshots,
            options: options(config),
            seed: random_u64(),
            clock,
            connections_max: config.runtime.connections_max.div_ceil(usize::from(count)),
            cors_origins: config.http.cors_origins.clone(),
            listener,
            admin: admin.pop(),
            admin_start: admin_start.clone(),
            store: keepers.store.clone(),
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
    Ok(Shards { running, drained })
}

fn options(config: &Config) -> Options {
    Options {
        limits: config.limits.clone(),
        hello: config.websocket.hello,
        utf8_channel_names: config.websocket.utf8_channel_names,
        self_asserted_ids: config.websocket.self_asserted_ids,
        close_frames_always: config.websocket.close_frames_always,
        allowed_origins: config.websocket.allowed_origins.clone(),
        // Checked when the configuration was read.
        tokens: TokenRules {
            leeway_s: config.auth.leeway_s,
            lifetime_s_max: config.auth.max_lifetime_s,
            claims: config.claims.clone(),
        },
        close_on_expiry: config.auth.on_expiry == OnExpiry::Close,
        namespaces: Namespaces::new(config.namespace.clone()).unwrap_or_default(),
        recovery_overlap_ms: config.history.recovery_overlap_ms,
        ring_bytes_max: config.history.ring_bytes_max,
    }
}

/// Settings that shards take over while they run.
const RELOADABLE: [&str; 6] = ["limits", "websocket", "auth", "namespace", "log", "drain"];

fn is_reloadable(path: &str) -> bool {
    let mut tables = RELOADABLE.iter();
    tables.any(|table| path.split('.').next() == Some(table)) && path != "auth.jwks_allow_http"
}

fn tell_changes(current: &Config, next: &Config) {
    let (live, fixed): (Vec<_>, Vec<_>) = current
        .changed(next)
        .into_iter()
        .partition(|path| is_reloadable(path));
    if !fixed.is_empty() {
        log::warn!("reload: needs a restart: {}", fixed.join(", "));
    }
    log::info!(
        "reload: keys, and {}",
        if live.is_empty() {
            "no setting changed".to_owned()
        } else {
            live.join(", ")
        }
    );
}

/// Gives running shards what a reload may change.
fn apply(shards: &Shards, config: &Config) {
    crate::log::set_level(config.log.level);
    let options = Arc::new(options(config));
    let config = Arc::new(config.clone());
    for shard in &shards.running {
        order(
            shard,
            Control::Reconfigure {
                options: options.clone(),
                config: config.clone(),
            },
        );
    }
}

/// The next configuration, with what cannot change as it was.
fn keep_fixed(current: &Config, next: Config) -> Config {
    Config {
        limits: next.limits,
        websocket: next.websocket,
        auth: Auth {
            jwks_allow_http: current.auth.jwks_allow_http,
            ..next.auth
        },
        claims: next.claims,
        namespace: next.namespace,
        log: next.log,
        drain: next.drain,
        ..current.clone()
    }
}

/// Drains and ends every shard; a further signal cuts the draining short.
fn stop(shards: Shards, config: &Config, mut signals: Signals) {
    let count = u32::try_from(shards.running.len()).unwrap_or(1).max(1);
    let deadline = Duration::from_secs(config.drain.deadline_s);
    crate::notify::stopping();
    log::info!(
        "draining: up to {} connections/s, {} s at most",
        config.drain.rate,
        config.drain.deadline_s
    );
    for shard in &shards.running {
        order(
            shard,
            Control::Drain {
                rate: config.drain.rate.div_ceil(count),
                deadline,
            },
        );
    }
    let until = Instant::now() + deadline + Duration::from_secs(1);
    let mut left = shards.running.len();
    while left > 0 && Instant::now() < until {
        if shards
            .drained
            .recv_timeout(Duration::from_millis(50))
            .is_ok()
        {
            left -= 1;
        }
        if signals.pending().any(|signal| signal != SIGHUP) {
            log::warn!("second signal: stopping at once");
            break;
        }
    }
    for shard in &shards.running {
        order(shard, Control::Stop);
    }
    for shard in shards.running {
        if let Err(error) = shard.thread.join() {
            log::error!("a shard ended badly: {error}");
        }
    }
    log::info!("stopped");
}

fn order(shard: &Running, control: Control) {
    if shard.control.try_send(control).is_err() {
        log::error!("a shard does not take orders");
    }
}

fn random_u64() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = sys::random();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
