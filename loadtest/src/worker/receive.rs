//! What comes in: bytes to frames, frames to deliveries and replies.

use std::io::ErrorKind;

use memchr::memmem;
use rustix::event::epoll::EventFlags;
use rustix::net::sockopt;

use super::Worker;
use super::slot::{Role, State};
use crate::adapter::{Duty, Event, nats};
use crate::frame::{self, Handshake, Opcode, Parsed};
use crate::order::Arrival;
use crate::stamp::Stamp;

/// Why a connection must end.
type Fault = String;

impl Worker<'_> {
    pub(super) fn on_event(&mut self, token: u64, flags: EventFlags) {
        let index = token as u32;
        let slot = &mut self.slots[index as usize];
        if slot.generation != (token >> 32) as u32 {
            return;
        }
        let Some(conn) = &mut slot.conn else { return };
        if flags.contains(EventFlags::ERR) {
            let error = sockopt::socket_error(&conn.fd).and_then(|result| result);
            self.on_lost(
                index,
                error.map_or_else(|error| error.to_string(), |()| "socket error".to_owned()),
            );
            return;
        }
        if flags.contains(EventFlags::OUT)
            && (conn.state == State::Connecting || conn.wants_write())
        {
            if let (State::Connecting, Role::Http { .. }) = (conn.state, slot.role) {
                self.on_ready(index);
            } else {
                self.flush(index);
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP) {
            self.receive(index, flags.intersects(EventFlags::RDHUP | EventFlags::HUP));
        }
    }

    /// Reads until the socket is empty. A short read means that it is, unless the peer has hung up.
    fn receive(&mut self, index: u32, hung_up: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut more = true;
        while more {
            let Some(conn) = &mut self.slots[index as usize].conn else {
                break;
            };
            let have = conn.partial.len();
            buffer[..have].copy_from_slice(&conn.partial);
            let room = buffer.len() - have;
            let result = match conn.recv(&mut buffer[have..]) {
                Ok(0) => Err("closed by the server".to_owned()),
                Ok(n) => {
                    // A session hands over a record at a time.
                    more = n == room || hung_up || conn.tls.is_some();
                    conn.partial.clear();
                    self.now_ns = self.shared.now_ns();
                    self.meter.enter(self.now_ns);
                    self.take(index, &buffer[..have + n])
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error.to_string()),
            };
            if let Err(fault) = result {
                self.on_lost(index, fault);
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Takes what is whole in `bytes` and keeps the rest for later.
    fn take(&mut self, index: u32, bytes: &[u8]) -> Result<(), Fault> {
        let mut used = 0;
        let Some(conn) = &mut self.slots[index as usize].conn else {
            return Ok(());
        };
        if conn.state == State::Handshaking {
            match frame::parse_handshake(bytes) {
                Handshake::Accepted(n) => used = n,
                Handshake::Partial => {
                    conn.partial.extend_from_slice(bytes);
                    return Ok(());
                }
                Handshake::Refused(status) => {
                    return Err(format!("handshake refused with HTTP status {status}"));
                }
                Handshake::Bad(reason) => return Err(format!("handshake: {reason}")),
            }
            self.on_upgraded(index);
        }
        let role = self.slots[index as usize].role;
        if let Role::Http { publisher } = role {
            used = self.take_responses(index, publisher, bytes)?;
        } else {
            used += self.take_frames(index, role, &bytes[used..])?;
        }
        if used < bytes.len()
            && let Some(conn) = &mut self.slots[index as usize].conn
        {
            let rest = &bytes[used..];
            if let Parsed::Need(needed) = frame::parse(rest)
                && needed > self.shared.settings.size.max(super::BUFFER_BYTES)
            {
                return Err(format!("frame of {needed} bytes"));
            }
            conn.partial.extend_from_slice(rest);
        }
        Ok(())
    }

    fn on_upgraded(&mut self, index: u32) {
        let shared = self.shared;
        let slot = &mut self.slots[index as usize];
        let Some(conn) = &mut slot.conn else { return };
        conn.state = State::Opening;
        if shared.settings.resumes && slot.role.duty() == Duty::Subscribe {
            return self.open_client(index);
        }
        let event = shared.settings.adapter.on_open(
            slot.role.duty(),
            slot.role.channel(&shared.plan),
            &mut conn.out,
        );
        self.mark_dirty(index);
        self.on_reply(index, event);
    }

    fn take_frames(&mut self, index: u32, role: Role, bytes: &[u8]) -> Result<usize, Fault> {
        let is_stream = self.shared.settings.adapter.is_stream();
        let mut at = 0;
        loop {
            match frame::parse(&bytes[at..]) {
                Parsed::Frame {
                    opcode: Opcode::Text | Opcode::Binary,
                    payload,
                    used,
                } => {
                    at += used;
                    if is_stream {
                        self.take_stream(index, role, payload);
                    } else {
                        self.on_message(index, role, payload);
                    }
                }
                Parsed::Frame {
                    opcode: Opcode::Ping,
                    payload,
                    used,
                } => {
                    at += used;
                    if let Some(conn) = &mut self.slots[index as usize].conn {
                        frame::encode(Opcode::Pong, payload, &mut conn.out);
                        self.mark_dirty(index);
                    }
                }
                Parsed::Frame {
                    opcode: Opcode::Close,
                    payload,
                    ..
                } => {
                    let code = payload
                        .first_chunk::<2>()
                        .map_or(1005, |code| u16::from_be_bytes(*code));
                    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                    return Err(format!("close frame {code} {reason}"));
                }
                Parsed::Frame {
                    opcode: Opcode::Pong,
                    used,
                    ..
                } => at += used,
                Parsed::Need(_) => return Ok(at),
                Parsed::Bad(reason) => return Err(reason.to_owned()),
            }
        }
    }

    /// A piece of a protocol stream: its operations may straddle frames.
    fn take_stream(&mut self, index: u32, role: Role, piece: &[u8]) {
        let kept = self.slots[index as usize]
            .conn
            .as_mut()
            .map(|conn| std::mem::take(&mut conn.partial_stream));
        let mut kept = kept.unwrap_or_default();
        let all = if kept.is_empty() {
            piece
        } else {
            kept.extend_from_slice(piece);
            &kept
        };
        let mut at = 0;
        while let Some((operation, used)) = nats::split(&all[at..]) {
            self.on_message(index, role, operation);
            at += used;
        }
        if at < all.len()
            && let Some(conn) = &mut self.slots[index as usize].conn
        {
            conn.partial_stream = all[at..].to_vec();
        }
    }

    fn on_message(&mut self, index: u32, role: Role, message: &[u8]) {
        if let Some(stamp) = self.scanner.find(message) {
            match role {
                Role::Client { client, state } => {
                    self.on_client_delivery(index, (client, state), stamp, message);
                }
                _ => {
                    self.on_delivery(role, stamp);
                    if self.shared.settings.resumes {
                        self.remember(index, message);
                    }
                }
            }
            return;
        }
        let shared = self.shared;
        let Some(conn) = &mut self.slots[index as usize].conn else {
            return;
        };
        let event =
            shared
                .settings
                .adapter
                .on_message(role.channel(&shared.plan), message, &mut conn.out);
        if !conn.out.is_empty() {
            self.mark_dirty(index);
        }
        self.on_reply(index, event);
    }

    fn on_reply(&mut self, index: u32, event: Event) {
        match event {
            Event::None => {}
            Event::Ready => {
                let memory = &mut self.slots[index as usize].memory;
                memory.awaited = memory.awaited.saturating_sub(1);
                // A resume is complete when its own ack has come.
                if memory.awaited == 0 && memory.token_ts == 0 {
                    self.on_opened(index);
                }
            }
            Event::Resumed(recovered) => {
                self.tallies.returns.unrecovered += u64::from(!recovered);
                self.on_opened(index);
            }
            Event::Entered => self.on_entered(),
            Event::Ack(stamp) => {
                self.clients.unacked.remove(&(stamp.stream, stamp.seq));
                self.on_ack(stamp.stream, stamp.sent_ns, true);
            }
            Event::Error(text) => self.tallies.error(text),
        }
    }

    fn on_opened(&mut self, index: u32) {
        let conn = self.slots[index as usize].conn.as_ref();
        if conn.is_some_and(|conn| conn.state == State::Opening) {
            self.on_ready(index);
        }
    }

    fn on_delivery(&mut self, role: Role, stamp: Stamp) {
        let (channel, cell, is_checked) = match role {
            Role::Subscriber { channel, cell, .. } => (channel, cell, true),
            Role::Churn { channel, cell } => (channel, cell, false),
            // A protocol in which a publisher has to subscribe sends it the messages of the others.
            Role::Publisher { .. }
            | Role::Http { .. }
            | Role::Client { .. }
            | Role::Member { .. } => return,
        };
        let streams = &self.shared.plan.channels[channel as usize].streams;
        if !streams.contains(&stamp.stream) {
            self.tallies.alien += 1;
            return;
        }
        let cell = (cell + stamp.stream - streams.start) as usize;
        let latency_ns = self.now_ns.saturating_sub(stamp.sent_ns);
        self.delivered += 1;
        self.meter.delivery(latency_ns);
        if !is_checked {
            self.churn_check.record(cell, stamp.seq);
            return;
        }
        let arrival = self.check.record(cell, stamp.seq);
        let needed = self.local_subscribers[channel as usize];
        if arrival != Arrival::Duplicate && self.window.arrived(stamp.stream, stamp.seq, needed) {
            self.on_all_local(channel, stamp, latency_ns);
        }
    }

    /// HTTP: each response releases the next request.
    fn take_responses(&mut self, index: u32, publisher: u32, bytes: &[u8]) -> Result<usize, Fault> {
        let mut at = 0;
        while let Some(response) = parse_response(&bytes[at..])? {
            let is_accepted = response.status < 300;
            if !is_accepted {
                let text =
                    String::from_utf8_lossy(&bytes[at..at + response.len.min(1000)]).into_owned();
                let last_line = text.lines().last().unwrap_or_default();
                self.tallies
                    .error(format!("HTTP status {}: {last_line}", response.status));
            }
            at += response.len;
            if response.is_last {
                self.reconnect_http(index);
            }
            self.on_response(publisher, is_accepted);
        }
        Ok(at)
    }
}

/// An HTTP response.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    /// Bytes of head and body.
    len: usize,
    /// The server closes the connection after it.
    is_last: bool,
}

/// The response at the start of `bytes`, once it is whole.
fn parse_response(bytes: &[u8]) -> Result<Option<Response>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("HTTP response: {error}")),
    };
    let status = response.code.unwrap_or_default();
    let header = |name: &str| {
        let found = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let is_last = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let body = &bytes[head..];
    let body_len =
        if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            let last_chunk = memmem::find(body, b"\r\n0\r\n\r\n").map(|at| at + 7);
            if body.starts_with(b"0\r\n\r\n") {
                Some(5)
            } else {
                last_chunk
            }
        } else {
            let length = header("content-length").map_or(Ok(0), str::parse::<usize>);
            let length = length.map_err(|_| "HTTP response: content-length".to_owned())?;
            (body.len() >= length).then_some(length)
        };
    Ok(body_len.map(|body_len| Response {
        status,
        len: head + body_len,
        is_last,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, len: usize, is_last: bool) -> Result<Option<Response>, Fault> {
        Ok(Some(Response {
            status,
            len,
            is_last,
        }))
    }

    #[test]
    fn responses_end_where_their_length_says() {
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
        assert_eq!(parse_response(two), response(200, 40, false));
        assert_eq!(parse_response(&two[..39]), Ok(None));
        assert_eq!(parse_response(&two[40..]), response(204, 46, true));
        assert!(parse_response(b"nonsense\r\n\r\n").is_err());
    }

    #[test]
    fn chunked_responses_end_at_the_last_chunk() {
        let text = b"HTTP/1.1 429 Slow\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        assert_eq!(parse_response(text), response(429, text.len(), false));
        assert_eq!(parse_response(&text[..text.len() - 1]), Ok(None));
    }
}
