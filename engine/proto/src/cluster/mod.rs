//! What several nodes share: presence as Redis has it, and how one node follows it.
//!
//! Pure as all of this crate: what is asked of Redis leaves as [`SharedOp`]s, what it says comes as [`SharedReply`]s.
//! Messages go another way (`broker`): they are ordered by Redis too, but kept and numbered.

pub mod op;
pub mod view;
pub mod wire;

pub use op::{Held, SharedOp, SharedReply};
pub use view::{Position, Shown, Snapshot, Told, View};
