//! The threads: what is told to shards, in good times and in bad.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::{
    Change, Page, Question, Record, Retention, StoreAnswer, StoreError, StoreOp, StoreRead,
    StoreReply, StoredChannel, Sync, Ticket,
};

use super::faults::{Faults, Faulty};
use super::mongo::tests::Served;
use super::sqlite::FILE_NAME;
use super::sqlite::tests::Folder;
use super::suite::Place;
use super::*;
use crate::shard::inbox::{self, Inbox};

const PATIENCE: Duration = Duration::from_secs(20);

struct Bench<P: Place> {
    store: StoreHandle,
    faults: Arc<Faults>,
    inboxes: Vec<Inbox<StoreReply>>,
    place: P,
}

impl<P: Place> Bench<P> {
    fn new() -> Self {
        Self::with(&StoreConfig::default(), 64)
    }

    fn with(config: &StoreConfig, inbox_entries: usize) -> Self {
        let place = P::new();
        let faults = Arc::new(Faults::default());
        let storage = Faulty {
            inner: place.storage(),
            faults: faults.clone(),
        };
        let (senders, inboxes) = (0..2).map(|_| inbox::bounded(inbox_entries)).unzip();
        let store = start(storage, config, senders).unwrap();
        Self {
            store,
            faults,
            inboxes,
            place,
        }
    }

    fn submit(&self, shard: u16, ops: Vec<StoreOp>) {
        self.store.submit(ShardId(shard), ops).unwrap();
    }

    fn reply(&self, shard: usize) -> StoreReply {
        block_on(self.inboxes[shard].recv())
    }

    /// The tickets that fail until `up_to` is done.
    fn failed(&self, shard: usize, up_to: u64) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            match self.reply(shard) {
                StoreReply::Done {
                    up_to: done,
                    failed,
                    ..
                } => {
                    all.extend(failed.iter().map(|ticket| ticket.0));
                    if done.0 >= up_to {
                        assert_eq!(done.0, up_to);
                        return all;
                    }
                }
                answer @ StoreReply::Answer { .. } => panic!("{answer:?}"),
            }
        }
    }

    fn read(&self, channel: &str) -> Result<(), StoreError> {
        let page = Page {
            forward: true,
            limit: 1000,
            bytes_max: usize::MAX,
            ..Page::default()
        };
        let read = StoreRead {
            ticket: Ticket(77),
            app: "app".into(),
            channel: channel.into(),
            question: Question::Page(page),
        };
        self.store.read(ShardId(0), read)
    }

    /// Sequences of a channel, through a reader.
    fn sequences(&self, channel: &str) -> Result<Vec<u64>, StoreError> {
        self.read(channel)?;
        match self.reply(0) {
            StoreReply::Answer {
                ticket: Ticket(77),
                answer,
            } => answer.map(|answer| match answer {
                StoreAnswer::Page { messages, .. } => messages.iter().map(|m| m.sequence).collect(),
                other => panic!("{other:?}"),
            }),
            other => panic!("{other:?}"),
        }
    }

    fn wait_until(&self, what: impl Fn(&StoreStats) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !what(&self.store.stats()) {
            assert!(Instant::now() < deadline, "{:?}", self.store.stats());
            std::thread::yield_now();
        }
    }
}

fn append(ticket: u64, generation: u32, channel: &str, sequence: u64) -> StoreOp {
    let record = Arc::new(Record {
        sequence,
        timestamp: 1_000,
        id: format!("{channel}-{sequence}").into(),
        publisher: "anon".into(),
        data: "1".into(),
    });
    let retention = Retention {
        messages_max: u64::MAX,
        age_ms: u64::MAX,
        sync: Sync::Process,
    };
    StoreOp {
        ticket: Ticket(ticket),
        generation,
        channel: Arc::new(StoredChannel {
            app: "app".into(),
            name: channel.into(),
            epoch: "epoch".into(),
        }),
        change: Change::Append { record, retention },
    }
}

fn full() -> BackendError {
    BackendError::Refused("scripted: disk full".to_owned())
}

fn broken() -> BackendError {
    BackendError::Broken("scripted: broken".to_owned())
}

