//! One core's whole state: its connections, the channels they are subscribed to, and the channels
//! that it is home to.
//!
//! No I/O: the driver feeds it handshakes, messages of clients and of other shards, and time, and
//! carries away what it leaves.
//!
//! **After every call of a `handle_*`, `open`, `publish_request`, `ask` or `tick`, the driver takes,
//! before its turn ends, calls [`Shard::finish_turn`], then takes: [`Shard::take_output`] until `None`, [`Shard::take_mesh`] for each peer
//! that has room, and flushes the connections of [`Shard::take_dirty`]. When
//! [`Shard::flush_due`] is true it flushes before it feeds anything else.**
//!
//! Invariants:
//! - a connection's subscriptions and its channels' subscriber lists name each other;
//! - a publish that was accepted is delivered to every subscriber or its connection is ended;
//! - one channel's messages reach one connection in sequence order: they leave the home shard in
//!   order, lanes keep order, outboxes keep order.

mod access;
mod apps;
mod ask;
mod cluster;
mod conn;
mod counters;
mod history;
mod hooks;
mod kept;
mod limit;
mod lookup;
mod members;
mod presence;
mod publish;
mod replay;
mod shared;
mod store;
mod subscribe;
mod timers;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

pub use access::KeyUse;
pub use conn::Handshake;
pub use counters::{Counters, Histogram, Stats};
pub use history::{HistorySlot, page};
pub use hooks::HookEvents;
pub use kept::KeptMember;
pub use limit::HttpRate;
pub(crate) use limit::OwnWindow;
pub use publish::PublishItem;

use hashbrown::HashMap;

use crate::auth::jwt::TokenRules;
use crate::auth::registry::Registry;
use crate::channel::home::HomeChannels;
use crate::channel::local::LocalChannels;
use crate::channel::ring::RingBudget;
use crate::dedup::DedupTable;
use crate::error::{CloseCause, ErrorCode};
use crate::guard::Guard;
use crate::ids::{ConnId, ConnName, Now, Placement, RequestId, ShardId};
use crate::limits::{Limits, MESH_PENDING_BYTES_MAX, RING_AGE_MS_MAX, RING_BYTES_MAX};
use crate::meter::Meters;
use crate::msg::{Answer, Published, ShardMsg};
use crate::namespace::{Namespaces, Settings};
use crate::outbox::{Frame, Outbox};
use crate::push::bridge::Notice;
use crate::rate::RateWindow;
use crate::record::Record;
use crate::session::Conns;
use crate::wheel::Wheel;
use crate::wire::wsocket::{FrameEncoder, MemberPage};
use access::{KeyUses, Sweep};
use apps::Apps;
use cluster::BrokerState;
use hooks::Hooks;
use members::PresenceState;
use publish::Delivery;
use shared::SharedState;
use store::StoreState;

/// An unblocked outbox with this many frames is flushed before more is read: far below what ends
/// a connection, so that a busy turn never makes a slow consumer of a fast one.
const FLUSH_DUE_FRAMES: usize = 256;
/// The same in bytes.
const FLUSH_DUE_BYTES: usize = 64 * 1024;

/// What a shard is told at its start. All shards of a process get the same `placement` and `registry`.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    pub id: ShardId,
    pub placement: Placement,
    pub registry: Arc<Registry>,
    pub options: Options,
    /// Seed of this shard's own random choices; different on every shard.
    pub seed: u64,
}

