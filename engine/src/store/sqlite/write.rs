//! The writer's transaction: appends and clearings, one row per message, one row per channel touched.

use rusqlite::{CachedStatement, Connection, params};
use shardwire_proto::record::{Change, Record, Retention, StoreOp, StoredChannel, Sync};

use super::channels::{ChannelCache, ChannelRow};
use super::sweep::Sweep;
use super::{Applied, Error, int, retention, schema, uint};

/// The strictest level any of them asks for.
pub(super) fn sync_of(ops: &[StoreOp]) -> Sync {
    let levels = ops.iter().map(|op| match &op.change {
        Change::Append { retention, .. } => retention.sync,
        Change::Clear => Sync::Process,
    });
    levels.max().unwrap_or_default()
}

/// Does a batch inside of a transaction, and the part of the sweep that its appends have to pay.
pub(super) fn apply(
    db: &Connection,
    channels: &mut ChannelCache,
    sweep: &mut Sweep,
    ops: &[StoreOp],
    now: i64,
) -> Result<Applied, Error> {
    let mut batch = Batch {
        db,
        channels,
        insert: db.prepare_cached(schema::MESSAGE_INSERT)?,
    };
    let mut applied = Applied::default();
    let mut added = 0;
    for (index, op) in ops.iter().enumerate() {
        match &op.change {
            Change::Append { record, retention } => {
                batch.append(&op.channel, record, *retention)?;
                added += 1;
            }
            Change::Clear => {
                let removed = batch.clear(&op.channel, now)?;
                applied.removed.push((index, removed));
            }
        }
    }
    drop(batch);
    sweep.on_appended(db, channels, added, now)?;
    channels.store(db)?;
    Ok(applied)
}

struct Batch<'a> {
    db: &'a Connection,
    channels: &'a mut ChannelCache,
    insert: CachedStatement<'a>,
}

impl Batch<'_> {
    fn append(
        &mut self,
        channel: &StoredChannel,
        record: &Record,
        retention: Retention,
    ) -> Result<(), Error> {
        let index = match self.channels.find(self.db, channel)? {
            Some(index) => index,
            None => self.channels.create(self.db, channel)?,
        };
        let row = self.channels.change(index);
        let (seq, ts) = (int(record.sequence), int(record.timestamp));
        if seq != row.last_seq + 1 || ts < row.last_ts || channel.epoch != row.epoch {
            return Err(contradiction(channel, row, record));
        }
        let (id, publisher, data) = (&*record.id, &*record.publisher, &*record.data);
        self.insert
            .execute(params![row.id, seq, ts, id, publisher, data])?;
        (row.last_seq, row.last_ts) = (seq, ts);
        (row.messages_max, row.age_ms) = (int(retention.messages_max), int(retention.age_ms));
        Ok(())
    }

    /// Number of messages that readers could have got until now. Their rows go when they are swept.
    fn clear(&mut self, channel: &StoredChannel, now: i64) -> Result<u64, Error> {
        let Some(index) = self.channels.find(self.db, channel)? else {
            return Ok(0);
        };
        let (gone, _) = retention::gone_at(self.db, self.channels.row(index), now)?;
        let row = self.channels.change(index);
        (row.gone_seq, row.gone_ts) = (row.last_seq, row.last_ts);
        Ok(uint(row.last_seq - gone))
    }
}

/// Says what was expected and what came.
fn contradiction(channel: &StoredChannel, row: &ChannelRow, record: &Record) -> Error {
    Error::Order(format!(
        "app {:?}, channel {:?}: message {} at {} of numbering {:?} does not follow {} at {} of {:?}",
        channel.app,
        channel.name,
        record.sequence,
        record.timestamp,
        channel.epoch,
        row.last_seq,
        row.last_ts,
        row.epoch
    ))
}
