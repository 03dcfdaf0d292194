//! Makes this process a node, where Redis is configured.

use std::net::SocketAddr;

use serde_json::json;
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::ids::Placement;

use crate::cluster::{
    CALLS_WAITING_MAX, ClusterHandle, Incoming, REPLIES_WAITING_MAX, Setup, start as start_thread,
};
use crate::config::Config;
use crate::registry::RegistryHandle;
use crate::shard::inbox::{self, Inbox};

/// Says which cluster's apps and credentials the data folder follows.
const MARKER_FILE: &str = "cluster";

/// How much longer than the liveness deadline it is remembered where a client has connected, ms.
const OPENED_MARGIN_MS: u64 = 10_000;

/// This process as one of several nodes.
pub(super) struct Joined {
    /// None where there is no Redis, and so no others.
    pub(super) cluster: Option<ClusterHandle>,
    /// What shards hear of the others, by shard.
    pub(super) shared: Vec<Inbox<SharedReply>>,
    /// What the others ask.
    pub(super) calls: Inbox<Incoming>,
}

/// Makes the process a node where Redis is configured.
///
/// # Errors
/// The configuration is of no use; the text says why.
pub(super) fn start(
    config: &Config,
    placement: &Placement,
    registry: &RegistryHandle,
    (listen, admin): (SocketAddr, SocketAddr),
) -> Result<Joined, String> {
    let inboxes = config
        .cores
        .iter()
        .map(|_| inbox::bounded(REPLIES_WAITING_MAX));
    let (replies, shared) = inboxes.unzip();
    let (to_calls, calls) = inbox::bounded(CALLS_WAITING_MAX);
    if !config.redis.is_on() {
        return Ok(Joined {
            cluster: None,
            shared,
            calls,
        });
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let setup = Setup {
        redis: config.redis.clone(),
        placement: placement.clone(),
        replies,
        calls: to_calls,
        registry: registry.clone(),
        about: json!({
            "host": host.trim(),
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "startedMs": crate::clock::now_ms(),
            "listen": listen,
            "adminListen": admin,
            "shards": config.cores.len(),
        }),
        opened_remembered_ms: config.limits.liveness_ms + OPENED_MARGIN_MS,
    };
    let cluster = start_thread(setup)?;
    registry.join(cluster.clone(), config.data_dir.join(MARKER_FILE));
    Ok(Joined {
        cluster: Some(cluster),
        shared,
        calls,
    })
}
