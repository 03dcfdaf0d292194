//! The embedded store against a naive model, and what is on disk.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use proptest::prelude::*;
use shardwire_proto::record::{
    Change, Loaded, Page, Question, Record, Retention, StoredChannel, Ticket,
};
use tempfile::TempDir;

use super::*;

const FOREVER: Retention = Retention {
    messages_max: u64::MAX,
    age_ms: u64::MAX,
    sync: Sync::Process,
};
/// Longer than any step takes.
const NO_HURRY: Duration = Duration::from_secs(60);

struct Db {
    dir: TempDir,
    writer: SqliteBackend,
    reader: SqliteBackend,
}

impl Db {
    fn new() -> Self {
        // In memory where there is such a place: what is tested here is not the disk.
        let memory = tempfile::tempdir_in("/dev/shm");
        Self::at(memory.or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn at(dir: TempDir) -> Self {
        let file = Sqlite::new(dir.path().join(FILE_NAME));
        let writer = file.open(Role::Writer).unwrap();
        let reader = file.open(Role::Reader).unwrap();
        Self {
            dir,
            writer,
            reader,
        }
    }

    fn reopen(self) -> Self {
        let Self {
            dir,
            writer,
            reader,
        } = self;
        drop((writer, reader));
        Self::at(dir)
    }

    fn apply(&mut self, ops: &[StoreOp]) -> Result<Applied, BackendError> {
        self.writer.apply(ops, 0)
    }

    fn ask(&mut self, channel: &str, question: Question, now_ms: u64) -> StoreAnswer {
        let read = StoreRead {
            ticket: Ticket(0),
            app: "app".into(),
            channel: channel.into(),
            question,
        };
        self.reader.read(&read, now_ms).unwrap()
    }

    fn page(&mut self, channel: &str, page: Page, now_ms: u64) -> (Vec<u64>, bool) {
        match self.ask(channel, Question::Page(page), now_ms) {
            StoreAnswer::Page { messages, has_more } => {
                (messages.iter().map(|m| m.sequence).collect(), has_more)
            }
            other => panic!("{other:?}"),
        }
    }

    fn load(&mut self, channel: &str, now_ms: u64) -> Option<Loaded> {
        let question = Question::Load {
            messages_max: 1000,
            bytes_max: 1 << 20,
            ids_after_ms: 0,
        };
        match self.ask(channel, question, now_ms) {
            StoreAnswer::Loaded(loaded) => loaded.map(|loaded| *loaded),
            other => panic!("{other:?}"),
        }
    }

    /// Rows on disk.
    fn rows(&self) -> i64 {
        let count = "SELECT count(*) FROM messages";
        self.writer
            .db
            .query_row(count, [], |row| row.get(0))
            .unwrap()
    }

    /// A round of expiry; how many, and messages removed.
    fn expire(&mut self, now_ms: u64, budget: Duration) -> (u32, u64) {
        let (mut steps, mut messages) = (0, 0);
        self.writer.sweep.next_ms = 0;
        loop {
            let expired = self.writer.expire(now_ms, budget).unwrap();
            steps += 1;
            messages += expired.messages;
            if expired.round_done {
                return (steps, messages);
            }
        }
    }
}

fn record(seq: u64, ts: u64) -> Arc<Record> {
    Arc::new(Record {
        sequence: seq,
        timestamp: ts,
        id: format!("id-{seq}").into(),
        publisher: "anon".into(),
        data: "\"x\"".into(),
    })
}

fn stored(name: &str) -> Arc<StoredChannel> {
    Arc::new(StoredChannel {
        app: "app".into(),
        name: name.into(),
        epoch: "epoch".into(),
    })
}

fn op(name: &str, change: Change) -> StoreOp {
    StoreOp {
        ticket: Ticket(0),
        generation: 0,
        channel: stored(name),
        change,
    }
}

fn append(name: &str, seq: u64, ts: u64, retention: Retention) -> StoreOp {
    let record = record(seq, ts);
    op(name, Change::Append { record, retention })
}

/// Appends messages `seqs`, each at the time of its number.
fn appends(name: &str, seqs: std::ops::RangeInclusive<u64>, retention: Retention) -> Vec<StoreOp> {
    seqs.map(|seq| append(name, seq, seq, retention)).collect()
}

fn all(limit: usize) -> Page {
    Page {
        forward: true,
        limit,
        bytes_max: usize::MAX,
        ..Page::default()
    }
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let mut db = Db::new();
    db.apply(&appends("a", 1..=5, FOREVER)).unwrap();
    db.apply(&[append("b", 1, 9, FOREVER)]).unwrap();
    let before = (db.load("a", 10), db.load("b", 10));
    let mut db = db.reopen();
    assert_eq!((db.load("a", 10), db.load("b", 10)), before);
    let a = before.0.unwrap();
    assert_eq!(
        (a.last_sequence, a.last_timestamp, &*a.epoch),
        (5, 5, "epoch")
    );
    assert_eq!(
        a.newest.iter().map(|m| m.sequence).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(a.newest[1], record(2, 2));
    assert_eq!(a.recent_ids[4], ("id-5".into(), 5, 5));
    db.apply(&appends("a", 6..=6, FOREVER)).unwrap();
    assert_eq!(db.load("a", 10).unwrap().last_sequence, 6);
    assert_eq!(db.load("c", 10), None);
}

/// What a kill leaves: the database and its log as they are, never closed.
#[test]
fn a_commit_is_there_after_a_kill() {
    let mut db = Db::new();
    db.apply(&appends("a", 1..=3, FOREVER)).unwrap();
    let killed = tempfile::tempdir().unwrap();
    for name in [FILE_NAME.to_owned(), format!("{FILE_NAME}-wal")] {
        std::fs::copy(db.dir.path().join(&name), killed.path().join(&name)).unwrap();
    }
    // Half of a transaction that was being written.
    let log = killed.path().join(format!("{FILE_NAME}-wal"));
    let mut bytes = std::fs::read(&log).unwrap();
    bytes.extend_from_within(bytes.len() - 3000..);
    std::fs::write(&log, bytes).unwrap();
    let mut after = Db::at(killed);
    assert_eq!(after.page("a", all(10), 5), (vec![1, 2, 3], false));
}

#[test]
fn a_batch_that_contradicts_what_is_stored_leaves_nothing() {
    let mut db = Db::new();
    db.apply(&[append("a", 1, 50, FOREVER)]).unwrap();
    let gap = append("a", 3, 60, FOREVER);
    let again = append("a", 1, 60, FOREVER);
    let earlier = append("a", 2, 49, FOREVER);
    let mut other_numbering = append("a", 2, 60, FOREVER);
    other_numbering.channel = Arc::new(StoredChannel {
        epoch: "other".into(),
        ..(*other_numbering.channel).clone()
    });
    let not_first = append("fresh", 2, 60, FOREVER);
    for wrong in [gap, again, earlier, other_numbering, not_first] {
        let told = db.apply(&[append("b", 1, 50, FOREVER), wrong]);
        assert!(matches!(told, Err(BackendError::Order(_))), "{told:?}");
        assert_eq!((db.load("b", 99), db.load("fresh", 99)), (None, None));
    }
    db.apply(&[append("a", 2, 50, FOREVER), append("b", 1, 50, FOREVER)])
        .unwrap();
    assert_eq!(db.load("a", 99).unwrap().last_sequence, 2);
}

#[test]
fn readers_see_retention_exactly_before_anything_is_deleted() {
    let mut db = Db::new();
    let retention = Retention {
        messages_max: 8,
        age_ms: 10,
        ..FOREVER
    };
    db.apply(&appends("a", 1..=10, retention)).unwrap();
    assert_eq!(db.rows(), 10);
    let loaded = db.load("a", 11).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), (2, 2));
    assert_eq!(db.page("a", all(3), 11), (vec![3, 4, 5], true));
    // At 15 what is from 5 and before is 10 old.
    let loaded = db.load("a", 15).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), (5, 5));
    assert_eq!(db.page("a", all(9), 15), (vec![6, 7, 8, 9, 10], false));
    let count = |db: &mut Db, timestamp| db.ask("a", Question::CountAt { timestamp }, 15);
    assert!(matches!(count(&mut db, 5), StoreAnswer::Count(0)));
    assert!(matches!(count(&mut db, 6), StoreAnswer::Count(1)));
    // Their ids are still known.
    assert_eq!(loaded.recent_ids.len(), 10);
    let loaded = db.load("a", 20).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.newest.len()), (10, 0));
    assert_eq!((loaded.last_sequence, loaded.last_timestamp), (10, 10));
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
    let (steps, removed) = db.expire(1, Duration::from_micros(200));
    assert!(steps > 1);
    assert_eq!((removed, db.rows()), (4990, 10));
    assert_eq!(db.page("a", all(1), 1), (vec![4991], true));
}

