//! Between the shard and its store's writer: what waits for a commit.
//!
//! Commits come back in the order of tickets, so a channel's messages are delivered in the order of
//! their sequences. What is read of the store is in `lookup`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use super::cluster::Waiting;
use super::lookup::{Deferred, ReadFor};
use super::{Output, Shard};
use crate::broker::BrokerPublished;
use crate::channel::home::LogState;
use crate::channel::log::Pending;
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, Now, RequestId, ShardId};
use crate::limits::STORE_OPS_PENDING_MAX;
use crate::msg::ShardMsg;
use crate::record::{Change, Record, StoreOp, StoreRead, StoreReply, StoredChannel, Ticket};

/// The store as one shard sees it.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) next_ticket: u64,
    /// Raised with every failure that was not known of, see [`StoreOp::generation`].
    generation: u32,
    /// Operations that the driver has not taken.
    ops: Vec<StoreOp>,
    /// Operations under way, in order.
    under_way: VecDeque<(Ticket, UnderWay)>,
    pub(super) reads: HashMap<Ticket, ReadFor, foldhash::fast::FixedState>,
    /// Reads that the driver has not taken.
    pub(super) questions: Vec<StoreRead>,
    /// Channels whose log was given up, by slot, with their number: loaded again at once, and with
    /// every tick until that succeeds, since their subscribers may lack something.
    pub(super) given_up: BTreeMap<u32, u64>,
    /// Work that waits for a channel's log, by channel slot.
    pub(super) deferred: HashMap<u32, Vec<Deferred>, foldhash::fast::FixedState>,
}

/// What an operation under way means to its channel.
#[derive(Debug)]
enum UnderWay {
    Append {
        slot: u32,
        number: u64,
        generation: u32,
    },
    Clear {
        slot: u32,
        number: u64,
        generation: u32,
        shard: ShardId,
        request: RequestId,
    },
    /// A message of the broker that another node may not have stored.
    Repaired {
        channel: Arc<StoredChannel>,
        sequence: u64,
        generation: u32,
    },
    /// A message that the broker has numbered: its publisher waits for the store as well.
    Numbered {
        waiting: Waiting,
        place: BrokerPublished,
        generation: u32,
    },
}

impl UnderWay {
    fn generation(&self) -> u32 {
        match self {
            Self::Append { generation, .. }
            | Self::Clear { generation, .. }
            | Self::Repaired { generation, .. }
            | Self::Numbered { generation, .. } => *generation,
        }
    }
}

impl Shard {
    /// The operations for the store's writer, in order. What its queue does not take the driver
    /// gives back through [`Shard::refuse_ops`].
    pub fn take_ops(&mut self) -> Vec<StoreOp> {
        std::mem::take(&mut self.store.ops)
    }

    /// The writer's queue is full: these operations, the last that were taken, did not get in.
    pub fn refuse_ops(&mut self, ops: Vec<StoreOp>, now: Now) {
        for op in ops.into_iter().rev() {
            let last = self.store.under_way.pop_back();
            debug_assert!(last.as_ref().is_some_and(|(t, _)| *t == op.ticket));
            match last {
                Some((_, UnderWay::Append { slot, .. })) => {
                    if let Some(pending) = self.home.refuse_newest(slot) {
                        self.refuse_pending(slot, &pending, now);
                    }
                    self.load_if_given_up(slot, now);
                }
                Some((_, UnderWay::Repaired { .. })) => {}
                Some((_, UnderWay::Numbered { waiting, .. })) => self.refuse_waiting(&waiting, now),
                Some((_, UnderWay::Clear { shard, request, .. })) => {
                    self.answer_clear(shard, request, Err(ErrorCode::Unavailable));
                }
                None => {}
            }
        }
    }

    /// What the store has done or found.
    pub fn handle_store(&mut self, reply: StoreReply, now: Now) {
        match reply {
            StoreReply::Done {
                up_to,
                failed,
                removed,
            } => self.handle_done(up_to, &failed, &removed, now),
            StoreReply::Answer { ticket, answer } => self.handle_answer(ticket, answer, now),
        }
    }

