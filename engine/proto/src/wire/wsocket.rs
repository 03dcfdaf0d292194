//! The wSocket protocol's frames: requests in (contract section 3), replies and deliveries out
//! (contract section 9).
//!
//! Not here: who may do what (`auth`), and what a request does (`shard`).
//!
//! A publish's `data` is kept as the bytes that the client sent: it is checked to be JSON and is
//! then copied into the delivery frame as it stands, so the order of its keys and the spelling of
//! its numbers survive.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{ErrorCode, ProtocolError};
use crate::limits::JSON_DEPTH_MAX;
use crate::ws::frame::{OpCode, write_header};

/// One request of a client, borrowed from its frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Request<'a> {
    Subscribe {
        channel: Cow<'a, str>,
    },
    Unsubscribe {
        channel: Cow<'a, str>,
    },
    Publish {
        channel: Cow<'a, str>,
        /// JSON text, untouched.
        data: &'a str,
        id: Option<Cow<'a, str>>,
        persist: bool,
    },
    Ping,
}

/// A request that is refused, with what is known of its address so that the error can name it.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestError {
    pub error: ProtocolError,
    pub channel: Option<String>,
    pub id: Option<String>,
}

impl RequestError {
    /// True where the bytes were not a well-formed request at all: what counts towards the close
    /// of a connection that keeps sending them (contract D31).
    pub fn is_malformed(&self) -> bool {
        matches!(
            self.error.code,
            ErrorCode::NotJson | ErrorCode::UnknownAction | ErrorCode::BadField
        )
    }
}

/// Top-level fields as raw JSON, so that a wrong type is reported with the field's name.
/// `null` and absent are the same (contract section 3).
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    action: Option<&'a RawValue>,
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    persist: Option<&'a RawValue>,
}

/// Parses one text message of a client.
///
/// Errors: 40001 not JSON or not an object, 40002 unknown action, 40003 missing or wrong field
/// (also JSON nested deeper than [`JSON_DEPTH_MAX`]).
pub fn parse_request(payload: &[u8]) -> Result<Request<'_>, RequestError> {
    let bare = |error| RequestError {
        error,
        channel: None,
        id: None,
    };
    let envelope: Envelope = serde_json::from_slice(payload).map_err(|e| {
        bare(match e.classify() {
            serde_json::error::Category::Data if is_object(payload) => {
                ProtocolError::with_text(ErrorCode::BadField, "a field is given twice")
            }
            _ => ErrorCode::NotJson.into(),
        })
    })?;
    parse_envelope(&envelope).map_err(|error| RequestError {
        error,
        channel: string(envelope.channel).ok().flatten().map(Cow::into_owned),
        id: string(envelope.id).ok().flatten().map(Cow::into_owned),
    })
}

fn parse_envelope<'a>(envelope: &Envelope<'a>) -> Result<Request<'a>, ProtocolError> {
    let action = string(envelope.action)
        .map_err(|()| wrong_field("`action` must be a string"))?
        .ok_or_else(|| wrong_field("`action` is missing"))?;
    let channel = || {
        string(envelope.channel)
            .map_err(|()| wrong_field("`channel` must be a string"))?
            .ok_or_else(|| wrong_field("`channel` is missing"))
    };
    match action.as_ref() {
        "publish" => Ok(Request::Publish {
            channel: channel()?,
            data: payload_json(envelope.data)?,
            id: string(envelope.id).map_err(|()| wrong_field("`id` must be a string"))?,
            persist: boolean(envelope.persist)
                .map_err(|()| wrong_field("`persist` must be true or false"))?
                .unwrap_or(true),
        }),
        "subscribe" => Ok(Request::Subscribe {
            channel: channel()?,
        }),
        "unsubscribe" => Ok(Request::Unsubscribe {
            channel: channel()?,
        }),
        "ping" => Ok(Request::Ping),
        _ => Err(ErrorCode::UnknownAction.into()),
    }
}

fn wrong_field(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}

