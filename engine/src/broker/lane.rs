//! One socket to one Redis server, and what waits for it: commands leave in pipelines.
//!
//! A pipeline leaves as soon as the socket is idle; what comes while it is out gathers for the next. So a lone command
//! waits for nobody, and a crowd shares its round trips. Commands of one lane are carried out in their order.
//!
//! Invariants: every job is answered once; one whose pipeline broke is not tried again: whether it was carried out is not
//! known, and its publisher is told so. What a cluster sends elsewhere is tried there, in its order. What it cannot serve
//! for a moment is tried again until its deadline, and holds up nothing but what is of the same slot ([`Parked`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, Pipeline, PushInfo, PushKind, ServerError,
    ServerErrorKind, Value,
};
use shardwire_proto::ids::ShardId;
use shardwire_proto::record::Ticket;
use tokio::sync::{Notify, oneshot};

use super::core::{Core, Held};
use super::parked::Parked;
use super::scripts;

/// Commands in one pipeline: a few milliseconds of one Redis.
const BATCH_MAX: usize = 256;
/// Bytes of them, about.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Between two looks whether an idle socket is alive.
const PING_EVERY: Duration = Duration::from_secs(1);
/// Between attempts to connect.
const CONNECT_AFTER_MIN: Duration = Duration::from_millis(50);
const CONNECT_AFTER_MAX: Duration = Duration::from_secs(1);

/// Why a command has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not carried out, or not known to be.
    Away,
    /// Redis has answered with an error.
    Refused,
}

/// Who waits for a command.
pub(super) enum Done {
    Publish {
        shard: ShardId,
        ticket: Ticket,
        asked: Instant,
    },
    Call(oneshot::Sender<Result<Value, Failure>>),
}

/// A command on its way.
pub(super) struct Job {
    pub(super) cmd: Cmd,
    /// Of its keys.
    pub(super) slot: u16,
    /// Not tried again after.
    pub(super) deadline: Instant,
    pub(super) done: Done,
    /// Its slot is on its way to the server: it wants to be told that this is known.
    pub(super) asking: bool,
    /// Its room in the queue.
    pub(super) held: Option<Held>,
}

impl Job {
    fn is_publish(&self) -> bool {
        matches!(self.done, Done::Publish { .. })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneState {
    /// Has never been connected: jobs wait.
    Starting,
    Up,
    /// Jobs fail at once.
    Down,
}

pub(super) struct Lane {
    addr: ConnectionAddr,
    queue: RefCell<VecDeque<Job>>,
    /// What has been sent, and could not be served then.
    parked: RefCell<Parked<Job>>,
    wake: Arc<Notify>,
    state: Cell<LaneState>,
    stopped: Cell<bool>,
    /// Publishes go here: replicas are waited for.
    is_for_publishes: bool,
}

/// What one answer asks for.
enum Verdict {
    Done(Result<Value, Failure>),
    Moved,
    Ask,
    Again,
    LoadScripts,
}

impl Lane {
    pub(super) fn new(addr: ConnectionAddr, is_for_publishes: bool) -> Rc<Self> {
        Rc::new(Self {
            addr,
            queue: RefCell::default(),
            parked: RefCell::default(),
            wake: Arc::default(),
            state: Cell::new(LaneState::Starting),
            stopped: Cell::new(false),
            is_for_publishes,
        })
    }

    pub(super) fn state(&self) -> LaneState {
        self.state.get()
    }

    /// Gives the job back where it would fail.
    #[expect(clippy::result_large_err, reason = "the job comes back as it was")]
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        if self.state.get() == LaneState::Down || self.stopped.get() {
            return Err(job);
        }
        self.queue.borrow_mut().push_back(job);
        self.wake.notify_one();
        Ok(())
    }

    /// Before all that waits; the last one pushed goes first.
    #[expect(clippy::result_large_err, reason = "the job comes back as it was")]
    fn push_front(&self, job: Job) -> Result<(), Job> {
        if self.state.get() == LaneState::Down || self.stopped.get() {
            return Err(job);
        }
        self.queue.borrow_mut().push_front(job);
        self.wake.notify_one();
        Ok(())
    }

    /// All that waits, to go elsewhere.
    pub(super) fn take_queue(&self) -> VecDeque<Job> {
        let mut all = self.parked.borrow_mut().take();
        all.append(&mut self.queue.borrow_mut());
        all
    }

    /// Ends its task.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.wake.notify_one();
    }

