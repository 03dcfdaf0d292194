//! A database for each test, on the server that `SHARDWIRE_TEST_MONGO_URL` names.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Mongo, MongoConfig, MongoUrl};

/// Where the server is; without it what needs one is left out, and says so.
const URL: &str = "SHARDWIRE_TEST_MONGO_URL";

static MADE: AtomicU32 = AtomicU32::new(0);

/// A database of a test's own, dropped with this.
pub(crate) struct TestDatabase {
    pub(crate) config: MongoConfig,
    pub(crate) mongo: Mongo,
}

impl TestDatabase {
    /// Whether there is a server.
    pub(crate) fn is_there() -> bool {
        let is_there = std::env::var_os(URL).is_some();
        if !is_there {
            eprintln!("{URL} is not set: left out");
        }
        is_there
    }

    pub(crate) fn make() -> Self {
        let url = std::env::var(URL).unwrap();
        let number = MADE.fetch_add(1, Relaxed);
        let config = MongoConfig {
            url: Some(MongoUrl::parse(&url).unwrap()),
            database: format!("shardwire_test_{}_{number}", std::process::id()),
            prefix: "sw_".to_owned(),
            // Many tests share a server, which may be a slow one.
            timeout_ms: 60_000,
            retry_ms: 60_000,
            ..MongoConfig::default()
        };
        let mongo = Mongo::connect(&config).unwrap();
        Self { config, mongo }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        _ = self.mongo.run(self.mongo.database().drop());
    }
}
