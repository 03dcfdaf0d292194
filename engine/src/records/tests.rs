//! What every store of records does, whatever it keeps them in.

use std::os::unix::fs::PermissionsExt;

use super::mongo::MongoRecordStorage;
use super::sqlite::SqliteRecordStorage;
use super::*;
use crate::mongo::testing::TestDatabase;

const KIND: &str = "thing";

fn sqlite() -> (tempfile::TempDir, SqliteRecordStorage) {
    let folder = tempfile::tempdir().unwrap();
    let storage = SqliteRecordStorage::new(folder.path());
    (folder, storage)
}

fn thing(id: &str, rank: i64, labels: &[(&str, &str)]) -> Record {
    let labels = labels
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    Record {
        id: id.into(),
        labels: labels.collect(),
        rank,
        body: format!("{{\"of\":\"{id}\"}}"),
        ..Record::default()
    }
}

fn put(record: Record) -> Change {
    Change::put(KIND, record)
}

fn ids(records: Vec<Record>) -> Vec<String> {
    records.into_iter().map(|record| record.id).collect()
}

fn holds_what_it_is_given(storage: &dyn RecordStorage) {
    let mut first = storage.open(Area::Push).unwrap();
    let record = thing("a", 7, &[("app", "x"), ("member", "m")]);
    first.apply(&[put(record.clone())], 0).unwrap();
    // Another connection, and another area.
    let mut second = storage.open(Area::Push).unwrap();
    let found = second.get(KIND, "a", 0).unwrap().unwrap();
    assert_eq!(
        found,
        Record {
            version: 1,
            ..record
        }
    );
    assert_eq!(second.get("other", "a", 0), Ok(None));
    assert_eq!(
        storage.open(Area::Accounts).unwrap().get(KIND, "a", 0),
        Ok(None)
    );
    first.apply(&[put(thing("a", 8, &[]))], 0).unwrap();
    let found = second.get(KIND, "a", 0).unwrap().unwrap();
    assert_eq!((found.version, found.rank), (2, 8));
    let labelled = Scan::of(KIND, 9).labelled("app", "x");
    assert_eq!(ids(second.scan(&labelled, 0).unwrap()), [""; 0]);
    second.apply(&[Change::delete(KIND, "a")], 0).unwrap();
    second.apply(&[Change::delete(KIND, "a")], 0).unwrap();
    assert_eq!(first.get(KIND, "a", 0), Ok(None));
}

fn changes_all_or_nothing(storage: &dyn RecordStorage) {
    let mut records = storage.open(Area::Push).unwrap();
    let when = |record, when| Change::Put {
        kind: KIND,
        record,
        when,
    };
    let absent = |id| when(thing(id, 0, &[]), Condition::Absent);
    records.apply(&[absent("a")], 0).unwrap();
    let both = [absent("b"), absent("a")];
    assert_eq!(records.apply(&both, 0), Err(RecordError::Conflict(1)));
    assert_eq!(records.get(KIND, "b", 0), Ok(None));
    let old = when(thing("a", 0, &[]), Condition::Version(1));
    records.apply(std::slice::from_ref(&old), 0).unwrap();
    assert_eq!(records.apply(&[old], 0), Err(RecordError::Conflict(0)));
    let delete = |version| Change::Delete {
        kind: KIND,
        id: "a".into(),
        when: Condition::Version(version),
    };
    assert_eq!(
        records.apply(&[delete(1)], 0),
        Err(RecordError::Conflict(0))
    );
    // Later changes of a list see the earlier ones.
    records.apply(&[delete(2), absent("a")], 0).unwrap();
    assert_eq!(records.count(KIND, None, 0), Ok(1));
    records.apply(&[Change::delete(KIND, "a")], 0).unwrap();
}

fn scans_in_order(storage: &dyn RecordStorage) {
    let mut records = storage.open(Area::Push).unwrap();
    let all = [
        thing("d", 2, &[("app", "x")]),
        thing("a", 3, &[("app", "x")]),
        thing("c", 1, &[("app", "x"), ("member", "m")]),
        thing("b", 2, &[("app", "x")]),
        thing("e", 2, &[("app", "y")]),
    ];
    records.apply(&all.map(put), 0).unwrap();
    let mut scan = |scan: Scan| ids(records.scan(&scan, 0).unwrap());
    assert_eq!(scan(Scan::of(KIND, 9)), ["c", "b", "d", "e", "a"]);
    assert_eq!(scan(Scan::of(KIND, 2)), ["c", "b"]);
    for label in [None, Some(("app".to_owned(), "x".to_owned()))] {
        let base = Scan {
            label,
            ..Scan::of(KIND, 9)
        };
        let without = |ids: &[&str]| -> Vec<String> {
            let there = |id: &&&str| base.label.is_none() || **id != "e";
            ids.iter()
                .filter(there)
                .map(|id| (*id).to_owned())
                .collect()
        };
        let newest = Scan {
            newest_first: true,
            ..base.clone()
        };
        assert_eq!(scan(newest.clone()), without(&["a", "e", "d", "b", "c"]));
        let after = Some((2, "b".to_owned()));
        let onward = Scan {
            after: after.clone(),
            ..base.clone()
        };
        assert_eq!(scan(onward), without(&["d", "e", "a"]));
        assert_eq!(scan(Scan { after, ..newest }), without(&["c"]));
        let ranks = Scan {
            rank_min: Some(2),
            rank_max: Some(2),
            ..base.clone()
        };
        assert_eq!(scan(ranks), without(&["b", "d", "e"]));
    }
    assert_eq!(scan(Scan::of(KIND, 9).labelled("member", "m")), ["c"]);
    assert_eq!(records.count(KIND, Some(("app", "x")), 0), Ok(4));
    assert_eq!(records.count(KIND, Some(("app", "z")), 0), Ok(0));
    let gone = ["a", "b", "c", "d", "e"].map(|id| Change::delete(KIND, id));
    records.apply(&gone, 0).unwrap();
}