    fn handle_done(
        &mut self,
        up_to: Ticket,
        failed: &[Ticket],
        removed: &[(Ticket, u64)],
        now: Now,
    ) {
        while let Some((ticket, _)) = self.store.under_way.front()
            && *ticket <= up_to
        {
            let Some((ticket, change)) = self.store.under_way.pop_front() else {
                return;
            };
            let has_failed = failed.binary_search(&ticket).is_ok();
            if has_failed && change.generation() == self.store.generation {
                self.store.generation = self.store.generation.wrapping_add(1);
            }
            match change {
                UnderWay::Append { slot, number, .. } => {
                    if self.home.get(slot).is_none_or(|c| c.number != number) {
                        debug_assert!(false, "a channel with pending messages is not forgotten");
                        continue;
                    }
                    if has_failed {
                        if let Some(pending) = self.home.fail_oldest(slot) {
                            self.refuse_pending(slot, &pending, now);
                        }
                    } else if let Some(pending) = self.home.commit(slot, now.unix_ms) {
                        self.deliver_committed(slot, pending, now);
                    }
                    self.load_if_given_up(slot, now);
                }
                UnderWay::Repaired {
                    channel, sequence, ..
                } => {
                    if !has_failed {
                        self.note_stored(&channel.app, channel.name.clone(), sequence);
                    }
                }
                UnderWay::Numbered { waiting, .. } if has_failed => {
                    self.refuse_waiting(&waiting, now);
                }
                UnderWay::Numbered { waiting, place, .. } => {
                    self.confirm_waiting(&waiting, &place, now);
                }
                UnderWay::Clear {
                    slot,
                    number,
                    shard,
                    request,
                    ..
                } => {
                    let result = if has_failed {
                        Err(ErrorCode::Unavailable)
                    } else {
                        if self.home.get(slot).is_some_and(|c| c.number == number) {
                            self.home.clear(slot);
                        }
                        let count = removed.iter().find(|(t, _)| *t == ticket);
                        Ok(count.map_or(0, |(_, n)| *n))
                    };
                    self.answer_clear(shard, request, result);
                }
            }
        }
    }

    fn refuse_pending(&mut self, slot: u32, pending: &Pending, now: Now) {
        self.unadmit_at_home(slot);
        let Some(channel) = self.home.get(slot).map(|c| c.key.name.clone()) else {
            return;
        };
        for origin in &pending.origins {
            self.counters.publishes_refused += 1;
            self.answer_publisher(
                *origin,
                &channel,
                &pending.record.id,
                Err(ErrorCode::Unavailable),
                now,
            );
        }
    }

