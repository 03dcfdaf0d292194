//! Health, readiness and metrics: what supervisors, load balancers and scrapers ask, without a token.
//!
//! Not here: what the numbers mean and how they are written (`metrics`).

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::ids::ShardId;
use shardwire_proto::msg::{Answer, Query};
use shardwire_proto::shard::Stats;

use super::AdminSettings;
use crate::broker::BrokerHandle;
use crate::http::{Refusal, Stage, json};
use crate::metrics::{self, Process};
use crate::shard::Server;
use crate::store::StoreHandle;
use crate::usage::UsageHandle;

/// A transaction that takes longer has a disk that hangs: a checkpoint on a slow one takes a second.
const STORE_WAIT_MAX_MS: u64 = 5000;

/// Well while every shard answers: a stuck one needs a restart, however ready the others are.
pub(super) async fn health(
    server: &Server,
    settings: &AdminSettings,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let answered = stats(server).await;
    let silent: Vec<String> = (0..settings.shards)
        .filter(|index| !answered.iter().any(|(shard, _)| shard.index() == *index))
        .map(|index| index.to_string())
        .collect();
    if silent.is_empty() {
        return Ok(json(br#"{"status":"ok"}"#.to_vec()));
    }
    let text = format!("shards that do not answer: {}", silent.join(", "));
    Err(ProtocolError::with_text(ErrorCode::Unavailable, text).into())
}

/// Ready while the public port is served and is to be served on, and messages can be stored: what a load balancer asks.
pub(super) fn readiness(server: &Server, stage: Stage) -> Result<Response<Full<Bytes>>, Refusal> {
    let reason = match stage {
        Stage::Serving => match store_trouble(server) {
            None => return Ok(json(ready(server))),
            Some(trouble) => trouble,
        },
        Stage::Starting => "starting".to_owned(),
        Stage::Draining => "draining".to_owned(),
    };
    Err(ProtocolError::with_text(ErrorCode::Unavailable, reason).into())
}

/// Ready, if without other nodes: while Redis is away no node can publish, so that a load balancer would gain nothing by
/// ending the connections of all.
fn ready(server: &Server) -> Vec<u8> {
    let stats = server.settings.broker.as_ref().map(BrokerHandle::stats);
    let Some(since) = stats.and_then(|stats| stats.down_since_ms) else {
        return br#"{"status":"ready"}"#.to_vec();
    };
    let seconds = server.now().unix_ms.saturating_sub(since) / 1000;
    let text = format!("broker: Redis is away, for {seconds} s; publishes are refused");
    let body = serde_json::json!({"status": "degraded", "reason": text});
    body.to_string().into_bytes()
}

/// What is wrong with the store, if anything.
fn store_trouble(server: &Server) -> Option<String> {
    let stats = server.settings.store.as_ref()?.stats();
    let now_ms = server.now().unix_ms;
    if stats.is_well(now_ms, STORE_WAIT_MAX_MS) {
        return None;
    }
    let (what, since) = match stats.failing_since_ms {
        Some(since) => ("writing fails", since),
        None => (
            "the disk does not answer",
            stats.writing_since_ms.unwrap_or(now_ms),
        ),
    };
    let seconds = now_ms.saturating_sub(since) / 1000;
    Some(format!(
        "degraded: store: {what}, for {seconds} s; messages with history are refused"
    ))
}

pub(super) async fn metrics(server: &Server, settings: &AdminSettings) -> Response<Full<Bytes>> {
    let shards = stats(server).await;
    // Counting open descriptors may take the kernel a while, which the shard must not spend.
    let process = glommio::executor().spawn_blocking(Process::read).await;
    let store = server.settings.store.as_ref().map(StoreHandle::stats);
    let usage = server.settings.usage.as_ref().map(UsageHandle::stats);
    let broker = server.settings.broker.as_ref().map(BrokerHandle::stats);
    let mut text = metrics::render(
        settings.shards,
        &shards,
        store.as_ref(),
        usage.as_ref(),
        broker.as_ref(),
        &process,
    );
    if let Some(webhooks) = &server.settings.webhooks {
        text.push_str(&metrics::webhooks::render(&webhooks.stats()));
    }
    if let Some(push) = &server.settings.push {
        text.push_str(&metrics::push::render(&push.stats()));
    }
    if let Some(cluster) = &server.settings.cluster {
        text.push_str(&metrics::cluster::render(cluster));
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(metrics::CONTENT_TYPE),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The numbers of the shards that answered in time, in order.
pub(super) async fn stats(server: &Server) -> Vec<(ShardId, Box<Stats>)> {
    let answers = server.ask("", Query::Stats).await.into_iter();
    let mut stats: Vec<_> = answers
        .filter_map(|(shard, answer)| match answer {
            Answer::Stats(stats) => Some((shard, stats)),
            _ => None,
        })
        .collect();
    stats.sort_unstable_by_key(|(shard, _)| *shard);
    stats
}
