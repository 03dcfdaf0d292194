//! Webhooks: what an app's back ends are told, to whom it is due, in which order and when again (contract D24).
//!
//! Pure: events, filters, the form of a delivery, what stands of channels, members and connections ([`standing`]),
//! batches and retries of one endpoint ([`sender`]), signatures. Not here: where events are kept until they are
//! delivered, numbering, and HTTP.

pub mod endpoint;
pub mod event;
pub mod filter;
pub mod kind;
pub mod sender;
pub mod signature;
pub mod standing;
pub mod subscribers;

#[cfg(test)]
mod sender_tests;

pub use endpoint::{Batch, Endpoint, EndpointPatch, Names, NewEndpoint};
pub use event::{Note, Raised, Turn, What};
pub use filter::{AppWanted, Filter, Wanted};
pub use kind::{Kind, KindSet};

/// How long a channel must stay empty before it counts as vacated, so that reconnects do not flap, ms.
pub const VACATED_DELAY_MS: u64 = 3_000;
/// Shortest time between two counts of a channel's subscribers, ms.
pub const COUNT_INTERVAL_MS: u64 = 1_000;
/// Pauses before each further attempt at a delivery, ms.
pub const RETRY_MS: [u64; 6] = [1_000, 5_000, 30_000, 120_000, 600_000, 3_600_000];
/// Longest wait that a `Retry-After` can ask for, ms.
pub const RETRY_AFTER_MS_MAX: u64 = 3_600_000;
/// Most events of a delivery.
pub const BATCH_EVENTS_MAX: usize = 100;
/// Bytes of events in a delivery; one that is larger goes alone.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Longest time that events wait for others of their delivery, ms.
pub const BATCH_MS_MAX: u64 = 60_000;
/// Deliveries of one endpoint under way at once.
pub const CONCURRENCY_MAX: usize = 16;
/// Endpoints of one app, whatever its plan says.
pub const ENDPOINTS_PER_APP_MAX: usize = 100;
/// Bytes of a URL.
pub const URL_BYTES_MAX: usize = 2048;
/// Channel patterns of one endpoint.
pub const PATTERNS_MAX: usize = 100;
