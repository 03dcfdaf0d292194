//! One app on one shard: its limits in force, its leases, and what it has used.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Held, at_home};
use crate::auth::capability::matches;
use crate::ids::{Now, ShardId};
use crate::namespace::Namespace;
use crate::quota::Elsewhere;
use crate::quota::{Plan, Totals};
use crate::rate::RateLimit;
use crate::rate::lease::{Lease, Terms};
use crate::rate::table::{Bucket, Class, Rates, Resolved, Scope, resolve};

/// Classes that concern a channel, and so may be limited by its namespace; the first ones of [`Class::ALL`].
const CHANNEL_CLASSES: usize = 4;

/// What an app may do, from settings and plan.
#[derive(Debug, Clone, Default)]
pub struct AppTerms {
    /// Of app and process.
    pub rates: Rates,
    /// In the order in which they are looked through, the app's first.
    pub namespaces: Vec<(String, Rates)>,
    /// What it may use in all.
    pub plan: Option<Arc<Plan>>,
}

impl AppTerms {
    /// Patterns and rates of namespaces.
    #[must_use]
    pub fn namespaces_of<'a>(all: impl Iterator<Item = &'a Namespace>) -> Vec<(String, Rates)> {
        all.map(|n| (n.pattern.clone(), n.rates)).collect()
    }
}

/// A lease with what holds for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) lease: Lease,
    pub(super) terms: Terms,
    pub(super) home: ShardId,
    pub(super) home_is_here: bool,
    /// Of a plan's messages, the day they are of.
    pub(super) day: u32,
}

impl Slot {
    pub(super) fn new(terms: Terms, home: ShardId, here: ShardId) -> Self {
        Self {
            lease: Lease::default(),
            terms: at_home(terms, home == here),
            home,
            home_is_here: home == here,
            day: 0,
        }
    }

    /// The usual case: there is plenty, and nobody has to be asked.
    #[inline]
    pub(super) fn spend_at_hand(&mut self, now: Now) -> Option<bool> {
        self.lease.spend_at_hand(now.mono_ms()).then_some(true)
    }
}

/// What an app has used on one shard since the shard last told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppUsage {
    pub app: Arc<str>,
    /// Accepted messages.
    pub messages: u64,
    /// Messages put into subscribers' outboxes.
    pub deliveries: u64,
    /// What was refused for a limit.
    pub refused: u64,
    /// Connections at this moment.
    pub connections: u32,
    /// Channels with subscribers, of those that are at home on the shard, at this moment.
    pub channels: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) messages: u64,
    pub(super) deliveries: u64,
    pub(super) refused: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Account {
    pub(super) app: Arc<str>,
    wide: [Resolved; Class::ALL.len()],
    /// By namespace, where any of them has rates.
    own: Vec<(String, Option<Box<[Resolved; CHANNEL_CLASSES]>>)>,
    /// Bit per class: a channel of the app has a limit of its own.
    limits_channels: u8,
    plan: Option<Arc<Plan>>,
    home: ShardId,
    rates: SmallVec<[(Bucket, RateLimit, Slot); 1]>,
    pub(super) messages: Option<Slot>,
    held: [Option<Slot>; 2],
    pub(super) elsewhere: Elsewhere,
    pub(super) usage: Counts,
    pub(super) connections: u32,
    pub(super) channels: u32,
    /// Connections and channels as last told.
    told: (u32, u32),
    pub(super) totals: Totals,
    /// Turn in which it last did something, and how much.
    turn: u32,
    in_turn: u32,
}

impl Account {
    pub(super) fn new(app: Arc<str>, totals: Totals) -> Self {
        Self {
            app,
            wide: [Resolved::default(); Class::ALL.len()],
            own: Vec::new(),
            limits_channels: 0,
            plan: None,
            home: ShardId(0),
            rates: SmallVec::new(),
            messages: None,
            held: [None; 2],
            elsewhere: Elsewhere::default(),
            usage: Counts::default(),
            connections: 0,
            channels: 0,
            told: (0, 0),
            totals,
            turn: 0,
            in_turn: 0,
        }
    }

    /// What it has done in this turn.
    pub(super) fn work_in(&mut self, turn: u32) -> &mut u32 {
        if self.turn != turn {
            (self.turn, self.in_turn) = (turn, 0);
        }
        &mut self.in_turn
    }

