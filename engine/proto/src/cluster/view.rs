//! How one node follows the members of one channel.
//!
//! Redis holds the members and numbers every change: a version within an epoch, which begins with the first member and
//! ends with the last. Changes come by publish/subscribe, which may lose them; a snapshot mends that. This decides in
//! which order changes are applied, when a snapshot is wanted and what of it is news. Not here: the members themselves
//! (`channel::presence`), scripts and connections.
//!
//! ```text
//!  Unknown ── topic confirmed ──► asks a snapshot ── answer ──► Known ── a hole ──► asks again
//!     ▲                                                          │ next version: applied
//!     └──────────────────── topic confirmed again ◄──────────────┘ older: dropped
//! ```
//! Invariants: a change is applied once, and after all that came before it; whatever arrives or is lost, the last
//! answered snapshot and the changes behind it are what is shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::channel::presence::Event;

/// Changes that may wait for a snapshot: more make another one necessary.
pub const EARLY_MAX: usize = 512;

/// A place in a channel's changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Redis's time (us since the Unix epoch) when the channel got its first member.
    pub epoch: u64,
    pub version: u64,
}

/// A change as Redis tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub at: Position,
    /// It was the last member: the epoch has ended.
    pub ended: bool,
    pub event: Event,
}

/// A member as a snapshot shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub client_id: Arc<str>,
    /// ms since the Unix epoch.
    pub joined_at: u64,
    /// JSON text of an object.
    pub state: Option<Arc<str>>,
}

/// All members at one moment. Without any, `at` is that moment (an epoch to come is later) with version 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    pub at: Position,
    pub members: Vec<Shown>,
}

/// What an answered snapshot brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// Nothing: it is older than what is known, or was not asked for.
    Nothing,
    /// The first one: nobody is told of these members, but of the changes that came since the topic was heard.
    First(Vec<Shown>, Vec<Event>),
    /// What differs from it has changed unheard.
    Replace(Vec<Shown>),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct View {
    known: Option<Known>,
    /// Members were shown before: what is new since then is news.
    has_shown: bool,
    /// Changes that do not follow yet.
    early: BTreeMap<Position, Told>,
    /// Changes were thrown away.
    lost: bool,
    /// Number of the snapshot that is under way.
    asked: Option<u32>,
    numbers: u32,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    at: Position,
    ended: bool,
}

impl View {
    /// A change has come; [`View::take_next`] has what can be applied.
    pub fn note(&mut self, told: Told) {
        if self.known.is_some_and(|known| told.at <= known.at) {
            return;
        }
        if self.early.len() >= EARLY_MAX {
            self.early.clear();
            self.lost = true;
            return;
        }
        self.early.insert(told.at, told);
    }

    /// The next change to be applied.
    pub fn take_next(&mut self) -> Option<Event> {
        let known = self.known?;
        let first = self.early.first_entry()?;
        let at = *first.key();
        let follows = if at.epoch == known.at.epoch {
            at.version == known.at.version + 1
        } else {
            known.ended && at.version == 1
        };
        follows.then(|| {
            let told = first.remove();
            self.known = Some(Known {
                at,
                ended: told.ended,
            });
            told.event
        })
    }

    /// The number of a snapshot that is to be asked for, if one is wanted and none is under way. To be called when
    /// [`View::take_next`] has no more.
    pub fn ask(&mut self) -> Option<u32> {
        let wanted = self.known.is_none() || !self.early.is_empty() || self.lost;
        if !wanted || self.asked.is_some() {
            return None;
        }
        self.lost = false;
        self.numbers = self.numbers.wrapping_add(1);
        self.asked = Some(self.numbers);
        self.asked
    }

    /// A snapshot has come. [`View::take_next`] and [`View::ask`] go on from it.
    pub fn answer(&mut self, number: u32, snapshot: Snapshot) -> Answered {
        if self.asked != Some(number) {
            return Answered::Nothing;
        }
        self.asked = None;
        let Snapshot { at, members } = snapshot;
        if self.known.is_some_and(|known| at <= known.at) {
            // Of the same epoch, or of none that is over: what was applied since is newer.
            return Answered::Nothing;
        }
        let later = self.early.split_off(&Position {
            version: at.version + 1,
            ..at
        });
        let heard = std::mem::replace(&mut self.early, later);
        self.known = Some(Known {
            at,
            ended: members.is_empty(),
        });
        if std::mem::replace(&mut self.has_shown, true) {
            return Answered::Replace(members);
        }
        let heard = heard.into_values().map(|told| told.event);
        Answered::First(members, heard.collect())
    }

    /// There is no snapshot: another is to be asked for, at a time of the caller's choosing.
    pub fn fail(&mut self, number: u32) {
        if self.asked == Some(number) {
            self.asked = None;
            self.lost = true;
        }
    }

    /// The topic is heard from here on, but may not have been before: everything is to be looked at again.
    pub fn restart(&mut self) {
        self.known = None;
        self.asked = None;
        self.early.clear();
        self.lost = false;
    }

    /// Nobody here follows the channel any more.
    pub fn forget(&mut self) {
        let numbers = self.numbers;
        *self = Self {
            numbers,
            ..Self::default()
        };
    }

    /// Whether members are known as of `position`, or later.
    pub fn has_reached(&self, position: Position) -> bool {
        self.known.is_some_and(|known| known.at >= position)
    }

    pub fn is_known(&self) -> bool {
        self.known.is_some()
    }
}
