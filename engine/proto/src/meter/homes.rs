//! The limits that one shard is home to.
//!
//! A home of a rate is forgotten when nothing of it counts any more, which loses nothing; they are at most
//! [`HOMES_MAX`], and who asks about one more is told to come again. A home of a plan's totals stays.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::{Account, LimitMsg, Resource};
use crate::ids::{Now, ShardId};
use crate::quota::month_of;
use crate::rate::RateWindow;
use crate::rate::lease::{
    Home, LEASE_MS, Note, Notes, Pool, RETRY_MS, Report, Terms, TotalPool, WindowPool,
};
use crate::rate::table::Scope;

/// Limits that a shard is home to: 200 MiB at worst.
const HOMES_MAX: usize = 1 << 20;
/// What is granted where the home knows of no limit: settings reach the shards within milliseconds of each other, and
/// so little is soon asked for again.
const UNLIMITED_GRANT: u32 = 16;
/// Looked at per tick, whether they are idle.
const LOOKED_AT_PER_TICK: usize = 8192;

/// A plan's messages: of a day, and of its month.
#[derive(Debug, Clone, Copy)]
struct MessagePool {
    day: TotalPool,
    month: TotalPool,
}

impl Pool for MessagePool {
    fn room(&mut self, now_ms: u64) -> u32 {
        self.day.room(now_ms).min(self.month.room(now_ms))
    }

    fn charge(&mut self, now_ms: u64, count: u32) {
        self.day.charge(now_ms, count);
        self.month.charge(now_ms, count);
    }

    fn give_back(&mut self, now_ms: u64, at_ms: u64, count: u32) {
        self.day.give_back(now_ms, at_ms, count);
        self.month.give_back(now_ms, at_ms, count);
    }

    fn retry_ms(&self, now_ms: u64) -> u64 {
        self.day.retry_ms(now_ms)
    }

    fn share(&self, room: u32, sharers: u32) -> u32 {
        self.day.share(room, sharers)
    }
}

#[derive(Debug)]
enum Entry {
    Rate(Home<WindowPool>),
    Held(Home<TotalPool>),
    Messages { home: Home<MessagePool>, day: u32 },
}

type Key = (Arc<str>, Resource);

#[derive(Debug)]
pub(super) struct Homes {
    entries: HashMap<Key, Entry, FixedState>,
    /// Rates, in the order in which they are looked at.
    to_look_at: VecDeque<Key>,
}

