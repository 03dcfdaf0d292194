//! Names of things that cross module and shard borders.

use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;
use std::sync::Arc;

use foldhash::quality::FixedState;

/// Index of a shard in the process, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A connection on its shard. The generation stops a late event or a message of another shard
/// from reaching the slot's next tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub slot: u32,
    pub generation: u32,
}

/// A connection of the process: what the `connected` frame calls it (contract D9) and operators name it by. Written
/// `<shard>-<slot>-<generation>`; not a secret. In the order of listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnName {
    pub shard: ShardId,
    pub conn: ConnId,
}

impl ConnName {
    /// Its place in a listing.
    #[must_use]
    pub fn place(self) -> (ShardId, u32) {
        (self.shard, self.conn.slot)
    }
}

impl fmt::Display for ConnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConnId { slot, generation } = self.conn;
        write!(f, "{}-{slot}-{generation}", self.shard.0)
    }
}

/// The text is not the name of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnNameError;

impl FromStr for ConnName {
    type Err = ConnNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, '-');
        let mut next = || parts.next().ok_or(ConnNameError);
        let (shard, slot, generation) = (next()?, next()?, next()?);
        let number = |text: &str| text.parse().map_err(|_| ConnNameError);
        let name = Self {
            shard: ShardId(shard.parse().map_err(|_| ConnNameError)?),
            conn: ConnId {
                slot: number(slot)?,
                generation: number(generation)?,
            },
        };
        // One spelling each: no leading zeros or signs.
        (name.to_string() == text)
            .then_some(name)
            .ok_or(ConnNameError)
    }
}

impl serde::Serialize for ConnName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ConnName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| serde::de::Error::custom("not the name of a connection"))
    }
}

/// A pending HTTP request on its shard; given by the driver, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

/// A channel with its app: names of different apps never meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelKey {
    pub app: Arc<str>,
    pub name: Arc<str>,
}

/// Places channels: the same seed on every shard of a process gives every shard the same answer.
/// The seed is random per process, so that clients cannot choose names that collide.
#[derive(Debug, Clone)]
pub struct Placement {
    hasher: FixedState,
    shards: u16,
}

impl Placement {
    pub fn new(seed: u64, shards: u16) -> Self {
        Self {
            hasher: FixedState::with_seed(seed),
            shards: shards.max(1),
        }
    }

    pub fn shards(&self) -> u16 {
        self.shards
    }

    pub fn hash(&self, app: &str, channel: &str) -> u64 {
        self.hasher.hash_one((app, channel))
    }

    /// The home shard of the channel with this hash. Uses the upper half only; tables of one
    /// shard still see all values of the lower half.
    pub fn home(&self, hash: u64) -> ShardId {
        let scaled = ((hash >> 32) * u64::from(self.shards)) >> 32;
        ShardId(u16::try_from(scaled).unwrap_or(0))
    }
}

/// The instant of a turn, read once by the driver and passed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, microseconds from an arbitrary start.
    pub mono_us: u64,
    /// Wall clock, milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

impl Now {
    pub fn mono_ms(self) -> u64 {
        self.mono_us / 1000
    }

    pub fn mono_s(self) -> u32 {
        u32::try_from(self.mono_us / 1_000_000).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_spread_over_all_shards_and_stay_where_they_are() {
        let placement = Placement::new(7, 3);
        let mut counts = [0u32; 3];
        for n in 0..3000 {
            let hash = placement.hash("app", &format!("room:{n}"));
            assert_eq!(hash, Placement::new(7, 3).hash("app", &format!("room:{n}")));
            counts[placement.home(hash).index()] += 1;
        }
        assert!(counts.iter().all(|c| (800..1200).contains(c)), "{counts:?}");
    }

    #[test]
    fn connections_are_named_in_one_spelling() {
        let name = ConnName {
            shard: ShardId(1),
            conn: ConnId {
                slot: 20,
                generation: 3,
            },
        };
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in [
            "",
            "1-2",
            "1-2-3-4",
            "01-2-3",
            "1-+2-3",
            "1--2-3",
            "70000-1-1",
        ] {
            assert_eq!(bad.parse::<ConnName>(), Err(ConnNameError), "{bad}");
        }
    }

    #[test]
    fn app_and_channel_do_not_run_into_each_other() {
        let placement = Placement::new(7, 3);
        assert_ne!(placement.hash("ab", "c"), placement.hash("a", "bc"));
    }
}
