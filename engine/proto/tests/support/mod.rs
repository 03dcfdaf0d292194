//! Several shards, the lanes between them, a store and clients, in one thread and on a virtual
//! clock. Nothing here is random but by [`Chaos`], whose one seed decides everything.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(
    unreachable_pub,
    reason = "each test binary has it as a module of its own"
)]
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

pub mod client;
pub mod model;
pub mod rng;
pub mod store;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use shardwire_proto::auth::app::App;
use shardwire_proto::auth::capability::Capabilities;
use shardwire_proto::auth::change::{Change, Changed};
use shardwire_proto::auth::key::{KeyKind, KeyRecord, default_capabilities};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::error::{CloseCause, ErrorCode, ProtocolError};
use shardwire_proto::ids::{ConnId, Now, Placement, ShardId};
use shardwire_proto::msg::ShardMsg;
use shardwire_proto::record::StoreError;
use shardwire_proto::shard::{Flush, Handshake, Options, Output, Shard, ShardConfig};

use client::Client;
use rng::Rng;
use store::{Asked, Outcome, Store};

pub const SERVER_KEY: &str = "sk_0123456789abcdef";
pub const CLIENT_KEY: &str = "ck_0123456789abcdef";
/// Everything on `open:*`, publishing alone elsewhere.
pub const NARROW_KEY: &str = "nk_0123456789abcdef";

/// Wall clock at the virtual clock's 0.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// Delays and faults. All 0 but the seed: everything happens at once and goes well.
#[derive(Debug, Clone)]
pub struct Chaos {
    pub rng: Rng,
    /// Longest time in a lane, on the way into the writer, with a reader, and of a reply, us.
    pub lane_us: u64,
    pub commit_us: u64,
    pub read_us: u64,
    pub reply_us: u64,
    /// Transactions and questions that fail, and transactions of which that is not true, of a
    /// thousand.
    pub commit_fails: u64,
    pub commit_lost: u64,
    pub read_fails: u64,
}

impl Default for Chaos {
    fn default() -> Self {
        Self {
            rng: Rng::new(1),
            lane_us: 0,
            commit_us: 0,
            read_us: 0,
            reply_us: 0,
            commit_fails: 0,
            commit_lost: 0,
            read_fails: 0,
        }
    }
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<(u64, ShardMsg)>,
    /// Takes nothing and delivers nothing.
    stopped: bool,
}

#[derive(Debug)]
pub struct World {
    pub now_us: u64,
    started_us: u64,
    /// The monotonic clock goes on over a restart, as that of one machine does.
    pub keeps_uptime: bool,
    pub shards: Vec<Shard>,
    pub placement: Placement,
    pub options: Options,
    pub registry: Arc<Registry>,
    lanes: Vec<Lane>,
    pub store: Store,
    next_commit_us: u64,
    next_tick_us: u64,
    pub clients: Vec<Client>,
    by_conn: HashMap<(usize, ConnId), usize>,
    /// What shards left for the driver, but for endings.
    pub outputs: Vec<(usize, Output)>,
    pub chaos: Chaos,
    /// Most bytes that were in an outbox at a flush.
    pub outbox_bytes_max: usize,
}

impl World {
    pub fn new(shards: u16) -> Self {
        let options = Options {
            hello: false,
            ..Options::default()
        };
        Self::with(shards, options, Chaos::default())
    }

