//! What stands: channels that are occupied, members that are present, connections that are open, and on which nodes.
//!
//! Whoever tells the back ends looks here first, so that each beginning is told once and followed by one end, whatever
//! processes begin, end or die in between. It is kept with the events; a process that starts, or takes over, goes on
//! from there.
//!
//! ```text
//!            Begins (told), Stands               Ends on the last node, or that node is lost
//!  absent ──────────────────────► held by 1.. ─────────────────────────────────────► ending
//!     ▲                              ▲ Begins, Stands on a node (not told)             │  │
//!     │                              └─────────────────────────────────────────────────┘  │
//!     └──────────────────────────── the delay is over (told) ─────────────────────────────┘
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{Kind, Note, Turn, VACATED_DELAY_MS};

/// What can stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fact {
    pub app: String,
    /// Of its beginning.
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

impl Fact {
    /// The one that a note begins, changes or ends.
    #[must_use]
    pub fn of(note: &Note) -> Option<Self> {
        let kind = match (note.turn, note.kind.pair()) {
            (Turn::Moment, _) => return None,
            (Turn::Changes, _) => Kind::Enter,
            (_, pair) => pair?.0,
        };
        Some(Self {
            app: note.app.clone(),
            kind,
            channel: note.channel.clone(),
            subject: note.subject.clone(),
        })
    }

    /// Unique among all: none of its parts holds a control character, but for the lines of a connection's subject.
    #[must_use]
    pub fn id(&self) -> String {
        let Self {
            app,
            kind,
            channel,
            subject,
        } = self;
        let channel = channel.as_deref().unwrap_or_default();
        let subject = subject.as_deref().unwrap_or_default();
        format!("{kind}\n{app}\n{channel}\n{subject}")
    }

    fn delay_ms(&self) -> u64 {
        match self.kind {
            Kind::Occupied => VACATED_DELAY_MS,
            _ => 0,
        }
    }
}

/// Where something stands, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub fact: Fact,
    /// None: it is ending.
    pub nodes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    nodes: SmallVec<[Arc<str>; 1]>,
    /// Nobody holds it any more; it ends then (ms since the Unix epoch).
    ends_ms: Option<u64>,
}

/// What becomes of a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Tell,
    /// Told, as a change of what stands already.
    TellChange,
    /// Nobody is told: nothing has changed, or not yet.
    Drop,
}

/// All that stands.
#[derive(Debug, Default)]
pub struct Standing {
    facts: BTreeMap<Fact, State>,
    ending: BTreeSet<(u64, Fact)>,
    /// What is not as it was last kept.
    changed: BTreeSet<Fact>,
}

