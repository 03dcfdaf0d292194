//! Bodies and queries of the push calls, in the forms of all SDK families (contract section 6 and D22).
//!
//! `provider` and `platform`, a device token beside or inside `subscription`, content beside the target or in `payload`
//! are synonyms; `null` is absent. Invariant: nothing that is returned is above the bounds below.

use std::borrow::Cow;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD};
use serde_json::{Map, Value};

use super::content::Content;
use super::{Address, Platform};
use crate::auth::is_valid_client_id;
use crate::channel_name;
use crate::error::{ErrorCode, ProtocolError};

/// Who a device belongs to when nobody is named.
pub const ANONYMOUS: &str = "anonymous";
/// What a device is enrolled in when no channel is named.
pub const DEFAULT_CHANNEL: &str = "default";
/// Channels a device may be enrolled in.
pub const CHANNELS_MAX: usize = 100;
/// Members a send may name.
pub const MEMBERS_MAX: usize = 1000;
/// Bytes of a push service's address.
pub const ENDPOINT_BYTES_MAX: usize = 2048;
/// Bytes of a device token: FCM's have about 160, APNs' 64 to 200.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Bytes of a registration's `metadata`.
pub const METADATA_BYTES_MAX: usize = 2048;
/// Entries in a page of a list when the request gives no `limit`.
pub const PAGE_DEFAULT: usize = 100;
/// Entries in a page at most; a higher `limit` is clamped.
pub const PAGE_MAX: usize = 1000;

/// A device that wants to be reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    pub member: String,
    pub platform: Platform,
    pub address: Address,
    /// At least one.
    pub channels: Vec<String>,
    /// Whether the request named them.
    pub channels_named: bool,
    /// Language, time zone and the like, as given.
    pub metadata: Option<Map<String, Value>>,
}

/// Which devices are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unregistration {
    pub member: String,
    /// Absent: of all platforms.
    pub platform: Option<Platform>,
}

/// A member's devices and a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    pub member: String,
    pub channel: String,
}

/// Who is to be notified.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audience {
    /// Empty: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// Only devices that are enrolled in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Only members without a connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}

/// A notification and who is to get it.
#[derive(Debug, Clone, PartialEq)]
pub struct SendRequest {
    pub audience: Audience,
    pub content: Content,
}

/// Which subscriptions are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    pub member: Option<String>,
    pub platform: Option<Platform>,
    /// 1 to [`PAGE_MAX`].
    pub limit: usize,
    /// Goes on where another page ended.
    pub cursor: Option<(i64, String)>,
}

/// Reads a registration.
///
/// # Errors
/// 40001 when the body is not a JSON object, 40003 for a missing or wrong field, 40009 for a channel name.
pub fn parse_register(body: &[u8]) -> Result<Registration, ProtocolError> {
    let fields = object(body)?;
    let platform = platform(&fields)?.ok_or_else(|| wrong("`platform` is missing"))?;
    let channels = strings(&fields, "channels", CHANNELS_MAX)?;
    let channels_named = !channels.is_empty();
    let mut channels = if channels_named {
        channels
    } else {
        vec![DEFAULT_CHANNEL.to_owned()]
    };
    channels.sort();
    channels.dedup();
    for channel in &channels {
        channel_name::validate(channel, true)?;
    }
    let metadata = match given(&fields, "metadata") {
        None => None,
        Some(Value::Object(metadata)) => Some(metadata.clone()),
        Some(_) => return Err(wrong("`metadata` must be an object")),
    };
    if let Some(metadata) = &metadata
        && serde_json::to_vec(metadata).map_or(0, |json| json.len()) > METADATA_BYTES_MAX
    {
        return Err(wrong(format!(
            "`metadata` is above {METADATA_BYTES_MAX} bytes"
        )));
    }
    Ok(Registration {
        member: member(&fields)?,
        platform,
        address: address(&fields, platform)?,
        channels,
        channels_named,
        metadata,
    })
}

/// Reads which devices are to be forgotten.
///
/// # Errors
/// As [`parse_register`].
pub fn parse_unregister(body: &[u8]) -> Result<Unregistration, ProtocolError> {
    let fields = object(body)?;
    Ok(Unregistration {
        member: member(&fields)?,
        platform: platform(&fields)?,
    })
}

