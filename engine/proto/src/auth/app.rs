//! Apps: what a channel, a key and a client belong to, and the settings that may differ between them.
//!
//! Data and its checks; where apps are stored and who may change them is decided elsewhere. A setting that is absent
//! is the process's own. Invariant: an app that passed [`App::validate`] has settings that a shard can work with.

use serde::{Deserialize, Serialize};

use crate::limits::{APP_ID_BYTES_MAX, APP_NAMESPACES_MAX, NAME_BYTES_MAX};
use crate::namespace::{Namespace, Namespaces};
use crate::rate::RateLimit;
use crate::rate::table::{Place, Rates};

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// Names the app in paths and tokens: 1 to 64 of `[A-Za-z0-9_-]`. Never changes.
    pub id: String,
    /// For people, at most 128 bytes.
    #[serde(default)]
    pub name: String,
    /// Whoever presents one of its credentials is refused with 40301, who is connected is ended (4003).
    #[serde(default)]
    pub disabled: bool,
    /// What differs from the process's settings.
    #[serde(default)]
    pub settings: AppSettings,
    /// Unix time, ms.
    #[serde(default)]
    pub created_ms: u64,
}

/// What an app may set for itself. Absent: as the process has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppSettings {
    /// Looked at before the process's. At most [`APP_NAMESPACES_MAX`]. Fields as in the configuration file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// Whether `?clientId=` is honoured (contract D8).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_asserted_ids: Option<bool>,
    /// Origins browsers may connect from; empty: any (D29).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_origins: Option<Vec<String>>,
    /// Whether the `connected` frame is sent (D9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<bool>,
    /// A file of JSON Web Keys whose tokens are accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<String>,
    /// Where such keys are fetched from: `https://…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// The plan that it has; absent: none, nothing is limited in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Whether client keys may change and remove push subscriptions, and not only add them (D22): for apps whose members
    /// cannot be told apart anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_open_members: Option<bool>,
    /// Bounds of the app.
    #[serde(default, skip_serializing_if = "AppLimits::is_default")]
    pub limits: AppLimits,
}

/// Bounds that an app may have of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppLimits {
    /// Publishes of a connection; `{"per_window", "window_ms", "burst"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_rate: Option<RateLimit>,
    /// Bytes of a message's `data`; not above the process's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_bytes_max: Option<usize>,
    /// Subscriptions of a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels_per_conn_max: Option<usize>,
    /// Rates by class and scope, as in the file's `[limits.rates]`.
    #[serde(default, skip_serializing_if = "says_nothing")]
    pub rates: Box<Rates>,
    /// Connections of the app. Each shard allows its share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<usize>,
}

fn says_nothing(rates: &impl std::ops::Deref<Target = Rates>) -> bool {
    rates.is_empty()
}

impl AppLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl App {
    /// An app with the process's settings.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: String::new(),
            disabled: false,
            settings: AppSettings::default(),
            created_ms: 0,
        }
    }

    /// Checks what can be wrong with an app.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn validate(&self) -> Result<(), String> {
        if !is_valid_id(&self.id) {
            return Err("`id` must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -".into());
        }
        if self.name.len() > NAME_BYTES_MAX {
            return Err(format!("`name` is above {NAME_BYTES_MAX} bytes"));
        }
        self.settings.validate()
    }
}

impl AppSettings {
    /// Checks what can be wrong with settings.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn validate(&self) -> Result<(), String> {
        if self.namespaces.len() > APP_NAMESPACES_MAX {
            return Err(format!("`namespaces` has more than {APP_NAMESPACES_MAX}"));
        }
        Namespaces::new(self.namespaces.clone())?;
        for origin in self.allowed_origins.iter().flatten() {
            if !is_origin(origin) {
                return Err(format!(
                    "`allowedOrigins`: {origin:?} is not an origin; write https://example.com"
                ));
            }
        }
        let limits = &self.limits;
        limits
            .rates
            .validate(Place::App)
            .map_err(|e| format!("`limits.{e}`"))?;
        for (name, value) in [
            ("publishBytesMax", limits.publish_bytes_max),
            ("channelsPerConnMax", limits.channels_per_conn_max),
            ("connectionsMax", limits.connections_max),
        ] {
            if value == Some(0) {
                return Err(format!("`limits.{name}` is 0"));
            }
        }
        if let Some(url) = &self.jwks_url
            && !url.starts_with("https://")
            && !url.starts_with("http://")
        {
            return Err("`jwksUrl` must begin with https://".into());
        }
        Ok(())
    }
}

/// Whether `id` may name an app, a key or a signing key: 1 to 64 characters of `[A-Za-z0-9_-]`.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    (1..=APP_ID_BYTES_MAX).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Whether `text` has the form of an `Origin` header: scheme, host, perhaps a port (RFC 6454, 6.2).
#[must_use]
pub fn is_origin(text: &str) -> bool {
    let host_is_plain =
        |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ', '*', ',']);
    text.split_once("://")
        .is_some_and(|(scheme, host)| !scheme.is_empty() && host_is_plain(host))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(value: serde_json::Value) -> Result<AppSettings, String> {
        let settings: AppSettings = serde_json::from_value(value).map_err(|e| e.to_string())?;
        settings.validate().map(|()| settings)
    }

    #[test]
    fn settings_read_back_as_they_were_written() {
        let text = json!({
            "allowedOrigins": ["https://a.example"],
            "limits": {"connectionsMax": 5, "publishRate": {"per_window": 5, "window_ms": 1000, "burst": 5}},
            "selfAssertedIds": true,
        });
        let read = settings(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), text);
        assert_eq!(settings(json!({})).unwrap(), AppSettings::default());
    }

    #[test]
    fn what_a_shard_cannot_work_with_is_refused_by_name() {
        for (bad, named) in [
            (json!({"namespaces": [{"pattern": "a*"}]}), "a*"),
            (json!({"allowedOrigins": ["a.example"]}), "allowedOrigins"),
            (json!({"limits": {"connectionsMax": 0}}), "connectionsMax"),
            (json!({"jwksUrl": "file:///etc/passwd"}), "jwksUrl"),
            (json!({"helo": true}), "helo"),
        ] {
            let told = settings(bad).unwrap_err();
            assert!(told.contains(named), "{told}");
        }
        for id in ["", "a/b", "a b", "..", &"x".repeat(65)] {
            assert!(!is_valid_id(id), "{id}");
        }
    }
}
