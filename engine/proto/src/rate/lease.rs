//! A limit that several shards share, without asking for each use: allowance on lease.
//!
//! One shard is home to the limit and holds its [`Pool`]; every shard that uses it (the home shard too) holds a
//! [`Lease`] and spends from it. The two talk in [`Note`]s, which the caller carries in order.
//!
//! ```text
//!  holder                                   home
//!  runs low ───────── Ask{debt, unused} ──► takes back what is unused, charges the debt,
//!           ◄──────── Grant{count, …} ───── charges what it grants
//!                                           somebody asks and there is nothing left:
//!           ◄──────── Recall ────────────── all others are asked for what they have not used
//!  gives it up ────── Return{debt, unused}► who asked in vain is granted it
//! ```
//!
//! While an answer is under way a holder may spend up to [`Terms::debt_max`] that it does not have: this is charged
//! when the home hears of it, also beyond the limit. After an answer without a grant there is no more of it until the
//! window has room again (by itself, as far as the home knew); where nothing slides, until there is a grant.
//!
//! **Bounds**, for `n` shards, debt `d`, and a way there and back of `w` ms:
//! - what is charged at the home exceeds what its pool alone would admit by at most `n · d` in each window: a pool does
//!   not carry it over;
//! - what is spent was charged at most [`LEASE_MS`]` · 2` before, or is charged at most `w` after. So in any time `t` at
//!   most as much is spent as the pool admits in `t + 2 · LEASE_MS + w`, plus `n · d` for each window in it.
//!   Leases of pools that do not slide ([`Terms::lease_ms`] of [`NO_END`]) have no such shift;
//! - while somebody wants it, the limit is spent but for what is on its way: the others' unused allowance is there
//!   `2 · w` after it was asked for. Over many windows that is at least 95 % of what one limiter that sees everything
//!   would admit, less half a burst and two for each shard (tested);
//! - of a total, debt is owed only until the home has first answered, or while it has plenty: a holder that has heard
//!   that little is left spends what it was granted and no more.
//!
//! Not here: which shard is home, and who is told of a refusal.

use smallvec::SmallVec;

use super::window::{RateLimit, RateWindow};
use crate::ids::ShardId;

/// Milliseconds for which allowance of a sliding window is good: short beside any window, long beside a message.
pub const LEASE_MS: u64 = 250;
/// [`Terms::lease_ms`] of what stays good until it is recalled.
pub const NO_END: u64 = u64::MAX;
/// Milliseconds after which a holder asks again where nobody can tell when there will be room.
pub const RETRY_MS: u64 = 20;

/// Below it, half of what is left of a total is granted, however many want some.
const GRANT_MIN: u32 = 64;

/// What shards say to each other about one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// Holder to home: wants allowance.
    Ask(Report),
    /// Home to holder: `count` more to spend, perhaps 0. A holder that got 0 may be granted some later, unasked.
    Grant {
        /// Allowance.
        count: u32,
        /// Monotonic ms until which it is good.
        until_ms: u64,
        /// Monotonic ms before which there is no use in asking again.
        retry_ms: u64,
        /// Little is left: nothing may be spent beyond what is granted.
        is_scarce: bool,
    },
    /// Home to holder: give back what is unused.
    Recall,
    /// Holder to home: has nothing any more.
    Return(Report),
}

/// How a holder's account has changed since its last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Spent beyond what was granted.
    pub debt: u32,
    /// Granted and not spent; the holder no longer has it.
    pub unused: u32,
}

/// What holds for all holders of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Most that a holder spends while it waits for an answer.
    pub debt_max: u32,
    /// Milliseconds for which a grant is good.
    pub lease_ms: u64,
}

impl Terms {
    /// Those of a sliding window shared by so many shards: together they owe at most a quarter of its burst (or one
    /// each). A shard alone owes nothing: it is its own home and gets its answers at once.
    #[must_use]
    pub fn of_window(limit: &RateLimit, shards: u16) -> Self {
        Self {
            debt_max: debt_max(limit.burst(), shards),
            lease_ms: LEASE_MS,
        }
    }

    /// Those of a total of `most` that does not slide: debt of a sixteenth together, at most 64 each.
    #[must_use]
    pub fn of_total(most: u64, shards: u16) -> Self {
        let quarter = u32::try_from(most / 4).unwrap_or(u32::MAX);
        Self {
            debt_max: debt_max(quarter, shards).min(64),
            lease_ms: NO_END,
        }
    }
}

