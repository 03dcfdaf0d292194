//! Two nodes and a broker between them that loses, repeats, reorders, forgets and is away: what subscribers see.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

mod support;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use shardwire_proto::broker::{
    BrokerError, BrokerMessage, BrokerOp, BrokerPublished, BrokerReply, FollowRef,
};
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::record::{Loaded, Record};
use shardwire_proto::shard::Options;

use support::rng::Rng;
use support::{Chaos, World};

/// What Redis has of a channel.
#[derive(Debug)]
struct Stream {
    epoch: Arc<str>,
    last: u64,
    records: VecDeque<Arc<Record>>,
    ids: HashMap<String, u64>,
}

type Place = (usize, usize, FollowRef);

#[derive(Debug, Default)]
struct Redis {
    streams: BTreeMap<String, Stream>,
    epochs: u64,
    followers: BTreeMap<String, Vec<Place>>,
    /// Replies on their way to a node, in order.
    ways: Vec<VecDeque<(usize, BrokerReply)>>,
    /// Nothing is done while true; what is asked fails.
    away: bool,
    /// Questions where a channel stands are not answered while true.
    silent: bool,
    waiting: Vec<(usize, usize, BrokerOp)>,
    now_ms: u64,
}

impl Redis {
    fn stream(&mut self, channel: &str) -> &mut Stream {
        let epochs = &mut self.epochs;
        self.streams.entry(channel.to_owned()).or_insert_with(|| {
            *epochs += 1;
            Stream {
                epoch: format!("E{epochs}").into(),
                last: 0,
                records: VecDeque::new(),
                ids: HashMap::new(),
            }
        })
    }

    fn handle(&mut self, node: usize, shard: usize, op: BrokerOp) {
        match op {
            BrokerOp::Publish(publish) => {
                let ticket = publish.ticket;
                if self.away {
                    let result = Err(BrokerError::Away);
                    self.ways[node].push_back((shard, BrokerReply::Published { ticket, result }));
                    return;
                }
                let item = publish.publish.borrow();
                self.now_ms += 1;
                let timestamp = self.now_ms;
                let stream = self.stream(item.channel);
                let known = stream.ids.get(item.id).copied();
                let sequence = match known {
                    Some(sequence) => sequence,
                    None if publish.retention.is_some() => stream.last + 1,
                    None => 0,
                };
                let result = Ok(BrokerPublished {
                    epoch: (*stream.epoch).into(),
                    sequence: Some(sequence).filter(|s| *s > 0),
                    timestamp,
                    duplicate: known.is_some(),
                });
                let record = Arc::new(Record {
                    sequence,
                    timestamp,
                    id: item.id.into(),
                    publisher: item.publisher.into(),
                    data: item.data.into(),
                });
                if known.is_none() {
                    stream.ids.insert(item.id.to_owned(), sequence);
                    if sequence > 0 {
                        stream.last = sequence;
                        stream.records.push_back(record.clone());
                    }
                    let epoch = stream.epoch.clone();
                    self.tell(item.channel, &record, &epoch);
                }
                self.ways[node].push_back((shard, BrokerReply::Published { ticket, result }));
            }
            BrokerOp::Follow(follow) => {
                let channel = follow.channel.name.to_string();
                let followers = self.followers.entry(channel.clone()).or_default();
                let place = (node, shard, follow.follow);
                followers.retain(|f| *f != place);
                followers.push(place);
                if self.away || self.silent {
                    self.waiting.push((node, shard, BrokerOp::Follow(follow)));
                    return;
                }
                let stream = self.stream(&channel);
                let after = follow.after.as_ref().map_or(0, |p| {
                    if *p.epoch == *stream.epoch {
                        p.sequence
                    } else {
                        0
                    }
                });
                let gone = stream
                    .records
                    .front()
                    .map_or(stream.last, |r| r.sequence - 1);
                let newest = stream.records.iter().filter(|r| r.sequence > after);
                let loaded = Loaded {
                    epoch: (*stream.epoch).into(),
                    last_sequence: stream.last,
                    last_timestamp: 0,
                    gone_sequence: gone,
                    gone_timestamp: 0,
                    newest: newest.cloned().collect(),
                    recent_ids: Vec::new(),
                };
                let reply = BrokerReply::Followed {
                    follow: follow.follow,
                    loaded: Box::new(loaded),
                    epoch_from: 0,
                };
                self.ways[node].push_back((shard, reply));
            }
            BrokerOp::Unfollow { channel, follow } => {
                if let Some(followers) = self.followers.get_mut(&*channel.name) {
                    followers.retain(|f| f.2 != follow || f.0 != node);
                }
            }
            BrokerOp::Stored { .. } => {}
            BrokerOp::Clear { ticket, .. } => {
                let result = Ok(0);
                self.ways[node].push_back((shard, BrokerReply::ClearDone { ticket, result }));
            }
        }
    }

