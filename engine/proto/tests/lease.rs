//! Shards that share a limit, with messages that take their time, against one limiter that sees everything at once.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

use std::collections::VecDeque;

use proptest::prelude::*;
use shardwire_proto::ids::ShardId;
use shardwire_proto::rate::lease::{
    Home, LEASE_MS, Lease, NO_END, Note, Pool, Terms, TotalPool, WindowPool,
};
use shardwire_proto::rate::{RateLimit, RateWindow};

/// Home on shard 0; lanes to and from every other shard keep their order.
struct World<P> {
    now: u64,
    delay: u64,
    terms: Terms,
    home: Home<P>,
    leases: Vec<Lease>,
    to_home: VecDeque<(u64, ShardId, Note)>,
    from_home: VecDeque<(u64, ShardId, Note)>,
    spent: Vec<u64>,
}

impl<P: Pool> World<P> {
    fn new(shards: u16, delay: u64, terms: Terms, pool: P) -> Self {
        let now = 1_000_000;
        Self {
            now,
            delay,
            terms,
            home: Home::new(pool, now),
            leases: vec![Lease::default(); usize::from(shards)],
            to_home: VecDeque::new(),
            from_home: VecDeque::new(),
            spent: Vec::new(),
        }
    }

    fn terms_of(&self, shard: usize) -> Terms {
        let debt_max = if shard == 0 { 0 } else { self.terms.debt_max };
        Terms {
            debt_max,
            ..self.terms
        }
    }

    /// One use on a shard; whether it was admitted.
    fn spend(&mut self, shard: usize) -> bool {
        let terms = self.terms_of(shard);
        let mut spent = self.leases[shard].try_spend(self.now, &terms);
        self.ask(shard);
        if !spent && shard == 0 {
            spent = self.leases[shard].try_spend(self.now, &terms);
        }
        if spent {
            self.spent.push(self.now);
        }
        spent
    }

    fn ask(&mut self, shard: usize) {
        if let Some(report) = self.leases[shard].take_ask(self.now) {
            self.tell_home(shard, Note::Ask(report));
        }
    }

    fn put_back(&mut self, shard: usize) {
        self.leases[shard].put_back();
        self.ask(shard);
    }

    fn tell_home(&mut self, shard: usize, note: Note) {
        let from = ShardId(u16::try_from(shard).unwrap());
        if shard == 0 {
            self.at_home(from, note);
        } else {
            self.to_home.push_back((self.now + self.delay, from, note));
        }
    }

    fn at_home(&mut self, from: ShardId, note: Note) {
        let notes = match note {
            Note::Ask(report) => self.home.on_ask(from, report, &self.terms, self.now),
            Note::Return(report) => self.home.on_return(from, report, &self.terms, self.now),
            Note::Grant { .. } | Note::Recall => unreachable!("holders do not say that"),
        };
        for (to, note) in notes {
            if to.0 == 0 {
                self.at_holder(to, note);
            } else {
                self.from_home.push_back((self.now + self.delay, to, note));
            }
        }
    }

    fn at_holder(&mut self, to: ShardId, note: Note) {
        match note {
            Note::Grant {
                count,
                until_ms,
                retry_ms,
                is_scarce,
            } => self.leases[to.index()].on_grant(count, until_ms, retry_ms, is_scarce),
            Note::Recall => {
                let report = self.leases[to.index()].on_recall();
                self.tell_home(to.index(), Note::Return(report));
            }
            Note::Ask(_) | Note::Return(_) => unreachable!("a home does not say that"),
        }
    }

    fn carry(&mut self) {
        while let Some((due, from, note)) = self.to_home.front().copied()
            && due <= self.now
        {
            self.to_home.pop_front();
            self.at_home(from, note);
        }
        while let Some((due, to, note)) = self.from_home.front().copied()
            && due <= self.now
        {
            self.from_home.pop_front();
            self.at_holder(to, note);
        }
    }

    fn step(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += 1;
            self.carry();
        }
    }

    fn debt_of_all(&self) -> u64 {
        u64::from(self.terms.debt_max) * (self.leases.len() as u64 - 1)
    }
}

fn window(per_window: u32, burst: u32, shards: u16, delay: u64) -> World<WindowPool> {
    let limit = RateLimit::new(per_window, 1000, burst).unwrap();
    let pool = WindowPool {
        window: RateWindow::default(),
        limit,
    };
    World::new(shards, delay, Terms::of_window(&limit, shards), pool)
}

#[test]
fn one_client_on_one_shard_has_its_whole_burst() {
    for shard in [0, 1] {
        let mut world = window(50, 100, 4, 1);
        world.ask(shard);
        world.step(2);
        let admitted = (0..200).filter(|_| world.spend(shard)).count() as u64;
        let debt = if shard == 0 {
            0
        } else {
            world.debt_of_all() / 3
        };
        assert_eq!(admitted, 100 + debt);
        // The debt counts: the rate holds afterwards.
        let total = 100 + debt + spend_for(&mut world, shard, 10_000);
        assert!((490..=520 + debt).contains(&total), "{total}");
    }
}

