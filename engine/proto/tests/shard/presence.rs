//! Presence: who is a member, who is told, and in which shape (contract D20, D21).

use serde_json::{Value, json};
use shardwire_proto::error::CloseCause;
use shardwire_proto::ids::RequestId;
use shardwire_proto::msg::{Answer, Query};
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::shard::{Output, Stats};

use crate::support::{CLIENT_KEY, NARROW_KEY, SERVER_KEY, World};

fn world(shards: u16, change: impl FnOnce(&mut Namespace)) -> World {
    let mut namespace = Namespace::default();
    change(&mut namespace);
    let mut w = World::new(shards);
    w.options.self_asserted_ids = true;
    w.options.namespaces = Namespaces::new(vec![namespace]).unwrap();
    w.restart();
    w
}

/// Connects a client with an id that may return.
fn named(w: &mut World, shard: usize, id: &str) -> usize {
    let c = w.connect_with(shard, &format!("key={SERVER_KEY}&clientId={id}"));
    w.settle();
    c
}

fn presence(action: &str, channel: &str) -> Value {
    json!({"action": format!("presence.{action}"), "channel": channel})
}

fn enter(w: &mut World, c: usize, channel: &str, state: Value) {
    w.say(
        c,
        &json!({"action": "presence.enter", "channel": channel, "data": state}),
    );
}

/// A clean end by the client.
fn leave_politely(w: &mut World, c: usize) {
    w.with_conn(c, |shard, conn, now| {
        shard.close(conn, CloseCause::PeerClosed { code: Some(1000) }, now);
    });
    w.settle();
}

fn stats(w: &mut World) -> Vec<Stats> {
    let now = w.now();
    w.shards[0].ask("app", RequestId(1), Query::Stats, now);
    w.carry(0);
    w.settle();
    let answers = w.outputs.drain(..).map(|(_, output)| match output {
        Output::Answer {
            answer: Answer::Stats(stats),
            ..
        } => *stats,
        other => panic!("{other:?}"),
    });
    answers.collect()
}

fn members(w: &mut World) -> usize {
    stats(w).iter().map(|s| s.members).sum()
}

