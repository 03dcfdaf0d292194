//! Presence at the home shard: the members of the channels that this shard orders.
//!
//! What happens to members is noted at once and told at the end of the turn, so that a crowd that
//! comes in one turn costs each receiver one write; answers follow the notices that came before
//! them. What is too much for one turn goes on in the next: no outbox is filled by a burst.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::shared::MemberList;
use super::{KeptMember, Shard};
use crate::channel::presence::{Members, Notice, Parted, Rules, Waiting};
use crate::channel::returns::Returns;
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnName, Now, RequestId, ShardId};
use crate::msg::{LocalRef, Presence, PresenceOp, ShardMsg};
use crate::url::Shape;
use crate::wire::wsocket::{MemberPage, write_count_notice, write_members};

/// Deadlines handled per turn: a few milliseconds of work.
const DUE_PER_TURN: usize = 1024;

/// How much longer than the liveness deadline it is remembered who has connected, ms: a connection
/// that is given up then may have been dead for as long.
const OPENED_REMEMBERED_MS: u64 = 10_000;

/// What a shard keeps of presence besides each channel's members.
#[derive(Debug, Default)]
pub(super) struct PresenceState {
    /// Home slots of the channels with something to tell, each once.
    queue: VecDeque<u32>,
    /// Home slots of the channels whose members are counted.
    counting: BTreeSet<u32>,
    returns: Returns,
    /// More deadlines have passed than one turn looks at.
    more_due: bool,
    members: usize,
}

impl PresenceState {
    /// Members of all channels.
    pub(super) fn members(&self) -> usize {
        self.members
    }

    /// Members that are away.
    pub(super) fn away(&self) -> usize {
        self.returns.len()
    }
}

impl Shard {
    /// Tells what the turn has brought, up to what one flush is for. To be called when all of a
    /// turn's input has been handled.
    pub fn finish_turn(&mut self, now: Now) {
        self.expire_members(now);
        while let Some(slot) = self.presence.queue.pop_front() {
            self.tell(slot, now);
            if self.flush_due {
                return;
            }
        }
    }

    /// Another turn is wanted, though nothing may come in: more is to be told.
    pub fn turn_due(&self) -> bool {
        !self.presence.queue.is_empty() || self.presence.more_due
    }

    /// A connection enters, updates, leaves, ends or asks.
    pub(super) fn handle_presence_op(&mut self, presence: Presence, now: Now) {
        if self.options.clustered {
            self.handle_shared_presence(presence, now);
            return;
        }
        let Presence {
            channel,
            hash,
            conn,
            client_id,
            op,
        } = presence;
        let slot = match op {
            PresenceOp::Put { .. } | PresenceOp::Get { .. } => {
                Some(self.enter_home(&channel.app, &channel.name, hash, now))
            }
            PresenceOp::Leave { .. } | PresenceOp::Lost { .. } => {
                self.home.find(&channel.app, &channel.name, hash)
            }
        };
        let client = (channel.app.clone(), client_id);
        match (op, slot) {
            (PresenceOp::Put { number, state }, Some(slot)) => {
                let done = self.check_room(slot, false).and_then(|()| {
                    self.change(slot, now, |m, rules| {
                        m.put(&client.1, conn, state, rules, now)
                    })
                    .unwrap_or(Err(ErrorCode::Internal))
                });
                match done {
                    Ok(true) => self.presence.returns.end_away(&client, slot),
                    Ok(false) => {}
                    Err(code) => self.end_membership(conn, channel, hash, number, Some(code), now),
                }
            }
            (PresenceOp::Leave { number }, Some(slot)) => {
                let left = self.change(slot, now, |m, rules| {
                    m.waiting.push(Waiting::Left { to: conn, number });
                    m.leave(&client.1, conn, rules, now)
                });
                if left == Some(Parted::Left { was_away: true }) {
                    self.presence.returns.end_away(&client, slot);
                }
            }
            (PresenceOp::Leave { number }, None) => {
                self.end_membership(conn, channel, hash, number, None, now);
            }
            (PresenceOp::Lost { silent_ms }, Some(slot)) => {
                self.lose(slot, conn, client, silent_ms, now);
            }
            (PresenceOp::Get { place, shape }, Some(slot)) => {
                let waiting = Waiting::Get {
                    to: conn,
                    place,
                    shape,
                };
                self.change(slot, now, |m, _| m.waiting.push(waiting));
            }
            (PresenceOp::Lost { .. } | PresenceOp::Put { .. } | PresenceOp::Get { .. }, None) => {}
        }
    }

