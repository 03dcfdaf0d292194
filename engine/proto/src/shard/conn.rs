//! A connection's life: handshake, messages, end.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;

use super::{Output, PublishItem, Shard};
use crate::auth::is_valid_client_id;
use crate::auth::registry::Presented;
use crate::error::{CloseCause, ErrorCode, ProtocolError};
use crate::ids::{ConnId, Now};
use crate::meter::NO_CLIENT;
use crate::outbox::Frame;
use crate::session::{ConnState, Grant, Session};
use crate::url::{Query, Target};
use crate::wire::wsocket::{Request, parse_request, write_connected, write_error, write_pong};
use crate::ws::frame::{OpCode, write_close, write_close_reply, write_frame};

/// A request head's part in deciding on a handshake.
#[derive(Clone, Copy, Default)]
pub struct Handshake<'a> {
    pub target: &'a str,
    /// Content of `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    pub origin: Option<&'a str>,
    /// Where it comes from; none: wrong credentials are not counted.
    pub remote: Option<IpAddr>,
}

impl Shard {
    /// Decides on a WebSocket handshake (contract D1 to D8). `random` is 16 bytes from the system,
    /// for an anonymous client's id, which must not be guessable.
    ///
    /// Errors are answered with their HTTP status (contract D5), before anything is upgraded.
    pub fn authorize(
        &mut self,
        handshake: Handshake<'_>,
        random: [u8; 16],
        now: Now,
    ) -> Result<Grant, ProtocolError> {
        let granted = self.try_authorize(handshake, random, now);
        if let Err(error) = &granted {
            self.counters.refused += 1;
            self.counters.count_error(error.code);
        }
        granted
    }

    fn try_authorize(
        &mut self,
        handshake: Handshake<'_>,
        random: [u8; 16],
        now: Now,
    ) -> Result<Grant, ProtocolError> {
        self.check_address(handshake.remote, now)?;
        let Target { path, query } = crate::url::parse_target(handshake.target);
        if path != "/" && path != "/ws" {
            return Err(ProtocolError::with_text(
                ErrorCode::NotFound,
                "no socket at this path; use / or /ws",
            ));
        }
        let query = Query::parse(query)?;
        let presented = Presented {
            key: query.key.as_deref(),
            token: query.token.as_deref(),
            bearer: handshake.bearer,
        };
        let caller = self.authenticate(presented, handshake.remote, now)?;
        let (app_index, app) = self.enter_app(&caller.app.id);
        self.check_origin(app_index, handshake.origin)?;
        if !self.apps.has_room(app_index) {
            let text = "the app has as many connections as it may have";
            return Err(ProtocolError::with_text(ErrorCode::ConnectionLimit, text));
        }
        let (client_id, named) = match caller.credential.client_id() {
            Some(id) => (id.clone(), true),
            None => self.claimed_id(app_index, query.client_id.as_deref(), random)?,
        };
        let mut denied = caller.denied;
        if named && caller.credential.client_id().is_none() {
            // A name that the client has given itself may be one that was revoked.
            let renewed = self
                .registry
                .renew(&app, &caller.credential, &client_id, now.unix_ms)?;
            denied = renewed.denied;
        }
        let is_exempt = caller.credential.is_server_key();
        let named_id = named.then_some(&client_id);
        self.check_connect(app_index, named_id, is_exempt, now)?;
        Ok(Grant {
            app,
            app_index,
            credential: caller.credential,
            capabilities: caller.capabilities,
            denied,
            client_id,
            named,
            echo: query.echo,
            ack: query.ack,
            shape: query.shape,
            remote: handshake.remote,
        })
    }

    /// The id of a client whose credentials say none: its own, where the app allows that, else one of nobody else.
    fn claimed_id(
        &self,
        app_index: u32,
        claimed: Option<&str>,
        random: [u8; 16],
    ) -> Result<(Arc<str>, bool), ProtocolError> {
        let policy = self.apps.policy(app_index);
        let allowed = policy.is_some_and(|policy| policy.self_asserted_ids);
        match claimed.filter(|_| allowed) {
            Some(id) if is_valid_client_id(id) => Ok((id.into(), true)),
            Some(_) => Err(ProtocolError::with_text(
                ErrorCode::BadRequest,
                "`clientId` must be 1 to 128 bytes without control characters",
            )),
            None => Ok((anonymous_id(random), false)),
        }
    }

    /// Contract D29: only browsers send an origin, so its absence says nothing.
    fn check_origin(&self, app_index: u32, origin: Option<&str>) -> Result<(), ProtocolError> {
        let policy = self.apps.policy(app_index);
        let allowed = policy.map_or(&[][..], |policy| &policy.allowed_origins);
        match origin {
            Some(origin) if !allowed.is_empty() && !allowed.iter().any(|a| a == origin) => Err(
                ProtocolError::with_text(ErrorCode::NotPermitted, "origin not allowed"),
            ),
            _ => Ok(()),
        }
    }

