//! Services beside the shards, on threads that may block; each is reached over one bounded queue.

pub mod egress;
pub mod push;
