//! What one connection is being sent of the past: its replay jobs, one after another, and its
//! resume.
//!
//! ```text
//!  queued ──► asked (home shard looks it up) ──► sending (as the socket takes it) ──► live
//! ```
//! One job is active at a time, so a resume of many channels holds the messages of one.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::channel::log::ReplayFrom;
use crate::record::Record;
use crate::wire::wsocket::Resumed;

/// Jobs that may wait on one connection: a resume's channels, and as many subscribes.
pub const JOBS_MAX: usize = 512;

/// Why a channel is replayed, which decides what is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Rewind,
    Since,
    Resume,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub channel: Arc<str>,
    pub from: ReplayFrom,
    pub purpose: Purpose,
}

/// The job at work.
#[derive(Debug)]
pub struct Active {
    pub job: Job,
    /// Its number on the connection.
    pub number: u32,
    /// Entry of the channel on this shard.
    pub slot: u32,
    pub state: ActiveState,
}

#[derive(Debug)]
pub enum ActiveState {
    Asked,
    Sending {
        records: VecDeque<Arc<Record>>,
        recovered: bool,
        replayed: u64,
    },
}

/// A resume under way.
#[derive(Debug)]
pub struct Resume {
    pub last_ms: u64,
    /// Those that are not queued yet, with their index among all of the resume.
    pub channels: Vec<(u32, Arc<str>)>,
    /// Counts of messages at `last_ms` that are still to come.
    pub counts_missing: usize,
    /// Those that have come, added up.
    pub at_last_ms: u64,
    /// The channel that has one message at `last_ms`, by index.
    pub holder: Option<u32>,
    pub outcome: Vec<(Arc<str>, Resumed)>,
}

#[derive(Debug, Default)]
pub struct Catchup {
    pub queue: VecDeque<Job>,
    pub active: Option<Active>,
    pub resume: Option<Resume>,
}

impl Catchup {
    /// The channels that are being replayed or are going to be.
    pub fn channels(&self) -> impl Iterator<Item = &Arc<str>> {
        let active = self.active.iter().map(|active| &active.job.channel);
        let queued = self.queue.iter().map(|job| &job.channel);
        let resumed = self.resume.iter().flat_map(|resume| &resume.channels);
        active
            .chain(queued)
            .chain(resumed.map(|(_, channel)| channel))
    }

    /// Whether the channel is being replayed or is going to be.
    pub fn concerns(&self, channel: &str) -> bool {
        self.active
            .as_ref()
            .is_some_and(|a| &*a.job.channel == channel)
            || self.queue.iter().any(|j| &*j.channel == channel)
            || self
                .resume
                .as_ref()
                .is_some_and(|r| r.channels.iter().any(|(_, c)| **c == *channel))
    }

    /// Whether the channel's replay has begun: its `subscribed` was sent.
    pub fn is_sending(&self, channel: &str) -> bool {
        self.active.as_ref().is_some_and(|a| {
            &*a.job.channel == channel && matches!(a.state, ActiveState::Sending { .. })
        })
    }

    pub fn is_idle(&self) -> bool {
        self.active.is_none() && self.queue.is_empty() && self.resume.is_none()
    }
}