    /// A connection that may have held a member has ended.
    fn lose(
        &mut self,
        slot: u32,
        conn: ConnName,
        client: (Arc<str>, Arc<str>),
        silent_ms: Option<u64>,
        now: Now,
    ) {
        let grace_ms = self.options.limits.presence_grace_ms;
        let wanted_ms = now.mono_ms() + grace_ms;
        let deadline = self.presence.returns.deadline(wanted_ms);
        let silent_ms = silent_ms.filter(|_| grace_ms > 0);
        let parted = self.change(slot, now, |m, rules| {
            m.lose(&client.1, conn, silent_ms.map(|_| deadline), rules, now)
        });
        if parted != Some(Parted::Away) {
            return;
        }
        let since_ms = now.mono_ms().saturating_sub(silent_ms.unwrap_or(0));
        match self.presence.returns.successor(&client, conn, since_ms) {
            Some(successor) => self.bring_back(slot, &client.1, successor, now),
            None => {
                let number = self.home.get(slot).map_or(0, |c| c.number);
                self.presence
                    .returns
                    .go_away(client, slot, number, deadline);
            }
        }
    }

    /// A client with an id of its own has connected to some shard.
    pub(super) fn handle_presence_opened(
        &mut self,
        client: (Arc<str>, Arc<str>),
        conn: ConnName,
        now: Now,
    ) {
        let client_id = client.1.clone();
        for slot in self.presence.returns.open(client, conn, now.mono_ms()) {
            self.bring_back(slot, &client_id, conn, now);
        }
    }

    /// A member that is away is held by a connection again, whose shard is told.
    fn bring_back(&mut self, slot: u32, client_id: &Arc<str>, conn: ConnName, now: Now) {
        let attached = self.change(slot, now, |m, _| m.attach(client_id, conn));
        let Some(channel) = self.home.get(slot).filter(|_| attached == Some(true)) else {
            debug_assert!(false, "what is listed as away is away");
            return;
        };
        self.counters.presence_returns += 1;
        let msg = ShardMsg::PresenceReturned {
            conn: conn.conn,
            channel: channel.key.clone(),
            hash: channel.hash(),
            client_id: client_id.clone(),
        };
        self.send_or_handle(conn.shard, msg, now);
    }

    /// Makes a client a member that is away until `wanted_ms` (monotonic).
    pub(super) fn restore_member(
        &mut self,
        slot: u32,
        app: Arc<str>,
        member: &KeptMember,
        wanted_ms: u64,
        now: Now,
    ) {
        let client_id: Arc<str> = member.client_id.as_str().into();
        let deadline = self.presence.returns.deadline(wanted_ms);
        let restored = self.change(slot, now, |m, rules| {
            let state = member.state.as_deref().map(Into::into);
            m.restore(&client_id, (member.joined_at, state), deadline, rules, now)
        });
        if restored == Some(true) {
            let number = self.home.get(slot).map_or(0, |c| c.number);
            let client = (app, client_id);
            self.presence
                .returns
                .go_away(client, slot, number, deadline);
        }
    }

