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
use shardwire_proto::auth::key::{KeyRecord, KeyRing};
use shardwire_proto::ids::{Placement as ChannelPlacement, ShardId};
use shardwire_proto::namespace::Namespaces;
use shardwire_proto::record::StoreReply;
use shardwire_proto::shard::Options;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::Socket;

use crate::config::Config;
use crate::shard::inbox::{self, Inbox, InboxSender};
use crate::shard::{LANE_BATCHES, start_clock};
use crate::store::sqlite::Sqlite;
use crate::store::{self, StoreHandle};
use crate::sys;
use crate::tls::Acceptors;
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
    /// The store of messages cannot be used.
    Store(String),
    /// The thread that follows certificate files cannot be made.
    Tls(io::Error),
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
            Self::Store(error) => write!(f, "cannot use the store of messages: {error}"),
            Self::Tls(error) => write!(f, "cannot follow certificate files: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

/// What a reload brings: a configuration and keys that have been read and checked.
pub type Reload<'a> = &'a dyn Fn() -> Result<(Config, Vec<KeyRecord>), String>;

/// Serves until a signal ends it. Blocks; the caller's thread handles the signals.
pub fn run(
    config: Config,
    tls: Acceptors,
    keys: Vec<KeyRecord>,
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
    let sockets = Sockets {
        listeners,
        admin: admin_listeners,
        tls: tls.clone(),
    };
    let shards = start_shards(&config, keys, sockets, &store, replies)?;
    let _watch = tls.watch().map_err(RunError::Tls)?;
    on_ready(&Ready { listen, admin });
    let mut current = config;
    for signal in &mut signals {
        if signal != SIGHUP {
            break;
        }
        match reload() {
            Ok((next, keys)) => {
                tell_changes(&current, &next);
                current = keep_fixed(&current, next);
                tls.reload(&current);
                apply(&shards, &current, keys);
            }
            Err(error) => log::error!("reload refused, the old configuration stays: {error}"),
        }
    }
    stop(shards, &current, signals);
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

/// Listening sockets, one per shard, and the admin port's; and what is shown on them.
struct Sockets {
    listeners: Vec<Socket>,
    admin: Vec<Socket>,
    tls: Acceptors,
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
    keys: Vec<KeyRecord>,
    sockets: Sockets,
    store: &StoreHandle,
    replies: Vec<Inbox<StoreReply>>,
) -> Result<Shards, RunError> {
    let Sockets {
        listeners,
        mut admin,
        tls,
    } = sockets;
    let count = u16::try_from(config.cores.len()).unwrap_or(u16::MAX);
    let keys = Arc::new(KeyRing::new(keys));
    let placement = ChannelPlacement::new(random_u64(), count);
    let mesh = MeshBuilder::full(config.cores.len(), LANE_BATCHES);
    let clock = start_clock();
    let (up, started) = mpsc::channel();
    let (done, drained) = mpsc::channel();
    let mut running = Vec::new();
    let sockets = listeners.into_iter().zip(replies);
    for ((index, core), (listener, replies)) in (0u16..).zip(&config.cores).zip(sockets) {
        let (control, orders) = inbox::bounded(CONTROL_QUEUE);
        let plan = Plan {
            id: ShardId(index),
            placement: placement.clone(),
            keys: keys.clone(),
            options: options(config),
            seed: random_u64(),
            clock,
            connections_max: config.runtime.connections_max.div_ceil(usize::from(count)),
            cors_origins: config.http.cors_origins.clone(),
            listener,
            admin: admin.pop(),
            tls: tls.clone(),
            store: store.clone(),
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
        namespaces: Namespaces::new(config.namespace.clone()).unwrap_or_default(),
        recovery_overlap_ms: config.history.recovery_overlap_ms,
        ring_bytes_max: config.history.ring_bytes_max,
    }
}

/// Settings that shards take over while they run.
const RELOADABLE: [&str; 5] = ["limits", "websocket", "namespace", "log", "drain"];

fn is_reloadable(path: &str, current: &Config, next: &Config) -> bool {
    let (tls, admin_tls) = keeps_tls(current, next);
    let mut names = path.split('.');
    match (names.next(), names.next()) {
        (Some("tls"), _) => tls,
        (Some("admin"), Some("tls")) => admin_tls,
        (table, _) => table.is_some_and(|table| RELOADABLE.contains(&table)),
    }
}

/// Whether each listener has TLS before and after a reload, which may then exchange its certificates.
fn keeps_tls(current: &Config, next: &Config) -> (bool, bool) {
    (
        current.tls.is_on() && next.tls.is_on(),
        current.admin_tls.is_some() && next.admin_tls.is_some(),
    )
}

fn tell_changes(current: &Config, next: &Config) {
    let (live, fixed): (Vec<_>, Vec<_>) = current
        .changed(next)
        .into_iter()
        .partition(|path| is_reloadable(path, current, next));
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
fn apply(shards: &Shards, config: &Config, keys: Vec<KeyRecord>) {
    crate::log::set_level(config.log.level);
    let keys = Arc::new(KeyRing::new(keys));
    let options = Arc::new(options(config));
    for shard in &shards.running {
        order(
            shard,
            Control::Reconfigure {
                keys: keys.clone(),
                options: options.clone(),
            },
        );
    }
}

/// The next configuration, with what cannot change as it was.
fn keep_fixed(current: &Config, next: Config) -> Config {
    let (tls, admin_tls) = keeps_tls(current, &next);
    let (of_tls, of_admin_tls) = (
        if tls { &next } else { current }.tls.clone(),
        if admin_tls { &next } else { current }.admin_tls.clone(),
    );
    Config {
        limits: next.limits,
        websocket: next.websocket,
        namespace: next.namespace,
        log: next.log,
        drain: next.drain,
        tls: of_tls,
        admin_tls: of_admin_tls,
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
