//! From a channel's messages to notifications for members who are not connected.
//!
//! A namespace with `push_offline` has each accepted message told to the push service, which notifies those who are
//! enrolled for the channel and have no connection: the first at once, then one for all that follow within
//! `push_debounce_s`. Not here: who is enrolled and who is connected.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::content::Content;

/// Bytes of a message's `data` that are looked at; of a longer one nothing is.
pub const DATA_BYTES_MAX: usize = 16 * 1024;
/// Characters of a text that are shown.
const TEXT_CHARS_MAX: usize = 200;

/// A message was accepted on a channel whose absent members are to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub app: Arc<str>,
    pub channel: Arc<str>,
    /// Of the message.
    pub id: Box<str>,
    /// JSON; empty where it was above [`DATA_BYTES_MAX`].
    pub data: Box<str>,
    /// How long others are held back after it, ms.
    pub debounce_ms: u64,
}

impl Notice {
    /// What is shown: the message's own `push` object where it has one, else its `title` and `body`, else the channel's
    /// name and the message where that is a text. `data` names channel and message.
    #[must_use]
    pub fn content(&self) -> Content {
        let message: Value = serde_json::from_str(&self.data).unwrap_or_default();
        let own = message.get("push").and_then(Value::as_object);
        let mut shown = own.cloned().unwrap_or_else(|| self.shown(&message));
        let names = json!({ "channel": &*self.channel, "messageId": &*self.id });
        if !shown.contains_key("data") {
            shown.insert("data".into(), names);
        }
        // What an application wrote wrongly must not keep its members from knowing.
        Content::read(&shown)
            .or_else(|_| Content::read(&self.shown(&Value::Null)))
            .unwrap_or_default()
    }

    fn shown(&self, message: &Value) -> Map<String, Value> {
        let text = |value: Option<&Value>| {
            let text = value.and_then(Value::as_str)?;
            Some(text.chars().take(TEXT_CHARS_MAX).collect::<String>())
        };
        let title = text(message.get("title")).unwrap_or_else(|| self.channel.to_string());
        let body = text(message.get("body"))
            .or_else(|| text(message.get("text")))
            .or_else(|| text(Some(message)));
        let mut shown = Map::new();
        shown.insert("title".into(), title.into());
        if let Some(body) = body {
            shown.insert("body".into(), body.into());
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(data: &Value) -> Content {
        Notice {
            app: "a".into(),
            channel: "room:1".into(),
            id: "m1".into(),
            data: data.to_string().into(),
            debounce_ms: 0,
        }
        .content()
    }

    #[test]
    fn a_message_says_what_is_shown() {
        let own = content(&json!({"push": {"title": "T", "urgency": "high"}, "title": "other"}));
        assert_eq!((own.title.as_deref(), own.body), (Some("T"), None));
        let fields = content(&json!({"title": "T", "body": "B"}));
        assert_eq!(
            (fields.title.as_deref(), fields.body.as_deref()),
            (Some("T"), Some("B"))
        );
        let text = content(&json!("hello"));
        assert_eq!(
            (text.title.as_deref(), text.body.as_deref()),
            (Some("room:1"), Some("hello"))
        );
        let data = text.data.unwrap();
        assert_eq!(
            (&data["channel"], &data["messageId"]),
            (&json!("room:1"), &json!("m1"))
        );
    }

    #[test]
    fn what_cannot_be_shown_still_notifies() {
        for data in [
            json!(5),
            json!({"push": {"title": 5}}),
            json!({"body": "x".repeat(10_000)}),
        ] {
            assert_eq!(content(&data).title.as_deref(), Some("room:1"), "{data}");
        }
    }
}
