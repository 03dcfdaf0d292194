//! File section `[broker.redis]`: the Redis that makes several processes one cluster.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where Redis is, and how it is used. Without URLs there is no broker: the process is alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RedisConfig {
    /// One Redis, or some nodes of a Redis Cluster: `redis://` or, for TLS, `rediss://[user:password@]host[:port][/db]`.
    pub urls: Vec<RedisUrl>,
    /// ACL user; empty: the URL's, or the default one.
    pub username: String,
    /// A file whose first line is the password; empty: the URL's, or none.
    pub password_file: PathBuf,
    /// PEM with the certificates of those who sign the server's; empty: the system's.
    pub ca_file: PathBuf,
    /// What all keys and topics begin with: clusters that share a Redis differ in it.
    pub key_prefix: String,
    /// Sockets for publishing to each Redis server.
    pub connections: usize,
    /// Longest a publisher waits for Redis, ms; then it is told 50300, and does not know whether it was published.
    pub publish_timeout_ms: u64,
    /// Replicas that must have a message before its publisher is told: 0 trusts the master alone.
    pub wait_replicas: u32,
    /// How long a node may be silent, ms, before the others take it for dead: its presence members leave then.
    pub node_lease_ms: u64,
    /// Operations that may wait, over all shards; beyond it publishes are refused.
    pub queue_ops_max: usize,
    /// Bytes of them.
    pub queue_bytes_max: usize,
    /// The core of the broker's thread; -1: any.
    pub core: i64,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            key_prefix: "sw:".to_owned(),
            connections: 2,
            publish_timeout_ms: 2000,
            wait_replicas: 0,
            node_lease_ms: 5000,
            queue_ops_max: 65_536,
            queue_bytes_max: 128 << 20,
            core: -1,
        }
    }
}

impl RedisConfig {
    /// Whether there is a broker.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.urls.is_empty()
    }

    /// What is wrong: each with its key.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for url in &self.urls {
            if let Err(error) = url.parse() {
                problems.push(("urls", format!("{url} is not a Redis URL: {error}")));
            }
        }
        let bad = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '{' | '}');
        if self.key_prefix.contains(bad) || self.key_prefix.len() > 64 {
            let text = "has spaces, braces or more than 64 bytes".to_owned();
            problems.push(("key_prefix", text));
        }
        let bounds = [
            ("connections", self.connections as u64, 1, 64),
            ("publish_timeout_ms", self.publish_timeout_ms, 50, 60_000),
            ("wait_replicas", u64::from(self.wait_replicas), 0, 16),
            ("node_lease_ms", self.node_lease_ms, 1000, 600_000),
            ("queue_ops_max", self.queue_ops_max as u64, 1, 1 << 22),
            ("queue_bytes_max", self.queue_bytes_max as u64, 1, 1 << 34),
        ];
        if !(-1..1024).contains(&self.core) {
            let text = format!("{} is not a core; -1 stands for any", self.core);
            problems.push(("core", text));
        }
        for (key, value, min, max) in bounds {
            if !(min..=max).contains(&value) {
                problems.push((key, format!("{value} is not between {min} and {max}")));
            }
        }
        problems
    }
}

/// A Redis URL; what is shown of it has no password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(pub String);

impl RedisUrl {
    /// # Errors
    /// It is not one.
    pub(super) fn parse(&self) -> redis::RedisResult<redis::ConnectionInfo> {
        redis::IntoConnectionInfo::into_connection_info(self.0.as_str())
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "{scheme}://{host}")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let url = RedisUrl("rediss://me:se@cret@h:1/0".into());
        assert_eq!(url.to_string(), "rediss://h:1/0");
        assert_eq!(format!("{url:?}"), "rediss://h:1/0");
        assert_eq!(serde_json::to_string(&url).unwrap(), "\"rediss://h:1/0\"");
    }

    #[test]
    fn mistakes_are_named() {
        let config = RedisConfig {
            urls: vec![RedisUrl("http://x".into())],
            key_prefix: "a{b".into(),
            connections: 0,
            ..RedisConfig::default()
        };
        let keys: Vec<_> = config.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["urls", "key_prefix", "connections"]);
        assert!(RedisConfig::default().problems().is_empty());
    }
}
