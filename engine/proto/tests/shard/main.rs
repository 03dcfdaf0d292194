//! One shard's behaviour and that of several together, as transcripts: messages of clients in,
//! frames out.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod history;
mod life;
mod publish;
mod replay;
mod resume;
