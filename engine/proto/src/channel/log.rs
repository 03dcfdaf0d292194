//! A stored channel's log as its home shard knows it: how far it is committed, what is on its way
//! to the store, and what of it is in memory or gone.

use std::sync::Arc;

use super::home::PendingQueue;
use super::ring::Ring;
use crate::limits::LATE_COMMIT_MS;
use crate::msg::Origin;
use crate::record::{Loaded, Record, Retention, StoredChannel};

#[derive(Debug)]
pub struct Log {
    pub channel: Arc<StoredChannel>,
    /// Sequence of the last committed message, 0 before the first.
    pub committed: u64,
    pub pending: PendingQueue,
    pub ring: Ring,
    /// Sequence of the newest message that is gone; 0 where none is.
    pub gone_sequence: u64,
    /// Its timestamp; `None` where only the store knows it.
    pub gone_timestamp: Option<u64>,
    /// A message of it failed: what the store has is not certain. Nothing is numbered until it has
    /// been loaded again.
    pub in_doubt: bool,
}

/// A message between its acceptance and its commit.
#[derive(Debug)]
pub struct Pending {
    pub record: Arc<Record>,
    /// Who waits for it: its publisher, and those who published the same id meanwhile.
    pub origins: Vec<Origin>,
    /// The store's generation it was numbered in.
    pub generation: u32,
    pub accepted_us: u64,
}

/// What a client has missed, and how that is found out (contract D18, D19).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayFrom {
    /// The newest messages, however old.
    Newest(usize),
    /// All with a later timestamp, or the same one too.
    Timestamp {
        ms: u64,
        inclusive: bool,
        /// Also those with an earlier one that may have been delivered later: timestamps are of
        /// acceptance, and channels commit at their own pace, so a client that got a message of
        /// one channel may lack an older one of another.
        late: bool,
    },
    /// All behind a position of an epoch.
    Sequence { sequence: u64, epoch: Box<str> },
    /// Nothing: only the position is wanted.
    Nowhere,
}

/// A replay found in memory.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Oldest first; `recovered` is false where something between is gone or did not fit.
    Here {
        records: Vec<Arc<Record>>,
        recovered: bool,
    },
    /// The store has to be asked.
    InStore,
}

impl Log {
    pub fn new(
        channel: StoredChannel,
        committed: u64,
        gone_sequence: u64,
        gone_timestamp: u64,
    ) -> Self {
        Self {
            channel: Arc::new(channel),
            committed,
            pending: PendingQueue::new(),
            ring: Ring::default(),
            gone_sequence,
            gone_timestamp: Some(gone_timestamp),
            in_doubt: false,
        }
    }

    /// The sequence of the next message. Pending messages of an earlier generation of the store
    /// will fail, so they do not count.
    pub fn next_sequence(&self, generation: u32) -> u64 {
        match self.pending.back() {
            Some(last) if last.generation == generation => last.record.sequence + 1,
            Some(_) | None => self.committed + 1,
        }
    }

    /// Lets one more publisher wait for a pending message; false if it is not pending.
    pub fn join(&mut self, sequence: u64, id: &str, origin: Origin) -> bool {
        // Newest first: a repeated publish follows the first one closely. By its id, too: while
        // messages of a failed generation are pending, others have their sequences.
        let pending = self
            .pending
            .iter_mut()
            .rev()
            .find(|p| p.record.sequence == sequence && *p.record.id == *id);
        match pending {
            Some(pending) => {
                pending.origins.push(origin);
                true
            }
            None => false,
        }
    }

    /// Takes note that the numbering has another name, before anything was numbered.
    pub fn rename_epoch(&mut self, epoch: &str) {
        let mut channel = (*self.channel).clone();
        channel.epoch = epoch.into();
        self.channel = Arc::new(channel);
    }

    /// Takes note of what is gone by the account of whoever keeps the messages.
    pub fn note_gone(&mut self, sequence: u64, timestamp: u64) {
        if sequence > self.gone_sequence {
            self.gone_sequence = sequence;
            self.gone_timestamp = Some(timestamp);
            self.trim();
        }
    }

