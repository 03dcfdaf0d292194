//! Presence members that are away, by client: what a shard looks through when a client connects or
//! a deadline passes. One table for all channels that a shard is home to.
//!
//! Also knows which clients have connected lately: news of a connection's end can come later than
//! its client's next connection, from another shard or because a dead connection went unnoticed.
//!
//! Not here: who is a member (`presence`). An entry of the deadline queue may be out of date; the
//! member itself says whether its deadline holds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::ids::ConnName;
use crate::limits::PRESENCE_OPENED_MAX;

/// A client of an app.
pub type ClientKey = (Arc<str>, Arc<str>);

/// A deadline of one member.
#[derive(Debug, Clone)]
pub struct Due {
    /// Monotonic ms.
    pub at_ms: u64,
    pub app: Arc<str>,
    pub client_id: Arc<str>,
    /// Home slot of the channel, and its number, which tells tenants of the slot apart.
    pub slot: u32,
    pub number: u64,
}

#[derive(Debug, Default)]
pub struct Returns {
    /// Home slots of the channels in which a client is away.
    away: BTreeMap<ClientKey, SmallVec<[u32; 2]>>,
    /// Memberships in `away`.
    away_count: usize,
    /// In order of time. An entry stays until then, though its member came back: at most as many as
    /// connections were lost within the grace.
    due: VecDeque<Due>,
    /// The latest connection of each client, and when it was opened (monotonic ms).
    opened: BTreeMap<ClientKey, (ConnName, u64)>,
    /// At most [`PRESENCE_OPENED_MAX`]; the oldest goes first.
    opened_order: VecDeque<(u64, ClientKey)>,
}

impl Returns {
    /// The deadline for a member that is to stay until `wanted_ms`: later than that only where an
    /// earlier one is, which happens when the grace was made shorter.
    pub fn deadline(&self, wanted_ms: u64) -> u64 {
        self.due
            .back()
            .map_or(wanted_ms, |d| d.at_ms.max(wanted_ms))
    }

    /// A member of the channel in home slot `slot` is away until `at_ms`, a [`Returns::deadline`].
    pub fn go_away(&mut self, client: ClientKey, slot: u32, number: u64, at_ms: u64) {
        self.due.push_back(Due {
            at_ms,
            app: client.0.clone(),
            client_id: client.1.clone(),
            slot,
            number,
        });
        self.away.entry(client).or_default().push(slot);
        self.away_count += 1;
    }

    /// A member is not away any more.
    pub fn end_away(&mut self, client: &ClientKey, slot: u32) {
        let Some(slots) = self.away.get_mut(client) else {
            return;
        };
        if let Some(index) = slots.iter().position(|s| *s == slot) {
            slots.swap_remove(index);
            self.away_count -= 1;
        }
        if slots.is_empty() {
            self.away.remove(client);
        }
    }

    /// A client has connected: returns the home slots of the channels in which it was away.
    pub fn open(&mut self, client: ClientKey, conn: ConnName, now_ms: u64) -> SmallVec<[u32; 2]> {
        let slots = self.away.remove(&client).unwrap_or_default();
        self.away_count -= slots.len();
        self.opened.insert(client.clone(), (conn, now_ms));
        self.opened_order.push_back((now_ms, client));
        if self.opened_order.len() > PRESENCE_OPENED_MAX {
            self.forget_oldest();
        }
        slots
    }

    /// The connection with which a client has come back before the end of `lost` was known: its
    /// latest one, if that was opened at `since_ms` or later.
    pub fn successor(
        &mut self,
        client: &ClientKey,
        lost: ConnName,
        since_ms: u64,
    ) -> Option<ConnName> {
        let (conn, opened_ms) = *self.opened.get(client)?;
        if conn == lost {
            self.opened.remove(client);
            return None;
        }
        (opened_ms >= since_ms).then_some(conn)
    }

    /// The next deadline that has passed.
    pub fn take_due(&mut self, now_ms: u64) -> Option<Due> {
        self.due.pop_front_if(|due| due.at_ms <= now_ms)
    }

    /// Forgets connections that were opened before `before_ms`.
    pub fn forget_opened(&mut self, before_ms: u64) {
        while self
            .opened_order
            .front()
            .is_some_and(|(at, _)| *at < before_ms)
        {
            self.forget_oldest();
        }
    }

    /// Memberships that are away.
    pub fn len(&self) -> usize {
        self.away_count
    }

    pub fn is_empty(&self) -> bool {
        self.away_count == 0
    }

    fn forget_oldest(&mut self) {
        if let Some((at, client)) = self.opened_order.pop_front()
            && self.opened.get(&client).is_some_and(|(_, t)| *t == at)
        {
            self.opened.remove(&client);
        }
    }
}
