//! Apps and credentials: the one place that changes them, and where they are kept.
//!
//! ```text
//!  admin API, SIGHUP ──Job──► registry thread ──► storage (documents)
//!  shards: key uses  ──Job──►   │    ▲
//!                               │    └── key sets fetched by URL (jwks thread)
//!                               └──► a snapshot to every shard
//! ```
//! A thread of its own owns the storage. Shards and the admin API ask it for changes through a [`RegistryHandle`], and
//! work with snapshots ([`Registry`]) that it makes. What a change means is decided in `shardwire_proto::auth`.
//!
//! Invariants: a change that was answered is stored; snapshots reach every shard in the order of the changes, of
//! several that wait only the last.

pub mod documents;
mod jwks;
mod mirrored;
mod owner;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use futures_lite::future;
use shardwire_proto::auth::change::{Change, Changed};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::auth::signing::SigningKey;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::shard::KeyUse;

use self::documents::Documents;
use crate::clock::now_ms;
use crate::cluster::{ClusterHandle, Mirrored};
use crate::shard::inbox::{self, InboxSender};
use crate::sync::lock;

/// A change that has not been stored by then is reported as not done; it may yet be.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// Changes and reports that may wait: more are refused (changes, 50300) or dropped (key uses).
const JOBS_MAX: usize = 256;

/// Snapshots that may wait for a shard; of more the last counts.
pub const SNAPSHOTS_WAITING_MAX: usize = 4;

/// When keys were last used: app and key id to Unix ms.
type LastUsed = HashMap<(Arc<str>, Box<str>), u64>;

/// The way to the registry, for any thread. Clones are the same registry.
#[derive(Debug, Clone)]
pub struct RegistryHandle {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

/// What others look at. Not for shards' hot paths: they get snapshots sent.
#[derive(Debug, Default)]
struct Shared {
    snapshot: Mutex<Arc<Registry>>,
    last_used: Mutex<LastUsed>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The documents are those of all servers.
    is_shared: bool,
}

#[derive(Debug)]
enum Job {
    Change {
        change: Box<Change>,
        reply: InboxSender<Result<Changed, ProtocolError>>,
    },
    Used(Vec<KeyUse>),
    /// What is stored, and key sets in files, may have been changed by somebody else.
    Reload,
    /// This is one of several nodes from here on.
    Join {
        cluster: ClusterHandle,
        marker: PathBuf,
    },
    /// What all nodes have.
    Mirrored(Mirrored),
    /// Another server has changed what is stored for all of them.
    Look,
    /// A key set has been fetched.
    Fetched {
        app: String,
        url: String,
        keys: Vec<SigningKey>,
    },
    Stop,
}

/// Starts the thread that owns `documents`. `registry` is what they hold; `shards` get every later snapshot.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start(
    documents: impl Documents,
    registry: Registry,
    shards: Vec<InboxSender<Arc<Registry>>>,
    allow_http: bool,
) -> RegistryHandle {
    let (jobs, queue) = crossbeam_channel::bounded(JOBS_MAX);
    let shared = Arc::new(Shared {
        is_shared: documents.is_shared(),
        ..Shared::default()
    });
    let fetcher = jwks::start(jobs.clone(), allow_http);
    let owner = owner::Owner::new(documents, registry, shards, fetcher, shared.clone());
    let thread = std::thread::Builder::new().name("registry".to_owned());
    let thread = thread.spawn(move || owner.run(&queue));
    *lock(&shared.thread) = Some(thread.expect("a thread can be started"));
    RegistryHandle { jobs, shared }
}

impl RegistryHandle {
    /// Makes a change and waits, on a shard's executor, until it is stored and on its way to every shard.
    ///
    /// # Errors
    /// What is wrong with it (400xx, 40400); 50300 when too many changes wait or it cannot be stored.
    pub async fn change(&self, change: Change) -> Result<Changed, ProtocolError> {
        let (reply, answer) = inbox::bounded(1);
        let job = Job::Change {
            change: Box::new(change),
            reply,
        };
        self.jobs
            .try_send(job)
            .map_err(|_| ProtocolError::from(ErrorCode::Unavailable))?;
        let late = async {
            glommio::timer::sleep(CHANGE_DEADLINE).await;
            Err(ErrorCode::Unavailable.into())
        };
        future::or(answer.recv(), late).await
    }

    /// Takes note of key uses; where the queue is full they are lost, as they may be.
    pub fn note_uses(&self, uses: Vec<KeyUse>) {
        if !uses.is_empty() {
            _ = self.jobs.try_send(Job::Used(uses));
        }
    }

    /// Reads again what is stored, and key sets in files.
    pub fn reload(&self) {
        if self.jobs.try_send(Job::Reload).is_err() {
            log::error!("the registry is busy: apps and keys are not read again");
        }
    }

    /// Makes this one of several nodes: changes are for all of them. `marker` is a file that says which ones; not used
    /// where they share the store.
    pub fn join(&self, cluster: ClusterHandle, marker: PathBuf) {
        if self.jobs.send(Job::Join { cluster, marker }).is_err() {
            log::error!("the registry is gone");
        }
    }

    /// Whether all nodes have one store, so that they only need to look there.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.shared.is_shared
    }

    /// Looks whether another node has changed what is stored; without room, within a second.
    pub fn look(&self) {
        _ = self.jobs.try_send(Job::Look);
    }

    /// Takes over what all nodes have. False when there is no room: to be tried again.
    #[must_use]
    pub fn mirror(&self, all: Mirrored) -> bool {
        self.jobs.try_send(Job::Mirrored(all)).is_ok()
    }

    /// All apps and credentials as of the last change.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Registry> {
        lock(&self.shared.snapshot).clone()
    }

    /// When an API key was last used, Unix ms, to about a minute.
    #[must_use]
    pub fn last_used_ms(&self, app: &str, key_id: &str) -> Option<u64> {
        let used = lock(&self.shared.last_used);
        used.get(&(app.into(), key_id.into())).copied()
    }

    /// Ends the thread once it has done what waits.
    pub fn shutdown(&self) {
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread
            && self.jobs.send_timeout(Job::Stop, CHANGE_DEADLINE).is_ok()
            && thread.join().is_err()
        {
            log::error!("the registry's thread ended badly");
        }
    }
}
