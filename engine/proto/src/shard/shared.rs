//! Presence at the home shard where several nodes share it: what this node's connections do goes to Redis, and what Redis
//! tells is what the channel's receivers see, their own changes too.
//!
//! ```text
//!  put, leave ──► held here ──SharedOp──► Redis ──Done──► answers that waited for it
//!                                           └──Told, Snapshot──► view ──► members ──► notices
//! ```
//! While Redis is away entering is refused with 50300, and leaves are made good when it is back: what this node holds is
//! told anew then (`Sync`). The grace of lost connections (contract D20) is Redis's to keep: whichever node the client
//! comes back to has its member.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use super::Shard;
use crate::channel::home::HomeChannel;
use crate::channel::presence::Waiting;
use crate::channel::shared::{Released, Shared};
use crate::cluster::view::{Answered, Position, Snapshot};
use crate::cluster::{Held, SharedOp, SharedReply, wire};
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnId, ConnName, Now, RequestId, ShardId};
use crate::limits::{PRESENCE_OPENED_MAX, SHARED_OPS_WAITING_MAX};
use crate::msg::{Presence, PresenceOp, ShardMsg};
use crate::wire::wsocket::MemberPage;

/// Channels whose holdings are told anew per tick.
const SYNCS_PER_TICK: usize = 4096;

/// What a shard keeps of what it shares, besides each channel's part.
#[derive(Debug, Default)]
pub(super) struct SharedState {
    /// Operations that the driver has not taken.
    ops: Vec<SharedOp>,
    is_up: bool,
    last_ticket: u64,
    under_way: HashMap<u64, UnderWay, foldhash::fast::FixedState>,
    /// Channels of which Redis may have something else than this node holds, by home slot, with their number.
    unsure: BTreeMap<u32, u64>,
    /// Clients that have come while Redis was away; the oldest goes first.
    unannounced: VecDeque<SharedOp>,
    /// Channels with answers that wait.
    waiting: BTreeSet<u32>,
}

#[derive(Debug)]
enum UnderWay {
    Put {
        slot: u32,
        number: u64,
        client_id: Arc<str>,
        conn: ConnName,
        request: u32,
    },
    Leave {
        slot: u32,
        number: u64,
    },
    List(MemberList),
}

/// An HTTP request for members.
#[derive(Debug)]
pub(super) struct MemberList {
    pub(super) after: Option<Arc<str>>,
    pub(super) limit: usize,
    pub(super) shard: ShardId,
    pub(super) request: RequestId,
}

impl Shard {
    /// The operations for Redis, in order. What its queue does not take the driver gives back through
    /// [`Shard::refuse_shared`].
    pub fn take_shared(&mut self) -> Vec<SharedOp> {
        std::mem::take(&mut self.shared.ops)
    }

    /// Operations that were taken and found no room.
    pub fn refuse_shared(&mut self, ops: Vec<SharedOp>, now: Now) {
        for op in ops {
            match op {
                SharedOp::Put {
                    ticket, channel, ..
                }
                | SharedOp::Leave {
                    ticket, channel, ..
                } => {
                    let result = Err(ErrorCode::Unavailable);
                    self.handle_shared_done(ticket, &channel, result, now);
                }
                SharedOp::Away { channel, .. } | SharedOp::Sync { channel, .. } => {
                    if let Some(slot) = self.shared_slot(&channel) {
                        self.doubt(slot);
                    }
                }
                SharedOp::Snapshot { channel, number } => {
                    self.handle_snapshot(&channel, number, None, now);
                }
                SharedOp::List { ticket, .. } => self.handle_listed(ticket, None, now),
                opened @ SharedOp::Opened { .. } => self.announce_later(opened),
            }
        }
    }

