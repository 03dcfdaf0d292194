//! The embedded store against a naive model, and what is on disk.

use std::os::unix::fs::PermissionsExt;

use shardwire_proto::record::Retention;
use tempfile::TempDir;

use super::*;
use crate::store::suite::{self, FOREVER, Place, all, append, appends, record};

/// Longer than any step takes.
const NO_HURRY: Duration = Duration::from_secs(60);

/// A data folder.
pub(in crate::store) struct Folder {
    pub(in crate::store) dir: TempDir,
}

impl Place for Folder {
    type Storage = Sqlite;
    const MANY: u32 = 100_000;
    const LIVES: u32 = 300;

    fn new() -> Self {
        // In memory where there is such a place: what is tested here is not the disk.
        let memory = tempfile::tempdir_in("/dev/shm");
        let dir = memory.or_else(|_| tempfile::tempdir()).unwrap();
        Self { dir }
    }

    fn storage(&self) -> Sqlite {
        Sqlite::new(self.dir.path().join(FILE_NAME))
    }

    fn rows(&self) -> u64 {
        let db = Connection::open(self.dir.path().join(FILE_NAME)).unwrap();
        let count = "SELECT count(*) FROM messages";
        db.query_row(count, [], |row| row.get(0)).unwrap()
    }

    fn expire(&self, writer: &mut SqliteBackend, now_ms: u64) {
        rounds(writer, now_ms, NO_HURRY);
    }
}

/// A round of expiry; how many steps, and messages removed.
fn rounds(writer: &mut SqliteBackend, now_ms: u64, budget: Duration) -> (u32, u64) {
    let (mut steps, mut messages) = (0, 0);
    writer.sweep.next_ms = 0;
    loop {
        let expired = writer.expire(now_ms, budget).unwrap();
        steps += 1;
        messages += expired.messages;
        if expired.round_done {
            return (steps, messages);
        }
    }
}

type Db = suite::Db<Folder>;

fn db_at(dir: TempDir) -> Db {
    Db::at(Folder { dir })
}

suite::backend_suite!(Folder);

/// What a kill leaves: the database and its log as they are, never closed.
#[test]
fn a_commit_is_there_after_a_kill() {
    let mut db = Db::new();
    db.apply(&appends("a", 1..=3, FOREVER)).unwrap();
    let killed = tempfile::tempdir().unwrap();
    for name in [FILE_NAME.to_owned(), format!("{FILE_NAME}-wal")] {
        std::fs::copy(db.place.dir.path().join(&name), killed.path().join(&name)).unwrap();
    }
    // Half of a transaction that was being written.
    let log = killed.path().join(format!("{FILE_NAME}-wal"));
    let mut bytes = std::fs::read(&log).unwrap();
    bytes.extend_from_within(bytes.len() - 3000..);
    std::fs::write(&log, bytes).unwrap();
    let mut after = db_at(killed);
    assert_eq!(after.page("a", all(10), 5), (vec![1, 2, 3], false));
}

#[test]
fn appending_pays_for_deleting_what_is_too_much() {
    let mut db = Db::new();
    let retention = Retention {
        messages_max: 1000,
        ..FOREVER
    };
    let mut rows_max = 0;
    for start in (1..=250_000).step_by(2000) {
        let seqs = start..=start + 1999;
        db.apply(&appends("a", seqs, retention)).unwrap();
        rows_max = rows_max.max(db.rows());
    }
    assert!((50_000..150_000).contains(&rows_max), "{rows_max}");
    let loaded = db.load("a", 0).unwrap();
    assert_eq!(
        (loaded.gone_sequence, loaded.gone_timestamp),
        (249_000, 249_000)
    );
    assert_eq!(
        (loaded.newest.len(), loaded.newest[0].sequence),
        (1000, 249_001)
    );
}

