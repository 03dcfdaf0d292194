//! The publish path: a connection's shard checks, the home shard orders and fans out, every shard
//! with subscribers delivers.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use super::lookup::Deferred;
use super::{FLUSH_DUE_BYTES, FLUSH_DUE_FRAMES, Output, Shard};
use crate::auth::capability::Ops;
use crate::auth::{Caller, Credential};
use crate::channel::home::{Draft, Ordered};
use crate::channel::log::Pending;
use crate::channel_name;
use crate::error::{CloseCause, ErrorCode, ProtocolError};
use crate::ids::{ConnId, Now, RequestId, ShardId};
use crate::limits::MESSAGE_ID_BYTES_MAX;
use crate::msg::{LocalRef, Origin, OwnedPublish, Publish, Published, ShardMsg};
use crate::outbox::Frame;
use crate::push::bridge::{DATA_BYTES_MAX, Notice};
use crate::rate::table::Class;
use crate::record::Record;
use crate::wire::wsocket::{Position, write_ack, write_error, write_message};

/// A message as it is delivered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) channel: &'a str,
    pub(super) data: &'a str,
    pub(super) id: &'a str,
    pub(super) position: Position,
}

/// What goes with a frame to a shard's subscribers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) to: LocalRef,
    /// None for an ephemeral message.
    pub(super) sequence: Option<u64>,
    pub(super) exclude: Option<ConnId>,
    pub(super) accepted_us: u64,
}

/// One message to be published.
#[derive(Debug, Clone)]
pub struct PublishItem<'a> {
    pub channel: Cow<'a, str>,
    /// JSON text.
    pub data: &'a str,
    pub id: Option<Cow<'a, str>>,
    pub persist: bool,
    /// In whose name a back end publishes (contract D8); unused for a client's own publish.
    pub client_id: Option<Cow<'a, str>>,
}

impl Shard {
    /// A client's `publish`. Checks in the order of contract D15: shape (by the parser), name,
    /// right, rate, size, then dedup at the home shard.
    pub(super) fn handle_publish(&mut self, conn: ConnId, item: &PublishItem<'_>, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let grant = &c.session.grant;
        let (app, echo, ack) = (grant.app.clone(), grant.echo, grant.ack);
        let app_index = grant.app_index;
        let permitted = grant.permits(&item.channel, Ops::PUBLISH);
        let publisher = grant.client_id.clone();
        let checked = self.check_publish(permitted, item).and_then(|()| {
            if self.admit(conn, Class::Publish, &item.channel, now) {
                Ok(())
            } else {
                Err(ErrorCode::RateExceeded)
            }
        });
        let origin = Origin::Conn {
            shard: self.id,
            conn,
            echo,
            ack,
        };
        // Before it is routed: its home may be here, and answer at once. Who wants no acks is not waited for.
        if ack {
            self.expect_answer(conn);
        }
        let routed = checked
            .and_then(|()| self.check_size(app_index, item))
            .and_then(|()| self.route(&app, item, &publisher, origin, now));
        if let Err(code) = routed {
            self.counters.publishes_refused += 1;
            self.expect_no_answer(conn);
            self.error(
                conn,
                &code.into(),
                Some(&item.channel),
                item.id.as_deref(),
                now,
            );
        }
    }

    /// One item of an HTTP publish; its outcome comes as [`Output::Published`].
    pub fn publish_request(
        &mut self,
        caller: &Caller,
        request: RequestId,
        item_index: u32,
        item: &PublishItem<'_>,
        now: Now,
    ) {
        let (app_index, app) = self.enter_app(&caller.app.id);
        let origin = Origin::Request {
            shard: self.id,
            request,
            item: item_index,
        };
        let routed = self
            .check_publish(caller.permits(&item.channel, Ops::PUBLISH), item)
            .and_then(|()| {
                let admitted = self.acquire_http_rate(caller, app_index, now)
                    && self.admit_caller(caller, app_index, Class::Publish, &item.channel, now);
                admitted.then_some(()).ok_or(ErrorCode::RateExceeded)
            })
            .and_then(|()| self.check_size(app_index, item))
            .and_then(|()| {
                let publisher = publisher_of(caller, item)?;
                self.route(&app, item, publisher, origin, now)
            });
        if let Err(code) = routed {
            self.counters.publishes_refused += 1;
            self.outputs.push_back(Output::Published {
                request,
                item: item_index,
                result: Err(code),
            });
        }
    }

    fn check_publish(&self, permitted: bool, item: &PublishItem<'_>) -> Result<(), ErrorCode> {
        channel_name::validate(&item.channel, self.options.utf8_channel_names)?;
        if !permitted {
            return Err(ErrorCode::NotPermitted);
        }
        Ok(())
    }

