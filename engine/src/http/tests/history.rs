//! What is stored, over HTTP: pages and removal.

use serde_json::json;

use super::*;

const PATH: &str = "/api/channels/a%3A1/messages";

/// Publishes 1..=`count` into `a:1`.
fn publish(node: &Node, count: u32) {
    let messages: Vec<_> = (1..=count)
        .map(|n| json!({"data": n, "id": format!("i{n}"), "clientId": "me"}))
        .collect();
    let reply = node.call("POST", PATH, SERVER_KEY, &json!(messages).to_string());
    assert_eq!(reply.status, 200, "{reply:?}");
}

fn sequences(page: &Value) -> Vec<u64> {
    let messages = page["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|m| m["sequence"].as_u64().unwrap())
        .collect()
}

#[test]
fn a_page_has_what_was_published() {
    let node = Node::start(&["*"], 1);
    publish(&node, 3);
    let page = node.call("GET", PATH, READER_KEY, "").json();
    assert_eq!(
        (&page["channel"], &page["hasMore"], sequences(&page)),
        (&json!("a:1"), &json!(false), vec![3, 2, 1])
    );
    let newest = &page["messages"][0];
    assert_eq!(
        (&newest["id"], &newest["data"], &newest["publisherId"]),
        (&json!("i3"), &json!(3), &json!("me"))
    );
    assert!(newest["timestamp"].is_u64());
    let twin = PATH.replacen("/api", "/api/admin/apps/app", 1);
    assert_eq!(node.call("GET", &twin, SERVER_KEY, "").json(), page);
    let none = node.call("GET", "/api/channels/a:none/messages", SERVER_KEY, "");
    assert_eq!(
        none.body,
        r#"{"channel":"a:none","messages":[],"hasMore":false}"#
    );
    let head = Peer::connect(node.public).call(
        "HEAD",
        PATH,
        &format!("Authorization: Bearer {SERVER_KEY}\r\n"),
        "",
    );
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn a_query_says_which_part() {
    let node = Node::start(&["*"], 1);
    publish(&node, 9);
    let get = |query: &str| {
        let page = node.call("GET", &format!("{PATH}?{query}"), SERVER_KEY, "");
        sequences(&page.json())
    };
    assert_eq!(
        get("direction=forward&afterSeq=2&beforeSeq=6"),
        vec![3, 4, 5]
    );
    assert_eq!(get("beforeSeq=3&limit=0&direction="), vec![2, 1]);
    assert_eq!(get("before=0"), Vec::<u64>::new());
    assert_eq!(get("after=0.5&beforeSeq=2&other=x"), vec![1]);
    assert_eq!(get("limit=99999999999999999999").len(), 9);
    for wrong in [
        "limit=x",
        "before=-1",
        "after=soon",
        "beforeSeq=-1",
        "direction=up",
    ] {
        let reply = node.call("GET", &format!("{PATH}?{wrong}"), SERVER_KEY, "");
        reply.is_error(400, 40003);
    }
    node.call("GET", &format!("{PATH}?limit=%ff"), SERVER_KEY, "")
        .is_error(400, 40000);
    node.call("GET", "/api/channels/no%20name/messages", SERVER_KEY, "")
        .is_error(400, 40009);
}

#[test]
fn history_is_for_those_who_may_and_where_it_is_kept() {
    let node = Node::start(&["*"], 1);
    node.call("GET", "/api/channels/b/messages", READER_KEY, "")
        .is_error(403, 40300);
    node.call("DELETE", PATH, READER_KEY, "")
        .is_error(403, 40300);
    node.call("GET", "/api/channels/quiet:1/messages", SERVER_KEY, "")
        .is_error(400, 40011);
}

#[test]
fn what_is_removed_is_gone_and_the_numbering_goes_on() {
    let node = Node::start(&["*"], 1);
    publish(&node, 4);
    let remove = || node.call("DELETE", PATH, SERVER_KEY, "").body;
    assert_eq!(remove(), r#"{"deleted":4}"#);
    assert_eq!(remove(), r#"{"deleted":0}"#);
    let page = node.call("GET", PATH, SERVER_KEY, "").json();
    assert_eq!(sequences(&page), Vec::<u64>::new());
    let next = node.call("POST", PATH, SERVER_KEY, r#"{"data":5}"#).json();
    assert_eq!(next["messages"][0]["sequence"], 5);
}