    /// What Redis has done or told.
    pub fn handle_shared(&mut self, reply: SharedReply, now: Now) {
        match reply {
            SharedReply::Done {
                ticket,
                channel,
                result,
            } => self.handle_shared_done(ticket, &channel, result, now),
            SharedReply::Snapshot {
                channel,
                number,
                snapshot,
            } => self.handle_snapshot(&channel, number, snapshot, now),
            SharedReply::Listed { ticket, snapshot } => self.handle_listed(ticket, snapshot, now),
            SharedReply::Returned {
                channel,
                client_id,
                conn,
            } => self.handle_returned(channel, client_id, conn, now),
            SharedReply::Elsewhere(apps) => {
                for (app, elsewhere) in apps.iter() {
                    self.meters.set_elsewhere(app, *elsewhere);
                }
                self.send_notes();
            }
            SharedReply::Failed { channel } => {
                if let Some(slot) = self.shared_slot(&channel) {
                    self.doubt(slot);
                }
            }
            SharedReply::Health { is_up } => {
                if is_up && !self.shared.is_up {
                    let holding = self.home.slots().filter(|(_, c)| holds_any(c));
                    let unsure: Vec<_> = holding.map(|(slot, c)| (slot, c.number)).collect();
                    self.shared.unsure.extend(unsure);
                    let unannounced = std::mem::take(&mut self.shared.unannounced);
                    self.shared.ops.extend(unannounced);
                }
                self.shared.is_up = is_up;
            }
        }
    }

    /// A connection enters, updates, leaves, ends or asks.
    pub(super) fn handle_shared_presence(&mut self, presence: Presence, now: Now) {
        let Presence {
            channel,
            hash,
            conn,
            client_id,
            op,
        } = presence;
        let slot = self.enter_home(&channel.app, &channel.name, hash, now);
        match op {
            PresenceOp::Put {
                number: request,
                state,
            } => {
                let room = self.check_room(slot, false);
                if let Err(code) = room.and_then(|()| self.check_up()) {
                    self.end_membership(conn, channel, hash, request, Some(code), now);
                    return;
                }
                self.put_shared(slot, client_id, conn, request, state);
            }
            PresenceOp::Leave { number } => {
                let released = self.let_go(slot, &client_id, conn);
                if released == Some(Released::Last)
                    || released == Some(Released::Never { held: false })
                {
                    self.leave_shared(slot, client_id);
                }
                let waiting = Waiting::Left { to: conn, number };
                self.park(slot, waiting, now);
            }
            PresenceOp::Lost { silent_ms } => {
                if self.let_go(slot, &client_id, conn) != Some(Released::Last) {
                    return;
                }
                let grace_ms = self.options.limits.presence_grace_ms;
                match silent_ms.filter(|_| grace_ms > 0) {
                    None => self.leave_shared(slot, client_id),
                    Some(silent_ms) => {
                        let last = !self.holds_any_in(slot);
                        self.shared.ops.push(SharedOp::Away {
                            channel,
                            client_id,
                            lost: conn,
                            silent_ms,
                            grace_ms,
                            last,
                        });
                        self.doubt_if_down(slot);
                    }
                }
            }
            PresenceOp::Get { place, shape } => {
                let waiting = Waiting::Get {
                    to: conn,
                    place,
                    shape,
                };
                self.park(slot, waiting, now);
            }
        }
    }

    pub(super) fn announce_to_nodes(&mut self, app: Arc<str>, client_id: Arc<str>, conn: ConnId) {
        let conn = self.name_of(conn);
        let opened = SharedOp::Opened {
            app,
            client_id,
            conn,
        };
        if self.shared.is_up {
            self.shared.ops.push(opened);
        } else {
            self.announce_later(opened);
        }
    }

    /// Keeps a client's coming for when Redis is back: its grace may not be over by then.
    fn announce_later(&mut self, opened: SharedOp) {
        if self.shared.unannounced.len() >= PRESENCE_OPENED_MAX {
            self.shared.unannounced.pop_front();
        }
        self.shared.unannounced.push_back(opened);
    }

    /// Nobody on this node follows the channel any more: its members are not kept up to date here.
    pub(super) fn stop_following(&mut self, slot: u32, now: Now) {
        if let Some(shared) = self.shared_in(slot) {
            shared.view.forget();
            self.settle(slot, now);
        }
        self.change(slot, now, |m, rules| {
            m.replace(Vec::new(), false, rules, now)
        });
    }

