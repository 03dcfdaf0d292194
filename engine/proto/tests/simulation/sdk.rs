//! A client as an SDK makes it: it comes back after every end of its connection and asks for what
//! it has missed. Every frame it gets is held against what it was promised.
//!
//! [`Kind::Token`] resumes as the official SDKs do, with its channels and the highest timestamp it
//! has received. That form has a hole of its own: a message accepted before that timestamp and
//! delivered after the connection broke (because its commit was late, or because an earlier resume
//! was cut) is behind the bound. The server sends again what may have been delivered late; what is
//! beyond that is excused and counted, but where there can be none: with stored messages alone, no
//! commit that was reported to have failed, no replay cut off, a commit in time, and the channel of
//! the last message still among those resumed.
//! [`Kind::Since`] gives a position per channel, and nothing is excused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use shardwire_proto::limits::{HISTORIES_PER_CONN_MAX, LATE_COMMIT_MS};

use crate::book::{Book, at};
use crate::presence::Watch;
use crate::support::World;
use crate::support::client::summary;
use crate::support::model::Model;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Token,
    Since,
    /// Subscribes to nothing, asks for history.
    Reader,
}

#[derive(Debug)]
pub struct Sdk {
    pub kind: Kind,
    pub conn: Option<usize>,
    pub wanted: BTreeSet<String>,
    /// Highest timestamp received.
    last_ts: u64,
    /// The channel of that message.
    last_of: String,
    /// Next sequence and epoch of the channels it follows.
    places: BTreeMap<String, (u64, String)>,
    /// Nothing is excused at its next resume.
    strict: bool,
    link: Link,
}

/// One connection.
#[derive(Debug, Default)]
struct Link {
    /// Frames looked at.
    read: usize,
    /// Next sequence, where it is known.
    next: BTreeMap<String, u64>,
    /// Lowest sequence received.
    low: BTreeMap<String, u64>,
    /// Highest sequence received.
    high: BTreeMap<String, u64>,
    /// The lowest sequence received must not be above this one.
    reach: BTreeMap<String, u64>,
    /// The last message was a replayed one.
    in_replay: BTreeSet<String>,
    /// Told that nothing is replayed.
    unrecovered: BTreeSet<String>,
    /// Step at which `subscribed` came.
    subscribed: BTreeMap<String, u64>,
    /// Publishes without an answer, by channel and id.
    unanswered: BTreeMap<(String, String), u32>,
    histories: VecDeque<String>,
    ephemeral: BTreeSet<String>,
    resume: Option<Resuming>,
    rewound: bool,
    watch: Watch,
}

#[derive(Debug)]
struct Resuming {
    /// Messages up to this time are behind the bound.
    bound_ms: u64,
    strict: bool,
    acknowledged: bool,
}