#[test]
fn expiry_deletes_what_is_old_and_moves_what_is_gone() {
    let mut db = Db::new();
    let retention = Retention {
        age_ms: 100,
        ..FOREVER
    };
    for name in ["a", "b", "c"] {
        db.apply(&appends(name, 1..=50, retention)).unwrap();
    }
    db.apply(&appends("d", 1..=50, FOREVER)).unwrap();
    assert_eq!(db.expire(100, NO_HURRY), (1, 0));
    assert_eq!(db.expire(120, NO_HURRY), (1, 60));
    assert_eq!(db.rows(), 140);
    let loaded = db.load("b", 120).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), (20, 20));
    // The writer knows what expiry has done.
    db.apply(&[append("b", 51, 120, retention)]).unwrap();
    assert_eq!(db.load("b", 120).unwrap().gone_sequence, 20);
    assert_eq!(db.expire(10_000, NO_HURRY).1, 91);
    let mut db = db.reopen();
    let loaded = db.load("a", 10_000).unwrap();
    assert_eq!(
        (
            loaded.last_sequence,
            loaded.gone_sequence,
            loaded.gone_timestamp
        ),
        (50, 50, 50)
    );
    db.apply(&[append("a", 51, 10_000, retention)]).unwrap();
    assert_eq!(db.page("a", all(9), 10_000), (vec![51], false));
}

