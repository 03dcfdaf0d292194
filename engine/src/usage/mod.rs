//! What apps use: counted by the shards, added up and kept here.
//!
//! ```text
//!  shards ──once a second: what apps have used──► usage thread ──► usage.db (by minute, hour, day)
//!         ◄──────────── each app's totals ────────────┘   └──► 80 % and 100 % of a quota: log and metrics
//! ```
//! Not here: what a plan means on the way of a message (`shardwire_proto::meter`). Invariants: what a shard has handed
//! over is counted once; what cannot be written waits, added up, and is written with the next. After a kill of the
//! process at most what was used in the last 1.5 s is missing: a second until a shard tells, and the write.

mod series;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use futures_lite::future;
use serde::Serialize;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::ids::ShardId;
use shardwire_proto::meter::AppUsage;
use shardwire_proto::quota::{Totals, day_of};

use crate::clock::now_ms;
use crate::cluster::ClusterHandle;
use crate::mongo::Mongo;
use crate::mongo::usage::MongoSeries;
use crate::registry::RegistryHandle;
use crate::shard::inbox::{self, InboxSender};
use crate::sync::lock;
pub(crate) use series::{POINTS_MAX, RowKey, Series, SqliteSeries, Unwritten};
pub use series::{Point, Step, Used};

/// Name of the file in the data folder.
pub const USAGE_FILE: &str = "usage.db";
/// Reports and questions that may wait: of more, reports stay on their shard and questions are refused.
const JOBS_MAX: usize = 1024;
/// Totals that may wait for a shard; one that is behind gets all of them later.
pub const TOTALS_WAITING_MAX: usize = 4;
/// How often old rows are removed.
const UPKEEP: Duration = Duration::from_secs(60);
/// Apps and minutes per transaction: few enough to be written in time by a slow database.
const WRITTEN_AT_ONCE: usize = 500;
/// Pause after a failed write.
const RETRY: Duration = Duration::from_millis(500);
/// A question that is not answered by then is given up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Apps whose quotas are among the metrics.
const APPS_SHOWN_MAX: usize = 1000;
/// Shares of a quota at which somebody should know.
const MARKS: [u8; 2] = [80, 100];

/// Every app's totals, or those that have changed.
pub type AppTotals = Arc<Vec<(Arc<str>, Totals)>>;

/// The way to the usage thread, for any thread. Clones are the same.
#[derive(Debug, Clone)]
pub struct UsageHandle {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    stats: Mutex<UsageStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Numbers for metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UsageStats {
    /// Age of what is not written yet, ms.
    pub lag_ms: u64,
    /// Writes that failed.
    pub failures: u64,
    /// Marks passed: 80 or 100 percent of a quota.
    pub marks_passed: [u64; 2],
    /// App, quota, and how much of it is used (1: all).
    pub ratios: Vec<(Arc<str>, &'static str, f64)>,
}

/// What an operator is told about an app.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub app: String,
    pub step: Step,
    /// Of the rows of the series.
    pub total: Used,
    pub series: Vec<Point>,
    /// More rows are there than are told at once.
    pub has_more: bool,
    pub messages_today: u64,
    pub messages_this_month: u64,
    /// At this moment, to a second.
    pub connections: u64,
    pub channels: u64,
}

/// A question about an app's series.
#[derive(Debug, Clone)]
pub struct Question {
    pub app: String,
    pub step: Step,
    pub from_ms: u64,
    pub to_ms: u64,
}

/// A share of a quota that is used up.
#[derive(Debug, Clone)]
pub struct Mark {
    pub app: Arc<str>,
    pub quota: &'static str,
    pub percent: u8,
    pub used: u64,
    pub limit: u64,
}

#[derive(Debug)]
enum Job {
    Used(ShardId, Vec<AppUsage>),
    /// Notifications of an app: taken by providers, and failed.
    Pushed(Arc<str>, u64, u64),
    Ask(Question, InboxSender<Result<Report, String>>),
    /// There are other nodes, which are told what apps use here.
    Join(ClusterHandle),
    Stop,
}

/// Opens the file, or the database where there is one, and starts the thread; returns what apps have used so far, for
/// the shards' start. `tell` is called when a mark is passed, and again with the next look where it says that it could
/// not.
///
/// # Errors
/// It cannot be used.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start(
    data_dir: &Path,
    mongo: Option<Mongo>,
    registry: RegistryHandle,
    shards: Vec<InboxSender<AppTotals>>,
    tell: impl Fn(&Mark) -> bool + Send + 'static,
) -> Result<(UsageHandle, AppTotals), String> {
    let mut series: Box<dyn Series> = match mongo {
        Some(mongo) => Box::new(MongoSeries::new(mongo)),
        None => {
            let path = data_dir.join(USAGE_FILE);
            let series = SqliteSeries::open(&path);
            Box::new(series.map_err(|error| format!("{}: {error}", path.display()))?)
        }
    };
    let totals = series.totals(day_of(now_ms()))?;
    let all: AppTotals = Arc::new(totals.iter().map(|(a, t)| (a.clone(), *t)).collect());
    let (jobs, queue) = crossbeam_channel::bounded(JOBS_MAX);
    let shared = Arc::new(Shared::default());
    let mut keeper = Keeper {
        series,
        registry,
        shards: shards.into_iter().map(|inbox| (inbox, false)).collect(),
        totals,
        gauges: HashMap::new(),
        unwritten: BTreeMap::new(),
        unwritten_since: None,
        changed: Vec::new(),
        passed: HashMap::new(),
        tell: Box::new(tell),
        shared: shared.clone(),
        is_failing: false,
        cluster: None,
    };
    // What was passed before this start has been told of.
    keeper.check_quotas(true);
    let thread = std::thread::Builder::new().name("usage".to_owned());
    let thread = thread.spawn(move || keeper.run(&queue));
    *lock(&shared.thread) = Some(thread.expect("a thread can be started"));
    Ok((UsageHandle { jobs, shared }, all))
}

