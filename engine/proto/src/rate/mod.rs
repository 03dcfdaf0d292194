//! Limits in time: a sliding window in two counters (`window`), what is limited and how much of it (`table`), and
//! limits that shards share (`lease`).
//!
//! Pure: time is passed in, and what a refusal leads to is the caller's (contract D25).

pub mod lease;
pub mod network;
pub mod table;
pub mod window;

pub(crate) use window::or_off;
pub use window::{RateLimit, RateLimitError, RateWindow};