    /// Makes a connection of a grant and greets it: its first bytes are `accept`, the handshake's
    /// answer, so that both leave in one send.
    pub fn open(&mut self, grant: Grant, accept: &[u8], now: Now) -> ConnId {
        let (app_index, ends_ms) = (grant.app_index, grant.credential.expires_ms());
        let policy = self.apps.policy(app_index);
        let hello = policy.is_some_and(|policy| policy.hello);
        let hello = hello.then(|| grant.client_id.clone());
        let conn = self.conns.insert(
            Session {
                grant,
                opened_ms: now.unix_ms,
                rate: Default::default(),
                publishes_due: 0,
                leaving: false,
                subscribe_rate: Default::default(),
                client: NO_CLIENT,
                catchup: None,
                pumping: false,
                replays_begun: 0,
                presence: None,
                rare: None,
            },
            now.mono_s(),
        );
        self.counters.opened += 1;
        self.apps.count_opened(app_index);
        self.note_opened(conn, now);
        let due = now.mono_s() + self.heartbeat_s();
        let due = due.min(self.expiry_due_s(ends_ms, now).unwrap_or(due));
        self.wheel.schedule(conn, due);
        self.queue(conn, Rc::from(accept), now);
        if let Some(client_id) = hello {
            let id = self.name_of(conn).to_string();
            self.reply(conn, now, |out| {
                write_connected(out, &id, &client_id, now.unix_ms);
            });
        }
        self.announce(conn, now);
        self.raise_connection(conn, true, now);
        conn
    }

    /// A binary message: may hold JSON text (contract D31).
    pub fn handle_binary(&mut self, conn: ConnId, payload: &[u8], now: Now) {
        // What is not text is no JSON either, and is counted as such.
        self.handle_message(conn, std::str::from_utf8(payload).unwrap_or(""), now);
    }

    /// One message of a client.
    pub fn handle_message(&mut self, conn: ConnId, payload: &str, now: Now) {
        let Some(c) = self.conns.open_mut(conn).filter(|c| !c.session.leaving) else {
            return;
        };
        c.last_in_s = now.mono_s();
        self.counters.messages_in += 1;
        self.count_in_turn(conn);
        self.counters.bytes_in += payload.len() as u64;
        match parse_request(payload) {
            Ok(Request::Publish {
                channel,
                data,
                id,
                persist,
            }) => {
                let item = PublishItem {
                    channel,
                    data,
                    id,
                    persist,
                    client_id: None,
                };
                self.handle_publish(conn, &item, now);
            }
            Ok(Request::Subscribe { channel, from }) => {
                self.handle_subscribe(conn, &channel, from, now);
            }
            Ok(Request::History { channel, page }) => {
                self.handle_history(conn, &channel, page, now);
            }
            Ok(Request::Presence { channel, request }) => {
                self.handle_presence(conn, &channel, request, now);
            }
            Ok(Request::Resume { token, flat }) => self.handle_resume(conn, &token, flat, now),
            Ok(Request::Unsubscribe { channel }) => self.handle_unsubscribe(conn, &channel, now),
            Ok(Request::Ping) => {
                self.note_life(conn, now);
                self.reply(conn, now, |out| write_pong(out, now.unix_ms));
            }
            Err(refused) => {
                self.error(
                    conn,
                    &refused.error,
                    refused.channel.as_deref(),
                    refused.id.as_deref(),
                    now,
                );
                if refused.is_malformed() {
                    self.count_malformed(conn, now);
                }
            }
        }
    }

    /// A PING: answered at once (RFC 6455 section 5.5.3).
    pub fn handle_ping(&mut self, conn: ConnId, payload: &[u8], now: Now) {
        self.note_life(conn, now);
        let mut frame = Vec::with_capacity(payload.len() + 2);
        write_frame(&mut frame, OpCode::Pong, payload);
        self.queue(conn, Rc::from(frame), now);
    }

    /// A PONG, asked for or not.
    pub fn handle_pong(&mut self, conn: ConnId, now: Now) {
        self.note_life(conn, now);
    }

    /// Ends a connection: it leaves its channels at once. Without effect on one that is ending.
    ///
    /// The Close frame of a cause that has one is queued; the driver sends what is in the outbox,
    /// unless the client is too slow for that, and then closes TCP.
    pub fn close(&mut self, conn: ConnId, cause: CloseCause, now: Now) {
        if self.conns.open_mut(conn).is_none() {
            return;
        }
        self.counters.count_close(&cause);
        let flush = !matches!(cause, CloseCause::SlowConsumer | CloseCause::PeerGone);
        if !flush {
            if let Some(c) = self.conns.open_mut(conn) {
                c.outbox.clear();
            }
        } else if cause.sends_close_frame() || self.options.close_frames_always {
            let mut frame = Vec::new();
            match &cause {
                CloseCause::PeerClosed { code } => write_close_reply(&mut frame, *code),
                _ => write_close(&mut frame, cause.code(), cause.reason()),
            }
            self.queue(conn, Rc::from(frame), now);
            if self.conns.open_mut(conn).is_none() {
                // The frame was one too many for its outbox: it has ended as too slow.
                return;
            }
        }
        self.leave_all(conn, &cause, now);
        if let Some(c) = self.conns.get_mut(conn) {
            c.state = ConnState::Closing;
        }
        self.outputs.push_back(Output::Close { conn, cause, flush });
    }

