//! How a home keeps up with a channel that a broker orders: whether the node hears it, and what has come before its
//! place was known.
//!
//! ```text
//!            Follow             Followed                 hole, or not heard any more
//!  (none) ───────────► asked ────────────► heard, sound ─────────────────────────────► asked (messages held)
//! ```
//! Not here: the log itself, which is the home's as without a broker. Invariant: what is held is bounded; what did not fit
//! makes the home ask again when it has caught up.

use std::collections::VecDeque;

use crate::broker::BrokerMessage;
use crate::ids::ShardId;
use crate::msg::LocalRef;

/// Messages held for one channel: a second of a busy one. The stream has those beyond.
const HELD_MAX: usize = 4096;
/// The same in bytes.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub struct Following {
    /// The node hears the channel's topic.
    pub heard: bool,
    /// A question where the channel stands is under way.
    pub asked: bool,
    held: VecDeque<BrokerMessage>,
    held_bytes: usize,
    /// Something did not fit into `held`.
    overflowed: bool,
    /// Shards whose subscribers wait until the channel is heard.
    pub waiting: Vec<(ShardId, LocalRef)>,
}

impl Following {
    /// Keeps a message until the channel's place is known.
    pub fn hold(&mut self, message: BrokerMessage) {
        let weight = message.record.weight();
        if self.held.len() >= HELD_MAX || self.held_bytes + weight > HELD_BYTES_MAX {
            self.overflowed = true;
            return;
        }
        self.held_bytes += weight;
        self.held.push_back(message);
    }

    /// What was held, oldest first, and whether more had come.
    pub fn take_held(&mut self) -> (VecDeque<BrokerMessage>, bool) {
        self.held_bytes = 0;
        (
            std::mem::take(&mut self.held),
            std::mem::take(&mut self.overflowed),
        )
    }
}
