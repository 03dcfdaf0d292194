//! One shard's part in everything that is counted by app or client id: rates, plans, usage, and whose turn it is.
//!
//! Holds an [`Account`] per app (by the shard's index of apps), the leases of client ids and channels, and the homes of
//! the limits that fall to this shard. Decides and counts; telling clients, and carrying notes between shards, is the shard's work.
//!
//! **After every call that may spend or give back, [`Meters::take_notes`] is emptied into the lanes.** Notes between a
//! limit's home and a lease on the same shard do not leave here.
//!
//! Invariants: nothing is spent that a lease did not grant, but for its debt (see [`crate::rate::lease`]); what comes
//! back is put back once; of an app without limits nothing is asked.

mod account;
mod homes;
mod named;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hashbrown::HashMap;

use account::Slot;
pub use account::{Account, AppTerms, AppUsage};
use homes::Homes;
pub use named::NO_CLIENT;
use named::Named;

use crate::ids::{Now, Placement, ShardId};
use crate::quota::{Elsewhere, Totals, day_of};
use crate::rate::RateLimit;
use crate::rate::lease::{Note, Report, Terms};
use crate::rate::table::{Bucket, Class, Resolved, Scope};

/// Work that is done for one app per turn while other apps have connections on the shard, in messages: about a tenth of a
/// millisecond, so that a message of another app waits no longer for it.
pub const TURN_WORK_MAX: u32 = 128;

/// What a read of a socket costs, in messages. A connection is read twice, the second time in vain, and what it is
/// answered takes a send: many connections with a message each are a multiple of the work of one with many.
pub const READ_WORK: u32 = 3;

/// What is shared between shards.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    /// An app's rate.
    App(Bucket),
    /// A client id's rate.
    Client(Bucket, Arc<str>),
    /// A channel's rate of anything but publishes, which its home counts by itself.
    Channel(Bucket, Arc<str>),
    /// A plan's messages of a day and month.
    Messages,
    /// A plan's connections.
    Connections,
    /// A plan's channels with subscribers.
    Channels,
}

/// A note about one app's part of something.
#[derive(Debug, Clone)]
pub struct LimitMsg {
    pub app: Arc<str>,
    pub resource: Resource,
    /// Of [`Resource::Messages`], the day that it is about; otherwise 0.
    pub day: u32,
    pub note: Note,
}

/// What there is of a thing at a time, and counted against a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Connections,
    Channels,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Meters {
    shard: ShardId,
    placement: Placement,
    accounts: Vec<Account>,
    by_app: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
    clients: Named,
    channels: Named,
    homes: Homes,
    notes: Vec<(ShardId, LimitMsg)>,
    /// Counts turns; see [`Meters::end_turn`].
    turn: u32,
    /// Apps with connections here.
    busy_apps: u32,
    /// The time as of the last tick.
    seen: Now,
    /// What apps have used in all, as last told.
    totals: HashMap<Arc<str>, Totals, foldhash::fast::FixedState>,
    /// What they use on other nodes.
    elsewhere: HashMap<Arc<str>, Elsewhere, foldhash::fast::FixedState>,
}

impl Meters {
    /// Without any app. `seed` is for hash tables whose keys clients choose.
    #[must_use]
    pub fn new(shard: ShardId, placement: Placement, seed: u64, now: Now) -> Self {
        Self {
            shard,
            placement,
            accounts: Vec::new(),
            by_app: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
            clients: Named::new(seed),
            channels: Named::new(seed),
            homes: Homes::new(seed),
            notes: Vec::new(),
            turn: 1,
            busy_apps: 0,
            seen: now,
            totals: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
            elsewhere: HashMap::with_hasher(foldhash::fast::FixedState::with_seed(seed)),
        }
    }

