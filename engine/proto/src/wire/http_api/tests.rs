//! Bodies as clients send them, right and wrong.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::wire::wsocket::Position;

fn code<T>(result: Result<T, ProtocolError>) -> u16 {
    result.map(|_| ()).expect_err("must be refused").code.code()
}

fn there(subscribers: usize, members: usize) -> Occupants {
    Occupants {
        subscribers,
        members,
    }
}

fn messages(body: &str) -> Result<PublishRequest<'_>, ProtocolError> {
    parse_messages(body.as_bytes(), "room", None, 100)
}

fn publish(body: &str) -> Result<PublishRequest<'_>, ProtocolError> {
    parse_publish(body.as_bytes(), None, 100)
}

#[test]
fn data_is_handed_on_as_it_was_sent() {
    let body = r#" {"data": {"b":1.0e+2, "a" : "\u00e9"} ,"id":"x\u0041","persist":false,"clientId":"me","other":[1]}"#;
    let request = messages(body).unwrap();
    let [item] = request.items.as_slice() else {
        panic!("{request:?}")
    };
    assert!(request.single);
    assert_eq!(item.data, r#"{"b":1.0e+2, "a" : "\u00e9"}"#);
    assert_eq!(
        (&*item.channel, item.id.as_deref(), item.persist),
        ("room", Some("xA"), false)
    );
}

#[test]
fn an_array_of_one_reports_per_item() {
    let request = messages(r#"[{"data":null}]"#).unwrap();
    assert_eq!((request.items.len(), request.single), (1, false));
    assert_eq!(
        (request.items[0].data, request.items[0].persist),
        ("null", true)
    );
}

#[test]
fn null_is_a_value_of_data_and_nothing_elsewhere() {
    let request = messages(r#"{"data":null,"id":null,"persist":null,"clientId":null}"#).unwrap();
    assert_eq!(
        (request.items[0].data, request.items[0].id.as_deref()),
        ("null", None)
    );
    assert_eq!(code(messages(r#"{"id":"a"}"#)), 40003);
}

#[test]
fn what_is_not_json_is_told_from_a_wrong_field() {
    for body in [
        "",
        " ",
        "x",
        "{",
        "{\"data\":}",
        "{\"data\":1}x",
        "[{\"data\":1},",
        "\"s\"",
        "7",
        "{\"data\":\"\u{7}\"}",
    ] {
        assert_eq!(code(messages(body)), 40001, "{body}");
        assert_eq!(code(publish(body)), 40001, "{body}");
    }
    assert_eq!(
        code(parse_messages(b"{\"data\":\"\xff\"}", "room", None, 100)),
        40001
    );
    for body in [
        r#"{"data":1,"id":5}"#,
        r#"{"data":1,"persist":"yes"}"#,
        r#"{"data":1,"clientId":""}"#,
        r#"{"data":1,"clientId":"a\n"}"#,
        r#"{"data":1,"clientId":{}}"#,
        r#"{"data":1,"data":2}"#,
        "[]",
        "[1]",
        r#"[{"data":1},{}]"#,
    ] {
        assert_eq!(code(messages(body)), 40003, "{body}");
    }
}

#[test]
fn a_wrong_item_is_named() {
    let error = messages(r#"[{"data":1},{"data":1,"id":5}]"#).unwrap_err();
    assert_eq!(error.text, "message 1: `id` must be a string");
}

#[test]
fn data_nested_too_deep_is_refused() {
    let nested = |depth: usize| format!(r#"{{"data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(messages(&nested(128)).is_ok());
    assert_eq!(code(messages(&nested(129))), 40003);
    assert_eq!(code(messages(&nested(200_000))), 40003);
}

#[test]
fn lists_are_bounded() {
    let of = |n: usize| format!("[{}]", vec![r#"{"data":1,"channel":"c"}"#; n].join(","));
    assert_eq!(messages(&of(100)).unwrap().items.len(), 100);
    assert_eq!(
        messages(&of(101)).unwrap_err().text,
        "the array has more than 100 items"
    );
    assert_eq!(
        publish(&format!(r#"{{"batch":{}}}"#, of(100)))
            .unwrap()
            .items
            .len(),
        100
    );
    assert_eq!(code(publish(&format!(r#"{{"batch":{}}}"#, of(101)))), 40003);
    let channels = format!(
        r#"{{"channels":[{}],"data":1}}"#,
        vec![r#""c""#; 101].join(",")
    );
    assert_eq!(code(publish(&channels)), 40003);
}

#[test]
fn one_message_goes_to_several_channels() {
    let request = publish(r#"{"channels":["a","\u0062"],"data":{"x":1},"id":"i"}"#).unwrap();
    let seen: Vec<_> = request
        .items
        .iter()
        .map(|i| (&*i.channel, i.data, i.id.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            ("a", r#"{"x":1}"#, Some("i")),
            ("b", r#"{"x":1}"#, Some("i"))
        ]
    );
    assert!(!request.single);
}

#[test]
fn a_batch_has_a_channel_each() {
    let request =
        publish(r#"{"batch":[{"channel":"a","data":1},{"channel":"b","data":2,"persist":false}]}"#)
            .unwrap();
    let seen: Vec<_> = request
        .items
        .iter()
        .map(|i| (&*i.channel, i.data, i.persist))
        .collect();
    assert_eq!(seen, [("a", "1", true), ("b", "2", false)]);
}

#[test]
fn a_publish_has_exactly_one_form() {
    for body in [
        "{}",
        r#"{"channels":["a"],"batch":[],"data":1}"#,
        r#"{"channels":[],"data":1}"#,
        r#"{"channels":["a"]}"#,
        r#"{"channels":"a","data":1}"#,
        r#"{"channels":[null],"data":1}"#,
        r#"{"batch":[]}"#,
        r#"{"batch":{}}"#,
        r#"{"batch":[{"data":1}]}"#,
        r#"{"batch":[{"channel":1,"data":1}]}"#,
    ] {
        assert_eq!(code(publish(body)), 40003, "{body}");
    }
}

#[test]
fn the_idempotency_key_is_an_id_and_the_body_wins() {
    let key = Some("key");
    let id = |body: &str| {
        let request = parse_messages(body.as_bytes(), "room", key, 100).unwrap();
        request.items[0].id.as_deref().map(str::to_owned)
    };
    assert_eq!(id(r#"{"data":1}"#).as_deref(), Some("key"));
    assert_eq!(id(r#"{"data":1,"id":"own"}"#).as_deref(), Some("own"));
    assert_eq!(id(r#"[{"data":1}]"#).as_deref(), Some("key"));
    assert_eq!(
        code(parse_messages(
            br#"[{"data":1},{"data":2}]"#,
            "room",
            key,
            100
        )),
        40003
    );
    assert_eq!(
        code(parse_publish(
            br#"{"batch":[{"channel":"a","data":1}]}"#,
            key,
            100
        )),
        40003
    );
    let several = parse_publish(br#"{"channels":["a","b"],"data":1}"#, key, 100).unwrap();
    assert!(several.items.iter().all(|item| item.id.as_deref() == key));
}

#[test]
fn the_reply_follows_the_items() {
    let body = br#"{"batch":[{"channel":"a","data":1},{"channel":"b","data":1,"id":"i"},{"channel":"*","data":1,"id":"j"}]}"#;
    let request = parse_publish(body, None, 100).unwrap();
    let published = |id: &str, sequence, duplicate| {
        Ok(Published {
            id: Arc::from(id),
            position: Position {
                timestamp: 7,
                sequence,
            },
            duplicate,
        })
    };
    let results = [
        published("x", Some(3), true),
        published("i", None, false),
        Err(ErrorCode::BadChannelName),
    ];
    let mut out = Vec::new();
    write_publish_reply(&mut out, &request.items, &results);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        concat!(
            r#"{"messages":[{"id":"x","channel":"a","timestamp":7,"sequence":3,"duplicate":true},"#,
            r#"{"id":"i","channel":"b","timestamp":7},"#,
            r#"{"id":"j","channel":"*","error":"invalid channel name","code":40009}]}"#
        )
    );
}

#[test]
fn a_page_of_channels_goes_on_from_its_cursor() {
    let first = ChannelPage::parse("limit=2&prefix=ro%6Fm%3A").unwrap();
    assert_eq!(
        first,
        ChannelPage {
            prefix: "room:".into(),
            after: None,
            limit: 2
        }
    );
    let mut out = Vec::new();
    write_channels(
        &mut out,
        &[
            ("room:a", there(1, 4)),
            ("room:b", there(2, 0)),
            ("room:c", there(0, 3)),
        ],
        2,
    );
    let reply: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        reply["channels"][1],
        serde_json::json!({"channel":"room:b","subscribers":2,"members":0})
    );
    assert_eq!(reply["channels"].as_array().unwrap().len(), 2);
    let cursor = reply["cursor"].as_str().unwrap();
    let next = ChannelPage::parse(&format!("cursor={cursor}")).unwrap();
    assert_eq!(next.after.as_deref(), Some("room:b"));
    out.clear();
    write_channels(
        &mut out,
        &[("room:a", there(1, 4)), ("room:b", there(2, 0))],
        2,
    );
    assert!(!String::from_utf8(out).unwrap().contains("cursor"));
}

#[test]
fn page_limits_are_clamped_and_nonsense_is_refused() {
    let limit = |query: &str| ChannelPage::parse(query).map(|page| page.limit);
    assert_eq!(
        (limit(""), limit("limit=0"), limit("limit=")),
        (Ok(100), Ok(100), Ok(100))
    );
    assert_eq!(
        (limit("limit=1&limit=2"), limit("limit=5000")),
        (Ok(1), Ok(1000))
    );
    for query in ["limit=x", "limit=-1", "cursor=!", "cursor=_w"] {
        assert_eq!(code(limit(query)), 40003, "{query}");
    }
    assert_eq!(code(limit("prefix=%")), 40000);
}

#[test]
fn a_channel_is_described() {
    let mut out = Vec::new();
    write_channel(&mut out, "a", there(2, 3), 9);
    let reply = String::from_utf8(out).unwrap();
    assert_eq!(
        reply,
        r#"{"channel":"a","occupied":true,"subscribers":2,"members":3,"lastSequence":9}"#
    );
}

#[test]
fn disconnect_has_defaults_and_bounds() {
    let default = (4010, "ended by an administrator".to_owned());
    assert_eq!(parse_disconnect(b""), Ok(default.clone()));
    assert_eq!(parse_disconnect(b" {\"code\":null}"), Ok(default));
    assert_eq!(
        parse_disconnect(br#"{"code":4999,"reason":"b\u0079e"}"#),
        Ok((4999, "bye".into()))
    );
    for body in [
        r#"{"code":1000}"#,
        r#"{"code":"4000"}"#,
        r#"{"code":4000.5}"#,
        r#"{"reason":1}"#,
    ] {
        assert_eq!(code(parse_disconnect(body.as_bytes())), 40003, "{body}");
    }
    assert_eq!(
        code(parse_disconnect(
            format!(r#"{{"reason":"{}"}}"#, "x".repeat(124)).as_bytes()
        )),
        40003
    );
    assert_eq!(code(parse_disconnect(b"[]")), 40001);
}

#[test]
fn unsubscribe_needs_a_channel() {
    assert_eq!(parse_unsubscribe(br#"{"channel":"a"}"#).as_deref(), Ok("a"));
    assert_eq!(code(parse_unsubscribe(b"{}")), 40003);
    assert_eq!(code(parse_unsubscribe(br#"{"channel":["a"]}"#)), 40003);
    assert_eq!(code(parse_unsubscribe(b"")), 40001);
}

#[test]
fn a_page_is_asked_for_by_query() {
    let asked = PageRequest {
        limit: Some(10),
        before_ms: Some(1_700_000_000_123),
        after_ms: Some(5),
        before_sequence: Some(9),
        after_sequence: Some(2),
        forward: true,
    };
    let query = "limit=10&before=1700000000123.9&after=5&direction=forward&beforeSeq=9&afterSeq=2";
    assert_eq!(parse_page(query), Ok(asked));
    assert_eq!(
        parse_page("limit=&before=&x=1&direction="),
        Ok(PageRequest::default())
    );
    assert_eq!(
        parse_page("limit=1&limit=2").map(|page| page.limit),
        Ok(Some(1))
    );
    assert_eq!(
        parse_page("limit=-1.5").map(|page| page.limit),
        Ok(Some(-1))
    );
    for wrong in [
        "limit=x",
        "limit=NaN",
        "limit=\"1\"",
        "before=-1",
        "after=1e99",
        "beforeSeq=x",
        "afterSeq=-0.5",
        "direction=Forward",
    ] {
        assert_eq!(code(parse_page(wrong)), 40003, "{wrong}");
    }
    assert_eq!(code(parse_page("limit=%zz")), 40000);
}

#[test]
fn counts_are_named() {
    let mut out = Vec::new();
    write_count(&mut out, "disconnected", 3);
    assert_eq!(out, br#"{"disconnected":3}"#);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\":,0-9a-z ]{0,40}") {
        for body in [&body[..], text.as_bytes()] {
            let _ = parse_messages(body, "room", None, 3);
            let _ = parse_publish(body, None, 3);
            let _ = parse_disconnect(body);
            let _ = parse_unsubscribe(body);
            let _ = std::str::from_utf8(body).map(parse_page);
        }
    }

    #[test]
    fn any_json_survives_as_data(text in any::<String>(), number in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
        let data = serde_json::json!([text, {"n": number}]).to_string();
        let body = format!(r#"{{"data": {data} }}"#);
        let request = messages(&body).unwrap();
        prop_assert_eq!(request.items[0].data, &data);
    }
}
