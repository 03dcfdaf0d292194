//! Records in MongoDB, one collection per area.
//!
//! A list of changes is one transaction: two servers that change the same record one after the other see each other, and
//! of two that do so at once one is made to try again. What an area keeps may be secret: the database has to be as safe
//! as the data folder.

use futures_lite::StreamExt;
use mongodb::bson::{Bson, DateTime, Document, doc};
use mongodb::error::Error;
use mongodb::options::Hint;
use mongodb::{ClientSession, Collection};

use super::{Area, Change, Condition, Record, RecordError, RecordStorage, Records, Scan};
use crate::mongo::{IndexKind, Mongo, MongoError, index};

const BY_RANK: &str = "by_rank";
const BY_LABEL: &str = "by_label";
const BY_EXPIRY: &str = "by_expiry";
/// The last day that every tool can show: 9999-12-31. What goes later stays for good.
const EXPIRY_MS_MAX: u64 = 253_402_214_400_000;

/// Areas as collections of a database.
#[derive(Clone)]
pub struct MongoRecordStorage {
    mongo: Mongo,
}

impl MongoRecordStorage {
    #[must_use]
    pub fn new(mongo: Mongo) -> Self {
        Self { mongo }
    }
}

impl RecordStorage for MongoRecordStorage {
    fn open(&self, area: Area) -> Result<Box<dyn Records>, RecordError> {
        let records = MongoRecords {
            collection: self.mongo.collection(area.name()),
            mongo: self.mongo.clone(),
        };
        let indexes = || {
            records.collection.create_indexes([
                index(
                    BY_RANK,
                    doc! {"kind": 1, "rank": 1, "id": 1},
                    IndexKind::Plain,
                ),
                index(
                    BY_LABEL,
                    doc! {"kind": 1, "labels": 1, "rank": 1, "id": 1},
                    IndexKind::Plain,
                ),
                index(BY_EXPIRY, doc! {"expires": 1}, IndexKind::Expiry),
            ])
        };
        self.mongo.retrying(indexes)?;
        Ok(Box::new(records))
    }
}

impl From<MongoError> for RecordError {
    fn from(error: MongoError) -> Self {
        match error {
            MongoError::Away(text) => Self::Busy(format!("MongoDB: {text}")),
            MongoError::Refused(text) => Self::Failed(format!("MongoDB: {text}")),
        }
    }
}

/// An area.
struct MongoRecords {
    mongo: Mongo,
    collection: Collection<Document>,
}

impl Records for MongoRecords {
    fn apply(&mut self, changes: &[Change], now_ms: u64) -> Result<(), RecordError> {
        self.mongo.transact(async |session: &mut ClientSession| {
            for (at, change) in changes.iter().enumerate() {
                if !make(&self.collection, session, change, now_ms).await? {
                    return Ok(Err(RecordError::Conflict(at)));
                }
            }
            Ok(Ok(()))
        })?
    }

    fn get(
        &mut self,
        kind: &'static str,
        id: &str,
        now_ms: u64,
    ) -> Result<Option<Record>, RecordError> {
        let get = || self.collection.find_one(doc! {"_id": key(kind, id)});
        let found = self.mongo.retrying(get)?;
        Ok(found
            .as_ref()
            .filter(|found| is_live(found, now_ms))
            .map(read))
    }

    fn scan(&mut self, scan: &Scan, now_ms: u64) -> Result<Vec<Record>, RecordError> {
        let limit = i64::try_from(scan.limit).unwrap_or(i64::MAX);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let (filter, index) = query_of(scan, now_ms);
        let order = if scan.newest_first { -1 } else { 1 };
        let find = || async {
            let find = self.collection.find(filter.clone()).limit(limit);
            let find = find.sort(doc! {"rank": order, "id": order});
            let found = find.hint(Hint::Name(index.to_owned())).await?;
            let found: Vec<Result<Document, Error>> = found.collect().await;
            found.into_iter().collect::<Result<Vec<Document>, Error>>()
        };
        let found = self.mongo.retrying(find)?;
        Ok(found.iter().map(read).collect())
    }