    /// Gives an app its limits, or others. Indices begin at 0 and leave no hole.
    pub fn set_terms(&mut self, index: u32, app: &Arc<str>, terms: AppTerms) {
        let now = self.seen;
        let at = index as usize;
        if at == self.accounts.len() {
            let totals = self.totals.get(app).copied().unwrap_or_default();
            let mut account = Account::new(app.clone(), totals);
            account.elsewhere = self.elsewhere.get(app).copied().unwrap_or_default();
            self.accounts.push(account);
            self.by_app.insert(app.clone(), index);
        }
        let home = self.home_of(app, "");
        let shards = self.placement.shards();
        let here = self.shard;
        if let Some(account) = self.accounts.get_mut(at) {
            account.set_terms(terms, home, here, shards, day_of(now.unix_ms));
            self.clients.hold_for(account.span_ms(Scope::Client));
            self.channels.hold_for(account.span_ms(Scope::Channel));
        }
        // What a plan allows is at hand before the first use.
        for resource in [
            Resource::Messages,
            Resource::Connections,
            Resource::Channels,
        ] {
            if self.slot_mut(index, &resource).is_some() {
                self.ask_for(index, &resource, now);
            } else {
                self.homes.forget(app, resource);
            }
        }
    }

    /// An app's account.
    #[must_use]
    pub fn account(&self, index: u32) -> Option<&Account> {
        self.accounts.get(index as usize)
    }

    /// The limits of a class, and the index of the channel's namespace where that has limits of its own.
    #[must_use]
    pub fn resolved(&self, index: u32, class: Class, channel: &str) -> (Resolved, u16) {
        self.account(index)
            .map_or((Resolved::default(), Bucket::WIDE), |account| {
                account.resolved(class, channel)
            })
    }

    /// Spends one of an app's rate; whether there was one.
    pub fn spend_app(&mut self, index: u32, bucket: Bucket, limit: RateLimit, now: Now) -> bool {
        let (shards, here) = (self.placement.shards(), self.shard);
        let Some(account) = self.accounts.get_mut(index as usize) else {
            return true;
        };
        let slot = account.rate_slot(bucket, limit, here, shards);
        if let Some(spent) = slot.spend_at_hand(now) {
            return spent;
        }
        self.spend_and_ask(index, &Resource::App(bucket), now)
    }

    /// Takes back what [`Meters::spend_app`] has spent.
    pub fn unspend_app(&mut self, index: u32, bucket: Bucket) {
        let slot = self.accounts.get_mut(index as usize);
        if let Some(slot) = slot.and_then(|a| a.known_rate_slot(bucket)) {
            slot.lease.unspend();
        }
    }

    /// Finds or makes the leases of a client id that may be on several connections. Each call takes part in their life
    /// until [`Meters::leave_client`].
    pub fn enter_client(&mut self, index: u32, client_id: &Arc<str>) -> u32 {
        self.clients.enter(index, client_id.clone())
    }

    /// One connection less of a client id.
    pub fn leave_client(&mut self, client: u32, now: Now) {
        self.clients.leave(client, now.mono_ms());
    }

    /// Spends one of a client id's rate; whether there was one.
    pub fn spend_client(
        &mut self,
        client: u32,
        bucket: Bucket,
        limit: RateLimit,
        now: Now,
    ) -> bool {
        let (shards, here) = (self.placement.shards(), self.shard);
        let Some((index, id)) = self.clients.name(client) else {
            return true;
        };
        let home = match self.account(index) {
            Some(account) => self.home_of(&account.app, &id),
            None => return true,
        };
        let Some(slot) = self.clients.slot(client, bucket, limit, home, here, shards) else {
            return true;
        };
        if let Some(spent) = slot.spend_at_hand(now) {
            return spent;
        }
        self.spend_and_ask(index, &Resource::Client(bucket, id), now)
    }

    /// Takes back what [`Meters::spend_client`] has spent.
    pub fn unspend_client(&mut self, client: u32, bucket: Bucket) {
        if let Some(slot) = self.clients.known_slot(client, bucket) {
            slot.lease.unspend();
        }
    }

    /// Takes back what was spent of a client id that may have no connection here.
    pub fn unspend_client_id(&mut self, index: u32, client_id: &str, bucket: Bucket) {
        if let Some(slot) = self.clients.find_slot(index, client_id, bucket) {
            slot.lease.unspend();
        }
    }

