//! The embedded store: one SQLite file in the data folder, in WAL mode.
//!
//! One connection writes, any number read: a reader sees the last committed state and is in nobody's way. The file may
//! be copied while in use by whatever speaks SQLite (`VACUUM INTO`, `.backup`). The data folder's lock keeps a second
//! process out. On disk: [`schema`].

mod archive;
mod channels;
mod checkpoint;
mod read;
mod retention;
mod schema;
mod sweep;
#[cfg(test)]
pub(super) mod tests;
mod write;

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use shardwire_proto::record::{StoreAnswer, StoreOp, StoreRead, Sync};

use self::channels::ChannelCache;
use self::checkpoint::Checkpointer;
use self::schema::SchemaError;
use self::sweep::Sweep;
use super::{Applied, Backend, BackendError, Expired, Role, Storage};

/// Name of the database in the data folder.
pub const FILE_NAME: &str = "messages.db";

/// Wait for a lock: only a foreign process (a shell, a restore) or a recovery can hold one for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Statements kept prepared: all of [`schema`] fit.
const STATEMENTS_CACHED: usize = 32;

/// Settings of every connection, in this order.
///
/// - `page_size`: takes effect in an empty file. 4 KiB is the unit of the page cache and of most disks.
/// - `journal_size_limit`: bytes of log file kept after a burst; twice what [`checkpoint`] lets it grow to.
/// - `cache_size`: KiB, negative; per connection. The writer's holds the index of some million messages.
/// - `mmap_size` stays 0: an error of a mapped file is a signal, not a return value.
const SETTINGS: &str = "
    PRAGMA page_size = 4096;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA journal_size_limit = 134217728;
    PRAGMA cache_size = -65536;
    PRAGMA temp_store = MEMORY;
";
const SETTINGS_READER: &str = "PRAGMA cache_size = -8192; PRAGMA query_only = ON;";

/// The database file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    /// The file need not exist; its folder must.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Storage for Sqlite {
    type Backend = SqliteBackend;

    fn open(&self, role: Role) -> Result<SqliteBackend, BackendError> {
        SqliteBackend::open(&self.path, role)
    }
}

/// A connection to the database file.
#[derive(Debug)]
pub struct SqliteBackend {
    /// The writer's. Before `db`, so that the writer's connection is the last to be closed.
    checkpointer: Option<Checkpointer>,
    db: Connection,
    path: PathBuf,
    /// Device and inode of what is open.
    file: (u64, u64),
    /// What `PRAGMA synchronous` stands at.
    sync: Sync,
    /// The writer's: channels as committed.
    channels: ChannelCache,
    /// The writer's: where deletion is, as committed.
    sweep: Sweep,
}

impl SqliteBackend {
    fn open(path: &Path, role: Role) -> Result<Self, BackendError> {
        let fail = |text: String| BackendError::Broken(format!("{}: {text}", path.display()));
        if role == Role::Writer {
            // SQLite gives its log the mode of the database; made here, it is for the owner only.
            let mut options = OpenOptions::new();
            let options = options.create(true).truncate(false).write(true).mode(0o600);
            options.open(path).map_err(|error| {
                fail(format!(
                    "cannot open: {error}; give the user of this process the right to write there"
                ))
            })?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let file = inode(path).map_err(|error| fail(error.to_string()))?;
        let opened = Connection::open_with_flags(path, flags).map_err(SchemaError::from);
        let prepared = opened.and_then(|db| prepare(db, path, role));
        let (db, checkpointer) = prepared.map_err(|error| match error {
            SchemaError::Foreign => fail("is a database of another program; move it away".to_owned()),
            SchemaError::Later(version) => fail(format!(
                "has schema version {version}, this program knows up to {}: it was used by a later version",
                schema::MIGRATIONS.len()
            )),
            SchemaError::Sqlite(error) => fail(error.to_string()),
        })?;
        Ok(Self {
            checkpointer,
            db,
            path: path.to_owned(),
            file,
            sync: Sync::Process,
            channels: ChannelCache::default(),
            sweep: Sweep::default(),
        })
    }

    /// `NORMAL` syncs the log only at checkpoints: a commit survives the process, being with the kernel. `FULL` syncs
    /// it at every commit. May not be changed inside of a transaction.
    fn set_sync(&mut self, sync: Sync) -> Result<(), Error> {
        if self.sync != sync {
            self.db.execute_batch(match sync {
                Sync::Process => "PRAGMA synchronous = NORMAL",
                Sync::Disk => "PRAGMA synchronous = FULL",
            })?;
            self.sync = sync;
        }
        Ok(())
    }

    /// Runs `body` as one transaction of the writer: committed, or nothing of it is left, here and on disk.
    fn transact<T>(
        &mut self,
        begin: &str,
        body: impl FnOnce(&Connection, &mut ChannelCache, &mut Sweep) -> Result<T, Error>,
    ) -> Result<T, BackendError> {
        let Self {
            db,
            channels,
            path,
            sweep,
            checkpointer,
            ..
        } = self;
        channels.make_room();
        let mut swept = *sweep;
        let done = db.execute_batch(begin).map_err(Error::from);
        let done = done.and_then(|()| body(db, channels, &mut swept));
        let done = done.and_then(|value| Ok(db.execute_batch("COMMIT").map(|()| value)?));
        if done.is_ok() {
            *sweep = swept;
            if let Some(checkpointer) = checkpointer {
                checkpointer.fold_rest(db);
            }
        }
        done.map_err(|error| {
            channels.clear();
            // Some errors have ended the transaction themselves.
            let undone = db.is_autocommit() || db.execute_batch("ROLLBACK").is_ok();
            let error = explain(path, error);
            if undone {
                error
            } else {
                BackendError::Broken(error.to_string())
            }
        })
    }
}

impl Backend for SqliteBackend {
    fn apply(&mut self, ops: &[StoreOp], now_ms: u64) -> Result<Applied, BackendError> {
        self.set_sync(write::sync_of(ops))
            .map_err(|error| explain(&self.path, error))?;
        self.transact("BEGIN IMMEDIATE", |db, channels, sweep| {
            write::apply(db, channels, sweep, ops, int(now_ms))
        })
    }

