//! The file as a whole.

use rusqlite::{Connection, OptionalExtension, Row, params};
use shardwire_proto::record::Record;

use super::{Error, SqliteBackend, int, read, schema};
use crate::store::BackendError;
use crate::store::archive::{Archive, ArchivedChannel};

const COLUMNS: &str =
    "app, name, epoch, last_seq, last_ts, gone_seq, gone_ts, messages_max, age_ms";

impl SqliteBackend {
    fn ask<T>(
        &self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, BackendError> {
        ask(&self.db).map_err(|error| super::explain(&self.path, Error::Sqlite(error)))
    }

    fn change(
        &mut self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), BackendError> {
        let done = self.transact("BEGIN IMMEDIATE", |db, _, _| Ok(change(db)?));
        // What is remembered of channels is not what is there.
        self.channels.clear();
        done
    }
}

impl Archive for SqliteBackend {
    fn channels(
        &mut self,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Vec<ArchivedChannel>, BackendError> {
        let (app, name) = after.unwrap_or_default();
        self.ask(|db| {
            let text = format!(
                "SELECT {COLUMNS} FROM channels WHERE (app, name) > (?1, ?2) ORDER BY app, name LIMIT ?3"
            );
            let mut query = db.prepare_cached(&text)?;
            query.query_map(params![app, name, limit], channel)?.collect()
        })
    }

    fn channel(&mut self, app: &str, name: &str) -> Result<Option<ArchivedChannel>, BackendError> {
        self.ask(|db| {
            let text = format!("SELECT {COLUMNS} FROM channels WHERE app = ?1 AND name = ?2");
            db.prepare_cached(&text)?
                .query_row([app, name], channel)
                .optional()
        })
    }

    fn messages(
        &mut self,
        channel: &ArchivedChannel,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Record>, BackendError> {
        self.ask(|db| {
            let Some(id) = id_of(db, channel)? else {
                return Ok(Vec::new());
            };
            let mut query = db.prepare_cached(&format!("{} LIMIT ?4", schema::FORWARD))?;
            let seqs = (from.max(channel.gone_seq + 1), channel.last_seq);
            query
                .query_map(params![id, seqs.0, seqs.1, limit], read::record)?
                .collect()
        })
    }

    fn begun(&mut self, channel: &ArchivedChannel) -> Result<Option<i64>, BackendError> {
        let there = self.channel(&channel.app, &channel.name)?;
        let Some(there) = there else {
            return Ok(None);
        };
        let fits = there.epoch == channel.epoch
            && there.gone_seq == channel.gone_seq
            && there.last_seq <= channel.last_seq;
        if fits {
            return Ok(Some(there.last_seq));
        }
        self.change(|db| {
            if let Some(id) = id_of(db, channel)? {
                db.execute("DELETE FROM messages WHERE channel_id = ?1", [id])?;
                db.execute("DELETE FROM channels WHERE id = ?1", [id])?;
            }
            Ok(())
        })?;
        Ok(None)
    }

    fn restore(
        &mut self,
        channel: &ArchivedChannel,
        messages: &[Record],
    ) -> Result<(), BackendError> {
        let Some(last) = messages.last() else {
            return Ok(());
        };
        let so_far = ArchivedChannel {
            last_seq: int(last.sequence),
            last_ts: int(last.timestamp),
            ..channel.clone()
        };
        self.change(|db| {
            let id = put(db, &so_far)?;
            let mut insert = db.prepare_cached(schema::MESSAGE_INSERT)?;
            for message in messages {
                let (seq, ts) = (int(message.sequence), int(message.timestamp));
                let (msg_id, publisher, data) = (&*message.id, &*message.publisher, &*message.data);
                insert.execute(params![id, seq, ts, msg_id, publisher, data])?;
            }
            Ok(())
        })
    }

    fn finish(&mut self, channel: &ArchivedChannel) -> Result<(), BackendError> {
        self.change(|db| put(db, channel).map(|_| ()))
    }
}

fn id_of(db: &Connection, channel: &ArchivedChannel) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached(schema::CHANNEL_BY_NAME)?
        .query_row([&channel.app, &channel.name], |row| row.get(0))
        .optional()
}

/// Makes the channel, or brings it to this state; returns its id.
fn put(db: &Connection, channel: &ArchivedChannel) -> rusqlite::Result<i64> {
    let id = match id_of(db, channel)? {
        Some(id) => id,
        None => {
            let max = db
                .prepare_cached(schema::CHANNEL_ID_MAX)?
                .query_row([], |row| row.get::<_, Option<i64>>(0))?;
            max.unwrap_or(0) + 1
        }
    };
    db.prepare_cached(
        "INSERT OR REPLACE INTO channels
         (id, epoch, last_seq, last_ts, gone_seq, gone_ts, messages_max, age_ms, app, name)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        id,
        channel.epoch,
        channel.last_seq,
        channel.last_ts,
        channel.gone_seq,
        channel.gone_ts,
        channel.messages_max,
        channel.age_ms,
        channel.app,
        channel.name
    ])?;
    Ok(id)
}

fn channel(row: &Row<'_>) -> rusqlite::Result<ArchivedChannel> {
    Ok(ArchivedChannel {
        app: row.get(0)?,
        name: row.get(1)?,
        epoch: row.get(2)?,
        last_seq: row.get(3)?,
        last_ts: row.get(4)?,
        gone_seq: row.get(5)?,
        gone_ts: row.get(6)?,
        messages_max: row.get(7)?,
        age_ms: row.get(8)?,
    })
}
