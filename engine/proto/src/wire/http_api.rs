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
use serde_json::{Number, Value};

use super::resume::floor_ms;
use super::wsocket::{PageRequest, parse_direction, payload_json, string, wrong_field};
use crate::auth::is_valid_client_id;
use crate::error::{AdminClose, CloseCause, ErrorCode, ProtocolError};
use crate::limits::{
    CHANNEL_NAME_BYTES_MAX, CLIENT_ID_BYTES_MAX, PRESENCE_PAGE_DEFAULT, PRESENCE_PAGE_MAX,
};
use crate::msg::{Occupants, Published};
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
    Ok(PublishRequest {
        items: items.collect::<Result<_, _>>()?,
        single,
    })
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
            let channels: Vec<&RawValue> =
                bounded_list(channels.get().as_bytes(), batch_max, "`channels`")?;
            let item = request.item(Cow::Borrowed(""), idempotency_key)?;
            let items = channels.into_iter().map(|channel| {
                let channel =
                    required_text(Some(channel), "`channels` must be an array of strings")?;
                Ok(PublishItem {
                    channel,
                    ..item.clone()
                })
            });
            items.collect::<Result<_, ProtocolError>>()?
        }
        (None, Some(batch)) => {
            let batch: Vec<Fields> = bounded_list(batch.get().as_bytes(), batch_max, "`batch`")?;
            if idempotency_key.is_some() {
                return Err(wrong_field(KEY_FOR_SEVERAL));
            }
            let items = batch.iter().enumerate().map(|(at, message)| {
                let channel =
                    required_text(message.channel, "`channel` is missing or not a string");
                channel
                    .and_then(|channel| message.item(channel, None))
                    .map_err(|error| at_index(at, &error))
            });
            items.collect::<Result<_, _>>()?
        }
        (Some(_), Some(_)) | (None, None) => {
            return Err(wrong_field("give either `channels` or `batch`"));
        }
    };
    Ok(PublishRequest {
        items,
        single: false,
    })
}

/// Writes the reply to a publish: `{"messages":[…]}` in the order of the items. An item that failed has `error` and
/// `code` in place of `timestamp` and `sequence`.
pub fn write_publish_reply(
    out: &mut Vec<u8>,
    items: &[PublishItem<'_>],
    results: &[Result<Published, ErrorCode>],
) {
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
        let [prefix, limit, cursor] = first_of(query, ["prefix", "limit", "cursor"])?;
        Ok(Self {
            prefix: prefix.map(Cow::into_owned).unwrap_or_default(),
            after: parse_cursor(cursor.as_deref(), CHANNEL_NAME_BYTES_MAX)?,
            limit: parse_limit(limit.as_deref(), CHANNEL_PAGE_DEFAULT, CHANNEL_PAGE_MAX)?,
        })
    }
}

/// Which part of a channel's members is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberQuery {
    /// Only client ids after this one.
    pub after: Option<String>,
    /// At most so many, 1..=[`PRESENCE_PAGE_MAX`].
    pub limit: usize,
}

impl MemberQuery {
    /// Reads the query of `GET /api/channels/{channel}/presence`: `limit` and `cursor`, the first of each.
    ///
    /// # Errors
    /// As those of [`ChannelPage::parse`].
    pub fn parse(query: &str) -> Result<Self, ProtocolError> {
        let [limit, cursor] = first_of(query, ["limit", "cursor"])?;
        Ok(Self {
            after: parse_cursor(cursor.as_deref(), CLIENT_ID_BYTES_MAX)?,
            limit: parse_limit(limit.as_deref(), PRESENCE_PAGE_DEFAULT, PRESENCE_PAGE_MAX)?,
        })
    }
}

