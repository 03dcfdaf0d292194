//! Sends: begun by a question, taken over after a crash, looked up page by page, and dealt out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::job::{
    Cursor, Job, PAGE_ENTRIES_MAX, PAGES_OPEN_MAX, Page, RESULTS_MAX, Settled, State,
};
use shardwire_proto::push::request::SendRequest;

use super::super::send::{Batch, Outcome, Recipient, Report};
use super::subscriptions::{BY_APP, BY_CHANNEL, BY_MEMBER, Subscription, enrolled};
use super::{
    Active, BATCHES_MAX, ENROLMENT, JOB, JOB_BATCHES_MAX, JOBS_MAX, Keeper, OpenPage, PAGE, Reply,
    SUBSCRIPTION, now_ms, to_json, unavailable,
};
use crate::records::{RecordError, Scan};

/// A broadcast reaches who was there when it began, clocks of several processes allowed for.
const CLOCKS_MS: i64 = 5000;
/// Jobs and pages read at a time when they are taken over.
const ADOPT_STEP: usize = 100;

impl Keeper {
    /// Begins a send. Its answer comes when it is done, or after the configured wait: `None`.
    pub(super) fn begin(
        &mut self,
        app: &Arc<str>,
        request: SendRequest,
        key: Option<String>,
        reply: &Reply,
    ) -> Result<Option<Vec<u8>>, ProtocolError> {
        let waits_until = Instant::now() + Duration::from_millis(self.config.wait_ms);
        let id: Arc<str> = match &key {
            None => format!("job_{}", BASE64URL_NOPAD.encode(&crate::sys::random())),
            Some(key) => {
                let hash = digest(&SHA256, format!("{app}\0{key}").as_bytes());
                let start = hash.as_ref().get(..16).unwrap_or_default();
                format!("job_{}", BASE64URL_NOPAD.encode(start))
            }
        }
        .into();
        if key.is_some() {
            if let Some(active) = self.jobs.get_mut(&id) {
                active.waiters.push((reply.clone(), waits_until));
                return Ok(None);
            }
            let found = self.store.get(JOB, &id, now_ms());
            if found.map_err(|e| unavailable(&e))?.is_some() {
                return self.sent_answer(app, &id).map(Some);
            }
        }
        if self.jobs.len() >= JOBS_MAX {
            let text = "too many sends are on their way";
            return Err(ProtocolError::with_text(ErrorCode::Unavailable, text));
        }
        if self.is_exhausted(app) {
            return Err(ErrorCode::QuotaExhausted.into());
        }
        let total = self
            .count_audience(app, &request)
            .map_err(|e| unavailable(&e))?;
        let (audience, content) = (request.audience, request.content);
        let job = Job::new(
            id.to_string(),
            app.to_string(),
            audience,
            content,
            total,
            now_ms(),
        );
        let mut active = Active::new(job, 0);
        active.is_dirty = true;
        active.waiters.push((reply.clone(), waits_until));
        self.jobs.insert(id.clone(), active);
        self.order.push_front(id.clone());
        self.work.begun.push(id);
        Ok(None)
    }

    fn count_audience(
        &mut self,
        app: &str,
        request: &SendRequest,
    ) -> Result<Option<u64>, RecordError> {
        if !request.audience.members.is_empty() {
            return Ok(None);
        }
        let (kind, label, value) = match &request.audience.channel {
            None => (SUBSCRIPTION, BY_APP, app.to_owned()),
            Some(channel) => (ENROLMENT, BY_CHANNEL, format!("{app}/{channel}")),
        };
        self.store
            .count(kind, Some((label, &value)), now_ms())
            .map(Some)
    }

    /// Whether an app's plan leaves no push for this month.
    pub(super) fn is_exhausted(&mut self, app: &Arc<str>) -> bool {
        let snapshot = self.registry.snapshot();
        let plan = snapshot.app(app).and_then(|app| snapshot.plan_of(app));
        let Some(most) = plan.and_then(|plan| plan.push_per_month) else {
            return false;
        };
        self.tally(app)
            .is_some_and(|tally| tally.month_sent(now_ms()) >= most)
    }