/// Reads what adds a member's devices to a channel, or takes them out.
///
/// # Errors
/// As [`parse_register`].
pub fn parse_enrolment(body: &[u8]) -> Result<Enrolment, ProtocolError> {
    let fields = object(body)?;
    let channel = text(&fields, "channel")?.ok_or_else(|| wrong("`channel` is missing"))?;
    channel_name::validate(&channel, true)?;
    Ok(Enrolment {
        member: member(&fields)?,
        channel: channel.into_owned(),
    })
}

/// Reads a send, or with `to_all` a broadcast.
///
/// # Errors
/// As [`parse_register`]; 40003 for a send to nobody; 41300 for content that no provider would take.
pub fn parse_send(body: &[u8], to_all: bool) -> Result<SendRequest, ProtocolError> {
    let fields = object(body)?;
    let to_all = to_all
        || match given(&fields, "broadcast") {
            None => false,
            Some(Value::Bool(to_all)) => *to_all,
            Some(_) => return Err(wrong("`broadcast` must be true or false")),
        };
    let mut members = strings(&fields, "memberIds", MEMBERS_MAX)?;
    members.extend(text(&fields, "memberId")?.map(Cow::into_owned));
    if let Some(bad) = members.iter().find(|member| !is_valid_client_id(member)) {
        return Err(wrong(format!("{bad:?} is not a member id")));
    }
    members.sort();
    members.dedup();
    let channel = text(&fields, "channel")?.map(Cow::into_owned);
    if let Some(channel) = &channel {
        channel_name::validate(channel, true)?;
    }
    if to_all {
        members.clear();
    } else if members.is_empty() && channel.is_none() {
        return Err(wrong("a send needs `memberId`, `memberIds` or `channel`"));
    }
    let content = match given(&fields, "payload") {
        None => Content::read(&fields)?,
        Some(Value::Object(payload)) => Content::read(payload)?,
        Some(_) => return Err(wrong("`payload` must be an object")),
    };
    Ok(SendRequest {
        audience: Audience {
            members,
            channel,
            absent: false,
        },
        content,
    })
}

impl ListQuery {
    /// Reads a query string.
    ///
    /// # Errors
    /// 40000 where it cannot be decoded, 40003 for a wrong value.
    pub fn parse(query: &str) -> Result<Self, ProtocolError> {
        let mut list = Self {
            member: None,
            platform: None,
            limit: PAGE_DEFAULT,
            cursor: None,
        };
        for pair in crate::url::pairs(query) {
            let (name, value) = pair?;
            if value.is_empty() {
                continue;
            }
            match &*name {
                "memberId" => list.member = Some(value.into_owned()),
                "platform" | "provider" => list.platform = Some(platform_of(&value)?),
                "limit" => list.limit = limit(&value)?,
                "cursor" => list.cursor = Some(parse_cursor(&value)?),
                _ => {}
            }
        }
        Ok(list)
    }
}

/// The text that stands for a place in a list.
#[must_use]
pub fn write_cursor(rank: i64, id: &str) -> String {
    BASE64URL_NOPAD.encode(format!("{rank}.{id}").as_bytes())
}

fn parse_cursor(text: &str) -> Result<(i64, String), ProtocolError> {
    let read = || {
        let text = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let text = String::from_utf8(text).ok()?;
        let (rank, id) = text.split_once('.')?;
        Some((rank.parse().ok()?, id.to_owned()))
    };
    read().ok_or_else(|| wrong("`cursor` is not one that a list gave"))
}

fn limit(text: &str) -> Result<usize, ProtocolError> {
    match text.parse::<u32>() {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(limit) => Ok(PAGE_MAX.min(limit as usize)),
        Err(_) => Err(wrong("`limit` must be a number")),
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ProtocolError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ProtocolError::with_text(
            ErrorCode::NotJson,
            "body is not a JSON object",
        )),
        Err(error) => Err(ProtocolError::with_text(
            ErrorCode::NotJson,
            format!("body is not JSON: {error}"),
        )),
    }
}

/// A field that is there and not null.
pub(super) fn given<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

pub(super) fn text<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<Cow<'a, str>>, ProtocolError> {
    match given(fields, name) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(Cow::Borrowed(text))),
        Some(_) => Err(wrong(format!("`{name}` must be a string"))),
    }
}

