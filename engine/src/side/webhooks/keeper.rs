//! The webhooks' thread: takes what was raised, keeps it, and has it delivered.
//!
//! ```text
//!  a turn:  jobs, reports ─► notes ─► (what stands) ─► numbered per endpoint ─► one commit ─► attempts
//! ```
//! Everything of a turn goes into one commit, and nothing leaves before it is made. While the outbox cannot be written the
//! thread takes in only so much; the rest waits where it was raised.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use serde_json::Value;
use shardwire_proto::error::ProtocolError;
use shardwire_proto::webhook::event::encode_body;
use shardwire_proto::webhook::sender::{Cursor, Outcome, Sender, Step};
use shardwire_proto::webhook::standing::{Fact, Kept, Standing, Verdict};
use shardwire_proto::webhook::subscribers::Subscribers;
use shardwire_proto::webhook::{AppWanted, Endpoint, Kind, Note, Turn, Wanted};

use super::catchup::{self, Seen};
use super::deliver::{Entry, Place, Pool, Report};
use super::lines::Line;
use super::outbox::{
    self, CURSOR, Chunk, DEAD, Dead, ENDPOINT, INBOX, LOG, NODE, Node, Raisings, STANDING,
};
use super::ownership::{LEASE_MS, LOOK_MS, Ownership, RENEW_MS};
use super::{Job, LATENCY_BOUNDS_MS, Shared, Surroundings, WebhookStats, WebhooksConfig, lock};
use crate::records::{Area, Change, Condition, RecordError, Records, Scan};
use crate::registry::{RegistryHandle, now_ms};
use crate::shard::inbox::InboxSender;
use crate::store::StoreHandle;
use crate::sys;

/// Events that a turn takes in.
const TURN_NOTES_MAX: usize = 5_000;
/// Events in memory while the outbox cannot be written.
const NOTES_MAX: usize = 20_000;
/// Pause after a failed write.
const RETRY_MS: u64 = 200;
/// How often it is looked what other processes have changed.
const RELOAD_MS: u64 = 5_000;
/// What has changed and hurries nobody is kept within this time.
const LAZY_MS: u64 = 100;
/// How often what is over is removed.
const EXPIRE_MS: u64 = 30_000;
/// Chunks read at once to fill an endpoint's memory.
const REFILL_CHUNKS: usize = 20;
/// Records of other processes taken over at once.
const ADOPT_MAX: usize = 100;
/// How long it is remembered which messages were caught up with, ms.
const CAUGHT_MS: u64 = 120_000;
/// What has ended that is told in one turn.
const ENDED_PER_TURN: usize = 1_000;

pub(super) type Reply = InboxSender<Result<Value, ProtocolError>>;

pub(super) struct Keeper {
    pub(super) records: Box<dyn Records>,
    pub(super) config: WebhooksConfig,
    pub(super) registry: RegistryHandle,
    store: StoreHandle,
    shards: Vec<(InboxSender<Arc<Wanted>>, bool)>,
    grace_ms: u64,
    shared: Arc<Shared>,
    node: Arc<str>,
    wanted: Arc<Wanted>,
    pub(super) lines: BTreeMap<String, Line>,
    by_app: HashMap<String, Vec<String>>,
    pub(super) ownership: Ownership,
    standing: Standing,
    subscribers: Subscribers,
    /// Taken in, and in no commit yet.
    notes: Vec<(Arc<str>, Note)>,
    /// By shard: up to when the events of its messages were taken in.
    complete: Vec<u64>,
    /// The commit that is to be made, and the notes in it.
    unsaved: Vec<Change>,
    saving: Vec<(Arc<str>, Note)>,
    /// Changes for the next commit.
    pub(super) edits: Vec<Change>,
    /// App, channel and sequence of messages that were caught up with, and until when that matters.
    caught: HashSet<(String, String, u64)>,
    caught_until_ms: u64,
    pub(super) pool: Pool,
    reports: Receiver<Report>,
    /// Who waits for an operator's trial, by delivery id.
    pub(super) trials: HashMap<String, Reply>,
    pub(super) stats: WebhookStats,
    is_failing: bool,
    has_peers: bool,
    stopping: Option<Instant>,
    /// The endpoint that had its turn last.
    served: String,
    inbox_number: u64,
    saved_ms: u64,
    due: Due,
}

