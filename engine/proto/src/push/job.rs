//! A send on its way: who has been looked up, who is still waiting, and how it went.
//!
//! ```text
//!  recipients in the store ──cursor──► pages of up to PAGE_ENTRIES_MAX ──► sent | failed | expired
//!                                        └─ what is to be tried again stays in its page
//! ```
//! A job and its pages are kept in the store and written together, so that whoever takes a job over finds every
//! recipient exactly once: behind the cursor, in a page, or counted. Not here: looking up recipients, sending, storing.

use serde::{Deserialize, Serialize};

use super::content::Content;
use super::request::Audience;
use super::retry::{ATTEMPTS_MAX, LIFETIME_MS_MAX, wait_ms};
use super::verdict::Verdict;

/// Recipients of a page.
pub const PAGE_ENTRIES_MAX: usize = 100;
/// Pages of a job that are not done: while so many wait, no more recipients are looked up.
pub const PAGES_OPEN_MAX: usize = 200;
/// Results that are kept of a job (contract D22).
pub const RESULTS_MAX: u64 = 1000;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Active,
    Done,
    /// By whoever asked for it.
    Cancelled,
    /// It cannot go on; its error says why.
    Stopped,
}

/// How it went for how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The provider has taken it.
    pub sent: u64,
    /// It was refused, or given up.
    pub failed: u64,
    /// The device is no more. Among the failed.
    pub expired: u64,
    /// Tries that are to be repeated.
    pub retries: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.expired += other.expired;
        self.retries += other.retries;
    }
}

/// Where looking up recipients goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Index of the member, where members are named.
    pub member: usize,
    /// Behind the subscription with this rank and id.
    pub after: Option<(i64, String)>,
}

/// A send.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    pub id: String,
    pub app: String,
    /// Unix ms.
    pub created_ms: u64,
    pub finished_ms: Option<u64>,
    pub state: State,
    pub error: Option<String>,
    pub audience: Audience,
    pub content: Content,
    /// Subscriptions of the audience when it began, where that is known without looking at each.
    pub total: Option<u64>,
    pub cursor: Cursor,
    /// Every recipient has been looked up.
    pub planned: bool,
    /// Pages made so far: the number of the next.
    pub pages: u32,
    pub counts: Counts,
    /// Results kept so far.
    pub results: u64,
    /// Who works on it, and until when nobody else may, Unix ms.
    pub owner: String,
    pub lease_ms: u64,
}

impl Job {
    /// A job that nobody works on.
    #[must_use]
    pub fn new(
        id: String,
        app: String,
        audience: Audience,
        content: Content,
        total: Option<u64>,
        now_ms: u64,
    ) -> Self {
        Self {
            id,
            app,
            created_ms: now_ms,
            finished_ms: None,
            state: State::Active,
            error: None,
            audience,
            content,
            total,
            cursor: Cursor::default(),
            planned: false,
            pages: 0,
            counts: Counts::default(),
            results: 0,
            owner: String::new(),
            lease_ms: 0,
        }
    }

    /// When what has not been sent is given up, Unix ms. A notification that may not be kept is tried once.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        let ttl_ms = u64::from(self.content.ttl) * 1000;
        self.created_ms + ttl_ms.min(LIFETIME_MS_MAX)
    }

    /// Takes recipients that were looked up as a page; `None` where there are none.
    pub fn add_page(&mut self, ids: Vec<String>, now_ms: u64) -> Option<Page> {
        if ids.is_empty() {
            return None;
        }
        let number = self.pages;
        self.pages += 1;
        let entry = |id| Entry {
            id,
            attempts: 0,
            due_ms: now_ms,
        };
        Some(Page {
            number,
            entries: ids.into_iter().map(entry).collect(),
        })
    }

    /// Ends it once everybody has been looked up and no page is open. True when that ends it.
    pub fn finish_if_done(&mut self, open_pages: usize, now_ms: u64) -> bool {
        let is_done = self.state == State::Active && self.planned && open_pages == 0;
        if is_done {
            self.end(State::Done, None, now_ms);
        }
        is_done
    }

    /// Ends it before its time.
    pub fn end(&mut self, state: State, error: Option<String>, now_ms: u64) {
        self.state = state;
        self.error = error;
        self.finished_ms = Some(now_ms);
        self.lease_ms = 0;
    }

    /// Counts how it went for one.
    pub fn count(&mut self, settled: &Settled) -> Counts {
        let mut one = Counts::default();
        match settled {
            Settled::Sent => one.sent = 1,
            Settled::Failed(_) => one.failed = 1,
            Settled::Gone { .. } => (one.failed, one.expired) = (1, 1),
        }
        self.counts += one;
        one
    }
}

/// A recipient on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of the subscription.
    #[serde(rename = "i")]
    pub id: String,
    /// Tries so far.
    #[serde(rename = "a")]
    pub attempts: u32,
    /// When it is to be tried, Unix ms.
    #[serde(rename = "d")]
    pub due_ms: u64,
}

