//! Several nodes that share one channel's members through a Redis in memory, which does as the scripts do. One seed
//! decides who enters and leaves, which nodes are cut off or die, what is lost and how late everything is.

use super::*;
use crate::channel::presence::{EventKind, Notice};
use crate::cluster::wire::parse_snapshot;
use crate::ids::{ConnId, Placement};
use crate::msg::LocalRef;
use crate::shard::{Options, ShardConfig};

const CLIENTS: u64 = 4;
const CONNS: u64 = 3;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// The channel's hash, and the topic's payloads that an operation has made.
#[derive(Default)]
struct Redis {
    fields: BTreeMap<String, String>,
    now_us: u64,
    told: Vec<String>,
}

impl Redis {
    fn number(&self, name: &str) -> u64 {
        self.fields.get(name).map_or(0, |n| n.parse().unwrap())
    }

    fn position(&self) -> Position {
        Position {
            epoch: self.number("e"),
            version: self.number("v"),
        }
    }

    fn holders(&self, client: &str) -> BTreeSet<String> {
        let held = self.fields.get(&format!("h:{client}"));
        let held = held.map_or("", String::as_str).split(',');
        held.filter(|n| !n.is_empty()).map(Into::into).collect()
    }

    fn set_holders(&mut self, client: &str, held: BTreeSet<String>) {
        let held: Vec<String> = held.into_iter().collect();
        self.fields.insert(format!("h:{client}"), held.join(","));
    }

    fn tell(&mut self, kind: &str, client: &str, member: &str) -> Position {
        let epoch = self.now_us.to_string();
        self.fields.entry("e".into()).or_insert(epoch);
        let version = (self.number("v") + 1).to_string();
        self.fields.insert("v".into(), version);
        let at = self.position();
        let count = self.fields.keys().filter(|k| k.starts_with("m:")).count();
        let (joined, state) = member.split_once(':').unwrap();
        self.told.push(format!(
            r#"P{{"e":{},"v":{},"k":"{kind}","n":{count},"c":"{client}","j":{joined},"s":"{state}"}}"#,
            at.epoch, at.version
        ));
        if count == 0 {
            self.fields.clear();
        }
        at
    }

    fn enter(&mut self, client: &str, node: &str, member: String) -> Position {
        self.fields.insert(format!("m:{client}"), member.clone());
        self.set_holders(client, BTreeSet::from([node.to_owned()]));
        self.tell("enter", client, &member)
    }

    fn put(&mut self, client: &str, node: &str, state: &str) -> Position {
        let Some(member) = self.fields.get(&format!("m:{client}")) else {
            return self.enter(client, node, format!("{}:{state}", self.now_us));
        };
        let member = format!("{}:{state}", member.split_once(':').unwrap().0);
        self.fields.insert(format!("m:{client}"), member.clone());
        let mut held = self.holders(client);
        held.insert(node.to_owned());
        self.set_holders(client, held);
        self.tell("update", client, &member)
    }

    fn release(&mut self, client: &str, node: &str) -> Position {
        let mut held = self.holders(client);
        if !held.remove(node) {
            return self.position();
        }
        if !held.is_empty() {
            self.set_holders(client, held);
            return self.position();
        }
        let member = self.fields.remove(&format!("m:{client}")).unwrap();
        self.fields.remove(&format!("h:{client}"));
        self.tell("leave", client, &member)
    }

    fn reap(&mut self, node: &str) {
        for n in 0..CLIENTS {
            self.release(&format!("c{n}"), node);
        }
    }

    fn sync(&mut self, node: &str, held: &[Held]) {
        for n in 0..CLIENTS {
            let client = format!("c{n}");
            if !held.iter().any(|h| *h.client_id == *client) {
                self.release(&client, node);
            }
        }
        for h in held {
            if self.fields.contains_key(&format!("m:{}", h.client_id)) {
                let mut held = self.holders(&h.client_id);
                held.insert(node.to_owned());
                self.set_holders(&h.client_id, held);
            } else {
                let joined = if h.joined_at == 0 {
                    self.now_us
                } else {
                    h.joined_at
                };
                let state = h.state.as_deref().unwrap_or("");
                self.enter(&h.client_id, node, format!("{joined}:{state}"));
            }
        }
    }
}