/// When something is due by the clock, ms since the Unix epoch.
#[derive(Debug, Default)]
struct Due {
    retry: u64,
    reload: u64,
    look: u64,
    peers: u64,
    expire: u64,
}

impl Keeper {
    pub(super) fn open(surroundings: Surroundings, shared: Arc<Shared>) -> Result<Self, String> {
        let Surroundings {
            storage,
            config,
            registry,
            store,
            shards,
            grace_ms,
        } = surroundings;
        let records = storage.open(Area::Webhooks).map_err(|e| e.to_string())?;
        let (reporting, reports) = crossbeam_channel::unbounded();
        let node: Arc<str> = data_encoding::HEXLOWER.encode(&sys::random()).into();
        let mut keeper = Self {
            records,
            pool: Pool::new(&config, reporting),
            config,
            registry,
            store,
            complete: vec![now_ms(); shards.len()],
            shards: shards.into_iter().map(|shard| (shard, false)).collect(),
            grace_ms,
            shared,
            ownership: Ownership::new(node.clone()),
            node,
            wanted: Arc::default(),
            lines: BTreeMap::new(),
            by_app: HashMap::new(),
            standing: Standing::default(),
            subscribers: Subscribers::default(),
            notes: Vec::new(),
            unsaved: Vec::new(),
            saving: Vec::new(),
            edits: Vec::new(),
            caught: HashSet::new(),
            caught_until_ms: 0,
            reports,
            trials: HashMap::new(),
            stats: WebhookStats::default(),
            is_failing: false,
            has_peers: false,
            stopping: None,
            served: String::new(),
            inbox_number: 0,
            saved_ms: 0,
            due: Due::default(),
        };
        keeper.reload(now_ms()).map_err(|error| error.to_string())?;
        // The shards start with it.
        keeper
            .shards
            .iter_mut()
            .for_each(|(_, behind)| *behind = false);
        Ok(keeper)
    }

    pub(super) fn wanted(&self) -> Arc<Wanted> {
        self.wanted.clone()
    }

    pub(super) fn run(mut self, jobs: &Receiver<Job>, stop: &Receiver<Instant>) {
        let nothing = never();
        loop {
            let wait = Duration::from_millis(self.wait_ms(now_ms()));
            let is_full = !self.unsaved.is_empty() && self.notes.len() >= NOTES_MAX;
            let source = if is_full { &nothing } else { jobs };
            select! {
                recv(source) -> job => match job {
                    Ok(job) => self.take(job),
                    Err(_) => self.stopping = self.stopping.or(Some(Instant::now())),
                },
                recv(self.reports) -> report => if let Ok(report) = report {
                    self.hear(report, now_ms());
                },
                recv(stop) -> until => self.stopping = Some(until.unwrap_or_else(|_| Instant::now())),
                default(wait) => {}
            }
            while self.notes.len() < TURN_NOTES_MAX
                && let Ok(job) = jobs.try_recv()
            {
                self.take(job);
            }
            while let Ok(report) = self.reports.try_recv() {
                self.hear(report, now_ms());
            }
            self.turn(now_ms());
            if self.stopping.is_some_and(|until| self.is_done(jobs, until)) {
                self.end(now_ms());
                return;
            }
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Shard(shard, events) => {
                for raised in &events.raised {
                    self.notes
                        .push((self.node.clone(), Note::of(raised, &self.node)));
                }
                if let Some(complete) = self.complete.get_mut(shard.index()) {
                    *complete = events.complete_ms;
                }
            }
            Job::Raise(raised) => {
                self.notes
                    .push((self.node.clone(), Note::of(&raised, &self.node)));
            }
            Job::Call(call, reply) => self.answer(*call, reply),
        }
    }

    fn turn(&mut self, now_ms: u64) {
        if !self.unsaved.is_empty() && (now_ms < self.due.retry || !self.save(now_ms)) {
            return;
        }
        if now_ms >= self.due.reload
            && let Err(error) = self.reload(now_ms)
        {
            self.note_failure(&error);
        }
        self.tell_shards();
        let done = if self.ownership.is_owner() {
            self.owner_turn(now_ms)
        } else {
            self.waiting_turn(now_ms)
        };
        if let Err(error) = done {
            self.note_failure(&error);
            self.due.retry = now_ms + RETRY_MS;
        }
        if self.ownership.is_owner() && self.unsaved.is_empty() {
            self.start_attempts(now_ms);
        }
        self.show(now_ms);
    }

