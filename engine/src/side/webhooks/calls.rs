//! Operators' calls: endpoints, their logs and events, dead letters.

use serde_json::{Value, json};
use shardwire_proto::auth::key::generate_key;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::webhook::event::encode_body;
use shardwire_proto::webhook::sender::{Cursor, Queued};
use shardwire_proto::webhook::{ENDPOINTS_PER_APP_MAX, Endpoint, EndpointPatch, NewEndpoint, Note};

use super::deliver::{Entry, Place};
use super::guard::check_url;
use super::keeper::{Keeper, Reply};
use super::outbox::{self, CHUNK, CURSOR, Chunk, DEAD, Dead, ENDPOINT, LOG, OF, PAGE, REPLAY};
use crate::clock::now_ms;
use crate::keys;
use crate::records::{Change, Condition, RecordError, Scan};

/// Chunks that one answer with events is made of, at most.
const ANSWER_CHUNKS: usize = 64;
/// Dead letters that one call sends again.
const REPLAYS_MAX: usize = 1_000;

/// What an operator wants of an app's endpoints.
#[derive(Debug)]
pub struct Call {
    pub app: String,
    pub order: Order,
}

/// Ids name endpoints.
#[derive(Debug)]
pub enum Order {
    /// In the order of ids, those behind one alone.
    List {
        after: String,
        limit: usize,
    },
    Create(NewEndpoint),
    Show(String),
    Patch(String, EndpointPatch),
    Delete(String),
    /// For so many seconds both secrets sign.
    Rotate(String, u64),
    /// Sends a sample; the answer is what came of it.
    Test(String),
    /// Events again, from a number on.
    Events {
        id: String,
        from: u64,
        limit: usize,
    },
    /// The last attempts.
    Log(String),
    DeadLetters {
        id: String,
        after: String,
        limit: usize,
    },
    DeadLetter {
        id: String,
        letter: String,
    },
    /// Sends one again, or all.
    Replay {
        id: String,
        letter: Option<String>,
    },
    /// Removes one, or all.
    Purge {
        id: String,
        letter: Option<String>,
    },
}

type Answer = Result<Value, ProtocolError>;

impl Keeper {
    pub(super) fn answer(&mut self, call: Call, reply: Reply) {
        if let Order::Test(id) = &call.order {
            match self.try_endpoint(&call.app, id, &reply) {
                Ok(()) => {}
                Err(error) => _ = reply.try_send(Err(error)),
            }
            return;
        }
        // Whoever asked may have given up.
        _ = reply.try_send(self.carry_out(call));
    }

    fn carry_out(&mut self, call: Call) -> Answer {
        let now_ms = now_ms();
        let app = call.app;
        if self.registry.snapshot().app(&app).is_none() {
            return Err(ErrorCode::NotFound.into());
        }
        // Another process may have made or changed endpoints.
        if let Err(error) = self.reload(now_ms) {
            self.note_failure(&error);
        }
        match call.order {
            Order::List { after, limit } => Ok(self.list(&app, &after, limit, now_ms)),
            Order::Create(new) => self.create(&app, new, now_ms),
            Order::Show(id) => Ok(self.endpoint(&app, &id)?.shown(now_ms)),
            Order::Patch(id, patch) => self.patch(&app, &id, patch, now_ms),
            Order::Delete(id) => {
                self.endpoint(&app, &id)?;
                self.remove_endpoint(&id, now_ms).map_err(away)?;
                self.reload(now_ms).map_err(away)?;
                Ok(json!({}))
            }
            Order::Rotate(id, overlap_s) => self.rotate(&app, &id, overlap_s, now_ms),
            Order::Test(_) => Err(ErrorCode::Internal.into()),
            Order::Events { id, from, limit } => self.events(&app, &id, from, limit, now_ms),
            Order::Log(id) => self.log(&app, &id, now_ms),
            Order::DeadLetters { id, after, limit } => {
                self.dead_letters(&app, &id, &after, limit, now_ms)
            }
            Order::DeadLetter { id, letter } => {
                let dead = self.dead_letter(&app, &id, &letter, now_ms)?;
                let mut shown = summary(&dead);
                shown["events"] = serde_json::to_value(&dead.events).map_err(broken)?;
                Ok(shown)
            }
            Order::Replay { id, letter } => self.replay(&app, &id, letter, now_ms),
            Order::Purge { id, letter } => self.purge(&app, &id, letter, now_ms),
        }
    }