/// Settings that hold for every connection of the process.
#[derive(Debug, Clone)]
pub struct Options {
    pub limits: Limits,
    /// Send the `connected` frame after open (contract D9).
    pub hello: bool,
    /// Allow channel names outside ASCII (contract D14).
    pub utf8_channel_names: bool,
    /// Honour `?clientId=` (contract D8).
    pub self_asserted_ids: bool,
    /// Send Close frames where the official SDKs need a bare TCP close (contract D11).
    pub close_frames_always: bool,
    /// Origins that a handshake may come from; empty: any (contract D29).
    pub allowed_origins: Vec<String>,
    /// How tokens are judged.
    pub tokens: TokenRules,
    /// Whether a connection ends when its token has expired (contract D27).
    pub close_on_expiry: bool,
    /// What is kept of which channels.
    pub namespaces: Namespaces,
    /// How far below a resume's timestamp messages are sent again, ms: for clusters whose clocks
    /// differ (contract D19).
    pub recovery_overlap_ms: u64,
    /// Messages of this shard's channels kept in memory, bytes.
    pub ring_bytes_max: usize,
    /// There are other nodes: messages are ordered by the broker between them, and kept by it.
    pub clustered: bool,
    /// All nodes write one store: the broker keeps what resume needs, the store keeps everything.
    pub shared_store: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            hello: true,
            utf8_channel_names: false,
            self_asserted_ids: false,
            close_frames_always: false,
            allowed_origins: Vec::new(),
            tokens: TokenRules::default(),
            close_on_expiry: true,
            namespaces: Namespaces::default(),
            recovery_overlap_ms: 0,
            ring_bytes_max: RING_BYTES_MAX,
            clustered: false,
            shared_store: false,
        }
    }
}

/// A connection that is to be flushed.
#[derive(Debug)]
pub struct Flush<'a> {
    pub conn: ConnId,
    pub outbox: &'a mut Outbox,
    /// Wants [`Shard::pump`] once its outbox is empty.
    pub catching_up: bool,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Output {
    /// End a connection; its slot stays until [`Shard::release`].
    Close {
        conn: ConnId,
        cause: CloseCause,
        /// Send what is in its outbox first (a Close frame among it).
        flush: bool,
    },
    /// One item of an HTTP publish is decided.
    Published {
        request: RequestId,
        item: u32,
        result: Result<Published, ErrorCode>,
    },
    /// The page for a [`Shard::history_request`]: messages, and whether there are more.
    History {
        request: RequestId,
        result: Result<(Vec<Arc<Record>>, bool), ErrorCode>,
    },
    /// The page for a [`Shard::members_request`].
    Members {
        request: RequestId,
        page: MemberPage,
    },
    /// The outcome of a [`Shard::clear_request`]: messages removed.
    Cleared {
        request: RequestId,
        result: Result<u64, ErrorCode>,
    },
    /// For the push service; where that is busy it is left out.
    Notice(Box<Notice>),
    /// One shard's answer to an HTTP request's [`Shard::ask`].
    Answer {
        from: ShardId,
        request: RequestId,
        answer: Answer,
    },
}

/// See the module's documentation for the calling contract.
#[derive(Debug)]
pub struct Shard {
    id: ShardId,
    placement: Placement,
    /// Apps and credentials.
    registry: Arc<Registry>,
    options: Options,
    /// State of the generator behind server-made message ids.
    random: u64,
    apps: Apps,
    /// What is counted by app and client id.
    meters: Meters,
    /// Handshakes by address.
    handshakes: Guard,
    /// Addresses that present wrong credentials.
    guard: Guard,
    key_uses: KeyUses,
    /// Publishes over HTTP, by the hash of the token holder's app and name.
    http_rates: HashMap<u64, RateWindow, foldhash::fast::RandomState>,
    /// When the next key or revocation ends, Unix ms.
    next_end_ms: Option<u64>,
    /// What a change still has to be applied to.
    sweep: Option<Sweep>,
    conns: Conns,
    local: LocalChannels,
    home: HomeChannels,
    store: StoreState,
    broker: BrokerState,
    presence: PresenceState,
    hooks: Hooks,
    shared: SharedState,
    wheel: Wheel,
    /// Connection slots with something to flush.
    dirty: Vec<u32>,
    flush_due: bool,
    /// Messages for each peer that its lane has not taken, with their weight.
    mesh: Vec<(Vec<ShardMsg>, usize)>,
    /// Messages of this shard to itself, while one is being handled.
    to_self: VecDeque<ShardMsg>,
    handling_own: bool,
    outputs: VecDeque<Output>,
    /// Acceptance times of the messages delivered since the last flush.
    delivered_us: Vec<u64>,
    encoder: FrameEncoder,
    counters: Counters,
    /// Second of the last tick, and of the last sweep over idle channels.
    ticked_s: u32,
    swept_s: u32,
}