    /// Another process delivers, or none yet.
    fn waiting_turn(&mut self, now_ms: u64) -> Result<(), RecordError> {
        if self.lines.is_empty() {
            self.notes.clear();
            return Ok(());
        }
        if now_ms >= self.due.look {
            self.due.look = now_ms + LOOK_MS;
            if self.stopping.is_none() && self.ownership.try_take(&mut *self.records, now_ms)? {
                if let Err(error) = self.take_over(now_ms) {
                    self.ownership.lose();
                    return Err(error);
                }
                return self.owner_turn(now_ms);
            }
        }
        let is_due = now_ms >= self.saved_ms + RENEW_MS;
        if self.notes.is_empty() && self.edits.is_empty() && !is_due {
            return Ok(());
        }
        let mut changes = std::mem::take(&mut self.edits);
        if !self.notes.is_empty() {
            self.inbox_number += 1;
            let id = format!("{}-{:012}", self.node, self.inbox_number);
            let notes = self.notes.iter().map(|(_, note)| note.clone()).collect();
            let raisings = Raisings {
                node: self.node.to_string(),
                notes,
            };
            changes.push(outbox::put_raisings(id, &raisings, now_ms));
            self.saving.append(&mut self.notes);
        }
        changes.push(outbox::put_node(&self.as_node(now_ms)));
        self.unsaved = changes;
        self.save(now_ms);
        Ok(())
    }

    /// Goes on from what the last owner has left.
    fn take_over(&mut self, now_ms: u64) -> Result<(), RecordError> {
        let records = &mut *self.records;
        for line in self.lines.values_mut() {
            let cursor = records.get(CURSOR, &line.id, now_ms)?;
            let cursor: Cursor = cursor.as_ref().and_then(outbox::parse).unwrap_or_default();
            let log = records.get(LOG, &line.id, now_ms)?;
            let log: Option<VecDeque<Entry>> = log.as_ref().and_then(outbox::parse);
            line.log = log.unwrap_or_default();
            let Endpoint {
                batch, concurrency, ..
            } = *line.endpoint;
            line.sender = Some(Sender::new(&cursor, batch, concurrency));
        }
        self.standing = Standing::default();
        for kept in outbox::read_all::<Kept>(records, STANDING, now_ms)? {
            self.standing.restore(kept);
        }
        self.subscribers = Subscribers::default();
        self.due.peers = 0;
        log::info!(endpoints = self.lines.len(), standing = self.standing.len(); "webhooks: this process delivers");
        Ok(())
    }

    fn owner_turn(&mut self, now_ms: u64) -> Result<(), RecordError> {
        self.refill(now_ms)?;
        let mut changes = vec![self.ownership.renewal(now_ms)];
        let mut notes = Vec::new();
        let mut seen = Seen::default();
        if now_ms >= self.due.peers {
            let interval = if self.has_peers { LOOK_MS } else { RENEW_MS };
            self.due.peers = now_ms + interval;
            let found = self
                .bury(now_ms, &mut notes, &mut changes, &mut seen)
                .and_then(|()| self.adopt(now_ms, &mut notes, &mut changes));
            if let Err(error) = found {
                // It is all there the next time.
                notes.clear();
                changes.truncate(1);
                self.note_failure(&error);
            }
        }
        let is_mixed = !notes.is_empty();
        notes.append(&mut self.notes);
        if is_mixed {
            catchup::put_in_order(&mut notes);
        }
        for (node, note) in &notes {
            self.consider(node, note, &seen, now_ms);
        }
        self.saving = notes;
        for fact in self.standing.take_ended(now_ms, ENDED_PER_TURN) {
            self.tell(&Note::end_of(&fact, now_ms), &seen);
        }
        for (app, channel, count) in self.subscribers.take_due(now_ms) {
            self.tell(&Note::count_of(&app, &channel, count, now_ms), &seen);
        }
        self.collect(changes, now_ms);
        Ok(())
    }

