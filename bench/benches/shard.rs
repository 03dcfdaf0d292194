//! What a shard does per message and per subscription: subscriber lists, dedup, fan-out.

#![expect(clippy::unwrap_used, reason = "what fails here ends the benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shardwire_proto::auth::app::App;
use shardwire_proto::auth::key::{KeyKind, KeyRecord, default_capabilities};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::channel::local::LocalChannels;
use shardwire_proto::dedup::{DedupTable, Entry};
use shardwire_proto::ids::{ConnId, Now, Placement, ShardId};
use shardwire_proto::shard::{Handshake, Options, Shard, ShardConfig};

const SUBSCRIBERS: u32 = 1000;
const KEY: &str = "sk_0123456789abcdef";

fn subscribers(c: &mut Criterion) {
    let app: Arc<str> = "app".into();
    let mut channels = LocalChannels::default();
    let (slot, _) = channels.enter(&app, "room:1234", 77);
    for conn in 0..SUBSCRIBERS {
        channels.add(slot, conn, 0);
    }
    let mut group = c.benchmark_group("subscribers of a channel of 1000");
    group.bench_function("add and remove", |b| {
        b.iter(|| {
            let subscription = channels.add(slot, black_box(SUBSCRIBERS), 0).unwrap();
            channels.remove(subscription)
        });
    });
    group.bench_function("remove from the middle and add", |b| {
        let mut subscription = channels.add(slot, SUBSCRIBERS, 0).unwrap();
        subscription.place = SUBSCRIBERS / 2;
        b.iter(|| {
            let moved = channels.remove(black_box(subscription)).unwrap();
            channels.add(slot, moved.conn_slot, 0)
        });
    });
    group.throughput(Throughput::Elements(u64::from(SUBSCRIBERS)));
    group.bench_function("find and iterate", |b| {
        b.iter(|| {
            let slot = channels.find("app", black_box("room:1234"), 77).unwrap();
            let subscribers = channels.get(slot).unwrap().subscribers();
            subscribers
                .iter()
                .fold(0u32, |sum, conn| sum.wrapping_add(*conn))
        });
    });
    group.finish();
}

fn dedup(c: &mut Criterion) {
    const HELD: u64 = 100_000;
    let id = |n: u64| format!("0199c2d4-5a1e-7cc1-9a3b-{n:012x}");
    let entry = |n| Entry {
        timestamp: n,
        sequence: Some(n),
    };
    let mut table = DedupTable::new(120_000, 1 << 20);
    let ids: Vec<String> = (0..HELD).map(id).collect();
    for (n, id) in (1..).zip(&ids) {
        table.insert(n % 100, id, entry(n), 0);
    }
    let mut group = c.benchmark_group("dedup with 100000 ids");
    group.bench_function("hit", |b| {
        let mut n = 0;
        b.iter(|| {
            n = (n + 7919) % HELD;
            table.lookup((n + 1) % 100, &ids[n as usize], 1).unwrap()
        });
    });
    group.bench_function("miss", |b| {
        let mut n = 0;
        b.iter(|| {
            n = (n + 7919) % HELD;
            table.lookup(1000, black_box(&ids[n as usize]), 1)
        });
    });
    // Time goes on so that as many expire as come.
    group.bench_function("miss and insert", |b| {
        let mut table = DedupTable::new(HELD, 1 << 20);
        let mut n = 0;
        b.iter(|| {
            n += 1;
            let id = &ids[(n % HELD) as usize];
            let channel = n / HELD;
            if table.lookup(channel, id, n).is_none() {
                table.insert(channel, id, entry(n), n);
            }
        });
    });
    group.finish();
}

/// A shard without sockets: its connections' bytes are thrown away.
struct Dry {
    shard: Shard,
    now: Now,
}

impl Dry {
    fn new() -> Self {
        let kind = KeyKind::Server;
        let key = KeyRecord::new(
            "k".into(),
            "app".into(),
            kind,
            KEY,
            default_capabilities(kind),
        );
        let now = Now {
            mono_us: 1,
            unix_ms: 1_764_000_000_000,
        };
        let registry = Registry::new([App::new("app")], [key.unwrap()], [], []);
        let config = ShardConfig {
            id: ShardId(0),
            placement: Placement::new(7, 1),
            registry: Arc::new(registry.unwrap()),
            options: Options::default(),
            seed: 7,
        };
        let shard = Shard::new(config, now);
        Self { shard, now }
    }

    fn connect(&mut self, n: u32) -> ConnId {
        let mut random = [0; 16];
        random[..4].copy_from_slice(&n.to_le_bytes());
        let handshake = Handshake {
            target: &format!("/?key={KEY}"),
            ..Handshake::default()
        };
        let grant = self.shard.authorize(handshake, random, self.now);
        self.shard.open(grant.unwrap(), b"", self.now)
    }

    /// One message of a client and the turn that it makes; the number of frames that left.
    fn turn(&mut self, conn: ConnId, message: &str) -> usize {
        self.now.mono_us += 100;
        self.now.unix_ms = 1_764_000_000_000 + self.now.mono_us / 1000;
        self.shard.handle_message(conn, message, self.now);
        let dirty = self.shard.take_dirty();
        let mut frames = 0;
        for &slot in &dirty {
            let outbox = self.shard.flush(slot).unwrap().outbox;
            frames += outbox.frames();
            outbox.advance(outbox.bytes());
        }
        self.shard.reuse_dirty(dirty);
        self.shard.note_flushed(self.now, self.now);
        frames
    }
}

fn fan_out(c: &mut Criterion) {
    let mut dry = Dry::new();
    for n in 1..=SUBSCRIBERS {
        let conn = dry.connect(n);
        dry.turn(conn, r#"{"action":"subscribe","channel":"room:1234"}"#);
    }
    let publisher = dry.connect(0);
    let publish = format!(
        r#"{{"action":"publish","channel":"room:1234","data":"{}","persist":false}}"#,
        "x".repeat(98)
    );
    let frames = dry.turn(publisher, &publish);
    assert!(
        frames > SUBSCRIBERS as usize,
        "every subscriber and the ack: {frames}"
    );
    let mut group = c.benchmark_group("fan-out");
    group.throughput(Throughput::Elements(u64::from(SUBSCRIBERS)));
    group.bench_function("publish to 1000 outboxes and drain them", |b| {
        b.iter(|| dry.turn(publisher, black_box(&publish)));
    });
    group.finish();
}

criterion_group!(benches, subscribers, dedup, fan_out);
criterion_main!(benches);
