//! A known state and the page it gives.

use super::*;

fn stats() -> Stats {
    let mut counters = Counters {
        opened: 5,
        refused: 2,
        heads_failed: 1,
        subscriptions: 7,
        messages_in: 11,
        bytes_in: 1100,
        published: 9,
        duplicates: 1,
        publishes_refused: 3,
        deliveries: 40,
        replayed: 14,
        bytes_queued: 4000,
        bytes_sent: 3900,
        sends: 30,
        mesh_in: 12,
        mesh_out: 13,
        closed: vec![("peer_gone", 3), ("slow_consumer", 2)],
        errors: vec![(40003, 4)],
        ..Counters::default()
    };
    counters.limited[0][3] = 15;
    for us in [10, 16, 17, 40_000, u64::MAX / 2] {
        counters.delivery.record(us);
    }
    Stats {
        counters,
        connections: 3,
        channels: 2,
        home_channels: 1,
        members: 6,
        members_away: 2,
        ring_bytes: 5000,
        store_pending: 6,
        outbox_bytes: 100,
        mesh_pending: vec![0, 8],
    }
}

fn usage() -> UsageStats {
    UsageStats {
        lag_ms: 1500,
        failures: 3,
        marks_passed: [2, 1],
        ratios: vec![("shop".into(), "messages_per_day", 0.5)],
    }
}

fn store() -> StoreStats {
    let mut stats = StoreStats {
        queue_ops: 21,
        queue_bytes: 2100,
        reads_queued: 22,
        ops: 1000,
        ops_failed: 23,
        ops_refused: 24,
        commits: 100,
        commits_failed: 25,
        order_errors: 26,
        commit: Histogram::default(),
        last_commit_us: 27,
        reads: 50,
        reads_failed: 8,
        reads_refused: 28,
        read: Histogram::default(),
        expired: 29,
        reopened: 30,
        failing_since_ms: Some(1),
        writing_since_ms: None,
    };
    stats.commit.record(17);
    stats
}

fn page() -> String {
    let process = Process {
        resident_bytes: Some(2048),
        cpu_seconds: Some(1.25),
        open_fds: Some(17),
    };
    render(
        2,
        &[(ShardId(1), Box::new(stats()))],
        Some(&store()),
        Some(&usage()),
        None,
        &process,
    )
}

