//! The one place where the keeper writes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::job::{Counts, State};
use shardwire_proto::quota::{day_of, month_of};

use super::{
    Active, JOB, Keeper, LEASE_MS, LEASE_RENEW, NOTE_WITHIN, PAGE, PROVIDER, RESULTS, RETRY, TALLY,
    now_ms, to_json,
};
use crate::records::{Change, Condition, Record, RecordError};

/// Tries of a commit that others get in the way of.
const TRIES_MAX: usize = 5;

/// How long an app's numbers hold, where other processes count as well.
const TALLY_FRESH: Duration = Duration::from_secs(1);

/// How it went for an app in all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) stored: Stored,
    version: u64,
    /// Not written yet.
    pub(super) added: Counts,
    read: Option<Instant>,
}

/// A record's body.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stored {
    #[serde(flatten)]
    pub(super) all: Counts,
    /// Since January 1970.
    month: u32,
    month_sent: u64,
}

impl Tally {
    /// With what is not written yet.
    pub(super) fn all(&self) -> Counts {
        let mut all = self.stored.all;
        all += self.added;
        all
    }

    /// Sent in the month of `now_ms`.
    pub(super) fn month_sent(&self, now_ms: u64) -> u64 {
        let is_current = self.stored.month == month_of(day_of(now_ms));
        self.added.sent
            + if is_current {
                self.stored.month_sent
            } else {
                0
            }
    }

    fn next(&self, now_ms: u64) -> Stored {
        Stored {
            all: self.all(),
            month: month_of(day_of(now_ms)),
            month_sent: self.month_sent(now_ms),
        }
    }
}

/// What a change of the list was for, to find out what a conflict means.
enum Part {
    Asked,
    Job(Arc<str>),
    Tally(Arc<str>),
    Other,
}

impl Keeper {
    /// Writes what waits if somebody waits for it, or it has waited long enough.
    pub(super) fn commit_if_due(&mut self) {
        let now = Instant::now();
        if self.failing_until.is_some_and(|until| now < until) && self.work.replies.is_empty() {
            return;
        }
        let is_due = self
            .unwritten_since
            .is_some_and(|s| s.elapsed() >= NOTE_WITHIN);
        let is_asked = !(self.work.replies.is_empty() && self.work.begun.is_empty());
        if is_due || is_asked || self.is_urgent {
            // What cannot be written is told or kept.
            _ = self.commit();
        }
    }

    /// When something has waited long enough.
    pub(super) fn write_due(&self) -> Option<Instant> {
        let since = self.unwritten_since?;
        Some(self.failing_until.unwrap_or(since + NOTE_WITHIN))
    }

    /// Writes everything that waits, and then gives the answers that follow from it.
    ///
    /// # Errors
    /// Nothing was written. What questions asked for is undone and they are told; progress is kept for later.
    pub(super) fn commit(&mut self) -> Result<(), ProtocolError> {
        let asked = std::mem::take(&mut self.work.asked);
        self.work.touched.clear();
        let mut written = Err(RecordError::Busy("others are faster".into()));
        for _ in 0..TRIES_MAX {
            let (changes, parts) = self.changes(&asked);
            if changes.is_empty() {
                written = Ok(());
                break;
            }
            let index = match self.store.apply(&changes, now_ms()) {
                Err(RecordError::Conflict(index)) => index,
                result => {
                    written = result;
                    break;
                }
            };
            match parts.get(index) {
                Some(Part::Job(job)) => self.lose(&job.clone()),
                Some(Part::Tally(app)) => {
                    if let Some(tally) = self.tallies.get_mut(app) {
                        tally.read = None;
                    }
                }
                _ => {
                    written = Err(RecordError::Conflict(index));
                    break;
                }
            }
        }
        match written {
            Ok(()) => {
                if asked.iter().any(|change| {
                    matches!(change,
                    Change::Put { kind, .. } | Change::Delete { kind, .. } if *kind == PROVIDER)
                }) {
                    self.providers = Default::default();
                }
                self.on_written();
                Ok(())
            }
            Err(error) => Err(self.on_failed(&error)),
        }
    }

    /// Everything that waits, in the order of the list.
    fn changes(&mut self, asked: &[Change]) -> (Vec<Change>, Vec<Part>) {
        let now_ms = now_ms();
        let mut changes = asked.to_vec();
        let mut parts: Vec<Part> = asked.iter().map(|_| Part::Asked).collect();
        let mut add = |change, part| {
            changes.push(change);
            parts.push(part);
        };
        for removal in &self.work.removals {
            add(removal.clone(), Part::Other);
        }
        for (id, active) in &mut self.jobs {
            let has_pages = active.pages.values().any(|open| open.is_dirty);
            if active.job.state == State::Active && active.renewed.elapsed() >= LEASE_RENEW {
                active.is_dirty = true;
            }
            if !active.is_dirty && !has_pages {
                continue;
            }
            let keep_ms = self.config.keep_jobs_s * 1000;
            let results = active.results_record(now_ms, keep_ms);
            if active.job.state == State::Active {
                active.job.owner.clone_from(&self.owner);
                active.job.lease_ms = now_ms + if self.is_released { 0 } else { LEASE_MS };
            }
            add(active.put(keep_ms), Part::Job(id.clone()));
            for change in active.page_changes() {
                add(change, Part::Other);
            }
            if let Some(results) = results {
                add(Change::put(RESULTS, results), Part::Other);
            }
        }
        let dirty = self
            .tallies
            .iter()
            .filter(|(_, tally)| tally.added != Counts::default());
        let dirty: BTreeSet<Arc<str>> = dirty.map(|(app, _)| app.clone()).collect();
        for app in dirty {
            let Some(tally) = self.tally(&app) else {
                continue;
            };
            let when = match tally.version {
                0 => Condition::Absent,
                version => Condition::Version(version),
            };
            let record = Record {
                id: app.to_string(),
                body: String::from_utf8(to_json(&tally.next(now_ms))).unwrap_or_default(),
                ..Record::default()
            };
            changes.push(Change::Put {
                kind: TALLY,
                record,
                when,
            });
            parts.push(Part::Tally(app));
        }
        (changes, parts)
    }

