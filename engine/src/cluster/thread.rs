//! The thread: connects, works until that is lost, and connects again.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::Value;
use shardwire_proto::cluster::{SharedOp, SharedReply};
use shardwire_proto::ids::{Placement, ShardId};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::bus::Bus;
use super::presence::{self, Indexed};
use super::session::{Scripts, Session, node_of};
use super::{Incoming, Job, Setup, Shared, lock, mirror, nodes};
use crate::broker::connect::Access;
use crate::broker::keys::Keys;
use crate::registry::RegistryHandle;
use crate::shard::inbox::InboxSender;

/// Operations carried out at once.
const BATCH_OPS: usize = 1024;
/// Jobs taken from the queue at once.
const BATCH_JOBS: usize = 256;
/// Between two attempts to connect, at first and at most.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Between two looks at calls that have waited too long.
const LOOK: Duration = Duration::from_millis(100);

/// Where replies go; shared by all that the thread does at once.
#[derive(Debug, Clone)]
pub(super) struct Out {
    pub(super) shared: Arc<Shared>,
    pub(super) calls: InboxSender<Incoming>,
    pub(super) registry: RegistryHandle,
    pub(super) about: Value,
    pub(super) opened_remembered_ms: u64,
    placement: Placement,
    replies: Arc<[InboxSender<SharedReply>]>,
}

impl Out {
    /// The shard that orders a channel in this process.
    pub(super) fn home(&self, app: &str, channel: &str) -> ShardId {
        self.placement.home(self.placement.hash(app, channel))
    }

