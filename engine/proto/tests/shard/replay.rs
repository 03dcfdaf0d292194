//! `rewind` (contract D18) and the position form of `subscribe`: what is replayed, in which order
//! with live messages, and how fast.

use serde_json::{Value, json};
use shardwire_proto::error::CloseCause;
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::record::StoreError;
use shardwire_proto::shard::Options;

use crate::support::{Chaos, NARROW_KEY, World};

fn subscribe(channel: &str) -> Value {
    json!({"action": "subscribe", "channel": channel})
}

fn unsubscribe(channel: &str) -> Value {
    json!({"action": "unsubscribe", "channel": channel})
}

fn rewind(channel: &str, count: u64) -> Value {
    json!({"action": "subscribe", "channel": channel, "rewind": count})
}

fn since(channel: &str, sequence: u64, epoch: &str) -> Value {
    let since = json!({"sequence": sequence, "epoch": epoch});
    json!({"action": "subscribe", "channel": channel, "since": since})
}

/// Publishes messages named by their sequence, one per 10 ms.
fn fill(w: &mut World, channel: &str, sequences: std::ops::RangeInclusive<u64>) {
    let p = w.connect(w.home(channel));
    for n in sequences {
        w.advance_us(10_000);
        let id = format!("m{n}");
        w.say(
            p,
            &json!({"action": "publish", "channel": channel, "id": id, "data": n}),
        );
    }
    w.cut(p);
}

fn replayed(channel: &str, sequences: std::ops::RangeInclusive<u64>) -> Vec<String> {
    sequences
        .map(|n| format!("{channel}#{n} m{n} replay"))
        .collect()
}

fn epoch(w: &World, channel: &str) -> String {
    w.store.model.get(channel).unwrap().epoch.to_string()
}

/// A world whose channels keep few messages, and whose rings hold few bytes.
fn small(shards: u16, messages_max: u64, ring_bytes_max: usize) -> World {
    let namespace = Namespace {
        messages_max,
        ..Namespace::default()
    };
    let options = Options {
        hello: false,
        namespaces: Namespaces::new(vec![namespace]).unwrap(),
        ring_bytes_max,
        ..Options::default()
    };
    World::with(shards, options, Chaos::default())
}

#[test]
fn rewind_gives_the_newest_oldest_first_then_live_ones() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    fill(&mut w, &a, 1..=5);
    let c = w.connect(0);
    w.say(c, &rewind(&a, 3));
    fill(&mut w, &a, 6..=6);
    let mut expected = vec![format!("subscribed {a}")];
    expected.extend(replayed(&a, 3..=5));
    expected.push(format!("{a}#6 m6"));
    assert_eq!(w.take(c), expected);
    // More than there are; and again, on a live subscription.
    w.say(c, &rewind(&a, 50));
    expected = vec![format!("subscribed {a}")];
    expected.extend(replayed(&a, 1..=6));
    assert_eq!(w.take(c), expected);
    w.say(c, &subscribe(&a));
    assert_eq!(w.take(c), [format!("subscribed {a}")]);
    fill(&mut w, &a, 7..=7);
    assert_eq!(w.take(c), [format!("{a}#7 m7")], "one subscription");
}

#[test]
fn rewind_is_clamped_and_needs_the_history_right() {
    let mut w = World::new(1);
    fill(&mut w, "a", 1..=120);
    let c = w.connect(0);
    w.say(c, &rewind("a", 100_000));
    assert_eq!(w.take(c)[1..], replayed("a", 21..=120));
    let narrow = w.connect_with(0, &format!("key={NARROW_KEY}"));
    w.say(narrow, &rewind("a", 1));
    w.say(narrow, &rewind("open:a", 1));
    w.say(
        narrow,
        &json!({"action": "subscribe", "channel": "open:a", "rewind": -1}),
    );
    w.say(narrow, &rewind("open:b", 0));
    let lines = w.take(narrow);
    assert_eq!(
        lines,
        [
            "error 40300 a",
            "subscribed open:a",
            "error 40003 open:a",
            "subscribed open:b"
        ]
    );
}

