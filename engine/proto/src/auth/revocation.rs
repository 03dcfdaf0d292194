//! Revocations: rights taken back before the credential that holds them ends.
//!
//! Without a channel pattern, connections are ended (4010) and later ones refused (40102). With one, matching
//! subscriptions are ended (contract D32) and no right is left on matching channels. Both as long as it lasts.

use serde::{Deserialize, Serialize};

use super::capability::{check_pattern, matches};
use crate::limits::{CLIENT_ID_BYTES_MAX, NAME_BYTES_MAX};

/// Whom a revocation concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// A client id.
    ClientId(String),
    /// One token, by its `jti`.
    Jti(String),
    /// All who came with an API key.
    KeyId(String),
    /// All whose token names a signing key.
    Kid(String),
}

/// A right taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// Names it.
    pub id: String,
    /// The app.
    pub app: String,
    /// Whom it concerns.
    #[serde(flatten)]
    pub subject: Subject,
    /// The channels concerned, in the form of D7; absent: the connection as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Unix time in ms at which it ends.
    pub until_ms: u64,
    /// Tokens issued (`iat`) at or after this Unix time in ms are not concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_before_ms: Option<u64>,
    /// Unix time, ms.
    #[serde(default)]
    pub created_ms: u64,
}

/// Who is asked about: a caller or a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holder<'a> {
    /// Its client id.
    pub client_id: Option<&'a str>,
    /// Its token's `jti`.
    pub jti: Option<&'a str>,
    /// Its API key.
    pub key_id: Option<&'a str>,
    /// Its token's signing key.
    pub kid: Option<&'a str>,
    /// When its token was issued, Unix ms.
    pub issued_ms: Option<u64>,
}

impl Revocation {
    /// Whether it concerns `holder` at `now_ms`.
    #[must_use]
    pub fn concerns(&self, holder: &Holder<'_>, now_ms: u64) -> bool {
        let (wanted, held) = match &self.subject {
            Subject::ClientId(id) => (id, holder.client_id),
            Subject::Jti(id) => (id, holder.jti),
            Subject::KeyId(id) => (id, holder.key_id),
            Subject::Kid(id) => (id, holder.kid),
        };
        let issued_later = match (self.issued_before_ms, holder.issued_ms) {
            (Some(before), Some(issued)) => issued >= before,
            _ => false,
        };
        now_ms < self.until_ms && held == Some(wanted.as_str()) && !issued_later
    }

    /// Whether it takes rights on `channel` away; false where it concerns the connection as a whole.
    #[must_use]
    pub fn covers(&self, channel: &str) -> bool {
        self.channel
            .as_ref()
            .is_some_and(|pattern| matches(pattern, channel))
    }

    /// Checks its form.
    ///
    /// # Errors
    /// What is wrong.
    pub fn validate(&self) -> Result<(), String> {
        let (Subject::ClientId(id) | Subject::Jti(id) | Subject::KeyId(id) | Subject::Kid(id)) =
            &self.subject;
        if !(1..=CLIENT_ID_BYTES_MAX.max(NAME_BYTES_MAX)).contains(&id.len()) {
            return Err(format!("an id has 1 to {CLIENT_ID_BYTES_MAX} bytes"));
        }
        self.channel
            .as_deref()
            .map_or(Ok(()), |p| check_pattern(p).map_err(|e| e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revocation(subject: Subject) -> Revocation {
        Revocation {
            id: "r".into(),
            app: "app".into(),
            subject,
            channel: None,
            until_ms: 1000,
            issued_before_ms: None,
            created_ms: 0,
        }
    }

    #[test]
    fn it_concerns_whom_it_names_while_it_lasts() {
        let by_client = revocation(Subject::ClientId("ann".into()));
        let holder = |client_id| Holder {
            client_id: Some(client_id),
            jti: Some("ann"),
            ..Holder::default()
        };
        assert!(by_client.concerns(&holder("ann"), 999));
        assert!(!by_client.concerns(&holder("ann"), 1000));
        assert!(!by_client.concerns(&holder("bob"), 0));
        assert!(revocation(Subject::Jti("ann".into())).concerns(&holder("bob"), 0));
    }

    #[test]
    fn tokens_issued_later_are_not_concerned() {
        let mut r = revocation(Subject::ClientId("ann".into()));
        r.issued_before_ms = Some(500);
        let holder = |issued_ms| Holder {
            client_id: Some("ann"),
            issued_ms,
            ..Holder::default()
        };
        assert!(r.concerns(&holder(Some(499)), 0) && r.concerns(&holder(None), 0));
        assert!(!r.concerns(&holder(Some(500)), 0));
    }

    #[test]
    fn a_pattern_covers_channels_and_is_written_flat() {
        let mut r = revocation(Subject::Kid("k".into()));
        assert!(!r.covers("room:1"));
        r.channel = Some("room:*".into());
        assert!(r.covers("room:1") && !r.covers("lobby"));
        let text = serde_json::to_value(&r).unwrap();
        assert_eq!(
            (&text["kid"], &text["channel"]),
            (&"k".into(), &"room:*".into())
        );
        assert_eq!(serde_json::from_value::<Revocation>(text).unwrap(), r);
        r.channel = Some("a*".into());
        assert!(r.validate().is_err());
    }
}
