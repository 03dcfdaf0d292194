//! What becomes of a batch that has failed while this process numbers messages.
//!
//! Whether a write that was not answered has been done is not known; nothing of the batch may be found, because its
//! numbers are given again. So the heads from before the batch are kept here: readers of this process go by them from
//! then on, and nothing else is written until the database has taken them back. A write of the batch that reaches the
//! database even later finds another fence in the head, or its number taken, and does nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mongodb::bson::doc;

use super::heads::{Head, Key};
use super::write::update_heads;
use super::{BackendError, MongoBackend};

/// Heads as they were before failed batches, by channel.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    heads: Mutex<HashMap<Key, Head>>,
}

impl Doubts {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Head>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch has failed that had begun with these heads.
    pub(super) fn add(&self, heads: HashMap<Key, Head>) {
        let mut known = self.lock();
        for (key, head) in heads {
            known.entry(key).or_insert(head);
        }
    }

    /// The head that counts, whatever the database says.
    pub(super) fn head(&self, key: &Key) -> Option<Head> {
        self.lock().get(key).cloned()
    }
}

impl MongoBackend {
    /// Has the database take back what failed batches may have left there.
    pub(super) fn settle(&mut self) -> Result<(), BackendError> {
        let heads = self.doubts.lock().clone();
        if heads.is_empty() {
            return Ok(());
        }
        self.heads.clear();
        let fence = fresh_fence();
        let back = heads.iter().map(|(key, head)| head.put_back(key, fence));
        let answer = self.mongo.run(update_heads(self, back.collect(), true));
        answer?.map_err(|(_, error)| error)?;
        for (key, head) in &heads {
            let mut left = key.messages();
            left.insert("seq", doc! {"$gt": head.last_seq});
            self.mongo.run(self.messages.delete_many(left))?;
        }
        self.doubts.lock().clear();
        log::info!(
            channels = heads.len();
            "store: what failed batches had left in MongoDB is taken back"
        );
        Ok(())
    }
}

/// None that was there before.
fn fresh_fence() -> i64 {
    let [a, b, c, d, e, f, g, h, ..] = crate::keys::random();
    i64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1
}
