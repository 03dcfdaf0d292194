//! A notification's content, and the form in which each provider takes it.
//!
//! Not here: addresses and credentials. Invariant: content that has been read fits into one notification of every
//! provider.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::request::{given, strings, text, wrong};
use crate::error::{ErrorCode, ProtocolError};

/// Bytes that a push service must take (RFC 8030, 7.2), less header, tag and delimiter of aes128gcm (RFC 8188) and a
/// P-256 point: what is left for the text. FCM and APNs take 4096.
pub const PAYLOAD_BYTES_MAX: usize = 4096 - 86 - 16 - 1;
/// Seconds that a provider keeps a notification when the request does not say: four weeks.
pub const TTL_S_DEFAULT: u32 = 28 * 24 * 3600;
/// Bytes of a collapse id: Web Push's `Topic` (RFC 8030, 5.4) allows the fewest.
const COLLAPSE_ID_BYTES_MAX: usize = 32;
/// Arguments of a localised text.
const LOCALISATION_ARGS_MAX: usize = 16;

/// How soon it matters (RFC 8030, 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Urgency {
    VeryLow,
    Low,
    #[default]
    Normal,
    High,
}

impl Urgency {
    const ALL: [(&'static str, Self); 4] = [
        ("very-low", Self::VeryLow),
        ("low", Self::Low),
        ("normal", Self::Normal),
        ("high", Self::High),
    ];

    /// As on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VeryLow => "very-low",
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// What is shown, and how it is to travel.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// A picture's address for browsers, a number for APNs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub badge: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Map<String, Value>>,
    /// Names of texts that the application has in the user's language, and what goes into them.
    #[serde(default, skip_serializing_if = "Localisation::is_empty", flatten)]
    pub localisation: Localisation,
    /// Seconds that the provider may keep it for a device that is away; 0: deliver now or never.
    pub ttl: u32,
    pub urgency: Urgency,
    /// Takes the place of an earlier one with the same id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collapse_id: Option<String>,
}

/// Passed through to devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Localisation {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title_loc_key: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub title_loc_args: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_loc_key: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub body_loc_args: Vec<String>,
}

