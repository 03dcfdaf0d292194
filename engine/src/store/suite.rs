//! What every storage of messages does, whatever it keeps them in: each test is run for each of them.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use shardwire_proto::record::{
    Change, Loaded, Page, Question, Record, Retention, StoreAnswer, StoreOp, StoreRead,
    StoredChannel, Sync, Ticket,
};

use super::{Applied, Backend, BackendError, Role, Storage};

pub(super) const FOREVER: Retention = Retention {
    messages_max: u64::MAX,
    age_ms: u64::MAX,
    sync: Sync::Process,
};

/// A storage of a test's own; it goes when this is dropped.
pub(super) trait Place: Sized {
    type Storage: Storage;
    /// Channels in a test of many.
    const MANY: u32;
    /// Random lives of a channel to be compared with the model.
    const LIVES: u32;

    /// Whether there can be one here.
    fn is_there() -> bool {
        true
    }

    fn new() -> Self;

    /// The same one each time, as after a start of the process.
    fn storage(&self) -> Self::Storage;

    /// Messages that are there, visible or not.
    fn rows(&self) -> u64;

    /// Deletes all that may be deleted.
    fn expire(&self, writer: &mut <Self::Storage as Storage>::Backend, now_ms: u64);
}

/// Makes a test of each function for a place.
macro_rules! for_place {
    ($place:ty: $($test:ident),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                if <$place as $crate::store::suite::Place>::is_there() {
                    $crate::store::suite::$test::<$place>();
                }
            }
        )*
    };
}
/// All tests of backends.
macro_rules! backend_suite {
    ($place:ty) => {
        $crate::store::suite::for_place!($place:
            what_was_committed_is_there_after_reopening,
            a_batch_that_contradicts_what_is_stored_leaves_nothing,
            readers_see_retention_exactly_before_anything_is_deleted,
            expiry_deletes_what_is_old_and_moves_what_is_gone,
            clearing_keeps_the_numbering_and_counts_what_readers_had,
            the_bytes_of_a_load_are_bounded,
            times_that_never_come_are_of_no_message,
            many_channels,
            channels_that_have_changed_are_found_in_order,
            answers_are_those_of_a_naive_model,
        );
    };
}
pub(super) use {backend_suite, for_place};

pub(super) type BackendOf<P> = <<P as Place>::Storage as Storage>::Backend;

/// A writer and a reader of a place.
pub(super) struct Db<P: Place> {
    pub(super) writer: BackendOf<P>,
    pub(super) reader: BackendOf<P>,
    pub(super) place: P,
}

impl<P: Place> Db<P> {
    pub(super) fn new() -> Self {
        Self::at(P::new())
    }

    pub(super) fn at(place: P) -> Self {
        let storage = place.storage();
        Self {
            writer: storage.open(Role::Writer).unwrap(),
            reader: storage.open(Role::Reader).unwrap(),
            place,
        }
    }

    pub(super) fn reopen(self) -> Self {
        let Self {
            place,
            writer,
            reader,
        } = self;
        drop((writer, reader));
        Self::at(place)
    }

    pub(super) fn apply(&mut self, ops: &[StoreOp]) -> Result<Applied, BackendError> {
        self.writer.apply(ops, 0)
    }

    pub(super) fn ask(&mut self, channel: &str, question: Question, now_ms: u64) -> StoreAnswer {
        let read = StoreRead {
            ticket: Ticket(0),
            app: "app".into(),
            channel: channel.into(),
            question,
        };
        self.reader.read(&read, now_ms).unwrap()
    }

