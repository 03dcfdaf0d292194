//! What of a channel is gone at an instant, whether or not its rows are still there.

use rusqlite::{CachedStatement, Connection};

use super::channels::ChannelRow;
use super::{Error, schema};

/// Looks up timestamps of one channel.
pub(super) struct Times<'db> {
    select: CachedStatement<'db>,
    channel: i64,
}

impl<'db> Times<'db> {
    pub(super) fn new(db: &'db Connection, row: &ChannelRow) -> Result<Self, Error> {
        Ok(Self {
            select: db.prepare_cached(schema::TS_AT)?,
            channel: row.id,
        })
    }

    /// Timestamp of a message whose row is there.
    pub(super) fn at(&mut self, seq: i64) -> Result<i64, Error> {
        Ok(self
            .select
            .query_row([self.channel, seq], |row| row.get(0))?)
    }

    /// The first of `seqs` (both ends included) whose timestamp is above `ts`; one past the end where none is.
    /// Timestamps never fall, so this is a binary search.
    pub(super) fn first_above(&mut self, seqs: (i64, i64), ts: i64) -> Result<i64, Error> {
        let (mut low, mut high) = (seqs.0, seqs.1.max(seqs.0 - 1) + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.at(middle)? > ts {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Ok(low)
    }
}

/// Sequence and timestamp of the newest message that is gone at `now`, deleted or not; 0 where none is.
pub(super) fn gone_at(db: &Connection, row: &ChannelRow, now: i64) -> Result<(i64, i64), Error> {
    let too_many = row.last_seq - row.messages_max.min(row.last_seq);
    let gone = gone_by_age(db, row, now)?.max(too_many);
    if gone <= row.gone_seq {
        return Ok((row.gone_seq, row.gone_ts));
    }
    let ts = if gone == row.last_seq {
        row.last_ts
    } else {
        Times::new(db, row)?.at(gone)?
    };
    Ok((gone, ts))
}

/// The newest message as old as the retention's age, or `gone_seq` where none is.
fn gone_by_age(db: &Connection, row: &ChannelRow, now: i64) -> Result<i64, Error> {
    let newest_gone_ts = now.saturating_sub(row.age_ms);
    if row.last_ts <= newest_gone_ts {
        return Ok(row.last_seq);
    }
    let oldest = row.gone_seq + 1;
    let mut times = Times::new(db, row)?;
    // Mostly the oldest is young enough: one look instead of a search.
    if oldest > row.last_seq || times.at(oldest)? > newest_gone_ts {
        return Ok(row.gone_seq);
    }
    Ok(times.first_above((oldest, row.last_seq), newest_gone_ts)? - 1)
}

/// Whether a message is gone at `now`. If it is, those before it in its channel are, too.
pub(super) fn is_gone(row: &ChannelRow, seq: i64, ts: i64, now: i64) -> bool {
    seq <= row.gone_seq
        || seq <= row.last_seq - row.messages_max.min(row.last_seq)
        || ts <= now.saturating_sub(row.age_ms)
}