fn debt_max(burst: u32, shards: u16) -> u32 {
    match shards {
        0 | 1 => 0,
        shards => (burst / 4 / u32::from(shards)).max(1),
    }
}

/// A holder's side. [`Default`] has nothing and has not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lease {
    /// Granted and not spent.
    left: u32,
    /// Of the last grant; asked again at a quarter of it.
    low: u32,
    /// Monotonic ms at which `left` is worth nothing.
    until_ms: u64,
    /// Spent and not yet reported.
    debt: u32,
    /// Spent on debt since the last grant, reported or not.
    owed: u32,
    /// An answer is under way.
    asked: bool,
    /// Nothing was left at the home: no debt and no question before that monotonic ms.
    retry_ms: u64,
    /// The last answer was empty.
    is_dry: bool,
    /// The home said that little is left.
    is_scarce: bool,
    /// The home knows of this holder.
    is_known: bool,
}

impl Lease {
    /// Spends one where there is plenty, so that nobody has to be asked. Where it returns false nothing has changed.
    #[inline]
    pub fn spend_at_hand(&mut self, now_ms: u64) -> bool {
        let is_plenty = self.left > self.low && now_ms < self.until_ms && self.is_known;
        if is_plenty {
            self.left -= 1;
        }
        is_plenty
    }

    /// Spends one and returns true, or returns false: over the limit. Follow it with [`Lease::take_ask`], and where
    /// that was answered at once after a refusal, try once more.
    pub fn try_spend(&mut self, now_ms: u64, terms: &Terms) -> bool {
        if self.left > 0 && now_ms < self.until_ms {
            self.left -= 1;
            return true;
        }
        if self.is_dry && now_ms >= self.retry_ms && terms.lease_ms != NO_END {
            self.is_dry = false;
            self.owed = self.debt;
        }
        let may_owe = !self.is_dry && !self.is_scarce && self.owed < terms.debt_max;
        if may_owe {
            self.debt += 1;
            self.owed += 1;
        }
        may_owe
    }

    /// The question to ask, if there is need of one.
    pub fn take_ask(&mut self, now_ms: u64) -> Option<Report> {
        let is_over = now_ms >= self.until_ms;
        let wants = is_over || self.left <= self.low || !self.is_known;
        if self.asked || !wants || (self.is_dry && now_ms < self.retry_ms) {
            return None;
        }
        self.asked = true;
        let unused = if is_over {
            std::mem::take(&mut self.left)
        } else {
            0
        };
        Some(Report {
            debt: std::mem::take(&mut self.debt),
            unused,
        })
    }

    /// An answer, or a grant that comes later.
    pub fn on_grant(&mut self, count: u32, until_ms: u64, retry_ms: u64, is_scarce: bool) {
        self.is_scarce = is_scarce;
        self.asked = false;
        self.is_known = true;
        self.retry_ms = retry_ms;
        self.is_dry = count == 0;
        if count == 0 {
            return;
        }
        // What is left of an earlier grant is spent first, and lives on only with a larger one.
        if count >= self.left || self.until_ms == 0 {
            self.until_ms = until_ms;
        }
        self.left = self.left.saturating_add(count);
        self.low = self.left / 4;
        self.owed = self.debt;
    }

    /// Gives up what is unused.
    pub fn on_recall(&mut self) -> Report {
        self.low = 0;
        // Nothing slides: what was called back was the last there is.
        self.is_scarce |= self.until_ms == NO_END;
        Report {
            debt: std::mem::take(&mut self.debt),
            unused: std::mem::take(&mut self.left),
        }
    }

    /// Gives back one that was spent, here or on another shard: of a limit on what there is at a time. Follow it with
    /// [`Lease::take_ask`]: the home must know who has something.
    pub fn put_back(&mut self) {
        self.until_ms = NO_END;
        self.unspend();
    }

    /// Takes note of what is in use and was never granted, as when a limit is set on what exists already.
    pub fn owe(&mut self, count: u32) {
        self.debt = self.debt.saturating_add(count);
        self.owed = self.owed.saturating_add(count);
    }

    /// Takes back a use that did not come about.
    pub fn unspend(&mut self) {
        match self.debt.checked_sub(1) {
            Some(debt) => {
                self.debt = debt;
                self.owed = self.owed.saturating_sub(1);
            }
            None => self.left = self.left.saturating_add(1),
        }
    }

    /// What can be spent without asking.
    #[must_use]
    pub fn left(&self, now_ms: u64) -> u32 {
        if now_ms < self.until_ms { self.left } else { 0 }
    }

