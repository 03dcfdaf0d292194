//! What apps have used, by minute, hour and day: kept in an SQLite file of its own (`usage.db`), or in MongoDB
//! ([`crate::mongo::usage`]).
//!
//! Invariants: a minute, its hour and its day are changed in one transaction; what a commit has confirmed survives the
//! end of the process at any moment (a power cut may take the last seconds).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use shardwire_proto::quota::{Totals, first_day_of, month_of};

use crate::sqlite_file::{Form, told};

/// How long somebody else may be in the way: a backup, or an operator's shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Points of a series in one answer.
pub(crate) const POINTS_MAX: usize = 5000;

const FORM: Form = Form {
    // "SHUS".
    application_id: 0x5348_5553,
    version: 2,
    schema: "
    CREATE TABLE usage (
        app         TEXT    NOT NULL,
        step        INTEGER NOT NULL, -- seconds that a row stands for
        start       INTEGER NOT NULL, -- Unix s
        messages    INTEGER NOT NULL,
        deliveries  INTEGER NOT NULL,
        refused     INTEGER NOT NULL,
        connections INTEGER NOT NULL, -- most at a time, as seen once a second
        channels    INTEGER NOT NULL, -- likewise
        push_sent   INTEGER NOT NULL DEFAULT 0,
        push_failed INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (app, step, start)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX usage_by_age ON usage (step, start);
",
};

/// Makes a file of version 1, which knew nothing of notifications, one of this version.
const UPGRADE_FROM_1: &str = "
    BEGIN;
    ALTER TABLE usage ADD COLUMN push_sent INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE usage ADD COLUMN push_failed INTEGER NOT NULL DEFAULT 0;
    PRAGMA user_version = 2;
    COMMIT;
";

/// Columns in the order in which they are read and written, behind the row's key.
const NUMBERS: &str =
    "messages, deliveries, refused, connections, channels, push_sent, push_failed";

/// How finely usage is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    Minute,
    Hour,
    Day,
}

impl Step {
    pub(crate) const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// Seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => 24 * 3600,
        }
    }

    /// Seconds that rows of it are kept: 2 days, 60 days, 2 years.
    pub(crate) const fn kept_s(self) -> u64 {
        let days = match self {
            Self::Minute => 2,
            Self::Hour => 60,
            Self::Day => 731,
        };
        days * 24 * 3600
    }
}

/// One app's usage of a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Used {
    /// Accepted messages.
    pub messages: u64,
    /// Messages put into subscribers' outboxes.
    pub deliveries: u64,
    /// What was refused for a limit.
    pub refused: u64,
    /// Most connections at a time.
    pub connections_peak: u64,
    /// Most channels with subscribers at a time.
    pub channels_peak: u64,
    /// Notifications that a push provider has taken.
    pub push_sent: u64,
    /// Notifications that were refused or given up.
    pub push_failed: u64,
}

impl Used {
    /// Takes in more of the same time.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.deliveries += other.deliveries;
        self.refused += other.refused;
        self.connections_peak = self.connections_peak.max(other.connections_peak);
        self.channels_peak = self.channels_peak.max(other.channels_peak);
        self.push_sent += other.push_sent;
        self.push_failed += other.push_failed;
    }

    /// From a row with [`NUMBERS`] from its column `first` on.
    fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        let number = |at: usize| row.get(first + at);
        Ok(Self {
            messages: number(0)?,
            deliveries: number(1)?,
            refused: number(2)?,
            connections_peak: number(3)?,
            channels_peak: number(4)?,
            push_sent: number(5)?,
            push_failed: number(6)?,
        })
    }
}

/// A row of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// Unix ms of its beginning.
    pub start_ms: u64,
    #[serde(flatten)]
    pub used: Used,
}

/// What waits to be written, by app and minute (Unix s).
pub(crate) type Unwritten = BTreeMap<(Arc<str>, u64), Used>;

