//! Presence against a naive model: any interleaving of enter, update, leave, connections that end
//! cleanly or are lost, and returns within and after the grace gives the same members, and events
//! in which each enter is matched by one leave.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use shardwire_proto::error::CloseCause;
use shardwire_proto::ids::RequestId;
use shardwire_proto::limits::{PRESENCE_GRACE_MS, PRESENCE_LATE_END_MS};
use shardwire_proto::shard::{Options, Output};

use support::{Chaos, SERVER_KEY, World};

const CHANNELS: [&str; 3] = ["a", "b", "c"];
const IDS: [&str; 3] = ["x", "y", "z"];

#[derive(Debug, Clone)]
enum Step {
    Wait {
        ms: u64,
    },
    Open {
        id: usize,
        shard: usize,
    },
    Put {
        conn: usize,
        channel: usize,
        state: u8,
    },
    Leave {
        conn: usize,
        channel: usize,
    },
    Close {
        conn: usize,
    },
    Cut {
        conn: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    // Around the grace and the lateness of an end.
    let times = prop::sample::select(vec![1u64, 300, 1500, 3000, 8000, 14_500, 17_500]);
    let conn = || 0usize..8;
    let channel = || 0..CHANNELS.len();
    prop_oneof![
        4 => times.prop_map(|ms| Step::Wait { ms }),
        4 => (0..IDS.len(), 0usize..3).prop_map(|(id, shard)| Step::Open { id, shard }),
        6 => (conn(), channel(), 0u8..4).prop_map(|(conn, channel, state)| Step::Put { conn, channel, state }),
        2 => (conn(), channel()).prop_map(|(conn, channel)| Step::Leave { conn, channel }),
        1 => conn().prop_map(|conn| Step::Close { conn }),
        3 => conn().prop_map(|conn| Step::Cut { conn }),
    ]
}

/// One member as anybody would keep it who has time.
#[derive(Debug, Clone)]
struct Member {
    state: Option<u8>,
    conns: Vec<usize>,
    leaves_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct Naive {
    now_ms: u64,
    /// By channel and client.
    members: BTreeMap<(usize, usize), Member>,
    /// The latest connection of each client, and when it was opened.
    latest: BTreeMap<usize, (usize, u64)>,
    /// What an observer of each channel has been told.
    told: Vec<Vec<String>>,
}

impl Naive {
    fn tell(&mut self, (channel, id): (usize, usize), verb: &str, state: Option<u8>) {
        let state = state.map_or(String::new(), |s| format!("{{\"s\":{s}}}"));
        let line = format!("{verb} {} {}{state}", CHANNELS[channel], IDS[id]);
        self.told[channel].push(line);
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        let gone: Vec<_> = self
            .members
            .iter()
            .filter_map(|(key, m)| Some((m.leaves_ms.filter(|t| *t <= self.now_ms)?, *key)))
            .collect();
        for (_, key) in gone {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: (usize, usize)) {
        let member = self.members.remove(&key).unwrap();
        self.tell(key, "leave", member.state);
    }

    fn open(&mut self, id: usize, conn: usize) {
        self.latest.insert(id, (conn, self.now_ms));
        for ((_, of), member) in &mut self.members {
            if *of == id && member.leaves_ms.take().is_some() {
                member.conns.push(conn);
            }
        }
    }

    fn put(&mut self, key: (usize, usize), conn: usize, state: Option<u8>) {
        let is_there = self.members.contains_key(&key);
        let member = self.members.entry(key).or_insert(Member {
            state,
            conns: Vec::new(),
            leaves_ms: None,
        });
        member.state = state;
        member.leaves_ms = None;
        if !member.conns.contains(&conn) {
            member.conns.push(conn);
        }
        self.tell(key, if is_there { "update" } else { "enter" }, state);
    }

    fn leave(&mut self, key: (usize, usize), conn: usize) {
        if let Some(member) = self.members.get_mut(&key) {
            member.conns.retain(|c| *c != conn);
            if member.conns.is_empty() {
                self.remove(key);
            }
        }
    }

    fn end(&mut self, id: usize, conn: usize, is_clean: bool) {
        let keys: Vec<_> = self.members.keys().copied().filter(|k| k.1 == id).collect();
        for key in keys {
            let latest = self.latest.get(&id).copied();
            let now_ms = self.now_ms;
            let member = self.members.get_mut(&key).unwrap();
            let held = member.conns.len();
            member.conns.retain(|c| *c != conn);
            if member.conns.len() == held || !member.conns.is_empty() {
                continue;
            }
            if is_clean {
                self.remove(key);
                continue;
            }
            match latest {
                Some((other, at)) if other != conn && at + PRESENCE_LATE_END_MS >= now_ms => {
                    // It may be gone itself by now: then it was the last to be opened, and the
                    // grace begins with the news of that.
                    member.conns.push(other);
                }
                _ => member.leaves_ms = Some(now_ms + PRESENCE_GRACE_MS),
            }
        }
    }
}

struct Pair {
    w: World,
    naive: Naive,
    observers: Vec<usize>,
    /// Client and connection in the world, of those that are open.
    open: Vec<Option<(usize, usize)>>,
}

impl Pair {
    fn new(shards: u16) -> Self {
        let options = Options {
            hello: false,
            self_asserted_ids: true,
            ..Options::default()
        };
        let mut w = World::with(shards, options, Chaos::default());
        let observers = CHANNELS.map(|channel| {
            let c = w.connect(usize::from(shards) - 1);
            w.say(c, &json!({"action": "subscribe", "channel": channel}));
            w.take(c);
            c
        });
        let naive = Naive {
            told: vec![Vec::new(); CHANNELS.len()],
            ..Naive::default()
        };
        Self {
            w,
            naive,
            observers: observers.to_vec(),
            open: Vec::new(),
        }
    }

