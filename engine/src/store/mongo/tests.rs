//! The store in MongoDB: the suite of all storages, and what is its own.

use std::sync::Arc;

use mongodb::bson::{Bson, DateTime, Document, doc};
use shardwire_proto::record::{Change, Question, Record, Retention, Ticket};

use super::write::EXPIRY_GRACE_MS;
use super::*;
use crate::mongo::testing::TestDatabase;
use crate::store::suite::{self, FOREVER, Place, all, append, appends, op, record, stored};

/// A database.
pub(in crate::store) struct Served {
    database: TestDatabase,
}

impl Place for Served {
    type Storage = MongoStorage;
    const MANY: u32 = 600;
    const LIVES: u32 = 12;

    fn is_there() -> bool {
        TestDatabase::is_there()
    }

    fn new() -> Self {
        let database = TestDatabase::make();
        // Messages of tests are of 1970: the server would delete them while they are looked at.
        let messages = database.mongo.collection(names::MESSAGES);
        database
            .mongo
            .run(messages.drop_index("by_expiry"))
            .unwrap();
        Self { database }
    }

    fn storage(&self) -> MongoStorage {
        MongoStorage::new(self.database.mongo.clone(), Regime::Alone)
    }

    fn rows(&self) -> u64 {
        let messages = self.database.mongo.collection(names::MESSAGES);
        let count = messages.count_documents(doc! {});
        self.database.mongo.run(count).unwrap()
    }

    fn expire(&self, writer: &mut MongoBackend, now_ms: u64) {
        let before = DateTime::from_millis(int(now_ms) + EXPIRY_GRACE_MS);
        let expired = writer
            .messages
            .delete_many(doc! {"expires": {"$lte": before}});
        writer.mongo.run(expired).unwrap();
        while !writer.expire(now_ms, Duration::ZERO).unwrap().round_done {}
    }
}

type Db = suite::Db<Served>;

suite::backend_suite!(Served);