    fn endpoint(&self, app: &str, id: &str) -> Result<&Endpoint, ProtocolError> {
        let line = self.lines.get(id).filter(|line| &*line.app == app);
        let line = line.ok_or(ErrorCode::NotFound)?;
        Ok(&line.endpoint)
    }

    fn list(&self, app: &str, after: &str, limit: usize, now_ms: u64) -> Value {
        let of_app = self.lines.values().filter(|line| &*line.app == app);
        let mut rest = of_app.skip_while(|line| *line.id <= *after).peekable();
        let (mut page, mut last) = (Vec::new(), "");
        while let Some(line) = rest.next_if(|_| page.len() < limit) {
            last = &line.id;
            page.push(line.endpoint.shown(now_ms));
        }
        let mut body = json!({ "webhooks": page });
        if rest.peek().is_some() {
            body["cursor"] = last.into();
        }
        body
    }

    fn create(&mut self, app: &str, new: NewEndpoint, now_ms: u64) -> Answer {
        self.check_url(&new.url)?;
        let count = self.lines.values().filter(|l| &*l.app == app).count();
        let registry = self.registry.snapshot();
        let plan = registry.app(app).and_then(|app| registry.plan_of(app));
        let most = plan.and_then(|plan| plan.webhooks_max);
        if count >= most.unwrap_or(usize::MAX).min(ENDPOINTS_PER_APP_MAX) {
            let text = "the app has as many webhooks as it may have";
            return Err(ProtocolError::with_text(ErrorCode::QuotaExhausted, text));
        }
        let id = format!("wh_{}", short_random());
        let endpoint = Endpoint::new(app, (id, new_secret()), new, now_ms).map_err(wrong)?;
        self.keep(&endpoint, Condition::Absent, now_ms)?;
        let mut shown = endpoint.shown(now_ms);
        shown["secret"] = endpoint.secret.into();
        Ok(shown)
    }

    fn patch(&mut self, app: &str, id: &str, patch: EndpointPatch, now_ms: u64) -> Answer {
        if let Some(url) = &patch.url {
            self.check_url(url)?;
        }
        let changed = self.endpoint(app, id)?.patched(patch).map_err(wrong)?;
        self.keep(&changed, Condition::Always, now_ms)?;
        Ok(changed.shown(now_ms))
    }

    fn rotate(&mut self, app: &str, id: &str, overlap_s: u64, now_ms: u64) -> Answer {
        let endpoint = self.endpoint(app, id)?;
        let changed = endpoint.rotated(new_secret(), overlap_s, now_ms);
        let changed = changed.map_err(wrong)?;
        self.keep(&changed, Condition::Always, now_ms)?;
        let mut shown = changed.shown(now_ms);
        shown["secret"] = changed.secret.into();
        Ok(shown)
    }

    fn keep(
        &mut self,
        endpoint: &Endpoint,
        when: Condition,
        now_ms: u64,
    ) -> Result<(), ProtocolError> {
        // With the node: of messages from here on it is known how far their events are kept.
        let node = outbox::put_node(&self.as_node(now_ms));
        let put = outbox::put_endpoint(endpoint, when);
        self.records.apply(&[node, put], now_ms).map_err(away)?;
        self.reload(now_ms).map_err(away)
    }

    fn check_url(&self, url: &str) -> Result<(), ProtocolError> {
        let config = &self.config;
        check_url(url, config.require_https, config.allow_private).map_err(wrong)
    }

