//! Names of things that cross module and shard borders.

use std::hash::BuildHasher;
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

/// A connection of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnRef {
    pub shard: ShardId,
    pub conn: ConnId,
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
    fn app_and_channel_do_not_run_into_each_other() {
        let placement = Placement::new(7, 3);
        assert_ne!(placement.hash("ab", "c"), placement.hash("a", "bc"));
    }
}
