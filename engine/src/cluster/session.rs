//! One connection to Redis and the lease that began with it: names of keys, scripts.

use std::sync::Arc;

use redis::{FromRedisValue, RedisResult, Script};

use crate::broker::connect::Commands;
use crate::broker::keys::Keys;

#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) commands: Commands,
    pub(super) keys: Keys,
    /// What this node's members are held by: its name and the number of the connection.
    pub(super) lease: Arc<str>,
    scripts: Arc<Scripts>,
}

#[derive(Debug)]
pub(super) struct Scripts {
    presence: Script,
    client: Script,
    nodes: Script,
    registry: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self {
            presence: Script::new(include_str!("presence.lua")),
            client: Script::new(include_str!("client.lua")),
            nodes: Script::new(include_str!("nodes.lua")),
            registry: Script::new(include_str!("registry.lua")),
        }
    }
}

impl Session {
    pub(super) fn new(
        commands: Commands,
        keys: Keys,
        lease: Arc<str>,
        scripts: Arc<Scripts>,
    ) -> Self {
        Self {
            commands,
            keys,
            lease,
            scripts,
        }
    }

    /// Runs an operation on a channel's members as `lease`.
    pub(super) async fn members<T: FromRedisValue>(
        &self,
        (app, channel): (&str, &str),
        operation: &str,
        lease: &str,
        arguments: &[&str],
    ) -> RedisResult<T> {
        let keys = self.keys.channel(app, channel);
        let mut call = self.scripts.presence.key(keys.key("p"));
        call.key(keys.topic()).arg(operation).arg(lease);
        for argument in arguments {
            call.arg(*argument);
        }
        call.invoke_async(&mut self.commands.clone()).await
    }

    /// Runs an operation on what is known of a client with an id of its own.
    pub(super) async fn client<T: FromRedisValue>(
        &self,
        (app, client_id): (&str, &str),
        operation: &str,
        arguments: &[&str],
    ) -> RedisResult<T> {
        // Named as a channel is: a hash tag of its own.
        let key = self.keys.channel(app, client_id).key("c");
        let mut call = self.scripts.client.key(key);
        call.arg(operation);
        for argument in arguments {
            call.arg(*argument);
        }
        call.invoke_async(&mut self.commands.clone()).await
    }

    /// Runs an operation on the nodes.
    pub(super) async fn nodes<T: FromRedisValue>(
        &self,
        operation: &str,
        arguments: &[&str],
    ) -> RedisResult<T> {
        let mut call = self.scripts.nodes.key(self.keys.global("nodes"));
        call.arg(operation);
        for argument in arguments {
            call.arg(*argument);
        }
        call.invoke_async(&mut self.commands.clone()).await
    }

    /// Runs an operation on apps and credentials.
    pub(super) async fn registry<T: FromRedisValue>(
        &self,
        operation: &str,
        arguments: &[&str],
    ) -> RedisResult<T> {
        let mut call = self.scripts.registry.key(self.keys.global("registry"));
        call.arg(operation);
        for argument in arguments {
            call.arg(*argument);
        }
        call.invoke_async(&mut self.commands.clone()).await
    }

    /// The set of channels in which a lease holds members.
    pub(super) fn channels_key(&self, lease: &str) -> String {
        self.keys.global(&format!("lease:{lease}"))
    }

    /// Members that are away, by when they leave.
    pub(super) fn away_key(&self) -> String {
        self.keys.global("away")
    }
}

/// The name of the node that a lease is one of.
pub(super) fn node_of(lease: &str) -> &str {
    lease.split_once('.').map_or(lease, |(node, _)| node)
}

/// Several texts as one, none of which has line ends: apps, channels and client ids have no control characters.
pub(super) fn join(parts: &[&str]) -> String {
    parts.join("\n")
}