    fn count(
        &mut self,
        kind: &'static str,
        label: Option<(&str, &str)>,
        now_ms: u64,
    ) -> Result<u64, RecordError> {
        let mut scan = Scan::of(kind, 0);
        scan.label = label.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (filter, index) = query_of(&scan, now_ms);
        let count = || {
            let count = self.collection.count_documents(filter.clone());
            count.hint(Hint::Name(index.to_owned()))
        };
        Ok(self.mongo.retrying(count)?)
    }

    /// The database removes them too, by and by.
    fn expire(&mut self, now_ms: u64, limit: usize) -> Result<u64, RecordError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        if limit == 0 {
            return Ok(0);
        }
        let over = doc! {"expires": {"$lte": time(now_ms)}};
        let expire = || async {
            let find = self.collection.find(over.clone()).limit(limit);
            let find = find.projection(doc! {"_id": 1});
            let found = find.hint(Hint::Name(BY_EXPIRY.to_owned())).await?;
            let found: Vec<Result<Document, Error>> = found.collect().await;
            let ids = found
                .into_iter()
                .map(|found| Ok(found?.get("_id").cloned()));
            let ids = ids.collect::<Result<Vec<Option<Bson>>, Error>>()?;
            let mut filter = over.clone();
            filter.insert(
                "_id",
                doc! {"$in": ids.into_iter().flatten().collect::<Vec<_>>()},
            );
            self.collection.delete_many(filter).await
        };
        Ok(self.mongo.retrying(expire)?.deleted_count)
    }

    fn dump(
        &mut self,
        after: Option<(&str, i64, &str)>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, RecordError> {
        let filter = match after {
            Some((kind, rank, id)) => doc! {"kind": {"$gte": kind}, "$or": [
                {"kind": {"$gt": kind}},
                {"kind": kind, "rank": {"$gt": rank}},
                {"kind": kind, "rank": rank, "id": {"$gt": id}},
            ]},
            None => doc! {},
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let find = || async {
            let find = self.collection.find(filter.clone()).limit(limit);
            let find = find.sort(doc! {"kind": 1, "rank": 1, "id": 1});
            let found = find.hint(Hint::Name(BY_RANK.to_owned())).await?;
            let found: Vec<Result<Document, Error>> = found.collect().await;
            found.into_iter().collect::<Result<Vec<Document>, Error>>()
        };
        let found = self.mongo.retrying(find)?;
        let kind = |found: &Document| found.get_str("kind").unwrap_or_default().to_owned();
        Ok(found
            .iter()
            .map(|found| (kind(found), read(found)))
            .collect())
    }

    fn restore(&mut self, records: &[(String, Record)]) -> Result<(), RecordError> {
        for (kind, record) in records {
            let document = document(kind, record, record.version);
            let id = doc! {"_id": key(kind, &record.id)};
            let put = || {
                self.collection
                    .replace_one(id.clone(), &document)
                    .upsert(true)
            };
            self.mongo.retrying(put)?;
        }
        Ok(())
    }
}

/// Makes a change inside of a transaction; false where its condition does not hold.
async fn make(
    collection: &Collection<Document>,
    session: &mut ClientSession,
    change: &Change,
    now_ms: u64,
) -> Result<bool, Error> {
    let (kind, id, when) = match change {
        Change::Put { kind, record, when } => (kind, &record.id, when),
        Change::Delete { kind, id, when } => (kind, id, when),
    };
    let by_key = doc! {"_id": key(kind, id)};
    let found = collection.find_one(by_key.clone()).session(&mut *session);
    let found = found.await?.filter(|found| is_live(found, now_ms));
    let version = found.as_ref().map(version_of);
    let holds = match when {
        Condition::Always => true,
        Condition::Absent => version.is_none(),
        Condition::Version(wanted) => version == Some(*wanted),
    };
    if !holds {
        return Ok(false);
    }
    match change {
        Change::Put { record, .. } => {
            let document = document(kind, record, version.unwrap_or(0) + 1);
            let put = collection.replace_one(by_key, document).upsert(true);
            put.session(session).await?;
        }
        Change::Delete { .. } => {
            collection.delete_one(by_key).session(session).await?;
        }
    }
    Ok(true)
}

/// The filter of a scan, and the index that gives its order.
fn query_of(scan: &Scan, now_ms: u64) -> (Document, &'static str) {
    let mut filter = doc! {"kind": scan.kind};
    let index = match &scan.label {
        Some((name, value)) => {
            filter.insert("labels", label(name, value));
            BY_LABEL
        }
        None => BY_RANK,
    };
    let mut rank = Document::new();
    if let Some(min) = scan.rank_min {
        rank.insert("$gte", min);
    }
    if let Some(max) = scan.rank_max {
        rank.insert("$lte", max);
    }
    if let Some((after, _)) = &scan.after {
        // The exact bound is below; this one is for the index.
        let (bound, other) = if scan.newest_first {
            ("$lte", scan.rank_max.map(|max| max.min(*after)))
        } else {
            ("$gte", scan.rank_min.map(|min| min.max(*after)))
        };
        rank.insert(bound, other.unwrap_or(*after));
    }
    if !rank.is_empty() {
        filter.insert("rank", rank);
    }
    let mut all = vec![doc! {"$or": [
        {"expires": {"$exists": false}},
        {"expires": {"$gt": time(now_ms)}},
    ]}];
    if let Some((after, id)) = &scan.after {
        let behind = if scan.newest_first { "$lt" } else { "$gt" };
        all.push(doc! {"$or": [
            {"rank": {behind: *after}},
            {"rank": *after, "id": {behind: id}},
        ]});
    }
    filter.insert("$and", all);
    (filter, index)
}

/// `_id`: no kind has a slash.
fn key(kind: &str, id: &str) -> String {
    format!("{kind}/{id}")
}

/// No label's name has an equals sign.
fn label(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

fn time(ms: u64) -> DateTime {
    DateTime::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
}

fn is_live(found: &Document, now_ms: u64) -> bool {
    found
        .get_datetime("expires")
        .map_or(true, |expires| *expires > time(now_ms))
}

fn version_of(found: &Document) -> u64 {
    let version = found.get_i64("version").unwrap_or(0);
    u64::try_from(version).unwrap_or(0)
}

fn document(kind: &str, record: &Record, version: u64) -> Document {
    let labels = record.labels.iter().map(|(name, value)| label(name, value));
    let mut document = doc! {
        "_id": key(kind, &record.id),
        "kind": kind,
        "id": &record.id,
        "labels": labels.collect::<Vec<_>>(),
        "rank": record.rank,
        "body": &record.body,
        "version": i64::try_from(version).unwrap_or(i64::MAX),
    };
    if let Some(expires) = record.expires_ms.filter(|ms| *ms < EXPIRY_MS_MAX) {
        document.insert("expires", time(expires));
    }
    document
}

/// What is missing is empty.
fn read(found: &Document) -> Record {
    let text = |name: &str| found.get_str(name).unwrap_or_default().to_owned();
    let labels = found
        .get_array("labels")
        .map(Vec::as_slice)
        .unwrap_or_default();
    let labels = labels.iter().filter_map(|label| {
        let (name, value) = label.as_str()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let expires = found.get_datetime("expires").ok();
    Record {
        id: text("id"),
        labels: labels.collect(),
        rank: found.get_i64("rank").unwrap_or(0),
        expires_ms: expires.and_then(|at| u64::try_from(at.timestamp_millis()).ok()),
        body: text("body"),
        version: version_of(found),
    }
}
