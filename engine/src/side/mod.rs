//! Services beside the shards: threads that may block, each behind one bounded queue.

pub mod accounts;
pub mod egress;
pub mod push;
mod vault;
pub mod webhooks;
