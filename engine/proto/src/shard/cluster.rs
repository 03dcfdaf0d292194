//! A shard among several nodes: publishes go to the broker, and what comes back from it is delivered in its order.
//!
//! ```text
//! first interest ── Follow ──► broker: hears the topic, looks where the channel stands
//!   `subscribed` ◄── Followed ◄──┘
//! Message n+1 ──► log, fan-out;  n or before: dropped;  behind a hole: held, Follow after n, then in order
//! ```
//! Invariants: a channel's stored messages are delivered in sequence order, each once; what the broker cannot give any
//! more is told to the channel's subscribers and counted; a publish that was taken is answered once.

use std::sync::Arc;

use hashbrown::HashMap;

use super::Shard;
use super::lookup::{Deferred, ReadFor};
use super::publish::Message;
use crate::broker::{
    BrokerError, BrokerMessage, BrokerOp, BrokerPublish, BrokerPublished, BrokerReply, Follow,
    FollowRef, Place,
};
use crate::channel::home::LogState;
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, Now, RequestId, ShardId};
use crate::limits::{
    BROKER_PUBLISHES_PENDING_MAX, FOLLOW_LINGER_MS, REPLAY_BYTES_MAX, RING_LOAD_BYTES,
    RING_LOAD_MESSAGES,
};
use crate::msg::{LocalRef, Origin, OwnedPublish, Publish, ShardMsg};
use crate::namespace::Settings;
use crate::record::{
    Change, Loaded, Question, Record, Retention, StoreAnswer, StoreError, StoreReply,
    StoredChannel, Ticket,
};
use crate::wire::wsocket::{Position, write_subscribed_since};

/// The broker as one shard sees it.
#[derive(Debug, Default)]
pub(super) struct BrokerState {
    /// Publishing is of use.
    up: bool,
    /// What the driver has not taken.
    ops: Vec<BrokerOp>,
    publishes: HashMap<Ticket, Waiting, foldhash::fast::FixedState>,
    clears: HashMap<Ticket, (ChannelKey, ShardId, RequestId), foldhash::fast::FixedState>,
    /// Channels that nobody here is interested in any more, with the time at which they are let go, ms.
    lingering: std::collections::VecDeque<(FollowRef, u64)>,
    /// By how much this node's clock was ahead of the broker's at most, ms: what messages took is in it.
    ahead_ms: Option<u64>,
}

/// A publish under way.
#[derive(Debug)]
pub(super) struct Waiting {
    publish: Arc<OwnedPublish>,
    slot: u32,
    number: u64,
}

impl Shard {
    /// What the broker is to do, in order. What its queue does not take the driver gives back through
    /// [`Shard::refuse_broker_ops`].
    pub fn take_broker_ops(&mut self) -> Vec<BrokerOp> {
        std::mem::take(&mut self.broker.ops)
    }

    /// The broker's queue is full: these operations, the last that were taken, did not get in. Publishes are refused;
    /// which channels are followed is said again with the next turn.
    pub fn refuse_broker_ops(&mut self, ops: Vec<BrokerOp>, now: Now) {
        let mut kept = Vec::new();
        for op in ops {
            match op {
                BrokerOp::Publish(publish) => {
                    self.handle_published(publish.ticket, Err(BrokerError::Overloaded), now);
                }
                BrokerOp::Clear { ticket, .. } => {
                    self.handle_clear_done(ticket, Err(BrokerError::Overloaded));
                }
                BrokerOp::Stored { .. } => {}
                op @ (BrokerOp::Follow(_) | BrokerOp::Unfollow { .. }) => kept.push(op),
            }
        }
        kept.append(&mut self.broker.ops);
        self.broker.ops = kept;
    }