    pub fn with(shards: u16, options: Options, chaos: Chaos) -> Self {
        let key = |id: &str, kind, secret, grants| {
            KeyRecord::new(id.into(), "app".into(), kind, secret, grants).unwrap()
        };
        let narrow = serde_json::json!({"open:*": ["*"], "*": ["publish"]});
        let narrow = Capabilities::from_claim(&narrow).unwrap();
        let client = default_capabilities(KeyKind::Client);
        let server = default_capabilities(KeyKind::Server);
        let keys = [
            key("s", KeyKind::Server, SERVER_KEY, server),
            key("c", KeyKind::Client, CLIENT_KEY, client),
            key("n", KeyKind::Client, NARROW_KEY, narrow),
        ];
        let registry = Registry::new([App::new("app")], keys, [], []).unwrap();
        let mut world = Self {
            now_us: 0,
            started_us: 0,
            keeps_uptime: false,
            shards: Vec::new(),
            placement: Placement::new(0, shards),
            options,
            registry: Arc::new(registry),
            lanes: Vec::new(),
            store: Store::default(),
            next_commit_us: 0,
            next_tick_us: 0,
            clients: Vec::new(),
            by_conn: HashMap::new(),
            outputs: Vec::new(),
            chaos,
            outbox_bytes_max: 0,
        };
        world.restart();
        world
    }

    /// Ends the process and starts another: what was under way is gone, the store's file is not.
    pub fn restart(&mut self) {
        for client in &mut self.clients {
            if client.conn.take().is_some() {
                client.ended = Some(CloseCause::PeerGone);
            }
        }
        self.by_conn.clear();
        let shards = self.placement.shards();
        self.placement = Placement::new(self.chaos.rng.next(), shards);
        if !self.keeps_uptime {
            self.started_us = self.now_us;
        }
        self.next_tick_us = self.now_us + 1_000_000;
        self.next_commit_us = self.now_us;
        self.lanes = (0..usize::from(shards).pow(2))
            .map(|_| Lane::default())
            .collect();
        self.store.restart(usize::from(shards));
        let now = self.now();
        self.shards = (0..shards)
            .map(|id| {
                let config = ShardConfig {
                    id: ShardId(id),
                    placement: self.placement.clone(),
                    registry: self.registry.clone(),
                    options: self.options.clone(),
                    seed: self.chaos.rng.next(),
                };
                Shard::new(config, now)
            })
            .collect();
    }

    pub fn now(&self) -> Now {
        Now {
            mono_us: self.now_us - self.started_us,
            unix_ms: self.unix_ms(),
        }
    }

    pub fn unix_ms(&self) -> u64 {
        EPOCH_MS + self.now_us / 1000
    }

    pub fn home(&self, channel: &str) -> usize {
        let hash = self.placement.hash("app", channel);
        self.placement.home(hash).index()
    }

    /// The `n`th channel name that is at home on a shard.
    pub fn channel_at(&self, shard: usize, n: usize) -> String {
        let names = (0..).map(|i| format!("c{i}"));
        names.filter(|c| self.home(c) == shard).nth(n).unwrap()
    }

    /// Connects with the server key, which has no rate limit.
    pub fn connect(&mut self, shard: usize) -> usize {
        self.connect_with(shard, &format!("key={SERVER_KEY}"))
    }

    /// Connects with a query.
    pub fn connect_with(&mut self, shard: usize, query: &str) -> usize {
        let client = self.clients.len();
        let mut random = [0; 16];
        random[..8].copy_from_slice(&(client as u64).to_le_bytes());
        let conn = self.try_connect(shard, query, random).unwrap();
        self.clients.push(Client::new(shard, conn));
        self.by_conn.insert((shard, conn), client);
        self.carry(shard);
        client
    }

    fn try_connect(
        &mut self,
        shard: usize,
        query: &str,
        random: [u8; 16],
    ) -> Result<ConnId, ProtocolError> {
        let now = self.now();
        let handshake = Handshake {
            target: &format!("/?{query}"),
            ..Handshake::default()
        };
        let granted = self.shards[shard].authorize(handshake, random, now)?;
        Ok(self.shards[shard].open(granted, b"", now))
    }

    /// Why a connection with a query is refused.
    pub fn refused(&mut self, shard: usize, query: &str) -> ErrorCode {
        self.try_connect(shard, query, [9; 16]).unwrap_err().code
    }