    fn check_size(&self, app_index: u32, item: &PublishItem<'_>) -> Result<(), ErrorCode> {
        let policy = self.apps.policy(app_index);
        if item.data.len() > policy.map_or(0, |policy| policy.publish_bytes_max) {
            return Err(ErrorCode::TooLarge);
        }
        Ok(())
    }

    /// Hands a checked publish to its home shard.
    fn route(
        &mut self,
        app: &Arc<str>,
        item: &PublishItem<'_>,
        publisher: &str,
        origin: Origin,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let made;
        let mut is_made = false;
        let id = match item.id.as_deref() {
            Some(id) if is_usable_id(id) => id,
            _ => {
                made = self.make_id(now);
                is_made = true;
                &made
            }
        };
        let hash = self.placement.hash(app, &item.channel);
        let publish = Publish {
            app,
            channel: &item.channel,
            hash,
            data: item.data,
            id,
            publisher,
            persist: item.persist,
            is_made,
            origin,
        };
        let home = self.placement.home(hash);
        if home == self.id && self.goes_to_broker(&publish) {
            self.publish_to_broker(Arc::new(OwnedPublish::new(&publish)), now);
        } else if home == self.id {
            self.accept_publish(&publish, now);
        } else if self.mesh_full(home) {
            return Err(ErrorCode::Unavailable);
        } else {
            self.send(home, ShardMsg::Publish(OwnedPublish::new(&publish)));
        }
        Ok(())
    }

    /// The home shard's part: order, then deliver and answer: an ephemeral message at once, one to
    /// be stored when the store has committed it.
    pub(super) fn accept_publish(&mut self, publish: &Publish<'_>, now: Now) {
        let slot = self.enter_home(publish.app, publish.channel, publish.hash, now);
        let persist = self
            .home
            .get(slot)
            .is_some_and(|c| publish.persist && c.settings.persist);
        let refused = if persist && self.home.log(slot).is_none() {
            let work = Deferred::Publish(OwnedPublish::new(publish));
            match self.defer(slot, work, now) {
                Ok(()) => return,
                Err(_) => Some(ErrorCode::Unavailable),
            }
        } else {
            self.check_room(slot, persist)
                .and_then(|()| self.check_hooks(publish))
                .and_then(|()| self.admit_at_home(slot, now))
                .err()
        };
        if let Some(code) = refused {
            self.counters.publishes_refused += 1;
            self.answer_publisher(publish.origin, publish.channel, publish.id, Err(code), now);
            return;
        }
        let draft = Draft {
            id: publish.id,
            publisher: publish.publisher,
            data: publish.data,
            origin: publish.origin,
        };
        let generation = self.store_generation();
        match self.home.order(slot, draft, persist, generation, now) {
            Some(Ordered::Ephemeral(position)) => {
                self.count_accepted(slot);
                self.confirm(
                    publish.origin,
                    publish.channel,
                    publish.id,
                    position,
                    false,
                    now,
                );
                let said = (publish.id, publish.publisher, publish.data);
                self.raise_ephemeral(slot, said, now);
                let message = Message {
                    channel: publish.channel,
                    data: publish.data,
                    id: publish.id,
                    position,
                };
                self.note_for_absent(slot, &message);
                self.fan_out(slot, &message, Some(publish.origin), now.mono_us, now);
            }
            Some(Ordered::Stored(record)) => self.store_append(slot, record),
            Some(Ordered::Duplicate(position)) => {
                self.counters.duplicates += 1;
                self.unadmit_at_home(slot);
                self.confirm(
                    publish.origin,
                    publish.channel,
                    publish.id,
                    position,
                    true,
                    now,
                );
            }
            Some(Ordered::Joined) => {
                self.counters.duplicates += 1;
                self.unadmit_at_home(slot);
            }
            None => debug_assert!(false, "the log is known: it was looked at above"),
        }
    }

    /// Whether everybody who has to take part in a publish has room for it.
    pub(super) fn check_room(&self, slot: u32, persist: bool) -> Result<(), ErrorCode> {
        let mesh_full = self
            .home
            .interested(slot)
            .iter()
            .any(|(shard, _)| self.mesh_full(*shard));
        if mesh_full || (persist && self.store_full()) {
            return Err(ErrorCode::Unavailable);
        }
        Ok(())
    }

    /// Events of messages wait for nobody: a publish is refused while too many of them do.
    fn check_hooks(&self, publish: &Publish<'_>) -> Result<(), ErrorCode> {
        if self.hooks_full(publish.app, publish.channel) {
            return Err(ErrorCode::Unavailable);
        }
        Ok(())
    }

