//! A connection's life: handshake, messages, end.

use std::rc::Rc;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;

use super::{Output, PublishItem, Shard};
use crate::auth::is_valid_client_id;
use crate::auth::key::KeyRecord;
use crate::error::{CloseCause, ErrorCode, ProtocolError};
use crate::ids::{ConnId, Now};
use crate::outbox::Frame;
use crate::session::{ConnState, Grant, Session};
use crate::url::{Query, Target};
use crate::wire::wsocket::{Request, parse_request, write_connected, write_error, write_pong};
use crate::ws::frame::{OpCode, write_close, write_close_reply, write_frame};

impl Shard {
    /// Decides on a WebSocket handshake (contract D1 to D8). `random` is 16 bytes from the system,
    /// for an anonymous client's id, which must not be guessable.
    ///
    /// Errors are answered with their HTTP status (contract D5), before anything is upgraded.
    pub fn authorize(
        &mut self,
        target: &str,
        bearer: Option<&str>,
        origin: Option<&str>,
        random: [u8; 16],
    ) -> Result<Grant, ProtocolError> {
        let granted = self
            .check_origin(origin)
            .and_then(|()| self.try_authorize(target, bearer, random));
        if let Err(error) = &granted {
            self.counters.refused += 1;
            self.counters.count_error(error.code);
        }
        granted
    }

    fn try_authorize(
        &mut self,
        target: &str,
        bearer: Option<&str>,
        random: [u8; 16],
    ) -> Result<Grant, ProtocolError> {
        let Target { path, query } = crate::url::parse_target(target);
        if path != "/" && path != "/ws" {
            return Err(ProtocolError::with_text(
                ErrorCode::NotFound,
                "no socket at this path; use / or /ws",
            ));
        }
        let query = Query::parse(query)?;
        let key = self.authenticate(query.key.as_deref(), query.token.as_deref(), bearer)?;
        let (client_id, named) = match query.client_id {
            Some(id) if self.options.self_asserted_ids => {
                if !is_valid_client_id(&id) {
                    return Err(ProtocolError::with_text(
                        ErrorCode::BadRequest,
                        "`clientId` must be 1 to 128 bytes without control characters",
                    ));
                }
                (id.into(), true)
            }
            _ => (anonymous_id(random), false),
        };
        Ok(Grant {
            app: self.intern(&key.app),
            capabilities: key.capabilities.clone(),
            key,
            client_id,
            named,
            echo: query.echo,
            shape: query.shape,
        })
    }

    /// Contract D29: only browsers send an origin, so its absence says nothing.
    fn check_origin(&self, origin: Option<&str>) -> Result<(), ProtocolError> {
        let allowed = &self.options.allowed_origins;
        match origin {
            Some(origin) if !allowed.is_empty() && !allowed.iter().any(|a| a == origin) => Err(
                ProtocolError::with_text(ErrorCode::NotPermitted, "origin not allowed"),
            ),
            _ => Ok(()),
        }
    }

    /// The key behind a request's credentials: query first, then `Authorization: Bearer`.
    pub fn authenticate(
        &self,
        key: Option<&str>,
        token: Option<&str>,
        bearer: Option<&str>,
    ) -> Result<Arc<KeyRecord>, ProtocolError> {
        if token.is_some() {
            return Err(ErrorCode::BadToken.into());
        }
        let presented = key.or(bearer).ok_or(ErrorCode::NoCredentials)?;
        Ok(self.keys.authenticate(presented)?.clone())
    }

    /// Makes a connection of a grant and greets it: its first bytes are `accept`, the handshake's
    /// answer, so that both leave in one send. `random` names it.
    pub fn open(&mut self, grant: Grant, accept: &[u8], random: [u8; 16], now: Now) -> ConnId {
        let hello = self
            .options
            .hello
            .then(|| (BASE64URL_NOPAD.encode(&random), grant.client_id.clone()));
        let conn = self.conns.insert(
            Session {
                grant,
                rate: Default::default(),
                publishes_due: 0,
                leaving: false,
                malformed: 0,
                malformed_since_ms: now.mono_ms(),
                catchup: None,
                pumping: false,
                replays_begun: 0,
                histories: Default::default(),
                histories_asked: 0,
            },
            now.mono_s(),
        );
        self.counters.opened += 1;
        self.wheel.schedule(conn, now.mono_s() + self.heartbeat_s());
        self.queue(conn, Rc::from(accept), now);
        if let Some((id, client_id)) = hello {
            self.reply(conn, now, |out| {
                write_connected(out, &id, &client_id, now.unix_ms);
            });
        }
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
        self.leave_all(conn, now);
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
            self.leave_all(conn, now);
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
        let session = &mut c.session;
        if now.mono_ms().saturating_sub(session.malformed_since_ms) >= 60_000 {
            session.malformed_since_ms = now.mono_ms();
            session.malformed = 0;
        }
        session.malformed += 1;
        if session.malformed > most {
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
    fn leave_all(&mut self, conn: ConnId, now: Now) {
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