#[test]
fn a_round_is_not_repeated_at_once_and_less_often_where_it_finds_nothing() {
    let mut db = Db::new();
    db.apply(&appends("a", 1..=100, FOREVER)).unwrap();
    let mut round = |now| {
        db.writer.expire(now, NO_HURRY).unwrap().round_done && {
            let next = db.writer.sweep.next_ms;
            db.writer.expire(now + 1, NO_HURRY).unwrap();
            assert_eq!(db.writer.sweep.next_ms, next);
            true
        }
    };
    assert!(round(1000));
    assert!(round(61_000));
    assert_eq!(db.writer.sweep.next_ms, 61_000 + 120_000);
    for _ in 0..20 {
        let next = db.writer.sweep.next_ms;
        db.writer.expire(uint(next), NO_HURRY).unwrap();
    }
    let before = db.writer.sweep.next_ms;
    db.apply(&appends(
        "a",
        101..=101,
        Retention {
            age_ms: 1,
            ..FOREVER
        },
    ))
    .unwrap();
    assert_eq!(
        db.writer.expire(uint(before), NO_HURRY).unwrap().messages,
        101
    );
    assert_eq!(db.writer.sweep.next_ms - before, 1_800_000);
}

#[test]
fn expiry_ends_with_its_budget_and_goes_on() {
    let mut db = Db::new();
    let few = Retention {
        messages_max: 10,
        ..FOREVER
    };
    db.apply(&appends("a", 1..=5000, few)).unwrap();
    let (steps, removed) = rounds(&mut db.writer, 1, Duration::from_micros(200));
    assert!(steps > 1);
    assert_eq!((removed, db.rows()), (4990, 10));
    assert_eq!(db.page("a", all(1), 1), (vec![4991], true));
}

#[test]
fn the_disk_confirms_where_it_is_asked_for() {
    let mut db = Db::new();
    let level = |db: &Db| {
        let level = db
            .writer
            .db
            .pragma_query_value(None, "synchronous", |row| row.get(0));
        level.map(|level: i64| level).unwrap()
    };
    db.apply(&[append("a", 1, 1, FOREVER)]).unwrap();
    assert_eq!(level(&db), 1);
    let durable = Retention {
        sync: Sync::Disk,
        ..FOREVER
    };
    db.apply(&[append("a", 2, 2, FOREVER), append("b", 1, 2, durable)])
        .unwrap();
    assert_eq!(level(&db), 2);
    rounds(&mut db.writer, 1, NO_HURRY);
    assert_eq!(level(&db), 1);
    assert_eq!(db.page("b", all(9), 9), (vec![1], false));
}

#[test]
fn no_statement_reads_a_whole_table_or_sorts() {
    let db = Db::new();
    for sql in schema::STATEMENTS {
        let mut explain = db
            .writer
            .db
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        // Its parameters may stay unbound.
        let plan = explain.raw_query().mapped(|row| row.get::<_, String>(3));
        let plan: Vec<String> = plan.map(Result::unwrap).collect();
        let fine = |step: &String| step.starts_with("SEARCH") && !step.contains("AUTOMATIC");
        assert!(plan.iter().all(fine), "{sql}: {plan:?}");
        assert!(!plan.is_empty() || sql.starts_with("INSERT"), "{sql}");
    }
}

#[test]
fn the_file_is_for_its_owner_only() {
    let mut db = Db::new();
    db.apply(&[append("a", 1, 1, FOREVER)]).unwrap();
    let files = std::fs::read_dir(db.place.dir.path()).unwrap();
    let modes: Vec<u32> = files
        .map(|file| file.unwrap().metadata().unwrap().permissions().mode() & 0o777)
        .collect();
    assert!(
        modes.len() >= 3 && modes.iter().all(|mode| *mode == 0o600),
        "{modes:?}"
    );
}

#[test]
fn a_file_that_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let open = || {
        Sqlite::new(path.clone())
            .open(Role::Writer)
            .unwrap_err()
            .to_string()
    };
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (x)")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(open().contains("another program"), "{}", open());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::write(
        &path,
        "no database at all, but long enough to have a header".repeat(9),
    )
    .unwrap();
    assert!(open().contains("not a database"), "{}", open());
    let nowhere = dir.path().join("sub").join(FILE_NAME);
    let told = Sqlite::new(nowhere)
        .open(Role::Writer)
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("sub/messages.db") && told.contains("right to write"),
        "{told}"
    );
}

