//! Deliveries of one endpoint: which events go together, what is under way, what comes again and when.
//!
//! Events come numbered and in order. Each goes to a lane by its key; a lane has one delivery at a time, and the next is
//! not begun before that one is delivered or given up: so the events of a channel stay in order. Not here: HTTP, time,
//! and keeping. **A delivery that [`Sender::form`] has made is kept ([`Sender::cursor`]) before [`Sender::start`] lets it
//! out**, so that it has the same id and events after a crash.
//!
//! When attempts fail in a row the circuit opens: nothing is tried for a while, then one attempt at a time until one
//! succeeds.
//!
//! Memory is bounded: of what is more than [`HELD_EVENTS_MAX`] events only the first number is known, and whoever keeps
//! events gives them again ([`Sender::missing_from`]).

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{BATCH_BYTES_MAX, Batch, RETRY_AFTER_MS_MAX};

/// Events of one endpoint in memory.
pub const HELD_EVENTS_MAX: usize = 2_000;
/// Their bytes.
pub const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Failures in a row that open the circuit.
pub const FAILURES_TO_OPEN: u32 = 5;
/// Longest pause of an open circuit, ms.
const OPEN_MS_MAX: u64 = 60_000;

/// A numbered event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub number: u64,
    /// See [`key_hash`].
    pub key: u64,
    pub at_ms: u64,
    /// JSON text.
    pub text: Arc<str>,
}

/// The same for equal keys, in every process.
#[must_use]
pub fn key_hash(key: &str) -> u64 {
    foldhash::quality::FixedState::with_seed(0).hash_one(key)
}

/// A delivery as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptDelivery {
    pub id: String,
    /// Number of its last event; the first is behind the lane's `through`.
    pub last: u64,
    /// Attempts that have failed.
    pub failed: u32,
    pub due_ms: u64,
    pub formed_ms: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptLane {
    /// Everything of the lane up to this number is delivered or given up.
    pub through: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<KeptDelivery>,
}

/// How far an endpoint is, as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The number that its next event gets.
    pub next: u64,
    pub lanes: Vec<KeptLane>,
}

#[derive(Debug)]
struct Delivery {
    kept: KeptDelivery,
    events: Vec<Queued>,
    in_flight: bool,
    /// It is kept.
    safe: bool,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Queued>,
    through: u64,
    delivery: Option<Delivery>,
}

impl Lane {
    /// The last number that is in a delivery, or was.
    fn assigned(&self) -> u64 {
        let last = self.delivery.as_ref().map_or(0, |d| d.kept.last);
        last.max(self.through)
    }
}

/// An attempt to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub lane: usize,
    pub id: String,
    pub formed_ms: u64,
    /// From 1.
    pub number: u32,
    pub events: Vec<Queued>,
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// To be tried again; with what the receiver has asked for, ms.
    Failed {
        retry_after_ms: Option<u64>,
    },
    /// The process ends before there was an answer: the attempt does not count.
    Abandoned,
}

