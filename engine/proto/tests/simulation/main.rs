//! The guarantees of delivery under faults: several shards, clients that come and go, and a store
//! that is late, full, failing or gone, on a virtual clock. One seed decides everything.
//!
//! What is asserted: a message whose publisher got an ack is stored once, at the sequence of the
//! ack; sequences have no hole, and none that anybody has seen is given to another message; every
//! connection gets a channel's live messages in order, without a hole and none twice; a client
//! that came back and was told `recovered: true` misses nothing; every publish is answered once;
//! and when the faults end, everything comes to rest.
//!
//! `SHARDWIRE_SIM_SEED=n cargo test -p shardwire-proto --test simulation` runs one seed,
//! `SHARDWIRE_SIM_SEEDS=n` that many from the first one.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]
#![allow(unreachable_pub, reason = "modules of a test binary")]

mod book;
mod sdk;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use shardwire_proto::auth::Caller;
use shardwire_proto::auth::jwt::TokenRules;
use shardwire_proto::auth::registry::Presented;
use shardwire_proto::ids::RequestId;
use shardwire_proto::msg::{Answer, Query};
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::shard::{Options, Output, PublishItem};

use book::Book;
use sdk::{Kind, Sdk};
use support::rng::Rng;
use support::store::Outcome;
use support::{Chaos, SERVER_KEY, World};

const SEEDS: u64 = 1000;
const STEPS: u64 = 500;
/// Virtual time of a run, below the dedup window: an id is never forgotten.
const TIME_US_MAX: u64 = 100_000_000;

