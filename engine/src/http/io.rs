//! A connection as hyper's I/O: with bytes that were read before, and with an end that lets the peer read the last
//! answer.
//!
//! Not here: deadlines, which are [`Pace`]'s. Invariants: every byte is handed on once and in order; a connection is
//! shut down for writing before it is closed, and what the peer still sends is read and thrown away meanwhile, so that
//! no reset overtakes the answer (RFC 9112, 9.6).

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::rt::ReadBufCursor;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::pace::Pace;
use crate::conn::Transport;

/// Bytes read from the socket at once.
const CHUNK_BYTES: usize = 8 * 1024;
/// Bytes thrown away behind the last answer; a peer that sends more sees a reset.
const DISCARD_BYTES_MAX: usize = 16 * 1024 * 1024;

pub(super) struct Io {
    transport: Transport,
    /// Read before hyper took over; empty once handed on.
    prefix: Vec<u8>,
    prefix_at: usize,
    /// The answer to a malformed head, in place of hyper's, and how much of it is written.
    refusal: Option<(Vec<u8>, usize)>,
    /// The kernel has taken a part of what hyper last offered.
    is_mid_answer: bool,
    is_shut: bool,
    discarded: usize,
    pace: Rc<Pace>,
}

impl Io {
    pub(super) fn new(transport: Transport, prefix: Vec<u8>, pace: Rc<Pace>) -> Self {
        Self {
            transport,
            prefix,
            prefix_at: 0,
            refusal: None,
            is_mid_answer: false,
            is_shut: false,
            discarded: 0,
            pace,
        }
    }

    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, at)) = self.refusal.as_mut() {
            let Some(rest) = bytes.get(*at..).filter(|rest| !rest.is_empty()) else {
                self.refusal = None;
                break;
            };
            match ready!(self.transport.poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *at += count,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(rest) = this
            .prefix
            .get(this.prefix_at..)
            .filter(|rest| !rest.is_empty())
        {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(rest.split_at(count).0);
            this.prefix_at += count;
            this.pace.on_read(Instant::now());
            if this.prefix_at == this.prefix.len() {
                this.prefix = Vec::new();
                this.prefix_at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        let mut chunk = [0; CHUNK_BYTES];
        let room = chunk.split_at_mut(buf.remaining().min(CHUNK_BYTES)).0;
        let count = ready!(this.transport.poll_read(cx, room))?;
        if count > 0 {
            this.pace.on_read(Instant::now());
        }
        buf.put_slice(room.split_at(count).0);
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.refusal.is_none() && !this.is_mid_answer && this.pace.is_between_requests() {
            this.refusal = refusal(buf).map(|refusal| (refusal, 0));
        }
        let count = if this.refusal.is_some() {
            ready!(this.poll_refusal(cx))?;
            buf.len()
        } else {
            ready!(this.transport.poll_write(cx, buf))?
        };
        this.is_mid_answer = count < buf.len();
        this.pace.on_written(Instant::now());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.transport.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_shut {
            ready!(this.transport.poll_close(cx))?;
            this.is_shut = true;
            this.pace.on_shutdown(Instant::now());
        }
        let mut chunk = [0; CHUNK_BYTES];
        while this.discarded < DISCARD_BYTES_MAX {
            match ready!(this.transport.poll_read(cx, &mut chunk)) {
                Ok(0) | Err(_) => break,
                Ok(count) => this.discarded += count,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// hyper answers a head that it cannot read by itself and without a body; this is the same answer in the form of
/// contract D10. `None` when `buf` is not such an answer.
fn refusal(buf: &[u8]) -> Option<Vec<u8>> {
    let status: u16 = str::from_utf8(buf.strip_prefix(b"HTTP/1.1 ")?.get(..3)?)
        .ok()?
        .parse()
        .ok()?;
    let status = hyper::StatusCode::from_u16(status)
        .ok()
        .filter(hyper::StatusCode::is_client_error)?;
    let reason = status.canonical_reason().unwrap_or("Refused");
    let text = match status.as_u16() {
        414 => "request target too long",
        431 => "request head too large",
        _ => "malformed request head",
    };
    let mut body = Vec::new();
    super::write_error(
        &mut body,
        &ProtocolError::with_text(ErrorCode::BadRequest, text),
        status,
    );
    let mut response = Vec::with_capacity(256);
    let body = String::from_utf8_lossy(&body);
    shardwire_proto::ws::handshake::write_refusal(
        &mut response,
        status.as_u16(),
        reason,
        &[],
        &body,
    );
    Some(response)
}
