//! Where the registry is kept: small documents, changed together or not at all.
//!
//! [`SqliteDocuments`] keeps them in one table of `registry.db`, [`RecordDocuments`] as records of a store that several
//! servers share. What is in a document is not its matter. Invariants:
//! what [`Documents::apply`] has confirmed survives a power cut; the file is for its owner only, as it holds secrets.

use std::path::Path;

use rusqlite::{Connection, params};
use shardwire_proto::auth::edit::{DocumentChange, DocumentKind};

use super::now_ms;
use crate::records::{Area, Change, Condition, Record, RecordError, RecordStorage, Records, Scan};
use crate::sqlite_file::{Form, open_secret, told};

const FORM: Form = Form {
    // "SHRG".
    application_id: 0x5348_5247,
    version: 1,
    schema: "
    CREATE TABLE documents (
        kind TEXT NOT NULL,
        id   TEXT NOT NULL,
        json TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;
",
};

/// A document's kind, id and text.
pub type Document = (DocumentKind, String, String);

/// A place for documents, owned by one thread.
pub trait Documents: Send + 'static {
    /// All documents, by kind and id.
    ///
    /// # Errors
    /// They cannot be read; the text is for the operator.
    fn load(&mut self) -> Result<Vec<Document>, String>;

    /// Makes all changes, or none.
    ///
    /// # Errors
    /// None was made; the text is for the operator. Where [`Self::is_changed`] then says so, because somebody else was
    /// quicker.
    fn apply(&mut self, changes: &[DocumentChange]) -> Result<(), String>;

    /// Whether somebody else has changed them since they were loaded, as far as can be told.
    fn is_changed(&mut self) -> bool {
        false
    }

    /// Which state was loaded or made last; always the same where nobody else changes them.
    fn known_state(&self) -> u64 {
        0
    }
}

impl Documents for Box<dyn Documents> {
    fn load(&mut self) -> Result<Vec<Document>, String> {
        (**self).load()
    }

    fn apply(&mut self, changes: &[DocumentChange]) -> Result<(), String> {
        (**self).apply(changes)
    }

    fn is_changed(&mut self) -> bool {
        (**self).is_changed()
    }

    fn known_state(&self) -> u64 {
        (**self).known_state()
    }
}

/// Documents as records, for several servers that share a store: each change is one of a state that was read.
pub struct RecordDocuments {
    records: Box<dyn Records>,
    /// Version of [`STATE`] when the documents were loaded; 0: there was none.
    state: u64,
}

/// Kind and id of the record whose version rises with every change of a document.
const STATE: &str = "state";
/// Documents read at once.
const PAGE: usize = 500;

impl RecordDocuments {
    /// # Errors
    /// The store cannot be used; the text is for the operator.
    pub fn open(storage: &dyn RecordStorage) -> Result<Self, String> {
        let records = storage.open(Area::Registry);
        Ok(Self {
            records: records.map_err(|error| error.to_string())?,
            state: 0,
        })
    }

    fn state(&mut self) -> Result<u64, RecordError> {
        let found = self.records.get(STATE, STATE, now_ms())?;
        Ok(found.map_or(0, |state| state.version))
    }

    fn load_all(&mut self) -> Result<Vec<Document>, RecordError> {
        // Before the documents: what is changed while they are read is then read again.
        self.state = self.state()?;
        let mut found = Vec::new();
        for kind in DocumentKind::ALL {
            let mut scan = Scan::of(kind.name(), PAGE);
            loop {
                let page = self.records.scan(&scan, now_ms())?;
                let is_last = page.len() < PAGE;
                scan.after = page.last().map(|last| (last.rank, last.id.clone()));
                found.extend(page.into_iter().map(|one| (kind, one.id, one.body)));
                if is_last {
                    break;
                }
            }
        }
        Ok(found)
    }
}

impl Documents for RecordDocuments {
    fn load(&mut self) -> Result<Vec<Document>, String> {
        self.load_all().map_err(|error| error.to_string())
    }

