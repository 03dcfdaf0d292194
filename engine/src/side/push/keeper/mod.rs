//! The thread that owns the store of push: it answers, writes, and deals out what is to be sent.
//!
//! ```text
//!  turn: questions and reports ──► plan pages ──► commit (one transaction) ──► answer ──► deal out batches
//! ```
//! Jobs have one owner at a time: whoever holds a job's lease works on it, and every write of a job has its version as
//! condition, so that a job that somebody else has taken over is dropped and not written over. Invariants: nothing is
//! dealt out, and nobody is answered, before what it follows from is committed; a job in memory is the store's, plus
//! what the next commit brings.

mod answers;
mod bridge;
mod commit;
mod jobs;
mod plan;
mod providers;
mod subscriptions;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bridge::{Asked, Quiet};
use crossbeam_channel::{Receiver, Sender, never, select};
use data_encoding::BASE64URL_NOPAD;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::Platform;
use shardwire_proto::push::bridge::Notice;
use shardwire_proto::push::content::Content;
use shardwire_proto::push::job::{Counts, Job, PAGE_ENTRIES_MAX, Page};
use tokio::sync::mpsc;

use super::provider::Provider;
use super::send::{Batch, Recipient, Report};
use super::{Answer, Ask, Ears, Input, PushConfig, PushStats, Question, WhoIsThere, lock, now_ms};
use crate::records::{Change, RecordError, Records};
use crate::registry::RegistryHandle;
use crate::shard::inbox::InboxSender;
use crate::side::vault::Vault;
use commit::Tally;

/// Batches on their way to providers.
pub(super) const BATCHES_MAX: usize = 16;
/// Recipients on their way: reports never wait.
pub(super) const IN_FLIGHT_MAX: usize = BATCHES_MAX * PAGE_ENTRIES_MAX;
/// Of one job, so that a long one leaves room for short ones.
const JOB_BATCHES_MAX: usize = 4;
/// Jobs in memory; while there are so many, another send is refused (50300).
const JOBS_MAX: usize = 1000;
/// Inputs taken in one turn.
const TURN_INPUTS_MAX: usize = 512;
/// How long progress may wait for others to be written with it: what a crash repeats at most.
const NOTE_WITHIN: Duration = Duration::from_millis(25);
/// How long a job is its owner's, and how often that is renewed.
const LEASE_MS: u64 = 30_000;
const LEASE_RENEW: Duration = Duration::from_secs(10);
/// Between two looks for jobs that nobody works on.
const LOOK: Duration = Duration::from_secs(5);
/// Between two removals of what has expired, and how much at a time.
const UPKEEP: Duration = Duration::from_secs(60);
const EXPIRE_MAX: usize = 5000;
/// Pause after a failed write.
const RETRY: Duration = Duration::from_millis(500);

/// Kinds of records.
const SUBSCRIPTION: &str = "subscription";
const ENROLMENT: &str = "enrolment";
const PROVIDER: &str = "provider";
const JOB: &str = "job";
const PAGE: &str = "page";
const RESULTS: &str = "results";
const TALLY: &str = "tally";

type Reply = InboxSender<Answer>;

pub(super) struct Keeper {
    store: Box<dyn Records>,
    vault: Vault,
    config: PushConfig,
    registry: RegistryHandle,
    /// None once stopping.
    batches: Option<mpsc::Sender<Box<Batch>>>,
    /// To a shard, which asks the others.
    who: InboxSender<WhoIsThere>,
    /// The way here, for its answers.
    own: Sender<Input>,
    ears: Ears,
    quiet: Quiet,
    /// Names this process among those that share a store.
    owner: String,
    /// No other process shares it.
    alone: bool,
    /// The end: others may take the jobs.
    is_released: bool,
    jobs: HashMap<Arc<str>, Active>,
    /// Jobs in the order in which they are served next.
    order: VecDeque<Arc<str>>,
    providers: providers::Cache,
    /// By app.
    tallies: HashMap<Arc<str>, Tally>,
    /// By app: written, and not yet in its usage.
    uncounted: BTreeMap<Arc<str>, Counts>,
    work: Work,
    batches_out: usize,
    /// Since when progress waits to be written.
    unwritten_since: Option<Instant>,
    /// A page or a job is done: it is written at once.
    is_urgent: bool,
    failing_until: Option<Instant>,
    counts: BTreeMap<&'static str, Counts>,
    failures: u64,
    notices_dropped: u64,
    failures_untold: u64,
}