struct Node {
    shard: Shard,
    name: String,
    leases: u32,
    is_cut: bool,
    is_dead: bool,
    ops: VecDeque<SharedOp>,
    topic: VecDeque<String>,
    /// Whom its receivers take for members, by what they were told; none before the first look.
    told: BTreeMap<String, String>,
    /// Its receivers have had a first look: what they are told from here on follows from it.
    has_looked: bool,
}

impl Node {
    fn new(number: usize, placement: &Placement, now: Now) -> Self {
        let config = ShardConfig {
            id: ShardId(0),
            placement: placement.clone(),
            registry: std::sync::Arc::default(),
            options: Options {
                clustered: true,
                ..Options::default()
            },
            seed: number as u64,
        };
        Self {
            shard: Shard::new(config, now),
            name: format!("n{number}"),
            leases: 1,
            is_cut: false,
            is_dead: false,
            ops: VecDeque::new(),
            topic: VecDeque::new(),
            told: BTreeMap::new(),
            has_looked: false,
        }
    }

    fn lease(&self) -> String {
        format!("{}.{}", self.name, self.leases)
    }
}

struct World {
    nodes: Vec<Node>,
    redis: Redis,
    now_us: u64,
    channel: ChannelKey,
    hash: u64,
    seed: u64,
}

impl World {
    fn new(count: usize, seed: u64) -> Self {
        let placement = Placement::new(1, 2);
        let app: Arc<str> = "app".into();
        // One whose home is shard 0; its receivers are on shard 1.
        let names = (0..).map(|n| format!("room:{n}"));
        let name = names
            .map(|name| (placement.hash(&app, &name), name))
            .find(|(hash, _)| placement.home(*hash) == ShardId(0));
        let (hash, name) = name.unwrap();
        let mut world = Self {
            nodes: Vec::new(),
            redis: Redis::default(),
            now_us: 1_000_000,
            channel: ChannelKey {
                app,
                name: name.into(),
            },
            hash,
            seed,
        };
        for number in 0..count {
            let node = Node::new(number, &placement, world.now());
            world.nodes.push(node);
            world.follow(number);
        }
        world
    }

    fn now(&self) -> Now {
        Now {
            mono_us: self.now_us,
            unix_ms: self.now_us,
        }
    }

    fn slot(&self, number: usize) -> u32 {
        let shard = &self.nodes[number].shard;
        let key = &self.channel;
        shard.home.find(&key.app, &key.name, self.hash).unwrap()
    }

    /// A node's receivers come; it hears the topic from here on.
    fn follow(&mut self, number: usize) {
        let now = self.now();
        let (channel, hash) = (self.channel.clone(), self.hash);
        let node = &mut self.nodes[number];
        let local = LocalRef {
            slot: 0,
            generation: 0,
        };
        node.shard
            .handle_interest(ShardId(1), &channel, hash, local, now);
        self.heal(number);
    }

    /// Another connection to Redis, under another lease.
    fn heal(&mut self, number: usize) {
        self.cut(number);
        let (now, slot) = (self.now(), self.slot(number));
        let node = &mut self.nodes[number];
        node.is_cut = false;
        node.leases += 1;
        node.topic.clear();
        node.shard
            .handle_shared(SharedReply::Health { is_up: true }, now);
        node.shard.handle_topic_ready(slot, now);
    }

    fn cut(&mut self, number: usize) {
        let now = self.now();
        let node = &mut self.nodes[number];
        node.is_cut = true;
        let health = SharedReply::Health { is_up: false };
        node.shard.handle_shared(health, now);
    }

