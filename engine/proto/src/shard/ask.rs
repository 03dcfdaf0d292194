//! Questions that concern every shard: an HTTP request's shard asks all, itself too, and each
//! answers for its own connections and channels.

use std::sync::Arc;

use super::{Output, Shard, Stats};
use crate::error::{AdminClose, CloseCause, ErrorCode};
use crate::ids::{ConnId, Now, RequestId, ShardId};
use crate::msg::{Answer, Query, ShardMsg};
use crate::session::ConnState;
use crate::wire::wsocket::write_unsubscribed;

impl Shard {
    /// Asks every shard; each one's answer comes as [`Output::Answer`], this shard's first.
    /// Returns how many answers will come.
    pub fn ask(&mut self, app: &str, request: RequestId, query: Query, now: Now) -> usize {
        let app = self.intern(app);
        let answer = self.answer(&app, &query, now);
        self.outputs.push_back(Output::Answer {
            from: self.id,
            request,
            answer,
        });
        let query = Arc::new(query);
        for shard in (0..self.placement.shards()).map(ShardId) {
            if shard != self.id {
                self.send(
                    shard,
                    ShardMsg::Ask {
                        app: app.clone(),
                        request,
                        query: query.clone(),
                    },
                );
            }
        }
        usize::from(self.placement.shards())
    }

    pub(super) fn answer(&mut self, app: &Arc<str>, query: &Query, now: Now) -> Answer {
        match query {
            Query::Channels {
                prefix,
                after,
                limit,
            } => Answer::Channels(self.list_channels(app, prefix, after.as_deref(), *limit)),
            Query::Channel { name } => self.describe_channel(app, name),
            Query::Disconnect {
                client_id,
                code,
                reason,
            } => Answer::Count(self.disconnect_client(app, client_id, *code, reason, now)),
            Query::Unsubscribe { client_id, channel } => {
                Answer::Count(self.unsubscribe_client(app, client_id, channel, now))
            }
            Query::Stats => Answer::Stats(Box::new(self.stats())),
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            counters: self.counters.clone(),
            connections: self.conns.len(),
            channels: self.local.len(),
            home_channels: self.home.len(),
            outbox_bytes: self.conns.iter().map(|(_, c)| c.outbox.bytes()).sum(),
            mesh_pending: self.mesh.iter().map(|(pending, _)| pending.len()).collect(),
        }
    }

    fn list_channels(
        &self,
        app: &Arc<str>,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, usize)> {
        let mut found: Vec<_> = self
            .local
            .iter()
            .filter(|c| {
                c.key.app == *app
                    && c.key.name.starts_with(prefix)
                    && after.is_none_or(|after| &*c.key.name > after)
            })
            .map(|c| (c.key.name.clone(), c.subscribers().len()))
            .collect();
        found.sort_unstable();
        found.truncate(limit);
        found
    }

    fn describe_channel(&self, app: &Arc<str>, name: &str) -> Answer {
        let hash = self.placement.hash(app, name);
        let subscribers = self
            .local
            .find(app, name, hash)
            .and_then(|slot| self.local.get(slot))
            .map_or(0, |c| c.subscribers().len());
        let last_sequence = (self.placement.home(hash) == self.id).then(|| {
            self.home
                .find(app, name, hash)
                .map_or(0, |slot| self.home.last_sequence(slot))
        });
        Answer::Channel {
            subscribers,
            last_sequence,
        }
    }

    fn disconnect_client(
        &mut self,
        app: &Arc<str>,
        client_id: &str,
        code: u16,
        reason: &str,
        now: Now,
    ) -> usize {
        let cause = AdminClose::new(code, reason)
            .map_or(CloseCause::EndedByAdmin, |c| CloseCause::Admin(Box::new(c)));
        let conns = self.conns_of(app, client_id);
        for conn in &conns {
            self.close(*conn, cause.clone(), now);
        }
        conns.len()
    }

    /// Contract D32: `unsubscribed` and an error 40300.
    fn unsubscribe_client(
        &mut self,
        app: &Arc<str>,
        client_id: &str,
        channel: &str,
        now: Now,
    ) -> usize {
        let mut count = 0;
        for conn in self.conns_of(app, client_id) {
            if self.unsubscribe(conn, channel, now) {
                count += 1;
                self.reply(conn, now, |out| write_unsubscribed(out, channel));
                self.error(
                    conn,
                    &ErrorCode::NotPermitted.into(),
                    Some(channel),
                    None,
                    now,
                );
            }
        }
        count
    }

    fn conns_of(&self, app: &Arc<str>, client_id: &str) -> Vec<ConnId> {
        self.conns
            .iter()
            .filter(|(_, c)| {
                c.state == ConnState::Open
                    && *c.session.grant.client_id == *client_id
                    && c.session.grant.app == *app
            })
            .map(|(id, _)| id)
            .collect()
    }
}
