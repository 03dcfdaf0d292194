//! Answers to questions, from one state of the file (contract D17).

use std::sync::Arc;

use rusqlite::{Connection, Row, params};
use shardwire_proto::record::{Loaded, Page, Question, Record, StoreAnswer, StoreRead};

use super::channels::ChannelRow;
use super::retention::{self, Times};
use super::{Error, int, schema, uint};
use crate::store::page::PageBuilder;

/// Inside of a transaction.
pub(super) fn answer(db: &Connection, read: &StoreRead, now: i64) -> Result<StoreAnswer, Error> {
    if let Question::ChangedSince { timestamp, limit } = read.question {
        return changed(db, (&read.app, &read.channel), timestamp, limit);
    }
    let row = ChannelRow::by_name(db, &read.app, &read.channel)?;
    let Some(row) = row else {
        return Ok(match read.question {
            Question::Load { .. } => StoreAnswer::Loaded(None),
            Question::Page(_) => StoreAnswer::Page {
                messages: Vec::new(),
                has_more: false,
            },
            Question::CountAt { .. } => StoreAnswer::Count(0),
            Question::ChangedSince { .. } => StoreAnswer::Channels(Vec::new()),
        });
    };
    let (gone_seq, gone_ts) = retention::gone_at(db, &row, now)?;
    let channel = Channel {
        db,
        row,
        gone_seq,
        gone_ts,
    };
    match read.question {
        Question::Load {
            messages_max,
            bytes_max,
            ids_after_ms,
        } => channel.load(messages_max, bytes_max, ids_after_ms),
        Question::Page(page) => channel.page(&page),
        Question::CountAt { timestamp } => channel.count_at(int(timestamp)),
        Question::ChangedSince { .. } => Ok(StoreAnswer::Channels(Vec::new())),
    }
}

fn changed(
    db: &Connection,
    (app, name): (&str, &str),
    timestamp: u64,
    limit: usize,
) -> Result<StoreAnswer, Error> {
    let mut select = db.prepare_cached(schema::CHANNELS_CHANGED)?;
    let limit = int(limit as u64);
    let rows = select.query_map(params![app, name, int(timestamp), limit], |row| {
        Ok((
            row.get_ref(0)?.as_str()?.into(),
            row.get_ref(1)?.as_str()?.into(),
        ))
    })?;
    Ok(StoreAnswer::Channels(rows.collect::<Result<_, _>>()?))
}

/// A channel at one instant.
struct Channel<'db> {
    db: &'db Connection,
    row: ChannelRow,
    /// Of the newest message that is gone: those behind it are all there.
    gone_seq: i64,
    gone_ts: i64,
}

impl Channel<'_> {
    fn load(
        self,
        messages_max: usize,
        bytes_max: usize,
        ids_after_ms: u64,
    ) -> Result<StoreAnswer, Error> {
        let mut newest = Vec::new();
        let mut bytes = 0;
        self.each(
            schema::BACKWARD,
            (self.gone_seq + 1, self.row.last_seq),
            |message| {
                bytes += message.weight();
                if newest.len() >= messages_max || bytes > bytes_max {
                    return false;
                }
                newest.push(Arc::new(message));
                true
            },
        )?;
        newest.reverse();
        Ok(StoreAnswer::Loaded(Some(Box::new(Loaded {
            recent_ids: self.ids(int(ids_after_ms))?,
            last_sequence: uint(self.row.last_seq),
            last_timestamp: uint(self.row.last_ts),
            gone_sequence: uint(self.gone_seq),
            gone_timestamp: uint(self.gone_ts),
            epoch: self.row.epoch,
            newest,
        }))))
    }

    /// Also of messages beyond retention, as long as their rows are there: an id is remembered for its window, not for
    /// its message. Ids of cleared messages are forgotten.
    fn ids(&self, not_before: i64) -> Result<Vec<(Box<str>, u64, u64)>, Error> {
        let rows = (self.row.gone_seq + 1, self.row.last_seq);
        let first =
            Times::new(self.db, &self.row)?.first_above(rows, not_before.saturating_sub(1))?;
        let mut select = self.db.prepare_cached(schema::IDS)?;
        let ids = select.query_map([self.row.id, first, self.row.last_seq], |row| {
            Ok((
                row.get_ref(0)?.as_str()?.into(),
                uint(row.get(1)?),
                uint(row.get(2)?),
            ))
        })?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    fn page(self, page: &Page) -> Result<StoreAnswer, Error> {
        let seqs = self.bounds(page)?;
        let mut builder = PageBuilder::new(page);
        let sql = if page.forward {
            schema::FORWARD
        } else {
            schema::BACKWARD
        };
        if seqs.0 <= seqs.1 {
            self.each(sql, seqs, |message| builder.add(message))?;
        }
        let messages = builder.finish();
        let given = messages.len();
        let asked = usize::try_from(seqs.1 - seqs.0 + 1).unwrap_or(0);
        Ok(StoreAnswer::Page {
            messages,
            has_more: given < asked,
        })
    }

    /// First and last sequence within a page's bounds; the first is above the last where there is none.
    fn bounds(&self, page: &Page) -> Result<(i64, i64), Error> {
        let (mut first, mut last) = (self.gone_seq + 1, self.row.last_seq);
        if let Some(after) = page.after_sequence {
            first = first.max(int(after).saturating_add(1));
        }
        if let Some(before) = page.before_sequence {
            last = last.min(int(before) - 1);
        }
        let mut times = Times::new(self.db, &self.row)?;
        if let Some(after) = page.after_ms {
            first = times.first_above((first, last), int(after))?;
        }
        if let Some(before) = page.before_ms {
            last = times.first_above((first, last), int(before) - 1)? - 1;
        }
        Ok((first, last))
    }

    fn count_at(self, timestamp: i64) -> Result<StoreAnswer, Error> {
        let mut times = Times::new(self.db, &self.row)?;
        let last = self.row.last_seq;
        let first = times.first_above((self.gone_seq + 1, last), timestamp.saturating_sub(1))?;
        let end = times.first_above((first, last), timestamp)?;
        Ok(StoreAnswer::Count(uint(end - first)))
    }

    /// Gives messages of `seqs` (both ends included) to `take`, until it says that it wants no more.
    fn each(
        &self,
        sql: &str,
        seqs: (i64, i64),
        mut take: impl FnMut(Record) -> bool,
    ) -> Result<(), Error> {
        let mut select = self.db.prepare_cached(sql)?;
        let mut rows = select.query(params![self.row.id, seqs.0, seqs.1])?;
        while let Some(row) = rows.next()? {
            if !take(record(row)?) {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        sequence: uint(row.get(0)?),
        timestamp: uint(row.get(1)?),
        id: row.get_ref(2)?.as_str()?.into(),
        publisher: row.get_ref(3)?.as_str()?.into(),
        data: row.get_ref(4)?.as_str()?.into(),
    })
}