#[test]
fn every_number_has_its_line() {
    let page = page();
    for line in [
        r#"shardwire_shard_up{shard="0"} 0"#,
        r#"shardwire_shard_up{shard="1"} 1"#,
        r#"shardwire_connections{shard="1"} 3"#,
        r#"shardwire_channels{shard="1"} 2"#,
        r#"shardwire_home_channels{shard="1"} 1"#,
        r#"shardwire_subscriptions{shard="1"} 7"#,
        r#"shardwire_outbox_bytes{shard="1"} 100"#,
        r#"shardwire_messages_received_total{shard="1"} 11"#,
        r#"shardwire_received_bytes_total{shard="1"} 1100"#,
        r#"shardwire_publishes_total{shard="1",result="accepted"} 9"#,
        r#"shardwire_publishes_total{shard="1",result="duplicate"} 1"#,
        r#"shardwire_publishes_total{shard="1",result="refused"} 3"#,
        r#"shardwire_deliveries_total{shard="1"} 40"#,
        r#"shardwire_sent_bytes_total{shard="1"} 3900"#,
        r#"shardwire_sends_total{shard="1"} 30"#,
        r#"shardwire_slow_consumers_total{shard="1"} 2"#,
        r#"shardwire_connections_closed_total{shard="1",cause="peer_gone"} 3"#,
        r#"shardwire_errors_total{shard="1",code="40003"} 4"#,
        r#"shardwire_handshakes_total{shard="1",result="accepted"} 5"#,
        r#"shardwire_handshakes_total{shard="1",result="refused"} 2"#,
        r#"shardwire_handshakes_total{shard="1",result="failed"} 1"#,
        r#"shardwire_mesh_messages_total{shard="1",direction="in"} 12"#,
        r#"shardwire_mesh_messages_total{shard="1",direction="out"} 13"#,
        r#"shardwire_mesh_pending{shard="1",peer="0"} 0"#,
        r#"shardwire_mesh_pending{shard="1",peer="1"} 8"#,
        r#"shardwire_presence_members{shard="1"} 6"#,
        r#"shardwire_presence_away{shard="1"} 2"#,
        r#"shardwire_ring_bytes{shard="1"} 5000"#,
        r#"shardwire_store_pending{shard="1"} 6"#,
        r#"shardwire_replayed_total{shard="1"} 14"#,
        r#"shardwire_rate_limited_total{shard="1",class="publish",scope="app"} 15"#,
        "shardwire_usage_lag_seconds 1.5",
        "shardwire_usage_write_failures_total 3",
        r#"shardwire_quota_marks_total{percent="80"} 2"#,
        r#"shardwire_quota_ratio{app="shop",quota="messages_per_day"} 0.5"#,
        "shardwire_store_failing 1",
        "shardwire_store_queue_operations 21",
        "shardwire_store_queue_bytes 2100",
        "shardwire_store_queue_reads 22",
        r#"shardwire_store_operations_total{result="committed"} 1000"#,
        r#"shardwire_store_operations_total{result="failed"} 23"#,
        r#"shardwire_store_operations_total{result="refused"} 24"#,
        r#"shardwire_store_commits_total{result="committed"} 100"#,
        r#"shardwire_store_commits_total{result="failed"} 25"#,
        "shardwire_store_order_errors_total 26",
        r#"shardwire_store_reads_total{result="answered"} 42"#,
        r#"shardwire_store_reads_total{result="failed"} 8"#,
        r#"shardwire_store_reads_total{result="refused"} 28"#,
        "shardwire_store_expired_total 29",
        "shardwire_store_reopened_total 30",
        r#"shardwire_store_commit_seconds_bucket{le="0.000032"} 1"#,
        "shardwire_store_commit_seconds_count 1",
        "shardwire_store_read_seconds_count 0",
        "process_resident_memory_bytes 2048",
        "process_cpu_seconds_total 1.25",
        "process_open_fds 17",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line} is not in:\n{page}"
        );
    }
}

#[test]
fn a_histogram_is_cumulative_in_seconds() {
    let page = page();
    let lines: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("shardwire_delivery_seconds"))
        .collect();
    assert_eq!(lines.len(), Histogram::BUCKETS + 2);
    for line in [
        r#"shardwire_delivery_seconds_bucket{shard="1",le="0.000016"} 2"#,
        r#"shardwire_delivery_seconds_bucket{shard="1",le="0.000032"} 3"#,
        r#"shardwire_delivery_seconds_bucket{shard="1",le="0.032768"} 3"#,
        r#"shardwire_delivery_seconds_bucket{shard="1",le="0.065536"} 4"#,
        r#"shardwire_delivery_seconds_bucket{shard="1",le="8.388608"} 4"#,
        r#"shardwire_delivery_seconds_bucket{shard="1",le="+Inf"} 5"#,
        r#"shardwire_delivery_seconds_count{shard="1"} 5"#,
    ] {
        assert!(lines.contains(&line), "{line} is not in {lines:#?}");
    }
    assert!(page.contains("shardwire_turn_seconds_count{shard=\"1\"} 0\n"));
}

#[test]
fn every_family_is_declared_once_before_its_samples() {
    let page = page();
    let mut declared = Vec::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap();
            assert!(!declared.contains(&name), "{name} is declared twice");
            declared.push(name);
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = declared.last().unwrap();
            let suffix = name.strip_prefix(family);
            assert!(
                matches!(suffix, Some("" | "_bucket" | "_sum" | "_count")),
                "{name} is under {family}"
            );
            assert!(
                line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
                "{line}"
            );
        }
    }
    assert!(page.ends_with('\n'));
}

#[test]
fn proc_is_read_by_field() {
    assert_eq!(
        resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"),
        Some(1234 * 1024)
    );
    assert_eq!(resident_bytes("Name:\tx\n"), None);
    let stat = "77 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
    assert_eq!(cpu_seconds(stat), Some(2.0));
    assert_eq!(cpu_seconds("77 (a) S 1"), None);
}

#[test]
fn the_process_knows_itself() {
    let process = Process::read();
    assert!(process.resident_bytes.unwrap() > 0);
    assert!(process.open_fds.unwrap() >= 3);
    assert!(process.cpu_seconds.is_some());
}