    fn act(&mut self, number: usize, client: u64, conn: u64, op: PresenceOp) {
        let (now, hash) = (self.now(), self.hash);
        let presence = Presence {
            channel: self.channel.clone(),
            hash,
            conn: ConnName {
                shard: ShardId(1),
                conn: ConnId {
                    slot: (client * CONNS + conn) as u32,
                    generation: 0,
                },
            },
            client_id: format!("c{client}").into(),
            op,
        };
        self.nodes[number].shard.handle_presence_op(presence, now);
    }

    /// One operation of a node reaches Redis, or fails; `is_lost`: done, but nobody knows.
    fn carry(&mut self, number: usize, is_lost: bool) {
        let now = self.now();
        self.redis.now_us = self.now_us;
        let node = &mut self.nodes[number];
        node.ops.extend(node.shard.take_shared());
        let Some(op) = node.ops.pop_front() else {
            return;
        };
        if node.is_cut {
            node.shard.refuse_shared(vec![op], now);
            return;
        }
        let lease = node.lease();
        let position = match &op {
            SharedOp::Put {
                client_id, state, ..
            } => self
                .redis
                .put(client_id, &lease, state.as_deref().unwrap_or("")),
            SharedOp::Leave { client_id, .. } | SharedOp::Away { client_id, .. } => {
                self.redis.release(client_id, &lease)
            }
            SharedOp::Sync { held, .. } => {
                self.redis.sync(&lease, held);
                Position::default()
            }
            SharedOp::Snapshot { .. } | SharedOp::List { .. } | SharedOp::Opened { .. } => {
                Position::default()
            }
        };
        let told = std::mem::take(&mut self.redis.told);
        for node in self.nodes.iter_mut().filter(|n| !n.is_cut && !n.is_dead) {
            node.topic.extend(told.iter().cloned());
        }
        let node = &mut self.nodes[number];
        if is_lost {
            node.shard.refuse_shared(vec![op], now);
            return;
        }
        let reply = match op {
            SharedOp::Put {
                ticket, channel, ..
            }
            | SharedOp::Leave {
                ticket, channel, ..
            } => SharedReply::Done {
                ticket,
                channel,
                result: Ok(position),
            },
            SharedOp::Snapshot { channel, number } => SharedReply::Snapshot {
                channel,
                number,
                snapshot: Some(parse_snapshot(self.now_us, self.redis.fields.clone())),
            },
            _ => return,
        };
        node.shard.handle_shared(reply, now);
    }

    /// One payload of the topic reaches a node.
    fn hear(&mut self, number: usize) {
        let (now, slot) = (self.now(), self.slot(number));
        let node = &mut self.nodes[number];
        if let Some(payload) = node.topic.pop_front() {
            let payload = payload.as_bytes();
            node.shard.handle_presence_payload(slot, payload, now);
        }
    }

    /// What a node's receivers are told.
    fn notices(&mut self, number: usize) {
        let (now, seed) = (self.now(), self.seed);
        let node = &mut self.nodes[number];
        node.shard.finish_turn(now);
        for msg in node.shard.take_mesh(ShardId(1)) {
            let ShardMsg::PresenceNotices { notices, .. } = msg else {
                continue;
            };
            for notice in &*notices {
                let Notice::Event(event) = notice else {
                    continue;
                };
                let client = event.client_id.to_string();
                let state = event.state.as_deref().unwrap_or("").to_owned();
                let before = match event.kind {
                    EventKind::Leave => node.told.remove(&client),
                    EventKind::Enter | EventKind::Update => node.told.insert(client, state),
                };
                let is_right =
                    !node.has_looked || before.is_some() == (event.kind != EventKind::Enter);
                assert!(
                    is_right,
                    "seed {seed}: {} is told {event:?}, had {before:?}",
                    node.name
                );
            }
        }
    }

