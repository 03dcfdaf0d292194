//! The data folder: made once, owned by one process at a time, its files replaced as a whole.
//!
//! Invariants: while a [`DataDir`] lives no other process holds one of the same folder; a file written through it is
//! either the old or the new one after a crash, and readable by its owner only.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file whose lock says that a process uses the folder. It stays; only the lock counts.
const LOCK_FILE: &str = "lock";

/// How often a successor looks whether the folder is free: a part of the time its clients wait.
const LOCK_LOOK: Duration = Duration::from_millis(1);

/// A data folder in use by this process. Dropping it lets another process have it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held for its lock (`flock`), which the kernel ends with the process.
    _lock: File,
}

/// An operation on the data folder that failed: what, where, why, and what to do.
#[derive(Debug)]
pub struct DataError {
    operation: &'static str,
    path: PathBuf,
    cause: String,
    remedy: &'static str,
}

impl DataError {
    pub(super) fn new(
        operation: &'static str,
        path: &Path,
        cause: &impl ToString,
        remedy: &'static str,
    ) -> Self {
        Self {
            operation,
            path: path.to_owned(),
            cause: cause.to_string(),
            remedy,
        }
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot {} {}: {}; {}",
            self.operation,
            self.path.display(),
            self.cause,
            self.remedy
        )
    }
}

impl std::error::Error for DataError {}

const MAY_WRITE: &str =
    "give the user of this process the right to write there, or choose another --data-dir";

impl DataDir {
    /// Makes the folder (mode 0700) where it is missing, and locks it.
    ///
    /// # Errors
    /// The folder cannot be made or written to, or another process has it.
    pub fn lock(path: &Path) -> Result<Self, DataError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| DataError::new("create the data folder", path, &error, MAY_WRITE))?;
        let file = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&file)
            .map_err(|error| DataError::new("open the lock file", &file, &error, MAY_WRITE))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(DataError::new(
                "lock the data folder",
                path,
                &"another shardwire uses it",
                "stop that process, or choose another --data-dir",
            )),
            Err(TryLockError::Error(error)) => Err(DataError::new(
                "lock",
                &file,
                &error,
                "use a file system that supports flock",
            )),
        }
    }

    /// The same, waiting up to `patience` for a process that has the folder and is about to go.
    ///
    /// # Errors
    /// As [`lock`](DataDir::lock).
    pub fn lock_within(path: &Path, patience: Duration) -> Result<Self, DataError> {
        let until = Instant::now() + patience;
        while Self::is_in_use(path) && Instant::now() < until {
            std::thread::sleep(LOCK_LOOK);
        }
        Self::lock(path)
    }

    /// Whether another process has the folder. Changes nothing, and makes no folder.
    #[must_use]
    pub fn is_in_use(path: &Path) -> bool {
        let lock = File::open(path.join(LOCK_FILE));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The path of a file in the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The text of a file, `None` when it is not there.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<String>, DataError> {
        let path = self.file(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DataError::new(
                "read",
                &path,
                &error,
                "check its owner and mode",
            )),
        }
    }

    /// Replaces a file as a whole, with mode 0600. Returns once it is on disk.
    ///
    /// # Errors
    /// Any step failed; the old file, if any, is untouched.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DataError> {
        let path = self.file(name);
        write_atomically(&path, bytes)
            .map_err(|error| DataError::new("write", &path, &error, MAY_WRITE))
    }
}

/// Replaces a file as a whole, with mode 0600: readers see the old or the new text, also after a power cut.
///
/// # Errors
/// Any step failed; the old file, if any, is untouched.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    // A leftover of a crash would keep its mode.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // The rename itself is on disk once the folder is.
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn folder_and_files_are_for_their_owner_only() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let dir = DataDir::lock(&path).unwrap();
        dir.write("file", b"one").unwrap();
        std::fs::write(path.join("file.tmp"), "left by a crash").unwrap();
        dir.write("file", b"two").unwrap();
        assert_eq!(dir.read("file").unwrap().as_deref(), Some("two"));
        assert_eq!((mode(&path), mode(&path.join("file"))), (0o700, 0o600));
        assert_eq!(dir.read("absent").unwrap(), None);
        assert!(!path.join("file.tmp").exists());
    }

    #[test]
    fn a_second_process_is_refused_until_the_first_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::lock(temp.path()).unwrap();
        assert!(DataDir::is_in_use(temp.path()));
        let refused = DataDir::lock(temp.path()).unwrap_err().to_string();
        assert!(
            refused.contains("another shardwire uses it") && refused.contains("--data-dir"),
            "{refused}"
        );
        let waiting = std::thread::spawn({
            let path = temp.path().to_owned();
            move || DataDir::lock_within(&path, Duration::from_secs(60)).map(drop)
        });
        drop(first);
        waiting.join().unwrap().unwrap();
        assert!(!DataDir::is_in_use(temp.path()));
        DataDir::lock(temp.path()).unwrap();
    }

    #[test]
    fn errors_name_operation_path_and_remedy() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        let told = DataDir::lock(&file.join("sub")).unwrap_err().to_string();
        assert!(
            told.contains("create the data folder")
                && told.contains("file/sub")
                && told.contains("--data-dir")
        );
    }
}
