//! The operations that a capability grants, as a set in one byte (contract D7).
//!
//! Names and set arithmetic only; which channels a set is granted on is [`capability`](super::capability)'s.

use std::fmt;

/// A set of operations.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Ops(pub(super) u8);

impl Ops {
    /// No operation.
    pub const NONE: Self = Self(0);
    /// Subscribe and resume.
    pub const SUBSCRIBE: Self = Self(1);
    /// Publish.
    pub const PUBLISH: Self = Self(1 << 1);
    /// Enter, update and leave presence.
    pub const PRESENCE: Self = Self(1 << 2);
    /// Read history, rewind.
    pub const HISTORY: Self = Self(1 << 3);
    /// Register devices for push and change their channels.
    pub const PUSH_SUBSCRIBE: Self = Self(1 << 4);
    /// Send push messages, list and count devices.
    pub const PUSH_ADMIN: Self = Self(1 << 5);
    /// Administer the app.
    pub const ADMIN: Self = Self(1 << 6);
    /// Every operation, written `*`.
    pub const ALL: Self = Self((1 << 7) - 1);

    const NAMES: [(&'static str, Self); 7] = [
        ("subscribe", Self::SUBSCRIBE),
        ("publish", Self::PUBLISH),
        ("presence", Self::PRESENCE),
        ("history", Self::HISTORY),
        ("push-subscribe", Self::PUSH_SUBSCRIBE),
        ("push-admin", Self::PUSH_ADMIN),
        ("admin", Self::ADMIN),
    ];

    /// Whether every operation of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether an operation of `other` is in this set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The operations in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The operations in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set has no operation.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The set an operation's name stands for; `None` if there is no such operation.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == "*" {
            return Some(Self::ALL);
        }
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, ops)| *ops)
    }

    /// The names of the operations; `*` for all of them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = self == Self::ALL;
        let single = Self::NAMES
            .iter()
            .filter(move |(_, op)| !all && self.contains(*op));
        all.then_some("*")
            .into_iter()
            .chain(single.map(|(name, _)| *name))
    }
}

impl fmt::Debug for Ops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Ops;

    #[test]
    fn every_name_is_its_operation_and_nothing_else_is() {
        for (name, op) in Ops::NAMES {
            assert_eq!(Ops::parse(name), Some(op));
            assert!(op.names().eq([name]));
        }
        assert_eq!(Ops::parse("*"), Some(Ops::ALL));
        assert!(Ops::ALL.names().eq(["*"]) && Ops::NONE.names().next().is_none());
        assert!(Ops::parse("Publish").is_none() && Ops::parse("").is_none());
        let all = Ops::NAMES
            .iter()
            .fold(Ops::NONE, |ops, (_, op)| ops.union(*op));
        assert_eq!(all, Ops::ALL);
    }
}