    /// Whether the members here are those of all nodes.
    pub(super) fn follows_members(&self, slot: Option<u32>) -> bool {
        let channel = slot.and_then(|slot| self.home.get(slot));
        let shared = channel.and_then(|c| c.shared.as_deref());
        shared.is_some_and(|shared| shared.view.is_known())
    }

    pub(super) fn ask_list(&mut self, channel: &ChannelKey, list: MemberList) {
        let ticket = self.next_shared_ticket();
        self.shared.under_way.insert(ticket, UnderWay::List(list));
        let channel = channel.clone();
        self.shared.ops.push(SharedOp::List { channel, ticket });
    }

    /// Once a second: answers that have waited too long, holdings that are to be told anew, snapshots that failed.
    pub(super) fn tick_shared(&mut self, now: Now) {
        if !self.options.clustered {
            return;
        }
        let waiting: Vec<u32> = self.shared.waiting.iter().copied().collect();
        for slot in waiting {
            self.settle(slot, now);
            self.follow(slot, now);
        }
        if !self.shared.is_up {
            return;
        }
        for _ in 0..SYNCS_PER_TICK {
            if self.shared.ops.len() >= SHARED_OPS_WAITING_MAX {
                return;
            }
            let Some((slot, number)) = self.shared.unsure.pop_first() else {
                return;
            };
            if self.home.get(slot).is_some_and(|c| c.number == number) {
                self.sync(slot);
            }
        }
    }

    fn check_up(&self) -> Result<(), ErrorCode> {
        let has_room = self.shared.ops.len() < SHARED_OPS_WAITING_MAX;
        (self.shared.is_up && has_room)
            .then_some(())
            .ok_or(ErrorCode::Unavailable)
    }

    fn put_shared(
        &mut self,
        slot: u32,
        client_id: Arc<str>,
        conn: ConnName,
        request: u32,
        state: Option<Arc<str>>,
    ) {
        let ticket = self.next_shared_ticket();
        let default_max = self.options.limits.presence_members_max;
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        let shared = channel.shared.get_or_insert_default();
        shared.hold(&client_id, conn);
        shared.set_state(&client_id, state.clone());
        shared.note_asked(ticket);
        self.shared.ops.push(SharedOp::Put {
            ticket,
            channel: channel.key.clone(),
            client_id: client_id.clone(),
            state,
            members_max: channel.settings.presence_members_max.unwrap_or(default_max),
        });
        let under_way = UnderWay::Put {
            slot,
            number: channel.number,
            client_id,
            conn,
            request,
        };
        self.shared.under_way.insert(ticket, under_way);
    }

    fn leave_shared(&mut self, slot: u32, client_id: Arc<str>) {
        let ticket = self.next_shared_ticket();
        let last = !self.holds_any_in(slot);
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        channel.shared.get_or_insert_default().note_asked(ticket);
        let number = channel.number;
        self.shared.ops.push(SharedOp::Leave {
            ticket,
            channel: channel.key.clone(),
            client_id,
            last,
        });
        self.shared
            .under_way
            .insert(ticket, UnderWay::Leave { slot, number });
        self.doubt_if_down(slot);
    }

    fn handle_shared_done(
        &mut self,
        ticket: u64,
        channel: &ChannelKey,
        result: Result<Position, ErrorCode>,
        now: Now,
    ) {
        let Some(under_way) = self.shared.under_way.remove(&ticket) else {
            return;
        };
        let (slot, number) = match &under_way {
            UnderWay::Put { slot, number, .. } | UnderWay::Leave { slot, number } => {
                (*slot, *number)
            }
            UnderWay::List(_) => return,
        };
        if self.home.get(slot).is_none_or(|c| c.number != number) {
            debug_assert!(
                false,
                "a channel with operations under way is not forgotten"
            );
            return;
        }
        if let Some(shared) = self.shared_in(slot) {
            shared.note_answered(ticket, result.ok());
        }
        if let Err(code) = result {
            if code == ErrorCode::Unavailable {
                // It may have been done.
                self.doubt(slot);
            }
            if let UnderWay::Put {
                client_id,
                conn,
                request,
                ..
            } = under_way
            {
                let hash = self.placement.hash(&channel.app, &channel.name);
                if self.let_go(slot, &client_id, conn) == Some(Released::Last) {
                    self.doubt(slot);
                }
                self.end_membership(conn, channel.clone(), hash, request, Some(code), now);
            }
        }
        self.settle(slot, now);
    }