    pub(super) fn page(&mut self, channel: &str, page: Page, now_ms: u64) -> (Vec<u64>, bool) {
        match self.ask(channel, Question::Page(page), now_ms) {
            StoreAnswer::Page { messages, has_more } => {
                (messages.iter().map(|m| m.sequence).collect(), has_more)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn load(&mut self, channel: &str, now_ms: u64) -> Option<Loaded> {
        let question = Question::Load {
            messages_max: 1000,
            bytes_max: 1 << 20,
            ids_after_ms: 0,
        };
        match self.ask(channel, question, now_ms) {
            StoreAnswer::Loaded(loaded) => loaded.map(|loaded| *loaded),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.place.rows()
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        self.place.expire(&mut self.writer, now_ms);
    }
}

pub(super) fn record(seq: u64, ts: u64) -> Arc<Record> {
    Arc::new(Record {
        sequence: seq,
        timestamp: ts,
        id: format!("id-{seq}").into(),
        publisher: "anon".into(),
        data: "\"x\"".into(),
    })
}

pub(super) fn stored(name: &str) -> Arc<StoredChannel> {
    Arc::new(StoredChannel {
        app: "app".into(),
        name: name.into(),
        epoch: "epoch".into(),
    })
}

pub(super) fn op(name: &str, change: Change) -> StoreOp {
    StoreOp {
        ticket: Ticket(0),
        generation: 0,
        channel: stored(name),
        change,
    }
}

pub(super) fn append(name: &str, seq: u64, ts: u64, retention: Retention) -> StoreOp {
    let record = record(seq, ts);
    op(name, Change::Append { record, retention })
}

/// Appends messages `seqs`, each at the time of its number.
pub(super) fn appends(
    name: &str,
    seqs: std::ops::RangeInclusive<u64>,
    retention: Retention,
) -> Vec<StoreOp> {
    seqs.map(|seq| append(name, seq, seq, retention)).collect()
}

pub(super) fn all(limit: usize) -> Page {
    Page {
        forward: true,
        limit,
        bytes_max: usize::MAX,
        ..Page::default()
    }
}

pub(super) fn what_was_committed_is_there_after_reopening<P: Place>() {
    let mut db = Db::<P>::new();
    db.apply(&appends("a", 1..=5, FOREVER)).unwrap();
    db.apply(&[append("b", 1, 9, FOREVER)]).unwrap();
    let before = (db.load("a", 10), db.load("b", 10));
    let mut db = db.reopen();
    assert_eq!((db.load("a", 10), db.load("b", 10)), before);
    let a = before.0.unwrap();
    assert_eq!(
        (a.last_sequence, a.last_timestamp, &*a.epoch),
        (5, 5, "epoch")
    );
    assert_eq!(
        a.newest.iter().map(|m| m.sequence).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(a.newest[1], record(2, 2));
    assert_eq!(a.recent_ids[4], ("id-5".into(), 5, 5));
    db.apply(&appends("a", 6..=6, FOREVER)).unwrap();
    assert_eq!(db.load("a", 10).unwrap().last_sequence, 6);
    assert_eq!(db.load("c", 10), None);
}

pub(super) fn a_batch_that_contradicts_what_is_stored_leaves_nothing<P: Place>() {
    let mut db = Db::<P>::new();
    db.apply(&[append("a", 1, 50, FOREVER)]).unwrap();
    let gap = append("a", 3, 60, FOREVER);
    let again = append("a", 1, 60, FOREVER);
    let earlier = append("a", 2, 49, FOREVER);
    let mut other_numbering = append("a", 2, 60, FOREVER);
    other_numbering.channel = Arc::new(StoredChannel {
        epoch: "other".into(),
        ..(*other_numbering.channel).clone()
    });
    let not_first = append("fresh", 2, 60, FOREVER);
    for wrong in [gap, again, earlier, other_numbering, not_first] {
        let told = db.apply(&[append("b", 1, 50, FOREVER), wrong]);
        assert!(matches!(told, Err(BackendError::Order(_))), "{told:?}");
        assert_eq!((db.load("b", 99), db.load("fresh", 99)), (None, None));
    }
    db.apply(&[append("a", 2, 50, FOREVER), append("b", 1, 50, FOREVER)])
        .unwrap();
    assert_eq!(db.load("a", 99).unwrap().last_sequence, 2);
}

pub(super) fn readers_see_retention_exactly_before_anything_is_deleted<P: Place>() {
    let mut db = Db::<P>::new();
    let retention = Retention {
        messages_max: 8,
        age_ms: 10,
        ..FOREVER
    };
    db.apply(&appends("a", 1..=10, retention)).unwrap();
    assert_eq!(db.rows(), 10);
    let loaded = db.load("a", 11).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), (2, 2));
    assert_eq!(db.page("a", all(3), 11), (vec![3, 4, 5], true));
    // At 15 what is from 5 and before is 10 old.
    let loaded = db.load("a", 15).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), (5, 5));
    assert_eq!(db.page("a", all(9), 15), (vec![6, 7, 8, 9, 10], false));
    let count = |db: &mut Db<P>, timestamp| db.ask("a", Question::CountAt { timestamp }, 15);
    assert!(matches!(count(&mut db, 5), StoreAnswer::Count(0)));
    assert!(matches!(count(&mut db, 6), StoreAnswer::Count(1)));
    // Their ids are still known.
    assert_eq!(loaded.recent_ids.len(), 10);
    let loaded = db.load("a", 20).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.newest.len()), (10, 0));
    assert_eq!((loaded.last_sequence, loaded.last_timestamp), (10, 10));
}