pub(super) fn strings(
    fields: &Map<String, Value>,
    name: &str,
    max: usize,
) -> Result<Vec<String>, ProtocolError> {
    let wrong_form = || wrong(format!("`{name}` must be an array of strings"));
    let Some(value) = given(fields, name) else {
        return Ok(Vec::new());
    };
    let list = value.as_array().ok_or_else(wrong_form)?;
    if list.len() > max {
        return Err(wrong(format!("`{name}` has more than {max}")));
    }
    list.iter()
        .map(|entry| entry.as_str().map(str::to_owned).ok_or_else(wrong_form))
        .collect()
}

fn member(fields: &Map<String, Value>) -> Result<String, ProtocolError> {
    let member = text(fields, "memberId")?.unwrap_or(Cow::Borrowed(ANONYMOUS));
    if is_valid_client_id(&member) {
        return Ok(member.into_owned());
    }
    Err(wrong(
        "`memberId` has 1 to 128 bytes and no control characters",
    ))
}

fn platform(fields: &Map<String, Value>) -> Result<Option<Platform>, ProtocolError> {
    let name = match text(fields, "platform")? {
        None => text(fields, "provider")?,
        name => name,
    };
    name.map(|name| platform_of(&name)).transpose()
}

fn platform_of(name: &str) -> Result<Platform, ProtocolError> {
    Platform::from_name(name).ok_or_else(|| wrong("`platform` must be web, fcm or apns"))
}

fn address(fields: &Map<String, Value>, platform: Platform) -> Result<Address, ProtocolError> {
    let empty = Map::new();
    let inside = |name: &str| match given(fields, name) {
        None => Ok(None),
        Some(Value::Object(inner)) => Ok(Some(inner)),
        Some(_) => Err(wrong(format!("`{name}` must be an object"))),
    };
    let subscription = inside("subscription")?;
    if platform == Platform::Web {
        let from = match inside("webPush")? {
            None => subscription,
            found => found,
        };
        let from = from.ok_or_else(|| wrong("`webPush` is missing"))?;
        let keys = match given(from, "keys") {
            Some(Value::Object(keys)) => keys,
            _ => return Err(wrong("`webPush.keys` is missing")),
        };
        return web_address(from, keys);
    }
    let token = match text(fields, "deviceToken")? {
        None => text(subscription.unwrap_or(&empty), "deviceToken")?,
        token => token,
    };
    let token = token.ok_or_else(|| wrong("`deviceToken` is missing"))?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:.~+=".contains(&byte);
    if token.len() > TOKEN_BYTES_MAX || !token.bytes().all(is_plain) {
        return Err(wrong(format!(
            "`deviceToken` has 1 to {TOKEN_BYTES_MAX} of A-Z, a-z, 0-9 and -_:.~+="
        )));
    }
    Ok(Address::Device {
        token: token.into_owned(),
    })
}

fn web_address(
    from: &Map<String, Value>,
    keys: &Map<String, Value>,
) -> Result<Address, ProtocolError> {
    let endpoint = text(from, "endpoint")?.ok_or_else(|| wrong("`endpoint` is missing"))?;
    let is_url = endpoint.starts_with("https://") || endpoint.starts_with("http://");
    if !is_url
        || endpoint.len() > ENDPOINT_BYTES_MAX
        || !endpoint.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(wrong(format!(
            "`endpoint` must be the URL of a push service, of at most {ENDPOINT_BYTES_MAX} bytes"
        )));
    }
    let key = |name: &str, bytes: usize| {
        let key = text(keys, name)?;
        key.as_deref()
            .and_then(decode_base64)
            .filter(|key| key.len() == bytes)
            .ok_or_else(|| wrong(format!("`keys.{name}` must be {bytes} bytes in base64url")))
    };
    let p256dh = key("p256dh", 65)?;
    if p256dh.first() != Some(&4) {
        return Err(wrong("`keys.p256dh` must be an uncompressed P-256 point"));
    }
    Ok(Address::Web {
        endpoint: endpoint.into_owned(),
        p256dh: BASE64URL_NOPAD.encode(&p256dh),
        auth: BASE64URL_NOPAD.encode(&key("auth", 16)?),
    })
}

/// Base64 of either alphabet, with or without padding.
#[must_use]
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    [BASE64URL_NOPAD, BASE64URL, BASE64_NOPAD, BASE64]
        .iter()
        .find_map(|form| form.decode(text.as_bytes()).ok())
}