    /// What the broker has done or heard.
    pub fn handle_broker(&mut self, reply: BrokerReply, now: Now) {
        match reply {
            BrokerReply::Published { ticket, result } => self.handle_published(ticket, result, now),
            BrokerReply::Followed {
                follow,
                loaded,
                epoch_from,
            } => self.handle_followed(follow, *loaded, epoch_from, now),
            BrokerReply::Unheard { follow } => self.handle_unheard(follow, now),
            BrokerReply::Message { follow, message } => {
                self.handle_broker_message(follow, message, now);
            }
            BrokerReply::Cleared { follow, through } => {
                if let Some(slot) = self.followed(follow)
                    && let Some(log) = self.home.log_mut(slot)
                    && log.committed >= through
                {
                    log.clear();
                }
            }
            BrokerReply::ClearDone { ticket, result } => self.handle_clear_done(ticket, result),
            BrokerReply::Presence { follow, payload } => {
                if let Some(slot) = self.followed(follow) {
                    self.handle_presence_payload(slot, &payload, now);
                }
            }
            BrokerReply::Repair {
                channel,
                epoch,
                records,
            } => self.repair(&channel, &epoch, records),
            BrokerReply::Answer { ticket, answer } => {
                self.handle_store(StoreReply::Answer { ticket, answer }, now);
            }
            BrokerReply::Health { up } => {
                self.broker.up = up;
                if !up {
                    self.refuse_questions(now);
                }
            }
        }
    }

    /// Whether publishes go to the broker: not where one of this namespace may be delivered here alone instead.
    pub(super) fn goes_to_broker(&self, publish: &Publish<'_>) -> bool {
        if !self.options.clustered || self.broker.up {
            return self.options.clustered;
        }
        let settings = self.apps.settings(publish.app, publish.channel);
        !(settings.ephemeral_when_degraded && !(publish.persist && settings.persist))
    }

    /// The home shard's part of a publish in a cluster.
    pub(super) fn publish_to_broker(&mut self, publish: Arc<OwnedPublish>, now: Now) {
        let item = publish.borrow();
        let slot = self.enter_home(item.app, item.channel, item.hash, now);
        let full = self.broker.publishes.len() >= BROKER_PUBLISHES_PENDING_MAX
            || self.store_full()
            || self.hooks_full(item.app, item.channel);
        let taken = if !self.broker.up || full {
            Err(ErrorCode::Unavailable)
        } else {
            self.check_room(slot, false)
                .and_then(|()| self.admit_at_home(slot, now))
        };
        let channel = self.home.get(slot).map(|c| (c.number, c.settings));
        match (taken, channel) {
            (Ok(()), Some((number, settings))) => {
                let stored = item.persist && settings.persist;
                let retention = self.broker_retention(&settings);
                let waiting = Waiting {
                    publish,
                    slot,
                    number,
                };
                self.push_publish(waiting, stored.then_some(retention), None);
            }
            (taken, _) => {
                let code = taken.err().unwrap_or(ErrorCode::Internal);
                self.counters.publishes_refused += 1;
                self.answer_publisher(item.origin, item.channel, item.id, Err(code), now);
            }
        }
    }

    fn handle_published(
        &mut self,
        ticket: Ticket,
        result: Result<BrokerPublished, BrokerError>,
        now: Now,
    ) {
        let Some(waiting) = self.broker.publishes.remove(&ticket) else {
            return;
        };
        match result {
            Ok(place) => match place.sequence.filter(|_| self.options.shared_store) {
                Some(sequence) => self.store_waiting(waiting, sequence, place),
                None => self.confirm_waiting(&waiting, &place, now),
            },
            Err(BrokerError::Unplaced) => self.ask_place(waiting, now),
            Err(_) => self.refuse_waiting(&waiting, now),
        }
    }

    /// The broker does not know a channel, or has forgotten it: its numbers go on behind those of the store.
    fn ask_place(&mut self, waiting: Waiting, now: Now) {
        let item = waiting.publish.borrow();
        let channel = ChannelKey {
            app: item.app.clone(),
            name: item.channel.into(),
        };
        let question = Question::Load {
            messages_max: 0,
            bytes_max: 0,
            ids_after_ms: now.unix_ms,
        };
        self.ask_store(channel, question, ReadFor::Place { waiting });
    }

    pub(super) fn handle_place(
        &mut self,
        waiting: Waiting,
        answer: Result<StoreAnswer, StoreError>,
        now: Now,
    ) {
        let base = match answer {
            Ok(StoreAnswer::Loaded(loaded)) => {
                loaded.map_or((0, 0), |l| (l.last_sequence, l.last_timestamp))
            }
            Ok(_) | Err(_) => {
                self.refuse_waiting(&waiting, now);
                return;
            }
        };
        let item = waiting.publish.borrow();
        let settings = self.apps.settings(item.app, item.channel);
        let retention = self.broker_retention(&settings);
        self.push_publish(waiting, Some(retention), Some(base));
    }

