//! Questions that concern every shard: an HTTP request's shard asks all, itself too, and each
//! answers for its own connections and channels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::lookup::Deferred;
use super::{Output, Shard, Stats};
use crate::auth::Credential;
use crate::channel::presence::Members;
use crate::error::{AdminClose, CloseCause};
use crate::ids::{ChannelKey, ConnId, ConnName, Now, RequestId, ShardId};
use crate::msg::{Answer, ConnInfo, Occupants, Query, ShardMsg};
use crate::session::{Conn, ConnState};

impl Shard {
    /// Asks every shard; each one's answer comes as [`Output::Answer`]. Returns how many will come.
    pub fn ask(&mut self, app: &str, request: RequestId, query: Query, now: Now) -> usize {
        let app = self.intern(app);
        self.handle_ask(&app, &query, self.id, request, now);
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

    /// Answers a question of a shard, at once unless it concerns a channel whose log has to be loaded.
    pub(super) fn handle_ask(
        &mut self,
        app: &Arc<str>,
        query: &Query,
        shard: ShardId,
        request: RequestId,
        now: Now,
    ) {
        let Query::Channel { name } = query else {
            let answer = self.answer(app, query, now);
            self.send_answer(shard, request, answer);
            return;
        };
        let hash = self.placement.hash(app, name);
        let is_home = self.placement.home(hash) == self.id;
        if is_home && self.apps.settings(app, name).persist {
            let slot = self.enter_home(app, name, hash, now);
            if self.home.log(slot).is_none() {
                let work = Deferred::Describe { shard, request };
                if let Err(work) = self.defer(slot, work, now) {
                    self.refuse_deferred(work, now);
                }
                return;
            }
        }
        let answer = self.answer(app, query, now);
        self.send_answer(shard, request, answer);
    }

    pub(super) fn send_answer(&mut self, shard: ShardId, request: RequestId, answer: Answer) {
        let from = self.id;
        if shard == from {
            self.outputs.push_back(Output::Answer {
                from,
                request,
                answer,
            });
        } else {
            let msg = ShardMsg::Answer {
                from,
                request,
                answer,
            };
            self.send(shard, msg);
        }
    }

    fn answer(&mut self, app: &Arc<str>, query: &Query, now: Now) -> Answer {
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
            Query::Connections {
                client_id,
                after,
                limit,
            } => Answer::Connections(self.list_conns(app, client_id.as_deref(), *after, *limit)),
            Query::Connection { name } => Answer::Connection(self.describe_conn(app, *name)),
            Query::End { name, code, reason } => {
                Answer::Count(self.end_conn(app, *name, *code, reason, now))
            }
            Query::Connected { clients } => Answer::Connected(self.connected_of(app, clients)),
            Query::Stats => Answer::Stats(Box::new(self.stats())),
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            counters: self.counters.clone(),
            connections: self.conns.len(),
            channels: self.local.len(),
            home_channels: self.home.len(),
            members: self.presence.members(),
            members_away: self.presence.away(),
            ring_bytes: self.home.ring_bytes(),
            store_pending: self.store_pending(),
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
    ) -> Vec<(Arc<str>, Occupants)> {
        let is_asked_for = |key: &ChannelKey| {
            key.app == *app
                && key.name.starts_with(prefix)
                && after.is_none_or(|after| &*key.name > after)
        };
        let subscribed = self.local.iter().map(|c| {
            let subscribers = c.count();
            let members = 0;
            (
                &c.key,
                Occupants {
                    subscribers,
                    members,
                },
            )
        });
        let entered = self.home.iter().map(|c| {
            let members = c.members.as_deref().map_or(0, Members::len);
            let subscribers = 0;
            (
                &c.key,
                Occupants {
                    subscribers,
                    members,
                },
            )
        });
        let mut found: BTreeMap<&Arc<str>, Occupants> = BTreeMap::new();
        for (key, occupants) in subscribed.chain(entered) {
            if occupants != Occupants::default() && is_asked_for(key) {
                *found.entry(&key.name).or_default() += occupants;
            }
        }
        let found = found.into_iter().take(limit);
        found.map(|(name, o)| (name.clone(), o)).collect()
    }

    /// What this shard has of a channel; its log, if this is its home, is known or there is none.
    pub(super) fn describe_channel(&self, app: &Arc<str>, name: &str) -> Answer {
        let hash = self.placement.hash(app, name);
        let subscribers = self
            .local
            .find(app, name, hash)
            .and_then(|slot| self.local.get(slot))
            .map_or(0, |c| c.count());
        let last_sequence = (self.placement.home(hash) == self.id).then(|| {
            self.home
                .find(app, name, hash)
                .and_then(|slot| self.home.log(slot))
                .map_or(0, |log| log.committed)
        });
        let members = self.member_count(app, name, hash);
        Answer::Channel {
            occupants: Occupants {
                subscribers,
                members,
            },
            last_sequence,
        }
    }

    fn list_conns(
        &self,
        app: &Arc<str>,
        client_id: Option<&str>,
        after: Option<ConnName>,
        limit: usize,
    ) -> Vec<ConnInfo> {
        let open = self.conns.iter().filter(|(id, c)| {
            let name = self.name_of(*id);
            let grant = &c.session.grant;
            c.state == ConnState::Open
                && is_of(&grant.app, app)
                && client_id.is_none_or(|wanted| *grant.client_id == *wanted)
                && after.is_none_or(|after| name.place() > after.place())
        });
        open.take(limit)
            .map(|(id, c)| self.conn_info(id, c))
            .collect()
    }

    fn describe_conn(&self, app: &Arc<str>, name: ConnName) -> Option<Box<ConnInfo>> {
        let conn = self.conn_named(app, name)?;
        let mut info = self.conn_info(name.conn, conn);
        let channels = conn.subscriptions.iter();
        let names =
            channels.filter_map(|s| self.local.get(s.channel).map(|c| (&*c.key.name).into()));
        info.channels = Some(names.collect());
        Some(Box::new(info))
    }

    fn end_conn(
        &mut self,
        app: &Arc<str>,
        name: ConnName,
        code: u16,
        reason: &str,
        now: Now,
    ) -> usize {
        if self.conn_named(app, name).is_none() {
            return 0;
        }
        self.close(name.conn, admin_cause(code, reason), now);
        1
    }

    fn conn_named(&self, app: &Arc<str>, name: ConnName) -> Option<&Conn> {
        let conn = self
            .conns
            .get(name.conn)
            .filter(|_| name.shard == self.id)?;
        (conn.state == ConnState::Open && is_of(&conn.session.grant.app, app)).then_some(conn)
    }

    /// What a connection of this shard is called outside of it.
    pub(super) fn name_of(&self, conn: ConnId) -> ConnName {
        ConnName {
            shard: self.id,
            conn,
        }
    }

    fn conn_info(&self, id: ConnId, conn: &Conn) -> ConnInfo {
        let session = &conn.session;
        let (key_id, kid) = match &session.grant.credential {
            Credential::Key(key) => (Some(key.id.as_str().into()), None),
            Credential::Token { key, .. } => (None, Some(key.kid.as_str().into())),
        };
        ConnInfo {
            id: self.name_of(id),
            node: None,
            app: (&*session.grant.app).into(),
            client_id: (&*session.grant.client_id).into(),
            key_id,
            kid,
            connected_ms: session.opened_ms,
            remote: session.grant.remote,
            subscriptions: conn.subscriptions.len(),
            outbox_bytes: conn.outbox.bytes(),
            channels: None,
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
        let cause = admin_cause(code, reason);
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
            if self.force_unsubscribe(conn, channel, now) {
                self.stop_asking(conn, channel, now);
                count += 1;
            }
        }
        count
    }

    fn connected_of(&self, app: &Arc<str>, clients: &[Box<str>]) -> Vec<Box<str>> {
        let asked: BTreeSet<&str> = clients.iter().map(|client| &**client).collect();
        let open = self.conns.iter().map(|(_, conn)| conn);
        let open = open.filter(|c| c.state == ConnState::Open && c.session.grant.app == *app);
        let here: BTreeSet<&str> = open
            .filter_map(|conn| asked.get(&*conn.session.grant.client_id).copied())
            .collect();
        here.into_iter().map(Into::into).collect()
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

/// Whether an operator's question about `asked` concerns connections of `app`.
fn is_of(app: &str, asked: &str) -> bool {
    asked.is_empty() || app == asked
}

/// The cause a caller has chosen; where it may not be chosen, an administrator's.
fn admin_cause(code: u16, reason: &str) -> CloseCause {
    AdminClose::new(code, reason)
        .map_or(CloseCause::EndedByAdmin, |c| CloseCause::Admin(Box::new(c)))
}
