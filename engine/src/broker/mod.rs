//! Between the nodes of a cluster: Redis orders each channel's messages, keeps them, and tells all nodes.
//!
//! ```text
//!  shards ──ops──► `handle` ──► `lane` (sockets for commands, pipelined) ──► Redis: `scripts`
//!  shards ◄─replies─ `core` ◄─── `topics` ◄── `ear` (a socket per server for what nodes hear)
//! ```
//! One thread of its own with a tokio runtime; shards reach it through a [`BrokerHandle`], never wait, and get their
//! answers in an inbox, as with the store. Which server of a cluster has which channel is `layout`'s matter.
//!
//! Not here: order of delivery and holes in it, which are the home shards' (`shardwire_proto::shard`). Invariants: every
//! queue is bounded; every publish that was taken is answered once, with an error where its outcome is not known.

mod codec;
mod config;
pub mod connect;
mod core;
mod ear;
mod handle;
pub mod keys;
mod lane;
mod layout;
mod parked;
mod repair;
mod scripts;
mod stats;
mod topics;

pub use self::config::{RedisConfig, RedisUrl};
pub use self::handle::{BrokerHandle, INBOX_BATCHES, start};
pub use self::scripts::Settings;
pub use self::stats::BrokerStats;