    /// What the app may use in all.
    #[must_use]
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        self.plan.as_ref()
    }

    /// What it has used on all shards, as last told.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether anything at all is limited by channel.
    #[must_use]
    pub fn limits_channels(&self, class: Class) -> bool {
        self.limits_channels & (1 << class.index()) != 0
    }

    fn any_limits_channels(&self, class: Class) -> bool {
        let own = self.own.iter().filter_map(|(_, own)| own.as_ref());
        let mut all = own
            .filter_map(|own| own.get(class.index()))
            .chain(self.wide.get(class.index()));
        all.any(|resolved| resolved.limit(Scope::Channel).is_some())
    }

    pub(super) fn set_terms(
        &mut self,
        terms: AppTerms,
        home: ShardId,
        here: ShardId,
        shards: u16,
        day: u32,
    ) {
        let AppTerms {
            rates: wide,
            namespaces,
            plan,
        } = terms;
        self.home = home;
        let wider = [&wide];
        for (class, slot) in Class::ALL.into_iter().zip(&mut self.wide) {
            *slot = resolve(class, None, &wider);
        }
        self.own.clear();
        if namespaces.iter().any(|(_, rates)| !rates.is_empty()) {
            let resolve_own = |rates: &Rates| {
                let mut own = [Resolved::default(); CHANNEL_CLASSES];
                for (class, slot) in Class::ALL.into_iter().zip(&mut own) {
                    *slot = resolve(class, Some(rates), &wider);
                }
                Box::new(own)
            };
            self.own = namespaces
                .into_iter()
                .map(|(pattern, rates)| (pattern, (!rates.is_empty()).then(|| resolve_own(&rates))))
                .collect();
        }
        self.limits_channels = Class::ALL
            .into_iter()
            .filter(|class| self.any_limits_channels(*class))
            .fold(0, |bits, class| bits | (1 << class.index()));
        let total = |most: Option<u64>| {
            most.map(|most| Slot::new(Terms::of_total(most, shards), home, here))
        };
        let limits = plan.as_deref();
        let messages = limits.and_then(|p| match (p.messages_per_day, p.messages_per_month) {
            (Some(day), Some(month)) => Some(day.min(month)),
            (day, month) => day.or(month),
        });
        let messages = total(messages).map(|slot| Slot { day, ..slot });
        renew(&mut self.messages, messages, 0);
        let [connections, channels] = &mut self.held;
        let most = limits.and_then(|p| p.connections_max);
        renew(connections, total(most), self.connections);
        let most = limits.and_then(|p| p.channels_max);
        renew(channels, total(most), self.channels);
        self.plan = plan;
    }

    /// The longest window of the limits of a scope.
    pub(super) fn span_ms(&self, scope: Scope) -> u64 {
        let own = self.own.iter().filter_map(|(_, own)| own.as_deref());
        let all = self.wide.iter().chain(own.flatten());
        let limits = all.filter_map(|resolved| resolved.limit(scope));
        limits.map(|limit| limit.span_ms()).max().unwrap_or(0)
    }

    pub(super) fn resolved(&self, class: Class, channel: &str) -> (Resolved, u16) {
        if !self.own.is_empty() {
            let found = (0..).zip(&self.own).find(|(_, (p, _))| matches(p, channel));
            if let Some((index, (_, Some(own)))) = found
                && let Some(resolved) = own.get(class.index())
            {
                return (*resolved, index);
            }
        }
        let wide = self.wide.get(class.index()).copied().unwrap_or_default();
        (wide, Bucket::WIDE)
    }

    /// The limit behind a bucket.
    pub(super) fn limit_of(&self, bucket: Bucket, scope: Scope) -> Option<RateLimit> {
        let class = bucket.class.index();
        let resolved = if bucket.namespace == Bucket::WIDE {
            self.wide.get(class)
        } else {
            let own = self.own.get(usize::from(bucket.namespace))?.1.as_ref()?;
            own.get(class)
        };
        resolved?.limit(scope)
    }

    /// The lease of an app's rate, made where there is none, and with the terms of `limit`.
    pub(super) fn rate_slot(
        &mut self,
        bucket: Bucket,
        limit: RateLimit,
        here: ShardId,
        shards: u16,
    ) -> &mut Slot {
        let home = self.home;
        slot_in(&mut self.rates, bucket, limit, home, here, shards)
    }

    pub(super) fn find_rate_slot(&self, bucket: Bucket) -> Option<&Slot> {
        let found = self.rates.iter().find(|(own, ..)| *own == bucket);
        found.map(|(.., slot)| slot)
    }

    pub(super) fn known_rate_slot(&mut self, bucket: Bucket) -> Option<&mut Slot> {
        let found = self.rates.iter_mut().find(|(own, ..)| *own == bucket);
        found.map(|(.., slot)| slot)
    }

    pub(super) fn held_mut(&mut self, held: Held) -> Option<&mut Slot> {
        let [connections, channels] = &mut self.held;
        match held {
            Held::Connections => connections.as_mut(),
            Held::Channels => channels.as_mut(),
        }
    }

    pub(super) fn take_usage(&mut self) -> Option<AppUsage> {
        let now = (self.connections, self.channels);
        if self.usage == Counts::default() && self.told == now {
            return None;
        }
        self.told = now;
        let Counts {
            messages,
            deliveries,
            refused,
        } = std::mem::take(&mut self.usage);
        Some(AppUsage {
            app: self.app.clone(),
            messages,
            deliveries,
            refused,
            connections: self.connections,
            channels: self.channels,
        })
    }

    pub(super) fn keep_usage(&mut self, part: &AppUsage) {
        self.usage.messages += part.messages;
        self.usage.deliveries += part.deliveries;
        self.usage.refused += part.refused;
        self.told = (u32::MAX, u32::MAX);
    }
}

/// Keeps a lease whose limit has changed in size alone; what is in use when a limit is set is owed.
fn renew(slot: &mut Option<Slot>, next: Option<Slot>, in_use: u32) {
    match (&mut *slot, next) {
        (Some(old), Some(next)) => old.terms = next.terms,
        (_, mut next) => {
            if let Some(next) = &mut next {
                next.lease.owe(in_use);
            }
            *slot = next;
        }
    }
}

/// Finds or makes a slot among a few.
pub(super) fn slot_in(
    slots: &mut SmallVec<[(Bucket, RateLimit, Slot); 1]>,
    bucket: Bucket,
    limit: RateLimit,
    home: ShardId,
    here: ShardId,
    shards: u16,
) -> &mut Slot {
    let at = slots
        .iter()
        .position(|(own, ..)| *own == bucket)
        .unwrap_or_else(|| {
            let slot = Slot::new(Terms::of_window(&limit, shards), home, here);
            slots.push((bucket, limit, slot));
            slots.len() - 1
        });
    #[expect(clippy::indexing_slicing, reason = "found or made above")]
    let (_, known, slot) = &mut slots[at];
    if *known != limit {
        *known = limit;
        slot.terms = at_home(Terms::of_window(&limit, shards), home == here);
    }
    slot
}
