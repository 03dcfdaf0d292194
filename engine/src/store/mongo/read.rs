//! Answers to questions (contract D17).
//!
//! An answer is of the moment at which it reads the channel's head: what is appended later is above that head. What is
//! cleared or trimmed while it is made may already be missing.

use std::sync::Arc;

use futures_lite::StreamExt;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::error::Error;
use mongodb::options::Hint;
use mongodb::{Collection, Cursor};
use shardwire_proto::record::{Loaded, Page, Question, Record, StoreAnswer, StoreRead};

use super::heads::{Head, Key};
use super::{BackendError, MongoBackend, int, uint};
use crate::mongo::{BY_NAME, BY_SEQ, BY_TIME, MongoError};
use crate::store::page::PageBuilder;

/// 9999-12-31.
const DATE_MS_MAX: i64 = 253_402_214_400_000;

pub(super) fn answer(
    backend: &MongoBackend,
    read: &StoreRead,
    now: i64,
) -> Result<StoreAnswer, BackendError> {
    let key = Key {
        app: read.app.clone(),
        name: read.channel.clone(),
    };
    if let Question::ChangedSince { timestamp, limit } = read.question {
        let changed = changed(&backend.channels, &key, int(timestamp), int(limit as u64));
        return Ok(backend.mongo.run::<_, MongoError>(changed)?);
    }
    let answer = async {
        let head = match backend.doubts.head(&key) {
            Some(head) => Some(head),
            None => {
                let found = backend.channels.find_one(doc! {"_id": key.id()}).await?;
                found.as_ref().map(Head::read)
            }
        };
        let Some(head) = head.filter(|head| head.last_seq > 0) else {
            return Ok(match read.question {
                Question::Load { .. } => StoreAnswer::Loaded(None),
                Question::Page(_) => StoreAnswer::Page {
                    messages: Vec::new(),
                    has_more: false,
                },
                Question::CountAt { .. } => StoreAnswer::Count(0),
                Question::ChangedSince { .. } => StoreAnswer::Channels(Vec::new()),
            });
        };
        let (gone_seq, gone_ts) = gone_at(&backend.messages, &key, &head, now).await?;
        let channel = Channel {
            messages: &backend.messages,
            key: &key,
            head,
            gone_seq,
            gone_ts,
        };
        match read.question {
            Question::Load {
                messages_max,
                bytes_max,
                ids_after_ms,
            } => channel.load(messages_max, bytes_max, ids_after_ms).await,
            Question::Page(page) => channel.page(&page).await,
            Question::CountAt { timestamp } => channel.count_at(int(timestamp)).await,
            Question::ChangedSince { .. } => Ok(StoreAnswer::Channels(Vec::new())),
        }
    };
    Ok(backend.mongo.run::<_, MongoError>(answer)?)
}

/// Channels behind one whose last message is not older.
async fn changed(
    channels: &Collection<Document>,
    after: &Key,
    timestamp: i64,
    limit: i64,
) -> Result<StoreAnswer, MongoError> {
    let (app, name) = (&*after.app, &*after.name);
    let filter = doc! {
        "app": {"$gte": app},
        "last_ts": {"$gte": timestamp},
        "last_seq": {"$gt": 0_i64},
        "$or": [{"app": {"$gt": app}}, {"app": app, "channel": {"$gt": name}}],
    };
    let find = channels.find(filter).sort(doc! {"app": 1, "channel": 1});
    let find = find.projection(doc! {"_id": 0, "app": 1, "channel": 1});
    let find = find.hint(Hint::Name(BY_NAME.to_owned()));
    let mut cursor = find.limit(limit.max(1)).await?;
    let mut found = Vec::new();
    while let Some(head) = cursor.next().await {
        let head = head?;
        let text = |name: &str| Arc::from(head.get_str(name).unwrap_or_default());
        found.push((text("app"), text("channel")));
    }
    Ok(StoreAnswer::Channels(found))
}

