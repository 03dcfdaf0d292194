//! Pages about what goes on.

use serde_json::json;
use shardwire_proto::account::permissions::Role;

use super::apps::summaries;
use super::{DAY, HOUR, MINUTE, NOW, Sample, Texts, app_shell, sample, shell_of};
use crate::dashboard::face::pages::keys::Secret;
use crate::dashboard::face::pages::{channels, console, overview, push, usage, webhooks};

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
    let mut all = channel_pages(texts);
    all.extend(usage_pages(texts));
    all.extend(webhook_pages(texts));
    all.extend(push_pages(texts));
    all.extend([
        sample("overview", overview::render(&operator, &view)),
        sample("overview-own", overview::render(&owner, &own)),
        sample(
            "overview-empty",
            overview::render(&owner, &overview::Overview::default()),
        ),
        sample("console", console::render(&in_app, &console)),
    ]);
    all
}

fn channel_pages(texts: Texts) -> Vec<Sample> {
    let shell = app_shell(texts);
    let names = [
        "chat:lobby",
        "chat:support",
        "orders:eu",
        "orders:us",
        "prices",
        "presence:office",
    ];
    let channels = names
        .iter()
        .zip(1..)
        .map(|(name, index)| channels::ChannelSummary {
            channel: texts(name),
            subscribers: 4117 / index,
            members: 90 / index,
        });
    let list = channels::Channels {
        channels: channels.collect(),
        cursor: Some(texts("next")),
        prefix: String::new(),
    };
    let message = |index: u64| channels::Message {
        id: texts(&format!("m{index}")),
        data: match index % 3 {
            0 => json!({"text": texts("hello"), "from": texts("Ada")}),
            1 => json!(texts("a text alone")),
            _ => {
                json!({"order": {"id": 1181 + index, "lines": vec![json!({"sku": texts("A-17"), "count": index}); 8]}})
            }
        },
        publisher_id: texts("customer-1181"),
        timestamp: NOW - index * MINUTE,
        sequence: 8811 - index,
    };
    let member = |name: &str| channels::Member {
        client_id: texts(name),
        data: json!({"status": texts("typing")}),
        joined_at: NOW - 20 * MINUTE,
        connections: 2,
    };
    let view = channels::Channel {
        state: channels::ChannelState {
            channel: texts("chat:lobby"),
            occupied: true,
            subscribers: 4117,
            members: 90,
            last_sequence: 8811,
        },
        presence: channels::Presence {
            members: vec![member("ada"), member("grace")],
            total: 90,
        },
        history: channels::History {
            messages: (0..8).map(message).collect(),
            has_more: true,
        },
    };
    let missing = channels::Channels {
        prefix: texts("nothing:here"),
        ..channels::Channels::default()
    };
    vec![
        sample("channels", channels::render(&shell, &list)),
        sample(
            "channels-none",
            channels::render(&shell, &channels::Channels::default()),
        ),
        sample("channels-missing", channels::render(&shell, &missing)),
        sample("channel", channels::one(&shell, &view)),
        sample(
            "channel-quiet",
            channels::one(
                &shell,
                &channels::Channel {
                    state: channels::ChannelState {
                        channel: texts("quiet"),
                        ..channels::ChannelState::default()
                    },
                    ..channels::Channel::default()
                },
            ),
        ),
    ]
}

fn usage_pages(texts: Texts) -> Vec<Sample> {
    let shell = app_shell(texts);
    let point = |index: u64| {
        // A day with its night.
        let phase = (index as f64 / 24.0 * std::f64::consts::TAU).sin();
        let messages = (30_000.0 + 22_000.0 * phase) as u64 + index * 117 % 3000;
        usage::Point {
            start_ms: NOW - index * HOUR,
            amounts: usage::Amounts {
                messages,
                deliveries: messages * 11,
                refused: if index % 9 == 4 { 12 + index } else { 0 },
                connections_peak: messages / 4,
                channels_peak: messages / 12,
                push_sent: messages / 40,
                push_failed: index % 5,
            },
        }
    };
    let series: Vec<_> = (0..60).rev().map(point).collect();
    let total = usage::Amounts {
        messages: series.iter().map(|point| point.amounts.messages).sum(),
        deliveries: series.iter().map(|point| point.amounts.deliveries).sum(),
        refused: 412,
        connections_peak: 13_100,
        channels_peak: 4390,
        push_sent: series.iter().map(|point| point.amounts.push_sent).sum(),
        push_failed: 120,
    };
    let view = usage::UsageView {
        usage: usage::Usage {
            step: "hour".to_owned(),
            total,
            series,
            messages_today: Some(1_840_233),
            messages_this_month: Some(28_440_116),
            connections: Some(12_408),
            channels: Some(3117),
        },
        plan: Some(usage::Plan {
            id: texts("business"),
            name: Some(texts("Business")),
            connections_max: Some(20_000),
            messages_per_day: Some(2_000_000),
            messages_per_month: Some(28_000_000),
            message_bytes_max: Some(65_536),
            history_ttl_s_max: Some(604_800),
            ..usage::Plan::default()
        }),
        push_this_month: Some(3120),
        webhooks: Some(2),
    };
    let quiet = usage::UsageView {
        usage: usage::Usage {
            step: "minute".to_owned(),
            connections: Some(0),
            ..usage::Usage::default()
        },
        ..usage::UsageView::default()
    };
    vec![
        sample("usage", usage::render(&shell, &view)),
        sample("usage-quiet", usage::render(&shell, &quiet)),
    ]
}