/// A publish's `data` as JSON text; absent means `null` (contract 4.3.4).
///
/// Errors: 40003 when it is nested deeper than [`JSON_DEPTH_MAX`].
pub fn payload_json(data: Option<&RawValue>) -> Result<&str, ProtocolError> {
    let data = data.map_or("null", RawValue::get);
    if nests_too_deep(data.as_bytes()) {
        return Err(wrong_field("`data` is nested too deep"));
    }
    Ok(data)
}

fn is_object(payload: &[u8]) -> bool {
    payload.trim_ascii_start().first() == Some(&b'{')
}

/// The value of a raw JSON string; borrowed where it has no escape.
fn string(raw: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, ()> {
    let Some(raw) = raw else { return Ok(None) };
    let text = raw.get();
    if let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'))
        && !inner.contains('\\')
    {
        return Ok(Some(Cow::Borrowed(inner)));
    }
    serde_json::from_str::<String>(text)
        .map(|s| Some(Cow::Owned(s)))
        .map_err(drop)
}

fn boolean(raw: Option<&RawValue>) -> Result<Option<bool>, ()> {
    match raw.map(RawValue::get) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(_) => Err(()),
    }
}

/// Whether valid JSON nests deeper than [`JSON_DEPTH_MAX`]. The count of opening brackets is an
/// upper bound on the depth, and cheap: only a suspect is walked.
fn nests_too_deep(json: &[u8]) -> bool {
    let opening = json.iter().filter(|b| matches!(b, b'[' | b'{')).count();
    if opening <= JSON_DEPTH_MAX {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    false
}

/// Encodes text frames into one buffer that is used again for each.
///
/// The payload is written behind room for the longest header, whose bytes are then put right
/// before it: the frame is contiguous and nothing moves.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    buf: Vec<u8>,
    header: Vec<u8>,
}

/// The longest server frame header (RFC 6455 section 5.2: 2 bytes and a 64-bit length, no mask).
const HEADER_ROOM: usize = 10;

impl FrameEncoder {
    /// One text frame whose payload `write` appends to the buffer it is given.
    pub fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        self.buf.clear();
        self.buf.resize(HEADER_ROOM, 0);
        write(&mut self.buf);
        self.header.clear();
        write_header(
            &mut self.header,
            OpCode::Text,
            self.buf.len().saturating_sub(HEADER_ROOM),
        );
        let start = HEADER_ROOM.saturating_sub(self.header.len());
        if let Some(room) = self.buf.get_mut(start..HEADER_ROOM) {
            room.copy_from_slice(&self.header);
        }
        self.buf.get(start..).unwrap_or_default()
    }
}

/// Where and when a message stands in its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Server time of acceptance, ms since the Unix epoch; never falls within a channel.
    pub timestamp: u64,
    /// Place in the channel's log, from 1; none for an ephemeral message (contract D15).
    pub sequence: Option<u64>,
}

pub fn write_message(out: &mut Vec<u8>, channel: &str, data: &str, id: &str, position: Position) {
    out.extend_from_slice(b"{\"action\":\"message\",\"channel\":");
    write_string(out, channel);
    out.extend_from_slice(b",\"data\":");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b",\"id\":");
    write_string(out, id);
    write_position(out, position);
    out.push(b'}');
}

pub fn write_ack(out: &mut Vec<u8>, id: &str, channel: &str, position: Position) {
    out.extend_from_slice(b"{\"action\":\"ack\",\"id\":");
    write_string(out, id);
    out.extend_from_slice(b",\"channel\":");
    write_string(out, channel);
    write_position(out, position);
    out.push(b'}');
}

fn write_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(b",\"timestamp\":");
    write_integer(out, position.timestamp);
    if let Some(sequence) = position.sequence {
        out.extend_from_slice(b",\"sequence\":");
        write_integer(out, sequence);
    }
}

pub fn write_subscribed(out: &mut Vec<u8>, channel: &str) {
    out.extend_from_slice(b"{\"action\":\"subscribed\",\"channel\":");
    write_string(out, channel);
    out.push(b'}');
}