/// Sequence and timestamp of the newest message that is gone at `now`, deleted or not; 0 where none is.
pub(super) async fn gone_at(
    messages: &Collection<Document>,
    key: &Key,
    head: &Head,
    now: i64,
) -> Result<(i64, i64), MongoError> {
    let too_many = head.last_seq - head.messages_max.min(head.last_seq);
    let low = head.gone_seq.max(too_many);
    let newest_gone_ts = now.saturating_sub(head.age_ms);
    if low >= head.last_seq || head.last_ts <= newest_gone_ts {
        return Ok((head.last_seq, head.last_ts));
    }
    let mut filter = key.messages();
    filter.insert("seq", doc! {"$gt": low, "$lte": head.last_seq});
    let (index, order) = if newest_gone_ts < 0 {
        (BY_SEQ, doc! {"seq": 1})
    } else {
        let after = date(newest_gone_ts);
        filter.insert("ts", doc! {"$gt": after});
        (BY_TIME, doc! {"ts": 1, "seq": 1})
    };
    // Retention may have been shorter once, so what is there decides.
    let oldest = messages
        .find_one(filter)
        .sort(order)
        .projection(doc! {"_id": 0, "seq": 1, "previous_ts": 1})
        .hint(Hint::Name(index.to_owned()))
        .await?;
    let Some(oldest) = oldest else {
        return Ok((head.last_seq, head.last_ts));
    };
    let gone = oldest.get_i64("seq").unwrap_or(1) - 1;
    let ts = if gone == head.gone_seq {
        head.gone_ts
    } else {
        // Where it is not known: the latest that it can be.
        let latest = newest_gone_ts.max(0);
        oldest.get_i64("previous_ts").unwrap_or(latest)
    };
    Ok((gone, ts))
}

/// A channel at one instant.
struct Channel<'a> {
    messages: &'a Collection<Document>,
    key: &'a Key,
    head: Head,
    /// Of the newest message that is gone.
    gone_seq: i64,
    gone_ts: i64,
}

