//! The writer's batch: messages, then heads.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use futures_lite::StreamExt;
use mongodb::Collection;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::cstr;
use mongodb::bson::{DateTime, Document, RawDocumentBuf, doc, rawdoc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::Hint;
use shardwire_proto::limits::DEDUP_WINDOW_MS;
use shardwire_proto::record::{Change, Record, Retention, StoreOp, StoredChannel, Sync};

use super::heads::{Head, Key};
use super::{Applied, BackendError, MongoBackend, Regime, int, read, uint};
use crate::mongo::{BY_ID, BY_SEQ, DUPLICATE_KEY, MongoError, check_write, names, pause_before};

/// From the end of a message's time to its deletion, ms: its id is remembered for as long as the window of dedup, and
/// the clock of the database may be ahead.
pub(super) const EXPIRY_GRACE_MS: i64 = DEDUP_WINDOW_MS as i64 + 60_000;
/// The last day that every tool can show: 9999-12-31. What goes later stays for good.
pub(super) const EXPIRY_MS_MAX: i64 = 253_402_214_400_000;
/// Messages and heads per command: few enough to be answered in time by a slow database.
const MESSAGES_PER_COMMAND: usize = 500;
const HEADS_PER_COMMAND: usize = 500;

/// Does a batch.
pub(super) fn apply(
    backend: &mut MongoBackend,
    ops: &[StoreOp],
    now: i64,
) -> Result<Applied, BackendError> {
    backend.heads.make_room();
    load_heads(backend, ops)?;
    if backend.regime == Regime::Alone {
        check_order(backend, ops)?;
    }
    let sync = ops.iter().map(|op| match &op.change {
        Change::Append { retention, .. } => retention.sync,
        Change::Clear => Sync::Process,
    });
    let mut batch = Batch {
        on_disk: sync.max() == Some(Sync::Disk),
        until: backend.mongo.retry_until(),
        before: HashMap::new(),
        touched: HashSet::new(),
        pending: Vec::new(),
    };
    let done = batch.run(backend, ops, now);
    if let Err(error) = &done {
        backend.heads.clear();
        // What another server has written is not taken back.
        if backend.regime == Regime::Alone && !matches!(error, BackendError::Order(_)) {
            backend.doubts.add(batch.before);
        }
    }
    done
}

/// Reads the heads that a batch needs and that are not known. One that is not there is an empty one.
fn load_heads(backend: &mut MongoBackend, ops: &[StoreOp]) -> Result<(), BackendError> {
    let keys = ops.iter().map(|op| Key::of(&op.channel));
    let unknown: HashSet<Key> = keys.filter(|key| !backend.heads.knows(key)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let unknown: Vec<Key> = unknown.into_iter().collect();
    for some in unknown.chunks(HEADS_PER_COMMAND) {
        let ids: Vec<String> = some.iter().map(Key::id).collect();
        let read = || async {
            let found = backend.channels.find(doc! {"_id": {"$in": &ids}}).await?;
            found
                .collect::<Vec<Result<Document, Error>>>()
                .await
                .into_iter()
                .collect()
        };
        let found: Vec<Document> = backend.mongo.retrying(read)?;
        let found: HashMap<&str, &Document> = found
            .iter()
            .filter_map(|head| Some((head.get_str("_id").ok()?, head)))
            .collect();
        for (key, id) in some.iter().zip(&ids) {
            let head = found.get(&**id).map(|found| Head::read(found));
            backend.heads.set(key.clone(), head.unwrap_or_default());
        }
    }
    Ok(())
}

/// Whether every message follows its channel's last one.
fn check_order(backend: &MongoBackend, ops: &[StoreOp]) -> Result<(), BackendError> {
    let mut last: HashMap<Key, (i64, i64, &str)> = HashMap::new();
    for op in ops {
        let Change::Append { record, .. } = &op.change else {
            continue;
        };
        let key = Key::of(&op.channel);
        let known = last.get(&key).copied().or_else(|| {
            let head = backend.heads.get(&key)?;
            Some((head.last_seq, head.last_ts, &*head.epoch))
        });
        let (last_seq, last_ts, epoch) = known.unwrap_or_default();
        let (seq, ts) = (int(record.sequence), int(record.timestamp));
        let follows = seq == last_seq + 1 && ts >= last_ts;
        if !follows || (last_seq > 0 && *op.channel.epoch != *epoch) {
            return Err(BackendError::Order(format!(
                "app {:?}, channel {:?}: message {seq} at {ts} of numbering {:?} does not follow {last_seq} at {last_ts} of {epoch:?}",
                key.app, key.name, op.channel.epoch
            )));
        }
        last.insert(key, (seq, ts, &op.channel.epoch));
    }
    Ok(())
}

struct Batch<'a> {
    /// The journal must have it, whatever the configuration says.
    on_disk: bool,
    /// No try begins later.
    until: Instant,
    /// Heads from before the batch.
    before: HashMap<Key, Head>,
    /// Channels whose heads have been changed in memory.
    touched: HashSet<Key>,
    /// Messages to be written.
    pending: Vec<Pending<'a>>,
}

struct Pending<'a> {
    id: ObjectId,
    channel: &'a StoredChannel,
    record: &'a Record,
    document: RawDocumentBuf,
}