impl Standing {
    /// Takes up what was kept. What was ending does not end before `grace_ms`: it may come back to this process.
    pub fn restore(&mut self, kept: Kept, now_ms: u64, grace_ms: u64) {
        let ends_ms = kept.ends_ms.map(|ends| ends.max(now_ms + grace_ms));
        if let Some(ends_ms) = ends_ms {
            self.ending.insert((ends_ms, kept.fact.clone()));
        }
        let state = State {
            nodes: kept.nodes.iter().map(|node| node.as_str().into()).collect(),
            ends_ms,
        };
        self.facts.insert(kept.fact, state);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// A node's note about something that stands, begins or ends.
    pub fn note(&mut self, fact: Fact, turn: Turn, node: &Arc<str>, now_ms: u64) -> Verdict {
        match turn {
            Turn::Moment => Verdict::Tell,
            Turn::Changes if self.facts.contains_key(&fact) => Verdict::Tell,
            // It has begun before anybody wanted to know.
            Turn::Changes => {
                self.begin(fact, Turn::Stands, node);
                Verdict::Tell
            }
            Turn::Begins | Turn::Stands => self.begin(fact, turn, node),
            Turn::Ends => self.end(fact, node, now_ms),
        }
    }

    fn begin(&mut self, fact: Fact, turn: Turn, node: &Arc<str>) -> Verdict {
        let is_member = fact.kind == Kind::Enter;
        match self.facts.entry(fact) {
            Entry::Vacant(entry) => {
                self.changed.insert(entry.key().clone());
                entry.insert(State {
                    nodes: SmallVec::from_buf([node.clone()]),
                    ends_ms: None,
                });
                match turn {
                    Turn::Stands => Verdict::Drop,
                    _ => Verdict::Tell,
                }
            }
            Entry::Occupied(mut entry) => {
                let ends_ms = entry.get_mut().ends_ms.take();
                if let Some(ends_ms) = ends_ms {
                    self.changed.insert(entry.key().clone());
                    self.ending.remove(&(ends_ms, entry.key().clone()));
                }
                if !entry.get().nodes.contains(node) {
                    self.changed.insert(entry.key().clone());
                    entry.get_mut().nodes.push(node.clone());
                }
                match turn {
                    Turn::Begins if is_member => Verdict::TellChange,
                    _ => Verdict::Drop,
                }
            }
        }
    }

    fn end(&mut self, fact: Fact, node: &Arc<str>, now_ms: u64) -> Verdict {
        let delay_ms = fact.delay_ms();
        let Some(state) = self.facts.get_mut(&fact) else {
            return Verdict::Drop;
        };
        let before = state.nodes.len();
        state.nodes.retain(|n| n != node);
        if !state.nodes.is_empty() {
            if state.nodes.len() != before {
                self.changed.insert(fact);
            }
            return Verdict::Drop;
        }
        if state.ends_ms.is_none() && delay_ms > 0 {
            self.changed.insert(fact.clone());
            state.ends_ms = Some(now_ms + delay_ms);
            self.ending.insert((now_ms + delay_ms, fact));
            return Verdict::Drop;
        }
        if delay_ms > 0 {
            return Verdict::Drop;
        }
        self.remove(&fact);
        Verdict::Tell
    }

    /// A node is gone: what stood there alone ends after `grace_ms`, connections at once. Returns whether there was any.
    pub fn lose_node(&mut self, node: &str, now_ms: u64, grace_ms: u64) -> bool {
        let mut any = false;
        for (fact, state) in &mut self.facts {
            let before = state.nodes.len();
            state.nodes.retain(|n| &**n != node);
            if state.nodes.len() == before {
                continue;
            }
            any = true;
            if !state.nodes.is_empty() {
                self.changed.insert(fact.clone());
            } else if state.ends_ms.is_none() {
                let grace_ms = if fact.kind == Kind::Connected {
                    0
                } else {
                    grace_ms
                };
                state.ends_ms = Some(now_ms + grace_ms);
                self.ending.insert((now_ms + grace_ms, fact.clone()));
            }
        }
        any
    }

    /// The nodes that hold something.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<Arc<str>> {
        let nodes = self.facts.values().flat_map(|state| &state.nodes);
        nodes.cloned().collect()
    }

    /// What has ended by `now_ms`: to be told.
    pub fn take_ended(&mut self, now_ms: u64, most: usize) -> Vec<Fact> {
        let mut ended = Vec::new();
        while ended.len() < most
            && let Some((_, fact)) = self.ending.pop_first_if(|(due, _)| *due <= now_ms)
        {
            self.remove(&fact);
            ended.push(fact);
        }
        ended
    }

    /// When the next of it ends, ms since the Unix epoch.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.ending.first().map(|(due, _)| *due)
    }

    /// What is to be kept, and what no longer: `None`.
    pub fn take_changes(&mut self) -> Vec<(Fact, Option<Kept>)> {
        let changed = std::mem::take(&mut self.changed);
        let kept = changed.into_iter().map(|fact| {
            let kept = self.facts.get(&fact).map(|state| Kept {
                fact: fact.clone(),
                nodes: state.nodes.iter().map(ToString::to_string).collect(),
                ends_ms: state.ends_ms,
            });
            (fact, kept)
        });
        kept.collect()
    }

    /// Forgets all of an app whose events nobody wants any more.
    pub fn forget_app(&mut self, app: &str) {
        let of_app: Vec<Fact> = self
            .facts
            .keys()
            .filter(|fact| fact.app == app)
            .cloned()
            .collect();
        for fact in of_app {
            self.remove(&fact);
        }
    }

    fn remove(&mut self, fact: &Fact) {
        if let Some(state) = self.facts.remove(fact) {
            if let Some(ends_ms) = state.ends_ms {
                self.ending.remove(&(ends_ms, fact.clone()));
            }
            self.changed.insert(fact.clone());
        }
    }
}

/// As the method of the standard library, which is not stable.
trait PopFirstIf<T> {
    fn pop_first_if(&mut self, holds: impl FnOnce(&T) -> bool) -> Option<T>;
}

