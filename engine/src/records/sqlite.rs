//! Records in SQLite files of the data folder, one per area.
//!
//! Files are for their owner only, as records hold secrets. Several connections may be open at once: SQLite has one of
//! them write at a time.

use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::{Area, Change, Condition, Record, RecordError, RecordStorage, Records, Scan};
use crate::sqlite_file::{Form, open_secret};

const FORM: Form = Form {
    // "SHRC".
    application_id: 0x5348_5243,
    version: 1,
    schema: "
    CREATE TABLE records (
        kind       TEXT NOT NULL,
        id         TEXT NOT NULL,
        rank       INTEGER NOT NULL,
        expires_ms INTEGER,
        version    INTEGER NOT NULL,
        labels     TEXT NOT NULL,
        body       TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX records_by_rank ON records (kind, rank, id);
    CREATE INDEX records_by_expiry ON records (expires_ms) WHERE expires_ms IS NOT NULL;
    CREATE TABLE labels (
        kind  TEXT NOT NULL,
        name  TEXT NOT NULL,
        value TEXT NOT NULL,
        rank  INTEGER NOT NULL,
        id    TEXT NOT NULL,
        PRIMARY KEY (kind, name, value, rank, id)
    ) STRICT, WITHOUT ROWID;
",
};

/// Areas as files of a folder.
#[derive(Debug, Clone)]
pub struct SqliteRecordStorage {
    folder: PathBuf,
}

impl SqliteRecordStorage {
    /// The folder must be there.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { folder }
    }
}

impl RecordStorage for SqliteRecordStorage {
    fn open(&self, area: Area) -> Result<Box<dyn Records>, RecordError> {
        let path = self.folder.join(format!("{}.db", area.name()));
        Ok(Box::new(SqliteRecords::open(&path)?))
    }
}

/// A connection to a file.
#[derive(Debug)]
struct SqliteRecords {
    db: Connection,
}

impl SqliteRecords {
    fn open(path: &Path) -> Result<Self, RecordError> {
        let db = open_secret(path, &FORM)
            .map_err(|text| RecordError::Failed(format!("{}: {text}", path.display())))?;
        db.set_prepared_statement_cache_capacity(64);
        Ok(Self { db })
    }
}

impl Records for SqliteRecords {
    fn apply(&mut self, changes: &[Change], now_ms: u64) -> Result<(), RecordError> {
        // A transaction that has read first cannot always be made one that writes.
        let all = self
            .db
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(told)?;
        for (index, change) in changes.iter().enumerate() {
            if !make(&all, change, now_ms)? {
                return Err(RecordError::Conflict(index));
            }
        }
        all.commit().map_err(told)
    }

    fn get(
        &mut self,
        kind: &'static str,
        id: &str,
        now_ms: u64,
    ) -> Result<Option<Record>, RecordError> {
        let text =
            format!("SELECT {COLUMNS} FROM records r WHERE kind = ?1 AND id = ?2 AND {LIVE_3}");
        self.db
            .prepare_cached(&text)
            .and_then(|mut get| get.query_row(params![kind, id, now_ms], read).optional())
            .map_err(told)
    }

    fn scan(&mut self, scan: &Scan, now_ms: u64) -> Result<Vec<Record>, RecordError> {
        let (text, values) = query_of(scan, now_ms);
        let mut query = self.db.prepare_cached(&text).map_err(told)?;
        let rows = query.query_map(rusqlite::params_from_iter(values), read);
        rows.and_then(Iterator::collect).map_err(told)
    }

    fn count(
        &mut self,
        kind: &'static str,
        label: Option<(&str, &str)>,
        now_ms: u64,
    ) -> Result<u64, RecordError> {
        let counted = match label {
            None => self
                .db
                .prepare_cached(&format!(
                    "SELECT count(*) FROM records r WHERE kind = ?1 AND {LIVE_2}"
                ))
                .and_then(|mut count| count.query_row(params![kind, now_ms], |row| row.get(0))),
            Some((name, value)) => self
                .db
                .prepare_cached(&format!(
                    "SELECT count(*) FROM labels l JOIN records r USING (kind, id)
                     WHERE l.kind = ?1 AND l.name = ?3 AND l.value = ?4 AND {LIVE_2}"
                ))
                .and_then(|mut count| {
                    count.query_row(params![kind, now_ms, name, value], |row| row.get(0))
                }),
        };
        counted.map_err(told)
    }

