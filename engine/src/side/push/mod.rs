//! Push notifications: subscriptions, providers and sends of all apps (contract section 6, D22).
//!
//! ```text
//!  shards, admin ──Ask──► keeper thread ──Batch──► sender thread ──► push services, FCM, APNs
//!         ◄────answer────   │  ▲  └────◄──Report────┘
//!                           ▼  │
//!                     store (Area::Push): subscriptions, providers (sealed), jobs, pages, results
//! ```
//! What bodies look like, what providers are sent and what their answers mean is in `shardwire_proto::push`.
//! Invariants: a send that was answered is in the store, and goes on after a crash with those that had not been noted
//! as done: what was noted is never sent again, what was on its way may be; memory does not grow with the number of
//! recipients; a shard never waits for either thread.

mod crypt;
mod keeper;
mod provider;
mod send;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use data_encoding::HEXLOWER_PERMISSIVE;
use futures_lite::future;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::Platform;
use shardwire_proto::push::bridge::Notice;
use shardwire_proto::push::job::Counts;
use shardwire_proto::push::request::{
    Enrolment, ListQuery, Registration, SendRequest, Unregistration,
};
use shardwire_proto::webhook::Raised;

use crate::clock::now_ms;
use crate::records::{Area, RecordStorage};
use crate::registry::RegistryHandle;
use crate::shard::inbox::{self, InboxSender};
use crate::side::vault::{Vault, read_key};
use crate::sync::lock;
use keeper::Keeper;

/// Questions that may wait; of more, each is refused (50300).
const ASKS_MAX: usize = 1024;
/// Questions to the shards that may wait; of more, each is asked again later.
pub const WHO_WAITING_MAX: usize = 64;
/// Messages for absent members that may wait; of more, each is left out.
const NOTICES_MAX: usize = 4096;
/// An answer that takes longer than this beside the wait for a send is given up.
const ANSWER_MARGIN: Duration = Duration::from_secs(10);
/// How long a stop waits for the threads.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// Name of the key file in the data folder.
const KEY_FILE: &str = "push.key";

/// File section `[push]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PushConfig {
    /// Whether push services that clients name may have private addresses and `http://`.
    pub allow_private: bool,
    /// Certificates (PEM) that providers' are trusted by, beside the public ones; empty: none.
    pub ca_file: PathBuf,
    /// The key that seals providers' credentials; empty: in the data folder.
    pub key_file: PathBuf,
    /// How long a provider may take for an answer, seconds.
    pub request_timeout_s: u64,
    /// How long a call waits for its send to be done before it answers with what has been done so far, ms.
    pub wait_ms: u64,
    /// How long finished jobs and their results are kept, seconds.
    pub keep_jobs_s: u64,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            allow_private: false,
            ca_file: PathBuf::new(),
            key_file: PathBuf::new(),
            request_timeout_s: 10,
            wait_ms: 10_000,
            keep_jobs_s: 7 * 24 * 3600,
        }
    }
}

impl PushConfig {
    /// Bounds of the numbers: key, value, least, most.
    #[must_use]
    pub fn bounds(&self) -> [(&'static str, u64, u64, u64); 3] {
        [
            ("push.request_timeout_s", self.request_timeout_s, 1, 120),
            // The HTTP front gives an answer half a minute.
            ("push.wait_ms", self.wait_ms, 0, 20_000),
            ("push.keep_jobs_s", self.keep_jobs_s, 60, 366 * 24 * 3600),
        ]
    }
}

/// What can be asked about one app.
#[derive(Debug, Clone)]
pub enum Question {
    Register(Box<Registration>),
    Unregister(Unregistration),
    /// By id. `of`: only where it is this member's.
    Delete {
        id: String,
        of: Option<String>,
    },
    AddChannel(Enrolment),
    RemoveChannel(Enrolment),
    List(ListQuery),
    /// `key`: a repeat with the same key is the same send.
    Send {
        request: Box<SendRequest>,
        key: Option<String>,
    },
    VapidKey,
    /// Which providers there are.
    Config,
    Stats,
    Jobs(ListQuery),
    Job(String),
    CancelJob(String),
    Providers,
    PutProvider {
        platform: Platform,
        body: Value,
    },
    DeleteProvider(Platform),
    /// The app is no more: its subscriptions and providers go.
    ForgetApp,
}

/// An answer's body, JSON.
type Answer = Result<Vec<u8>, ProtocolError>;

/// A question and who wants to know.
struct Ask {
    app: Arc<str>,
    question: Question,
    reply: InboxSender<Answer>,
}

enum Input {
    Ask(Box<Ask>),
    /// Which members of a page have a connection; `None` where not every shard has said so.
    Connected {
        job: Arc<str>,
        members: Option<Vec<Box<str>>>,
    },
    Stop,
}

/// A question to the shards: which of these members have a connection.
pub struct WhoIsThere {
    pub app: Arc<str>,
    pub members: Vec<Box<str>>,
    job: Arc<str>,
    reply: Sender<Input>,
}

impl WhoIsThere {
    /// Answers with those that have one; `None` where that is not known.
    pub fn answer(self, members: Option<Vec<Box<str>>>) {
        let job = self.job;
        // Whoever gets no answer asks again.
        _ = self.reply.try_send(Input::Connected { job, members });
    }
}

/// Numbers for metrics, by platform.
#[derive(Debug, Clone, Default)]
pub struct PushStats {
    pub counts: BTreeMap<&'static str, Counts>,
    /// Jobs that are not done.
    pub jobs: u64,
    /// Recipients on their way to a provider.
    pub in_flight: u64,
    /// Writes that failed.
    pub failures: u64,
    /// Messages whose absent members were not told, as too many waited.
    pub notices_dropped: u64,
    /// Failures that back ends were not told of, as too much waited for them.
    pub failures_untold: u64,
}

/// The way to the keeper thread, for any thread. Clones are the same.
#[derive(Clone)]
pub struct PushHandle {
    inputs: Sender<Input>,
    notices: Sender<Notice>,
    wait: Duration,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for PushHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PushHandle")
    }
}

