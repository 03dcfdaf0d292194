//! Between the nodes of a cluster: Redis.

mod config;
pub mod connect;
pub mod keys;

pub use self::config::{RedisConfig, RedisUrl};
