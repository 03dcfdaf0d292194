//! Shardwire's core: everything that decides, and nothing that does I/O.
//!
//! Bytes, messages and time go in; frames, messages and closings come out. No socket, thread,
//! clock or randomness of its own, so that any number of shards can be driven by a test with one
//! seed. Bytes enter through [`ws`] and [`wire`], a shard's state is [`shard::Shard`], the bounds
//! are in [`limits`].
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod account;
pub mod auth;
pub mod broker;
pub mod catchup;
pub mod channel;
pub mod channel_name;
pub mod cluster;
pub mod dedup;
pub mod error;
pub mod guard;
pub mod ids;
pub mod limits;
pub mod meter;
pub mod msg;
pub mod namespace;
pub mod outbox;
pub mod push;
pub mod quota;
pub mod rate;
pub mod record;
pub mod session;
pub mod shard;
pub mod ulid;
pub mod url;
pub mod webhook;
pub mod wheel;
pub mod wire;
pub mod ws;