/// Where usage is kept, owned by one thread. The texts of errors are for the operator.
pub(crate) trait Series: Send {
    /// What every app has used of a day and its month.
    ///
    /// # Errors
    /// It cannot be read.
    fn totals(&mut self, day: u32) -> Result<HashMap<Arc<str>, Totals>, String>;

    /// Adds what was used at a time to its minute, hour and day: all of it or nothing.
    ///
    /// # Errors
    /// Nothing was added.
    fn add(&mut self, used: &Unwritten) -> Result<(), String>;

    /// One app's series from one time to another (Unix ms, the end not included), at most [`POINTS_MAX`] of it.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(
        &mut self,
        app: &str,
        step: Step,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Vec<Point>, String>;

    /// Removes rows that are older than they are kept.
    ///
    /// # Errors
    /// Nothing, or not all, was removed.
    fn forget_old(&mut self, now_s: u64) -> Result<(), String>;
}

/// The open file.
#[derive(Debug)]
pub(crate) struct SqliteSeries {
    db: Connection,
}

impl SqliteSeries {
    /// Opens the file, and makes it where it is missing.
    ///
    /// # Errors
    /// It cannot be used; the text is for the operator.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let db = Connection::open(path).map_err(told)?;
        db.busy_timeout(BUSY_TIMEOUT).map_err(told)?;
        db.pragma_update(None, "journal_mode", "WAL")
            .map_err(told)?;
        db.pragma_update(None, "synchronous", "NORMAL")
            .map_err(told)?;
        let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let found = (
            pragma("application_id").map_err(told)?,
            pragma("user_version").map_err(told)?,
        );
        if found == (FORM.application_id, 1) {
            db.execute_batch(UPGRADE_FROM_1).map_err(told)?;
        }
        FORM.apply(&db)?;
        Ok(Self { db })
    }

    /// All rows behind one, in order: app, seconds of the step, Unix s of the start, and what was used.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) fn rows(&self, after: &RowKey, limit: usize) -> Result<Vec<(RowKey, Used)>, String> {
        let text = format!(
            "SELECT app, step, start, {NUMBERS} FROM usage
             WHERE (app, step, start) > (?1, ?2, ?3) ORDER BY app, step, start LIMIT ?4"
        );
        let mut query = self.db.prepare_cached(&text).map_err(told)?;
        let (app, step, start) = after;
        let rows = query.query_map(params![app, step, start, limit], |row| {
            let key = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((key, Used::read(row, 3)?))
        });
        rows.and_then(Iterator::collect).map_err(told)
    }

    /// Puts rows, whatever was there of their keys.
    ///
    /// # Errors
    /// None was put.
    pub(crate) fn put_rows(&mut self, rows: &[(RowKey, Used)]) -> Result<(), String> {
        let change = self.db.transaction().map_err(told)?;
        {
            let text = format!(
                "INSERT OR REPLACE INTO usage (app, step, start, {NUMBERS})
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
            );
            let mut put = change.prepare_cached(&text).map_err(told)?;
            for ((app, step, start), used) in rows {
                put.execute(params![
                    app,
                    step,
                    start,
                    used.messages,
                    used.deliveries,
                    used.refused,
                    used.connections_peak,
                    used.channels_peak,
                    used.push_sent,
                    used.push_failed,
                ])
                .map_err(told)?;
            }
        }
        change.commit().map_err(told)
    }
}

/// App, seconds of the step, and Unix s of the start.
pub(crate) type RowKey = (String, u64, u64);

