//! Who gets a channel's messages: subscriptions on a connection's shard, interest at the home
//! shard.
//!
//! ```text
//! first subscriber here ── Interest ──► home: adds this shard to the channel's fan-out
//!        `subscribed` ◄── InterestReady ──┘      (lanes keep order: all later messages follow)
//! last one gone ───────── InterestGone ──► home: takes it out
//! ```
//! `subscribed` is sent when the home shard delivers to this shard, so a message published after
//! it was seen is not missed.

use super::Shard;
use crate::auth::capability::Ops;
use crate::channel::local::{Found, Subscription};
use crate::channel_name;
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnId, Now, ShardId};
use crate::msg::{LocalRef, ShardMsg};
use crate::rate::table::Class;
use crate::wire::wsocket::{SubscribeFrom, write_subscribed, write_unsubscribed};

impl Shard {
    /// A client's `subscribe`: answered with `subscribed` every time (contract section 10.2).
    pub(super) fn handle_subscribe(
        &mut self,
        conn: ConnId,
        channel: &str,
        from: Option<SubscribeFrom>,
        now: Now,
    ) {
        let admitted = self.admit(conn, Class::Subscribe, channel, now);
        let done = match from {
            _ if !admitted => Err(ErrorCode::RateExceeded),
            Some(from) => self.subscribe_from(conn, channel, from, now),
            None => self.subscribe(conn, channel, now),
        };
        if let Err(code) = done {
            self.error(conn, &code.into(), Some(channel), None, now);
        }
    }

    fn subscribe(&mut self, conn: ConnId, channel: &str, now: Now) -> Result<(), ErrorCode> {
        channel_name::validate(channel, self.options.utf8_channel_names)?;
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let grant = &c.session.grant;
        if !grant.permits(channel, Ops::SUBSCRIBE) {
            return Err(ErrorCode::NotPermitted);
        }
        let app = grant.app.clone();
        let policy = self.apps.policy(grant.app_index);
        let most = policy.map_or(0, |policy| policy.channels_per_conn_max);
        if let Some(catchup) = c.session.catchup.as_ref().filter(|u| u.concerns(channel)) {
            // Otherwise answered when its replay begins: one subscription, one replay (D19).
            if catchup.is_sending(channel) {
                self.reply(conn, now, |out| write_subscribed(out, channel));
            }
            return Ok(());
        }
        let hash = self.placement.hash(&app, channel);
        let known = self
            .local
            .find(&app, channel, hash)
            .is_some_and(|slot| c.subscriptions.iter().any(|s| s.channel == slot));
        if !known && c.subscriptions.len() >= most {
            return Err(ErrorCode::ChannelLimit);
        }
        let index = grant.app_index;
        if self.local.find(&app, channel, hash).is_none() {
            self.take_channel(index, now)?;
        }
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let (slot, found) = self.local.enter(&app, channel, hash);
        if !known {
            let place = u16::try_from(c.subscriptions.len()).unwrap_or(u16::MAX);
            if let Some(subscription) = self.local.add(slot, conn.slot, place) {
                c.subscriptions.push(subscription);
                self.counters.subscriptions += 1;
                self.note_subscribers(slot);
            }
        }
        match found {
            Found::Ready => self.reply(conn, now, |out| write_subscribed(out, channel)),
            Found::Waiting => self.local.wait(slot, conn),
            Found::First(local) => {
                self.local.wait(slot, conn);
                let channel = ChannelKey {
                    app,
                    name: channel.into(),
                };
                let msg = ShardMsg::Interest {
                    channel,
                    hash,
                    local,
                };
                self.send_or_handle(self.placement.home(hash), msg, now);
            }
        }
        Ok(())
    }

    /// A client's `unsubscribe`, also from a channel it never subscribed to.
    pub(super) fn handle_unsubscribe(&mut self, conn: ConnId, channel: &str, now: Now) {
        if let Err(code) = channel_name::validate(channel, self.options.utf8_channel_names) {
            self.error(conn, &code.into(), Some(channel), None, now);
            return;
        }
        if self.cancel_replay(conn, channel, now) {
            // Its `subscribe` is still owed an answer.
            self.reply(conn, now, |out| write_subscribed(out, channel));
        }
        self.unsubscribe(conn, channel, now);
        self.stop_asking(conn, channel, now);
        self.reply(conn, now, |out| write_unsubscribed(out, channel));
    }

