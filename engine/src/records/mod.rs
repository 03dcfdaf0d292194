//! Documents of side services: what must outlast the process and is not a message.
//!
//! Each service has an [`Area`] of its own, and in it kinds of [`Record`]s, which are found by id, by label, and in the
//! order of their rank. What is in a record's body is the service's matter. Calls block: they are for side threads, never
//! for a shard. [`sqlite`] keeps an area in a file of the data folder, [`mongo`] in a collection.
//!
//! Invariants: what [`Records::apply`] has confirmed is found by every later call of any connection and survives a power
//! cut; of a refused list of changes nothing is done; an expired record is never found.

pub mod mongo;
pub mod sqlite;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::mongo::Mongo;

/// Most labels of a record.
pub const LABELS_MAX: usize = 8;

/// Whose records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Area {
    /// Apps, keys, plans and revocations; SQLite keeps them in a form of their own.
    Registry,
    Webhooks,
    Push,
    Accounts,
}

impl Area {
    pub const ALL: [Self; 4] = [Self::Registry, Self::Webhooks, Self::Push, Self::Accounts];

    /// The name of its file or collection.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Webhooks => "webhooks",
            Self::Push => "push",
            Self::Accounts => "accounts",
        }
    }
}

/// One document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Unique in its kind.
    pub id: String,
    /// Name and value of what it is looked up by, [`LABELS_MAX`] at most.
    pub labels: Vec<(String, String)>,
    /// Its place in scans: a due time, a number, a time of creation. Equal ranks are ordered by id.
    pub rank: i64,
    /// Not found from then on, ms since the Unix epoch; removed some time later.
    pub expires_ms: Option<u64>,
    /// JSON.
    pub body: String,
    /// Given by the store: 1 for a new record, one more with each change. What a caller sets is not looked at.
    pub version: u64,
}

/// What must hold for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Always,
    /// No such record is there.
    Absent,
    /// The record is there, with this version.
    Version(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds the record or takes the place of the one with its id.
    Put {
        kind: &'static str,
        record: Record,
        when: Condition,
    },
    /// A record that is not there is no mistake, unless the condition wants it.
    Delete {
        kind: &'static str,
        id: String,
        when: Condition,
    },
}

impl Change {
    /// Puts whatever is there.
    pub fn put(kind: &'static str, record: Record) -> Self {
        let when = Condition::Always;
        Self::Put { kind, record, when }
    }

    /// Deletes whatever is there.
    pub fn delete(kind: &'static str, id: impl Into<String>) -> Self {
        let (id, when) = (id.into(), Condition::Always);
        Self::Delete { kind, id, when }
    }
}

/// Which records of a kind, in the order of rank and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    pub kind: &'static str,
    /// Only those with this label.
    pub label: Option<(String, String)>,
    /// Goes on behind the record with this rank and id.
    pub after: Option<(i64, String)>,
    /// Inclusive.
    pub rank_min: Option<i64>,
    /// Inclusive.
    pub rank_max: Option<i64>,
    /// Highest rank first.
    pub newest_first: bool,
    /// Most records.
    pub limit: usize,
}

impl Scan {
    /// Up to `limit` records of a kind, lowest rank first.
    pub fn of(kind: &'static str, limit: usize) -> Self {
        Self {
            kind,
            label: None,
            after: None,
            rank_min: None,
            rank_max: None,
            newest_first: false,
            limit,
        }
    }

    /// Only those with this label.
    #[must_use]
    pub fn labelled(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.label = Some((name.into(), value.into()));
        self
    }
}

/// Why a call did nothing. The texts are for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// The condition of the change with this index does not hold.
    Conflict(usize),
    /// Worth another try: somebody else was in the way, or the store is away for now.
    Busy(String),
    /// The store refuses, or cannot be used.
    Failed(String),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(index) => write!(f, "change {index} is not of what is there"),
            Self::Busy(text) | Self::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for RecordError {}

/// A connection to an area, owned by one thread.
pub trait Records: Send {
    /// Makes all changes in order, or none.
    ///
    /// # Errors
    /// None was made.
    fn apply(&mut self, changes: &[Change], now_ms: u64) -> Result<(), RecordError>;

    /// The record with this id.
    ///
    /// # Errors
    /// There is no answer.
    fn get(
        &mut self,
        kind: &'static str,
        id: &str,
        now_ms: u64,
    ) -> Result<Option<Record>, RecordError>;

    /// Records in order.
    ///
    /// # Errors
    /// There is no answer.
    fn scan(&mut self, scan: &Scan, now_ms: u64) -> Result<Vec<Record>, RecordError>;

    /// How many records there are, of a label or at all.
    ///
    /// # Errors
    /// There is no answer.
    fn count(
        &mut self,
        kind: &'static str,
        label: Option<(&str, &str)>,
        now_ms: u64,
    ) -> Result<u64, RecordError>;

    /// Removes up to `limit` expired records; returns how many.
    ///
    /// # Errors
    /// None was removed.
    fn expire(&mut self, now_ms: u64, limit: usize) -> Result<u64, RecordError>;

    /// Records of all kinds with their kinds, in the order of kind, rank and id, behind one; to move them elsewhere.
    /// Expired ones too.
    ///
    /// # Errors
    /// There is no answer.
    fn dump(
        &mut self,
        after: Option<(&str, i64, &str)>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, RecordError>;

    /// Puts records as they are, versions too.
    ///
    /// # Errors
    /// Not all are there; they may be put again.
    fn restore(&mut self, records: &[(String, Record)]) -> Result<(), RecordError>;
}

/// Where side services keep their records: in the database where there is one, else in the data folder.
pub fn storage(mongo: Option<&Mongo>, data_dir: &Path) -> Arc<dyn RecordStorage> {
    match mongo {
        Some(mongo) => Arc::new(mongo::MongoRecordStorage::new(mongo.clone())),
        None => Arc::new(sqlite::SqliteRecordStorage::new(data_dir)),
    }
}

/// Where connections come from.
pub trait RecordStorage: Send + Sync {
    /// Opens a connection, and makes the area where it is missing.
    ///
    /// # Errors
    /// It cannot be used: not there, not writable, another program's, or of a later version.
    fn open(&self, area: Area) -> Result<Box<dyn Records>, RecordError>;
}
