//! Recipients of sends: looked up page by page, and dealt out to the sender.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shardwire_proto::error::ProtocolError;
use shardwire_proto::push::job::{Cursor, Job, PAGE_ENTRIES_MAX, Settled, State};

use super::super::send::{Batch, Recipient};
use super::subscriptions::{BY_APP, BY_CHANNEL, BY_MEMBER, Subscription, enrolled};
use super::{Active, BATCHES_MAX, ENROLMENT, JOB_BATCHES_MAX, Keeper, SUBSCRIPTION, now_ms};
use crate::records::{RecordError, Scan};

/// A broadcast reaches who was there when it began, clocks of several processes allowed for.
const CLOCKS_MS: i64 = 5000;

impl Keeper {
    /// Looks up recipients where there is room for them.
    pub(super) fn plan(&mut self) {
        if self.batches.is_none() {
            return;
        }
        let wanting: Vec<Arc<str>> = self
            .jobs
            .iter_mut()
            .filter_map(|(id, active)| active.wants_page().then(|| id.clone()))
            .collect();
        for id in wanting {
            while self.jobs.get_mut(&id).is_some_and(Active::wants_page) && self.plan_page(&id) {}
        }
    }

    /// One page of a job; false where that cannot be done for now.
    fn plan_page(&mut self, id: &Arc<str>) -> bool {
        let Some(mut active) = self.jobs.remove(id) else {
            return false;
        };
        let app: Arc<str> = active.job.app.as_str().into();
        let is_there = self.registry.snapshot().app(&app).is_some();
        let now_ms = now_ms();
        let went_well = if !is_there || self.is_exhausted(&app) {
            let text = if is_there {
                "the push quota of the month is used up"
            } else {
                "the app is no more"
            };
            active.job.end(State::Stopped, Some(text.into()), now_ms);
            active.is_dirty = true;
            true
        } else {
            match self.look_up(&active.job) {
                Ok(asked) if active.job.audience.absent && !asked.0.is_empty() => {
                    self.ask_who(id, &mut active, asked);
                    self.jobs.insert(id.clone(), active);
                    return false;
                }
                Ok((found, cursor, planned)) => {
                    active.add_page(found, cursor, planned);
                    true
                }
                Err(error) => {
                    log::warn!(error:display; "push: recipients cannot be looked up");
                    false
                }
            }
        };
        self.after_plan(&active);
        self.jobs.insert(id.clone(), active);
        went_well
    }

    pub(super) fn after_plan(&mut self, active: &Active) {
        // It is written before it is dealt out, so at once while nothing else is on its way.
        self.is_urgent |= active.job.state != State::Active
            || active.pages.values().all(|open| open.in_flight == 0);
        self.unwritten_since.get_or_insert_with(Instant::now);
    }

    /// The next recipients of a job, where to go on, and whether these were the last.
    fn look_up(&mut self, job: &Job) -> Result<(Vec<Recipient>, Cursor, bool), RecordError> {
        let now = now_ms();
        let mut cursor = job.cursor.clone();
        let (app, channel) = (&job.app, &job.audience.channel);
        if job.audience.members.is_empty() {
            let (kind, label, value) = match channel {
                None => (SUBSCRIPTION, BY_APP, app.clone()),
                Some(channel) => (ENROLMENT, BY_CHANNEL, format!("{app}/{channel}")),
            };
            let mut scan = Scan::of(kind, PAGE_ENTRIES_MAX).labelled(label, value);
            scan.after = cursor.after;
            let created = i64::try_from(job.created_ms).unwrap_or(i64::MAX);
            scan.rank_max = Some(created.saturating_add(CLOCKS_MS));
            let found = self.store.scan(&scan, now)?;
            let is_last = found.len() < PAGE_ENTRIES_MAX;
            cursor.after = found.last().map(|record| (record.rank, record.id.clone()));
            let mut recipients = Vec::with_capacity(found.len());
            for record in found {
                let record = match channel {
                    None => Some(record),
                    Some(_) => self.store.get(SUBSCRIPTION, enrolled(&record), now)?,
                };
                if let Some(record) = record
                    && let Some(subscription) = Subscription::read(&record)
                {
                    recipients.push(subscription.into_recipient(record.id));
                }
            }
            return Ok((recipients, cursor, is_last));
        }
        let mut recipients = Vec::new();
        while let Some(member) = job.audience.members.get(cursor.member) {
            let room = PAGE_ENTRIES_MAX - recipients.len();
            if room == 0 {
                return Ok((recipients, cursor, false));
            }
            let mut scan =
                Scan::of(SUBSCRIPTION, room).labelled(BY_MEMBER, format!("{app}/{member}"));
            scan.after.clone_from(&cursor.after);
            let found = self.store.scan(&scan, now)?;
            let is_last = found.len() < room;
            cursor.after = found.last().map(|record| (record.rank, record.id.clone()));
            for record in found {
                if let Some(subscription) = Subscription::read(&record)
                    && channel
                        .as_ref()
                        .is_none_or(|c| subscription.channels.contains(c))
                {
                    recipients.push(subscription.into_recipient(record.id));
                }
            }
            if is_last {
                cursor = Cursor {
                    member: cursor.member + 1,
                    after: None,
                };
            }
        }
        Ok((recipients, cursor, true))
    }