pub(super) fn expiry_deletes_what_is_old_and_moves_what_is_gone<P: Place>() {
    let mut db = Db::<P>::new();
    let retention = Retention {
        age_ms: 100,
        ..FOREVER
    };
    for name in ["a", "b", "c"] {
        db.apply(&appends(name, 1..=50, retention)).unwrap();
    }
    db.apply(&appends("d", 1..=50, FOREVER)).unwrap();
    db.expire(100);
    assert_eq!(db.rows(), 200);
    db.expire(120);
    assert_eq!(db.rows(), 140);
    let loaded = db.load("b", 120).unwrap();
    assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), (20, 20));
    // The writer knows what expiry has done.
    db.apply(&[append("b", 51, 120, retention)]).unwrap();
    assert_eq!(db.load("b", 120).unwrap().gone_sequence, 20);
    db.expire(10_000);
    assert_eq!(db.rows(), 50);
    let mut db = db.reopen();
    let loaded = db.load("a", 10_000).unwrap();
    assert_eq!(
        (
            loaded.last_sequence,
            loaded.gone_sequence,
            loaded.gone_timestamp
        ),
        (50, 50, 50)
    );
    db.apply(&[append("a", 51, 10_000, retention)]).unwrap();
    assert_eq!(db.page("a", all(9), 10_000), (vec![51], false));
}

pub(super) fn clearing_keeps_the_numbering_and_counts_what_readers_had<P: Place>() {
    let mut db = Db::<P>::new();
    let retention = Retention {
        messages_max: 8,
        ..FOREVER
    };
    db.apply(&appends("a", 1..=10, retention)).unwrap();
    let done = db.apply(&[
        append("b", 1, 1, FOREVER),
        op("a", Change::Clear),
        append("a", 11, 11, retention),
        op("unknown", Change::Clear),
        op("a", Change::Clear),
    ]);
    assert_eq!(done.unwrap().removed, [(1, 8), (3, 0), (4, 1)]);
    let loaded = db.load("a", 20).unwrap();
    assert_eq!(
        (
            loaded.last_sequence,
            loaded.gone_sequence,
            loaded.gone_timestamp
        ),
        (11, 11, 11)
    );
    assert!(loaded.newest.is_empty() && loaded.recent_ids.is_empty());
    db.apply(&[append("a", 12, 12, retention)]).unwrap();
    assert_eq!(db.page("a", all(9), 20), (vec![12], false));
    db.expire(20);
    assert_eq!((db.rows(), db.load("unknown", 20)), (2, None));
}

pub(super) fn the_bytes_of_a_load_are_bounded<P: Place>() {
    let mut db = Db::<P>::new();
    db.apply(&appends("a", 1..=10, FOREVER)).unwrap();
    let weight = record(7, 7).weight();
    let question = |messages_max, bytes_max| Question::Load {
        messages_max,
        bytes_max,
        ids_after_ms: 9,
    };
    let mut newest = |question| match db.ask("a", question, 10) {
        StoreAnswer::Loaded(Some(loaded)) => (
            loaded.newest.iter().map(|m| m.sequence).collect::<Vec<_>>(),
            loaded.recent_ids.len(),
        ),
        other => panic!("{other:?}"),
    };
    assert_eq!(newest(question(3, usize::MAX)), (vec![8, 9, 10], 2));
    // The last one's id is a byte longer.
    assert_eq!(newest(question(9, 2 * weight + 1)), (vec![9, 10], 2));
    assert_eq!(newest(question(9, 2 * weight)), (vec![10], 2));
    assert_eq!(newest(question(9, 0)), (vec![], 2));
}

