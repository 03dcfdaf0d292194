//! Apps and credentials: the one place that changes them, and where they are kept.
//!
//! A thread of its own owns the storage. Shards and the admin API ask it for changes through a [`RegistryHandle`], and
//! work with snapshots ([`Registry`]) that it makes. What a change means is decided in `shardwire_proto::auth`.
//!
//! Invariants: a change that was answered is stored; snapshots reach every shard in the order of the changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use futures_lite::future;
use shardwire_proto::auth::change::{Change, Changed};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use crate::shard::inbox::{self, InboxSender};

/// A change that has not been stored by then is reported as not done; it may yet be.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

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
}

#[derive(Debug)]
enum Job {
    Change {
        change: Box<Change>,
        reply: InboxSender<Result<Changed, ProtocolError>>,
    },
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

    /// All apps and credentials as of the last change.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Registry> {
        let snapshot = self.shared.snapshot.lock();
        snapshot.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When an API key was last used, Unix ms, to about a minute.
    #[must_use]
    pub fn last_used_ms(&self, app: &str, key_id: &str) -> Option<u64> {
        let used = self.shared.last_used.lock();
        let used = used.unwrap_or_else(PoisonError::into_inner);
        used.get(&(app.into(), key_id.into())).copied()
    }
}