    /// The store has committed a message: everybody learns of it.
    ///
    /// The answer goes first: it then leads its connection's flush, and the publisher writes its
    /// next message while this one is still being sent to the others.
    pub(super) fn deliver_committed(&mut self, slot: u32, pending: Pending, now: Now) {
        let Some(channel) = self.home.get(slot).map(|c| c.key.name.clone()) else {
            return;
        };
        let record = &pending.record;
        let position = Position {
            timestamp: record.timestamp,
            sequence: Some(record.sequence),
        };
        self.count_accepted(slot);
        for (index, origin) in pending.origins.iter().enumerate() {
            self.confirm(*origin, &channel, &record.id, position, index > 0, now);
        }
        let publisher = pending.origins.first().copied();
        self.deliver_record(slot, record, publisher, pending.accepted_us, now);
    }

    /// Fans a stored message out, or an ephemeral one of another node, whose sequence is 0.
    pub(super) fn deliver_record(
        &mut self,
        slot: u32,
        record: &Arc<Record>,
        publisher: Option<Origin>,
        accepted_us: u64,
        now: Now,
    ) {
        let Some(channel) = self.home.get(slot).map(|c| c.key.name.clone()) else {
            return;
        };
        // In a cluster the node that has accepted it tells, whether or not it follows the channel.
        if !self.options.clustered {
            self.raise_message(slot, record, now);
        }
        let message = Message {
            channel: &channel,
            data: &record.data,
            id: &record.id,
            position: Position {
                timestamp: record.timestamp,
                sequence: (record.sequence > 0).then_some(record.sequence),
            },
        };
        // Whoever has accepted it tells, and nobody else.
        if publisher.is_some() && !self.options.clustered {
            self.note_for_absent(slot, &message);
        }
        self.fan_out(slot, &message, publisher, accepted_us, now);
    }

    pub(super) fn confirm(
        &mut self,
        origin: Origin,
        channel: &str,
        id: &str,
        position: Position,
        duplicate: bool,
        now: Now,
    ) {
        let published = Published {
            id: match origin {
                // Only an HTTP answer carries it; a frame is encoded right away.
                Origin::Conn { .. } => "".into(),
                Origin::Request { .. } => id.into(),
            },
            position,
            duplicate,
        };
        self.answer_publisher(origin, channel, id, Ok(published), now);
    }

    /// Tells a publisher what became of its message.
    pub(super) fn answer_publisher(
        &mut self,
        origin: Origin,
        channel: &str,
        id: &str,
        result: Result<Published, ErrorCode>,
        now: Now,
    ) {
        match origin {
            Origin::Conn { ack: false, .. } if result.is_ok() => {}
            Origin::Conn { shard, conn, .. } => {
                let frame = self.encoder.text(|out| match &result {
                    Ok(published) => write_ack(out, id, channel, published.position),
                    Err(code) => {
                        write_error(out, &ProtocolError::from(*code), Some(channel), Some(id))
                    }
                });
                if shard == self.id {
                    let frame = Rc::from(frame);
                    self.answer_conn(conn, frame, now);
                } else {
                    let frame = Arc::from(frame);
                    self.send(shard, ShardMsg::Unicast { conn, frame });
                }
            }
            Origin::Request {
                shard,
                request,
                item,
            } if shard == self.id => self.outputs.push_back(Output::Published {
                request,
                item,
                result,
            }),
            Origin::Request {
                shard,
                request,
                item,
            } => {
                let msg = ShardMsg::PublishDone {
                    request,
                    item,
                    result,
                };
                self.send(shard, msg);
            }
        }
    }

