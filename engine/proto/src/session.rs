//! One client's protocol state on its shard: who it is, what it may do, what it is subscribed to,
//! and what is waiting to be sent to it. What it may do to others is the shard's work.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::auth::capability::{Capabilities, Ops};
use crate::auth::{self, Credential, Denied};
use crate::catchup::Catchup;
use crate::channel::local::Subscription;
use crate::ids::ConnId;
use crate::outbox::Frame;
use crate::outbox::Outbox;
use crate::rate::RateWindow;
use crate::rate::table::{Bucket, Class, Scope};
use crate::shard::{HistorySlot, OwnWindow};
use crate::url::Shape;

/// What a handshake has earned.
#[derive(Debug, Clone)]
pub struct Grant {
    pub app: Arc<str>,
    /// The app's place among those of the shard.
    pub app_index: u32,
    /// What the client came with.
    pub credential: Credential,
    /// What the client may do, compiled once.
    pub capabilities: Capabilities,
    /// What has been taken back of it.
    pub denied: Denied,
    /// Identity (contract D8).
    pub client_id: Arc<str>,
    /// The client id is not this connection's alone: it may come back on another one.
    pub named: bool,
    /// The connection gets its own messages (contract D15).
    pub echo: bool,
    /// The connection is told of its publishes that were accepted.
    pub ack: bool,
    /// Form of presence and history frames (contract D21).
    pub shape: Shape,
    /// Where the connection comes from.
    pub remote: Option<IpAddr>,
}

