//! The end of the shards: announced, drained at the configured pace, stopped. A further signal cuts it short.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::operator::Order;
use super::shard_thread::Control;
use super::{Accepting, Pulse, Shards, kept, order, stop_within};
use crate::config::Config;
use crate::notify;
use crate::shard::read_clock;

/// How long a stop waits for the shards to say who may come back.
const KEEP_PATIENCE: Duration = Duration::from_secs(1);

/// How often a drain looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(2);

/// Drains and ends every shard; a further signal cuts the draining short.
pub(super) fn stop(
    shards: Shards,
    accepting: Accepting,
    config: &Config,
    orders: &Receiver<Order>,
    mut pulse: Pulse,
) {
    notify::stopping(stop_within(config));
    let at_once = !announce(&shards, config, orders, &mut pulse);
    accepting.stop();
    if !at_once {
        drain(&shards, config, orders, &mut pulse);
        keep_members(&shards, config);
    }
    for shard in &shards.running {
        order(shard, Control::Stop);
    }
    for shard in shards.running {
        if let Err(error) = shard.thread.join() {
            log::error!("a shard ended badly: {error}");
        }
    }
}

/// Tells whoever asks that clients are to go elsewhere, and gives them the time to hear it. False when a signal says that
/// there is none.
fn announce(shards: &Shards, config: &Config, orders: &Receiver<Order>, pulse: &mut Pulse) -> bool {
    for shard in &shards.running {
        order(shard, Control::Announce);
    }
    let announced = Duration::from_secs(config.drain.announce_s);
    if !announced.is_zero() {
        log::info!("draining: not ready; clients are let in for another {announced:?}");
    }
    !is_cut_short(orders, announced, pulse)
}

fn drain(shards: &Shards, config: &Config, orders: &Receiver<Order>, pulse: &mut Pulse) {
    let count = u32::try_from(shards.running.len()).unwrap_or(1).max(1);
    let deadline = Duration::from_secs(config.drain.deadline_s);
    let started = Instant::now();
    log::info!(
        "draining: up to {} connections/s, {} s at most",
        config.drain.rate,
        config.drain.deadline_s
    );
    for shard in &shards.running {
        let rate = config.drain.rate.div_ceil(count);
        order(shard, Control::Drain { rate, deadline });
    }
    let until = started + deadline + Duration::from_secs(1);
    let mut left = shards.running.len();
    while left > 0 && Instant::now() < until {
        left -= shards.drained.try_iter().count();
        if left > 0 && is_cut_short(orders, DRAIN_LOOK, pulse) {
            return;
        }
    }
    log::info!(ms = started.elapsed().as_millis() as u64; "drained");
}

/// Lets the next process know who may come back.
fn keep_members(shards: &Shards, config: &Config) {
    for shard in &shards.running {
        order(shard, Control::Keep);
    }
    let until = Instant::now() + KEEP_PATIENCE;
    let mut members = Vec::new();
    for _ in &shards.running {
        let left = until.saturating_duration_since(Instant::now());
        match shards.kept.recv_timeout(left) {
            Ok(of_shard) => members.extend(of_shard),
            Err(_) => log::error!("presence: a shard does not say who may come back"),
        }
    }
    kept::keep(&config.data_dir, members, read_clock(shards.clock).unix_ms);
}

/// Waits, unless a signal ends that.
fn is_cut_short(orders: &Receiver<Order>, wait: Duration, pulse: &mut Pulse) -> bool {
    let until = Instant::now() + wait;
    loop {
        match pulse.next_within(orders, until.saturating_duration_since(Instant::now())) {
            None => return false,
            Some(Order::Stop) => {
                log::warn!("second signal: stopping at once");
                return true;
            }
            Some(Order::Reload | Order::Drain) => {}
        }
    }
}