    fn tell(&mut self, channel: &str, record: &Arc<Record>, epoch: &Arc<str>) {
        for (node, shard, follow) in self.followers.get(channel).cloned().unwrap_or_default() {
            let message = BrokerMessage {
                record: record.clone(),
                epoch: epoch.clone(),
                exclude: None,
            };
            self.ways[node].push_back((shard, BrokerReply::Message { follow, message }));
        }
    }
}

/// Two nodes of two shards each.
struct Pair {
    nodes: Vec<World>,
    redis: Redis,
}

impl Pair {
    fn new() -> Self {
        let namespaces = vec![Namespace {
            pattern: "live:*".into(),
            persist: false,
            ephemeral_when_degraded: true,
            ..Namespace::default()
        }];
        let node = |seed| {
            let options = Options {
                hello: false,
                clustered: true,
                namespaces: Namespaces::new(namespaces.clone()).unwrap(),
                ..Options::default()
            };
            let rng = Rng::new(seed);
            World::with(
                2,
                options,
                Chaos {
                    rng,
                    ..Chaos::default()
                },
            )
        };
        let mut pair = Self {
            nodes: vec![node(1), node(2)],
            redis: Redis {
                ways: vec![VecDeque::new(), VecDeque::new()],
                now_ms: support::EPOCH_MS,
                ..Redis::default()
            },
        };
        pair.set_up(true);
        pair
    }

    fn set_up(&mut self, up: bool) {
        self.redis.away = !up;
        for node in 0..2 {
            for shard in 0..2 {
                self.redis.ways[node].push_back((shard, BrokerReply::Health { up }));
            }
        }
        if up {
            self.ask_again();
        }
        self.settle();
    }

    fn ask_again(&mut self) {
        for (node, shard, op) in std::mem::take(&mut self.redis.waiting) {
            self.redis.handle(node, shard, op);
        }
    }

    /// Takes what shards have left to Redis.
    fn gather(&mut self) {
        for node in 0..2 {
            self.nodes[node].settle();
            for shard in 0..2 {
                for op in self.nodes[node].shards[shard].take_broker_ops() {
                    self.redis.handle(node, shard, op);
                }
            }
        }
    }

    /// Brings a node what is next for it.
    fn bring(&mut self, node: usize) -> bool {
        let Some((shard, reply)) = self.redis.ways[node].pop_front() else {
            return false;
        };
        let world = &mut self.nodes[node];
        let now = world.now();
        world.shards[shard].handle_broker(reply, now);
        world.carry(shard);
        world.settle();
        true
    }

    fn settle(&mut self) {
        loop {
            self.gather();
            if !(self.bring(0) | self.bring(1)) {
                return;
            }
        }
    }

    fn subscriber(&mut self, node: usize, channel: &str) -> usize {
        let client = self.nodes[node].connect(0);
        self.nodes[node].send(client, &json!({"action": "subscribe", "channel": channel}));
        self.settle();
        client
    }

    fn publish(&mut self, node: usize, client: usize, channel: &str, id: &str) {
        let message = json!({"action": "publish", "channel": channel, "data": 1, "id": id});
        self.nodes[node].send(client, &message);
        self.gather();
    }

    fn take(&mut self, node: usize, client: usize) -> Vec<String> {
        self.nodes[node].take(client)
    }

    /// What is on its way to a node of messages, by index.
    fn messages(&self, node: usize) -> Vec<usize> {
        let is_message = |r: &BrokerReply| matches!(r, BrokerReply::Message { .. });
        let way = self.redis.ways[node].iter().enumerate();
        way.filter(|(_, (_, r))| is_message(r))
            .map(|(i, _)| i)
            .collect()
    }
}