    /// Gives batches to the sender while it has room, each job in turn; returns when there is something to do next.
    pub(super) fn deal_out(&mut self) -> Instant {
        let now = now_ms();
        let mut next_ms = now + 60_000;
        let mut without_work = 0;
        while without_work < self.order.len() && self.batches.is_some() {
            let Some(id) = self.order.pop_front() else {
                break;
            };
            if !self.jobs.contains_key(&id) {
                continue;
            }
            self.order.push_back(id.clone());
            match self.deal_page(&id, now) {
                Ok(true) => without_work = 0,
                Ok(false) => without_work += 1,
                Err(due_ms) => {
                    next_ms = next_ms.min(due_ms);
                    without_work += 1;
                }
            }
        }
        Instant::now() + Duration::from_millis(next_ms.saturating_sub(now))
    }

    /// Gives out one page of a job: true when it has. The error is when a page is due.
    fn deal_page(&mut self, id: &Arc<str>, now: u64) -> Result<bool, u64> {
        let Some(active) = self.jobs.get_mut(id) else {
            return Ok(false);
        };
        let out = active
            .pages
            .values()
            .filter(|open| open.in_flight > 0)
            .count();
        if self.batches_out >= BATCHES_MAX
            || out >= JOB_BATCHES_MAX
            || active.job.state != State::Active
        {
            return Ok(false);
        }
        let waiting = active.pages.iter().filter(|(_, open)| {
            open.is_stored && open.in_flight == 0 && !open.page.entries.is_empty()
        });
        let first = waiting.min_by_key(|(number, open)| (open.due_ms, **number));
        let Some((number, open)) = first.map(|(number, open)| (*number, open)) else {
            return Ok(false);
        };
        if open.due_ms > now {
            return Err(open.due_ms);
        }
        let app: Arc<str> = active.job.app.as_str().into();
        let (content, created_ms) = (active.content.clone(), active.job.created_ms);
        let Some(open) = active.pages.get_mut(&number) else {
            return Ok(false);
        };
        let known = std::mem::take(&mut open.known);
        let due = open.page.entries.iter().filter(|entry| entry.due_ms <= now);
        let due: Vec<String> = due.map(|entry| entry.id.clone()).collect();
        let later = now + 1000;
        let Ok((recipients, gone)) = self.recipients(known, &due) else {
            return Err(later);
        };
        let Ok(providers) = self.provided(&app) else {
            return Err(later);
        };
        let count = recipients.len();
        if let Some(open) = self.jobs.get_mut(id).and_then(|a| a.pages.get_mut(&number)) {
            open.in_flight = count;
        }
        if count > 0 {
            let batch = Batch {
                job: id.clone(),
                page: number,
                app,
                content,
                created_ms,
                recipients,
                providers,
            };
            let sent = self
                .batches
                .as_ref()
                .map(|batches| batches.try_send(Box::new(batch)));
            if !matches!(sent, Some(Ok(()))) {
                if let Some(open) = self.jobs.get_mut(id).and_then(|a| a.pages.get_mut(&number)) {
                    open.in_flight = 0;
                }
                return Err(later);
            }
            self.batches_out += 1;
        }
        for subscription in gone {
            let settled = Settled::Failed("the subscription has been removed".into());
            self.settled(id, number, &subscription, None, settled);
        }
        Ok(true)
    }

    /// Addresses of those that are due, and who is no longer there.
    fn recipients(
        &mut self,
        known: Vec<Recipient>,
        due: &[String],
    ) -> Result<(Vec<Recipient>, Vec<String>), ProtocolError> {
        if known.len() == due.len() {
            return Ok((known, Vec::new()));
        }
        let (mut found, mut gone) = (Vec::with_capacity(due.len()), Vec::new());
        for id in due {
            match self.subscription(id)? {
                Some((record, subscription)) => found.push(subscription.into_recipient(record.id)),
                None => gone.push(id.clone()),
            }
        }
        Ok((found, gone))
    }
}
