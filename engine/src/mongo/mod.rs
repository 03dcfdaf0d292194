//! The way to MongoDB for everything that is kept there: one client, one runtime, one schema.
//!
//! Threads call [`Mongo::run`] and wait; the driver's sockets and monitors live on a thread of their own. What is in
//! the collections is the matter of [`crate::store::mongo`], [`crate::records::mongo`] and [`usage`].
//!
//! Invariants: no call waits longer than its time; the connection string is never shown.

mod config;
mod error;
mod schema;
#[cfg(test)]
pub(crate) mod testing;
mod transaction;
pub mod usage;

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use mongodb::options::{
    Acknowledgment, ClientOptions, DatabaseOptions, ReadConcern, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use mongodb::{Client, Collection, Database};
use tokio::runtime::Runtime;

pub use self::config::{Acks, MongoConfig, MongoUrl};
pub use self::error::MongoError;
pub(crate) use self::error::{DUPLICATE_KEY, check_write};
pub(crate) use self::schema::{BY_ID, BY_NAME, BY_SEQ, BY_TIME, IndexKind, META, index, names};

/// Longest wait for a connection or for a member that takes writes, within an operation.
const FIND_MEMBER_MAX: Duration = Duration::from_secs(2);
/// How often members are asked who takes writes, beside when they say so: how long an error that sounded like a step-down
/// can keep a member from being used.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Pause before another try while the database is away.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// A database, reached. Clones are the same.
#[derive(Clone)]
pub struct Mongo {
    inner: Arc<Inner>,
}

struct Inner {
    /// Taken when dropped.
    runtime: Option<Runtime>,
    client: Client,
    database: Database,
    config: MongoConfig,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Mongo {
    /// Reaches the database within `retry_ms`, and brings its collections to the version of this program.
    ///
    /// # Errors
    /// It cannot be used: away, no replica set, refused, or of a later version.
    pub fn connect(config: &MongoConfig) -> Result<Self, MongoError> {
        let url = config
            .url
            .as_ref()
            .ok_or_else(|| MongoError::Refused("store.mongo.url is not set".to_owned()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("mongo")
            .enable_all()
            .build()
            .map_err(|error| MongoError::Refused(format!("no thread for MongoDB: {error}")))?;
        let (client, database) = runtime
            .block_on(make_client(url, config))
            .map_err(|error| MongoError::Refused(format!("{url}: {error}")))?;
        let mongo = Self {
            inner: Arc::new(Inner {
                runtime: Some(runtime),
                client,
                database,
                config: config.clone(),
            }),
        };
        let prepared = mongo.retrying(|| async {
            mongo.require_replica_set().await?;
            schema::migrate(&mongo).await
        });
        prepared.map_err(|error| error.within(&url.to_string()))?;
        Ok(mongo)
    }

    /// Waits for an operation, for `timeout_ms` at most.
    ///
    /// # Errors
    /// The operation's, or that the time is over: then it may or may not have been done.
    pub(crate) fn run<T, E: Into<MongoError>>(
        &self,
        operation: impl IntoFuture<Output = Result<T, E>>,
    ) -> Result<T, MongoError> {
        let limit = self.timeout();
        let timed = async {
            match tokio::time::timeout(limit, operation.into_future()).await {
                Ok(done) => done.map_err(Into::into),
                Err(_) => Err(MongoError::Away(format!(
                    "no answer within {} ms",
                    limit.as_millis()
                ))),
            }
        };
        match &self.inner.runtime {
            Some(runtime) => runtime.block_on(timed),
            None => Err(MongoError::Away("closed".to_owned())),
        }
    }

    /// As [`Self::run`], again and again while the database is away, for `retry_ms` at most. The operation must be one
    /// that may be done twice.
    ///
    /// # Errors
    /// The last one.
    pub(crate) fn retrying<T, E: Into<MongoError>, F: IntoFuture<Output = Result<T, E>>>(
        &self,
        mut operation: impl FnMut() -> F,
    ) -> Result<T, MongoError> {
        let until = self.retry_until();
        loop {
            match self.run(operation()) {
                Err(MongoError::Away(text)) => {
                    if !pause_before(until) {
                        return Err(MongoError::Away(text));
                    }
                }
                done => return done,
            }
        }
    }

    /// When retrying ends that begins at this moment.
    pub(crate) fn retry_until(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.inner.config.retry_ms)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.inner.config.timeout_ms)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(crate) fn database(&self) -> &Database {
        &self.inner.database
    }

    /// A collection's full name.
    pub(crate) fn name(&self, collection: &str) -> String {
        format!("{}{collection}", self.inner.config.prefix)
    }

    pub(crate) fn collection(&self, collection: &str) -> Collection<Document> {
        self.inner.database.collection(&self.name(collection))
    }

    /// What a write waits for; `on_disk`: the journal as well, whatever the configuration says.
    pub(crate) fn write_concern(&self, on_disk: bool) -> WriteConcern {
        write_concern(&self.inner.config, on_disk)
    }

    /// The same, for a command.
    pub(crate) fn write_concern_document(&self, on_disk: bool) -> Document {
        let config = &self.inner.config;
        let mut document = doc! {
            "j": config.journal || on_disk,
            "wtimeout": i64::try_from(config.timeout_ms).unwrap_or(i64::MAX),
        };
        match config.write_concern {
            Acks::Majority => document.insert("w", "majority"),
            Acks::Members(members) => document.insert("w", i64::from(members)),
        };
        document
    }

    /// Transactions, which records need, are there in replica sets only; one member is enough.
    async fn require_replica_set(&self) -> Result<(), MongoError> {
        let hello = self
            .database()
            .run_command(doc! {"hello": 1})
            .await
            .map_err(MongoError::from)?;
        if hello.contains_key("setName") || hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid")
        {
            return Ok(());
        }
        Err(MongoError::Refused(
            "is not a member of a replica set; start mongod with --replSet and run rs.initiate() once (one member is enough)"
                .to_owned(),
        ))
    }
}

/// Waits before another try, unless there is none before `until`.
pub(crate) fn pause_before(until: Instant) -> bool {
    if Instant::now() + RETRY_PAUSE >= until {
        return false;
    }
    std::thread::sleep(RETRY_PAUSE);
    true
}

async fn make_client(
    url: &MongoUrl,
    config: &MongoConfig,
) -> Result<(Client, Database), mongodb::error::Error> {
    let mut options = ClientOptions::parse(url.secret()).await?;
    let wait = Duration::from_millis(config.timeout_ms).min(FIND_MEMBER_MAX);
    options
        .app_name
        .get_or_insert_with(|| "shardwire".to_owned());
    options.server_selection_timeout.get_or_insert(wait);
    options.connect_timeout.get_or_insert(wait);
    options.heartbeat_freq.get_or_insert(HEARTBEAT);
    options.max_pool_size = Some(config.pool_max);
    let named = options.default_database.clone();
    let client = Client::with_options(options)?;
    let name = named.unwrap_or_else(|| config.database.clone());
    let read_concern = match config.write_concern {
        // What is read cannot be rolled back, and holds what was acknowledged.
        Acks::Majority => ReadConcern::majority(),
        Acks::Members(_) => ReadConcern::local(),
    };
    let options = DatabaseOptions::builder()
        .read_concern(read_concern)
        .write_concern(write_concern(config, false))
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .build();
    let database = client.database_with_options(&name, options);
    Ok((client, database))
}

fn write_concern(config: &MongoConfig, on_disk: bool) -> WriteConcern {
    let w = match config.write_concern {
        Acks::Majority => Acknowledgment::Majority,
        Acks::Members(members) => Acknowledgment::Nodes(members),
    };
    WriteConcern::builder()
        .w(w)
        .journal(config.journal || on_disk)
        .w_timeout(Duration::from_millis(config.timeout_ms))
        .build()
}
