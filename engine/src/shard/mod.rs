//! A shard's thread: one executor pinned to a core, which owns one [`Core`] and the sockets of its
//! connections.
//!
//! ```text
//! admission ─► head task ─┬─► conn task (one per WebSocket connection, `conn`)
//!                      └─► HTTP (`http`)
//! conn tasks, mesh tasks, HTTP handlers ──with──► Core ──schedule──► turn task: outputs, mesh, flush
//! ```
//! The turn task is woken by whoever changed the core and so runs behind everything else that was
//! ready: what many sockets brought in one round leaves in one send per connection.
//!
//! Nothing here is locked, and no borrow is held across an `.await`: [`ShardRuntime::with`] makes
//! one whole change.

mod admission;
pub mod core;
pub mod inbox;
mod mesh;
mod requests;
mod turn;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use glommio::net::TcpStream;
use shardwire_proto::broker::BrokerReply;
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::ids::{ConnId, Now, ShardId};
use shardwire_proto::outbox::Frame;
use shardwire_proto::record::StoreReply;
use shardwire_proto::shard::Shard;
use shardwire_proto::ws::DecoderConfig;

pub use self::core::{Core, Handshake, IoCounts};
use crate::broker::BrokerHandle;
use crate::cluster::ClusterHandle;
use crate::conn::{SharedSession, Transport};
use crate::http::HttpSettings;
use crate::registry::RegistryHandle;
use crate::side::push::PushHandle;
use crate::side::webhooks::WebhookHandle;
use crate::store::StoreHandle;
use crate::tls::Acceptor;
use crate::usage::UsageHandle;
use mesh::Lane;
pub use mesh::{Batch, LANE_BATCHES};
pub use requests::Requests;

/// A server's shard.
pub type Server = Rc<ShardRuntime<Shard>>;

/// Bytes read from a socket at once, into one buffer that all of a shard's connections share.
const READ_BYTES: usize = 64 * 1024;

/// What is fixed for a shard's life.
#[derive(Debug, Clone)]
pub struct Settings {
    pub decoder: DecoderConfig,
    /// From accept to a complete request head.
    pub handshake_deadline: Duration,
    /// Connections and pending handshakes of this shard.
    pub connections_max: usize,
    /// Handshakes beyond those, which end in a refusal.
    pub refusals_max: usize,
    /// Where messages are kept; none where nothing is.
    pub store: Option<StoreHandle>,
    /// Who orders and keeps messages among several nodes; none where this is the only one.
    pub broker: Option<BrokerHandle>,
    /// All nodes write the store, which then has everything; otherwise the broker has.
    pub is_shared_store: bool,
    /// The certificates that are shown; none where connections are plain.
    pub tls: Option<Acceptor>,
    /// Who changes apps and credentials; none where nobody does.
    pub registry: Option<RegistryHandle>,
    /// Where usage is added up; none where it is not.
    pub usage: Option<UsageHandle>,
    /// Where events for back ends go; none where they go nowhere.
    pub webhooks: Option<WebhookHandle>,
    /// Who sends push notifications; none where nobody does.
    pub push: Option<PushHandle>,
    /// The other nodes; none where there cannot be any.
    pub cluster: Option<ClusterHandle>,
}

pub struct ShardRuntime<C> {
    pub id: ShardId,
    pub settings: Settings,
    pub http: Rc<HttpSettings>,
    pub(crate) core: RefCell<C>,
    pub(crate) links: RefCell<Links>,
    /// Where sockets are read into; borrowed for one read and its handling.
    pub(crate) read_buffer: RefCell<Box<[u8]>>,
    /// Where the frames of one send are put together.
    pub(crate) gather: RefCell<Gather>,
    lanes: RefCell<Vec<Lane>>,
    senders: RefCell<Option<glommio::channels::channel_mesh::Senders<Batch>>>,
    turn: RefCell<Option<Waker>>,
    turn_scheduled: Cell<bool>,
    /// Connections that wait until the mesh has room.
    pub(crate) paused: RefCell<VecDeque<Waker>>,
    /// Connections whose app has had its part of the turn, in the order of their next one.
    pub(crate) deferred: RefCell<VecDeque<Waker>>,
    /// A mesh inbox had more than one turn takes.
    inbox_behind: Cell<bool>,
    pub requests: Requests,
    occupancy: Cell<usize>,
    refusals: Cell<usize>,
    io: Cell<IoCounts>,
    clock: Clock,
    turn_now: Cell<Option<Now>>,
}