/// The first value of each of these names that is not empty.
fn first_of<'a, const N: usize>(
    query: &'a str,
    names: [&str; N],
) -> Result<[Option<Cow<'a, str>>; N], ProtocolError> {
    let mut values = [const { None }; N];
    for pair in crate::url::pairs(query) {
        let (name, value) = pair?;
        let slot = names.iter().position(|n| *n == name);
        if let Some(slot) = slot.and_then(|i| values.get_mut(i))
            && slot.is_none()
            && !value.is_empty()
        {
            *slot = Some(value);
        }
    }
    Ok(values)
}

/// A `limit`: 0 and none are the default, what is above the most is the most.
fn parse_limit(text: Option<&str>, default: usize, most: usize) -> Result<usize, ProtocolError> {
    let given: u32 = text.map_or(Ok(0), |text| {
        text.parse()
            .map_err(|_| wrong_field("`limit` must be a number"))
    })?;
    Ok(match given {
        0 => default,
        given => most.min(given as usize),
    })
}

/// Reads the query of `GET /api/channels/{channel}/messages` (contract D17): `limit`, `before`, `after`, `direction`,
/// `beforeSeq` and `afterSeq`, the first of each; an empty one counts as absent. Fractions of numbers are dropped.
///
/// # Errors
/// 40000 when the query cannot be decoded; 40003 for a number that is none, a negative bound and an unknown direction.
pub fn parse_page(query: &str) -> Result<PageRequest, ProtocolError> {
    let names = [
        "limit",
        "before",
        "after",
        "beforeSeq",
        "afterSeq",
        "direction",
    ];
    let [
        limit,
        before,
        after,
        before_sequence,
        after_sequence,
        direction,
    ] = first_of(query, names)?;
    let number = |text: Option<Cow<'_, str>>, wrong| {
        text.map(|text| serde_json::from_str::<Number>(&text).map_err(|_| wrong_field(wrong)))
            .transpose()
    };
    let bound = |text, wrong| {
        let number = number(text, wrong)?.map(Value::Number);
        number
            .map(|number| floor_ms(&number).ok_or_else(|| wrong_field(wrong)))
            .transpose()
    };
    let limit = number(limit, "`limit` must be a number")?;
    Ok(PageRequest {
        // Beyond what fits, the bounds of a page hold anyway.
        limit: limit.and_then(|n| n.as_i64().or_else(|| n.as_f64().map(|f| f as i64))),
        before_ms: bound(before, "`before` must be a timestamp in ms")?,
        after_ms: bound(after, "`after` must be a timestamp in ms")?,
        before_sequence: bound(before_sequence, "`beforeSeq` must be a sequence")?,
        after_sequence: bound(after_sequence, "`afterSeq` must be a sequence")?,
        forward: parse_direction(direction.as_deref())?,
    })
}

/// Writes the reply to `GET /api/channels` from names with who is there, in order of name; one more than `limit`
/// says that the list goes on.
pub fn write_channels(out: &mut Vec<u8>, channels: &[(&str, Occupants)], limit: usize) {
    let page = channels.get(..limit).unwrap_or(channels);
    let cursor = page
        .last()
        .filter(|_| page.len() < channels.len())
        .map(|(name, _)| BASE64URL_NOPAD.encode(name.as_bytes()));
    let channels = page
        .iter()
        .map(|&(channel, occupants)| ChannelItem {
            channel,
            subscribers: occupants.subscribers,
            members: occupants.members,
        })
        .collect();
    write_json(out, &ChannelsReply { channels, cursor });
}

/// Writes the reply to `GET /api/channels/{channel}`.
pub fn write_channel(out: &mut Vec<u8>, channel: &str, occupants: Occupants, last_sequence: u64) {
    write_json(
        out,
        &ChannelReply {
            channel,
            occupied: occupants != Occupants::default(),
            subscribers: occupants.subscribers,
            members: occupants.members,
            last_sequence,
        },
    );
}

