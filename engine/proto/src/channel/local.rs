//! The subscribers that one shard has, by channel, and those that watch its presence.
//!
//! A channel's subscribers are a dense list of connection slots, so that a fan-out walks plain
//! memory. A subscription knows its place in that list and the list knows the subscription's
//! place in its connection, so leaving is O(1) on both sides; watchers are kept likewise. An entry
//! exists while it has either; its generation makes a delivery that was under way to an earlier tenant of the slot
//! recognisable.

use std::sync::Arc;

use hashbrown::HashTable;

use crate::ids::{ChannelKey, ConnId};
use crate::msg::LocalRef;
use crate::outbox::Frame;

/// One connection's subscription: which entry, and where in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscription {
    pub channel: u32,
    pub place: u32,
}

#[derive(Debug)]
pub struct LocalChannel {
    pub key: ChannelKey,
    pub hash: u64,
    /// Connection slots.
    subscribers: Vec<u32>,
    /// For each subscriber, the index of this subscription in its connection's list.
    places: Vec<u16>,
    /// The home shard has confirmed that it delivers here.
    ready: bool,
    /// Connections whose `subscribed` waits for that.
    waiting: Vec<ConnId>,
    /// Connections that are being brought up to date: they get what is delivered meanwhile behind
    /// it.
    holding: Vec<Holding>,
    /// Connections that have entered or asked for the members: slot, and index of the membership in
    /// the connection's list. A subscriber may be among them.
    watchers: Vec<(u32, u16)>,
}

/// Live messages held for a connection whose replay is under way.
#[derive(Debug)]
pub struct Holding {
    pub conn: ConnId,
    /// With their sequence; none for ephemeral messages.
    pub frames: Vec<(Option<u64>, Frame)>,
    pub bytes: usize,
}

impl LocalChannel {
    pub fn subscribers(&self) -> &[u32] {
        &self.subscribers
    }

    /// Slots of all who get presence notices; one that subscribes and watches is there twice.
    pub fn receivers(&self) -> impl Iterator<Item = u32> {
        let holding = self.holding.iter().map(|h| h.conn.slot);
        let watchers = self.watchers.iter().map(|(slot, _)| *slot);
        self.subscribers
            .iter()
            .copied()
            .chain(holding)
            .chain(watchers)
    }

    /// Whether any connection is being brought up to date.
    pub fn is_holding(&self) -> bool {
        !self.holding.is_empty()
    }

    /// Subscribers, those that are being brought up to date too.
    pub fn count(&self) -> usize {
        self.subscribers.len() + self.holding.len()
    }
}

#[derive(Debug, Default)]
pub struct LocalChannels {
    entries: Vec<(u32, Option<LocalChannel>)>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
}

/// What a subscription to a channel meets.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Delivering: the subscriber can be told at once.
    Ready,
    /// The home shard was asked earlier; the subscriber waits.
    Waiting,
    /// First subscriber or watcher here: the home shard is to be asked.
    First(LocalRef),
}

