//! What the store makes of MongoDB, beside MongoDB alone: acknowledged messages per second through the store's queue,
//! writer and write concern, then a bare loop of `insert_many` with batches of the same size and the same write concern,
//! into a collection with the same indexes and into one without any but `_id`.
//!
//! ```sh
//! cargo run --release -p shardwire --example mongo_floor -- --url mongodb://127.0.0.1:27017
//! ```
//! Its databases are dropped at the end. Not a test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_lite::future::block_on;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::options::{Acknowledgment, IndexOptions, WriteConcern};
use mongodb::{Client, Collection, IndexModel};
use shardwire::mongo::{Mongo, MongoConfig, MongoUrl};
use shardwire::shard::inbox::{self, Inbox};
use shardwire::store::mongo::{MongoStorage, Regime};
use shardwire::store::{self, INBOX_ENTRIES, StoreConfig, StoreHandle};
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::{
    Change, Record, Retention, StoreOp, StoreReply, StoredChannel, Sync, Ticket,
};

/// Acknowledged messages per second: the store, and MongoDB alone.
#[derive(Parser)]
struct Options {
    /// The server.
    #[arg(long, env = "SHARDWIRE_TEST_MONGO_URL")]
    url: String,
    /// Messages that are published and not acknowledged yet.
    #[arg(long, default_value_t = 512)]
    in_flight: u64,
    /// Channels that they go to in turn.
    #[arg(long, default_value_t = 64)]
    channels: u64,
    /// Payload bytes.
    #[arg(long, default_value_t = 100)]
    size: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

fn main() {
    let options = Options::parse();
    let config = MongoConfig {
        url: Some(MongoUrl::parse(&options.url).expect("a MongoDB URL")),
        database: format!("shardwire_floor_{}", std::process::id()),
        ..MongoConfig::default()
    };
    let (rate, batch) = through_the_store(&options, &config);
    println!("store: {rate:.0} messages/s, {batch} per batch");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let client = Client::with_uri_str(&options.url).await.expect("a client");
        let database = client.database(&config.database);
        for (name, indexed) in [("same indexes", true), ("no indexes", false)] {
            let bare = database.collection::<Document>(if indexed { "bare" } else { "bare_plain" });
            if indexed {
                make_indexes(&bare).await;
            }
            let alone = bare_loop(&options, batch, &bare).await;
            println!(
                "insert_many, {name}: {alone:.0} messages/s; the store makes {:.2} of it",
                rate / alone
            );
        }
        database.drop().await.expect("the database goes");
    });
}

/// Messages per second, and the mean size of a batch.
fn through_the_store(options: &Options, config: &MongoConfig) -> (f64, usize) {
    let mongo = Mongo::connect(config).expect("a usable database");
    let (sender, inbox) = inbox::bounded(INBOX_ENTRIES);
    let storage = MongoStorage::new(mongo, Regime::Alone);
    let store = store::start(storage, &StoreConfig::default(), vec![sender]).expect("a store");
    let mut publisher = Publisher {
        store: &store,
        inbox: &inbox,
        data: format!("\"{}\"", "x".repeat(options.size)).into(),
        channels: (0..options.channels).map(channel).collect(),
        published: 0,
        acked: 0,
    };
    // The first makes channels and connections.
    publisher.run(options.in_flight, Duration::from_secs(1));
    let before = (publisher.acked, store.stats());
    let started = Instant::now();
    publisher.run(options.in_flight, Duration::from_secs_f64(options.seconds));
    let rate = (publisher.acked - before.0) as f64 / started.elapsed().as_secs_f64();
    let stats = store.stats();
    let batch = (stats.ops - before.1.ops) / (stats.commits - before.1.commits).max(1);
    store.shutdown(Duration::from_secs(10));
    (rate, usize::try_from(batch).unwrap_or(1).max(1))
}

fn channel(number: u64) -> Arc<StoredChannel> {
    Arc::new(StoredChannel {
        app: "dev".into(),
        name: format!("bench:{number}").into(),
        epoch: "epoch".into(),
    })
}