impl Shard {
    pub fn new(config: ShardConfig, now: Now) -> Self {
        let shards = usize::from(config.placement.shards());
        let limits = &config.options.limits;
        let dedup = DedupTable::new(limits.dedup_window_ms, limits.dedup_entries_max);
        let rings = RingBudget::new(config.options.ring_bytes_max, RING_AGE_MS_MAX);
        let mut apps = Apps::default();
        apps.reconfigure(&config.options, &config.registry, config.placement.shards());
        let meters = Meters::new(config.id, config.placement.clone(), config.seed, now);
        Self {
            id: config.id,
            placement: config.placement,
            options: config.options,
            random: config.seed,
            apps,
            meters,
            handshakes: Guard::default(),
            guard: Guard::default(),
            key_uses: KeyUses::default(),
            http_rates: HashMap::default(),
            next_end_ms: config.registry.next_end_ms(now.unix_ms),
            sweep: None,
            registry: config.registry,
            conns: Conns::default(),
            local: LocalChannels::default(),
            home: HomeChannels::new(dedup, rings),
            store: StoreState::default(),
            broker: BrokerState::default(),
            presence: PresenceState::default(),
            hooks: Hooks::default(),
            shared: SharedState::default(),
            wheel: Wheel::new(now.mono_s()),
            dirty: Vec::new(),
            flush_due: false,
            mesh: (0..shards).map(|_| (Vec::new(), 0)).collect(),
            to_self: VecDeque::new(),
            handling_own: false,
            outputs: VecDeque::new(),
            delivered_us: Vec::new(),
            encoder: FrameEncoder::default(),
            counters: Counters::default(),
            ticked_s: now.mono_s(),
            swept_s: now.mono_s(),
        }
    }

    pub fn id(&self) -> ShardId {
        self.id
    }

    /// A message of another shard.
    pub fn handle_shard_msg(&mut self, from: ShardId, msg: ShardMsg, now: Now) {
        self.counters.mesh_in += 1;
        self.handle_msg(from, msg, now);
    }