/// Runs a test where there is a server.
macro_rules! served {
    ($(#[$attribute:meta])* fn $name:ident() $body:block) => {
        $(#[$attribute])*
        #[test]
        fn $name() {
            if Served::is_there() $body
        }
    };
}

fn cluster(db: &Db) -> MongoBackend {
    let storage = MongoStorage::new(db.place.database.mongo.clone(), Regime::Cluster);
    storage.open(Role::Writer).unwrap()
}

/// Ids of a channel's visible messages, in order.
fn ids(db: &mut Db, channel: &str) -> Vec<String> {
    match db.ask(channel, Question::Page(all(100)), 0) {
        StoreAnswer::Page { messages, .. } => messages.iter().map(|m| m.id.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

fn named(channel: &str, seq: u64, id: &str) -> StoreOp {
    let record = Record {
        id: id.into(),
        ..(*record(seq, seq)).clone()
    };
    let (record, retention) = (Arc::new(record), FOREVER);
    op(channel, Change::Append { record, retention })
}

served! {
    fn what_a_broken_batch_has_left_is_not_seen_and_gives_way() {
        let mut db = Db::new();
        db.apply(&appends("a", 1..=2, FOREVER)).unwrap();
        // Messages without their head.
        let left = doc! {"app": "app", "channel": "a", "seq": 3_i64, "id": "left", "window": 0_i64};
        db.writer.mongo.run(db.writer.messages.insert_one(left)).unwrap();
        assert_eq!(ids(&mut db, "a"), ["id-1", "id-2"]);
        db.apply(&[named("a", 3, "ours"), append("b", 1, 1, FOREVER)]).unwrap();
        assert_eq!(ids(&mut db, "a"), ["id-1", "id-2", "ours"]);
        assert_eq!(db.rows(), 4);
    }
}

served! {
    fn a_failed_batch_is_taken_back_before_anything_else() {
        let mut db = Db::new();
        let storage = db.place.storage();
        let (mut writer, mut reader) = (storage.open(Role::Writer).unwrap(), storage.open(Role::Reader).unwrap());
        writer.apply(&appends("a", 1..=2, FOREVER), 0).unwrap();
        let before = writer.heads.get(&heads::Key::of(&stored("a"))).unwrap().clone();
        let keys = ["a", "fresh"].map(|name| heads::Key::of(&stored(name)));
        writer.apply(&[append("a", 3, 3, FOREVER), append("fresh", 1, 1, FOREVER)], 0).unwrap();
        let late = writer.heads.get(&keys[0]).unwrap().raise(&keys[0], true);
        // As if nobody had answered.
        storage.doubts.add([(keys[0].clone(), before), (keys[1].clone(), heads::Head::default())].into());
        let mut seen = |name: &str| {
            let question = Question::Page(all(9));
            let read = StoreRead { ticket: Ticket(0), app: "app".into(), channel: name.into(), question };
            match reader.read(&read, 9).unwrap() {
                StoreAnswer::Page { messages, .. } => messages.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((seen("a"), seen("fresh")), (2, 0));
        writer.probe().unwrap();
        assert_eq!((seen("a"), seen("fresh"), db.rows()), (2, 0, 2));
        assert_eq!(db.load("fresh", 9), None);
        // A write of the batch that comes late.
        let answer = writer.mongo.run(write::update_heads(&writer, vec![late], false)).unwrap();
        assert!(answer.is_err());
        assert_eq!(seen("a"), 2);
        writer.apply(&[named("a", 3, "other"), named("fresh", 1, "f")], 0).unwrap();
        assert_eq!(ids(&mut db, "a"), ["id-1", "id-2", "other"]);
        assert_eq!(ids(&mut db, "fresh"), ["f"]);
    }
}

served! {
    fn another_server_on_the_same_channel_is_noticed() {
        let mut db = Db::new();
        db.apply(&appends("a", 1..=2, FOREVER)).unwrap();
        let mut other = db.place.storage().open(Role::Writer).unwrap();
        other.apply(&[named("a", 3, "theirs")], 0).unwrap();
        // Its number is taken; nothing of it may be lost.
        let told = db.apply(&[named("a", 3, "ours")]);
        assert!(told.is_err(), "{told:?}");
        assert_eq!(ids(&mut db, "a").last().unwrap(), "theirs");
    }
}

served! {
    fn in_a_cluster_messages_come_in_any_order_and_twice() {
        let mut db = Db::new();
        let (mut one, mut two) = (cluster(&db), cluster(&db));
        let op = |seq| append("a", seq, seq, FOREVER);
        one.apply(&[op(1), op(2), op(4)], 0).unwrap();
        assert_eq!(db.load("a", 9).unwrap().newest.len(), 1);
        two.apply(&[op(3), op(2), op(5)], 0).unwrap();
        one.apply(&[op(5), op(1)], 0).unwrap();
        let loaded = db.load("a", 9).unwrap();
        assert_eq!((loaded.last_sequence, loaded.newest.len(), db.rows()), (5, 5, 5));
        let told = two.apply(&[named("a", 4, "another")], 0);
        assert!(matches!(told, Err(BackendError::Order(_))), "{told:?}");
        assert_eq!(db.rows(), 5);
    }
}

served! {
    fn an_id_that_was_forgotten_is_stored_with_its_number() {
        let mut db = Db::new();
        db.apply(&[named("a", 1, "x"), named("a", 2, "x"), named("a", 3, "y")]).unwrap();
        assert_eq!(ids(&mut db, "a"), ["x", "x", "y"]);
        db.apply(&[op("a", Change::Clear), named("a", 4, "y")]).unwrap();
        assert_eq!(ids(&mut db, "a"), ["y"]);
    }
}

served! {
    fn more_than_is_kept_is_deleted() {
        let mut db = Db::new();
        let retention = Retention { messages_max: 10, ..FOREVER };
        for start in (1..=300).step_by(50) {
            db.apply(&appends("a", start..=start + 49, retention)).unwrap();
        }
        db.expire(0);
        assert!((10..100).contains(&db.rows()), "{}", db.rows());
        assert_eq!(db.page("a", all(20), 0), ((291..=300).collect(), false));
        let mut db = db.reopen();
        db.apply(&appends("a", 301..=400, retention)).unwrap();
        db.expire(0);
        assert!((10..100).contains(&db.rows()), "{}", db.rows());
    }
}

served! {
    fn messages_that_are_kept_longer_than_they_were_are_not_missed() {
        let mut db = Db::new();
        let short = Retention { age_ms: 10, ..FOREVER };
        db.apply(&appends("a", 1..=20, short)).unwrap();
        db.expire(20);
        db.apply(&[append("a", 21, 21, FOREVER)]).unwrap();
        let loaded = db.load("a", 21).unwrap();
        assert_eq!((loaded.gone_sequence, loaded.gone_timestamp, loaded.newest.len()), (10, 10, 11));
    }
}

/// Every stage of a plan, its own and those below.
fn stages(plan: &Document, all: &mut Vec<String>) {
    if let Ok(stage) = plan.get_str("stage") {
        all.push(stage.to_owned());
    }
    for (_, value) in plan {
        match value {
            Bson::Document(below) => stages(below, all),
            Bson::Array(several) => several
                .iter()
                .filter_map(Bson::as_document)
                .for_each(|below| stages(below, all)),
            _ => {}
        }
    }
}

served! {
    /// The shapes of all queries of this module.
    fn no_query_reads_a_whole_collection() {
        let mut db = Db::new();
        db.apply(&appends("a", 1..=100, FOREVER)).unwrap();
        let of = |rest: Document| {
            let mut filter = doc! {"app": "app", "channel": "a"};
            filter.extend(rest);
            filter
        };
        let seqs = doc! {"$gte": 5_i64, "$lte": 9_i64};
        let time = DateTime::from_millis(5);
        let shapes = [
            ("messages", of(doc! {"seq": seqs.clone()}), doc! {"seq": 1}, "by_seq"),
            ("messages", of(doc! {"seq": seqs.clone()}), doc! {"seq": -1}, "by_seq"),
            ("messages", of(doc! {"seq": {"$in": [1_i64, 2]}}), doc! {}, "by_seq"),
            ("messages", of(doc! {"seq": seqs.clone(), "ts": {"$gt": time}}), doc! {"ts": 1, "seq": 1}, "by_time"),
            ("messages", of(doc! {"seq": seqs, "ts": time}), doc! {}, "by_time"),
            ("messages", doc! {"_id": {"$in": ["x"]}}, doc! {}, "_id_"),
            ("channels", doc! {"_id": "app/a"}, doc! {}, "_id_"),
            ("channels", doc! {"_id": {"$in": ["app/a", "app/b"]}}, doc! {}, "_id_"),
        ];
        let mongo = &db.writer.mongo;
        for (collection, filter, sort, hint) in shapes {
            let find = doc! {"find": mongo.name(collection), "filter": filter, "sort": sort, "hint": hint};
            let explain = doc! {"explain": find.clone(), "verbosity": "queryPlanner"};
            let told = mongo.run(mongo.database().run_command(explain)).unwrap();
            let mut all = Vec::new();
            stages(told.get_document("queryPlanner").unwrap().get_document("winningPlan").unwrap(), &mut all);
            assert!(!all.contains(&"COLLSCAN".to_owned()), "{find}: {all:?}");
            let by_index = |stage: &String| stage.contains("IXSCAN") || stage.contains("IDHACK") || stage.contains("EXPRESS");
            assert!(all.iter().any(by_index), "{find}: {all:?}");
        }
    }
}

served! {
    fn a_later_schema_is_refused_and_the_same_one_opens() {
        let db = Db::new();
        let mongo = &db.writer.mongo;
        let again = Mongo::connect(&db.place.database.config).unwrap();
        drop(again);
        let meta = mongo.collection(META);
        mongo.run(meta.update_one(doc! {"_id": "schema"}, doc! {"$inc": {"version": 1_i64}})).unwrap();
        let told = Mongo::connect(&db.place.database.config).err().unwrap();
        assert!(told.to_string().contains("later version"), "{told}");
    }
}

served! {
    fn the_database_deletes_by_age() {
        let mut db = Db::new();
        let place = Served { database: TestDatabase::make() };
        let messages = place.database.mongo.collection(names::MESSAGES);
        let indexes = place.database.mongo.run(messages.list_index_names()).unwrap();
        for name in ["by_seq", "by_time", "by_id", "by_expiry"] {
            assert!(indexes.iter().any(|index| index == name), "{indexes:?}");
        }
        let retention = Retention { age_ms: 1000, ..FOREVER };
        db.apply(&[append("a", 1, 5, retention), append("b", 1, 5, FOREVER)]).unwrap();
        let expires = |channel: &str| {
            let found = db.writer.messages.find_one(doc! {"channel": channel});
            let found = db.writer.mongo.run(found).unwrap().unwrap();
            found.get_datetime("expires").ok().map(|at| at.timestamp_millis())
        };
        assert_eq!((expires("a"), expires("b")), (Some(1005 + EXPIRY_GRACE_MS), None));
    }
}
