//! Who comes in: credentials of handshakes and HTTP requests, and what a change of the registry does to those who are
//! in already.
//!
//! A changed registry or a moment at which something ends starts a *sweep*: [`Shard::sweep`] looks at connections and
//! channels, a bounded number at a time, until all have been seen.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::{Options, Shard};
use crate::auth::capability::Ops;
use crate::auth::registry::{Presented, Registry};
use crate::auth::{Caller, Credential};
use crate::error::{CloseCause, ErrorCode, ProtocolError};
use crate::ids::{ConnId, Now};
use crate::limits::{HTTP_PUBLISHERS_MAX, KEY_USE_INTERVAL_MS, KEY_USES_NOTED_MAX};
use crate::session::ConnState;
use crate::wire::wsocket::write_unsubscribed;

/// Connections looked at in one step of a sweep: about a millisecond of work.
const SWEEP_CONNS: u32 = 2048;
/// Channels, likewise.
const SWEEP_CHANNELS: u32 = 8192;

/// A look at everything that a change may concern; positions are slots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sweep {
    conn: u32,
    /// Whether channels are to be looked at, and from where on.
    channel: Option<u32>,
}

/// An API key's latest use: app, key id, Unix ms.
pub type KeyUse = (Arc<str>, Box<str>, u64);

/// When keys were used, as far as it is still to be told.
#[derive(Debug, Default)]
pub(super) struct KeyUses {
    /// Latest use told of, by app and id.
    told_ms: HashMap<(Arc<str>, Box<str>), u64, foldhash::fast::RandomState>,
    untold: Vec<KeyUse>,
}

impl KeyUses {
    fn note(&mut self, app: &Arc<str>, id: &str, now_ms: u64) {
        // Keys are few; that many are forgotten and told of once more.
        if self.told_ms.len() >= KEY_USES_NOTED_MAX {
            self.told_ms.clear();
        }
        let told = self.told_ms.entry((app.clone(), id.into())).or_default();
        if now_ms.saturating_sub(*told) >= KEY_USE_INTERVAL_MS
            && self.untold.len() < KEY_USES_NOTED_MAX
        {
            *told = now_ms;
            self.untold.push((app.clone(), id.into(), now_ms));
        }
    }
}

impl Shard {
    /// Whose credentials these are. Wrong ones count against `remote`, and above its rate nothing is looked at (42900).
    ///
    /// # Errors
    /// As [`Registry::authenticate`].
    pub fn authenticate(
        &mut self,
        presented: Presented<'_>,
        remote: Option<IpAddr>,
        now: Now,
    ) -> Result<Caller, ProtocolError> {
        let limit = self.options.limits.failed_auth_per_address_rate;
        let guarded = remote.filter(|_| limit.is_some());
        if guarded.is_some_and(|address| self.guard.wait_ms(address, now.mono_ms()) > 0) {
            let text = "too many wrong credentials from this address";
            return Err(ProtocolError::with_text(ErrorCode::RateExceeded, text));
        }
        let rules = &self.options.tokens;
        let caller = self.registry.authenticate(presented, rules, now.unix_ms);
        match &caller {
            Ok(Caller {
                credential: Credential::Key(key),
                ..
            }) => {
                let app = self.intern(&key.app);
                self.key_uses.note(&app, &key.id, now.unix_ms);
            }
            Err(error) if is_guess(error.code) => {
                if let (Some(address), Some(limit)) = (guarded, limit) {
                    self.guard.note_failure(address, &limit, now.mono_ms());
                }
            }
            Ok(_) | Err(_) => {}
        }
        caller
    }

    /// Whether a token's holder may publish once more over HTTP: at the rate of one connection, however many requests it
    /// spreads over. Back ends have no limit of their own (contract D25).
    pub(super) fn acquire_http_rate(&mut self, caller: &Caller, app_index: u32, now: Now) -> bool {
        let Credential::Token { key, claims } = &caller.credential else {
            return true;
        };
        let Some(policy) = self.apps.policy(app_index) else {
            return false;
        };
        let name = claims.client_id.as_deref().or(claims.jti.as_deref());
        let holder = self
            .placement
            .hash(&caller.app.id, name.unwrap_or(&key.kid));
        if self.http_rates.len() >= HTTP_PUBLISHERS_MAX && !self.http_rates.contains_key(&holder) {
            self.http_rates.clear();
        }
        let window = self.http_rates.entry(holder).or_default();
        window.try_acquire(now.mono_ms(), &policy.publish_rate)
    }

    /// The latest uses of API keys that have not been told of, at most one a minute of each.
    pub fn take_key_uses(&mut self) -> Vec<KeyUse> {
        std::mem::take(&mut self.key_uses.untold)
    }