impl Homes {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: HashMap::with_hasher(FixedState::with_seed(seed)),
            to_look_at: VecDeque::new(),
        }
    }

    /// A holder's note; `account` is that of the app.
    pub(super) fn handle(
        &mut self,
        from: ShardId,
        account: &Account,
        msg: &LimitMsg,
        shards: u16,
        now: Now,
    ) -> Notes {
        let now_ms = now.mono_ms();
        match &msg.resource {
            Resource::App(bucket) | Resource::Client(bucket, _) | Resource::Channel(bucket, _) => {
                let scope = match &msg.resource {
                    Resource::App(_) => Scope::App,
                    Resource::Channel(..) => Scope::Channel,
                    _ => Scope::Client,
                };
                let Some(mut limit) = account.limit_of(*bucket, scope) else {
                    return plenty(from, msg.note, now_ms);
                };
                if scope == Scope::App {
                    limit = limit.part(account.elsewhere.share);
                }
                let fresh = || {
                    Entry::Rate(Home::new(
                        WindowPool {
                            window: RateWindow::default(),
                            limit,
                        },
                        now_ms,
                    ))
                };
                match self.enter(msg, fresh) {
                    Some(Entry::Rate(home)) => {
                        home.pool.limit = limit;
                        let terms = Terms::of_window(&limit, shards);
                        tell(home, from, msg.note, &terms, now_ms)
                    }
                    Some(_) | None => nothing(from, msg.note, now_ms),
                }
            }
            Resource::Connections | Resource::Channels => {
                let plan = account.plan();
                let most = plan.and_then(|plan| match &msg.resource {
                    Resource::Connections => plan.connections_max,
                    _ => plan.channels_max,
                });
                let elsewhere = match &msg.resource {
                    Resource::Connections => account.elsewhere.connections,
                    _ => account.elsewhere.channels,
                };
                // A plan that has not reached this shard yet: what is in use is taken note of, and nothing granted.
                let most = most.unwrap_or(0).saturating_sub(elsewhere);
                let fresh = || Entry::Held(Home::new(TotalPool::new(most, 0, true), now_ms));
                match self.enter(msg, fresh) {
                    Some(Entry::Held(home)) => {
                        home.pool.most = i64::try_from(most).unwrap_or(i64::MAX);
                        let terms = Terms::of_total(most, shards);
                        tell(home, from, msg.note, &terms, now_ms)
                    }
                    Some(_) | None => nothing(from, msg.note, now_ms),
                }
            }
            Resource::Messages => self.handle_messages(from, account, msg, shards, now_ms),
        }
    }

    fn handle_messages(
        &mut self,
        from: ShardId,
        account: &Account,
        msg: &LimitMsg,
        shards: u16,
        now_ms: u64,
    ) -> Notes {
        let plan = account.plan().filter(|plan| plan.limits_messages());
        let [per_day, per_month] = match plan {
            Some(plan) => {
                [plan.messages_per_day, plan.messages_per_month].map(|n| n.unwrap_or(u64::MAX))
            }
            // Not here yet; see above.
            None => [0, 0],
        };
        // What others have used there is less of for this node.
        let elsewhere = account.elsewhere.totals.on(msg.day);
        let per_day = per_day.saturating_sub(elsewhere.messages_day);
        let per_month = per_month.saturating_sub(elsewhere.messages_month);
        let of_day = |day| {
            let used = account.totals.on(day);
            MessagePool {
                day: TotalPool::new(per_day, used.messages_day, false),
                month: TotalPool::new(per_month, used.messages_month, false),
            }
        };
        let fresh = || Entry::Messages {
            home: Home::new(of_day(msg.day), now_ms),
            day: msg.day,
        };
        let Some(Entry::Messages { home, day }) = self.enter(msg, fresh) else {
            return nothing(from, msg.note, now_ms);
        };
        home.pool.day.most = i64::try_from(per_day).unwrap_or(i64::MAX);
        home.pool.month.most = i64::try_from(per_month).unwrap_or(i64::MAX);
        if msg.day > *day {
            let mut pool = home.pool;
            pool.day.used = 0;
            if month_of(msg.day) != month_of(*day) {
                pool.month.used = 0;
            }
            *home = Home::new(pool, now_ms);
            *day = msg.day;
        } else if msg.day < *day {
            // Of a day that is over: what is left of it is the month's alone.
            if month_of(msg.day) == month_of(*day)
                && let Note::Ask(report) | Note::Return(report) = msg.note
            {
                home.pool.month.give_back(now_ms, now_ms, report.unused);
                home.pool.month.charge(now_ms, report.debt);
            }
            return nothing(from, msg.note, now_ms);
        }
        let terms = Terms::of_total(per_day.min(per_month), shards);
        tell(home, from, msg.note, &terms, now_ms)
    }

    /// Asks for what is granted of a plan's total and not used; with the day that is meant.
    pub(super) fn recall(&mut self, app: &Arc<str>, resource: &Resource) -> (Notes, u32) {
        match self.entries.get_mut(&(app.clone(), resource.clone())) {
            Some(Entry::Held(home)) => (home.recall_all(), 0),
            Some(Entry::Messages { home, day }) => (home.recall_all(), *day),
            Some(Entry::Rate(_)) | None => (Notes::new(), 0),
        }
    }

    fn enter(&mut self, msg: &LimitMsg, fresh: impl FnOnce() -> Entry) -> Option<&mut Entry> {
        let key = (msg.app.clone(), msg.resource.clone());
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= HOMES_MAX {
                return None;
            }
            let entry = fresh();
            if matches!(entry, Entry::Rate(_)) {
                self.to_look_at.push_back(key.clone());
            }
            self.entries.insert(key.clone(), entry);
        }
        self.entries.get_mut(&key)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets what was counted against a plan that no longer says anything about it.
    pub(super) fn forget(&mut self, app: &Arc<str>, resource: Resource) {
        self.entries.remove(&(app.clone(), resource));
    }

    /// Forgets rates that nobody has used for so long that nothing of them counts.
    pub(super) fn forget_idle(&mut self, now_ms: u64) {
        for _ in 0..LOOKED_AT_PER_TICK.min(self.to_look_at.len()) {
            let Some(key) = self.to_look_at.pop_front() else {
                return;
            };
            let is_over = match self.entries.get(&key) {
                Some(Entry::Rate(home)) => {
                    home.pool.window.is_over(now_ms, &home.pool.limit)
                        && home.idle_ms(now_ms) > 4 * LEASE_MS
                }
                Some(_) | None => true,
            };
            if is_over {
                self.entries.remove(&key);
            } else {
                self.to_look_at.push_back(key);
            }
        }
    }
}

fn tell<P: Pool>(
    home: &mut Home<P>,
    from: ShardId,
    note: Note,
    terms: &Terms,
    now_ms: u64,
) -> Notes {
    match note {
        Note::Ask(report) => home.on_ask(from, report, terms, now_ms),
        Note::Return(report) => home.on_return(from, report, terms, now_ms),
        Note::Grant { .. } | Note::Recall => Notes::new(),
    }
}

/// There is no limit here (any more, or yet): settings reach the shards one after another.
fn plenty(from: ShardId, note: Note, now_ms: u64) -> Notes {
    answer(from, note, UNLIMITED_GRANT, now_ms)
}

fn nothing(from: ShardId, note: Note, now_ms: u64) -> Notes {
    answer(from, note, 0, now_ms)
}

fn answer(from: ShardId, note: Note, count: u32, now_ms: u64) -> Notes {
    let grant = Note::Grant {
        count,
        until_ms: now_ms.saturating_add(LEASE_MS),
        retry_ms: now_ms.saturating_add(RETRY_MS),
        is_scarce: count == 0,
    };
    match note {
        Note::Ask(Report { .. }) => std::iter::once((from, grant)).collect(),
        Note::Return(_) | Note::Grant { .. } | Note::Recall => Notes::new(),
    }
}