    /// Frees a connection's slot, ending it first if need be. The driver calls it when nothing of
    /// its own refers to the connection any more.
    pub fn release(&mut self, conn: ConnId, now: Now) {
        if self.conns.open_mut(conn).is_some() {
            self.counters.count_close(&CloseCause::PeerGone);
            self.leave_all(conn, &CloseCause::PeerGone, now);
        }
        self.note_released(conn, now);
        if let Some(c) = self.conns.get(conn) {
            self.apps.count_released(c.session.grant.app_index);
        }
        self.conns.remove(conn);
    }

    /// Whether the connection takes part; false once it is ending.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.conns
            .get(conn)
            .is_some_and(|c| c.state == ConnState::Open)
    }

    /// Ends up to `count` more connections the way that makes SDKs come back (contract D28): at
    /// once, or with the answer to the last publish that was accepted of it. Returns how many.
    pub fn drain(&mut self, count: usize, now: Now) -> usize {
        let open: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, c)| c.state == ConnState::Open && !c.session.leaving)
            .map(|(id, _)| id)
            .take(count)
            .collect();
        for conn in &open {
            if let Some(c) = self.conns.open_mut(*conn) {
                c.session.leaving = true;
            }
            self.leave_if_answered(*conn, now);
        }
        open.len()
    }

    /// A publish of this connection is on its way.
    pub(super) fn expect_answer(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.open_mut(conn) {
            c.session.publishes_due += 1;
        }
    }

    /// A publish of this connection needs no answer but an error that has been sent.
    pub(super) fn expect_no_answer(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.open_mut(conn) {
            c.session.publishes_due = c.session.publishes_due.saturating_sub(1);
        }
    }

    /// The answer to a publish.
    pub(super) fn answer_conn(&mut self, conn: ConnId, frame: Frame, now: Now) {
        self.queue(conn, frame, now);
        self.expect_no_answer(conn);
        self.leave_if_answered(conn, now);
    }

    fn leave_if_answered(&mut self, conn: ConnId, now: Now) {
        let leaves = self
            .conns
            .open_mut(conn)
            .is_some_and(|c| c.session.leaving && c.session.publishes_due == 0);
        if leaves {
            self.close(conn, CloseCause::Drain, now);
        }
    }

    /// Tells a client of an error. Errors never end the connection by themselves (contract D10).
    pub(super) fn error(
        &mut self,
        conn: ConnId,
        error: &ProtocolError,
        channel: Option<&str>,
        id: Option<&str>,
        now: Now,
    ) {
        self.counters.count_error(error.code);
        self.reply(conn, now, |out| write_error(out, error, channel, id));
    }

    /// Contract D31: more than so many malformed messages in a minute end the connection.
    fn count_malformed(&mut self, conn: ConnId, now: Now) {
        let most = self.options.limits.malformed_per_minute_max;
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let rare = c.session.rare();
        if rare.malformed == 0 || now.mono_ms().saturating_sub(rare.malformed_since_ms) >= 60_000 {
            rare.malformed_since_ms = now.mono_ms();
            rare.malformed = 0;
        }
        rare.malformed += 1;
        if rare.malformed > most {
            self.close(conn, CloseCause::Violation, now);
        }
    }

    fn note_life(&mut self, conn: ConnId, now: Now) {
        if let Some(c) = self.conns.open_mut(conn) {
            c.shows_life = true;
            c.last_in_s = now.mono_s();
        }
    }

    /// Takes a connection out of all its channels.
    fn leave_all(&mut self, conn: ConnId, cause: &CloseCause, now: Now) {
        self.raise_connection(conn, false, now);
        self.end_presence(conn, cause, now);
        self.abandon_active(conn, now);
        let Some(c) = self.conns.get_mut(conn) else {
            return;
        };
        c.session.catchup = None;
        let subscriptions = std::mem::take(&mut c.subscriptions);
        self.counters.subscriptions -= subscriptions.len() as u64;
        for subscription in subscriptions {
            self.local.stop_waiting(subscription.channel, conn);
            self.leave(subscription, now);
        }
    }
}

/// Contract D8: `anon-` and 22 base64url characters.
fn anonymous_id(random: [u8; 16]) -> Arc<str> {
    format!("anon-{}", BASE64URL_NOPAD.encode(&random)).into()
}
