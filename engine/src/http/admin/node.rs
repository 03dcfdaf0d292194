//! The process: what it is and does, its configuration, and its planned end.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use shardwire_proto::shard::{Counters, Histogram, Stats};

use super::{Caller, Reply, reply};
use crate::http::Stage;
use crate::metrics::Process;
use crate::store::StoreHandle;

impl Stage {
    /// As the admin API calls it.
    fn label(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

impl Caller<'_> {
    /// The processes of the cluster: this one first, and what the others last said of themselves.
    pub(super) async fn nodes(&self) -> Reply {
        let settings = self.settings;
        let shards = super::probe::stats(self.server).await;
        // Counting open descriptors may take the kernel a while, which the shard must not spend.
        let process = glommio::executor().spawn_blocking(Process::read).await;
        let config = settings.config.borrow().clone();
        let now_ms = self.server.now().unix_ms;
        let mut all = Vec::new();
        for index in 0..settings.shards {
            let core = config.cores.get(index);
            let found = shards.iter().find(|(shard, _)| shard.index() == index);
            let mut shard = found.map_or_else(|| json!({}), |(_, stats)| describe(stats));
            shard["shard"] = index.into();
            shard["core"] = core.copied().into();
            shard["up"] = found.is_some().into();
            all.push(shard);
        }
        let bounds: Vec<u64> = (0..Histogram::BUCKETS - 1)
            .map(Histogram::bound_us)
            .collect();
        let cluster = self.server.settings.cluster.as_ref();
        let mut node = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "startedMs": settings.started_ms,
            "timeMs": now_ms,
            "stage": settings.stage.get().label(),
            "listen": settings.listen,
            "adminListen": settings.admin,
            "dataDir": config.data_dir,
            "cpuSeconds": process.cpu_seconds,
            "residentBytes": process.resident_bytes,
            "openFiles": process.open_fds,
            "storeFailing": self
                .server
                .settings
                .store
                .as_ref()
                .map(StoreHandle::stats)
                .is_some_and(|store| store.failing_since_ms.is_some()),
            "latencyBoundsUs": bounds,
            "shards": all,
        });
        let mut nodes = Vec::new();
        if let Some(cluster) = cluster {
            node["name"] = (**cluster.name()).into();
            node["redisUp"] = cluster.is_up().into();
            let others = cluster.nodes().into_iter();
            nodes.extend(others.filter(|other| other.name != *cluster.name()));
        }
        let body = json!({ "nodes": [node], "others": nodes });
        Ok(reply(StatusCode::OK, &body))
    }

    /// The settings in force.
    pub(super) fn config(&self) -> Response<Full<Bytes>> {
        let config = self.settings.config.borrow().clone();
        let mut config = serde_json::to_value(&*config).unwrap_or_default();
        mask(&mut config, "");
        reply(StatusCode::OK, &config)
    }

    /// Begins the drain that SIGTERM begins. Asked again, it answers the same.
    pub(super) async fn drain(&self) -> Reply {
        let begun = self.settings.stage.get() == Stage::Draining;
        if !begun && !self.settings.drain_asked.replace(true) {
            log::info!("drain asked for over the admin API");
            self.settings.operator.drain();
        }
        self.drain_state(StatusCode::ACCEPTED).await
    }

    /// How far the drain is.
    pub(super) async fn drain_state(&self, status: StatusCode) -> Reply {
        let shards = super::probe::stats(self.server).await;
        let connections: usize = shards.iter().map(|(_, stats)| stats.connections).sum();
        let config = self.settings.config.borrow().clone();
        let draining =
            self.settings.drain_asked.get() || self.settings.stage.get() == Stage::Draining;
        let state = json!({
            "draining": draining,
            "connections": connections,
            "rate": config.drain.rate,
            "deadlineS": config.drain.deadline_s,
        });
        Ok(reply(status, &state))
    }
}

/// A shard's numbers. Those of [`Counters`] rise from the shard's start on.
fn describe(stats: &Stats) -> Value {
    let Counters { delivery, .. } = &stats.counters;
    let counters = &stats.counters;
    let closed = |label: &str| {
        let found = counters.closed.iter().find(|(known, _)| *known == label);
        found.map_or(0, |(_, count)| *count)
    };
    json!({
        "connections": stats.connections,
        "channels": stats.channels,
        "homeChannels": stats.home_channels,
        "subscriptions": counters.subscriptions,
        "cpuSeconds": micros_to_seconds(counters.cpu_us),
        "messagesIn": counters.messages_in,
        "published": counters.published,
        "deliveries": counters.deliveries,
        "bytesSent": counters.bytes_sent,
        "opened": counters.opened,
        "slowConsumers": closed("slow_consumer"),
        "outboxBytes": stats.outbox_bytes,
        "meshPending": stats.mesh_pending.iter().sum::<usize>(),
        "storePending": stats.store_pending,
        "delivery": {
            "count": delivery.count(),
            "sumUs": delivery.sum_us,
            "buckets": delivery.buckets,
        },
    })
}

fn micros_to_seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// What stands for a secret.
const MASK: &str = "***";
/// Parts of the names of settings whose text is a secret.
const SECRET_NAMES: [&str; 3] = ["secret", "password", "token"];

/// Hides what must not be shown: texts under telling names, and passwords in URLs.
fn mask(value: &mut Value, name: &str) {
    match value {
        Value::Object(fields) => fields
            .iter_mut()
            .for_each(|(name, value)| mask(value, name)),
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, name)),
        Value::String(text) => {
            if SECRET_NAMES.iter().any(|secret| name.contains(secret)) {
                MASK.clone_into(text);
            } else if let Some(masked) = mask_url(text) {
                *text = masked;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `scheme://user:password@host` with the password hidden; `None` where there is none.
fn mask_url(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (credentials, _) = authority.rsplit_once('@')?;
    let (user, _) = credentials.split_once(':')?;
    let rest = rest.strip_prefix(credentials)?;
    Some(format!("{scheme}://{user}:{MASK}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_a_configuration_are_masked() {
        let mut config = json!({
            "broker": {"redis": {"urls": ["redis://ann:s3cr:et@a/0", "redis://b", "redis://ann@c"]}},
            "webhooks": [{"secret": "whsec", "url": "https://x/?a=b:c@d"}],
            "limits": {"token_expiry_grace_ms": 30000},
            "mongo_password": "pw",
        });
        mask(&mut config, "");
        let expected = json!({
            "broker": {"redis": {"urls": ["redis://ann:***@a/0", "redis://b", "redis://ann@c"]}},
            "webhooks": [{"secret": "***", "url": "https://x/?a=b:c@d"}],
            "limits": {"token_expiry_grace_ms": 30000},
            "mongo_password": "***",
        });
        assert_eq!(config, expected);
    }
}
