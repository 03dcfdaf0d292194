//! Whether every subscriber got every message of every stream once and in order.
//!
//! One `OrderCheck` belongs to one generator thread and knows that thread's subscribers only. Each
//! (subscriber, stream) pair is a cell that holds the next sequence due. Invariant: `unique` is the
//! number of distinct (cell, sequence) pairs seen, so `due - unique` at the end is what was lost.

use std::collections::HashSet;

/// Upper bound on remembered holes; past it a late message counts as a duplicate. 1 Mi holes are
/// 16 MiB, and a run with that many has failed anyway.
const HOLES_MAX: usize = 1 << 20;
/// A cell that takes its first message as its start.
const UNSET: u32 = u32::MAX;

/// What `record` saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The one due.
    InOrder,
    /// Later than the one due: those between are missing for the time being.
    Ahead,
    /// One of those missing, after a later one.
    Late,
    /// Seen before.
    Duplicate,
}

/// Cells and totals of one thread.
#[derive(Default)]
pub struct OrderCheck {
    next: Vec<u32>,
    holes: HashSet<(u32, u32)>,
    /// Distinct messages seen.
    pub unique: u64,
    /// Messages seen again.
    pub duplicated: u64,
    /// Messages that came after a later one of their stream.
    pub out_of_order: u64,
}

impl OrderCheck {
    /// Adds `cells` cells that are due from sequence 0 (or, with `from_first`, from whatever comes
    /// first); returns the index of the first.
    pub fn add_cells(&mut self, cells: usize, from_first: bool) -> usize {
        let base = self.next.len();
        self.next
            .resize(base + cells, if from_first { UNSET } else { 0 });
        base
    }

    /// Lets a cell start over with whatever comes first.
    pub fn forget(&mut self, cell: usize) {
        self.next[cell] = UNSET;
    }

    /// Notes the arrival of `seq` in `cell`.
    pub fn record(&mut self, cell: usize, seq: u32) -> Arrival {
        let next = self.next[cell];
        if seq == next || next == UNSET {
            self.next[cell] = seq.saturating_add(1);
            self.unique += 1;
            return Arrival::InOrder;
        }
        let key = cell as u32;
        if seq > next {
            let room = HOLES_MAX.saturating_sub(self.holes.len()) as u32;
            self.holes
                .extend((next..seq.min(next.saturating_add(room))).map(|hole| (key, hole)));
            self.next[cell] = seq.saturating_add(1);
            self.unique += 1;
            return Arrival::Ahead;
        }
        if self.holes.remove(&(key, seq)) {
            self.unique += 1;
            self.out_of_order += 1;
            return Arrival::Late;
        }
        self.duplicated += 1;
        Arrival::Duplicate
    }

    /// Takes back the count of one duplicate, which was allowed.
    pub fn allow_duplicate(&mut self) {
        self.duplicated = self.duplicated.saturating_sub(1);
    }

    /// The sequences below `end` that `cell` has not seen.
    pub fn missing(&self, cell: usize, end: u32) -> impl Iterator<Item = u32> {
        let holes = self.holes.iter();
        let holes = holes.filter(move |&&(of, seq)| of as usize == cell && seq < end);
        holes
            .map(|&(_, seq)| seq)
            .chain(self.next[cell].min(end)..end)
    }

    /// Messages skipped so far and not come since.
    pub fn holes(&self) -> u64 {
        self.holes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_kind_of_fault_is_told_apart() {
        let mut check = OrderCheck::default();
        let cell = check.add_cells(2, false);
        assert_eq!(cell, 0);
        let seen: Vec<_> = [0, 1, 4, 2, 2, 4, 5]
            .into_iter()
            .map(|seq| check.record(cell, seq))
            .collect();
        use Arrival::{Ahead, Duplicate, InOrder, Late};
        assert_eq!(
            seen,
            [InOrder, InOrder, Ahead, Late, Duplicate, Duplicate, InOrder]
        );
        assert_eq!(
            (
                check.unique,
                check.duplicated,
                check.out_of_order,
                check.holes()
            ),
            (5, 2, 1, 1)
        );
        assert_eq!(check.record(1, 0), InOrder);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut check = OrderCheck::default();
        check.add_cells(2, false);
        for seq in [0, 3, 1, 3] {
            check.record(0, seq);
        }
        check.allow_duplicate();
        assert_eq!(check.duplicated, 0);
        assert_eq!(check.missing(0, 6).collect::<Vec<_>>(), [2, 4, 5]);
        assert_eq!(check.missing(0, 2).count(), 0);
        assert_eq!(check.missing(1, 2).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_cell_from_first_starts_anywhere() {
        let mut check = OrderCheck::default();
        let cell = check.add_cells(1, true);
        assert_eq!(check.record(cell, 77), Arrival::InOrder);
        assert_eq!(check.record(cell, 79), Arrival::Ahead);
        check.forget(cell);
        assert_eq!(check.record(cell, 500), Arrival::InOrder);
        assert_eq!(check.holes(), 1);
    }

    proptest! {
        /// Against a naive set: unique counts distinct values, duplicates the rest.
        #[test]
        fn agrees_with_a_set(seqs in proptest::collection::vec(0u32..40, 0..200)) {
            let mut check = OrderCheck::default();
            let cell = check.add_cells(1, false);
            let mut model = std::collections::BTreeSet::new();
            let (mut late, mut max) = (0, None);
            for &seq in &seqs {
                if model.insert(seq) && max.is_some_and(|m| seq < m) { late += 1; }
                max = max.max(Some(seq));
                check.record(cell, seq);
            }
            prop_assert_eq!(check.unique, model.len() as u64);
            prop_assert_eq!(check.duplicated, (seqs.len() - model.len()) as u64);
            prop_assert_eq!(check.out_of_order, late);
            let due = max.map_or(0, |m| u64::from(m) + 1);
            prop_assert_eq!(check.holes(), due - model.len() as u64);
        }
    }
}
