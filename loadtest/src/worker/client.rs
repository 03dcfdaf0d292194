//! Clients that are cut at random and come back for what they missed, as the client SDKs do: what each
//! has received, and what it must and may be sent again.
//!
//! Two checks, of which neither knows the other: by the publishers' own numbers every acknowledged message
//! has to arrive, none after a later one; by the server's `sequence` no connection gets a message of a
//! channel that is not behind the last.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::Worker;
use super::slot::{Role, Slot, State};
use super::timers::Due;
use crate::net;
use crate::order::Arrival;
use crate::stamp::Stamp;

/// This thread's clients.
#[derive(Default)]
pub(super) struct ClientSet {
    states: Vec<ClientState>,
    /// State of the generator behind all choices.
    random: u64,
    period_ns: u64,
    /// Messages (stream, sequence) of own publishers that are not acknowledged yet.
    pub(super) unacked: HashSet<(u32, u32)>,
}

struct ClientState {
    slot: u32,
    /// Order-check cell of its first channel; the others follow.
    cell: u32,
    /// Per channel, the server's sequence of the last message on this connection.
    sequences: Vec<u64>,
}

impl ClientSet {
    /// The next random number (splitmix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Worker<'_> {
    pub(super) fn take_client_share(&mut self) {
        let shared = self.shared;
        let threads = shared.settings.threads;
        let cuts = shared.plan.cuts;
        self.clients.random = cuts.seed.wrapping_add((self.index as u64) << 32);
        self.clients.period_ns = (1e9 * threads as f64 / cuts.rate.max(1e-3)) as u64;
        for (client, channels) in (0u32..).zip(&shared.plan.clients) {
            if client as usize % threads != self.index {
                continue;
            }
            for &channel in channels {
                self.local_subscribers[channel as usize] += 1;
            }
            let state = self.clients.states.len() as u32;
            self.clients.states.push(ClientState {
                slot: self.slots.len() as u32,
                cell: self.check.add_cells(channels.len(), false) as u32,
                sequences: vec![0; channels.len()],
            });
            self.slots.push(Slot::new(Role::Client { client, state }));
        }
    }

    pub(super) fn start_cuts(&mut self) {
        if !self.clients.states.is_empty() {
            self.timers
                .at(self.now_ns + self.clients.period_ns, Due::Cut);
        }
    }

    /// Cuts one client, the next in line where the one drawn cannot be.
    pub(super) fn on_cut_due(&mut self, due_ns: u64) {
        self.timers.at(due_ns + self.clients.period_ns, Due::Cut);
        let count = self.clients.states.len();
        let first = self.clients.next_random() as usize % count;
        let of = |nth: usize| self.clients.states[(first + nth) % count].slot;
        if let Some(slot) = (0..count).map(of).find(|&slot| self.may_cut(slot)) {
            self.cut(slot);
        }
    }

    /// A client that has received nothing would not resume but subscribe, and miss what it missed.
    fn may_cut(&self, index: u32) -> bool {
        let slot = &self.slots[index as usize];
        let state = slot.conn.as_ref().map(|conn| conn.state);
        let has_come = state == Some(State::Ready)
            || self.shared.plan.cuts.cut_resuming && state == Some(State::Opening);
        has_come && slot.memory.last_ts > 0
    }

    /// Ends a connection without a Close frame: with a reset, or as a process that ends.
    fn cut(&mut self, index: u32) {
        let by_reset = self.clients.next_random().is_multiple_of(2);
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let Some(conn) = slot.conn.take() else { return };
        if conn.state == State::Ready {
            self.shared.ready.fetch_sub(1, Ordering::AcqRel);
        } else {
            self.connecting -= 1;
        }
        if by_reset {
            net::reset(conn.fd);
        }
        self.tallies.returns.cuts += 1;
        self.return_later(index);
    }

    /// The client comes back after a while.
    pub(super) fn return_later(&mut self, index: u32) {
        let away_ns = self.shared.plan.cuts.away_ms * 1_000_000;
        let away_ns = self.clients.next_random() % away_ns.max(1);
        self.timers.at(self.now_ns + away_ns, Due::Retry(index));
    }