impl<'a> Batch<'a> {
    fn run(
        &mut self,
        backend: &mut MongoBackend,
        ops: &'a [StoreOp],
        now: i64,
    ) -> Result<Applied, BackendError> {
        let mut applied = Applied::default();
        for (index, op) in ops.iter().enumerate() {
            match &op.change {
                Change::Append { record, retention } => {
                    self.append(backend, &op.channel, record, *retention);
                }
                Change::Clear => {
                    // What is before it is to be counted, too.
                    self.flush(backend)?;
                    let removed = self.clear(backend, &op.channel, now)?;
                    applied.removed.push((index, removed));
                }
            }
        }
        self.flush(backend)?;
        Ok(applied)
    }

    fn append(
        &mut self,
        backend: &mut MongoBackend,
        channel: &'a StoredChannel,
        record: &'a Record,
        retention: Retention,
    ) {
        let (seq, ts) = (int(record.sequence), int(record.timestamp));
        let key = Key::of(channel);
        let mut head = self.change(backend, &key);
        let previous = (seq == head.last_seq + 1).then_some(head.last_ts);
        if seq > head.last_seq {
            head.epoch = channel.epoch.clone();
            head.last_seq = seq;
        }
        head.last_ts = head.last_ts.max(ts);
        (head.messages_max, head.age_ms) = (int(retention.messages_max), int(retention.age_ms));
        let surplus = head.last_seq.saturating_sub(head.messages_max);
        if backend
            .trims
            .note(&key, head.trimmed_seq, surplus, head.messages_max)
        {
            head.trimmed_seq = surplus;
        }
        let expires = ts
            .saturating_add(head.age_ms)
            .saturating_add(EXPIRY_GRACE_MS);
        let id = ObjectId::new();
        let mut document = rawdoc! {
            "_id": id,
            "app": &*channel.app,
            "channel": &*channel.name,
            "seq": seq,
            "ts": DateTime::from_millis(ts),
            "id": &*record.id,
            "publisher": &*record.publisher,
            "data": &*record.data,
            "window": window_of(ts),
        };
        if let Some(previous) = previous {
            document.append(cstr!("previous_ts"), previous);
        }
        if expires < EXPIRY_MS_MAX {
            document.append(cstr!("expires"), DateTime::from_millis(expires));
        }
        backend.heads.set(key, head);
        self.pending.push(Pending {
            id,
            channel,
            record,
            document,
        });
    }

    /// Number of messages that readers could have got until now. They are deleted later.
    fn clear(
        &mut self,
        backend: &mut MongoBackend,
        channel: &StoredChannel,
        now: i64,
    ) -> Result<u64, BackendError> {
        let key = Key::of(channel);
        let mut head = self.change(backend, &key);
        if head.last_seq == 0 {
            self.touched.remove(&key);
            return Ok(0);
        }
        let gone = read::gone_at(&backend.messages, &key, &head, now);
        let (gone, _) = backend.mongo.run(gone)?;
        (head.gone_seq, head.gone_ts) = (head.last_seq, head.last_ts);
        backend.trims.add(&key, head.last_seq);
        let removed = uint(head.last_seq - gone);
        backend.heads.set(key, head);
        Ok(removed)
    }

    /// A head, to be changed and set again.
    fn change(&mut self, backend: &MongoBackend, key: &Key) -> Head {
        let head = backend.heads.get(key).cloned().unwrap_or_default();
        if !self.before.contains_key(key) {
            self.before.insert(key.clone(), head.clone());
        }
        self.touched.insert(key.clone());
        head
    }