    fn expire(&mut self, now_ms: u64, limit: usize) -> Result<u64, RecordError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let all = self.db.transaction().map_err(told)?;
        let over: Vec<(String, String)> = all
            .prepare_cached("SELECT kind, id FROM records WHERE expires_ms <= ?1 LIMIT ?2")
            .and_then(|mut over| {
                over.query_map(params![now_ms, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(told)?;
        for (kind, id) in &over {
            remove(&all, kind, id).map_err(told)?;
        }
        all.commit().map_err(told)?;
        Ok(over.len() as u64)
    }

    fn dump(
        &mut self,
        after: Option<(&str, i64, &str)>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, RecordError> {
        let (kind, rank, id) = after.unwrap_or(("", i64::MIN, ""));
        let text = format!(
            "SELECT {COLUMNS}, r.kind FROM records r WHERE (kind, rank, id) > (?1, ?2, ?3)
             ORDER BY kind, rank, id LIMIT ?4"
        );
        let mut dump = self.db.prepare_cached(&text).map_err(told)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = dump.query_map(params![kind, rank, id, limit], |row| {
            Ok((row.get(6)?, read(row)?))
        });
        rows.and_then(Iterator::collect).map_err(told)
    }

    fn restore(&mut self, records: &[(String, Record)]) -> Result<(), RecordError> {
        let all = self.db.transaction().map_err(told)?;
        for (kind, record) in records {
            remove(&all, kind, &record.id)
                .and_then(|()| add(&all, kind, record, record.version))
                .map_err(told)?;
        }
        all.commit().map_err(told)
    }
}

const COLUMNS: &str = "r.id, r.labels, r.rank, r.expires_ms, r.body, r.version";
/// Not expired, with the time as parameter 2.
const LIVE_2: &str = "(r.expires_ms IS NULL OR r.expires_ms > ?2)";
/// The same, as parameter 3.
const LIVE_3: &str = "(r.expires_ms IS NULL OR r.expires_ms > ?3)";

/// The statement of a scan, and its parameters from 1.
fn query_of(scan: &Scan, now_ms: u64) -> (String, Vec<Value>) {
    let now = Value::Integer(i64::try_from(now_ms).unwrap_or(i64::MAX));
    let mut values = vec![Value::Text(scan.kind.into()), now];
    // The table whose index gives the order.
    let (table, by) = match &scan.label {
        None => ("records r", "r"),
        Some(_) => ("labels l JOIN records r USING (kind, id)", "l"),
    };
    let mut text = format!("SELECT {COLUMNS} FROM {table} WHERE {by}.kind = ?1 AND {LIVE_2}");
    let mut and = |condition: &str, given: Vec<Value>| {
        text.push_str(" AND ");
        let mut parts = condition.split('?');
        text.push_str(parts.next().unwrap_or_default());
        for (part, value) in parts.zip(given) {
            values.push(value);
            text.push_str(&format!("?{}{part}", values.len()));
        }
    };
    if let Some((name, value)) = &scan.label {
        let given = vec![Value::Text(name.clone()), Value::Text(value.clone())];
        and("l.name = ? AND l.value = ?", given);
    }
    if let Some(rank) = scan.rank_min {
        and(&format!("{by}.rank >= ?"), vec![Value::Integer(rank)]);
    }
    if let Some(rank) = scan.rank_max {
        and(&format!("{by}.rank <= ?"), vec![Value::Integer(rank)]);
    }
    let (sign, order) = if scan.newest_first {
        ("<", "DESC")
    } else {
        (">", "ASC")
    };
    if let Some((rank, id)) = &scan.after {
        let given = vec![Value::Integer(*rank), Value::Text(id.clone())];
        and(&format!("({by}.rank, {by}.id) {sign} (?, ?)"), given);
    }
    let limit = i64::try_from(scan.limit).unwrap_or(i64::MAX);
    values.push(Value::Integer(limit));
    text.push_str(&format!(
        " ORDER BY {by}.rank {order}, {by}.id {order} LIMIT ?{}",
        values.len()
    ));
    (text, values)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    let labels: String = row.get(1)?;
    Ok(Record {
        id: row.get(0)?,
        labels: serde_json::from_str(&labels).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(
                1,
                rusqlite::types::Type::Text,
                Box::new(error),
            )
        })?,
        rank: row.get(2)?,
        expires_ms: row.get(3)?,
        body: row.get(4)?,
        version: row.get(5)?,
    })
}

/// Makes one change; false where its condition does not hold.
fn make(db: &Connection, change: &Change, now_ms: u64) -> Result<bool, RecordError> {
    let (kind, id, when) = match change {
        Change::Put { kind, record, when } => (kind, &record.id, when),
        Change::Delete { kind, id, when } => (kind, id, when),
    };
    let text = format!("SELECT version FROM records r WHERE kind = ?1 AND id = ?2 AND {LIVE_3}");
    let found: Option<u64> = db
        .prepare_cached(&text)
        .and_then(|mut get| {
            get.query_row(params![kind, id, now_ms], |row| row.get(0))
                .optional()
        })
        .map_err(told)?;
    let holds = match when {
        Condition::Always => true,
        Condition::Absent => found.is_none(),
        Condition::Version(version) => found == Some(*version),
    };
    if !holds {
        return Ok(false);
    }
    remove(db, kind, id).map_err(told)?;
    if let Change::Put { kind, record, .. } = change {
        add(db, kind, record, found.unwrap_or(0) + 1).map_err(told)?;
    }
    Ok(true)
}

fn add(db: &Connection, kind: &str, record: &Record, version: u64) -> rusqlite::Result<()> {
    let Record {
        id,
        labels,
        rank,
        expires_ms,
        body,
        ..
    } = record;
    let as_text = serde_json::to_string(labels)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    db.prepare_cached("INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![kind, id, rank, expires_ms, version, as_text, body])?;
    let mut label =
        db.prepare_cached("INSERT OR IGNORE INTO labels VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (name, value) in labels {
        label.execute(params![kind, name, value, rank, id])?;
    }
    Ok(())
}

/// Removes a record with its labels, where it is there.
fn remove(db: &Connection, kind: &str, id: &str) -> rusqlite::Result<()> {
    let text = "DELETE FROM records WHERE kind = ?1 AND id = ?2 RETURNING labels, rank";
    let found: Option<(String, i64)> = db
        .prepare_cached(text)?
        .query_row(params![kind, id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((labels, rank)) = found else {
        return Ok(());
    };
    let labels: Vec<(String, String)> = serde_json::from_str(&labels).unwrap_or_default();
    let text =
        "DELETE FROM labels WHERE kind = ?1 AND name = ?2 AND value = ?3 AND rank = ?4 AND id = ?5";
    let mut label = db.prepare_cached(text)?;
    for (name, value) in labels {
        label.execute(params![kind, name, value, rank, id])?;
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn told(error: rusqlite::Error) -> RecordError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            RecordError::Busy(error.to_string())
        }
        _ => RecordError::Failed(error.to_string()),
    }
}