    /// Whether the home had nothing left when it was last asked.
    #[must_use]
    pub fn is_dry(&self) -> bool {
        self.is_dry && self.left == 0
    }

    /// Milliseconds until asking again is of use; 0: now.
    #[must_use]
    pub fn retry_after_ms(&self, now_ms: u64) -> u64 {
        self.retry_ms.saturating_sub(now_ms)
    }

    /// Whether forgetting it loses nothing: no debt, no answer under way, nothing that the home has not written off.
    #[must_use]
    pub fn is_idle(&self, now_ms: u64) -> bool {
        !self.asked && self.debt == 0 && self.left(now_ms) == 0 && now_ms >= self.retry_ms
    }
}

/// What the home grants from.
pub trait Pool {
    /// What could be granted now.
    fn room(&mut self, now_ms: u64) -> u32;
    /// Grants, or takes note of debt.
    fn charge(&mut self, now_ms: u64, count: u32);
    /// Takes back what was granted at `at_ms`.
    fn give_back(&mut self, now_ms: u64, at_ms: u64, count: u32);
    /// Monotonic ms at which there may be room though nobody gives anything back.
    fn retry_ms(&self, now_ms: u64) -> u64;
    /// How much of `room` one holder gets where `sharers` want some.
    fn share(&self, room: u32, sharers: u32) -> u32;
    /// Whether what was spent may come back, to any holder.
    fn comes_back(&self) -> bool {
        false
    }
}

/// A sliding window.
#[derive(Debug, Clone, Copy)]
pub struct WindowPool {
    /// What has been granted.
    pub window: RateWindow,
    /// At most so much.
    pub limit: RateLimit,
}

impl Pool for WindowPool {
    fn room(&mut self, now_ms: u64) -> u32 {
        self.window.room(now_ms, &self.limit)
    }

    fn charge(&mut self, now_ms: u64, count: u32) {
        self.window.charge(now_ms, &self.limit, count);
    }

    fn give_back(&mut self, now_ms: u64, at_ms: u64, count: u32) {
        self.window.give_back(now_ms, &self.limit, at_ms, count);
    }

    fn retry_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(self.window.retry_after_ms(now_ms, &self.limit).max(1))
    }

    /// A holder alone gets all, so that one client on one shard can use its whole burst.
    fn share(&self, room: u32, sharers: u32) -> u32 {
        room.div_ceil(sharers.max(1))
    }
}

/// A total that does not slide: of what there is at a time, or in a calendar's day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TotalPool {
    /// Granted and not given back; above `most` after debts, or when the limit was lowered.
    pub used: i64,
    /// The limit.
    pub most: i64,
    /// Whether it is of what there is at a time.
    pub comes_back: bool,
}

impl TotalPool {
    /// Of `most`, with `used` of it gone.
    #[must_use]
    pub fn new(most: u64, used: u64, comes_back: bool) -> Self {
        Self {
            used: i64::try_from(used).unwrap_or(i64::MAX),
            most: i64::try_from(most).unwrap_or(i64::MAX),
            comes_back,
        }
    }

    /// What is not granted; below 0 where more is in use than there should be.
    #[must_use]
    pub fn left(&self) -> i64 {
        self.most.saturating_sub(self.used)
    }
}

impl Pool for TotalPool {
    fn room(&mut self, _now_ms: u64) -> u32 {
        u32::try_from(self.left().max(0)).unwrap_or(u32::MAX)
    }

    fn charge(&mut self, _now_ms: u64, count: u32) {
        self.used = self.used.saturating_add(i64::from(count));
    }

    fn give_back(&mut self, _now_ms: u64, _at_ms: u64, count: u32) {
        self.used = self.used.saturating_sub(i64::from(count));
    }

    fn retry_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(RETRY_MS)
    }

    /// A part is kept for those who have not asked yet: a grant lasts until it is recalled.
    fn share(&self, room: u32, sharers: u32) -> u32 {
        let least = room.min(GRANT_MIN).div_ceil(2);
        room.div_ceil(sharers.saturating_add(1)).max(least)
    }

    fn comes_back(&self) -> bool {
        self.comes_back
    }
}

/// A shard that holds, or waits for, part of a limit.
#[derive(Debug, Clone, Copy)]
struct Holder {
    shard: ShardId,
    /// Granted since it last had nothing: it may still have that much.
    granted: u32,
    granted_ms: u64,
    is_recalled: bool,
    is_waiting: bool,
}

/// The home's side.
#[derive(Debug, Clone)]
pub struct Home<P> {
    /// What it grants from.
    pub pool: P,
    holders: SmallVec<[Holder; 2]>,
    /// Monotonic ms of the last note.
    used_ms: u64,
}

