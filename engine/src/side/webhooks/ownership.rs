//! Which of the processes that share an outbox numbers and delivers.
//!
//! The owner holds a lease, a record that every one of its commits renews on the condition that it is still its own: one
//! whose lease was taken cannot write anything any more, and finds that out by the commit that fails. A process that ends
//! in an orderly way gives the lease back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::outbox::OWNER;
use crate::records::{Change, Condition, Record, RecordError, Records};

/// How long an owner that says nothing is waited for, ms.
pub(super) const LEASE_MS: u64 = 4_000;
/// How often it says something, ms.
pub(super) const RENEW_MS: u64 = 1_000;
/// How often others look, ms.
pub(super) const LOOK_MS: u64 = 200;

#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    node: String,
}

/// The lease, as this process knows it.
#[derive(Debug)]
pub(super) struct Ownership {
    node: Arc<str>,
    /// Of the record, while it is this process's.
    version: Option<u64>,
}

impl Ownership {
    pub(super) fn new(node: Arc<str>) -> Self {
        Self {
            node,
            version: None,
        }
    }

    pub(super) fn is_owner(&self) -> bool {
        self.version.is_some()
    }

    /// Takes the lease if nobody has it.
    ///
    /// # Errors
    /// The outbox cannot be used.
    pub(super) fn try_take(
        &mut self,
        records: &mut dyn Records,
        now_ms: u64,
    ) -> Result<bool, RecordError> {
        if records.get(OWNER, OWNER, now_ms)?.is_some() {
            return Ok(false);
        }
        match records.apply(&[self.put(Condition::Absent, now_ms)], now_ms) {
            Ok(()) => {}
            Err(RecordError::Conflict(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.version = records
            .get(OWNER, OWNER, now_ms)?
            .map(|record| record.version);
        Ok(self.version.is_some())
    }

    /// The change that goes first in each of the owner's commits.
    pub(super) fn renewal(&self, now_ms: u64) -> Change {
        self.put(Condition::Version(self.version.unwrap_or(0)), now_ms)
    }

    /// A commit with [`Ownership::renewal`] was made.
    pub(super) fn note_renewed(&mut self) {
        self.version = self.version.map(|version| version + 1);
    }

    /// Somebody else has the lease.
    pub(super) fn lose(&mut self) {
        self.version = None;
    }

    /// The change that gives the lease back.
    pub(super) fn release(&self) -> Option<Change> {
        self.version.map(|version| Change::Delete {
            kind: OWNER,
            id: OWNER.into(),
            when: Condition::Version(version),
        })
    }

    fn put(&self, when: Condition, now_ms: u64) -> Change {
        let lease = Lease {
            node: self.node.to_string(),
        };
        Change::Put {
            kind: OWNER,
            record: Record {
                id: OWNER.into(),
                expires_ms: Some(now_ms + LEASE_MS),
                body: serde_json::to_string(&lease).unwrap_or_default(),
                ..Record::default()
            },
            when,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::sqlite::SqliteRecordStorage;
    use crate::records::{Area, RecordStorage};

    #[test]
    fn one_has_it_until_it_gives_it_back_or_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let storage = SqliteRecordStorage::new(folder.path());
        let mut records = storage.open(Area::Webhooks).unwrap();
        let (mut a, mut b) = (Ownership::new("a".into()), Ownership::new("b".into()));
        assert!(a.try_take(&mut *records, 0).unwrap());
        assert!(!b.try_take(&mut *records, LEASE_MS - 1).unwrap());
        records
            .apply(&[a.renewal(LEASE_MS - 1)], LEASE_MS - 1)
            .unwrap();
        a.note_renewed();
        assert!(!b.try_take(&mut *records, LEASE_MS).unwrap());
        let late = 3 * LEASE_MS;
        assert!(b.try_take(&mut *records, late).unwrap());
        let refused = records.apply(&[a.renewal(late)], late);
        assert_eq!(refused, Err(RecordError::Conflict(0)));
        records.apply(&[b.release().unwrap()], late).unwrap();
        assert!(a.try_take(&mut *records, late).unwrap());
    }
}