impl Localisation {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Content {
    /// Reads it from the fields of a request.
    ///
    /// # Errors
    /// 40003 for a wrong field; 41300 for content above [`PAYLOAD_BYTES_MAX`] in some provider's form.
    pub fn read(fields: &Map<String, Value>) -> Result<Self, ProtocolError> {
        let owned = |name: &str| Ok::<_, ProtocolError>(text(fields, name)?.map(Cow::into_owned));
        let collapse_id = match owned("collapseId")? {
            None => owned("topic")?,
            id => id,
        };
        if let Some(id) = &collapse_id
            && (id.len() > COLLAPSE_ID_BYTES_MAX
                || !id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')))
        {
            return Err(wrong(format!(
                "`collapseId` has at most {COLLAPSE_ID_BYTES_MAX} of A-Z, a-z, 0-9, - and _"
            )));
        }
        let content = Self {
            title: owned("title")?,
            body: owned("body")?,
            icon: owned("icon")?,
            image: owned("image")?,
            badge: badge(fields)?,
            url: owned("url")?,
            data: match given(fields, "data") {
                None => None,
                Some(Value::Object(data)) => Some(data.clone()),
                Some(_) => return Err(wrong("`data` must be an object")),
            },
            localisation: Localisation {
                title_loc_key: owned("titleLocKey")?,
                title_loc_args: strings(fields, "titleLocArgs", LOCALISATION_ARGS_MAX)?,
                body_loc_key: owned("bodyLocKey")?,
                body_loc_args: strings(fields, "bodyLocArgs", LOCALISATION_ARGS_MAX)?,
            },
            ttl: ttl(fields)?,
            urgency: urgency(fields)?,
            collapse_id,
        };
        content.check_size()?;
        Ok(content)
    }

    fn check_size(&self) -> Result<(), ProtocolError> {
        let largest = [
            self.to_web().len(),
            self.to_apns().len(),
            self.to_fcm("").len(),
        ];
        let largest = largest.into_iter().max().unwrap_or(0);
        if largest <= PAYLOAD_BYTES_MAX {
            return Ok(());
        }
        let text = format!("the notification has {largest} bytes, above {PAYLOAD_BYTES_MAX}");
        Err(ProtocolError::with_text(ErrorCode::TooLarge, text))
    }

    /// What a service worker reads: the fields at top level.
    #[must_use]
    pub fn to_web(&self) -> Vec<u8> {
        let mut fields = Map::new();
        self.put_common(&mut fields);
        put(&mut fields, "title", self.title.as_ref());
        put(&mut fields, "body", self.body.as_ref());
        put(&mut fields, "badge", self.badge.as_ref());
        put(&mut fields, "data", self.data.as_ref());
        let localisation = serde_json::to_value(&self.localisation);
        if let Ok(Value::Object(localisation)) = localisation {
            fields.extend(localisation);
        }
        put(&mut fields, "tag", self.collapse_id.as_ref());
        Value::Object(fields).to_string().into_bytes()
    }

    /// A message of FCM's HTTP v1 to one device.
    #[must_use]
    pub fn to_fcm(&self, token: &str) -> Vec<u8> {
        let (mut shown, mut data, mut on_android) = (Map::new(), Map::new(), Map::new());
        put(&mut shown, "title", self.title.as_ref());
        put(&mut shown, "body", self.body.as_ref());
        put(&mut shown, "image", self.image.as_ref());
        // Its values are strings.
        for (name, value) in self.data.iter().flatten() {
            let value = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            data.insert(name.clone(), value.into());
        }
        put(&mut data, "url", self.url.as_ref());
        put(&mut on_android, "icon", self.icon.as_ref());
        put(&mut on_android, "tag", self.collapse_id.as_ref());
        let words = &self.localisation;
        put(
            &mut on_android,
            "title_loc_key",
            words.title_loc_key.as_ref(),
        );
        put_list(&mut on_android, "title_loc_args", &words.title_loc_args);
        put(&mut on_android, "body_loc_key", words.body_loc_key.as_ref());
        put_list(&mut on_android, "body_loc_args", &words.body_loc_args);
        if let Some(count) = self.badge.as_ref().and_then(Value::as_u64) {
            on_android.insert("notification_count".into(), count.into());
        }
        let mut android = Map::new();
        let is_urgent = self.urgency == Urgency::High;
        let priority = if is_urgent { "HIGH" } else { "NORMAL" };
        android.insert("priority".into(), priority.into());
        android.insert("ttl".into(), format!("{}s", self.ttl).into());
        put(&mut android, "collapse_key", self.collapse_id.as_ref());
        if !on_android.is_empty() {
            android.insert("notification".into(), on_android.into());
        }
        let mut message = Map::new();
        message.insert("token".into(), token.into());
        if !shown.is_empty() {
            message.insert("notification".into(), shown.into());
        }
        if !data.is_empty() {
            message.insert("data".into(), data.into());
        }
        message.insert("android".into(), android.into());
        json!({ "message": message }).to_string().into_bytes()
    }

    /// APNs' payload: `aps`, and the application's own fields beside it.
    #[must_use]
    pub fn to_apns(&self) -> Vec<u8> {
        let mut alert = Map::new();
        put(&mut alert, "title", self.title.as_ref());
        put(&mut alert, "body", self.body.as_ref());
        let words = &self.localisation;
        put(&mut alert, "title-loc-key", words.title_loc_key.as_ref());
        put_list(&mut alert, "title-loc-args", &words.title_loc_args);
        put(&mut alert, "loc-key", words.body_loc_key.as_ref());
        put_list(&mut alert, "loc-args", &words.body_loc_args);
        let mut aps = Map::new();
        if alert.is_empty() {
            aps.insert("content-available".into(), 1.into());
        } else {
            aps.insert("alert".into(), alert.into());
            aps.insert("sound".into(), "default".into());
        }
        if let Some(count) = self.badge.as_ref().and_then(Value::as_u64) {
            aps.insert("badge".into(), count.into());
        }
        if self.image.is_some() {
            // Lets the application fetch it before the notification is shown.
            aps.insert("mutable-content".into(), 1.into());
        }
        let mut fields = self.data.clone().unwrap_or_default();
        self.put_common(&mut fields);
        fields.insert("aps".into(), aps.into());
        Value::Object(fields).to_string().into_bytes()
    }

    /// Whether APNs is to show something (`alert`) or only wake the application (`background`).
    #[must_use]
    pub fn is_shown(&self) -> bool {
        let words = &self.localisation;
        self.title.is_some()
            || self.body.is_some()
            || words.title_loc_key.is_some()
            || words.body_loc_key.is_some()
    }

    /// APNs' priority: at once, or when it suits the device. Background notifications must be 5.
    #[must_use]
    pub fn apns_priority(&self) -> u8 {
        match self.urgency {
            Urgency::Normal | Urgency::High if self.is_shown() => 10,
            Urgency::VeryLow if self.is_shown() => 1,
            _ => 5,
        }
    }

    fn put_common(&self, fields: &mut Map<String, Value>) {
        put(fields, "icon", self.icon.as_ref());
        put(fields, "image", self.image.as_ref());
        put(fields, "url", self.url.as_ref());
    }
}

fn put<T: Clone + Into<Value>>(fields: &mut Map<String, Value>, name: &str, value: Option<&T>) {
    if let Some(value) = value {
        fields.insert(name.to_owned(), value.clone().into());
    }
}

fn put_list(fields: &mut Map<String, Value>, name: &str, list: &[String]) {
    if !list.is_empty() {
        fields.insert(name.to_owned(), list.to_vec().into());
    }
}

fn badge(fields: &Map<String, Value>) -> Result<Option<Value>, ProtocolError> {
    match given(fields, "badge") {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(badge) if badge.is_string() || badge.is_u64() => Ok(Some(badge.clone())),
        Some(_) => Err(wrong("`badge` must be an address or a number")),
    }
}

fn ttl(fields: &Map<String, Value>) -> Result<u32, ProtocolError> {
    let Some(value) = given(fields, "ttl") else {
        return Ok(TTL_S_DEFAULT);
    };
    // Some languages have no other numbers than floats.
    let seconds = value
        .as_u64()
        .or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64));
    let seconds = seconds.ok_or_else(|| wrong("`ttl` must be a number of seconds"))?;
    Ok(u32::try_from(seconds)
        .unwrap_or(u32::MAX)
        .min(TTL_S_DEFAULT))
}

