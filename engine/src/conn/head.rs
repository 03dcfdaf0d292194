//! The first request head of a connection decides what it is: a WebSocket, or HTTP.

use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncRead, future};
use glommio::net::TcpStream;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::ws::handshake::{write_accept, write_refusal};
use shardwire_proto::ws::{HEAD_BYTES_MAX, HeadError, HeadKind, Upgrade, parse_head};

use super::ConnTask;
use crate::shard::{Core, Handshake, Occupied, ShardRuntime};
use crate::sys::{self, Sent};

/// Seconds after which a client that met a full server is asked to come back.
const RETRY_AFTER_S: &str = "5";

/// Serves an accepted connection up to its upgrade, or as HTTP.
pub(crate) async fn serve<C: Core>(runtime: Rc<ShardRuntime<C>>, mut stream: TcpStream) {
    let Some(occupied) = runtime.occupy() else {
        let error = ErrorCode::ConnectionLimit.into();
        refuse(&stream, &error, &[("Retry-After", RETRY_AFTER_S)]);
        return;
    };
    let deadline = runtime.settings.handshake_deadline;
    match read_head_by(&runtime, &mut stream, deadline).await {
        Some(head) => decide(runtime, stream, head, occupied).await,
        None => runtime.count(|io| io.heads_failed += 1),
    }
}

/// Reads a request head, or `None` if the peer goes away or takes longer than `deadline`.
pub(crate) async fn read_head_by<C: Core>(
    runtime: &ShardRuntime<C>,
    stream: &mut TcpStream,
    deadline: Duration,
) -> Option<Vec<u8>> {
    future::or(read_head(runtime, stream), async {
        glommio::timer::sleep(deadline).await;
        None
    })
    .await
}

/// Reads until a head is complete or can no longer become one; `None` if the peer went away.
async fn read_head<C: Core>(runtime: &ShardRuntime<C>, stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        // Into the shard's buffer: a connection that has sent nothing holds nothing.
        let count = future::poll_fn(|cx| {
            let mut buffer = runtime.read_buffer.borrow_mut();
            let count = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).ok();
            head.extend_from_slice(count.and_then(|n| buffer.get(..n)).unwrap_or_default());
            Poll::Ready(count)
        })
        .await;
        count.filter(|n| *n > 0)?;
        if !matches!(parse_head(&head), Ok(None)) || head.len() > HEAD_BYTES_MAX {
            return Some(head);
        }
    }
}

async fn decide<C: Core>(
    runtime: Rc<ShardRuntime<C>>,
    stream: TcpStream,
    mut bytes: Vec<u8>,
    occupied: Occupied<C>,
) {
    let (len, granted) = match parse_head(&bytes) {
        Ok(Some(head)) => match head.kind {
            HeadKind::Upgrade(upgrade) => (
                head.len,
                grant(&runtime, &stream, head.target, &upgrade).inspect_err(|refusal| {
                    refusal.send(&stream);
                }),
            ),
            HeadKind::Http => {
                C::serve_http(runtime, stream, bytes).await;
                return;
            }
        },
        // `read_head` stops at an incomplete head only when it is too large.
        failed => {
            runtime.count(|io| io.heads_failed += 1);
            let error = failed.err().unwrap_or(HeadError::TooLarge);
            Refusal {
                error: ProtocolError::with_text(ErrorCode::BadRequest, error.reason()),
                status: Some(error.status()),
                headers: &[],
            }
            .send(&stream);
            return;
        }
    };
    let Ok((grant, accept)) = granted else { return };
    let conn = runtime.with(|core, now| core.open(grant, &accept, now));
    let early = bytes.split_at_mut(len).1;
    ConnTask::start(runtime, stream, conn, occupied, early);
}

/// Why an upgrade is refused, and how that is told.
struct Refusal {
    error: ProtocolError,
    /// Where it is not the error's own.
    status: Option<u16>,
    headers: &'static [(&'static str, &'static str)],
}

impl Refusal {
    fn send(&self, stream: &TcpStream) {
        match self.status {
            None => refuse(stream, &self.error, self.headers),
            Some(status) => {
                let body = format!(
                    r#"{{"error":"{}","code":{},"status":{status}}}"#,
                    self.error.text,
                    self.error.code.code()
                );
                send_refusal(stream, status, self.headers, &body);
            }
        }
    }
}

fn grant<C: Core>(
    runtime: &ShardRuntime<C>,
    stream: &TcpStream,
    target: &str,
    upgrade: &Upgrade<'_>,
) -> Result<(C::Grant, Vec<u8>), Refusal> {
    upgrade.validate().map_err(|error| Refusal {
        error: ProtocolError::with_text(ErrorCode::BadRequest, error.reason()),
        status: Some(error.status()),
        headers: error.extra_headers(),
    })?;
    let handshake = Handshake {
        target,
        bearer: upgrade.authorization.and_then(bearer),
        origin: upgrade.origin,
        remote: stream.peer_addr().ok().map(|address| address.ip()),
    };
    let random = sys::random();
    let grant = runtime
        .core
        .borrow_mut()
        .authorize(handshake, random, runtime.now())
        .map_err(|error| Refusal {
            headers: match error.code.http_status() {
                429 | 503 => &[("Retry-After", RETRY_AFTER_S)],
                _ => &[],
            },
            error,
            status: None,
        })?;
    let mut accept = Vec::with_capacity(256);
    write_accept(&mut accept, upgrade.key);
    Ok((grant, accept))
}

/// The credentials of an `Authorization: Bearer` header.
pub(crate) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, credentials) = authorization.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| credentials.trim())
}

/// Answers with an error in the form of contract D10 and lets go.
fn refuse(stream: &TcpStream, error: &ProtocolError, headers: &[(&str, &str)]) {
    let mut body = Vec::new();
    error.write_http_json(&mut body);
    let body = String::from_utf8_lossy(&body);
    send_refusal(stream, error.code.http_status(), headers, &body);
}

fn send_refusal(stream: &TcpStream, status: u16, headers: &[(&str, &str)], body: &str) {
    let reason = hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Refused");
    let mut response = Vec::with_capacity(512);
    write_refusal(&mut response, status, reason, headers, body);
    let fd = stream.as_raw_fd();
    // A fresh socket has room for it; a peer that cannot take it has lost interest.
    if let Sent::Bytes(_) = sys::send(fd, &response) {
        sys::shutdown(fd, std::net::Shutdown::Write);
    }
}
