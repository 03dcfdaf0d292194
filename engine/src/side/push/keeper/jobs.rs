//! Sends: begun by a question or taken over after a crash, and what became of their recipients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::job::{Cursor, Job, PAGES_OPEN_MAX, Page, RESULTS_MAX, Settled, State};
use shardwire_proto::push::request::SendRequest;
use shardwire_proto::webhook::{Raised, What};

use super::super::send::{Outcome, Recipient, Report};
use super::subscriptions::{BY_APP, BY_CHANNEL};
use super::{
    Active, BATCHES_MAX, ENROLMENT, JOB, JOB_BATCHES_MAX, JOBS_MAX, Keeper, OpenPage, PAGE, Reply,
    SUBSCRIPTION, now_ms, to_json, unavailable,
};
use crate::records::{RecordError, Scan};

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
        self.batches_out -= active.pages_out();
        for (reply, _) in active.waiters {
            let answer = answer_of(&active.job, &active.shown, 0);
            _ = reply.try_send(Ok(to_json(&answer)));
        }
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
    pub(super) fn settled(
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
        if let Settled::Failed(reason) | Settled::Gone { reason, .. } = &settled {
            self.tell_failed(job, subscription, of, reason);
        }
        self.unwritten_since.get_or_insert_with(Instant::now);
        if let Settled::Gone { since_ms, .. } = settled {
            self.forget(subscription, since_ms);
        }
        self.finish(job);
    }

    /// Lets back ends know of a notification that was given up. Where too much waits for them it is left out and counted.
    fn tell_failed(
        &mut self,
        job: &Arc<str>,
        subscription: &str,
        of: Option<&Recipient>,
        reason: &str,
    ) {
        let Some(active) = self.jobs.get(job) else {
            return;
        };
        let data = json!({
            "jobId": &**job,
            "subscriptionId": subscription,
            "platform": of.map(|recipient| recipient.platform),
            "error": reason,
        });
        let event = Raised {
            app: active.job.app.as_str().into(),
            timestamp: now_ms(),
            what: What::PushFailed {
                data: data.to_string(),
                client_id: of.map(|recipient| recipient.member.as_str().into()),
            },
        };
        if !(self.ears.failed)(event) {
            self.failures_untold += 1;
        }
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
                self.batches_out -= active.pages_out();
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
    /// Pages with recipients on their way to a provider.
    fn pages_out(&self) -> usize {
        let pages = self.pages.values();
        pages.filter(|page| page.in_flight > 0).count()
    }

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
    pub(super) fn wants_page(&mut self) -> bool {
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