    fn handle_msg(&mut self, from: ShardId, msg: ShardMsg, now: Now) {
        match msg {
            ShardMsg::Publish(publish) if self.goes_to_broker(&publish.borrow()) => {
                self.publish_to_broker(Arc::new(publish), now);
            }
            ShardMsg::Publish(publish) => self.accept_publish(&publish.borrow(), now),
            ShardMsg::Deliver {
                to,
                frame,
                sequence,
                exclude,
                accepted_us,
            } => {
                let delivery = Delivery {
                    to,
                    sequence,
                    exclude,
                    accepted_us,
                };
                self.deliver(&delivery, &Frame::from(&*frame), now);
            }
            ShardMsg::Unicast { conn, frame } => self.answer_conn(conn, Frame::from(&*frame), now),
            ShardMsg::PublishDone {
                request,
                item,
                result,
            } => self.outputs.push_back(Output::Published {
                request,
                item,
                result,
            }),
            ShardMsg::Interest {
                channel,
                hash,
                local,
            } => self.handle_interest(from, &channel, hash, local, now),
            ShardMsg::InterestReady { local } => self.handle_interest_ready(local, now),
            ShardMsg::InterestGone {
                channel,
                hash,
                local,
            } => self.handle_interest_gone(from, &channel, hash, local, now),
            ShardMsg::AskReplay {
                channel,
                hash,
                to,
                from,
            } => self.handle_ask_replay(&channel, hash, to, from, now),
            ShardMsg::Replay { to, result } => self.handle_replay(to, result, now),
            ShardMsg::AskCount {
                channel,
                hash,
                timestamp,
                to,
            } => self.handle_ask_count(&channel, hash, timestamp, to, now),
            ShardMsg::Count { to, count } => self.handle_count(to, count, now),
            ShardMsg::Limit(msg) => self.handle_limit(from, *msg, now),
            ShardMsg::Clear {
                channel,
                hash,
                shard,
                request,
            } => self.handle_clear(&channel, hash, shard, request, now),
            ShardMsg::Cleared { request, result } => {
                self.outputs.push_back(Output::Cleared { request, result });
            }
            ShardMsg::Presence(presence) => self.handle_presence_op(*presence, now),
            ShardMsg::PresenceNotices { to, notices } => {
                self.deliver_presence(to, &notices, now);
            }
            ShardMsg::PresenceMembers { conn, place, frame } => {
                self.handle_presence_members(conn, place, &frame, now);
            }
            ShardMsg::PresenceEnded {
                conn,
                channel,
                hash,
                number,
                refused,
            } => self.handle_presence_ended(conn, &channel, hash, (number, refused), now),
            ShardMsg::PresenceOpened {
                app,
                client_id,
                conn,
            } => {
                let conn = ConnName { shard: from, conn };
                self.handle_presence_opened((app, client_id), conn, now);
            }
            ShardMsg::PresenceReturned {
                conn,
                channel,
                hash,
                client_id,
            } => self.handle_presence_returned(conn, channel, hash, client_id, now),
            ShardMsg::AskMembers {
                channel,
                hash,
                after,
                limit,
                shard,
                request,
            } => {
                let part = (after.as_deref(), limit);
                self.handle_ask_members(&channel, hash, part, shard, request, now);
            }
            ShardMsg::Members { request, page } => {
                self.outputs.push_back(Output::Members { request, page });
            }
            ShardMsg::Ask {
                app,
                request,
                query,
            } => self.handle_ask(&app, &query, from, request, now),
            ShardMsg::Answer {
                from,
                request,
                answer,
            } => self.outputs.push_back(Output::Answer {
                from,
                request,
                answer,
            }),
        }
    }

    /// The next thing for the driver to do.
    pub fn take_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// All that waits for a peer. Called when the lane to it has room.
    pub fn take_mesh(&mut self, peer: ShardId) -> Vec<ShardMsg> {
        self.mesh
            .get_mut(peer.index())
            .map(std::mem::take)
            .unwrap_or_default()
            .0
    }

    /// Messages that wait for a peer's lane.
    pub fn mesh_pending(&self, peer: ShardId) -> usize {
        self.mesh.get(peer.index()).map_or(0, |(m, _)| m.len())
    }

    /// Some peer is far behind: the driver stops reading from its sockets until this is false,
    /// so that publishers feel it as TCP backpressure long before any publish is refused.
    pub fn congested(&self) -> bool {
        self.mesh
            .iter()
            .any(|(_, weight)| *weight > MESH_PENDING_BYTES_MAX / 4)
    }

    /// An outbox is long enough that it should be flushed before anything else is handled.
    pub fn flush_due(&self) -> bool {
        self.flush_due
    }

    /// The connections with something to send, each once; the driver gives the list back through
    /// [`Shard::reuse_dirty`] when it has flushed them.
    pub fn take_dirty(&mut self) -> Vec<u32> {
        self.flush_due = false;
        std::mem::take(&mut self.dirty)
    }

    /// Takes back an emptied list, for its memory.
    pub fn reuse_dirty(&mut self, mut list: Vec<u32>) {
        if self.dirty.is_empty() {
            list.clear();
            self.dirty = list;
        }
    }

