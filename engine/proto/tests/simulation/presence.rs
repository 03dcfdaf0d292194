//! Clients with an id of their own that enter channels, are lost and come back, and what those who
//! are told of it may be told.
//!
//! A [`Person`] has one connection at a time and knows of each channel whether it must be a member.
//! What is under way between shards when it acts may be decided either way ([`Is::Maybe`]), and so
//! may a return about the end of the grace. A [`Watch`] is one connection's view: each enter is
//! followed by one leave before the next, and nothing is told twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};
use shardwire_proto::error::CloseCause;

use crate::book::Book;
use crate::support::client::summary;
use crate::support::{SERVER_KEY, World};

/// By then everything that shards had to tell each other has arrived.
const SETTLED_US: u64 = 60_000;
/// A deadline that has passed is noticed with the next tick.
const NOTICED_US: u64 = 1_000_000 + SETTLED_US;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Is {
    Yes,
    #[default]
    No,
    Maybe,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Held {
    pub is: Is,
    /// Number in its state; none where two requests were under way at once.
    pub state: Option<u64>,
}

#[derive(Debug)]
pub struct Person {
    pub id: String,
    pub conn: Option<usize>,
    pub held: BTreeMap<String, Held>,
    /// Frames looked at.
    read: usize,
    gets: VecDeque<String>,
    /// When its last connection ended, between these times.
    lost_us: (u64, u64),
    observed_us: u64,
}

impl Person {
    pub fn new(id: String) -> Self {
        Self {
            id,
            conn: None,
            held: BTreeMap::new(),
            read: 0,
            gets: VecDeque::new(),
            lost_us: (0, 0),
            observed_us: 0,
        }
    }

    pub fn connect(&mut self, w: &mut World, shard: usize, book: &mut Book) {
        let query = format!("key={SERVER_KEY}&clientId={}", self.id);
        self.conn = Some(w.connect_with(shard, &query));
        self.read = 0;
        self.gets.clear();
        self.observed_us = w.now_us;
        let grace_us = w.options.limits.presence_grace_ms * 1000;
        let (first, last) = self.lost_us;
        for held in self.held.values_mut().filter(|h| h.is != Is::No) {
            if grace_us == 0 || w.now_us > last + grace_us + NOTICED_US {
                held.is = Is::No;
                book.count("members expired");
            } else if w.now_us + SETTLED_US >= first + grace_us {
                held.is = Is::Maybe;
            } else if held.is == Is::Yes {
                book.count("members returned");
            }
        }
    }

    /// Enters, or changes its state, to one that is not used twice.
    pub fn put(&mut self, w: &mut World, channel: &str, enter: bool, number: u64) {
        let Some(conn) = self.conn else { return };
        let action = if enter {
            "presence.enter"
        } else {
            "presence.update"
        };
        let message = json!({"action": action, "channel": channel, "data": {"n": number}});
        let state = self.is_settled(w).then_some(number);
        let held = Held { is: Is::Yes, state };
        self.held.insert(channel.to_owned(), held);
        w.send(conn, &message);
    }

    pub fn leave(&mut self, w: &mut World, channel: &str) {
        let Some(conn) = self.conn else { return };
        let settled = self.is_settled(w);
        if let Some(held) = self.held.get_mut(channel)
            && held.is != Is::No
        {
            // An earlier connection may still hold it, whose end gives it to this one.
            held.is = if settled { Is::No } else { Is::Maybe };
        }
        w.send(
            conn,
            &json!({"action": "presence.leave", "channel": channel}),
        );
    }

    pub fn get(&mut self, w: &mut World, channel: &str) {
        let Some(conn) = self.conn else { return };
        if self.gets.len() < 8 {
            self.gets.push_back(channel.to_owned());
            w.send(conn, &json!({"action": "presence.get", "channel": channel}));
        }
    }

    /// Closes as a client does that is done.
    pub fn close(&mut self, w: &mut World) {
        let Some(conn) = self.conn.take() else { return };
        let settled = self.is_settled(w);
        self.lost_us = (w.now_us, w.now_us);
        for held in self.held.values_mut().filter(|h| h.is != Is::No) {
            held.is = if settled { Is::No } else { Is::Maybe };
        }
        w.with_conn(conn, |shard, conn, now| {
            shard.close(conn, CloseCause::PeerClosed { code: None }, now);
        });
    }

    /// The process has been restarted: nobody is a member of anything.
    pub fn forget(&mut self, w: &World) {
        self.conn = None;
        self.held.clear();
        self.lost_us = (w.now_us, w.now_us);
    }

    fn is_settled(&self, w: &World) -> bool {
        w.now_us > self.lost_us.1 + SETTLED_US
    }

    pub fn observe(&mut self, w: &World, book: &mut Book) {
        let Some(conn) = self.conn else { return };
        let client = &w.clients[conn];
        while let Some(frame) = client.frames.get(self.read) {
            self.read += 1;
            summary(frame);
            match frame["action"].as_str().unwrap() {
                "presence.members" => {
                    let asked = self.gets.pop_front();
                    assert_eq!(frame["channel"].as_str(), asked.as_deref(), "in order");
                    book.count("members frames");
                }
                "presence.enter" | "presence.update" | "presence.leave" | "presence.count" => {}
                _ => panic!("{frame}"),
            }
        }
        if client.conn.is_none() {
            self.conn = None;
            self.lost_us = (self.observed_us, w.now_us);
        }
        self.observed_us = w.now_us;
    }

    pub fn check_at_rest(&self) {
        assert!(self.conn.is_some());
        assert!(self.gets.is_empty(), "{:?} not answered", self.gets);
    }
}

/// What one connection has been told of the members of its channels.
#[derive(Debug, Default)]
pub struct Watch {
    channels: BTreeMap<String, Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// Who is there, of those that were told of.
    members: BTreeMap<String, bool>,
    /// Numbers in the states of enters and updates.
    states: BTreeSet<u64>,
    /// The number last told; none while there are events.
    count: Option<u64>,
}

impl Watch {
    pub fn forget(&mut self, channel: &str) {
        self.channels.remove(channel);
    }

    pub fn on_frame(&mut self, frame: &Value, channel: &str, book: &mut Book) {
        let told = self.channels.entry(channel.to_owned()).or_default();
        let action = frame["action"].as_str().unwrap();
        if action == "presence.count" {
            book.count("counts");
            told.members.clear();
            let counting = frame["events"] != true;
            told.count = counting.then(|| frame["count"].as_u64().unwrap());
            return;
        }
        book.count("presence events");
        let client = frame["clientId"].as_str().unwrap().to_owned();
        let there = action != "presence.leave";
        let was = told.members.insert(client, there);
        let fits = match action {
            "presence.enter" => was != Some(true),
            _ => was != Some(false),
        };
        assert!(fits, "{frame} after {was:?}");
        let number = frame["data"]["data"]["n"].as_u64().unwrap();
        let is_first = !there || told.states.insert(number);
        assert!(is_first, "{frame} came twice");
    }

    /// Everything was delivered: what was told is what is.
    pub fn check(&self, channel: &str, members: &BTreeMap<String, u64>) {
        let Some(told) = self.channels.get(channel) else {
            return;
        };
        if let Some(count) = told.count {
            assert_eq!(count, members.len() as u64, "number of {channel}");
            return;
        }
        for (client, there) in &told.members {
            let is = members.contains_key(client);
            assert_eq!(*there, is, "{client} in {channel}");
        }
    }
}