    /// Takes note of what retention by number has removed.
    pub fn apply(&mut self, retention: &Retention) {
        let gone = self.committed.saturating_sub(retention.messages_max);
        if gone > self.gone_sequence {
            let last = self.ring.iter().take_while(|r| r.sequence <= gone).last();
            self.gone_timestamp = last.map(|r| r.timestamp);
            self.gone_sequence = gone;
        }
        self.trim();
    }

    /// Drops from memory what is gone.
    pub fn trim(&mut self) {
        self.ring.drop_through(self.gone_sequence);
    }

    /// Takes note of what retention by age has removed, as far as memory shows it.
    pub fn expire(&mut self, retention: &Retention, unix_ms: u64) {
        let oldest = unix_ms.saturating_sub(retention.age_ms);
        let last = self
            .ring
            .iter()
            .take_while(|r| r.timestamp <= oldest)
            .last()
            .map(|r| (r.sequence, r.timestamp));
        if let Some((sequence, timestamp)) = last {
            self.gone_sequence = sequence;
            self.gone_timestamp = Some(timestamp);
            self.trim();
        }
    }

    /// Takes note that all messages were removed.
    pub fn clear(&mut self) {
        if self.committed > self.gone_sequence {
            self.gone_timestamp = self.ring.iter().last().map(|r| r.timestamp);
            self.gone_sequence = self.committed;
        }
        self.ring.clear();
    }

    /// Whether all that is not gone is in memory.
    fn ring_is_whole(&self) -> bool {
        self.committed == self.gone_sequence
            || self.ring.first_sequence() == Some(self.gone_sequence + 1)
    }

    /// Looks for a replay in memory; at most `most` messages and `bytes_max` bytes.
    pub fn find_replay(&self, from: &ReplayFrom, most: usize, bytes_max: usize) -> Found {
        match from {
            ReplayFrom::Nowhere => Found::Here {
                records: Vec::new(),
                recovered: false,
            },
            ReplayFrom::Newest(count) => {
                let available = self.committed - self.gone_sequence;
                let wanted = (*count).min(usize::try_from(available).unwrap_or(usize::MAX));
                if self.ring.len() < wanted {
                    return Found::InStore;
                }
                let (records, _) = newest(self.ring.iter().rev().take(wanted), most, bytes_max);
                Found::Here {
                    records,
                    recovered: true,
                }
            }
            ReplayFrom::Timestamp {
                ms,
                inclusive,
                late,
            } => {
                let wanted = |(r, delivered_by): &(&Arc<Record>, u64)| {
                    is_since(r, *ms, *inclusive) || (*late && *delivered_by >= *ms)
                };
                // What is gone is older than what is here.
                let oldest = self.ring.iter_delivered().next();
                let reaches_back = oldest.is_some_and(|r| !wanted(&r));
                let lost = match self.gone_timestamp {
                    _ if reaches_back => false,
                    Some(gone) if self.ring_is_whole() => {
                        is_lost(self.gone_sequence, gone, *ms, *inclusive)
                    }
                    Some(_) | None => return Found::InStore,
                };
                let (records, whole) = newest(
                    self.ring
                        .iter_delivered()
                        .rev()
                        .take_while(wanted)
                        .map(|(r, _)| r),
                    most,
                    bytes_max,
                );
                Found::Here {
                    records,
                    recovered: whole && !lost,
                }
            }
            ReplayFrom::Sequence { sequence, epoch } => {
                let missed = self.committed.saturating_sub(*sequence);
                let known = *epoch == self.channel.epoch
                    && *sequence <= self.committed
                    && *sequence >= self.gone_sequence
                    && missed <= most as u64;
                let unrecovered = Found::Here {
                    records: Vec::new(),
                    recovered: false,
                };
                if !known {
                    return unrecovered;
                }
                let missed = usize::try_from(missed).unwrap_or(usize::MAX);
                if self.ring.len() < missed {
                    return Found::InStore;
                }
                let (records, whole) = newest(self.ring.iter().rev().take(missed), most, bytes_max);
                if whole {
                    Found::Here {
                        records,
                        recovered: true,
                    }
                } else {
                    unrecovered
                }
            }
        }
    }

    /// Messages with this timestamp on their way to the store.
    pub fn pending_at(&self, ms: u64) -> u64 {
        let newest_first = self.pending.iter().rev().map(|p| p.record.timestamp);
        let of_then = newest_first.take_while(|t| *t >= ms).filter(|t| *t == ms);
        of_then.count() as u64
    }