pub fn write_unsubscribed(out: &mut Vec<u8>, channel: &str) {
    out.extend_from_slice(b"{\"action\":\"unsubscribed\",\"channel\":");
    write_string(out, channel);
    out.push(b'}');
}

/// The answer to `ping`.
pub fn write_pong(out: &mut Vec<u8>, timestamp: u64) {
    out.extend_from_slice(b"{\"action\":\"pong\",\"timestamp\":");
    write_integer(out, timestamp);
    out.push(b'}');
}

/// The frame that breaks outbound silence (contract D12): every SDK swallows it.
pub fn write_heartbeat(out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"action\":\"pong\"}");
}

/// The hello frame (contract D9).
pub fn write_connected(out: &mut Vec<u8>, connection: &str, client_id: &str, server_time: u64) {
    out.extend_from_slice(b"{\"action\":\"connected\",\"id\":");
    write_string(out, connection);
    out.extend_from_slice(b",\"data\":{\"clientId\":");
    write_string(out, client_id);
    out.extend_from_slice(b",\"serverTime\":");
    write_integer(out, server_time);
    out.extend_from_slice(b"}}");
}

/// An error (contract D10): the text repeats the code because SDKs surface only the text.
pub fn write_error(
    out: &mut Vec<u8>,
    error: &ProtocolError,
    channel: Option<&str>,
    id: Option<&str>,
) {
    let code = error.code.code();
    out.extend_from_slice(b"{\"action\":\"error\",\"error\":");
    write_string(out, &format!("{} [{code}]", error.text));
    out.extend_from_slice(b",\"code\":");
    write_integer(out, u64::from(code));
    if let Some(channel) = channel {
        out.extend_from_slice(b",\"channel\":");
        write_string(out, channel);
    }
    if let Some(id) = id {
        out.extend_from_slice(b",\"id\":");
        write_string(out, id);
    }
    out.push(b'}');
}

/// A JSON string; escapes only where JSON demands it (RFC 8259 section 7).
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.extend_from_slice(text.as_bytes());
    } else {
        for byte in text.bytes() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(byte),
            }
        }
    }
    out.push(b'"');
}

/// A plain JSON integer (contract 4.3.3).
pub fn write_integer(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut used = 0usize;
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        used += 1;
        if value == 0 {
            break;
        }
    }
    out.extend(digits.iter().skip(digits.len() - used));
}

