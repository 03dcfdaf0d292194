//! Subscribing, publishing, acks, dedup, and what happens when something is full or fails.

use serde_json::json;
use shardwire_proto::error::CloseCause;
use shardwire_proto::shard::Options;

use crate::support::store::Outcome;
use crate::support::{CLIENT_KEY, Chaos, SERVER_KEY, World};

fn subscribe(channel: &str) -> serde_json::Value {
    json!({"action": "subscribe", "channel": channel})
}

fn publish(channel: &str, id: &str) -> serde_json::Value {
    json!({"action": "publish", "channel": channel, "id": id, "data": {"n": 1}})
}

#[test]
fn a_message_reaches_subscribers_of_every_shard_and_its_publisher_gets_an_ack_first() {
    for home in 0..3 {
        let mut w = World::new(3);
        let a = w.channel_at(home, 0);
        let clients: Vec<usize> = (0..3).map(|shard| w.connect(shard)).collect();
        for c in &clients {
            w.say(*c, &subscribe(&a));
            assert_eq!(w.take(*c), [format!("subscribed {a}")]);
        }
        w.say(clients[1], &publish(&a, "x"));
        assert_eq!(w.take(clients[0]), [format!("{a}#1 x")]);
        assert_eq!(w.take(clients[2]), [format!("{a}#1 x")]);
        let ack = format!("ack x {a}#1");
        assert!(w.clients[clients[1]].frames[1]["timestamp"].is_u64());
        assert_eq!(w.take(clients[1]), [ack, format!("{a}#1 x")]);
    }
}

#[test]
fn subscribed_comes_before_any_message_and_every_time() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let (s, p) = (w.connect(0), w.connect(1));
    // The publish overtakes nothing: whoever sees `subscribed` misses no later message.
    w.send(s, &subscribe(&a));
    w.send(p, &publish(&a, "early"));
    w.send(s, &subscribe(&a));
    w.settle();
    w.say(p, &publish(&a, "late"));
    let lines = w.take(s);
    assert_eq!(
        lines[..2],
        [format!("subscribed {a}"), format!("subscribed {a}")]
    );
    assert_eq!(lines.last(), Some(&format!("{a}#2 late")));
    w.say(s, &subscribe(&a));
    assert_eq!(w.take(s), [format!("subscribed {a}")]);
    w.say(p, &publish(&a, "once"));
    assert_eq!(w.take(s), [format!("{a}#3 once")]);
}

#[test]
fn unsubscribe_ends_deliveries_and_is_answered_even_without_a_subscription() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let c = w.connect(0);
    w.say(c, &json!({"action": "unsubscribe", "channel": a}));
    assert_eq!(w.take(c), [format!("unsubscribed {a}")]);
    w.send(c, &subscribe(&a));
    // Not confirmed yet, and still answered.
    w.say(c, &json!({"action": "unsubscribe", "channel": a}));
    let both = [format!("subscribed {a}"), format!("unsubscribed {a}")];
    assert_eq!(w.take(c), both);
    w.say(c, &publish(&a, "x"));
    assert_eq!(w.take(c), [format!("ack x {a}#1")]);
    assert_eq!(w.shards[0].channels(), 0);
}

#[test]
fn a_publisher_without_echo_gets_only_the_ack() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let quiet = w.connect_with(0, &format!("key={SERVER_KEY}&echo=false"));
    let other = w.connect(0);
    w.say(quiet, &subscribe(&a));
    w.say(other, &subscribe(&a));
    w.take(quiet);
    w.take(other);
    w.say(quiet, &publish(&a, "x"));
    assert_eq!(w.take(quiet), [format!("ack x {a}#1")]);
    assert_eq!(w.take(other), [format!("{a}#1 x")]);
}

