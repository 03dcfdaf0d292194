//! Rates and plans on the way of what clients do: asks the meters, and says what a refusal means (contract D11, D25).
//!
//! Scopes are asked from the narrowest to the widest, and a refusal gives back what narrower ones have spent: what was
//! refused counts nowhere.

mod http;

use std::net::IpAddr;
use std::sync::Arc;

pub use http::HttpRate;

use super::Shard;
use crate::auth::capability::Ops;
use crate::channel_name;
use crate::error::{CloseCause, ErrorCode, ProtocolError};
use crate::ids::{ConnId, Now, ShardId};
use crate::meter::{AppTerms, AppUsage, Held, LimitMsg, NO_CLIENT};
use crate::msg::ShardMsg;
use crate::quota::{OnExhausted, Totals};
use crate::rate::table::{Bucket, Class, Resolved, Scope, Setting};
use crate::rate::{RateLimit, RateWindow};
use crate::session::ConnState;

/// Connections ended per tick of an app whose messages are used up.
const ENDED_PER_TICK: usize = 4096;

/// What is about to be done, and where.
struct Place<'a> {
    /// Of the app.
    index: u32,
    class: Class,
    /// Where it counts by channel.
    channel: Option<&'a str>,
}

impl Shard {
    /// The app's place among those of this shard, with its limits in force.
    pub(super) fn app_index(&mut self, app: &str) -> u32 {
        let shards = self.placement.shards();
        let index = self.apps.enter(app, &self.options, &self.registry, shards);
        self.meet_app(index);
        index
    }

    /// Gives an app that was met just now its limits.
    pub(super) fn meet_app(&mut self, index: u32) {
        if self.meters.account(index).is_none() {
            self.set_terms(index);
        }
    }

    /// Meets the apps that have a plan: what it allows is then at hand before the first use.
    pub fn meet_planned_apps(&mut self) {
        let registry = self.registry.clone();
        for app in registry.apps().filter(|app| app.settings.plan.is_some()) {
            self.app_index(&app.id);
        }
        self.send_notes();
    }

    /// Gives all apps the limits that settings and registry say.
    pub(super) fn reset_terms(&mut self) {
        for index in 0..self.apps.len() {
            self.set_terms(index);
        }
        self.send_notes();
    }

    fn set_terms(&mut self, index: u32) {
        let (Some(name), Some(policy)) = (self.apps.name(index), self.apps.policy(index)) else {
            return;
        };
        let terms = AppTerms {
            rates: policy.rates,
            namespaces: AppTerms::namespaces_of(policy.namespaces.iter()),
            plan: policy.plan.clone(),
        };
        let name = name.clone();
        self.meters.set_terms(index, &name, terms);
    }

    /// Carries the meters' notes into the lanes.
    pub(super) fn send_notes(&mut self) {
        if self.meters.has_notes() {
            for (shard, msg) in self.meters.take_notes() {
                self.send(shard, ShardMsg::Limit(Box::new(msg)));
            }
        }
    }

    pub(super) fn handle_limit(&mut self, from: ShardId, msg: LimitMsg, now: Now) {
        let index = self.app_index(&msg.app);
        self.meters.handle(from, index, msg, now);
        self.send_notes();
    }

    /// Whether a connection may do this now; a refusal is counted, and may end it.
    pub(super) fn admit(&mut self, conn: ConnId, class: Class, channel: &str, now: Now) -> bool {
        let Some(c) = self.conns.open_mut(conn) else {
            return true;
        };
        let session = &mut c.session;
        let index = session.grant.app_index;
        let (limits, namespace) = self.meters.resolved(index, class, channel);
        let is_exempt = session.grant.credential.is_server_key();
        let now_ms = now.mono_ms();
        let of_key = (class == Class::Publish)
            .then(|| session.grant.credential.publish_rate())
            .flatten();
        let (own, own_bucket) = match of_key {
            Some(_) => (of_key, Bucket::wide(class)),
            None => (
                limits.limit(Scope::Connection).filter(|_| !is_exempt),
                limits.bucket(class, Scope::Connection, namespace),
            ),
        };
        if let Some(limit) = own {
            let window = session.window(Scope::Connection, own_bucket);
            if !window.try_acquire(now_ms, &limit) {
                let over = window.windows_over();
                self.refuse(index, class, Scope::Connection);
                self.end_abuse(conn, over, now);
                return false;
            }
        }
        let by_client = limits.limit(Scope::Client).filter(|_| !is_exempt);
        let client_bucket = limits.bucket(class, Scope::Client, namespace);
        if let Some(limit) = by_client
            && !self.spend_client(conn, client_bucket, limit, now)
        {
            if let Some(c) = self.conns.open_mut(conn) {
                let (window, limit) = match own {
                    Some(own) => (c.session.window(Scope::Connection, own_bucket), own),
                    None => (c.session.window(Scope::Client, client_bucket), limit),
                };
                if own.is_some() {
                    window.give_back(now_ms, &limit, now_ms, 1);
                }
                window.note_refused(now_ms, &limit);
                let over = window.windows_over();
                self.end_abuse(conn, over, now);
            }
            self.refuse(index, class, Scope::Client);
            return false;
        }
        let counted = self.counts_by_channel(conn, class, channel);
        let place = Place {
            index,
            class,
            channel: counted.then_some(channel),
        };
        if let Err(scope) = self.spend_shared(&place, (&limits, namespace), now) {
            self.give_back(conn, own.map(|own| (own_bucket, own)), now);
            if by_client.is_some()
                && let Some(c) = self.conns.open_mut(conn)
            {
                self.meters.unspend_client(c.session.client, client_bucket);
            }
            self.refuse(index, class, scope);
            return false;
        }
        self.send_notes();
        true
    }