impl Sdk {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            conn: None,
            wanted: BTreeSet::new(),
            last_ts: 0,
            last_of: String::new(),
            places: BTreeMap::new(),
            strict: false,
            link: Link::default(),
        }
    }

    pub fn connect(&mut self, w: &mut World, shard: usize) {
        self.conn = Some(w.connect(shard));
        self.link = Link::default();
        let wanted: Vec<String> = self.wanted.iter().cloned().collect();
        if self.kind == Kind::Token && self.last_ts > 0 && !wanted.is_empty() {
            let overlap = w.options.recovery_overlap_ms;
            self.link.resume = Some(Resuming {
                bound_ms: self.last_ts.saturating_sub(overlap),
                strict: self.strict && self.wanted.contains(&self.last_of),
                acknowledged: false,
            });
            for (channel, (expect, _)) in &self.places {
                self.link.reach.insert(channel.clone(), *expect);
            }
            let token = json!({"channels": wanted, "lastTs": self.last_ts}).to_string();
            let token = BASE64URL_NOPAD.encode(token.as_bytes());
            self.send(w, &json!({"action": "resume", "resumeToken": token}));
        } else {
            for channel in wanted {
                self.subscribe(w, &channel);
            }
        }
    }

    pub fn send(&mut self, w: &mut World, message: &Value) {
        if let Some(conn) = self.conn {
            w.send(conn, message);
        }
    }

    /// Begins to follow a channel, or says again that it does.
    pub fn subscribe(&mut self, w: &mut World, channel: &str) {
        self.wanted.insert(channel.to_owned());
        let mut message = json!({"action": "subscribe", "channel": channel});
        let live = self.link.subscribed.contains_key(channel);
        if self.kind == Kind::Since && !live {
            message["since"] = match self.places.get(channel) {
                Some((next, epoch)) => json!({"sequence": next - 1, "epoch": epoch}),
                None => json!({}),
            };
        }
        self.send(w, &message);
    }

    pub fn rewind(&mut self, w: &mut World, channel: &str, count: u64) {
        if self.conn.is_some() {
            self.wanted.insert(channel.to_owned());
            self.link.rewound = true;
            let message = json!({"action": "subscribe", "channel": channel, "rewind": count});
            self.send(w, &message);
        }
    }

    pub fn unsubscribe(&mut self, w: &mut World, channel: &str) {
        self.wanted.remove(channel);
        self.places.remove(channel);
        self.link.reach.remove(channel);
        self.send(w, &json!({"action": "unsubscribe", "channel": channel}));
    }

    pub fn publish(&mut self, w: &mut World, channel: &str, id: &str, persist: bool) {
        if self.conn.is_some() {
            let key = (channel.to_owned(), id.to_owned());
            *self.link.unanswered.entry(key).or_default() += 1;
            let mut message =
                json!({"action": "publish", "channel": channel, "id": id, "data": [id]});
            if !persist {
                message["persist"] = json!(false);
            }
            self.send(w, &message);
        }
    }

    pub fn history(&mut self, w: &mut World, channel: &str, limit: u64, forward: bool) {
        // More at once are refused.
        if self.conn.is_some() && self.link.histories.len() < HISTORIES_PER_CONN_MAX {
            self.link.histories.push_back(channel.to_owned());
            let direction = if forward { "forward" } else { "backward" };
            let message = json!({
                "action": "history", "channel": channel, "limit": limit, "direction": direction,
            });
            self.send(w, &message);
        }
    }

    /// Looks at what has come, and whether the connection has ended.
    pub fn observe(&mut self, w: &World, book: &mut Book, in_time: bool) {
        let Some(conn) = self.conn else { return };
        let client = &w.clients[conn];
        while let Some(frame) = client.frames.get(self.link.read) {
            self.link.read += 1;
            self.on_frame(frame, &w.store.model, book);
        }
        if client.conn.is_none() {
            self.conn = None;
            let resumed = self.link.resume.as_ref().is_none_or(|r| r.acknowledged);
            self.strict = in_time && resumed && !self.link.rewound;
            book.count("ends");
        }
    }

    fn on_frame(&mut self, frame: &Value, model: &Model, book: &mut Book) {
        summary(frame);
        let text = |field: &str| frame[field].as_str().unwrap_or_default().to_owned();
        let (channel, id) = (text("channel"), text("id"));
        match frame["action"].as_str().unwrap() {
            "subscribed" => self.on_subscribed(frame, &channel, book),
            "unsubscribed" => {
                let link = &mut self.link;
                link.subscribed.remove(&channel);
                link.next.remove(&channel);
                link.reach.remove(&channel);
                link.low.remove(&channel);
                link.in_replay.remove(&channel);
                link.watch.forget(&channel);
                if !self.wanted.contains(&channel) {
                    self.places.remove(&channel);
                }
            }
            "message" => self.on_message(frame, &channel, &id, model, book),
            "ack" if id == "resume" => self.on_resumed(frame, model, book),
            "ack" => {
                self.answered(&channel, &id);
                if let Some(sequence) = frame["sequence"].as_u64() {
                    book.ack(&channel, &id, sequence);
                }
            }
            "error" if id.is_empty() => {
                assert_eq!(frame["code"], 50300, "{frame}");
                if self.kind == Kind::Reader {
                    assert_eq!(self.link.histories.pop_front(), Some(channel), "in order");
                } else {
                    // The store could not be read: where it stands is not known.
                    book.count("replays failed");
                    self.link.reach.remove(&channel);
                    self.places.remove(&channel);
                }
            }
            "error" => {
                book.count("refused");
                assert_eq!(frame["code"], 50300, "{frame}");
                self.answered(&channel, &id);
            }
            "history" => {
                assert_eq!(self.link.histories.pop_front().as_ref(), Some(&channel));
                for message in frame["messages"].as_array().unwrap() {
                    let id = message["id"].as_str().unwrap();
                    book.see(&channel, message["sequence"].as_u64().unwrap(), id);
                }
                book.count("pages");
            }
            "pong" => {}
            action if action.starts_with("presence.") => {
                self.link.watch.on_frame(frame, &channel, book);
            }
            other => panic!("{other}"),
        }
    }

    fn answered(&mut self, channel: &str, id: &str) {
        let key = (channel.to_owned(), id.to_owned());
        let count = self.link.unanswered.get_mut(&key);
        let count = count.filter(|n| **n > 0);
        *count.unwrap_or_else(|| panic!("{id} on {channel} is answered twice")) -= 1;
    }

    fn on_subscribed(&mut self, frame: &Value, channel: &str, book: &mut Book) {
        let link = &mut self.link;
        link.subscribed
            .entry(channel.to_owned())
            .or_insert(book.step);
        link.in_replay.remove(channel);
        link.unrecovered.remove(channel);
        let Some(recovered) = frame["recovered"].as_bool() else {
            return;
        };
        let next = frame["sequence"].as_u64().unwrap() + 1;
        let epoch = frame["epoch"].as_str().unwrap();
        if recovered {
            book.count("since recovered");
            // Without a place: it has been given up since.
            if let Some((expect, known)) = self.places.get(channel) {
                assert_eq!(known, epoch);
                link.next.insert(channel.to_owned(), *expect);
            }
        } else {
            book.count("since not recovered");
            link.unrecovered.insert(channel.to_owned());
            if !epoch.is_empty() {
                link.reach.insert(channel.to_owned(), next);
            }
            let place = (next, epoch.to_owned());
            self.places.insert(channel.to_owned(), place);
        }
    }

    fn on_message(
        &mut self,
        frame: &Value,
        channel: &str,
        id: &str,
        model: &Model,
        book: &mut Book,
    ) {
        assert_eq!(frame["data"], json!([id]));
        let timestamp = frame["timestamp"].as_u64().unwrap();
        if timestamp > self.last_ts {
            (self.last_ts, self.last_of) = (timestamp, channel.to_owned());
        }
        let Some(sequence) = frame["sequence"].as_u64() else {
            assert!(self.link.ephemeral.insert(id.to_owned()), "{id} came twice");
            book.count("ephemeral");
            return;
        };
        book.see(channel, sequence, id);
        let link = &mut self.link;
        let key = channel.to_owned();
        assert!(
            link.subscribed.contains_key(channel),
            "{frame} before subscribed"
        );
        let next = link.next.get(channel).copied();
        let high = link.high.get(channel).copied().unwrap_or(0);
        let follows =
            |n: u64| n == sequence || (n < sequence && book.are_lost(channel, n..sequence, model));
        if frame["replay"].is_null() {
            assert!(next.is_none_or(follows), "{frame}: {next:?} is next");
            assert!(sequence > high, "{frame} came before");
            link.in_replay.remove(channel);
            book.count("live");
        } else {
            let unrecovered = link.unrecovered.contains(channel);
            assert!(!unrecovered, "{frame} after recovered:false");
            let begins = link.in_replay.insert(key.clone());
            let fits = |n| follows(n) || (begins && sequence < n);
            assert!(next.is_none_or(fits), "{frame}: {next:?} is next");
            book.count("replayed");
        }
        link.next.insert(key.clone(), sequence + 1);
        link.high.insert(key.clone(), high.max(sequence));
        let low = link.low.get(channel).copied();
        link.low
            .insert(key.clone(), low.map_or(sequence, |l| l.min(sequence)));
        if low.is_none() {
            let told = link.resume.as_ref().is_none_or(|r| r.acknowledged);
            if told && let Some(expect) = link.reach.remove(channel) {
                self.judge(channel, expect, sequence, model, book);
            }
        }
        if self.kind == Kind::Token && self.wanted.contains(channel) {
            self.places.entry(key).or_default();
        }
        if let Some(place) = self.places.get_mut(channel) {
            place.0 = place.0.max(sequence + 1);
        }
    }

    fn on_resumed(&mut self, frame: &Value, model: &Model, book: &mut Book) {
        let resume = self.link.resume.as_mut().expect("it has asked");
        assert!(!resume.acknowledged, "{frame} came twice");
        resume.acknowledged = true;
        book.count("resumes");
        let told = frame["data"]["channels"].as_object().unwrap();
        for (channel, outcome) in told {
            let Some(expect) = self.link.reach.remove(channel) else {
                continue;
            };
            if outcome["recovered"] == false {
                book.count("resumes with a gap");
                self.places.remove(channel);
                continue;
            }
            match self.link.low.get(channel).copied() {
                Some(low) => self.judge(channel, expect, low, model, book),
                None => {
                    // Nothing yet; what is behind the bound will not come.
                    let end = model.get(channel).map_or(1, |s| s.all.len() as u64 + 1);
                    let behind =
                        (expect..end).take_while(|s| self.is_behind(channel, *s, model, book));
                    let behind = behind.count() as u64;
                    book.excused += behind;
                    self.link.reach.insert(channel.clone(), expect + behind);
                    if let Some(place) = self.places.get_mut(channel) {
                        place.0 += behind;
                    }
                }
            }
        }
    }

    /// Everything from `expect` on was promised, and nothing before `low` came.
    fn judge(&self, channel: &str, expect: u64, low: u64, model: &Model, book: &mut Book) {
        for missing in expect..low {
            assert!(
                self.is_behind(channel, missing, model, book)
                    || book.are_lost(channel, missing..missing + 1, model),
                "{channel}#{missing} is missing, {low} came first: {:?}",
                self.link.resume
            );
            book.excused += 1;
        }
    }

    /// Whether a message is behind the bound of this connection's resume.
    fn is_behind(&self, channel: &str, sequence: u64, model: &Model, book: &Book) -> bool {
        let stored = model.get(channel);
        let record = stored.and_then(|s| at(s, sequence));
        let timestamp = record.expect("what came later is stored").timestamp;
        let is_gone = stored.is_some_and(|s| sequence <= s.gone(book.now_ms) as u64);
        self.link.resume.as_ref().is_some_and(|r| {
            // What is gone is not known to have been late.
            let excused = !r.strict || is_gone || timestamp + LATE_COMMIT_MS < r.bound_ms;
            timestamp <= r.bound_ms && excused
        })
    }

    /// What it was told of a channel's members, when nothing is under way any more.
    pub fn check_members(&self, channel: &str, members: &BTreeMap<String, u64>) {
        self.link.watch.check(channel, members);
    }

    /// Nothing is under way any more: everything has been answered and delivered.
    pub fn check_at_rest(&self, model: &Model, book: &mut Book) {
        let link = &self.link;
        if self.conn.is_none() {
            return;
        }
        for (publish, count) in &link.unanswered {
            assert_eq!(*count, 0, "{publish:?} was not answered");
        }
        assert!(link.histories.is_empty(), "{:?}", link.histories);
        assert!(link.resume.as_ref().is_none_or(|r| r.acknowledged));
        let followed: Vec<&String> = link.subscribed.keys().collect();
        let wanted: Vec<&String> = self.wanted.iter().collect();
        assert_eq!(followed, wanted, "subscriptions");
        for channel in wanted {
            let all = model.get(channel).map_or(&[][..], |s| &s.all);
            let end = all.len() as u64 + 1;
            match (link.next.get(channel), link.reach.get(channel)) {
                (Some(next), _) => assert!(
                    *next == end || book.are_lost(channel, *next..end, model),
                    "{channel}#{next} did not come, of {}",
                    all.len()
                ),
                (None, Some(expect)) => self.judge(channel, *expect, end, model, book),
                (None, None) => {}
            }
            let low = link.low.get(channel).copied().unwrap_or(u64::MAX);
            for record in all.iter().filter(|r| r.sequence < low) {
                let sent = book.sent[&*record.id];
                let since = link.subscribed[channel];
                let place = record.sequence..record.sequence + 1;
                assert!(
                    sent <= since || book.are_lost(channel, place, model),
                    "{channel}#{} was published after `subscribed`",
                    record.sequence
                );
            }
        }
    }
}
