//! What this shard has to tell back ends: events of webhooks, until the driver takes them.
//!
//! Whether an app wants an event is asked before anything is made of it; without endpoints that is one branch. What is
//! raised stays here until it is taken. Messages stop at a bound: above it publishes to channels whose messages are
//! wanted are refused ([`Shard::hooks_full`]), so none is accepted whose event could be lost. The other events go on to a
//! far higher one; beyond it they are dropped and counted.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Shard;
use crate::channel::presence::{Event, EventKind};
use crate::ids::{ConnId, Now};
use crate::msg::Publish;
use crate::record::Record;
use crate::webhook::{AppWanted, Kind, Raised, Turn, Wanted, What};
use crate::wire::wsocket::Position;

/// Events that wait above which messages are refused.
const RAISED_MESSAGES_MAX: usize = 16_384;
/// Events that wait at most.
const RAISED_MAX: usize = 1 << 20;

/// Longer than a publish waits for the broker, at most.
const BROKER_ANSWERS_WITHIN_MS: u64 = 60_000;

const OCCUPANCY: (Kind, Kind) = (Kind::Occupied, Kind::Vacated);
const CONNECTION: (Kind, Kind) = (Kind::Connected, Kind::Disconnected);
const MEMBERSHIP: (Kind, Kind) = (Kind::Enter, Kind::Leave);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    wanted: Arc<Wanted>,
    raised: Vec<Raised>,
    /// App and name of channels whose number of subscribers here has changed.
    counts: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl Hooks {
    fn of(&self, app: &str) -> Option<&AppWanted> {
        if self.wanted.is_empty() {
            return None;
        }
        self.wanted.of(app).map(|wanted| &**wanted)
    }

    fn wants(&self, app: &str, kind: Kind, channel: &str) -> bool {
        self.of(app).is_some_and(|w| w.wants(kind, Some(channel)))
    }

    fn wants_pair(&self, app: &str, pair: (Kind, Kind), channel: Option<&str>) -> bool {
        self.of(app).is_some_and(|w| w.wants_pair(pair, channel))
    }

    /// Whether some endpoint of the app hears of a channel's members.
    pub(super) fn wants_members(&self, app: &str, channel: &str) -> bool {
        self.wants_pair(app, MEMBERSHIP, Some(channel)) || self.wants(app, Kind::Update, channel)
    }
}

/// What the driver takes to the webhooks' thread.
#[derive(Debug)]
pub struct HookEvents {
    pub raised: Vec<Raised>,
    /// The events of all messages that were accepted before this time (ms since the Unix epoch) and stored have been
    /// taken with these, or earlier.
    pub complete_ms: u64,
}

impl Shard {
    /// Which events are wanted, from here on.
    pub fn set_wanted(&mut self, wanted: Arc<Wanted>) {
        self.hooks.wanted = wanted;
    }

    /// What has been raised; none where nothing was, unless `always`.
    pub fn take_hook_events(&mut self, always: bool, now: Now) -> Option<HookEvents> {
        if self.hooks.raised.is_empty() && (!always || self.hooks.wanted.is_empty()) {
            return None;
        }
        Some(HookEvents {
            raised: std::mem::take(&mut self.hooks.raised),
            complete_ms: self.complete_ms(now),
        })
    }

    fn complete_ms(&self, now: Now) -> u64 {
        // What the broker has numbered and not answered yet may be in its store all the same.
        let answered_ms = match self.broker_pending() {
            0 => now.unix_ms,
            _ => now.unix_ms.saturating_sub(BROKER_ANSWERS_WITHIN_MS),
        };
        self.oldest_pending_ms()
            .map_or(answered_ms, |oldest| oldest.min(answered_ms))
    }

    /// Whether something waits to be taken.
    #[must_use]
    pub fn has_hook_events(&self) -> bool {
        !self.hooks.raised.is_empty()
    }

    /// Takes back what could not be handed on; it is first in the next.
    pub fn keep_hook_events(&mut self, mut events: Vec<Raised>) {
        events.append(&mut self.hooks.raised);
        self.hooks.raised = events;
    }

    /// Whether a publish has to be refused because the events of those before it wait.
    pub(super) fn hooks_full(&self, app: &str, channel: &str) -> bool {
        self.hooks.raised.len() >= RAISED_MESSAGES_MAX
            && self.hooks.wants(app, Kind::Published, channel)
    }

    fn raise_event(&mut self, app: Arc<str>, what: What, now: Now) {
        if self.hooks.raised.len() >= RAISED_MAX {
            self.counters.hook_events_dropped += 1;
            return;
        }
        self.counters.hook_events += 1;
        self.hooks.raised.push(Raised {
            app,
            timestamp: now.unix_ms,
            what,
        });
    }