    fn read(&mut self, read: &StoreRead, now_ms: u64) -> Result<StoreAnswer, BackendError> {
        let answer = || {
            // One state for all statements of the answer. Ends when dropped.
            let _snapshot = self.db.unchecked_transaction()?;
            read::answer(&self.db, read, int(now_ms))
        };
        answer().map_err(|error: Error| explain(&self.path, error))
    }

    fn expire(&mut self, now_ms: u64, budget: Duration) -> Result<Expired, BackendError> {
        let now = int(now_ms);
        if !self.sweep.is_due(now) {
            return Ok(Expired {
                messages: 0,
                round_done: true,
            });
        }
        self.set_sync(Sync::Process)
            .map_err(|error| explain(&self.path, error))?;
        // Takes the write lock when there is something to write.
        self.transact("BEGIN DEFERRED", |db, channels, sweep| {
            sweep.step(db, channels, now, budget)
        })
    }

    fn check(&mut self) -> Result<(), BackendError> {
        if inode(&self.path).is_ok_and(|file| file == self.file) {
            return Ok(());
        }
        let path = self.path.display();
        Err(BackendError::Broken(format!(
            "{path}: the open file is no longer there"
        )))
    }

    fn probe(&mut self) -> Result<(), BackendError> {
        // Writes the first page, with what it holds.
        let write = format!("PRAGMA user_version = {}", schema::MIGRATIONS.len());
        self.transact("BEGIN IMMEDIATE", |db, _, _| Ok(db.execute_batch(&write)?))
    }
}

/// What an error means for the one who called.
fn explain(path: &Path, error: Error) -> BackendError {
    let error = match error {
        Error::Order(text) => return BackendError::Order(text),
        Error::Sqlite(error) => error,
    };
    let text = format!("{}: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => BackendError::Busy(text),
        Some(ErrorCode::DiskFull | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            BackendError::Refused(text)
        }
        _ => BackendError::Broken(text),
    }
}

/// Makes a connection ready for its role.
fn prepare(
    mut db: Connection,
    path: &Path,
    role: Role,
) -> Result<(Connection, Option<Checkpointer>), SchemaError> {
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    // Before anything is written: a file of somebody else stays as it is.
    schema::version(&db)?;
    if role == Role::Reader {
        db.execute_batch(SETTINGS_READER)?;
        return Ok((db, None));
    }
    db.execute_batch(SETTINGS)?;
    schema::migrate(&mut db)?;
    let checkpointer = Checkpointer::start(path, &mut db)?;
    Ok((db, Some(checkpointer)))
}

fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// What goes wrong inside of a call.
#[derive(Debug)]
enum Error {
    Sqlite(rusqlite::Error),
    /// An operation contradicts what is stored.
    Order(String),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// SQLite's integers are signed. Bounds beyond them mean the same as the greatest.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Back from SQLite: none of ours is negative.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
