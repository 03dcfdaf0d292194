//! The collections as a whole.

use futures_lite::StreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::cstr;
use mongodb::bson::{DateTime, Document, RawDocumentBuf, doc, rawdoc};
use mongodb::error::Error;
use mongodb::options::{FindOptions, Hint};
use shardwire_proto::record::Record;

use super::heads::{Head, Key};
use super::write::{EXPIRY_GRACE_MS, EXPIRY_MS_MAX, update_heads};
use super::{MongoBackend, int, read};
use crate::mongo::{BY_NAME, DUPLICATE_KEY, MongoError};
use crate::store::BackendError;
use crate::store::archive::{Archive, ArchivedChannel};

impl MongoBackend {
    fn all(
        &self,
        filter: &Document,
        options: &FindOptions,
        of_messages: bool,
    ) -> Result<Vec<Document>, BackendError> {
        let collection = if of_messages {
            &self.messages
        } else {
            &self.channels
        };
        let found = self.mongo.retrying(|| async {
            let find = collection
                .find(filter.clone())
                .with_options(options.clone());
            let found: Vec<Result<Document, Error>> = find.await?.collect().await;
            found.into_iter().collect::<Result<Vec<Document>, Error>>()
        });
        Ok(found?)
    }

    /// What is there of a head. Expired and trimmed messages are gone.
    fn archived(&self, found: &Document) -> Result<ArchivedChannel, BackendError> {
        let text = |name: &str| found.get_str(name).unwrap_or_default().to_owned();
        let head = Head::read(found);
        let mut channel = ArchivedChannel {
            app: text("app"),
            name: text("channel"),
            epoch: text("epoch"),
            last_seq: head.last_seq,
            last_ts: head.last_ts,
            gone_seq: head.gone_seq,
            gone_ts: head.gone_ts,
            messages_max: head.messages_max,
            age_ms: head.age_ms,
        };
        let first = self.messages_from(&channel, head.gone_seq + 1, 1)?;
        match first.first() {
            Some(first) => {
                let gone = first.get_i64("seq").unwrap_or(1) - 1;
                if gone > head.gone_seq {
                    channel.gone_seq = gone;
                    channel.gone_ts = first.get_i64("previous_ts").unwrap_or(head.gone_ts);
                }
            }
            None => (channel.gone_seq, channel.gone_ts) = (head.last_seq, head.last_ts),
        }
        Ok(channel)
    }

