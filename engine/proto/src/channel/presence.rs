//! The members of one channel, at its home shard (contract D20).
//!
//! A member is a client id, however many of its connections have entered. It stays while one of
//! them holds it, and after the last one was lost until a deadline that the caller has set. Decides
//! who is a member and which notices the channel's receivers get; not who the receivers are, nor
//! when a deadline has passed.
//!
//! ```text
//!            put                       lose (the last connection, may return)
//!  absent ─────────► held by 1.. ─────────────────────────────────────► away
//!     ▲  enter          │   ▲  update       attach (no notice), put        │
//!     └─── leave ───────┘   └──────────────────────────────────────────────┤
//!     └─── leave ────────────────────────────── expire, leave ─────────────┘
//! ```
//! Invariants: each `enter` that was noted is followed by one `leave` of the same client before the
//! next `enter`, but for what happens while members are only counted; what the receivers are told
//! ends with the truth.
//!
//! Above `events_max` members there are no notices per member: the receivers get the number, once
//! when that begins and then in intervals while it changes. Well below the bound a last number with
//! `events: true` says that notices per member go on.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::cluster::view::Shown;
use crate::error::ErrorCode;
use crate::ids::{ConnName, Now};
use crate::limits::{
    PRESENCE_BATCH_BYTES, PRESENCE_COUNT_INTERVAL_MS, PRESENCE_COUNT_MEMBERS_PER_INTERVAL,
};
use crate::url::Shape;

/// Bytes of a notice besides client id and state, roughly.
const NOTICE_BYTES: usize = 160;

/// What a receiver is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Event(Event),
    Count(Count),
}

/// Something that happened to one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub client_id: Arc<str>,
    /// Server time of its `enter`, ms since the Unix epoch.
    pub joined_at: u64,
    /// JSON text of an object.
    pub state: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Enter,
    Update,
    Leave,
}

/// The number of members, where they are too many to be told of one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    pub members: usize,
    /// Server time, ms since the Unix epoch.
    pub timestamp: u64,
    /// Whether notices per member follow this one.
    pub events: bool,
}

/// Bounds of a channel's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Most members; further ones are refused.
    pub members_max: usize,
    /// Most members with notices for each.
    pub events_max: usize,
}

/// What became of a member when a connection let go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parted {
    /// Nothing: others hold it, or it was not this connection's.
    Stays,
    /// Gone; whether it had been away.
    Left { was_away: bool },
    /// No connection holds it any more, and it may come back.
    Away,
}

/// Who waits for an answer that has to follow the notices noted before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// A `presence.get`.
    Get {
        to: ConnName,
        place: u32,
        shape: Shape,
    },
    /// A connection whose `presence.leave` has been done.
    Left { to: ConnName, number: u32 },
}

/// A member as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub client_id: Arc<str>,
    pub joined_at: u64,
    pub state: Option<Arc<str>>,
    /// 0 for one that is away.
    pub connections: usize,
}

#[derive(Debug)]
struct Member {
    state: Option<Arc<str>>,
    joined_at: u64,
    /// Those that have entered, or to which the member has returned; none: it is away.
    conns: SmallVec<[ConnName; 1]>,
    /// When it leaves if it is away, monotonic ms.
    leaves_at_ms: u64,
}

#[derive(Debug, Default)]
pub struct Members {
    /// By client id: the order of lists, in which a page is found again whatever has changed.
    ///
    /// Boxed: who comes in order of the ids leaves the tree's nodes half empty.
    by_id: BTreeMap<Arc<str>, Box<Member>>,
    /// Notices not yet taken.
    pending: VecDeque<Notice>,
    pub waiting: Vec<Waiting>,
    /// Listed by its shard as having something to tell.
    pub queued: bool,
    /// Members are too many for notices about each.
    counting: bool,
    /// The number last told since then.
    counted: Option<usize>,
    /// When a number may be told again, monotonic ms.
    count_due_ms: u64,
    /// What happens to members while somebody wants to know, however many there are.
    observed: Option<Box<Observed>>,
}