fn an_ack_comes_after_the_commit<P: Place>() {
    let bench = Bench::<P>::new();
    bench.submit(0, vec![append(1, 0, "a", 1), append(2, 0, "b", 1)]);
    assert!(bench.failed(0, 2).is_empty());
    assert_eq!(bench.sequences("a"), Ok(vec![1]));
    bench.submit(0, vec![append(3, 0, "a", 2)]);
    assert!(bench.failed(0, 3).is_empty());
    assert_eq!(bench.sequences("a"), Ok(vec![1, 2]));
    let stats = bench.store.stats();
    assert_eq!((stats.ops, stats.commits, stats.reads), (3, 2, 2));
    assert_eq!((stats.queue_ops, stats.queue_bytes), (0, 0));
    assert_eq!(stats.commit.count(), 2);
    assert!(stats.is_well(now_ms(), 1000));
}

fn what_gathers_during_a_commit_is_one_transaction<P: Place>() {
    let bench = Bench::<P>::new();
    bench.faults.gate.close();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    bench.faults.gate.wait_for(1);
    for n in 2..=20 {
        bench.submit(
            (n % 2) as u16,
            vec![append(n, 0, &format!("c{}", n % 2), n / 2)],
        );
    }
    assert_eq!(bench.store.stats().queue_ops, 20);
    bench.faults.gate.open();
    assert!(bench.failed(0, 20).is_empty() && bench.failed(1, 19).is_empty());
    assert_eq!(bench.store.stats().commits, 2);
}

fn a_batch_holds_no_more_than_it_may<P: Place>() {
    let config = StoreConfig {
        batch_ops_max: 4,
        ..StoreConfig::default()
    };
    let bench = Bench::<P>::with(&config, 64);
    bench.faults.gate.close();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    bench.faults.gate.wait_for(1);
    for n in 2..=13 {
        bench.submit(0, vec![append(n, 0, "a", n)]);
    }
    bench.faults.gate.open();
    assert!(bench.failed(0, 13).is_empty());
    assert_eq!(bench.store.stats().commits, 4);
}

fn a_short_wait_fills_a_batch<P: Place>() {
    let config = StoreConfig {
        commit_wait_us: 20_000_000,
        batch_ops_max: 3,
        ..StoreConfig::default()
    };
    let bench = Bench::<P>::with(&config, 64);
    for n in 1..=3 {
        bench.submit(0, vec![append(n, 0, "a", n)]);
    }
    assert!(bench.failed(0, 3).is_empty());
    assert_eq!(bench.store.stats().commits, 1);
}

fn nothing_of_a_failed_generation_is_tried<P: Place>() {
    let bench = Bench::<P>::new();
    bench.faults.apply.lock().unwrap().push_back(full());
    bench.submit(0, vec![append(1, 4, "a", 1), append(2, 4, "b", 1)]);
    assert_eq!(bench.failed(0, 2), [1, 2]);
    // Numbered before the failure was seen.
    bench.submit(0, vec![append(3, 4, "a", 2), append(4, 3, "c", 1)]);
    assert_eq!(bench.failed(0, 4), [3, 4]);
    assert_eq!(bench.faults.applied.load(SeqCst), 1);
    // Another shard's generations are its own.
    bench.submit(1, vec![append(1, 4, "d", 1)]);
    assert!(bench.failed(1, 1).is_empty());
    bench.submit(
        0,
        vec![
            append(5, 4, "a", 3),
            append(6, 5, "a", 1),
            append(7, 5, "b", 1),
        ],
    );
    assert_eq!(bench.failed(0, 7), [5]);
    assert_eq!(bench.sequences("a"), Ok(vec![1]));
    assert_eq!(bench.sequences("c"), Ok(vec![]));
    assert_eq!(bench.store.stats().ops_failed, 5);
}

