//! Requests of clients (contract section 3): JSON text in, [`Request`] out.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{ErrorCode, ProtocolError};
use crate::limits::JSON_DEPTH_MAX;
use crate::wire::resume::floor_ms;

/// One request of a client, borrowed from its frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Request<'a> {
    Subscribe {
        channel: Cow<'a, str>,
        from: Option<SubscribeFrom>,
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
    History {
        channel: Cow<'a, str>,
        page: PageRequest,
    },
    Presence {
        channel: Cow<'a, str>,
        request: PresenceRequest<'a>,
    },
    Resume {
        token: Cow<'a, str>,
        /// The token came in group B's field (contract 5.6).
        flat: bool,
    },
}

/// What a client wants of a channel's presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceRequest<'a> {
    /// `presence.enter` or `presence.update`, which are the same but for whether the client is a
    /// member (contract D20). The state is the text of a JSON object, untouched.
    Put(Option<&'a str>),
    Leave,
    Get,
}

/// What a subscriber wants to be sent of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscribeFrom {
    /// So many of the newest messages (contract D18).
    Rewind(usize),
    /// All behind a position; without one only the channel's position is told. An extension of the
    /// contract.
    Since(Option<(u64, Box<str>)>),
}

/// A `history` request as given; limits are applied by the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageRequest {
    /// None or below 1: the default.
    pub limit: Option<i64>,
    pub before_ms: Option<u64>,
    pub after_ms: Option<u64>,
    pub before_sequence: Option<u64>,
    pub after_sequence: Option<u64>,
    pub forward: bool,
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
    /// Fields of the rarer requests, read only for those.
    #[serde(borrow)]
    rewind: Option<&'a RawValue>,
    #[serde(borrow)]
    since: Option<&'a RawValue>,
    #[serde(borrow)]
    limit: Option<&'a RawValue>,
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow, rename = "beforeSeq")]
    before_sequence: Option<&'a RawValue>,
    #[serde(borrow, rename = "afterSeq")]
    after_sequence: Option<&'a RawValue>,
    #[serde(borrow)]
    direction: Option<&'a RawValue>,
    #[serde(borrow, rename = "resumeToken")]
    resume_token: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
}

/// Parses one text message of a client.
///
/// Errors: 40001 not JSON or not an object, 40002 unknown action, 40003 missing or wrong field
/// (also JSON nested deeper than [`JSON_DEPTH_MAX`]).
pub fn parse_request(payload: &str) -> Result<Request<'_>, RequestError> {
    let bare = |error| RequestError {
        error,
        channel: None,
        id: None,
    };
    let envelope: Envelope = serde_json::from_str(payload).map_err(|e| {
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
            from: subscribe_from(envelope)?,
        }),
        "unsubscribe" => Ok(Request::Unsubscribe {
            channel: channel()?,
        }),
        "ping" => Ok(Request::Ping),
        "history" => Ok(Request::History {
            channel: channel()?,
            page: page_request(envelope)?,
        }),
        "presence.enter" | "presence.update" => Ok(Request::Presence {
            channel: channel()?,
            request: PresenceRequest::Put(presence_state(envelope.data)?),
        }),
        "presence.leave" => Ok(Request::Presence {
            channel: channel()?,
            request: PresenceRequest::Leave,
        }),
        "presence.get" => Ok(Request::Presence {
            channel: channel()?,
            request: PresenceRequest::Get,
        }),
        "resume" => {
            let (raw, flat) = match envelope.resume_token {
                Some(raw) => (Some(raw), false),
                None => (envelope.token, true),
            };
            let token = string(raw)
                .map_err(|()| wrong_field("`resumeToken` must be a string"))?
                .ok_or_else(|| wrong_field("`resumeToken` is missing"))?;
            Ok(Request::Resume { token, flat })
        }
        _ => Err(ErrorCode::UnknownAction.into()),
    }
}

fn subscribe_from(envelope: &Envelope<'_>) -> Result<Option<SubscribeFrom>, ProtocolError> {
    #[derive(Deserialize)]
    struct Since {
        sequence: Option<u64>,
        epoch: Option<Box<str>>,
    }
    if let Some(raw) = envelope.since {
        let since: Since = serde_json::from_str(raw.get())
            .map_err(|_| wrong_field("`since` must be an object with `sequence` and `epoch`"))?;
        let position = since.sequence.zip(since.epoch);
        return Ok(Some(SubscribeFrom::Since(position)));
    }
    let rewind = value(envelope.rewind).map_or(Ok(0), |v| {
        v.as_u64()
            .ok_or_else(|| wrong_field("`rewind` must be a whole number"))
    })?;
    let rewind = usize::try_from(rewind).unwrap_or(usize::MAX);
    Ok((rewind > 0).then_some(SubscribeFrom::Rewind(rewind)))
}