    /// Whether it counts by channel here: publishes do so at its home, and of subscriptions those that will be granted, so
    /// that nobody can use up the rate of a channel that is not theirs. The others ask when the right has been seen.
    fn counts_by_channel(&mut self, conn: ConnId, class: Class, channel: &str) -> bool {
        match class {
            Class::Presence | Class::History => true,
            Class::Subscribe => {
                let is_name = channel_name::validate(channel, self.options.utf8_channel_names);
                let open = self.conns.open_mut(conn);
                is_name.is_ok()
                    && open.is_some_and(|c| c.session.grant.permits(channel, Ops::SUBSCRIBE))
            }
            Class::Publish | Class::Connect | Class::Http => false,
        }
    }

    /// Spends what is not the client's own: of the rate of the channel, and of the app.
    ///
    /// Errors: whose there was nothing left of; nothing is spent then.
    fn spend_shared(
        &mut self,
        place: &Place<'_>,
        (limits, namespace): (&Resolved, u16),
        now: Now,
    ) -> Result<(), Scope> {
        let Place { index, class, .. } = *place;
        let by_channel = place.channel.zip(limits.limit(Scope::Channel));
        let bucket = limits.bucket(class, Scope::Channel, namespace);
        if let Some((channel, limit)) = by_channel
            && !self
                .meters
                .spend_channel(index, channel, bucket, limit, now)
        {
            return Err(Scope::Channel);
        }
        let of_app = limits.bucket(class, Scope::App, namespace);
        if let Some(limit) = limits.limit(Scope::App)
            && !self.meters.spend_app(index, of_app, limit, now)
        {
            if let Some((channel, _)) = by_channel {
                self.meters.unspend_channel(index, channel, bucket);
            }
            return Err(Scope::App);
        }
        Ok(())
    }

    /// A client id that others cannot have is counted on its connection, others over all shards.
    fn spend_client(&mut self, conn: ConnId, bucket: Bucket, limit: RateLimit, now: Now) -> bool {
        let Some(c) = self.conns.open_mut(conn) else {
            return true;
        };
        let session = &mut c.session;
        if !session.grant.named {
            let window = session.window(Scope::Client, bucket);
            return window.try_acquire(now.mono_ms(), &limit);
        }
        if session.client == NO_CLIENT {
            let grant = &session.grant;
            session.client = self.meters.enter_client(grant.app_index, &grant.client_id);
        }
        let client = session.client;
        self.meters.spend_client(client, bucket, limit, now)
    }

    fn give_back(&mut self, conn: ConnId, own: Option<(Bucket, RateLimit)>, now: Now) {
        if let Some((bucket, limit)) = own
            && let Some(c) = self.conns.open_mut(conn)
        {
            let now_ms = now.mono_ms();
            let window = c.session.window(Scope::Connection, bucket);
            window.give_back(now_ms, &limit, now_ms, 1);
        }
    }

    /// Contract D25: so many windows in a row over the limit.
    fn end_abuse(&mut self, conn: ConnId, windows_over: u16, now: Now) {
        if windows_over >= self.options.limits.rate_windows_over_max {
            self.close(conn, CloseCause::RateAbuse, now);
        }
    }

    fn refuse(&mut self, index: u32, class: Class, scope: Scope) {
        self.meters.count_refused(index);
        self.counters.count_limited(class, scope);
        self.send_notes();
    }