    /// Waits while the shard has no room.
    pub(super) async fn tell(&self, shard: ShardId, mut reply: SharedReply) {
        let Some(inbox) = self.replies.get(shard.index()) else {
            return;
        };
        while let Err(refused) = inbox.try_send(reply) {
            if self.shared.is_ending() {
                return;
            }
            reply = refused;
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The same to every shard.
    pub(super) async fn tell_all(&self, reply: SharedReply) {
        for shard in (0..self.placement.shards()).map(ShardId) {
            self.tell(shard, reply.clone()).await;
        }
    }

    async fn tell_health(&self, is_up: bool) {
        self.shared.is_up.store(is_up, Relaxed);
        self.tell_all(SharedReply::Health { is_up }).await;
    }

    /// The present lease of the node that once had this one; none where it is dead.
    pub(super) fn lease_of(&self, session: &Session, lease: &str) -> Option<Arc<str>> {
        let name = node_of(lease);
        if *name == *self.shared.name {
            return Some(session.lease.clone());
        }
        let nodes = lock(&self.shared.nodes);
        let node = nodes.iter().find(|node| *node.name == *name);
        node.map(|node| node.lease.clone())
    }
}

pub(super) struct Thread {
    access: Access,
    keys: Keys,
    queue: mpsc::Receiver<Job>,
    out: Out,
    lease_ms: u64,
    /// Connections made so far: the number of the lease.
    connects: u64,
    scripts: Arc<Scripts>,
}

/// Why a session has ended.
#[derive(PartialEq, Eq)]
enum End {
    Lost,
    Stop,
}

impl Thread {
    pub(super) fn new(
        setup: Setup,
        access: Access,
        keys: Keys,
        queue: mpsc::Receiver<Job>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            access,
            keys,
            queue,
            lease_ms: setup.redis.node_lease_ms,
            out: Out {
                shared,
                calls: setup.calls,
                registry: setup.registry,
                about: setup.about,
                opened_remembered_ms: setup.opened_remembered_ms,
                placement: setup.placement,
                replies: setup.replies.into(),
            },
            connects: 0,
            scripts: Arc::default(),
        }
    }

    pub(super) fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.work()),
            Err(error) => log::error!("cluster: no runtime: {error}"),
        }
    }

    async fn work(&mut self) {
        let mut wait = RETRY;
        loop {
            match self.open().await {
                Ok((session, bus)) => {
                    wait = RETRY;
                    log::info!(lease = &*session.lease; "cluster: connected to Redis");
                    self.out.shared.counters.connects.fetch_add(1, Relaxed);
                    if self.serve(session, bus).await == End::Stop {
                        return;
                    }
                    log::warn!(
                        "cluster: Redis is away; members cannot enter, and other nodes are not heard"
                    );
                }
                Err(error) => {
                    log::debug!("cluster: cannot connect to Redis: {error}");
                }
            }
            if self.refuse_for(wait).await == End::Stop {
                return;
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn open(&mut self) -> redis::RedisResult<(Session, Bus)> {
        let commands = self.access.open_commands().await?;
        self.connects += 1;
        let name = &self.out.shared.name;
        let lease = format!("{name}.{}", self.connects);
        let scripts = self.scripts.clone();
        let session = Session::new(commands, self.keys.clone(), lease.into(), scripts);
        let bus = Bus::open(&self.access, &session, name).await?;
        Ok((session, bus))
    }

    /// Answers whatever comes with a refusal, for a while.
    async fn refuse_for(&mut self, wait: Duration) -> End {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let job = tokio::select! {
                job = self.queue.recv() => job,
                () = tokio::time::sleep_until(until) => return End::Lost,
            };
            match job {
                Some(Job::Ops { shard, ops }) => {
                    let ops = ops.into_iter().map(|op| (shard, op)).collect();
                    presence::refuse(&self.out, ops).await;
                }
                Some(Job::Call { reply, .. }) => _ = reply.try_send(Vec::new()),
                Some(Job::Answer { .. } | Job::TellStored) => {}
                Some(Job::Commit(commit)) => mirror::refuse(commit),
                Some(Job::Stop) | None => return End::Stop,
            }
        }
    }

    async fn serve(&mut self, session: Session, mut bus: Bus) -> End {
        let (lost, mut is_lost) = watch::channel(false);
        let keeping = {
            let (session, out, lease_ms) = (session.clone(), self.out.clone(), self.lease_ms);
            let heard = bus.connection();
            tokio::spawn(async move {
                nodes::keep(&session, heard, &out, lease_ms).await;
                _ = lost.send(true);
            })
        };
        self.out.tell_health(true).await;
        let end = self.take_jobs(&session, &mut bus, &mut is_lost).await;
        keeping.abort();
        if end == End::Stop {
            self.give_up(&session).await;
        }
        self.out.tell_health(false).await;
        end
    }

    async fn take_jobs(
        &mut self,
        session: &Session,
        bus: &mut Bus,
        is_lost: &mut watch::Receiver<bool>,
    ) -> End {
        let mut indexed = Indexed::new();
        let mut jobs = Vec::new();
        loop {
            tokio::select! {
                _ = is_lost.wait_for(|lost| *lost) => return End::Lost,
                push = bus.next() => {
                    let Some(push) = push else {
                        return End::Lost;
                    };
                    if !bus.take(push, &self.out).await {
                        return End::Lost;
                    }
                }
                _ = self.queue.recv_many(&mut jobs, BATCH_JOBS) => {
                    if jobs.is_empty() || self.take(session, bus, &mut indexed, &mut jobs).await {
                        return End::Stop;
                    }
                }
                () = sleep(LOOK) => {}
            }
            bus.expire();
        }
    }

    /// Does what has come; true when it is to end.
    async fn take(
        &mut self,
        session: &Session,
        bus: &mut Bus,
        indexed: &mut Indexed,
        jobs: &mut Vec<Job>,
    ) -> bool {
        let mut batch: Vec<(ShardId, SharedOp)> = Vec::new();
        let mut ends = false;
        for job in jobs.drain(..) {
            match job {
                Job::Ops { shard, ops } => batch.extend(ops.into_iter().map(|op| (shard, op))),
                Job::Call { call, reply } => bus.call(session, &self.out, call, reply).await,
                Job::Answer { to, answer } => Bus::answer(session, &self.out, to, answer).await,
                Job::Commit(commit) => mirror::commit(session, commit).await,
                Job::TellStored => Bus::tell_stored(session, &self.out).await,
                Job::Stop => ends = true,
            }
        }
        while !batch.is_empty() {
            let rest = batch.split_off(batch.len().min(BATCH_OPS));
            presence::carry_out(session, &self.out, indexed, batch).await;
            batch = rest;
        }
        ends
    }

    /// The planned end: members that are away stay so, all others of this node leave, and nobody waits for its lease.
    async fn give_up(&self, session: &Session) {
        while let Ok(false) = nodes::reap(session, &session.lease).await {}
        let buried = session
            .nodes::<redis::Value>("bury", &[&session.lease, "-1"])
            .await;
        if let Err(error) = buried {
            log::warn!("cluster: this node's members leave with its lease: {error}");
        }
    }
}