#[test]
fn guarantees_hold_under_faults() {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("a number"))
    };
    let seeds = match (number("SHARDWIRE_SIM_SEED"), number("SHARDWIRE_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(SEEDS),
    };
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(book) => {
                for (what, count) in book.counts {
                    *counts.entry(what).or_default() += count;
                }
                *counts.entry("excused").or_default() += book.excused;
            }
            Err(panic) => {
                eprintln!("failed with SHARDWIRE_SIM_SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    println!("{counts:?}");
    if seeds.end - seeds.start >= SEEDS {
        // A simulation in which nothing happens proves nothing.
        for what in [
            "acks",
            "refused",
            "live",
            "replayed",
            "ephemeral",
            "resumes",
            "resumes with a gap",
            "since recovered",
            "since not recovered",
            "replays failed",
            "pages",
            "restarts",
            "cleared",
        ] {
            let count = counts.get(what).copied().unwrap_or(0);
            assert!(count > 100, "{what}: {count}");
        }
    }
}

struct Sim {
    w: World,
    rng: Rng,
    book: Book,
    sdks: Vec<Sdk>,
    channels: Vec<String>,
    /// Stored publishes so far, by channel and id; some are repeated.
    published: Vec<(String, String)>,
    requests: BTreeSet<u64>,
    /// Since the process began a channel was cleared: the store forgets those messages' ids.
    cleared: bool,
    next_id: u64,
    ephemeral: bool,
    /// Every message is stored, and none is reported to have failed that was.
    in_time: bool,
    back_end: Caller,
}

fn run(seed: u64) -> Book {
    let mut sim = Sim::new(seed);
    for _ in 0..STEPS {
        sim.book.step += 1;
        sim.act();
        let us = match sim.rng.below(10) {
            0..6 => sim.rng.below(2000),
            6..9 => sim.rng.below(20_000),
            _ => sim.rng.below(1_000_000),
        };
        if sim.w.now_us + us < TIME_US_MAX {
            sim.w.advance_us(us);
        }
        sim.observe();
    }
    sim.come_to_rest();
    sim.part();
    sim.book
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut pick = |choices: &[u64]| choices[rng.index(choices.len())];
        let shards = pick(&[1, 2, 3, 4]);
        let namespace = Namespace {
            messages_max: pick(&[5, 20, 1000, 1000]),
            ..Namespace::default()
        };
        let mut options = Options {
            hello: false,
            namespaces: Namespaces::new(vec![namespace]).unwrap(),
            ring_bytes_max: pick(&[0, 1500, 1 << 20]) as usize,
            recovery_overlap_ms: pick(&[0, 0, 0, 50]),
            ..Options::default()
        };
        options.limits.outbox_frames_max = pick(&[4096, 40]) as usize;
        let commit_lost = pick(&[0, 0, 0, 50]);
        let chaos = Chaos {
            lane_us: pick(&[0, 100, 3000]),
            commit_us: pick(&[0, 1000, 20_000]),
            read_us: pick(&[0, 1000, 30_000]),
            reply_us: pick(&[0, 500, 5000]),
            commit_fails: pick(&[0, 0, 20, 200]),
            commit_lost,
            read_fails: pick(&[0, 0, 30, 200]),
            rng: Rng::new(seed ^ 0x5eed),
        };
        let ephemeral = pick(&[0, 1]) == 1;
        let channels = (0..pick(&[1, 2, 4])).map(|n| format!("c{n}")).collect();
        let reads_max = pick(&[0, 0, 2]) as usize;
        let queue_max = pick(&[0, 0, 3]) as usize;
        let clients = 2 + pick(&[1, 2, 4]);
        let mut sdks: Vec<Sdk> = (0..clients)
            .map(|n| Sdk::new(if n % 2 == 0 { Kind::Token } else { Kind::Since }))
            .collect();
        sdks.push(Sdk::new(Kind::Reader));
        let mut w = World::with(u16::try_from(shards).unwrap(), options, chaos);
        w.store.queue_max = queue_max;
        w.store.reads_max = reads_max;
        let presented = Presented {
            key: Some(SERVER_KEY),
            ..Presented::default()
        };
        let back_end = w
            .registry
            .authenticate(presented, &TokenRules::default(), 0);
        let back_end = back_end.unwrap();
        Self {
            w,
            rng,
            book: Book::default(),
            sdks,
            channels,
            published: Vec::new(),
            requests: BTreeSet::new(),
            cleared: false,
            next_id: 0,
            ephemeral,
            in_time: !ephemeral && commit_lost == 0,
            back_end,
        }
    }

    fn act(&mut self) {
        let who = self.rng.index(self.sdks.len());
        let channel = self.channels[self.rng.index(self.channels.len())].clone();
        let (w, rng) = (&mut self.w, &mut self.rng);
        let sdk = &mut self.sdks[who];
        let follows = sdk.kind != Kind::Reader;
        match rng.below(100) {
            0..45 => self.publish(who, &channel),
            45..51 if self.ephemeral => {
                let id = format!("e{}", self.next_id);
                self.next_id += 1;
                sdk.publish(w, &channel, &id, false);
            }
            51..58 if follows => match sdk.wanted.contains(&channel) {
                true if rng.chance(500) => sdk.unsubscribe(w, &channel),
                _ => sdk.subscribe(w, &channel),
            },
            58..63 if sdk.kind == Kind::Token => sdk.rewind(w, &channel, 1 + rng.below(30)),
            63..72 => {
                if let Some(conn) = sdk.conn {
                    w.cut(conn);
                }
            }
            72..88 => {
                let shard = rng.index(w.shards.len());
                if let Some(sdk) = self.sdks.iter_mut().find(|s| s.conn.is_none()) {
                    sdk.connect(w, shard);
                }
            }
            88..92 => {
                let reader = self.sdks.last_mut().unwrap();
                reader.history(w, &channel, rng.below(8), rng.chance(500));
            }
            92..94 => w.store.writer_hangs = rng.chance(400),
            94 => w.store.readers_hang = rng.chance(300),
            95..97 => {
                if let Some(conn) = sdk.conn {
                    let room = [0, 100, 5000, usize::MAX, usize::MAX][rng.index(5)];
                    w.read(conn, room);
                }
            }
            97 => self.request(&channel),
            98 => self.clear(&channel),
            99 => self.restart(),
            _ => {}
        }
    }

    /// Something new, or something published before, perhaps by another.
    fn publish(&mut self, who: usize, channel: &str) {
        let (channel, id) = self.message(channel);
        self.sdks[who].publish(&mut self.w, &channel, &id, true);
    }

    fn message(&mut self, channel: &str) -> (String, String) {
        if !self.published.is_empty() && self.rng.chance(200) {
            let back = self.rng.index(self.published.len().min(10));
            return self.published[self.published.len() - 1 - back].clone();
        }
        let message = (channel.to_owned(), format!("m{}", self.next_id));
        self.next_id += 1;
        self.book.sent.insert(message.1.clone(), self.book.step);
        self.published.push(message.clone());
        message
    }

    fn request(&mut self, channel: &str) {
        let (channel, id) = self.message(channel);
        let data = format!("[{id:?}]");
        let item = PublishItem {
            channel: channel.into(),
            data: &data,
            id: Some(id.into()),
            persist: true,
            client_id: None,
        };
        let (shard, request) = self.next_request();
        let now = self.w.now();
        self.w.shards[shard].publish_request(&self.back_end, request, 0, &item, now);
        self.w.carry(shard);
    }

    fn clear(&mut self, channel: &str) {
        self.cleared = true;
        let (shard, request) = self.next_request();
        let now = self.w.now();
        self.w.shards[shard].clear_request("app", channel, request, now);
        self.w.carry(shard);
    }

    fn next_request(&mut self) -> (usize, RequestId) {
        self.next_id += 1;
        self.requests.insert(self.next_id);
        let shard = self.rng.index(self.w.shards.len());
        (shard, RequestId(self.next_id))
    }

    /// The process is killed: some of what was on its way to the store got there, and nobody was
    /// told.
    fn restart(&mut self) {
        self.book.count("restarts");
        let count = self.rng.index(self.w.store.ops.len() + 1);
        let now_ms = self.w.unix_ms();
        self.w
            .store
            .commit(count, Outcome::Committed, now_ms, u64::MAX);
        self.observe();
        self.requests.clear();
        self.w.outputs.clear();
        self.w.restart();
        if std::mem::take(&mut self.cleared) {
            self.published.clear();
        }
    }

    /// Looks at everything that was said since.
    fn observe(&mut self) {
        self.book.now_ms = self.w.unix_ms();
        for sdk in &mut self.sdks {
            sdk.observe(&self.w, &mut self.book, self.in_time);
        }
        for (_, output) in self.w.outputs.drain(..) {
            let request = match output {
                Output::Published { request, .. } => request,
                Output::Cleared { request, result } => {
                    if result.is_ok() {
                        self.book.count("cleared");
                    }
                    request
                }
                other => panic!("{other:?}"),
            };
            assert!(
                self.requests.remove(&request.0),
                "{request:?} answered twice"
            );
        }
    }

    /// Faults end, everybody comes back, and everything is delivered.
    fn come_to_rest(&mut self) {
        self.w.chaos.commit_fails = 0;
        self.w.chaos.commit_lost = 0;
        self.w.chaos.read_fails = 0;
        self.w.store.queue_max = 0;
        self.w.store.writer_hangs = false;
        self.w.store.readers_hang = false;
        for _ in 0..200 {
            for sdk in &mut self.sdks {
                match sdk.conn {
                    Some(conn) => self.w.read(conn, usize::MAX),
                    None => {
                        let shard = self.rng.index(self.w.shards.len());
                        sdk.connect(&mut self.w, shard);
                    }
                }
            }
            self.w.advance_us(100_000);
            self.observe();
            if self.w.is_idle() && self.sdks.iter().all(|s| s.conn.is_some()) {
                break;
            }
        }
        // What is tried again with every tick has been by then.
        self.w.advance_us(1_500_000);
        self.observe();
        assert!(self.w.is_idle(), "it does not come to rest");
        self.book.check(&self.w.store.model);
        for sdk in &self.sdks {
            assert!(sdk.conn.is_some());
            sdk.check_at_rest(&self.w.store.model, &mut self.book);
        }
        assert!(self.requests.is_empty(), "{:?} unanswered", self.requests);
    }

    /// Everybody leaves, and nothing of them stays.
    fn part(&mut self) {
        for sdk in &self.sdks {
            self.w.cut(sdk.conn.unwrap());
        }
        self.w.advance_us(100_000);
        self.w.outputs.clear();
        let now = self.w.now();
        self.w.shards[0].ask("app", RequestId(0), Query::Stats, now);
        self.w.carry(0);
        self.w.advance_us(100_000);
        assert_eq!(self.w.outputs.len(), self.w.shards.len());
        for (_, output) in self.w.outputs.drain(..) {
            let Output::Answer {
                answer: Answer::Stats(stats),
                ..
            } = output
            else {
                panic!("{output:?}");
            };
            let left = (stats.connections, stats.channels, stats.store_pending);
            assert_eq!(left, (0, 0, 0));
            assert_eq!(stats.counters.subscriptions, 0);
            assert_eq!(stats.outbox_bytes, 0);
            assert!(stats.mesh_pending.iter().all(|n| *n == 0));
        }
    }
}
