//! What SQLite does without a server: group commits of stored messages, one writing thread, one file.
//!
//! The floor beside which acknowledged publishes are measured (see `compare`). Tables, settings and retention have the
//! shape of the engine's store (`engine/src/store/sqlite`): each message is a row and an index entry, and goes when
//! enough others have come; the log is folded on a thread of its own. Numbering, sockets and JSON are not here. Prints
//! what `compare` reads of a load generator's report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use rusqlite::{Connection, params};
use rustix::time::{ClockId, clock_gettime};

const SETTINGS: &str = "
    PRAGMA page_size = 4096;
    PRAGMA journal_mode = WAL;
    PRAGMA wal_autocheckpoint = 0;
    PRAGMA journal_size_limit = 134217728;
    PRAGMA cache_size = -65536;
    PRAGMA temp_store = MEMORY;
";
const SCHEMA: &str = "
    CREATE TABLE channels (
        id INTEGER PRIMARY KEY, app TEXT NOT NULL, name TEXT NOT NULL, epoch TEXT NOT NULL,
        last_seq INTEGER NOT NULL, last_ts INTEGER NOT NULL, gone_seq INTEGER NOT NULL, gone_ts INTEGER NOT NULL,
        messages_max INTEGER NOT NULL, age_ms INTEGER NOT NULL, UNIQUE (app, name)
    ) STRICT;
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY, channel_id INTEGER NOT NULL, seq INTEGER NOT NULL, ts INTEGER NOT NULL,
        msg_id TEXT NOT NULL, publisher TEXT NOT NULL, data TEXT NOT NULL
    ) STRICT;
    CREATE INDEX messages_by_seq ON messages (channel_id, seq, ts);
";
const INSERT: &str = "INSERT INTO messages (id, channel_id, seq, ts, msg_id, publisher, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
const DELETE: &str = "DELETE FROM messages WHERE id <= ?1";
const UPDATE: &str = "UPDATE channels SET last_seq = ?2, last_ts = ?3 WHERE id = ?1";
/// The engine's default retention.
const MESSAGES_MAX: u64 = 1000;
/// Pages of log (64 MiB) at which it is folded into the database, and those that are left to the writer.
const LOG_PAGES: i64 = 16_384;
const REST_PAGES: i64 = 256;
/// Between two looks at the length of the log.
const LOG_LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest commit told apart, in µs.
const COMMIT_US_MAX: u64 = 60_000_000;

/// SQLite group commit without a server: stored messages per second.
#[derive(Parser)]
struct Options {
    /// Folder for the database, which is made anew and removed.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Messages per transaction.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Channels that they go to in turn.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
    /// Payload bytes.
    #[arg(short, long, default_value_t = 100)]
    size: usize,
    /// Seconds measured.
    #[arg(short, long, default_value_t = 5.0)]
    duration: f64,
    /// Seconds before that.
    #[arg(short, long, default_value_t = 1.0)]
    warmup: f64,
    /// What a commit survives.
    #[arg(long, value_enum, default_value_t = Sync::Process)]
    sync: Sync,
    /// Write the result as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sync {
    /// The end of the process: the engine's default.
    Process,
    /// A power cut: the log is synced at every commit.
    Disk,
}

/// The database under way.
struct Floor {
    db: Connection,
    channels: u64,
    data: String,
    written: u64,
    /// The rest of the log is the writer's to fold.
    rest: Arc<AtomicBool>,
}

impl Floor {
    fn create(path: &Path, options: &Options) -> anyhow::Result<Self> {
        let db = Connection::open(path)?;
        db.execute_batch(SETTINGS)?;
        db.execute_batch(match options.sync {
            Sync::Process => "PRAGMA synchronous = NORMAL",
            Sync::Disk => "PRAGMA synchronous = FULL",
        })?;
        db.execute_batch(SCHEMA)?;
        for channel in 1..=options.channels {
            let add =
                "INSERT INTO channels VALUES (?1, 'app', ?2, 'epoch', 0, 0, 0, 0, ?3, 86400000)";
            let name = format!("room:{channel}");
            db.execute(add, params![channel, name, MESSAGES_MAX as i64])?;
        }
        let (own, rest) = (Connection::open(path)?, Arc::new(AtomicBool::new(false)));
        let told = Arc::downgrade(&rest);
        std::thread::spawn(move || {
            // Ends with the writer.
            while let Some(rest) = told.upgrade() {
                fold(&own, &rest);
                drop(rest);
                std::thread::sleep(LOG_LOOK_EVERY);
            }
        });
        Ok(Self {
            db,
            channels: u64::from(options.channels),
            data: format!("\"{}\"", "x".repeat(options.size.saturating_sub(2))),
            written: 0,
            rest,
        })
    }

