//! Folds the log into the database, on a thread of its own: it waits for the disk (`fsync`), which the writer, and so
//! every ack, would wait for otherwise.
//!
//! While this thread copies, the writer goes on appending to the log, so a pass leaves a rest. When the rest is small
//! the writer does it itself, after a commit: only then can the log begin anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::BUSY_TIMEOUT;

/// Pages of log (64 MiB) at which it is folded. A page changed often is copied once per folding, so seldom is cheap; a
/// start after a kill reads the log once, well below a second. Less in tests, which fill it.
const LOG_PAGES: i32 = if cfg!(test) { 256 } else { 16_384 };
/// Pages to grow until it is tried again, where it did not help: a reader was in the way.
const LOG_PAGES_MORE: i32 = LOG_PAGES / 4;
/// Pages that the writer may be left to fold.
const REST_PAGES: i64 = 256;
/// Longest wait of the writer for readers of the log, before it leaves it as it is: a backup may read for minutes.
const READERS_WAIT_MAX: Duration = Duration::from_millis(20);
/// Passes after which the writer has to, however much is left: it writes faster than this thread copies.
const PASSES_MAX: u32 = 5;

/// The thread, for its writer.
#[derive(Debug)]
pub(super) struct Checkpointer {
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Signals {
    /// To the thread: the log is long.
    long: AtomicBool,
    /// To the writer: the rest is its.
    rest: AtomicBool,
    stop: AtomicBool,
}

impl Checkpointer {
    /// Starts the thread, and has `db`, the writer's connection, tell it the length of the log.
    pub(super) fn start(path: &Path, db: &mut Connection) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let own = Connection::open_with_flags(path, flags)?;
        own.busy_timeout(BUSY_TIMEOUT)?;
        let signals = Arc::new(Signals::default());
        let thread = {
            let signals = signals.clone();
            let named = std::thread::Builder::new().name("store-checkpoint".to_owned());
            let body = move || run(&own, &signals);
            named.spawn(body).expect("a thread can be started")
        };
        let (told, wake) = (signals.clone(), thread.thread().clone());
        let mut next = LOG_PAGES;
        db.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
            if pages < LOG_PAGES {
                next = LOG_PAGES;
            } else if pages >= next {
                next = pages.saturating_add(LOG_PAGES_MORE);
                told.long.store(true, SeqCst);
                wake.unpark();
            }
            Ok(())
        }))?;
        Ok(Self {
            signals,
            thread: Some(thread),
        })
    }

    /// For the writer, between transactions: folds the rest where that is its part. What cannot be folded stays in the
    /// log, where it is safe, until the next time.
    pub(super) fn fold_rest(&self, db: &Connection) {
        if self.signals.rest.swap(false, SeqCst) {
            _ = db.busy_timeout(READERS_WAIT_MAX);
            _ = checkpoint(db, "RESTART");
            _ = db.busy_timeout(BUSY_TIMEOUT);
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.signals.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has been logged.
            _ = thread.join();
        }
    }
}

fn run(db: &Connection, signals: &Signals) {
    let mut failing = false;
    while !signals.stop.load(SeqCst) {
        if !signals.long.swap(false, SeqCst) {
            std::thread::park();
            continue;
        }
        let folded = fold(db, signals);
        if failing != folded.is_err() {
            failing = folded.is_err();
            match &folded {
                Err(error) => log::error!("store: the log cannot be folded, it grows: {error}"),
                Ok(_) => log::info!("store: the log is folded again"),
            }
        }
        if folded.is_ok_and(|rest| rest > 0) {
            signals.rest.store(true, SeqCst);
        }
    }
}

/// Copies until little is left; how many pages are.
fn fold(db: &Connection, signals: &Signals) -> rusqlite::Result<i64> {
    let mut rest = 0;
    for _ in 0..PASSES_MAX {
        rest = checkpoint(db, "PASSIVE")?;
        if rest <= REST_PAGES || signals.stop.load(SeqCst) {
            break;
        }
    }
    Ok(rest)
}

/// Pages of the log that are not in the database afterwards.
fn checkpoint(db: &Connection, mode: &str) -> rusqlite::Result<i64> {
    let pragma = format!("PRAGMA wal_checkpoint({mode})");
    db.query_row(&pragma, [], |row| {
        let (log, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(log - copied)
    })
}