    /// Removes an endpoint and all that is kept of it.
    pub(super) fn remove_endpoint(&mut self, id: &str, now_ms: u64) -> Result<(), RecordError> {
        let records = &mut *self.records;
        // First: what is left of one that is not there is found by nobody.
        records.apply(&[Change::delete(ENDPOINT, id)], now_ms)?;
        for kind in [CHUNK, DEAD, REPLAY, CURSOR, LOG] {
            while outbox::remove_some(records, kind, id, now_ms)? == PAGE {}
        }
        Ok(())
    }

    fn try_endpoint(&mut self, app: &str, id: &str, reply: &Reply) -> Result<(), ProtocolError> {
        let now_ms = now_ms();
        self.endpoint(app, id)?;
        if !self.pool.has_room(true) {
            let text = "too many deliveries are under way; try again";
            return Err(ProtocolError::with_text(ErrorCode::Unavailable, text));
        }
        let line = self.lines.get(id).ok_or(ErrorCode::NotFound)?;
        let delivery = format!("test-{}", short_random());
        let note = Note::test(app, now_ms);
        let event = note.encode(0, line.endpoint.names.of(note.kind));
        let body = encode_body(&delivery, app, now_ms, std::iter::once(&*event));
        let attempt = (delivery.clone(), 1);
        let shipment = line.ship(Place::Test, attempt, body, vec![now_ms], true, now_ms);
        self.trials.insert(delivery, reply.clone());
        self.pool.ship(shipment);
        Ok(())
    }

    fn events(&mut self, app: &str, id: &str, from: u64, limit: usize, now_ms: u64) -> Answer {
        self.endpoint(app, id)?;
        let records = &mut *self.records;
        let from = from.max(1);
        let chunks = outbox::read_chunks(records, id, from, ANSWER_CHUNKS, now_ms).map_err(away)?;
        let found = chunks.into_iter().flat_map(Chunk::events);
        let events: Vec<Queued> = found
            .filter(|event| event.number >= from)
            .take(limit)
            .collect();
        let cursor = records.get(CURSOR, id, now_ms).map_err(away)?;
        let cursor: Cursor = cursor.as_ref().and_then(outbox::parse).unwrap_or_default();
        let latest = cursor.next.saturating_sub(1);
        let next = events.last().map_or(from, |event| event.number + 1);
        let texts = events.iter().map(|event| serde_json::from_str(&event.text));
        let events: Vec<Value> = texts.collect::<Result<_, _>>().map_err(broken)?;
        Ok(json!({
            "events": events,
            "next": next,
            "latest": latest,
            "hasMore": next <= latest && !events.is_empty(),
        }))
    }

    fn log(&mut self, app: &str, id: &str, now_ms: u64) -> Answer {
        self.endpoint(app, id)?;
        let line = self.lines.get(id).ok_or(ErrorCode::NotFound)?;
        let mut entries: Vec<Entry> = line.log.iter().cloned().collect();
        let (mut behind, mut failures) = (None, None);
        if let Some(sender) = &line.sender {
            behind = Some(sender.behind());
            failures = Some(sender.failures());
        } else {
            let kept = self.records.get(LOG, id, now_ms).map_err(away)?;
            entries = kept.as_ref().and_then(outbox::parse).unwrap_or_default();
        }
        entries.reverse();
        Ok(json!({ "deliveries": entries, "behind": behind, "failuresInARow": failures }))
    }