#[test]
fn clearing_keeps_the_numbering_and_counts_what_readers_had() {
    let mut db = Db::new();
    let retention = Retention {
        messages_max: 8,
        ..FOREVER
    };
    db.apply(&appends("a", 1..=10, retention)).unwrap();
    let done = db.apply(&[
        append("b", 1, 1, FOREVER),
        op("a", Change::Clear),
        append("a", 11, 11, retention),
        op("unknown", Change::Clear),
        op("a", Change::Clear),
    ]);
    assert_eq!(done.unwrap().removed, [(1, 8), (3, 0), (4, 1)]);
    let loaded = db.load("a", 20).unwrap();
    assert_eq!(
        (
            loaded.last_sequence,
            loaded.gone_sequence,
            loaded.gone_timestamp
        ),
        (11, 11, 11)
    );
    assert!(loaded.newest.is_empty() && loaded.recent_ids.is_empty());
    db.apply(&[append("a", 12, 12, retention)]).unwrap();
    assert_eq!(db.page("a", all(9), 20), (vec![12], false));
    db.expire(20, NO_HURRY);
    assert_eq!((db.rows(), db.load("unknown", 20)), (2, None));
}

#[test]
fn the_bytes_of_a_load_are_bounded() {
    let mut db = Db::new();
    db.apply(&appends("a", 1..=10, FOREVER)).unwrap();
    let weight = record(7, 7).weight();
    let question = |messages_max, bytes_max| Question::Load {
        messages_max,
        bytes_max,
        ids_after_ms: 9,
    };
    let mut newest = |question| match db.ask("a", question, 10) {
        StoreAnswer::Loaded(Some(loaded)) => (
            loaded.newest.iter().map(|m| m.sequence).collect::<Vec<_>>(),
            loaded.recent_ids.len(),
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(newest(question(3, usize::MAX)), (vec![8, 9, 10], 2));
    // The last one's id is a byte longer.
    assert_eq!(newest(question(9, 2 * weight + 1)), (vec![9, 10], 2));
    assert_eq!(newest(question(9, 2 * weight)), (vec![10], 2));
    assert_eq!(newest(question(9, 0)), (vec![], 2));
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
    db.expire(1, NO_HURRY);
    assert_eq!(level(&db), 1);
    assert_eq!(db.page("b", all(9), 9), (vec![1], false));
}

#[test]
fn a_hundred_thousand_channels() {
    let mut db = Db::new();
    let retention = Retention {
        age_ms: 1000,
        ..FOREVER
    };
    for round in [1, 2] {
        let channels: Vec<_> = (0..100_000).collect();
        for some in channels.chunks(4096) {
            let ops: Vec<_> = some
                .iter()
                .map(|n| append(&format!("room:{n}"), round, round, retention))
                .collect();
            db.apply(&ops).unwrap();
        }
    }
    for n in (0..100_000).step_by(997) {
        let loaded = db.load(&format!("room:{n}"), 500).unwrap();
        assert_eq!((loaded.last_sequence, loaded.newest.len()), (2, 2));
    }
    let (steps, removed) = db.expire(5000, Duration::from_millis(2));
    assert!(steps > 10);
    assert_eq!((removed, db.rows()), (200_000, 0));
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
    let files = std::fs::read_dir(db.dir.path()).unwrap();
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
    let told = Sqlite::new(db.dir.path().join(FILE_NAME))
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
    let mut db = Db::at(dir);
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
    let path = db.dir.path().join(FILE_NAME);
    std::fs::rename(&path, db.dir.path().join("away")).unwrap();
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
    let snapshot = db.dir.path().join(FILE_NAME);
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

/// Steps of a random life of one channel.
#[derive(Debug, Clone)]
enum Step {
    /// Messages, each this much later than the one before, with a payload of this length.
    Append(Vec<(u64, usize)>),
    Clear,
    Wait(u64),
    Expire,
    Reopen,
    Ask(Page),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bound = || prop::option::weighted(0.3, 0..60u64);
    let page = (
        [bound(), bound(), bound(), bound()],
        any::<bool>(),
        (0..8usize, 0..4usize),
        prop_oneof![3 => Just(usize::MAX), 1 => 0..900usize],
    );
    let page = page.prop_map(|(bounds, forward, (limit, ties_max), bytes_max)| Page {
        after_sequence: bounds[0],
        before_sequence: bounds[1],
        after_ms: bounds[2],
        before_ms: bounds[3],
        forward,
        limit,
        ties_max,
        bytes_max,
    });
    let messages =
        prop::collection::vec((prop_oneof![2 => Just(0), 1 => 1..4u64], 0..60usize), 1..9);
    let step = prop_oneof![
        4 => messages.prop_map(Step::Append),
        1 => Just(Step::Clear),
        2 => (0..10u64).prop_map(Step::Wait),
        2 => Just(Step::Expire),
        1 => Just(Step::Reopen),
        6 => page.prop_map(Step::Ask),
    ];
    prop::collection::vec(step, 1..40)
}

/// Everything ever stored, and how much of it was cleared.
struct Model {
    messages: Vec<Arc<Record>>,
    cleared: usize,
    retention: Retention,
}

impl Model {
    /// What a reader may see, oldest first.
    fn visible(&self, now: u64) -> &[Arc<Record>] {
        let count = self.messages.len();
        let by_count = count.saturating_sub(self.retention.messages_max as usize);
        let is_old = |message: &&Arc<Record>| message.timestamp + self.retention.age_ms <= now;
        let by_age = self.messages.iter().filter(is_old).count();
        &self.messages[self.cleared.max(by_count).max(by_age)..]
    }

    /// By trying every length that a page could have.
    fn page(&self, page: &Page, now: u64) -> (Vec<u64>, bool) {
        let mut matching: Vec<_> = self.visible(now).to_vec();
        matching.retain(|m| {
            page.after_sequence.is_none_or(|after| m.sequence > after)
                && page
                    .before_sequence
                    .is_none_or(|before| m.sequence < before)
                && page.after_ms.is_none_or(|after| m.timestamp > after)
                && page.before_ms.is_none_or(|before| m.timestamp < before)
        });
        if !page.forward {
            matching.reverse();
        }
        let limit = page.limit.max(1);
        let splits_run =
            |n: usize| n < matching.len() && matching[n - 1].timestamp == matching[n].timestamp;
        let allowed = |n: &usize| {
            let bytes: usize = matching[..*n].iter().map(|m| m.weight()).sum();
            let ties = (limit..*n).all(|i| matching[i].timestamp == matching[limit - 1].timestamp);
            *n == 1 || (bytes <= page.bytes_max && *n <= limit + page.ties_max && ties)
        };
        let longest = (1..=matching.len()).rev().find(allowed).unwrap_or(0);
        let whole = (1..=longest)
            .rev()
            .find(|n| !splits_run(*n))
            .unwrap_or(longest);
        let given = matching[..whole].iter().map(|m| m.sequence).collect();
        (given, whole < matching.len())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_those_of_a_naive_model(
        steps in steps(),
        messages_max in prop_oneof![1..6u64, Just(20), Just(u64::from(u32::MAX))],
        age_ms in prop_oneof![5..30u64, Just(1 << 40)],
    ) {
        let retention = Retention { messages_max, age_ms, sync: Sync::Process };
        let mut model = Model { messages: Vec::new(), cleared: 0, retention };
        let mut db = Db::new();
        let mut now = 1;
        for step in steps {
            match step {
                Step::Append(messages) => {
                    let mut ops = Vec::new();
                    for (later, length) in messages {
                        now += later;
                        let seq = model.messages.len() as u64 + 1;
                        let data = "y".repeat(length).into();
                        let record = Arc::new(Record { data, ..(*record(seq, now)).clone() });
                        model.messages.push(record.clone());
                        ops.push(op("a", Change::Append { record, retention }));
                    }
                    db.writer.apply(&ops, now).unwrap();
                }
                Step::Clear => {
                    let removed = db.writer.apply(&[op("a", Change::Clear)], now).unwrap().removed;
                    prop_assert_eq!(removed, [(0, model.visible(now).len() as u64)]);
                    model.cleared = model.messages.len();
                }
                Step::Wait(ms) => now += ms,
                Step::Expire => _ = db.expire(now, NO_HURRY),
                Step::Reopen => db = db.reopen(),
                Step::Ask(page) => prop_assert_eq!(db.page("a", page, now), model.page(&page, now)),
            }
            check_state(&mut db, &model, now)?;
        }
    }
}

fn check_state(db: &mut Db, model: &Model, now: u64) -> Result<(), TestCaseError> {
    let Some(loaded) = db.load("a", now) else {
        prop_assert!(model.messages.is_empty());
        return Ok(());
    };
    let visible = model.visible(now);
    let gone = model.messages.len() - visible.len();
    let gone = if gone == 0 {
        (0, 0)
    } else {
        (gone as u64, model.messages[gone - 1].timestamp)
    };
    prop_assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), gone);
    prop_assert_eq!(loaded.last_sequence, model.messages.len() as u64);
    prop_assert_eq!(&loaded.newest, visible);
    let at_now = visible.iter().filter(|m| m.timestamp == now).count() as u64;
    let count = db.ask("a", Question::CountAt { timestamp: now }, now);
    prop_assert!(
        matches!(count, StoreAnswer::Count(n) if n == at_now),
        "{:?} {}",
        count,
        at_now
    );
    Ok(())
}
