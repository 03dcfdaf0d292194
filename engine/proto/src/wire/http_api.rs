//! The HTTP API's bodies (contract D23): requests in, replies out.
//!
//! Not here: paths, methods, credentials and status lines (the HTTP front), and what a publish does (`shard`). A
//! message's `data` is handed on as the bytes that were sent, as in [`super::wsocket`].
//!
//! Invariants: a request is read whole or refused whole, so no message of a request with a wrong shape is published;
//! no list grows past its bound while it is being read.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use data_encoding::BASE64URL_NOPAD;
use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::wsocket::payload_json;
use crate::auth::is_valid_client_id;
use crate::error::{AdminClose, CloseCause, ErrorCode, ProtocolError};
use crate::limits::CHANNEL_NAME_BYTES_MAX;
use crate::msg::Published;
use crate::shard::PublishItem;

/// Channels in a page of the channel list when the request gives no `limit`.
pub const CHANNEL_PAGE_DEFAULT: usize = 100;
/// Channels in a page at most; a higher `limit` is clamped. A page of the longest names stays below 300 KiB.
pub const CHANNEL_PAGE_MAX: usize = 1000;

const KEY_FOR_SEVERAL: &str = "`Idempotency-Key` is for one message; give each message an `id`";

/// A publish request, read and checked in its shape; names, rights and sizes are the shard's to check.
#[derive(Debug, Clone)]
pub struct PublishRequest<'a> {
    /// At least one.
    pub items: Vec<PublishItem<'a>>,
    /// One message to one channel: its failure is the request's failure. Otherwise each item reports its own.
    pub single: bool,
}

/// Reads `POST /api/channels/{channel}/messages`: a message, or an array of at most `batch_max`.
///
/// # Errors
/// 40001 when the body is not JSON or neither object nor array; 40003 for a missing or wrong field, an empty or too
/// long array, and an `Idempotency-Key` on several messages, which would otherwise be silently without effect.
pub fn parse_messages<'a>(
    body: &'a [u8],
    channel: &'a str,
    idempotency_key: Option<&'a str>,
    batch_max: usize,
) -> Result<PublishRequest<'a>, ProtocolError> {
    let single = match first_byte(body) {
        Some(b'[') => false,
        Some(b'{') => true,
        Some(_) | None => return Err(not_json("body is neither a JSON object nor an array")),
    };
    let messages: Vec<Fields> = if single {
        vec![from_json(body)?]
    } else {
        bounded_list(body, batch_max, "the array")?
    };
    if messages.len() > 1 && idempotency_key.is_some() {
        return Err(wrong_field(KEY_FOR_SEVERAL));
    }
    let items = messages.iter().enumerate().map(|(at, message)| {
        let item = message.item(Cow::Borrowed(channel), idempotency_key);
        item.map_err(|error| if single { error } else { at_index(at, &error) })
    });
    Ok(PublishRequest { items: items.collect::<Result<_, _>>()?, single })
}

/// Reads `POST /api/publish`: one message for several channels, or a batch of messages with a channel each; at most
/// `batch_max` of either.
///
/// # Errors
/// As [`parse_messages`], and 40003 unless there is exactly one of `channels` and `batch`.
pub fn parse_publish<'a>(
    body: &'a [u8],
    idempotency_key: Option<&'a str>,
    batch_max: usize,
) -> Result<PublishRequest<'a>, ProtocolError> {
    if first_byte(body) != Some(b'{') {
        return Err(not_json("body is not a JSON object"));
    }
    let request: Fields = from_json(body)?;
    let items = match (request.channels, request.batch) {
        (Some(channels), None) => {
            let channels: Vec<&RawValue> = bounded_list(channels.get().as_bytes(), batch_max, "`channels`")?;
            let item = request.item(Cow::Borrowed(""), idempotency_key)?;
            let items = channels.into_iter().map(|channel| {
                let channel = required_text(Some(channel), "`channels` must be an array of strings")?;
                Ok(PublishItem { channel, ..item.clone() })
            });
            items.collect::<Result<_, ProtocolError>>()?
        }
        (None, Some(batch)) => {
            let batch: Vec<Fields> = bounded_list(batch.get().as_bytes(), batch_max, "`batch`")?;
            if idempotency_key.is_some() {
                return Err(wrong_field(KEY_FOR_SEVERAL));
            }
            let items = batch.iter().enumerate().map(|(at, message)| {
                let channel = required_text(message.channel, "`channel` is missing or not a string");
                channel.and_then(|channel| message.item(channel, None)).map_err(|error| at_index(at, &error))
            });
            items.collect::<Result<_, _>>()?
        }
        (Some(_), Some(_)) | (None, None) => return Err(wrong_field("give either `channels` or `batch`")),
    };
    Ok(PublishRequest { items, single: false })
}