#[test]
fn rewind_where_history_is_off_is_refused() {
    let off = Namespace {
        pattern: "off".into(),
        history: false,
        ..Namespace::default()
    };
    let options = Options {
        hello: false,
        namespaces: Namespaces::new(vec![off]).unwrap(),
        ..Options::default()
    };
    let mut w = World::with(1, options, Chaos::default());
    let c = w.connect(0);
    w.say(c, &rewind("off", 3));
    w.say(c, &subscribe("off"));
    assert_eq!(w.take(c), ["error 40011 off", "subscribed off"]);
}

#[test]
fn rewind_beyond_memory_is_read_from_the_store() {
    let mut w = small(2, 1000, 2000);
    let a = w.channel_at(1, 0);
    fill(&mut w, &a, 1..=60);
    let c = w.connect(0);
    w.say(c, &rewind(&a, 50));
    assert_eq!(w.take(c)[1..], replayed(&a, 11..=60));
    w.restart();
    let c = w.connect(1);
    w.say(c, &rewind(&a, 55));
    assert_eq!(w.take(c)[1..], replayed(&a, 6..=60));
}

#[test]
fn a_rewind_is_not_shortened_by_messages_of_one_millisecond() {
    let mut w = small(1, 1000, 0);
    let p = w.connect(0);
    for n in 1..=20 {
        if n == 5 || n == 19 {
            w.advance_us(10_000);
        }
        let id = format!("m{n}");
        w.say(
            p,
            &json!({"action": "publish", "channel": "a", "id": id, "data": n}),
        );
    }
    let c = w.connect(0);
    w.say(c, &rewind("a", 10));
    assert_eq!(w.take(c)[1..], replayed("a", 11..=20));
}

#[test]
fn live_messages_during_a_replay_follow_it_in_order_and_none_comes_twice() {
    for (home, ring) in [(0, 1 << 20), (1, 1 << 20), (0, 0), (1, 0)] {
        let mut w = small(2, 1000, ring);
        let a = w.channel_at(home, 0);
        fill(&mut w, &a, 1..=4);
        let c = w.connect(0);
        w.say(c, &subscribe(&a));
        fill(&mut w, &a, 5..=5);
        w.take(c);
        // The answer waits in the lane, and the socket takes little.
        w.store.readers_hang = true;
        w.stop_lane(1, 0, true);
        w.send(c, &rewind(&a, 3));
        fill(&mut w, &a, 6..=7);
        w.clients[c].room = 20;
        w.stop_lane(1, 0, false);
        w.store.readers_hang = false;
        w.settle();
        fill(&mut w, &a, 8..=9);
        w.read(c, usize::MAX);
        w.settle();
        fill(&mut w, &a, 10..=10);
        let lines = w.take(c);
        let start = lines.iter().position(|l| l.ends_with("replay")).unwrap();
        let last = lines.iter().rposition(|l| l.ends_with("replay")).unwrap();
        assert_eq!(last - start, 2, "{lines:?}");
        let mut order: Vec<u64> = Vec::new();
        for line in lines.iter().filter(|l| l.contains('#')) {
            let (_, place) = line.split_once('#').unwrap();
            order.push(place.split(' ').next().unwrap().parse().unwrap());
        }
        assert!(order.is_sorted_by(|x, y| x < y), "{lines:?}");
        assert_eq!(order.last(), Some(&10));
        assert!(order.contains(&6) && order.contains(&8), "{lines:?}");
    }
}