    pub(super) async fn run(self: Rc<Self>, core: Rc<Core>) {
        let mut after = CONNECT_AFTER_MIN;
        while !self.stopped.get() {
            match self.connect(&core).await {
                Ok((connection, closed)) => {
                    after = CONNECT_AFTER_MIN;
                    core.shared.connections.fetch_add(1, Relaxed);
                    self.set_state(LaneState::Up, &core);
                    let why = self.serve(connection, &closed, &core).await;
                    core.shared.connections.fetch_sub(1, Relaxed);
                    if let Some(why) = why {
                        core.shared.reconnects.fetch_add(1, Relaxed);
                        log::warn!("broker: a connection to {} is lost: {why}", self.addr);
                        if why.is_timeout() {
                            // What does not answer will not do so at once.
                            self.set_state(LaneState::Down, &core);
                            self.fail_queue(&core);
                        }
                    }
                }
                Err(error) => {
                    if self.state.get() != LaneState::Down {
                        log::warn!("broker: cannot connect to {}: {error}", self.addr);
                    }
                    self.set_state(LaneState::Down, &core);
                    self.fail_queue(&core);
                    tokio::time::sleep(after).await;
                    after = (after * 2).min(CONNECT_AFTER_MAX);
                }
            }
        }
        self.fail_queue(&core);
    }

    fn set_state(&self, state: LaneState, core: &Core) {
        self.state.set(state);
        core.note_health();
    }

    fn fail_queue(&self, core: &Core) {
        for job in self.take_queue() {
            core.complete(job, Err(Failure::Away));
        }
        core.flush();
    }

    /// A connection with all scripts, and whether it has been closed, which wakes the lane.
    async fn connect(
        &self,
        core: &Core,
    ) -> redis::RedisResult<(MultiplexedConnection, Arc<AtomicBool>)> {
        let closed = Arc::new(AtomicBool::new(false));
        let (flag, wake) = (closed.clone(), self.wake.clone());
        let push = move |info: PushInfo| {
            if info.kind == PushKind::Disconnection {
                flag.store(true, Relaxed);
                wake.notify_one();
            }
            Ok::<(), ()>(())
        };
        let config = AsyncConnectionConfig::new().set_push_sender(push);
        let mut connection = core.access.open_with(&self.addr, config).await?;
        load_scripts(&mut connection).await?;
        Ok((connection, closed))
    }

    /// Sends what waits until the connection breaks or the lane is to end; says why.
    async fn serve(
        &self,
        mut connection: MultiplexedConnection,
        closed: &AtomicBool,
        core: &Core,
    ) -> Option<redis::RedisError> {
        loop {
            if closed.load(Relaxed) {
                return Some(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
            }
            let batch = self.take_batch(core);
            if batch.is_empty() {
                let parked = self.parked.borrow().wait(Instant::now());
                if self.stopped.get() && parked.is_none() {
                    return None;
                }
                let wait = parked.unwrap_or(PING_EVERY);
                let idle = tokio::time::timeout(wait, self.wake.notified()).await;
                if idle.is_err()
                    && parked.is_none()
                    && let Err(error) = redis::cmd("PING").exec_async(&mut connection).await
                {
                    return Some(error);
                }
                continue;
            }
            let wait = if self.is_for_publishes {
                core.config.wait_replicas
            } else {
                0
            };
            let pipeline = build(&batch, wait, core.config.publish_timeout_ms / 2);
            core.shared.batches.fetch_add(1, Relaxed);
            let count = pipeline.len();
            let sent = connection.send_packed_commands(&pipeline, 0, count).await;
            let result = match sent {
                Ok(values) => {
                    self.settle(batch, values, wait, &mut connection, core)
                        .await
                }
                Err(error) => {
                    for job in batch {
                        core.complete(job, Err(Failure::Away));
                    }
                    Err(error)
                }
            };
            core.flush();
            if let Err(error) = result {
                return Some(error);
            }
        }
    }

    fn take_batch(&self, core: &Core) -> Vec<Job> {
        let mut queue = self.queue.borrow_mut();
        let mut parked = self.parked.borrow_mut();
        let (mut bytes, now) = (0, Instant::now());
        for job in parked.release(now).into_iter().rev() {
            queue.push_front(job);
        }
        let mut batch = Vec::with_capacity(queue.len().min(BATCH_MAX));
        while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
            let Some(job) = queue.pop_front() else { break };
            if job.deadline <= now {
                core.complete(job, Err(Failure::Away));
                continue;
            }
            if parked.has(job.slot) {
                parked.push(job.slot, job, now);
                continue;
            }
            bytes += job.held.as_ref().map_or(0, Held::bytes);
            batch.push(job);
        }
        batch
    }