/// As much as is admitted in so many ms, on one shard.
fn spend_for(world: &mut World<WindowPool>, shard: usize, ms: u64) -> u64 {
    let mut count = 0;
    for _ in 0..ms {
        world.step(1);
        count += u64::from(world.spend(shard));
    }
    count
}

#[test]
fn what_another_shard_does_not_use_is_there_two_ways_later() {
    let mut world = window(50, 100, 2, 1);
    world.ask(0);
    assert_eq!(world.leases[0].left(world.now), 100);
    assert!(world.spend(1), "on debt");
    world.step(4);
    assert_eq!(world.leases[1].left(world.now), 99);
}

#[test]
fn a_total_is_never_overrun_by_more_than_debt_and_is_spent_whole() {
    for most in [1, 2, 10, 1000, 100_000] {
        let terms = Terms::of_total(most, 4);
        let pool = TotalPool::new(most, 0, false);
        let mut world = World::new(4, 1, terms, pool);
        for round in 0..400_000 {
            world.spend(round % 4);
            if round % 16 == 0 {
                world.step(1);
            }
        }
        let spent = world.spent.len() as u64;
        assert!(
            (most..=most + world.debt_of_all()).contains(&spent),
            "{spent} of {most}"
        );
        assert!((1..=64).contains(&terms.debt_max) && terms.lease_ms == NO_END);
    }
}

#[test]
fn what_comes_back_anywhere_can_be_spent_everywhere() {
    let terms = Terms::of_total(10, 3);
    let pool = TotalPool::new(10, 0, true);
    let mut world = World::new(3, 1, terms, pool);
    let mut held = 0;
    for _ in 0..50 {
        held += i64::from(world.spend(1));
        world.step(3);
    }
    assert!(
        (10..=10 + i64::from(terms.debt_max)).contains(&held),
        "{held}"
    );
    // They come back on a shard that has never asked.
    for _ in 0..held {
        world.put_back(2);
        world.step(3);
    }
    let mut again = 0;
    for _ in 0..500 {
        again += i64::from(world.spend(0));
        world.step(3);
    }
    assert_eq!(again, 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any schedule of uses on any shards: never more than the stated bound in any window.
    #[test]
    fn no_window_holds_more_than_the_stated_bound(
        shards in 1..6_u16,
        delay in 0..20_u64,
        per_window in 1..60_u32,
        extra in 0..60_u32,
        uses in prop::collection::vec((0..40_u64, 0..6_usize, 1..30_u32), 1..300),
    ) {
        let mut world = window(per_window, per_window + extra, shards, delay);
        for (pause, shard, count) in uses {
            world.step(pause);
            for _ in 0..count {
                world.spend(shard % usize::from(shards));
            }
        }
        let limit = world.home.pool.limit;
        let debt = world.debt_of_all();
        for (i, from) in world.spent.iter().enumerate() {
            for spans in [1_u64, 2, 5, 10] {
                let length = spans * limit.span_ms();
                let held = world.spent[i..].iter().take_while(|at| **at < from + length).count() as u64;
                let charged_in = length + 2 * LEASE_MS + 2 * delay;
                let most = (u64::from(limit.burst()) + debt) * (charged_in.div_ceil(limit.span_ms()) + 1);
                prop_assert!(held <= most, "{held} in {spans} spans, at most {most}");
            }
        }
    }

    /// Where more is wanted than there is, as much is admitted as by one limiter that sees everything, but for what is
    /// on its way between shards.
    #[test]
    fn what_is_wanted_is_admitted(
        shards in 1..6_u16,
        delay in 0..3_u64,
        per_window in 20..200_u32,
        extra in 0..200_u32,
        order in prop::collection::vec(0..6_usize, 1..50),
    ) {
        const MS: u64 = 6000;
        let mut world = window(per_window, per_window + extra, shards, delay);
        let limit = world.home.pool.limit;
        let mut exact = RateWindow::default();
        let mut by_exact = 0_u64;
        for ms in 0..MS {
            world.step(1);
            for n in 0..4 {
                let at = (ms as usize + n) % order.len();
                world.spend(order[at] % usize::from(shards));
                by_exact += u64::from(exact.try_acquire(world.now, &limit));
            }
        }
        let admitted = world.spent.len() as u64;
        let error = by_exact / 20 + u64::from(limit.burst()) / 2 + 2 * u64::from(shards);
        prop_assert!(admitted + error >= by_exact, "{admitted} of {by_exact}");
        prop_assert!(
            admitted <= by_exact + u64::from(limit.burst()) + world.debt_of_all(),
            "{admitted} of {by_exact}"
        );
    }
}
