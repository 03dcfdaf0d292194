//! `history` (contract D17): order of answers, pages, limits.

use serde_json::{Value, json};
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::record::StoreError;
use shardwire_proto::shard::Options;

use crate::support::{Chaos, EPOCH_MS, NARROW_KEY, SERVER_KEY, World};

fn history(channel: &str, mut extra: Value) -> Value {
    extra["action"] = json!("history");
    extra["channel"] = json!(channel);
    extra
}

/// Publishes messages, message n at n * 10 ms.
fn fill(w: &mut World, channel: &str, count: u64, data: &str) {
    let p = w.connect(0);
    for n in 1..=count {
        w.advance_us(10_000);
        let id = format!("m{n}");
        w.say(
            p,
            &json!({"action": "publish", "channel": channel, "id": id, "data": data}),
        );
    }
}

#[test]
fn pages_follow_bounds_limit_and_direction() {
    let mut w = World::new(2);
    fill(&mut w, "a", 5, "");
    let c = w.connect(1);
    let at = |n: u64| EPOCH_MS + n * 10;
    for (request, expected) in [
        (json!({}), "history a 5,4,3,2,1"),
        (json!({"limit": 2}), "history a 5,4 more"),
        (
            json!({"limit": 2, "direction": "forward"}),
            "history a 1,2 more",
        ),
        (json!({"limit": 0}), "history a 5,4,3,2,1"),
        (json!({"before": at(4), "limit": 3}), "history a 3,2,1"),
        (json!({"after": at(4)}), "history a 5"),
        (
            json!({"after": at(1) as f64 + 0.5, "before": at(4)}),
            "history a 3,2",
        ),
        (json!({"afterSeq": 1, "beforeSeq": 4}), "history a 3,2"),
        (json!({"afterSeq": 5}), "history a "),
        (json!({"direction": "sideways"}), "error 40003 a"),
        (
            json!({"before": null, "limit": null}),
            "history a 5,4,3,2,1",
        ),
    ] {
        w.say(c, &history("a", request.clone()));
        assert_eq!(w.take(c), [expected], "{request}");
    }
    let message = &w.clients[c].frames[0]["data"]["messages"][0];
    let expected = json!({
        "id": "m5", "channel": "a", "data": "", "timestamp": at(5), "sequence": 5,
        "publisherId": message["publisherId"],
    });
    assert_eq!(*message, expected);
    assert!(
        message["publisherId"]
            .as_str()
            .unwrap()
            .starts_with("anon-")
    );
}

#[test]
fn a_page_is_not_cut_inside_a_millisecond() {
    let mut w = World::new(1);
    let p = w.connect(0);
    for n in 1..=9 {
        if n == 3 || n == 7 {
            w.advance_us(1000);
        }
        w.say(
            p,
            &json!({"action": "publish", "channel": "a", "id": n.to_string(), "data": 1}),
        );
    }
    w.take(p);
    w.say(p, &history("a", json!({"limit": 4})));
    assert_eq!(w.take(p), ["history a 9,8,7,6,5,4,3 more"]);
    w.say(p, &history("a", json!({"limit": 3})));
    assert_eq!(w.take(p), ["history a 9,8,7 more"]);
}

#[test]
fn answers_come_in_the_order_of_requests() {
    let mut w = World::new(2);
    fill(&mut w, "a", 2, "");
    fill(&mut w, "b", 1, "");
    let c = w.connect(1);
    w.store.readers_hang = true;
    w.say(c, &history("a", json!({})));
    w.say(c, &history("b", json!({})));
    w.say(c, &history("a", json!({"limit": 1})));
    w.answer(2, None);
    w.answer(1, Some(StoreError::Overloaded));
    assert!(w.take(c).is_empty());
    w.answer(0, None);
    let expected = ["history a 2,1", "error 50300 b", "history a 2 more"];
    assert_eq!(w.take(c), expected);
}

#[test]
fn too_many_requests_at_once_are_refused() {
    let mut w = World::new(1);
    let c = w.connect(0);
    w.store.readers_hang = true;
    for _ in 0..17 {
        w.say(c, &history("a", json!({})));
    }
    assert_eq!(w.take(c), ["error 42900 a"]);
    w.store.readers_hang = false;
    w.settle();
    assert_eq!(w.take(c).len(), 16);
    w.say(c, &history("a", json!({})));
    assert_eq!(w.take(c), ["history a "]);
}

#[test]
fn an_answer_for_a_connection_that_ended_goes_nowhere() {
    let mut w = World::new(1);
    let c = w.connect(0);
    w.store.readers_hang = true;
    w.say(c, &history("a", json!({})));
    w.cut(c);
    let next = w.connect(0);
    w.store.readers_hang = false;
    w.settle();
    assert!(w.take(next).is_empty());
}

#[test]
fn history_needs_its_right_and_a_namespace_that_keeps_it() {
    let off = |pattern: &str, history, persist| Namespace {
        pattern: pattern.into(),
        history,
        persist,
        ..Namespace::default()
    };
    let namespaces = vec![off("off", false, true), off("unstored", true, false)];
    let options = Options {
        hello: false,
        namespaces: Namespaces::new(namespaces).unwrap(),
        ..Options::default()
    };
    let mut w = World::with(1, options, Chaos::default());
    let c = w.connect(0);
    let narrow = w.connect_with(0, &format!("key={NARROW_KEY}"));
    w.say(c, &history("off", json!({})));
    w.say(c, &history("unstored", json!({})));
    w.say(c, &history("bad name", json!({})));
    let expected = [
        "error 40011 off",
        "error 40011 unstored",
        "error 40009 bad name",
    ];
    assert_eq!(w.take(c), expected);
    w.say(narrow, &history("a", json!({})));
    w.say(narrow, &history("open:a", json!({})));
    assert_eq!(w.take(narrow), ["error 40300 a", "history open:a "]);
    // A namespace that stores nothing acknowledges as ephemeral.
    w.say(
        c,
        &json!({"action": "publish", "channel": "unstored", "id": "x", "data": 1}),
    );
    assert_eq!(w.take(c), ["ack x unstored#-"]);
}

#[test]
fn pages_stay_below_a_megabyte_in_every_shape() {
    let mut w = World::new(1);
    fill(&mut w, "a", 40, &"x".repeat(60_000));
    for (shape, messages) in [("", 6), ("&shape=standard", 13), ("&shape=flat", 13)] {
        let c = w.connect_with(0, &format!("key={SERVER_KEY}{shape}"));
        w.say(c, &history("a", json!({"limit": 1000})));
        let frame = &w.clients[c].frames[0];
        assert!(frame.to_string().len() < 900 * 1024);
        let line = w.take(c).remove(0);
        assert_eq!(line.split(',').count(), messages, "{shape}");
        assert!(line.ends_with(" more"));
    }
}