/// Recipients of a job that are not settled yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub number: u32,
    pub entries: Vec<Entry>,
}

/// How it ended for a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Sent,
    Failed(String),
    /// The subscription is to be removed, unless it is of later than `since_ms`.
    Gone {
        reason: String,
        since_ms: Option<u64>,
    },
}

impl Page {
    /// When there is something to do next, Unix ms.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        let due = self.entries.iter().map(|entry| entry.due_ms);
        due.min().unwrap_or(u64::MAX)
    }

    /// Puts a recipient off without counting a try.
    pub fn defer(&mut self, id: &str, until_ms: u64, job: &Job) -> Option<Settled> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        if until_ms >= job.deadline_ms() {
            self.entries.swap_remove(at);
            let text = "given up: the provider could not be used in time";
            return Some(Settled::Failed(text.to_owned()));
        }
        self.entries.get_mut(at)?.due_ms = until_ms;
        None
    }

    /// Takes what a provider said of a recipient; `None` where it is to be tried again, or is not of this page.
    pub fn settle(
        &mut self,
        id: &str,
        verdict: Verdict,
        job: &mut Job,
        now_ms: u64,
        random: u32,
    ) -> Option<Settled> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        let settled = match verdict {
            Verdict::Sent => Settled::Sent,
            Verdict::Failed(reason) | Verdict::Renew(reason) => Settled::Failed(reason),
            Verdict::Gone { reason, since_ms } => Settled::Gone { reason, since_ms },
            Verdict::Retry {
                reason, after_ms, ..
            } => {
                let entry = self.entries.get_mut(at)?;
                entry.attempts += 1;
                entry.due_ms = now_ms + wait_ms(entry.attempts, after_ms, random);
                if entry.attempts < ATTEMPTS_MAX && entry.due_ms < job.deadline_ms() {
                    job.counts.retries += 1;
                    return None;
                }
                Settled::Failed(format!("given up after {} tries: {reason}", entry.attempts))
            }
        };
        self.entries.swap_remove(at);
        Some(settled)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(ttl: u32) -> Job {
        let content = Content {
            ttl,
            ..Content::default()
        };
        Job::new(
            "job_1".into(),
            "a".into(),
            Audience::default(),
            content,
            None,
            0,
        )
    }

    fn retry(after_ms: Option<u64>) -> Verdict {
        Verdict::Retry {
            reason: "busy".into(),
            after_ms,
            trouble: false,
        }
    }

    #[test]
    fn a_try_is_repeated_until_its_time_is_over() {
        let mut job = job(60);
        let mut page = job.add_page(vec!["a".into(), "b".into()], 0).unwrap();
        assert_eq!(page.settle("a", retry(Some(5000)), &mut job, 0, 0), None);
        assert_eq!(page.due_ms(), 0, "b waits as before");
        assert_eq!(
            page.settle("b", Verdict::Sent, &mut job, 0, 0),
            Some(Settled::Sent)
        );
        assert_eq!(page.due_ms(), 5000);
        assert_eq!(page.defer("a", 10_000, &job), None);
        let late = page.settle("a", retry(Some(50_000)), &mut job, 10_000, 0);
        assert!(
            matches!(late, Some(Settled::Failed(_))),
            "its ttl is over by then"
        );
        assert!(page.entries.is_empty());
        assert_eq!(
            page.settle("a", Verdict::Sent, &mut job, 0, 0),
            None,
            "told twice"
        );
        job.planned = true;
        assert!(!job.finish_if_done(1, 9) && job.finish_if_done(0, 9) && !job.finish_if_done(0, 9));
    }

    #[test]
    fn now_or_never_is_tried_once() {
        let mut job = job(0);
        let mut page = job.add_page(vec!["a".into()], 0).unwrap();
        assert!(page.settle("a", retry(None), &mut job, 0, 0).is_some());
    }

    fn verdicts() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Sent),
            Just(Verdict::Failed("no".into())),
            Just(Verdict::Gone {
                reason: "gone".into(),
                since_ms: None
            }),
            proptest::option::of(0u64..100_000).prop_map(retry),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_recipient_is_settled_once(
            answers in proptest::collection::vec((0usize..20, verdicts()), 0..400),
        ) {
            let mut job = job(3600);
            let ids: Vec<String> = (0..20).map(|n| n.to_string()).collect();
            let mut page = job.add_page(ids, 0).unwrap();
            for (step, (who, verdict)) in answers.into_iter().enumerate() {
                let now = step as u64 * 50;
                let settled = page.settle(&who.to_string(), verdict, &mut job, now, 7);
                if let Some(settled) = settled {
                    job.count(&settled);
                }
                let counted = job.counts.sent + job.counts.failed;
                prop_assert_eq!(counted as usize + page.entries.len(), 20);
                prop_assert!(job.counts.expired <= job.counts.failed);
                prop_assert!(page.entries.iter().all(|e| e.attempts < ATTEMPTS_MAX));
            }
        }
    }
}
