//! One connection's encryption: ciphertext in and out of a socket, plaintext to and from its owner.
//!
//! rustls' interface without buffers is used, so that an idle session holds its keys and little else: sockets are read
//! into a buffer that all sessions of a thread share, and so is what goes out encrypted. A session keeps a buffer only
//! for the beginning of a record, for plaintext that its reader had no room for, and for what the kernel did not take.
//!
//! Invariants: bytes leave in the order in which they were given; nothing is encrypted while ciphertext waits for the
//! kernel, which bounds what waits at one chunk and a few alerts.

use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use super::Outcome;
use crate::sys::{self, Sent};

/// Bytes read from a socket at once, the beginning of a record before them included. More than a record and more than
/// the largest handshake message rustls takes (64 KiB with its header).
const INCOMING_BYTES: usize = 80 * 1024;

/// Plaintext of one record.
pub(crate) const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Plaintext encrypted for one send: what a peer that reads slowly keeps besides its outbox.
const CHUNK_BYTES: usize = 2 * RECORD_BYTES_MAX;

/// Answers to the peer's key updates that may wait behind a chunk; a peer that causes more and reads none is cut off.
const UNSENT_BYTES_MAX: usize = CHUNK_BYTES + 4 * 1024;

/// What a peer is told that speaks HTTP to a port with TLS.
const PLAIN_HTTP_ANSWER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 48\r\n\
    Connection: close\r\n\r\nThis port speaks TLS: use https:// and wss://.\r\n";

thread_local! {
    /// Where sockets are read into.
    static INCOMING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// What goes out next, encrypted.
    static OUTGOING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer for ciphertext.
pub(crate) fn with_incoming<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    INCOMING.with_borrow_mut(|buffer| {
        buffer.resize(INCOMING_BYTES, 0);
        read(buffer)
    })
}

/// Bytes that are used from the front; no memory is held when none are left.
#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    at: usize,
}