    pub(super) fn cancel(&mut self, app: &str, id: &str) -> Result<Vec<u8>, ProtocolError> {
        self.commit()?;
        if !self.jobs.contains_key(id) {
            // Another process may be working on it: taking it over ends that.
            let record = self
                .store
                .get(JOB, id, now_ms())
                .map_err(|e| unavailable(&e))?;
            let record = record.ok_or(ErrorCode::NotFound)?;
            self.take_over(&record.body, record.version, true);
        }
        let active = self.jobs.get_mut(id).filter(|active| active.job.app == app);
        let Some(active) = active else {
            let known = self.job_of(app, id)?;
            return Ok(to_json(
                &json!({ "cancelled": false, "state": known.state }),
            ));
        };
        active.job.end(State::Cancelled, None, now_ms());
        active.is_dirty = true;
        self.is_urgent = true;
        Ok(to_json(&json!({ "cancelled": true, "state": "cancelled" })))
    }

    /// Takes over jobs that nobody works on.
    pub(super) fn adopt(&mut self) {
        let mut after = None;
        while self.jobs.len() < JOBS_MAX {
            let mut scan = Scan::of(JOB, ADOPT_STEP).labelled("state", "active");
            scan.after = after;
            let found = match self.store.scan(&scan, now_ms()) {
                Ok(found) => found,
                Err(error) => return log::warn!(error:display; "push: jobs cannot be read"),
            };
            for record in &found {
                self.take_over(&record.body, record.version, self.alone);
            }
            after = found.last().map(|record| (record.rank, record.id.clone()));
            if found.len() < ADOPT_STEP {
                return;
            }
        }
    }

    fn take_over(&mut self, body: &str, version: u64, by_force: bool) {
        let Ok(job) = serde_json::from_str::<Job>(body) else {
            return log::error!("push: a job cannot be read");
        };
        let is_free = by_force || job.lease_ms <= now_ms();
        if job.state != State::Active || !is_free || self.jobs.contains_key(&*job.id) {
            return;
        }
        let mut pages = BTreeMap::new();
        let mut scan = Scan::of(PAGE, PAGES_OPEN_MAX + BATCHES_MAX).labelled("job", &job.id);
        scan.rank_min = Some(0);
        match self.store.scan(&scan, now_ms()) {
            Ok(found) => {
                for record in found {
                    if let Ok(page) = serde_json::from_str::<Page>(&record.body) {
                        pages.insert(page.number, OpenPage::stored(page));
                    }
                }
            }
            Err(error) => return log::warn!(error:display; "push: pages cannot be read"),
        }
        log::info!(job = &*job.id; "push: a send goes on");
        let id: Arc<str> = job.id.as_str().into();
        let mut active = Active::new(job, version);
        active.pages = pages;
        active.is_dirty = true;
        self.jobs.insert(id.clone(), active);
        self.order.push_back(id);
        self.unwritten_since.get_or_insert_with(Instant::now);
    }

    /// Another process has taken a job over.
    pub(super) fn lose(&mut self, id: &Arc<str>) {
        let Some(active) = self.jobs.remove(id) else {
            return;
        };
        log::warn!(job = &**id; "push: a send has been taken over by another process");
        let out = active
            .pages
            .values()
            .filter(|open| open.in_flight > 0)
            .count();
        self.batches_out -= out;
        for (reply, _) in active.waiters {
            let answer = answer_of(&active.job, &active.shown, 0);
            _ = reply.try_send(Ok(to_json(&answer)));
        }
    }

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
            let sent = self.batches.as_ref().map(|batches| batches.try_send(batch));
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