impl Grant {
    /// Whether every operation of `ops` is granted on `channel`.
    pub fn permits(&self, channel: &str, ops: Ops) -> bool {
        auth::permits(&self.capabilities, &self.denied, channel, ops)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnState {
    Open,
    /// Out of every channel; what is left of it belongs to the driver until it releases the slot.
    Closing,
}

#[derive(Debug)]
pub struct Session {
    pub grant: Grant,
    /// Unix time, ms.
    pub opened_ms: u64,
    /// Publishes of this connection.
    pub rate: RateWindow,
    /// Publishes on their way to an `ack` or an error.
    pub publishes_due: u32,
    /// Ends with the answer to the last of them; what it sends meanwhile is not taken.
    pub leaving: bool,
    /// Subscriptions, likewise.
    pub subscribe_rate: RateWindow,
    /// Its client id's place among those that are counted.
    pub client: u32,
    /// What it is being sent of the past.
    pub catchup: Option<Box<Catchup>>,
    /// [`crate::shard::Shard::pump`] is at work, further up on the stack.
    pub pumping: bool,
    /// Replay jobs begun so far.
    pub replays_begun: u32,
    /// None until its first presence request.
    pub presence: Option<Box<ConnPresence>>,
    /// None until the first of it is needed.
    pub rare: Option<Box<Rare>>,
}

const _: () = assert!(size_of::<Session>() <= 272, "one per connection");

/// What few connections need.
#[derive(Debug, Default)]
pub struct Rare {
    /// Whatever is counted by connection beside publishes and subscriptions.
    pub windows: Vec<OwnWindow>,
    /// Malformed messages in the minute that began at `malformed_since_ms`.
    pub malformed: u32,
    pub malformed_since_ms: u64,
    /// History requests in the order of their answers.
    pub histories: VecDeque<HistorySlot>,
    /// History requests so far.
    pub histories_asked: u64,
}

/// A connection's part in presence.
#[derive(Debug, Default)]
pub struct ConnPresence {
    pub memberships: SmallVec<[Membership; 1]>,
    /// Requests to enter, update or leave so far.
    pub requests: u32,
    /// `presence.get` requests so far.
    pub gets_asked: u32,
    /// None while there is no request without an answer.
    pub gets: Option<Box<Gets>>,
}

const _: () = assert!(size_of::<ConnPresence>() <= 64, "one per member");

/// The `presence.get` requests of a connection.
#[derive(Debug, Default)]
pub struct Gets {
    /// Those without an answer, in the order of their answers.
    pub waiting: VecDeque<GetSlot>,
}

/// A channel whose presence a connection takes part in or watches.
#[derive(Debug, Clone, Copy)]
pub struct Membership {
    /// Entry of the channel on this shard.
    pub channel: u32,
    /// Place among its watchers.
    pub place: u32,
    /// The last request of the connection that concerned its being a member.
    pub number: u32,
    /// It is a member, as far as is known here.
    pub entered: bool,
    /// It has asked for the members and wants to be told of changes.
    pub asked: bool,
}

/// A `presence.get` that is not answered yet, or whose answer waits for earlier ones.
#[derive(Debug)]
pub struct GetSlot {
    pub place: u32,
    pub answer: Option<Frame>,
}

impl Session {
    /// The window of a limit that is counted by connection.
    pub fn window(&mut self, scope: Scope, bucket: Bucket) -> &mut RateWindow {
        if scope == Scope::Connection && bucket == Bucket::wide(Class::Publish) {
            return &mut self.rate;
        }
        if scope == Scope::Connection && bucket == Bucket::wide(Class::Subscribe) {
            return &mut self.subscribe_rate;
        }
        let windows = &mut self.rare().windows;
        let mut known = windows.iter();
        let at = known.position(|(s, b, _)| (*s, *b) == (scope, bucket));
        let at = at.unwrap_or_else(|| {
            windows.push((scope, bucket, RateWindow::default()));
            windows.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "found or made above")]
        let (.., window) = &mut windows[at];
        window
    }

    /// Makes room for what few connections need.
    pub fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// A connection's slot. What a fan-out touches comes first.
#[derive(Debug)]
pub struct Conn {
    pub outbox: Outbox,
    /// Monotonic second of the last frame queued towards it.
    pub last_out_s: u32,
    /// Already listed for the flush at the end of the turn.
    pub dirty: bool,
    pub state: ConnState,
    /// Has sent a `ping`, PING or PONG of its own: silence means something (contract D12).
    pub shows_life: bool,
    /// Wants [`crate::shard::Shard::pump`] when its outbox has been flushed.
    pub catching_up: bool,
    /// Answers are there that wait for room in the outbox: likewise.
    pub answers_wait: bool,
    /// Monotonic second of the last inbound frame.
    pub last_in_s: u32,
    pub generation: u32,
    pub subscriptions: Vec<Subscription>,
    pub session: Box<Session>,
}

const _: () = assert!(size_of::<Conn>() <= 184, "one per connection");

impl Conn {
    pub fn id(&self, slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: self.generation,
        }
    }
}

/// Connections of a shard by slot.
#[derive(Debug, Default)]
pub struct Conns {
    slots: Vec<Slot>,
    free: Vec<u32>,
    open: usize,
}

#[derive(Debug)]
enum Slot {
    Used(Conn),
    /// Generation of the next tenant.
    Free(u32),
}

impl Conns {
    /// Connections that hold a slot, closing ones too.
    pub fn len(&self) -> usize {
        self.open
    }

    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    pub fn insert(&mut self, session: Session, now_s: u32) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free(0));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let mut id = ConnId {
            slot,
            generation: 0,
        };
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            if let Slot::Free(generation) = entry {
                id.generation = *generation;
            }
            *entry = Slot::Used(Conn {
                outbox: Outbox::default(),
                last_out_s: now_s,
                dirty: false,
                state: ConnState::Open,
                shows_life: false,
                catching_up: false,
                answers_wait: false,
                last_in_s: now_s,
                generation: id.generation,
                subscriptions: Vec::new(),
                session: Box::new(session),
            });
            self.open += 1;
        }
        id
    }

    pub fn remove(&mut self, id: ConnId) {
        if self.get(id).is_some()
            && let Some(entry) = self.slots.get_mut(id.slot as usize)
        {
            *entry = Slot::Free(id.generation.wrapping_add(1));
            self.free.push(id.slot);
            self.open -= 1;
        }
    }

    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        match self.slots.get(id.slot as usize)? {
            Slot::Used(conn) if conn.generation == id.generation => Some(conn),
            Slot::Used(_) | Slot::Free(_) => None,
        }
    }

    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        match self.slots.get_mut(id.slot as usize)? {
            Slot::Used(conn) if conn.generation == id.generation => Some(conn),
            Slot::Used(_) | Slot::Free(_) => None,
        }
    }

    /// An open connection; closing ones are as good as gone.
    pub fn open_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.get_mut(id).filter(|c| c.state == ConnState::Open)
    }

    /// Slots so far, used or free.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Who holds a slot.
    pub fn id_at(&self, slot: u32) -> Option<ConnId> {
        match self.slots.get(slot as usize)? {
            Slot::Used(conn) => Some(conn.id(slot)),
            Slot::Free(_) => None,
        }
    }

    /// By slot alone: for lists that never outlive the tenant.
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut Conn> {
        match self.slots.get_mut(slot as usize)? {
            Slot::Used(conn) => Some(conn),
            Slot::Free(_) => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (ConnId, &Conn)> {
        (0u32..)
            .zip(&self.slots)
            .filter_map(|(slot, entry)| match entry {
                Slot::Used(conn) => Some((conn.id(slot), conn)),
                Slot::Free(_) => None,
            })
    }
}
