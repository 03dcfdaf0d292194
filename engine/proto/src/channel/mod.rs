//! Channels on one shard: the subscribers it has (`local`), and the order of those it is home to
//! (`home`).

pub mod home;
pub mod local;
pub mod log;
pub mod ring;
