//! The dashboard: pages for people and the JSON API behind them, below `/dashboard`.
//!
//! ```text
//!  request ──► visit (who is it? is the form ours?) ──► pages ──► calls ──► accounts (own calls)
//!                                                └─api──►  ▲ │       └────► admin API (everything else)
//!                                                 permission table, audit log
//! ```
//! [`calls`] is the one place where it is decided whether somebody may do something, for pages and API alike: it routes by
//! the permission table. [`face`] makes pages from what it is given. Not here: accounts themselves
//! (`side::accounts`), and what calls do (`http::admin`).
//!
//! Invariants: no page runs anything but the scripts served here (content security policy); nothing is changed by a `GET`,
//! nor by a request that another site made; whatever changes something is in the audit log.

mod answer;
mod calls;
pub mod face;
mod own;
mod pages;
mod visit;

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use shardwire_proto::error::ErrorCode;
use shardwire_proto::url::parse_target;

use self::visit::Visit;
use crate::http::{AdminSettings, Pace, Refusal, read_body};
use crate::shard::Server;

/// Bytes of a form or a JSON body.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// How a request comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visitor {
    pub(crate) peer: SocketAddr,
    /// Whether over TLS.
    pub(crate) is_secure: bool,
}

/// Answers a request to a path below `/dashboard`, or to `/`.
pub(crate) async fn answer(
    request: Request<Incoming>,
    visitor: Visitor,
    server: &Server,
    settings: &AdminSettings,
    pace: &Pace,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query();
    let target = parse_target(target.map_or("/", |target| target.as_str()));
    let path = target.path.strip_prefix("/dashboard");
    let Some(accounts) = settings.accounts.as_ref() else {
        return Refusal::from(ErrorCode::NotFound).into_response();
    };
    let Some(path) = path else {
        return answer::redirect("/dashboard");
    };
    let body = match head.method {
        Method::GET | Method::HEAD | Method::OPTIONS => Ok(Bytes::new()),
        _ => read_body(body, BODY_BYTES_MAX, pace).await,
    };
    let body = match body {
        Ok(body) => body,
        Err(error) => return Refusal::from(error).into_response(),
    };
    let mut visit = Visit::new(server, settings, accounts, pace, visitor, &head, body);
    let mut response = match path.strip_prefix("/api") {
        Some(path) => own::api(&mut visit, path, target.query).await,
        None => pages::answer(&mut visit, path, target.query).await,
    };
    answer::guard(response.headers_mut(), &visit);
    response
}