struct Publisher<'a> {
    store: &'a StoreHandle,
    inbox: &'a Inbox<StoreReply>,
    data: Box<str>,
    channels: Vec<Arc<StoredChannel>>,
    published: u64,
    acked: u64,
}

impl Publisher<'_> {
    /// Publishes for a while, and waits for what is under way.
    fn run(&mut self, in_flight: u64, duration: Duration) {
        let end = Instant::now() + duration;
        loop {
            let room = if Instant::now() < end {
                in_flight - (self.published - self.acked)
            } else if self.acked == self.published {
                return;
            } else {
                0
            };
            let ops = (0..room).map(|_| self.next()).collect();
            self.store
                .submit(ShardId(0), ops)
                .expect("room in the queue");
            if let StoreReply::Done { up_to, failed, .. } = block_on(self.inbox.recv()) {
                assert!(failed.is_empty(), "{failed:?} failed");
                self.acked = up_to.0;
            }
        }
    }

    fn next(&mut self) -> StoreOp {
        let channels = self.channels.len() as u64;
        let (round, place) = (self.published / channels, self.published % channels);
        self.published += 1;
        let retention = Retention {
            messages_max: u64::MAX,
            age_ms: 24 * 3_600_000,
            sync: Sync::Process,
        };
        let record = Record {
            sequence: round + 1,
            timestamp: now_ms(),
            id: format!("01M867DSWMWC0PJV{:010}", self.published).into(),
            publisher: "anon".into(),
            data: self.data.clone(),
        };
        StoreOp {
            ticket: Ticket(self.published),
            generation: 0,
            channel: self.channels[usize::try_from(place).unwrap_or(0)].clone(),
            change: Change::Append {
                record: Arc::new(record),
                retention,
            },
        }
    }
}

async fn make_indexes(collection: &Collection<Document>) {
    let unique = IndexOptions::builder().unique(true).build();
    let partial = IndexOptions::builder()
        .unique(true)
        .partial_filter_expression(doc! {"window": {"$exists": true}})
        .build();
    let expiry = IndexOptions::builder().expire_after(Duration::ZERO).build();
    let index = |keys, options| IndexModel::builder().keys(keys).options(options).build();
    let indexes = [
        index(doc! {"app": 1, "channel": 1, "seq": 1}, unique),
        index(
            doc! {"app": 1, "channel": 1, "ts": 1, "seq": 1},
            IndexOptions::default(),
        ),
        index(doc! {"app": 1, "channel": 1, "id": 1, "window": 1}, partial),
        index(doc! {"expires": 1}, expiry),
    ];
    collection.create_indexes(indexes).await.expect("indexes");
}

async fn bare_loop(options: &Options, batch: usize, collection: &Collection<Document>) -> f64 {
    let concern = WriteConcern::builder()
        .w(Acknowledgment::Majority)
        .journal(true)
        .build();
    let data = format!("\"{}\"", "x".repeat(options.size));
    let (started, mut sent) = (Instant::now(), 0_u64);
    while started.elapsed().as_secs_f64() < options.seconds {
        let now = i64::try_from(now_ms()).unwrap_or(i64::MAX);
        let documents = (0..batch as u64).map(|n| {
            let number = sent + n;
            doc! {
                "app": "dev",
                "channel": format!("bench:{}", number % options.channels),
                "seq": i64::try_from(number / options.channels).unwrap_or(i64::MAX),
                "ts": DateTime::from_millis(now),
                "id": format!("01M867DSWMWC0PJV{number:010}"),
                "publisher": "anon",
                "data": &data,
                "window": now / 120_000,
                "previous_ts": now,
                "expires": DateTime::from_millis(now + 86_400_000),
            }
        });
        let insert = collection.insert_many(documents).ordered(false);
        let inserted = insert.write_concern(concern.clone()).await;
        inserted.expect("all are inserted");
        sent += batch as u64;
    }
    sent as f64 / started.elapsed().as_secs_f64()
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}
