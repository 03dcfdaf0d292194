//! What a presence member costs in memory: bytes that are allocated for 50,000 of them, over those
//! for the same connections without membership.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

mod support;

use std::alloc::System;

use shardwire_proto::ids::ConnId;
use shardwire_proto::shard::{Handshake, Options, Output};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use support::{Chaos, SERVER_KEY, World};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MEMBERS: usize = 50_000;
/// Bytes per member, above its state.
const BYTES_MAX: usize = 240;
const STATE: &str = r#"{"status":"online","cursor":{"x":120,"y":340}}"#;

fn live() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// The driver's part, for clients that read at once.
fn turn(w: &mut World) {
    let now = w.now();
    loop {
        w.shards[0].finish_turn(now);
        let list = w.shards[0].take_dirty();
        for slot in &list {
            if let Some(flush) = w.shards[0].flush(*slot) {
                flush.outbox.advance(flush.outbox.bytes());
            }
        }
        let was_idle = list.is_empty();
        w.shards[0].reuse_dirty(list);
        if let Some(output) = w.shards[0].take_output() {
            assert!(!matches!(output, Output::Close { .. }), "{output:?}");
        }
        if was_idle && !w.shards[0].turn_due() {
            return;
        }
    }
}

/// Seconds go by: what is remembered for a while is forgotten.
fn pass(w: &mut World, seconds: u64) {
    for _ in 0..seconds {
        w.now_us += 1_000_000;
        let now = w.now();
        w.shards[0].tick(now);
        turn(w);
    }
}

fn open(w: &mut World, number: usize) -> ConnId {
    let now = w.now();
    let handshake = Handshake {
        target: &format!("/?key={SERVER_KEY}&clientId=member-{number:06}"),
        ..Handshake::default()
    };
    let granted = w.shards[0].authorize(handshake, [0; 16], now).unwrap();
    w.shards[0].open(granted, b"accept", now)
}

#[test]
fn a_member_costs_little_above_its_state() {
    let mut options = Options {
        hello: false,
        self_asserted_ids: true,
        ..Options::default()
    };
    options.limits.presence_members_max = MEMBERS;
    // What is measured are members, not connections that are pinged or given up.
    options.limits.heartbeat_ms = 3_600_000;
    options.limits.liveness_ms = 10_000;
    let mut w = World::with(1, options, Chaos::default());
    let conns: Vec<ConnId> = (0..MEMBERS).map(|n| open(&mut w, n)).collect();
    turn(&mut w);
    pass(&mut w, 60);
    let before = live();
    let message = format!(r#"{{"action":"presence.enter","channel":"room","data":{STATE}}}"#);
    for conn in &conns {
        let now = w.now();
        w.shards[0].handle_message(*conn, &message, now);
        turn(&mut w);
    }
    pass(&mut w, 60);
    let bytes = live().saturating_sub(before) / MEMBERS;
    println!(
        "{bytes} bytes per member, {} of them its state",
        STATE.len()
    );
    let now = w.now();
    let stats = {
        use shardwire_proto::ids::RequestId;
        use shardwire_proto::msg::{Answer, Query};
        w.shards[0].ask("app", RequestId(0), Query::Stats, now);
        match w.shards[0].take_output() {
            Some(Output::Answer {
                answer: Answer::Stats(stats),
                ..
            }) => stats,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((stats.members, stats.connections), (MEMBERS, MEMBERS));
    assert!(bytes > STATE.len(), "the state is among them");
    assert!(bytes <= STATE.len() + BYTES_MAX, "{bytes}");
}