    /// Spends one of the rate of a client id that need not have a connection.
    fn spend_client_id(
        &mut self,
        index: u32,
        client_id: &Arc<str>,
        bucket: Bucket,
        limit: RateLimit,
        now: Now,
    ) -> bool {
        let client = self.meters.enter_client(index, client_id);
        let admitted = self.meters.spend_client(client, bucket, limit, now);
        self.meters.leave_client(client, now);
        admitted
    }

    /// Counts a handshake against its address, before anything is looked at.
    pub(super) fn check_address(
        &mut self,
        address: Option<IpAddr>,
        now: Now,
    ) -> Result<(), ProtocolError> {
        let rates = self.apps.rates_of_process();
        let setting = rates.and_then(|rates| rates.of(Class::Connect, Scope::Address));
        let (Some(Setting::Limit(limit)), Some(address)) = (setting, address) else {
            return Ok(());
        };
        let exempt = &self.options.limits.address_exempt;
        if exempt.iter().any(|n| n.contains(address)) {
            return Ok(());
        }
        if self.handshakes.wait_ms(address, now.mono_ms()) > 0 {
            self.counters.count_limited(Class::Connect, Scope::Address);
            let text = "too many connections from this address";
            return Err(ProtocolError::with_text(ErrorCode::RateExceeded, text));
        }
        self.handshakes.note_failure(address, &limit, now.mono_ms());
        Ok(())
    }

    /// Whether an app may have one more connection now, by its rate, its client's rate, and its plan.
    pub(super) fn check_connect(
        &mut self,
        index: u32,
        client_id: Option<&Arc<str>>,
        is_exempt: bool,
        now: Now,
    ) -> Result<(), ProtocolError> {
        if self.is_closed_for_quota(index, now) {
            return Err(ErrorCode::QuotaExhausted.into());
        }
        let (limits, _) = self.meters.resolved(index, Class::Connect, "");
        let bucket = Bucket::wide(Class::Connect);
        let by_client = limits.limit(Scope::Client).filter(|_| !is_exempt);
        if let (Some(limit), Some(client_id)) = (by_client, client_id)
            && !self.spend_client_id(index, client_id, bucket, limit, now)
        {
            self.refuse(index, Class::Connect, Scope::Client);
            return Err(ErrorCode::RateExceeded.into());
        }
        let place = Place {
            index,
            class: Class::Connect,
            channel: None,
        };
        if let Err(scope) = self.spend_shared(&place, (&limits, Bucket::WIDE), now) {
            self.refuse(index, Class::Connect, scope);
            return Err(ErrorCode::RateExceeded.into());
        }
        let has_place = self.meters.take(index, Held::Connections, now);
        if has_place {
            // Taken when it opens, in the same turn.
            self.meters.put_back(index, Held::Connections, now);
        }
        self.send_notes();
        if has_place {
            Ok(())
        } else {
            self.meters.count_refused(index);
            let text = "the app has as many connections as its plan allows";
            Err(ProtocolError::with_text(ErrorCode::ConnectionLimit, text))
        }
    }

    /// A connection has opened: takes its place, and asks for what its client will soon spend.
    pub(super) fn note_opened(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let session = &mut c.session;
        let grant = &session.grant;
        let index = grant.app_index;
        self.meters.count_opened(index);
        if !self.meters.take(index, Held::Connections, now) {
            self.meters.owe(index, Held::Connections);
        }
        let (limits, _) = self.meters.resolved(index, Class::Publish, "");
        if let Some(limit) = limits.limit(Scope::App) {
            let bucket = Bucket::wide(Class::Publish);
            self.meters.prepare_app(index, bucket, limit, now);
        }
        if let Some(limit) = limits.limit(Scope::Client)
            && grant.named
            && !grant.credential.is_server_key()
        {
            session.client = self.meters.enter_client(index, &grant.client_id);
            let bucket = Bucket::wide(Class::Publish);
            self.meters
                .prepare_client(session.client, bucket, limit, now);
        }
        self.send_notes();
    }

    /// A connection's slot is about to be freed.
    pub(super) fn note_released(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.get(conn) else {
            return;
        };
        let (index, client) = (c.session.grant.app_index, c.session.client);
        self.meters.count_closed(index);
        self.meters.put_back(index, Held::Connections, now);
        if client != NO_CLIENT {
            self.meters.leave_client(client, now);
        }
        self.send_notes();
    }

    /// Takes one of the plan's channels for one that nobody on this shard is subscribed to.
    pub(super) fn take_channel(&mut self, index: u32, now: Now) -> Result<(), ErrorCode> {
        let taken = self.meters.take(index, Held::Channels, now);
        self.send_notes();
        if taken {
            return Ok(());
        }
        self.meters.count_refused(index);
        Err(ErrorCode::QuotaExhausted)
    }