    fn say(&mut self, number: usize, message: &Value) {
        let (_, conn) = self.open[number].unwrap();
        self.w.say(conn, message);
    }

    /// An open connection, counted from the newest one.
    fn pick(&self, back: usize) -> Option<(usize, usize)> {
        let open: Vec<usize> = (0..self.open.len())
            .filter(|n| self.open[*n].is_some())
            .collect();
        let number = open[open.len().checked_sub(1 + back.checked_rem(open.len())?)?];
        Some((number, self.open[number].unwrap().0))
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Wait { ms } => {
                self.w.advance_us(ms * 1000);
                self.naive.pass(ms);
            }
            Step::Open { id, shard } => {
                let shard = shard % self.w.shards.len();
                let query = format!("key={SERVER_KEY}&clientId={}", IDS[id]);
                let conn = self.w.connect_with(shard, &query);
                self.w.settle();
                self.open.push(Some((id, conn)));
                self.naive.open(id, self.open.len() - 1);
            }
            Step::Put {
                conn,
                channel,
                state,
            } => {
                if let Some((number, id)) = self.pick(conn) {
                    let state = (state > 0).then_some(state);
                    let action = if state.is_some() { "update" } else { "enter" };
                    let mut message = json!({"action": format!("presence.{action}"), "channel": CHANNELS[channel]});
                    if let Some(s) = state {
                        message["data"] = json!({"s": s});
                    }
                    self.say(number, &message);
                    self.naive.put((channel, id), number, state);
                }
            }
            Step::Leave { conn, channel } => {
                if let Some((number, id)) = self.pick(conn) {
                    let message = json!({"action": "presence.leave", "channel": CHANNELS[channel]});
                    self.say(number, &message);
                    self.naive.leave((channel, id), number);
                }
            }
            Step::Close { conn } => self.end(conn, true),
            Step::Cut { conn } => self.end(conn, false),
        }
    }

    fn end(&mut self, back: usize, is_clean: bool) {
        let Some((number, id)) = self.pick(back) else {
            return;
        };
        let (_, conn) = self.open[number].take().unwrap();
        if is_clean {
            self.w.with_conn(conn, |shard, conn, now| {
                shard.close(conn, CloseCause::PeerClosed { code: None }, now);
            });
        } else {
            self.w.cut(conn);
        }
        self.w.settle();
        self.naive.end(id, number, is_clean);
        // Who took over may have ended before.
        let ended: Vec<usize> = (0..self.open.len())
            .filter(|n| self.open[*n].is_none())
            .collect();
        for other in ended {
            let holds = |m: &Member| m.conns.contains(&other);
            if self.naive.members.values().any(holds) {
                self.naive.end(id, other, false);
            }
        }
    }

    fn check(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        // A turn on each shard, which looks at deadlines.
        for shard in 0..self.w.shards.len() {
            self.w.carry(shard);
        }
        self.w.settle();
        for (channel, observer) in self.observers.iter().enumerate() {
            let mut got = self.w.take(*observer);
            got.retain(|f| f != "pong");
            let mut wanted = std::mem::take(&mut self.naive.told[channel]);
            // Leaves of one moment come in the order of their deadlines.
            got.sort();
            wanted.sort();
            prop_assert_eq!(got, wanted, "{:?}", steps);
        }
        for (channel, name) in CHANNELS.iter().enumerate() {
            let now = self.w.now();
            self.w.shards[0].members_request("app", name, (None, 100), RequestId(0), now);
            self.w.carry(0);
            self.w.settle();
            let Some((_, Output::Members { page, .. })) = self.w.outputs.pop() else {
                panic!("no page");
            };
            let got: Vec<_> = page
                .members
                .iter()
                .map(|m| {
                    (
                        m.client_id.to_string(),
                        m.state.clone().map(|s| s.to_string()),
                        m.connections,
                    )
                })
                .collect();
            let of = |(key, m): (&(usize, usize), &Member)| {
                let state = m.state.map(|s| format!("{{\"s\":{s}}}"));
                (key.0 == channel).then(|| (IDS[key.1].to_owned(), state, m.conns.len()))
            };
            let wanted: Vec<_> = self.naive.members.iter().filter_map(of).collect();
            prop_assert_eq!(got, wanted, "{:?}", steps);
        }
        Ok(())
    }
}

/// Events of one client alternate: enter, updates, leave.
fn check_matched(frames: &[Value]) {
    let mut there: BTreeMap<String, bool> = BTreeMap::new();
    for frame in frames {
        let Some(id) = frame["clientId"].as_str() else {
            continue;
        };
        let is_there = there.entry(id.to_owned()).or_default();
        match frame["action"].as_str().unwrap() {
            "presence.enter" => assert!(!std::mem::replace(is_there, true), "{frame}"),
            "presence.update" => assert!(*is_there, "{frame}"),
            "presence.leave" => assert!(std::mem::replace(is_there, false), "{frame}"),
            _ => {}
        }
    }
    assert!(there.values().all(|t| !t), "{there:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn members_and_events_are_those_of_a_naive_model(
        shards in 1u16..4,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut pair = Pair::new(shards);
        for (index, step) in steps.iter().enumerate() {
            pair.run(step);
            pair.check(&steps[..=index])?;
        }
        // Everybody goes.
        while let Some((number, _)) = pair.pick(0) {
            pair.end(0, number % 2 == 0);
        }
        pair.run(&Step::Wait { ms: 40_000 });
        pair.check(&steps)?;
        prop_assert!(pair.naive.members.is_empty());
        for observer in pair.observers {
            check_matched(&pair.w.clients[observer].frames);
        }
    }
}