    /// Spends one of the rate that a channel has on all shards; whether there was one.
    pub fn spend_channel(
        &mut self,
        index: u32,
        channel: &str,
        bucket: Bucket,
        limit: RateLimit,
        now: Now,
    ) -> bool {
        let Some(account) = self.account(index) else {
            return true;
        };
        let home = self.home_of(&account.app, channel);
        let (shards, here) = (self.placement.shards(), self.shard);
        let at = self.channels.enter(index, channel);
        let slot = self.channels.slot(at, bucket, limit, home, here, shards);
        let at_hand = slot.and_then(|slot| {
            // Nobody has asked beforehand: while another shard holds what there is, the home owes as others do, so that
            // little use is not refused.
            slot.terms = Terms::of_window(&limit, shards);
            slot.spend_at_hand(now)
        });
        let spent = at_hand.unwrap_or_else(|| {
            let resource = Resource::Channel(bucket, channel.into());
            self.spend_and_ask(index, &resource, now)
        });
        self.channels.leave(at, now.mono_ms());
        spent
    }

    /// Takes back what [`Meters::spend_channel`] has spent.
    pub fn unspend_channel(&mut self, index: u32, channel: &str, bucket: Bucket) {
        if let Some(slot) = self.channels.find_slot(index, channel, bucket) {
            slot.lease.unspend();
        }
    }