impl Channel<'_> {
    async fn load(
        self,
        messages_max: usize,
        bytes_max: usize,
        ids_after_ms: u64,
    ) -> Result<StoreAnswer, MongoError> {
        let mut newest = Vec::new();
        let mut bytes = 0;
        let mut expected = self.head.last_seq;
        let mut cursor = self
            .walk(self.gone_seq + 1, expected, false, messages_max)
            .await?;
        while let Some(message) = cursor.next().await {
            let message = record(&message?);
            bytes += message.weight();
            let follows = message.sequence == uint(expected);
            if newest.len() >= messages_max || bytes > bytes_max || !follows {
                break;
            }
            expected -= 1;
            newest.push(Arc::new(message));
        }
        newest.reverse();
        Ok(StoreAnswer::Loaded(Some(Box::new(Loaded {
            recent_ids: self.ids(int(ids_after_ms)).await?,
            last_sequence: uint(self.head.last_seq),
            last_timestamp: uint(self.head.last_ts),
            gone_sequence: uint(self.gone_seq),
            gone_timestamp: uint(self.gone_ts),
            epoch: self.head.epoch,
            newest,
        }))))
    }

    /// Also of messages beyond retention, as long as they are there: an id is remembered for its window, not for its
    /// message. Ids of cleared messages are forgotten.
    async fn ids(&self, not_before: i64) -> Result<Vec<(Box<str>, u64, u64)>, MongoError> {
        if not_before > self.head.last_ts {
            return Ok(Vec::new());
        }
        let mut filter = self.key.messages();
        filter.insert("ts", doc! {"$gte": date(not_before)});
        filter.insert(
            "seq",
            doc! {"$gt": self.head.gone_seq, "$lte": self.head.last_seq},
        );
        let find = self.messages.find(filter).sort(doc! {"ts": 1, "seq": 1});
        let find = find.projection(doc! {"_id": 0, "id": 1, "ts": 1, "seq": 1});
        let mut cursor = find.hint(Hint::Name(BY_TIME.to_owned())).await?;
        let mut ids = Vec::new();
        while let Some(found) = cursor.next().await {
            let message = record(&found?);
            ids.push((message.id, message.timestamp, message.sequence));
        }
        Ok(ids)
    }

    async fn page(self, page: &Page) -> Result<StoreAnswer, MongoError> {
        let (first, last) = self.bounds(page).await?;
        let mut builder = PageBuilder::new(page);
        let mut has_more = false;
        if first <= last {
            let wanted = page.limit.max(1).saturating_add(page.ties_max);
            let mut cursor = self
                .walk(first, last, page.forward, wanted.saturating_add(1))
                .await?;
            while let Some(message) = cursor.next().await {
                if !builder.add(record(&message?)) {
                    has_more = true;
                    break;
                }
            }
        }
        Ok(StoreAnswer::Page {
            messages: builder.finish(),
            has_more,
        })
    }

    /// First and last sequence within a page's bounds; the first is above the last where there is none.
    async fn bounds(&self, page: &Page) -> Result<(i64, i64), MongoError> {
        let (mut first, mut last) = (self.gone_seq + 1, self.head.last_seq);
        if let Some(after) = page.after_sequence {
            first = first.max(int(after).saturating_add(1));
        }
        if let Some(before) = page.before_sequence {
            last = last.min(int(before) - 1);
        }
        if let Some(after) = page.after_ms {
            first = self.first_above((first, last), int(after)).await?;
        }
        if let Some(before) = page.before_ms {
            last = self.first_above((first, last), int(before) - 1).await? - 1;
        }
        Ok((first, last))
    }

    /// The first of `seqs` (both ends included) whose timestamp is above `ts`; one past the end where none is.
    async fn first_above(&self, seqs: (i64, i64), ts: i64) -> Result<i64, MongoError> {
        let end = seqs.1.max(seqs.0 - 1) + 1;
        if end == seqs.0 {
            return Ok(end);
        }
        let mut filter = self.key.messages();
        filter.insert("ts", doc! {"$gt": date(ts)});
        filter.insert("seq", doc! {"$gte": seqs.0, "$lte": seqs.1});
        let first = self
            .messages
            .find_one(filter)
            .sort(doc! {"ts": 1, "seq": 1})
            .projection(doc! {"_id": 0, "seq": 1})
            .hint(Hint::Name(BY_TIME.to_owned()))
            .await?;
        Ok(first.map_or(end, |first| first.get_i64("seq").unwrap_or(end)))
    }

    async fn count_at(self, timestamp: i64) -> Result<StoreAnswer, MongoError> {
        let mut filter = self.key.messages();
        filter.insert("ts", date(timestamp));
        filter.insert(
            "seq",
            doc! {"$gt": self.gone_seq, "$lte": self.head.last_seq},
        );
        let count = self.messages.count_documents(filter);
        let count = count.hint(Hint::Name(BY_TIME.to_owned())).await?;
        Ok(StoreAnswer::Count(count))
    }

    /// Messages from number `first` to `last` (both included), `limit` at most.
    async fn walk(
        &self,
        first: i64,
        last: i64,
        forward: bool,
        limit: usize,
    ) -> Result<Cursor<Document>, Error> {
        let mut filter = self.key.messages();
        filter.insert("seq", doc! {"$gte": first, "$lte": last});
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let order = if forward { 1 } else { -1 };
        let find = self.messages.find(filter).sort(doc! {"seq": order});
        let find =
            find.projection(doc! {"_id": 0, "seq": 1, "ts": 1, "id": 1, "publisher": 1, "data": 1});
        find.limit(limit).hint(Hint::Name(BY_SEQ.to_owned())).await
    }
}

/// A time to look for; what is later than any message can be is the last day that every database can tell.
fn date(ms: i64) -> DateTime {
    DateTime::from_millis(ms.min(DATE_MS_MAX))
}

/// From a document; what is missing is empty.
pub(super) fn record(document: &Document) -> Record {
    let text = |name: &str| document.get_str(name).unwrap_or_default().into();
    let ts = document.get_datetime("ts");
    Record {
        sequence: uint(document.get_i64("seq").unwrap_or(0)),
        timestamp: uint(ts.map_or(0, |ts| ts.timestamp_millis())),
        id: text("id"),
        publisher: text("publisher"),
        data: text("data"),
    }
}
