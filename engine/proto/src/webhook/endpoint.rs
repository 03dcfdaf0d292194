//! An endpoint: where events of an app go, which, and how; as it is kept, made and changed.

use serde::{Deserialize, Serialize};

use super::{
    BATCH_EVENTS_MAX, BATCH_MS_MAX, CONCURRENCY_MAX, Filter, Kind, KindSet, URL_BYTES_MAX,
};
use crate::limits::{NAME_BYTES_MAX, ROTATION_OVERLAP_S_MAX};

/// How many events go together, and how long they wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Batch {
    pub max_events: usize,
    pub max_ms: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_events: BATCH_EVENTS_MAX,
            max_ms: 1000,
        }
    }
}

/// Whose names events have in deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Names {
    #[default]
    Wsocket,
    Pusher,
}

impl Names {
    #[must_use]
    pub fn of(self, kind: Kind) -> &'static str {
        match self {
            Self::Wsocket => kind.name(),
            Self::Pusher => kind.alias(),
        }
    }
}

/// An endpoint as it is kept. Its secrets are in it: it is shown through [`Endpoint::shown`] only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    pub id: String,
    pub app: String,
    pub url: String,
    /// For people.
    pub name: String,
    /// Names or aliases of events; empty: [`KindSet::usual`].
    pub events: Vec<String>,
    /// Patterns; empty: every channel.
    pub channels: Vec<String>,
    pub batch: Batch,
    /// Deliveries under way at once. 1: all events in order; above that those of each channel.
    pub concurrency: usize,
    pub names: Names,
    pub enabled: bool,
    /// Why it is not, where that was not the operator's doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    pub secret: String,
    /// The secret before, and until when it signs too, ms since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<(String, u64)>,
    /// ms since the Unix epoch.
    pub created_ms: u64,
}

/// What whoever makes one says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewEndpoint {
    pub url: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub events: Vec<String>,
    #[serde(default)]
    pub channels: Vec<String>,
    #[serde(default)]
    pub batch: Batch,
    #[serde(default = "one")]
    pub concurrency: usize,
    #[serde(default)]
    pub names: Names,
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

/// What is to be different.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EndpointPatch {
    pub url: Option<String>,
    pub name: Option<String>,
    pub events: Option<Vec<String>>,
    pub channels: Option<Vec<String>>,
    pub batch: Option<Batch>,
    pub concurrency: Option<usize>,
    pub names: Option<Names>,
    pub enabled: Option<bool>,
}

impl Endpoint {
    /// # Errors
    /// What is wrong, for whoever wrote it. Whether the URL is one is not looked at here.
    pub fn new(
        app: &str,
        (id, secret): (String, String),
        new: NewEndpoint,
        now_ms: u64,
    ) -> Result<Self, String> {
        let endpoint = Self {
            id,
            app: app.to_owned(),
            url: new.url,
            name: new.name,
            events: new.events,
            channels: new.channels,
            batch: new.batch,
            concurrency: new.concurrency,
            names: new.names,
            enabled: new.enabled,
            disabled_reason: None,
            secret,
            previous: None,
            created_ms: now_ms,
        };
        endpoint.validate().map(|()| endpoint)
    }