/// Writes the reply to a publish: `{"messages":[…]}` in the order of the items. An item that failed has `error` and
/// `code` in place of `timestamp` and `sequence`.
pub fn write_publish_reply(out: &mut Vec<u8>, items: &[PublishItem<'_>], results: &[Result<Published, ErrorCode>]) {
    let messages = items
        .iter()
        .zip(results)
        .map(|(item, result)| match result {
            Ok(published) => MessageReply {
                id: Some(&published.id),
                channel: &item.channel,
                timestamp: Some(published.position.timestamp),
                sequence: published.position.sequence,
                duplicate: published.duplicate,
                error: None,
                code: None,
            },
            Err(code) => MessageReply {
                id: item.id.as_deref(),
                channel: &item.channel,
                timestamp: None,
                sequence: None,
                duplicate: false,
                error: Some(code.text()),
                code: Some(code.code()),
            },
        })
        .collect();
    write_json(out, &PublishReply { messages });
}

/// Which part of the channel list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelPage {
    /// Only names that begin with this; may be empty.
    pub prefix: String,
    /// Only names after this one.
    pub after: Option<String>,
    /// At most so many, 1..=[`CHANNEL_PAGE_MAX`].
    pub limit: usize,
}

impl ChannelPage {
    /// Reads the query of `GET /api/channels`: `prefix`, `limit` and `cursor`, the first of each.
    ///
    /// # Errors
    /// 40000 when the query cannot be decoded; 40003 for a `limit` that is not a number and a `cursor` that no reply
    /// has given.
    pub fn parse(query: &str) -> Result<Self, ProtocolError> {
        let (mut prefix, mut limit, mut cursor) = (None, None, None);
        for pair in crate::url::pairs(query) {
            let (name, value) = pair?;
            let slot = match &*name {
                "prefix" => &mut prefix,
                "limit" => &mut limit,
                "cursor" => &mut cursor,
                _ => continue,
            };
            if slot.is_none() && !value.is_empty() {
                *slot = Some(value);
            }
        }
        let limit = match limit.as_deref() {
            None => CHANNEL_PAGE_DEFAULT,
            Some(text) => match text.parse::<u32>().map_err(|_| wrong_field("`limit` must be a number"))? {
                0 => CHANNEL_PAGE_DEFAULT,
                given => CHANNEL_PAGE_MAX.min(given as usize),
            },
        };
        Ok(Self {
            prefix: prefix.map(Cow::into_owned).unwrap_or_default(),
            after: cursor.as_deref().map(parse_cursor).transpose()?,
            limit,
        })
    }
}

/// Writes the reply to `GET /api/channels` from names with their subscribers, in order of name; one more than `limit`
/// says that the list goes on.
pub fn write_channels(out: &mut Vec<u8>, channels: &[(&str, usize)], limit: usize) {
    let page = channels.get(..limit).unwrap_or(channels);
    let cursor = page.last().filter(|_| page.len() < channels.len()).map(|(name, _)| BASE64URL_NOPAD.encode(name.as_bytes()));
    let channels = page.iter().map(|&(channel, subscribers)| ChannelItem { channel, subscribers, members: 0 }).collect();
    write_json(out, &ChannelsReply { channels, cursor });
}

/// Writes the reply to `GET /api/channels/{channel}`.
pub fn write_channel(out: &mut Vec<u8>, channel: &str, subscribers: usize, last_sequence: u64) {
    write_json(out, &ChannelReply { channel, occupied: subscribers > 0, subscribers, members: 0, last_sequence });
}