    fn expire_members(&mut self, now: Now) {
        self.presence.more_due = false;
        for _ in 0..DUE_PER_TURN {
            let Some(due) = self.presence.returns.take_due(now.mono_ms()) else {
                return;
            };
            let is_same = |c: &crate::channel::home::HomeChannel| c.number == due.number;
            if !self.home.get(due.slot).is_some_and(is_same) {
                continue;
            }
            let left = self.change(due.slot, now, |m, rules| {
                m.expire(&due.client_id, due.at_ms, rules, now)
            });
            if left == Some(true) {
                self.presence
                    .returns
                    .end_away(&(due.app, due.client_id), due.slot);
            }
        }
        self.presence.more_due = true;
    }

    /// Once a second: numbers that have become due, connections that need not be remembered.
    pub(super) fn tick_presence(&mut self, now: Now) {
        let counting: Vec<u32> = self.presence.counting.iter().copied().collect();
        for slot in counting {
            self.change(slot, now, |_, _| ());
        }
        let remembered_ms = self.options.limits.liveness_ms + OPENED_REMEMBERED_MS;
        self.presence
            .returns
            .forget_opened(now.mono_ms().saturating_sub(remembered_ms));
        self.tick_shared(now);
    }

    /// Makes a change to a channel's members, and whatever bookkeeping follows from it.
    pub(super) fn change<R>(
        &mut self,
        slot: u32,
        now: Now,
        act: impl FnOnce(&mut Members, Rules) -> R,
    ) -> Option<R> {
        let members_max = self.options.limits.presence_members_max;
        let channel = self.home.get_mut(slot)?;
        let rules = Rules {
            members_max: channel.settings.presence_members_max.unwrap_or(members_max),
            events_max: channel.settings.presence_events_max,
        };
        let wanted = self
            .hooks
            .wants_members(&channel.key.app, &channel.key.name);
        let members = channel.members.get_or_insert_default();
        let before = members.len();
        members.observe(wanted);
        let result = act(members, rules);
        let observed = members.take_observed();
        self.presence.members = self.presence.members + members.len() - before;
        if members.is_counting() {
            self.presence.counting.insert(slot);
        } else if !self.presence.counting.is_empty() {
            self.presence.counting.remove(&slot);
        }
        if !members.queued && (members.has_notices(now) || !members.waiting.is_empty()) {
            members.queued = true;
            self.presence.queue.push_back(slot);
        }
        if members.is_idle() {
            self.presence.counting.remove(&slot);
            channel.members = None;
        }
        if let Some((events, stands)) = observed {
            self.raise_members(slot, events, stands, now);
        }
        Some(result)
    }

    /// Sends a channel's next notices and, if there are no more, what waits behind them.
    fn tell(&mut self, slot: u32, now: Now) {
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        let Some(members) = channel.members.as_deref_mut() else {
            return;
        };
        members.queued = false;
        let notices = members.take_notices(now);
        let mut waiting = Vec::new();
        if !members.has_notices(now) {
            waiting = std::mem::take(&mut members.waiting);
        }
        self.send_notices(slot, notices, now);
        self.answer_waiting(slot, waiting, now);
        self.change(slot, now, |_, _| ());
    }

    fn send_notices(&mut self, slot: u32, notices: Vec<Notice>, now: Now) {
        let interested: Vec<(ShardId, LocalRef)> = self.home.interested(slot).to_vec();
        if notices.is_empty() || interested.is_empty() {
            return;
        }
        let notices: Arc<[Notice]> = notices.into();
        for (shard, to) in interested {
            let notices = notices.clone();
            self.send_or_handle(shard, ShardMsg::PresenceNotices { to, notices }, now);
        }
    }