    /// Puts a commit together and makes it, where there is something to commit.
    fn collect(&mut self, mut changes: Vec<Change>, now_ms: u64) {
        let at_once = self.stopping.is_some();
        let is_lazy = !at_once && now_ms < self.saved_ms + LAZY_MS;
        let until_ms = now_ms + self.config.retention_s * 1000;
        changes.append(&mut self.edits);
        for line in self.lines.values_mut() {
            let Some(sender) = &mut line.sender else {
                continue;
            };
            let formed = line.endpoint.enabled && sender.form(&line.id, now_ms, at_once);
            self.stats.events += line.fresh.len() as u64;
            if !line.fresh.is_empty() || formed || (line.dirty && !is_lazy) {
                line.dirty = false;
                let fresh = std::mem::take(&mut line.fresh);
                changes.extend(outbox::chunks(&line.id, &fresh, now_ms, until_ms));
                changes.push(outbox::put_cursor(&line.id, &sender.cursor()));
            }
            if line.log_dirty && now_ms >= self.saved_ms + RENEW_MS {
                line.log_dirty = false;
                changes.push(outbox::put_log(&line.id, line.log.make_contiguous()));
            }
        }
        for (fact, kept) in self.standing.take_changes() {
            changes.push(outbox::standing(&fact, kept.as_ref()));
        }
        if changes.len() > 1 || now_ms >= self.saved_ms + RENEW_MS {
            changes.push(outbox::put_node(&self.as_node(now_ms)));
            self.unsaved = changes;
            self.save(now_ms);
        }
    }

    /// Makes the commit; false where it was not made, and is to be tried again.
    fn save(&mut self, now_ms: u64) -> bool {
        match self.records.apply(&self.unsaved, now_ms) {
            Ok(()) => {
                self.unsaved.clear();
                self.saving.clear();
                self.ownership.note_renewed();
                self.saved_ms = now_ms;
                if self.is_failing {
                    self.is_failing = false;
                    log::info!("webhooks: the outbox can be written again");
                }
                let senders = self.lines.values_mut().filter_map(|l| l.sender.as_mut());
                senders.for_each(Sender::mark_kept);
                true
            }
            Err(RecordError::Conflict(_)) if self.ownership.is_owner() => {
                log::warn!("webhooks: another process delivers from here on");
                self.step_down();
                true
            }
            Err(error) => {
                self.note_failure(&error);
                self.due.retry = now_ms + RETRY_MS;
                false
            }
        }
    }

    /// What this process had numbered and not kept goes the way of those that do not own the outbox.
    fn step_down(&mut self) {
        self.ownership.lose();
        self.unsaved.clear();
        let mut notes = std::mem::take(&mut self.saving);
        notes.retain(|(node, _)| *node == self.node);
        notes.append(&mut self.notes);
        self.notes = notes;
        for line in self.lines.values_mut() {
            line.sender = None;
            line.fresh.clear();
            line.replays.clear();
        }
        self.standing = Standing::default();
    }

    fn as_node(&self, now_ms: u64) -> Node {
        let complete_ms = self.complete.iter().min().copied();
        Node {
            id: self.node.to_string(),
            alive_until_ms: now_ms + LEASE_MS,
            complete_ms: complete_ms.filter(|_| self.wanted.has(Kind::Published)),
        }
    }

    /// Looks for processes that are gone: what stood there ends, and their messages are caught up with.
    fn bury(
        &mut self,
        now_ms: u64,
        notes: &mut Vec<(Arc<str>, Note)>,
        changes: &mut Vec<Change>,
        seen: &mut Seen,
    ) -> Result<(), RecordError> {
        let nodes: Vec<Node> = outbox::read_all(&mut *self.records, NODE, now_ms)?;
        let is_alive = |node: &Node| now_ms < node.alive_until_ms || *node.id == *self.node;
        let (alive, dead): (Vec<Node>, Vec<Node>) = nodes.into_iter().partition(is_alive);
        self.has_peers = alive.iter().any(|node| *node.id != *self.node);
        let mut since_ms: Option<u64> = None;
        for node in &dead {
            changes.push(Change::delete(NODE, node.id.clone()));
            let complete = node.complete_ms;
            since_ms = since_ms.into_iter().chain(complete).min();
        }
        for node in self.standing.nodes() {
            if *node != *self.node && !alive.iter().any(|known| *known.id == *node) {
                self.standing.lose_node(&node, now_ms, self.grace_ms);
            }
        }
        for node in &dead {
            self.subscribers.lose_node(&node.id, now_ms);
        }
        let Some(since_ms) = since_ms.filter(|_| self.wanted.has(Kind::Published)) else {
            return Ok(());
        };
        for line in self.lines.values() {
            seen.read(&mut *self.records, &line.id, since_ms, now_ms)?;
        }
        let found = catchup::messages(&self.store, &self.wanted, since_ms);
        let found = found.map_err(RecordError::Busy)?;
        log::info!(messages = found.len(), since_ms; "webhooks: looked through the messages of a process that is gone");
        for note in found {
            if let (Some(channel), Some(sequence)) = (&note.channel, note.sequence) {
                self.caught
                    .insert((note.app.clone(), channel.clone(), sequence));
            }
            notes.push(("".into(), note));
        }
        self.caught_until_ms = now_ms + CAUGHT_MS;
        Ok(())
    }

