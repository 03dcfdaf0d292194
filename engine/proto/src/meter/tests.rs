//! Meters of several shards, with notes that are carried at once or not at all.

use super::*;
use crate::quota::{DAY_MS, Plan};
use crate::rate::table::{Rates, Scopes, Setting};

struct World {
    meters: Vec<Meters>,
    now: Now,
    app: Arc<str>,
}

impl World {
    fn new(shards: u16, terms: &AppTerms, totals: Totals) -> Self {
        let now = Now {
            mono_us: 5_000_000,
            unix_ms: 20_781 * DAY_MS + 1000,
        };
        let app: Arc<str> = "app".into();
        let meters = (0..shards).map(|id| {
            let mut meters = Meters::new(ShardId(id), Placement::new(7, shards), 7, now);
            meters.set_totals(&app, totals);
            meters.set_terms(0, &app, terms.clone());
            meters
        });
        let meters = meters.collect();
        let mut world = Self { meters, now, app };
        world.carry();
        world
    }

    fn carry(&mut self) {
        loop {
            let mut is_quiet = true;
            for from in 0..self.meters.len() {
                for (to, msg) in self.meters[from].take_notes() {
                    is_quiet = false;
                    let from = ShardId(u16::try_from(from).unwrap());
                    self.meters[to.index()].handle(from, 0, msg, self.now);
                }
            }
            if is_quiet {
                return;
            }
        }
    }

    fn later(&mut self, ms: u64) {
        self.now.mono_us += ms * 1000;
        self.now.unix_ms += ms;
    }

    /// Midnight is over, and every shard has noticed.
    fn next_day(&mut self, days: u64) {
        self.later(days * DAY_MS);
        for meters in &mut self.meters {
            meters.tick(self.now);
        }
        self.carry();
        self.later(200);
    }

    fn spend_messages(&mut self, count: usize) -> usize {
        let mut spent = 0;
        for n in 0..count {
            let shard = n % self.meters.len();
            spent += usize::from(self.meters[shard].spend_message(0, self.now));
            self.carry();
        }
        spent
    }
}

fn plan(per_day: Option<u64>, per_month: Option<u64>) -> AppTerms {
    AppTerms {
        plan: Some(Arc::new(Plan {
            id: "p".into(),
            messages_per_day: per_day,
            messages_per_month: per_month,
            ..Plan::default()
        })),
        ..AppTerms::default()
    }
}

fn rate(class: &str, scopes: Scopes) -> Rates {
    let mut rates = Rates::default();
    match class {
        "publish" => rates.publish = scopes,
        "presence" => rates.presence = scopes,
        _ => rates.connect = scopes,
    }
    rates
}

#[test]
fn a_day_is_spent_to_the_last_and_the_next_begins_whole() {
    let mut world = World::new(3, &plan(Some(100), None), Totals::default());
    assert_eq!(world.spend_messages(300), 100);
    world.later(200);
    assert_eq!(world.spend_messages(30), 0);
    world.next_day(1);
    assert_eq!(world.spend_messages(300), 100);
}

#[test]
fn a_month_goes_on_over_its_days_and_what_a_day_leaves_is_the_months() {
    let mut world = World::new(2, &plan(Some(60), Some(100)), Totals::default());
    assert_eq!(world.spend_messages(50), 50);
    world.next_day(1);
    assert_eq!(world.spend_messages(200), 50);
    world.next_day(1);
    let on_debt = world.spend_messages(10);
    assert!(
        on_debt <= 2,
        "one of each shard, until it has heard: {on_debt}"
    );
    // 2026-12-01.
    world.next_day(5);
    assert_eq!(world.spend_messages(200), 60);
}

#[test]
fn what_was_used_before_the_start_is_gone() {
    let totals = Totals {
        day: 20_781,
        messages_day: 90,
        messages_month: 90,
    };
    let mut world = World::new(2, &plan(Some(100), None), totals);
    assert_eq!(world.spend_messages(50), 10);
    let mut world = World::new(2, &plan(None, Some(90)), totals);
    assert_eq!(world.spend_messages(50), 0);
}

#[test]
fn what_is_taken_back_can_be_spent_again() {
    let mut world = World::new(2, &plan(Some(10), None), Totals::default());
    assert_eq!(world.spend_messages(50), 10);
    world.meters[0].unspend_message(0);
    world.later(200);
    assert_eq!(world.spend_messages(50), 1);
}

#[test]
fn a_raised_plan_counts_at_once_and_no_plan_limits_nothing() {
    let mut world = World::new(2, &plan(Some(10), None), Totals::default());
    assert_eq!(world.spend_messages(50), 10);
    for terms in [plan(Some(30), None), AppTerms::default()] {
        world.later(200);
        let app = world.app.clone();
        for meters in &mut world.meters {
            meters.set_terms(0, &app, terms.clone());
        }
        world.carry();
        let most = if terms.plan.is_some() { 20 } else { 50 };
        assert_eq!(world.spend_messages(50), most);
    }
}