/// A connection's socket as the flush sees it. Small: a flush walks them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    generation: u32,
    pub(crate) fd: RawFd,
    /// The kernel took less than it was offered; the connection's task waits for room.
    pub(crate) blocked: bool,
    pub(crate) ending: Ending,
    /// It has a session in [`Links`].
    pub(crate) is_secure: bool,
    used: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    No,
    /// When the outbox is empty; with a Close frame in it the peer is given time to answer.
    Flushed {
        linger: bool,
    },
    Now,
}

/// Links by slot; the table of the core's connections decides who has which.
#[derive(Default)]
pub(crate) struct Links {
    links: Vec<Link>,
    /// Wakers of the connections' tasks.
    wakers: Vec<Option<Waker>>,
    /// TLS sessions; as long as the slot of the last one, so none where connections are plain.
    sessions: Vec<Option<SharedSession>>,
}

impl Links {
    pub(crate) fn get(&mut self, conn: ConnId) -> Option<&mut Link> {
        self.links
            .get_mut(conn.slot as usize)
            .filter(|l| l.used && l.generation == conn.generation)
    }

    /// The TLS session of a connection that has one.
    pub(crate) fn session(&self, conn: ConnId) -> Option<&SharedSession> {
        self.sessions.get(conn.slot as usize)?.as_ref()
    }

    /// Wakes a connection's task.
    pub(crate) fn wake(&self, conn: ConnId) {
        if let Some(Some(waker)) = self.wakers.get(conn.slot as usize) {
            waker.wake_by_ref();
        }
    }

    /// Takes note of whom to wake for a connection.
    pub(crate) fn register(&mut self, conn: ConnId, waker: &Waker) {
        if self.get(conn).is_some()
            && let Some(known) = self.wakers.get_mut(conn.slot as usize)
            && !known.as_ref().is_some_and(|w| w.will_wake(waker))
        {
            *known = Some(waker.clone());
        }
    }

    fn insert(&mut self, conn: ConnId, transport: &Transport) {
        let slot = conn.slot as usize;
        let session = transport.session();
        let link = Link {
            generation: conn.generation,
            fd: transport.as_raw_fd(),
            is_secure: session.is_some(),
            blocked: false,
            ending: Ending::No,
            used: true,
        };
        if self.links.len() <= slot {
            let unused = Link {
                used: false,
                ..link
            };
            self.links.resize(slot + 1, unused);
            self.wakers.resize(slot + 1, None);
        }
        self.links[slot] = link;
        self.wakers[slot] = None;
        if let Some(session) = session {
            if self.sessions.len() <= slot {
                self.sessions.resize(slot + 1, None);
            }
            self.sessions[slot] = Some(session.clone());
        }
    }

    fn remove(&mut self, conn: ConnId) {
        if let Some(link) = self.get(conn) {
            link.used = false;
            self.wakers[conn.slot as usize] = None;
            if let Some(session) = self.sessions.get_mut(conn.slot as usize) {
                *session = None;
            }
        }
    }
}

/// A place among a shard's connections.
pub(crate) struct Occupied<C>(Rc<ShardRuntime<C>>);

impl<C> Drop for Occupied<C> {
    fn drop(&mut self) {
        self.0.occupancy.set(self.0.occupancy.get() - 1);
    }
}

/// A place among those who are being refused.
pub(crate) struct Refused<C>(Rc<ShardRuntime<C>>);

impl<C> Drop for Refused<C> {
    fn drop(&mut self) {
        self.0.refusals.set(self.0.refusals.get() - 1);
    }
}

/// Bytes of the frames that were gathered last, to be sent again where the next connection has
/// the very same frames: in a fan-out nearly all do.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    bytes: Vec<u8>,
    /// Held so that no other frame can take their place in memory.
    frames: Vec<Frame>,
}

#[derive(Debug, Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Now {
        let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Now {
            mono_us: u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX),
            unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The clock of every shard of the process: one start, so that their monotonic times compare.
pub fn start_clock() -> Instant {
    Instant::now()
}

/// A clock's reading before any shard runs.
pub fn read_clock(start: Instant) -> Now {
    Clock(start).now()
}