impl UsageHandle {
    /// Hands over what a shard has counted.
    ///
    /// # Errors
    /// Gives it back where too much waits: it is for the next time.
    pub fn report(&self, shard: ShardId, usage: Vec<AppUsage>) -> Result<(), Vec<AppUsage>> {
        if usage.is_empty() {
            return Ok(());
        }
        let sent = self.jobs.try_send(Job::Used(shard, usage));
        sent.map_err(|refused| match refused.into_inner() {
            Job::Used(_, usage) => usage,
            Job::Pushed(..) | Job::Ask(..) | Job::Join(_) | Job::Stop => Vec::new(),
        })
    }

    /// Counts an app's notifications; false where too much waits: it is for the next time.
    #[must_use]
    pub fn note_push(&self, app: &Arc<str>, sent: u64, failed: u64) -> bool {
        let job = Job::Pushed(app.clone(), sent, failed);
        self.jobs.try_send(job).is_ok()
    }

    /// An app's usage; waits on a shard's executor.
    ///
    /// # Errors
    /// 50300 when it cannot be read or takes too long.
    pub async fn ask(&self, question: Question) -> Result<Report, ProtocolError> {
        let (reply, answer) = inbox::bounded(1);
        self.jobs
            .try_send(Job::Ask(question, reply))
            .map_err(|_| ProtocolError::from(ErrorCode::Unavailable))?;
        let late = async {
            glommio::timer::sleep(ANSWER_DEADLINE).await;
            Err("takes too long".to_owned())
        };
        let report = future::or(answer.recv(), late).await;
        report.map_err(|error| ProtocolError::with_text(ErrorCode::Unavailable, error))
    }

    /// Tells the other nodes what apps use here, from here on.
    pub fn join(&self, cluster: ClusterHandle) {
        if self.jobs.send(Job::Join(cluster)).is_err() {
            log::error!("the usage thread is gone");
        }
    }

    /// For metrics.
    #[must_use]
    pub fn stats(&self) -> UsageStats {
        lock(&self.shared.stats).clone()
    }

    /// Ends the thread once it has written what waits. The shards have handed over their last.
    pub fn shutdown(&self) {
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread
            && self.jobs.send_timeout(Job::Stop, ANSWER_DEADLINE).is_ok()
            && thread.join().is_err()
        {
            log::error!("the usage thread ended badly");
        }
    }
}

