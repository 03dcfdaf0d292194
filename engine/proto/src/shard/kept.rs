//! Members that outlive the process: those that were away at its end are away at the start of the next.
//!
//! Not here: where they are kept meanwhile, and for how long.

use serde::{Deserialize, Serialize};

use super::Shard;
use crate::ids::Now;

/// A member that may come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptMember {
    pub app: String,
    pub channel: String,
    pub client_id: String,
    /// Server time of its `enter`, ms since the Unix epoch.
    pub joined_at: u64,
    /// JSON text of an object.
    pub state: Option<String>,
}

impl Shard {
    /// No member is held by a connection: none is on its way out.
    #[must_use]
    pub fn members_are_away(&self) -> bool {
        self.options.clustered || self.presence.members() == self.presence.away()
    }

    /// The members that are away in the channels that this shard is home to.
    #[must_use]
    pub fn export_members(&self) -> Vec<KeptMember> {
        let mut kept = Vec::new();
        if self.options.clustered {
            // Redis has them.
            return kept;
        }
        for channel in self.home.iter() {
            let members = channel.members.iter().flat_map(|m| m.list(None));
            kept.extend(members.filter(|m| m.connections == 0).map(|m| KeptMember {
                app: channel.key.app.to_string(),
                channel: channel.key.name.to_string(),
                client_id: m.client_id.to_string(),
                joined_at: m.joined_at,
                state: m.state.map(|state| state.to_string()),
            }));
        }
        kept
    }

    /// Takes members back in the channels that this shard is home to: away, for the grace from `now` on. Nobody is told.
    /// For the start, before any connection. Members beyond a channel's bound are left out.
    pub fn import_members(&mut self, kept: &[KeptMember], now: Now) {
        let grace_ms = self.options.limits.presence_grace_ms;
        if grace_ms == 0 || self.options.clustered {
            return;
        }
        for member in kept {
            let hash = self.placement.hash(&member.app, &member.channel);
            if self.placement.home(hash) != self.id {
                continue;
            }
            let app = self.intern(&member.app);
            let slot = self.enter_home(&app, &member.channel, hash, now);
            self.restore_member(slot, app, member, now.mono_ms() + grace_ms, now);
        }
    }
}
