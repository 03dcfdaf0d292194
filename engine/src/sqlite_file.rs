//! Small SQLite files of one form each: whose they are, and making them.
//!
//! Not the messages' file, whose schema has migrations ([`crate::store::sqlite`]).

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// How long somebody else may be in the way: another thread, a backup, or an operator's shell.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What tells a file from other programs', and what is in a fresh one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// `PRAGMA application_id`.
    pub(crate) application_id: i64,
    /// `PRAGMA user_version`: the form of the tables.
    pub(crate) version: i64,
    /// Statements that make the tables.
    pub(crate) schema: &'static str,
}

impl Form {
    /// Makes the tables in an empty file; leaves one of this form alone.
    ///
    /// # Errors
    /// It cannot be used: not writable, another program's, or of a later version. The text is for the operator.
    pub(crate) fn apply(&self, db: &Connection) -> Result<(), String> {
        let Self {
            application_id,
            version,
            schema,
        } = self;
        let objects: i64 = db
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(told)?;
        let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let found_id = pragma("application_id").map_err(told)?;
        let found_version = pragma("user_version").map_err(told)?;
        if (objects, found_id, found_version) == (0, 0, 0) {
            let head = format!(
                "PRAGMA application_id = {application_id}; PRAGMA user_version = {version};"
            );
            return db
                .execute_batch(&format!("BEGIN; {schema} {head} COMMIT;"))
                .map_err(told);
        }
        if found_id != *application_id {
            return Err("is a database of another program; move it away".into());
        }
        if found_version != *version {
            return Err(format!(
                "has version {found_version}, this program knows {version}: it was used by a later one"
            ));
        }
        Ok(())
    }
}

/// Opens a file that holds secrets, and makes it where it is missing: it is for its owner only, and what is committed
/// survives a power cut. Its folder must be there.
///
/// # Errors
/// It cannot be used: not writable, another program's, or of a later version. The text is for the operator.
pub(crate) fn open_secret(path: &Path, form: &Form) -> Result<Connection, String> {
    // SQLite gives its log the mode of the database.
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).write(true).mode(0o600);
    options.open(path).map_err(|error| error.to_string())?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(told)?;
    db.busy_timeout(BUSY_TIMEOUT).map_err(told)?;
    for (name, value) in [("journal_mode", "WAL"), ("synchronous", "FULL")] {
        db.pragma_update(None, name, value).map_err(told)?;
    }
    form.apply(&db)?;
    Ok(db)
}

/// An error as it is told to the operator.
#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
pub(crate) fn told(error: rusqlite::Error) -> String {
    error.to_string()
}
