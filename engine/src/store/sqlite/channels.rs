//! Rows of the channels table, and the writer's memory of those it has used lately.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use shardwire_proto::record::StoredChannel;

use super::{Error, schema};

/// Channels remembered, about 250 bytes each. Past it all are forgotten: a miss costs one look-up by name.
const CHANNELS_CACHED_MAX: usize = 1 << 17;

/// A channel, as in [`schema`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChannelRow {
    pub(super) id: i64,
    pub(super) epoch: Box<str>,
    pub(super) last_seq: i64,
    pub(super) last_ts: i64,
    pub(super) gone_seq: i64,
    pub(super) gone_ts: i64,
    pub(super) floor_seq: i64,
    pub(super) messages_max: i64,
    pub(super) age_ms: i64,
}

impl ChannelRow {
    /// A channel without messages.
    pub(super) fn new(id: i64, epoch: Box<str>) -> Self {
        Self {
            id,
            epoch,
            last_seq: 0,
            last_ts: 0,
            gone_seq: 0,
            gone_ts: 0,
            floor_seq: 0,
            messages_max: 0,
            age_ms: 0,
        }
    }

    pub(super) fn by_name(db: &Connection, app: &str, name: &str) -> Result<Option<Self>, Error> {
        let mut select = db.prepare_cached(schema::CHANNEL_BY_NAME)?;
        Ok(select.query_row([app, name], Self::from_row).optional()?)
    }

    pub(super) fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            epoch: row.get_ref(1)?.as_str()?.into(),
            last_seq: row.get(2)?,
            last_ts: row.get(3)?,
            gone_seq: row.get(4)?,
            gone_ts: row.get(5)?,
            floor_seq: row.get(6)?,
            messages_max: row.get(7)?,
            age_ms: row.get(8)?,
        })
    }

    pub(super) fn insert(&self, db: &Connection, app: &str, name: &str) -> Result<(), Error> {
        db.prepare_cached(schema::CHANNEL_INSERT)?.execute(params![
            self.id,
            self.epoch,
            self.last_seq,
            self.last_ts,
            self.gone_seq,
            self.gone_ts,
            self.floor_seq,
            self.messages_max,
            self.age_ms,
            app,
            name
        ])?;
        Ok(())
    }

    pub(super) fn update(&self, db: &Connection) -> Result<(), Error> {
        db.prepare_cached(schema::CHANNEL_UPDATE)?.execute(params![
            self.id,
            self.last_seq,
            self.last_ts,
            self.gone_seq,
            self.gone_ts,
            self.floor_seq,
            self.messages_max,
            self.age_ms
        ])?;
        Ok(())
    }
}

/// Channels by name, as the writer's last transaction has left them. Cleared when a transaction fails.
#[derive(Debug, Default)]
pub(super) struct ChannelCache {
    /// App, then name, to an index into `slots`.
    by_name: HashMap<Arc<str>, HashMap<Arc<str>, usize>>,
    slots: Vec<Slot>,
    /// The highest id given, once known.
    id_max: Option<i64>,
}

/// A channel in the cache.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) row: ChannelRow,
    /// It has a row in the table.
    pub(super) stored: bool,
    /// The transaction in the making has changed it.
    pub(super) touched: bool,
}

impl ChannelCache {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps the cache within its bound. Between transactions only: indexes end here.
    pub(super) fn make_room(&mut self) {
        if self.slots.len() >= CHANNELS_CACHED_MAX {
            self.clear();
        }
    }

    pub(super) fn slot(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index]
    }

    /// Index of a channel, read from the table where it is not known; `None` where it is not there either.
    pub(super) fn find(
        &mut self,
        db: &Connection,
        channel: &StoredChannel,
    ) -> Result<Option<usize>, Error> {
        let known = self.by_name.get(&channel.app);
        if let Some(index) = known.and_then(|names| names.get(&channel.name)) {
            return Ok(Some(*index));
        }
        let row = ChannelRow::by_name(db, &channel.app, &channel.name)?;
        Ok(row.map(|row| self.insert(channel, row, true)))
    }

    /// Adds a channel that is not in the table; it gets its row when the transaction ends.
    pub(super) fn create(
        &mut self,
        db: &Connection,
        channel: &StoredChannel,
    ) -> Result<usize, Error> {
        let id_max = match self.id_max {
            Some(id) => id,
            None => db
                .prepare_cached(schema::CHANNEL_ID_MAX)?
                .query_row([], |row| row.get::<_, Option<i64>>(0))?
                .unwrap_or(0),
        };
        self.id_max = Some(id_max + 1);
        let row = ChannelRow::new(id_max + 1, channel.epoch.clone());
        Ok(self.insert(channel, row, false))
    }

    /// Puts a row that was changed behind the cache's back into it, where it is known.
    pub(super) fn replace(&mut self, app: &str, name: &str, row: ChannelRow) {
        let known = self.by_name.get(app).and_then(|names| names.get(name));
        if let Some(index) = known {
            self.slots[*index].row = row;
        }
    }

    fn insert(&mut self, channel: &StoredChannel, row: ChannelRow, stored: bool) -> usize {
        let index = self.slots.len();
        let names = self.by_name.entry(channel.app.clone()).or_default();
        names.insert(channel.name.clone(), index);
        self.slots.push(Slot {
            row,
            stored,
            touched: false,
        });
        index
    }
}