#[derive(Default)]
struct Shared {
    stats: Mutex<PushStats>,
    notices_dropped: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Counts what became of an app's notifications; false where that is to be tried again.
pub type CountUse = Box<dyn Fn(&Arc<str>, Counts) -> bool + Send>;

/// Who is told how it went.
pub struct Ears {
    pub used: CountUse,
    /// Lets back ends know of what has failed; false where too much waits for them.
    pub failed: Box<dyn Fn(Raised) -> bool + Send>,
}

/// Opens the store and starts both threads. `alone`: no other process works on this store, so what was begun is gone on
/// with at once.
///
/// # Errors
/// The store, the key file or the certificates cannot be used.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start(
    storage: &dyn RecordStorage,
    config: &PushConfig,
    data_dir: &Path,
    registry: RegistryHandle,
    who: InboxSender<WhoIsThere>,
    alone: bool,
    ears: Ears,
) -> Result<PushHandle, String> {
    let store = storage.open(Area::Push).map_err(|e| e.to_string())?;
    let key_file = match config.key_file.as_os_str().is_empty() {
        true => data_dir.join(KEY_FILE),
        false => config.key_file.clone(),
    };
    let vault = open_vault(&key_file).map_err(|e| format!("{}: {e}", key_file.display()))?;
    send::check(config)?;
    let (inputs, queue) = crossbeam_channel::bounded(ASKS_MAX);
    let (notices, noticed) = crossbeam_channel::bounded(NOTICES_MAX);
    let (reports, heard) = crossbeam_channel::bounded(keeper::IN_FLIGHT_MAX);
    let (batches, to_send) = tokio::sync::mpsc::channel(keeper::BATCHES_MAX);
    let shared = Arc::new(Shared::default());
    let peers = keeper::Peers {
        batches: Some(batches),
        who,
        own: inputs.clone(),
        ears,
    };
    let keeper = Keeper::new(store, vault, config.clone(), registry, peers, alone);
    let own = shared.clone();
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(run).expect("a thread can be started")
    };
    let (config, wait) = (config.clone(), Duration::from_millis(config.wait_ms));
    let threads = vec![
        spawn(
            "push",
            Box::new(move || keeper.run(&queue, &noticed, &heard, &own.stats)),
        ),
        spawn(
            "push-send",
            Box::new(move || {
                if let Err(error) = send::run(&config, to_send, &reports) {
                    log::error!(error; "push: nothing can be sent");
                }
            }),
        ),
    ];
    *lock(&shared.threads) = threads;
    Ok(PushHandle {
        inputs,
        notices,
        wait,
        shared,
    })
}

/// Reads the key under which providers' credentials are sealed; makes it where it is missing.
fn open_vault(key_file: &Path) -> io::Result<Vault> {
    let key = HEXLOWER_PERMISSIVE.decode(read_key(key_file)?.trim().as_bytes());
    Vault::new(&key.unwrap_or_default())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "must hold 64 hex digits"))
}

impl PushHandle {
    /// Asks about an app; waits on a shard's executor.
    ///
    /// # Errors
    /// What the question is refused with; 50300 when too many wait or the answer takes too long.
    pub async fn ask(&self, app: &str, question: Question) -> Answer {
        let (reply, answer) = inbox::bounded(1);
        let ask = Ask {
            app: app.into(),
            question,
            reply,
        };
        self.inputs
            .try_send(Input::Ask(Box::new(ask)))
            .map_err(|_| ProtocolError::from(ErrorCode::Unavailable))?;
        let late = async {
            glommio::timer::sleep(self.wait + ANSWER_MARGIN).await;
            let text = "push takes too long";
            Err(ProtocolError::with_text(ErrorCode::Unavailable, text))
        };
        future::or(answer.recv(), late).await
    }

    /// Tells of a message whose absent members are to know. Never waits: where too many wait it is left out and counted.
    pub fn notice(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.shared.notices_dropped.fetch_add(1, Relaxed);
        }
    }

    /// For metrics.
    #[must_use]
    pub fn stats(&self) -> PushStats {
        let mut stats = lock(&self.shared.stats).clone();
        stats.notices_dropped += self.shared.notices_dropped.load(Relaxed);
        stats
    }

    /// Ends both threads: what is on its way is waited for and noted, the rest goes on after the next start.
    pub fn shutdown(&self) {
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        if self
            .inputs
            .send_timeout(Input::Stop, STOP_PATIENCE)
            .is_err()
        {
            log::error!("push: the keeper does not take orders");
            return;
        }
        for thread in threads {
            if thread.join().is_err() {
                log::error!("push: a thread ended badly");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_key_file_is_refused_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        std::fs::write(&path, "short").unwrap();
        assert!(open_vault(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
    }
}
