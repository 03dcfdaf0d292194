//! How long a peer may take: one deadline per HTTP connection, moved as its requests progress.
//!
//! ```text
//! Idle ─first byte─► Head ─service called─► Body ─body read or given up─► Answer ─first bytes written─► Idle
//!   └──────────────────────(a pipelined request)──────────────────────────►┘       shutdown ─► Close
//! ```
//! Not here: what a handler may take, which bounds itself. Invariant: no byte that a peer sends moves a deadline
//! further away while one request is being read, so that sending slowly does not hold a connection.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use glommio::timer::Timer;

/// A connection without a request is kept for this long.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// A request's head and body arrive within this; its answer is started within as much again.
pub(super) const REQUEST: Duration = Duration::from_secs(30);
/// After the last answer the peer is given this long to read it before the rest of what it sends is refused.
pub(super) const CLOSE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Body,
    Answer,
    Close,
}

/// The deadline and what it is for. Shared by the socket, the service and the [`Watchdog`] of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    phase: Cell<Phase>,
    due: Cell<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            phase: Cell::new(Phase::Idle),
            due: Cell::new(now + IDLE),
        })
    }

    /// Bytes came in.
    pub(super) fn on_read(&self, now: Instant) {
        if self.phase.get() == Phase::Idle {
            self.enter(Phase::Head, now + REQUEST);
        }
    }

    /// A head is complete.
    pub(super) fn on_request(&self, now: Instant) {
        if self.phase.get() == Phase::Head {
            self.phase.set(Phase::Body);
        } else {
            self.enter(Phase::Body, now + REQUEST);
        }
    }

    /// Nothing more of the request will be read.
    pub(super) fn on_body_done(&self, now: Instant) {
        self.enter(Phase::Answer, now + REQUEST);
    }

    /// The kernel took bytes of an answer.
    pub(super) fn on_written(&self, now: Instant) {
        if self.phase.get() == Phase::Answer {
            self.enter(Phase::Idle, now + IDLE);
        }
    }

    /// The last answer is written.
    pub(super) fn on_shutdown(&self, now: Instant) {
        if self.phase.get() != Phase::Close {
            self.enter(Phase::Close, now + CLOSE);
        }
    }

    /// No request is being served: what is written is hyper's own answer to a head that it could not read.
    pub(super) fn is_between_requests(&self) -> bool {
        matches!(self.phase.get(), Phase::Idle | Phase::Head)
    }

    fn enter(&self, phase: Phase, due: Instant) {
        self.phase.set(phase);
        self.due.set(due);
    }
}

/// Ends when the deadline has passed. To be polled after whatever may have moved it, by the same task.
///
/// Its timer is set anew only for a nearer deadline; a later one is found when the timer fires. A busy connection so
/// sets few timers.
#[derive(Debug)]
pub(super) struct Watchdog {
    pace: Rc<Pace>,
    timer: Timer,
    armed: Instant,
}

impl Watchdog {
    pub(super) fn new(pace: Rc<Pace>) -> Self {
        let armed = pace.due.get();
        let timer = Timer::new(armed.saturating_duration_since(Instant::now()));
        Self { pace, timer, armed }
    }
}

impl Future for Watchdog {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let due = self.pace.due.get();
            if due < self.armed {
                self.arm(due);
            }
            ready!(Pin::new(&mut self.timer).poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.arm(due);
        }
    }
}

impl Watchdog {
    fn arm(&mut self, due: Instant) {
        self.armed = due;
        self.timer = Timer::new(due.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_bytes_do_not_buy_time() {
        let start = Instant::now();
        let pace = Pace::new(start);
        assert_eq!(pace.due.get(), start + IDLE);
        let first = start + Duration::from_secs(5);
        pace.on_read(first);
        for second in 6..30 {
            pace.on_read(start + Duration::from_secs(second));
        }
        pace.on_request(start + Duration::from_secs(30));
        pace.on_read(start + Duration::from_secs(31));
        pace.on_written(start + Duration::from_secs(31));
        assert_eq!(
            pace.due.get(),
            first + REQUEST,
            "head and body share one deadline"
        );
    }

    #[test]
    fn an_answer_starts_the_next_idle_time_once() {
        let start = Instant::now();
        let pace = Pace::new(start);
        pace.on_read(start);
        pace.on_request(start);
        pace.on_body_done(start);
        let written = start + Duration::from_secs(1);
        pace.on_written(written);
        pace.on_written(written + Duration::from_secs(50));
        assert_eq!(
            pace.due.get(),
            written + IDLE,
            "a reader that takes little at a time gains nothing"
        );
    }

    #[test]
    fn a_pipelined_request_has_its_own_deadline() {
        let start = Instant::now();
        let pace = Pace::new(start);
        pace.on_read(start);
        pace.on_request(start);
        pace.on_body_done(start);
        pace.on_written(start);
        pace.on_request(start + Duration::from_secs(1));
        assert_eq!(pace.due.get(), start + Duration::from_secs(1) + REQUEST);
    }

    #[test]
    fn the_watchdog_follows_a_deadline_both_ways() {
        let ran = glommio::LocalExecutorBuilder::default().spawn(|| async {
            let start = Instant::now();
            let pace = Pace::new(start);
            let mut watchdog = Watchdog::new(pace.clone());
            assert!(
                futures_lite::future::poll_once(&mut watchdog)
                    .await
                    .is_none()
            );
            pace.enter(Phase::Head, start + Duration::from_millis(20));
            assert!(
                futures_lite::future::poll_once(&mut watchdog)
                    .await
                    .is_none()
            );
            pace.enter(Phase::Answer, start + Duration::from_millis(60));
            watchdog.await;
            start.elapsed()
        });
        let took = ran.unwrap().join().unwrap();
        assert!((60..5000).contains(&took.as_millis()), "{took:?}");
    }
}
