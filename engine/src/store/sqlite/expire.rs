//! Deletes what retention no longer covers, channel by channel, round and round. Readers do not wait for it.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use super::channels::{ChannelCache, ChannelRow};
use super::{Error, Expired, retention, schema, uint};

/// Rows deleted between two looks at the clock. Large messages have many pages, so few.
const ROWS_PER_LOOK: i64 = 64;

/// One step, inside of a transaction. `position` is the id of the channel that was looked at last, 0 at the start of a
/// round; it is moved.
pub(super) fn step(
    db: &Connection,
    channels: &mut ChannelCache,
    position: &mut i64,
    now: i64,
    budget: Duration,
) -> Result<Expired, Error> {
    let started = Instant::now();
    let mut expired = Expired::default();
    while !expired.round_done && started.elapsed() < budget {
        let next = db
            .prepare_cached(schema::CHANNEL_AFTER_ID)?
            .query_row([*position], |row| {
                let channel = ChannelRow::from_row(row)?;
                Ok((
                    channel,
                    row.get::<_, Box<str>>(9)?,
                    row.get::<_, Box<str>>(10)?,
                ))
            })
            .optional()?;
        let Some((mut row, app, name)) = next else {
            *position = 0;
            expired.round_done = true;
            break;
        };
        let target = retention::gone_by_age(db, &row, now)?.max(retention::too_many(&row));
        let before = row.floor_seq;
        while row.floor_seq < target && started.elapsed() < budget {
            let deleted = retention::purge(db, &mut row, target, ROWS_PER_LOOK)?;
            expired.messages += uint(deleted);
        }
        if row.floor_seq >= target {
            *position = row.id;
        }
        if row.floor_seq > before {
            row.update(db)?;
            channels.replace(&app, &name, row);
        }
    }
    Ok(expired)
}