fn one_shards_mistake_is_not_the_others<P: Place>() {
    let bench = Bench::<P>::new();
    bench.faults.gate.close();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    bench.faults.gate.wait_for(1);
    // One batch: the second submission has a hole, the fourth stands behind it.
    bench.submit(1, vec![append(1, 0, "b", 1)]);
    bench.submit(0, vec![append(2, 0, "x", 1), append(3, 0, "a", 3)]);
    bench.submit(1, vec![append(2, 0, "b", 2)]);
    bench.submit(0, vec![append(4, 0, "y", 1)]);
    bench.faults.gate.open();
    assert_eq!(bench.failed(0, 4), [2, 3, 4]);
    assert!(bench.failed(1, 2).is_empty());
    assert_eq!(bench.sequences("b"), Ok(vec![1, 2]));
    assert_eq!(
        (bench.sequences("x"), bench.sequences("y")),
        (Ok(vec![]), Ok(vec![]))
    );
    let stats = bench.store.stats();
    assert_eq!((stats.order_errors, stats.failing_since_ms), (1, None));
}

fn clearings_are_counted_for_the_one_who_asked<P: Place>() {
    let bench = Bench::<P>::new();
    let clear = |ticket, channel| StoreOp {
        change: Change::Clear,
        ..append(ticket, 0, channel, 0)
    };
    bench.faults.gate.close();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    bench.faults.gate.wait_for(1);
    bench.submit(0, vec![append(2, 0, "a", 2)]);
    bench.submit(1, vec![append(1, 0, "b", 1), clear(2, "b"), clear(3, "b")]);
    bench.submit(0, vec![clear(3, "a")]);
    bench.faults.gate.open();
    let mut all = Vec::new();
    for shard in [0, 1] {
        let mut done = Ticket(0);
        while done != Ticket(3) {
            if let StoreReply::Done { up_to, removed, .. } = bench.reply(shard) {
                done = up_to;
                all.extend(removed.iter().map(|(ticket, n)| (shard, ticket.0, *n)));
            }
        }
    }
    assert_eq!(all, [(0, 3, 2), (1, 2, 1), (1, 3, 0)]);
}

fn a_full_queue_gives_back_and_recovers<P: Place>() {
    let config = StoreConfig {
        queue_ops_max: 3,
        ..StoreConfig::default()
    };
    let bench = Bench::<P>::with(&config, 64);
    bench.faults.gate.close();
    // Alone, even too large a submission is taken.
    bench.submit(0, (1..=4).map(|n| append(n, 0, "a", n)).collect());
    bench.faults.gate.wait_for(1);
    let refused = bench.store.submit(ShardId(0), vec![append(5, 0, "a", 5)]);
    assert_eq!(refused.unwrap_err()[0].ticket, Ticket(5));
    bench.faults.gate.open();
    assert!(bench.failed(0, 4).is_empty());
    bench.submit(0, vec![append(5, 0, "a", 5)]);
    assert!(bench.failed(0, 5).is_empty());
    assert_eq!(bench.store.stats().ops_refused, 1);
}

fn the_queue_is_bounded_in_bytes<P: Place>() {
    let config = StoreConfig {
        queue_bytes_max: 1000,
        ..StoreConfig::default()
    };
    let bench = Bench::<P>::with(&config, 64);
    bench.faults.gate.close();
    let mut accepted = 0;
    while bench
        .store
        .submit(ShardId(0), vec![append(accepted + 1, 0, "a", accepted + 1)])
        .is_ok()
    {
        accepted += 1;
    }
    let bytes = bench.store.stats().queue_bytes;
    assert!(
        (1..20).contains(&accepted) && bytes <= 1000,
        "{accepted} {bytes}"
    );
    bench.faults.gate.open();
    assert!(bench.failed(0, accepted).is_empty());
}

fn too_many_questions_are_refused<P: Place>() {
    let config = StoreConfig {
        readers: 1,
        ..StoreConfig::default()
    };
    let bench = Bench::<P>::with(&config, INBOX_ENTRIES);
    bench.faults.gate.close();
    assert_eq!(bench.read("a"), Ok(()));
    bench.faults.gate.wait_for(1);
    let accepted = (0..=READS_QUEUED_MAX)
        .take_while(|_| bench.read("a").is_ok())
        .count();
    assert_eq!(accepted, READS_QUEUED_MAX);
    assert_eq!(bench.read("a"), Err(StoreError::Overloaded));
    assert_eq!(bench.store.stats().reads_queued, READS_QUEUED_MAX);
    bench.faults.gate.open();
    for _ in 0..=accepted {
        assert!(matches!(
            bench.reply(0),
            StoreReply::Answer { answer: Ok(_), .. }
        ));
    }
}

