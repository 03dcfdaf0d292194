//! One node's part in the members of one channel, where several nodes have members in it: whom this node's connections
//! hold, and who waits for what Redis says. At the channel's home shard.
//!
//! Not here: the members of all nodes ([`super::presence`], as [`View`] lets them be), nor what is sent to Redis.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::presence::Waiting;
use crate::cluster::view::{Position, View};
use crate::ids::ConnName;

/// How long an answer waits for Redis before it is given from what is known, ms.
pub const ANSWER_PATIENCE_MS: u64 = 3000;

#[derive(Debug, Default)]
pub struct Shared {
    pub view: View,
    held: BTreeMap<Arc<str>, HeldHere>,
    /// Tickets of the last operation that was left, and of the last one answered.
    asked: u64,
    answered: u64,
    /// The last change that an answered operation made or met.
    reached: Position,
    /// In order.
    waiting: VecDeque<Parked>,
}

/// A member that connections of this node hold.
#[derive(Debug, Default)]
pub struct HeldHere {
    conns: SmallVec<[ConnName; 1]>,
    pub state: Option<Arc<str>>,
}

/// An answer that has to follow what was asked before it.
#[derive(Debug)]
struct Parked {
    behind: u64,
    waiting: Waiting,
    since_ms: u64,
}

/// What became of a member when a connection of this node let go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// This node did not hold it by that connection; whether it does by others.
    Never { held: bool },
    /// Other connections of this node hold it.
    Held,
    /// This node holds it no longer.
    Last,
}

impl Shared {
    /// A connection holds a member; false if it did already.
    pub fn hold(&mut self, client_id: &Arc<str>, conn: ConnName) -> bool {
        let held = self.held.entry(client_id.clone()).or_default();
        let is_new = !held.conns.contains(&conn);
        if is_new {
            held.conns.push(conn);
        }
        is_new
    }

    pub fn set_state(&mut self, client_id: &str, state: Option<Arc<str>>) {
        if let Some(held) = self.held.get_mut(client_id) {
            held.state = state;
        }
    }

    pub fn release(&mut self, client_id: &str, conn: ConnName) -> Released {
        let Some(held) = self.held.get_mut(client_id) else {
            return Released::Never { held: false };
        };
        let before = held.conns.len();
        held.conns.retain(|c| *c != conn);
        if held.conns.len() == before {
            return Released::Never { held: true };
        }
        if !held.conns.is_empty() {
            return Released::Held;
        }
        self.held.remove(client_id);
        Released::Last
    }

    /// Members that this node holds, and their states as it has set them.
    pub fn held(&self) -> impl Iterator<Item = (&Arc<str>, &HeldHere)> {
        self.held.iter()
    }

    /// Connections of this node that hold a member.
    pub fn connections(&self, client_id: &str) -> usize {
        self.held.get(client_id).map_or(0, |held| held.conns.len())
    }

    pub fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// An operation has been left.
    pub fn note_asked(&mut self, ticket: u64) {
        self.asked = ticket;
    }

    /// An operation has been answered; they are in order.
    pub fn note_answered(&mut self, ticket: u64, at: Option<Position>) {
        self.answered = self.answered.max(ticket);
        self.reached = self.reached.max(at.unwrap_or_default());
    }

    /// What was reached is not known to come: members begin from a snapshot.
    pub fn restart(&mut self) {
        self.view.restart();
        self.reached = Position::default();
    }

    /// Keeps an answer until everything asked before it is seen.
    pub fn park(&mut self, waiting: Waiting, now_ms: u64) {
        self.waiting.push_back(Parked {
            behind: self.asked,
            waiting,
            since_ms: now_ms,
        });
    }

    /// The next answer that can be given; where `follows` is false there is nothing to be waited for.
    pub fn next_ready(&mut self, follows: bool, now_ms: u64) -> Option<Waiting> {
        let Self {
            view,
            answered,
            reached,
            waiting,
            ..
        } = self;
        let parked = waiting.pop_front_if(|parked| {
            let seen = parked.behind <= *answered && view.is_known() && view.has_reached(*reached);
            !follows || seen || now_ms.saturating_sub(parked.since_ms) >= ANSWER_PATIENCE_MS
        });
        parked.map(|parked| parked.waiting)
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Nothing of it is worth keeping.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty() && self.answered >= self.asked
    }
}