pub(super) fn times_that_never_come_are_of_no_message<P: Place>() {
    let mut db = Db::<P>::new();
    db.apply(&appends("a", 1..=10, FOREVER)).unwrap();
    let question = Question::Load {
        messages_max: 2,
        bytes_max: usize::MAX,
        ids_after_ms: u64::MAX,
    };
    match db.ask("a", question, 10) {
        StoreAnswer::Loaded(Some(loaded)) => {
            let newest: Vec<_> = loaded.newest.iter().map(|m| m.sequence).collect();
            assert_eq!((newest, loaded.recent_ids.len()), (vec![9, 10], 0));
        }
        other => panic!("{other:?}"),
    }
    let mut page = all(9);
    page.after_ms = Some(u64::MAX);
    assert_eq!(db.page("a", page, 10), (vec![], false));
    let mut page = all(20);
    page.before_ms = Some(u64::MAX);
    assert_eq!(db.page("a", page, 10).0.len(), 10);
    let timestamp = u64::MAX;
    let count = db.ask("a", Question::CountAt { timestamp }, 10);
    assert!(matches!(count, StoreAnswer::Count(0)), "{count:?}");
}

pub(super) fn channels_that_have_changed_are_found_in_order<P: Place>() {
    let mut db = Db::<P>::new();
    for (name, ts) in [("d", 5), ("b", 10), ("a", 9), ("c", 20), ("e", 11)] {
        db.apply(&[append(name, 1, ts, FOREVER)]).unwrap();
    }
    let mut found = |after: &str, timestamp, limit| {
        let question = Question::ChangedSince { timestamp, limit };
        match db.ask(after, question, 30) {
            StoreAnswer::Channels(found) => {
                assert!(found.iter().all(|(app, _)| &**app == "app"));
                let names = found.iter().map(|(_, name)| name.to_string());
                names.collect::<Vec<_>>().concat()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(found("", 10, 9), "bce");
    assert_eq!(found("", 10, 2), "bc");
    assert_eq!(found("c", 10, 2), "e");
    assert_eq!(found("", 21, 9), "");
}

pub(super) fn many_channels<P: Place>() {
    let mut db = Db::<P>::new();
    let retention = Retention {
        age_ms: 1000,
        ..FOREVER
    };
    for round in [1, 2] {
        let channels: Vec<_> = (0..P::MANY).collect();
        for some in channels.chunks(4096) {
            let ops: Vec<_> = some
                .iter()
                .map(|n| append(&format!("room:{n}"), round, round, retention))
                .collect();
            db.apply(&ops).unwrap();
        }
    }
    for n in (0..P::MANY).step_by(997) {
        let loaded = db.load(&format!("room:{n}"), 500).unwrap();
        assert_eq!((loaded.last_sequence, loaded.newest.len()), (2, 2));
    }
    db.expire(5000);
    assert_eq!(db.rows(), 0);
}

/// Steps of a random life of one channel.
#[derive(Debug, Clone)]
enum Step {
    /// Messages, each this much later than the one before, with a payload of this length.
    Append(Vec<(u64, usize)>),
    Clear,
    Wait(u64),
    Expire,
    Reopen,
    Ask(Page),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bound = || prop::option::weighted(0.3, 0..60u64);
    let page = (
        [bound(), bound(), bound(), bound()],
        any::<bool>(),
        (0..8usize, 0..4usize),
        prop_oneof![3 => Just(usize::MAX), 1 => 0..900usize],
    );
    let page = page.prop_map(|(bounds, forward, (limit, ties_max), bytes_max)| Page {
        after_sequence: bounds[0],
        before_sequence: bounds[1],
        after_ms: bounds[2],
        before_ms: bounds[3],
        forward,
        limit,
        ties_max,
        bytes_max,
    });
    let messages =
        prop::collection::vec((prop_oneof![2 => Just(0), 1 => 1..4u64], 0..60usize), 1..9);
    let step = prop_oneof![
        4 => messages.prop_map(Step::Append),
        1 => Just(Step::Clear),
        2 => (0..10u64).prop_map(Step::Wait),
        2 => Just(Step::Expire),
        1 => Just(Step::Reopen),
        6 => page.prop_map(Step::Ask),
    ];
    prop::collection::vec(step, 1..40)
}

/// Everything ever stored, and how much of it was cleared.
struct Model {
    messages: Vec<Arc<Record>>,
    cleared: usize,
    retention: Retention,
}

impl Model {
    /// What a reader may see, oldest first.
    fn visible(&self, now: u64) -> &[Arc<Record>] {
        let count = self.messages.len();
        let by_count = count.saturating_sub(self.retention.messages_max as usize);
        let is_old = |message: &&Arc<Record>| message.timestamp + self.retention.age_ms <= now;
        let by_age = self.messages.iter().filter(is_old).count();
        &self.messages[self.cleared.max(by_count).max(by_age)..]
    }

    /// By trying every length that a page could have.
    fn page(&self, page: &Page, now: u64) -> (Vec<u64>, bool) {
        let mut matching: Vec<_> = self.visible(now).to_vec();
        matching.retain(|m| {
            page.after_sequence.is_none_or(|after| m.sequence > after)
                && page
                    .before_sequence
                    .is_none_or(|before| m.sequence < before)
                && page.after_ms.is_none_or(|after| m.timestamp > after)
                && page.before_ms.is_none_or(|before| m.timestamp < before)
        });
        if !page.forward {
            matching.reverse();
        }
        let limit = page.limit.max(1);
        let splits_run =
            |n: usize| n < matching.len() && matching[n - 1].timestamp == matching[n].timestamp;
        let allowed = |n: &usize| {
            let bytes: usize = matching[..*n].iter().map(|m| m.weight()).sum();
            let ties = (limit..*n).all(|i| matching[i].timestamp == matching[limit - 1].timestamp);
            *n == 1 || (bytes <= page.bytes_max && *n <= limit + page.ties_max && ties)
        };
        let longest = (1..=matching.len()).rev().find(allowed).unwrap_or(0);
        let whole = (1..=longest)
            .rev()
            .find(|n| !splits_run(*n))
            .unwrap_or(longest);
        let given = matching[..whole].iter().map(|m| m.sequence).collect();
        (given, whole < matching.len())
    }
}

pub(super) fn answers_are_those_of_a_naive_model<P: Place>() {
    let lives = (
        steps(),
        prop_oneof![1..6u64, Just(20), Just(u64::from(u32::MAX))],
        prop_oneof![5..30u64, Just(1 << 40)],
    );
    let config = ProptestConfig {
        cases: P::LIVES,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&lives, |(steps, messages_max, age_ms)| {
        let retention = Retention {
            messages_max,
            age_ms,
            sync: Sync::Process,
        };
        let mut model = Model {
            messages: Vec::new(),
            cleared: 0,
            retention,
        };
        let mut db = Db::<P>::new();
        let mut now = 1;
        for step in steps {
            match step {
                Step::Append(messages) => {
                    let mut ops = Vec::new();
                    for (later, length) in messages {
                        now += later;
                        let seq = model.messages.len() as u64 + 1;
                        let data = "y".repeat(length).into();
                        let record = Arc::new(Record {
                            data,
                            ..(*record(seq, now)).clone()
                        });
                        model.messages.push(record.clone());
                        ops.push(op("a", Change::Append { record, retention }));
                    }
                    db.writer.apply(&ops, now).unwrap();
                }
                Step::Clear => {
                    let removed = db
                        .writer
                        .apply(&[op("a", Change::Clear)], now)
                        .unwrap()
                        .removed;
                    prop_assert_eq!(removed, [(0, model.visible(now).len() as u64)]);
                    model.cleared = model.messages.len();
                }
                Step::Wait(ms) => now += ms,
                Step::Expire => db.expire(now),
                Step::Reopen => db = db.reopen(),
                Step::Ask(page) => prop_assert_eq!(db.page("a", page, now), model.page(&page, now)),
            }
            check_state(&mut db, &model, now)?;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn check_state<P: Place>(db: &mut Db<P>, model: &Model, now: u64) -> Result<(), TestCaseError> {
    let Some(loaded) = db.load("a", now) else {
        prop_assert!(model.messages.is_empty());
        return Ok(());
    };
    let visible = model.visible(now);
    let gone = model.messages.len() - visible.len();
    let gone = if gone == 0 {
        (0, 0)
    } else {
        (gone as u64, model.messages[gone - 1].timestamp)
    };
    prop_assert_eq!((loaded.gone_sequence, loaded.gone_timestamp), gone);
    prop_assert_eq!(loaded.last_sequence, model.messages.len() as u64);
    prop_assert_eq!(&loaded.newest, visible);
    let at_now = visible.iter().filter(|m| m.timestamp == now).count() as u64;
    let count = db.ask("a", Question::CountAt { timestamp: now }, now);
    prop_assert!(
        matches!(count, StoreAnswer::Count(n) if n == at_now),
        "{:?} {}",
        count,
        at_now
    );
    Ok(())
}
