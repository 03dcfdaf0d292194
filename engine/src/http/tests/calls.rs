//! What the API's calls do, and for whom.

use serde_json::json;

use super::*;

#[test]
fn messages_are_published_and_numbered() {
    let node = Node::start(&["*"], 1);
    let path = "/api/channels/room%3A1/messages";
    let reply = node.call("POST", path, SERVER_KEY, r#"{"data":{"a":1},"id":"one"}"#);
    let first = reply.json()["messages"][0].clone();
    assert_eq!(
        (
            reply.status,
            &first["id"],
            &first["channel"],
            &first["sequence"]
        ),
        (200, &json!("one"), &json!("room:1"), &json!(1))
    );
    assert!(first["timestamp"].is_u64() && first.get("duplicate").is_none());
    let again = node
        .call("POST", path, SERVER_KEY, r#"{"data":{"a":1},"id":"one"}"#)
        .json()["messages"][0]
        .clone();
    assert_eq!(
        (&again["sequence"], &again["duplicate"], &again["timestamp"]),
        (&json!(1), &json!(true), &first["timestamp"])
    );
    let array = node
        .call(
            "POST",
            path,
            SERVER_KEY,
            r#"[{"data":1},{"data":2,"persist":false}]"#,
        )
        .json();
    assert_eq!(array["messages"][0]["sequence"], json!(2));
    assert!(array["messages"][1].get("sequence").is_none());
    let info = node.call("GET", "/api/channels/room%3A1", SERVER_KEY, "");
    assert_eq!(
        info.body,
        r#"{"channel":"room:1","occupied":false,"subscribers":0,"members":0,"lastSequence":2}"#
    );
}

#[test]
fn the_idempotency_key_is_the_id() {
    let node = Node::start(&["*"], 1);
    let headers = format!("Authorization: Bearer {SERVER_KEY}\r\nIdempotency-Key: k1\r\n");
    let call = || {
        Peer::connect(node.public)
            .call(
                "POST",
                "/api/channels/a/messages",
                &headers,
                r#"{"data":1}"#,
            )
            .json()
    };
    assert_eq!(call()["messages"][0]["id"], "k1");
    assert_eq!(call()["messages"][0]["duplicate"], true);
}

#[test]
fn several_messages_fail_one_by_one_and_a_single_one_whole() {
    let node = Node::start(&["*"], 1);
    let body = r#"{"batch":[{"channel":"a:b","data":1},{"channel":"no name","data":1},{"channel":"z","data":1,"id":"i"}]}"#;
    let reply = node.call("POST", "/api/publish", NARROW_KEY, body);
    let messages = reply.json()["messages"].clone();
    assert_eq!((reply.status, &messages[0]["sequence"]), (200, &json!(1)));
    assert_eq!(
        messages[1],
        json!({"channel":"no name","error":"invalid channel name","code":40009})
    );
    assert_eq!(
        (&messages[2]["id"], &messages[2]["code"]),
        (&json!("i"), &json!(40300))
    );
    let several = node
        .call(
            "POST",
            "/api/publish",
            SERVER_KEY,
            r#"{"channels":["x","y"],"data":1}"#,
        )
        .json();
    assert_eq!(
        (
            &several["messages"][0]["channel"],
            &several["messages"][1]["channel"]
        ),
        (&json!("x"), &json!("y"))
    );
    node.call(
        "POST",
        "/api/channels/no%20name/messages",
        SERVER_KEY,
        r#"{"data":1}"#,
    )
    .is_error(400, 40009);
    node.call(
        "POST",
        "/api/channels/z/messages",
        NARROW_KEY,
        r#"{"data":1}"#,
    )
    .is_error(403, 40300);
    let large = format!(r#"{{"data":"{}"}}"#, "x".repeat(64 * 1024));
    node.call("POST", "/api/channels/z/messages", SERVER_KEY, &large)
        .is_error(413, 41300);
}

#[test]
fn callers_without_the_right_are_refused() {
    let node = Node::start(&["*"], 1);
    let calls = [
        ("POST", "/api/channels/a/messages", r#"{"data":1}"#),
        ("POST", "/api/publish", r#"{"channels":["a"],"data":1}"#),
        ("GET", "/api/channels", ""),
        ("GET", "/api/channels/a", ""),
        ("POST", "/api/clients/c/disconnect", ""),
        ("POST", "/api/clients/c/unsubscribe", r#"{"channel":"a"}"#),
        ("GET", "/api/channels/a/messages", ""),
        ("DELETE", "/api/channels/a/messages", ""),
    ];
    for (method, path, body) in calls {
        let bare = Peer::connect(node.public).call(method, path, "", body);
        bare.is_error(401, 40100);
        assert_eq!(bare.header("www-authenticate"), Some("Bearer"));
        node.call(method, path, "sk_unknown_0123456789", body)
            .is_error(401, 40101);
        node.call(method, path, DISABLED_KEY, body)
            .is_error(403, 40301);
        node.call(method, path, CLIENT_KEY, body)
            .is_error(403, 40300);
        let admin = path.replacen("/api", "/api/admin/apps/app", 1);
        node.call(method, &admin, OTHER_APP_KEY, body)
            .is_error(403, 40300);
        assert_eq!(
            node.call(method, &admin, SERVER_KEY, body).status,
            200,
            "{path}"
        );
        let in_query =
            Peer::connect(node.public).call(method, &format!("{path}?key={SERVER_KEY}"), "", body);
        assert_eq!(in_query.status, 200, "{path}");
    }
    for (method, path, body) in &calls[2..] {
        node.call(method, path, NARROW_KEY, body)
            .is_error(403, 40300);
    }
}

#[test]
fn wrong_requests_get_the_contracts_answers() {
    let node = Node::start(&["*"], 1);
    let path = "/api/channels/a/messages";
    node.call("POST", path, SERVER_KEY, "{")
        .is_error(400, 40001);
    node.call("POST", path, SERVER_KEY, r#"{"id":1,"data":1}"#)
        .is_error(400, 40003);
    node.call(
        "POST",
        "/api/channels/%ff/messages",
        SERVER_KEY,
        r#"{"data":1}"#,
    )
    .is_error(400, 40000);
    node.call("GET", "/api/channels?limit=x", SERVER_KEY, "")
        .is_error(400, 40003);
    node.call("POST", "/api/clients/%00/disconnect", SERVER_KEY, "")
        .is_error(400, 40003);
    node.call(
        "POST",
        "/api/clients/c/disconnect",
        SERVER_KEY,
        r#"{"code":1000}"#,
    )
    .is_error(400, 40003);
    for path in [
        "/",
        "/nothing",
        "/api",
        "/api/support/conversations",
        "/api/channels/a/b/c",
        "/api/admin/apps/app",
    ] {
        node.call("GET", path, SERVER_KEY, "").is_error(404, 40400);
    }
    let wrong_method = node.call("PUT", path, SERVER_KEY, "");
    wrong_method.is_error(405, 40000);
    assert_eq!(
        wrong_method.header("allow"),
        Some("GET, HEAD, POST, DELETE, OPTIONS")
    );
    assert_eq!(
        node.call("POST", "/api/channels", SERVER_KEY, "")
            .header("allow"),
        Some("GET, HEAD, OPTIONS")
    );
}

#[test]
fn sockets_are_listed_unsubscribed_and_ended() {
    let node = Node::start(&["*"], 1);
    let mut socket = Socket::open(node.public, &format!("/?key={CLIENT_KEY}&clientId=me%201"));
    for channel in ["room:1", "room:2", "other"] {
        socket.send(&json!({"action":"subscribe","channel":channel}));
        assert_eq!(socket.next()["action"], "subscribed");
    }
    let page = node
        .call("GET", "/api/channels?prefix=room:&limit=1", SERVER_KEY, "")
        .json();
    assert_eq!(
        page["channels"],
        json!([{"channel":"room:1","subscribers":1,"members":0}])
    );
    let next = format!(
        "/api/channels?prefix=room:&limit=1&cursor={}",
        page["cursor"].as_str().unwrap()
    );
    let last = node.call("GET", &next, SERVER_KEY, "").json();
    assert_eq!(
        last,
        json!({"channels":[{"channel":"room:2","subscribers":1,"members":0}]})
    );
    assert_eq!(
        node.call("GET", "/api/channels", OTHER_APP_KEY, "").json(),
        json!({"channels":[]})
    );
    let info = node
        .call("GET", "/api/channels/other", SERVER_KEY, "")
        .json();
    assert_eq!(
        (&info["occupied"], &info["subscribers"]),
        (&json!(true), &json!(1))
    );

    node.call(
        "POST",
        "/api/channels/other/messages",
        SERVER_KEY,
        r#"{"data":{"b":1.0e2, "a":2},"id":"i"}"#,
    );
    let text = socket.next_text();
    assert!(
        text.contains(r#""data":{"b":1.0e2, "a":2},"id":"i""#),
        "{text}"
    );

    let path = "/api/clients/me%201/unsubscribe";
    let gone = |count| json!({ "unsubscribed": count });
    assert_eq!(
        node.call("POST", path, SERVER_KEY, r#"{"channel":"other"}"#)
            .json(),
        gone(1)
    );
    assert_eq!(
        socket.next(),
        json!({"action":"unsubscribed","channel":"other"})
    );
    assert_eq!(socket.next()["code"], 40300);
    assert_eq!(
        node.call("POST", path, SERVER_KEY, r#"{"channel":"other"}"#)
            .json(),
        gone(0)
    );

    let path = "/api/clients/me%201/disconnect";
    assert_eq!(
        node.call("POST", path, OTHER_APP_KEY, "").json(),
        json!({"disconnected":0})
    );
    let reply = node.call("POST", path, SERVER_KEY, r#"{"code":4321,"reason":"bye"}"#);
    assert_eq!(reply.json(), json!({"disconnected":1}));
    assert_eq!(
        socket.next_frame(),
        (8, [&4321u16.to_be_bytes()[..], b"bye"].concat())
    );
}