    /// Writes what is pending, and then the heads.
    fn flush(&mut self, backend: &MongoBackend) -> Result<(), BackendError> {
        let mut pending = std::mem::take(&mut self.pending).into_iter().peekable();
        while pending.peek().is_some() {
            self.insert(
                backend,
                pending.by_ref().take(MESSAGES_PER_COMMAND).collect(),
            )?;
        }
        let touched: Vec<Key> = self.touched.drain().collect();
        let is_alone = backend.regime == Regime::Alone;
        for some in touched.chunks(HEADS_PER_COMMAND) {
            let raised = some.iter().filter_map(|key| {
                let head = backend.heads.get(key)?;
                Some(head.raise(key, is_alone))
            });
            let raised: Vec<Document> = raised.collect();
            self.raise(backend, raised)?;
        }
        Ok(())
    }

    fn raise(&self, backend: &MongoBackend, heads: Vec<Document>) -> Result<(), BackendError> {
        loop {
            let done = backend
                .mongo
                .run(update_heads(backend, heads.clone(), self.on_disk));
            let error = match done {
                Ok(Ok(())) => return Ok(()),
                // The head is there with another fence.
                Ok(Err((DUPLICATE_KEY, error))) => {
                    return Err(another_server(&error.to_string()));
                }
                Ok(Err((_, error))) | Err(error) => error,
            };
            self.wait_for(error)?;
        }
    }