impl<T: Ord> PopFirstIf<T> for BTreeSet<T> {
    fn pop_first_if(&mut self, holds: impl FnOnce(&T) -> bool) -> Option<T> {
        self.first().is_some_and(holds).then(|| self.pop_first())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(kind: Kind) -> Fact {
        Fact {
            app: "a".into(),
            kind,
            channel: Some("c".into()),
            subject: (kind != Kind::Occupied).then(|| "u".into()),
        }
    }

    fn node(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn a_channel_that_is_empty_for_a_moment_stays_occupied() {
        let (mut all, n, c) = (Standing::default(), node("n"), fact(Kind::Occupied));
        assert_eq!(all.note(c.clone(), Turn::Begins, &n, 0), Verdict::Tell);
        assert_eq!(all.note(c.clone(), Turn::Ends, &n, 10), Verdict::Drop);
        assert_eq!(all.next_due_ms(), Some(10 + VACATED_DELAY_MS));
        assert_eq!(all.note(c.clone(), Turn::Begins, &n, 20), Verdict::Drop);
        assert!(all.take_ended(u64::MAX, 10).is_empty());
        assert_eq!(all.note(c.clone(), Turn::Ends, &n, 30), Verdict::Drop);
        assert!(all.take_ended(29 + VACATED_DELAY_MS, 10).is_empty());
        assert_eq!(
            all.take_ended(30 + VACATED_DELAY_MS, 10),
            std::slice::from_ref(&c)
        );
        assert_eq!(all.note(c, Turn::Begins, &n, 9000), Verdict::Tell);
    }

    #[test]
    fn what_stands_on_two_nodes_ends_with_the_last() {
        let (mut all, c) = (Standing::default(), fact(Kind::Occupied));
        let (n, m) = (node("n"), node("m"));
        assert_eq!(all.note(c.clone(), Turn::Begins, &n, 0), Verdict::Tell);
        assert_eq!(all.note(c.clone(), Turn::Begins, &m, 0), Verdict::Drop);
        assert_eq!(all.note(c.clone(), Turn::Ends, &n, 0), Verdict::Drop);
        assert_eq!(all.next_due_ms(), None);
        assert!(all.lose_node("m", 100, 15_000));
        assert_eq!(all.take_ended(15_100, 10), [c]);
    }

    #[test]
    fn a_member_that_comes_back_after_a_crash_has_not_left() {
        let (mut all, m) = (Standing::default(), fact(Kind::Enter));
        let kept = Kept {
            fact: m.clone(),
            nodes: vec!["before".into()],
            ends_ms: None,
        };
        all.restore(kept, 0, 15_000);
        all.lose_node("before", 0, 15_000);
        let n = node("n");
        assert_eq!(
            all.note(m.clone(), Turn::Begins, &n, 5),
            Verdict::TellChange
        );
        assert!(all.take_ended(u64::MAX, 10).is_empty());
        assert_eq!(all.note(m.clone(), Turn::Ends, &n, 9), Verdict::Tell);
        assert_eq!(all.note(m, Turn::Ends, &n, 9), Verdict::Drop);
    }

    #[test]
    fn what_was_ending_ends_in_the_next_process_unless_it_comes_back() {
        let (mut all, n, c) = (Standing::default(), node("n"), fact(Kind::Occupied));
        all.note(c.clone(), Turn::Begins, &n, 0);
        all.note(c.clone(), Turn::Ends, &n, 10);
        let kept = all.take_changes().pop().and_then(|(_, kept)| kept).unwrap();
        let mut next = Standing::default();
        next.restore(kept.clone(), 100, 15_000);
        assert_eq!(next.take_ended(15_100, 10), std::slice::from_ref(&c));
        let mut next = Standing::default();
        next.restore(kept, 100, 15_000);
        let verdict = next.note(c.clone(), Turn::Begins, &node("m"), 200);
        assert_eq!(verdict, Verdict::Drop);
        assert!(next.take_ended(u64::MAX, 10).is_empty());
        let [(_, Some(kept))] = &next.take_changes()[..] else {
            panic!("it is kept that it stands again");
        };
        assert_eq!((&*kept.nodes, kept.ends_ms), (&["m".to_owned()][..], None));
    }

    #[test]
    fn connections_of_a_lost_node_end_at_once() {
        let (mut all, c) = (Standing::default(), fact(Kind::Connected));
        all.note(c.clone(), Turn::Begins, &node("n"), 0);
        all.lose_node("n", 7, 15_000);
        assert_eq!(all.take_ended(7, 10), [c]);
    }

    #[test]
    fn what_is_kept_is_what_stands() {
        let (mut all, m) = (Standing::default(), fact(Kind::Enter));
        let n = node("n");
        all.note(m.clone(), Turn::Stands, &n, 0);
        let changes = all.take_changes();
        assert_eq!(changes[0].1.as_ref().unwrap().nodes, ["n"]);
        assert!(all.take_changes().is_empty());
        all.note(m.clone(), Turn::Ends, &n, 0);
        assert_eq!(all.take_changes(), [(m, None)]);
    }
}