    /// Makes a change to apps and credentials, and applies it on every shard.
    pub fn change(&mut self, change: Change) -> Changed {
        let mut number = self.chaos.rng.next();
        let mut random = || {
            number += 1;
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            bytes
        };
        let edited = self.registry.changed(change, &mut random, self.unix_ms());
        let edited = edited.unwrap();
        self.registry = Arc::new(edited.registry);
        let now = self.now();
        for shard in 0..self.shards.len() {
            self.shards[shard].set_registry(self.registry.clone(), now);
            while self.shards[shard].sweep(now) {}
            self.carry(shard);
        }
        self.settle();
        edited.changed
    }

    /// The client's TCP connection breaks.
    pub fn cut(&mut self, client: usize) {
        let now = self.now();
        let c = &mut self.clients[client];
        if let Some(conn) = c.conn.take() {
            c.ended = Some(CloseCause::PeerGone);
            let shard = c.shard;
            self.by_conn.remove(&(shard, conn));
            self.shards[shard].close(conn, CloseCause::PeerGone, now);
            self.carry(shard);
            self.shards[shard].release(conn, now);
            self.carry(shard);
        }
    }

    /// A message of a client; without effect on an ended connection.
    pub fn send(&mut self, client: usize, message: &Value) {
        self.send_text(client, &message.to_string());
    }

    pub fn send_text(&mut self, client: usize, text: &str) {
        let shard = self.clients[client].shard;
        self.with_conn(client, |shard, conn, now| {
            shard.handle_message(conn, text, now);
        });
        self.carry(shard);
    }

    /// Something that a connection's driver does.
    pub fn with_conn(&mut self, client: usize, act: impl FnOnce(&mut Shard, ConnId, Now)) {
        let now = self.now();
        let c = &self.clients[client];
        if let Some(conn) = c.conn {
            act(&mut self.shards[c.shard], conn, now);
            self.carry(c.shard);
        }
    }

    /// [`World::send`], and everything that comes of it at once.
    pub fn say(&mut self, client: usize, message: &Value) {
        self.send(client, message);
        self.settle();
    }

    pub fn take(&mut self, client: usize) -> Vec<String> {
        self.clients[client].take()
    }

    /// Gives a client's socket room, and sends what waited for it.
    pub fn read(&mut self, client: usize, room: usize) {
        self.clients[client].room = room;
        let shard = self.clients[client].shard;
        if let Some(conn) = self.clients[client].conn {
            self.flush_slot(shard, conn.slot);
            self.carry(shard);
        }
    }

    /// A lane that neither takes nor delivers, or does so again.
    pub fn stop_lane(&mut self, from: usize, to: usize, stopped: bool) {
        let index = self.lane(from, to);
        self.lanes[index].stopped = stopped;
        if !stopped {
            self.carry(from);
        }
    }

    /// Commits the oldest operations, or has them fail.
    pub fn commit(&mut self, count: usize, outcome: Outcome) {
        let reply_us = self.now_us + self.delay(self.chaos.reply_us);
        let now_ms = self.unix_ms();
        self.store.commit(count, outcome, now_ms, reply_us);
        self.settle();
    }

    /// Answers one question of those under way.
    pub fn answer(&mut self, index: usize, error: Option<StoreError>) {
        let reply_us = self.now_us + self.delay(self.chaos.reply_us);
        let now_ms = self.unix_ms();
        self.store.answer(index, error, now_ms, reply_us);
        self.settle();
    }

