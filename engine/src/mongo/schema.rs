//! What is in the database: collections, indexes, and their version.
//!
//! | collection | a document is |
//! |---|---|
//! | `meta`     | `schema`: the version of all this; `probe`: a write that proves that writing works |
//! | `channels` | a channel's numbering, and what of it is visible: see [`crate::store::mongo`] |
//! | `messages` | a message |
//! | `usage`    | what an app has used of a minute, an hour or a day |
//! | `registry`, `webhooks`, … | a record of a side service; these make their own indexes: see [`crate::records::mongo`] |
//!
//! All names begin with the configured prefix. A released step of [`STEPS`] is never changed; making an index that is
//! there does nothing, so several servers may start at once.

use std::time::Duration;

use mongodb::IndexModel;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;

use super::{Mongo, MongoError};

/// Names of collections, without the prefix.
pub(crate) mod names {
    pub(crate) const CHANNELS: &str = "channels";
    pub(crate) const MESSAGES: &str = "messages";
    pub(crate) const USAGE: &str = "usage";
}

/// Single documents of one purpose.
pub(crate) const META: &str = "meta";

/// One per version: what brings the database from the version before to it.
const STEPS: [fn() -> Indexes; 1] = [version_1];

/// Indexes to be made, by collection.
type Indexes = Vec<(&'static str, Vec<IndexModel>)>;

/// Index of messages by number; pages walk along it.
pub(crate) const BY_SEQ: &str = "by_seq";
/// Index of messages by time; bounds in time are looked up in it.
pub(crate) const BY_TIME: &str = "by_time";
/// Index of channels.
pub(crate) const BY_NAME: &str = "by_name";
/// Index that keeps a message's id from being stored twice within a window of dedup.
pub(crate) const BY_ID: &str = "by_id";

fn version_1() -> Indexes {
    let messages = vec![
        index(
            BY_SEQ,
            doc! {"app": 1, "channel": 1, "seq": 1},
            IndexKind::Unique,
        ),
        index(
            BY_TIME,
            doc! {"app": 1, "channel": 1, "ts": 1, "seq": 1},
            IndexKind::Plain,
        ),
        index(
            BY_ID,
            doc! {"app": 1, "channel": 1, "id": 1, "window": 1},
            IndexKind::UniqueWhere(doc! {"window": {"$exists": true}}),
        ),
        index("by_expiry", doc! {"expires": 1}, IndexKind::Expiry),
    ];
    let usage = vec![
        index(
            "by_start",
            doc! {"app": 1, "step": 1, "start": 1},
            IndexKind::Unique,
        ),
        index("by_day", doc! {"step": 1, "start": 1}, IndexKind::Plain),
        index("by_expiry", doc! {"expires": 1}, IndexKind::Expiry),
    ];
    let channels = vec![index(
        BY_NAME,
        doc! {"app": 1, "channel": 1},
        IndexKind::Unique,
    )];
    vec![
        (names::CHANNELS, channels),
        (names::MESSAGES, messages),
        (names::USAGE, usage),
    ]
}

pub(crate) enum IndexKind {
    Plain,
    Unique,
    UniqueWhere(Document),
    /// Documents go once the time of the field is over.
    Expiry,
}

pub(crate) fn index(name: &str, keys: Document, kind: IndexKind) -> IndexModel {
    let mut options = IndexOptions::default();
    options.name = Some(name.to_owned());
    match kind {
        IndexKind::Plain => {}
        IndexKind::Unique => options.unique = Some(true),
        IndexKind::UniqueWhere(filter) => {
            options.unique = Some(true);
            options.partial_filter_expression = Some(filter);
        }
        IndexKind::Expiry => options.expire_after = Some(Duration::ZERO),
    }
    IndexModel::builder().keys(keys).options(options).build()
}

/// Brings the database to the version of this program.
pub(super) async fn migrate(mongo: &Mongo) -> Result<(), MongoError> {
    let meta = mongo.collection(META);
    let stored = meta.find_one(doc! {"_id": "schema"}).await?;
    let found = stored.map_or(0, |stored| stored.get_i64("version").unwrap_or(0));
    let known = STEPS.len() as i64;
    if found > known {
        return Err(MongoError::Refused(format!(
            "has schema version {found}, this program knows up to {known}: it was used by a later version"
        )));
    }
    for step in STEPS
        .iter()
        .skip(usize::try_from(found).unwrap_or(STEPS.len()))
    {
        for (collection, indexes) in step() {
            mongo.collection(collection).create_indexes(indexes).await?;
        }
    }
    if found < known {
        meta.update_one(doc! {"_id": "schema"}, doc! {"$max": {"version": known}})
            .upsert(true)
            .await?;
    }
    Ok(())
}
