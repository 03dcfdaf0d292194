//! What is on disk, and every statement that touches it.
//!
//! Messages lie in the order of their arrival, of whatever channel, so that appends fill pages at the end of one tree;
//! what is written per channel is a small entry of the index. (Messages that lie by channel rewrite a page each as soon
//! as there are more channels than messages in a batch: that is 2 to 5 times slower.) Old messages are deleted in the
//! order of arrival, too: see [`super::sweep`].
//!
//! A channel's messages are numbered without a hole, and timestamps never fall with the number. So a count is a
//! difference, and a bound in time is found by binary search over numbers, within the index.

use rusqlite::Connection;

/// One step from each version of the schema to the next; a released step is never changed. Version `n`
/// (`PRAGMA user_version`) is what the first `n` have made.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE channels (
        id           INTEGER PRIMARY KEY,
        app          TEXT NOT NULL,
        name         TEXT NOT NULL,
        epoch        TEXT NOT NULL,     -- which numbering the sequences belong to
        last_seq     INTEGER NOT NULL,  -- of the last message ever stored; never falls
        last_ts      INTEGER NOT NULL,
        gone_seq     INTEGER NOT NULL,  -- messages up to here are cleared or deleted; 0: none
        gone_ts      INTEGER NOT NULL,  -- timestamp of that one
        messages_max INTEGER NOT NULL,  -- retention, as of the last append
        age_ms       INTEGER NOT NULL,
        UNIQUE (app, name)
    ) STRICT;
    CREATE TABLE messages (
        id         INTEGER PRIMARY KEY, -- order of arrival
        channel_id INTEGER NOT NULL,
        seq        INTEGER NOT NULL,    -- gone_seq + 1 to last_seq are there; older ones until they are swept
        ts         INTEGER NOT NULL,    -- ms since the Unix epoch; never falls with seq
        msg_id     TEXT NOT NULL,
        publisher  TEXT NOT NULL,
        data       TEXT NOT NULL        -- JSON, as published
    ) STRICT;
    CREATE INDEX messages_by_seq ON messages (channel_id, seq, ts);
"];

/// `PRAGMA application_id`: "SHWR". Tells this file from other people's databases.
pub(super) const APPLICATION_ID: i64 = 0x5348_5752;

/// Columns as [`super::channels::ChannelRow`] reads them.
macro_rules! channel_columns {
    () => {
        "id, epoch, last_seq, last_ts, gone_seq, gone_ts, messages_max, age_ms"
    };
}
/// Columns as [`super::read::record`] reads them.
macro_rules! record_columns {
    () => {
        "seq, ts, msg_id, publisher, data"
    };
}

pub(super) const CHANNEL_BY_NAME: &str = concat!(
    "SELECT ",
    channel_columns!(),
    " FROM channels WHERE app = ?1 AND name = ?2"
);
pub(super) const CHANNEL_BY_ID: &str = concat!(
    "SELECT ",
    channel_columns!(),
    ", app, name FROM channels WHERE id = ?1"
);
pub(super) const CHANNEL_ID_MAX: &str = "SELECT max(id) FROM channels";
pub(super) const CHANNELS_CHANGED: &str = "SELECT app, name FROM channels \
    WHERE (app, name) > (?1, ?2) AND last_ts >= ?3 ORDER BY app, name LIMIT ?4";
pub(super) const CHANNEL_INSERT: &str = "INSERT INTO channels \
    (id, epoch, last_seq, last_ts, gone_seq, gone_ts, messages_max, age_ms, app, name) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
pub(super) const CHANNEL_UPDATE: &str = "UPDATE channels SET \
    last_seq = ?2, last_ts = ?3, gone_seq = ?4, gone_ts = ?5, messages_max = ?6, age_ms = ?7 WHERE id = ?1";
pub(super) const MESSAGE_INSERT: &str = "INSERT INTO messages \
    (channel_id, seq, ts, msg_id, publisher, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
pub(super) const MESSAGE_DELETE: &str = "DELETE FROM messages WHERE id = ?1";
pub(super) const MESSAGES_AFTER_ID: &str =
    "SELECT id, channel_id, seq, ts FROM messages WHERE id > ?1 ORDER BY id LIMIT ?2";
pub(super) const TS_AT: &str = "SELECT ts FROM messages WHERE channel_id = ?1 AND seq = ?2";
pub(super) const FORWARD: &str = concat!(
    "SELECT ",
    record_columns!(),
    " FROM messages WHERE channel_id = ?1 AND seq BETWEEN ?2 AND ?3 ORDER BY seq"
);
pub(super) const BACKWARD: &str = concat!(
    "SELECT ",
    record_columns!(),
    " FROM messages WHERE channel_id = ?1 AND seq BETWEEN ?2 AND ?3 ORDER BY seq DESC"
);
pub(super) const IDS: &str = "SELECT msg_id, ts, seq FROM messages WHERE channel_id = ?1 AND seq BETWEEN ?2 AND ?3 ORDER BY seq";

/// Every statement above, for the test that none of them reads a whole table.
#[cfg(test)]
pub(super) const STATEMENTS: [&str; 13] = [
    CHANNEL_BY_NAME,
    CHANNELS_CHANGED,
    CHANNEL_BY_ID,
    CHANNEL_ID_MAX,
    CHANNEL_INSERT,
    CHANNEL_UPDATE,
    MESSAGE_INSERT,
    MESSAGE_DELETE,
    MESSAGES_AFTER_ID,
    TS_AT,
    FORWARD,
    BACKWARD,
    IDS,
];

/// Why a file cannot be brought to the version of this program.
#[derive(Debug)]
pub(super) enum SchemaError {
    /// It is a database of something else.
    Foreign,
    /// A later version of this program has made it.
    Later(i64),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for SchemaError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Version of the schema in the file; 0 for an empty one.
pub(super) fn version(db: &Connection) -> Result<i64, SchemaError> {
    let version = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let objects: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION_ID && (application != 0 || version != 0 || objects != 0) {
        return Err(SchemaError::Foreign);
    }
    if version > MIGRATIONS.len() as i64 {
        return Err(SchemaError::Later(version));
    }
    Ok(version)
}

/// Brings the file to the version of this program, in one transaction.
pub(super) fn migrate(db: &mut Connection) -> Result<(), SchemaError> {
    let found = version(db)?;
    let steps = MIGRATIONS.get(usize::try_from(found).unwrap_or(0)..);
    let steps = steps.unwrap_or_default();
    if steps.is_empty() {
        return Ok(());
    }
    let change = db.transaction()?;
    for step in steps {
        change.execute_batch(step)?;
    }
    change.pragma_update(None, "application_id", APPLICATION_ID)?;
    change.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    change.commit()?;
    Ok(())
}
