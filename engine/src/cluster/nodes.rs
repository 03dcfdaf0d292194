//! Which nodes there are, and what is done about those that are not any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncTypedCommands, RedisResult, Value as Reply};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::limits::{self, Exchange};
use super::session::{Session, node_of};
use super::thread::Out;
use super::{lock, mirror};

/// How often a node says that it is there.
const BEAT: Duration = Duration::from_millis(500);
/// How often it is looked for what is over, and how long a sweeper keeps the others from it.
const SWEEP: Duration = Duration::from_millis(250);
const SWEEPER_LEASE_MS: u64 = 1000;
/// Members and channels looked at in one go.
const SWEEP_BATCH: isize = 256;

/// A node whose lease holds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    #[serde(serialize_with = "as_text")]
    pub name: Arc<str>,
    /// What its present lease is called.
    #[serde(skip)]
    pub lease: Arc<str>,
    /// Since it last said that it is there, ms.
    pub silent_ms: u64,
    /// What it says of itself.
    #[serde(flatten)]
    pub about: Value,
    /// What apps use there.
    #[serde(skip)]
    pub(super) uses: Value,
}

fn as_text<S: serde::Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

/// What a beat brings.
struct Beat {
    /// The lease was there before.
    is_known: bool,
    now_ms: u64,
    /// Description and last beat, Redis's time, by lease.
    leases: BTreeMap<String, (u64, String)>,
}

/// Keeps the lease and tidies up behind others until Redis cannot be reached, or the lease may be over.
pub(super) async fn keep(
    session: &Session,
    mut heard: MultiplexedConnection,
    out: &Out,
    lease_ms: u64,
) {
    let began = Instant::now();
    let mut sweep_due = began;
    let mut beat_due = began;
    let mut beaten: Option<Instant> = None;
    let mut leases = BTreeMap::new();
    let mut mirrored = None;
    let mut exchange = Exchange::default();
    let mut now_ms = 0;
    loop {
        let now = Instant::now();
        if beaten.is_some_and(|at| now - at >= Duration::from_millis(lease_ms)) {
            log::warn!("cluster: this node was silent for longer than its lease");
            return;
        }
        if now >= beat_due {
            let alive = heard.ping().await;
            let beat = beat(session, out).await;
            let looked = mirror::look(session, out, &mut mirrored).await;
            match alive.and(looked).and(beat) {
                Ok(brought) if beaten.is_some() && !brought.is_known => {
                    log::warn!(
                        "cluster: Redis has forgotten this node's lease; what it holds is told anew"
                    );
                    return;
                }
                Ok(brought) => {
                    beaten = Some(now);
                    beat_due = now + BEAT;
                    (leases, now_ms) = (brought.leases, brought.now_ms);
                    let nodes = living(&leases, now_ms, lease_ms);
                    if let Err(error) = exchange.run(session, out, &nodes).await {
                        log::debug!("cluster: what apps use could not be exchanged: {error}");
                    }
                    *lock(&out.shared.nodes) = nodes;
                }
                Err(error) => {
                    log::warn!("cluster: Redis does not answer: {error}");
                    return;
                }
            }
        }
        if now >= sweep_due {
            sweep_due = now + SWEEP;
            // Whoever was away itself waits until others could have said that they are there.
            let trusts = now - began >= Duration::from_millis(lease_ms);
            let over = leases
                .iter()
                .filter(|(_, (at, _))| trusts && at + lease_ms < now_ms);
            let over: Vec<&str> = over.map(|(lease, _)| lease.as_str()).collect();
            if let Err(error) = sweep(session, out, &over, lease_ms).await {
                log::debug!("cluster: sweeping has failed: {error}");
            }
        }
        let due = beat_due.min(sweep_due);
        sleep(due.saturating_duration_since(Instant::now())).await;
    }
}

async fn beat(session: &Session, out: &Out) -> RedisResult<Beat> {
    let (connections, channels) = out.shared.gauges.sum();
    let mut about = out.about.clone();
    about["connections"] = connections.into();
    about["channels"] = channels.into();
    about[limits::FIELD] = limits::take_uses(out);
    let about = about.to_string();
    let (is_known, now_ms, entries): (bool, u64, BTreeMap<String, String>) =
        session.nodes("beat", &[&session.lease, &about]).await?;
    let leases = entries.into_iter().filter_map(|(lease, entry)| {
        let (at, about) = entry.split_once(':')?;
        Some((lease, (at.parse().ok()?, about.to_owned())))
    });
    Ok(Beat {
        is_known,
        now_ms,
        leases: leases.collect(),
    })
}