#[test]
fn a_repeated_id_is_stored_and_delivered_once_and_acknowledged_alike() {
    let mut w = World::new(2);
    let a = w.channel_at(0, 0);
    let (s, p, q) = (w.connect(0), w.connect(0), w.connect(1));
    w.say(s, &subscribe(&a));
    w.say(p, &publish(&a, "x"));
    w.advance_us(7000);
    w.say(q, &publish(&a, "x"));
    assert_eq!(w.take(s), [format!("subscribed {a}"), format!("{a}#1 x")]);
    assert_eq!(w.take(p), w.take(q));
    let timestamp = |c: usize| w.clients[c].frames[0]["timestamp"].clone();
    assert_eq!(timestamp(p), timestamp(q));
    // Another channel's id is another id.
    let b = w.channel_at(0, 1);
    w.say(p, &publish(&b, "x"));
    assert_eq!(w.take(p), [format!("ack x {b}#1")]);
}

#[test]
fn a_repeat_while_the_first_is_on_its_way_waits_with_it() {
    let mut w = World::new(2);
    let a = w.channel_at(0, 0);
    let (p, q) = (w.connect(0), w.connect(1));
    w.store.writer_hangs = true;
    w.say(p, &publish(&a, "x"));
    w.say(q, &publish(&a, "x"));
    assert!(w.take(p).is_empty() && w.take(q).is_empty());
    assert_eq!(w.store.ops.len(), 1);
    w.commit(1, Outcome::Committed);
    for c in [p, q] {
        assert_eq!(w.take(c), [format!("ack x {a}#1")]);
    }
}

#[test]
fn nobody_sees_a_message_before_it_is_committed() {
    let mut w = World::new(2);
    let a = w.channel_at(0, 0);
    let (s, p) = (w.connect(1), w.connect(1));
    w.say(s, &subscribe(&a));
    w.take(s);
    w.store.writer_hangs = true;
    w.say(p, &publish(&a, "x"));
    w.advance_us(5_000_000);
    assert!(w.take(s).is_empty() && w.take(p).is_empty());
    w.commit(1, Outcome::Committed);
    assert_eq!(w.take(s), [format!("{a}#1 x")]);
}

#[test]
fn a_drained_connection_ends_with_the_ack_of_what_it_has_published() {
    let mut w = World::new(2);
    let a = w.channel_at(0, 0);
    let (near, far, idle) = (w.connect(0), w.connect(1), w.connect(1));
    w.store.writer_hangs = true;
    for p in [near, far] {
        w.say(p, &publish(&a, &format!("m{p}")));
        w.with_conn(p, |shard, _, now| assert!(shard.drain(2, now) > 0));
        w.with_conn(p, |shard, _, now| {
            assert_eq!(shard.drain(2, now), 0, "each once")
        });
        // What is sent to a server that is leaving is not taken.
        w.say(p, &publish(&a, "late"));
    }
    assert_eq!(w.clients[idle].ended, Some(CloseCause::Drain));
    assert_eq!(w.clients[near].ended, None);
    assert_eq!(w.clients[far].ended, None);
    w.commit(2, Outcome::Committed);
    for p in [near, far] {
        let acks = w.take(p);
        assert!(
            matches!(&acks[..], [ack] if ack.starts_with("ack")),
            "{acks:?}"
        );
        assert_eq!(w.clients[p].ended, Some(CloseCause::Drain));
    }
}

#[test]
fn after_a_failed_commit_publishers_are_told_and_may_try_again_without_a_hole() {
    let mut w = World::new(2);
    let a = w.channel_at(0, 0);
    let (s, p, q) = (w.connect(1), w.connect(0), w.connect(1));
    w.say(s, &subscribe(&a));
    w.say(p, &publish(&a, "before"));
    w.take(p);
    w.store.writer_hangs = true;
    w.say(p, &publish(&a, "x"));
    w.say(q, &publish(&a, "x"));
    w.say(p, &publish(&a, "y"));
    w.commit(1, Outcome::Failed);
    assert_eq!(w.take(p), [format!("error 50300 {a} x")]);
    assert_eq!(w.take(q), [format!("error 50300 {a} x")]);
    // It waits until what was numbered behind the failed message has come back.
    w.say(q, &publish(&a, "x"));
    w.commit(usize::MAX, Outcome::Committed);
    assert_eq!(w.take(p), [format!("error 50300 {a} y")]);
    w.commit(usize::MAX, Outcome::Committed);
    assert_eq!(w.take(q), [format!("ack x {a}#2")]);
    w.say(p, &publish(&a, "y"));
    w.commit(usize::MAX, Outcome::Committed);
    assert_eq!(w.take(p), [format!("ack y {a}#3")]);
    let delivered = ["before", "x", "y"].iter().zip(1..);
    let delivered: Vec<String> = delivered.map(|(id, n)| format!("{a}#{n} {id}")).collect();
    assert_eq!(w.take(s)[1..], delivered);
}

