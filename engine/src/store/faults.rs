//! A storage whose faults are scripted, around a real one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use shardwire_proto::record::{StoreAnswer, StoreOp, StoreRead};

use super::{Applied, Backend, BackendError, Expired, Role, Storage};

/// What is to go wrong, and what was tried.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// What the next calls of `apply` fail with, before they do anything.
    pub(super) apply: Mutex<VecDeque<BackendError>>,
    /// What the next calls of `probe` fail with.
    pub(super) probe: Mutex<VecDeque<BackendError>>,
    /// What the next calls of `read` fail with.
    pub(super) read: Mutex<VecDeque<BackendError>>,
    /// How many of the next openings by the writer fail.
    pub(super) opens_failing: AtomicUsize,
    /// Calls of `apply`, and openings by readers.
    pub(super) applied: AtomicUsize,
    pub(super) reader_opens: AtomicUsize,
    /// Stops `apply` and `read` where they begin.
    pub(super) gate: Gate,
}

/// Closed: whoever comes waits. Says how many wait.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }

    pub(super) fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    /// Until so many wait.
    pub(super) fn wait_for(&self, waiting: usize) {
        let state = self.state.lock().unwrap();
        drop(
            self.changed
                .wait_while(state, |(_, n)| *n < waiting)
                .unwrap(),
        );
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |(closed, _)| *closed)
            .unwrap();
        state.1 -= 1;
    }
}

pub(super) struct Faulty<S> {
    pub(super) inner: S,
    pub(super) faults: Arc<Faults>,
}

impl<S: Storage> Storage for Faulty<S> {
    type Backend = Faulty<S::Backend>;

    fn open(&self, role: Role) -> Result<Self::Backend, BackendError> {
        let failing = &self.faults.opens_failing;
        match role {
            Role::Reader => _ = self.faults.reader_opens.fetch_add(1, SeqCst),
            Role::Writer => {
                let failed = failing.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
                if failed.is_ok() {
                    return Err(BackendError::Broken("scripted: open".to_owned()));
                }
            }
        }
        Ok(Faulty {
            inner: self.inner.open(role)?,
            faults: self.faults.clone(),
        })
    }
}

fn next(script: &Mutex<VecDeque<BackendError>>) -> Result<(), BackendError> {
    script.lock().unwrap().pop_front().map_or(Ok(()), Err)
}

impl<B: Backend> Backend for Faulty<B> {
    fn apply(&mut self, ops: &[StoreOp], now_ms: u64) -> Result<Applied, BackendError> {
        self.faults.applied.fetch_add(1, SeqCst);
        self.faults.gate.pass();
        next(&self.faults.apply)?;
        self.inner.apply(ops, now_ms)
    }

    fn read(&mut self, read: &StoreRead, now_ms: u64) -> Result<StoreAnswer, BackendError> {
        self.faults.gate.pass();
        next(&self.faults.read)?;
        self.inner.read(read, now_ms)
    }

    fn expire(&mut self, now_ms: u64, budget: Duration) -> Result<Expired, BackendError> {
        self.inner.expire(now_ms, budget)
    }

    fn check(&mut self) -> Result<(), BackendError> {
        self.inner.check()
    }

    fn probe(&mut self) -> Result<(), BackendError> {
        next(&self.faults.probe)?;
        self.inner.probe()
    }
}