/// Entry point of the fuzz target `envelope`: any bytes give a request or an error, and what a
/// request carries can be sent on as valid JSON.
#[doc(hidden)]
pub fn fuzz_envelope(payload: &[u8]) {
    let Ok(request) = parse_request(payload) else {
        return;
    };
    if let Request::Publish {
        channel, data, id, ..
    } = request
    {
        let mut out = Vec::new();
        let position = Position {
            timestamp: 1,
            sequence: Some(1),
        };
        write_message(
            &mut out,
            &channel,
            data,
            id.as_deref().unwrap_or(""),
            position,
        );
        assert!(
            serde_json::from_slice::<&RawValue>(&out).is_ok(),
            "a delivery that is not JSON"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn code(payload: &str) -> u16 {
        parse_request(payload.as_bytes())
            .unwrap_err()
            .error
            .code
            .code()
    }

    #[test]
    fn publish_keeps_the_payload_as_it_was_written() {
        let text = r#" {"data": {"b":1.0e+2, "a":[ 1E400,"\u00e9"]} ,"channel":"c","action":"publish","id":"i"} "#;
        let request = parse_request(text.as_bytes()).unwrap();
        assert_eq!(
            request,
            Request::Publish {
                channel: "c".into(),
                data: r#"{"b":1.0e+2, "a":[ 1E400,"\u00e9"]}"#,
                id: Some("i".into()),
                persist: true
            }
        );
    }

    #[test]
    fn null_is_absent() {
        let text = br#"{"action":"publish","channel":"c","data":null,"id":null,"persist":null}"#;
        assert_eq!(
            parse_request(text).unwrap(),
            Request::Publish {
                channel: "c".into(),
                data: "null",
                id: None,
                persist: true
            }
        );
    }

    #[test]
    fn escapes_in_names_are_decoded() {
        let text = br#"{"action":"subscr\u0069be","channel":"\u0061b"}"#;
        assert_eq!(
            parse_request(text).unwrap(),
            Request::Subscribe {
                channel: "ab".into()
            }
        );
    }

    #[test]
    fn refusals_name_the_fault() {
        assert_eq!(code("nonsense"), 40001);
        assert_eq!(code("[1,2]"), 40001);
        assert_eq!(code("\"publish\""), 40001);
        assert_eq!(code("{}{}"), 40001);
        assert_eq!(code(r#"{"action":"dance"}"#), 40002);
        assert_eq!(code("{}"), 40003);
        assert_eq!(code(r#"{"action":7}"#), 40003);
        assert_eq!(code(r#"{"action":"subscribe"}"#), 40003);
        assert_eq!(code(r#"{"action":"subscribe","channel":{}}"#), 40003);
        assert_eq!(code(r#"{"action":"ping","action":"ping"}"#), 40003);
        assert_eq!(
            code(r#"{"action":"publish","channel":"c","id":5,"data":1}"#),
            40003
        );
        assert_eq!(
            code(r#"{"action":"publish","channel":"c","persist":"no"}"#),
            40003
        );
    }

    #[test]
    fn a_refusal_repeats_channel_and_id() {
        let refused = parse_request(br#"{"action":"publish","channel":"c","id":"i","persist":0}"#)
            .unwrap_err();
        assert_eq!(refused.channel.as_deref(), Some("c"));
        assert_eq!(refused.id.as_deref(), Some("i"));
    }

    #[test]
    fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let publish = |data: &str| format!(r#"{{"action":"publish","channel":"c","data":{data}}}"#);
        assert!(parse_request(publish(&nested(JSON_DEPTH_MAX)).as_bytes()).is_ok());
        assert_eq!(code(&publish(&nested(JSON_DEPTH_MAX + 1))), 40003);
        assert_eq!(code(&publish(&nested(60_000))), 40003);
        let harmless = format!("\"\\\"{}\"", "[".repeat(500));
        assert!(parse_request(publish(&harmless).as_bytes()).is_ok());
    }

    #[test]
    fn header_lengths_fit_every_payload_size() {
        let mut encoder = FrameEncoder::default();
        for (len, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let frame = encoder.text(|out| out.extend(std::iter::repeat_n(b'x', len)));
            assert_eq!(frame.len(), len + header);
            assert_eq!(frame[0], 0x81);
        }
    }

    #[test]
    fn error_frame_repeats_the_code_in_its_text() {
        let mut out = Vec::new();
        let error = ProtocolError::with_text(ErrorCode::BadField, "`id` must be a string");
        write_error(&mut out, &error, Some("c"), None);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"action":"error","error":"`id` must be a string [40003]","code":40003,"channel":"c"}"#
        );
    }

    proptest! {
        #[test]
        fn strings_and_integers_read_back(text in any::<String>(), value in any::<u64>()) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
            out.clear();
            write_integer(&mut out, value);
            prop_assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }

        #[test]
        fn any_publish_survives_its_own_delivery(
            channel in "[!#-)+-\\[\\]-~]{1,40}",
            id in any::<String>(),
            data in proptest::collection::vec(any::<(String, f64)>(), 0..5),
        ) {
            let data = serde_json::to_string(&data).unwrap();
            let text = serde_json::json!({"action": "publish", "channel": channel, "id": id}).to_string();
            let text = format!("{},\"data\":{data}}}", &text[..text.len() - 1]);
            let Request::Publish { channel: c, data: d, id: i, .. } = parse_request(text.as_bytes()).unwrap() else {
                panic!("not a publish");
            };
            prop_assert_eq!(c.as_ref(), channel.as_str());
            prop_assert_eq!(d, data.as_str());
            prop_assert_eq!(i.as_deref(), Some(id.as_str()));
            fuzz_envelope(text.as_bytes());
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_envelope(&bytes);
        }
    }
}