    /// The connection is upgraded: subscribes, or resumes where something was received before.
    pub(super) fn open_client(&mut self, index: u32) {
        let shared = self.shared;
        let slot = &mut self.slots[index as usize];
        let Some(conn) = &mut slot.conn else { return };
        let one = [slot.role.channel(&shared.plan)];
        let many: Vec<&str>;
        let mut channels: &[&str] = &one;
        if let Role::Client { client, state } = slot.role {
            let names = shared.plan.clients[client as usize].iter();
            many = names
                .map(|&channel| &*shared.plan.channels[channel as usize].name)
                .collect();
            channels = &many;
            self.clients.states[state as usize].sequences.fill(0);
        }
        let adapter = &shared.settings.adapter;
        slot.memory.token_ts = slot.memory.last_ts;
        slot.memory.awaited = channels.len() as u32;
        if slot.memory.token_ts > 0 {
            self.tallies.returns.resumes += 1;
            adapter.on_reopen(channels, slot.memory.token_ts, index, &mut conn.out);
        } else {
            for channel in channels {
                adapter.on_open(slot.role.duty(), channel, &mut conn.out);
            }
        }
        self.mark_dirty(index);
    }

    /// A message for a client.
    pub(super) fn on_client_delivery(
        &mut self,
        index: u32,
        (client, state): (u32, u32),
        stamp: Stamp,
        message: &[u8],
    ) {
        let plan = &self.shared.plan;
        let channel = plan.streams.get(stamp.stream as usize).map(|s| s.channel);
        let mut channels = plan.clients[client as usize].iter();
        let place = channels.position(|&own| Some(own) == channel);
        let position = self.shared.settings.adapter.position(message);
        let (Some(place), Some(position)) = (place, position) else {
            self.tallies.alien += 1;
            return;
        };
        self.delivered += 1;
        let state = &mut self.clients.states[state as usize];
        let last = std::mem::replace(&mut state.sequences[place], position.sequence);
        if position.sequence <= last {
            self.tallies.returns.sequence_faults += 1;
        }
        let memory = &mut self.slots[index as usize].memory;
        memory.last_ts = memory.last_ts.max(position.timestamp);
        let token_ts = memory.token_ts;
        let may_repeat = position.is_replay
            && position.timestamp <= token_ts
            && position.timestamp + plan.cuts.overlap_ms >= token_ts;
        self.tallies.returns.replayed += u64::from(position.is_replay);
        let arrival = self.check.record(state.cell as usize + place, stamp.seq);
        if arrival != Arrival::Duplicate {
            self.meter
                .delivery(self.now_ns.saturating_sub(stamp.sent_ns));
        } else if may_repeat {
            self.check.allow_duplicate();
            self.tallies.returns.repeated += 1;
        }
    }

    /// Notes the timestamp of a message for a subscriber that will come back for more.
    pub(super) fn remember(&mut self, index: u32, message: &[u8]) {
        if let Some(position) = self.shared.settings.adapter.position(message) {
            let memory = &mut self.slots[index as usize].memory;
            memory.last_ts = memory.last_ts.max(position.timestamp);
        }
    }

    /// Messages (stream, sequence) that a client of this thread has not got, once for each client.
    pub(super) fn missing(&self) -> Vec<(u32, u32)> {
        let plan = &self.shared.plan;
        let mut missing = Vec::new();
        for state in &self.clients.states {
            let Role::Client { client, .. } = self.slots[state.slot as usize].role else {
                continue;
            };
            for (cell, &channel) in (state.cell..).zip(&plan.clients[client as usize]) {
                let stream = plan.channels[channel as usize].streams.start;
                let published = self.shared.finals[stream as usize].load(Ordering::Acquire);
                let of_cell = self.check.missing(cell as usize, published);
                missing.extend(of_cell.map(|seq| (stream, seq)));
            }
        }
        missing
    }
}