    /// A channel of this home has got its first subscriber, or lost its last.
    pub(super) fn raise_occupancy(&mut self, slot: u32, is_occupied: bool, now: Now) {
        let Some(key) = self.home.get(slot).map(|c| &c.key) else {
            return;
        };
        if !self.hooks.wants_pair(&key.app, OCCUPANCY, Some(&key.name)) {
            return;
        }
        let (app, channel) = (key.app.clone(), key.name.clone());
        let what = match is_occupied {
            true => What::Occupied { channel },
            false => What::Vacated { channel },
        };
        self.raise_event(app, what, now);
    }

    /// Something has happened to members of a channel of this home.
    pub(super) fn raise_members(&mut self, slot: u32, events: Vec<Event>, stands: bool, now: Now) {
        let Some(key) = self.home.get(slot).map(|c| c.key.clone()) else {
            return;
        };
        for event in events {
            let turn = match event.kind {
                EventKind::Enter if stands => Turn::Stands,
                EventKind::Enter => Turn::Begins,
                EventKind::Update => Turn::Changes,
                EventKind::Leave => Turn::Ends,
            };
            let what = What::Presence {
                turn,
                channel: key.name.clone(),
                client_id: event.client_id,
                state: event.state,
            };
            self.raise_event(key.app.clone(), what, now);
        }
    }

    /// A message is stored.
    pub(super) fn raise_message(&mut self, slot: u32, record: &Arc<Record>, now: Now) {
        let Some(key) = self.home.get(slot).map(|c| &c.key) else {
            return;
        };
        if self.hooks.wants(&key.app, Kind::Published, &key.name) {
            let (app, channel) = (key.app.clone(), key.name.clone());
            let record = record.clone();
            self.raise_event(app, What::Message { channel, record }, now);
        }
    }

    /// A message is accepted that the broker has ordered; stored, where it has a sequence.
    pub(super) fn raise_numbered(
        &mut self,
        slot: u32,
        item: &Publish<'_>,
        position: Position,
        now: Now,
    ) {
        let Some(sequence) = position.sequence else {
            return self.raise_ephemeral(slot, (item.id, item.publisher, item.data), now);
        };
        if self.hooks.wants(item.app, Kind::Published, item.channel) {
            let record = Record {
                sequence,
                timestamp: position.timestamp,
                id: item.id.into(),
                publisher: item.publisher.into(),
                data: item.data.into(),
            };
            self.raise_message(slot, &Arc::new(record), now);
        }
    }

    /// A message that is not stored is accepted.
    pub(super) fn raise_ephemeral(
        &mut self,
        slot: u32,
        (id, publisher, data): (&str, &str, &str),
        now: Now,
    ) {
        let Some(key) = self.home.get(slot).map(|c| &c.key) else {
            return;
        };
        if self.hooks.wants(&key.app, Kind::Published, &key.name) {
            let (app, channel) = (key.app.clone(), key.name.clone());
            let what = What::Ephemeral {
                channel,
                id: id.into(),
                publisher: publisher.into(),
                data: data.into(),
            };
            self.raise_event(app, what, now);
        }
    }

    /// A connection has opened or ended.
    pub(super) fn raise_connection(&mut self, conn: ConnId, is_open: bool, now: Now) {
        let Some(grant) = self.conns.get(conn).map(|c| &c.session.grant) else {
            return;
        };
        if !self.hooks.wants_pair(&grant.app, CONNECTION, None) {
            return;
        }
        let (app, client_id) = (grant.app.clone(), grant.client_id.clone());
        let info = grant.credential.info().map(Into::into);
        let connection = self.name_of(conn).to_string();
        let what = match is_open {
            true => What::Connected {
                connection,
                client_id,
                info,
            },
            false => What::Disconnected {
                connection,
                client_id,
                info,
            },
        };
        self.raise_event(app, what, now);
    }

    /// The number of a channel's subscribers here has changed: told with the next tick.
    pub(super) fn note_subscribers(&mut self, local: u32) {
        let Some(key) = self.local.get(local).map(|c| &c.key) else {
            return;
        };
        if self
            .hooks
            .wants(&key.app, Kind::SubscriptionCount, &key.name)
        {
            self.hooks
                .counts
                .insert((key.app.clone(), key.name.clone()));
        }
    }

    /// Once a second.
    pub(super) fn tick_hooks(&mut self, now: Now) {
        for (app, channel) in std::mem::take(&mut self.hooks.counts) {
            let hash = self.placement.hash(&app, &channel);
            let slot = self.local.find(&app, &channel, hash);
            let found = slot.and_then(|slot| self.local.get(slot));
            let what = What::Subscribers {
                channel,
                shard: self.id.0,
                count: found.map_or(0, |c| c.subscribers().len() as u64),
            };
            self.raise_event(app, what, now);
        }
    }
}
