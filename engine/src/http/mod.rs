//! HTTP: the API on the public port (`api`), health and metrics on the admin port (`admin`).
//!
//! hyper reads and writes HTTP/1 over the shard's own streams; here are routing, the rules that hold for every answer,
//! and the limits. What a call means is in the two modules, the bodies are in `shardwire_proto::wire::http_api`.
//!
//! Invariants: every answer has a JSON body (metrics: text), an error that of contract D10; a body is read only when
//! the caller may make the call, and never beyond its limit; no input ends anything but its own connection.

mod admin;
mod api;
mod cors;
pub mod everywhere;
mod io;
mod pace;
mod push;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::convert::Infallible;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use futures_lite::future;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::shard::HttpRate;

pub(crate) use self::admin::perform;
pub use self::admin::{AdminSettings, AdminStart, Port, serve_admin};
use self::cors::Cors;
use self::io::Io;
pub(crate) use self::pace::Pace;
use self::pace::Watchdog;
use crate::conn::Transport;
use crate::conn::head::retry_after;
use crate::shard::Server;

/// Bytes hyper buffers per connection beside a body: a head, and room to read a body in pieces of this.
const BUFFER_BYTES: usize = 64 * 1024;

/// What the process is doing, as far as clients and load balancers care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// Not every shard serves yet.
    Starting,
    #[default]
    Serving,
    /// Stopping: clients are to go elsewhere.
    Draining,
}

/// What the HTTP API of one shard is told at its start.
#[derive(Debug)]
pub struct HttpSettings {
    /// Shards of the process: how many answers make a whole.
    pub shards: usize,
    /// Moved by whoever starts and stops the shard. While draining, each answer ends its connection.
    pub stage: Cell<Stage>,
    /// Requests that have not been answered: a drain waits for them.
    pub in_flight: Cell<usize>,
    cors: Cors,
    routes: api::Routes,
}

impl HttpSettings {
    /// `cors_origins` may call the API from a browser; `*` among them stands for any.
    #[must_use]
    pub fn new(shards: usize, cors_origins: &[String]) -> Self {
        Self {
            shards,
            stage: Cell::default(),
            in_flight: Cell::default(),
            cors: Cors::new(cors_origins),
            routes: api::Routes::new(),
        }
    }
}

/// Serves a connection of the public port until it ends. `head` is what was read of it.
pub async fn serve(transport: Transport, head: Vec<u8>, server: Server) {
    let remote = transport.remote().map(|address| address.ip());
    let head_bytes_max = server.with(|shard, _| shard.limits().http_head_bytes_max);
    drive(
        transport,
        head,
        head_bytes_max,
        async |request: Request<Incoming>, pace: &Pace| {
            server.with(|shard, _| shard.counters_mut().http_requests += 1);
            let settings = &server.http;
            let is_api = request
                .uri()
                .path()
                .trim_start_matches('/')
                .starts_with("api/");
            let origin = request.headers().get(header::ORIGIN).cloned();
            let in_flight = InFlight::new(&settings.in_flight);
            let mut response = api::answer(request, &server, remote, pace)
                .await
                .unwrap_or_else(|refusal| {
                    server.with(|shard, _| shard.counters_mut().count_error(refusal.error.code));
                    refusal.into_response()
                });
            if is_api {
                settings.cors.allow(origin.as_ref(), response.headers_mut());
            }
            if settings.stage.get() == Stage::Draining {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            drop(in_flight);
            response
        },
    )
    .await;
}

/// Counts a request until its answer is made, also when its connection ends before that.
struct InFlight<'a>(&'a Cell<usize>);