/// Whom the keeper talks to.
pub(super) struct Peers {
    pub(super) batches: Option<mpsc::Sender<Box<Batch>>>,
    pub(super) who: InboxSender<WhoIsThere>,
    pub(super) own: Sender<Input>,
    pub(super) ears: Ears,
}

/// What the next commit brings beside progress of jobs.
#[derive(Default)]
struct Work {
    /// Of questions; undone when it cannot be written.
    asked: Vec<Change>,
    /// Subscriptions among them.
    touched: HashSet<String>,
    /// Given once `asked` is written.
    replies: Vec<(Reply, Answer)>,
    /// Begun by questions.
    begun: Vec<Arc<str>>,
    /// Subscriptions that are no more; kept until they are written.
    removals: Vec<Change>,
}

/// A job that this process works on.
struct Active {
    job: Job,
    /// In the store; 0: not there yet.
    version: u64,
    content: Arc<Content>,
    pages: BTreeMap<u32, OpenPage>,
    is_dirty: bool,
    renewed: Instant,
    /// Results that are not written yet.
    results: Vec<serde_json::Value>,
    /// All that are kept, for those who wait.
    shown: Vec<serde_json::Value>,
    waiters: Vec<(Reply, Instant)>,
    asked: Option<Asked>,
}

struct OpenPage {
    page: Page,
    /// In the store.
    is_stored: bool,
    is_dirty: bool,
    in_flight: usize,
    due_ms: u64,
    /// What planning has read already.
    known: Vec<Recipient>,
}

impl Keeper {
    pub(super) fn new(
        store: Box<dyn Records>,
        vault: Vault,
        config: PushConfig,
        registry: RegistryHandle,
        peers: Peers,
        alone: bool,
    ) -> Self {
        Self {
            store,
            vault,
            config,
            registry,
            batches: peers.batches,
            who: peers.who,
            own: peers.own,
            ears: peers.ears,
            quiet: Quiet::new(),
            owner: BASE64URL_NOPAD.encode(&crate::sys::random()),
            alone,
            is_released: false,
            jobs: HashMap::new(),
            order: VecDeque::new(),
            providers: providers::Cache::default(),
            tallies: HashMap::new(),
            uncounted: BTreeMap::new(),
            work: Work::default(),
            batches_out: 0,
            unwritten_since: None,
            is_urgent: false,
            failing_until: None,
            counts: BTreeMap::new(),
            failures: 0,
            notices_dropped: 0,
            failures_untold: 0,
        }
    }

    pub(super) fn run(
        mut self,
        inputs: &Receiver<Input>,
        notices: &Receiver<Notice>,
        reports: &Receiver<Report>,
        stats: &Mutex<PushStats>,
    ) {
        let mut look_due = Instant::now();
        let mut upkeep_due = Instant::now() + UPKEEP;
        let mut stopping: Option<Instant> = None;
        let nothing = never();
        let mut next_due = Instant::now();
        loop {
            let inputs = if stopping.is_some() { &nothing } else { inputs };
            let wait = next_due.saturating_duration_since(Instant::now());
            let mut stops = false;
            select! {
                recv(reports) -> report => match report {
                    Ok(report) => self.note(&report),
                    // The sender is gone, and with it what was on its way.
                    Err(_) => break,
                },
                recv(inputs) -> input => match input {
                    Ok(input) => stops |= self.hear(input),
                    Err(_) => stops = true,
                },
                recv(notices) -> notice => if let Ok(notice) = notice {
                    self.take_notice(notice);
                },
                default(wait) => {}
            }
            for _ in 0..TURN_INPUTS_MAX {
                let Ok(report) = reports.try_recv() else {
                    break;
                };
                self.note(&report);
            }
            for _ in 0..TURN_INPUTS_MAX {
                let Ok(input) = inputs.try_recv() else { break };
                stops |= self.hear(input);
            }
            for _ in 0..TURN_INPUTS_MAX {
                let Ok(notice) = notices.try_recv() else {
                    break;
                };
                self.take_notice(notice);
            }
            if stops {
                let patience = Duration::from_secs(self.config.request_timeout_s);
                stopping = Some(Instant::now() + patience);
                self.batches = None;
            }
            let now = Instant::now();
            if now >= look_due && stopping.is_none() {
                look_due = now + LOOK;
                self.adopt();
            }
            if now >= upkeep_due {
                upkeep_due = now + UPKEEP;
                self.upkeep();
            }
            let quiet_ends = self.end_quiet(now);
            self.plan();
            self.commit_if_due();
            next_due = self.deal_out().min(look_due).min(self.give_answers(now));
            if let Some(ends) = quiet_ends {
                next_due = next_due.min(ends);
            }
            if let Some(due) = self.write_due() {
                next_due = next_due.min(due);
            }
            self.show(stats);
            if let Some(until) = stopping
                && (self.batches_out == 0 || now >= until)
            {
                break;
            }
        }
        self.release();
    }

