//! Clients that enter one channel's presence: all connected first, then in as many steps as answers
//! allow.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::Worker;
use super::slot::{Role, State};

/// This thread's members that are still to enter.
#[derive(Default)]
pub(super) struct MemberState {
    waiting: VecDeque<u32>,
}

impl Worker<'_> {
    pub(super) fn take_member_share(&mut self) {
        let threads = self.shared.settings.threads as u32;
        for member in 0..self.shared.plan.members {
            if (member % threads) as usize == self.index {
                self.slots
                    .push(super::slot::Slot::new(Role::Member { member }));
            }
        }
    }

    /// Begins with as many as may be connecting at a time.
    pub(super) fn start_entering(&mut self) {
        let is_member = |slot: &super::slot::Slot| matches!(slot.role, Role::Member { .. });
        self.members.waiting = (0u32..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| is_member(slot).then_some(index))
            .collect();
        for _ in 0..self.shared.settings.connect_window {
            self.enter_next();
        }
    }

    /// An answer has come: the next one enters.
    pub(super) fn on_entered(&mut self) {
        self.shared.entered.fetch_add(1, Ordering::AcqRel);
        self.enter_next();
    }

    fn enter_next(&mut self) {
        while let Some(index) = self.members.waiting.pop_front() {
            let shared = self.shared;
            let slot = &mut self.slots[index as usize];
            let ready = slot.conn.as_mut().filter(|c| c.state == State::Ready);
            if let Some(conn) = ready {
                let channel = slot.role.channel(&shared.plan);
                shared.settings.adapter.encode_enter(channel, &mut conn.out);
                self.mark_dirty(index);
                return;
            }
        }
    }
}