    /// Answers a pipeline's jobs, or sends them where they belong.
    async fn settle(
        &self,
        batch: Vec<Job>,
        values: Vec<Value>,
        wait: u32,
        connection: &mut MultiplexedConnection,
        core: &Core,
    ) -> redis::RedisResult<()> {
        let mut values = values.into_iter();
        let mut answers = Vec::with_capacity(batch.len());
        for job in batch {
            if job.asking {
                // What is said to the asking itself.
                values.next();
            }
            let value = values.next().unwrap_or(Value::Nil);
            answers.push((job, value));
        }
        let safe = wait == 0
            || matches!(values.next(), Some(Value::Int(count)) if count >= i64::from(wait));
        let (mut again, mut elsewhere) = (Vec::new(), Vec::new());
        let (mut parked, now) = (Parked::default(), Instant::now());
        for (mut job, value) in answers {
            let verdict = judge(value, core);
            // What comes behind one of its slot that waits, waits too.
            let follows = parked.has(job.slot);
            match verdict {
                Verdict::Done(Ok(_)) if !safe => core.complete(job, Err(Failure::Away)),
                Verdict::Done(result) => core.complete(job, result),
                Verdict::Moved if !follows => elsewhere.push(job),
                // A publish has more keys than there are: the other server would not serve it before the move is over.
                Verdict::Ask if !follows && !job.is_publish() => {
                    // For this once; the slot is still here.
                    job.asking = true;
                    elsewhere.push(job);
                }
                Verdict::LoadScripts if !follows => again.push(job),
                Verdict::Again | Verdict::Moved | Verdict::Ask | Verdict::LoadScripts => {
                    job.asking = false;
                    parked.push(job.slot, job, now);
                }
            }
        }
        // What waits here for the same slots goes along: what is submitted from here on goes there directly.
        if !elsewhere.is_empty() {
            let slots: BTreeSet<u16> = elsewhere
                .iter()
                .filter(|j| !j.asking)
                .map(|j| j.slot)
                .collect();
            let moved = |job: &Job| slots.contains(&job.slot);
            let (along, stay): (Vec<_>, Vec<_>) = self.queue.take().into_iter().partition(moved);
            *self.queue.borrow_mut() = stay.into();
            elsewhere.extend(along);
        }
        for job in elsewhere.into_iter().rev() {
            core.shared.redirects.fetch_add(1, Relaxed);
            let lane = match job.asking {
                true => core.importing_lane(job.slot),
                false => core.lane(job.slot, self.is_for_publishes),
            };
            let refused = match lane {
                Some(lane) => lane.push_front(job).err(),
                None => Some(job),
            };
            if let Some(job) = refused {
                core.complete(job, Err(Failure::Away));
            }
        }
        let load = !again.is_empty();
        {
            // Back to where they came from before anything is awaited: a connection may break.
            let mut queue = self.queue.borrow_mut();
            for mut job in again.into_iter().rev() {
                job.asking = false;
                queue.push_front(job);
            }
            let mut waiting = self.parked.borrow_mut();
            for job in parked.take() {
                core.shared.retries.fetch_add(1, Relaxed);
                waiting.push(job.slot, job, now);
            }
            waiting.settled();
        }
        if load {
            load_scripts(connection).await?;
        }
        Ok(())
    }
}

/// Scripts by their text, so that they can be called by their hash.
async fn load_scripts(connection: &mut MultiplexedConnection) -> redis::RedisResult<()> {
    let mut pipeline = Pipeline::new();
    for script in scripts::all() {
        pipeline
            .cmd("SCRIPT")
            .arg("LOAD")
            .arg(&script.text)
            .ignore();
    }
    pipeline.exec_async(connection).await
}

fn build(batch: &[Job], wait: u32, wait_ms: u64) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(batch.len() + 1);
    for job in batch {
        if job.asking {
            pipeline.cmd("ASKING");
        }
        pipeline.add_command(job.cmd.clone());
    }
    if wait > 0 {
        pipeline.cmd("WAIT").arg(wait).arg(wait_ms);
    }
    pipeline
}

fn judge(value: Value, core: &Core) -> Verdict {
    let Value::ServerError(error) = value else {
        return Verdict::Done(Ok(value));
    };
    match error.kind() {
        Some(ServerErrorKind::NoScript) => Verdict::LoadScripts,
        Some(ServerErrorKind::Moved) => match redirect(&error) {
            Some((slot, host, port)) if core.note_moved(slot, &host, port) => Verdict::Moved,
            // A server that is new: soon it is known.
            Some(_) => Verdict::Again,
            None => Verdict::Done(Err(Failure::Refused)),
        },
        Some(ServerErrorKind::Ask) => match redirect(&error) {
            Some((slot, host, port)) if core.note_importing(slot, &host, port) => Verdict::Ask,
            Some(_) => Verdict::Again,
            None => Verdict::Done(Err(Failure::Refused)),
        },
        Some(ServerErrorKind::TryAgain) => Verdict::Again,
        Some(ServerErrorKind::ReadOnly | ServerErrorKind::ClusterDown) => {
            // A replica is taking over, or has.
            core.discover_soon();
            Verdict::Again
        }
        _ => {
            core.note_refusal(&error);
            Verdict::Done(Err(Failure::Refused))
        }
    }
}

/// `MOVED 3999 127.0.0.1:6381`: slot, host and port.
fn redirect(error: &ServerError) -> Option<(u16, String, u16)> {
    let (slot, addr) = error.details()?.split_once(' ')?;
    let (host, port) = addr.trim().rsplit_once(':')?;
    Some((slot.parse().ok()?, host.to_owned(), port.parse().ok()?))
}

impl From<Failure> for shardwire_proto::broker::BrokerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Away => Self::Away,
            Failure::Refused => Self::Failed,
        }
    }
}