    /// Takes an input; true when that is the order to stop.
    fn hear(&mut self, input: Input) -> bool {
        match input {
            Input::Ask(ask) => self.take(*ask),
            Input::Connected { job, members } => self.take_connected(&job, members),
            Input::Stop => return true,
        }
        false
    }

    /// Takes a question; it is answered now, or with the next commit.
    fn take(&mut self, ask: Ask) {
        let Ask {
            app,
            question,
            reply,
        } = ask;
        let answer = match question {
            Question::Send { request, key } => self.begin(&app, *request, key, &reply),
            Question::Register(registration) => self.register(&app, *registration).map(Some),
            Question::Unregister(who) => self.unregister(&app, &who).map(Some),
            Question::Delete { id, of } => self.delete(&app, &id, of.as_deref()).map(Some),
            Question::AddChannel(enrolment) => self.enrol(&app, &enrolment, true).map(Some),
            Question::RemoveChannel(enrolment) => self.enrol(&app, &enrolment, false).map(Some),
            Question::CancelJob(id) => self.cancel(&app, &id).map(Some),
            Question::PutProvider { platform, body } => {
                self.put_provider(&app, platform, body).map(Some)
            }
            Question::ForgetApp => self.forget_app(&app).map(Some),
            Question::DeleteProvider(platform) => self.delete_provider(&app, platform).map(Some),
            read => {
                // Nobody has to wait for a write.
                _ = reply.try_send(self.read(&app, read));
                return;
            }
        };
        match answer {
            Ok(None) => {}
            Ok(Some(answer)) => self.work.replies.push((reply, Ok(answer))),
            // Whoever asked may have given up.
            Err(error) => _ = reply.try_send(Err(error)),
        }
    }

    fn upkeep(&mut self) {
        self.providers.forget_old();
        if let Err(error) = self.store.expire(now_ms(), EXPIRE_MAX) {
            log::warn!(error:display; "push: what has expired cannot be removed");
        }
    }

    fn show(&self, stats: &Mutex<PushStats>) {
        let in_flight = self.jobs.values().flat_map(|active| active.pages.values());
        let mut stats = lock(stats);
        stats.counts.clone_from(&self.counts);
        stats.jobs = self.jobs.len() as u64;
        stats.in_flight = in_flight.map(|page| page.in_flight as u64).sum();
        stats.failures = self.failures;
        stats.notices_dropped = self.notices_dropped;
        stats.failures_untold = self.failures_untold;
    }

    fn count(&mut self, platform: Platform, counts: Counts) {
        *self.counts.entry(platform.name()).or_default() += counts;
    }
}

/// The store does not answer: the caller may try again.
fn unavailable(error: &RecordError) -> ProtocolError {
    log::warn!(error:display; "push: the store does not answer");
    ProtocolError::with_text(ErrorCode::Unavailable, "the store does not answer")
}

fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    let written = serde_json::to_vec(value);
    debug_assert!(written.is_ok(), "answers have string keys");
    written.unwrap_or_default()
}

type Provided = HashMap<Platform, Arc<Provider>>;