/// Reads `POST /api/clients/{clientId}/disconnect`: `{code?, reason?}`, or nothing. Without a code the connection ends
/// as by [`CloseCause::EndedByAdmin`].
///
/// # Errors
/// 40001 when the body is not a JSON object, 40003 for a wrong field; the bounds are those of [`AdminClose`].
pub fn parse_disconnect(body: &[u8]) -> Result<(u16, String), ProtocolError> {
    let body = if body.trim_ascii().is_empty() {
        b"{}"
    } else {
        body
    };
    if first_byte(body) != Some(b'{') {
        return Err(not_json("body is not a JSON object"));
    }
    let request: Fields = from_json(body)?;
    let code = match request.code {
        None => CloseCause::EndedByAdmin.code(),
        Some(raw) => raw
            .get()
            .parse()
            .map_err(|_| wrong_field("`code` must be a number from 4000 to 4999"))?,
    };
    let reason = optional_text(request.reason, "`reason` must be a string")?;
    let reason = reason.map_or_else(
        || CloseCause::EndedByAdmin.reason().to_owned(),
        Cow::into_owned,
    );
    AdminClose::new(code, &reason).map_err(|_| {
        wrong_field("`code` must be from 4000 to 4999 and `reason` at most 123 bytes")
    })?;
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

/// Writes `{"<name>":n}`: how many connections or messages a call has reached. `name` needs no escape.
pub fn write_count(out: &mut Vec<u8>, name: &str, count: u64) {
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
    fn item(
        &self,
        channel: Cow<'a, str>,
        idempotency_key: Option<&'a str>,
    ) -> Result<PublishItem<'a>, ProtocolError> {
        let data = self.data.ok_or_else(|| wrong_field("`data` is missing"))?;
        let id = optional_text(self.id, "`id` must be a string")?;
        let client_id = optional_text(self.client_id, "`clientId` must be a string")?;
        if client_id.as_ref().is_some_and(|id| !is_valid_client_id(id)) {
            return Err(wrong_field(
                "`clientId` must be 1 to 128 bytes without control characters",
            ));
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
            client_id,
        })
    }
}

/// The value of a raw JSON string, borrowed where it has no escape.
fn optional_text<'a>(
    raw: Option<&'a RawValue>,
    wrong: &'static str,
) -> Result<Option<Cow<'a, str>>, ProtocolError> {
    string(raw).map_err(|()| wrong_field(wrong))
}

fn required_text<'a>(
    raw: Option<&'a RawValue>,
    wrong: &'static str,
) -> Result<Cow<'a, str>, ProtocolError> {
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
fn bounded_list<'a, T: Deserialize<'a>>(
    json: &'a [u8],
    max: usize,
    name: &str,
) -> Result<Vec<T>, ProtocolError> {
    let too_many = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let list = BoundedList {
        max,
        too_many: &too_many,
        item: PhantomData,
    }
    .deserialize(&mut deserializer)
    .and_then(|list| deserializer.end().map(|()| list));
    match list {
        Ok(list) if list.is_empty() => Err(ProtocolError::with_text(
            ErrorCode::BadField,
            format!("{name} is empty"),
        )),
        Ok(list) => Ok(list),
        Err(_) if too_many.get() => Err(ProtocolError::with_text(
            ErrorCode::BadField,
            format!("{name} has more than {max} items"),
        )),
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

fn parse_cursor(text: Option<&str>, bytes_max: usize) -> Result<Option<String>, ProtocolError> {
    let read = |text: &str| {
        BASE64URL_NOPAD
            .decode(text.as_bytes())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .filter(|name| name.len() <= bytes_max)
            .ok_or_else(|| wrong_field("`cursor` is not one that a reply has given"))
    };
    text.map(read).transpose()
}

fn not_json(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::NotJson, text)
}

fn at_index(at: usize, error: &ProtocolError) -> ProtocolError {
    ProtocolError::with_text(error.code, format!("message {at}: {}", error.text))
}

fn write_json(out: &mut Vec<u8>, body: &impl Serialize) {
    let written = serde_json::to_writer(out, body);
    debug_assert!(
        written.is_ok(),
        "strings and integers into a Vec cannot fail"
    );
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
mod tests;
