//! Kinds of events and their names.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    Occupied,
    Vacated,
    Enter,
    Update,
    Leave,
    Published,
    Connected,
    Disconnected,
    SubscriptionCount,
    PushFailed,
    Quota,
    /// What an operator sends to try an endpoint: goes to whomever it is sent to.
    Test,
}

impl Kind {
    /// Every kind that an endpoint can ask for.
    pub const ALL: [Self; 11] = [
        Self::Occupied,
        Self::Vacated,
        Self::Enter,
        Self::Update,
        Self::Leave,
        Self::Published,
        Self::Connected,
        Self::Disconnected,
        Self::SubscriptionCount,
        Self::PushFailed,
        Self::Quota,
    ];

    /// The name in deliveries and filters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Occupied => "channel.occupied",
            Self::Vacated => "channel.vacated",
            Self::Enter => "presence.enter",
            Self::Update => "presence.update",
            Self::Leave => "presence.leave",
            Self::Published => "message.published",
            Self::Connected => "client.connected",
            Self::Disconnected => "client.disconnected",
            Self::SubscriptionCount => "subscription.count",
            Self::PushFailed => "push.failed",
            Self::Quota => "quota.reached",
            Self::Test => "webhook.test",
        }
    }

    /// The name that Pusher has for it; its own where Pusher has none.
    #[must_use]
    pub const fn alias(self) -> &'static str {
        match self {
            Self::Occupied => "channel_occupied",
            Self::Vacated => "channel_vacated",
            Self::Enter => "member_added",
            Self::Leave => "member_removed",
            Self::Published => "client_event",
            Self::SubscriptionCount => "subscription_count",
            _ => self.name(),
        }
    }

    /// The kind with this name or alias.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.name() == name || kind.alias() == name)
    }

    /// The kind that stands as long as one of this kind does not end it, as both: `(begins, ends)`.
    #[must_use]
    pub const fn pair(self) -> Option<(Self, Self)> {
        match self {
            Self::Occupied | Self::Vacated => Some((Self::Occupied, Self::Vacated)),
            Self::Enter | Self::Leave => Some((Self::Enter, Self::Leave)),
            Self::Connected | Self::Disconnected => Some((Self::Connected, Self::Disconnected)),
            _ => None,
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let unknown = || serde::de::Error::custom(format!("there is no event `{name}`"));
        Self::parse(&name).ok_or_else(unknown)
    }
}

/// A set of kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindSet(u16);

impl KindSet {
    /// What an endpoint gets that does not say: all but messages and counts, which can be many.
    #[must_use]
    pub fn usual() -> Self {
        let mut set = Self::default();
        for kind in Kind::ALL {
            if !matches!(kind, Kind::Published | Kind::SubscriptionCount) {
                set.add(kind);
            }
        }
        set
    }

    pub fn add(&mut self, kind: Kind) {
        self.0 |= kind.bit();
    }

    #[must_use]
    pub const fn contains(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_lead_to_their_kind() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.name()), Some(kind));
            assert_eq!(Kind::parse(kind.alias()), Some(kind));
        }
        assert_eq!(Kind::parse("channel"), None);
        assert_eq!(Kind::parse("webhook.test"), None);
    }

    #[test]
    fn a_set_has_what_was_added() {
        let mut set = KindSet::default();
        assert!(set.is_empty());
        set.add(Kind::Leave);
        assert!(set.contains(Kind::Leave) && !set.contains(Kind::Enter));
        assert!(!KindSet::usual().contains(Kind::Published));
    }
}