    /// Puts a message that got its place into the store's queue.
    pub(super) fn store_append(&mut self, slot: u32, record: Arc<Record>) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        let under_way = UnderWay::Append {
            slot,
            number: channel.number,
            generation: self.store.generation,
        };
        let retention = channel.settings.retention;
        self.push_op(slot, Change::Append { record, retention }, under_way);
    }

    fn push_op(&mut self, slot: u32, change: Change, under_way: UnderWay) {
        let Some(LogState::Known(log)) = self.home.get(slot).map(|c| &c.log) else {
            debug_assert!(false, "a channel whose log is not known is not changed");
            return;
        };
        let ticket = Ticket(self.store.next_ticket);
        self.store.next_ticket += 1;
        self.store.ops.push(StoreOp {
            ticket,
            generation: self.store.generation,
            channel: log.channel.clone(),
            change,
        });
        self.store.under_way.push_back((ticket, under_way));
    }

    /// When the oldest message was accepted that is on its way to the store, ms since the Unix epoch.
    pub(super) fn oldest_pending_ms(&self) -> Option<u64> {
        let mut under_way = self.store.under_way.iter();
        under_way.find_map(|(_, change)| match change {
            UnderWay::Append { slot, .. } => match &self.home.get(*slot)?.log {
                LogState::Known(log) => Some(log.pending.front()?.record.timestamp),
                LogState::Unknown | LogState::Loading => None,
            },
            UnderWay::Numbered { place, .. } => Some(place.timestamp),
            UnderWay::Clear { .. } | UnderWay::Repaired { .. } => None,
        })
    }

    /// Removes from the store that all nodes write what the broker has removed.
    pub(super) fn clear_stored(
        &mut self,
        channel: StoredChannel,
        shard: ShardId,
        request: RequestId,
    ) {
        let generation = self.store.generation;
        let ticket = Ticket(self.store.next_ticket);
        self.store.next_ticket += 1;
        self.store.ops.push(StoreOp {
            ticket,
            generation,
            channel: Arc::new(channel),
            change: Change::Clear,
        });
        // What is in memory the broker has told to remove: no slot has this number.
        let under_way = UnderWay::Clear {
            slot: u32::MAX,
            number: u64::MAX,
            generation,
            shard,
            request,
        };
        self.store.under_way.push_back((ticket, under_way));
    }

    /// Puts a message into the store's queue that it may lack.
    pub(super) fn store_repaired(&mut self, channel: StoredChannel, change: Change) {
        let Change::Append { record, .. } = &change else {
            return;
        };
        let channel = Arc::new(channel);
        let under_way = UnderWay::Repaired {
            channel: channel.clone(),
            sequence: record.sequence,
            generation: self.store.generation,
        };
        let ticket = Ticket(self.store.next_ticket);
        self.store.next_ticket += 1;
        self.store.ops.push(StoreOp {
            ticket,
            generation: self.store.generation,
            channel,
            change,
        });
        self.store.under_way.push_back((ticket, under_way));
    }

    /// Puts a message that the broker has numbered into the store's queue; perhaps again, which is as well.
    pub(super) fn store_numbered(
        &mut self,
        op: (StoredChannel, Change),
        waiting: Waiting,
        place: BrokerPublished,
    ) {
        let ticket = Ticket(self.store.next_ticket);
        self.store.next_ticket += 1;
        let generation = self.store.generation;
        let (channel, change) = op;
        self.store.ops.push(StoreOp {
            ticket,
            generation,
            channel: Arc::new(channel),
            change,
        });
        let under_way = UnderWay::Numbered {
            waiting,
            place,
            generation,
        };
        self.store.under_way.push_back((ticket, under_way));
    }

    pub(super) fn store_generation(&self) -> u32 {
        self.store.generation
    }

    /// Whether the store is too far behind for another publish.
    pub(super) fn store_full(&self) -> bool {
        self.store.under_way.len() >= STORE_OPS_PENDING_MAX
    }

    /// Operations and reads under way.
    pub(super) fn store_pending(&self) -> usize {
        self.store.under_way.len() + self.store.reads.len() + self.broker_pending()
    }

    /// Home shard: an HTTP request removes a channel's messages.
    pub(super) fn handle_clear(
        &mut self,
        channel: &ChannelKey,
        hash: u64,
        shard: ShardId,
        request: RequestId,
        now: Now,
    ) {
        if self.options.clustered {
            self.clear_at_broker(channel, shard, request);
            return;
        }
        let slot = self.enter_home(&channel.app, &channel.name, hash, now);
        if self.home.log(slot).is_some() {
            self.clear(slot, shard, request);
        } else if let Err(work) = self.defer(slot, Deferred::Clear { shard, request }, now) {
            self.refuse_deferred(work, now);
        }
    }

    pub(super) fn clear(&mut self, slot: u32, shard: ShardId, request: RequestId) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        let under_way = UnderWay::Clear {
            slot,
            number: channel.number,
            generation: self.store.generation,
            shard,
            request,
        };
        self.push_op(slot, Change::Clear, under_way);
    }

    pub(super) fn answer_clear(
        &mut self,
        shard: ShardId,
        request: RequestId,
        result: Result<u64, ErrorCode>,
    ) {
        if shard == self.id {
            self.outputs.push_back(Output::Cleared { request, result });
        } else {
            self.send(shard, ShardMsg::Cleared { request, result });
        }
    }

    /// Removes a channel's messages for an HTTP request; the outcome is [`Output::Cleared`].
    pub fn clear_request(&mut self, app: &str, channel: &str, request: RequestId, now: Now) {
        let app = self.intern(app);
        let hash = self.placement.hash(&app, channel);
        let channel = ChannelKey {
            app,
            name: channel.into(),
        };
        let msg = ShardMsg::Clear {
            channel,
            hash,
            shard: self.id,
            request,
        };
        self.send_or_handle(self.placement.home(hash), msg, now);
    }
}
