//! Presence frames (contract 4.2, section 9, D21) in the three shapes, and the members over HTTP.
//!
//! A member's state is the text of a JSON object as its client sent it.

use data_encoding::BASE64URL_NOPAD;

use super::{write_integer, write_string};
use crate::channel::presence::{Count, Event, EventKind, Listed, Notice};
use crate::limits::PRESENCE_FRAME_BYTES_MAX;
use crate::url::Shape;

/// Members as a page over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPage {
    pub members: Vec<Listed>,
    /// Members of the channel.
    pub total: usize,
    /// There are more behind these.
    pub has_more: bool,
}

/// One notice in one shape.
pub fn write_notice(out: &mut Vec<u8>, channel: &str, notice: &Notice, shape: Shape) {
    match notice {
        Notice::Event(event) => write_event(out, channel, event, shape),
        Notice::Count(count) => write_count_notice(out, channel, *count),
    }
}

fn write_event(out: &mut Vec<u8>, channel: &str, event: &Event, shape: Shape) {
    out.extend_from_slice(match event.kind {
        EventKind::Enter => b"{\"action\":\"presence.enter\",\"channel\":",
        EventKind::Update => b"{\"action\":\"presence.update\",\"channel\":",
        EventKind::Leave => b"{\"action\":\"presence.leave\",\"channel\":",
    });
    write_string(out, channel);
    let state = event.state.as_deref();
    if shape != Shape::Standard {
        write_identity(out, b",\"clientId\":", &event.client_id, event.joined_at);
    }
    if shape == Shape::Flat {
        write_state(out, state);
    } else {
        out.extend_from_slice(b",\"data\":");
        write_member(out, &event.client_id, event.joined_at, state);
    }
    out.push(b'}');
}

/// The number of members, an extension of the contract: sent instead of events where they would be
/// too many. `events` says whether events follow from here on.
pub fn write_count_notice(out: &mut Vec<u8>, channel: &str, count: Count) {
    out.extend_from_slice(b"{\"action\":\"presence.count\",\"channel\":");
    write_string(out, channel);
    out.extend_from_slice(b",\"count\":");
    write_integer(out, count.members as u64);
    out.extend_from_slice(b",\"timestamp\":");
    write_integer(out, count.timestamp);
    out.extend_from_slice(b",\"events\":");
    out.extend_from_slice(if count.events { b"true" } else { b"false" });
    out.push(b'}');
}

/// The answer to `presence.get`. Cut so that the frame stays below its limit, and said to be so.
pub fn write_members(
    out: &mut Vec<u8>,
    channel: &str,
    members: impl Iterator<Item = Listed>,
    total: usize,
    shape: Shape,
) {
    let copies = if shape == Shape::Mirrored { 2 } else { 1 };
    let mut list = vec![b'['];
    let mut listed = 0;
    for member in members {
        let length = list.len();
        if listed > 0 {
            list.push(b',');
        }
        write_listed(&mut list, &member);
        if list.len() * copies > PRESENCE_FRAME_BYTES_MAX {
            list.truncate(length);
            break;
        }
        listed += 1;
    }
    list.push(b']');
    out.extend_from_slice(b"{\"action\":\"presence.members\",\"channel\":");
    write_string(out, channel);
    if shape != Shape::Flat {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(&list);
    }
    if shape != Shape::Standard {
        out.extend_from_slice(b",\"members\":");
        out.extend_from_slice(&list);
    }
    if listed < total {
        out.extend_from_slice(b",\"truncated\":true,\"total\":");
        write_integer(out, total as u64);
    }
    out.push(b'}');
}

/// The reply to `GET /api/channels/{channel}/presence`.
pub fn write_member_page(out: &mut Vec<u8>, channel: &str, page: &MemberPage) {
    out.extend_from_slice(b"{\"channel\":");
    write_string(out, channel);
    out.extend_from_slice(b",\"members\":[");
    for (index, member) in page.members.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_listed(out, member);
        out.pop();
        out.extend_from_slice(b",\"connections\":");
        write_integer(out, member.connections as u64);
        out.push(b'}');
    }
    out.extend_from_slice(b"],\"total\":");
    write_integer(out, page.total as u64);
    if let Some(last) = page.members.last().filter(|_| page.has_more) {
        out.extend_from_slice(b",\"cursor\":");
        write_string(out, &BASE64URL_NOPAD.encode(last.client_id.as_bytes()));
    }
    out.push(b'}');
}