/// Reads `POST /api/clients/{clientId}/disconnect`: `{code?, reason?}`, or nothing. Without a code the connection ends
/// as by [`CloseCause::EndedByAdmin`].
///
/// # Errors
/// 40001 when the body is not a JSON object, 40003 for a wrong field; the bounds are those of [`AdminClose`].
pub fn parse_disconnect(body: &[u8]) -> Result<(u16, String), ProtocolError> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    if first_byte(body) != Some(b'{') {
        return Err(not_json("body is not a JSON object"));
    }
    let request: Fields = from_json(body)?;
    let code = match request.code {
        None => CloseCause::EndedByAdmin.code(),
        Some(raw) => raw.get().parse().map_err(|_| wrong_field("`code` must be a number from 4000 to 4999"))?,
    };
    let reason = optional_text(request.reason, "`reason` must be a string")?;
    let reason = reason.map_or_else(|| CloseCause::EndedByAdmin.reason().to_owned(), Cow::into_owned);
    AdminClose::new(code, &reason)
        .map_err(|_| wrong_field("`code` must be from 4000 to 4999 and `reason` at most 123 bytes"))?;
    Ok((code, reason))
}

/// Reads `POST /api/clients/{clientId}/unsubscribe`: the `channel`.
///
/// # Errors
/// 40001 when the body is not a JSON object, 40003 for a missing or wrong field.
pub fn parse_unsubscribe(body: &[u8]) -> Result<String, ProtocolError> {
    if first_byte(body) != Some(b'{') {
        return Err(not_json("body is not a JSON object"));
    }
    let request: Fields = from_json(body)?;
    required_text(request.channel, "`channel` is missing or not a string").map(Cow::into_owned)
}

/// Writes `{"<name>":n}`: how many connections a call has reached. `name` needs no escape.
pub fn write_count(out: &mut Vec<u8>, name: &str, count: usize) {
    out.extend_from_slice(format!("{{\"{name}\":{count}}}").as_bytes());
}

/// The fields of every request body, as raw JSON, so that a wrong type is reported with the field's name. `null` is as
/// good as absent, except for `data`, of which it is a value. Unknown fields are ignored (contract D31).
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow)]
    channels: Option<&'a RawValue>,
    #[serde(borrow)]
    batch: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    persist: Option<&'a RawValue>,
    #[serde(borrow, rename = "clientId")]
    client_id: Option<&'a RawValue>,
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
}

/// Keeps `null` apart from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Fields<'a> {
    fn item(&self, channel: Cow<'a, str>, idempotency_key: Option<&'a str>) -> Result<PublishItem<'a>, ProtocolError> {
        let data = self.data.ok_or_else(|| wrong_field("`data` is missing"))?;
        let id = optional_text(self.id, "`id` must be a string")?;
        let client_id = optional_text(self.client_id, "`clientId` must be a string")?;
        if client_id.is_some_and(|id| !is_valid_client_id(&id)) {
            return Err(wrong_field("`clientId` must be 1 to 128 bytes without control characters"));
        }
        let persist = match self.persist.map(RawValue::get) {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => return Err(wrong_field("`persist` must be true or false")),
        };
        Ok(PublishItem {
            channel,
            data: payload_json(Some(data))?,
            id: id.or(idempotency_key.map(Cow::Borrowed)),
            persist,
        })
    }
}

/// The value of a raw JSON string, borrowed where it has no escape.
fn optional_text<'a>(raw: Option<&'a RawValue>, wrong: &'static str) -> Result<Option<Cow<'a, str>>, ProtocolError> {
    let Some(json) = raw.map(RawValue::get) else { return Ok(None) };
    let plain: Result<&'a str, _> = serde_json::from_str(json);
    plain
        .map(Cow::Borrowed)
        .or_else(|_| serde_json::from_str(json).map(Cow::Owned))
        .map(Some)
        .map_err(|_| wrong_field(wrong))
}

fn required_text<'a>(raw: Option<&'a RawValue>, wrong: &'static str) -> Result<Cow<'a, str>, ProtocolError> {
    optional_text(raw, wrong)?.ok_or_else(|| wrong_field(wrong))
}

fn first_byte(body: &[u8]) -> Option<u8> {
    body.trim_ascii_start().first().copied()
}

fn from_json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(|error| json_error(&error))
}

/// Where the text has the right beginning, a wrong type can only be a field given twice or an item that is no object.
fn json_error(error: &serde_json::Error) -> ProtocolError {
    if error.is_data() {
        ProtocolError::with_text(ErrorCode::BadField, format!("wrong field: {error}"))
    } else {
        ProtocolError::with_text(ErrorCode::NotJson, format!("body is not JSON: {error}"))
    }
}

