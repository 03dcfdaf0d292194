//! The thread that talks to providers: one request per recipient, so many at once per app and provider.
//!
//! ```text
//!  keeper ──Batch──► task per recipient ──permit, gate──► web | fcm | apns ──► Report ──► keeper
//! ```
//! Not here: what is tried again and when (`shardwire_proto::push::job`). Invariants: every recipient of a batch is
//! reported exactly once; a provider in trouble is left alone by everybody at once; nothing is kept between batches but
//! connections, tokens, and which provider is in trouble.

mod apns;
mod client;
mod fcm;
mod web;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use shardwire_proto::push::content::Content;
use shardwire_proto::push::retry::Gate;
use shardwire_proto::push::verdict::Verdict;
use shardwire_proto::push::{Address, Platform};
use tokio::sync::{Semaphore, mpsc};

use super::provider::{Access, Provider};
use super::{PushConfig, now_ms};
use client::{Clients, Trouble};

/// Gates that have something to remember, at most: of more, those of hosts that are well are forgotten.
const GATES_MAX: usize = 10_000;
/// Apps whose connections and tokens are kept.
const STATES_MAX: usize = 1_000;

/// Recipients of a page, with what is needed to reach them.
pub(super) struct Batch {
    pub(super) job: Arc<str>,
    pub(super) page: u32,
    pub(super) app: Arc<str>,
    pub(super) content: Arc<Content>,
    /// When the notification was accepted, Unix ms: its `ttl` counts from there.
    pub(super) created_ms: u64,
    pub(super) recipients: Vec<Recipient>,
    /// By platform, as far as the app has them.
    pub(super) providers: HashMap<Platform, Arc<Provider>>,
}

pub(super) struct Recipient {
    /// Of the subscription.
    pub(super) id: String,
    pub(super) member: String,
    pub(super) platform: Platform,
    pub(super) address: Address,
}

/// How it went for a recipient of a batch.
pub(super) struct Report {
    pub(super) batch: Arc<Batch>,
    pub(super) index: usize,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Answered(Verdict),
    /// Not tried: the provider is left alone until then, Unix ms.
    Deferred(u64),
}

/// Whether the thread can work with a configuration.
///
/// # Errors
/// The certificates cannot be used.
pub(super) fn check(config: &PushConfig) -> Result<(), String> {
    Clients::new(config).map(|_| ())
}

/// Runs until the queue ends, and then until what is on its way has been answered.
pub(super) fn run(
    config: &PushConfig,
    mut batches: mpsc::Receiver<Box<Batch>>,
    reports: &Sender<Report>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    let sender = Rc::new(PushSender {
        clients: Clients::new(config)?,
        timeout: Duration::from_secs(config.request_timeout_s),
        states: RefCell::default(),
        gates: RefCell::default(),
        reports: reports.clone(),
    });
    runtime.block_on(tasks.run_until(async {
        while let Some(batch) = batches.recv().await {
            sender.start(batch);
        }
    }));
    // What was begun is waited for, so that it is not begun again.
    let wait = Duration::from_secs(config.request_timeout_s);
    runtime.block_on(async {
        _ = tokio::time::timeout(wait, tasks).await;
    });
    Ok(())
}

type StateKey = (Arc<str>, Platform);

/// Whom a pause concerns: a provider of an app, for browsers each push service.
type GateKey = (Arc<str>, Platform, String);

struct PushSender {
    clients: Clients,
    timeout: Duration,
    states: RefCell<HashMap<StateKey, Rc<State>>>,
    gates: RefCell<HashMap<GateKey, Gate>>,
    reports: Sender<Report>,
}

/// What is kept for an app's provider.
struct State {
    provider: Arc<Provider>,
    permits: Semaphore,
    fcm: fcm::Tokens,
    apns: apns::Connection,
    web: web::Tokens,
}

/// A request for one recipient.
struct Request<'a> {
    content: &'a Content,
    /// Seconds that are left of the notification's `ttl`.
    ttl_s: u32,
    address: &'a Address,
}