    /// Until all are there, each once.
    fn insert(
        &self,
        backend: &MongoBackend,
        mut pending: Vec<Pending<'_>>,
    ) -> Result<(), BackendError> {
        let messages: Collection<RawDocumentBuf> =
            backend.messages.clone_with_type::<RawDocumentBuf>();
        let concern = backend.mongo.write_concern(self.on_disk);
        while !pending.is_empty() {
            let documents = pending.iter().map(|message| &message.document);
            let insert = messages
                .insert_many(documents)
                .ordered(false)
                .write_concern(concern.clone());
            let inserting = async { Ok::<_, MongoError>(insert.await) };
            let refused = match backend.mongo.run(inserting) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => match Refused::of(&error) {
                    Some(refused) => refused,
                    None => {
                        self.wait_for(error.into())?;
                        continue;
                    }
                },
                Err(error) => {
                    self.wait_for(error)?;
                    continue;
                }
            };
            if let Some(error) = refused.failed {
                self.wait_for(error)?;
                continue;
            }
            let duplicates = pending
                .into_iter()
                .enumerate()
                .filter_map(|(index, message)| {
                    let by_id = refused.duplicates.get(&index)?;
                    Some((message, *by_id))
                });
            pending = self.resolve(backend, duplicates.collect())?;
            if !pending.is_empty() {
                self.wait_for(MongoError::Away(
                    "messages are refused as duplicates".to_owned(),
                ))?;
            }
        }
        Ok(())
    }

    /// Of messages that a unique index has refused, that of ids or another one: those that are still to be written, or
    /// to be seen by the write concern.
    fn resolve<'b>(
        &self,
        backend: &MongoBackend,
        refused: Vec<(Pending<'b>, bool)>,
    ) -> Result<Vec<Pending<'b>>, BackendError> {
        let mut by_channel: HashMap<Key, Vec<(Pending<'b>, bool)>> = HashMap::new();
        for (message, by_id) in refused {
            let of_channel = by_channel.entry(Key::of(message.channel));
            of_channel.or_default().push((message, by_id));
        }
        let mut again = Vec::new();
        for (key, refused) in by_channel {
            let there = self.numbered(backend, &key, &refused)?;
            let mut leftovers = Vec::new();
            for (mut message, by_id) in refused {
                match there.get(&int(message.record.sequence)) {
                    Some((id, _)) if *id == message.id => {}
                    Some((_, id)) if backend.regime == Regime::Cluster => {
                        if **id != *message.record.id {
                            return Err(BackendError::Order(format!(
                                "app {:?}, channel {:?}: message {} is {:?} already, not {:?}",
                                key.app, key.name, message.record.sequence, id, message.record.id
                            )));
                        }
                    }
                    // Of a batch that has failed: nobody has ever seen it.
                    Some((id, _)) => {
                        leftovers.push(*id);
                        again.push(message);
                    }
                    // Its id is another message's of the window: whoever numbers them has forgotten that one.
                    None => {
                        if by_id {
                            message.document = without_window(&message.document);
                        }
                        again.push(message);
                    }
                }
            }
            if !leftovers.is_empty() {
                self.require_unseen(backend, &key)?;
                let delete = || {
                    let leftovers = doc! {"_id": {"$in": leftovers.clone()}};
                    backend.messages.delete_many(leftovers)
                };
                backend.mongo.retrying(delete)?;
            }
        }
        Ok(again)
    }

    /// Whether the channel's head is where this process has left it: messages above it are of nobody.
    fn require_unseen(&self, backend: &MongoBackend, key: &Key) -> Result<(), BackendError> {
        let read = || backend.channels.find_one(doc! {"_id": key.id()});
        let head = backend.mongo.retrying(read)?.as_ref().map(Head::read);
        let before = self.before.get(key).map_or(0, |head| head.last_seq);
        if head.is_some_and(|head| head.last_seq > before) {
            return Err(another_server(&key.id()));
        }
        Ok(())
    }

    /// What is there of these numbers: `_id` of the document and the message's id.
    fn numbered(
        &self,
        backend: &MongoBackend,
        key: &Key,
        messages: &[(Pending<'_>, bool)],
    ) -> Result<HashMap<i64, (ObjectId, String)>, BackendError> {
        let seqs = messages.iter().map(|(m, _)| int(m.record.sequence));
        let seqs: Vec<i64> = seqs.collect();
        let mut filter = key.messages();
        filter.insert("seq", doc! {"$in": seqs});
        let read = || async {
            let find = backend.messages.find(filter.clone());
            let find = find.projection(doc! {"_id": 1, "seq": 1, "id": 1});
            let found = find.hint(Hint::Name(BY_SEQ.to_owned())).await?;
            let found: Vec<Result<Document, Error>> = found.collect().await;
            found.into_iter().collect::<Result<Vec<Document>, Error>>()
        };
        let found = backend.mongo.retrying(read)?;
        let there = found.iter().filter_map(|found| {
            let id = found.get_object_id("_id").ok()?;
            let text = found.get_str("id").unwrap_or_default().to_owned();
            Some((found.get_i64("seq").ok()?, (id, text)))
        });
        Ok(there.collect())
    }

    /// Waits before another try, where there may be one.
    fn wait_for(&self, error: MongoError) -> Result<(), BackendError> {
        match error {
            MongoError::Away(_) if pause_before(self.until) => Ok(()),
            error => Err(error.into()),
        }
    }
}

fn another_server(what: &str) -> BackendError {
    BackendError::Order(format!(
        "another server writes to the same channels without Redis: {what}"
    ))
}

/// What an insert has not done.
struct Refused {
    /// Indexes of those whose number or id is there, and whether it is the id.
    duplicates: HashMap<usize, bool>,
    /// Something else that was wrong. Otherwise all others are in, and confirmed.
    failed: Option<MongoError>,
}

impl Refused {
    fn of(error: &Error) -> Option<Self> {
        let ErrorKind::InsertMany(many) = &*error.kind else {
            return None;
        };
        let mut refused = Self {
            duplicates: HashMap::new(),
            failed: None,
        };
        if let Some(concern) = &many.write_concern_error {
            let text = concern.message.clone();
            refused.failed = Some(MongoError::of_code(concern.code, text));
        }
        for write in many.write_errors.iter().flatten() {
            if write.code == DUPLICATE_KEY {
                let by_id = write.message.contains(BY_ID);
                refused.duplicates.insert(write.index, by_id);
            } else {
                refused.failed = Some(MongoError::of_code(write.code, write.message.clone()));
            }
        }
        if refused.failed.is_none() && refused.duplicates.is_empty() {
            refused.failed = Some(MongoError::Away(error.to_string()));
        }
        Some(refused)
    }
}

/// Which window of dedup a time belongs to. Two messages of a channel with one id are at least a window apart.
fn window_of(ts: i64) -> i64 {
    ts / DEDUP_WINDOW_MS as i64
}

fn without_window(document: &RawDocumentBuf) -> RawDocumentBuf {
    let mut rest = RawDocumentBuf::new();
    for (name, value) in document
        .iter_elements()
        .flatten()
        .filter_map(|element| Some((element.key(), element.try_into().ok()?)))
    {
        let value: mongodb::bson::RawBsonRef<'_> = value;
        if name.as_str() != "window" {
            rest.append(name, value);
        }
    }
    rest
}

/// Updates heads. What the database says of single ones is the inner result.
pub(super) async fn update_heads(
    backend: &MongoBackend,
    updates: Vec<Document>,
    on_disk: bool,
) -> Result<Result<(), (i32, MongoError)>, MongoError> {
    for some in updates.chunks(HEADS_PER_COMMAND) {
        let command = doc! {
            "update": backend.mongo.name(names::CHANNELS),
            "updates": some.to_vec(),
            "ordered": false,
            "writeConcern": backend.mongo.write_concern_document(on_disk),
        };
        let answer = backend.mongo.database().run_command(command).await?;
        if let Err(failed) = check_write(&answer) {
            return Ok(Err(failed));
        }
    }
    Ok(Ok(()))
}