impl<C: Core> ShardRuntime<C> {
    pub fn new(
        id: ShardId,
        core: C,
        settings: Settings,
        http: Rc<HttpSettings>,
        clock_start: Instant,
    ) -> Rc<Self> {
        Rc::new(Self {
            id,
            settings,
            http,
            core: RefCell::new(core),
            links: RefCell::default(),
            read_buffer: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
            gather: RefCell::default(),
            lanes: RefCell::default(),
            senders: RefCell::default(),
            turn: RefCell::default(),
            turn_scheduled: Cell::new(false),
            paused: RefCell::default(),
            deferred: RefCell::default(),
            inbox_behind: Cell::new(false),
            requests: Requests::default(),
            occupancy: Cell::new(0),
            refusals: Cell::new(0),
            io: Cell::default(),
            clock: Clock(clock_start),
            turn_now: Cell::new(None),
        })
    }

    /// The turn's time: read once, when the turn first asks.
    pub fn now(&self) -> Now {
        let now = self.turn_now.get().unwrap_or_else(|| self.clock.now());
        self.turn_now.set(Some(now));
        now
    }

    /// Makes one whole change to the shard's state; what follows from it leaves with the turn.
    pub fn with<R>(&self, f: impl FnOnce(&mut C, Now) -> R) -> R {
        let result = f(&mut self.core.borrow_mut(), self.now());
        self.schedule_turn();
        result
    }

    /// Makes a change that may fill outboxes, and ends the turn where it has; whether it did.
    fn take_in(&self, change: impl FnOnce(&mut C, Now)) -> bool {
        let due = {
            let mut core = self.core.borrow_mut();
            change(&mut core, self.now());
            core.flush_due()
        };
        if due {
            self.end_turn();
        }
        due
    }

    /// Takes what the store has done or found, until the task is dropped.
    pub async fn hear_store(self: Rc<Self>, inbox: inbox::Inbox<StoreReply>) {
        loop {
            let reply = inbox.recv().await;
            self.take_in(|core, now| core.handle_store(reply, now));
            self.schedule_turn();
        }
    }

    /// Takes what the broker has done or heard, until the task is dropped. Where a batch fills outboxes its rest waits
    /// until connections have had a turn to send, so that a busy broker does not make slow consumers of fast ones.
    pub async fn hear_broker(self: Rc<Self>, inbox: inbox::Inbox<Vec<BrokerReply>>) {
        loop {
            for reply in inbox.recv().await {
                if self.take_in(|core, now| core.handle_broker(reply, now)) {
                    glommio::executor().yield_now().await;
                }
            }
            self.schedule_turn();
        }
    }

    /// Takes what other nodes and their members have done, until the task is dropped.
    pub async fn hear_cluster(self: Rc<Self>, inbox: inbox::Inbox<SharedReply>) {
        loop {
            let reply = inbox.recv().await;
            self.take_in(|core, now| core.handle_shared(reply, now));
            self.schedule_turn();
        }
    }

    /// Adds to what only the driver counts.
    pub fn count(&self, add: impl FnOnce(&mut IoCounts)) {
        let mut io = self.io.get();
        add(&mut io);
        self.io.set(io);
    }

    fn admit(self: &Rc<Self>, stream: TcpStream) {
        glommio::spawn_local(crate::conn::head::serve(self.clone(), stream)).detach();
    }

    /// Connections that are open, ending or being opened.
    pub fn occupancy(&self) -> usize {
        self.occupancy.get()
    }

    /// Takes a place among those who are told that the shard is full, where that needs a handshake first; `None` when
    /// all are taken, which bounds what a crowd can make a full shard do.
    pub(crate) fn occupy_refusal(self: &Rc<Self>) -> Option<Refused<C>> {
        if self.refusals.get() >= self.settings.refusals_max {
            return None;
        }
        self.refusals.set(self.refusals.get() + 1);
        Some(Refused(self.clone()))
    }

    /// Takes a place among the shard's connections; `None` when all are taken.
    pub(crate) fn occupy(self: &Rc<Self>) -> Option<Occupied<C>> {
        if self.occupancy.get() >= self.settings.connections_max {
            return None;
        }
        self.occupancy.set(self.occupancy.get() + 1);
        Some(Occupied(self.clone()))
    }

    /// Lets the flush reach a connection's socket.
    pub(crate) fn link(&self, conn: ConnId, transport: &Transport) {
        self.links.borrow_mut().insert(conn, transport);
    }

    /// Forgets a connection, on both sides.
    pub(crate) fn unlink(&self, conn: ConnId) {
        self.links.borrow_mut().remove(conn);
        self.with(|core, now| core.release(conn, now));
    }
}
