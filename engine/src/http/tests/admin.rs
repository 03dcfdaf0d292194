//! Health, readiness and metrics.

use super::*;

#[test]
fn a_missing_shard_is_not_passed_over() {
    let node = Node::start(&["*"], 2);
    let list = node.call("GET", "/api/channels", SERVER_KEY, "");
    list.is_error(503, 50300);
    assert!(matches!(
        list.header("retry-after"),
        Some("1" | "2" | "3" | "4" | "5")
    ));
    let health = Peer::connect(node.admin).call("GET", "/healthz", "", "");
    health.is_error(503, 50300);
    assert!(health.body.contains("do not answer: 1"), "{health:?}");
    let metrics = Peer::connect(node.admin).call("GET", "/metrics", "", "");
    assert!(
        metrics.body.contains("shardwire_shard_up{shard=\"1\"} 0\n"),
        "{metrics:?}"
    );
}

#[test]
fn the_admin_port_tells_how_it_stands() {
    let node = Node::start(&["*"], 1);
    let mut admin = Peer::connect(node.admin);
    let health = admin.call("GET", "/healthz", "", "");
    assert_eq!(
        (health.status, health.body.as_str()),
        (200, r#"{"status":"ok"}"#)
    );
    admin.call("GET", "/readyz", "", "").is_error(503, 50300);
    node.enter(Stage::Serving);
    await_ready(&mut admin, 200);
    node.call("GET", "/api/channels", SERVER_KEY, "");
    node.call("GET", "/nothing", SERVER_KEY, "")
        .is_error(404, 40400);
    let metrics = admin.call("GET", "/metrics", "", "");
    assert_eq!(
        metrics.header("content-type"),
        Some(crate::metrics::CONTENT_TYPE)
    );
    for line in [
        "shardwire_http_requests_total{shard=\"0\"} 2",
        "shardwire_errors_total{shard=\"0\",code=\"40400\"} 1",
        "shardwire_shard_up{shard=\"0\"} 1",
    ] {
        assert!(
            metrics.body.lines().any(|found| found == line),
            "{line} is not in:\n{}",
            metrics.body
        );
    }
    admin.call("GET", "/other", "", "").is_error(404, 40400);
    assert_eq!(
        admin.call("POST", "/metrics", "", "").header("allow"),
        Some("GET, HEAD")
    );
    node.enter(Stage::Draining);
    await_ready(&mut admin, 503);
    assert!(
        admin
            .call("GET", "/readyz", "", "")
            .body
            .contains("draining")
    );
    assert_eq!(admin.call("GET", "/healthz", "", "").status, 200);
    let last = node.call("GET", "/api/channels", SERVER_KEY, "");
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
}

/// Each question is answered after what the shard was told before, at the latest in the next round.
fn await_ready(admin: &mut Peer, status: u16) {
    let arrived = (0..1000).any(|_| admin.call("GET", "/readyz", "", "").status == status);
    assert!(arrived, "never became {status}");
}