fn page_request(envelope: &Envelope<'_>) -> Result<PageRequest, ProtocolError> {
    let time = |raw, text| {
        value(raw)
            .map(|v| floor_ms(&v).ok_or_else(|| wrong_field(text)))
            .transpose()
    };
    let sequence = |raw, text| {
        value(raw)
            .map(|v| v.as_u64().ok_or_else(|| wrong_field(text)))
            .transpose()
    };
    let limit = value(envelope.limit)
        .map(|v| {
            // Beyond what fits, the maximum holds anyway.
            v.as_i64()
                .or_else(|| v.as_f64().map(|f| f as i64))
                .ok_or_else(|| wrong_field("`limit` must be a number"))
        })
        .transpose()?;
    Ok(PageRequest {
        limit,
        before_ms: time(envelope.before, "`before` must be a timestamp in ms")?,
        after_ms: time(envelope.after, "`after` must be a timestamp in ms")?,
        before_sequence: sequence(envelope.before_sequence, "`beforeSeq` must be a sequence")?,
        after_sequence: sequence(envelope.after_sequence, "`afterSeq` must be a sequence")?,
        forward: parse_direction(
            string(envelope.direction)
                .map_err(|()| wrong_field("`direction` must be a string"))?
                .as_deref(),
        )?,
    })
}

/// True for `forward`. Errors: 40003 for an unknown direction (contract D17).
pub fn parse_direction(direction: Option<&str>) -> Result<bool, ProtocolError> {
    match direction {
        None | Some("backward") => Ok(false),
        Some("forward") => Ok(true),
        Some(_) => Err(wrong_field("`direction` must be `forward` or `backward`")),
    }
}

fn value(raw: Option<&RawValue>) -> Option<Value> {
    // Raw JSON has been checked; a number beyond what a double holds is no value.
    raw.map(|raw| serde_json::from_str(raw.get()).unwrap_or(Value::Bool(false)))
}

