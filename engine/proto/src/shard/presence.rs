//! Presence on a connection's shard: what clients ask for, which channels a connection is a member
//! of or watches, and the delivery of notices (contract D20).
//!
//! ```text
//! presence.enter ──► watches the channel (Interest, if first) ── Put ──► home: member, notice
//! presence.leave ─────────────────────────────────────────────── Leave ─► home: gone, notice
//!   watches until ◄────────────────── notices, then PresenceEnded ◄──────┘
//! connection ends ────────────────────────────────────────────── Lost ──► home: gone or away
//! connection opens (own id) ─────── PresenceOpened to all shards ───────► home: was it away?
//!   member again ◄───────────────────────────────── PresenceReturned ◄───┘
//! ```
//! Notices go to a channel's subscribers and watchers, each connection once, encoded once for each
//! shape that is there.

use std::rc::Rc;
use std::sync::Arc;

use super::{FLUSH_DUE_BYTES, FLUSH_DUE_FRAMES, Shard};
use crate::auth::capability::Ops;
use crate::channel::local::Found;
use crate::channel::presence::Notice;
use crate::channel_name;
use crate::error::{CloseCause, ErrorCode};
use crate::ids::{ChannelKey, ConnId, ConnName, Now};
use crate::limits::{PRESENCE_GETS_PER_CONN_MAX, PRESENCE_LATE_END_MS};
use crate::msg::{LocalRef, Presence, PresenceOp, ShardMsg};
use crate::outbox::Frame;
use crate::rate::table::Class;
use crate::session::{ConnPresence, GetSlot, Membership};
use crate::url::Shape;
use crate::wire::wsocket::{FrameEncoder, PresenceRequest, write_notice};

/// What a request is about.
struct Place {
    key: ChannelKey,
    hash: u64,
    client_id: Arc<str>,
}

impl Shard {
    /// A client's presence request. Checks in order: shape (by the parser), name, right, rate, size.
    pub(super) fn handle_presence(
        &mut self,
        conn: ConnId,
        channel: &str,
        request: PresenceRequest<'_>,
        now: Now,
    ) {
        if let Err(code) = self.try_presence(conn, channel, request, now) {
            self.error(conn, &code.into(), Some(channel), None, now);
        }
    }

    fn try_presence(
        &mut self,
        conn: ConnId,
        channel: &str,
        request: PresenceRequest<'_>,
        now: Now,
    ) -> Result<(), ErrorCode> {
        channel_name::validate(channel, self.options.utf8_channel_names)?;
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let grant = &c.session.grant;
        let permitted = match request {
            PresenceRequest::Get => {
                grant.permits(channel, Ops::SUBSCRIBE) || grant.permits(channel, Ops::PRESENCE)
            }
            PresenceRequest::Put(_) | PresenceRequest::Leave => {
                grant.permits(channel, Ops::PRESENCE)
            }
        };
        if !permitted {
            return Err(ErrorCode::NotPermitted);
        }
        let (app, client_id) = (grant.app.clone(), grant.client_id.clone());
        let admitted = self.admit(conn, Class::Presence, channel, now);
        if !admitted {
            return Err(ErrorCode::RateExceeded);
        }
        let hash = self.placement.hash(&app, channel);
        if self.mesh_full(self.placement.home(hash)) && request != PresenceRequest::Leave {
            return Err(ErrorCode::Unavailable);
        }
        let known = self.local.find(&app, channel, hash);
        let name = known
            .and_then(|slot| self.local.get(slot))
            .map_or_else(|| channel.into(), |c| c.key.name.clone());
        let place = Place {
            key: ChannelKey { app, name },
            hash,
            client_id,
        };
        match request {
            PresenceRequest::Put(state) => self.put_presence(conn, place, state, now),
            PresenceRequest::Leave => {
                self.leave_presence(conn, place, now);
                Ok(())
            }
            PresenceRequest::Get => self.get_presence(conn, place, now),
        }
    }

    fn put_presence(
        &mut self,
        conn: ConnId,
        place: Place,
        state: Option<&str>,
        now: Now,
    ) -> Result<(), ErrorCode> {
        if state.is_some_and(|s| s.len() > self.options.limits.presence_state_bytes_max) {
            return Err(ErrorCode::BadPresenceState);
        }
        let index = self.watch(conn, &place.key, place.hash, now)?;
        let number = self.next_number(conn);
        let Some(membership) = self.membership(conn, index) else {
            return Ok(());
        };
        membership.number = number;
        membership.entered = true;
        let op = PresenceOp::Put {
            number,
            state: state.map(Into::into),
        };
        self.send_presence(conn, place, op, now);
        Ok(())
    }