    /// Takes what became of a recipient.
    pub(super) fn note(&mut self, report: &Report) {
        let Some(recipient) = report.batch.recipients.get(report.index) else {
            return;
        };
        let (id, page) = (&report.batch.job, report.batch.page);
        // A job that was cancelled or lost has none.
        let Some(active) = self.jobs.get_mut(id) else {
            return;
        };
        let Some(open) = active.pages.get_mut(&page) else {
            return;
        };
        let now = now_ms();
        let [a, b, c, d, ..] = crate::sys::random();
        let random = u32::from_ne_bytes([a, b, c, d]);
        let before = active.job.counts;
        let settled = match &report.outcome {
            Outcome::Answered(verdict) => {
                let verdict = verdict.clone();
                open.page
                    .settle(&recipient.id, verdict, &mut active.job, now, random)
            }
            Outcome::Deferred(until_ms) => open.page.defer(&recipient.id, *until_ms, &active.job),
        };
        open.is_dirty = true;
        open.in_flight = open.in_flight.saturating_sub(1);
        if open.in_flight == 0 {
            open.due_ms = open.page.due_ms();
            self.batches_out = self.batches_out.saturating_sub(1);
        }
        active.is_dirty = true;
        self.unwritten_since.get_or_insert_with(Instant::now);
        if active.job.counts.retries > before.retries {
            let counts = shardwire_proto::push::job::Counts {
                retries: 1,
                ..Default::default()
            };
            self.count(recipient.platform, counts);
        }
        match settled {
            Some(settled) => self.settled(id, page, &recipient.id, Some(recipient), settled),
            None => self.finish(id),
        }
    }

    /// Counts a recipient that is done with. `of`: its subscription, where it is there.
    fn settled(
        &mut self,
        job: &Arc<str>,
        page: u32,
        subscription: &str,
        of: Option<&Recipient>,
        settled: Settled,
    ) {
        let Some(active) = self.jobs.get_mut(job) else {
            return;
        };
        if of.is_none()
            && let Some(open) = active.pages.get_mut(&page)
        {
            open.page.entries.retain(|entry| entry.id != subscription);
            open.due_ms = open.page.due_ms();
            open.is_dirty = true;
        }
        let one = active.job.count(&settled);
        let error = match &settled {
            Settled::Sent => None,
            Settled::Failed(reason) | Settled::Gone { reason, .. } => Some(reason.clone()),
        };
        active.add_result(subscription, of, error);
        active.is_dirty = true;
        let app: Arc<str> = active.job.app.as_str().into();
        self.tallies.entry(app).or_default().added += one;
        if let Some(recipient) = of {
            self.count(recipient.platform, one);
        }
        self.unwritten_since.get_or_insert_with(Instant::now);
        if let Settled::Gone { since_ms, .. } = settled {
            self.forget(subscription, since_ms);
        }
        self.finish(job);
    }

    /// Ends a job whose last recipient is done with.
    fn finish(&mut self, job: &Arc<str>) {
        let Some(active) = self.jobs.get_mut(job) else {
            return;
        };
        let open = active.pages.values();
        let open = open.filter(|open| !open.page.entries.is_empty() || open.in_flight > 0);
        let open = open.count();
        if active.job.finish_if_done(open, now_ms()) {
            active.is_dirty = true;
            self.is_urgent = true;
        }
    }

    /// Answers those whose send is done and written, or who have waited long enough; returns when the next has.
    pub(super) fn give_answers(&mut self, now: Instant) -> Instant {
        let mut next = now + Duration::from_secs(60);
        self.jobs.retain(|_, active| {
            let is_over = active.job.state != State::Active && !active.is_dirty;
            let answer = |active: &Active| {
                let open = active.pages.values().map(|open| open.page.entries.len());
                to_json(&answer_of(&active.job, &active.shown, open.sum()))
            };
            let due = active
                .waiters
                .iter()
                .any(|(_, until)| is_over || *until <= now);
            if due {
                let answer = answer(active);
                active.waiters.retain(|(reply, until)| {
                    let is_due = is_over || *until <= now;
                    if is_due {
                        // Whoever asked may have given up.
                        _ = reply.try_send(Ok(answer.clone()));
                    }
                    !is_due
                });
            }
            if active.waiters.is_empty() {
                active.shown = Vec::new();
            }
            for (_, until) in &active.waiters {
                next = next.min(*until);
            }
            if is_over {
                let out = active
                    .pages
                    .values()
                    .filter(|open| open.in_flight > 0)
                    .count();
                self.batches_out -= out;
            }
            !is_over
        });
        next
    }

