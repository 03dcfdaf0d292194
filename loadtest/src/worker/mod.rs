//! A generator thread: one epoll loop that owns its connections and everything counted on them.
//!
//! `mod` holds the state, the turn and the phases; `connect` opens and closes connections; `receive`
//! takes what comes in, down to each delivery; `publish` decides when a stream sends, and sends; `client`
//! cuts connections and has them resume. A
//! thread shares nothing per message with another, except completions of channels that span threads.

mod client;
mod connect;
mod member;
mod publish;
mod receive;
mod slot;
mod timers;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use serde::Serialize;

use crate::flight::Window;
use crate::meter::Meter;
use crate::net::Sources;
use crate::order::OrderCheck;
use crate::plan::Via;
use crate::shared::{Phase, Shared};
use crate::stamp::Scanner;
use publish::{PublisherState, StreamState};
use slot::{Role, Slot};
use timers::{Due, Timers};

/// Token of the wake-up descriptor.
const WAKE: u64 = u64::MAX;
/// Events taken per turn: small enough that completions are answered soon.
const EVENTS_PER_TURN: usize = 512;
/// Receive buffer, in bytes: larger than any message that a server may send (900 KiB in the contract).
const BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// How often stalls are looked for.
const TICK_NS: u64 = 250_000_000;
/// Distinct error texts kept.
const ERROR_SAMPLES_MAX: usize = 5;

/// Faults and other events counted over the whole run.
#[derive(Clone, Debug, Default)]
pub struct Tallies {
    /// Errors reported by the server, HTTP refusals included.
    pub errors: u64,
    /// Texts of some of them.
    pub samples: Vec<String>,
    /// Ready connections that ended on their own.
    pub closed: u64,
    /// Failed tries to connect.
    pub connect_failures: u64,
    /// Deliveries that belong to no stream of their channel.
    pub alien: u64,
    /// Closed-loop streams that sent again after waiting too long for a message in flight.
    pub stalls: u64,
    /// What became of connections that came back.
    pub returns: Returns,
}

/// Connections that were cut, or came back for what they missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Returns {
    /// Connections cut on purpose.
    pub cuts: u64,
    /// Resumes sent.
    pub resumes: u64,
    /// Resumes that the server could not complete.
    pub unrecovered: u64,
    /// Messages marked as of the past.
    pub replayed: u64,
    /// Messages received again where the contract allows it.
    pub repeated: u64,
    /// Messages whose sequence was not behind the last one of their channel and connection.
    pub sequence_faults: u64,
    /// Messages that were published and not acknowledged: nobody has to have them.
    pub unacked: u64,
}

impl Returns {
    fn merge(&mut self, other: &Self) {
        self.cuts += other.cuts;
        self.resumes += other.resumes;
        self.unrecovered += other.unrecovered;
        self.replayed += other.replayed;
        self.repeated += other.repeated;
        self.sequence_faults += other.sequence_faults;
        self.unacked += other.unacked;
    }
}

impl Tallies {
    /// Counts an error and keeps its text if it is another one.
    pub fn error(&mut self, text: String) {
        self.errors += 1;
        self.sample(text);
    }

    fn sample(&mut self, text: String) {
        if self.samples.len() < ERROR_SAMPLES_MAX && !self.samples.contains(&text) {
            self.samples.push(text);
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Self) {
        self.errors += other.errors;
        self.closed += other.closed;
        self.connect_failures += other.connect_failures;
        self.alien += other.alien;
        self.stalls += other.stalls;
        self.returns.merge(&other.returns);
        for text in &other.samples {
            self.sample(text.clone());
        }
    }
}

/// What a thread hands back.
pub struct Outcome {
    /// Measurements of the window.
    pub meter: Meter,
    /// Faults.
    pub tallies: Tallies,
    /// Messages that its subscribers were due, over the whole run.
    pub due: u64,
    /// Distinct ones that they got.
    pub unique: u64,
    /// Got more than once.
    pub duplicated: u64,
    /// Got after a later one.
    pub out_of_order: u64,
    /// Messages (stream, sequence) missing at a client that resumes, once for each.
    pub missing: Vec<(u32, u32)>,
    /// Messages of this thread's publishers that were not acknowledged, where that is asked.
    pub unacked: Vec<(u32, u32)>,
}

/// A generator thread's state.
pub struct Worker<'s> {
    shared: &'s Shared,
    index: usize,
    phase: Phase,
    now_ns: u64,
    epoll: OwnedFd,
    sources: Sources,
    timers: Timers,
    slots: Vec<Slot>,
    /// Slots to be connected, with the time their latency counts from (0: when it happens).
    to_connect: VecDeque<(u32, u64)>,
    connecting: usize,
    churn: connect::ChurnState,
    clients: client::ClientSet,
    members: member::MemberState,
    /// Slots with bytes to send.
    dirty: Vec<u32>,
    streams: Vec<StreamState>,
    /// Indexed as the plan's; `None`: another thread's.
    publishers: Vec<Option<PublisherState>>,
    /// Subscribers of each channel on this thread.
    local_subscribers: Vec<u32>,
    /// Threads that have subscribers of each channel.
    threads_of_channel: Vec<u32>,
    check: OrderCheck,
    churn_check: OrderCheck,
    window: Window,
    scanner: Scanner,
    meter: Meter,
    tallies: Tallies,
    delivered: u64,
    /// Completed streams to be told to each thread.
    outboxes: Vec<Vec<u32>>,
    inbox: Vec<u32>,
    buffer: Vec<u8>,
    due: u64,
    drained: bool,
}