impl Rest {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn advance(&mut self, count: usize) {
        self.at += count;
        if self.at >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// The server's side of a TLS connection. Holds keys: not `Debug`.
pub(crate) struct Session {
    state: UnbufferedServerConnection,
    /// The beginning of a record or handshake message.
    partial: Vec<u8>,
    /// Received and not handed on.
    plain: Rest,
    /// Encrypted and not taken by the kernel.
    unsent: Rest,
    outcome: Option<Outcome>,
    /// Nothing more can be received: the peer said so, or erred.
    is_ended: bool,
}

impl Session {
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            state: UnbufferedServerConnection::new(config)?,
            partial: Vec::new(),
            plain: Rest::default(),
            unsent: Rest::default(),
            outcome: None,
            is_ended: false,
        })
    }

    /// What became of the handshake; `None` while it goes on.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// Nothing more will be received.
    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// What waits for the kernel.
    pub(crate) fn unsent(&self) -> &[u8] {
        self.unsent.as_slice()
    }

    /// The kernel took so much of it.
    pub(crate) fn advance_unsent(&mut self, count: usize) {
        self.unsent.advance(count);
    }

    /// Moves received plaintext to `buf`; how much that is.
    pub(crate) fn take_plain(&mut self, buf: &mut [u8]) -> usize {
        let waiting = self.plain.as_slice();
        let count = waiting.len().min(buf.len());
        let (now, _) = waiting.split_at(count);
        buf.split_at_mut(count).0.copy_from_slice(now);
        self.plain.advance(count);
        count
    }

    /// Puts the beginning of a record to the front of `incoming`, where the rest is to be read behind it; its length.
    pub(crate) fn restore_partial(&mut self, incoming: &mut [u8]) -> usize {
        let count = self.partial.len().min(incoming.len());
        incoming
            .split_at_mut(count)
            .0
            .copy_from_slice(self.partial.split_at(count).0);
        count
    }

    /// Takes in received ciphertext, and answers where TLS itself has something to say. Plaintext goes to `buf`; what it
    /// has no room for waits for [`Session::take_plain`]. Returns the plaintext in `buf`.
    ///
    /// # Errors
    /// The peer's bytes are wrong or it gave up, which it has been told; or it cannot be reached.
    pub(crate) fn receive(
        &mut self,
        fd: RawFd,
        ciphertext: &mut [u8],
        buf: &mut [u8],
    ) -> io::Result<usize> {
        if self.outcome.is_none() && ciphertext.first().is_some_and(u8::is_ascii_uppercase) {
            self.fail(Outcome::PlainHttp);
            // Best effort, like every last word.
            let _ = sys::send(fd, PLAIN_HTTP_ANSWER);
            sys::shutdown(fd, std::net::Shutdown::Write);
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut filled = 0;
        let mut used = 0;
        let done = OUTGOING.with_borrow_mut(|out| {
            out.clear();
            let processed = self.process(ciphertext, &mut used, buf, &mut filled, out);
            if let Err(error) = &processed {
                // The alert that tells why.
                let _ = self.process(&mut [], &mut 0, &mut [], &mut 0, out);
                log::debug!("TLS: {error}");
                self.fail(Outcome::of_error(error));
            }
            let sent = self.send_or_keep(fd, out);
            processed
                .map_err(|_| io::ErrorKind::InvalidData.into())
                .and(sent)
        });
        let rest = ciphertext.get(used..).unwrap_or_default();
        if rest.is_empty() {
            self.partial = Vec::new();
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(rest);
        }
        if self.outcome.is_none() && !self.state.is_handshaking() {
            self.outcome = Some(match self.state.handshake_kind() {
                Some(HandshakeKind::Resumed) => Outcome::Resumed,
                _ => Outcome::Full,
            });
        }
        done.map(|()| filled)
    }

    fn fail(&mut self, outcome: Outcome) {
        self.is_ended = true;
        self.outcome.get_or_insert(outcome);
    }

    /// Runs rustls over `ciphertext` until it needs more.
    fn process(
        &mut self,
        ciphertext: &mut [u8],
        used: &mut usize,
        buf: &mut [u8],
        filled: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        loop {
            let rest = ciphertext.get_mut(*used..).unwrap_or_default();
            let UnbufferedStatus { mut discard, state } = self.state.process_tls_records(rest);
            let mut is_done = false;
            let result = match state {
                Err(error) => Err(error),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                    match traffic.next_record() {
                        None => break Ok(()),
                        Some(Err(error)) => break Err(error),
                        Some(Ok(record)) => {
                            discard += record.discard;
                            let room = buf.get_mut(*filled..).unwrap_or_default();
                            let count = record.payload.len().min(room.len());
                            let (fits, over) = record.payload.split_at(count);
                            room.split_at_mut(count).0.copy_from_slice(fits);
                            *filled += count;
                            self.plain.push(over);
                        }
                    }
                },
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let mut room = RECORD_BYTES_MAX;
                    loop {
                        let at = out.len();
                        out.resize(at + room, 0);
                        match data.encode(out.get_mut(at..).unwrap_or_default()) {
                            Ok(count) => {
                                out.truncate(at + count);
                                break;
                            }
                            Err(EncodeError::InsufficientSize(error)) => {
                                out.truncate(at);
                                room = error.required_size;
                            }
                            Err(EncodeError::AlreadyEncoded) => {
                                out.truncate(at);
                                break;
                            }
                        }
                    }
                    Ok(())
                }
                // It is sent when all has been looked at, in this order.
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Ok(())
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.is_ended = true;
                    is_done = true;
                    Ok(())
                }
                // Early data is not offered.
                Ok(_) => {
                    is_done = true;
                    Ok(())
                }
            };
            *used += discard;
            result?;
            if is_done {
                return Ok(());
            }
        }
    }

    /// Encrypts and sends what it can of `plain`: how much was taken, and whether the kernel took it all.
    pub(crate) fn send(&mut self, fd: RawFd, plain: &[u8]) -> (usize, Sent) {
        match self.send_unsent(fd) {
            Sent::Bytes(_) => {}
            other => return (0, other),
        }
        let (chunk, _) = plain.split_at(plain.len().min(CHUNK_BYTES));
        OUTGOING.with_borrow_mut(|out| {
            out.clear();
            if self.encrypt(chunk, out).is_err() {
                return (0, Sent::Broken);
            }
            match self.send_or_keep(fd, out) {
                Err(_) => (0, Sent::Broken),
                Ok(()) if self.unsent().is_empty() => (chunk.len(), Sent::Bytes(chunk.len())),
                Ok(()) => (chunk.len(), Sent::Full),
            }
        })
    }

    /// Sends the last word of TLS, unless the peer takes nothing any more: then it would not understand it either.
    pub(crate) fn say_goodbye(&mut self, fd: RawFd) {
        if !matches!(self.send_unsent(fd), Sent::Bytes(_)) {
            return;
        }
        let mut alert = [0; 64];
        let UnbufferedStatus { state, .. } = self.state.process_tls_records(&mut []);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state
            && let Ok(count) = traffic.queue_close_notify(&mut alert)
        {
            // The connection ends either way.
            let _ = sys::send(fd, alert.get(..count).unwrap_or_default());
        }
    }

    fn send_unsent(&mut self, fd: RawFd) -> Sent {
        let waiting = self.unsent.as_slice();
        if waiting.is_empty() {
            return Sent::Bytes(0);
        }
        match sys::send(fd, waiting) {
            Sent::Bytes(count) if count < waiting.len() => {
                self.unsent.advance(count);
                Sent::Full
            }
            Sent::Bytes(count) => {
                self.unsent.advance(count);
                Sent::Bytes(count)
            }
            other => other,
        }
    }

    /// Sends `out`, behind what waits already; what the kernel does not take waits too.
    fn send_or_keep(&mut self, fd: RawFd, out: &[u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let mut taken = 0;
        if self.unsent().is_empty() {
            taken = match sys::send(fd, out) {
                Sent::Bytes(count) => count,
                Sent::Full => 0,
                Sent::Broken => return Err(io::ErrorKind::BrokenPipe.into()),
            };
        }
        self.unsent.push(out.get(taken..).unwrap_or_default());
        if self.unsent().len() > UNSENT_BYTES_MAX && self.outcome.is_some() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
        /// Header, content type, nonce and tag of a record, generously.
        const OVERHEAD: usize = 64;
        let UnbufferedStatus { state, .. } = self.state.process_tls_records(&mut []);
        let Ok(ConnectionState::WriteTraffic(mut traffic)) = state else {
            return Err(Unwritable);
        };
        let mut room = plain.len() + OVERHEAD * plain.len().div_ceil(RECORD_BYTES_MAX);
        loop {
            out.resize(room, 0);
            match traffic.encrypt(plain, out) {
                Ok(count) => {
                    out.truncate(count);
                    return Ok(());
                }
                // With a key update before it.
                Err(EncryptError::InsufficientSize(error)) => room = error.required_size,
                Err(EncryptError::EncryptExhausted) => return Err(Unwritable),
            }
        }
    }
}

/// The session has come to its end, or to that of its keys.
#[derive(Debug)]
struct Unwritable;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let text = str::from_utf8(PLAIN_HTTP_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    }

    #[test]
    fn a_rest_that_is_used_up_holds_no_memory() {
        let mut rest = Rest::default();
        rest.push(b"abc");
        rest.advance(2);
        rest.push(b"d");
        assert_eq!(rest.as_slice(), b"cd");
        rest.advance(2);
        assert_eq!((rest.as_slice(), rest.bytes.capacity()), (&[][..], 0));
    }
}