pub(in crate::wire) fn wrong_field(text: &'static str) -> ProtocolError {
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

/// The state of a presence request; an empty array is php's empty object and counts as absent.
///
/// Errors: 40010 when it is not an object (contract D20), 40003 when it is nested too deep.
fn presence_state(data: Option<&RawValue>) -> Result<Option<&str>, ProtocolError> {
    let Some(data) = data.map(RawValue::get) else {
        return Ok(None);
    };
    if is_object(data) {
        if nests_too_deep(data.as_bytes()) {
            return Err(wrong_field("`data` is nested too deep"));
        }
        return Ok(Some(data));
    }
    let inner = data.strip_prefix('[').and_then(|d| d.strip_suffix(']'));
    if inner.is_some_and(|i| i.trim().is_empty()) {
        Ok(None)
    } else {
        Err(ErrorCode::BadPresenceState.into())
    }
}

fn is_object(payload: &str) -> bool {
    payload.trim_start().starts_with('{')
}

/// The value of a raw JSON string; borrowed where it has no escape.
pub(in crate::wire) fn string(raw: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, ()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::wsocket::fuzz_envelope;
    use proptest::prelude::*;

    fn code(payload: &str) -> u16 {
        parse_request(payload).unwrap_err().error.code.code()
    }

    #[test]
    fn publish_keeps_the_payload_as_it_was_written() {
        let text = r#" {"data": {"b":1.0e+2, "a":[ 1E400,"\u00e9"]} ,"channel":"c","action":"publish","id":"i"} "#;
        let request = parse_request(text).unwrap();
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
        let text = r#"{"action":"publish","channel":"c","data":null,"id":null,"persist":null}"#;
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
        let text = r#"{"action":"subscr\u0069be","channel":"\u0061b"}"#;
        assert_eq!(
            parse_request(text).unwrap(),
            Request::Subscribe {
                channel: "ab".into(),
                from: None
            }
        );
    }

    fn from(payload: &str) -> Option<SubscribeFrom> {
        match parse_request(payload).unwrap() {
            Request::Subscribe { from, .. } => from,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_subscribe_says_what_of_the_past_it_wants() {
        let with = |rest: &str| from(&format!(r#"{{"action":"subscribe","channel":"c"{rest}}}"#));
        assert_eq!(with(""), None);
        assert_eq!(with(r#","rewind":0"#), None);
        assert_eq!(with(r#","rewind":null"#), None);
        assert_eq!(with(r#","rewind":7"#), Some(SubscribeFrom::Rewind(7)));
        assert_eq!(
            with(r#","since":{"sequence":3,"epoch":"E"},"rewind":7"#),
            Some(SubscribeFrom::Since(Some((3, "E".into()))))
        );
        assert_eq!(with(r#","since":{}"#), Some(SubscribeFrom::Since(None)));
        for bad in [r#","rewind":-1"#, r#","rewind":"7""#, r#","since":3"#] {
            let text = format!(r#"{{"action":"subscribe","channel":"c"{bad}}}"#);
            assert_eq!(code(&text), 40003, "{bad}");
        }
    }

    #[test]
    fn a_history_request_is_read_as_the_sdks_write_it() {
        let page = |rest: &str| {
            let text = format!(r#"{{"action":"history","channel":"c"{rest}}}"#);
            match parse_request(&text).unwrap() {
                Request::History { page, .. } => page,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(page(""), PageRequest::default());
        assert_eq!(
            page(
                r#","limit":-5,"before":1700000000123.9,"after":7,"direction":"forward","beforeSeq":9,"afterSeq":1"#
            ),
            PageRequest {
                limit: Some(-5),
                before_ms: Some(1_700_000_000_123),
                after_ms: Some(7),
                before_sequence: Some(9),
                after_sequence: Some(1),
                forward: true,
            }
        );
        for bad in [
            r#","direction":"sideways""#,
            r#","before":"1""#,
            r#","afterSeq":1.5"#,
            r#","limit":"many""#,
        ] {
            let text = format!(r#"{{"action":"history","channel":"c"{bad}}}"#);
            assert_eq!(code(&text), 40003, "{bad}");
        }
    }

    #[test]
    fn presence_state_is_an_object_or_absent() {
        let put = |rest: &str| {
            let text = format!(r#"{{"action":"presence.enter","channel":"c"{rest}}}"#);
            parse_request(&text).map(|r| match r {
                Request::Presence {
                    request: PresenceRequest::Put(state),
                    ..
                } => state.map(str::to_owned),
                other => panic!("{other:?}"),
            })
        };
        for absent in ["", r#","data":null"#, r#","data":[]"#, r#","data":[ ]"#] {
            assert_eq!(put(absent).unwrap(), None, "{absent}");
        }
        let text = r#"{"b":1.0e+2, "a" :"\u00e9"}"#;
        assert_eq!(
            put(&format!(r#","data": {text} "#)).unwrap().as_deref(),
            Some(text)
        );
        for bad in ["1", "true", r#""x""#, "[1]"] {
            let refused = put(&format!(r#","data":{bad}"#)).unwrap_err();
            assert_eq!(refused.error.code, ErrorCode::BadPresenceState, "{bad}");
            assert_eq!(refused.channel.as_deref(), Some("c"));
            assert!(!refused.is_malformed());
        }
        assert!(matches!(
            parse_request(r#"{"action":"presence.get","channel":"c","data":7}"#).unwrap(),
            Request::Presence {
                request: PresenceRequest::Get,
                ..
            }
        ));
        assert_eq!(code(r#"{"action":"presence.leave"}"#), 40003);
    }

    #[test]
    fn both_resume_fields_are_read_and_told_apart() {
        let resume = |text: &str| parse_request(text).map(|r| format!("{r:?}"));
        let a = resume(r#"{"action":"resume","resumeToken":"t"}"#).unwrap();
        assert!(a.contains("flat: false"), "{a}");
        let b = resume(r#"{"action":"resume","token":"t"}"#).unwrap();
        assert!(b.contains("flat: true"), "{b}");
        assert_eq!(code(r#"{"action":"resume"}"#), 40003);
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
        let refused = parse_request(r#"{"action":"publish","channel":"c","id":"i","persist":0}"#)
            .unwrap_err();
        assert_eq!(refused.channel.as_deref(), Some("c"));
        assert_eq!(refused.id.as_deref(), Some("i"));
    }

    #[test]
    fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let publish = |data: &str| format!(r#"{{"action":"publish","channel":"c","data":{data}}}"#);
        assert!(parse_request(&publish(&nested(JSON_DEPTH_MAX))).is_ok());
        assert_eq!(code(&publish(&nested(JSON_DEPTH_MAX + 1))), 40003);
        assert_eq!(code(&publish(&nested(60_000))), 40003);
        let harmless = format!("\"\\\"{}\"", "[".repeat(500));
        assert!(parse_request(&publish(&harmless)).is_ok());
    }

    proptest! {
        #[test]
        fn any_publish_survives_its_own_delivery(
            channel in "[!#-)+-\\[\\]-~]{1,40}",
            id in any::<String>(),
            data in proptest::collection::vec(any::<(String, f64)>(), 0..5),
        ) {
            let data = serde_json::to_string(&data).unwrap();
            let text = serde_json::json!({"action": "publish", "channel": channel, "id": id}).to_string();
            let text = format!("{},\"data\":{data}}}", &text[..text.len() - 1]);
            let Request::Publish { channel: c, data: d, id: i, .. } = parse_request(&text).unwrap() else {
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