fn a_full_inbox_loses_nothing<P: Place>() {
    let bench = Bench::<P>::with(&StoreConfig::default(), 1);
    let mut sequence = 1;
    for n in 1..=50 {
        let fails = n % 10 == 0;
        if fails {
            bench.faults.apply.lock().unwrap().push_back(full());
        }
        bench.submit(0, vec![append(n, n as u32, "a", sequence)]);
        sequence += u64::from(!fails);
        bench.wait_until(|stats| stats.queue_ops == 0);
    }
    assert_eq!(bench.failed(0, 50), [10, 20, 30, 40, 50]);
}

fn who_is_in_the_way_gets_a_second_chance<P: Place>() {
    let busy = || BackendError::Busy("scripted".to_owned());
    let bench = Bench::<P>::new();
    bench.faults.apply.lock().unwrap().push_back(busy());
    bench.faults.read.lock().unwrap().push_back(busy());
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    assert!(bench.failed(0, 1).is_empty());
    assert_eq!(bench.sequences("a"), Ok(vec![1]));
    bench.faults.apply.lock().unwrap().extend([busy(), busy()]);
    bench.submit(0, vec![append(2, 0, "a", 2)]);
    assert_eq!(bench.failed(0, 2), [2]);
}

fn a_full_disk_is_told_until_a_batch_or_a_probe_succeeds<P: Place>() {
    let bench = Bench::<P>::new();
    bench.faults.apply.lock().unwrap().extend([full(), full()]);
    bench.faults.probe.lock().unwrap().extend([full(), full()]);
    for n in 1..=2 {
        bench.submit(0, vec![append(n, n as u32, "a", 1)]);
        assert_eq!(bench.failed(0, n), [n]);
        bench.wait_until(|stats| stats.failing_since_ms.is_some());
        assert!(!bench.store.stats().is_well(now_ms(), 1000));
    }
    bench.submit(0, vec![append(3, 3, "a", 1)]);
    assert!(bench.failed(0, 3).is_empty());
    bench.wait_until(|stats| stats.failing_since_ms.is_none());
    // Without traffic.
    bench.faults.apply.lock().unwrap().push_back(full());
    bench.submit(0, vec![append(4, 3, "a", 2)]);
    assert_eq!(bench.failed(0, 4), [4]);
    bench.wait_until(|stats| stats.failing_since_ms.is_some());
    bench.wait_until(|stats| stats.failing_since_ms.is_none());
    assert_eq!(bench.store.stats().reopened, 0);
}

fn what_is_broken_is_opened_again<P: Place>() {
    let bench = Bench::<P>::new();
    assert_eq!(bench.sequences("a"), Ok(vec![]));
    bench.faults.opens_failing.store(2, SeqCst);
    bench.faults.apply.lock().unwrap().push_back(broken());
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    assert_eq!(bench.failed(0, 1), [1]);
    // Meanwhile batches fail untried.
    bench.submit(0, vec![append(2, 1, "a", 1)]);
    assert_eq!(bench.failed(0, 2), [2]);
    assert_eq!(bench.faults.applied.load(SeqCst), 1);
    bench.wait_until(|stats| stats.reopened == 1 && stats.failing_since_ms.is_none());
    let before = bench.faults.reader_opens.load(SeqCst);
    bench.submit(0, vec![append(3, 2, "a", 1)]);
    assert!(bench.failed(0, 3).is_empty());
    assert_eq!(bench.sequences("a"), Ok(vec![1]));
    // The readers' file may be another one.
    assert_eq!(bench.faults.reader_opens.load(SeqCst), before + 1);
}