struct Keeper {
    series: Box<dyn Series>,
    registry: RegistryHandle,
    /// And whether one has missed something.
    shards: Vec<(InboxSender<AppTotals>, bool)>,
    totals: HashMap<Arc<str>, Totals>,
    /// Connections and channels at this moment, by app and shard.
    gauges: HashMap<Arc<str>, BTreeMap<u16, (u32, u32)>>,
    /// By app and minute.
    unwritten: Unwritten,
    unwritten_since: Option<Instant>,
    /// Apps whose totals the shards do not know yet.
    changed: Vec<Arc<str>>,
    /// By app and quota: the period that is meant, and the highest mark passed in it.
    passed: HashMap<(Arc<str>, &'static str), (u32, u8)>,
    tell: Box<dyn Fn(&Mark) -> bool + Send>,
    shared: Arc<Shared>,
    is_failing: bool,
    cluster: Option<ClusterHandle>,
}

impl Keeper {
    fn run(mut self, jobs: &Receiver<Job>) {
        let mut upkeep_due = Instant::now();
        loop {
            let wait = match self.is_failing {
                true => RETRY,
                false => upkeep_due.saturating_duration_since(Instant::now()),
            };
            let mut next = match jobs.recv_timeout(wait) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut questions = Vec::new();
            let mut stops = false;
            // All that has gathered goes into one transaction.
            while let Some(job) = next.take() {
                match job {
                    Job::Used(shard, usage) => self.take(shard, usage),
                    Job::Pushed(app, push_sent, push_failed) => self.add(
                        app,
                        &Used {
                            push_sent,
                            push_failed,
                            ..Used::default()
                        },
                    ),
                    Job::Ask(question, reply) => questions.push((question, reply)),
                    Job::Join(cluster) => self.cluster = Some(cluster),
                    Job::Stop => stops = true,
                }
                next = jobs.try_recv().ok();
            }
            self.write();
            self.tell_shards();
            for (question, reply) in questions {
                // Whoever asked may have given up.
                _ = reply.try_send(self.answer(&question));
            }
            if stops {
                break;
            }
            if Instant::now() >= upkeep_due {
                upkeep_due = Instant::now() + UPKEEP;
                if let Err(error) = self.series.forget_old(now_ms() / 1000) {
                    log::warn!(error; "old usage cannot be removed");
                }
            }
        }
    }

    fn take(&mut self, shard: ShardId, usage: Vec<AppUsage>) {
        let now_ms = now_ms();
        let day = day_of(now_ms);
        for part in usage {
            let gauges = self.gauges.entry(part.app.clone()).or_default();
            gauges.insert(shard.0, (part.connections, part.channels));
            let (connections, channels) = sum(gauges);
            if connections == 0 && channels == 0 {
                self.gauges.remove(&part.app);
            }
            let totals = self.totals.entry(part.app.clone()).or_default();
            *totals = totals.on(day);
            totals.messages_day += part.messages;
            totals.messages_month += part.messages;
            if part.messages > 0 {
                self.changed.push(part.app.clone());
            }
            if let Some(cluster) = &self.cluster {
                cluster.note_use(&part.app, |here| {
                    (here.connections, here.channels) = (connections, channels);
                    here.messages += part.messages;
                    here.demand += part.messages + part.refused;
                    here.totals = *totals;
                });
            }
            let used = Used {
                messages: part.messages,
                deliveries: part.deliveries,
                refused: part.refused,
                connections_peak: connections,
                channels_peak: channels,
                ..Used::default()
            };
            self.add(part.app, &used);
        }
    }

    /// Adds what an app has used to this minute.
    fn add(&mut self, app: Arc<str>, used: &Used) {
        let minute_s = now_ms() / 60_000 * 60;
        self.unwritten.entry((app, minute_s)).or_default().add(used);
        self.unwritten_since.get_or_insert_with(Instant::now);
    }

    fn write(&mut self) {
        if !self.unwritten.is_empty() {
            match self.write_parts() {
                Ok(()) => {
                    self.unwritten_since = None;
                    self.is_failing = false;
                }
                Err(error) => {
                    if !self.is_failing {
                        log::error!(error; "usage cannot be written; it is kept in memory");
                    }
                    self.is_failing = true;
                    lock(&self.shared.stats).failures += 1;
                }
            }
            self.check_quotas(false);
        }
        let since = self.unwritten_since;
        lock(&self.shared.stats).lag_ms = since.map_or(0, |since| {
            u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
        });
    }

