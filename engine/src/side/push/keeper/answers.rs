//! Questions that change nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::Platform;
use shardwire_proto::push::job::{Job, RESULTS_MAX};
use shardwire_proto::push::request::{ListQuery, write_cursor};

use super::jobs::answer_of;
use super::{Answer, JOB, Keeper, Question, RESULTS, now_ms, to_json, unavailable};
use crate::records::{Record, Scan};

/// Records of results of one job, at most: each holds one result at least.
const RESULT_RECORDS_MAX: usize = RESULTS_MAX as usize;

impl Keeper {
    pub(super) fn read(&mut self, app: &Arc<str>, question: Question) -> Answer {
        match question {
            Question::List(query) => self.list(app, &query),
            Question::VapidKey => {
                let public = self.vapid_public(app)?;
                Ok(to_json(&json!({ "vapidPublicKey": public })))
            }
            Question::Config => {
                let public = self.vapid_public(app)?;
                let provided = self.provided(app)?;
                let providers = Platform::ALL
                    .into_iter()
                    .map(|p| (p.name().to_owned(), provided.contains_key(&p).into()));
                let providers: serde_json::Map<String, Value> = providers.collect();
                Ok(to_json(
                    &json!({ "vapidPublicKey": public, "providers": providers }),
                ))
            }
            Question::Stats => self.stats(app),
            Question::Jobs(query) => self.list_jobs(app, &query),
            Question::Job(id) => self.sent_answer(app, &id),
            Question::Providers => self.show_providers(app),
            // The others are not for here.
            _ => Err(ErrorCode::Internal.into()),
        }
    }

    fn stats(&mut self, app: &Arc<str>) -> Answer {
        let subscriptions = self.count_subscriptions(app).map_err(|e| unavailable(&e))?;
        let tally = self.tally(app).ok_or(ErrorCode::Unavailable)?;
        let all = tally.all();
        let snapshot = self.registry.snapshot();
        let plan = snapshot.app(app).and_then(|app| snapshot.plan_of(app));
        Ok(to_json(&json!({ "stats": {
            "subscriptions": subscriptions,
            "sent": all.sent, "failed": all.failed, "expired": all.expired,
            "sentThisMonth": tally.month_sent(now_ms()),
            "pushPerMonth": plan.and_then(|plan| plan.push_per_month),
        }})))
    }

    /// A job of an app.
    ///
    /// # Errors
    /// 40400 where it has none with this id.
    pub(super) fn job_of(&mut self, app: &str, id: &str) -> Result<Job, ProtocolError> {
        if let Some(active) = self.jobs.get(id).filter(|active| active.job.app == app) {
            return Ok(active.job.clone());
        }
        let found = self.store.get(JOB, id, now_ms());
        let found = found.map_err(|e| unavailable(&e))?;
        found
            .and_then(|record| serde_json::from_str::<Job>(&record.body).ok())
            .filter(|job| job.app == app)
            .ok_or_else(|| ErrorCode::NotFound.into())
    }

    /// A job with its results.
    pub(super) fn sent_answer(&mut self, app: &str, id: &str) -> Answer {
        let job = self.job_of(app, id)?;
        let scan = Scan::of(RESULTS, RESULT_RECORDS_MAX).labelled("job", id);
        let found = self
            .store
            .scan(&scan, now_ms())
            .map_err(|e| unavailable(&e))?;
        let results: Vec<Value> = found
            .iter()
            .filter_map(|record| serde_json::from_str::<Vec<Value>>(&record.body).ok())
            .flatten()
            .collect();
        let pending = self.pending(&job);
        let mut answer = answer_of(&job, &results, pending.unwrap_or(0));
        describe(&mut answer, &job, pending);
        Ok(to_json(&answer))
    }

    /// Recipients of a job that have been looked up and are not done; `None` where another process knows.
    fn pending(&self, job: &Job) -> Option<usize> {
        let active = self.jobs.get(&*job.id)?;
        let entries = active.pages.values().map(|open| open.page.entries.len());
        Some(entries.sum())
    }

    fn list_jobs(&mut self, app: &str, query: &ListQuery) -> Answer {
        let mut scan = Scan::of(JOB, query.limit + 1).labelled("app", app);
        scan.newest_first = true;
        scan.after.clone_from(&query.cursor);
        let mut found = self
            .store
            .scan(&scan, now_ms())
            .map_err(|e| unavailable(&e))?;
        let cursor = cut(&mut found, query.limit);
        let shown: Vec<Value> = found
            .iter()
            .filter_map(|record| {
                let stored: Job = serde_json::from_str(&record.body).ok()?;
                let active = self.jobs.get(&*stored.id).map(|active| &active.job);
                let job = active.unwrap_or(&stored);
                let mut shown = json!({
                    "jobId": job.id, "state": job.state, "sent": job.counts.sent,
                    "failed": job.counts.failed, "expired": job.counts.expired,
                });
                if let Some(error) = &job.error {
                    shown["error"] = error.as_str().into();
                }
                describe(&mut shown, job, self.pending(job));
                Some(shown)
            })
            .collect();
        let mut answer = json!({ "jobs": shown });
        if let Some(cursor) = cursor {
            answer["cursor"] = cursor.into();
        }
        Ok(to_json(&answer))
    }
}

/// Adds what a send's own answer does not say.
fn describe(shown: &mut Value, job: &Job, pending: Option<usize>) {
    shown["retries"] = job.counts.retries.into();
    shown["createdMs"] = job.created_ms.into();
    if let Some(finished_ms) = job.finished_ms {
        shown["finishedMs"] = finished_ms.into();
    }
    if let Some(total) = job.total {
        shown["total"] = total.into();
    }
    if let Some(pending) = pending {
        shown["pending"] = pending.into();
    }
    shown["title"] = job.content.title.clone().into();
    if let Some(channel) = &job.audience.channel {
        shown["channel"] = channel.as_str().into();
    }
    shown["members"] = job.audience.members.len().into();
}

/// Cuts what was found down to a page, and says where the next one goes on, if there is one.
pub(super) fn cut(found: &mut Vec<Record>, limit: usize) -> Option<String> {
    let has_more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| has_more);
    last.map(|record| write_cursor(record.rank, &record.id))
}