    fn answer_waiting(&mut self, slot: u32, waiting: Vec<Waiting>, now: Now) {
        let Some((key, hash)) = self.home.get(slot).map(|c| (c.key.clone(), c.hash())) else {
            return;
        };
        // One list for all who ask in the same turn.
        let mut frames: Vec<(Shape, Arc<[u8]>)> = Vec::new();
        for answer in waiting {
            match answer {
                Waiting::Left { to, number } => {
                    self.end_membership(to, key.clone(), hash, number, None, now);
                }
                Waiting::Get { to, place, shape } => {
                    let known = frames.iter().find(|(s, _)| *s == shape);
                    let frame = match known {
                        Some((_, frame)) => frame.clone(),
                        None => {
                            let frame = self.encode_members(slot, shape, now);
                            frames.push((shape, frame.clone()));
                            frame
                        }
                    };
                    let msg = ShardMsg::PresenceMembers {
                        conn: to.conn,
                        place,
                        frame,
                    };
                    self.send_or_handle(to.shard, msg, now);
                }
            }
        }
    }

    /// The members, and their number too where they are only counted.
    fn encode_members(&mut self, slot: u32, shape: Shape, now: Now) -> Arc<[u8]> {
        let empty = Members::default();
        let Some(channel) = self.home.get(slot) else {
            return Arc::from([]);
        };
        let (name, members) = (
            &channel.key.name,
            channel.members.as_deref().unwrap_or(&empty),
        );
        let mut bytes = self
            .encoder
            .text(|out| write_members(out, name, members.list(None), members.len(), shape))
            .to_vec();
        if members.is_counting() {
            let count = members.count(now);
            let frame = self
                .encoder
                .text(|out| write_count_notice(out, name, count));
            bytes.extend_from_slice(frame);
        }
        bytes.into()
    }

    pub(super) fn end_membership(
        &mut self,
        conn: ConnName,
        channel: ChannelKey,
        hash: u64,
        number: u32,
        refused: Option<ErrorCode>,
        now: Now,
    ) {
        let ConnName { shard, conn } = conn;
        let msg = ShardMsg::PresenceEnded {
            conn,
            channel,
            hash,
            number,
            refused,
        };
        self.send_or_handle(shard, msg, now);
    }

    /// Asks for the members of a channel, those after a client id alone, on behalf of an HTTP
    /// request; the answer is [`super::Output::Members`].
    pub fn members_request(
        &mut self,
        app: &str,
        channel: &str,
        (after, limit): (Option<String>, usize),
        request: RequestId,
        now: Now,
    ) {
        let app = self.intern(app);
        let hash = self.placement.hash(&app, channel);
        let msg = ShardMsg::AskMembers {
            channel: ChannelKey {
                app,
                name: channel.into(),
            },
            hash,
            after: after.map(Into::into),
            limit,
            shard: self.id,
            request,
        };
        self.send_or_handle(self.placement.home(hash), msg, now);
    }

    pub(super) fn handle_ask_members(
        &mut self,
        channel: &ChannelKey,
        hash: u64,
        (after, limit): (Option<&str>, usize),
        shard: ShardId,
        request: RequestId,
        now: Now,
    ) {
        let slot = self.home.find(&channel.app, &channel.name, hash);
        if self.options.clustered && !self.follows_members(slot) {
            let list = MemberList {
                after: after.map(Into::into),
                limit,
                shard,
                request,
            };
            self.ask_list(channel, list);
            return;
        }
        let members = slot
            .and_then(|slot| self.home.get(slot))
            .and_then(|c| c.members.as_deref());
        let mut page = MemberPage {
            members: Vec::new(),
            total: 0,
            has_more: false,
        };
        if let Some(members) = members {
            page.total = members.len();
            let mut list = members.list(after);
            page.members.extend(list.by_ref().take(limit));
            page.has_more = list.next().is_some();
        }
        self.send_or_handle(shard, ShardMsg::Members { request, page }, now);
    }

    /// Members of a channel that this shard is home to.
    pub(super) fn member_count(&self, app: &str, name: &str, hash: u64) -> usize {
        let slot = self.home.find(app, name, hash);
        slot.and_then(|slot| self.home.get(slot))
            .and_then(|c| c.members.as_deref())
            .map_or(0, Members::len)
    }
}