/// Reads an array of 1 to `max` items, and stops at the first item too many.
fn bounded_list<'a, T: Deserialize<'a>>(json: &'a [u8], max: usize, name: &str) -> Result<Vec<T>, ProtocolError> {
    let too_many = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let list = BoundedList { max, too_many: &too_many, item: PhantomData }
        .deserialize(&mut deserializer)
        .and_then(|list| deserializer.end().map(|()| list));
    match list {
        Ok(list) if list.is_empty() => Err(ProtocolError::with_text(ErrorCode::BadField, format!("{name} is empty"))),
        Ok(list) => Ok(list),
        Err(_) if too_many.get() => {
            Err(ProtocolError::with_text(ErrorCode::BadField, format!("{name} has more than {max} items")))
        }
        Err(error) => Err(json_error(&error)),
    }
}

struct BoundedList<'s, T> {
    max: usize,
    too_many: &'s Cell<bool>,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for BoundedList<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedList<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() == self.max {
                self.too_many.set(true);
                return Err(A::Error::custom("too many items"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

fn parse_cursor(text: &str) -> Result<String, ProtocolError> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|name| name.len() <= CHANNEL_NAME_BYTES_MAX)
        .ok_or_else(|| wrong_field("`cursor` is not one that a reply has given"))
}

fn wrong_field(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}

fn not_json(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::NotJson, text)
}

fn at_index(at: usize, error: &ProtocolError) -> ProtocolError {
    ProtocolError::with_text(error.code, format!("message {at}: {}", error.text))
}

fn write_json(out: &mut Vec<u8>, body: &impl Serialize) {
    let written = serde_json::to_writer(out, body);
    debug_assert!(written.is_ok(), "strings and integers into a Vec cannot fail");
}

#[derive(Serialize)]
struct PublishReply<'a> {
    messages: Vec<MessageReply<'a>>,
}