fn a_reader_that_breaks_answers_from_another_connection<P: Place>() {
    let bench = Bench::<P>::new();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    assert!(bench.failed(0, 1).is_empty());
    bench.faults.read.lock().unwrap().push_back(broken());
    assert_eq!(bench.sequences("a"), Ok(vec![1]));
    bench.faults.read.lock().unwrap().extend([full(), full()]);
    assert_eq!(bench.sequences("a"), Err(StoreError::Failed));
    assert_eq!(bench.store.stats().reads_failed, 1);
}

#[test]
fn a_file_taken_away_is_not_written_to_for_long() {
    let bench = Bench::<Folder>::new();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    assert!(bench.failed(0, 1).is_empty());
    for suffix in ["", "-wal", "-shm"] {
        let file = bench.place.dir.path().join(format!("{FILE_NAME}{suffix}"));
        std::fs::remove_file(file).unwrap();
    }
    bench.wait_until(|stats| stats.reopened == 1);
    assert_eq!(bench.sequences("a"), Ok(vec![]));
    bench.submit(0, vec![append(2, 0, "a", 1)]);
    assert!(bench.failed(0, 2).is_empty());
    assert_eq!(bench.sequences("a"), Ok(vec![1]));
}

fn a_disk_that_hangs_is_seen<P: Place>() {
    let bench = Bench::<P>::new();
    bench.faults.gate.close();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    bench.faults.gate.wait_for(1);
    let stats = bench.store.stats();
    assert!(stats.is_well(now_ms(), 60_000) && !stats.is_well(now_ms() + 60_000, 10_000));
    assert!(!bench.store.shutdown(Duration::ZERO));
    bench.faults.gate.open();
    assert!(bench.failed(0, 1).is_empty());
}

fn shutting_down_commits_what_was_accepted_and_refuses_the_rest<P: Place>() {
    let bench = Bench::<P>::new();
    bench.faults.gate.close();
    for n in 1..=100 {
        bench.submit(0, vec![append(n, 0, "a", n)]);
    }
    let store = bench.store.clone();
    let ending = std::thread::spawn(move || store.shutdown(PATIENCE));
    bench.faults.gate.open();
    assert!(ending.join().unwrap());
    assert!(
        bench
            .store
            .submit(ShardId(0), vec![append(101, 0, "a", 101)])
            .is_err()
    );
    let mut last = 0;
    while last < 100 {
        if let StoreReply::Done { up_to, failed, .. } = bench.reply(0) {
            assert!(failed.is_empty());
            last = up_to.0;
        }
    }
    assert!(bench.store.shutdown(PATIENCE));
}

#[test]
fn at_the_end_no_log_is_left_behind() {
    let bench = Bench::<Folder>::new();
    bench.submit(0, vec![append(1, 0, "a", 1)]);
    assert!(bench.store.shutdown(PATIENCE));
    let log = bench.place.dir.path().join(format!("{FILE_NAME}-wal"));
    assert!(!log.exists());
}

/// Makes a test of each function for each place.
macro_rules! for_places {
    ($($test:ident),* $(,)?) => {
        mod in_sqlite {
            $(
                #[test]
                fn $test() {
                    super::$test::<super::Folder>();
                }
            )*
        }
        mod in_mongo {
            use super::Place;
            $(
                #[test]
                fn $test() {
                    if super::Served::is_there() {
                        super::$test::<super::Served>();
                    }
                }
            )*
        }
    };
}
for_places!(
    an_ack_comes_after_the_commit,
    what_gathers_during_a_commit_is_one_transaction,
    a_batch_holds_no_more_than_it_may,
    a_short_wait_fills_a_batch,
    nothing_of_a_failed_generation_is_tried,
    one_shards_mistake_is_not_the_others,
    clearings_are_counted_for_the_one_who_asked,
    a_full_queue_gives_back_and_recovers,
    the_queue_is_bounded_in_bytes,
    too_many_questions_are_refused,
    a_full_inbox_loses_nothing,
    who_is_in_the_way_gets_a_second_chance,
    a_full_disk_is_told_until_a_batch_or_a_probe_succeeds,
    what_is_broken_is_opened_again,
    a_reader_that_breaks_answers_from_another_connection,
    a_disk_that_hangs_is_seen,
    shutting_down_commits_what_was_accepted_and_refuses_the_rest,
);
