//! `resume` (contract D19).

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::record::StoreError;
use shardwire_proto::shard::Options;

use crate::support::store::Outcome;
use crate::support::{Chaos, EPOCH_MS, NARROW_KEY, SERVER_KEY, World};

fn subscribe(channel: &str) -> Value {
    json!({"action": "subscribe", "channel": channel})
}

fn publish(channel: &str, id: &str) -> Value {
    json!({"action": "publish", "channel": channel, "id": id, "data": 1})
}

fn resume(channels: &[&str], last_ts: u64) -> Value {
    let token = json!({"channels": channels, "lastTs": last_ts}).to_string();
    json!({"action": "resume", "resumeToken": BASE64URL_NOPAD.encode(token.as_bytes())})
}

fn world(shards: u16, namespace: Namespace, ring_bytes_max: usize) -> World {
    let options = Options {
        hello: false,
        namespaces: Namespaces::new(vec![namespace]).unwrap(),
        ring_bytes_max,
        ..Options::default()
    };
    World::with(shards, options, Chaos::default())
}

/// Publishes `m<n>` at `n` * 10 ms after the start.
fn fill(w: &mut World, channel: &str, numbers: std::ops::RangeInclusive<u64>) {
    let p = w.connect(w.home(channel));
    for n in numbers {
        w.advance_us((n * 10_000).saturating_sub(w.now_us));
        w.say(p, &publish(channel, &format!("m{n}")));
    }
    w.cut(p);
    w.advance_us(1000);
}

fn at(n: u64) -> u64 {
    EPOCH_MS + n * 10
}

#[test]
fn a_resume_restores_every_channel_replays_what_was_missed_and_answers_last() {
    for shards in [1, 2, 3] {
        let mut w = World::new(shards);
        let (a, b) = (w.channel_at(0, 0), w.channel_at(usize::from(shards) - 1, 1));
        fill(&mut w, &a, 1..=4);
        fill(&mut w, &b, 5..=6);
        let c = w.connect(0);
        w.say(c, &resume(&[&a, &b, "quiet"], at(3)));
        let lines = w.take(c);
        let expected = [
            format!("subscribed {a}"),
            format!("{a}#4 m4 replay"),
            format!("subscribed {b}"),
            format!("{b}#1 m5 replay"),
            format!("{b}#2 m6 replay"),
            "subscribed quiet".to_owned(),
        ];
        assert_eq!(lines[..6], expected);
        let ack = &w.clients[c].frames[6];
        assert_eq!(ack["id"], "resume");
        assert_eq!(
            ack["data"]["channels"][&a],
            json!({"recovered": true, "replayed": 1})
        );
        assert_eq!(
            ack["data"]["channels"][&b],
            json!({"recovered": true, "replayed": 2})
        );
        assert_eq!(
            ack["data"]["channels"]["quiet"],
            json!({"recovered": true, "replayed": 0})
        );
        assert!(ack["data"]["resumeToken"].is_null());
        // Live from here on.
        fill(&mut w, &a, 7..=7);
        assert_eq!(w.take(c), [format!("{a}#5 m7")]);
    }
}

#[test]
fn one_message_at_the_last_timestamp_is_known_several_come_again() {
    for several in [false, true] {
        let mut w = World::new(2);
        let (a, b) = (w.channel_at(0, 0), w.channel_at(1, 0));
        fill(&mut w, &a, 1..=1);
        w.advance_us(at(20) * 1000 - EPOCH_MS * 1000 - w.now_us);
        let p = w.connect(0);
        w.say(p, &publish(&a, "m2"));
        if several {
            w.say(p, &publish(&b, "same"));
        }
        w.advance_us(5000);
        let c = w.connect(0);
        w.say(c, &resume(&[&a, &b], at(20)));
        let lines = w.take(c);
        if several {
            assert_eq!(lines[1], format!("{a}#2 m2 replay"));
            assert_eq!(lines[3], format!("{b}#1 same replay"));
            let c = w.connect(0);
            w.say(c, &resume(&[&b], at(20)));
            assert_eq!(w.take(c).len(), 2, "of its channels one message has it");
        } else {
            assert_eq!(lines.len(), 3, "nothing is replayed: {lines:?}");
        }
    }
}