    fn apply(&mut self, changes: &[DocumentChange]) -> Result<(), String> {
        let when = match self.state {
            0 => Condition::Absent,
            state => Condition::Version(state),
        };
        let state = Record {
            id: STATE.to_owned(),
            body: "{}".to_owned(),
            ..Record::default()
        };
        let mut all = vec![Change::Put {
            kind: STATE,
            record: state,
            when,
        }];
        all.extend(changes.iter().map(|change| match change {
            DocumentChange::Put { kind, id, json } => {
                let record = Record {
                    id: id.clone(),
                    body: json.clone(),
                    ..Record::default()
                };
                Change::put(kind.name(), record)
            }
            DocumentChange::Delete { kind, id } => Change::delete(kind.name(), id.clone()),
        }));
        match self.records.apply(&all, now_ms()) {
            Ok(()) => {
                self.state += 1;
                Ok(())
            }
            Err(RecordError::Conflict(_)) => Err("another server was quicker".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn is_changed(&mut self) -> bool {
        let state = self.state;
        self.state().is_ok_and(|found| found != state)
    }

    fn known_state(&self) -> u64 {
        self.state
    }
}

/// Documents in an SQLite file.
#[derive(Debug)]
pub struct SqliteDocuments {
    db: Connection,
}

impl SqliteDocuments {
    /// Opens the file, and makes it where it is missing. Its folder must be there.
    ///
    /// # Errors
    /// It cannot be used: not writable, another program's, or of a later version.
    pub fn open(path: &Path) -> Result<Self, String> {
        let db = open_secret(path, &FORM)?;
        Ok(Self { db })
    }
}

impl Documents for SqliteDocuments {
    fn load(&mut self) -> Result<Vec<Document>, String> {
        let mut found = Vec::new();
        for kind in DocumentKind::ALL {
            let text = "SELECT id, json FROM documents WHERE kind = ?1 ORDER BY id";
            let mut query = self.db.prepare_cached(text).map_err(told)?;
            let rows = query.query_map([kind.name()], |row| Ok((row.get(0)?, row.get(1)?)));
            for row in rows.map_err(told)? {
                let (id, json) = row.map_err(told)?;
                found.push((kind, id, json));
            }
        }
        Ok(found)
    }

    fn apply(&mut self, changes: &[DocumentChange]) -> Result<(), String> {
        let change = self.db.transaction().map_err(told)?;
        for one in changes {
            match one {
                DocumentChange::Put { kind, id, json } => change
                    .prepare_cached("INSERT OR REPLACE INTO documents VALUES (?1, ?2, ?3)")
                    .and_then(|mut put| put.execute(params![kind.name(), id, json])),
                DocumentChange::Delete { kind, id } => change
                    .prepare_cached("DELETE FROM documents WHERE kind = ?1 AND id = ?2")
                    .and_then(|mut delete| delete.execute(params![kind.name(), id])),
            }
            .map_err(told)?;
        }
        change.commit().map_err(told)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(id: &str, json: &str) -> DocumentChange {
        DocumentChange::Put {
            kind: DocumentKind::App,
            id: id.into(),
            json: json.into(),
        }
    }

    #[test]
    fn documents_outlast_the_connection_and_are_for_their_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.db");
        let mut first = SqliteDocuments::open(&path).unwrap();
        first.apply(&[put("a", "1"), put("b", "2")]).unwrap();
        let gone = DocumentChange::Delete {
            kind: DocumentKind::App,
            id: "b".into(),
        };
        first.apply(&[put("a", "3"), gone]).unwrap();
        for name in ["registry.db", "registry.db-wal"] {
            let mode = folder.path().join(name).metadata().unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
        }
        drop(first);
        let mut second = SqliteDocuments::open(&path).unwrap();
        let expected = vec![(DocumentKind::App, "a".to_owned(), "3".to_owned())];
        assert_eq!(second.load().unwrap(), expected);
    }

    #[test]
    fn other_files_are_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.db");
        std::fs::write(&path, "no database at all, only some text").unwrap();
        assert!(SqliteDocuments::open(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE mine (x)").unwrap();
        let told = SqliteDocuments::open(&path).unwrap_err();
        assert!(told.contains("another program"), "{told}");
        other.execute_batch("DROP TABLE mine").unwrap();
        drop(other);
        SqliteDocuments::open(&path).unwrap();
        let later = Connection::open(&path).unwrap();
        later.pragma_update(None, "user_version", 2).unwrap();
        let told = SqliteDocuments::open(&path).unwrap_err();
        assert!(told.contains("version 2"), "{told}");
    }

    #[test]
    fn servers_that_share_records_see_each_others_changes() {
        let folder = tempfile::tempdir().unwrap();
        let storage = crate::records::sqlite::SqliteRecordStorage::new(folder.path());
        let open = || {
            let mut documents = RecordDocuments::open(&storage).unwrap();
            assert_eq!(documents.load().unwrap(), []);
            documents
        };
        let (mut one, mut two) = (open(), open());
        one.apply(&[put("a", "1"), put("b", "2")]).unwrap();
        assert!(!one.is_changed() && two.is_changed());
        // Made of a state that is no longer there.
        two.apply(&[put("a", "9")]).unwrap_err();
        let seen = two.load().unwrap();
        assert_eq!(seen, one.load().unwrap());
        assert_eq!(seen.len(), 2);
        let gone = DocumentChange::Delete {
            kind: DocumentKind::App,
            id: "b".into(),
        };
        two.apply(&[put("a", "3"), gone]).unwrap();
        assert!(one.is_changed() && !two.is_changed());
        let expected = vec![(DocumentKind::App, "a".to_owned(), "3".to_owned())];
        assert_eq!(one.load().unwrap(), expected);
        one.apply(&[put("c", "4")]).unwrap();
    }
}
