//! The socket on which the node hears the topics of one Redis server.
//!
//! What is to be subscribed waits here and leaves in batches, so that neither a crowd of channels nor a reconnect hammers
//! Redis. Which topics these are is the matter of `topics`. What is heard goes to one task for all ears, in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, Pipeline, PushInfo, PushKind, Value};
use tokio::sync::Notify;

use super::core::Core;
use super::topics;

/// Topics subscribed or left with one pipeline.
const BATCH_MAX: usize = 256;
/// Between two looks whether the socket is alive.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Between attempts to connect.
const CONNECT_AFTER_MIN: Duration = Duration::from_millis(50);
const CONNECT_AFTER_MAX: Duration = Duration::from_secs(1);
/// Until topics that a server did not take are tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Messages that may wait to be handled; beyond it they are left out: their holes are filled later.
const MESSAGES_WAITING_MAX: usize = 65_536;

/// What is to be done about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Hear,
    Leave,
}

pub(super) struct Ear {
    pub(super) addr: ConnectionAddr,
    todo: RefCell<VecDeque<(Wish, Box<[u8]>)>>,
    wake: Notify,
    up: Cell<bool>,
    /// Number of the connection: what an earlier one has pushed is told apart.
    number: Cell<u64>,
    stopped: Cell<bool>,
}

/// Numbers of connections, never given twice.
static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

impl Ear {
    pub(super) fn new(addr: ConnectionAddr) -> Rc<Self> {
        Rc::new(Self {
            addr,
            todo: RefCell::default(),
            wake: Notify::new(),
            up: Cell::new(false),
            number: Cell::new(0),
            stopped: Cell::new(false),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.get()
    }

    pub(super) fn number(&self) -> u64 {
        self.number.get()
    }

    /// Leaves a wish; while there is no connection none is needed: one that opens subscribes to all.
    pub(super) fn wish(&self, wish: Wish, topic: &[u8]) {
        if self.up.get() {
            self.todo.borrow_mut().push_back((wish, topic.into()));
            self.wake.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.wake.notify_one();
    }

    pub(super) async fn run(self: Rc<Self>, core: Rc<Core>) {
        let mut after = CONNECT_AFTER_MIN;
        while !self.stopped.get() {
            match self.connect(&core).await {
                Ok(connection) => {
                    after = CONNECT_AFTER_MIN;
                    core.shared.connections.fetch_add(1, Relaxed);
                    self.up.set(true);
                    topics::hear_all(&core, &self);
                    let why = self.serve(connection, &core).await;
                    core.shared.connections.fetch_sub(1, Relaxed);
                    self.up.set(false);
                    self.number.set(0);
                    self.todo.borrow_mut().clear();
                    topics::lose_all(&core, &self);
                    core.discover_soon();
                    if let Some(why) = why {
                        core.shared.reconnects.fetch_add(1, Relaxed);
                        log::warn!("broker: the topics of {} are lost: {why}", self.addr);
                    }
                }
                Err(error) => {
                    log::debug!("broker: cannot hear {}: {error}", self.addr);
                    tokio::time::sleep(after).await;
                    after = (after * 2).min(CONNECT_AFTER_MAX);
                }
            }
        }
    }

    async fn connect(&self, core: &Core) -> redis::RedisResult<MultiplexedConnection> {
        let number = NUMBERS.fetch_add(1, Relaxed);
        let (pushes, shared) = (core.pushes.clone(), core.shared.clone());
        let waiting = core.topics.borrow().waiting.clone();
        let push = move |info: PushInfo| {
            let is_message = info.kind == PushKind::SMessage;
            if is_message && waiting.fetch_add(1, Relaxed) >= MESSAGES_WAITING_MAX {
                waiting.fetch_sub(1, Relaxed);
                shared.dropped.fetch_add(1, Relaxed);
                return Ok(());
            }
            pushes.send((number, info))
        };
        let config = AsyncConnectionConfig::new().set_push_sender(push);
        let connection = core.access.open_with(&self.addr, config).await?;
        self.number.set(number);
        Ok(connection)
    }

    /// Carries wishes out until the connection breaks; says why.
    async fn serve(&self, mut connection: MultiplexedConnection, core: &Core) -> Option<String> {
        loop {
            if self.stopped.get() {
                return None;
            }
            if self.number.get() == 0 {
                return Some("it was closed".to_owned());
            }
            let batch: Vec<_> = {
                let mut todo = self.todo.borrow_mut();
                let count = todo.len().min(BATCH_MAX);
                todo.drain(..count).collect()
            };
            if batch.is_empty() {
                let idle = tokio::time::timeout(PING_EVERY, self.wake.notified()).await;
                if idle.is_err()
                    && let Err(error) = redis::cmd("PING").exec_async(&mut connection).await
                {
                    return Some(error.to_string());
                }
                continue;
            }
            let mut pipeline = Pipeline::with_capacity(batch.len());
            for (wish, topic) in &batch {
                let name = match wish {
                    Wish::Hear => "SSUBSCRIBE",
                    Wish::Leave => "SUNSUBSCRIBE",
                };
                pipeline.cmd(name).arg(&**topic);
            }
            match connection
                .send_packed_commands(&pipeline, 0, batch.len())
                .await
            {
                Ok(answers) => {
                    // Confirmations come with the pushes; here are only refusals.
                    if answers.iter().any(|a| matches!(a, Value::ServerError(_))) {
                        core.discover_soon();
                        tokio::time::sleep(AGAIN_AFTER).await;
                        topics::hear_again(core, self, &batch);
                    }
                }
                Err(error) => return Some(error.to_string()),
            }
        }
    }

    /// The connection of this number is closed.
    pub(super) fn note_closed(&self, number: u64) {
        if self.number.get() == number {
            self.number.set(0);
            self.wake.notify_one();
        }
    }
}

/// How many messages wait to be handled, over all ears.
pub(super) type Waiting = Arc<AtomicUsize>;