fn urgency(fields: &Map<String, Value>) -> Result<Urgency, ProtocolError> {
    let Some(name) = text(fields, "urgency")? else {
        return Ok(Urgency::default());
    };
    let found = Urgency::ALL.into_iter().find(|(known, _)| *known == name);
    let (_, urgency) =
        found.ok_or_else(|| wrong("`urgency` must be very-low, low, normal or high"))?;
    Ok(urgency)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(value: Value) -> Result<Content, u16> {
        let fields = value.as_object().unwrap();
        Content::read(fields).map_err(|error| error.code.code())
    }

    fn json_of(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn each_provider_gets_its_form() {
        let full = content(
            json!({"title": "T", "body": "B", "icon": "i", "image": "p", "badge": 3,
            "url": "u", "data": {"n": 1, "s": "x"}, "ttl": 60.0, "urgency": "high", "topic": "up",
            "titleLocKey": "K", "titleLocArgs": ["a"]}),
        )
        .unwrap();
        let web = json_of(&full.to_web());
        assert_eq!((&web["title"], &web["data"]["n"]), (&json!("T"), &json!(1)));
        assert_eq!(web["titleLocKey"], "K");
        let fcm = json_of(&full.to_fcm("tok"));
        assert_eq!(
            fcm["message"],
            json!({"token": "tok", "notification": {"title": "T", "body": "B", "image": "p"},
                "data": {"n": "1", "s": "x", "url": "u"},
                "android": {"priority": "HIGH", "ttl": "60s", "collapse_key": "up",
                    "notification": {"icon": "i", "tag": "up", "title_loc_key": "K",
                        "title_loc_args": ["a"], "notification_count": 3}}})
        );
        let apns = json_of(&full.to_apns());
        assert_eq!(
            apns,
            json!({"aps": {"alert": {"title": "T", "body": "B", "title-loc-key": "K",
                    "title-loc-args": ["a"]}, "sound": "default", "badge": 3, "mutable-content": 1},
                "icon": "i", "image": "p", "url": "u", "n": 1, "s": "x"})
        );
        assert_eq!(full.apns_priority(), 10);
        let silent = content(json!({"data": {"aps": "mine"}})).unwrap();
        assert_eq!(
            json_of(&silent.to_apns()),
            json!({"aps": {"content-available": 1}})
        );
        assert_eq!(silent.apns_priority(), 5);
        assert_eq!(silent.ttl, TTL_S_DEFAULT);
    }

    #[test]
    fn content_comes_back_from_the_store() {
        for fields in [
            json!({}),
            json!({"title": "T", "badge": "b", "bodyLocKey": "k", "urgency": "very-low"}),
        ] {
            let content = content(fields).unwrap();
            let text = serde_json::to_string(&content).unwrap();
            assert_eq!(serde_json::from_str::<Content>(&text).unwrap(), content);
        }
    }

    #[test]
    fn what_no_provider_takes_is_refused() {
        for (fields, code) in [
            (json!({"title": 5}), 40003),
            (json!({"data": [1]}), 40003),
            (json!({"ttl": -1}), 40003),
            (json!({"urgency": "now"}), 40003),
            (json!({"collapseId": "a b"}), 40003),
            (json!({"badge": -1}), 40003),
            (json!({"body": "x".repeat(4000)}), 41300),
            (json!({"data": {"q": "\"".repeat(2000)}}), 41300),
        ] {
            assert_eq!(content(fields.clone()).unwrap_err(), code, "{fields}");
        }
    }
}