impl<'s> Worker<'s> {
    /// Thread `index` of the run; takes its share of the plan.
    pub fn new(shared: &'s Shared, index: usize) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            shared.wake_fd(index),
            epoll::EventData::new_u64(WAKE),
            epoll::EventFlags::IN,
        )?;
        let plan = &shared.plan;
        let threads = shared.settings.threads;
        let mut worker = Self {
            shared,
            index,
            phase: Phase::Connect,
            now_ns: shared.now_ns(),
            epoll,
            sources: Sources::new(shared.settings.sources, index, threads),
            timers: Timers::default(),
            slots: Vec::new(),
            to_connect: VecDeque::new(),
            connecting: 0,
            churn: connect::ChurnState::default(),
            clients: client::ClientSet::default(),
            dirty: Vec::new(),
            streams: plan
                .streams
                .iter()
                .map(|stream| StreamState::new(stream.pace))
                .collect(),
            publishers: plan.publishers.iter().map(|_| None).collect(),
            local_subscribers: vec![0; plan.channels.len()],
            threads_of_channel: vec![0; plan.channels.len()],
            members: member::MemberState::default(),
            check: OrderCheck::default(),
            churn_check: OrderCheck::default(),
            window: Window::new(plan.streams.len(), plan.window()),
            scanner: Scanner::default(),
            meter: Meter::default(),
            tallies: Tallies::default(),
            delivered: 0,
            outboxes: vec![Vec::new(); threads],
            inbox: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
            due: 0,
            drained: false,
        };
        worker.take_share();
        Ok(worker)
    }

    fn take_share(&mut self) {
        let shared = self.shared;
        let (plan, threads) = (&shared.plan, shared.settings.threads);
        for (publisher, of_plan) in (0u32..).zip(&plan.publishers) {
            let role = match of_plan.via {
                Via::Socket => Role::Publisher { publisher },
                Via::Http => Role::Http { publisher },
                Via::Subscriber => continue,
            };
            if plan.thread_of_publisher(publisher, threads) == self.index {
                self.add_publisher(publisher);
                self.slots.push(Slot::new(role));
            }
        }
        let mut counted = 0;
        for (channel, of_plan) in (0u32..).zip(&plan.channels) {
            let mut holders = vec![false; threads];
            for _ in 0..of_plan.subscribers {
                let thread = plan.thread_of_subscriber(channel, counted, threads);
                counted += 1;
                holders[thread] = true;
                if thread == self.index {
                    self.add_subscriber(channel);
                }
            }
            let holding = holders.iter().filter(|&&holds| holds).count();
            self.threads_of_channel[channel as usize] = holding as u32;
        }
        self.take_client_share();
        self.take_member_share();
        self.to_connect
            .extend((0..self.slots.len() as u32).map(|slot| (slot, 0)));
        self.take_churn_share();
    }

    /// The publisher uses the slot that is added next.
    fn add_publisher(&mut self, publisher: u32) {
        let slot = self.slots.len() as u32;
        self.publishers[publisher as usize] = Some(PublisherState::new(slot));
    }

    fn add_subscriber(&mut self, channel: u32) {
        self.local_subscribers[channel as usize] += 1;
        let streams = self.shared.plan.channels[channel as usize].streams.len();
        let cell = self.check.add_cells(streams, false) as u32;
        let publisher = self.shared.plan.publisher_of_subscriber(channel);
        if let Some(publisher) = publisher {
            self.add_publisher(publisher);
        }
        let publishes = publisher.is_some();
        self.slots.push(Slot::new(Role::Subscriber {
            channel,
            cell,
            publishes,
        }));
    }

    /// Runs until the coordinator ends the run.
    pub fn run(mut self) -> Outcome {
        let cpus = &self.shared.settings.cpus;
        if let Some(&cpu) = cpus.get(self.index % cpus.len().max(1)) {
            let mut set = CpuSet::new();
            set.set(cpu);
            if let Err(error) = sched_setaffinity(None, &set) {
                self.shared.fail(format!(
                    "cannot pin a generator thread to CPU {cpu}: {error}"
                ));
            }
        }
        // Open loops need timers that fire when due; without it they are merely up to 50 us late.
        let _ = set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        while self.phase != Phase::Exit {
            if let Err(error) = self.wait(&mut events)
                && error != rustix::io::Errno::INTR
            {
                self.shared.fail(format!("epoll_wait: {error}"));
                break;
            }
            self.turn(&events);
            events.clear();
        }
        self.outcome()
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> rustix::io::Result<usize> {
        let timeout = if !self.to_connect.is_empty()
            && self.connecting < self.shared.settings.connect_window
        {
            Some(0)
        } else {
            self.timers
                .next_ns()
                .map(|next| next.saturating_sub(self.shared.now_ns()))
        };
        let timeout = timeout.map(|ns| Timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref())
    }

    /// Timers first, so that open-loop messages leave on time; then sockets, new connections, flushes.
    fn turn(&mut self, events: &[epoll::Event]) {
        self.now_ns = self.shared.now_ns();
        self.meter.enter(self.now_ns);
        self.run_timers();
        self.flush_dirty();
        for event in events {
            match event.data.u64() {
                WAKE => self.on_wake(),
                token => self.on_event(token, event.flags),
            }
            self.flush_dirty();
        }
        self.connect_more();
        self.flush_dirty();
        for thread in 0..self.outboxes.len() {
            if !self.outboxes[thread].is_empty() {
                self.shared
                    .send_completed(thread, &mut self.outboxes[thread]);
            }
        }
        if self.delivered > 0 {
            self.shared
                .delivered
                .fetch_add(std::mem::take(&mut self.delivered), Ordering::Relaxed);
        }
        let is_all_there = self.check.unique >= self.due && self.clients.unacked.is_empty();
        if self.phase == Phase::Drain && !self.drained && is_all_there {
            self.drained = true;
            self.shared.acks.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn run_timers(&mut self) {
        while let Some((due_ns, due)) = self.timers.pop_due(self.now_ns) {
            match due {
                Due::Stream(stream) => self.on_stream_due(stream, due_ns),
                Due::Churn => self.on_churn_due(due_ns),
                Due::Cut => self.on_cut_due(due_ns),
                Due::Retry(slot) => self.to_connect.push_back((slot, 0)),
                Due::Tick => self.on_tick(),
            }
        }
    }

    fn on_wake(&mut self) {
        let mut count = [0u8; 8];
        // Nothing to read means that the wake-up was already taken.
        let _ = rustix::io::read(self.shared.wake_fd(self.index), &mut count);
        let mut inbox = std::mem::take(&mut self.inbox);
        self.shared.take_completed(self.index, &mut inbox);
        for stream in inbox.drain(..) {
            self.on_completed(stream);
        }
        self.inbox = inbox;
        let phase = self.shared.phase();
        if phase != self.phase {
            self.phase = phase;
            self.on_phase();
        }
    }

    fn on_phase(&mut self) {
        match self.phase {
            Phase::Connect => return,
            Phase::Run => {
                self.meter.start(self.shared.span());
                self.timers.at(self.now_ns + TICK_NS, Due::Tick);
                self.start_streams();
                self.start_churn();
                self.start_cuts();
            }
            Phase::Stop => self.stop_streams(),
            Phase::Drain => {
                self.due = self.due_in_all();
                // The end of this turn looks whether all is there; the ticks let it look again.
                self.timers.at(self.now_ns, Due::Tick);
                return;
            }
            Phase::Drop => self.drop_subscribers(),
            Phase::Probe => self.probe_streams(),
            Phase::Enter => self.start_entering(),
            Phase::Exit => {}
        }
        self.shared.acks.fetch_add(1, Ordering::AcqRel);
    }

    fn on_tick(&mut self) {
        self.mend_stalls();
        self.timers.at(self.now_ns + TICK_NS, Due::Tick);
    }

    fn due_in_all(&self) -> u64 {
        let finals = &self.shared.finals;
        let of_channel = |(channel, &subscribers): (usize, &u32)| {
            let streams = self.shared.plan.channels[channel].streams.clone();
            let published: u64 = streams
                .map(|s| u64::from(finals[s as usize].load(Ordering::Acquire)))
                .sum();
            published * u64::from(subscribers)
        };
        self.local_subscribers
            .iter()
            .enumerate()
            .map(of_channel)
            .sum()
    }

    fn outcome(mut self) -> Outcome {
        self.tallies.returns.unacked = self.clients.unacked.len() as u64;
        Outcome {
            missing: self.missing(),
            unacked: self.clients.unacked.into_iter().collect(),
            due: self.due,
            unique: self.check.unique,
            duplicated: self.check.duplicated + self.churn_check.duplicated,
            out_of_order: self.check.out_of_order
                + self.churn_check.out_of_order
                + self.tallies.returns.sequence_faults,
            meter: self.meter,
            tallies: self.tallies,
        }
    }
}
