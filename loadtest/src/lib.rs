//! Load generator: opens many connections to a WebSocket server, publishes, checks every delivery, and
//! reports throughput, latency and what the server spent.
//!
//! The library exists for the two programs of this package and their tests; it is no general client.

pub mod adapter;
mod coordinator;
pub mod flight;
pub mod frame;
pub mod meter;
pub mod net;
pub mod opts;
pub mod order;
pub mod plan;
pub mod procfs;
mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod shared;
pub mod stamp;
pub mod tls;
pub mod worker;