    pub(super) fn note_for_absent(&mut self, slot: u32, message: &Message<'_>) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        let Some(debounce_ms) = channel.settings.push_offline else {
            return;
        };
        let data = message.data.len() <= DATA_BYTES_MAX;
        self.outputs.push_back(Output::Notice(Box::new(Notice {
            app: channel.key.app.clone(),
            channel: channel.key.name.clone(),
            id: message.id.into(),
            data: if data {
                message.data.into()
            } else {
                Box::default()
            },
            debounce_ms,
        })));
    }

    /// Encodes the delivery once and hands it to every shard with subscribers.
    fn fan_out(
        &mut self,
        slot: u32,
        message: &Message<'_>,
        publisher: Option<Origin>,
        accepted_us: u64,
        now: Now,
    ) {
        let sequence = message.position.sequence;
        self.fan_out_text(slot, sequence, publisher, accepted_us, now, |out| {
            write_message(
                out,
                message.channel,
                message.data,
                message.id,
                message.position,
            );
        });
    }

    /// Encodes what every subscriber is sent, once, and hands it to every shard with any.
    pub(super) fn fan_out_text(
        &mut self,
        slot: u32,
        sequence: Option<u64>,
        publisher: Option<Origin>,
        accepted_us: u64,
        now: Now,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let excluded_on = |shard| publisher.and_then(|p| p.excluded_on(shard));
        let interested = self.home.interested(slot);
        if interested.is_empty() {
            return;
        }
        let here = interested
            .iter()
            .find(|(shard, _)| *shard == self.id)
            .map(|(_, local)| *local);
        let others = interested.len() - usize::from(here.is_some());
        let frame = self.encoder.text(write);
        let local_frame = here.map(|local| (local, Frame::from(frame)));
        if others > 0 {
            let frame: Arc<[u8]> = frame.into();
            let peers: Vec<(ShardId, LocalRef)> = interested
                .iter()
                .filter(|(shard, _)| *shard != self.id)
                .copied()
                .collect();
            for (shard, to) in peers {
                let msg = ShardMsg::Deliver {
                    to,
                    frame: frame.clone(),
                    sequence,
                    exclude: excluded_on(shard),
                    accepted_us,
                };
                self.send(shard, msg);
            }
        }
        if let Some((to, frame)) = local_frame {
            let delivery = Delivery {
                to,
                sequence,
                exclude: excluded_on(self.id),
                accepted_us,
            };
            self.deliver(&delivery, &frame, now);
        }
    }

    /// Puts one message into the outbox of every local subscriber.
    pub(super) fn deliver(&mut self, delivery: &Delivery, frame: &Frame, now: Now) {
        let Delivery {
            to,
            sequence,
            exclude,
            accepted_us,
        } = *delivery;
        let Some(channel) = self.local.resolve(to) else {
            return;
        };
        let is_holding = channel.is_holding();
        let limits = &self.options.limits;
        let now_s = now.mono_s();
        let mut delivered = 0u64;
        let mut account = None;
        let mut too_slow = Vec::new();
        for &slot in channel.subscribers() {
            let Some(conn) = self.conns.at_mut(slot) else {
                continue;
            };
            if exclude.is_some_and(|e| e == conn.id(slot)) {
                continue;
            }
            conn.outbox.push(frame.clone());
            conn.last_out_s = now_s;
            delivered += 1;
            if account.is_none() {
                account = Some(conn.session.grant.app_index);
            }
            if !conn.dirty {
                conn.dirty = true;
                self.dirty.push(slot);
            }
            let (frames, bytes) = (conn.outbox.frames(), conn.outbox.bytes());
            if frames >= FLUSH_DUE_FRAMES || bytes >= FLUSH_DUE_BYTES {
                self.flush_due = true;
                if frames > limits.outbox_frames_max || bytes > limits.outbox_bytes_max {
                    too_slow.push(conn.id(slot));
                }
            }
        }
        self.counters.deliveries += delivered;
        if let Some(account) = account {
            self.meters.count_deliveries(account, delivered);
        }
        self.counters.bytes_queued += delivered * frame.len() as u64;
        if delivered > 0 {
            self.delivered_us.push(accepted_us);
        }
        if is_holding {
            // Half of an outbox, so that all of it fits behind a replay.
            let most = (limits.outbox_frames_max / 2, limits.outbox_bytes_max / 2);
            let held = self.local.hold_frame(to, frame, sequence, exclude, most);
            too_slow.extend(held);
        }
        for conn in too_slow {
            self.close(conn, CloseCause::SlowConsumer, now);
        }
    }

    /// A message id for a publish that has none of its own: a ULID.
    fn make_id(&mut self, now: Now) -> String {
        let random = (u128::from(self.next_random()) << 64) | u128::from(self.next_random());
        crate::ulid::encode(now.unix_ms, random)
    }
}

/// Whether a client's message id is used as it is (contract D15).
fn is_usable_id(id: &str) -> bool {
    (1..=MESSAGE_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

/// In whose name a request publishes: a back end in that of anybody, who comes with a token in its own (contract D8).
fn publisher_of<'a>(caller: &'a Caller, item: &'a PublishItem<'_>) -> Result<&'a str, ErrorCode> {
    let wanted = item.client_id.as_deref();
    match &caller.credential {
        Credential::Key(_) => Ok(wanted.unwrap_or("server")),
        Credential::Token { claims, .. } => {
            let own = claims.client_id.as_deref();
            if wanted.is_some() && wanted != own {
                return Err(ErrorCode::NotPermitted);
            }
            Ok(own.unwrap_or("anonymous"))
        }
    }
}