    /// Runs what is due, and what comes of it, until nothing is.
    pub fn settle(&mut self) {
        for _ in 0..1_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Lets time pass.
    pub fn advance_us(&mut self, us: u64) {
        let end = self.now_us + us;
        self.settle();
        while let Some(due) = self.next_due().filter(|due| *due <= end) {
            self.now_us = due.max(self.now_us);
            self.settle();
        }
        self.now_us = end;
    }

    /// Whether nothing is under way anywhere but for what clients do not read.
    pub fn is_idle(&self) -> bool {
        self.store.is_idle() && self.lanes.iter().all(|l| l.queue.is_empty())
    }

    fn next_due(&self) -> Option<u64> {
        let lanes = self.lanes.iter().filter(|l| !l.stopped);
        let lanes = lanes.filter_map(|l| Some(l.queue.front()?.0));
        let commit =
            (!self.store.ops.is_empty() && !self.store.writer_hangs).then_some(self.next_commit_us);
        lanes
            .chain(self.store.next_due())
            .chain(commit)
            .chain([self.next_tick_us])
            .min()
    }

    /// One thing of each kind that is due; false if nothing was.
    fn step(&mut self) -> bool {
        let mut moved = false;
        for index in 0..self.lanes.len() {
            moved |= self.step_lane(index);
        }
        moved |= self.step_store();
        if self.now_us >= self.next_tick_us {
            self.next_tick_us += 1_000_000;
            let now = self.now();
            for shard in 0..self.shards.len() {
                self.shards[shard].tick(now);
                self.carry(shard);
            }
            moved = true;
        }
        moved
    }

    fn step_lane(&mut self, index: usize) -> bool {
        let (now, now_us, shards) = (self.now(), self.now_us, self.shards.len());
        let lane = &mut self.lanes[index];
        let is_due = |lane: &Lane| lane.queue.front().is_some_and(|(due, _)| *due <= now_us);
        if lane.stopped || !is_due(lane) {
            return false;
        }
        let (_, msg) = lane.queue.pop_front().unwrap();
        let (from, to) = (index / shards, index % shards);
        self.shards[to].handle_shard_msg(shard_id(from), msg, now);
        self.carry(to);
        true
    }

    fn step_store(&mut self) -> bool {
        let mut moved = false;
        let now_ms = self.unix_ms();
        if !self.store.ops.is_empty()
            && !self.store.writer_hangs
            && self.now_us >= self.next_commit_us
        {
            let count = match self.chaos.commit_us {
                0 => usize::MAX,
                _ => 1 + self.chaos.rng.index(self.store.ops.len() + 4),
            };
            let outcome = match self.chaos.rng.below(1000) {
                n if n < self.chaos.commit_fails => Outcome::Failed,
                n if n < self.chaos.commit_fails + self.chaos.commit_lost => Outcome::Lost,
                _ => Outcome::Committed,
            };
            let reply_us = self.now_us + self.delay(self.chaos.reply_us);
            self.store.commit(count, outcome, now_ms, reply_us);
            self.next_commit_us = self.now_us + self.delay(self.chaos.commit_us);
            moved = true;
        }
        while !self.store.readers_hang
            && let Some(index) = self
                .store
                .reads
                .iter()
                .position(|r| r.due_us <= self.now_us)
        {
            let error = match self.chaos.rng.chance(self.chaos.read_fails) {
                true if self.chaos.rng.chance(500) => Some(StoreError::Overloaded),
                true => Some(StoreError::Failed),
                false => None,
            };
            let reply_us = self.now_us + self.delay(self.chaos.reply_us);
            self.store.answer(index, error, now_ms, reply_us);
            // There is room for those that wait.
            for shard in 0..self.shards.len() {
                self.take_questions(shard);
            }
        }
        for shard in 0..self.shards.len() {
            while let Some(reply) = self.store.take_reply(shard, self.now_us) {
                let now = self.now();
                self.shards[shard].handle_store(reply, now);
                self.carry(shard);
                moved = true;
            }
        }
        moved
    }

    fn delay(&mut self, most: u64) -> u64 {
        self.chaos.rng.below(most + 1).min(most)
    }

    fn lane(&self, from: usize, to: usize) -> usize {
        from * self.shards.len() + to
    }

    /// The driver's part of a turn: carries away what a shard has left. Flushes first: a flush lets
    /// replays go on, which leaves more.
    pub fn carry(&mut self, shard: usize) {
        let mut more = true;
        while more {
            more = self.flush(shard);
            while let Some(output) = self.shards[shard].take_output() {
                more = true;
                match output {
                    Output::Close { conn, cause, flush } => self.end(shard, conn, cause, flush),
                    output => self.outputs.push((shard, output)),
                }
            }
            more |= self.take_ops(shard);
        }
        self.take_questions(shard);
        self.take_mesh(shard);
    }

    fn take_questions(&mut self, shard: usize) {
        let questions = self.shards[shard].take_questions();
        let asked = questions.into_iter().map(|read| Asked {
            shard: shard_id(shard),
            read,
            due_us: self.now_us + self.chaos.rng.below(self.chaos.read_us + 1),
        });
        let asked = asked.collect();
        let rest = self.store.ask(asked);
        if !rest.is_empty() {
            let now = self.now();
            self.shards[shard].keep_questions(rest, now);
        }
    }

    /// True where operations were refused, which leaves answers.
    fn take_ops(&mut self, shard: usize) -> bool {
        let now = self.now();
        let ops = self.shards[shard].take_ops();
        if ops.is_empty() {
            return false;
        }
        if self.store.ops.is_empty() {
            let wait = self.delay(self.chaos.commit_us);
            self.next_commit_us = self.next_commit_us.max(self.now_us + wait);
        }
        match self.store.submit(shard_id(shard), ops) {
            Ok(()) => false,
            Err(ops) => {
                self.shards[shard].refuse_ops(ops, now);
                true
            }
        }
    }

    fn take_mesh(&mut self, shard: usize) {
        for to in 0..self.shards.len() {
            let index = self.lane(shard, to);
            if self.lanes[index].stopped {
                continue;
            }
            for msg in self.shards[shard].take_mesh(shard_id(to)) {
                assert_ne!(shard, to, "no lane leads to the shard itself: {msg:?}");
                let after = self.lanes[index].queue.back().map_or(0, |(due, _)| *due);
                let due = (self.now_us + self.delay(self.chaos.lane_us)).max(after);
                self.lanes[index].queue.push_back((due, msg));
            }
        }
    }

    /// Whether there was something to flush.
    fn flush(&mut self, shard: usize) -> bool {
        let mut flushed = false;
        loop {
            let list = self.shards[shard].take_dirty();
            if list.is_empty() {
                return flushed;
            }
            flushed = true;
            for slot in &list {
                self.flush_slot(shard, *slot);
            }
            self.shards[shard].reuse_dirty(list);
        }
    }

    fn flush_slot(&mut self, shard: usize, slot: u32) {
        let now = self.now();
        let Some(Flush {
            conn,
            outbox,
            catching_up,
        }) = self.shards[shard].flush(slot)
        else {
            return;
        };
        let Some(&client) = self.by_conn.get(&(shard, conn)) else {
            return;
        };
        let client = &mut self.clients[client];
        self.outbox_bytes_max = self.outbox_bytes_max.max(outbox.bytes());
        let sent = outbox.bytes().min(client.room);
        let waiting = outbox.iter().flat_map(|f| f.iter().copied());
        let bytes = waiting.skip(outbox.first_offset()).take(sent).collect();
        outbox.advance(sent);
        let is_empty = outbox.is_empty();
        client.room = match client.room {
            usize::MAX => usize::MAX,
            room => room - sent,
        };
        client.receive(bytes);
        if is_empty && catching_up {
            self.shards[shard].pump(conn, now);
        }
    }

    fn end(&mut self, shard: usize, conn: ConnId, cause: CloseCause, flush: bool) {
        let now = self.now();
        if let Some(client) = self.by_conn.remove(&(shard, conn)) {
            let client = &mut self.clients[client];
            if let Some(outbox) = self.shards[shard].outbox(conn).filter(|_| flush) {
                let waiting = outbox.iter().flat_map(|f| f.iter().copied());
                let bytes = waiting.skip(outbox.first_offset()).collect();
                client.receive(bytes);
            }
            client.conn = None;
            client.ended = Some(cause);
        }
        self.shards[shard].release(conn, now);
    }
}

fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).unwrap())
}
