//! Deletes messages that are cleared, or more than are kept. Those that are too old the database deletes by itself.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mongodb::bson::doc;
use mongodb::options::Hint;

use super::heads::Key;
use super::{BackendError, Expired, MongoBackend};
use crate::mongo::BY_SEQ;

/// Messages deleted by one command.
const DELETED_AT_ONCE: i64 = 1000;
/// A channel is trimmed when it has this many more than it may, or an eighth.
const SURPLUS_MIN: i64 = 64;

/// Which messages are to go: by channel, up to which number. In memory: after a start a channel is noted again with its
/// next message.
#[derive(Debug, Default)]
pub(super) struct Trims {
    up_to: HashMap<Key, i64>,
}

impl Trims {
    /// Messages up to `surplus` are more than are kept, and those up to `trimmed` are noted or deleted. Whether that is
    /// worth a deletion, which is then noted.
    pub(super) fn note(&mut self, key: &Key, trimmed: i64, surplus: i64, kept: i64) -> bool {
        let worth = surplus - trimmed >= SURPLUS_MIN.max(kept / 8);
        if worth {
            self.add(key, surplus);
        }
        worth
    }

    pub(super) fn add(&mut self, key: &Key, up_to: i64) {
        let noted = self.up_to.entry(key.clone()).or_default();
        *noted = up_to.max(*noted);
    }
}

/// Deletes for about `budget`.
pub(super) fn step(backend: &mut MongoBackend, budget: Duration) -> Result<Expired, BackendError> {
    let started = Instant::now();
    let mut messages = 0;
    while let Some((key, up_to)) = backend.trims.up_to.iter().next() {
        let (key, up_to) = (key.clone(), *up_to);
        let deleted = delete_some(backend, &key, up_to)?;
        messages += deleted.unwrap_or(0);
        if deleted.is_none() {
            backend.trims.up_to.remove(&key);
        }
        if started.elapsed() >= budget {
            break;
        }
    }
    Ok(Expired {
        messages,
        round_done: backend.trims.up_to.is_empty(),
    })
}

/// How many were deleted; `None` where there are none.
fn delete_some(backend: &MongoBackend, key: &Key, up_to: i64) -> Result<Option<u64>, BackendError> {
    let mut filter = key.messages();
    filter.insert("seq", doc! {"$lte": up_to});
    let first = backend
        .messages
        .find_one(filter)
        .sort(doc! {"seq": 1})
        .projection(doc! {"seq": 1})
        .hint(Hint::Name(BY_SEQ.to_owned()));
    let first = backend.mongo.run(first)?;
    let Some(first) = first.and_then(|first| first.get_i64("seq").ok()) else {
        return Ok(None);
    };
    let mut filter = key.messages();
    let last = up_to.min(first.saturating_add(DELETED_AT_ONCE - 1));
    filter.insert("seq", doc! {"$gte": first, "$lte": last});
    let delete = backend.messages.delete_many(filter);
    Ok(Some(backend.mongo.run(delete)?.deleted_count))
}