    /// The connection watches on until the home shard has done it: it gets the notice itself.
    fn leave_presence(&mut self, conn: ConnId, place: Place, now: Now) {
        let slot = self.local.find(&place.key.app, &place.key.name, place.hash);
        let index = slot.and_then(|slot| self.membership_of(conn, slot));
        let number = self.next_number(conn);
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let named = c.session.grant.named;
        let mut entered = false;
        if let Some(membership) = index.and_then(|i| self.membership(conn, i)) {
            membership.asked = false;
            membership.number = number;
            entered = membership.entered;
        }
        // A named client may be a member by a connection that was lost.
        if entered || named {
            self.send_presence(conn, place, PresenceOp::Leave { number }, now);
        }
        if let Some(index) = index.filter(|_| !entered) {
            self.unwatch(conn, index, now);
        }
    }

    fn get_presence(&mut self, conn: ConnId, place: Place, now: Now) -> Result<(), ErrorCode> {
        let waiting = self
            .conn_presence(conn)
            .map_or(0, |p| p.gets.as_ref().map_or(0, |gets| gets.waiting.len()));
        if waiting >= PRESENCE_GETS_PER_CONN_MAX {
            return Err(ErrorCode::RateExceeded);
        }
        let index = self.watch(conn, &place.key, place.hash, now)?;
        let Some(presence) = self.conn_presence(conn) else {
            return Ok(());
        };
        if let Some(membership) = presence.memberships.get_mut(index) {
            membership.asked = true;
        }
        let number = presence.gets_asked;
        presence.gets_asked = number.wrapping_add(1);
        let gets = presence.gets.get_or_insert_default();
        gets.waiting.push_back(GetSlot {
            place: number,
            answer: None,
        });
        let shape = self
            .conns
            .open_mut(conn)
            .map_or(Shape::Mirrored, |c| c.session.grant.shape);
        let op = PresenceOp::Get {
            place: number,
            shape,
        };
        self.send_presence(conn, place, op, now);
        Ok(())
    }

    fn send_presence(&mut self, conn: ConnId, place: Place, op: PresenceOp, now: Now) {
        let home = self.placement.home(place.hash);
        let msg = ShardMsg::Presence(Box::new(Presence {
            channel: place.key,
            hash: place.hash,
            conn: ConnName {
                shard: self.id,
                conn,
            },
            client_id: place.client_id,
            op,
        }));
        self.send_or_handle(home, msg, now);
    }

