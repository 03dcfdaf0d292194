//! Pages about what goes on.

use shardwire_proto::account::permissions::Role;

use super::{DAY, NOW, Sample, Texts, app_shell, apps::summaries, sample, shell_of};
use crate::dashboard::face::pages::{console, overview};

pub(super) fn all(texts: Texts) -> Vec<Sample> {
    let operator = shell_of(Role::Owner, true, texts);
    let owner = shell_of(Role::Owner, false, texts);
    let in_app = app_shell(texts);
    let view = overview::Overview {
        nodes: vec![node(texts)],
        apps: summaries(texts),
    };
    let own = overview::Overview {
        nodes: Vec::new(),
        ..view.clone()
    };
    let console = console::Console {
        ws_url: texts("ws://localhost:9001/"),
        channel: texts("chat:lobby"),
    };
    vec![
        sample("overview", overview::render(&operator, &view)),
        sample("overview-own", overview::render(&owner, &own)),
        sample(
            "overview-empty",
            overview::render(&owner, &overview::Overview::default()),
        ),
        sample("console", console::render(&in_app, &console)),
    ]
}

fn node(texts: Texts) -> overview::Node {
    let shard = |shard: u64, connections: u64| overview::Shard {
        shard,
        core: Some(shard),
        up: true,
        connections,
        channels: connections / 3,
        home_channels: connections / 4,
        subscriptions: connections * 2,
        cpu_seconds: 40_412.0 + shard as f64 * 7000.0,
        messages_in: 8_812_004,
        published: 8_800_120,
        deliveries: 91_004_117,
        slow_consumers: shard * 3,
        outbox_bytes: 18_432 * shard,
        delivery: overview::Latency {
            count: 1000,
            sum_us: 88_000,
            buckets: vec![0, 600, 380, 15, 5, 0],
        },
    };
    overview::Node {
        version: "0.1.0".to_owned(),
        pid: 4121,
        started_ms: NOW - 3 * DAY,
        time_ms: NOW,
        stage: texts("serving"),
        listen: texts("0.0.0.0:9001"),
        cpu_seconds: Some(88_000.0),
        resident_bytes: Some(191_889_408),
        open_files: Some(12_810),
        store_failing: false,
        latency_bounds_us: vec![16, 32, 64, 128, 256],
        shards: (0..4)
            .map(|index| shard(index, 3000 + 101 * index))
            .collect(),
    }
}
