//! Both ways, interrupted and not.

use shardwire_proto::record::{
    Change as StoreChange, Record as Message, Retention, StoreOp, StoredChannel, Sync, Ticket,
};
use tempfile::TempDir;

use super::sides::Side;
use super::*;
use crate::config::{Env, Host, cli::Flags};
use crate::mongo::MongoConfig;
use crate::mongo::testing::TestDatabase;
use crate::records::sqlite::SqliteRecordStorage;
use crate::records::{Area, Change, Record, RecordStorage};
use crate::store::sqlite::{FILE_NAME, Sqlite};
use crate::store::{Backend, Role, Storage};

fn config(folder: &TempDir, mongo: &MongoConfig) -> Config {
    let flags = Flags {
        data_dir: Some(folder.path().join("data").display().to_string()),
        ..Flags::default()
    };
    let mut config = Config::load(&flags, &Env::default(), &Host::of_process()).unwrap();
    config.mongo = mongo.clone();
    config
}

fn append(channel: &str, seq: u64, retention: Retention) -> StoreOp {
    let record = Message {
        sequence: seq,
        timestamp: 1_700_000_000_000 + seq * 10,
        id: format!("{channel}-{seq}").into(),
        publisher: "anon".into(),
        data: format!("{{\"n\": {seq}}}").into(),
    };
    StoreOp {
        ticket: Ticket(0),
        generation: 0,
        channel: std::sync::Arc::new(StoredChannel {
            app: "dev".into(),
            name: channel.into(),
            epoch: format!("epoch of {channel}").into(),
        }),
        change: StoreChange::Append {
            record: std::sync::Arc::new(record),
            retention,
        },
    }
}

/// A data folder with something of each kind.
fn filled(folder: &TempDir) -> std::path::PathBuf {
    let path = folder.path().join("data");
    let dir = DataDir::lock(&path).unwrap();
    crate::keys::open(
        &dir,
        &crate::keys::DevKeys::default(),
        &MongoConfig::default(),
    )
    .unwrap();
    let mut store = Sqlite::new(path.join(FILE_NAME))
        .open(Role::Writer)
        .unwrap();
    let forever = Retention {
        messages_max: u64::MAX,
        age_ms: u64::MAX,
        sync: Sync::Process,
    };
    let few = Retention {
        messages_max: 3,
        ..forever
    };
    for n in 0..7 {
        let name = format!("room:{n}");
        let ops: Vec<StoreOp> = (1..=n * 40)
            .map(|seq| append(&name, seq, forever))
            .collect();
        store.apply(&ops, 0).unwrap();
    }
    let ops: Vec<StoreOp> = (1..=10).map(|seq| append("few", seq, few)).collect();
    store.apply(&ops, 0).unwrap();
    let clear = StoreOp {
        change: StoreChange::Clear,
        ..append("few", 0, few)
    };
    store.apply(&[clear, append("few", 11, few)], 0).unwrap();
    let mut records = SqliteRecordStorage::new(&path)
        .open(Area::Accounts)
        .unwrap();
    let record = Record {
        id: "ann".into(),
        body: "{}".into(),
        labels: vec![("team".into(), "a".into())],
        ..Record::default()
    };
    records.apply(&[Change::put("account", record)], 0).unwrap();
    let mut usage = crate::usage::SqliteSeries::open(&path.join(crate::usage::USAGE_FILE)).unwrap();
    let used = crate::usage::Used {
        messages: 7,
        connections_peak: 2,
        push_sent: 3,
        push_failed: 1,
        ..Default::default()
    };
    crate::usage::Series::add(&mut usage, &[(("dev".into(), 1_700_000_040), used)].into()).unwrap();
    path
}

#[test]
fn everything_goes_there_and_back() {
    if !TestDatabase::is_there() {
        return;
    }
    let database = TestDatabase::make();
    let folder = tempfile::tempdir().unwrap();
    let path = filled(&folder);
    let there = run(
        &config(&folder, &database.config),
        Destination::Mongo,
        false,
    )
    .unwrap();
    assert_eq!((there.channels, there.messages, there.records), (7, 841, 1));
    assert!(there.documents >= 4 && there.usage == 3, "{there:?}");
    // Not onto what is there.
    let again = run(
        &config(&folder, &database.config),
        Destination::Mongo,
        false,
    );
    assert!(again.unwrap_err().contains("holds a store already"));
    let elsewhere = tempfile::tempdir().unwrap();
    let back = run(
        &config(&elsewhere, &database.config),
        Destination::Files,
        false,
    )
    .unwrap();
    assert_eq!(back, there);
    let mut first = Side::files(&path).unwrap();
    let mut second = Side::files(&elsewhere.path().join("data")).unwrap();
    let bar = ProgressBar::hidden();
    assert_eq!(count(&mut first, &bar), count(&mut second, &bar));
    // What was copied goes on as it would have.
    drop((first, second));
    let copy = elsewhere.path().join("data").join(FILE_NAME);
    let mut store = Sqlite::new(copy).open(Role::Writer).unwrap();
    let forever = Retention {
        messages_max: u64::MAX,
        age_ms: u64::MAX,
        sync: Sync::Process,
    };
    store
        .apply(
            &[append("room:3", 121, forever), append("few", 12, forever)],
            0,
        )
        .unwrap();
}

#[test]
fn a_copy_that_was_interrupted_goes_on() {
    if !TestDatabase::is_there() {
        return;
    }
    let database = TestDatabase::make();
    let folder = tempfile::tempdir().unwrap();
    let path = filled(&folder);
    // Begun: a whole channel, a half, and something that is not of this copy.
    {
        let (mut files, mut mongo) = (
            Side::files(&path).unwrap(),
            Side::mongo(&database.mongo).unwrap(),
        );
        mongo.begin().unwrap();
        let channels = files.messages.channels(None, 100).unwrap();
        for (channel, take) in [(&channels[2], 1000), (&channels[5], 100)] {
            let messages = files.messages.messages(channel, 0, take).unwrap();
            mongo.messages.restore(channel, &messages).unwrap();
        }
        mongo.messages.finish(&channels[2]).unwrap();
        let other = crate::store::archive::ArchivedChannel {
            epoch: "another".into(),
            ..channels[3].clone()
        };
        mongo.messages.finish(&other).unwrap();
    }
    let there = run(
        &config(&folder, &database.config),
        Destination::Mongo,
        false,
    )
    .unwrap();
    assert_eq!((there.channels, there.messages), (7, 841));
    // And back, likewise.
    let elsewhere = tempfile::tempdir().unwrap();
    let to = elsewhere.path().join("data");
    drop(DataDir::lock(&to).unwrap());
    {
        let (mut files, mut mongo) = (
            Side::files(&to).unwrap(),
            Side::mongo(&database.mongo).unwrap(),
        );
        files.begin().unwrap();
        let channels = mongo.messages.channels(None, 100).unwrap();
        let messages = mongo.messages.messages(&channels[5], 0, 70).unwrap();
        files.messages.restore(&channels[5], &messages).unwrap();
    }
    let back = run(
        &config(&elsewhere, &database.config),
        Destination::Files,
        false,
    )
    .unwrap();
    assert_eq!(back, there);
}
