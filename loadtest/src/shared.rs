//! What the generator threads and the coordinator share: the plan, the phase, and a few counters.
//!
//! The coordinator alone changes the phase and then wakes every thread; a thread answers by counting
//! itself in `acks`. Per-message state is not here, but for flights that span threads.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::adapter::Adapter;
use crate::flight::SharedFlights;
use crate::meter::Span;
use crate::plan::Plan;
use crate::tls::Connector;

/// What the threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Open all connections and get them ready.
    Connect,
    /// Publish.
    Run,
    /// Stop publishing; say how much was published.
    Stop,
    /// Wait for what is still on its way.
    Drain,
    /// Drop all subscribers and let them come back.
    Drop,
    /// Publish one message on every stream.
    Probe,
    /// Have all members enter.
    Enter,
    /// Close everything and return.
    Exit,
}

const PHASES: [Phase; 8] = [
    Phase::Connect,
    Phase::Run,
    Phase::Stop,
    Phase::Drain,
    Phase::Drop,
    Phase::Probe,
    Phase::Enter,
    Phase::Exit,
];

/// Settings that all threads read.
pub struct Settings {
    /// Where to connect.
    pub target: SocketAddr,
    /// The same for subscribers.
    pub subscribe_target: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// What makes TLS sessions; none where connections are plain.
    pub tls: Option<Connector>,
    /// Protocol.
    pub adapter: Adapter,
    /// Payload size in bytes.
    pub size: usize,
    /// Number of threads.
    pub threads: usize,
    /// CPUs to pin to, in turn; empty for none.
    pub cpus: Vec<usize>,
    /// Source addresses to use; 0 for the kernel's choice.
    pub sources: u8,
    /// Connections being made at a time, per thread.
    pub connect_window: usize,
    /// Whether connections that come back ask for what they have missed.
    pub resumes: bool,
}

/// State shared by all threads.
pub struct Shared {
    /// Settings.
    pub settings: Settings,
    /// Who publishes what to whom.
    pub plan: Plan,
    /// Zero of the run's clock.
    base: Instant,
    phase: AtomicU8,
    /// Threads that have carried out the present phase's first step.
    pub acks: AtomicU32,
    /// Connections ready.
    pub ready: AtomicU64,
    /// Connections made ready by churn.
    pub churned: AtomicU64,
    /// Members that have entered.
    pub entered: AtomicU64,
    /// Deliveries seen, roughly.
    pub delivered: AtomicU64,
    /// Messages that reached their last subscriber.
    pub completed: AtomicU64,
    /// Messages published per stream, final from [`Phase::Stop`] on.
    pub finals: Vec<AtomicU32>,
    /// Flights that span threads.
    pub flights: SharedFlights,
    span: Mutex<Span>,
    fatal: Mutex<Option<String>>,
    inboxes: Vec<Inbox>,
}

struct Inbox {
    wake: OwnedFd,
    completed: Mutex<Vec<u32>>,
}

impl Shared {
    /// For a run of `plan`.
    pub fn new(settings: Settings, plan: Plan) -> rustix::io::Result<Self> {
        let inbox = |_| {
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Inbox {
                wake,
                completed: Mutex::new(Vec::new()),
            })
        };
        Ok(Self {
            inboxes: (0..settings.threads)
                .map(inbox)
                .collect::<rustix::io::Result<_>>()?,
            flights: SharedFlights::new(plan.streams.len(), plan.window()),
            finals: plan.streams.iter().map(|_| AtomicU32::new(0)).collect(),
            settings,
            plan,
            base: Instant::now(),
            phase: AtomicU8::new(Phase::Connect as u8),
            acks: AtomicU32::new(0),
            ready: AtomicU64::new(0),
            churned: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            span: Mutex::new(Span::default()),
            fatal: Mutex::new(None),
        })
    }

    /// Nanoseconds since the run's clock started.
    pub fn now_ns(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire)) % PHASES.len()]
    }

    /// Coordinator only: starts a phase.
    pub fn set_phase(&self, phase: Phase) {
        self.acks.store(0, Ordering::Release);
        self.phase.store(phase as u8, Ordering::Release);
        for thread in 0..self.inboxes.len() {
            self.wake(thread);
        }
    }

    /// The measuring window.
    pub fn span(&self) -> Span {
        *lock(&self.span)
    }

    /// Coordinator only: sets the measuring window, before the phase that uses it.
    pub fn set_span(&self, span: Span) {
        *lock(&self.span) = span;
    }

    /// Reports what makes the run pointless; the first report stays.
    pub fn fail(&self, reason: String) {
        lock(&self.fatal).get_or_insert(reason);
    }

    /// What made the run pointless.
    pub fn failure(&self) -> Option<String> {
        lock(&self.fatal).clone()
    }

    /// The descriptor that becomes readable when `thread` is woken.
    pub fn wake_fd(&self, thread: usize) -> &OwnedFd {
        &self.inboxes[thread].wake
    }

    /// Hands completed messages (by stream) to the thread of their publisher.
    pub fn send_completed(&self, thread: usize, streams: &mut Vec<u32>) {
        let was_empty = {
            let mut inbox = lock(&self.inboxes[thread].completed);
            let was_empty = inbox.is_empty();
            inbox.append(streams);
            was_empty
        };
        if was_empty {
            self.wake(thread);
        }
    }

    /// Takes what others handed to `thread`.
    pub fn take_completed(&self, thread: usize, into: &mut Vec<u32>) {
        into.append(&mut lock(&self.inboxes[thread].completed));
    }

    fn wake(&self, thread: usize) {
        // A full counter means that the thread is woken anyway.
        let _ = rustix::io::write(&self.inboxes[thread].wake, &1u64.to_ne_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