/// What the home has to say, and to whom.
pub type Notes = SmallVec<[(ShardId, Note); 2]>;

impl<P: Pool> Home<P> {
    /// A limit that nobody has used.
    pub fn new(pool: P, now_ms: u64) -> Self {
        Self {
            pool,
            holders: SmallVec::new(),
            used_ms: now_ms,
        }
    }

    /// A holder's [`Note::Ask`].
    pub fn on_ask(&mut self, from: ShardId, report: Report, terms: &Terms, now_ms: u64) -> Notes {
        self.settle(from, report, now_ms);
        let mut notes = Notes::new();
        self.serve(from, terms, now_ms, &mut notes);
        notes
    }

    /// A holder's [`Note::Return`]: what it brings goes to those who wait.
    pub fn on_return(
        &mut self,
        from: ShardId,
        report: Report,
        terms: &Terms,
        now_ms: u64,
    ) -> Notes {
        self.settle(from, report, now_ms);
        if let Some(holder) = self.holder(from) {
            holder.granted = 0;
            holder.is_recalled = false;
        }
        let mut notes = Notes::new();
        let waiting: SmallVec<[ShardId; 4]> = self.waiting().collect();
        for shard in waiting {
            if self.pool.room(now_ms) > 0 {
                self.serve(shard, terms, now_ms, &mut notes);
            }
        }
        notes
    }

    /// Asks for everything that is not used: there is less to give than was thought.
    pub fn recall_all(&mut self) -> Notes {
        let mut notes = Notes::new();
        for holder in &mut self.holders {
            if holder.granted > 0 && !holder.is_recalled {
                holder.is_recalled = true;
                notes.push((holder.shard, Note::Recall));
            }
        }
        notes
    }

    /// Milliseconds since it was last used.
    #[must_use]
    pub fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.used_ms)
    }

    fn settle(&mut self, from: ShardId, report: Report, now_ms: u64) {
        self.used_ms = now_ms;
        let at_ms = self.holder(from).map_or(now_ms, |h| h.granted_ms);
        if report.unused > 0 {
            self.pool.give_back(now_ms, at_ms, report.unused);
        }
        if report.debt > 0 {
            self.pool.charge(now_ms, report.debt);
        }
    }

    fn serve(&mut self, to: ShardId, terms: &Terms, now_ms: u64, notes: &mut Notes) {
        let room = self.pool.room(now_ms);
        let others = self
            .holders
            .iter()
            .filter(|h| h.shard != to && (h.is_waiting || h.holds(terms, now_ms)));
        let sharers = u32::try_from(others.count()).unwrap_or(u32::MAX);
        let count = self.pool.share(room, sharers.saturating_add(1)).min(room);
        let retry_ms = self.pool.retry_ms(now_ms);
        let until_ms = now_ms.saturating_add(terms.lease_ms);
        if self.holder(to).is_none() {
            self.holders.push(Holder {
                shard: to,
                granted: 0,
                granted_ms: now_ms,
                is_recalled: false,
                is_waiting: false,
            });
        }
        let comes_back = self.pool.comes_back();
        for holder in &mut self.holders {
            if holder.shard == to {
                holder.is_waiting = count == 0;
                if count > 0 {
                    holder.granted = holder.granted.saturating_add(count);
                    holder.granted_ms = now_ms;
                }
            } else if count == 0 && (holder.granted > 0 || comes_back) && !holder.is_recalled {
                holder.is_recalled = true;
                notes.push((holder.shard, Note::Recall));
            }
        }
        self.pool.charge(now_ms, count);
        let all_debt = terms.debt_max.saturating_mul(sharers.saturating_add(2));
        let is_scarce = terms.lease_ms == NO_END && self.pool.room(now_ms) < all_debt;
        let grant = Note::Grant {
            count,
            until_ms,
            retry_ms,
            is_scarce,
        };
        notes.push((to, grant));
    }

    fn holder(&mut self, shard: ShardId) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|h| h.shard == shard)
    }

    fn waiting(&self) -> impl Iterator<Item = ShardId> {
        self.holders
            .iter()
            .filter(|h| h.is_waiting)
            .map(|h| h.shard)
    }
}

impl Holder {
    /// Whether it may still have something to spend.
    fn holds(&self, terms: &Terms, now_ms: u64) -> bool {
        self.granted > 0 && now_ms.saturating_sub(self.granted_ms) < terms.lease_ms
    }
}
