//! Channels on one shard: the subscribers it has (`local`), and of those it is home to their order
//! (`home`) and their members (`presence`, and with other nodes `shared`).

pub mod following;
pub mod home;
pub mod local;
pub mod log;
pub mod presence;
pub mod returns;
pub mod ring;
pub mod shared;