impl<'a> InFlight<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Runs one connection with keep-alive and pipelining: `answer` is called for each request in turn.
async fn drive<F>(transport: Transport, head: Vec<u8>, head_bytes_max: usize, answer: F)
where
    F: AsyncFn(Request<Incoming>, &Pace) -> Response<Full<Bytes>>,
{
    let fd = transport.as_raw_fd();
    let pace = Pace::new(Instant::now());
    let io = Io::new(transport, head, pace.clone());
    let service = service_fn(|request| {
        pace.on_request(Instant::now());
        let (answer, pace) = (&answer, &pace);
        async move {
            let response = answer(request, pace).await;
            pace.on_body_done(Instant::now());
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .keep_alive(true)
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES)
        .max_header_size(head_bytes_max);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut watchdog = pin!(Watchdog::new(pace.clone()));
    let served = future::or(async { connection.as_mut().await.map(|()| true) }, async {
        watchdog.as_mut().await;
        Ok(false)
    })
    .await;
    // At once, and not when the ring has let go of the descriptor.
    crate::sys::shutdown(fd, std::net::Shutdown::Both);
    match served {
        Ok(true) => {}
        Ok(false) => log::debug!("HTTP connection ended: too slow or idle"),
        Err(error) => log::debug!("HTTP connection ended: {error}"),
    }
}

/// A request's body, once the caller is known and may make the call.
///
/// # Errors
/// 41300 when it is, or is announced to be, above `max` bytes; 40000 when it ends early or is framed wrongly.
pub(crate) async fn read_body(
    mut body: Incoming,
    max: usize,
    pace: &Pace,
) -> Result<Bytes, ProtocolError> {
    let too_large =
        || ProtocolError::with_text(ErrorCode::TooLarge, format!("body is above {max} bytes"));
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut gathered = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|_| ProtocolError::with_text(ErrorCode::BadRequest, "body is incomplete"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + gathered.len() + data.len() > max {
            return Err(too_large());
        }
        if first.is_empty() && gathered.is_empty() {
            first = data;
        } else {
            gathered.extend_from_slice(&std::mem::take(&mut first));
            gathered.extend_from_slice(&data);
        }
    }
    pace.on_body_done(Instant::now());
    Ok(if gathered.is_empty() {
        first
    } else {
        gathered.into()
    })
}

/// An error on its way to the client.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: ProtocolError,
    /// The error's own, unless HTTP knows a better one.
    pub(crate) status: StatusCode,
    /// The methods that a 405 allows.
    allow: Option<&'static str>,
    /// Where a 429 comes from a rate of calls.
    rate: Option<HttpRate>,
}

impl<E: Into<ProtocolError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        let error = error.into();
        let status = StatusCode::from_u16(error.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            error,
            status,
            allow: None,
            rate: None,
        }
    }
}

impl Refusal {
    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        Self {
            error: ProtocolError::with_text(ErrorCode::BadRequest, "method not allowed"),
            status: StatusCode::METHOD_NOT_ALLOWED,
            allow: Some(allow),
            rate: None,
        }
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut body = Vec::new();
        write_error(&mut body, &self.error, self.status);
        let mut response = json(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(rate) = &self.rate {
            tell_rate(headers, rate);
            return response;
        }
        match self.status.as_u16() {
            401 => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            429 | 503 => {
                for (_, seconds) in retry_after() {
                    headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
                }
            }
            _ => {}
        }
        response
    }
}

/// The fields of the IETF draft on rate limits, and of a refusal `Retry-After` (RFC 9110, 10.2.3).
fn tell_rate(headers: &mut HeaderMap, rate: &HttpRate) {
    let fields = [
        ("ratelimit-limit", u64::from(rate.limit)),
        ("ratelimit-remaining", u64::from(rate.remaining)),
        ("ratelimit-reset", rate.reset_s),
    ];
    for (name, value) in fields {
        headers.insert(name, HeaderValue::from(value));
    }
    if let Some(seconds) = rate.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// The body of contract D10 with a status that need not be the code's own.
fn write_error(out: &mut Vec<u8>, error: &ProtocolError, status: StatusCode) {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
        code: u16,
        status: u16,
    }
    let body = Body {
        error: &error.text,
        code: error.code.code(),
        status: status.as_u16(),
    };
    let written = serde_json::to_writer(out, &body);
    debug_assert!(
        written.is_ok(),
        "strings and integers into a Vec cannot fail"
    );
}

pub(crate) fn json(body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A `HEAD` is a `GET` whose body hyper leaves out.
pub(crate) fn effective_method(method: &Method) -> &Method {
    if method == Method::HEAD {
        &Method::GET
    } else {
        method
    }
}
