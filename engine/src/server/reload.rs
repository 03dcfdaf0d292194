//! What a running server takes over from a configuration that is read again.

use std::sync::Arc;

use shardwire_proto::auth::jwt::TokenRules;
use shardwire_proto::namespace::Namespaces;
use shardwire_proto::shard::Options;

use super::shard_thread::Control;
use super::{Shards, order};
use crate::config::{Auth, Config, OnExpiry};
use crate::notify;
use crate::registry::RegistryHandle;
use crate::tls::Acceptors;

/// Reads configuration and keys again and applies them; what cannot be read leaves everything as it was.
pub(super) fn reload(
    shards: &Shards,
    tls: &Acceptors,
    registry: &RegistryHandle,
    current: &mut Config,
    read: super::Reload<'_>,
) {
    match read() {
        Ok(next) => {
            tell_changes(current, &next);
            *current = keep_fixed(current, next);
            tls.reload(current);
            apply(shards, current);
            registry.reload();
            notify::status("serving");
        }
        Err(error) => {
            log::error!("reload refused, the old configuration stays: {error}");
            notify::status(&format!("serving; the last reload was refused: {error}"));
        }
    }
}

pub(super) fn options(config: &Config) -> Options {
    Options {
        limits: config.limits.clone(),
        hello: config.websocket.hello,
        utf8_channel_names: config.websocket.utf8_channel_names,
        self_asserted_ids: config.websocket.self_asserted_ids,
        close_frames_always: config.websocket.close_frames_always,
        allowed_origins: config.websocket.allowed_origins.clone(),
        tokens: TokenRules {
            leeway_s: config.auth.leeway_s,
            lifetime_s_max: config.auth.max_lifetime_s,
            claims: config.claims.clone(),
        },
        close_on_expiry: config.auth.on_expiry == OnExpiry::Close,
        // Checked when the configuration was read.
        namespaces: Namespaces::new(config.namespace.clone()).unwrap_or_default(),
        recovery_overlap_ms: config.history.recovery_overlap_ms,
        ring_bytes_max: config.history.ring_bytes_max,
        clustered: config.redis.is_on(),
        shared_store: false,
    }
}

/// Settings that shards take over while they run.
const RELOADABLE: [&str; 6] = ["limits", "websocket", "auth", "namespace", "log", "drain"];

fn is_reloadable(path: &str, current: &Config, next: &Config) -> bool {
    let (tls, admin_tls) = keeps_tls(current, next);
    let mut names = path.split('.');
    match (names.next(), names.next()) {
        (Some("tls"), _) => tls,
        (Some("admin"), Some("tls")) => admin_tls,
        (Some("auth"), Some("jwks_allow_http")) => false,
        (table, _) => table.is_some_and(|table| RELOADABLE.contains(&table)),
    }
}

/// Whether each listener has TLS before and after a reload, which may then exchange its certificates.
fn keeps_tls(current: &Config, next: &Config) -> (bool, bool) {
    (
        current.tls.is_on() && next.tls.is_on(),
        current.admin_tls.is_some() && next.admin_tls.is_some(),
    )
}

fn tell_changes(current: &Config, next: &Config) {
    let (live, fixed): (Vec<_>, Vec<_>) = current
        .changed(next)
        .into_iter()
        .partition(|path| is_reloadable(path, current, next));
    if !fixed.is_empty() {
        log::warn!("reload: needs a restart: {}", fixed.join(", "));
    }
    log::info!(
        "reload: keys, and {}",
        if live.is_empty() {
            "no setting changed".to_owned()
        } else {
            live.join(", ")
        }
    );
}

/// Gives running shards what a reload may change.
fn apply(shards: &Shards, config: &Config) {
    crate::log::set_level(config.log.level);
    let options = Arc::new(options(config));
    let config = Arc::new(config.clone());
    for shard in &shards.running {
        order(
            shard,
            Control::Reconfigure {
                options: options.clone(),
                config: config.clone(),
            },
        );
    }
}

/// The next configuration, with what cannot change as it was.
fn keep_fixed(current: &Config, next: Config) -> Config {
    let (tls, admin_tls) = keeps_tls(current, &next);
    let (of_tls, of_admin_tls) = (
        if tls { &next } else { current }.tls.clone(),
        if admin_tls { &next } else { current }.admin_tls.clone(),
    );
    Config {
        limits: next.limits,
        websocket: next.websocket,
        auth: Auth {
            jwks_allow_http: current.auth.jwks_allow_http,
            ..next.auth
        },
        claims: next.claims,
        namespace: next.namespace,
        log: next.log,
        drain: next.drain,
        tls: of_tls,
        admin_tls: of_admin_tls,
        ..current.clone()
    }
}
