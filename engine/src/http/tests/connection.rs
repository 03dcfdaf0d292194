//! What holds for every request: framing, limits, order, origins.

use serde_json::json;

use super::*;

#[test]
fn repeated_slashes_collapse() {
    let node = Node::start(&["*"], 1);
    assert_eq!(
        node.call("GET", "//api///channels", SERVER_KEY, "").status,
        200
    );
}

#[test]
fn a_connection_serves_many_requests_in_order() {
    let node = Node::start(&["*"], 1);
    let mut peer = Peer::connect(node.public);
    let request = |id: &str| {
        let body = format!(r#"{{"data":1,"id":"{id}"}}"#);
        let length = body.len();
        format!(
            "POST /api/channels/a/messages HTTP/1.1\r\nHost: h\r\nAuthorization: bearer {SERVER_KEY}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    peer.send(&(request("1") + &request("2") + &request("3")));
    for sequence in 1..=3 {
        let message = peer.reply(true).json()["messages"][0].clone();
        assert_eq!(
            (&message["sequence"], &message["id"]),
            (&json!(sequence), &json!(sequence.to_string()))
        );
    }
    // Byte by byte, so that every read ends in another place.
    for byte in request("4").bytes() {
        peer.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(peer.reply(true).json()["messages"][0]["sequence"], json!(4));
    let head = peer.call(
        "HEAD",
        "/api/channels",
        &format!("Authorization: Bearer {SERVER_KEY}\r\n"),
        "",
    );
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, Some("15"))
    );
    let closing = format!("Authorization: Bearer {SERVER_KEY}\r\nConnection: close\r\n");
    assert_eq!(peer.call("GET", "/api/channels", &closing, "").status, 200);
    assert!(peer.is_ended());
}

#[test]
fn a_body_above_the_limit_is_refused_and_the_answer_arrives() {
    let node = Node::start(&["*"], 1);
    let body = "x".repeat(300 * 1024);
    node.call("POST", "/api/channels/a/messages", SERVER_KEY, &body)
        .is_error(413, 41300);
    let mut chunked = Peer::connect(node.public);
    chunked.send(&format!(
        "POST /api/channels/a/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {SERVER_KEY}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    ));
    for _ in 0..40 {
        chunked.send(&format!("2000\r\n{}\r\n", "x".repeat(0x2000)));
    }
    chunked.send("0\r\n\r\n");
    chunked.reply(true).is_error(413, 41300);
}

#[test]
fn a_chunked_body_is_as_good() {
    let node = Node::start(&["*"], 1);
    let mut peer = Peer::connect(node.public);
    peer.send(&format!(
        "POST /api/channels/a/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {SERVER_KEY}\r\n\
         Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"dat\r\n7\r\na\":[1]}}\r\n0\r\n\r\n"
    ));
    assert_eq!(peer.reply(true).json()["messages"][0]["sequence"], json!(1));
}

#[test]
fn a_malformed_later_head_is_answered_as_json() {
    let node = Node::start(&["*"], 1);
    for (garbage, status) in [
        ("GE T / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(),
            400,
        ),
        (
            format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9000)),
            431,
        ),
    ] {
        let good = format!(
            "GET /api/channels HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {SERVER_KEY}\r\n\r\n"
        );
        let mut later = Peer::connect(node.public);
        later.send(&good);
        assert_eq!(later.reply(true).status, 200);
        later.send(&garbage);
        let mut pipelined = Peer::connect(node.public);
        pipelined.send(&(good + &garbage));
        assert_eq!(pipelined.reply(true).status, 200);
        for mut peer in [later, pipelined] {
            peer.reply(true).is_error(status, 40000);
            assert!(peer.is_ended());
        }
    }
}

#[test]
fn browsers_are_told_who_may_call() {
    let node = Node::start(&["https://a.example"], 1);
    let preflight = |origin: &str| {
        let headers = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        Peer::connect(node.public).call("OPTIONS", "/api/publish", &headers, "")
    };
    let good = preflight("https://a.example");
    assert_eq!((good.status, good.json()), (200, json!({})));
    assert_eq!(
        good.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    assert_eq!(
        good.header("access-control-allow-methods"),
        Some("GET, POST, DELETE")
    );
    let headers = "Authorization, Content-Type, X-App-Id, Idempotency-Key";
    assert_eq!(good.header("access-control-allow-headers"), Some(headers));
    assert!(good.header("access-control-max-age").is_some());
    assert_eq!(good.header("vary"), Some("Origin"));
    assert_eq!(
        preflight("https://b.example").header("access-control-allow-origin"),
        None
    );
    let simple = Peer::connect(node.public).call(
        "GET",
        "/api/channels",
        "Origin: https://a.example\r\n",
        "",
    );
    simple.is_error(401, 40100);
    assert_eq!(
        simple.header("access-control-allow-origin"),
        Some("https://a.example")
    );
    let open = Node::start(&["*"], 1);
    let any = Peer::connect(open.public).call(
        "GET",
        "/api/channels",
        "Origin: https://b.example\r\n",
        "",
    );
    assert_eq!(
        (
            any.header("access-control-allow-origin"),
            any.header("vary")
        ),
        (Some("*"), None)
    );
}