    /// The endpoint with a change.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub fn patched(&self, patch: EndpointPatch) -> Result<Self, String> {
        let mut changed = self.clone();
        changed.url = patch.url.unwrap_or(changed.url);
        changed.name = patch.name.unwrap_or(changed.name);
        changed.events = patch.events.unwrap_or(changed.events);
        changed.channels = patch.channels.unwrap_or(changed.channels);
        changed.batch = patch.batch.unwrap_or(changed.batch);
        changed.concurrency = patch.concurrency.unwrap_or(changed.concurrency);
        changed.names = patch.names.unwrap_or(changed.names);
        if let Some(enabled) = patch.enabled {
            changed.enabled = enabled;
            changed.disabled_reason = None;
        }
        changed.validate().map(|()| changed)
    }

    /// The endpoint with another secret; for `overlap_s` the one before signs too.
    ///
    /// # Errors
    /// The overlap is too long.
    pub fn rotated(&self, secret: String, overlap_s: u64, now_ms: u64) -> Result<Self, String> {
        if overlap_s > ROTATION_OVERLAP_S_MAX {
            return Err(format!(
                "`overlapSeconds` is above {ROTATION_OVERLAP_S_MAX}"
            ));
        }
        let mut changed = self.clone();
        let before = std::mem::replace(&mut changed.secret, secret);
        changed.previous = (overlap_s > 0).then_some((before, now_ms + overlap_s * 1000));
        Ok(changed)
    }

    /// Its filter. What is kept has been validated.
    #[must_use]
    pub fn filter(&self) -> Option<Filter> {
        Filter::new(&self.events, &self.channels).ok()
    }

    /// The secrets that sign at `now_ms`, the newest first.
    pub fn secrets(&self, now_ms: u64) -> impl Iterator<Item = &str> {
        let previous = self.previous.as_ref().filter(|(_, until)| now_ms < *until);
        std::iter::once(&*self.secret).chain(previous.map(|(secret, _)| &**secret))
    }

    /// As it may be shown: without secrets.
    #[must_use]
    pub fn shown(&self, now_ms: u64) -> serde_json::Value {
        let kinds = match &*self.events {
            [] => {
                let usual = KindSet::usual();
                let kinds = Kind::ALL.into_iter().filter(|kind| usual.contains(*kind));
                kinds.map(|kind| kind.name().to_owned()).collect()
            }
            events => events.to_vec(),
        };
        let mut shown = serde_json::json!({
            "id": self.id,
            "app": self.app,
            "url": self.url,
            "name": self.name,
            "events": kinds,
            "channels": self.channels,
            "batch": self.batch,
            "concurrency": self.concurrency,
            "names": self.names,
            "enabled": self.enabled,
            "createdAt": self.created_ms,
        });
        if let Some(fields) = shown.as_object_mut() {
            if let Some(reason) = &self.disabled_reason {
                fields.insert("disabledReason".into(), reason.as_str().into());
            }
            let previous = self.previous.as_ref().filter(|(_, until)| now_ms < *until);
            if let Some((_, until)) = previous {
                fields.insert("previousSecretUntil".into(), (*until).into());
            }
        }
        shown
    }

    fn validate(&self) -> Result<(), String> {
        if self.url.is_empty() || self.url.len() > URL_BYTES_MAX {
            return Err(format!("`url` must be 1 to {URL_BYTES_MAX} bytes"));
        }
        if self.name.len() > NAME_BYTES_MAX {
            return Err(format!("`name` is above {NAME_BYTES_MAX} bytes"));
        }
        Filter::new(&self.events, &self.channels)?;
        if !(1..=BATCH_EVENTS_MAX).contains(&self.batch.max_events) {
            return Err(format!(
                "`batch.maxEvents` must be from 1 to {BATCH_EVENTS_MAX}"
            ));
        }
        if self.batch.max_ms > BATCH_MS_MAX {
            return Err(format!("`batch.maxMs` is above {BATCH_MS_MAX}"));
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.concurrency) {
            return Err(format!("`concurrency` must be from 1 to {CONCURRENCY_MAX}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        let new = serde_json::from_str(r#"{"url": "https://x"}"#).unwrap();
        Endpoint::new("a", ("wh_1".into(), "whsec_1".into()), new, 1000).unwrap()
    }

    #[test]
    fn secrets_are_not_shown() {
        let rotated = endpoint().rotated("whsec_2".into(), 10, 1000).unwrap();
        let shown = rotated.shown(1000).to_string();
        assert!(!shown.contains("whsec_"), "{shown}");
        assert!(shown.contains("previousSecretUntil"));
    }

    #[test]
    fn both_secrets_sign_while_one_takes_the_place_of_the_other() {
        let rotated = endpoint().rotated("whsec_2".into(), 10, 1000).unwrap();
        let at = |ms| rotated.secrets(ms).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(at(10_999), ["whsec_2", "whsec_1"]);
        assert_eq!(at(11_000), ["whsec_2"]);
        assert!(endpoint().rotated("x".into(), u64::MAX, 0).is_err());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused() {
        for patch in [
            r#"{"url": ""}"#,
            r#"{"batch": {"maxEvents": 101}}"#,
            r#"{"batch": {"maxMs": 60001}}"#,
            r#"{"concurrency": 0}"#,
            r#"{"events": ["x"]}"#,
            r#"{"channels": ["a*"]}"#,
        ] {
            let read = serde_json::from_str(patch).unwrap();
            assert!(endpoint().patched(read).is_err(), "{patch}");
        }
        let enabled = serde_json::from_str(r#"{"enabled": false}"#).unwrap();
        assert!(!endpoint().patched(enabled).unwrap().enabled);
    }
}
