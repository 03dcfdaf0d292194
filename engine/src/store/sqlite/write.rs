//! The writer's transaction: appends and clearings, one row per message, one row per channel touched.

use rusqlite::{CachedStatement, Connection, params};
use shardwire_proto::record::{Change, Record, Retention, StoreOp, StoredChannel, Sync};

use super::channels::{ChannelCache, ChannelRow};
use super::{Applied, Error, int, retention, schema, uint};

/// Rows that a batch may delete for each message it adds, and besides: trimming keeps pace, and no batch pays for a
/// retention that was cut down or a channel that was cleared. Expiry does the rest.
const TRIM_PER_APPEND: i64 = 2;
const TRIM_BESIDES: i64 = 1024;

/// The strictest level any of them asks for.
pub(super) fn sync_of(ops: &[StoreOp]) -> Sync {
    let levels = ops.iter().map(|op| match &op.change {
        Change::Append { retention, .. } => retention.sync,
        Change::Clear => Sync::Process,
    });
    levels.max().unwrap_or_default()
}

/// Does a batch inside of a transaction.
pub(super) fn apply(
    db: &Connection,
    channels: &mut ChannelCache,
    ops: &[StoreOp],
    now: i64,
) -> Result<Applied, Error> {
    channels.make_room();
    let mut batch = Batch {
        db,
        insert: db.prepare_cached(schema::MESSAGE_INSERT)?,
        touched: Vec::new(),
        added: 0,
    };
    let mut applied = Applied::default();
    for (index, op) in ops.iter().enumerate() {
        match &op.change {
            Change::Append { record, retention } => {
                batch.append(channels, &op.channel, record, *retention)?;
            }
            Change::Clear => {
                let removed = batch.clear(channels, &op.channel, now)?;
                applied.removed.push((index, removed));
            }
        }
    }
    batch.finish(channels)?;
    Ok(applied)
}

struct Batch<'ops, 'db> {
    db: &'db Connection,
    insert: CachedStatement<'db>,
    /// Channels to be stored, with their index in the cache.
    touched: Vec<(&'ops StoredChannel, usize)>,
    /// Messages added.
    added: i64,
}

impl<'ops> Batch<'ops, '_> {
    fn append(
        &mut self,
        channels: &mut ChannelCache,
        channel: &'ops StoredChannel,
        record: &Record,
        retention: Retention,
    ) -> Result<(), Error> {
        let index = match channels.find(self.db, channel)? {
            Some(index) => index,
            None => channels.create(self.db, channel)?,
        };
        let slot = channels.slot(index);
        let row = &mut slot.row;
        let (seq, ts) = (int(record.sequence), int(record.timestamp));
        if seq != row.last_seq + 1 || ts < row.last_ts || channel.epoch != row.epoch {
            return Err(contradiction(channel, row, record));
        }
        let (id, publisher, data) = (&*record.id, &*record.publisher, &*record.data);
        self.insert
            .execute(params![row.id, seq, ts, id, publisher, data])?;
        (row.last_seq, row.last_ts) = (seq, ts);
        (row.messages_max, row.age_ms) = (int(retention.messages_max), int(retention.age_ms));
        self.added += 1;
        self.touch(channels, channel, index);
        Ok(())
    }

    /// Number of messages that readers could have got until now. Rows go in pieces, see [`Self::finish`].
    fn clear(
        &mut self,
        channels: &mut ChannelCache,
        channel: &'ops StoredChannel,
        now: i64,
    ) -> Result<u64, Error> {
        let Some(index) = channels.find(self.db, channel)? else {
            return Ok(0);
        };
        let row = &mut channels.slot(index).row;
        let (gone, _) = retention::gone_at(self.db, row, now)?;
        (row.gone_seq, row.gone_ts) = (row.last_seq, row.last_ts);
        let removed = row.last_seq - gone;
        self.touch(channels, channel, index);
        Ok(uint(removed))
    }

    fn touch(&mut self, channels: &mut ChannelCache, channel: &'ops StoredChannel, index: usize) {
        if !std::mem::replace(&mut channels.slot(index).touched, true) {
            self.touched.push((channel, index));
        }
    }

    /// Trims and stores the channels touched.
    fn finish(self, channels: &mut ChannelCache) -> Result<(), Error> {
        let mut rows_max = TRIM_BESIDES + TRIM_PER_APPEND * self.added;
        for (channel, index) in self.touched {
            let slot = channels.slot(index);
            slot.touched = false;
            let target = retention::too_many(&slot.row);
            rows_max -= retention::purge(self.db, &mut slot.row, target, rows_max)?;
            if std::mem::replace(&mut slot.stored, true) {
                slot.row.update(self.db)?;
            } else {
                slot.row.insert(self.db, &channel.app, &channel.name)?;
            }
        }
        Ok(())
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