    /// One transaction; messages go to the channels in turn, as those of many publishers would.
    fn commit(&mut self, count: u32) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
        let (first, last) = (self.written, self.written + u64::from(count));
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let mut insert = self.db.prepare_cached(INSERT)?;
        for number in first..last {
            let (channel, seq) = (number % self.channels + 1, number / self.channels + 1);
            let msg_id = format!("0199c2d4-5a1e-7cc1-9a3b-{number:012x}");
            let (id, channel, seq) = (number as i64 + 1, channel as i64, seq as i64);
            insert.execute(params![
                id,
                channel,
                seq,
                now,
                msg_id,
                "publisher",
                self.data
            ])?;
        }
        let mut update = self.db.prepare_cached(UPDATE)?;
        for number in last - self.channels.min(u64::from(count))..last {
            let (channel, seq) = (number % self.channels + 1, number / self.channels + 1);
            update.execute(params![channel as i64, seq as i64, now])?;
        }
        let gone = last.saturating_sub(self.channels * MESSAGES_MAX);
        if gone > 0 {
            let mut delete = self.db.prepare_cached(DELETE)?;
            delete.execute([gone as i64])?;
        }
        self.db.execute_batch("COMMIT")?;
        if self.rest.swap(false, Relaxed) {
            checkpoint(&self.db, "RESTART")?;
        }
        self.written = last;
        Ok(())
    }
}

/// Folds a long log, and tells the writer when little of it is left.
fn fold(db: &Connection, rest: &AtomicBool) {
    // An error is a busy database: the next look tries again.
    if checkpoint(db, "NOOP").is_ok_and(|pages| pages >= LOG_PAGES) {
        let is_short = |_| checkpoint(db, "PASSIVE").is_ok_and(|pages| pages <= REST_PAGES);
        let _ = (0..5).any(is_short);
        rest.store(true, Relaxed);
    }
}

/// Pages of the log that are not in the database afterwards.
fn checkpoint(db: &Connection, mode: &str) -> rusqlite::Result<i64> {
    let pragma = format!("PRAGMA wal_checkpoint({mode})");
    db.query_row(&pragma, [], |row| {
        let (log, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(log - copied)
    })
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(
        options.duration > 0.0 && options.warmup >= 0.0,
        "durations: seconds"
    );
    let name = |end: &str| {
        options
            .folder
            .join(format!("sqlite-floor-{}.db{end}", std::process::id()))
    };
    let result = Floor::create(&name(""), &options)
        .and_then(|floor| measure(floor, &options))
        .with_context(|| name("").display().to_string());
    for end in ["", "-wal", "-shm"] {
        // Not there where it could not be made.
        let _ = std::fs::remove_file(name(end));
    }
    let report = result?;
    match &options.json {
        Some(path) => std::fs::write(path, format!("{report:#}\n"))?,
        None => println!("{report:#}"),
    }
    Ok(())
}

fn measure(mut floor: Floor, options: &Options) -> anyhow::Result<serde_json::Value> {
    let warm = Instant::now() + Duration::try_from_secs_f64(options.warmup)?;
    while Instant::now() < warm {
        floor.commit(options.batch)?;
    }
    let mut commits = Histogram::<u64>::new_with_bounds(1, COMMIT_US_MAX, 3)?;
    let (before, cpu_before) = (floor.written, cpu_us());
    let start = Instant::now();
    let mut at = start;
    while start.elapsed().as_secs_f64() < options.duration {
        floor.commit(options.batch)?;
        let done = Instant::now();
        let took = (done - at).as_micros() as u64;
        commits.saturating_record_n(took.max(1), u64::from(options.batch));
        at = done;
    }
    let seconds = at.duration_since(start).as_secs_f64();
    let written = floor.written - before;
    let ms = |percentile| commits.value_at_percentile(percentile) as f64;
    Ok(serde_json::json!({
        "scenario": "sqlite-floor",
        "seconds": seconds,
        "published": written,
        "publishes_per_s": written as f64 / seconds,
        // Each message of a batch is acknowledged at the end of its commit.
        "ack": {"count": written, "p50_us": ms(50.0), "p99_us": ms(99.0), "max_us": commits.max()},
        "server": {"cpu_us_per_publish": (cpu_us() - cpu_before) / written as f64},
    }))
}

/// CPU time of this process.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_newest_messages_without_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::parse_from(["floor", "--channels", "3", "--batch", "100"]);
        let mut floor = Floor::create(&folder.path().join("m.db"), &options).unwrap();
        for _ in 0..50 {
            floor.commit(100).unwrap();
        }
        let query = "SELECT c.last_seq, count(*), min(seq), max(seq), max(length(data))
            FROM channels c JOIN messages m ON m.channel_id = c.id GROUP BY c.id";
        let mut statement = floor.db.prepare(query).unwrap();
        let rows = statement.query_map([], |row| {
            Ok([0, 1, 2, 3, 4].map(|column| row.get::<_, i64>(column).unwrap_or(-1)))
        });
        let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.iter().map(|row| row[0]).sum::<i64>(), 5000);
        for [last, count, min, max, bytes] in rows {
            assert_eq!((count, min, max, bytes), (1000, last - 999, last, 100));
        }
    }
}