#[test]
fn unsubscribe_ends_a_replay_and_what_is_held_with_it() {
    for home in 0..2 {
        let mut w = World::new(2);
        let (a, b) = (w.channel_at(home, 0), w.channel_at(home, 1));
        fill(&mut w, &a, 1..=3);
        fill(&mut w, &b, 1..=1);
        let c = w.connect(0);
        // Before the answer has come.
        w.stop_lane(1, 0, true);
        w.clients[c].room = 0;
        w.send(c, &rewind(&a, 3));
        w.send(c, &rewind(&b, 3));
        w.send(c, &unsubscribe(&a));
        fill(&mut w, &a, 4..=4);
        w.stop_lane(1, 0, false);
        w.settle();
        w.read(c, usize::MAX);
        w.settle();
        let lines = w.take(c);
        let of_a: Vec<&String> = lines.iter().filter(|l| l.contains(&a)).collect();
        assert_eq!(
            of_a.last(),
            Some(&&format!("unsubscribed {a}")),
            "{lines:?}"
        );
        let b_lines = lines
            .iter()
            .filter(|l| l.contains(&format!("{b}#")))
            .count();
        assert_eq!(b_lines, 1, "{lines:?}");
        fill(&mut w, &a, 5..=5);
        fill(&mut w, &b, 2..=2);
        assert_eq!(w.take(c), [format!("{b}#2 m2")]);
        assert_eq!(w.shards[0].channels(), 1);
    }
}