#[test]
fn a_later_schema_is_refused() {
    let db = Db::new();
    let later = schema::MIGRATIONS.len() as i64 + 1;
    db.writer
        .db
        .pragma_update(None, "user_version", later)
        .unwrap();
    let told = Sqlite::new(db.place.dir.path().join(FILE_NAME))
        .open(Role::Writer)
        .unwrap_err();
    assert!(told.to_string().contains("later version"), "{told}");
}

/// A file of version 1 as it was released; a copy that is never changed.
#[test]
fn version_1_opens() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join(FILE_NAME)).unwrap();
    db.execute_batch(
        "CREATE TABLE channels (id INTEGER PRIMARY KEY, app TEXT NOT NULL, name TEXT NOT NULL, epoch TEXT NOT NULL,
           last_seq INTEGER NOT NULL, last_ts INTEGER NOT NULL, gone_seq INTEGER NOT NULL, gone_ts INTEGER NOT NULL,
           messages_max INTEGER NOT NULL, age_ms INTEGER NOT NULL, UNIQUE (app, name)) STRICT;
         CREATE TABLE messages (id INTEGER PRIMARY KEY, channel_id INTEGER NOT NULL, seq INTEGER NOT NULL,
           ts INTEGER NOT NULL, msg_id TEXT NOT NULL, publisher TEXT NOT NULL, data TEXT NOT NULL) STRICT;
         CREATE INDEX messages_by_seq ON messages (channel_id, seq, ts);
         INSERT INTO channels VALUES (7, 'app', 'a', 'epoch', 3, 30, 1, 10, 1000, 1000);
         INSERT INTO messages VALUES (1, 7, 2, 20, 'id-2', 'anon', '\"x\"'), (2, 7, 3, 30, 'id-3', 'anon', '\"x\"');
         PRAGMA application_id = 1397249874; PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(db);
    let mut db = db_at(dir);
    let loaded = db.load("a", 40).unwrap();
    assert_eq!(
        (
            loaded.last_sequence,
            loaded.gone_sequence,
            loaded.gone_timestamp
        ),
        (3, 1, 10)
    );
    assert_eq!(loaded.newest, [record(2, 20), record(3, 30)]);
    db.apply(&[append("a", 4, 40, FOREVER), append("b", 1, 40, FOREVER)])
        .unwrap();
    assert_eq!(db.page("a", all(9), 40), (vec![2, 3, 4], false));
}

#[test]
fn a_file_that_was_replaced_is_noticed() {
    let mut db = Db::new();
    db.writer.check().unwrap();
    db.writer.probe().unwrap();
    let path = db.place.dir.path().join(FILE_NAME);
    std::fs::rename(&path, db.place.dir.path().join("away")).unwrap();
    assert!(matches!(db.writer.check(), Err(BackendError::Broken(_))));
    Sqlite::new(path).open(Role::Writer).unwrap();
    assert!(matches!(db.writer.check(), Err(BackendError::Broken(_))));
}

#[test]
fn a_long_log_is_folded_and_begins_anew_while_in_use() {
    let mut db = Db::new();
    let log_pages = |db: &Db| {
        let noop = "PRAGMA wal_checkpoint(NOOP)";
        let pages = db.reader.db.query_row(noop, [], |row| row.get::<_, i64>(1));
        pages.unwrap()
    };
    let mut seq = 0;
    let mut append_some = |db: &mut Db| {
        db.apply(&appends("a", seq + 1..=seq + 100, FOREVER))
            .unwrap();
        seq += 100;
        seq
    };
    // A reader in the way of the log's new beginning, which is no harm.
    let snapshot = db.place.dir.path().join(FILE_NAME);
    let snapshot = Connection::open(snapshot).unwrap();
    append_some(&mut db);
    snapshot
        .execute_batch("BEGIN; SELECT count(*) FROM channels")
        .unwrap();
    while log_pages(&db) < 600 {
        append_some(&mut db);
    }
    snapshot.execute_batch("COMMIT").unwrap();
    let started = std::time::Instant::now();
    while log_pages(&db) > 200 {
        append_some(&mut db);
        assert!(started.elapsed() < NO_HURRY, "{}", log_pages(&db));
    }
    let last = append_some(&mut db);
    assert_eq!(db.load("a", 0).unwrap().last_sequence, last);
}