/// Optional fields are omitted, never null (contract 4.3).
#[derive(Serialize)]
struct MessageReply<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    channel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct ChannelsReply<'a> {
    channels: Vec<ChannelItem<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct ChannelItem<'a> {
    channel: &'a str,
    subscribers: usize,
    members: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChannelReply<'a> {
    channel: &'a str,
    occupied: bool,
    subscribers: usize,
    members: usize,
    last_sequence: u64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::wsocket::Position;

    fn code<T>(result: Result<T, ProtocolError>) -> u16 {
        result.map(|_| ()).expect_err("must be refused").code.code()
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
        let [item] = request.items.as_slice() else { panic!("{request:?}") };
        assert!(request.single);
        assert_eq!(item.data, r#"{"b":1.0e+2, "a" : "\u00e9"}"#);
        assert_eq!((&*item.channel, item.id.as_deref(), item.persist), ("room", Some("xA"), false));
    }

    #[test]
    fn an_array_of_one_reports_per_item() {
        let request = messages(r#"[{"data":null}]"#).unwrap();
        assert_eq!((request.items.len(), request.single), (1, false));
        assert_eq!((request.items[0].data, request.items[0].persist), ("null", true));
    }

    #[test]
    fn null_is_a_value_of_data_and_nothing_elsewhere() {
        let request = messages(r#"{"data":null,"id":null,"persist":null,"clientId":null}"#).unwrap();
        assert_eq!((request.items[0].data, request.items[0].id.as_deref()), ("null", None));
        assert_eq!(code(messages(r#"{"id":"a"}"#)), 40003);
    }

    #[test]
    fn what_is_not_json_is_told_from_a_wrong_field() {
        for body in ["", " ", "x", "{", "{\"data\":}", "{\"data\":1}x", "[{\"data\":1},", "\"s\"", "7", "{\"data\":\"\u{7}\"}"] {
            assert_eq!(code(messages(body)), 40001, "{body}");
            assert_eq!(code(publish(body)), 40001, "{body}");
        }
        assert_eq!(code(parse_messages(b"{\"data\":\"\xff\"}", "room", None, 100)), 40001);
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
        assert_eq!(messages(&of(101)).unwrap_err().text, "the array has more than 100 items");
        assert_eq!(publish(&format!(r#"{{"batch":{}}}"#, of(100))).unwrap().items.len(), 100);
        assert_eq!(code(publish(&format!(r#"{{"batch":{}}}"#, of(101)))), 40003);
        let channels = format!(r#"{{"channels":[{}],"data":1}}"#, vec![r#""c""#; 101].join(","));
        assert_eq!(code(publish(&channels)), 40003);
    }

    #[test]
    fn one_message_goes_to_several_channels() {
        let request = publish(r#"{"channels":["a","\u0062"],"data":{"x":1},"id":"i"}"#).unwrap();
        let seen: Vec<_> = request.items.iter().map(|i| (&*i.channel, i.data, i.id.as_deref())).collect();
        assert_eq!(seen, [("a", r#"{"x":1}"#, Some("i")), ("b", r#"{"x":1}"#, Some("i"))]);
        assert!(!request.single);
    }

    #[test]
    fn a_batch_has_a_channel_each() {
        let request = publish(r#"{"batch":[{"channel":"a","data":1},{"channel":"b","data":2,"persist":false}]}"#).unwrap();
        let seen: Vec<_> = request.items.iter().map(|i| (&*i.channel, i.data, i.persist)).collect();
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
        assert_eq!(code(parse_messages(br#"[{"data":1},{"data":2}]"#, "room", key, 100)), 40003);
        assert_eq!(code(parse_publish(br#"{"batch":[{"channel":"a","data":1}]}"#, key, 100)), 40003);
        let several = parse_publish(br#"{"channels":["a","b"],"data":1}"#, key, 100).unwrap();
        assert!(several.items.iter().all(|item| item.id.as_deref() == key));
    }

    #[test]
    fn the_reply_follows_the_items() {
        let body = br#"{"batch":[{"channel":"a","data":1},{"channel":"b","data":1,"id":"i"},{"channel":"*","data":1,"id":"j"}]}"#;
        let request = parse_publish(body, None, 100).unwrap();
        let published = |id: &str, sequence, duplicate| {
            Ok(Published { id: Arc::from(id), position: Position { timestamp: 7, sequence }, duplicate })
        };
        let results = [published("x", Some(3), true), published("i", None, false), Err(ErrorCode::BadChannelName)];
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
        assert_eq!(first, ChannelPage { prefix: "room:".into(), after: None, limit: 2 });
        let mut out = Vec::new();
        write_channels(&mut out, &[("room:a", 1), ("room:b", 2), ("room:c", 3)], 2);
        let reply: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(reply["channels"][1], serde_json::json!({"channel":"room:b","subscribers":2,"members":0}));
        assert_eq!(reply["channels"].as_array().unwrap().len(), 2);
        let cursor = reply["cursor"].as_str().unwrap();
        let next = ChannelPage::parse(&format!("cursor={cursor}")).unwrap();
        assert_eq!(next.after.as_deref(), Some("room:b"));
        out.clear();
        write_channels(&mut out, &[("room:a", 1), ("room:b", 2)], 2);
        assert!(!String::from_utf8(out).unwrap().contains("cursor"));
    }

    #[test]
    fn page_limits_are_clamped_and_nonsense_is_refused() {
        let limit = |query: &str| ChannelPage::parse(query).map(|page| page.limit);
        assert_eq!((limit(""), limit("limit=0"), limit("limit=")), (Ok(100), Ok(100), Ok(100)));
        assert_eq!((limit("limit=1&limit=2"), limit("limit=5000")), (Ok(1), Ok(1000)));
        for query in ["limit=x", "limit=-1", "cursor=!", "cursor=_w"] {
            assert_eq!(code(limit(query)), 40003, "{query}");
        }
        assert_eq!(code(limit("prefix=%")), 40000);
    }

    #[test]
    fn a_channel_is_described() {
        let mut out = Vec::new();
        write_channel(&mut out, "a", 2, 9);
        let reply = String::from_utf8(out).unwrap();
        assert_eq!(reply, r#"{"channel":"a","occupied":true,"subscribers":2,"members":0,"lastSequence":9}"#);
    }

    #[test]
    fn disconnect_has_defaults_and_bounds() {
        let default = (4010, "ended by an administrator".to_owned());
        assert_eq!(parse_disconnect(b""), Ok(default.clone()));
        assert_eq!(parse_disconnect(b" {\"code\":null}"), Ok(default));
        assert_eq!(parse_disconnect(br#"{"code":4999,"reason":"b\u0079e"}"#), Ok((4999, "bye".into())));
        for body in [r#"{"code":1000}"#, r#"{"code":"4000"}"#, r#"{"code":4000.5}"#, r#"{"reason":1}"#] {
            assert_eq!(code(parse_disconnect(body.as_bytes())), 40003, "{body}");
        }
        assert_eq!(code(parse_disconnect(format!(r#"{{"reason":"{}"}}"#, "x".repeat(124)).as_bytes())), 40003);
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
}