    fn push_publish(
        &mut self,
        waiting: Waiting,
        retention: Option<Retention>,
        base: Option<(u64, u64)>,
    ) {
        let ticket = self.next_ticket();
        self.broker.ops.push(BrokerOp::Publish(BrokerPublish {
            ticket,
            publish: waiting.publish.clone(),
            retention,
            is_owed: retention.is_some() && self.options.shared_store,
            base,
        }));
        self.broker.publishes.insert(ticket, waiting);
    }

    /// The broker has numbered a message: the store has to have it too. A repeated one as well: its first publisher may
    /// have been told of an error, or have died.
    fn store_waiting(&mut self, waiting: Waiting, sequence: u64, place: BrokerPublished) {
        let item = waiting.publish.borrow();
        let record = Record {
            sequence,
            timestamp: place.timestamp,
            id: item.id.into(),
            publisher: item.publisher.into(),
            data: item.data.into(),
        };
        let settings = self.apps.settings(item.app, item.channel);
        let channel = StoredChannel {
            app: item.app.clone(),
            name: item.channel.into(),
            epoch: place.epoch.clone(),
        };
        let change = Change::Append {
            record: Arc::new(record),
            retention: settings.retention,
        };
        self.store_numbered((channel, change), waiting, place);
    }

    /// Puts messages into the store that it may lack; what it has stays as it is.
    fn repair(&mut self, channel: &ChannelKey, epoch: &str, records: Vec<Arc<Record>>) {
        let retention = self.apps.settings(&channel.app, &channel.name).retention;
        for record in records {
            if self.store_full() {
                // There is another round.
                return;
            }
            let stored = StoredChannel {
                app: channel.app.clone(),
                name: channel.name.clone(),
                epoch: epoch.into(),
            };
            self.counters.broker_repaired += 1;
            self.store_repaired(stored, Change::Append { record, retention });
        }
    }

    /// The store has a message: nobody has to look after it any more.
    pub(super) fn note_stored(&mut self, app: &Arc<str>, name: Arc<str>, sequence: u64) {
        let channel = ChannelKey {
            app: app.clone(),
            name,
        };
        self.broker.ops.push(BrokerOp::Stored { channel, sequence });
    }

    /// A message is where it has to be: its publisher is told.
    pub(super) fn confirm_waiting(&mut self, waiting: &Waiting, place: &BrokerPublished, now: Now) {
        let item = waiting.publish.borrow();
        if let Some(sequence) = place.sequence.filter(|_| self.options.shared_store) {
            self.note_stored(item.app, item.channel.into(), sequence);
        }
        if place.duplicate {
            self.counters.duplicates += 1;
            self.unadmit_waiting(waiting);
        } else if self.is_home_of(waiting) {
            self.count_accepted(waiting.slot);
            self.tell_accepted(waiting.slot, &item, place, now);
        }
        let position = Position {
            timestamp: place.timestamp,
            sequence: place.sequence,
        };
        let (origin, id) = (item.origin, item.id);
        self.confirm(origin, item.channel, id, position, place.duplicate, now);
    }

    /// Back ends and absent members are told by the node that has accepted a message.
    fn tell_accepted(&mut self, slot: u32, item: &Publish<'_>, place: &BrokerPublished, now: Now) {
        let position = Position {
            timestamp: place.timestamp,
            sequence: place.sequence,
        };
        self.raise_numbered(slot, item, position, now);
        let message = Message {
            channel: item.channel,
            data: item.data,
            id: item.id,
            position,
        };
        self.note_for_absent(slot, &message);
    }

    /// A message is not known to be where it has to be.
    pub(super) fn refuse_waiting(&mut self, waiting: &Waiting, now: Now) {
        let item = waiting.publish.borrow();
        self.unadmit_waiting(waiting);
        self.counters.publishes_refused += 1;
        let result = Err(ErrorCode::Unavailable);
        self.answer_publisher(item.origin, item.channel, item.id, result, now);
    }

