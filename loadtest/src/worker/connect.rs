//! Opening and closing connections: the initial set, those that churn, those that come back.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use rustix::event::epoll;

use super::Worker;
use super::slot::{Conn, Role, Slot, State};
use super::timers::Due;
use crate::adapter::Duty;
use crate::frame;
use crate::net;
use crate::shared::Phase;

/// Connects begun per turn, so that replies to earlier ones are not kept waiting.
const CONNECTS_PER_TURN: usize = 32;
/// Tries in a row before a connection that the run needs makes it fail.
const TRIES_MAX: u32 = 8;
/// Pause before the first retry; it grows with each.
const RETRY_NS: u64 = 50_000_000;

/// Connections that come and go, this thread's share.
#[derive(Default)]
pub(super) struct ChurnState {
    active: bool,
    hold: usize,
    window: usize,
    period_ns: Option<u64>,
    connecting: usize,
    idle: Vec<u32>,
    /// Ready ones, oldest first.
    open: VecDeque<u32>,
    /// Open loop: connects that were due while no slot was free.
    overdue: VecDeque<u64>,
}

impl Worker<'_> {
    pub(super) fn take_churn_share(&mut self) {
        let (churn, threads) = (self.shared.plan.churn, self.shared.settings.threads as u32);
        if churn.slots() == 0 {
            return;
        }
        self.churn.hold = (churn.hold / threads) as usize;
        self.churn.window = (churn.window / threads).max(1) as usize;
        let per_thread = |rate: f64| (1e9 * f64::from(threads) / rate) as u64;
        self.churn.period_ns = churn.rate.map(per_thread);
        let streams = self.shared.plan.channels[churn.channel as usize]
            .streams
            .len();
        for _ in 0..self.churn.hold + self.churn.window {
            let cell = self.churn_check.add_cells(streams, true) as u32;
            self.churn.idle.push(self.slots.len() as u32);
            self.slots.push(Slot::new(Role::Churn {
                channel: churn.channel,
                cell,
            }));
        }
    }

    pub(super) fn start_churn(&mut self) {
        self.churn.active = self.churn.window > 0;
        if let Some(period) = self.churn.period_ns {
            self.timers.at(self.now_ns + period, Due::Churn);
        }
        self.refill_churn();
    }

    pub(super) fn stop_churn(&mut self) {
        self.churn.active = false;
        self.churn.overdue.clear();
    }

    pub(super) fn on_churn_due(&mut self, due_ns: u64) {
        self.churn.overdue.push_back(due_ns);
        self.timers.at(
            due_ns + self.churn.period_ns.unwrap_or(u64::MAX / 2),
            Due::Churn,
        );
        self.refill_churn();
    }

    /// Begins what may be begun: in closed loop up to the window, in open loop what is due.
    fn refill_churn(&mut self) {
        while self.churn.active && self.churn.connecting < self.churn.window {
            let since_ns = match self.churn.period_ns {
                Some(_) if self.churn.overdue.is_empty() => return,
                Some(_) => self.churn.overdue.front().copied().unwrap_or(0),
                None => 0,
            };
            let Some(slot) = self.churn.idle.pop() else {
                return;
            };
            self.churn.overdue.pop_front();
            self.churn.connecting += 1;
            self.to_connect.push_back((slot, since_ns));
        }
    }

    fn on_churn_ready(&mut self, slot: u32) {
        self.shared.churned.fetch_add(1, Ordering::Relaxed);
        self.churn.connecting -= 1;
        self.churn.open.push_back(slot);
        if self.churn.open.len() > self.churn.hold
            && let Some(oldest) = self.churn.open.pop_front()
        {
            self.close(oldest);
            if let Role::Churn { cell, channel } = self.slots[oldest as usize].role {
                let streams = self.shared.plan.channels[channel as usize].streams.len();
                (0..streams).for_each(|stream| self.churn_check.forget(cell as usize + stream));
            }
            self.churn.idle.push(oldest);
        }
        self.refill_churn();
    }

    pub(super) fn connect_more(&mut self) {
        let window = self.shared.settings.connect_window.max(self.churn.window);
        for _ in 0..CONNECTS_PER_TURN {
            if self.connecting >= window {
                return;
            }
            let Some((slot, since_ns)) = self.to_connect.pop_front() else {
                return;
            };
            self.begin(slot, since_ns);
        }
    }

    fn begin(&mut self, index: u32, since_ns: u64) {
        self.connecting += 1;
        let shared = self.shared;
        let now_ns = shared.now_ns();
        let role = self.slots[index as usize].role;
        let mut out = Vec::new();
        if !matches!(role, Role::Http { .. }) {
            let adapter = &shared.settings.adapter;
            let target = match role {
                Role::Member { member } => adapter.member_target(member),
                _ => adapter.target(role.duty(), role.channel(&shared.plan)),
            };
            frame::encode_handshake(&shared.settings.host, &target, &mut out);
        }
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        if slot.failures == 0 {
            slot.since_ns = if since_ns == 0 { now_ns } else { since_ns };
        }
        let token = u64::from(slot.generation) << 32 | u64::from(index);
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        let session = shared.settings.tls.as_ref().map(|tls| tls.session());
        let tls = match session.transpose() {
            Ok(session) => session,
            Err(error) => return self.on_connect_failed(index, format!("TLS: {error}")),
        };
        let settings = &shared.settings;
        let target = match role {
            Role::Http { .. } => settings.target,
            _ if role.duty() == Duty::Subscribe => settings.subscribe_target,
            _ => settings.target,
        };
        let opened = self.sources.connect(target).and_then(|fd| {
            epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(token), flags)?;
            Ok(fd)
        });
        match opened {
            Ok(fd) => {
                let (partial, partial_stream) = (Vec::new(), Vec::new());
                slot.conn = Some(Conn {
                    fd,
                    tls,
                    state: State::Connecting,
                    partial,
                    partial_stream,
                    out,
                });
                // Over loopback the TCP handshake is mostly done already: no need to wait for an event.
                self.flush(index);
            }
            Err(error) => self.on_connect_failed(index, format!("connect: {error}")),
        }
    }

    /// The connection is ready for its duty.
    pub(super) fn on_ready(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.failures = 0;
        let Some(conn) = &mut slot.conn else { return };
        conn.state = State::Ready;
        self.connecting -= 1;
        let took_ns = self.now_ns.saturating_sub(slot.since_ns);
        let role = slot.role;
        if role.duty() != Duty::Publish {
            self.meter.connect(took_ns);
        }
        match role {
            Role::Churn { .. } => return self.on_churn_ready(index),
            Role::Http { publisher } => self.send_request(publisher),
            Role::Subscriber { .. }
            | Role::Publisher { .. }
            | Role::Client { .. }
            | Role::Member { .. } => {}
        }
        self.shared.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// The connection ended, or must be ended, for `reason`.
    pub(super) fn on_lost(&mut self, index: u32, reason: String) {
        let Some(state) = self.slots[index as usize]
            .conn
            .as_ref()
            .map(|conn| conn.state)
        else {
            return;
        };
        self.close(index);
        if state != State::Ready {
            self.on_connect_failed(index, reason);
            return;
        }
        if self.phase == Phase::Exit {
            return;
        }
        match self.slots[index as usize].role {
            Role::Churn { .. } => {
                self.churn.open.retain(|&open| open != index);
                self.churn.idle.push(index);
                self.refill_churn();
            }
            Role::Http { publisher } => {
                self.reconnect_http(index);
                if !self.has_request(publisher) {
                    return;
                }
                self.on_response(publisher, false);
            }
            Role::Client { .. } => {
                self.shared.ready.fetch_sub(1, Ordering::AcqRel);
                self.return_later(index);
            }
            Role::Subscriber { .. } | Role::Publisher { .. } | Role::Member { .. } => {
                self.shared.ready.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.tallies.closed += 1;
        self.tallies.sample(format!("connection ended: {reason}"));
    }

    fn on_connect_failed(&mut self, index: u32, reason: String) {
        self.connecting -= 1;
        self.tallies.connect_failures += 1;
        let slot = &mut self.slots[index as usize];
        slot.failures += 1;
        let failures = slot.failures;
        let needed = !matches!(slot.role, Role::Churn { .. });
        if needed && failures >= TRIES_MAX {
            self.shared.fail(format!("cannot connect: {reason}"));
        }
        self.tallies.sample(reason);
        self.timers.at(
            self.now_ns + RETRY_NS * u64::from(failures.min(20)),
            Due::Retry(index),
        );
    }

    /// HTTP: the server ends the connection after a response, as servers do after some number of them.
    pub(super) fn reconnect_http(&mut self, index: u32) {
        self.close(index);
        self.shared.ready.fetch_sub(1, Ordering::AcqRel);
        self.to_connect.push_back((index, 0));
    }

    /// Ends the connection of a slot, if it has one, with a reset.
    pub(super) fn close(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        if let Some(conn) = slot.conn.take() {
            net::reset(conn.fd);
        }
    }

    pub(super) fn drop_subscribers(&mut self) {
        if self.meter.span() != self.shared.span() {
            self.meter.start(self.shared.span());
        }
        for index in 0..self.slots.len() as u32 {
            let slot = &self.slots[index as usize];
            let is_ready = slot
                .conn
                .as_ref()
                .is_some_and(|conn| conn.state == State::Ready);
            if is_ready && matches!(slot.role, Role::Subscriber { .. }) {
                self.close(index);
                self.shared.ready.fetch_sub(1, Ordering::AcqRel);
                self.to_connect.push_back((index, self.now_ns));
            }
        }
    }
}