/// What one store holds another takes as it is.
fn moves(from: &dyn RecordStorage, to: &dyn RecordStorage) {
    let (mut from, mut to) = (
        from.open(Area::Accounts).unwrap(),
        to.open(Area::Accounts).unwrap(),
    );
    let mut all: Vec<Change> = (0..7)
        .map(|n| put(thing(&format!("t{n}"), n % 3, &[("n", "x")])))
        .collect();
    let record = Record {
        expires_ms: Some(LATER),
        ..thing("e", -5, &[])
    };
    all.push(Change::put("other", record));
    from.apply(&all, 0).unwrap();
    from.apply(&all[..3], 0).unwrap();
    let dump = |records: &mut dyn Records| {
        let mut found: Vec<(String, Record)> = Vec::new();
        loop {
            let after = found
                .last()
                .map(|(kind, last)| (kind.clone(), last.rank, last.id.clone()));
            let after = after
                .as_ref()
                .map(|(kind, rank, id)| (&**kind, *rank, &**id));
            let page = records.dump(after, 3).unwrap();
            if page.is_empty() {
                return found;
            }
            found.extend(page);
        }
    };
    let there = dump(&mut *from);
    assert_eq!(there.len(), 8);
    to.restore(&there[..5]).unwrap();
    to.restore(&there).unwrap();
    assert_eq!(dump(&mut *to), there);
    assert_eq!(to.count(KIND, Some(("n", "x")), 0), Ok(7));
}

#[test]
fn sqlite_moves() {
    moves(&sqlite().1, &sqlite().1);
}

/// A time that is not over yet by any clock: some stores look at their own, too.
const LATER: u64 = 4_000_000_000_000;

fn forgets_what_is_over(storage: &dyn RecordStorage) {
    let mut records = storage.open(Area::Push).unwrap();
    let until = |id: &str, expires_ms| Record {
        expires_ms: Some(LATER + expires_ms),
        ..thing(id, 0, &[("app", "x")])
    };
    let all = [until("a", 10), until("b", 20), thing("c", 0, &[])];
    records.apply(&all.map(put), 0).unwrap();
    assert!(records.get(KIND, "a", LATER + 9).unwrap().is_some());
    assert_eq!(records.get(KIND, "a", LATER + 10), Ok(None));
    let labelled = Scan::of(KIND, 9).labelled("app", "x");
    assert_eq!(ids(records.scan(&labelled, LATER + 10).unwrap()), ["b"]);
    assert_eq!(records.count(KIND, Some(("app", "x")), LATER + 10), Ok(1));
    assert_eq!(records.count(KIND, None, LATER + 10), Ok(2));
    let again = Change::Put {
        kind: KIND,
        record: until("a", 30),
        when: Condition::Absent,
    };
    records.apply(&[again], LATER + 10).unwrap();
    assert_eq!(records.expire(LATER + 20, 9), Ok(1));
    assert_eq!(records.expire(LATER + 20, 9), Ok(0));
    assert_eq!(records.expire(LATER + 30, 9), Ok(1));
    assert_eq!(ids(records.scan(&Scan::of(KIND, 9), 0).unwrap()), ["c"]);
    records.apply(&[Change::delete(KIND, "c")], 0).unwrap();
}

#[test]
fn sqlite_holds_what_it_is_given() {
    holds_what_it_is_given(&sqlite().1);
}

#[test]
fn sqlite_changes_all_or_nothing() {
    changes_all_or_nothing(&sqlite().1);
}

#[test]
fn sqlite_scans_in_order() {
    scans_in_order(&sqlite().1);
}

#[test]
fn sqlite_forgets_what_is_over() {
    forgets_what_is_over(&sqlite().1);
}

#[test]
fn sqlite_files_are_for_their_owner() {
    let (folder, storage) = sqlite();
    let mut records = storage.open(Area::Webhooks).unwrap();
    records.apply(&[put(thing("a", 0, &[]))], 0).unwrap();
    for name in ["webhooks.db", "webhooks.db-wal"] {
        let mode = folder.path().join(name).metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn mongo_does_the_same() {
    if TestDatabase::is_there() {
        let database = TestDatabase::make();
        let storage = MongoRecordStorage::new(database.mongo.clone());
        holds_what_it_is_given(&storage);
        changes_all_or_nothing(&storage);
        scans_in_order(&storage);
        forgets_what_is_over(&storage);
        let (_folder, files) = sqlite();
        moves(&files, &storage);
        moves(&storage, &sqlite().1);
    }
}

/// Each change wins once, whoever makes it.
#[test]
fn mongo_servers_do_not_overwrite_each_other() {
    if !TestDatabase::is_there() {
        return;
    }
    let database = TestDatabase::make();
    let storage = MongoRecordStorage::new(database.mongo.clone());
    let mut records = storage.open(Area::Push).unwrap();
    records.apply(&[put(thing("n", 0, &[]))], 0).unwrap();
    let add = || {
        let mut records = storage.open(Area::Push).unwrap();
        for _ in 0..10 {
            loop {
                let found = records.get(KIND, "n", 0).unwrap().unwrap();
                let when = Condition::Version(found.version);
                let record = thing("n", found.rank + 1, &[]);
                let kind = KIND;
                match records.apply(&[Change::Put { kind, record, when }], 0) {
                    Ok(()) => break,
                    Err(RecordError::Conflict(0)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(add);
        scope.spawn(add);
    });
    let found = records.get(KIND, "n", 0).unwrap().unwrap();
    assert_eq!((found.rank, found.version), (20, 21));
}