    /// Takes over what other processes have raised.
    fn adopt(
        &mut self,
        now_ms: u64,
        notes: &mut Vec<(Arc<str>, Note)>,
        changes: &mut Vec<Change>,
    ) -> Result<(), RecordError> {
        let found = self.records.scan(&Scan::of(INBOX, ADOPT_MAX), now_ms)?;
        if found.len() == ADOPT_MAX {
            self.due.peers = 0;
        }
        for record in &found {
            changes.push(Change::delete(INBOX, record.id.clone()));
            let Some(raisings) = outbox::parse::<Raisings>(record) else {
                continue;
            };
            let node: Arc<str> = raisings.node.as_str().into();
            notes.extend(raisings.notes.into_iter().map(|note| (node.clone(), note)));
        }
        Ok(())
    }

    /// What becomes of a note.
    fn consider(&mut self, node: &Arc<str>, note: &Note, seen: &Seen, now_ms: u64) {
        if let (Some(channel), Some(part)) = (&note.channel, note.part) {
            let place = (&*note.app, &**channel);
            self.subscribers.set(place, node, part, now_ms);
            return;
        }
        if let (Some(channel), Some(sequence), false) =
            (&note.channel, note.sequence, node.is_empty())
            && !self.caught.is_empty()
            && self
                .caught
                .contains(&(note.app.clone(), channel.clone(), sequence))
        {
            return;
        }
        let verdict = match Fact::of(note) {
            Some(fact) => self.standing.note(fact, note.turn, node, now_ms),
            None => Verdict::Tell,
        };
        match verdict {
            Verdict::Tell if note.turn == Turn::Stands => {}
            Verdict::Tell => self.tell(note, seen),
            Verdict::TellChange => {
                let mut note = note.clone();
                note.kind = Kind::Update;
                self.tell(&note, seen);
            }
            Verdict::Drop => {}
        }
    }

    /// Numbers an event for every endpoint that wants it.
    fn tell(&mut self, note: &Note, seen: &Seen) {
        let Some(ids) = self.by_app.get(&note.app) else {
            return;
        };
        for id in ids {
            let Some(line) = self.lines.get_mut(id) else {
                continue;
            };
            // A message from before it was there, found by catching up, is none of its.
            let is_older = note.sequence.is_some() && note.at_ms < line.endpoint.created_ms;
            if line.wants(note.kind, note.channel.as_deref()) && !is_older && !seen.has(id, note) {
                line.append(note);
            }
        }
    }

    /// Fills the memory of endpoints from the outbox, where there is room.
    fn refill(&mut self, now_ms: u64) -> Result<(), RecordError> {
        for line in self.lines.values_mut() {
            let Some(sender) = line.sender.as_mut() else {
                continue;
            };
            let Some(from) = sender.missing_from() else {
                continue;
            };
            let records = &mut *self.records;
            let chunks = outbox::read_chunks(records, &line.id, from, REFILL_CHUNKS, now_ms)?;
            let is_all = chunks.len() < REFILL_CHUNKS;
            let events: Vec<_> = chunks
                .into_iter()
                .flat_map(Chunk::events)
                .filter(|event| event.number >= from)
                .collect();
            let last = events.last().map(|event| event.number + 1);
            sender.refill(events, last.filter(|_| !is_all));
            line.dirty = true;
        }
        Ok(())
    }

