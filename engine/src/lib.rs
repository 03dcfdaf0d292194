//! Shardwire's process: what surrounds [`shardwire_proto`] with sockets, threads and time.
//!
//! Where bytes enter and leave: [`conn`]; the order of a turn: [`shard`]; start and stop order:
//! [`server`]; certificates: [`tls`]; all `unsafe`: [`sys`].

pub mod accept;
pub mod activation;
pub mod broker;
pub mod check;
mod clock;
pub mod cluster;
pub mod config;
pub mod conn;
pub mod copy;
pub mod dashboard;
pub mod http;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod mongo;
pub mod notify;
pub mod records;
pub mod registry;
pub mod server;
pub mod shard;
pub mod side;
mod sqlite_file;
pub mod store;
mod sync;
pub mod sys;
pub mod takeover;
pub mod tls;
pub mod usage;
pub mod watchdog;