#[test]
fn a_late_answer_never_serves_another_channel() {
    let mut w = World::new(3);
    let (a, b) = (w.channel_at(1, 0), w.channel_at(2, 0));
    fill(&mut w, &a, 1..=3);
    fill(&mut w, &b, 1..=1);
    let c = w.connect(0);
    w.stop_lane(2, 0, true);
    w.send(c, &rewind(&a, 3));
    w.send(c, &unsubscribe(&a));
    w.send(c, &rewind(&b, 3));
    // The answer for `a` comes while `b` is asked for.
    w.settle();
    w.stop_lane(2, 0, false);
    w.settle();
    let lines = w.take(c);
    let expected = [
        format!("subscribed {a}"),
        format!("unsubscribed {a}"),
        format!("subscribed {b}"),
        format!("{b}#1 m1 replay"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn no_subscribed_comes_after_unsubscribed() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let (c, other) = (w.connect(0), w.connect(0));
    w.send(other, &subscribe(&a));
    w.send(c, &subscribe(&a));
    w.send(c, &rewind(&a, 3));
    w.send(c, &unsubscribe(&a));
    w.settle();
    assert_eq!(w.take(c).last(), Some(&format!("unsubscribed {a}")));
}

#[test]
fn a_subscribe_during_a_replay_is_answered() {
    let mut w = World::new(1);
    fill(&mut w, "a", 1..=3);
    let c = w.connect(0);
    w.clients[c].room = 0;
    w.options.limits.rewind_messages_max = 100;
    let data = "x".repeat(60_000);
    let p = w.connect(0);
    for n in 0..5 {
        let id = n.to_string();
        w.say(
            p,
            &json!({"action": "publish", "channel": "a", "id": id, "data": data}),
        );
    }
    w.say(c, &rewind("a", 8));
    w.say(c, &subscribe("a"));
    w.read(c, usize::MAX);
    w.settle();
    let lines = w.take(c);
    let answers = lines.iter().filter(|l| *l == "subscribed a").count();
    assert_eq!((answers, lines.len()), (2, 10), "{lines:?}");
}

#[test]
fn a_connection_that_ends_during_a_replay_leaves_nothing() {
    for slow in [false, true] {
        let mut w = small(2, 1000, 0);
        let a = w.channel_at(1, 0);
        fill(&mut w, &a, 1..=3);
        let c = w.connect(0);
        w.store.readers_hang = true;
        w.send(c, &rewind(&a, 3));
        w.settle();
        if slow {
            let p = w.connect(1);
            let data = "x".repeat(60_000);
            for n in 0..9 {
                let id = n.to_string();
                w.say(
                    p,
                    &json!({"action": "publish", "channel": a, "id": id, "data": data}),
                );
            }
            w.cut(p);
        } else {
            w.cut(c);
        }
        w.store.readers_hang = false;
        w.settle();
        if slow {
            // What is held counts as much as what is queued.
            assert_eq!(w.clients[c].ended, Some(CloseCause::SlowConsumer));
        }
        assert_eq!((w.shards[0].channels(), w.shards[0].connections()), (0, 0));
        assert_eq!(w.shards[0].counters_mut().subscriptions, 0);
        let again = w.connect(0);
        w.say(again, &rewind(&a, 2));
        assert_eq!(w.take(again).len(), 3);
    }
}

#[test]
fn a_replay_is_paced_by_the_socket() {
    let mut w = World::new(1);
    let p = w.connect(0);
    let data = "x".repeat(10_000);
    for n in 1..=1000 {
        let id = format!("m{n}");
        w.say(
            p,
            &json!({"action": "publish", "channel": "a", "id": id, "data": data}),
        );
    }
    let epoch = epoch(&w, "a");
    let c = w.connect(0);
    w.clients[c].room = 0;
    w.outbox_bytes_max = 0;
    w.say(c, &since("a", 620, &epoch));
    let mut rounds = 0;
    while w.clients[c].frames.len() < 381 {
        w.read(c, 30_000);
        w.settle();
        rounds += 1;
        assert!(rounds < 1000, "{} frames", w.clients[c].frames.len());
    }
    assert!(w.outbox_bytes_max < 80_000, "{}", w.outbox_bytes_max);
    let lines = w.take(c);
    assert_eq!(lines[0], "subscribed a recovered=true at 1000");
    assert_eq!(lines[1..], replayed("a", 621..=1000));
    // All of them are more than one replay may hold.
    let c = w.connect(0);
    w.say(c, &since("a", 0, &epoch));
    assert_eq!(w.take(c), ["subscribed a recovered=false at 1000"]);
}

#[test]
fn a_replay_never_makes_a_slow_consumer_of_its_connection() {
    let mut options = Options {
        hello: false,
        ..Options::default()
    };
    options.limits.outbox_frames_max = 20;
    let mut w = World::with(1, options, Chaos::default());
    fill(&mut w, "a", 1..=100);
    let c = w.connect(0);
    w.say(c, &rewind("a", 100));
    assert_eq!(w.clients[c].ended, None);
    assert_eq!(w.take(c).len(), 101);
}

#[test]
fn since_tells_the_position_and_replays_all_or_nothing() {
    let mut w = small(2, 10, 1 << 20);
    let a = w.channel_at(1, 0);
    fill(&mut w, &a, 1..=12);
    let epoch = epoch(&w, &a);
    let c = w.connect(0);
    w.say(
        c,
        &json!({"action": "subscribe", "channel": a, "since": {}}),
    );
    assert_eq!(w.take(c), [format!("subscribed {a} recovered=false at 12")]);
    assert_eq!(w.clients[c].frames[0]["epoch"], epoch);
    for (sequence, epoch, recovered) in [
        (12, &*epoch, true),
        (11, &*epoch, true),
        (2, &*epoch, true),
        (1, &*epoch, false),
        (0, &*epoch, false),
        (13, &*epoch, false),
        (11, "another", false),
    ] {
        let c = w.connect(0);
        w.say(c, &since(&a, sequence, epoch));
        let lines = w.take(c);
        assert_eq!(
            lines[0],
            format!("subscribed {a} recovered={recovered} at 12")
        );
        let expected = if recovered { sequence + 1 } else { 13 };
        assert_eq!(lines[1..], replayed(&a, expected..=12));
    }
    fill(&mut w, &a, 13..=13);
    assert_eq!(w.take(c), [format!("{a}#13 m13")]);
}

#[test]
fn since_is_answered_from_the_store_alike() {
    let mut w = small(1, 10, 0);
    fill(&mut w, "a", 1..=12);
    let epoch = epoch(&w, "a");
    for (sequence, recovered) in [(12, true), (11, true), (2, true), (1, false)] {
        let c = w.connect(0);
        w.say(c, &since("a", sequence, &epoch));
        let lines = w.take(c);
        assert_eq!(
            lines[0],
            format!("subscribed a recovered={recovered} at 12")
        );
        let expected = if recovered { sequence + 1 } else { 13 };
        assert_eq!(lines[1..], replayed("a", expected..=12));
    }
    // Messages committed between the question and the answer come live, and do not spoil it.
    let c = w.connect(0);
    w.store.readers_hang = true;
    w.say(c, &since("a", 8, &epoch));
    fill(&mut w, "a", 13..=14);
    w.store.readers_hang = false;
    w.settle();
    let lines = w.take(c);
    let recovered = lines[0].contains("recovered=true");
    assert!(recovered, "{lines:?}");
    let order = (9..=14).map(|n| format!("a#{n} m{n}"));
    for (line, expected) in lines[1..].iter().zip(order) {
        assert!(line.starts_with(&expected), "{lines:?}");
    }
    assert_eq!(lines.len(), 7);
}

#[test]
fn since_leaves_out_what_is_still_on_its_way_to_others_of_the_shard() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    fill(&mut w, &a, 1..=1);
    let epoch = epoch(&w, &a);
    let (other, c) = (w.connect(0), w.connect(0));
    w.say(other, &subscribe(&a));
    w.stop_lane(1, 0, true);
    fill(&mut w, &a, 2..=3);
    // It has received message 2 by a connection to the home shard.
    w.say(c, &since(&a, 2, &epoch));
    w.stop_lane(1, 0, false);
    w.settle();
    let expected = [
        format!("subscribed {a} recovered=true at 3"),
        format!("{a}#3 m3 replay"),
    ];
    assert_eq!(w.take(c), expected);
}

#[test]
fn the_epoch_survives_a_restart_and_changes_with_the_file() {
    let mut w = World::new(2);
    fill(&mut w, "a", 1..=2);
    let epoch = epoch(&w, "a");
    w.restart();
    let c = w.connect(0);
    w.say(c, &since("a", 1, &epoch));
    assert_eq!(
        w.take(c),
        ["subscribed a recovered=true at 2", "a#2 m2 replay"]
    );
    w.store.model.wipe();
    w.restart();
    w.advance_us(1000);
    fill(&mut w, "a", 1..=2);
    let c = w.connect(0);
    w.say(c, &since("a", 1, &epoch));
    assert_eq!(w.take(c), ["subscribed a recovered=false at 2"]);
    assert_ne!(w.clients[c].frames[0]["epoch"], epoch);
}

#[test]
fn a_store_that_cannot_be_read_is_told_and_the_subscription_stands() {
    for loaded in [false, true] {
        let mut w = small(2, 1000, 0);
        let a = w.channel_at(1, 0);
        fill(&mut w, &a, 1..=3);
        if !loaded {
            w.restart();
        }
        let a = if loaded { a } else { w.channel_at(1, 0) };
        w.store.readers_hang = true;
        let c = w.connect(0);
        w.say(c, &rewind(&a, 3));
        w.answer(0, Some(StoreError::Overloaded));
        let expected = [format!("subscribed {a}"), format!("error 50300 {a}")];
        assert_eq!(w.take(c), expected);
        w.store.readers_hang = false;
        let p = w.connect(1);
        w.say(
            p,
            &json!({"action": "publish", "channel": a, "id": "live", "data": 1}),
        );
        let lines = w.take(c);
        assert!(lines.len() == 1 && lines[0].ends_with(" live"), "{lines:?}");
    }
}

#[test]
fn many_replays_on_one_connection_do_not_exhaust_the_stack() {
    let jobs = || {
        let mut w = World::new(2);
        w.options.limits.channels_per_conn_max = 1000;
        w.restart();
        let c = w.connect(0);
        let names = (0..).map(|n| format!("c{n}"));
        let (here, there): (Vec<String>, Vec<String>) =
            names.take(1100).partition(|name| w.home(name) == 0);
        // Those of this shard wait behind one that another shard has to answer.
        w.send(c, &rewind(&there[0], 1));
        for name in &here[..500] {
            w.send(c, &rewind(name, 1));
        }
        w.settle();
        for name in &here[..500] {
            w.send(c, &unsubscribe(name));
        }
        w.take(c);
        // Again, and everything is known.
        w.send(c, &rewind(&there[0], 1));
        for name in &here[..500] {
            w.send(c, &rewind(name, 1));
        }
        w.settle();
        assert_eq!(w.take(c).len(), 501);
    };
    let small = std::thread::Builder::new().stack_size(512 * 1024);
    small.spawn(jobs).unwrap().join().unwrap();
}
