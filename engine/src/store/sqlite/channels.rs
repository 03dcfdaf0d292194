//! Rows of the channels table, and the writer's memory of those it has used lately.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use shardwire_proto::record::StoredChannel;

use super::{Error, schema};

/// Channels remembered, about 300 bytes each. Past it all are forgotten: a miss costs one look-up by name.
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
            messages_max: row.get(6)?,
            age_ms: row.get(7)?,
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
            self.messages_max,
            self.age_ms
        ])?;
        Ok(())
    }
}

/// Channels as the writer's transactions have left them. Cleared when one fails.
#[derive(Debug, Default)]
pub(super) struct ChannelCache {
    /// App, then name, to an index into `slots`.
    by_name: HashMap<Arc<str>, HashMap<Arc<str>, usize>>,
    by_id: HashMap<i64, usize>,
    slots: Vec<Slot>,
    /// Indexes of the channels that the transaction in the making has changed.
    touched: Vec<usize>,
    /// The highest id given, once known.
    id_max: Option<i64>,
}

#[derive(Debug)]
struct Slot {
    row: ChannelRow,
    /// What the row is to be inserted with; `None` once it is in the table.
    unstored: Option<(Arc<str>, Arc<str>)>,
    touched: bool,
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

    /// A channel, to be read.
    pub(super) fn row(&self, index: usize) -> &ChannelRow {
        &self.slots[index].row
    }

    /// A channel, to be changed: [`Self::store`] writes it.
    pub(super) fn change(&mut self, index: usize) -> &mut ChannelRow {
        let slot = &mut self.slots[index];
        if !std::mem::replace(&mut slot.touched, true) {
            self.touched.push(index);
        }
        &mut slot.row
    }

    /// Writes what was changed since the last call.
    pub(super) fn store(&mut self, db: &Connection) -> Result<(), Error> {
        for index in std::mem::take(&mut self.touched) {
            let slot = &mut self.slots[index];
            slot.touched = false;
            match slot.unstored.take() {
                Some((app, name)) => slot.row.insert(db, &app, &name)?,
                None => slot.row.update(db)?,
            }
        }
        Ok(())
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
        Ok(row.map(|row| self.insert(&channel.app, &channel.name, row)))
    }

    /// As [`Self::find`], by id.
    pub(super) fn find_id(&mut self, db: &Connection, id: i64) -> Result<Option<usize>, Error> {
        if let Some(index) = self.by_id.get(&id) {
            return Ok(Some(*index));
        }
        let mut select = db.prepare_cached(schema::CHANNEL_BY_ID)?;
        let found = select.query_row([id], |row| {
            let app: Arc<str> = row.get_ref(8)?.as_str()?.into();
            let name: Arc<str> = row.get_ref(9)?.as_str()?.into();
            Ok((ChannelRow::from_row(row)?, app, name))
        });
        let found = found.optional()?;
        Ok(found.map(|(row, app, name)| self.insert(&app, &name, row)))
    }

    /// Adds a channel that is not in the table. It gets its row when it has been changed.
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
        let index = self.insert(&channel.app, &channel.name, row);
        self.slots[index].unstored = Some((channel.app.clone(), channel.name.clone()));
        Ok(index)
    }

    fn insert(&mut self, app: &Arc<str>, name: &Arc<str>, row: ChannelRow) -> usize {
        let index = self.slots.len();
        let names = self.by_name.entry(app.clone()).or_default();
        names.insert(name.clone(), index);
        self.by_id.insert(row.id, index);
        self.slots.push(Slot {
            row,
            unstored: None,
            touched: false,
        });
        index
    }
}
