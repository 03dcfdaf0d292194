//! The first request head of a connection decides what it is: a WebSocket, or HTTP.

use std::rc::Rc;
use std::task::{Poll, ready};

use futures_lite::future;
use glommio::net::TcpStream;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::ws::handshake::{write_accept, write_refusal};
use shardwire_proto::ws::{HEAD_BYTES_MAX, HeadError, HeadKind, Upgrade, parse_head};

use super::{ConnTask, Transport};
use crate::shard::{Core, Handshake, Occupied, ShardRuntime};
use crate::sys;
use crate::tls::{Acceptor, Outcome};

/// `Retry-After` headers for clients that met a full server: one is drawn for each, so that a crowd comes back spread.
const RETRY_AFTER: [[(&str, &str); 1]; 5] = [
    [("Retry-After", "1")],
    [("Retry-After", "2")],
    [("Retry-After", "3")],
    [("Retry-After", "4")],
    [("Retry-After", "5")],
];

/// Serves an accepted connection up to its upgrade, or as HTTP.
pub(crate) async fn serve<C: Core>(runtime: Rc<ShardRuntime<C>>, stream: TcpStream) {
    let tls = runtime.settings.tls.as_ref();
    let Some(occupied) = runtime.occupy() else {
        return refuse_full(&runtime, stream, tls).await;
    };
    match accept(&runtime, stream, tls).await {
        Some((transport, head)) => decide(runtime, transport, head, occupied).await,
        None => runtime.count(|io| io.heads_failed += 1),
    }
}

/// Tells a client that all places are taken. With TLS a handshake comes first, for as many at a time as the shard has
/// room for; the others have to take the end for an answer.
async fn refuse_full<C: Core>(
    runtime: &Rc<ShardRuntime<C>>,
    stream: TcpStream,
    tls: Option<&Acceptor>,
) {
    let error = ErrorCode::ConnectionLimit.into();
    if tls.is_none() {
        return refuse(&mut stream.into(), &error, retry_after());
    }
    let Some(_place) = runtime.occupy_refusal() else {
        return;
    };
    if let Some((mut transport, _)) = accept(runtime, stream, tls).await {
        refuse(&mut transport, &error, retry_after());
    }
}

/// Agrees on TLS where it is spoken, and reads a request head; `None` if the peer goes away or takes too long.
pub(crate) async fn accept<C: Core>(
    runtime: &ShardRuntime<C>,
    stream: TcpStream,
    tls: Option<&Acceptor>,
) -> Option<(Transport, Vec<u8>)> {
    let mut transport = Transport::accept(stream, tls)
        .inspect_err(|error| log::error!("TLS: {error}"))
        .ok()?;
    let deadline = runtime.settings.handshake_deadline;
    let head = future::or(read_head(runtime, &mut transport), async {
        glommio::timer::sleep(deadline).await;
        None
    })
    .await;
    if transport.is_secure() {
        let outcome = transport.outcome().unwrap_or(Outcome::Incomplete);
        runtime.count(|io| io.count_tls(outcome));
    }
    if head.is_none() {
        transport.say_goodbye();
    }
    head.map(|head| (transport, head))
}

/// Reads until a head is complete or can no longer become one; `None` if the peer went away.
async fn read_head<C: Core>(
    runtime: &ShardRuntime<C>,
    transport: &mut Transport,
) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        // Into the shard's buffer: a connection that has sent nothing holds nothing.
        let count = future::poll_fn(|cx| {
            let mut buffer = runtime.read_buffer.borrow_mut();
            let count = ready!(transport.poll_read(cx, &mut buffer)).ok();
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
    mut transport: Transport,
    mut bytes: Vec<u8>,
    occupied: Occupied<C>,
) {
    let (len, granted) = match parse_head(&bytes) {
        Ok(Some(head)) => match head.kind {
            HeadKind::Upgrade(upgrade) => (
                head.len,
                grant(&runtime, &transport, head.target, &upgrade).inspect_err(|refusal| {
                    refusal.send(&mut transport);
                }),
            ),
            HeadKind::Http => {
                C::serve_http(runtime, transport, bytes).await;
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
            .send(&mut transport);
            return;
        }
    };
    let Ok((grant, accept)) = granted else { return };
    let conn = runtime.with(|core, now| core.open(grant, &accept, now));
    let early = bytes.split_at_mut(len).1;
    ConnTask::start(runtime, transport, conn, occupied, early);
}

/// Why an upgrade is refused, and how that is told.
struct Refusal {
    error: ProtocolError,
    /// Where it is not the error's own.
    status: Option<u16>,
    headers: &'static [(&'static str, &'static str)],
}

impl Refusal {
    fn send(&self, transport: &mut Transport) {
        match self.status {
            None => refuse(transport, &self.error, self.headers),
            Some(status) => {
                let body = format!(
                    r#"{{"error":"{}","code":{},"status":{status}}}"#,
                    self.error.text,
                    self.error.code.code()
                );
                send_refusal(transport, status, self.headers, &body);
            }
        }
    }
}

fn grant<C: Core>(
    runtime: &ShardRuntime<C>,
    transport: &Transport,
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
        remote: transport.remote().map(|address| address.ip()),
    };
    let random = sys::random();
    let grant = runtime
        .core
        .borrow_mut()
        .authorize(handshake, random, runtime.now())
        .map_err(|error| Refusal {
            headers: match error.code.http_status() {
                429 | 503 => retry_after(),
                _ => &[],
            },
            error,
            status: None,
        })?;
    let mut accept = Vec::with_capacity(256);
    write_accept(&mut accept, upgrade.key);
    Ok((grant, accept))
}

/// When to come back, other for each client.
pub(crate) fn retry_after() -> &'static [(&'static str, &'static str)] {
    let [drawn, ..] = sys::random();
    &RETRY_AFTER[usize::from(drawn) % RETRY_AFTER.len()]
}

/// The credentials of an `Authorization: Bearer` header.
pub(crate) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, credentials) = authorization.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| credentials.trim())
}

/// Answers with an error in the form of contract D10 and lets go.
fn refuse(transport: &mut Transport, error: &ProtocolError, headers: &[(&str, &str)]) {
    let mut body = Vec::new();
    error.write_http_json(&mut body);
    let body = String::from_utf8_lossy(&body);
    send_refusal(transport, error.code.http_status(), headers, &body);
}

fn send_refusal(transport: &mut Transport, status: u16, headers: &[(&str, &str)], body: &str) {
    let reason = hyper::StatusCode::from_u16(status)
        .ok()
        .and_then(|s| s.canonical_reason())
        .unwrap_or("Refused");
    let mut response = Vec::with_capacity(512);
    write_refusal(&mut response, status, reason, headers, body);
    transport.send_last(&response);
}