    /// At a channel's home, whether a publish is within the channel's rate and the app's plan.
    pub(super) fn admit_at_home(&mut self, slot: u32, now: Now) -> Result<(), ErrorCode> {
        let Some(channel) = self.home.get_mut(slot) else {
            return Ok(());
        };
        let index = channel.account;
        if self.meters.limits_channels(index, Class::Publish) {
            let (limits, _) = self
                .meters
                .resolved(index, Class::Publish, &channel.key.name);
            if let Some(limit) = limits.limit(Scope::Channel) {
                let window = channel.window.get_or_insert_default();
                if !window.try_acquire(now.mono_ms(), &limit) {
                    self.refuse(index, Class::Publish, Scope::Channel);
                    return Err(ErrorCode::RateExceeded);
                }
            }
        }
        let admitted = self.meters.spend_message(index, now);
        self.send_notes();
        if admitted {
            return Ok(());
        }
        self.meters.count_refused(index);
        Err(ErrorCode::QuotaExhausted)
    }

    /// What [`Shard::admit_at_home`] let through was not accepted as a message after all.
    pub(super) fn unadmit_at_home(&mut self, slot: u32) {
        if let Some(channel) = self.home.get(slot) {
            self.meters.unspend_message(channel.account);
        }
    }

    /// An accepted message of a channel of this shard.
    pub(super) fn count_accepted(&mut self, slot: u32) {
        self.counters.published += 1;
        if let Some(channel) = self.home.get(slot) {
            self.meters.count_message(channel.account);
        }
    }

    /// A channel of this shard may have got its first subscriber, or lost its last; `was` tells before.
    pub(super) fn note_interest(&mut self, slot: u32, was: bool, has_come: bool, now: Now) {
        let is_occupied = !self.home.interested(slot).is_empty();
        if self.options.clustered && was && !is_occupied {
            self.stop_following(slot, now);
        }
        let Some(index) = self.home.get(slot).map(|c| c.account) else {
            return;
        };
        if was != is_occupied {
            self.meters.count_channel(index, is_occupied);
            self.raise_occupancy(slot, is_occupied, now);
        }
        // Who comes has taken one; a channel counts once, whatever the number of shards.
        if was && (has_come || !is_occupied) {
            self.meters.put_back(index, Held::Channels, now);
            self.send_notes();
        }
    }

    /// What apps have used here since the last call.
    pub fn take_usage(&mut self) -> Vec<AppUsage> {
        self.meters.take_usage()
    }

    /// Takes back what could not be handed on.
    pub fn keep_usage(&mut self, usage: Vec<AppUsage>) {
        self.meters.keep_usage(usage);
    }

    /// What apps have used in all, as of about a second ago.
    pub fn set_totals(&mut self, totals: &[(Arc<str>, Totals)]) {
        for (app, totals) in totals {
            self.meters.set_totals(app, *totals);
        }
    }

    fn is_closed_for_quota(&self, index: u32, now: Now) -> bool {
        let plan = self.meters.account(index).and_then(|a| a.plan());
        plan.is_some_and(|p| p.on_exhausted == OnExhausted::Close)
            && self.meters.is_exhausted(index, now)
    }

    /// Ends the connections of apps whose messages are used up and whose plan says so (4004), and forgets what is idle.
    pub(super) fn tick_limits(&mut self, now: Now) {
        self.meters.tick(now);
        let closed: Vec<u32> = (0..self.apps.len())
            .filter(|index| self.is_closed_for_quota(*index, now))
            .collect();
        if !closed.is_empty() {
            let due: Vec<ConnId> = self
                .conns
                .iter()
                .filter(|(_, c)| {
                    c.state == ConnState::Open && closed.contains(&c.session.grant.app_index)
                })
                .map(|(id, _)| id)
                .take(ENDED_PER_TICK)
                .collect();
            for conn in due {
                self.close(conn, CloseCause::Quota, now);
            }
        }
        self.send_notes();
    }

    /// Counts a message of a connection towards its app's part of the turn.
    pub(super) fn count_in_turn(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.get(conn) {
            self.meters.count_in_turn(c.session.grant.app_index);
        }
    }

    /// Whether a connection may be read in this turn, which counts; false when its app has had its part and others may be
    /// waiting: it is read on in the next.
    pub fn may_read(&mut self, conn: ConnId) -> bool {
        let app_index = self.conns.get(conn).map(|c| c.session.grant.app_index);
        app_index.is_none_or(|index| self.meters.may_read(index))
    }

    /// The driver has ended a turn.
    pub fn end_turn(&mut self) {
        self.meters.end_turn();
    }
}

/// A window of a connection that is not the usual one.
pub(crate) type OwnWindow = (Scope, Bucket, RateWindow);