impl PushSender {
    fn start(self: &Rc<Self>, batch: Box<Batch>) {
        let mut states: HashMap<Platform, Rc<State>> = HashMap::new();
        for (platform, provider) in &batch.providers {
            states.insert(*platform, self.state(&batch.app, *platform, provider));
        }
        let batch = Arc::<Batch>::from(batch);
        for index in 0..batch.recipients.len() {
            let (sender, batch) = (self.clone(), batch.clone());
            let state = states.get(&batch.recipients[index].platform).cloned();
            tokio::task::spawn_local(async move {
                let recipient = &batch.recipients[index];
                let outcome = sender.try_one(&batch, recipient, state).await;
                let report = Report {
                    batch,
                    index,
                    outcome,
                };
                // It has room for all that can be on its way.
                if sender.reports.send(report).is_err() {
                    log::debug!("push: nobody hears how it went");
                }
            });
        }
    }

    async fn try_one(&self, batch: &Batch, to: &Recipient, state: Option<Rc<State>>) -> Outcome {
        let Some(state) = state else {
            let text = format!("the app has no access to {}", to.platform.name());
            return Outcome::Answered(Verdict::Failed(text));
        };
        let gate = (
            batch.app.clone(),
            to.platform,
            match &to.address {
                Address::Web { endpoint, .. } => client::host_of(endpoint),
                Address::Device { .. } => String::new(),
            },
        );
        let Ok(_permit) = state.permits.acquire().await else {
            return Outcome::Deferred(now_ms());
        };
        if let Err(until_ms) = self
            .gates
            .borrow_mut()
            .get_mut(&gate)
            .map_or(Ok(()), |gate| gate.admit(now_ms()))
        {
            return Outcome::Deferred(until_ms);
        }
        let elapsed_s = now_ms().saturating_sub(batch.created_ms) / 1000;
        let elapsed_s = u32::try_from(elapsed_s).unwrap_or(u32::MAX);
        let request = Request {
            content: &batch.content,
            ttl_s: batch.content.ttl.saturating_sub(elapsed_s),
            address: &to.address,
        };
        let verdict = match tokio::time::timeout(self.timeout, self.ask(&state, &request)).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(Trouble::Refused(text))) => Verdict::Failed(text),
            Ok(Err(Trouble::Unreachable(text))) => unreachable_now(text),
            Err(_) => unreachable_now("no answer in time".to_owned()),
        };
        self.note(gate, &verdict);
        Outcome::Answered(verdict)
    }

    /// One request, and another with new credentials where the provider wants that.
    async fn ask(&self, state: &State, request: &Request<'_>) -> Result<Verdict, Trouble> {
        let verdict = self.ask_once(state, request).await?;
        if !matches!(verdict, Verdict::Renew(_)) {
            return Ok(verdict);
        }
        self.ask_once(state, request).await
    }

    async fn ask_once(&self, state: &State, request: &Request<'_>) -> Result<Verdict, Trouble> {
        match &state.provider.access {
            Access::Web { subject, key } => {
                web::send(&self.clients, &state.web, subject, key, request).await
            }
            Access::Fcm { .. } => {
                fcm::send(&self.clients, &state.fcm, &state.provider.access, request).await
            }
            Access::Apns { .. } => {
                apns::send(&self.clients, &state.apns, &state.provider.access, request).await
            }
        }
    }

    /// Lets everybody know how the provider is.
    fn note(&self, key: GateKey, verdict: &Verdict) {
        let mut gates = self.gates.borrow_mut();
        let Verdict::Retry {
            after_ms,
            trouble: true,
            ..
        } = verdict
        else {
            // It answered: it is well.
            gates.remove(&key);
            return;
        };
        if gates.len() >= GATES_MAX && !gates.contains_key(&key) {
            return;
        }
        let gate = gates.entry(key).or_default();
        match after_ms {
            Some(pause) => gate.on_pause(now_ms(), *pause),
            None => gate.on_failure(now_ms()),
        }
    }

    fn state(&self, app: &Arc<str>, platform: Platform, provider: &Arc<Provider>) -> Rc<State> {
        let mut states = self.states.borrow_mut();
        let key = (app.clone(), platform);
        if let Some(state) = states.get(&key)
            && state.provider.version == provider.version
        {
            return state.clone();
        }
        if states.len() >= STATES_MAX {
            // Those in use live on with whoever uses them.
            states.clear();
        }
        let state = Rc::new(State {
            permits: Semaphore::new(provider.concurrency),
            provider: provider.clone(),
            fcm: fcm::Tokens::default(),
            apns: apns::Connection::default(),
            web: web::Tokens::default(),
        });
        states.insert(key, state.clone());
        state
    }
}

fn unreachable_now(reason: String) -> Verdict {
    Verdict::Retry {
        reason,
        after_ms: None,
        trouble: true,
    }
}