fn write_listed(out: &mut Vec<u8>, member: &Listed) {
    write_member(
        out,
        &member.client_id,
        member.joined_at,
        member.state.as_deref(),
    );
}

fn write_member(out: &mut Vec<u8>, client_id: &str, joined_at: u64, state: Option<&str>) {
    write_identity(out, b"{\"clientId\":", client_id, joined_at);
    write_state(out, state);
    out.push(b'}');
}

fn write_identity(out: &mut Vec<u8>, before: &[u8], client_id: &str, joined_at: u64) {
    out.extend_from_slice(before);
    write_string(out, client_id);
    out.extend_from_slice(b",\"joinedAt\":");
    write_integer(out, joined_at);
}

fn write_state(out: &mut Vec<u8>, state: Option<&str>) {
    if let Some(state) = state {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(state.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn notice(state: Option<&str>) -> Notice {
        Notice::Event(Event {
            kind: EventKind::Enter,
            client_id: "a\"b".into(),
            joined_at: 7,
            state: state.map(Into::into),
        })
    }

    fn written(notice: &Notice, shape: Shape) -> Value {
        let mut out = Vec::new();
        write_notice(&mut out, "c", notice, shape);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn an_event_has_the_form_of_each_shape() {
        let with = notice(Some(r#"{"x": 1}"#));
        let member = json!({"clientId": "a\"b", "joinedAt": 7, "data": {"x": 1}});
        assert_eq!(
            written(&with, Shape::Mirrored),
            json!({"action": "presence.enter", "channel": "c", "clientId": "a\"b", "joinedAt": 7, "data": member})
        );
        assert_eq!(
            written(&with, Shape::Standard),
            json!({"action": "presence.enter", "channel": "c", "data": member})
        );
        assert_eq!(
            written(&with, Shape::Flat),
            json!({"action": "presence.enter", "channel": "c", "clientId": "a\"b", "joinedAt": 7, "data": {"x": 1}})
        );
        assert_eq!(
            written(&notice(None), Shape::Flat),
            json!({"action": "presence.enter", "channel": "c", "clientId": "a\"b", "joinedAt": 7})
        );
    }

    fn listed(n: usize, state_bytes: usize) -> Vec<Listed> {
        let member = |i| Listed {
            client_id: format!("client-{i:06}").into(),
            joined_at: 1_700_000_000_000,
            state: Some(format!("{{\"s\":\"{}\"}}", "x".repeat(state_bytes)).into()),
            connections: 1,
        };
        (0..n).map(member).collect()
    }

    #[test]
    fn a_list_of_members_is_cut_below_the_largest_frame_and_says_so() {
        for shape in [Shape::Mirrored, Shape::Standard, Shape::Flat] {
            let mut out = Vec::new();
            write_members(&mut out, "c", listed(1000, 2000).into_iter(), 1000, shape);
            assert!(out.len() <= PRESENCE_FRAME_BYTES_MAX + 1024);
            assert!(out.len() > PRESENCE_FRAME_BYTES_MAX - 8192);
            let frame: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(frame["truncated"], true);
            assert_eq!(frame["total"], 1000);
            assert_eq!(frame["data"].is_array(), shape != Shape::Flat);
            assert_eq!(frame["members"].is_array(), shape != Shape::Standard);
        }
        let mut out = Vec::new();
        write_members(&mut out, "c", std::iter::empty(), 0, Shape::Mirrored);
        let frame: Value = serde_json::from_slice(&out).unwrap();
        let empty =
            json!({"action": "presence.members", "channel": "c", "data": [], "members": []});
        assert_eq!(frame, empty);
    }

    #[test]
    fn a_page_gives_a_cursor_where_it_goes_on() {
        let mut page = MemberPage {
            members: listed(2, 1),
            total: 5,
            has_more: true,
        };
        let mut out = Vec::new();
        write_member_page(&mut out, "c", &page);
        let reply: Value = serde_json::from_slice(&out).unwrap();
        let cursor = BASE64URL_NOPAD.encode(b"client-000001");
        assert_eq!(reply["cursor"], cursor.as_str());
        assert_eq!(reply["members"][1]["connections"], 1);
        assert_eq!(reply["total"], 5);
        page.has_more = false;
        out.clear();
        write_member_page(&mut out, "c", &page);
        let reply: Value = serde_json::from_slice(&out).unwrap();
        assert!(reply.get("cursor").is_none());
    }
}