    /// The apps and credentials that count here.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Replaces apps and credentials. [`Shard::sweep`] is to be called until it is done.
    pub fn set_registry(&mut self, registry: Arc<Registry>, now: Now) {
        self.registry = registry;
        self.reconfigure(now);
    }

    /// Replaces the settings that may change while the process runs. [`Shard::sweep`] is to be called until it is done.
    pub fn set_options(&mut self, options: Options, now: Now) {
        self.options = options;
        self.reconfigure(now);
    }

    fn reconfigure(&mut self, now: Now) {
        let shards = self.placement.shards();
        self.apps.reconfigure(&self.options, &self.registry, shards);
        self.reset_terms();
        self.next_end_ms = self.registry.next_end_ms(now.unix_ms);
        self.sweep = Some(Sweep {
            conn: 0,
            channel: Some(0),
        });
    }

    /// A key or revocation may have ended: called by [`Shard::tick`].
    pub(super) fn check_ends(&mut self, now: Now) {
        if self.next_end_ms.is_none_or(|end| now.unix_ms < end) {
            return;
        }
        self.next_end_ms = self.registry.next_end_ms(now.unix_ms);
        let channel = self.sweep.and_then(|sweep| sweep.channel);
        self.sweep = Some(Sweep { conn: 0, channel });
    }

    /// Goes on with what a change has started; false when there is nothing left to do. The driver calls it, one turn
    /// each, after [`Shard::set_registry`], [`Shard::set_options`] and [`Shard::tick`].
    pub fn sweep(&mut self, now: Now) -> bool {
        let Some(Sweep { conn, channel }) = self.sweep else {
            return false;
        };
        let end = conn.saturating_add(SWEEP_CONNS);
        for slot in conn..end {
            if let Some(conn) = self.conns.id_at(slot) {
                self.renew(conn, now);
            }
        }
        let conns_left = (end as usize) < self.conns.slots();
        let (home, apps) = (&mut self.home, &self.apps);
        let channel = channel.and_then(|from| {
            let to = from.saturating_add(SWEEP_CHANNELS);
            home.resettle(from..to, |app, name| apps.settings(app, name))
                .then_some(to)
        });
        self.sweep = (conns_left || channel.is_some()).then_some(Sweep { conn: end, channel });
        self.sweep.is_some()
    }

    /// Looks at one connection's credentials again.
    fn renew(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let grant = &mut c.session.grant;
        let renewed =
            self.registry
                .renew(&grant.app, &grant.credential, &grant.client_id, now.unix_ms);
        match renewed {
            Ok(caller) => {
                let same =
                    grant.capabilities == caller.capabilities && grant.denied == caller.denied;
                grant.credential = caller.credential;
                grant.capabilities = caller.capabilities;
                grant.denied = caller.denied;
                if !same {
                    self.take_back_channels(conn, now);
                }
            }
            Err(ErrorCode::BadToken) => self.close(conn, CloseCause::EndedByAdmin, now),
            Err(_) => self.close(conn, CloseCause::Disabled, now),
        }
    }

    /// Ends the subscriptions that a connection's rights no longer cover (contract D32), those that are still to be
    /// replayed as well.
    fn take_back_channels(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.get(conn).filter(|c| c.state == ConnState::Open) else {
            return;
        };
        let grant = &c.session.grant;
        let subscribed = c.subscriptions.iter();
        let live = subscribed.filter_map(|s| self.local.get(s.channel).map(|c| c.key.name.clone()));
        let coming = c.session.catchup.iter().flat_map(|u| u.channels());
        let lost: Vec<Arc<str>> = live
            .chain(coming.cloned())
            .filter(|channel| !grant.permits(channel, Ops::SUBSCRIBE))
            .collect();
        for channel in lost {
            self.force_unsubscribe(conn, &channel, now);
        }
    }

    /// Contract D32: `unsubscribed` and an error 40300. False if the connection was not in the channel.
    pub(super) fn force_unsubscribe(&mut self, conn: ConnId, channel: &str, now: Now) -> bool {
        let coming = self.conns.open_mut(conn).is_some_and(|c| {
            let catchup = c.session.catchup.as_ref();
            catchup.is_some_and(|u| u.concerns(channel))
        });
        self.cancel_replay(conn, channel, now);
        if !self.unsubscribe(conn, channel, now) && !coming {
            return false;
        }
        self.reply(conn, now, |out| write_unsubscribed(out, channel));
        let error = ErrorCode::NotPermitted.into();
        self.error(conn, &error, Some(channel), None, now);
        true
    }
}

/// Whether a refusal is of credentials that may have been guessed.
fn is_guess(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::UnknownKey | ErrorCode::BadToken)
}
