//! The data folder and the database as two of a kind, and what is copied beside messages.

use std::path::{Path, PathBuf};

use mongodb::bson::doc;
use sha2::{Digest, Sha256};
use shardwire_proto::auth::edit::DocumentChange;

use super::AT_ONCE;
use crate::keys::{REGISTRY_FILE, write_atomically};
use crate::mongo::usage::MongoSeries;
use crate::mongo::{META, Mongo};
use crate::records::mongo::MongoRecordStorage;
use crate::records::sqlite::SqliteRecordStorage;
use crate::records::{Area, Record, RecordStorage};
use crate::registry::documents::{Document, Documents, RecordDocuments, SqliteDocuments};
use crate::store::archive::Archive;
use crate::store::mongo::{MongoStorage, Regime};
use crate::store::sqlite::{FILE_NAME, Sqlite};
use crate::store::{Role, Storage};
use crate::usage::{RowKey, SqliteSeries, USAGE_FILE, Used};

/// What marks a destination in the making: a file of the data folder, or a document of `meta`.
const MARK: &str = "store-copy";
/// Changes per transaction: few enough to be answered in time by a slow database.
const CHANGES_AT_ONCE: usize = 100;

/// One of the two places.
pub(super) struct Side {
    place: Place,
    pub(super) messages: Box<dyn Archive>,
    documents: Box<dyn Documents>,
    usage: Usage,
    records: Box<dyn RecordStorage>,
}

enum Place {
    Files(PathBuf),
    Mongo(Mongo),
}

enum Usage {
    Files(SqliteSeries),
    Mongo(MongoSeries),
}

impl Side {
    pub(super) fn files(folder: &Path) -> Result<Self, String> {
        let messages = Sqlite::new(folder.join(FILE_NAME)).open(Role::Writer);
        Ok(Self {
            place: Place::Files(folder.to_owned()),
            messages: Box::new(messages.map_err(|error| error.to_string())?),
            documents: Box::new(SqliteDocuments::open(&folder.join(REGISTRY_FILE))?),
            usage: Usage::Files(SqliteSeries::open(&folder.join(USAGE_FILE))?),
            records: Box::new(SqliteRecordStorage::new(folder)),
        })
    }

    pub(super) fn mongo(mongo: &Mongo) -> Result<Self, String> {
        let messages = MongoStorage::new(mongo.clone(), Regime::Alone).open(Role::Writer);
        let records = MongoRecordStorage::new(mongo.clone());
        Ok(Self {
            place: Place::Mongo(mongo.clone()),
            messages: Box::new(messages.map_err(|error| error.to_string())?),
            documents: Box::new(RecordDocuments::open(&records)?),
            usage: Usage::Mongo(MongoSeries::new(mongo.clone())),
            records: Box::new(records),
        })
    }

    /// Marks it as the destination of a copy.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        if self.is_marked()? {
            return Ok(());
        }
        if !self.is_empty()? {
            return Err(match &self.place {
                Place::Files(folder) => format!(
                    "{} holds a store already; move its *.db files away",
                    folder.display()
                ),
                Place::Mongo(_) => {
                    "the database holds a store already; give another database or prefix, or drop it".to_owned()
                }
            });
        }
        match &self.place {
            Place::Files(folder) => {
                write_atomically(&folder.join(MARK), b"").map_err(|error| error.to_string())
            }
            Place::Mongo(mongo) => {
                let mark = mongo.collection(META);
                let mark = || mark.insert_one(doc! {"_id": MARK});
                mongo.retrying(mark).map_err(|error| error.to_string())?;
                Ok(())
            }
        }
    }

    /// It is a store like any other from here on.
    pub(super) fn end(&mut self) -> Result<(), String> {
        match &self.place {
            Place::Files(folder) => {
                std::fs::remove_file(folder.join(MARK)).map_err(|error| error.to_string())
            }
            Place::Mongo(mongo) => {
                let mark = mongo.collection(META);
                let mark = || mark.delete_one(doc! {"_id": MARK});
                mongo.retrying(mark).map_err(|error| error.to_string())?;
                Ok(())
            }
        }
    }

    fn is_marked(&self) -> Result<bool, String> {
        match &self.place {
            Place::Files(folder) => Ok(folder.join(MARK).exists()),
            Place::Mongo(mongo) => {
                let mark = mongo.collection(META);
                let mark = || mark.find_one(doc! {"_id": MARK});
                let found = mongo.retrying(mark).map_err(|error| error.to_string())?;
                Ok(found.is_some())
            }
        }
    }

    fn is_empty(&mut self) -> Result<bool, String> {
        let channels = self.messages.channels(None, 1);
        let is_empty = channels.map_err(|error| error.to_string())?.is_empty()
            && self.documents.load()?.is_empty()
            && self.usage_rows(&RowKey::default(), 1)?.is_empty();
        let mut areas = self.areas().into_iter();
        Ok(is_empty
            && areas.all(|area| {
                let found = self.records.open(area);
                let found = found.and_then(|mut records| records.dump(None, 1));
                found.is_ok_and(|found| found.is_empty())
            }))
    }

    /// Areas of side services. In the data folder, files that are not there are not made.
    fn areas(&self) -> Vec<Area> {
        let mut areas = Area::ALL.to_vec();
        areas.retain(|area| *area != Area::Registry);
        if let Place::Files(folder) = &self.place {
            areas.retain(|area| folder.join(format!("{}.db", area.name())).exists());
        }
        areas
    }

    fn usage_rows(&self, after: &RowKey, limit: usize) -> Result<Vec<(RowKey, Used)>, String> {
        match &self.usage {
            Usage::Files(series) => series.rows(after, limit),
            Usage::Mongo(series) => series.rows(after, limit),
        }
    }

    /// Does something with all rows of usage, in order.
    fn each_usage(
        &self,
        mut act: impl FnMut(&[(RowKey, Used)]) -> Result<(), String>,
    ) -> Result<u64, String> {
        let (mut last, mut count) = (RowKey::default(), 0);
        loop {
            let rows = self.usage_rows(&last, AT_ONCE)?;
            let Some((key, _)) = rows.last() else {
                return Ok(count);
            };
            last = key.clone();
            count += rows.len() as u64;
            act(&rows)?;
        }
    }

    /// Does something with all records of side services, in order.
    fn each_record(
        &self,
        mut act: impl FnMut(Area, &[(String, Record)]) -> Result<(), String>,
    ) -> Result<u64, String> {
        let mut count = 0;
        for area in self.areas() {
            let records = self.records.open(area);
            let mut records = records.map_err(|error| error.to_string())?;
            let mut last: Option<(String, i64, String)> = None;
            loop {
                let after = last
                    .as_ref()
                    .map(|(kind, rank, id)| (&**kind, *rank, &**id));
                let page = records.dump(after, AT_ONCE);
                let page = page.map_err(|error| error.to_string())?;
                let Some((kind, record)) = page.last() else {
                    break;
                };
                last = Some((kind.clone(), record.rank, record.id.clone()));
                count += page.len() as u64;
                act(area, &page)?;
            }
        }
        Ok(count)
    }
}