    /// Makes a connection a watcher of a channel, unless it is one; returns the membership's index.
    ///
    /// Errors: 42911 when it watches too many.
    fn watch(
        &mut self,
        conn: ConnId,
        channel: &ChannelKey,
        hash: u64,
        now: Now,
    ) -> Result<usize, ErrorCode> {
        let known = self.local.find(&channel.app, &channel.name, hash);
        if let Some(index) = known.and_then(|slot| self.membership_of(conn, slot)) {
            return Ok(index);
        }
        let most = self.options.limits.channels_per_conn_max;
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(usize::MAX);
        };
        let presence = c.session.presence.get_or_insert_default();
        let index = presence.memberships.len();
        if index >= most {
            return Err(ErrorCode::ChannelLimit);
        }
        let (slot, found) = self.local.enter(&channel.app, &channel.name, hash);
        let place = u16::try_from(index).unwrap_or(u16::MAX);
        presence.memberships.push(Membership {
            channel: slot,
            place: self.local.watch(slot, conn.slot, place),
            number: 0,
            entered: false,
            asked: false,
        });
        if let Found::First(local) = found {
            let msg = ShardMsg::Interest {
                channel: channel.clone(),
                hash,
                local,
            };
            self.send_or_handle(self.placement.home(hash), msg, now);
        }
        Ok(index)
    }

    /// Takes a connection's membership at an index out, on both sides.
    fn unwatch(&mut self, conn: ConnId, index: usize, now: Now) {
        let Some(presence) = self
            .conns
            .open_mut(conn)
            .and_then(|c| c.session.presence.as_deref_mut())
        else {
            return;
        };
        if index >= presence.memberships.len() {
            return;
        }
        let membership = presence.memberships.swap_remove(index);
        if let Some(moved) = presence.memberships.get(index) {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            self.local
                .reindex_watcher(moved.channel, moved.place, index);
        }
        self.leave_watchers(membership, now);
    }

    /// Takes a membership out of its channel's list of watchers.
    fn leave_watchers(&mut self, membership: Membership, now: Now) {
        if let Some(moved) = self.local.unwatch(membership.channel, membership.place)
            && let Some(other) = self
                .conns
                .at_mut(moved.conn_slot)
                .and_then(|c| c.session.presence.as_deref_mut())
                .and_then(|p| p.memberships.get_mut(usize::from(moved.index)))
        {
            other.place = moved.place;
        }
        self.free_channel(membership.channel, now);
    }

    /// The client has unsubscribed: having asked for the members counts no longer.
    pub(super) fn stop_asking(&mut self, conn: ConnId, channel: &str, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        if c.session.presence.is_none() {
            return;
        }
        let app = c.session.grant.app.clone();
        let hash = self.placement.hash(&app, channel);
        let slot = self.local.find(&app, channel, hash);
        let Some(index) = slot.and_then(|slot| self.membership_of(conn, slot)) else {
            return;
        };
        if let Some(membership) = self.membership(conn, index) {
            membership.asked = false;
            if !membership.entered {
                self.unwatch(conn, index, now);
            }
        }
    }

    /// A connection has opened: is its client a member somewhere, by a connection that was lost?
    pub(super) fn announce(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let grant = &c.session.grant;
        if !grant.named {
            return;
        }
        let (app, client_id) = (grant.app.clone(), grant.client_id.clone());
        if self.options.clustered {
            self.announce_to_nodes(app, client_id, conn);
            return;
        }
        for shard in (0..self.placement.shards()).map(crate::ids::ShardId) {
            let msg = ShardMsg::PresenceOpened {
                app: app.clone(),
                client_id: client_id.clone(),
                conn,
            };
            self.send_or_handle(shard, msg, now);
        }
    }

    /// A connection ends: its memberships do, or wait for its client.
    pub(super) fn end_presence(&mut self, conn: ConnId, cause: &CloseCause, now: Now) {
        let Some(c) = self.conns.get_mut(conn) else {
            return;
        };
        let Some(presence) = c.session.presence.take() else {
            return;
        };
        let grant = &c.session.grant;
        let silent_ms = (grant.named && cause.may_return()).then(|| match cause {
            CloseCause::IdleTimeout => {
                let last_in_ms = u64::from(c.last_in_s) * 1000;
                now.mono_ms().saturating_sub(last_in_ms)
            }
            _ => PRESENCE_LATE_END_MS,
        });
        let client_id = grant.client_id.clone();
        for membership in presence.memberships {
            let of = self.local.get(membership.channel);
            let of = of.map(|c| (c.key.clone(), c.hash));
            // The list of memberships is gone: others' places are told, not its own.
            self.leave_watchers(membership, now);
            if let Some((key, hash)) = of.filter(|_| membership.entered) {
                let place = Place {
                    key,
                    hash,
                    client_id: client_id.clone(),
                };
                self.send_presence(conn, place, PresenceOp::Lost { silent_ms }, now);
            }
        }
    }

    /// The home shard has taken the connection out of the channel, or refused to let it in.
    pub(super) fn handle_presence_ended(
        &mut self,
        conn: ConnId,
        channel: &ChannelKey,
        hash: u64,
        (number, refused): (u32, Option<ErrorCode>),
        now: Now,
    ) {
        if let Some(code) = refused {
            self.error(conn, &code.into(), Some(&channel.name), None, now);
        }
        let slot = self.local.find(&channel.app, &channel.name, hash);
        let Some(index) = slot.and_then(|slot| self.membership_of(conn, slot)) else {
            return;
        };
        let Some(membership) = self.membership(conn, index) else {
            return;
        };
        // A later request decides.
        if membership.number.wrapping_sub(number) as i32 > 0 {
            return;
        }
        membership.entered = false;
        if !membership.asked {
            self.unwatch(conn, index, now);
        }
    }

    /// The connection's client was away and is a member by it from here on.
    pub(super) fn handle_presence_returned(
        &mut self,
        conn: ConnId,
        channel: ChannelKey,
        hash: u64,
        client_id: Arc<str>,
        now: Now,
    ) {
        let is_open = self.conns.open_mut(conn).is_some();
        match self.watch(conn, &channel, hash, now) {
            Ok(index) if is_open => {
                if let Some(membership) = self.membership(conn, index) {
                    membership.entered = true;
                }
            }
            Ok(_) | Err(_) => {
                let place = Place {
                    key: channel,
                    hash,
                    client_id,
                };
                let silent_ms = Some(PRESENCE_LATE_END_MS);
                self.send_presence(conn, place, PresenceOp::Lost { silent_ms }, now);
            }
        }
    }

    /// An answer to `presence.get`; sent behind those to earlier ones (contract section 10.10).
    pub(super) fn handle_presence_members(
        &mut self,
        conn: ConnId,
        place: u32,
        frame: &[u8],
        now: Now,
    ) {
        let answer = Frame::from(frame);
        let Some(presence) = self.conn_presence(conn) else {
            return;
        };
        let Some(gets) = presence.gets.as_deref_mut() else {
            return;
        };
        if let Some(slot) = gets.waiting.iter_mut().find(|g| g.place == place) {
            slot.answer = Some(answer);
        }
        self.send_answers(conn, now);
    }

    fn conn_presence(&mut self, conn: ConnId) -> Option<&mut ConnPresence> {
        self.conns.open_mut(conn)?.session.presence.as_deref_mut()
    }

    /// Puts notices into the outbox of every local receiver: one buffer for all of a shape.
    pub(super) fn deliver_presence(&mut self, to: LocalRef, notices: &[Notice], now: Now) {
        let Some(channel) = self.local.resolve(to) else {
            return;
        };
        let limits = &self.options.limits;
        let now_s = now.mono_s();
        let mut frames = ShapeFrames::default();
        let (mut delivered, mut bytes_queued) = (0u64, 0u64);
        let mut too_slow = Vec::new();
        for slot in channel.receivers() {
            let Some(conn) = self.conns.at_mut(slot) else {
                continue;
            };
            let shape = conn.session.grant.shape;
            let frame = frames.of(shape).get_or_insert_with(|| {
                encode(&mut self.encoder, &channel.key.name, notices, shape)
            });
            // One that subscribes and watches.
            if conn
                .outbox
                .last()
                .is_some_and(|last| Rc::ptr_eq(last, frame))
            {
                continue;
            }
            conn.outbox.push(frame.clone());
            conn.last_out_s = now_s;
            delivered += 1;
            bytes_queued += frame.len() as u64;
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push(slot);
            }
            let (frames, bytes) = (conn.outbox.frames(), conn.outbox.bytes());
            self.flush_due |= frames >= FLUSH_DUE_FRAMES || bytes >= FLUSH_DUE_BYTES;
            if frames > limits.outbox_frames_max || bytes > limits.outbox_bytes_max {
                too_slow.push(conn.id(slot));
            }
        }
        self.counters.presence_notices += delivered * notices.len() as u64;
        self.counters.bytes_queued += bytes_queued;
        for conn in too_slow {
            self.close(conn, CloseCause::SlowConsumer, now);
        }
    }

    /// Number of a connection's next request to enter or leave.
    fn next_number(&mut self, conn: ConnId) -> u32 {
        self.conn_presence(conn).map_or(0, |presence| {
            presence.requests = presence.requests.wrapping_add(1);
            presence.requests
        })
    }

    fn membership_of(&mut self, conn: ConnId, slot: u32) -> Option<usize> {
        let presence = self.conn_presence(conn)?;
        presence.memberships.iter().position(|m| m.channel == slot)
    }

    fn membership(&mut self, conn: ConnId, index: usize) -> Option<&mut Membership> {
        self.conn_presence(conn)?.memberships.get_mut(index)
    }
}

/// One encoded batch for each shape that a receiver has.
#[derive(Default)]
struct ShapeFrames {
    mirrored: Option<Frame>,
    standard: Option<Frame>,
    flat: Option<Frame>,
}

impl ShapeFrames {
    fn of(&mut self, shape: Shape) -> &mut Option<Frame> {
        match shape {
            Shape::Mirrored => &mut self.mirrored,
            Shape::Standard => &mut self.standard,
            Shape::Flat => &mut self.flat,
        }
    }
}

/// Several text frames in a row.
fn encode(encoder: &mut FrameEncoder, channel: &str, notices: &[Notice], shape: Shape) -> Frame {
    let mut bytes = Vec::new();
    for notice in notices {
        bytes.extend_from_slice(encoder.text(|out| write_notice(out, channel, notice, shape)));
    }
    Frame::from(bytes)
}