#[test]
fn every_node_delivers_in_order_and_the_publisher_is_told() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    for id in ["1", "2"] {
        p.publish(0, a, "c", id);
    }
    p.settle();
    assert_eq!(p.take(1, b), ["subscribed c", "c#1 1", "c#2 2"]);
    let mut own = p.take(0, a);
    own.sort();
    assert_eq!(
        own,
        ["ack 1 c#1", "ack 2 c#2", "c#1 1", "c#2 2", "subscribed c"]
    );
}

#[test]
fn a_repeated_id_is_told_its_first_place_and_not_delivered_again() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    p.publish(0, a, "c", "x");
    p.settle();
    p.publish(1, b, "c", "x");
    p.settle();
    let heard = p.take(1, b);
    assert_eq!(heard.iter().filter(|l| l.starts_with("c#")).count(), 1);
    assert!(heard.contains(&"ack x c#1".to_owned()), "{heard:?}");
}

#[test]
fn nobody_is_told_subscribed_before_the_channel_is_heard() {
    let mut p = Pair::new();
    p.redis.silent = true;
    let b = p.subscriber(1, "c");
    assert_eq!(p.take(1, b), Vec::<String>::new());
    p.redis.silent = false;
    p.ask_again();
    p.settle();
    assert_eq!(p.take(1, b), ["subscribed c"]);
}

#[test]
fn a_hole_is_filled_before_anything_later_is_delivered() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    for id in ["1", "2", "3"] {
        p.publish(0, a, "c", id);
    }
    let second = p.messages(1)[1];
    p.redis.ways[1].remove(second);
    p.settle();
    assert_eq!(p.take(1, b), ["subscribed c", "c#1 1", "c#2 2", "c#3 3"]);
}

#[test]
fn what_comes_twice_or_late_is_delivered_once() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    for id in ["1", "2", "3"] {
        p.publish(0, a, "c", id);
    }
    let places = p.messages(1);
    p.redis.ways[1].swap(places[0], places[2]);
    p.settle();
    assert_eq!(p.take(1, b), ["subscribed c", "c#1 1", "c#2 2", "c#3 3"]);
}

#[test]
fn after_a_time_of_not_hearing_what_was_missed_comes_first() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    p.publish(0, a, "c", "1");
    p.settle();
    let followers = p.redis.followers["c"].clone();
    let (_, shard, follow) = *followers.iter().find(|f| f.0 == 1).unwrap();
    p.redis.followers.get_mut("c").unwrap().retain(|f| f.0 != 1);
    p.publish(0, a, "c", "2");
    p.redis.ways[1].push_back((shard, BrokerReply::Unheard { follow }));
    // One that came while it was not known what was missed.
    while p.bring(1) {}
    p.gather();
    p.publish(0, a, "c", "3");
    p.settle();
    assert_eq!(p.take(1, b), ["subscribed c", "c#1 1", "c#2 2", "c#3 3"]);
}

#[test]
fn what_the_stream_has_lost_is_told() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    for id in ["1", "2", "3", "4"] {
        p.publish(0, a, "c", id);
    }
    for _ in 0..2 {
        let second = p.messages(1)[1];
        p.redis.ways[1].remove(second);
    }
    let stream = p.redis.streams.get_mut("c").unwrap();
    stream.records.retain(|r| r.sequence > 2);
    p.settle();
    let heard = p.take(1, b);
    assert_eq!(
        heard,
        [
            "subscribed c",
            "c#1 1",
            "subscribed c recovered=false at 2",
            "c#3 3",
            "c#4 4"
        ]
    );
}

#[test]
fn a_redis_that_begins_anew_is_told_and_followed() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    for id in ["1", "2"] {
        p.publish(0, a, "c", id);
    }
    p.settle();
    p.redis.streams.clear();
    for id in ["3", "4"] {
        p.publish(0, a, "c", id);
    }
    p.settle();
    let heard = p.take(1, b);
    assert_eq!(
        heard[3..],
        ["subscribed c recovered=false at 0", "c#1 3", "c#2 4"]
    );
}

#[test]
fn while_redis_is_away_publishes_are_refused_and_connections_stay() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "c"), p.subscriber(1, "c"));
    p.redis.away = true;
    p.publish(0, a, "c", "1");
    p.settle();
    assert!(p.take(0, a).contains(&"error 50300 c 1".to_owned()));
    p.set_up(false);
    p.publish(0, a, "c", "1");
    // Refused without asking.
    assert_eq!(p.take(0, a), ["error 50300 c 1"]);
    p.set_up(true);
    p.publish(0, a, "c", "1");
    p.settle();
    assert_eq!(p.take(1, b), ["subscribed c", "c#1 1"]);
}