    fn start_attempts(&mut self, now_ms: u64) {
        let after = std::mem::take(&mut self.served);
        let order: Vec<String> = {
            let behind = (Bound::Excluded(&*after), Bound::Unbounded);
            let before = (Bound::Unbounded, Bound::Included(&*after));
            let behind = self.lines.range::<str, _>(behind);
            let all = behind.chain(self.lines.range::<str, _>(before));
            all.filter(|(_, line)| line.endpoint.enabled)
                .map(|(id, _)| id.clone())
                .collect()
        };
        self.served = after;
        for id in order {
            if !self.pool.has_room(false) {
                return;
            }
            self.start_replay(&id, now_ms);
            let Some(line) = self.lines.get_mut(&id) else {
                continue;
            };
            while let Some(is_probe) = line.sender.as_ref().map(|sender| sender.failures() > 0)
                && self.pool.has_room(is_probe)
                && let Some(attempt) = line.sender.as_mut().and_then(|sender| sender.start(now_ms))
            {
                let shipment = line.shipment(attempt, is_probe, now_ms);
                self.pool.ship(shipment);
                self.served.clone_from(&id);
            }
        }
    }

    fn start_replay(&mut self, id: &str, now_ms: u64) {
        let Some(line) = self.lines.get_mut(id) else {
            return;
        };
        if line.replaying || !self.pool.has_room(true) {
            return;
        }
        while let Some(dead_id) = line.replays.pop_front() {
            let found = self.records.get(DEAD, &dead_id, now_ms);
            let Some(dead) = found
                .ok()
                .flatten()
                .as_ref()
                .and_then(outbox::parse::<Dead>)
            else {
                continue;
            };
            let events = dead.events.iter().map(|event| event.get());
            let body = encode_body(&dead.id, &line.app, dead.time_ms, events);
            let attempt = (dead.id, dead.attempts + 1);
            let place = Place::Replay(dead_id);
            let shipment = line.ship(place, attempt, body, dead.times, true, now_ms);
            line.replaying = true;
            self.pool.ship(shipment);
            return;
        }
    }

    fn hear(&mut self, report: Report, now_ms: u64) {
        self.pool.note(&report);
        let Report {
            shipment,
            entry,
            retry_after_ms,
        } = report;
        if let Some(reply) = self.trials.remove(&shipment.id) {
            // Whoever asked may have given up.
            _ = reply.try_send(Ok(serde_json::to_value(&entry).unwrap_or_default()));
        }
        let Some(line) = self.lines.get_mut(&*shipment.endpoint) else {
            return;
        };
        let (is_delivered, status) = (entry.is_delivered(), entry.status);
        let error = entry
            .error
            .clone()
            .or(status.map(|s| format!("status {s}")));
        line.note_attempt(entry);
        match shipment.place {
            Place::Test => return,
            Place::Replay(id) => {
                line.replaying = false;
                self.hear_replay(&id, is_delivered, error, now_ms);
                return;
            }
            Place::Lane(lane) => {
                let outcome = match (is_delivered, status) {
                    (true, _) => Outcome::Delivered,
                    // It waits until somebody enables the endpoint again.
                    (_, Some(410)) => Outcome::Abandoned,
                    _ => Outcome::Failed { retry_after_ms },
                };
                let Some(sender) = &mut line.sender else {
                    return;
                };
                let [random, ..] = sys::random();
                let step = sender.finish(lane, outcome, f64::from(random) / 255.0, now_ms);
                line.dirty = true;
                match step {
                    Some(Step::Delivered) => {
                        for at_ms in &shipment.times {
                            let ms = now_ms.saturating_sub(*at_ms);
                            let bound = LATENCY_BOUNDS_MS.iter().position(|bound| ms <= *bound);
                            self.stats.latency[bound.unwrap_or(LATENCY_BOUNDS_MS.len())] += 1;
                            self.stats.latency_sum_ms += ms;
                        }
                        self.stats.delivered += shipment.times.len() as u64;
                    }
                    Some(Step::Again { .. }) => self.stats.failures += 1,
                    Some(Step::Dead { id, events }) => {
                        self.stats.failures += 1;
                        self.stats.dead += 1;
                        let text = |text: &Arc<str>| serde_json::from_str(text).ok();
                        let dead = Dead {
                            endpoint: line.id.to_string(),
                            app: line.app.to_string(),
                            id,
                            time_ms: events.first().map_or(now_ms, |event| event.at_ms),
                            at: now_ms,
                            attempts: shipment.attempt,
                            error: error.unwrap_or_default(),
                            times: events.iter().map(|event| event.at_ms).collect(),
                            events: events
                                .iter()
                                .filter_map(|event| text(&event.text))
                                .collect(),
                        };
                        log::warn!(endpoint = dead.endpoint.as_str(), id = dead.id.as_str(), error = dead.error.as_str(); "webhooks: a delivery is given up");
                        let until_ms = now_ms + self.config.dead_letters_s * 1000;
                        let put = outbox::put_dead(&dead, until_ms, Condition::Always);
                        self.edits.push(put);
                    }
                    None => {}
                }
            }
        }
        if status == Some(410) {
            self.disable(&shipment.endpoint, "the endpoint answered 410 Gone", now_ms);
        }
    }

