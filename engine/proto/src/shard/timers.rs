//! What happens by itself: heartbeats, the end of silent connections (contract D12), numbers of
//! members, and forgetting channels that nobody uses.

use super::Shard;
use crate::error::{CloseCause, ErrorCode};
use crate::ids::{ConnId, Now};
use crate::wire::wsocket::write_heartbeat;

/// Seconds between sweeps over the channels that this shard is home to.
const SWEEP_S: u32 = 60;

impl Shard {
    /// To be called about once a second, and more often for deadlines that are finer: those are
    /// looked at with every [`Shard::finish_turn`].
    pub fn tick(&mut self, now: Now) {
        if now.mono_s() == self.ticked_s {
            return;
        }
        self.ticked_s = now.mono_s();
        while let Some(due) = self.wheel.take_due(now.mono_s()) {
            for conn in due {
                self.look_at(conn, now);
            }
        }
        self.check_ends(now);
        self.home.expire(now);
        self.tick_limits(now);
        self.load_given_up(now);
        self.tick_broker(now);
        self.tick_presence(now);
        self.tick_hooks(now);
        if now.mono_s().saturating_sub(self.swept_s) >= SWEEP_S {
            self.swept_s = now.mono_s();
            self.home.forget_idle(now.mono_ms());
        }
    }

    fn look_at(&mut self, conn: ConnId, now: Now) {
        let (heartbeat, liveness) = (self.heartbeat_s(), self.liveness_s());
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let now_s = now.mono_s();
        let ends_ms = c.session.grant.credential.expires_ms();
        if self
            .expiry_due_s(ends_ms, now)
            .is_some_and(|due| due <= now_s)
        {
            self.error(conn, &ErrorCode::TokenExpired.into(), None, None, now);
            self.close(conn, CloseCause::TokenExpired, now);
            return;
        }
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        if c.shows_life && now_s.saturating_sub(c.last_in_s) >= liveness {
            self.close(conn, CloseCause::IdleTimeout, now);
            return;
        }
        // What waits in the outbox breaks the silence by itself.
        let silent = now_s.saturating_sub(c.last_out_s) >= heartbeat && c.outbox.is_empty();
        if silent {
            self.reply(conn, now, write_heartbeat);
        }
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let mut due = c.last_out_s + heartbeat;
        if c.shows_life {
            due = due.min(c.last_in_s + liveness);
        }
        let due = due.min(self.expiry_due_s(ends_ms, now).unwrap_or(due));
        self.wheel.schedule(conn, due);
    }

    /// The monotonic second at which a connection ends for its token's sake (contract D27), if it does.
    pub(super) fn expiry_due_s(&self, expires_ms: Option<u64>, now: Now) -> Option<u32> {
        let expires_ms = expires_ms.filter(|_| self.options.close_on_expiry)?;
        let end_ms = expires_ms.saturating_add(self.options.limits.token_expiry_grace_ms);
        let left_s = seconds(end_ms.saturating_sub(now.unix_ms));
        Some(now.mono_s().saturating_add(left_s))
    }

    pub(super) fn heartbeat_s(&self) -> u32 {
        seconds(self.options.limits.heartbeat_ms)
    }

    fn liveness_s(&self) -> u32 {
        seconds(self.options.limits.liveness_ms)
    }
}

fn seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1000)).unwrap_or(u32::MAX)
}