#[test]
fn ephemeral_messages_may_stay_on_their_node_while_redis_is_away() {
    let mut p = Pair::new();
    let (a, b) = (p.subscriber(0, "live:x"), p.subscriber(1, "live:x"));
    let own = p.subscriber(0, "live:x");
    p.publish(0, a, "live:x", "1");
    p.settle();
    p.set_up(false);
    p.publish(0, a, "live:x", "2");
    p.settle();
    assert_eq!(
        p.take(0, own),
        ["subscribed live:x", "live:x#- 1", "live:x#- 2"]
    );
    assert_eq!(p.take(1, b), ["subscribed live:x", "live:x#- 1"]);
}

#[test]
fn a_channel_is_let_go_only_when_nobody_has_come_back() {
    let mut p = Pair::new();
    let b = p.subscriber(1, "c");
    let follows = |p: &Pair| p.redis.followers["c"].len();
    p.nodes[1].say(b, &json!({"action": "unsubscribe", "channel": "c"}));
    p.nodes[1].advance_us(2_000_000);
    p.settle();
    assert_eq!(follows(&p), 1);
    let again = p.subscriber(1, "c");
    p.nodes[1].advance_us(10_000_000);
    p.settle();
    assert_eq!(follows(&p), 1);
    p.nodes[1].say(again, &json!({"action": "unsubscribe", "channel": "c"}));
    p.nodes[1].advance_us(10_000_000);
    p.settle();
    assert_eq!(follows(&p), 0);
}

#[test]
fn a_resume_on_another_node_gets_what_was_missed() {
    let mut p = Pair::new();
    let a = p.subscriber(0, "c");
    for id in ["1", "2", "3"] {
        p.publish(0, a, "c", id);
    }
    p.settle();
    let epoch = p.redis.streams["c"].epoch.to_string();
    let b = p.nodes[1].connect(1);
    let since = json!({"epoch": epoch, "sequence": 1});
    p.nodes[1].send(
        b,
        &json!({"action": "subscribe", "channel": "c", "since": since}),
    );
    p.settle();
    assert_eq!(
        p.take(1, b),
        [
            "subscribed c recovered=true at 3",
            "c#2 2 replay",
            "c#3 3 replay"
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever is lost, repeated or reordered on the way, each subscriber gets each message once and in order.
    #[test]
    fn subscribers_get_everything_once_in_order(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        let mut p = Pair::new();
        let clients = [p.subscriber(0, "c"), p.subscriber(1, "c")];
        let mut published = 0;
        for _ in 0..60 {
            let node = rng.index(2);
            match rng.below(8) {
                0..=3 => {
                    published += 1;
                    p.publish(node, clients[node], "c", &format!("m{published}"));
                }
                4 => {
                    let places = p.messages(node);
                    if !places.is_empty() {
                        let place = places[rng.index(places.len())];
                        p.redis.ways[node].remove(place);
                    }
                }
                5 => {
                    let places = p.messages(node);
                    if places.len() > 1 {
                        let (x, y) = (rng.index(places.len()), rng.index(places.len()));
                        p.redis.ways[node].swap(places[x], places[y]);
                    }
                }
                6 => {
                    let follower = p.redis.followers["c"].iter().copied().find(|f| f.0 == node);
                    if let Some((_, shard, follow)) = follower {
                        p.redis.followers.get_mut("c").unwrap().retain(|f| f.0 != node);
                        p.redis.ways[node].push_back((shard, BrokerReply::Unheard { follow }));
                    }
                }
                _ => {
                    for _ in 0..rng.index(4) {
                        p.bring(node);
                        p.gather();
                    }
                }
            }
        }
        // The last ones may have been lost: what follows shows it.
        p.settle();
        published += 1;
        p.publish(0, clients[0], "c", &format!("m{published}"));
        p.settle();
        let expected: Vec<String> = (1..=published).map(|n| format!("c#{n} ")).collect();
        for (node, client) in clients.iter().enumerate() {
            let heard: Vec<String> = p.take(node, *client);
            let heard: Vec<String> = heard
                .iter()
                .filter(|l| l.starts_with("c#"))
                .map(|l| l.split_inclusive(' ').next().unwrap().to_owned())
                .collect();
            prop_assert_eq!(&heard, &expected);
        }
    }
}