    fn hear_replay(&mut self, id: &str, is_delivered: bool, error: Option<String>, now_ms: u64) {
        if is_delivered {
            self.edits.push(Change::delete(DEAD, id));
            return;
        }
        let found = self.records.get(DEAD, id, now_ms);
        if let Some(mut dead) = found
            .ok()
            .flatten()
            .as_ref()
            .and_then(outbox::parse::<Dead>)
        {
            dead.attempts += 1;
            dead.error = error.unwrap_or_default();
            let until_ms = now_ms + self.config.dead_letters_s * 1000;
            let put = outbox::put_dead(&dead, until_ms, Condition::Always);
            self.edits.push(put);
        }
    }

    fn disable(&mut self, id: &str, reason: &str, now_ms: u64) {
        let Some(line) = self.lines.get_mut(id) else {
            return;
        };
        log::warn!(endpoint = id, url = line.endpoint.url.as_str(); "webhooks: disabled: {reason}");
        let mut endpoint = (*line.endpoint).clone();
        endpoint.enabled = false;
        endpoint.disabled_reason = Some(reason.to_owned());
        self.edits
            .push(outbox::put_endpoint(&endpoint, Condition::Always));
        line.change(endpoint);
        self.due.reload = now_ms + RELOAD_MS;
        self.settle_wanted();
    }

    /// Takes over the endpoints as they are kept.
    pub(super) fn reload(&mut self, now_ms: u64) -> Result<(), RecordError> {
        self.due.reload = now_ms + RELOAD_MS;
        if !self.edits.is_empty() {
            // What is kept is not what holds.
            return Ok(());
        }
        let endpoints: Vec<Endpoint> = outbox::read_all(&mut *self.records, ENDPOINT, now_ms)?;
        let registry = self.registry.snapshot();
        let mut gone: Vec<String> = self.lines.keys().cloned().collect();
        let mut has_changed = false;
        for endpoint in endpoints {
            if registry.app(&endpoint.app).is_none() {
                self.remove_endpoint(&endpoint.id, now_ms)?;
                continue;
            }
            gone.retain(|id| *id != endpoint.id);
            match self.lines.get_mut(&endpoint.id) {
                Some(line) if *line.endpoint == endpoint => {}
                Some(line) => {
                    line.change(endpoint);
                    has_changed = true;
                }
                None => {
                    if let Some(mut line) = Line::new(endpoint) {
                        if self.ownership.is_owner() {
                            let Endpoint {
                                batch, concurrency, ..
                            } = *line.endpoint;
                            line.sender = Some(Sender::new(&Cursor::default(), batch, concurrency));
                        }
                        self.lines.insert(line.id.to_string(), line);
                        has_changed = true;
                    }
                }
            }
        }
        for id in gone {
            self.lines.remove(&id);
            has_changed = true;
        }
        if has_changed {
            self.settle_wanted();
        }
        if now_ms >= self.due.expire {
            self.due.expire = now_ms + EXPIRE_MS;
            self.records.expire(now_ms, 10_000)?;
            self.caught.retain(|_| now_ms < self.caught_until_ms);
        }
        Ok(())
    }

    /// Works out what is wanted, for the shards and for this thread.
    fn settle_wanted(&mut self) {
        let mut wanted = Wanted::default();
        let mut filters: HashMap<&str, Vec<_>> = HashMap::new();
        self.by_app.clear();
        for (id, line) in &self.lines {
            let of_app = self.by_app.entry(line.app.to_string()).or_default();
            of_app.push(id.clone());
            if line.endpoint.enabled {
                let of_app = filters.entry(&line.app).or_default();
                of_app.push(line.filter().clone());
            }
        }
        for (app, filters) in filters {
            wanted.set(app, AppWanted::new(filters));
        }
        self.wanted = Arc::new(wanted);
        self.shards
            .iter_mut()
            .for_each(|(_, behind)| *behind = true);
        self.tell_shards();
    }