/// The latest lease of each node, if it holds.
fn living(leases: &BTreeMap<String, (u64, String)>, now_ms: u64, lease_ms: u64) -> Vec<Node> {
    let mut latest: BTreeMap<&str, (&str, u64, &str)> = BTreeMap::new();
    for (lease, (at, about)) in leases {
        if at + lease_ms < now_ms {
            continue;
        }
        let entry = latest.entry(node_of(lease)).or_insert((lease, *at, about));
        if *at > entry.1 {
            *entry = (lease, *at, about);
        }
    }
    let nodes = latest.into_iter().map(|(name, (lease, at, about))| {
        let mut about: Value = serde_json::from_str(about).unwrap_or_else(|_| json!({}));
        let uses = about.as_object_mut().and_then(|a| a.remove(limits::FIELD));
        Node {
            name: name.into(),
            lease: lease.into(),
            silent_ms: now_ms.saturating_sub(at),
            about,
            uses: uses.unwrap_or_default(),
        }
    });
    nodes.collect()
}

/// Ends what is over, if this node is the one that does so.
async fn sweep(session: &Session, out: &Out, over: &[&str], lease_ms: u64) -> RedisResult<()> {
    let mut commands = session.commands.clone();
    let key = session.keys.global("sweeper");
    let taken: Option<String> = redis::cmd("SET")
        .arg(&key)
        .arg(&*session.lease)
        .arg("NX")
        .arg("PX")
        .arg(SWEEPER_LEASE_MS)
        .query_async(&mut commands)
        .await?;
    if taken.is_none() {
        let sweeper: Option<String> = redis::cmd("GET")
            .arg(&key)
            .query_async(&mut commands)
            .await?;
        if sweeper.as_deref() != Some(&*session.lease) {
            return Ok(());
        }
        redis::cmd("PEXPIRE")
            .arg(&key)
            .arg(SWEEPER_LEASE_MS)
            .query_async::<()>(&mut commands)
            .await?;
    }
    expire_away(session, out).await?;
    for lease in over {
        let lease_text = lease_ms.to_string();
        if reap(session, lease).await? {
            session
                .nodes::<Reply>("bury", &[lease, &lease_text])
                .await?;
            out.shared.counters.nodes_buried.fetch_add(1, Relaxed);
            log::info!(node = node_of(lease); "cluster: a node's lease is over; its members have left");
        }
    }
    Ok(())
}

/// Ends the members that a lease holds; some of them at a time, true when none are left.
pub(super) async fn reap(session: &Session, lease: &str) -> RedisResult<bool> {
    let mut commands = session.commands.clone();
    let key = session.channels_key(lease);
    let began = Instant::now();
    loop {
        let places: Vec<String> = redis::cmd("SRANDMEMBER")
            .arg(&key)
            .arg(SWEEP_BATCH)
            .query_async(&mut commands)
            .await?;
        if places.is_empty() {
            return Ok(true);
        }
        let each = places.iter().filter_map(|place| place.split_once('\n'));
        let reaped = each.map(|place| session.members::<Reply>(place, "reap", lease, &[]));
        for result in futures_util::future::join_all(reaped).await {
            result?;
        }
        redis::cmd("SREM")
            .arg(&key)
            .arg(&places)
            .query_async::<()>(&mut commands)
            .await?;
        // Beats go on in between.
        if began.elapsed() >= BEAT {
            return Ok(false);
        }
    }
}

/// Ends members whose client has not come back.
async fn expire_away(session: &Session, out: &Out) -> RedisResult<()> {
    let mut commands = session.commands.clone();
    let due: Vec<String> = redis::cmd("ZRANGEBYSCORE")
        .arg(session.away_key())
        .arg("-inf")
        .arg(crate::clock::now_ms())
        .arg("LIMIT")
        .arg(0)
        .arg(SWEEP_BATCH)
        .query_async(&mut commands)
        .await?;
    if due.is_empty() {
        return Ok(());
    }
    let each = due.iter().map(async |entry| {
        let mut parts = entry.splitn(3, '\n');
        let (Some(app), Some(channel), Some(client_id)) =
            (parts.next(), parts.next(), parts.next())
        else {
            return Ok(true);
        };
        session
            .members::<bool>((app, channel), "expire", "", &[client_id])
            .await
    });
    let mut over = Vec::new();
    for (entry, result) in due.iter().zip(futures_util::future::join_all(each).await) {
        if result? {
            over.push(entry);
        }
    }
    if !over.is_empty() {
        out.shared
            .counters
            .members_expired
            .fetch_add(over.len() as u64, Relaxed);
        redis::cmd("ZREM")
            .arg(session.away_key())
            .arg(over)
            .query_async::<()>(&mut commands)
            .await?;
    }
    Ok(())
}