    fn unadmit_waiting(&mut self, waiting: &Waiting) {
        if self.is_home_of(waiting) {
            self.unadmit_at_home(waiting.slot);
        }
    }

    /// Whether the slot still has the channel that it had.
    fn is_home_of(&self, waiting: &Waiting) -> bool {
        let channel = self.home.get(waiting.slot);
        channel.is_some_and(|c| c.number == waiting.number)
    }

    /// What the broker keeps of a channel: everything, or what resume needs where the store has everything.
    fn broker_retention(&self, settings: &Settings) -> Retention {
        let mut retention = settings.retention;
        if self.options.shared_store {
            let resume_max = self.options.limits.resume_messages_max as u64;
            retention.messages_max = retention.messages_max.min(resume_max);
        }
        retention
    }

    /// Publishes under way.
    pub(super) fn broker_pending(&self) -> usize {
        self.broker.publishes.len()
    }

    pub(super) fn broker_is_up(&self) -> bool {
        self.broker.up
    }

    /// A time that the broker's clock has not reached yet, or only just, as far as this node can tell.
    pub(super) fn broker_now(&self, now: Now) -> Now {
        let ahead_ms = if self.options.clustered {
            self.broker.ahead_ms.unwrap_or(1000)
        } else {
            0
        };
        Now {
            unix_ms: now.unix_ms.saturating_sub(ahead_ms),
            ..now
        }
    }

    /// Home shard: whether the channel is heard, so that a subscriber can be told at once. Where it is not, the shard is
    /// told when it is.
    pub(super) fn hear(&mut self, slot: u32, shard: ShardId, local: LocalRef) -> bool {
        self.follow_channel(slot);
        let following = self.home.get_mut(slot).and_then(|c| c.following.as_mut());
        match following {
            Some(following) if !following.heard => {
                following.waiting.retain(|(s, _)| *s != shard);
                following.waiting.push((shard, local));
                false
            }
            Some(_) | None => true,
        }
    }

    /// Begins to follow a channel, or asks what was missed where its log is in doubt.
    pub(super) fn follow_channel(&mut self, slot: u32) {
        let resume_max = self.options.limits.resume_messages_max;
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        let following = channel.following.get_or_insert_default();
        let (after, messages_max, bytes_max) = match &channel.log {
            LogState::Known(log) if !log.in_doubt => return,
            LogState::Known(log) => {
                let place = Place {
                    epoch: log.channel.epoch.clone(),
                    sequence: log.committed,
                };
                (Some(place), resume_max, REPLAY_BYTES_MAX)
            }
            LogState::Unknown | LogState::Loading => (None, RING_LOAD_MESSAGES, RING_LOAD_BYTES),
        };
        if std::mem::replace(&mut following.asked, true) {
            return;
        }
        if matches!(channel.log, LogState::Unknown) {
            channel.log = LogState::Loading;
        }
        let follow = FollowRef {
            slot,
            number: channel.number,
        };
        self.broker.ops.push(BrokerOp::Follow(Box::new(Follow {
            channel: channel.key.clone(),
            follow,
            after,
            messages_max,
            bytes_max,
        })));
    }

    /// The slot of a channel that is followed by this name.
    fn followed(&self, follow: FollowRef) -> Option<u32> {
        let channel = self.home.get(follow.slot)?;
        (channel.number == follow.number && channel.following.is_some()).then_some(follow.slot)
    }

    fn handle_broker_message(&mut self, follow: FollowRef, message: BrokerMessage, now: Now) {
        let Some(slot) = self.followed(follow) else {
            return;
        };
        let ahead_ms = now.unix_ms.saturating_sub(message.record.timestamp);
        let known = self.broker.ahead_ms.unwrap_or(u64::MAX);
        self.broker.ahead_ms = Some(known.min(ahead_ms));
        self.take_message(slot, message, now);
    }

