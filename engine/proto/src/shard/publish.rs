//! The publish path: a connection's shard checks, the home shard orders and fans out, every shard
//! with subscribers delivers.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use super::{FLUSH_DUE_BYTES, FLUSH_DUE_FRAMES, Output, Shard};
use crate::auth::capability::Ops;
use crate::auth::key::{KeyKind, KeyRecord};
use crate::channel::home::Ordered;
use crate::channel_name;
use crate::error::{CloseCause, ErrorCode, ProtocolError};
use crate::ids::{ConnId, Now, RequestId, ShardId};
use crate::limits::MESSAGE_ID_BYTES_MAX;
use crate::msg::{LocalRef, Origin, OwnedPublish, Publish, Published, ShardMsg};
use crate::outbox::Frame;
use crate::wire::wsocket::{Position, write_ack, write_error, write_message};

/// One message of an HTTP publish.
#[derive(Debug, Clone)]
pub struct PublishItem<'a> {
    pub channel: Cow<'a, str>,
    /// JSON text.
    pub data: &'a str,
    pub id: Option<Cow<'a, str>>,
    pub persist: bool,
}

impl Shard {
    /// A client's `publish`. Checks in the order of contract D15: shape (by the parser), name,
    /// right, rate, size, then dedup at the home shard.
    pub(super) fn handle_publish(&mut self, conn: ConnId, item: &PublishItem<'_>, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let grant = &c.session.grant;
        let (app, key, echo) = (grant.app.clone(), grant.key.clone(), grant.echo);
        let checked = self.check_publish(&key, item).and_then(|()| {
            if self.acquire_rate(conn, &key, now) {
                Ok(())
            } else {
                Err(ErrorCode::RateExceeded)
            }
        });
        let origin = Origin::Conn {
            shard: self.id,
            conn,
            echo,
        };
        let routed = checked
            .and_then(|()| self.check_size(item))
            .and_then(|()| self.route(&app, item, origin, now));
        if let Err(code) = routed {
            self.counters.publishes_refused += 1;
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
        key: &KeyRecord,
        request: RequestId,
        item_index: u32,
        item: &PublishItem<'_>,
        now: Now,
    ) {
        let app = self.intern(&key.app);
        let origin = Origin::Request {
            shard: self.id,
            request,
            item: item_index,
        };
        let routed = self
            .check_publish(key, item)
            .and_then(|()| self.check_size(item))
            .and_then(|()| self.route(&app, item, origin, now));
        if let Err(code) = routed {
            self.counters.publishes_refused += 1;
            self.outputs.push_back(Output::Published {
                request,
                item: item_index,
                result: Err(code),
            });
        }
    }

    fn check_publish(&self, key: &KeyRecord, item: &PublishItem<'_>) -> Result<(), ErrorCode> {
        channel_name::validate(&item.channel, self.options.utf8_channel_names)?;
        if !key.capabilities.permits(&item.channel, Ops::PUBLISH) {
            return Err(ErrorCode::NotPermitted);
        }
        Ok(())
    }

    fn check_size(&self, item: &PublishItem<'_>) -> Result<(), ErrorCode> {
        if item.data.len() > self.options.limits.publish_bytes_max {
            return Err(ErrorCode::TooLarge);
        }
        Ok(())
    }

    /// Connections made with a server key have no limit of their own (contract D25).
    fn acquire_rate(&mut self, conn: ConnId, key: &KeyRecord, now: Now) -> bool {
        if key.kind == KeyKind::Server {
            return true;
        }
        let limit = self.options.limits.publish_rate;
        let Some(c) = self.conns.open_mut(conn) else {
            return true;
        };
        if c.session.rate.try_acquire(now.mono_ms(), &limit) {
            return true;
        }
        if c.session.rate.windows_over() >= self.options.limits.rate_windows_over_max {
            self.close(conn, CloseCause::RateAbuse, now);
        }
        false
    }

    /// Hands a checked publish to its home shard.
    fn route(
        &mut self,
        app: &Arc<str>,
        item: &PublishItem<'_>,
        origin: Origin,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let made;
        let id = match item.id.as_deref() {
            Some(id) if is_usable_id(id) => id,
            _ => {
                made = self.make_id(now);
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
            persist: item.persist,
            origin,
        };
        let home = self.placement.home(hash);
        if home == self.id {
            self.accept_publish(&publish, now);
        } else if self.mesh_full(home) {
            return Err(ErrorCode::Unavailable);
        } else {
            self.send(home, ShardMsg::Publish(OwnedPublish::new(&publish)));
        }
        Ok(())
    }

    /// The home shard's part: order, answer the publisher, fan out.
    ///
    /// The answer goes first: it then leads its connection's flush, and the publisher writes its
    /// next message while this one is still being sent to the others.
    pub(super) fn accept_publish(&mut self, publish: &Publish<'_>, now: Now) {
        let slot = self
            .home
            .enter(publish.app, publish.channel, publish.hash, now.mono_ms());
        let full = self
            .home
            .interested(slot)
            .iter()
            .any(|(shard, _)| self.mesh_full(*shard));
        let ordered = if full {
            Err(ErrorCode::Unavailable)
        } else {
            self.home
                .order(
                    slot,
                    publish.id,
                    publish.persist,
                    now.mono_ms(),
                    now.unix_ms,
                )
                .ok_or(ErrorCode::Internal)
        };
        self.answer_publisher(publish, ordered, now);
        match ordered {
            Ok(Ordered {
                position,
                duplicate: false,
            }) => {
                self.counters.published += 1;
                self.fan_out(slot, publish, position, now);
            }
            Ok(_) => self.counters.duplicates += 1,
            Err(_) => self.counters.publishes_refused += 1,
        }
    }

    fn answer_publisher(
        &mut self,
        publish: &Publish<'_>,
        ordered: Result<Ordered, ErrorCode>,
        now: Now,
    ) {
        match publish.origin {
            Origin::Conn { shard, conn, .. } => {
                let frame = self.encoder.text(|out| match &ordered {
                    Ok(o) => write_ack(out, publish.id, publish.channel, o.position),
                    Err(code) => write_error(
                        out,
                        &ProtocolError::from(*code),
                        Some(publish.channel),
                        Some(publish.id),
                    ),
                });
                if shard == self.id {
                    let frame = Rc::from(frame);
                    self.queue(conn, frame, now);
                } else {
                    let frame = Arc::from(frame);
                    self.send(shard, ShardMsg::Unicast { conn, frame });
                }
            }
            Origin::Request {
                shard,
                request,
                item,
            } => {
                let result = ordered.map(|o| Published {
                    id: publish.id.into(),
                    position: o.position,
                    duplicate: o.duplicate,
                });
                if shard == self.id {
                    self.outputs.push_back(Output::Published {
                        request,
                        item,
                        result,
                    });
                } else {
                    self.send(
                        shard,
                        ShardMsg::PublishDone {
                            request,
                            item,
                            result,
                        },
                    );
                }
            }
        }
    }

    /// Encodes the delivery once and hands it to every shard with subscribers.
    fn fan_out(&mut self, slot: u32, publish: &Publish<'_>, position: Position, now: Now) {
        let interested = self.home.interested(slot);
        if interested.is_empty() {
            return;
        }
        let here = interested
            .iter()
            .find(|(shard, _)| *shard == self.id)
            .map(|(_, local)| *local);
        let peers: Vec<(ShardId, LocalRef)> = if here.is_some() && interested.len() == 1 {
            Vec::new()
        } else {
            interested
                .iter()
                .filter(|(shard, _)| *shard != self.id)
                .copied()
                .collect()
        };
        let frame = self.encoder.text(|out| {
            write_message(out, publish.channel, publish.data, publish.id, position);
        });
        let excluded_on = |shard: ShardId| match publish.origin {
            Origin::Conn {
                shard: from,
                conn,
                echo: false,
            } if from == shard => Some(conn),
            Origin::Conn { .. } | Origin::Request { .. } => None,
        };
        let local_frame = here.map(|local| (local, Frame::from(frame)));
        if !peers.is_empty() {
            let frame: Arc<[u8]> = frame.into();
            for (shard, to) in peers {
                self.send(
                    shard,
                    ShardMsg::Deliver {
                        to,
                        frame: frame.clone(),
                        exclude: excluded_on(shard),
                        accepted_us: now.mono_us,
                    },
                );
            }
        }
        if let Some((local, frame)) = local_frame {
            self.deliver(local, &frame, excluded_on(self.id), now.mono_us, now);
        }
    }

    /// Puts one message into the outbox of every local subscriber.
    pub(super) fn deliver(
        &mut self,
        to: LocalRef,
        frame: &Frame,
        exclude: Option<ConnId>,
        accepted_us: u64,
        now: Now,
    ) {
        let Some(channel) = self.local.resolve(to) else {
            return;
        };
        let limits = &self.options.limits;
        let now_s = now.mono_s();
        let mut delivered = 0u64;
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
        self.counters.bytes_queued += delivered * frame.len() as u64;
        if delivered > 0 {
            self.delivered_us.push(accepted_us);
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
