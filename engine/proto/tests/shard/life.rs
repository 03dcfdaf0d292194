//! Heartbeats, silence, malformed messages, and questions that concern every shard.

use serde_json::json;
use shardwire_proto::error::CloseCause;
use shardwire_proto::ids::RequestId;
use shardwire_proto::msg::{Answer, Occupants, Query};
use shardwire_proto::shard::Output;

use crate::support::{SERVER_KEY, World};

#[test]
fn outbound_silence_is_broken_by_a_heartbeat() {
    let mut w = World::new(1);
    let c = w.connect(0);
    w.advance_us(24_000_000);
    assert!(w.take(c).is_empty());
    w.advance_us(2_000_000);
    assert_eq!(w.take(c), ["pong"]);
    w.advance_us(100_000_000);
    assert_eq!(w.take(c), ["pong"; 4]);
    assert_eq!(w.clients[c].ended, None, "it has never shown life");
}

#[test]
fn a_client_that_pinged_and_falls_silent_is_ended() {
    let mut w = World::new(1);
    let c = w.connect(0);
    w.say(c, &json!({"action": "ping"}));
    assert_eq!(w.take(c), ["pong"]);
    assert!(w.clients[c].frames[0]["timestamp"].is_u64());
    w.advance_us(80_000_000);
    w.with_conn(c, |shard, conn, now| shard.handle_ping(conn, b"hi", now));
    assert_eq!(w.clients[c].control, ["pong hi"]);
    w.advance_us(80_000_000);
    assert_eq!(w.clients[c].ended, None);
    w.advance_us(11_000_000);
    assert_eq!(w.clients[c].ended, Some(CloseCause::IdleTimeout));
    assert_eq!(w.clients[c].control.len(), 1, "no Close frame");
}

#[test]
fn malformed_messages_are_answered_and_end_the_connection_when_many() {
    let mut w = World::new(1);
    let c = w.connect(0);
    for (text, answer) in [
        ("nonsense", "error 40001"),
        ("[1]", "error 40001"),
        (r#"{"action":"dance","channel":"a"}"#, "error 40002 a"),
        (r#"{"action":"subscribe"}"#, "error 40003"),
        (
            r#"{"action":"subscribe","channel":"a b"}"#,
            "error 40009 a b",
        ),
    ] {
        w.send_text(c, text);
        assert_eq!(w.take(c), [answer], "{text}");
    }
    w.advance_us(61_000_000);
    for _ in 0..20 {
        w.send_text(c, "nonsense");
    }
    assert_eq!(w.clients[c].ended, None);
    w.send_text(c, "nonsense");
    assert_eq!(w.clients[c].ended, Some(CloseCause::Violation));
    assert_eq!(w.clients[c].control, ["close Some(4000)"]);
}

#[test]
fn every_shard_answers_a_question_for_its_own() {
    let mut w = World::new(3);
    w.options.self_asserted_ids = true;
    w.restart();
    let conns: Vec<usize> = (0..3)
        .map(|s| w.connect_with(s, &format!("key={SERVER_KEY}&clientId=me")))
        .collect();
    for c in &conns {
        w.say(*c, &json!({"action": "subscribe", "channel": "room:a"}));
        w.say(
            *c,
            &json!({"action": "publish", "channel": "room:a", "id": c.to_string(), "data": 1}),
        );
    }
    for c in &conns {
        w.take(*c);
    }
    w.say(
        conns[0],
        &json!({"action": "subscribe", "channel": "room:b"}),
    );
    w.take(conns[0]);
    let ask = |w: &mut World, query: Query| {
        let now = w.now();
        assert_eq!(w.shards[1].ask("app", RequestId(7), query, now), 3);
        w.carry(1);
        w.settle();
        let mut answers: Vec<(u16, Answer)> = Vec::new();
        for (shard, output) in w.outputs.drain(..) {
            match output {
                Output::Answer {
                    from,
                    request: RequestId(7),
                    answer,
                } if shard == 1 => answers.push((from.0, answer)),
                other => panic!("{other:?}"),
            }
        }
        answers.sort_by_key(|(from, _)| *from);
        answers.into_iter().map(|(_, a)| a).collect::<Vec<_>>()
    };
    let channels = ask(
        &mut w,
        Query::Channels {
            prefix: "room:".into(),
            after: None,
            limit: 10,
        },
    );
    let lens: Vec<usize> = channels
        .iter()
        .map(|a| match a {
            Answer::Channels(list) => list.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lens, [2, 1, 1]);
    let channel = ask(
        &mut w,
        Query::Channel {
            name: "room:a".into(),
        },
    );
    let last: Vec<u64> = channel
        .iter()
        .filter_map(|a| match a {
            Answer::Channel {
                occupants: Occupants { subscribers: 1, .. },
                last_sequence,
            } => *last_sequence,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(last, [3]);
    ask(
        &mut w,
        Query::Unsubscribe {
            client_id: "me".into(),
            channel: "room:a".into(),
        },
    );
    for c in &conns {
        assert_eq!(w.take(*c), ["unsubscribed room:a", "error 40300 room:a"]);
    }
    ask(
        &mut w,
        Query::Disconnect {
            client_id: "me".into(),
            code: 4010,
            reason: String::new(),
        },
    );
    for c in &conns {
        assert_eq!(w.clients[*c].control, ["close Some(4010)"]);
    }
}
