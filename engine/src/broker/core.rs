//! What all tasks of the broker's thread share: which Redis server has which slot, the lanes to each, and the way back to
//! the shards. One thread, so nothing here is locked, and no borrow is held across an `.await`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::{ConnectionAddr, PushInfo, ServerError, Value};
use shardwire_proto::broker::{BrokerError, BrokerReply};
use shardwire_proto::ids::ShardId;
use shardwire_proto::ulid;
use tokio::sync::{Notify, mpsc};

use super::config::RedisConfig;
use super::connect::Access;
use super::ear::Ear;
use super::keys::Keys;
use super::lane::{Done, Failure, Job, Lane, LaneState};
use super::scripts::{self, Settings};
use super::stats::Shared;
use super::topics::Topics;
use crate::shard::inbox::InboxSender;

/// Slots of a cluster.
pub(super) const SLOTS: usize = 16_384;
/// Replies that may wait for a shard's inbox; beyond it messages are left out: their holes are filled later.
const REPLIES_WAITING_MAX: usize = 65_536;
/// Until a full inbox is tried again.
const INBOX_RETRY: Duration = Duration::from_millis(1);

/// Room in the queue; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Held {
    /// Takes room that the submitter has counted.
    pub(super) fn counted(shared: Arc<Shared>, bytes: usize) -> Self {
        Self { shared, bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.queue_ops.fetch_sub(1, Relaxed);
        self.shared.queue_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// One Redis server that has slots.
pub(super) struct Server {
    pub(super) addr: ConnectionAddr,
    /// For publishes.
    lanes: Vec<Rc<Lane>>,
    /// For questions.
    reads: Rc<Lane>,
    pub(super) ear: Rc<Ear>,
}

impl Server {
    fn is_starting(&self) -> bool {
        self.lanes.iter().any(|l| l.state() == LaneState::Starting)
    }

    fn is_up(&self) -> bool {
        self.lanes.iter().any(|l| l.state() == LaneState::Up)
    }
}

struct ShardOut {
    inbox: InboxSender<Vec<BrokerReply>>,
    waiting: Vec<BrokerReply>,
}

pub(super) struct Core {
    pub(super) config: RedisConfig,
    pub(super) access: Access,
    pub(super) keys: Keys,
    pub(super) settings: Settings,
    pub(super) shared: Arc<Shared>,
    pub(super) topics: RefCell<Topics>,
    /// What servers push, with the ear's number.
    pub(super) pushes: mpsc::UnboundedSender<(u64, PushInfo)>,
    servers: RefCell<HashMap<String, Rc<Server>>>,
    /// Owner of each slot.
    slots: RefCell<Vec<Option<Rc<Server>>>>,
    /// Where slots go that are on their way.
    importing: RefCell<HashMap<u16, Rc<Server>>>,
    shards: RefCell<Vec<ShardOut>>,
    /// Some inbox was full.
    behind: Cell<bool>,
    discover: Notify,
    epochs: Cell<u64>,
    refused_logged: Cell<bool>,
    up: Cell<Option<bool>>,
    /// A slot has gone elsewhere since the last layout.
    moved: Cell<bool>,
}

impl Core {
    pub(super) fn new(
        config: RedisConfig,
        access: Access,
        settings: Settings,
        shared: Arc<Shared>,
        inboxes: Vec<InboxSender<Vec<BrokerReply>>>,
        pushes: mpsc::UnboundedSender<(u64, PushInfo)>,
    ) -> Rc<Self> {
        let shards = inboxes.into_iter().map(|inbox| ShardOut {
            inbox,
            waiting: Vec::new(),
        });
        Rc::new(Self {
            keys: Keys::new(&config.key_prefix),
            config,
            access,
            settings,
            shared,
            topics: RefCell::default(),
            pushes,
            servers: RefCell::default(),
            slots: RefCell::new(vec![None; SLOTS]),
            importing: RefCell::default(),
            shards: RefCell::new(shards.collect()),
            behind: Cell::new(false),
            discover: Notify::new(),
            epochs: Cell::new(0),
            refused_logged: Cell::new(false),
            up: Cell::new(None),
            moved: Cell::new(false),
        })
    }

    /// A name for a numbering that begins; never given twice.
    pub(super) fn next_epoch(&self) -> String {
        let count = self.epochs.get() + 1;
        self.epochs.set(count);
        let random = (u128::from(self.settings.node) << 16) ^ u128::from(count);
        ulid::encode(crate::clock::now_ms(), random)
    }

    pub(super) fn owner(&self, slot: u16) -> Option<Rc<Server>> {
        self.slots.borrow().get(usize::from(slot))?.clone()
    }

    /// The lane for a slot: one for publishes, so that those of a channel keep their order, or the one for questions.
    pub(super) fn lane(&self, slot: u16, publishes: bool) -> Option<Rc<Lane>> {
        self.owner(slot)
            .map(|server| of_server(&server, slot, publishes))
    }

    pub(super) fn importing_lane(&self, slot: u16) -> Option<Rc<Lane>> {
        let importing = self.importing.borrow();
        importing
            .get(&slot)
            .map(|server| of_server(server, slot, true))
    }

    /// Puts a job into the queue of its lane, or fails it where there is none that works.
    pub(super) fn push(&self, job: Job, publishes: bool) {
        let refused = match self.lane(job.slot, publishes) {
            Some(lane) => lane.push(job).err(),
            None => Some(job),
        };
        if let Some(job) = refused {
            self.complete(job, Err(Failure::Away));
        }
    }

    /// Tells whoever waits for a job.
    pub(super) fn complete(&self, job: Job, result: Result<Value, Failure>) {
        match job.done {
            Done::Call(done) => {
                // Whoever asked may have gone.
                _ = done.send(result);
            }
            Done::Publish {
                shard,
                ticket,
                asked,
            } => {
                let result = result.map_err(BrokerError::from).and_then(|value| {
                    scripts::published(&value).unwrap_or(Err(BrokerError::Failed))
                });
                match result {
                    Ok(_) => {
                        self.shared.published.fetch_add(1, Relaxed);
                        let us = asked.elapsed().as_micros();
                        self.shared
                            .publish
                            .record(u64::try_from(us).unwrap_or(u64::MAX));
                    }
                    Err(BrokerError::Unplaced) => {}
                    Err(_) => _ = self.shared.publishes_failed.fetch_add(1, Relaxed),
                }
                self.reply(shard, BrokerReply::Published { ticket, result });
            }
        }
    }

    /// Leaves a reply for a shard; it goes with the next [`Core::flush`].
    pub(super) fn reply(&self, shard: ShardId, reply: BrokerReply) {
        let mut shards = self.shards.borrow_mut();
        let Some(out) = shards.get_mut(shard.index()) else {
            return;
        };
        if matches!(reply, BrokerReply::Message { .. }) && out.waiting.len() >= REPLIES_WAITING_MAX
        {
            self.shared.dropped.fetch_add(1, Relaxed);
            return;
        }
        out.waiting.push(reply);
    }

    fn reply_all(&self, reply: impl Fn() -> BrokerReply) {
        for out in self.shards.borrow_mut().iter_mut() {
            out.waiting.push(reply());
        }
    }

    /// Hands shards what waits for them.
    pub(super) fn flush(&self) {
        let mut behind = false;
        for out in self.shards.borrow_mut().iter_mut() {
            if out.waiting.is_empty() {
                continue;
            }
            if let Err(back) = out.inbox.try_send(std::mem::take(&mut out.waiting)) {
                out.waiting = back;
                behind = true;
            }
        }
        self.behind.set(behind);
    }

    /// Goes on with inboxes that were full, until dropped.
    pub(super) async fn keep_flushing(self: Rc<Self>) {
        loop {
            tokio::time::sleep(INBOX_RETRY).await;
            if self.behind.get() {
                self.flush();
            } else {
                tokio::time::sleep(INBOX_RETRY * 9).await;
            }
        }
    }

    /// A lane has come or gone: tells shards where that changes whether publishing is of use.
    pub(super) fn note_health(&self) {
        let up = self.servers.borrow().values().any(|s| s.is_up());
        let starting = self.servers.borrow().values().any(|s| s.is_starting());
        if !up && starting && self.up.get().is_none() {
            return;
        }
        if self.up.replace(Some(up)) == Some(up) {
            return;
        }
        self.shared.up.store(up, Relaxed);
        self.shared
            .down_since_ms
            .store(crate::clock::now_ms(), Relaxed);
        if up {
            log::info!("broker: Redis is there");
        } else {
            log::error!("broker: Redis is away; publishes are refused until it is back");
        }
        self.reply_all(|| BrokerReply::Health { up });
        self.flush();
        self.discover.notify_one();
    }

    /// Whether every server that has slots can be published to.
    pub(super) fn all_up(&self) -> bool {
        let servers = self.servers.borrow();
        !self.moved.get()
            && !servers.is_empty()
            && servers.values().all(|s| s.is_up() && s.ear.is_up())
    }

    pub(super) fn discover_soon(&self) {
        self.discover.notify_one();
    }

    pub(super) async fn discovery_wanted(&self) {
        self.discover.notified().await;
    }

    /// Redis has refused a command for a reason that is not expected; told once.
    pub(super) fn note_refusal(&self, error: &ServerError) {
        if !self.refused_logged.replace(true) {
            log::error!("broker: Redis refuses a command: {error}");
        }
    }

    /// A cluster says who has a slot. False where that server is not known yet.
    pub(super) fn note_moved(&self, slot: u16, host: &str, port: u16) -> bool {
        let server = self.known_server(host, port);
        let is_known = server.is_some();
        if let (Some(server), Some(owner)) =
            (server, self.slots.borrow_mut().get_mut(usize::from(slot)))
        {
            *owner = Some(server);
        }
        // The rest of the change, and topics.
        self.moved.set(true);
        self.discover_soon();
        is_known
    }

    /// A cluster says where a slot goes that is on its way.
    pub(super) fn note_importing(&self, slot: u16, host: &str, port: u16) -> bool {
        let server = self.known_server(host, port);
        let is_known = server.is_some();
        if let Some(server) = server {
            self.importing.borrow_mut().insert(slot, server);
        }
        self.discover_soon();
        is_known
    }

    fn known_server(&self, host: &str, port: u16) -> Option<Rc<Server>> {
        let addr = self.access.at(host, port);
        self.servers.borrow().get(&addr.to_string()).cloned()
    }

    /// Addresses of servers that are known.
    pub(super) fn addresses(&self) -> Vec<ConnectionAddr> {
        let servers = self.servers.borrow();
        let mut all: Vec<_> = servers.values().map(|s| s.addr.clone()).collect();
        all.sort_by_key(ToString::to_string);
        all
    }

    /// Takes over who has which slots, as ranges with their owners' addresses.
    pub(super) fn apply(self: &Rc<Self>, layout: &[(u16, u16, ConnectionAddr)]) {
        let mut gone: HashMap<String, Rc<Server>> = self.servers.take();
        let mut slots = vec![None; SLOTS];
        let mut come = Vec::new();
        {
            let mut servers = self.servers.borrow_mut();
            for (first, last, addr) in layout {
                let name = addr.to_string();
                let server = servers.entry(name.clone()).or_insert_with(|| {
                    gone.remove(&name).unwrap_or_else(|| {
                        let server = self.make_server(addr);
                        come.push(server.clone());
                        server
                    })
                });
                for slot in &mut slots[usize::from(*first)..=usize::from(*last)] {
                    *slot = Some(server.clone());
                }
            }
            self.shared.servers.store(servers.len(), Relaxed);
        }
        *self.slots.borrow_mut() = slots;
        self.importing.borrow_mut().clear();
        for server in come {
            for lane in server.lanes.iter().chain([&server.reads]) {
                tokio::task::spawn_local(lane.clone().run(self.clone()));
            }
            tokio::task::spawn_local(server.ear.clone().run(self.clone()));
        }
        self.reroute(gone.values());
        for server in gone.values() {
            log::info!("broker: {} has no slots any more", server.addr);
            server.lanes.iter().for_each(|lane| lane.stop());
            server.reads.stop();
            server.ear.stop();
        }
        super::topics::reassign(self);
        self.note_health();
        self.flush();
    }

    /// Whether slots are known to have moved since the last layout, or some have no owner.
    pub(super) fn is_unsure(&self) -> bool {
        self.moved.replace(false) || self.slots.borrow().iter().any(Option::is_none)
    }

    /// A slot of each server.
    pub(super) fn first_slots(&self) -> Vec<u16> {
        let slots = self.slots.borrow();
        let mut seen: Vec<*const Server> = Vec::new();
        let mut first = Vec::new();
        for (slot, server) in (0u16..).zip(slots.iter()) {
            if let Some(server) = server.as_ref().map(Rc::as_ptr)
                && !seen.contains(&server)
            {
                seen.push(server);
                first.push(slot);
            }
        }
        first
    }

    pub(super) fn for_each_ear(&self, each: impl Fn(&Ear)) {
        self.servers.borrow().values().for_each(|s| each(&s.ear));
    }

    fn make_server(&self, addr: &ConnectionAddr) -> Rc<Server> {
        let lanes = (0..self.config.connections).map(|_| Lane::new(addr.clone(), true));
        Rc::new(Server {
            addr: addr.clone(),
            lanes: lanes.collect(),
            reads: Lane::new(addr.clone(), false),
            ear: Ear::new(addr.clone()),
        })
    }

    /// Jobs that wait for a server whose slots have gone elsewhere go there too, in their order.
    fn reroute<'a>(&self, gone: impl Iterator<Item = &'a Rc<Server>>) {
        let mut servers: Vec<_> = self.servers.borrow().values().cloned().collect();
        servers.extend(gone.cloned());
        for server in &servers {
            for (lane, publishes) in server
                .lanes
                .iter()
                .map(|lane| (lane, true))
                .chain([(&server.reads, false)])
            {
                for job in lane.take_queue() {
                    self.push(job, publishes);
                }
            }
        }
    }

    /// Ends all lanes when their queues are empty.
    pub(super) fn stop(&self) {
        for server in self.servers.borrow().values() {
            server.lanes.iter().for_each(|lane| lane.stop());
            server.reads.stop();
            server.ear.stop();
        }
    }
}

fn of_server(server: &Server, slot: u16, publishes: bool) -> Rc<Lane> {
    let count = server.lanes.len();
    let first = usize::from(slot) % count.max(1);
    let lanes = (0..count).filter_map(|n| server.lanes.get((first + n) % count));
    // Its own, if that works or none does.
    let works = |lane: &&Rc<Lane>| lane.state() != LaneState::Down;
    let lane = lanes.clone().find(works).or(lanes.clone().next());
    match lane {
        Some(lane) if publishes => lane.clone(),
        _ => server.reads.clone(),
    }
}
