//! What all limits together cost a publish: connection, client id and app on its connection's shard, channel, plan and
//! usage at the channel's home.

#![expect(clippy::unwrap_used, reason = "what fails here ends the benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use shardwire_proto::ids::{Now, Placement, ShardId};
use shardwire_proto::meter::{AppTerms, Meters};
use shardwire_proto::quota::Plan;
use shardwire_proto::rate::table::{Class, Rates, Scope, Scopes, Setting};
use shardwire_proto::rate::{RateLimit, RateWindow};

fn publish(c: &mut Criterion) {
    let ample = Setting::Limit(RateLimit::new(1_000_000_000, 1000, 1_000_000_000).unwrap());
    let rates = Rates {
        publish: Scopes {
            connection: Some(ample),
            client: Some(ample),
            channel: Some(ample),
            app: Some(ample),
            address: None,
        },
        ..Rates::default()
    };
    let terms = AppTerms {
        rates,
        plan: Some(Arc::new(Plan {
            id: "p".into(),
            messages_per_day: Some(1 << 50),
            messages_per_month: Some(1 << 52),
            ..Plan::default()
        })),
        ..AppTerms::default()
    };
    let mut now = Now {
        mono_us: 1_000_000,
        unix_ms: 1_764_000_000_000,
    };
    let mut meters = Meters::new(ShardId(0), Placement::new(7, 1), 7, now);
    let app: Arc<str> = "app".into();
    meters.set_terms(0, &app, terms);
    let client = meters.enter_client(0, &"ann".into());
    let (mut connection, mut channel) = (RateWindow::default(), RateWindow::default());
    let mut group = c.benchmark_group("limits of a publish");
    group.bench_function("all of them", |b| {
        b.iter(|| {
            now.mono_us += 1;
            let now = black_box(now);
            let (limits, namespace) = meters.resolved(0, Class::Publish, "room:1");
            let bucket = |scope| limits.bucket(Class::Publish, scope, namespace);
            let own = limits.limit(Scope::Connection).unwrap();
            let mut admitted = connection.try_acquire(now.mono_ms(), &own);
            let by_client = limits.limit(Scope::Client).unwrap();
            admitted &= meters.spend_client(client, bucket(Scope::Client), by_client, now);
            let by_app = limits.limit(Scope::App).unwrap();
            admitted &= meters.spend_app(0, bucket(Scope::App), by_app, now);
            // At the channel's home.
            let (limits, _) = meters.resolved(0, Class::Publish, "room:1");
            let by_channel = limits.limit(Scope::Channel).unwrap();
            admitted &= channel.try_acquire(now.mono_ms(), &by_channel);
            admitted &= meters.spend_message(0, now);
            meters.count_message(0);
            meters.count_in_turn(0);
            assert!(admitted);
        });
    });
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