#[test]
fn a_message_that_was_stored_though_reported_as_failed_is_delivered_and_known() {
    for read_fails in [false, true] {
        let mut w = World::new(2);
        let a = w.channel_at(0, 0);
        let (s, p) = (w.connect(1), w.connect(0));
        w.say(s, &subscribe(&a));
        w.say(p, &publish(&a, "before"));
        w.store.writer_hangs = true;
        w.store.readers_hang = read_fails;
        w.say(p, &publish(&a, "x"));
        w.say(p, &publish(&a, "y"));
        w.commit(2, Outcome::Lost);
        if read_fails {
            w.answer(0, Some(shardwire_proto::record::StoreError::Failed));
            w.store.readers_hang = false;
            w.advance_us(1_000_000);
        }
        let messages = [format!("{a}#2 x"), format!("{a}#3 y")];
        assert_eq!(w.take(s)[2..], messages);
        w.store.writer_hangs = false;
        w.say(p, &publish(&a, "y"));
        w.say(p, &publish(&a, "z"));
        let lines = w.take(p);
        let expected = [
            format!("ack before {a}#1"),
            format!("error 50300 {a} x"),
            format!("error 50300 {a} y"),
            format!("ack y {a}#3"),
            format!("ack z {a}#4"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(w.take(s), [format!("{a}#4 z")]);
    }
}

#[test]
fn a_full_queue_behind_a_failure_does_not_stop_the_channel() {
    let mut w = World::new(1);
    let p = w.connect(0);
    w.say(p, &publish("a", "before"));
    w.store.writer_hangs = true;
    w.say(p, &publish("a", "x"));
    // Two in one turn: the failure is known when the second is refused.
    w.store.queue_max = 1;
    let now = w.now();
    let reply_us = w.now_us;
    w.store.commit(1, Outcome::Failed, w.unix_ms(), reply_us);
    let text = publish("a", "y").to_string();
    let conn = w.clients[p].conn.unwrap();
    w.shards[0].handle_message(conn, &text, now);
    let reply = w.store.take_reply(0, reply_us).unwrap();
    w.shards[0].handle_store(reply, now);
    let ops = w.shards[0].take_ops();
    assert_eq!(ops.len(), 1);
    w.shards[0].refuse_ops(ops, now);
    w.carry(0);
    w.store.writer_hangs = false;
    w.settle();
    w.say(p, &publish("a", "y"));
    let expected = [
        "ack before a#1",
        "error 50300 a x",
        "error 50300 a y",
        "ack y a#2",
    ];
    assert_eq!(w.take(p), expected);
}

#[test]
fn a_repeat_never_joins_another_message_that_got_its_number() {
    let mut w = World::new(1);
    let (p, q, r) = (w.connect(0), w.connect(0), w.connect(0));
    w.store.writer_hangs = true;
    w.say(p, &publish("other", "fails"));
    w.say(p, &publish("a", "x"));
    w.commit(1, Outcome::Failed);
    // "x" has number 1 and will fail; "y" gets number 1 and will not.
    w.say(q, &publish("a", "y"));
    w.say(r, &publish("a", "x"));
    w.commit(usize::MAX, Outcome::Committed);
    assert_eq!(w.take(p), ["error 50300 other fails", "error 50300 a x"]);
    assert_eq!(w.take(q), ["ack y a#1"]);
    assert_eq!(w.take(r), ["error 50300 a x"]);
}

#[test]
fn dedup_and_sequences_survive_a_restart() {
    let mut w = World::new(3);
    let p = w.connect(0);
    w.say(p, &publish("a", "x"));
    w.say(p, &publish("a", "y"));
    let before = w.clients[p].frames.clone();
    w.restart();
    w.advance_us(3_000_000);
    let p = w.connect(1);
    w.say(p, &publish("a", "x"));
    w.say(p, &publish("a", "z"));
    assert_eq!(w.take(p), ["ack x a#1", "ack z a#3"]);
    assert_eq!(w.clients[p].frames[0], before[0]);
    w.restart();
    w.advance_us(121_000_000);
    let p = w.connect(2);
    w.say(p, &publish("a", "x"));
    assert_eq!(w.take(p), ["ack x a#4"], "the window is over");
}

#[test]
fn timestamps_never_fall_within_a_channel() {
    let mut w = World::new(1);
    let p = w.connect(0);
    w.advance_us(10_000_000);
    w.say(p, &publish("a", "x"));
    w.now_us -= 5_000_000;
    w.restart();
    let q = w.connect(0);
    w.say(q, &publish("a", "y"));
    assert_eq!(w.take(q), ["ack y a#2"]);
    let timestamp = |c: usize| w.clients[c].frames[0]["timestamp"].as_u64().unwrap();
    assert_eq!(timestamp(p), timestamp(q));
}

#[test]
fn ephemeral_messages_need_no_store() {
    let mut w = World::new(2);
    w.store.writer_hangs = true;
    w.store.readers_hang = true;
    let a = w.channel_at(1, 0);
    let (s, p) = (w.connect(0), w.connect(0));
    w.say(s, &subscribe(&a));
    let mut message = publish(&a, "x");
    message["persist"] = json!(false);
    w.say(p, &message);
    w.say(p, &message);
    assert_eq!(w.take(p), [format!("ack x {a}#-"), format!("ack x {a}#-")]);
    assert_eq!(w.take(s), [format!("subscribed {a}"), format!("{a}#- x")]);
    // The log is not known yet: a stored one waits.
    w.say(p, &publish(&a, "y"));
    assert!(w.take(p).is_empty());
    w.store.writer_hangs = false;
    w.answer(0, None);
    assert_eq!(w.take(p), [format!("ack y {a}#1")]);
}

#[test]
fn a_channel_that_cannot_be_loaded_refuses_and_tries_again() {
    let mut w = World::new(1);
    w.store.readers_hang = true;
    let p = w.connect(0);
    w.say(p, &publish("a", "x"));
    w.answer(0, Some(shardwire_proto::record::StoreError::Failed));
    assert_eq!(w.take(p), ["error 50300 a x"]);
    w.say(p, &publish("a", "x"));
    w.answer(0, None);
    assert_eq!(w.take(p), ["ack x a#1"]);
}

#[test]
fn a_full_store_queue_refuses_and_leaves_no_trace() {
    let mut w = World::new(2);
    let (a, b) = (w.channel_at(0, 0), w.channel_at(0, 1));
    let (p, q) = (w.connect(0), w.connect(1));
    w.say(p, &publish(&a, "warm"));
    w.say(p, &publish(&b, "warm"));
    w.take(p);
    w.store.writer_hangs = true;
    w.store.queue_max = 2;
    w.say(p, &publish(&a, "x"));
    w.say(q, &publish(&b, "y"));
    w.say(q, &publish(&a, "z"));
    assert_eq!(w.take(q), [format!("error 50300 {a} z")]);
    w.commit(usize::MAX, Outcome::Committed);
    assert_eq!(w.take(p), [format!("ack x {a}#2")]);
    assert_eq!(w.take(q), [format!("ack y {b}#2")]);
    w.say(q, &publish(&a, "z"));
    w.commit(usize::MAX, Outcome::Committed);
    assert_eq!(w.take(q), [format!("ack z {a}#3")]);
}

#[test]
fn a_failed_clear_does_not_fail_later_publishes() {
    let mut w = World::new(1);
    let p = w.connect(0);
    w.say(p, &publish("a", "x"));
    w.store.writer_hangs = true;
    let now = w.now();
    let request = shardwire_proto::ids::RequestId(1);
    w.shards[0].clear_request("app", "a", request, now);
    w.carry(0);
    w.commit(1, Outcome::Failed);
    w.say(p, &publish("a", "y"));
    w.commit(1, Outcome::Committed);
    assert_eq!(w.take(p), ["ack x a#1", "ack y a#2"]);
}

#[test]
fn a_slow_consumer_is_ended_and_the_others_do_not_notice() {
    let mut w = World::new(2);
    let (slow, fast, p) = (w.connect(0), w.connect(0), w.connect(1));
    w.say(slow, &subscribe("a"));
    w.say(fast, &subscribe("a"));
    w.clients[slow].room = 0;
    let data = "x".repeat(60_000);
    for n in 0..20 {
        let message =
            json!({"action": "publish", "channel": "a", "id": n.to_string(), "data": data});
        w.say(p, &message);
    }
    assert_eq!(w.clients[slow].ended, Some(CloseCause::SlowConsumer));
    assert_eq!(w.take(fast).len(), 21);
    assert_eq!(w.shards[0].connections(), 1);
    // Frames alone suffice, too.
    let small = w.connect(0);
    w.say(small, &subscribe("b"));
    w.clients[small].room = 0;
    for n in 0..4096 {
        w.say(p, &publish("b", &n.to_string()));
    }
    assert_eq!(w.clients[small].ended, None);
    w.say(p, &publish("b", "last"));
    assert_eq!(w.clients[small].ended, Some(CloseCause::SlowConsumer));
}

#[test]
fn a_peer_far_behind_refuses_publishes_before_they_are_numbered() {
    let mut w = World::new(2);
    let a = w.channel_at(0, 0);
    let (s, p) = (w.connect(1), w.connect(0));
    w.say(s, &subscribe(&a));
    w.stop_lane(0, 1, true);
    let data = "x".repeat(65_000);
    let (mut acked, mut refused) = (0, 0);
    let mut congested_at = None;
    for n in 0..1100 {
        let message = json!({"action": "publish", "channel": a, "id": n.to_string(), "data": data});
        w.say(p, &message);
        if w.shards[0].congested() {
            congested_at.get_or_insert(n);
        }
        for line in w.take(p) {
            match line.starts_with("ack") {
                true => acked += 1,
                false => refused += 1,
            }
        }
    }
    assert!(acked > 900 && refused > 10 && acked + refused == 1100);
    assert!(
        congested_at.unwrap() < 300,
        "sockets are read no further long before"
    );
    w.stop_lane(0, 1, false);
    w.clients[s].room = usize::MAX;
    w.settle();
    let stored = w.store.model.get(&a).unwrap().all.len();
    assert_eq!(stored, acked, "what was refused is not stored");
    assert!(!w.shards[0].congested());
    assert_eq!(w.take(s).len(), acked + 1);
}

#[test]
fn publishes_towards_a_shard_far_behind_are_refused_before_they_are_sent() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let p = w.connect(0);
    w.stop_lane(0, 1, true);
    let data = "x".repeat(65_000);
    for n in 0..1100 {
        let message = json!({"action": "publish", "channel": a, "id": n.to_string(), "data": data});
        w.say(p, &message);
    }
    let refused = w.take(p).len();
    assert!(refused > 10);
    w.stop_lane(0, 1, false);
    w.settle();
    assert_eq!(w.take(p).len() + refused, 1100, "each is answered once");
}

#[test]
fn a_client_s_publishes_are_refused_over_its_rate_and_the_rest_goes_on() {
    let mut w = World::with(
        1,
        Options {
            hello: true,
            ..Options::default()
        },
        Chaos::default(),
    );
    let c = w.connect_with(0, &format!("key={CLIENT_KEY}"));
    assert_eq!(w.take(c), ["connected"]);
    for n in 0..101 {
        w.say(c, &publish("a", &n.to_string()));
    }
    let lines = w.take(c);
    assert_eq!(lines[99], "ack 99 a#100");
    assert_eq!(lines[100], "error 42900 a 100");
    w.advance_us(4_000_000);
    w.say(c, &publish("a", "later"));
    assert_eq!(w.take(c), ["ack later a#101"]);
}