    fn take_message(&mut self, slot: u32, message: BrokerMessage, now: Now) {
        let record = &message.record;
        if record.sequence == 0 {
            self.deliver_message(slot, &message, now);
            return;
        }
        if let Some(log) = self.home.log_mut(slot)
            && !log.in_doubt
        {
            let is_first = log.committed == 0 && record.sequence == 1;
            if *log.channel.epoch != *message.epoch && is_first {
                // Nothing was numbered in the epoch before: nothing is lost with it.
                log.rename_epoch(&message.epoch);
            }
            let same = *log.channel.epoch == *message.epoch;
            if same && record.sequence <= log.committed {
                self.counters.broker_repeated += 1;
                return;
            }
            if same && record.sequence == log.committed + 1 {
                self.home.accept(slot, record.clone(), now.unix_ms);
                self.deliver_message(slot, &message, now);
                return;
            }
            log.in_doubt = true;
            self.counters.broker_gaps += 1;
        }
        if let Some(following) = self.home.get_mut(slot).and_then(|c| c.following.as_mut()) {
            following.hold(message);
        }
        self.follow_channel(slot);
    }

    fn deliver_message(&mut self, slot: u32, message: &BrokerMessage, now: Now) {
        let publisher = message.exclude.map(|(shard, conn)| Origin::Conn {
            shard,
            conn,
            echo: false,
            ack: true,
        });
        self.deliver_record(slot, &message.record, publisher, now.mono_us, now);
    }

    /// The channel is heard, and this is where it stands.
    fn handle_followed(&mut self, follow: FollowRef, loaded: Loaded, epoch_from: u64, now: Now) {
        let Some(slot) = self.followed(follow) else {
            return;
        };
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        let mut waiting = Vec::new();
        if let Some(following) = &mut channel.following {
            following.asked = false;
            following.heard = true;
            waiting = std::mem::take(&mut following.waiting);
        }
        let known = match &mut channel.log {
            LogState::Known(log) => {
                log.in_doubt = false;
                if log.committed == 0 {
                    // Nothing was numbered in the epoch before: nothing is lost with it.
                    log.rename_epoch(&loaded.epoch);
                }
                Some(log.committed).filter(|_| {
                    log.channel.epoch == loaded.epoch && log.committed <= loaded.last_sequence
                })
            }
            LogState::Unknown | LogState::Loading => {
                self.home.set_loaded(slot, Some(loaded), "".into(), now);
                self.finish_followed(slot, waiting, now);
                return;
            }
        };
        let after = known.unwrap_or(epoch_from);
        let missed: Vec<Arc<Record>> = loaded
            .newest
            .iter()
            .filter(|r| r.sequence > after)
            .cloned()
            .collect();
        let first = missed
            .first()
            .map_or(loaded.last_sequence + 1, |r| r.sequence);
        let lost = first.saturating_sub(after + 1);
        if known.is_none() || lost > 0 {
            self.counters.broker_lost += lost.max(1);
            self.home.set_loaded(slot, Some(loaded), "".into(), now);
            // Where they stand is behind what is told to be lost, and before what follows.
            self.tell_lost(slot, first - 1, now);
        } else if let Some(log) = self.home.log_mut(slot) {
            log.note_gone(loaded.gone_sequence, loaded.gone_timestamp);
            for record in &missed {
                self.home.accept(slot, record.clone(), now.unix_ms);
            }
        }
        self.counters.broker_filled += missed.len() as u64;
        for record in &missed {
            self.deliver_record(slot, record, None, now.mono_us, now);
        }
        self.finish_followed(slot, waiting, now);
    }

    /// Answers those who wait for the channel, then goes on with what has come meanwhile.
    fn finish_followed(&mut self, slot: u32, waiting: Vec<(ShardId, LocalRef)>, now: Now) {
        for (shard, local) in waiting {
            if shard == self.id {
                self.handle_interest_ready(local, now);
            } else {
                self.send(shard, ShardMsg::InterestReady { local });
            }
        }
        self.do_deferred(slot, now);
        let following = self.home.get_mut(slot).and_then(|c| c.following.as_mut());
        let (held, overflowed) = following.map(|f| f.take_held()).unwrap_or_default();
        for message in held {
            self.take_message(slot, message, now);
        }
        if overflowed && let Some(log) = self.home.log_mut(slot) {
            log.in_doubt = true;
            self.follow_channel(slot);
        }
        self.let_go_later(slot, now);
        self.handle_topic_ready(slot, now);
    }