#[derive(Debug, Default)]
struct Observed {
    events: Vec<Event>,
    /// They are of members from before.
    stands: bool,
}

impl Members {
    /// A connection enters or updates a member; true if it had been away.
    ///
    /// Errors: 42913 when it would be one too many.
    pub fn put(
        &mut self,
        client_id: &Arc<str>,
        conn: ConnName,
        state: Option<Arc<str>>,
        rules: Rules,
        now: Now,
    ) -> Result<bool, ErrorCode> {
        let members = self.by_id.len();
        match self.by_id.entry(client_id.clone()) {
            Entry::Occupied(mut entry) => {
                let member = entry.get_mut();
                let was_away = member.conns.is_empty();
                if !member.conns.contains(&conn) {
                    member.conns.push(conn);
                }
                member.state = state;
                let event = event_of(EventKind::Update, client_id, member);
                self.note(event);
                Ok(was_away)
            }
            Entry::Vacant(entry) => {
                if members >= rules.members_max {
                    return Err(ErrorCode::PresenceFull);
                }
                let member = entry.insert(Box::new(Member {
                    state,
                    joined_at: now.unix_ms,
                    conns: SmallVec::from_buf([conn]),
                    leaves_at_ms: 0,
                }));
                let event = event_of(EventKind::Enter, client_id, member);
                self.count_from(rules, now);
                self.note(event);
                Ok(false)
            }
        }
    }

    /// A connection's client wants to leave.
    pub fn leave(&mut self, client_id: &str, conn: ConnName, rules: Rules, now: Now) -> Parted {
        let Some(member) = self.by_id.get_mut(client_id) else {
            return Parted::Stays;
        };
        let was_away = member.conns.is_empty();
        member.conns.retain(|c| *c != conn);
        if !member.conns.is_empty() {
            return Parted::Stays;
        }
        self.remove(client_id, rules, now);
        Parted::Left { was_away }
    }

    /// A connection has ended. With a deadline (monotonic ms) the member may come back until then.
    pub fn lose(
        &mut self,
        client_id: &str,
        conn: ConnName,
        leaves_at_ms: Option<u64>,
        rules: Rules,
        now: Now,
    ) -> Parted {
        let Some(member) = self.by_id.get_mut(client_id) else {
            return Parted::Stays;
        };
        let before = member.conns.len();
        member.conns.retain(|c| *c != conn);
        if member.conns.len() == before || !member.conns.is_empty() {
            return Parted::Stays;
        }
        match leaves_at_ms {
            Some(deadline) => {
                member.leaves_at_ms = deadline;
                Parted::Away
            }
            None => {
                self.remove(client_id, rules, now);
                Parted::Left { was_away: false }
            }
        }
    }

    /// A member that is away comes back on another connection: nobody is told. False if it is not.
    pub fn attach(&mut self, client_id: &str, conn: ConnName) -> bool {
        let away = self.by_id.get_mut(client_id);
        let Some(member) = away.filter(|m| m.conns.is_empty()) else {
            return false;
        };
        member.conns.push(conn);
        true
    }

    /// Someone is a member from before, and away until a deadline (monotonic ms): nobody is told. False if it is one
    /// already, or would be one too many.
    pub fn restore(
        &mut self,
        client_id: &Arc<str>,
        (joined_at, state): (u64, Option<Arc<str>>),
        leaves_at_ms: u64,
        rules: Rules,
        now: Now,
    ) -> bool {
        if self.by_id.len() >= rules.members_max || self.by_id.contains_key(client_id) {
            return false;
        }
        let member = Member {
            state,
            joined_at,
            conns: SmallVec::new(),
            leaves_at_ms,
        };
        if let Some(observed) = &mut self.observed {
            observed.stands = true;
            let event = event_of(EventKind::Enter, client_id, &member);
            observed.events.push(event);
        }
        self.by_id.insert(client_id.clone(), Box::new(member));
        self.count_from(rules, now);
        true
    }