    /// An app's numbers; `None` when the store does not answer.
    pub(super) fn tally(&mut self, app: &Arc<str>) -> Option<Tally> {
        let known = self.tallies.get(app).copied().unwrap_or_default();
        let is_fresh = |read: Instant| self.alone || read.elapsed() < TALLY_FRESH;
        if known.read.is_some_and(is_fresh) {
            return Some(known);
        }
        let found = self.store.get(TALLY, app, now_ms()).ok()?;
        let (stored, version) = match found {
            None => (Stored::default(), 0),
            Some(record) => (
                serde_json::from_str(&record.body).unwrap_or_default(),
                record.version,
            ),
        };
        let tally = Tally {
            stored,
            version,
            added: known.added,
            read: Some(Instant::now()),
        };
        self.tallies.insert(app.clone(), tally);
        Some(tally)
    }

    fn on_written(&mut self) {
        self.unwritten_since = None;
        self.failing_until = None;
        self.is_urgent = false;
        self.work.removals.clear();
        self.work.begun.clear();
        let now_ms = now_ms();
        for (app, tally) in &mut self.tallies {
            if tally.added != Counts::default() {
                *self.uncounted.entry(app.clone()).or_default() += tally.added;
                tally.stored = tally.next(now_ms);
                tally.added = Counts::default();
                tally.version += 1;
            }
        }
        self.uncounted
            .retain(|app, counts| !(self.ears.used)(app, *counts));
        for active in self.jobs.values_mut() {
            active.on_written();
        }
        for (reply, answer) in self.work.replies.drain(..) {
            // Whoever asked may have given up.
            _ = reply.try_send(answer);
        }
    }

    fn on_failed(&mut self, error: &RecordError) -> ProtocolError {
        self.failures += 1;
        if self.failing_until.is_none() {
            log::error!(error:display; "push: the store cannot be written");
        }
        self.failing_until = Some(Instant::now() + RETRY);
        self.unwritten_since.get_or_insert_with(Instant::now);
        self.is_urgent = false;
        let text = "cannot be stored";
        let told = ProtocolError::with_text(ErrorCode::Unavailable, text);
        for id in std::mem::take(&mut self.work.begun) {
            if let Some(active) = self.jobs.remove(&id) {
                for (reply, _) in active.waiters {
                    _ = reply.try_send(Err(told.clone()));
                }
            }
        }
        for (reply, _) in self.work.replies.drain(..) {
            _ = reply.try_send(Err(told.clone()));
        }
        told
    }
}

impl Active {
    /// The job's record as it is to be.
    fn put(&self, keep_ms: u64) -> Change {
        let job = &self.job;
        let state = match job.state {
            State::Active => "active",
            _ => "ended",
        };
        let record = Record {
            id: job.id.clone(),
            labels: vec![
                ("app".into(), job.app.clone()),
                ("state".into(), state.into()),
            ],
            rank: i64::try_from(job.created_ms).unwrap_or(i64::MAX),
            expires_ms: job.finished_ms.map(|finished| finished + keep_ms),
            body: String::from_utf8(to_json(job)).unwrap_or_default(),
            version: 0,
        };
        let when = match self.version {
            0 => Condition::Absent,
            version => Condition::Version(version),
        };
        Change::Put {
            kind: JOB,
            record,
            when,
        }
    }

    fn page_changes(&self) -> Vec<Change> {
        let id = |number: &u32| format!("{}/{number:08}", self.job.id);
        let ended = self.job.state != State::Active;
        let changed = self.pages.iter().filter(|(_, open)| open.is_dirty || ended);
        changed
            .filter_map(|(number, open)| {
                if open.page.entries.is_empty() || ended {
                    return Some(Change::delete(PAGE, id(number)));
                }
                let record = Record {
                    id: id(number),
                    labels: vec![("job".into(), self.job.id.clone())],
                    rank: i64::from(*number),
                    body: String::from_utf8(to_json(&open.page)).ok()?,
                    ..Record::default()
                };
                Some(Change::put(PAGE, record))
            })
            .collect()
    }

    /// What has come in since the last commit, as a record. Given again when the commit fails.
    fn results_record(&mut self, now_ms: u64, keep_ms: u64) -> Option<Record> {
        if self.results.is_empty() {
            return None;
        }
        let seq = self.job.results - self.results.len() as u64;
        Some(Record {
            id: format!("{}/{seq:08}", self.job.id),
            labels: vec![("job".into(), self.job.id.clone())],
            rank: i64::try_from(seq).unwrap_or(i64::MAX),
            // Not before the job's own end.
            expires_ms: Some(self.job.deadline_ms().max(now_ms) + 2 * keep_ms),
            body: Value::from(self.results.clone()).to_string(),
            version: 0,
        })
    }

    fn on_written(&mut self) {
        let was_dirty = self.is_dirty || self.pages.values().any(|open| open.is_dirty);
        if !was_dirty {
            return;
        }
        self.version += 1;
        self.is_dirty = false;
        self.renewed = Instant::now();
        self.results.clear();
        self.pages.retain(|_, open| {
            (open.is_dirty, open.is_stored) = (false, true);
            !open.page.entries.is_empty() || open.in_flight > 0
        });
    }
}