/// Makes the destination's documents those of the source.
pub(super) fn copy_documents(from: &mut Side, into: &mut Side) -> Result<(), String> {
    let (wanted, there) = (from.documents.load()?, into.documents.load()?);
    let gone = there.iter().filter(|(kind, id, _)| {
        let is_wanted = |(k, i, _): &Document| (k, i) == (kind, id);
        !wanted.iter().any(is_wanted)
    });
    let gone = gone.map(|(kind, id, _)| DocumentChange::Delete {
        kind: *kind,
        id: id.clone(),
    });
    let put = wanted.iter().filter(|document| !there.contains(document));
    let put = put.map(|(kind, id, json)| DocumentChange::Put {
        kind: *kind,
        id: id.clone(),
        json: json.clone(),
    });
    let changes: Vec<DocumentChange> = gone.chain(put).collect();
    for some in changes.chunks(CHANGES_AT_ONCE) {
        into.documents.apply(some)?;
    }
    Ok(())
}

pub(super) fn copy_usage(from: &mut Side, into: &mut Side) -> Result<(), String> {
    from.each_usage(|rows| {
        rows.chunks(CHANGES_AT_ONCE)
            .try_for_each(|some| match &mut into.usage {
                Usage::Files(series) => series.put_rows(some),
                Usage::Mongo(series) => series.put_rows(some),
            })
    })?;
    Ok(())
}

pub(super) fn copy_records(from: &mut Side, into: &mut Side) -> Result<(), String> {
    from.each_record(|area, page| {
        let records = into.records.open(area);
        let restored = records.and_then(|mut records| records.restore(page));
        restored.map_err(|error| error.to_string())
    })?;
    Ok(())
}

/// A checksum over texts and numbers, in their order.
#[derive(Default)]
pub(super) struct Sum(Sha256);

impl Sum {
    pub(super) fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    pub(super) fn number(&mut self, number: i64) {
        self.0.update(number.to_le_bytes());
    }

    pub(super) fn finish(self) -> String {
        let bytes = self.0.finalize();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

pub(super) fn sum_documents(side: &mut Side, sum: &mut Sum) -> Result<u64, String> {
    let documents = side.documents.load()?;
    for (kind, id, json) in &documents {
        [kind.name(), id, json]
            .iter()
            .for_each(|text| sum.text(text));
    }
    Ok(documents.len() as u64)
}

pub(super) fn sum_usage(side: &mut Side, sum: &mut Sum) -> Result<u64, String> {
    side.each_usage(|rows| {
        for ((app, step, start), used) in rows {
            sum.text(app);
            let Used {
                messages,
                deliveries,
                refused,
                connections_peak,
                channels_peak,
                push_sent,
                push_failed,
            } = used;
            let numbers = [
                step,
                start,
                messages,
                deliveries,
                refused,
                connections_peak,
                channels_peak,
                push_sent,
                push_failed,
            ];
            for number in numbers {
                sum.number(i64::try_from(*number).unwrap_or(i64::MAX));
            }
        }
        Ok(())
    })
}

pub(super) fn sum_records(side: &mut Side, sum: &mut Sum) -> Result<u64, String> {
    side.each_record(|area, page| {
        for (kind, record) in page {
            [area.name(), kind, &record.id, &record.body]
                .iter()
                .for_each(|text| sum.text(text));
            let expires = record.expires_ms.unwrap_or(0);
            let numbers = [
                record.rank,
                expires.cast_signed(),
                record.version.cast_signed(),
            ];
            numbers.iter().for_each(|number| sum.number(*number));
            for (name, value) in &record.labels {
                [name, value].iter().for_each(|text| sum.text(text));
            }
        }
        Ok(())
    })
}