    /// The end: what is known is written, and jobs are left to whoever comes next.
    pub(super) fn release(&mut self) {
        self.is_released = true;
        self.jobs
            .values_mut()
            .for_each(|active| active.is_dirty = true);
        if self.commit().is_err() {
            log::error!("push: progress of sends is not written");
        }
        self.give_answers(Instant::now() + Duration::from_secs(3600));
    }
}

impl Active {
    pub(super) fn new(job: Job, version: u64) -> Self {
        Self {
            content: Arc::new(job.content.clone()),
            job,
            version,
            pages: BTreeMap::new(),
            is_dirty: false,
            renewed: Instant::now(),
            results: Vec::new(),
            shown: Vec::new(),
            waiters: Vec::new(),
            asked: None,
        }
    }

    /// Takes recipients that were looked up, and where looking up goes on.
    pub(super) fn add_page(&mut self, found: Vec<Recipient>, cursor: Cursor, planned: bool) {
        let now_ms = now_ms();
        (self.job.cursor, self.job.planned) = (cursor, planned);
        let ids = found.iter().map(|recipient| recipient.id.clone());
        if let Some(page) = self.job.add_page(ids.collect(), now_ms) {
            let mut open = OpenPage::stored(page);
            (open.is_stored, open.is_dirty, open.known) = (false, true, found);
            self.pages.insert(open.page.number, open);
        }
        let open = self.pages.len();
        self.job.finish_if_done(open, now_ms);
        self.is_dirty = true;
    }

    /// Whether recipients should be looked up: some pages ahead of those that are on their way.
    fn wants_page(&mut self) -> bool {
        if self.is_waiting() {
            return false;
        }
        let ahead = self
            .pages
            .values()
            .filter(|open| !open.known.is_empty())
            .count();
        self.job.state == State::Active
            && !self.job.planned
            && ahead < JOB_BATCHES_MAX
            && self.pages.len() < PAGES_OPEN_MAX
    }

    fn add_result(&mut self, subscription: &str, of: Option<&Recipient>, error: Option<String>) {
        if self.job.results >= RESULTS_MAX {
            return;
        }
        let mut result = json!({
            "subscriptionId": subscription,
            "memberId": of.map_or("", |recipient| recipient.member.as_str()),
            "platform": of.map_or("", |recipient| recipient.platform.name()),
            "success": error.is_none(),
        });
        if let Some(error) = error {
            result["error"] = error.into();
        }
        self.job.results += 1;
        self.results.push(result.clone());
        if !self.waiters.is_empty() {
            self.shown.push(result);
        }
    }
}

impl OpenPage {
    fn stored(page: Page) -> Self {
        Self {
            due_ms: page.due_ms(),
            page,
            is_stored: true,
            is_dirty: false,
            in_flight: 0,
            known: Vec::new(),
        }
    }
}

/// What a send is answered with (contract D22), and how far it is.
pub(super) fn answer_of(job: &Job, results: &[Value], pending: usize) -> Value {
    let mut answer = json!({
        "jobId": job.id, "state": job.state, "sent": job.counts.sent, "failed": job.counts.failed,
        "expired": job.counts.expired, "pending": pending, "results": results,
    });
    if let Some(error) = &job.error {
        answer["error"] = error.as_str().into();
    }
    answer
}
