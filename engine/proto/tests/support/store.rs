//! The store's threads as a shard sees them: a bounded queue to a writer that commits in batches,
//! readers that answer in any order, and faults.

use std::collections::VecDeque;

use shardwire_proto::ids::ShardId;
use shardwire_proto::record::Change;
use shardwire_proto::record::{StoreError, StoreOp, StoreRead, StoreReply, Ticket};

use super::model::Model;

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Failed,
    /// It is committed, but reported to have failed.
    Lost,
}

#[derive(Debug, Default)]
pub struct Store {
    pub model: Model,
    /// Nothing is committed while true.
    pub writer_hangs: bool,
    /// Nothing is answered while true.
    pub readers_hang: bool,
    /// Operations that the queue takes; 0 for any number.
    pub queue_max: usize,
    /// Questions that the readers' queue takes; 0 for any number.
    pub reads_max: usize,
    pub ops: VecDeque<(ShardId, StoreOp)>,
    pub reads: Vec<Asked>,
    replies: Vec<VecDeque<(u64, StoreReply)>>,
    /// Highest generation in which something has failed, by shard.
    failed: Vec<Option<u32>>,
}

/// What a shard is told of a transaction.
#[derive(Debug, Default)]
struct Done {
    up_to: u64,
    failed: Vec<Ticket>,
    removed: Vec<(Ticket, u64)>,
}

/// A question under way.
#[derive(Debug)]
pub struct Asked {
    pub shard: ShardId,
    pub read: StoreRead,
    /// When a reader takes it.
    pub due_us: u64,
}

impl Store {
    /// What a new process finds: the file, and nothing under way.
    pub fn restart(&mut self, shards: usize) {
        self.ops.clear();
        self.reads.clear();
        self.replies = (0..shards).map(|_| VecDeque::new()).collect();
        self.failed = vec![None; shards];
    }

    pub fn submit(&mut self, shard: ShardId, ops: Vec<StoreOp>) -> Result<(), Vec<StoreOp>> {
        if self.queue_max > 0 && self.ops.len() + ops.len() > self.queue_max {
            return Err(ops);
        }
        self.ops.extend(ops.into_iter().map(|op| (shard, op)));
        Ok(())
    }

    /// Gives back what there is no room for.
    pub fn ask(&mut self, mut asked: Vec<Asked>) -> Vec<StoreRead> {
        let room = match self.reads_max {
            0 => usize::MAX,
            most => most.saturating_sub(self.reads.len()),
        };
        let rest = asked.split_off(room.min(asked.len()));
        self.reads.extend(asked);
        rest.into_iter().map(|a| a.read).collect()
    }

    /// One transaction of the oldest `count` operations, but for what is of a failed generation.
    /// Shards learn of it at `due_us`.
    pub fn commit(&mut self, count: usize, outcome: Outcome, now_ms: u64, due_us: u64) {
        let count = count.min(self.ops.len());
        let failed_before = self.failed.clone();
        let mut done: Vec<Option<Done>> = self.failed.iter().map(|_| None).collect();
        for (shard, op) in self.ops.drain(..count) {
            let entry = done[shard.index()].get_or_insert_default();
            entry.up_to = op.ticket.0;
            let failed = &mut self.failed[shard.index()];
            // What came of the generation before this transaction fails with it.
            let before = failed_before[shard.index()];
            let is_late = before.is_some_and(|f| op.generation <= f);
            let is_lost = outcome == Outcome::Lost;
            let removed = match is_late || outcome == Outcome::Failed {
                true => 0,
                false => self.model.apply(&op, is_lost, now_ms),
            };
            if is_late || outcome != Outcome::Committed {
                *failed = (*failed).max(Some(op.generation));
                entry.failed.push(op.ticket);
            } else if matches!(op.change, Change::Clear) {
                entry.removed.push((op.ticket, removed));
            }
        }
        for (replies, done) in self.replies.iter_mut().zip(done) {
            if let Some(done) = done {
                let reply = StoreReply::Done {
                    up_to: Ticket(done.up_to),
                    failed: done.failed,
                    removed: done.removed,
                };
                put(replies, due_us, reply);
            }
        }
    }

    /// A reader takes a question and looks; the answer arrives at `due_us`.
    pub fn answer(&mut self, index: usize, error: Option<StoreError>, now_ms: u64, due_us: u64) {
        let Asked { shard, read, .. } = self.reads.remove(index);
        let answer = error.map_or_else(|| Ok(self.model.read(&read, now_ms)), Err);
        let reply = StoreReply::Answer {
            ticket: read.ticket,
            answer,
        };
        put(&mut self.replies[shard.index()], due_us, reply);
    }

    /// The next reply that has arrived at a shard.
    pub fn take_reply(&mut self, shard: usize, now_us: u64) -> Option<StoreReply> {
        let replies = &mut self.replies[shard];
        if replies.front()?.0 > now_us {
            return None;
        }
        replies.pop_front().map(|(_, reply)| reply)
    }

    /// When something here is due, but for commits.
    pub fn next_due(&self) -> Option<u64> {
        let replies = self.replies.iter().filter_map(|r| Some(r.front()?.0));
        let reads = self.reads.iter().map(|r| r.due_us);
        replies.chain(reads.filter(|_| !self.readers_hang)).min()
    }

    pub fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.reads.is_empty() && self.replies.iter().all(|r| r.is_empty())
    }
}

/// Replies to one shard keep their order.
fn put(replies: &mut VecDeque<(u64, StoreReply)>, due_us: u64, reply: StoreReply) {
    let after = replies.back().map_or(0, |(due, _)| *due);
    replies.push_back((due_us.max(after), reply));
}