/// What follows from an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Delivered,
    /// Tried again at this time, ms since the Unix epoch.
    Again {
        at_ms: u64,
    },
    /// Given up: these events are for the dead letters.
    Dead {
        id: String,
        /// When it was put together, ms since the Unix epoch.
        formed_ms: u64,
        events: Vec<Queued>,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Sender {
    batch: Batch,
    /// Pauses before each further attempt, ms.
    retry_ms: Arc<[u64]>,
    lanes: Vec<Lane>,
    next: u64,
    /// What is not in memory begins with this number.
    missing_from: Option<u64>,
    held: usize,
    held_bytes: usize,
    failures: u32,
    /// A delivery has succeeded since this was made.
    proven: bool,
    open_until_ms: u64,
    in_flight: usize,
}

impl Sender {
    /// Goes on from where an endpoint was. Events from [`Sender::missing_from`] on are to be given again; those of kept
    /// deliveries are then in these.
    #[must_use]
    pub fn new(cursor: &Cursor, batch: Batch, concurrency: usize, retry_ms: Arc<[u64]>) -> Self {
        let mut sender = Self {
            batch,
            retry_ms,
            lanes: Vec::new(),
            next: cursor.next.max(1),
            missing_from: None,
            held: 0,
            held_bytes: 0,
            failures: 0,
            proven: false,
            open_until_ms: 0,
            in_flight: 0,
        };
        let lanes = if cursor.lanes.len() == concurrency {
            cursor.lanes.clone()
        } else {
            // Keys have other lanes: what the slowest has not done is done again by all.
            let through = cursor.lanes.iter().map(|lane| lane.through).min();
            let through = through.unwrap_or_else(|| sender.next - 1);
            vec![
                KeptLane {
                    through,
                    delivery: None
                };
                concurrency.max(1)
            ]
        };
        for kept in lanes {
            let delivery = kept.delivery.map(|kept| Delivery {
                kept,
                events: Vec::new(),
                in_flight: false,
                safe: true,
            });
            sender.lanes.push(Lane {
                through: kept.through,
                delivery,
                ..Lane::default()
            });
        }
        let through = sender.lanes.iter().map(|lane| lane.through).min();
        let through = through.unwrap_or(0);
        if through + 1 < sender.next {
            sender.missing_from = Some(through + 1);
        }
        sender
    }

    /// The same with other lanes; what is under way is sent again.
    #[must_use]
    pub fn relaned(&self, concurrency: usize) -> Self {
        let retry_ms = self.retry_ms.clone();
        Self::new(&self.cursor(), self.batch, concurrency, retry_ms)
    }

    /// The number for the next event, which is then taken.
    pub fn take_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// The number for the next event.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// How far it is, to be kept.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let lanes = self.lanes.iter().map(|lane| KeptLane {
            through: lane.through,
            delivery: lane.delivery.as_ref().map(|d| d.kept.clone()),
        });
        Cursor {
            next: self.next,
            lanes: lanes.collect(),
        }
    }

    /// Takes other bounds for what is formed from here on.
    pub fn set_batch(&mut self, batch: Batch) {
        self.batch = batch;
    }

    /// A numbered event that is kept. In order, each once.
    pub fn push(&mut self, event: Queued) {
        if self.missing_from.is_some() {
            return;
        }
        if self.held >= HELD_EVENTS_MAX || self.held_bytes >= HELD_BYTES_MAX {
            self.missing_from = Some(event.number);
            return;
        }
        self.take(event);
    }

    /// The first number of what has to be given again, once there is room for it.
    #[must_use]
    pub fn missing_from(&self) -> Option<u64> {
        let has_room = self.held < HELD_EVENTS_MAX / 2 && self.held_bytes < HELD_BYTES_MAX / 2;
        self.missing_from.filter(|_| has_room)
    }

    /// Gives events again, from [`Sender::missing_from`] on and in order. `more` are kept behind them, from this number.
    pub fn refill(&mut self, events: impl IntoIterator<Item = Queued>, more: Option<u64>) {
        self.missing_from = more;
        for event in events {
            if self.held >= 2 * HELD_EVENTS_MAX {
                self.missing_from = Some(event.number);
                return;
            }
            self.take(event);
        }
        if more.is_none() {
            // Whatever else of a delivery there was is kept no longer.
            for lane in &mut self.lanes {
                let is_empty = |d: &Delivery| d.events.is_empty() && !d.in_flight;
                if let Some(gone) = lane.delivery.take_if(|d| is_empty(d)) {
                    lane.through = gone.kept.last;
                }
            }
        }
    }

    fn take(&mut self, event: Queued) {
        let index = self.lane_of(event.key);
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        if event.number <= lane.through {
            return;
        }
        let assigned = lane.assigned();
        if let Some(delivery) = lane.delivery.as_mut().filter(|_| event.number <= assigned) {
            let known = delivery
                .events
                .last()
                .is_some_and(|e| e.number >= event.number);
            if !known && !delivery.in_flight {
                delivery.events.push(event);
            }
            return;
        }
        if lane.queue.back().is_some_and(|e| e.number >= event.number) {
            return;
        }
        self.held += 1;
        self.held_bytes += event.text.len();
        lane.queue.push_back(event);
    }

    fn lane_of(&self, key: u64) -> usize {
        let lanes = self.lanes.len().max(1) as u64;
        // Below the number of lanes.
        (key % lanes) as usize
    }

    /// Puts events together whose time has come; true if there is something to keep. `at_once`: nothing waits for others.
    pub fn form(&mut self, endpoint: &str, now_ms: u64, at_once: bool) -> bool {
        let mut formed = false;
        let batch = self.batch;
        for lane in &mut self.lanes {
            let Some(first) = lane.queue.front().filter(|_| lane.delivery.is_none()) else {
                continue;
            };
            let number = first.number;
            let is_due = at_once
                || lane.queue.len() >= batch.max_events
                || first.at_ms.saturating_add(batch.max_ms) <= now_ms;
            if !is_due {
                continue;
            }
            let (mut events, mut bytes) = (Vec::new(), 0);
            while events.len() < batch.max_events
                && let Some(event) = lane
                    .queue
                    .pop_front_if(|e| bytes == 0 || bytes + e.text.len() <= BATCH_BYTES_MAX)
            {
                bytes += event.text.len();
                events.push(event);
            }
            self.held -= events.len();
            self.held_bytes -= bytes;
            lane.delivery = Some(Delivery {
                kept: KeptDelivery {
                    id: format!("{endpoint}-{number}"),
                    last: events.last().map_or(number, |e| e.number),
                    failed: 0,
                    due_ms: now_ms,
                    formed_ms: now_ms,
                },
                events,
                in_flight: false,
                safe: false,
            });
            formed = true;
        }
        formed
    }

    /// What [`Sender::cursor`] last gave is kept.
    pub fn mark_kept(&mut self) {
        for delivery in self.lanes.iter_mut().filter_map(|l| l.delivery.as_mut()) {
            delivery.safe = true;
        }
    }

    /// The next attempt whose time has come.
    pub fn start(&mut self, now_ms: u64) -> Option<Attempt> {
        let is_failing = self.failures > 0;
        if now_ms < self.open_until_ms || (is_failing && self.in_flight > 0) {
            return None;
        }
        let (index, lane) = self.lanes.iter_mut().enumerate().find(|(_, lane)| {
            let ready = |d: &Delivery| {
                !d.in_flight && d.safe && d.kept.due_ms <= now_ms && !d.events.is_empty()
            };
            lane.delivery.as_ref().is_some_and(ready)
        })?;
        let delivery = lane.delivery.as_mut()?;
        delivery.in_flight = true;
        self.in_flight += 1;
        Some(Attempt {
            lane: index,
            id: delivery.kept.id.clone(),
            formed_ms: delivery.kept.formed_ms,
            number: delivery.kept.failed + 1,
            events: delivery.events.clone(),
        })
    }

    /// An attempt has ended. `jitter` is from 0 to 1: how the pause is spread.
    pub fn finish(
        &mut self,
        lane: usize,
        outcome: Outcome,
        jitter: f64,
        now_ms: u64,
    ) -> Option<Step> {
        let lane = self.lanes.get_mut(lane)?;
        let delivery = lane.delivery.as_mut().filter(|d| d.in_flight)?;
        delivery.in_flight = false;
        self.in_flight -= 1;
        match outcome {
            Outcome::Abandoned => None,
            Outcome::Delivered => {
                self.failures = 0;
                self.proven = true;
                self.open_until_ms = 0;
                lane.through = delivery.kept.last;
                lane.delivery = None;
                Some(Step::Delivered)
            }
            Outcome::Failed { retry_after_ms } => {
                self.failures = self.failures.saturating_add(1);
                let pause = self.retry_ms.get(delivery.kept.failed as usize).copied();
                delivery.kept.failed += 1;
                let opened = self.failures.saturating_sub(FAILURES_TO_OPEN);
                if self.failures >= FAILURES_TO_OPEN {
                    let open_ms = 1000u64.saturating_mul(1 << opened.min(6));
                    self.open_until_ms = now_ms + open_ms.min(OPEN_MS_MAX);
                }
                let asked = retry_after_ms.unwrap_or(0).min(RETRY_AFTER_MS_MAX);
                self.open_until_ms = self.open_until_ms.max(now_ms + asked);
                let Some(pause) = pause else {
                    lane.through = delivery.kept.last;
                    let dead = lane.delivery.take()?;
                    return Some(Step::Dead {
                        id: dead.kept.id,
                        formed_ms: dead.kept.formed_ms,
                        events: dead.events,
                    });
                };
                // A tenth more or less: those that failed together do not come back together.
                let spread = pause as f64 * (0.9 + 0.2 * jitter.clamp(0.0, 1.0));
                let at_ms = now_ms + asked.max(spread as u64);
                delivery.kept.due_ms = at_ms;
                Some(Step::Again { at_ms })
            }
        }
    }

    /// When something is due, ms since the Unix epoch; what is under way is not.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        if self.failures > 0 && self.in_flight > 0 {
            return None;
        }
        let due = self.lanes.iter().filter_map(|lane| match &lane.delivery {
            Some(d) if d.in_flight || d.events.is_empty() => None,
            Some(d) => Some(d.kept.due_ms.max(self.open_until_ms)),
            None => {
                let first = lane.queue.front()?;
                let is_full = lane.queue.len() >= self.batch.max_events;
                Some(if is_full {
                    0
                } else {
                    first.at_ms.saturating_add(self.batch.max_ms)
                })
            }
        });
        due.min()
    }

    /// Attempts under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether the last attempt has failed, or none has succeeded yet: those of the others come first.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.failures > 0 || !self.proven
    }

    /// Whether nothing is tried for now.
    #[must_use]
    pub fn is_open(&self, now_ms: u64) -> bool {
        self.failures >= FAILURES_TO_OPEN || now_ms < self.open_until_ms
    }

    /// Events that are neither delivered nor given up, at most.
    #[must_use]
    pub fn behind(&self) -> u64 {
        let through = self.lanes.iter().map(|lane| lane.through).min();
        let held: usize = self
            .lanes
            .iter()
            .map(|l| l.queue.len() + l.delivery.as_ref().map_or(0, |d| d.events.len()))
            .sum();
        match self.missing_from {
            Some(_) => (self.next - 1).saturating_sub(through.unwrap_or(0)),
            None => held as u64,
        }
    }

    /// Tries at once what would wait: the operator has mended something.
    pub fn hurry(&mut self, now_ms: u64) {
        self.open_until_ms = 0;
        for delivery in self.lanes.iter_mut().filter_map(|l| l.delivery.as_mut()) {
            delivery.kept.due_ms = delivery.kept.due_ms.min(now_ms);
        }
    }
}