#[test]
fn a_message_accepted_before_and_delivered_after_the_last_one_seen_is_not_missed() {
    let mut w = World::new(2);
    let (a, b) = (w.channel_at(0, 0), w.channel_at(1, 0));
    fill(&mut w, &a, 1..=1);
    fill(&mut w, &b, 2..=2);
    w.advance_us(10_000_000);
    // Accepted on one shard, on its way to the store while the other delivers a later one.
    w.store.writer_hangs = true;
    let (p, q) = (w.connect(0), w.connect(1));
    w.say(p, &publish(&a, "slow"));
    w.advance_us(20_000);
    let seen_ms = w.now().unix_ms;
    let seen =
        json!({"action": "publish", "channel": b, "data": 1, "id": "seen", "persist": false});
    w.say(q, &seen);
    w.advance_us(20_000);
    w.store.writer_hangs = false;
    w.commit(usize::MAX, Outcome::Committed);
    let c = w.connect(0);
    w.say(c, &resume(&[&a, &b], seen_ms));
    let lines = w.take(c);
    assert!(
        lines.contains(&format!("{a}#2 slow replay")),
        "accepted before what was seen, delivered after it: {lines:?}"
    );
}

#[test]
fn a_late_delivery_is_not_missed_when_another_channel_is_left_while_the_resume_counts() {
    let mut w = World::new(3);
    let (a, b) = (w.channel_at(1, 0), w.channel_at(2, 0));
    fill(&mut w, &a, 1..=1);
    fill(&mut w, &b, 2..=2);
    w.store.writer_hangs = true;
    let p = w.connect(0);
    w.say(p, &publish(&a, "slow"));
    w.advance_us(20_000);
    w.say(p, &publish(&b, "seen"));
    let last_ts = w.unix_ms();
    w.advance_us(20_000);
    w.commit(usize::MAX, Outcome::Committed);
    let c = w.connect(0);
    w.send(c, &resume(&[&b, &a], last_ts));
    w.send(c, &json!({"action": "unsubscribe", "channel": b}));
    w.settle();
    let lines = w.take(c);
    assert!(lines.contains(&format!("{a}#2 slow replay")), "{lines:?}");
}

#[test]
fn a_message_of_the_last_millisecond_that_is_on_its_way_to_the_store_is_not_missed() {
    for ring in [1 << 20, 0] {
        let mut w = world(2, Namespace::default(), ring);
        let a = w.channel_at(1, 0);
        fill(&mut w, &a, 1..=1);
        let p = w.connect(1);
        w.advance_us(10_000 - w.now_us % 10_000);
        w.say(p, &publish(&a, "seen"));
        let last_ts = w.unix_ms();
        w.store.writer_hangs = true;
        w.say(p, &publish(&a, "late"));
        w.advance_us(5000);
        // The message commits after it was counted and before the replay is looked up.
        let c = w.connect(0);
        w.stop_lane(1, 0, true);
        w.send(c, &resume(&[&a], last_ts));
        w.settle();
        w.store.writer_hangs = false;
        w.settle();
        w.stop_lane(1, 0, false);
        w.settle();
        let lines = w.take(c);
        let late = lines.iter().filter(|l| l.contains(" late")).count();
        assert_eq!(late, 1, "{lines:?}");
    }
}

#[test]
fn a_message_of_the_last_millisecond_is_not_missed_though_the_one_received_is_gone() {
    for ring in [1 << 20, 0] {
        let namespace = Namespace {
            messages_max: 1,
            ..Namespace::default()
        };
        let mut w = world(1, namespace, ring);
        let p = w.connect(0);
        w.say(p, &publish("a", "seen"));
        w.say(p, &publish("a", "missed"));
        let last_ts = w.unix_ms();
        w.advance_us(5000);
        let c = w.connect(0);
        w.say(c, &resume(&["a"], last_ts));
        assert_eq!(w.take(c)[1], "a#2 missed replay");
    }
}

#[test]
fn while_the_clock_stands_still_messages_of_the_last_timestamp_are_not_missed() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let p = w.connect(1);
    w.say(p, &publish(&a, "seen"));
    let last_ts = w.unix_ms();
    let c = w.connect(0);
    w.stop_lane(1, 0, true);
    w.send(c, &resume(&[&a], last_ts));
    w.settle();
    w.say(p, &publish(&a, "next"));
    w.stop_lane(1, 0, false);
    w.settle();
    let lines = w.take(c);
    let next = lines.iter().filter(|l| l.contains(" next")).count();
    assert_eq!(next, 1, "{lines:?}");
}