    /// Asks for an app's allowance before it is needed.
    pub fn prepare_app(&mut self, index: u32, bucket: Bucket, limit: RateLimit, now: Now) {
        let (shards, here) = (self.placement.shards(), self.shard);
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.rate_slot(bucket, limit, here, shards);
            self.ask_for(index, &Resource::App(bucket), now);
        }
    }

    /// Asks for a client id's allowance before it is needed.
    pub fn prepare_client(&mut self, client: u32, bucket: Bucket, limit: RateLimit, now: Now) {
        let (shards, here) = (self.placement.shards(), self.shard);
        let Some((index, id)) = self.clients.name(client) else {
            return;
        };
        let Some(app) = self.account(index).map(|a| a.app.clone()) else {
            return;
        };
        let home = self.home_of(&app, &id);
        self.clients.slot(client, bucket, limit, home, here, shards);
        self.ask_for(index, &Resource::Client(bucket, id), now);
    }

    /// Milliseconds after which an app's rate is worth another try.
    #[must_use]
    pub fn retry_after_ms(&self, index: u32, bucket: Bucket, now: Now) -> u64 {
        let slot = self.account(index).and_then(|a| a.find_rate_slot(bucket));
        slot.map_or(0, |slot| slot.lease.retry_after_ms(now.mono_ms()))
    }

    /// What is at hand of an app's rate on this shard.
    #[must_use]
    pub fn left_of_app(&self, index: u32, bucket: Bucket, now: Now) -> u32 {
        let slot = self.account(index).and_then(|a| a.find_rate_slot(bucket));
        slot.map_or(0, |slot| slot.lease.left(now.mono_ms()))
    }

    /// Spends one message of an app's plan; false: used up.
    pub fn spend_message(&mut self, index: u32, now: Now) -> bool {
        let Some(account) = self.accounts.get_mut(index as usize) else {
            return true;
        };
        let day = day_of(now.unix_ms);
        let Some(slot) = &mut account.messages else {
            return true;
        };
        if slot.day != day {
            self.begin_day(index, day, now);
            return self.spend_message(index, now);
        }
        if let Some(spent) = slot.spend_at_hand(now) {
            return spent;
        }
        self.spend_and_ask(index, &Resource::Messages, now)
    }

    /// Takes back what [`Meters::spend_message`] has spent on what was not accepted after all.
    pub fn unspend_message(&mut self, index: u32) {
        let slot = self.accounts.get_mut(index as usize);
        if let Some(slot) = slot.and_then(|a| a.messages.as_mut()) {
            slot.lease.unspend();
        }
    }

    /// Counts an accepted message.
    pub fn count_message(&mut self, index: u32) {
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.usage.messages += 1;
        }
    }

    /// Counts messages put into subscribers' outboxes.
    pub fn count_deliveries(&mut self, index: u32, count: u64) {
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.usage.deliveries += count;
        }
    }

    /// Counts something refused for a limit.
    pub fn count_refused(&mut self, index: u32) {
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.usage.refused += 1;
        }
    }

    /// Takes one of a plan's connections or channels; whether there was one.
    pub fn take(&mut self, index: u32, held: Held, now: Now) -> bool {
        let Some(account) = self.accounts.get_mut(index as usize) else {
            return true;
        };
        let Some(slot) = account.held_mut(held) else {
            return true;
        };
        match slot.spend_at_hand(now) {
            Some(spent) => spent,
            None => self.spend_and_ask(index, &held.resource(), now),
        }
    }

    /// Takes note of one that is in use although there was none.
    pub fn owe(&mut self, index: u32, held: Held) {
        let slot = self.accounts.get_mut(index as usize);
        if let Some(slot) = slot.and_then(|a| a.held_mut(held)) {
            slot.lease.owe(1);
        }
    }

    /// Whether channels of an app may have a limit of their own.
    #[must_use]
    pub fn limits_channels(&self, index: u32, class: Class) -> bool {
        self.account(index)
            .is_some_and(|account| account.limits_channels(class))
    }

    /// Gives one back.
    pub fn put_back(&mut self, index: u32, held: Held, now: Now) {
        let slot = self.accounts.get_mut(index as usize);
        if let Some(slot) = slot.and_then(|a| a.held_mut(held)) {
            slot.lease.put_back();
            self.ask_for(index, &held.resource(), now);
        }
    }

    /// A connection of an app has opened, whether or not that was counted by a plan.
    pub fn count_opened(&mut self, index: u32) {
        if let Some(account) = self.accounts.get_mut(index as usize) {
            self.busy_apps += u32::from(account.connections == 0);
            account.connections += 1;
        }
    }

    /// A connection of an app has ended.
    pub fn count_closed(&mut self, index: u32) {
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.connections = account.connections.saturating_sub(1);
            self.busy_apps -= u32::from(account.connections == 0).min(self.busy_apps);
        }
    }

    /// A channel that is at home here has its first subscriber, or lost its last one.
    pub fn count_channel(&mut self, index: u32, is_occupied: bool) {
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.channels = if is_occupied {
                account.channels + 1
            } else {
                account.channels.saturating_sub(1)
            };
        }
    }

    /// What apps have used since the last call, for those where anything has changed.
    pub fn take_usage(&mut self) -> Vec<AppUsage> {
        self.accounts
            .iter_mut()
            .filter_map(Account::take_usage)
            .collect()
    }

    /// Takes back what could not be handed on, to be handed on with the next.
    pub fn keep_usage(&mut self, usage: Vec<AppUsage>) {
        for part in usage {
            let index = self.by_app.get(&part.app).copied();
            if let Some(account) = index.and_then(|i| self.accounts.get_mut(i as usize)) {
                account.keep_usage(&part);
            }
        }
    }

    /// What an app has used on all shards.
    pub fn set_totals(&mut self, app: &Arc<str>, totals: Totals) {
        self.totals.insert(app.clone(), totals);
        let index = self.by_app.get(app).copied();
        if let Some(account) = index.and_then(|i| self.accounts.get_mut(i as usize)) {
            account.totals = totals;
        }
    }

    /// Takes note of what an app uses on other nodes. What is on lease here and not used is asked for, so that it is given
    /// out anew by what is left.
    pub fn set_elsewhere(&mut self, app: &Arc<str>, elsewhere: Elsewhere) {
        let now = self.seen;
        let before = self.elsewhere.insert(app.clone(), elsewhere);
        let Some(index) = self.by_app.get(app).copied() else {
            return;
        };
        if let Some(account) = self.accounts.get_mut(index as usize) {
            account.elsewhere = elsewhere;
        }
        let before = before.unwrap_or_default();
        let changed = [
            (Resource::Messages, before.totals != elsewhere.totals),
            (
                Resource::Connections,
                before.connections < elsewhere.connections,
            ),
            (Resource::Channels, before.channels < elsewhere.channels),
        ];
        for (resource, _) in changed.into_iter().filter(|(_, changed)| *changed) {
            let (notes, day) = self.homes.recall(app, &resource);
            for (to, note) in notes {
                let msg = LimitMsg {
                    app: app.clone(),
                    resource: resource.clone(),
                    day,
                    note,
                };
                self.tell_holder(to, index, msg, now);
            }
        }
    }

    /// Whether an app's messages are used up, as far as this shard has been told (to about two seconds).
    #[must_use]
    pub fn is_exhausted(&self, index: u32, now: Now) -> bool {
        self.account(index).is_some_and(|account| {
            account.plan().is_some_and(|plan| {
                let day = day_of(now.unix_ms);
                let elsewhere = account.elsewhere.totals.on(day);
                let mut totals = account.totals.on(day);
                totals.messages_day += elsewhere.messages_day;
                totals.messages_month += elsewhere.messages_month;
                plan.limits_messages() && totals.exhaust(plan)
            })
        })
    }

    /// A message of a connection of the app is about to be handled.
    pub fn count_in_turn(&mut self, index: u32) {
        let turn = self.turn;
        if let Some(account) = self.accounts.get_mut(index as usize) {
            *account.work_in(turn) += 1;
        }
    }

    /// Whether a connection of the app may be read in this turn, which counts; false when it has had its part and others
    /// may be waiting.
    pub fn may_read(&mut self, index: u32) -> bool {
        if self.busy_apps <= 1 {
            return true;
        }
        let turn = self.turn;
        let Some(account) = self.accounts.get_mut(index as usize) else {
            return true;
        };
        let work = account.work_in(turn);
        let may = *work < TURN_WORK_MAX;
        *work += if may { READ_WORK } else { 0 };
        may
    }

    /// The turn is over.
    pub fn end_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// To be called about once a second: forgets what nobody has used, and gives back what is left of yesterday.
    pub fn tick(&mut self, now: Now) {
        self.seen = now;
        self.clients.forget_idle(now.mono_ms());
        self.channels.forget_idle(now.mono_ms());
        self.homes.forget_idle(now.mono_ms());
        let day = day_of(now.unix_ms);
        for index in 0..u32::try_from(self.accounts.len()).unwrap_or(u32::MAX) {
            let slot = self.account(index).and_then(|a| a.messages.as_ref());
            if slot.is_some_and(|slot| slot.day != day) {
                self.begin_day(index, day, now);
            }
        }
    }

    /// What is to be told to other shards.
    pub fn take_notes(&mut self) -> Vec<(ShardId, LimitMsg)> {
        std::mem::take(&mut self.notes)
    }

    /// Whether there is anything to tell.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    /// Another shard's note about the app with this index.
    pub fn handle(&mut self, from: ShardId, index: u32, msg: LimitMsg, now: Now) {
        match msg.note {
            Note::Ask(_) | Note::Return(_) => self.at_home(from, index, msg, now),
            Note::Grant { .. } | Note::Recall => self.at_lease(from, index, msg, now),
        }
    }

    fn at_home(&mut self, from: ShardId, index: u32, msg: LimitMsg, now: Now) {
        let Some(account) = self.accounts.get(index as usize) else {
            return;
        };
        let shards = self.placement.shards();
        let day = msg.day;
        let answers = self.homes.handle(from, account, &msg, shards, now);
        for (to, note) in answers {
            let msg = LimitMsg {
                app: msg.app.clone(),
                resource: msg.resource.clone(),
                day,
                note,
            };
            self.tell_holder(to, index, msg, now);
        }
    }

    fn tell_holder(&mut self, to: ShardId, index: u32, msg: LimitMsg, now: Now) {
        if to == self.shard {
            self.at_lease(to, index, msg, now);
        } else {
            self.notes.push((to, msg));
        }
    }

    fn at_lease(&mut self, home: ShardId, index: u32, msg: LimitMsg, now: Now) {
        let slot = self.slot_mut(index, &msg.resource);
        let slot = slot.filter(|slot| slot.day == msg.day);
        let report = match (msg.note, slot) {
            (
                Note::Grant {
                    count,
                    until_ms,
                    retry_ms,
                    is_scarce,
                },
                Some(slot),
            ) => {
                slot.lease.on_grant(count, until_ms, retry_ms, is_scarce);
                return;
            }
            (Note::Recall, Some(slot)) => slot.lease.on_recall(),
            // Nobody is left to use it.
            (Note::Grant { count, .. }, None) => Report {
                debt: 0,
                unused: count,
            },
            (Note::Recall, None) => Report::default(),
            (Note::Ask(_) | Note::Return(_), _) => return,
        };
        let note = Note::Return(report);
        self.tell_home(home, index, LimitMsg { note, ..msg }, now);
    }

    /// Spends what is at hand, asks for more, and where the answer is there at once, spends of that.
    #[cold]
    fn spend_and_ask(&mut self, index: u32, resource: &Resource, now: Now) -> bool {
        let now_ms = now.mono_ms();
        let Some(slot) = self.slot_mut(index, resource) else {
            return true;
        };
        let terms = slot.terms;
        let spent = slot.lease.try_spend(now_ms, &terms);
        let asked = self.ask_for(index, resource, now);
        if spent || !asked {
            return spent;
        }
        self.slot_mut(index, resource)
            .is_some_and(|slot| slot.home_is_here && slot.lease.try_spend(now_ms, &terms))
    }

    /// Asks for allowance where it runs low. Whether it did.
    fn ask_for(&mut self, index: u32, resource: &Resource, now: Now) -> bool {
        let Some(slot) = self.slot_mut(index, resource) else {
            return false;
        };
        let Some(report) = slot.lease.take_ask(now.mono_ms()) else {
            return false;
        };
        let (home, day) = (slot.home, slot.day);
        let Some(account) = self.account(index) else {
            return false;
        };
        let msg = LimitMsg {
            app: account.app.clone(),
            resource: resource.clone(),
            day,
            note: Note::Ask(report),
        };
        self.tell_home(home, index, msg, now);
        true
    }

    fn tell_home(&mut self, home: ShardId, index: u32, msg: LimitMsg, now: Now) {
        if home == self.shard {
            self.at_home(home, index, msg, now);
        } else {
            self.notes.push((home, msg));
        }
    }

    fn begin_day(&mut self, index: u32, day: u32, now: Now) {
        let Some(account) = self.accounts.get_mut(index as usize) else {
            return;
        };
        let app = account.app.clone();
        let Some(slot) = &mut account.messages else {
            return;
        };
        let (home, old) = (slot.home, slot.day);
        let report = slot.lease.on_recall();
        slot.lease = Default::default();
        slot.day = day;
        let msg = LimitMsg {
            app,
            resource: Resource::Messages,
            day: old,
            note: Note::Return(report),
        };
        self.tell_home(home, index, msg, now);
        self.ask_for(index, &Resource::Messages, now);
    }

    fn slot_mut(&mut self, index: u32, resource: &Resource) -> Option<&mut Slot> {
        let account = self.accounts.get_mut(index as usize)?;
        match resource {
            Resource::App(bucket) => account.known_rate_slot(*bucket),
            Resource::Client(bucket, id) => self.clients.find_slot(index, id, *bucket),
            Resource::Channel(bucket, name) => self.channels.find_slot(index, name, *bucket),
            Resource::Messages => account.messages.as_mut(),
            Resource::Connections => account.held_mut(Held::Connections),
            Resource::Channels => account.held_mut(Held::Channels),
        }
    }

    fn home_of(&self, app: &str, name: &str) -> ShardId {
        self.placement.home(self.placement.hash(app, name))
    }
}

impl Held {
    fn resource(self) -> Resource {
        match self {
            Self::Connections => Resource::Connections,
            Self::Channels => Resource::Channels,
        }
    }
}

/// Terms of a limit where its home is.
fn at_home(terms: Terms, is_here: bool) -> Terms {
    Terms {
        debt_max: if is_here { 0 } else { terms.debt_max },
        ..terms
    }
}