pub(super) fn wrong(text: impl Into<Cow<'static, str>>) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read<T>(
        parse: impl FnOnce(&[u8]) -> Result<T, ProtocolError>,
        body: &Value,
    ) -> Result<T, u16> {
        parse(body.to_string().as_bytes()).map_err(|error| error.code.code())
    }

    fn keys() -> Value {
        let mut point = vec![4; 65];
        point[1] = 9;
        json!({"p256dh": BASE64URL_NOPAD.encode(&point), "auth": BASE64.encode(&[7; 16])})
    }

    #[test]
    fn every_family_registers() {
        let web = json!({"memberId": null, "provider": "web", "channels": null,
            "webPush": {"endpoint": "https://push.example/1", "keys": keys()},
            "metadata": {"language": "de"}});
        let web = read(parse_register, &web).unwrap();
        assert_eq!((&*web.member, web.platform), (ANONYMOUS, Platform::Web));
        assert_eq!(web.channels, [DEFAULT_CHANNEL]);
        let Address::Web { auth, .. } = &web.address else {
            panic!("{web:?}")
        };
        assert_eq!(auth, &BASE64URL_NOPAD.encode(&[7; 16]));

        let flat = json!({"memberId": "ann", "platform": "fcm", "deviceToken": "t:1",
            "channels": ["b", "a", "b"]});
        let flat = read(parse_register, &flat).unwrap();
        assert_eq!(flat.channels, ["a", "b"]);
        let nested = json!({"memberId": "ann", "platform": "fcm", "webPush": null,
            "subscription": {"deviceToken": "t:1"}, "channels": ["a", "b"]});
        assert_eq!(read(parse_register, &nested).unwrap().address, flat.address);
    }

    #[test]
    fn what_cannot_be_reached_is_refused() {
        for (body, code) in [
            (json!([]), 40001),
            (json!({}), 40003),
            (json!({"platform": "gcm", "deviceToken": "t"}), 40003),
            (json!({"platform": "fcm"}), 40003),
            (json!({"platform": "fcm", "deviceToken": 5}), 40003),
            (json!({"platform": "apns", "deviceToken": "../x"}), 40003),
            (
                json!({"platform": "fcm", "deviceToken": "t", "memberId": "a\nb"}),
                40003,
            ),
            (
                json!({"platform": "fcm", "deviceToken": "t", "channels": ["a b"]}),
                40009,
            ),
            (
                json!({"platform": "fcm", "deviceToken": "t", "channels": "a"}),
                40003,
            ),
            (
                json!({"platform": "web", "webPush": {"endpoint": "https://a"}}),
                40003,
            ),
            (
                json!({"platform": "web", "webPush": {"endpoint": "file:///x", "keys": keys()}}),
                40003,
            ),
            (
                json!({"platform": "web", "webPush": {"endpoint": "https://a",
                "keys": {"p256dh": "AAAA", "auth": "AAAA"}}}),
                40003,
            ),
        ] {
            assert_eq!(read(parse_register, &body).unwrap_err(), code, "{body}");
        }
        assert_eq!(parse_register(b"{").unwrap_err().code.code(), 40001);
    }

    #[test]
    fn content_is_read_nested_and_flat() {
        let nested = json!({"memberId": "ann", "payload": {"title": "t", "body": "b", "ttl": 60}});
        let flat = json!({"memberIds": ["ann"], "title": "t", "body": "b", "ttl": 60});
        let nested = read(|body| parse_send(body, false), &nested).unwrap();
        assert_eq!(nested, read(|body| parse_send(body, false), &flat).unwrap());
        assert_eq!(nested.audience.members, ["ann"]);
        let all = json!({"broadcast": true, "title": "t", "memberId": null});
        let all = read(|body| parse_send(body, false), &all).unwrap();
        assert!(all.audience.members.is_empty() && all.audience.channel.is_none());
        let nobody = json!({"title": "t"});
        assert_eq!(
            read(|body| parse_send(body, false), &nobody).unwrap_err(),
            40003
        );
        assert!(read(|body| parse_send(body, true), &nobody).is_ok());
    }

    #[test]
    fn lists_are_bounded_and_go_on() {
        let list = ListQuery::parse("memberId=a&platform=web&limit=5000&provider=").unwrap();
        assert_eq!((list.limit, list.platform), (PAGE_MAX, Some(Platform::Web)));
        let cursor = write_cursor(-5, "sub_a.b");
        let list = ListQuery::parse(&format!("cursor={cursor}")).unwrap();
        assert_eq!(list.cursor, Some((-5, "sub_a.b".into())));
        assert!(ListQuery::parse("cursor=!").is_err());
        assert!(ListQuery::parse("limit=x").is_err());
    }
}
