//! The webhooks' thread: takes what was raised, keeps it, and has it delivered.
//!
//! ```text
//!  a turn:  jobs, reports ─► notes ─► (what stands) ─► numbered per endpoint ─► one commit ─► attempts
//! ```
//! Everything of a turn goes into one commit, and nothing leaves before it is made. While the outbox cannot be written the
//! thread takes in only so much; the rest waits where it was raised.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use serde_json::Value;
use shardwire_proto::error::ProtocolError;
use shardwire_proto::webhook::sender::Sender;
use shardwire_proto::webhook::standing::{Fact, Standing, Verdict};
use shardwire_proto::webhook::subscribers::Subscribers;
use shardwire_proto::webhook::{Kind, Note, Wanted};

use super::catchup::{self, Seen};
use super::deliver::{Pool, Report};
use super::lines::Line;
use super::outbox::{self, Chunk, Node, Raisings};
use super::ownership::{LEASE_MS, LOOK_MS, Ownership, RENEW_MS};
use super::{Job, Shared, Surroundings, WebhookStats, WebhooksConfig, lock};
use crate::clock::now_ms;
use crate::records::{Area, Change, RecordError, Records};
use crate::registry::RegistryHandle;
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
pub(super) const RELOAD_MS: u64 = 5_000;
/// What has changed and hurries nobody is kept within this time.
const LAZY_MS: u64 = 100;
/// Chunks read at once to fill an endpoint's memory.
const REFILL_CHUNKS: usize = 20;
/// What has ended that is told in one turn.
const ENDED_PER_TURN: usize = 1_000;

pub(super) type Reply = InboxSender<Result<Value, ProtocolError>>;

pub(super) struct Keeper {
    pub(super) records: Box<dyn Records>,
    pub(super) config: WebhooksConfig,
    pub(super) registry: RegistryHandle,
    pub(super) store: StoreHandle,
    pub(super) shards: Vec<(InboxSender<Arc<Wanted>>, bool)>,
    pub(super) grace_ms: u64,
    pub(super) retry_ms: Arc<[u64]>,
    pub(super) shared: Arc<Shared>,
    pub(super) node: Arc<str>,
    pub(super) wanted: Arc<Wanted>,
    pub(super) lines: BTreeMap<String, Line>,
    pub(super) by_app: HashMap<String, Vec<String>>,
    pub(super) ownership: Ownership,
    pub(super) standing: Standing,
    pub(super) subscribers: Subscribers,
    /// Taken in, and in no commit yet.
    pub(super) notes: Vec<(Arc<str>, Note)>,
    /// By shard: up to when the events of its messages were taken in.
    pub(super) complete: Vec<u64>,
    /// The commit that is to be made, and the notes in it.
    pub(super) unsaved: Vec<Change>,
    pub(super) saving: Vec<(Arc<str>, Note)>,
    /// Changes for the next commit.
    pub(super) edits: Vec<Change>,
    /// App, channel and sequence of messages that were caught up with, and until when that matters.
    pub(super) caught: HashSet<(String, String, u64)>,
    pub(super) caught_until_ms: u64,
    pub(super) pool: Pool,
    pub(super) reports: Receiver<Report>,
    /// Who waits for an operator's trial, by delivery id.
    pub(super) trials: HashMap<String, Reply>,
    pub(super) stats: WebhookStats,
    pub(super) is_failing: bool,
    pub(super) has_peers: bool,
    pub(super) stopping: Option<Instant>,
    /// The endpoint that had its turn last.
    pub(super) served: String,
    pub(super) inbox_number: u64,
    pub(super) saved_ms: u64,
    pub(super) due: Due,
}

/// When something is due by the clock, ms since the Unix epoch.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) retry: u64,
    pub(super) reload: u64,
    pub(super) look: u64,
    pub(super) peers: u64,
    pub(super) expire: u64,
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
            retry_ms: config.retry_ms.as_slice().into(),
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
        if !keeper.lines.is_empty() {
            // Before the first message: whoever looks for what was lost begins here.
            let node = outbox::put_node(&keeper.as_node(now_ms()));
            let kept = keeper.records.apply(&[node], now_ms());
            kept.map_err(|error| error.to_string())?;
        }
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
                .and_then(|()| self.adopt(now_ms, &mut notes, &mut changes))
                .and_then(|()| self.adopt_replays(now_ms));
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
            self.tell(&Note::end_of(&fact, now_ms), &seen, false);
        }
        for (app, channel, count) in self.subscribers.take_due(now_ms) {
            let count = Note::count_of(&app, &channel, count, now_ms);
            self.tell(&count, &seen, false);
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

    pub(super) fn as_node(&self, now_ms: u64) -> Node {
        Node {
            id: self.node.to_string(),
            alive_until_ms: now_ms + LEASE_MS,
            complete_ms: self.complete.iter().min().copied(),
        }
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
            Verdict::Tell => self.tell(note, seen, node.is_empty()),
            Verdict::TellChange => {
                let mut note = note.clone();
                note.kind = Kind::Update;
                self.tell(&note, seen, false);
            }
            Verdict::Drop => {}
        }
    }

    /// Numbers an event for every endpoint that wants it.
    fn tell(&mut self, note: &Note, seen: &Seen, is_caught: bool) {
        let Some(ids) = self.by_app.get(&note.app) else {
            return;
        };
        for id in ids {
            let Some(line) = self.lines.get_mut(id) else {
                continue;
            };
            // A message from before it was there, found by catching up, is none of its.
            let is_older = is_caught && note.at_ms < line.endpoint.created_ms;
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

    pub(super) fn note_failure(&mut self, error: &RecordError) {
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
            consider(Some(self.due.peers.min(self.saved_ms + RENEW_MS)));
            consider(self.standing.next_due_ms());
            consider(self.subscribers.next_due_ms());
            let mut is_dirty = !self.edits.is_empty();
            for line in self.lines.values().filter(|line| line.endpoint.enabled) {
                let Some(sender) = &line.sender else { continue };
                is_dirty |= line.dirty;
                let is_probe = sender.is_doubtful();
                if self.pool.has_room(is_probe) {
                    consider(sender.next_due_ms());
                    consider(sender.missing_from().map(|_| 0));
                }
                if !line.replays.is_empty() && line.replaying.is_none() {
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