fn webhook_pages(texts: Texts) -> Vec<Sample> {
    let shell = app_shell(texts);
    let webhook = webhooks::Webhook {
        id: texts("wh_1"),
        url: texts("https://api.example.org/hooks/shardwire"),
        name: texts("Orders back end"),
        events: vec![
            texts("channel.occupied"),
            texts("channel.vacated"),
            texts("presence.enter"),
        ],
        channels: vec![texts("orders:*")],
        batch: webhooks::Batch {
            max_events: 100,
            max_ms: 1000,
        },
        concurrency: 1,
        names: "wsocket".to_owned(),
        enabled: true,
        disabled_reason: None,
        created_at: NOW - 30 * DAY,
        previous_secret_until: Some(NOW + HOUR),
    };
    let gone = webhooks::Webhook {
        id: texts("wh_2"),
        url: texts("https://old.example.org/hook"),
        name: String::new(),
        enabled: false,
        disabled_reason: Some(texts("the endpoint answered 410")),
        events: Vec::new(),
        channels: Vec::new(),
        ..webhook.clone()
    };
    let attempt = |index: u64, status: Option<u64>, error: Option<&str>| webhooks::Attempt {
        id: texts(&format!("d_{index}")),
        attempt: 1 + index % 3,
        events: 4 + index,
        at: NOW - index * MINUTE,
        ms: 31 + index * 7,
        status,
        response: status.map(|_| texts("HTTP/1.1 200 OK\ncontent-type: application/json")),
        error: error.map(texts),
    };
    let letter = |index: u64| webhooks::DeadLetter {
        id: texts(&format!("dl_{index}")),
        at: NOW - index * HOUR,
        attempts: 7,
        error: texts("timed out after 5 s"),
        count: 12,
        events: Vec::new(),
    };
    let secret = Secret {
        label: texts("Secret of “Orders back end”"),
        value: texts("whsec_kQ3v81nTzY0pLmX2"),
        is_client_key: false,
    };
    let list = webhooks::Webhooks {
        webhooks: vec![webhook.clone(), gone],
        secret: Some(secret.clone()),
        ..webhooks::Webhooks::default()
    };
    let view = webhooks::WebhookView {
        webhook,
        attempts: vec![
            attempt(1, Some(200), None),
            attempt(2, Some(500), Some("answered 500")),
            attempt(3, None, Some("timed out after 5 s")),
            attempt(4, Some(204), None),
        ],
        behind: Some(14),
        failures_in_a_row: Some(2),
        dead_letters: vec![letter(1), letter(2)],
        ..webhooks::WebhookView::default()
    };
    vec![
        sample("webhooks", webhooks::list(&shell, &list)),
        sample(
            "webhooks-none",
            webhooks::list(&shell, &webhooks::Webhooks::default()),
        ),
        sample("webhook", webhooks::one(&shell, &view)),
    ]
}

fn push_pages(texts: Texts) -> Vec<Sample> {
    let shell = app_shell(texts);
    let provider = |platform: &str| push::Provider {
        platform: platform.to_owned(),
        ..push::Provider::default()
    };
    let job = |id: &str, state: &str, title: &str| push::Job {
        job_id: texts(id),
        state: state.to_owned(),
        sent: 60_112,
        failed: 411,
        expired: 390,
        pending: (state == "active").then_some(39_477),
        retries: 17,
        total: Some(100_000),
        channel: Some(texts("news")),
        title: Some(texts(title)),
        error: None,
        created_ms: NOW - 5 * MINUTE,
        finished_ms: None,
        results: vec![
            push::SendResult {
                subscription_id: texts("sub_a"),
                member_id: texts("customer-1181"),
                platform: "web".to_owned(),
                success: true,
                error: None,
            },
            push::SendResult {
                subscription_id: texts("sub_b"),
                member_id: texts("customer-7"),
                platform: "apns".to_owned(),
                success: false,
                error: Some(texts("BadDeviceToken")),
            },
        ],
    };
    let device = |id: &str, platform: &str| push::Subscription {
        subscription_id: texts(id),
        member_id: texts("customer-1181"),
        platform: platform.to_owned(),
        channels: vec![texts("default"), texts("news")],
        created_at: NOW - 3 * DAY,
    };
    let view = push::Push {
        providers: vec![
            push::Provider {
                subject: Some(texts("mailto:ops@example.org")),
                vapid_public_key: Some(texts(
                    "BNb3xq9Kk1mYt0cP2sXw8vQ7rLz5hJd4fGnA6eUoI3yTpRmSlDkWvCxZaQbEjHgF",
                )),
                ..provider("web")
            },
            push::Provider {
                topic: Some(texts("org.example.shop")),
                key_id: Some(texts("ABC123DEFG")),
                team_id: Some(texts("TEAM123456")),
                auth: Some("token".to_owned()),
                sandbox: Some(true),
                ..provider("apns")
            },
        ],
        stats: push::Stats {
            subscriptions: push::ByPlatform {
                web: 60_120,
                fcm: 30_411,
                apns: 9469,
            },
            sent: 1_204_110,
            failed: 4123,
            expired: 3902,
            sent_this_month: 100_214,
            push_per_month: Some(500_000),
        },
        jobs: vec![
            job("j1", "active", "Autumn sale"),
            job("j2", "done", "Order shipped"),
            job("j3", "cancelled", "Test"),
        ],
        subscriptions: vec![device("sub_a", "web"), device("sub_b", "apns")],
        cursor: Some(texts("next")),
        ..push::Push::default()
    };
    vec![
        sample("push", push::render(&shell, &view)),
        sample("push-none", push::render(&shell, &push::Push::default())),
        sample(
            "push-job",
            push::job(&shell, &job("j1", "active", "Autumn sale")),
        ),
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
