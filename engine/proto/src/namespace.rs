//! Settings by channel pattern: what is kept of which channels, and for how long (contract D17).

use serde::{Deserialize, Serialize};

use crate::auth::capability::{check_pattern, matches};
use crate::limits::{
    HISTORY_AGE_MS, HISTORY_MESSAGES_MAX, PRESENCE_EVENTS_MAX, RECOVERY_AGE_MS_MIN,
};
use crate::rate::table::{Place, Rates};
use crate::record::{Retention, Sync};

/// The channels of one pattern. The first that matches a channel counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// In the form of capability patterns (contract D7).
    pub pattern: String,
    /// Whether clients may ask for history and rewind. Without it messages are still kept as long
    /// as resume needs.
    #[serde(default = "yes")]
    pub history: bool,
    /// Whether messages are stored at all. Without it every publish is ephemeral.
    #[serde(default = "yes")]
    pub persist: bool,
    /// Most messages kept per channel.
    #[serde(default = "default_messages_max")]
    pub messages_max: u64,
    /// Age at which messages go, seconds.
    #[serde(default = "default_ttl_s")]
    pub ttl_s: u64,
    /// What an ack means: `process` survives the end of the process, `disk` a power cut.
    #[serde(default)]
    pub sync: Sync,
    /// Most presence members per channel; none: the limit of all channels.
    #[serde(default)]
    pub presence_members_max: Option<usize>,
    /// Members of a channel up to which its receivers are told of each; above it they are told how
    /// many there are.
    #[serde(default = "default_presence_events_max")]
    pub presence_events_max: usize,
    /// Whether members who are enrolled for push and not connected are notified of messages.
    #[serde(default)]
    pub push_offline: bool,
    /// How long further messages are held back after such a notification, to be one, s.
    #[serde(default = "default_push_debounce_s")]
    pub push_debounce_s: u64,
    /// Whether ephemeral messages are delivered on their node alone while the broker between nodes is away, instead of
    /// being refused.
    #[serde(default)]
    pub ephemeral_when_degraded: bool,
    /// Rates of what concerns these channels.
    #[serde(default, skip_serializing_if = "Rates::is_empty")]
    pub rates: Rates,
}

fn default_presence_events_max() -> usize {
    PRESENCE_EVENTS_MAX
}

fn default_push_debounce_s() -> u64 {
    30
}

fn yes() -> bool {
    true
}

fn default_messages_max() -> u64 {
    HISTORY_MESSAGES_MAX as u64
}

fn default_ttl_s() -> u64 {
    HISTORY_AGE_MS / 1000
}

impl Default for Namespace {
    fn default() -> Self {
        Self {
            pattern: "*".into(),
            history: true,
            persist: true,
            messages_max: default_messages_max(),
            ttl_s: default_ttl_s(),
            sync: Sync::Process,
            presence_members_max: None,
            presence_events_max: PRESENCE_EVENTS_MAX,
            push_offline: false,
            push_debounce_s: default_push_debounce_s(),
            ephemeral_when_degraded: false,
            rates: Rates::default(),
        }
    }
}

/// All namespaces, in order; ends with the default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces(Vec<Namespace>);

impl Default for Namespaces {
    fn default() -> Self {
        Self(vec![Namespace::default()])
    }
}

impl Namespaces {
    /// Errors: a message that names the namespace and what is wrong with it.
    pub fn new(list: Vec<Namespace>) -> Result<Self, String> {
        let mut all = list;
        for n in &all {
            check_pattern(&n.pattern).map_err(|e| e.to_string())?;
            if n.messages_max == 0 {
                return Err(format!(
                    "namespace {:?}: messages_max is 0; use persist = false to store nothing",
                    n.pattern
                ));
            }
            if n.presence_members_max == Some(0) {
                return Err(format!(
                    "namespace {:?}: presence_members_max is 0",
                    n.pattern
                ));
            }
            if n.ttl_s.saturating_mul(1000) < RECOVERY_AGE_MS_MIN {
                return Err(format!(
                    "namespace {:?}: ttl_s is below {}, which resume needs",
                    n.pattern,
                    RECOVERY_AGE_MS_MIN / 1000
                ));
            }
            n.rates
                .validate(Place::Namespace)
                .map_err(|e| format!("namespace {:?}: {e}", n.pattern))?;
        }
        all.push(Namespace::default());
        Ok(Self(all))
    }

    /// In the order in which they are looked through.
    pub fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.0.iter()
    }

    /// With `first` before them, which have been checked.
    #[must_use]
    pub fn preceded_by(&self, first: &[Namespace]) -> Self {
        Self(first.iter().chain(&self.0).cloned().collect())
    }

    /// The settings of a channel.
    pub fn of(&self, channel: &str) -> Settings {
        let found = self.0.iter().find(|n| matches(&n.pattern, channel));
        found.map_or_else(Settings::default, Settings::from)
    }
}

/// A channel's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub history: bool,
    pub persist: bool,
    pub retention: Retention,
    /// Of this namespace; none: the limit of all channels.
    pub presence_members_max: Option<usize>,
    pub presence_events_max: usize,
    /// Whether absent members are notified, and how long others are held back after that, ms.
    pub push_offline: Option<u64>,
    /// See [`Namespace::ephemeral_when_degraded`].
    pub ephemeral_when_degraded: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self::from(&Namespace::default())
    }
}

impl From<&Namespace> for Settings {
    fn from(n: &Namespace) -> Self {
        Self {
            history: n.history,
            persist: n.persist,
            retention: Retention {
                messages_max: n.messages_max,
                age_ms: n.ttl_s.saturating_mul(1000),
                sync: n.sync,
            },
            presence_members_max: n.presence_members_max,
            presence_events_max: n.presence_events_max,
            push_offline: n
                .push_offline
                .then(|| n.push_debounce_s.saturating_mul(1000)),
            ephemeral_when_degraded: n.ephemeral_when_degraded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_match_counts_and_the_default_is_last() {
        let all = Namespaces::new(vec![
            Namespace {
                pattern: "live:secret".into(),
                history: false,
                ..Namespace::default()
            },
            Namespace {
                pattern: "live:*".into(),
                persist: false,
                ..Namespace::default()
            },
        ])
        .unwrap();
        assert!(!all.of("live:secret").history && all.of("live:secret").persist);
        assert!(!all.of("live:x").persist);
        assert_eq!(all.of("other"), Settings::default());
    }

    #[test]
    fn settings_that_resume_cannot_work_with_are_refused() {
        let bad = |n| Namespaces::new(vec![n]).unwrap_err();
        let short = Namespace {
            ttl_s: 60,
            ..Namespace::default()
        };
        assert!(bad(short).contains("ttl_s"));
        let none = Namespace {
            messages_max: 0,
            ..Namespace::default()
        };
        assert!(bad(none).contains("messages_max"));
        let pattern = Namespace {
            pattern: "a*".into(),
            ..Namespace::default()
        };
        assert!(bad(pattern).contains("a*"));
    }
}