    /// The channel's topic is heard from here on, but may not have been before.
    pub(super) fn handle_topic_ready(&mut self, slot: u32, now: Now) {
        if self.home.interested(slot).is_empty() {
            return;
        }
        if let Some(channel) = self.home.get_mut(slot) {
            channel.shared.get_or_insert_default().restart();
        }
        self.follow(slot, now);
    }

    /// What the channel's topic tells of its members; what is not of that form is left out and mended by a snapshot.
    pub(super) fn handle_presence_payload(&mut self, slot: u32, payload: &[u8], now: Now) {
        let told = wire::parse_told(payload);
        if let (Some(told), Some(shared)) = (told, self.shared_in(slot)) {
            shared.view.note(told);
        }
        self.follow(slot, now);
    }

    fn handle_snapshot(
        &mut self,
        channel: &ChannelKey,
        number: u32,
        snapshot: Option<Snapshot>,
        now: Now,
    ) {
        let Some(slot) = self.shared_slot(channel) else {
            return;
        };
        let Some(shared) = self.shared_in(slot) else {
            return;
        };
        let Some(snapshot) = snapshot else {
            shared.view.fail(number);
            self.shared.waiting.insert(slot);
            return;
        };
        match shared.view.answer(number, snapshot) {
            Answered::Nothing => {}
            Answered::First(members, heard) => {
                self.change(slot, now, |m, rules| {
                    m.replace(members, false, rules, now);
                    heard.into_iter().for_each(|event| m.hear(event));
                });
            }
            Answered::Replace(members) => {
                self.change(slot, now, |m, rules| m.replace(members, true, rules, now));
            }
        }
        self.follow(slot, now);
    }

    fn handle_listed(&mut self, ticket: u64, snapshot: Option<Snapshot>, now: Now) {
        let Some(UnderWay::List(list)) = self.shared.under_way.remove(&ticket) else {
            return;
        };
        // Without an answer the request runs into its deadline.
        if let Some(snapshot) = snapshot {
            let MemberList {
                after,
                limit,
                shard,
                request,
            } = list;
            let page = page_of(snapshot, after.as_deref(), limit);
            self.send_or_handle(shard, ShardMsg::Members { request, page }, now);
        }
    }

    /// Another node, or the grace, has given a member to a connection of this node.
    fn handle_returned(
        &mut self,
        channel: ChannelKey,
        client_id: Arc<str>,
        conn: ConnName,
        now: Now,
    ) {
        let hash = self.placement.hash(&channel.app, &channel.name);
        let slot = self.enter_home(&channel.app, &channel.name, hash, now);
        if let Some(channel) = self.home.get_mut(slot) {
            channel
                .shared
                .get_or_insert_default()
                .hold(&client_id, conn);
        }
        // Whoever gave it may have known this node by a lease that is over.
        self.doubt(slot);
        self.counters.presence_returns += 1;
        let msg = ShardMsg::PresenceReturned {
            conn: conn.conn,
            channel,
            hash,
            client_id,
        };
        self.send_or_handle(conn.shard, msg, now);
    }

    /// Applies what has come of a channel's changes, and asks for what is missing.
    fn follow(&mut self, slot: u32, now: Now) {
        while let Some(event) = self.shared_in(slot).and_then(|s| s.view.take_next()) {
            self.change(slot, now, |m, rules| m.apply(&event, rules, now));
        }
        let follows = !self.home.interested(slot).is_empty();
        if let Some(channel) = self.home.get_mut(slot).filter(|_| follows)
            && let Some(shared) = channel.shared.as_deref_mut()
            && self.shared.ops.len() < SHARED_OPS_WAITING_MAX
            && let Some(number) = shared.view.ask()
        {
            let channel = channel.key.clone();
            // What this node holds comes first: it does not see its own members leave that were taken for dead.
            if self.shared.is_up && self.shared.unsure.remove(&slot).is_some() {
                self.sync(slot);
            }
            self.shared.ops.push(SharedOp::Snapshot { channel, number });
        }
        self.settle(slot, now);
    }

