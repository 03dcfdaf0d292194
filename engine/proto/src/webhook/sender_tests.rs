//! Tests of [`super::sender`].

use super::sender::*;
use super::{Batch, RETRY_MS};

fn batch(max_events: usize, max_ms: u64) -> Batch {
    Batch { max_events, max_ms }
}

fn fresh(concurrency: usize) -> Sender {
    Sender::new(
        &Cursor::default(),
        batch(3, 100),
        concurrency,
        RETRY_MS.into(),
    )
}

fn event(number: u64, key: u64, at_ms: u64) -> Queued {
    Queued {
        number,
        key,
        at_ms,
        text: format!("{{\"n\":{number}}}").into(),
    }
}

fn push(sender: &mut Sender, keys: &[u64], at_ms: u64) {
    for key in keys {
        let number = sender.take_number();
        sender.push(event(number, *key, at_ms));
    }
}

fn start(sender: &mut Sender, now_ms: u64) -> Option<Vec<u64>> {
    if sender.form("wh", now_ms, false) {
        sender.mark_kept();
    }
    let attempt = sender.start(now_ms)?;
    Some(attempt.events.iter().map(|e| e.number).collect())
}

const FAILED: Outcome = Outcome::Failed {
    retry_after_ms: None,
};

#[test]
fn events_wait_for_others_of_their_delivery_but_not_long() {
    let mut sender = fresh(1);
    push(&mut sender, &[0, 0], 0);
    assert_eq!(start(&mut sender, 99), None);
    assert_eq!(sender.next_due_ms(), Some(100));
    assert_eq!(start(&mut sender, 100), Some(vec![1, 2]));
    push(&mut sender, &[0, 0, 0, 0], 100);
    // The one before is under way.
    assert_eq!(start(&mut sender, 500), None);
    assert_eq!(
        sender.finish(0, Outcome::Delivered, 0.5, 500),
        Some(Step::Delivered)
    );
    assert_eq!(start(&mut sender, 101), Some(vec![3, 4, 5]));
}

#[test]
fn a_delivery_is_not_let_out_before_it_is_kept() {
    let mut sender = fresh(1);
    push(&mut sender, &[0], 0);
    assert!(sender.form("wh", 100, false));
    assert_eq!(sender.start(100), None);
    assert_eq!(sender.cursor().lanes[0].delivery.as_ref().unwrap().last, 1);
    sender.mark_kept();
    assert!(sender.start(100).is_some());
}

#[test]
fn a_failed_delivery_comes_again_with_its_id_and_before_its_successors() {
    let mut sender = fresh(1);
    push(&mut sender, &[0, 0, 0, 0], 0);
    assert_eq!(start(&mut sender, 0), Some(vec![1, 2, 3]));
    let Some(Step::Again { at_ms }) = sender.finish(0, FAILED, 0.5, 0) else {
        panic!();
    };
    assert_eq!(at_ms, RETRY_MS[0]);
    assert_eq!(start(&mut sender, 999), None);
    sender.form("wh", 1000, false);
    let again = sender.start(1000).unwrap();
    assert_eq!((&*again.id, again.number), ("wh-1", 2));
    assert_eq!(again.events.len(), 3);
}

#[test]
fn after_the_last_retry_it_is_dead_and_the_next_has_its_turn() {
    let mut sender = fresh(1);
    push(&mut sender, &[0, 0, 0, 0], 0);
    let mut now_ms = 0;
    let mut attempts = 0;
    let dead = loop {
        now_ms += 10_000_000;
        assert_eq!(start(&mut sender, now_ms), Some(vec![1, 2, 3]));
        attempts += 1;
        match sender.finish(0, FAILED, 0.0, now_ms).unwrap() {
            Step::Dead { id, events, .. } => break (id, events.len()),
            step => assert!(matches!(step, Step::Again { .. })),
        }
    };
    assert_eq!(attempts, RETRY_MS.len() + 1);
    assert_eq!(dead, ("wh-1".to_owned(), 3));
    assert_eq!(start(&mut sender, now_ms + 10_000_000), Some(vec![4]));
}

#[test]
fn lanes_go_on_without_each_other_until_the_circuit_opens() {
    let mut sender = fresh(2);
    push(&mut sender, &[0, 1], 0);
    let first = start(&mut sender, 100).unwrap();
    let second = start(&mut sender, 100).unwrap();
    assert_eq!((first, second), (vec![1], vec![2]));
    sender.finish(0, FAILED, 0.5, 100);
    sender.finish(1, FAILED, 0.5, 100);
    // One at a time while it fails.
    assert!(start(&mut sender, 5_000).is_some());
    assert_eq!(start(&mut sender, 5_000), None);
    for _ in 0..3 {
        sender.finish(0, FAILED, 0.5, 5_000);
        sender.hurry(5_000);
        assert!(start(&mut sender, 5_000).is_some());
    }
    sender.finish(0, FAILED, 0.5, 5_000);
    assert!(sender.is_open(5_000));
    sender.finish(0, Outcome::Delivered, 0.5, 5_000);
}

#[test]
fn a_receiver_can_ask_for_a_pause() {
    let mut sender = fresh(1);
    push(&mut sender, &[0], 0);
    start(&mut sender, 100).unwrap();
    let asks = Outcome::Failed {
        retry_after_ms: Some(7_000),
    };
    assert_eq!(
        sender.finish(0, asks, 0.5, 100),
        Some(Step::Again { at_ms: 7_100 })
    );
}

#[test]
fn a_successor_goes_on_where_the_last_process_was() {
    let mut sender = fresh(1);
    push(&mut sender, &[0, 0, 0, 0, 0], 0);
    start(&mut sender, 0).unwrap();
    let cursor = sender.cursor();
    let mut next = Sender::new(&cursor, batch(3, 100), 1, RETRY_MS.into());
    assert_eq!(next.missing_from(), Some(1));
    next.refill((1..=5).map(|n| event(n, 0, 0)), None);
    assert_eq!(start(&mut next, 0), Some(vec![1, 2, 3]));
    next.finish(0, Outcome::Delivered, 0.5, 0);
    assert_eq!(start(&mut next, 100), Some(vec![4, 5]));
    assert_eq!(next.take_number(), 6);
}

#[test]
fn what_is_too_much_for_memory_is_asked_for_again() {
    let mut sender = Sender::new(&Cursor::default(), batch(100, 0), 1, RETRY_MS.into());
    let most = HELD_EVENTS_MAX as u64 + 10;
    for _ in 0..most {
        push(&mut sender, &[0], 0);
    }
    let mut got = 0;
    while let Some(numbers) = start(&mut sender, 1) {
        assert_eq!(numbers[0], got + 1);
        got += numbers.len() as u64;
        sender.finish(0, Outcome::Delivered, 0.5, 1);
        if let Some(from) = sender.missing_from() {
            sender.refill((from..=most).map(|n| event(n, 0, 0)), None);
        }
    }
    assert_eq!(got, most);
}

#[test]
fn what_is_kept_no_longer_is_not_waited_for() {
    let mut sender = fresh(1);
    push(&mut sender, &[0, 0, 0], 0);
    start(&mut sender, 0).unwrap();
    let mut next = Sender::new(&sender.cursor(), batch(3, 100), 1, RETRY_MS.into());
    next.refill([], None);
    assert_eq!(next.next_due_ms(), None);
    push(&mut next, &[0], 0);
    assert_eq!(start(&mut next, 100), Some(vec![4]));
}