    /// Takes a connection out of a channel; false if it was not in it.
    pub(super) fn unsubscribe(&mut self, conn: ConnId, channel: &str, now: Now) -> bool {
        let Some(c) = self.conns.open_mut(conn) else {
            return false;
        };
        let app = c.session.grant.app.clone();
        let hash = self.placement.hash(&app, channel);
        let Some(slot) = self.local.find(&app, channel, hash) else {
            return false;
        };
        let Some(index) = c.subscriptions.iter().position(|s| s.channel == slot) else {
            return false;
        };
        if self.local.stop_waiting(slot, conn) {
            // Its `subscribe` is still owed an answer.
            self.reply(conn, now, |out| write_subscribed(out, channel));
        }
        self.take_subscription(conn, index, now);
        true
    }

    /// Takes a connection's subscription at an index out, on both sides.
    pub(super) fn take_subscription(&mut self, conn: ConnId, index: usize, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        if index >= c.subscriptions.len() {
            return;
        }
        let subscription = c.subscriptions.swap_remove(index);
        if let Some(moved) = c.subscriptions.get(index) {
            self.local
                .reindex(*moved, u16::try_from(index).unwrap_or(u16::MAX));
        }
        self.counters.subscriptions -= 1;
        self.leave(subscription, now);
    }

    /// Takes a subscription out of its channel's list and, with the last one, tells the home shard.
    pub(super) fn leave(&mut self, subscription: Subscription, now: Now) {
        if let Some(moved) = self.local.remove(subscription)
            && let Some(other) = self
                .conns
                .at_mut(moved.conn_slot)
                .and_then(|c| c.subscriptions.get_mut(usize::from(moved.index)))
        {
            other.place = moved.place;
        }
        self.note_subscribers(subscription.channel);
        self.free_channel(subscription.channel, now);
    }

    /// Frees a channel's entry if nobody is left in it, and tells the home shard.
    pub(super) fn free_channel(&mut self, slot: u32, now: Now) {
        if let Some((channel, hash, local)) = self.local.free_if_empty(slot) {
            let msg = ShardMsg::InterestGone {
                channel,
                hash,
                local,
            };
            self.send_or_handle(self.placement.home(hash), msg, now);
        }
    }

    pub(super) fn handle_interest(
        &mut self,
        from: ShardId,
        channel: &ChannelKey,
        hash: u64,
        local: LocalRef,
        now: Now,
    ) {
        let slot = self.enter_home(&channel.app, &channel.name, hash, now);
        let was = !self.home.interested(slot).is_empty();
        self.home.add_interest(slot, from, local);
        self.note_interest(slot, was, true, now);
        if self.options.clustered {
            if !self.hear(slot, from, local) {
                return;
            }
            if !was {
                self.handle_topic_ready(slot, now);
            }
        }
        if from == self.id {
            self.handle_interest_ready(local, now);
        } else {
            self.send(from, ShardMsg::InterestReady { local });
        }
    }

    pub(super) fn handle_interest_gone(
        &mut self,
        from: ShardId,
        channel: &ChannelKey,
        hash: u64,
        local: LocalRef,
        now: Now,
    ) {
        if let Some(slot) = self.home.find(&channel.app, &channel.name, hash) {
            let was = !self.home.interested(slot).is_empty();
            self.home.remove_interest(slot, from, local, now);
            self.note_interest(slot, was, false, now);
            self.let_go_later(slot, now);
        }
    }

    pub(super) fn handle_interest_ready(&mut self, local: LocalRef, now: Now) {
        let waiting = self.local.confirm(local);
        let Some(name) = self.local.resolve(local).map(|c| c.key.name.clone()) else {
            return;
        };
        for conn in waiting {
            self.reply(conn, now, |out| write_subscribed(out, &name));
        }
    }
}
