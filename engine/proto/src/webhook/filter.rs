//! Which events an endpoint wants, and what all endpoints of an app want together: shards look before they tell.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Kind, KindSet, PATTERNS_MAX};
use crate::auth::capability::{check_pattern, matches};

/// Events and channels of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    kinds: KindSet,
    /// In the form of capabilities (contract D7). None: every channel.
    patterns: Vec<String>,
}

impl Filter {
    /// Of names of events, the usual ones where there are none, and patterns of channels.
    ///
    /// # Errors
    /// What is wrong, for whoever wrote it.
    pub fn new(events: &[String], channels: &[String]) -> Result<Self, String> {
        let mut kinds = KindSet::default();
        for name in events {
            kinds.add(Kind::parse(name).ok_or_else(|| format!("there is no event `{name}`"))?);
        }
        if events.is_empty() {
            kinds = KindSet::usual();
        }
        if channels.len() > PATTERNS_MAX {
            return Err(format!("`channels` has more than {PATTERNS_MAX} patterns"));
        }
        for pattern in channels {
            check_pattern(pattern).map_err(|error| error.to_string())?;
        }
        let all = channels.iter().any(|pattern| pattern == "*");
        let patterns = if all { Vec::new() } else { channels.to_vec() };
        Ok(Self { kinds, patterns })
    }

    /// Whether an event is wanted. What is of no channel is not asked for one.
    #[must_use]
    pub fn wants(&self, kind: Kind, channel: Option<&str>) -> bool {
        self.kinds.contains(kind) && self.covers(channel)
    }

    fn covers(&self, channel: Option<&str>) -> bool {
        let Some(channel) = channel else {
            return true;
        };
        self.patterns.is_empty() || self.patterns.iter().any(|p| matches(p, channel))
    }
}

/// What the endpoints of an app want together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppWanted {
    kinds: KindSet,
    filters: Vec<Filter>,
}

impl AppWanted {
    #[must_use]
    pub fn new(filters: Vec<Filter>) -> Self {
        let kinds = filters
            .iter()
            .fold(KindSet::default(), |all, filter| all.union(filter.kinds));
        Self { kinds, filters }
    }

    /// Whether some endpoint wants an event.
    #[must_use]
    pub fn wants(&self, kind: Kind, channel: Option<&str>) -> bool {
        self.kinds.contains(kind) && self.filters.iter().any(|f| f.wants(kind, channel))
    }

    /// Whether some endpoint wants events of this kind on some channel.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(kind)
    }

    /// Whether some endpoint wants the beginning or the end of what stands.
    #[must_use]
    pub fn wants_pair(&self, (begins, ends): (Kind, Kind), channel: Option<&str>) -> bool {
        self.wants(begins, channel) || self.wants(ends, channel)
    }
}

/// What is wanted, by app; apps without endpoints are not in it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    apps: HashMap<Box<str>, Arc<AppWanted>>,
}

impl Wanted {
    #[must_use]
    pub fn of(&self, app: &str) -> Option<&Arc<AppWanted>> {
        self.apps.get(app)
    }

    /// Takes the place of what the app wanted before.
    pub fn set(&mut self, app: &str, wanted: AppWanted) {
        self.apps.insert(app.into(), Arc::new(wanted));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty()
    }

    /// Whether some app wants events of this kind.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.apps.values().any(|app| app.has(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(events: &[&str], channels: &[&str]) -> Result<Filter, String> {
        let owned = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        Filter::new(&owned(events), &owned(channels))
    }

    #[test]
    fn events_and_channels_both_have_to_fit() {
        let filter = filter(&["member_added", "client.connected"], &["room:*", "x"]).unwrap();
        assert!(filter.wants(Kind::Enter, Some("room:a:b")));
        assert!(filter.wants(Kind::Enter, Some("x")));
        assert!(!filter.wants(Kind::Enter, Some("lobby")));
        assert!(!filter.wants(Kind::Leave, Some("x")));
        assert!(filter.wants(Kind::Connected, None));
    }

    #[test]
    fn what_is_not_a_filter_is_refused() {
        assert!(filter(&["nothing"], &[]).unwrap_err().contains("nothing"));
        assert!(filter(&[], &["a*"]).is_err());
        assert!(filter(&[], &[""]).is_err());
        assert!(filter(&[], &vec!["a"; PATTERNS_MAX + 1]).is_err());
    }

    #[test]
    fn messages_and_counts_are_asked_for_by_name() {
        let usual = filter(&[], &[]).unwrap();
        assert!(usual.wants(Kind::Vacated, Some("c")));
        assert!(!usual.wants(Kind::Published, Some("c")));
        assert!(!usual.wants(Kind::SubscriptionCount, Some("c")));
    }

    #[test]
    fn an_app_wants_what_any_of_its_endpoints_does() {
        let a = filter(&["channel.vacated"], &["a"]).unwrap();
        let b = filter(&["message.published"], &["b:*"]).unwrap();
        let app = AppWanted::new(vec![a, b]);
        assert!(app.wants(Kind::Published, Some("b:1")));
        assert!(!app.wants(Kind::Published, Some("a")));
        assert!(app.wants_pair((Kind::Occupied, Kind::Vacated), Some("a")));
        assert!(!app.wants_pair((Kind::Enter, Kind::Leave), Some("a")));
    }
}