    fn messages_from(
        &self,
        channel: &ArchivedChannel,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Document>, BackendError> {
        let mut filter = key_of(channel).messages();
        filter.insert(
            "seq",
            doc! {"$gte": from.max(channel.gone_seq + 1), "$lte": channel.last_seq},
        );
        // One index fits. Without a hint, as there are servers that read all of an index that is named.
        let options = FindOptions::builder()
            .sort(doc! {"seq": 1})
            .limit(int(limit as u64))
            .build();
        self.all(&filter, &options, true)
    }
}

impl Archive for MongoBackend {
    fn channels(
        &mut self,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Vec<ArchivedChannel>, BackendError> {
        let mut filter = doc! {"last_seq": {"$gt": 0_i64}};
        if let Some((app, name)) = after {
            filter.insert("app", doc! {"$gte": app});
            filter.insert(
                "$or",
                vec![
                    doc! {"app": {"$gt": app}},
                    doc! {"app": app, "channel": {"$gt": name}},
                ],
            );
        }
        let options = FindOptions::builder()
            .sort(doc! {"app": 1, "channel": 1})
            .limit(int(limit as u64))
            .hint(Hint::Name(BY_NAME.to_owned()))
            .build();
        let found = self.all(&filter, &options, false)?;
        found.iter().map(|found| self.archived(found)).collect()
    }

    fn channel(&mut self, app: &str, name: &str) -> Result<Option<ArchivedChannel>, BackendError> {
        let key = Key {
            app: app.into(),
            name: name.into(),
        };
        let find = || {
            self.channels
                .find_one(doc! {"_id": key.id(), "last_seq": {"$gt": 0_i64}})
        };
        let found = self.mongo.retrying(find)?;
        found.map(|found| self.archived(&found)).transpose()
    }

    fn messages(
        &mut self,
        channel: &ArchivedChannel,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Record>, BackendError> {
        let found = self.messages_from(channel, from, limit)?;
        Ok(found.iter().map(read::record).collect())
    }

    fn begun(&mut self, channel: &ArchivedChannel) -> Result<Option<i64>, BackendError> {
        let key = key_of(channel);
        let find = || self.channels.find_one(doc! {"_id": key.id()});
        if let Some(found) = self.mongo.retrying(find)? {
            let there = self.archived(&found)?;
            if there == *channel {
                return Ok(Some(there.last_seq));
            }
            // Not of a copy: those have no head before they are whole.
            self.mongo
                .retrying(|| self.channels.delete_one(doc! {"_id": key.id()}))?;
            self.mongo
                .retrying(|| self.messages.delete_many(key.messages()))?;
            return Ok(None);
        }
        let newest = || {
            self.messages
                .find_one(key.messages())
                .sort(doc! {"seq": -1})
        };
        let newest = self.mongo.retrying(newest)?;
        // Commands are unordered: of the last one any may be missing.
        let whole = newest.and_then(|newest| newest.get_i64("seq").ok());
        let whole = whole.map(|seq| (seq - RESTORED_AT_ONCE as i64).max(channel.gone_seq));
        Ok(whole.filter(|seq| *seq > channel.gone_seq))
    }

    fn restore(
        &mut self,
        channel: &ArchivedChannel,
        messages: &[Record],
    ) -> Result<(), BackendError> {
        let collection = self.messages.clone_with_type::<RawDocumentBuf>();
        let mut previous = None;
        for some in messages.chunks(RESTORED_AT_ONCE) {
            let documents: Vec<RawDocumentBuf> = some
                .iter()
                .map(|message| {
                    let document = document(channel, message, previous);
                    previous = Some(int(message.timestamp));
                    document
                })
                .collect();
            self.mongo.retrying(|| async {
                let insert = collection.insert_many(&documents).ordered(false);
                match insert.write_concern(self.mongo.write_concern(true)).await {
                    Ok(_) => Ok(()),
                    // There from before.
                    Err(error) if all_there(&error) => Ok(()),
                    Err(error) => Err(MongoError::from(error)),
                }
            })?;
        }
        Ok(())
    }

    fn finish(&mut self, channel: &ArchivedChannel) -> Result<(), BackendError> {
        let head = Head {
            epoch: channel.epoch.as_str().into(),
            last_seq: channel.last_seq,
            last_ts: channel.last_ts,
            gone_seq: channel.gone_seq,
            gone_ts: channel.gone_ts,
            messages_max: channel.messages_max,
            age_ms: channel.age_ms,
            ..Head::default()
        };
        let put = head.put_back(&key_of(channel), 0);
        self.heads.clear();
        let put = || update_heads(self, vec![put.clone()], true);
        self.mongo.retrying(put)?.map_err(|(_, error)| error)?;
        Ok(())
    }
}

/// Messages per command.
const RESTORED_AT_ONCE: usize = 500;

fn key_of(channel: &ArchivedChannel) -> Key {
    Key {
        app: channel.app.as_str().into(),
        name: channel.name.as_str().into(),
    }
}

/// As [`super::write`] makes it, but that ids may be there twice.
fn document(channel: &ArchivedChannel, message: &Record, previous: Option<i64>) -> RawDocumentBuf {
    let (seq, ts) = (int(message.sequence), int(message.timestamp));
    let mut document = rawdoc! {
        "_id": ObjectId::new(),
        "app": &*channel.app,
        "channel": &*channel.name,
        "seq": seq,
        "ts": DateTime::from_millis(ts),
        "id": &*message.id,
        "publisher": &*message.publisher,
        "data": &*message.data,
    };
    let first = (seq == channel.gone_seq + 1).then_some(channel.gone_ts);
    if let Some(previous) = previous.or(first) {
        document.append(cstr!("previous_ts"), previous);
    }
    let expires = ts
        .saturating_add(channel.age_ms)
        .saturating_add(EXPIRY_GRACE_MS);
    if expires < EXPIRY_MS_MAX {
        document.append(cstr!("expires"), DateTime::from_millis(expires));
    }
    document
}

/// Whether an insert has failed only for what was there.
fn all_there(error: &Error) -> bool {
    let mongodb::error::ErrorKind::InsertMany(many) = &*error.kind else {
        return false;
    };
    let duplicate = |code: i32| code == DUPLICATE_KEY;
    many.write_concern_error.is_none()
        && many
            .write_errors
            .iter()
            .flatten()
            .all(|write| duplicate(write.code))
}