impl Series for SqliteSeries {
    fn totals(&mut self, day: u32) -> Result<HashMap<Arc<str>, Totals>, String> {
        let start = |day: u32| u64::from(day) * Step::Day.seconds();
        let text = "SELECT app, sum(messages), sum(CASE WHEN start = ?2 THEN messages ELSE 0 END)
                    FROM usage WHERE step = ?1 AND start BETWEEN ?3 AND ?2 GROUP BY app";
        let mut query = self.db.prepare_cached(text).map_err(told)?;
        let first = start(first_day_of(month_of(day)));
        let rows = query.query_map(params![Step::Day.seconds(), start(day), first], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
        });
        let mut found = HashMap::new();
        for row in rows.map_err(told)? {
            let (app, messages_month, messages_day) = row.map_err(told)?;
            let totals = Totals {
                day,
                messages_day,
                messages_month,
            };
            found.insert(app.into(), totals);
        }
        Ok(found)
    }

    fn add(&mut self, used: &Unwritten) -> Result<(), String> {
        let change = self.db.transaction().map_err(told)?;
        {
            let text = format!(
                "INSERT INTO usage (app, step, start, {NUMBERS})
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT DO UPDATE SET messages = messages + ?4, deliveries = deliveries + ?5,
                 refused = refused + ?6, connections = max(connections, ?7), channels = max(channels, ?8),
                 push_sent = push_sent + ?9, push_failed = push_failed + ?10"
            );
            let mut add = change.prepare_cached(&text).map_err(told)?;
            for ((app, minute_s), used) in used {
                for step in Step::ALL {
                    let seconds = step.seconds();
                    add.execute(params![
                        &**app,
                        seconds,
                        minute_s - minute_s % seconds,
                        used.messages,
                        used.deliveries,
                        used.refused,
                        used.connections_peak,
                        used.channels_peak,
                        used.push_sent,
                        used.push_failed,
                    ])
                    .map_err(told)?;
                }
            }
        }
        change.commit().map_err(told)
    }

    fn read(
        &mut self,
        app: &str,
        step: Step,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Vec<Point>, String> {
        let text = format!(
            "SELECT start, {NUMBERS} FROM usage
             WHERE app = ?1 AND step = ?2 AND start >= ?3 AND start < ?4 ORDER BY start LIMIT ?5"
        );
        let mut query = self.db.prepare_cached(&text).map_err(told)?;
        let (from, to) = (from_ms / 1000, to_ms.div_ceil(1000).min(i64::MAX as u64));
        let from = from - from % step.seconds();
        let rows = query.query_map(params![app, step.seconds(), from, to, POINTS_MAX], |row| {
            Ok(Point {
                start_ms: row.get::<_, u64>(0)? * 1000,
                used: Used::read(row, 1)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(told)
    }

    fn forget_old(&mut self, now_s: u64) -> Result<(), String> {
        for step in Step::ALL {
            let before = now_s.saturating_sub(step.kept_s());
            self.db
                .execute(
                    "DELETE FROM usage WHERE step = ?1 AND start < ?2",
                    params![step.seconds(), before],
                )
                .map_err(told)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::testing::TestDatabase;
    use crate::mongo::usage::MongoSeries;

    /// 2026-11-24 00:00.
    const DAY: u32 = 20_781;
    const DAY_S: u64 = DAY as u64 * 86_400;

    fn used(messages: u64, connections_peak: u64) -> Used {
        Used {
            messages,
            connections_peak,
            ..Used::default()
        }
    }

    fn add(series: &mut dyn Series, app: &str, at_s: u64, part: Used) {
        let key = (Arc::from(app), at_s - at_s % 60);
        series.add(&[(key, part)].into()).unwrap();
    }

    fn sums_are_exact_at_every_step_and_after_opening_again(
        open: impl Fn() -> Box<dyn Series>,
        every_s: usize,
    ) {
        let mut series = open();
        for second in (0..7200).step_by(every_s) {
            add(&mut *series, "a", DAY_S + second, used(3, second));
        }
        add(&mut *series, "a", DAY_S - 1, used(1000, 0));
        add(&mut *series, "b", DAY_S, used(5, 0));
        drop(series);
        let mut series = open();
        let sum = 3 * 7200 / every_s as u64;
        for (step, points) in [(Step::Minute, 120), (Step::Hour, 2), (Step::Day, 1)] {
            let rows = series
                .read("a", step, DAY_S * 1000, (DAY_S + 86_400) * 1000)
                .unwrap();
            assert_eq!(rows.len(), points, "{step:?}");
            assert_eq!(rows.iter().map(|p| p.used.messages).sum::<u64>(), sum);
            let last = (7200 - every_s) as u64;
            assert_eq!(rows.last().unwrap().used.connections_peak, last);
        }
        let totals = series.totals(DAY).unwrap();
        assert_eq!(totals["a"].messages_day, sum);
        assert_eq!(totals["a"].messages_month, sum + 1000);
        assert_eq!(totals["b"].messages_day, 5);
    }

    fn notifications_are_added_up(mut series: Box<dyn Series>) {
        let part = Used {
            push_sent: 5,
            push_failed: 2,
            ..Used::default()
        };
        for second in [0, 30, 3600] {
            add(&mut *series, "a", DAY_S + second, part);
        }
        let day = series.read("a", Step::Day, 0, u64::MAX / 2).unwrap();
        assert_eq!((day[0].used.push_sent, day[0].used.push_failed), (15, 6));
        let hours = series.read("a", Step::Hour, 0, u64::MAX / 2).unwrap();
        assert_eq!(hours[0].used.push_sent, 10);
    }

    fn a_month_begins_anew_and_old_rows_go(mut series: Box<dyn Series>) {
        // 2026-10-31 and 2026-11-01.
        for day in [DAY - 24, DAY - 23] {
            add(&mut *series, "a", u64::from(day) * 86_400, used(1, 0));
        }
        assert_eq!(series.totals(DAY).unwrap()["a"].messages_month, 1);
        series.forget_old(DAY_S).unwrap();
        let mut all = |step| series.read("a", step, 0, u64::MAX / 2).unwrap().len();
        assert_eq!(
            (all(Step::Minute), all(Step::Hour), all(Step::Day)),
            (0, 2, 2)
        );
    }

    #[test]
    fn in_sqlite() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| -> Box<dyn Series> {
            Box::new(SqliteSeries::open(&folder.path().join(name)).unwrap())
        };
        sums_are_exact_at_every_step_and_after_opening_again(|| open("usage.db"), 10);
        a_month_begins_anew_and_old_rows_go(open("other.db"));
        notifications_are_added_up(open("push.db"));
    }

    #[test]
    fn a_file_of_version_1_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("usage.db");
        let before = Connection::open(&path).unwrap();
        let first = "
            CREATE TABLE usage (
                app         TEXT    NOT NULL,
                step        INTEGER NOT NULL,
                start       INTEGER NOT NULL,
                messages    INTEGER NOT NULL,
                deliveries  INTEGER NOT NULL,
                refused     INTEGER NOT NULL,
                connections INTEGER NOT NULL,
                channels    INTEGER NOT NULL,
                PRIMARY KEY (app, step, start)
            ) STRICT, WITHOUT ROWID;
            CREATE INDEX usage_by_age ON usage (step, start);
            INSERT INTO usage VALUES ('a', 86400, 0, 7, 8, 9, 1, 2);
            PRAGMA application_id = 0x53485553; PRAGMA user_version = 1;";
        before.execute_batch(first).unwrap();
        drop(before);
        for sent in [3, 6] {
            let mut series = SqliteSeries::open(&path).unwrap();
            let part = Used {
                push_sent: 3,
                ..Used::default()
            };
            add(&mut series, "a", 0, part);
            let day = series.read("a", Step::Day, 0, 1000).unwrap();
            assert_eq!((day[0].used.messages, day[0].used.refused), (7, 9));
            assert_eq!((day[0].used.push_sent, day[0].used.push_failed), (sent, 0));
        }
    }

    #[test]
    fn in_mongo() {
        if !TestDatabase::is_there() {
            return;
        }
        let database = TestDatabase::make();
        let open = || -> Box<dyn Series> { Box::new(MongoSeries::new(database.mongo.clone())) };
        sums_are_exact_at_every_step_and_after_opening_again(open, 60);
        let other = TestDatabase::make();
        a_month_begins_anew_and_old_rows_go(Box::new(MongoSeries::new(other.mongo.clone())));
        let third = TestDatabase::make();
        notifications_are_added_up(Box::new(MongoSeries::new(third.mongo.clone())));
    }
}