    /// A deadline has passed: the member leaves if it is still away because of it.
    pub fn expire(&mut self, client_id: &str, leaves_at_ms: u64, rules: Rules, now: Now) -> bool {
        let member = self.by_id.get(client_id);
        let is_due = member.is_some_and(|m| m.conns.is_empty() && m.leaves_at_ms == leaves_at_ms);
        if is_due {
            self.remove(client_id, rules, now);
        }
        is_due
    }

    /// Whether what happens from here on is to be told to whoever makes it happen.
    pub fn observe(&mut self, wanted: bool) {
        self.observed = wanted.then(Box::default);
    }

    /// What has happened since, and whether it is of members from before; none where nothing has.
    pub fn take_observed(&mut self) -> Option<(Vec<Event>, bool)> {
        let observed = self.observed.take()?;
        (!observed.events.is_empty()).then_some((observed.events, observed.stands))
    }

    /// A change as all nodes are told it.
    pub fn apply(&mut self, event: &Event, rules: Rules, now: Now) {
        let kind = match event.kind {
            EventKind::Leave => return self.remove(&event.client_id, rules, now),
            EventKind::Enter | EventKind::Update => event.kind,
        };
        let known = self.by_id.get_mut(&event.client_id);
        let kind = if known.is_some() {
            EventKind::Update
        } else {
            kind
        };
        match known {
            Some(member) => member.state.clone_from(&event.state),
            None => self.insert(
                &event.client_id,
                event.joined_at,
                event.state.clone(),
                rules,
                now,
            ),
        }
        self.note(Event {
            kind,
            ..event.clone()
        });
    }

    /// These are the members: who is told of what differs, if anybody `is_told`.
    pub fn replace(&mut self, mut shown: Vec<Shown>, is_told: bool, rules: Rules, now: Now) {
        let mut gone: Vec<Arc<str>> = self.by_id.keys().cloned().collect();
        shown.sort_unstable_by(|a, b| a.client_id.cmp(&b.client_id));
        gone.retain(|id| shown.binary_search_by(|s| s.client_id.cmp(id)).is_err());
        for client_id in gone {
            if is_told {
                self.remove(&client_id, rules, now);
            } else {
                self.by_id.remove(&client_id);
            }
        }
        for member in shown {
            let Shown {
                client_id,
                joined_at,
                state,
            } = member;
            let kind = match self.by_id.get(&client_id) {
                Some(known) if known.joined_at == joined_at && known.state == state => continue,
                Some(_) => EventKind::Update,
                None => EventKind::Enter,
            };
            let event = Event {
                kind,
                client_id: client_id.clone(),
                joined_at,
                state: state.clone(),
            };
            self.insert(&client_id, joined_at, state, rules, now);
            if is_told {
                self.note(event);
            }
        }
    }

    /// Tells of a change that the members have been through already.
    pub fn hear(&mut self, event: Event) {
        self.note(event);
    }

    fn insert(
        &mut self,
        client_id: &Arc<str>,
        joined_at: u64,
        state: Option<Arc<str>>,
        rules: Rules,
        now: Now,
    ) {
        let member = Member {
            state,
            joined_at,
            conns: SmallVec::new(),
            leaves_at_ms: 0,
        };
        self.by_id.insert(client_id.clone(), Box::new(member));
        self.count_from(rules, now);
    }