    fn tell_shards(&mut self) {
        for (inbox, behind) in self.shards.iter_mut().filter(|(_, behind)| *behind) {
            *behind = inbox.try_send(self.wanted.clone()).is_err();
        }
    }

    fn note_failure(&mut self, error: &RecordError) {
        self.stats.write_failures += 1;
        if !self.is_failing {
            self.is_failing = true;
            log::error!(error:%; "webhooks: the outbox cannot be used; events are kept in memory");
        }
    }

    fn wait_ms(&self, now_ms: u64) -> u64 {
        let mut due = self.due.reload;
        let mut consider = |at: Option<u64>| due = due.min(at.unwrap_or(u64::MAX));
        if self.stopping.is_some() {
            consider(Some(now_ms + 5));
        }
        if self.shards.iter().any(|(_, behind)| *behind) {
            consider(Some(now_ms + LOOK_MS));
        }
        if !self.unsaved.is_empty() {
            consider(Some(self.due.retry));
        } else if self.ownership.is_owner() {
            consider(Some(
                self.due.peers.max(now_ms.min(self.saved_ms + LOOK_MS)),
            ));
            consider(self.standing.next_due_ms());
            consider(self.subscribers.next_due_ms());
            let mut is_dirty = !self.edits.is_empty();
            for line in self.lines.values().filter(|line| line.endpoint.enabled) {
                let Some(sender) = &line.sender else { continue };
                is_dirty |= line.dirty;
                let is_probe = sender.failures() > 0;
                if self.pool.has_room(is_probe) {
                    consider(sender.next_due_ms());
                    consider(sender.missing_from().map(|_| 0));
                }
                if !line.replays.is_empty() && !line.replaying {
                    consider(Some(now_ms + LOOK_MS));
                }
            }
            if is_dirty {
                consider(Some(self.saved_ms + LAZY_MS));
            }
        } else if !self.lines.is_empty() {
            consider(Some(self.due.look));
        }
        due.saturating_sub(now_ms)
    }

    fn show(&mut self, now_ms: u64) {
        let senders = || self.lines.values().filter_map(|line| line.sender.as_ref());
        self.stats.is_owner = self.ownership.is_owner();
        self.stats.endpoints = self.lines.len();
        self.stats.endpoints_open = senders().filter(|sender| sender.is_open(now_ms)).count();
        self.stats.behind = senders().map(Sender::behind).sum();
        self.stats.in_flight = self.pool.busy();
        lock(&self.shared.stats).clone_from(&self.stats);
    }

    /// Whether a stop has nothing to wait for any more.
    fn is_done(&self, jobs: &Receiver<Job>, until: Instant) -> bool {
        if Instant::now() >= until {
            return true;
        }
        let is_kept = jobs.is_empty() && self.notes.is_empty() && self.unsaved.is_empty();
        is_kept && self.pool.busy() == 0
    }

    /// The last commit: how far everybody is, and that this process is gone.
    fn end(&mut self, now_ms: u64) {
        let lost = self.notes.len() + self.saving.len();
        if lost > 0 {
            log::error!(events = lost; "webhooks: events could not be written and are lost");
        }
        if !self.unsaved.is_empty() {
            return;
        }
        let mut changes: Vec<Change> = Vec::new();
        // First: it shows whether the rest is this process's to write.
        changes.extend(self.ownership.release());
        if self.ownership.is_owner() {
            changes.append(&mut self.edits);
            for line in self.lines.values_mut() {
                let Some(sender) = &line.sender else { continue };
                changes.push(outbox::put_cursor(&line.id, &sender.cursor()));
                changes.push(outbox::put_log(&line.id, line.log.make_contiguous()));
            }
        }
        if !self.lines.is_empty() {
            let node = Node {
                alive_until_ms: 0,
                ..self.as_node(now_ms)
            };
            changes.push(outbox::put_node(&node));
        }
        if let Err(error) = self.records.apply(&changes, now_ms) {
            log::error!(error:%; "webhooks: the last of it could not be written; a delivery may be repeated");
        }
    }
}