    /// Writes what waits; what is written waits no more.
    fn write_parts(&mut self) -> Result<(), String> {
        while !self.unwritten.is_empty() {
            let part = self.unwritten.iter().take(WRITTEN_AT_ONCE);
            let part: Unwritten = part.map(|(key, used)| (key.clone(), *used)).collect();
            self.series.add(&part)?;
            self.unwritten.retain(|key, _| !part.contains_key(key));
        }
        Ok(())
    }

    fn tell_shards(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        let is_behind = self.shards.iter().any(|(_, is_behind)| *is_behind);
        if changed.is_empty() && !is_behind {
            return;
        }
        let of = |app: &Arc<str>| Some((app.clone(), *self.totals.get(app)?));
        let part: AppTotals = Arc::new(changed.iter().filter_map(of).collect());
        let all: AppTotals = match is_behind {
            true => Arc::new(self.totals.keys().filter_map(of).collect()),
            false => part.clone(),
        };
        for (inbox, is_behind) in &mut self.shards {
            let news = if *is_behind { &all } else { &part };
            *is_behind = inbox.try_send(news.clone()).is_err();
        }
    }

    /// Looks how far the quotas of all apps are used up, and says so when a mark is passed.
    fn check_quotas(&mut self, quietly: bool) {
        let registry = self.registry.snapshot();
        let day = day_of(now_ms());
        let month = shardwire_proto::quota::month_of(day);
        let mut ratios = Vec::new();
        let mut marks_passed = [0; 2];
        for app in registry.apps() {
            let Some(plan) = registry.plan_of(app) else {
                continue;
            };
            let totals = self.totals.get(&*app.id).copied().unwrap_or_default();
            let totals = totals.on(day);
            let (connections, channels) = self.gauges.get(&*app.id).map_or((0, 0), sum);
            let name: Arc<str> = app.id.as_str().into();
            for (quota, most, used, period) in [
                (
                    "messages_per_day",
                    plan.messages_per_day,
                    totals.messages_day,
                    day,
                ),
                (
                    "messages_per_month",
                    plan.messages_per_month,
                    totals.messages_month,
                    month,
                ),
                ("connections", plan.connections_max, connections, day),
                ("channels", plan.channels_max, channels, day),
            ] {
                let Some(most) = most else { continue };
                let ratio = used as f64 / most.max(1) as f64;
                if ratios.len() < APPS_SHOWN_MAX {
                    ratios.push((name.clone(), quota, ratio));
                }
                let passed = self.passed.entry((name.clone(), quota)).or_default();
                if passed.0 != period {
                    *passed = (period, 0);
                }
                for (mark, count) in MARKS.into_iter().zip(&mut marks_passed) {
                    if ratio * 100.0 >= f64::from(mark) && passed.1 < mark {
                        let told = Mark {
                            app: name.clone(),
                            quota,
                            percent: mark,
                            used,
                            limit: most,
                        };
                        if !quietly && !(self.tell)(&told) {
                            break;
                        }
                        passed.1 = mark;
                        if !quietly {
                            *count += 1;
                            log::warn!(app = app.id.as_str(), quota, used, limit = most; "{mark} % of a quota are used");
                        }
                    }
                }
            }
        }
        let mut stats = lock(&self.shared.stats);
        stats.ratios = ratios;
        for (sum, count) in stats.marks_passed.iter_mut().zip(marks_passed) {
            *sum += count;
        }
    }

    fn answer(&mut self, question: &Question) -> Result<Report, String> {
        let Question {
            app,
            step,
            from_ms,
            to_ms,
        } = question;
        let series = self.series.read(app, *step, *from_ms, *to_ms)?;
        let mut total = Used::default();
        for point in &series {
            total.add(&point.used);
        }
        let totals = self.totals.get(&**app).copied().unwrap_or_default();
        let totals = totals.on(day_of(now_ms()));
        let (connections, channels) = self.gauges.get(&**app).map_or((0, 0), sum);
        Ok(Report {
            app: app.clone(),
            step: *step,
            total,
            has_more: series.len() >= POINTS_MAX,
            series,
            messages_today: totals.messages_day,
            messages_this_month: totals.messages_month,
            connections,
            channels,
        })
    }
}

fn sum(gauges: &BTreeMap<u16, (u32, u32)>) -> (u64, u64) {
    gauges.values().fold((0, 0), |(a, b), (c, d)| {
        (a + u64::from(*c), b + u64::from(*d))
    })
}