#[test]
fn enter_update_and_leave_reach_all_who_are_concerned() {
    for shards in [1, 3] {
        let mut w = world(shards, |_| ());
        let last = usize::from(shards) - 1;
        let subscriber = named(&mut w, last, "sub");
        w.say(subscriber, &json!({"action": "subscribe", "channel": "a"}));
        let asker = named(&mut w, last, "ask");
        w.say(asker, &presence("get", "a"));
        let stranger = named(&mut w, 0, "else");
        w.say(stranger, &json!({"action": "subscribe", "channel": "b"}));
        let (me, you) = (named(&mut w, 0, "me"), named(&mut w, last, "you"));
        assert_eq!(w.take(subscriber), ["subscribed a"]);
        assert_eq!(w.take(asker), ["members a"]);
        w.take(stranger);

        enter(&mut w, me, "a", json!({"x": 1}));
        enter(&mut w, you, "a", json!(null));
        w.say(
            me,
            &json!({"action": "presence.update", "channel": "a", "data": {"x": 2}}),
        );
        w.say(me, &presence("get", "a"));
        w.say(me, &presence("leave", "a"));
        let events = [
            r#"enter a me{"x":1}"#,
            "enter a you",
            r#"update a me{"x":2}"#,
            r#"leave a me{"x":2}"#,
        ];
        assert_eq!(w.take(subscriber), events);
        assert_eq!(w.take(asker), events);
        assert_eq!(w.take(you), events[1..]);
        let mut mine = events.to_vec();
        mine.insert(3, r#"members a me{"x":2} you"#);
        assert_eq!(w.take(me), mine, "the actor too, also of its leave");
        assert!(w.take(stranger).is_empty());

        // Who has left or unsubscribed is told no more.
        w.say(asker, &json!({"action": "unsubscribe", "channel": "a"}));
        w.say(you, &presence("leave", "a"));
        w.say(you, &presence("leave", "a"));
        assert_eq!(w.take(asker), ["unsubscribed a"]);
        assert!(w.take(me).is_empty());
        assert_eq!(w.take(you), ["leave a you"], "once, and silent when absent");
        assert_eq!(w.take(subscriber), ["leave a you"]);
        assert_eq!(members(&mut w), 0);
        for c in [subscriber, asker, stranger, me, you] {
            w.cut(c);
        }
        w.settle();
        let channels: usize = stats(&mut w).iter().map(|s| s.channels).sum();
        assert_eq!(channels, 0);
    }
}

#[test]
fn each_connection_is_told_once_in_its_shape() {
    let mut w = world(1, |_| ());
    let shapes = ["mirrored", "standard", "flat"].map(|shape| {
        let query = match shape {
            "mirrored" => String::new(),
            shape => format!("&shape={shape}"),
        };
        let c = w.connect_with(0, &format!("key={SERVER_KEY}&clientId={shape}{query}"));
        w.say(c, &json!({"action": "subscribe", "channel": "a"}));
        w.say(c, &presence("get", "a"));
        enter(&mut w, c, "a", json!({"s": shape}));
        c
    });
    let me = named(&mut w, 0, "me");
    let before: Vec<usize> = shapes.iter().map(|c| w.clients[*c].frames.len()).collect();
    enter(&mut w, me, "a", json!({"x": 1}));
    let joined = w.clients[me].frames[0]["joinedAt"].clone();
    let member = json!({"clientId": "me", "joinedAt": joined, "data": {"x": 1}});
    let mirrored = json!({"action": "presence.enter", "channel": "a", "clientId": "me", "joinedAt": joined, "data": member});
    let standard = json!({"action": "presence.enter", "channel": "a", "data": member});
    let mut flat = mirrored.clone();
    flat["data"] = json!({"x": 1});
    for ((c, before), wanted) in shapes.iter().zip(before).zip([mirrored, standard, flat]) {
        assert_eq!(w.clients[*c].frames[before..], [wanted]);
    }
}

#[test]
fn several_connections_of_an_id_are_one_member() {
    let mut w = world(2, |_| ());
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    let (one, two) = (named(&mut w, 0, "me"), named(&mut w, 1, "me"));
    enter(&mut w, one, "a", json!({"n": 1}));
    w.advance_us(5000);
    enter(&mut w, two, "a", json!({"n": 2}));
    w.say(one, &presence("leave", "a"));
    leave_politely(&mut w, one);
    assert_eq!(
        w.take(watcher),
        [
            "subscribed a",
            r#"enter a me{"n":1}"#,
            r#"update a me{"n":2}"#
        ]
    );
    let frames = &w.clients[watcher].frames;
    assert_eq!(frames[1]["joinedAt"], frames[2]["joinedAt"]);
    leave_politely(&mut w, two);
    assert_eq!(w.take(watcher), [r#"leave a me{"n":2}"#]);
}

#[test]
fn a_lost_connection_leaves_after_the_grace_and_not_before() {
    let mut w = world(2, |_| ());
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    w.take(watcher);
    let me = named(&mut w, 1, "me");
    enter(&mut w, me, "a", json!({"x": 1}));
    let anonymous = w.connect(1);
    enter(&mut w, anonymous, "a", json!(null));
    w.take(watcher);
    w.cut(anonymous);
    w.settle();
    let left = w.take(watcher);
    assert_eq!(left.len(), 1, "its id cannot return: {left:?}");
    w.cut(me);
    w.advance_us(14_900_000);
    assert!(w.take(watcher).is_empty());
    assert_eq!(
        stats(&mut w).iter().map(|s| s.members_away).sum::<usize>(),
        1
    );
    w.advance_us(1_200_000);
    assert_eq!(w.take(watcher), [r#"leave a me{"x":1}"#]);
    w.advance_us(60_000_000);
    assert!(w.take(watcher).iter().all(|f| f == "pong"), "once");
    assert_eq!(members(&mut w), 0);
}

#[test]
fn who_comes_back_within_the_grace_is_a_member_as_before() {
    let mut w = world(3, |_| ());
    let channels: Vec<String> = (0..3).map(|shard| w.channel_at(shard, 0)).collect();
    let watcher = named(&mut w, 0, "w");
    let first = named(&mut w, 1, "me");
    for channel in &channels {
        w.say(watcher, &json!({"action": "subscribe", "channel": channel}));
        enter(&mut w, first, channel, json!({"c": channel}));
    }
    w.take(watcher);
    w.cut(first);
    w.advance_us(14_000_000);
    let second = named(&mut w, 2, "me");
    w.advance_us(60_000_000);
    assert!(
        w.take(watcher).iter().all(|f| f == "pong"),
        "nobody is told"
    );
    let returns: u64 = stats(&mut w)
        .iter()
        .map(|s| s.counters.presence_returns)
        .sum();
    assert_eq!(returns, 3);
    // It is told of others again, though it has asked for nothing.
    enter(&mut w, watcher, &channels[0], json!(null));
    let told = w.take(second);
    let told: Vec<&String> = told.iter().filter(|f| *f != "pong").collect();
    assert_eq!(told, [&format!("enter {} w", channels[0])]);
    w.take(watcher);
    // Its end is that of the memberships.
    leave_politely(&mut w, second);
    let mut left = w.take(watcher);
    left.sort();
    let mut wanted: Vec<String> = channels
        .iter()
        .map(|c| format!("leave {c} me{{\"c\":\"{c}\"}}"))
        .collect();
    wanted.sort();
    assert_eq!(left, wanted);
}

#[test]
fn a_grace_ends_with_whatever_its_client_does() {
    let mut w = world(2, |_| ());
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    w.take(watcher);
    // A connection that was there all the time does not take over, but may act.
    let (one, two) = (named(&mut w, 0, "me"), named(&mut w, 1, "me"));
    enter(&mut w, one, "a", json!(null));
    w.advance_us(10_000_000);
    w.cut(one);
    w.advance_us(5_000_000);
    w.say(two, &presence("leave", "a"));
    assert_eq!(w.take(watcher), ["enter a me", "leave a me"]);
    enter(&mut w, two, "a", json!(null));
    w.cut(two);
    let three = named(&mut w, 0, "me");
    enter(&mut w, three, "a", json!({"x": 1}));
    w.advance_us(40_000_000);
    let told = w.take(watcher);
    let told: Vec<&String> = told.iter().filter(|f| *f != "pong").collect();
    assert_eq!(told, ["enter a me", r#"update a me{"x":1}"#]);
    // Again lost, and nobody comes.
    w.cut(three);
    w.advance_us(14_000_000);
    assert!(w.take(watcher).iter().all(|f| f == "pong"));
    w.advance_us(2_100_000);
    assert_eq!(w.take(watcher), [r#"leave a me{"x":1}"#]);
}

#[test]
fn news_of_an_end_may_come_after_the_return() {
    let mut w = world(2, |_| ());
    let channel = w.channel_at(0, 0);
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": channel}));
    let first = named(&mut w, 1, "me");
    enter(&mut w, first, &channel, json!(null));
    w.take(watcher);
    let second = named(&mut w, 0, "me");
    w.advance_us(1_000_000);
    w.cut(first);
    w.advance_us(60_000_000);
    assert!(w.take(watcher).iter().all(|f| f == "pong"));
    leave_politely(&mut w, second);
    assert_eq!(w.take(watcher), [format!("leave {channel} me")]);

    // A connection that was dead for long before it was given up.
    let first = named(&mut w, 1, "me");
    enter(&mut w, first, &channel, json!(null));
    w.say(first, &json!({"action": "ping"}));
    w.advance_us(30_000_000);
    let second = named(&mut w, 0, "me");
    w.advance_us(100_000_000);
    assert_eq!(w.clients[first].ended, Some(CloseCause::IdleTimeout));
    let told = w.take(watcher);
    let told: Vec<&String> = told.iter().filter(|f| *f != "pong").collect();
    assert_eq!(told, [&format!("enter {channel} me")]);
    leave_politely(&mut w, second);
    assert_eq!(w.take(watcher), [format!("leave {channel} me")]);
}

#[test]
fn an_administrator_ends_presence_at_once_and_drain_does_not() {
    let mut w = world(1, |_| ());
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    let me = named(&mut w, 0, "me");
    enter(&mut w, me, "a", json!(null));
    w.take(watcher);
    let now = w.now();
    let query = Query::Disconnect {
        client_id: "me".into(),
        code: 4010,
        reason: String::new(),
    };
    w.shards[0].ask("app", RequestId(2), query, now);
    w.carry(0);
    w.outputs.clear();
    assert_eq!(w.take(watcher), ["leave a me"]);
    let me = named(&mut w, 0, "me");
    enter(&mut w, me, "a", json!(null));
    w.take(watcher);
    w.with_conn(me, |shard, conn, now| {
        shard.close(conn, CloseCause::Drain, now)
    });
    w.advance_us(14_000_000);
    assert!(w.take(watcher).is_empty());
}

#[test]
fn rights_limits_and_rates_are_kept() {
    let mut w = world(2, |n| n.presence_members_max = Some(2));
    w.options.limits.presence_state_bytes_max = 20;
    w.options.limits.channels_per_conn_max = 3;
    w.restart();
    let c = named(&mut w, 0, "c");
    for (message, answer) in [
        (
            json!({"action": "presence.enter", "channel": "a b"}),
            "error 40009 a b",
        ),
        (
            json!({"action": "presence.enter", "channel": "a", "data": 7}),
            "error 40010 a",
        ),
        (
            json!({"action": "presence.enter", "channel": "a", "data": {"x": "y".repeat(20)}}),
            "error 40010 a",
        ),
    ] {
        w.say(c, &message);
        assert_eq!(w.take(c), [answer]);
    }
    let n = w.connect_with(1, &format!("key={NARROW_KEY}&clientId=n"));
    for action in ["enter", "update", "leave", "get"] {
        w.say(n, &presence(action, "closed"));
        assert_eq!(w.take(n), ["error 40300 closed"]);
    }
    // The third member is refused, and hears of nothing.
    let others: Vec<usize> = ["x", "y", "z"].map(|id| named(&mut w, 1, id)).to_vec();
    for o in &others {
        enter(&mut w, *o, "a", json!(null));
    }
    assert_eq!(w.take(others[2]), ["error 42913 a"]);
    w.say(others[0], &presence("leave", "a"));
    assert!(w.take(others[2]).is_empty());
    enter(&mut w, others[2], "a", json!(null));
    assert_eq!(w.take(others[2]), ["enter a z"]);
    for (channel, answer) in [
        ("b", "enter b c"),
        ("d", "enter d c"),
        ("e", "enter e c"),
        ("f", "error 42911 f"),
    ] {
        enter(&mut w, c, channel, json!(null));
        assert_eq!(w.take(c), [answer]);
    }
    let limited = w.connect_with(0, &format!("key={CLIENT_KEY}&clientId=l"));
    for _ in 0..150 {
        w.send(limited, &presence("leave", "g"));
    }
    assert_eq!(w.take(limited), vec!["error 42900 g"; 50]);
}

#[test]
fn a_channel_has_a_rate_of_presence_calls_whoever_makes_them() {
    let mut w = world(1, |_| ());
    w.options.limits.rates = serde_json::from_value(json!({
        "presence": {"channel": {"per_window": 4, "window_ms": 60_000}},
        "subscribe": {"channel": {"per_window": 2, "window_ms": 60_000}},
    }))
    .unwrap();
    w.restart();
    let (a, b) = (named(&mut w, 0, "a"), named(&mut w, 0, "b"));
    enter(&mut w, a, "c", json!({"n": 1}));
    enter(&mut w, b, "c", json!({"n": 1}));
    enter(&mut w, a, "c", json!({"n": 2}));
    w.say(a, &presence("leave", "c"));
    w.take(a);
    w.take(b);
    // Of the fifth nothing happens: who asked for it stays the member that it was.
    for action in ["update", "leave", "get"] {
        w.say(b, &presence(action, "c"));
        assert_eq!(w.take(b), ["error 42900 c"]);
        assert!(w.take(a).is_empty());
    }
    enter(&mut w, a, "other", json!({"n": 1}));
    assert_eq!(w.take(a), ["enter other a{\"n\":1}"]);
    w.advance_us(120_000_000);
    w.say(b, &presence("get", "c"));
    let answers = w.take(b);
    assert!(
        answers.iter().any(|a| a.starts_with("members c")),
        "{answers:?}"
    );
    // Who has no right to a channel does not use up its rate.
    let n = w.connect_with(0, &format!("key={NARROW_KEY}&clientId=n"));
    for _ in 0..5 {
        w.say(n, &json!({"action": "subscribe", "channel": "closed"}));
        assert_eq!(w.take(n), ["error 40300 closed"]);
    }
    w.take(a);
    w.take(b);
    for (client, answer) in [
        (a, "subscribed closed"),
        (b, "subscribed closed"),
        (a, "error 42900 closed"),
    ] {
        w.say(client, &json!({"action": "subscribe", "channel": "closed"}));
        assert_eq!(w.take(client), [answer]);
    }
}

#[test]
fn answers_keep_the_order_of_their_requests() {
    let mut w = world(3, |_| ());
    let far = w.channel_at(1, 0);
    let near = w.channel_at(0, 0);
    let c = named(&mut w, 0, "c");
    w.stop_lane(1, 0, true);
    w.say(c, &presence("get", &far));
    w.say(c, &presence("get", &near));
    assert!(w.take(c).is_empty());
    for _ in 0..20 {
        w.say(c, &presence("get", &far));
    }
    assert_eq!(w.take(c), vec![format!("error 42900 {far}"); 6]);
    w.stop_lane(1, 0, false);
    w.settle();
    let mut wanted = vec![format!("members {far}"), format!("members {near}")];
    wanted.resize(16, format!("members {far}"));
    assert_eq!(w.take(c), wanted);
}

#[test]
fn a_large_room_is_told_its_number() {
    let mut w = world(2, |n| n.presence_events_max = 4);
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    w.take(watcher);
    let all: Vec<usize> = (0..8)
        .map(|n| {
            let c = named(&mut w, n % 2, &format!("m{n}"));
            enter(&mut w, c, "a", json!(null));
            c
        })
        .collect();
    let enters = ["enter a m0", "enter a m1", "enter a m2", "enter a m3"];
    let mut told = enters.map(str::to_owned).to_vec();
    told.push("count a 5".into());
    assert_eq!(
        w.take(watcher),
        told,
        "at once when it begins, then no more for a second"
    );
    w.advance_us(2_000_000);
    assert_eq!(w.take(watcher), ["count a 8"]);
    w.advance_us(5_000_000);
    assert!(w.take(watcher).is_empty(), "only while it changes");
    w.say(watcher, &presence("get", "a"));
    assert_eq!(
        w.take(watcher),
        ["members a m0 m1 m2 m3 m4 m5 m6 m7", "count a 8"],
        "who asks is told that there will be no events"
    );
    for c in &all[..4] {
        w.say(*c, &presence("leave", "a"));
    }
    w.advance_us(3_000_000);
    assert_eq!(
        w.take(watcher).last().unwrap(),
        "count a 4",
        "not yet few enough"
    );
    w.say(all[4], &presence("leave", "a"));
    w.say(all[5], &presence("leave", "a"));
    assert_eq!(w.take(watcher), ["count a 3 events", "leave a m5"]);
    w.advance_us(5_000_000);
    assert!(w.take(watcher).is_empty());
    assert_eq!(members(&mut w), 2);
}

#[test]
fn a_burst_is_sent_in_parts_that_no_outbox_minds() {
    let mut w = world(1, |_| ());
    let watcher = named(&mut w, 0, "w");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    let state = json!({"s": "x".repeat(1900)});
    let all: Vec<usize> = (0..800)
        .map(|n| {
            let c = named(&mut w, 0, &format!("m{n:04}"));
            enter(&mut w, c, "a", state.clone());
            c
        })
        .collect();
    w.outbox_bytes_max = 0;
    w.take(watcher);
    for c in all {
        w.cut(c);
    }
    w.advance_us(17_000_000);
    let told = w.take(watcher);
    assert_eq!(told.len(), 800);
    assert!(told.iter().all(|f| f.starts_with("leave a m")));
    assert!(w.outbox_bytes_max < 200_000, "{}", w.outbox_bytes_max);
}

#[test]
fn members_page_over_http_whatever_changes_meanwhile() {
    let mut w = world(2, |_| ());
    let channel = w.channel_at(1, 0);
    let all: Vec<usize> = (0..7)
        .map(|n| {
            let c = named(&mut w, 0, &format!("m{n}"));
            enter(&mut w, c, &channel, json!({"n": n}));
            c
        })
        .collect();
    let page = |w: &mut World, after: Option<&str>| {
        let now = w.now();
        let part = (after.map(str::to_owned), 3);
        w.shards[0].members_request("app", &channel, part, RequestId(9), now);
        w.carry(0);
        w.settle();
        match w.outputs.pop() {
            Some((0, Output::Members { page, .. })) => page,
            other => panic!("{other:?}"),
        }
    };
    let first = page(&mut w, None);
    let ids = |p: &shardwire_proto::wire::wsocket::MemberPage| -> Vec<String> {
        p.members.iter().map(|m| m.client_id.to_string()).collect()
    };
    assert_eq!(
        (ids(&first), first.total, first.has_more),
        (vec!["m0".into(), "m1".into(), "m2".into()], 7, true)
    );
    w.say(all[2], &presence("leave", &channel));
    w.cut(all[4]);
    w.settle();
    let second = page(&mut w, Some("m2"));
    assert_eq!(ids(&second), ["m3", "m4", "m5"]);
    assert_eq!(second.members[1].connections, 0, "away");
    let third = page(&mut w, Some("m5"));
    assert_eq!(
        (ids(&third), third.total, third.has_more),
        (vec!["m6".to_owned()], 6, false)
    );
    let nobody = page(&mut w, Some("m6"));
    assert!(nobody.members.is_empty() && !nobody.has_more);
}

#[test]
fn members_that_were_away_are_away_in_the_next_process_and_come_back_unnoticed() {
    let mut old = world(3, |_| ());
    for (n, channel) in ["a", "b", "c"].into_iter().enumerate() {
        let c = named(&mut old, n, "me");
        enter(&mut old, c, channel, json!({"n": n}));
    }
    let here = named(&mut old, 0, "here");
    enter(&mut old, here, "a", json!({}));
    for c in 0..3 {
        old.cut(c);
    }
    old.settle();
    assert!(!old.shards.iter().all(|shard| shard.members_are_away()));
    let mut kept: Vec<_> = old.shards.iter().flat_map(|s| s.export_members()).collect();
    assert_eq!(kept.len(), 3, "one that is held is not away");
    assert!(kept.iter().all(|m| m.client_id == "me"));
    kept.push(kept[0].clone());

    let mut w = world(2, |_| ());
    let now = w.now();
    for shard in &mut w.shards {
        shard.import_members(&kept, now);
        assert!(shard.members_are_away());
    }
    assert_eq!(members(&mut w), 3);
    let watcher = named(&mut w, 0, "watcher");
    w.say(watcher, &json!({"action": "subscribe", "channel": "a"}));
    w.say(watcher, &json!({"action": "subscribe", "channel": "b"}));
    w.take(watcher);
    let me = named(&mut w, 1, "me");
    w.advance_us(20_000_000);
    w.settle();
    assert_eq!(members(&mut w), 3);
    assert!(w.take(watcher).is_empty());
    leave_politely(&mut w, me);
    assert_eq!(members(&mut w), 0);

    let now = w.now();
    for shard in &mut w.shards {
        shard.import_members(&kept, now);
    }
    assert_eq!(members(&mut w), 3);
    w.advance_us(20_000_000);
    w.settle();
    assert_eq!(members(&mut w), 0);
}