impl LocalChannels {
    /// Number of channels with a subscriber or watcher.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn find(&self, app: &str, name: &str, hash: u64) -> Option<u32> {
        self.by_name
            .find(hash, |slot| {
                self.get(*slot)
                    .is_some_and(|c| &*c.key.name == name && &*c.key.app == app)
            })
            .copied()
    }

    pub fn get(&self, slot: u32) -> Option<&LocalChannel> {
        self.entries.get(slot as usize)?.1.as_ref()
    }

    /// The entry a message is addressed to, unless the slot has another tenant by then.
    pub fn resolve(&self, to: LocalRef) -> Option<&LocalChannel> {
        let (generation, channel) = self.entries.get(to.slot as usize)?;
        channel.as_ref().filter(|_| *generation == to.generation)
    }

    pub fn iter(&self) -> impl Iterator<Item = &LocalChannel> {
        self.entries.iter().filter_map(|(_, c)| c.as_ref())
    }

    /// The entry for a channel, made if there is none. [`Found::First`] says that it was made.
    pub fn enter(&mut self, app: &Arc<str>, name: &str, hash: u64) -> (u32, Found) {
        if let Some(slot) = self.find(app, name, hash) {
            let ready = self.get(slot).is_some_and(|c| c.ready);
            return (slot, if ready { Found::Ready } else { Found::Waiting });
        }
        let channel = LocalChannel {
            key: ChannelKey {
                app: app.clone(),
                name: name.into(),
            },
            hash,
            subscribers: Vec::new(),
            places: Vec::new(),
            ready: false,
            waiting: Vec::new(),
            holding: Vec::new(),
            watchers: Vec::new(),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        let mut generation = 0;
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            generation = entry.0;
            entry.1 = Some(channel);
        }
        let entries = &self.entries;
        self.by_name.insert_unique(hash, slot, |s| {
            entries
                .get(*s as usize)
                .and_then(|e| e.1.as_ref())
                .map_or(0, |c| c.hash)
        });
        (slot, Found::First(LocalRef { slot, generation }))
    }

    /// Adds a connection to an entry; `place` is the subscription's index in the connection.
    pub fn add(&mut self, slot: u32, conn_slot: u32, place: u16) -> Option<Subscription> {
        let channel = self.get_mut(slot)?;
        channel.subscribers.push(conn_slot);
        channel.places.push(place);
        Some(Subscription {
            channel: slot,
            place: u32::try_from(channel.subscribers.len() - 1).unwrap_or(u32::MAX),
        })
    }

    /// Notes that a connection is to be told `subscribed` when the home shard has confirmed.
    pub fn wait(&mut self, slot: u32, conn: ConnId) {
        if let Some(channel) = self.get_mut(slot) {
            channel.waiting.push(conn);
        }
    }

    /// Stops waiting; true if the connection was.
    pub fn stop_waiting(&mut self, slot: u32, conn: ConnId) -> bool {
        let Some(channel) = self.get_mut(slot) else {
            return false;
        };
        let before = channel.waiting.len();
        channel.waiting.retain(|c| *c != conn);
        channel.waiting.len() < before
    }

    /// Begins to hold messages for a connection.
    pub fn hold(&mut self, slot: u32, conn: ConnId) {
        if let Some(channel) = self.get_mut(slot) {
            channel.holding.push(Holding {
                conn,
                frames: Vec::new(),
                bytes: 0,
            });
        }
    }

    /// Ends holding and returns what was held.
    pub fn release(&mut self, slot: u32, conn: ConnId) -> Option<Holding> {
        let channel = self.get_mut(slot)?;
        let index = channel.holding.iter().position(|h| h.conn == conn)?;
        Some(channel.holding.swap_remove(index))
    }

    /// Takes of what is held the frames that `wanted` picks, in order.
    pub fn take_held(
        &mut self,
        slot: u32,
        conn: ConnId,
        wanted: impl Fn(Option<u64>) -> bool,
    ) -> Vec<Frame> {
        let holding = self
            .get_mut(slot)
            .and_then(|c| c.holding.iter_mut().find(|h| h.conn == conn));
        let Some(holding) = holding else {
            return Vec::new();
        };
        let (taken, kept) = std::mem::take(&mut holding.frames)
            .into_iter()
            .partition(|(sequence, _)| wanted(*sequence));
        holding.frames = kept;
        let taken: Vec<(Option<u64>, Frame)> = taken;
        taken.into_iter().map(|(_, frame)| frame).collect()
    }

    /// Holds one message for every connection of an entry that is being brought up to date, but
    /// `exclude`. Returns those for whom more than these bounds is held by then.
    pub fn hold_frame(
        &mut self,
        to: LocalRef,
        frame: &Frame,
        sequence: Option<u64>,
        exclude: Option<ConnId>,
        (frames_max, bytes_max): (usize, usize),
    ) -> Vec<ConnId> {
        let mut too_slow = Vec::new();
        let Some(channel) = self.get_mut(to.slot) else {
            return too_slow;
        };
        for holding in &mut channel.holding {
            if exclude == Some(holding.conn) {
                continue;
            }
            holding.bytes += frame.len();
            holding.frames.push((sequence, frame.clone()));
            if holding.bytes > bytes_max || holding.frames.len() > frames_max {
                too_slow.push(holding.conn);
            }
        }
        too_slow
    }

    /// The home shard confirmed: returns who waited.
    pub fn confirm(&mut self, local: LocalRef) -> Vec<ConnId> {
        if self.resolve(local).is_none() {
            return Vec::new();
        }
        let Some(channel) = self.get_mut(local.slot) else {
            return Vec::new();
        };
        channel.ready = true;
        std::mem::take(&mut channel.waiting)
    }

    /// Takes one subscription out. The last subscriber's place is filled from the list's end:
    /// returns that connection's slot and subscription index, which are to be told their place.
    pub fn remove(&mut self, subscription: Subscription) -> Option<Moved> {
        let channel = self.get_mut(subscription.channel)?;
        let place = subscription.place as usize;
        if place >= channel.subscribers.len() {
            debug_assert!(false, "a subscription outside its channel's list");
            return None;
        }
        channel.subscribers.swap_remove(place);
        channel.places.swap_remove(place);
        let conn_slot = *channel.subscribers.get(place)?;
        let index = *channel.places.get(place)?;
        Some(Moved {
            conn_slot,
            index,
            place: subscription.place,
        })
    }

    /// Adds a watcher; `index` is the membership's in the connection. Returns its place.
    pub fn watch(&mut self, slot: u32, conn_slot: u32, index: u16) -> u32 {
        let Some(channel) = self.get_mut(slot) else {
            return u32::MAX;
        };
        channel.watchers.push((conn_slot, index));
        u32::try_from(channel.watchers.len() - 1).unwrap_or(u32::MAX)
    }

    /// Takes a watcher out. As with subscribers, the last one takes its place: returns that
    /// connection and the index of the membership that is to be told.
    pub fn unwatch(&mut self, slot: u32, place: u32) -> Option<Moved> {
        let channel = self.get_mut(slot)?;
        if place as usize >= channel.watchers.len() {
            debug_assert!(false, "a membership outside its channel's list");
            return None;
        }
        channel.watchers.swap_remove(place as usize);
        if 2 * channel.watchers.len() < channel.watchers.capacity() / 2 {
            channel.watchers.shrink_to(2 * channel.watchers.len());
        }
        let (conn_slot, index) = *channel.watchers.get(place as usize)?;
        Some(Moved {
            conn_slot,
            index,
            place,
        })
    }

    /// Tells an entry that a connection's membership has moved to another index.
    pub fn reindex_watcher(&mut self, slot: u32, place: u32, index: u16) {
        if let Some(watcher) = self
            .get_mut(slot)
            .and_then(|c| c.watchers.get_mut(place as usize))
        {
            watcher.1 = index;
        }
    }

    /// Tells an entry that a connection's subscription has moved to another index.
    pub fn reindex(&mut self, subscription: Subscription, index: u16) {
        if let Some(place) = self
            .get_mut(subscription.channel)
            .and_then(|c| c.places.get_mut(subscription.place as usize))
        {
            *place = index;
        }
    }

    /// Frees an entry that nobody uses; returns what the home shard is to be told.
    pub fn free_if_empty(&mut self, slot: u32) -> Option<(ChannelKey, u64, LocalRef)> {
        let channel = self.get(slot)?;
        if !channel.subscribers.is_empty()
            || !channel.holding.is_empty()
            || !channel.watchers.is_empty()
        {
            return None;
        }
        let entry = self.entries.get_mut(slot as usize)?;
        let channel = entry.1.take()?;
        let generation = entry.0;
        entry.0 = generation.wrapping_add(1);
        self.free.push(slot);
        if let Ok(found) = self.by_name.find_entry(channel.hash, |s| *s == slot) {
            found.remove();
        }
        Some((channel.key, channel.hash, LocalRef { slot, generation }))
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut LocalChannel> {
        self.entries.get_mut(slot as usize)?.1.as_mut()
    }
}

/// A subscription or membership whose place in its channel's list has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Moved {
    pub conn_slot: u32,
    pub index: u16,
    pub place: u32,
}