    /// Tells subscribers that messages up to a place will not come any more (contract D18: the position form).
    fn tell_lost(&mut self, slot: u32, through: u64, now: Now) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        let LogState::Known(log) = &channel.log else {
            return;
        };
        let (name, epoch) = (channel.key.name.clone(), log.channel.epoch.clone());
        self.fan_out_text(slot, None, None, now.mono_us, now, |out| {
            write_subscribed_since(out, &name, false, &epoch, through);
        });
    }

    /// The node does not hear the channel any more.
    fn handle_unheard(&mut self, follow: FollowRef, now: Now) {
        let Some(slot) = self.followed(follow) else {
            return;
        };
        if let Some(channel) = self.home.get_mut(slot) {
            if let Some(following) = &mut channel.following {
                following.heard = false;
                following.asked = false;
            }
            match &mut channel.log {
                LogState::Known(log) => log.in_doubt = true,
                log @ LogState::Loading => *log = LogState::Unknown,
                LogState::Unknown => {}
            }
        }
        self.follow_channel(slot);
        self.let_go_later(slot, now);
    }

    /// Takes note of a channel that nobody here is interested in: it is let go when that stays so.
    pub(super) fn let_go_later(&mut self, slot: u32, now: Now) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        if channel.following.is_some() && channel.is_unwanted() {
            let follow = FollowRef {
                slot,
                number: channel.number,
            };
            let due_ms = now.mono_ms() + FOLLOW_LINGER_MS;
            self.broker.lingering.push_back((follow, due_ms));
        }
    }

    /// Once a second: lets go of channels that nobody has come back to.
    pub(super) fn tick_broker(&mut self, now: Now) {
        if let Some(ahead_ms) = &mut self.broker.ahead_ms {
            // Clocks drift.
            *ahead_ms += 1;
        }
        while let Some((follow, due_ms)) = self.broker.lingering.front().copied()
            && due_ms <= now.mono_ms()
        {
            self.broker.lingering.pop_front();
            let busy = self.store.deferred.contains_key(&follow.slot);
            let Some(slot) = self.followed(follow).filter(|_| !busy) else {
                continue;
            };
            let Some(channel) = self.home.get_mut(slot) else {
                continue;
            };
            if channel.is_unwanted() {
                channel.following = None;
                channel.log = LogState::Unknown;
                let channel = channel.key.clone();
                self.broker.ops.push(BrokerOp::Unfollow { channel, follow });
            }
        }
    }

    /// Home shard: an HTTP request removes a channel's messages.
    pub(super) fn clear_at_broker(
        &mut self,
        channel: &ChannelKey,
        shard: ShardId,
        request: RequestId,
    ) {
        if !self.broker.up {
            self.answer_clear(shard, request, Err(ErrorCode::Unavailable));
            return;
        }
        let ticket = self.next_ticket();
        let channel = channel.clone();
        self.broker
            .clears
            .insert(ticket, (channel.clone(), shard, request));
        self.broker.ops.push(BrokerOp::Clear { ticket, channel });
    }

    fn handle_clear_done(&mut self, ticket: Ticket, result: Result<u64, BrokerError>) {
        let Some((channel, shard, request)) = self.broker.clears.remove(&ticket) else {
            return;
        };
        match result {
            Ok(_) if self.options.shared_store => {
                let stored = StoredChannel {
                    app: channel.app,
                    name: channel.name,
                    epoch: "".into(),
                };
                self.clear_stored(stored, shard, request);
            }
            result => {
                let result = result.map_err(|_| ErrorCode::Unavailable);
                self.answer_clear(shard, request, result);
            }
        }
    }

    /// The broker is away: questions that wait for a channel's place are refused; replays wait until it is back.
    fn refuse_questions(&mut self, now: Now) {
        let mut slots: Vec<u32> = self.store.deferred.keys().copied().collect();
        slots.sort_unstable();
        for slot in slots {
            let work = self.store.deferred.remove(&slot).unwrap_or_default();
            let (replays, questions): (Vec<_>, Vec<_>) = work
                .into_iter()
                .partition(|work| matches!(work, Deferred::Replay { .. }));
            if !replays.is_empty() {
                self.store.deferred.insert(slot, replays);
            }
            for work in questions {
                self.refuse_deferred(work, now);
            }
        }
    }

    fn next_ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.store.next_ticket);
        self.store.next_ticket += 1;
        ticket
    }
}