#[test]
fn refused_channels_are_named_and_the_others_go_on() {
    let mut w = World::new(1);
    let c = w.connect_with(0, &format!("key={NARROW_KEY}"));
    w.say(
        c,
        &resume(&["open:a", "closed", "bad name", "open:b", "open:a"], 5),
    );
    let lines = w.take(c);
    let expected = [
        "error 40300 closed",
        "error 40009 bad name",
        "subscribed open:a",
        "subscribed open:b",
        "resumed open:a:true:0 open:b:true:0",
    ];
    assert_eq!(lines, expected);
    w.say(c, &resume(&["closed"], 5));
    assert_eq!(w.take(c), ["error 40300 closed", "resumed"]);
    w.say(c, &json!({"action": "resume", "resumeToken": "%%%"}));
    assert_eq!(w.take(c), ["error 40020 resume"]);
    w.say(c, &publish("open:a", "x"));
    assert_eq!(
        w.take(c),
        ["ack x open:a#1", "open:a#1 x"],
        "the connection goes on"
    );
}

#[test]
fn at_most_256_channels_are_resumed() {
    for shards in [1, 2] {
        let mut w = World::new(shards);
        let names: Vec<String> = (0..258).map(|n| format!("c{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let c = w.connect(0);
        w.say(c, &resume(&names, 5));
        let lines = w.take(c);
        assert_eq!(lines[..2], ["error 42911 c256", "error 42911 c257"]);
        assert_eq!(lines.len(), 2 + 256 + 1);
        assert!(
            lines[258].starts_with("resumed c0:true:0 "),
            "{}",
            lines[258]
        );
    }
}

#[test]
fn group_b_s_token_switches_the_connection_to_its_shape() {
    let mut w = World::new(1);
    fill(&mut w, "a", 1..=2);
    let c = w.connect(0);
    let token = json!({"channels": ["a"], "since": at(1)}).to_string();
    let token = BASE64URL_NOPAD.encode(token.as_bytes());
    w.say(c, &json!({"action": "resume", "token": token}));
    let expected = ["subscribed a", "a#2 m2 replay", "resumed a:true:1"];
    assert_eq!(w.take(c), expected);
    w.say(c, &json!({"action": "history", "channel": "a"}));
    assert!(w.clients[c].frames[3]["data"].is_null());
    assert!(w.clients[c].frames[3]["messages"].is_array());
}

#[test]
fn a_gap_larger_than_the_number_kept_is_told_and_the_newest_come() {
    for ring in [1 << 20, 3000, 0] {
        let namespace = Namespace {
            messages_max: 10,
            ..Namespace::default()
        };
        let mut w = world(1, namespace, ring);
        fill(&mut w, "a", 1..=30);
        for (last, recovered, replayed) in [(29, true, 1), (20, true, 10), (19, false, 10)] {
            let c = w.connect(0);
            w.say(c, &resume(&["a"], at(last)));
            let lines = w.take(c);
            let expected = format!("resumed a:{recovered}:{replayed}");
            assert_eq!(lines.last(), Some(&expected), "ring {ring}");
            assert_eq!(lines[1 + replayed - 1], "a#30 m30 replay");
        }
        // The same after a restart, and a message later: what is gone is known exactly.
        w.restart();
        fill(&mut w, "a", 31..=31);
        for (last, recovered, replayed) in [(21, true, 10), (20, false, 10)] {
            let c = w.connect(0);
            w.say(c, &resume(&["a"], at(last)));
            let expected = format!("resumed a:{recovered}:{replayed}");
            assert_eq!(w.take(c).last(), Some(&expected), "ring {ring}");
        }
    }
}

#[test]
fn a_gap_is_told_where_memory_holds_but_the_newest_of_what_is_kept() {
    // 100 of 150 messages are loaded; each further one pushes one out that memory never held.
    let namespace = Namespace {
        messages_max: 150,
        ..Namespace::default()
    };
    let mut w = world(1, namespace, 1 << 20);
    fill(&mut w, "a", 1..=200);
    w.restart();
    fill(&mut w, "a", 201..=210);
    for (last, recovered) in [(60, true), (59, false), (52, false)] {
        let c = w.connect(0);
        w.say(c, &resume(&["a"], at(last)));
        let expected = format!("resumed a:{recovered}:150");
        assert_eq!(w.take(c).last(), Some(&expected));
    }
    // Until memory holds all that is kept.
    fill(&mut w, "a", 211..=250);
    for (last, recovered) in [(100, true), (99, false)] {
        let c = w.connect(0);
        w.say(c, &resume(&["a"], at(last)));
        let expected = format!("resumed a:{recovered}:150");
        assert_eq!(w.take(c).last(), Some(&expected));
    }
}

#[test]
fn a_gap_longer_than_the_age_kept_is_told() {
    for ring in [1 << 20, 0] {
        let namespace = Namespace {
            ttl_s: 120,
            ..Namespace::default()
        };
        let mut w = world(1, namespace, ring);
        fill(&mut w, "a", 1..=3);
        w.advance_us(119_000_000);
        let c = w.connect(0);
        w.say(c, &resume(&["a"], at(1)));
        assert_eq!(w.take(c).last(), Some(&"resumed a:true:2".to_owned()));
        w.advance_us(2_000_000);
        let c = w.connect(0);
        w.say(c, &resume(&["a"], at(1)));
        assert_eq!(
            w.take(c).last(),
            Some(&"resumed a:false:0".to_owned()),
            "ring {ring}"
        );
        let c = w.connect(0);
        w.say(c, &resume(&["a"], at(3)));
        assert_eq!(w.take(c).last(), Some(&"resumed a:true:0".to_owned()));
    }
}

#[test]
fn a_cleared_channel_tells_the_gap_to_those_who_have_one() {
    for ring in [1 << 20, 0] {
        let mut w = world(1, Namespace::default(), ring);
        fill(&mut w, "a", 1..=3);
        let now = w.now();
        let request = shardwire_proto::ids::RequestId(1);
        w.shards[0].clear_request("app", "a", request, now);
        w.carry(0);
        w.settle();
        for (last, recovered) in [(3, true), (2, false)] {
            let c = w.connect(0);
            w.say(c, &resume(&["a"], at(last)));
            let expected = format!("resumed a:{recovered}:0");
            assert_eq!(w.take(c).last(), Some(&expected), "ring {ring}");
        }
        fill(&mut w, "a", 4..=4);
        let c = w.connect(0);
        w.say(c, &resume(&["a"], at(3)));
        assert_eq!(w.take(c)[1], "a#4 m4 replay", "the numbering goes on");
    }
}

#[test]
fn the_overlap_lowers_the_bound() {
    let options = Options {
        hello: false,
        recovery_overlap_ms: 220,
        ..Options::default()
    };
    let mut w = World::with(1, options, Chaos::default());
    for n in 1..=9 {
        fill(&mut w, "a", n * 10..=n * 10);
    }
    let c = w.connect(0);
    w.say(c, &resume(&["a"], at(80)));
    assert_eq!(w.take(c)[1], "a#6 m60 replay");
}

#[test]
fn with_an_overlap_a_late_delivery_is_not_missed_either() {
    let options = Options {
        hello: false,
        recovery_overlap_ms: 20,
        ..Options::default()
    };
    let mut w = World::with(2, options, Chaos::default());
    let (a, b) = (w.channel_at(0, 0), w.channel_at(1, 0));
    fill(&mut w, &a, 1..=1);
    fill(&mut w, &b, 2..=2);
    let p = w.connect(0);
    w.store.writer_hangs = true;
    w.say(p, &publish(&a, "slow"));
    w.advance_us(100_000);
    let mut seen = publish(&b, "seen");
    seen["persist"] = json!(false);
    w.say(p, &seen);
    let last_ts = w.unix_ms();
    w.advance_us(20_000);
    w.commit(usize::MAX, Outcome::Committed);
    let c = w.connect(0);
    w.say(c, &resume(&[&a, &b], last_ts));
    let lines = w.take(c);
    assert!(lines.contains(&format!("{a}#2 slow replay")), "{lines:?}");
}

#[test]
fn a_channel_resumed_and_subscribed_gets_one_subscription_and_one_replay() {
    for home in 0..2 {
        let mut w = World::new(2);
        let a = w.channel_at(home, 0);
        fill(&mut w, &a, 1..=3);
        let c = w.connect(0);
        // As an SDK does: `resume`, and the application subscribes again at once.
        w.send(c, &resume(&[&a], at(1)));
        w.send(c, &subscribe(&a));
        fill(&mut w, &a, 4..=4);
        w.settle();
        fill(&mut w, &a, 5..=5);
        let lines = w.take(c);
        for (n, id) in [(2, "m2"), (3, "m3"), (4, "m4"), (5, "m5")] {
            let place = format!("{a}#{n} {id}");
            let times = lines.iter().filter(|l| l.starts_with(&place)).count();
            assert_eq!(times, 1, "{lines:?}");
        }
        let messages = lines.iter().filter(|l| l.contains('#'));
        assert!(messages.is_sorted(), "{lines:?}");
        assert!(lines[0].starts_with("subscribed"));
    }
}

#[test]
fn a_subscribe_while_a_resume_counts_does_not_bring_live_messages_before_the_replay() {
    let mut w = World::new(3);
    let (a, b) = (w.channel_at(1, 0), w.channel_at(2, 0));
    fill(&mut w, &a, 1..=3);
    let c = w.connect(0);
    // One channel's count is late.
    w.stop_lane(2, 0, true);
    w.send(c, &resume(&[&a, &b], at(1)));
    w.send(c, &subscribe(&a));
    w.settle();
    fill(&mut w, &a, 4..=4);
    w.stop_lane(2, 0, false);
    w.settle();
    let lines = w.take(c);
    let messages: Vec<&String> = lines.iter().filter(|l| l.contains('#')).collect();
    assert!(messages.is_sorted() && messages.len() == 3, "{lines:?}");
}

#[test]
fn unsubscribe_while_a_resume_counts_or_replays_takes_the_channel_out() {
    for settled in [false, true] {
        let mut w = World::new(2);
        let (a, b) = (w.channel_at(1, 0), w.channel_at(1, 1));
        fill(&mut w, &a, 1..=2);
        fill(&mut w, &b, 3..=4);
        let c = w.connect(0);
        w.clients[c].room = 0;
        w.send(c, &resume(&[&a, &b], at(1)));
        if settled {
            w.settle();
        }
        w.send(c, &json!({"action": "unsubscribe", "channel": b}));
        w.settle();
        w.read(c, usize::MAX);
        w.settle();
        fill(&mut w, &a, 5..=5);
        fill(&mut w, &b, 6..=6);
        let lines = w.take(c);
        let of_b: Vec<&String> = lines
            .iter()
            .filter(|l| l.contains(&b) && !l.starts_with("resumed"))
            .collect();
        assert_eq!(
            of_b.last(),
            Some(&&format!("unsubscribed {b}")),
            "{lines:?}"
        );
        assert!(lines.contains(&format!("{a}#3 m5")), "{lines:?}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_told_as_not_recovered() {
    let mut w = world(1, Namespace::default(), 0);
    fill(&mut w, "a", 1..=3);
    w.store.readers_hang = true;
    let c = w.connect(0);
    w.say(c, &resume(&["a"], at(1)));
    for _ in 0..2 {
        w.answer(0, Some(StoreError::Failed));
    }
    let expected = ["subscribed a", "error 50300 a", "resumed a:false:0"];
    assert_eq!(w.take(c), expected);
    w.store.readers_hang = false;
    fill(&mut w, "a", 4..=4);
    assert_eq!(w.take(c), ["a#4 m4"]);
}

#[test]
fn a_second_resume_is_refused_while_one_is_under_way() {
    let mut w = World::new(2);
    let a = w.channel_at(1, 0);
    let c = w.connect_with(0, &format!("key={SERVER_KEY}"));
    w.send(c, &resume(&[&a], 5));
    w.send(c, &resume(&[&a], 5));
    w.settle();
    let expected = [
        "error 40000 resume".to_owned(),
        format!("subscribed {a}"),
        format!("resumed {a}:true:0"),
    ];
    assert_eq!(w.take(c), expected);
    w.say(c, &resume(&[&a], 5));
    assert_eq!(w.take(c).len(), 2);
}