    /// The next notices for the receivers, in order, at most [`PRESENCE_BATCH_BYTES`] and one of
    /// them. While members are counted their number is among them, if it is due.
    pub fn take_notices(&mut self, now: Now) -> Vec<Notice> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < PRESENCE_BATCH_BYTES
            && let Some(notice) = self.pending.pop_front()
        {
            bytes += weight(&notice);
            taken.push(notice);
        }
        if self.pending.is_empty() {
            self.pending = VecDeque::new();
            if self.is_count_due(now) {
                let members = self.by_id.len();
                let intervals = 1 + members / PRESENCE_COUNT_MEMBERS_PER_INTERVAL;
                self.counted = Some(members);
                self.count_due_ms = now.mono_ms() + intervals as u64 * PRESENCE_COUNT_INTERVAL_MS;
                taken.push(Notice::Count(self.count(now)));
            }
        }
        taken
    }

    /// Whether there are notices that can be taken at once.
    pub fn has_notices(&self, now: Now) -> bool {
        !self.pending.is_empty() || self.is_count_due(now)
    }

    /// Members are being counted: their number has to be looked at from time to time.
    pub fn is_counting(&self) -> bool {
        self.counting
    }

    /// Nothing of it is worth keeping.
    pub fn is_idle(&self) -> bool {
        self.by_id.is_empty()
            && self.pending.is_empty()
            && self.waiting.is_empty()
            && (!self.counting || self.counted == Some(0))
    }

    /// The number of members as it would be told.
    pub fn count(&self, now: Now) -> Count {
        Count {
            members: self.by_id.len(),
            timestamp: now.unix_ms,
            events: !self.counting,
        }
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// When a member entered, ms since the Unix epoch.
    pub fn joined_at(&self, client_id: &str) -> Option<u64> {
        self.by_id.get(client_id).map(|member| member.joined_at)
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Members in order of their client ids, those after `after` alone.
    pub fn list(&self, after: Option<&str>) -> impl Iterator<Item = Listed> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_id
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(client_id, member)| Listed {
                client_id: client_id.clone(),
                joined_at: member.joined_at,
                state: member.state.clone(),
                connections: member.conns.len(),
            })
    }

    fn is_count_due(&self, now: Now) -> bool {
        self.counting
            && self.counted != Some(self.by_id.len())
            && now.mono_ms() >= self.count_due_ms
    }

    fn remove(&mut self, client_id: &str, rules: Rules, now: Now) {
        let Some((client_id, member)) = self.by_id.remove_entry(client_id) else {
            return;
        };
        // A number counts everybody: it stands for this leave too.
        let was_counting = self.counting;
        let few = rules.events_max - rules.events_max / 4;
        if was_counting && rules.events_max > 0 && self.by_id.len() <= few {
            self.counting = false;
            let count = self.count(now);
            self.pending.push_back(Notice::Count(count));
        }
        let event = event_of(EventKind::Leave, &client_id, &member);
        if was_counting {
            self.see(&event);
        } else {
            self.note(event);
        }
    }

    /// Begins to count where members have become too many.
    fn count_from(&mut self, rules: Rules, now: Now) {
        if !self.counting && self.by_id.len() > rules.events_max {
            self.counting = true;
            self.counted = None;
            self.count_due_ms = now.mono_ms();
        }
    }

    fn see(&mut self, event: &Event) {
        if let Some(observed) = &mut self.observed {
            observed.events.push(event.clone());
        }
    }

    fn note(&mut self, event: Event) {
        self.see(&event);
        if !self.counting {
            self.pending.push_back(Notice::Event(event));
        }
    }
}

fn event_of(kind: EventKind, client_id: &Arc<str>, member: &Member) -> Event {
    Event {
        kind,
        client_id: client_id.clone(),
        joined_at: member.joined_at,
        state: member.state.clone(),
    }
}

/// Bytes that a notice holds on to or is encoded in, roughly.
pub fn weight(notice: &Notice) -> usize {
    match notice {
        Notice::Event(event) => {
            let state = event.state.as_ref().map_or(0, |s| s.len());
            NOTICE_BYTES + event.client_id.len() + state
        }
        Notice::Count(_) => NOTICE_BYTES,
    }
}