    /// Whether a message that is gone may have this timestamp; `None` where only the store knows.
    pub fn may_be_gone_at(&self, ms: u64) -> Option<bool> {
        self.gone_timestamp
            .map(|t| self.gone_sequence > 0 && t >= ms)
    }

    /// Messages in memory with this timestamp; `None` where the store has to be asked.
    pub fn count_at(&self, ms: u64) -> Option<u64> {
        let reaches_back = self.ring.iter().next().is_some_and(|r| r.timestamp < ms);
        if !reaches_back && !self.ring_is_whole() {
            return None;
        }
        let count = self
            .ring
            .iter()
            .rev()
            .skip_while(|r| r.timestamp > ms)
            .take_while(|r| r.timestamp == ms)
            .count();
        Some(count as u64)
    }
}

fn is_since(record: &Record, ms: u64, inclusive: bool) -> bool {
    record.timestamp > ms || (inclusive && record.timestamp == ms)
}

/// Whether a message later than a time, or of it too, is gone: the newest that is has these.
fn is_lost(gone_sequence: u64, gone_timestamp: u64, ms: u64, inclusive: bool) -> bool {
    gone_sequence > 0 && (gone_timestamp > ms || (inclusive && gone_timestamp == ms))
}

/// Picks a replay from the newest messages that the store has, of which those up to `through` are
/// wanted. Returns them and whether nothing between is missing.
pub fn replay_of_loaded(
    loaded: &Loaded,
    from: &ReplayFrom,
    through: u64,
) -> (Vec<Arc<Record>>, bool) {
    let newest = loaded.newest.iter().filter(|r| r.sequence <= through);
    let first = loaded.newest.first().map(|r| r.sequence);
    match from {
        ReplayFrom::Nowhere => (Vec::new(), false),
        ReplayFrom::Newest(count) => {
            let mut records: Vec<_> = newest.rev().take(*count).cloned().collect();
            records.reverse();
            (records, true)
        }
        ReplayFrom::Timestamp {
            ms,
            inclusive,
            late,
        } => {
            let wanted = |r: &Record| {
                is_since(r, *ms, *inclusive)
                    || (*late && r.timestamp.saturating_add(LATE_COMMIT_MS) >= *ms)
            };
            let reaches_back = loaded.newest.first().is_some_and(|r| !wanted(r));
            let is_whole = first.is_none_or(|f| f == loaded.gone_sequence + 1);
            let (gone, gone_ms) = (loaded.gone_sequence, loaded.gone_timestamp);
            let recovered = reaches_back || (is_whole && !is_lost(gone, gone_ms, *ms, *inclusive));
            (newest.filter(|r| wanted(r)).cloned().collect(), recovered)
        }
        // Never partial: all of them, or none.
        ReplayFrom::Sequence { sequence, .. } => {
            if *sequence < through && first.is_none_or(|f| f > sequence + 1) {
                return (Vec::new(), false);
            }
            let missed = newest.filter(|r| r.sequence > *sequence);
            (missed.cloned().collect(), true)
        }
    }
}

/// Messages with this timestamp among the newest that the store has, and one for any that may be
/// gone; 2 for more than that where they do not reach back so far.
pub fn count_of_loaded(loaded: &Loaded, ms: u64) -> u64 {
    let first = loaded.newest.first();
    let is_whole = first.is_none_or(|r| r.sequence == loaded.gone_sequence + 1);
    if !is_whole && first.is_some_and(|r| r.timestamp >= ms) {
        return 2;
    }
    let gone = loaded.gone_sequence > 0 && loaded.gone_timestamp >= ms;
    let kept = loaded.newest.iter().filter(|r| r.timestamp == ms);
    kept.count() as u64 + u64::from(gone)
}

/// The newest messages that fit, oldest first, and whether all did.
fn newest<'a>(
    newest_first: impl Iterator<Item = &'a Arc<Record>>,
    most: usize,
    bytes_max: usize,
) -> (Vec<Arc<Record>>, bool) {
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut whole = true;
    for record in newest_first {
        bytes += record.weight();
        if records.len() >= most || (bytes > bytes_max && !records.is_empty()) {
            whole = false;
            break;
        }
        records.push(record.clone());
    }
    records.reverse();
    (records, whole)
}