    fn dead_letters(
        &mut self,
        app: &str,
        id: &str,
        after: &str,
        limit: usize,
        now_ms: u64,
    ) -> Answer {
        self.endpoint(app, id)?;
        let mut scan = Scan::of(DEAD, limit + 1).labelled(OF, id);
        if !after.is_empty() {
            let (rank, letter) = after.split_once('.').ok_or(ErrorCode::BadField)?;
            let rank = rank.parse().map_err(|_| ErrorCode::BadField)?;
            scan.after = Some((rank, letter.to_owned()));
        }
        let mut found = self.records.scan(&scan, now_ms).map_err(away)?;
        let has_more = found.len() > limit;
        found.truncate(limit);
        let letters = found.iter().filter_map(outbox::parse::<Dead>);
        let letters: Vec<Value> = letters.map(|dead| summary(&dead)).collect();
        let mut body = json!({ "deadLetters": letters });
        if let Some(last) = found.last().filter(|_| has_more) {
            body["cursor"] = format!("{}.{}", last.rank, last.id).into();
        }
        Ok(body)
    }

    fn dead_letter(
        &mut self,
        app: &str,
        id: &str,
        letter: &str,
        now_ms: u64,
    ) -> Result<Dead, ProtocolError> {
        self.endpoint(app, id)?;
        let found = self.records.get(DEAD, letter, now_ms).map_err(away)?;
        let dead = found.as_ref().and_then(outbox::parse::<Dead>);
        let dead = dead.filter(|dead| dead.endpoint == id);
        dead.ok_or(ErrorCode::NotFound.into())
    }

    fn replay(&mut self, app: &str, id: &str, letter: Option<String>, now_ms: u64) -> Answer {
        self.endpoint(app, id)?;
        let letters = match letter {
            Some(letter) => vec![self.dead_letter(app, id, &letter, now_ms)?.id],
            None => {
                let scan = Scan::of(DEAD, REPLAYS_MAX).labelled(OF, id);
                let found = self.records.scan(&scan, now_ms).map_err(away)?;
                found.into_iter().map(|record| record.id).collect()
            }
        };
        // The process that delivers finds them there, be it this one or another.
        let until_ms = now_ms + self.config.dead_letters_s * 1000;
        let asked = letters
            .iter()
            .map(|letter| outbox::put_replay(id, letter, now_ms, until_ms));
        let asked: Vec<Change> = asked.collect();
        self.records.apply(&asked, now_ms).map_err(away)?;
        self.due.peers = 0;
        Ok(json!({ "queued": letters.len() }))
    }

    fn purge(&mut self, app: &str, id: &str, letter: Option<String>, now_ms: u64) -> Answer {
        let mut purged = 0;
        if let Some(letter) = letter {
            let dead = self.dead_letter(app, id, &letter, now_ms)?;
            let gone = [DEAD, REPLAY].map(|kind| Change::delete(kind, &*dead.id));
            self.records.apply(&gone, now_ms).map_err(away)?;
            purged = 1;
        } else {
            self.endpoint(app, id)?;
            let records = &mut *self.records;
            while outbox::remove_some(records, REPLAY, id, now_ms).map_err(away)? == PAGE {}
            loop {
                let gone = outbox::remove_some(&mut *self.records, DEAD, id, now_ms);
                let gone = gone.map_err(away)?;
                purged += gone;
                if gone < PAGE {
                    break;
                }
            }
        }
        Ok(json!({ "purged": purged }))
    }
}

fn summary(dead: &Dead) -> Value {
    json!({
        "id": dead.id,
        "timeMs": dead.time_ms,
        "at": dead.at,
        "attempts": dead.attempts,
        "error": dead.error,
        "count": dead.events.len(),
    })
}

fn new_secret() -> String {
    generate_key("whsec_", &keys::random())
}

fn short_random() -> String {
    let random = crate::sys::random();
    data_encoding::BASE32_NOPAD
        .encode(&random[..10])
        .to_lowercase()
}

fn wrong(text: String) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}

fn broken(error: serde_json::Error) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::Internal, error.to_string())
}

/// The outbox cannot be used for now.
fn away(error: RecordError) -> ProtocolError {
    let text = format!("the outbox cannot be used: {error}");
    ProtocolError::with_text(ErrorCode::Unavailable, text)
}