    /// A dirty connection; takes it off the dirty list.
    pub fn flush(&mut self, slot: u32) -> Option<Flush<'_>> {
        let conn = self.conns.at_mut(slot)?;
        conn.dirty = false;
        let id = conn.id(slot);
        Some(Flush {
            conn: id,
            outbox: &mut conn.outbox,
            catching_up: conn.catching_up || conn.answers_wait,
        })
    }

    /// The outbox of a connection that could not be flushed whole.
    pub fn outbox(&mut self, conn: ConnId) -> Option<&mut Outbox> {
        self.conns.get_mut(conn).map(|c| &mut c.outbox)
    }

    /// The dirty connections have been flushed: `started` is when that began.
    pub fn note_flushed(&mut self, started: Now, now: Now) {
        for accepted_us in self.delivered_us.drain(..) {
            self.counters
                .delivery
                .record(now.mono_us.saturating_sub(accepted_us));
        }
        self.counters
            .flush
            .record(now.mono_us.saturating_sub(started.mono_us));
    }

    /// What has been counted; the driver adds what only it sees.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Connections that hold a slot.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Channels with a subscriber or watcher on this shard.
    pub fn channels(&self) -> usize {
        self.local.len()
    }

    pub fn limits(&self) -> &Limits {
        &self.options.limits
    }

    /// What is kept of a channel.
    pub fn channel_settings(&self, app: &str, channel: &str) -> Settings {
        self.apps.settings(app, channel)
    }

    /// Queues a message for a peer's lane.
    fn send(&mut self, to: ShardId, msg: ShardMsg) {
        if let Some((pending, weight)) = self.mesh.get_mut(to.index()) {
            self.counters.mesh_out += 1;
            *weight += msg.weight();
            pending.push(msg);
        }
    }

    /// Sends a message to another shard, or handles it where it is for this one: at once, or when
    /// the message that is being handled is done, so that a chain of them takes no stack.
    fn send_or_handle(&mut self, to: ShardId, msg: ShardMsg, now: Now) {
        if to != self.id {
            self.send(to, msg);
            return;
        }
        self.to_self.push_back(msg);
        if self.handling_own {
            return;
        }
        self.handling_own = true;
        while let Some(msg) = self.to_self.pop_front() {
            self.handle_msg(to, msg, now);
        }
        self.handling_own = false;
    }

    /// The home entry of a channel of this shard.
    fn enter_home(&mut self, app: &Arc<str>, name: &str, hash: u64, now: Now) -> u32 {
        let (apps, options, registry) = (&mut self.apps, &self.options, &self.registry);
        let shards = self.placement.shards();
        let slot = self.home.enter(app, name, hash, now, || {
            let index = apps.enter(app, options, registry, shards);
            (apps.settings(app, name), index)
        });
        if let Some(index) = self.home.get(slot).map(|c| c.account) {
            self.meet_app(index);
        }
        slot
    }

    /// Whether a publish towards this shard has to be refused.
    fn mesh_full(&self, to: ShardId) -> bool {
        self.mesh
            .get(to.index())
            .is_some_and(|(_, weight)| *weight > MESH_PENDING_BYTES_MAX)
    }

    /// Puts a frame into a connection's outbox.
    fn queue(&mut self, id: ConnId, frame: Frame, now: Now) {
        let limits = &self.options.limits;
        let Some(conn) = self.conns.open_mut(id) else {
            return;
        };
        self.counters.bytes_queued += frame.len() as u64;
        conn.outbox.push(frame);
        conn.last_out_s = now.mono_s();
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(id.slot);
        }
        self.flush_due |=
            conn.outbox.frames() >= FLUSH_DUE_FRAMES || conn.outbox.bytes() >= FLUSH_DUE_BYTES;
        if conn.outbox.frames() > limits.outbox_frames_max
            || conn.outbox.bytes() > limits.outbox_bytes_max
        {
            self.close(id, CloseCause::SlowConsumer, now);
        }
    }

    /// Encodes a text frame for one connection.
    fn reply(&mut self, conn: ConnId, now: Now, write: impl FnOnce(&mut Vec<u8>)) {
        let frame = Rc::from(self.encoder.text(write));
        self.queue(conn, frame, now);
    }

    /// The app's place among those of this shard, and its name as all of the shard share it.
    fn enter_app(&mut self, app: &str) -> (u32, Arc<str>) {
        let index = self.app_index(app);
        let name = self.apps.name(index).cloned();
        (index, name.unwrap_or_else(|| app.into()))
    }

    fn intern(&mut self, app: &str) -> Arc<str> {
        self.enter_app(app).1
    }

    /// The next of this shard's random numbers (splitmix64; for ids that need no secrecy).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