#[test]
fn a_limit_on_what_is_in_use_already_counts_it() {
    let mut world = World::new(2, &AppTerms::default(), Totals::default());
    for _ in 0..8 {
        assert!(world.meters[1].take(0, Held::Connections, world.now));
        world.meters[1].count_opened(0);
    }
    let terms = AppTerms {
        plan: Some(Arc::new(Plan {
            id: "p".into(),
            connections_max: Some(10),
            ..Plan::default()
        })),
        ..AppTerms::default()
    };
    let app = world.app.clone();
    for meters in &mut world.meters {
        meters.set_terms(0, &app, terms.clone());
    }
    world.carry();
    let mut taken = 0;
    for n in 0..20 {
        taken += usize::from(world.meters[n % 2].take(0, Held::Connections, world.now));
        world.carry();
    }
    assert_eq!(taken, 2);
    for _ in 0..3 {
        world.meters[1].put_back(0, Held::Connections, world.now);
        world.carry();
    }
    world.later(200);
    for n in 0..20 {
        taken += usize::from(world.meters[n % 2].take(0, Held::Connections, world.now));
        world.carry();
    }
    assert_eq!(taken, 5);
}

#[test]
fn clients_are_told_apart_and_forgotten_when_nothing_of_them_counts() {
    let limit = RateLimit::new(10, 1000, 10).unwrap();
    let terms = AppTerms {
        rates: rate(
            "publish",
            Scopes {
                client: Some(Setting::Limit(limit)),
                ..Scopes::default()
            },
        ),
        ..AppTerms::default()
    };
    let mut world = World::new(2, &terms, Totals::default());
    let bucket = Bucket::wide(Class::Publish);
    let ids: [Arc<str>; 2] = ["ann".into(), "bob".into()];
    for id in &ids {
        let clients: Vec<u32> = world
            .meters
            .iter_mut()
            .map(|meters| meters.enter_client(0, id))
            .collect();
        let mut spent = 0;
        for n in 0..60 {
            let meters = &mut world.meters[n % 2];
            spent += usize::from(meters.spend_client(clients[n % 2], bucket, limit, world.now));
            world.carry();
        }
        assert!((10..=11).contains(&spent), "{spent}");
        for (meters, client) in world.meters.iter_mut().zip(clients) {
            meters.leave_client(client, world.now);
        }
    }
    for _ in 0..10 {
        world.later(1000);
        for meters in &mut world.meters {
            meters.tick(world.now);
        }
    }
    for meters in &world.meters {
        assert!(meters.clients.is_empty() && meters.homes.is_empty());
    }
}

#[test]
fn a_channel_has_one_rate_over_all_shards_and_is_forgotten_when_nothing_of_it_counts() {
    let limit = RateLimit::new(10, 1000, 10).unwrap();
    let scopes = Scopes {
        channel: Some(Setting::Limit(limit)),
        ..Scopes::default()
    };
    let terms = AppTerms {
        rates: rate("presence", scopes),
        ..AppTerms::default()
    };
    let mut world = World::new(3, &terms, Totals::default());
    let bucket = Bucket::wide(Class::Presence);
    for channel in ["a", "b"] {
        let mut spent = 0;
        for n in 0..90 {
            let meters = &mut world.meters[n % 3];
            spent += usize::from(meters.spend_channel(0, channel, bucket, limit, world.now));
            world.carry();
        }
        assert!((10..=13).contains(&spent), "{channel}: {spent}");
    }
    for n in 0..3 {
        let meters = &mut world.meters[n];
        let spent = meters.spend_channel(0, "seldom", bucket, limit, world.now);
        assert!(spent, "whoever holds the rest");
        world.carry();
    }
    // What is taken back where it was spent can be spent again there.
    let home = usize::from(world.meters[0].home_of("app", "c").0);
    let meters = &mut world.meters[home];
    let spend = |meters: &mut Meters| meters.spend_channel(0, "c", bucket, limit, world.now);
    let spent = (0..20).filter(|_| spend(meters)).count();
    assert!((10..=11).contains(&spent), "{spent}");
    meters.unspend_channel(0, "c", bucket);
    assert!(spend(meters) && !spend(meters));
    world.carry();
    for _ in 0..10 {
        world.later(1000);
        for meters in &mut world.meters {
            meters.tick(world.now);
        }
        world.carry();
    }
    for meters in &world.meters {
        assert!(meters.channels.is_empty() && meters.homes.is_empty());
    }
}

#[test]
fn an_app_has_its_part_of_a_turn_only_while_others_have_connections() {
    let mut world = World::new(1, &AppTerms::default(), Totals::default());
    let meters = &mut world.meters[0];
    let other: Arc<str> = "other".into();
    meters.set_terms(1, &other, AppTerms::default());
    meters.count_opened(0);
    for _ in 0..2 * TURN_WORK_MAX {
        meters.count_in_turn(0);
    }
    assert!(meters.may_read(0), "nobody else is there");
    meters.count_opened(1);
    assert!(!meters.may_read(0) && meters.may_read(1));
    meters.end_turn();
    let reads = (0..TURN_WORK_MAX).take_while(|_| meters.may_read(0));
    assert_eq!(reads.count(), TURN_WORK_MAX.div_ceil(READ_WORK) as usize);
    meters.count_closed(1);
    assert!(meters.may_read(0));
}

#[test]
fn usage_is_told_once_and_what_is_not_taken_comes_again() {
    let mut world = World::new(1, &AppTerms::default(), Totals::default());
    let meters = &mut world.meters[0];
    assert_eq!(meters.take_usage(), []);
    meters.count_opened(0);
    meters.count_message(0);
    meters.count_deliveries(0, 5);
    let told = meters.take_usage();
    assert_eq!(
        (told[0].messages, told[0].deliveries, told[0].connections),
        (1, 5, 1)
    );
    assert_eq!(meters.take_usage(), []);
    meters.keep_usage(told);
    meters.count_message(0);
    assert_eq!(meters.take_usage()[0].messages, 2);
}
