//! Deletes what retention no longer covers, in the order of arrival, round and round. Readers do not wait for it.
//!
//! A round walks over all messages and deletes those that are gone. It begins when so many have been appended that it is
//! worth it, and then each append pays for a few steps of it: the file grows to about twice what is visible, whatever the
//! rate. It also begins after a while, and then goes on in the writer's spare time.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::channels::ChannelCache;
use super::{Error, Expired, retention, schema, uint};

/// Messages looked at between two looks at the clock. Large ones have many pages, so few.
const ROWS_PER_LOOK: i64 = 64;
/// Messages looked at for each one appended, while a round is on. Above 1, or a round would never end.
const ROWS_PER_APPEND: i64 = 3;
/// Appends since the last round that make a round worth it: this many, and a quarter of what was left then.
const APPENDED_MIN: i64 = 65_536;
/// From a round to the next in any case, ms. Doubled after one that has found little, halved after one that has found
/// much: a large file with long retention is not read again and again.
const REST_MS_MIN: i64 = 30_000;
const REST_MS_MAX: i64 = 3_600_000;

/// Where the sweep is. Not on disk: a start begins with a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sweep {
    /// A round is on; otherwise the next is due at `next_ms`.
    running: bool,
    pub(super) next_ms: i64,
    rest_ms: i64,
    /// Id of the message that was looked at last; of this round.
    position: i64,
    /// Messages deleted and left in this round.
    deleted: i64,
    left: i64,
    /// Messages left by the last round, and appended since it began.
    left_before: i64,
    appended: i64,
}

impl Default for Sweep {
    fn default() -> Self {
        Self {
            running: false,
            next_ms: 0,
            rest_ms: REST_MS_MIN,
            position: 0,
            deleted: 0,
            left: 0,
            left_before: 0,
            appended: 0,
        }
    }
}

impl Sweep {
    /// Takes note of appended messages, and does what they pay for. Changed channels are left to be stored.
    pub(super) fn on_appended(
        &mut self,
        db: &Connection,
        channels: &mut ChannelCache,
        added: i64,
        now: i64,
    ) -> Result<(), Error> {
        self.appended += added;
        if !self.running && self.appended > APPENDED_MIN.max(self.left_before / 4) {
            self.begin();
        }
        if self.running {
            self.look(db, channels, ROWS_PER_APPEND * added, now)?;
        }
        Ok(())
    }

    /// Whether there is something to do at `now`.
    pub(super) fn is_due(&self, now: i64) -> bool {
        self.running || now >= self.next_ms
    }

    /// Sweeps for about `budget`.
    pub(super) fn step(
        &mut self,
        db: &Connection,
        channels: &mut ChannelCache,
        now: i64,
        budget: Duration,
    ) -> Result<Expired, Error> {
        let started = Instant::now();
        let mut messages = 0;
        if !self.running {
            self.begin();
        }
        while self.running && started.elapsed() < budget {
            messages += self.look(db, channels, ROWS_PER_LOOK, now)?;
        }
        channels.store(db)?;
        Ok(Expired {
            messages: uint(messages),
            round_done: !self.running,
        })
    }

    fn begin(&mut self) {
        self.running = true;
        (self.position, self.deleted, self.left, self.appended) = (0, 0, 0, 0);
    }

    fn end(&mut self, now: i64) {
        self.running = false;
        self.left_before = self.left;
        let seen = self.deleted + self.left;
        if self.deleted < seen / 20 {
            self.rest_ms *= 2;
        } else if self.deleted > seen / 5 {
            self.rest_ms /= 2;
        }
        self.rest_ms = self.rest_ms.clamp(REST_MS_MIN, REST_MS_MAX);
        self.next_ms = now.saturating_add(self.rest_ms);
    }

    /// Looks at the next `rows` messages; ends the round where there are fewer. Returns how many it has deleted.
    fn look(
        &mut self,
        db: &Connection,
        channels: &mut ChannelCache,
        rows: i64,
        now: i64,
    ) -> Result<i64, Error> {
        let mut select = db.prepare_cached(schema::MESSAGES_AFTER_ID)?;
        let next = select.query_map([self.position, rows], |row| {
            Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
        })?;
        // Collected, because a table that is being read should not be changed.
        let next = next.collect::<Result<Vec<[i64; 4]>, _>>()?;
        let mut delete = db.prepare_cached(schema::MESSAGE_DELETE)?;
        let deleted_before = self.deleted;
        for [id, channel, seq, ts] in &next {
            self.position = *id;
            let index = channels.find_id(db, *channel)?;
            if index.is_some_and(|index| !retention::is_gone(channels.row(index), *seq, *ts, now)) {
                self.left += 1;
                continue;
            }
            delete.execute([id])?;
            self.deleted += 1;
            if let Some(index) = index.filter(|index| *seq > channels.row(*index).gone_seq) {
                let row = channels.change(index);
                (row.gone_seq, row.gone_ts) = (*seq, *ts);
            }
        }
        if (next.len() as i64) < rows {
            self.end(now);
        }
        Ok(self.deleted - deleted_before)
    }
}
