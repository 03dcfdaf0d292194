//! What a running server takes over from a configuration that is read again.

use std::sync::Arc;

use shardwire_proto::auth::key::{KeyRecord, KeyRing};
use shardwire_proto::namespace::Namespaces;
use shardwire_proto::shard::Options;

use super::shard_thread::Control;
use super::{Shards, order};
use crate::config::Config;
use crate::notify;
use crate::tls::Acceptors;

/// Reads configuration and keys again and applies them; what cannot be read leaves everything as it was.
pub(super) fn reload(
    shards: &Shards,
    tls: &Acceptors,
    current: &mut Config,
    read: super::Reload<'_>,
) {
    match read() {
        Ok((next, keys)) => {
            tell_changes(current, &next);
            *current = keep_fixed(current, next);
            tls.reload(current);
            apply(shards, current, keys);
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
        // Checked when the configuration was read.
        namespaces: Namespaces::new(config.namespace.clone()).unwrap_or_default(),
        recovery_overlap_ms: config.history.recovery_overlap_ms,
        ring_bytes_max: config.history.ring_bytes_max,
    }
}

/// Settings that shards take over while they run.
const RELOADABLE: [&str; 5] = ["limits", "websocket", "namespace", "log", "drain"];

fn is_reloadable(path: &str, current: &Config, next: &Config) -> bool {
    let (tls, admin_tls) = keeps_tls(current, next);
    let mut names = path.split('.');
    match (names.next(), names.next()) {
        (Some("tls"), _) => tls,
        (Some("admin"), Some("tls")) => admin_tls,
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
fn apply(shards: &Shards, config: &Config, keys: Vec<KeyRecord>) {
    crate::log::set_level(config.log.level);
    let keys = Arc::new(KeyRing::new(keys));
    let options = Arc::new(options(config));
    for shard in &shards.running {
        order(
            shard,
            Control::Reconfigure {
                keys: keys.clone(),
                options: options.clone(),
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
        namespace: next.namespace,
        log: next.log,
        drain: next.drain,
        tls: of_tls,
        admin_tls: of_admin_tls,
        ..current.clone()
    }
}