    /// The first snapshot is not told, what was heard before it is.
    fn look(&mut self, number: usize) {
        let slot = self.slot(number);
        let node = &self.nodes[number];
        let shared = node.shard.home.get(slot).and_then(|c| c.shared.as_deref());
        if !node.has_looked && shared.is_some_and(|s| s.view.is_known()) {
            self.nodes[number].told = self.members(number);
            self.nodes[number].has_looked = true;
        }
    }

    fn members(&self, number: usize) -> BTreeMap<String, String> {
        let channel = self.nodes[number].shard.home.get(self.slot(number));
        let members = channel.and_then(|c| c.members.as_deref()).into_iter();
        let listed = members.flat_map(|m| m.list(None));
        let listed = listed.map(|m| {
            (
                m.client_id.to_string(),
                m.state.unwrap_or("".into()).to_string(),
            )
        });
        listed.collect()
    }
}

fn run(seed: u64) {
    let mut rng = Rng(seed);
    let mut world = World::new(3, seed);
    for step in 0..400 {
        world.now_us += 1 + rng.below(40_000);
        let number = rng.below(world.nodes.len() as u64) as usize;
        if world.nodes[number].is_dead {
            continue;
        }
        let (client, conn) = (rng.below(CLIENTS), rng.below(CONNS));
        match rng.below(24) {
            0..4 => {
                let state = Some(format!("s{step}").into());
                let op = PresenceOp::Put {
                    number: step,
                    state,
                };
                world.act(number, client, conn, op);
            }
            4..7 => world.act(number, client, conn, PresenceOp::Leave { number: step }),
            7..9 => {
                let op = PresenceOp::Lost { silent_ms: None };
                world.act(number, client, conn, op);
            }
            9 if rng.below(4) == 0 && world.nodes[number].is_cut => world.heal(number),
            9 if rng.below(4) == 0 => world.cut(number),
            10 => {
                let now = world.now();
                world.nodes[number].shard.tick(now);
            }
            // A lease that is over.
            11 if world.nodes[number].is_cut => {
                let lease = world.nodes[number].lease();
                world.redis.reap(&lease);
            }
            12..18 => world.carry(number, rng.below(16) == 0),
            _ => world.hear(number),
        }
        world.notices(number);
        world.look(number);
    }
    // One dies; the others find together.
    world.nodes[0].is_dead = true;
    for lease in 0..=world.nodes[0].leases {
        world.redis.reap(&format!("n0.{lease}"));
    }
    for number in 1..3 {
        world.heal(number);
        // Old leases are over.
        for lease in 0..world.nodes[number].leases {
            let name = format!("n{number}.{lease}");
            world.redis.reap(&name);
        }
    }
    for _ in 0..200 {
        world.now_us += 300_000;
        for number in 1..3 {
            let now = world.now();
            world.nodes[number].shard.tick(now);
            world.carry(number, false);
            world.hear(number);
            world.notices(number);
            world.look(number);
        }
    }
    let truth: BTreeMap<String, String> = (world.redis.fields.iter())
        .filter_map(|(name, member)| {
            let state = member.split_once(':').map(|(_, state)| state);
            Some((name.strip_prefix("m:")?.to_owned(), state?.to_owned()))
        })
        .collect();
    let mut held = BTreeSet::new();
    for number in 1..3 {
        assert_eq!(world.members(number), truth, "seed {seed}: node {number}");
        assert_eq!(
            world.nodes[number].told, truth,
            "seed {seed}: told by node {number}"
        );
        let channel = world.nodes[number].shard.home.get(world.slot(number));
        let shared = channel.and_then(|c| c.shared.as_deref()).unwrap();
        held.extend(shared.held().map(|(client, _)| client.to_string()));
    }
    let shown: BTreeSet<String> = truth.into_keys().collect();
    assert_eq!(shown, held, "seed {seed}: who is held");
}

#[test]
fn nodes_agree_in_the_end_and_tell_each_change_once() {
    for seed in 0..300 {
        run(seed);
    }
}