    /// Gives the answers that can be given.
    fn settle(&mut self, slot: u32, now: Now) {
        let follows = !self.home.interested(slot).is_empty();
        while let Some(waiting) = self
            .shared_in(slot)
            .and_then(|s| s.next_ready(follows, now.mono_ms()))
        {
            self.change(slot, now, |m, _| m.waiting.push(waiting));
        }
        let shared = self.shared_in(slot);
        if shared.is_some_and(|s| s.is_waiting() || !s.view.is_known() && follows) {
            self.shared.waiting.insert(slot);
        } else {
            self.shared.waiting.remove(&slot);
        }
    }

    fn park(&mut self, slot: u32, waiting: Waiting, now: Now) {
        if let Some(channel) = self.home.get_mut(slot) {
            let shared = channel.shared.get_or_insert_default();
            shared.park(waiting, now.mono_ms());
        }
        self.settle(slot, now);
    }

    /// Tells what this node holds.
    fn sync(&mut self, slot: u32) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        let Some(shared) = channel.shared.as_deref() else {
            return;
        };
        let joined_at = |client_id: &str| {
            let members = channel.members.as_deref();
            members.map_or(0, |m| m.joined_at(client_id).unwrap_or(0))
        };
        let held = shared.held().map(|(client_id, held)| Held {
            client_id: client_id.clone(),
            joined_at: joined_at(client_id),
            state: held.state.clone(),
        });
        self.shared.ops.push(SharedOp::Sync {
            channel: channel.key.clone(),
            held: held.collect(),
        });
    }

    fn let_go(&mut self, slot: u32, client_id: &str, conn: ConnName) -> Option<Released> {
        Some(self.shared_in(slot)?.release(client_id, conn))
    }

    fn holds_any_in(&self, slot: u32) -> bool {
        self.home.get(slot).is_some_and(holds_any)
    }

    /// Redis may have something else than this node holds.
    fn doubt(&mut self, slot: u32) {
        if let Some(channel) = self.home.get(slot) {
            self.shared.unsure.insert(slot, channel.number);
        }
    }

    fn doubt_if_down(&mut self, slot: u32) {
        if !self.shared.is_up {
            self.doubt(slot);
        }
    }

    fn shared_slot(&self, channel: &ChannelKey) -> Option<u32> {
        let hash = self.placement.hash(&channel.app, &channel.name);
        self.home.find(&channel.app, &channel.name, hash)
    }

    fn shared_in(&mut self, slot: u32) -> Option<&mut Shared> {
        self.home.get_mut(slot)?.shared.as_deref_mut()
    }

    fn next_shared_ticket(&mut self) -> u64 {
        self.shared.last_ticket += 1;
        self.shared.last_ticket
    }
}

fn holds_any(channel: &HomeChannel) -> bool {
    channel.shared.as_deref().is_some_and(Shared::holds_any)
}

fn page_of(snapshot: Snapshot, after: Option<&str>, limit: usize) -> MemberPage {
    let mut members = snapshot.members;
    members.sort_unstable_by(|a, b| a.client_id.cmp(&b.client_id));
    let total = members.len();
    members.retain(|m| after.is_none_or(|after| &*m.client_id > after));
    let has_more = members.len() > limit;
    members.truncate(limit);
    let listed = members
        .into_iter()
        .map(|m| crate::channel::presence::Listed {
            client_id: m.client_id,
            joined_at: m.joined_at,
            state: m.state,
            connections: 1,
        });
    MemberPage {
        members: listed.collect(),
        total,
        has_more,
    }
}

#[cfg(test)]
mod tests;
