//! The admin port: probes for anyone who reaches it (`probe`), and the admin API for whoever has the admin token
//! (`access`).
//!
//! `routes` has every path and method, `openapi.json` describes them. What the public API serves of one app is served
//! here under `/admin/apps/{app}/…` with every right, by the same code (`http::api`). Not here: what a change of an app
//! or key means (`registry`).
//!
//! Invariants: nothing below `/admin` is answered without the token, not even which paths there are; no answer holds a
//! secret but the one that makes it.

mod access;
mod accounts;
mod apps;
mod connections;
mod document;
mod node;
mod plans;
mod probe;
mod push;
mod routes;
mod webhooks;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::url::parse_target;

use self::access::Access;
use self::document::DOCUMENT;
use self::routes::{Call, Endpoint, Routes};
use super::api::{Asked, Content};
use super::pace::Pace;
use super::{Refusal, Stage, api, drive, effective_method, json, read_body};
use crate::config::Config;
use crate::conn::Transport;
use crate::dashboard::{self, Visitor};
use crate::server::Operator;
use crate::shard::Server;
use crate::side::accounts::AccountsHandle;

/// Connections of the admin port at once; one more is closed as soon as it is accepted.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a body that describes an app, a key or the like.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Entries in a page of a list when the request gives no `limit`.
const PAGE_DEFAULT: usize = 100;
/// Entries in a page at most; a higher `limit` is clamped.
const PAGE_MAX: usize = 1000;

/// What the admin port is told by whoever starts the process.
#[derive(Debug, Clone)]
pub struct AdminStart {
    /// The admin token.
    pub token: String,
    /// In force at the start.
    pub config: Arc<Config>,
    /// What is served, with the ports that the kernel chose.
    pub listen: SocketAddr,
    /// The admin port's own.
    pub admin: SocketAddr,
    /// Takes the order to drain.
    pub operator: Operator,
    /// People; none without a dashboard.
    pub accounts: Option<AccountsHandle>,
}

/// What a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Probes, the admin API, and the dashboard.
    Admin,
    /// The dashboard alone.
    Dashboard,
}

/// State of the admin port.
#[derive(Debug)]
pub struct AdminSettings {
    /// Shards of the process: how many answers make a healthy one.
    pub shards: usize,
    /// Moved by whoever starts and stops the process.
    pub stage: Cell<Stage>,
    /// In force; replaced at each reload.
    pub config: RefCell<Arc<Config>>,
    /// People; none without a dashboard.
    pub(crate) accounts: Option<AccountsHandle>,
    access: Access,
    routes: Routes,
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    operator: Operator,
    started_ms: u64,
    drain_asked: Cell<bool>,
    connections: Cell<usize>,
}

impl AdminSettings {
    /// The state at the process's start, `started_ms` (Unix ms).
    #[must_use]
    pub fn new(start: AdminStart, shards: usize, stage: Stage, started_ms: u64) -> Self {
        Self {
            shards,
            stage: Cell::new(stage),
            access: Access::new(&start.token),
            config: RefCell::new(start.config),
            accounts: start.accounts,
            routes: Routes::new(),
            listen: start.listen,
            admin: start.admin,
            operator: start.operator,
            started_ms,
            drain_asked: Cell::new(false),
            connections: Cell::new(0),
        }
    }

    /// Whether the admin API has a path, written as in its table.
    pub(crate) fn serves(&self, path: &str) -> bool {
        routes::RESOURCES
            .iter()
            .any(|resource| resource.path == path)
    }

    /// Takes a place among the port's connections; `None` when all are taken.
    pub fn occupy(self: &Rc<Self>) -> Option<Place> {
        if self.connections.get() >= CONNECTIONS_MAX {
            return None;
        }
        self.connections.set(self.connections.get() + 1);
        Some(Place(self.clone()))
    }
}

/// A place among the connections of the admin port.
#[derive(Debug)]
pub struct Place(Rc<AdminSettings>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// Serves a connection of the admin port until it ends. `head` is what was read of it.
pub async fn serve_admin(
    transport: Transport,
    head: Vec<u8>,
    server: Server,
    settings: Rc<AdminSettings>,
    port: Port,
) {
    let is_secure = transport.is_secure();
    let head_bytes_max = server.with(|shard, _| shard.limits().http_head_bytes_max);
    let Some(peer) = transport.remote() else {
        return;
    };
    drive(
        transport,
        head,
        head_bytes_max,
        async |request: Request<Incoming>, pace: &Pace| {
            let path = request.uri().path();
            if path == "/" || path == "/dashboard" || path.starts_with("/dashboard/") {
                let visitor = Visitor { peer, is_secure };
                return dashboard::answer(request, visitor, &server, &settings, pace).await;
            }
            let answered = match port {
                Port::Admin => answer(request, peer, &server, &settings, pace).await,
                Port::Dashboard => Err(ErrorCode::NotFound.into()),
            };
            answered.unwrap_or_else(Refusal::into_response)
        },
    )
    .await;
}

type Reply = Result<Response<Full<Bytes>>, Refusal>;

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    server: &Server,
    settings: &AdminSettings,
    pace: &Pace,
) -> Reply {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query();
    let target = parse_target(target.map_or("/", |target| target.as_str()));
    let path = &*target.path;
    if path != "/admin" && !path.starts_with("/admin/") {
        return probe(&head.method, path, server, settings).await;
    }
    let now_ms = server.now().mono_ms();
    settings.access.check(&head.headers, peer.ip(), now_ms)?;
    let asked = Asked {
        method: &head.method,
        headers: &head.headers,
        query: target.query,
        body: Content::Unread(body),
    };
    let answered = carry_out(path, asked, server, settings, pace).await;
    accounts::note_operator(settings, &head.method, path, peer.ip(), &answered);
    answered
}

/// Makes a call of the admin API for somebody whom another check than the token's has let through: `path` begins with
/// `/admin/`.
pub(crate) async fn perform(
    (method, path, query): (&Method, &str, &str),
    headers: &HeaderMap,
    body: Bytes,
    server: &Server,
    settings: &AdminSettings,
    pace: &Pace,
) -> Reply {
    let asked = Asked {
        method,
        headers,
        query,
        body: Content::Read(body),
    };
    carry_out(path, asked, server, settings, pace).await
}

async fn carry_out(
    path: &str,
    asked: Asked<'_>,
    server: &Server,
    settings: &AdminSettings,
    pace: &Pace,
) -> Reply {
    let Some(call) = settings.routes.find(asked.method, path)? else {
        return api::answer_for_app(path, asked, server, pace).await;
    };
    let body = match (asked.body, asked.method) {
        (Content::Unread(body), &Method::POST | &Method::PATCH | &Method::PUT) => {
            read_body(body, BODY_BYTES_MAX, pace).await?
        }
        (Content::Unread(_), _) => Bytes::new(),
        (Content::Read(body), _) => body,
    };
    let caller = Caller {
        server,
        settings,
        call: &call,
        query: asked.query,
        body: &body,
    };
    caller.answer().await
}

async fn probe(method: &Method, path: &str, server: &Server, settings: &AdminSettings) -> Reply {
    let is_get = *effective_method(method) == Method::GET;
    match path {
        "/healthz" | "/readyz" | "/metrics" if !is_get => {
            Err(Refusal::method_not_allowed("GET, HEAD"))
        }
        "/healthz" => probe::health(server, settings).await,
        "/readyz" => probe::readiness(server, settings.stage.get()),
        "/metrics" => Ok(probe::metrics(server, settings).await),
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// A call of the operator's, read and permitted.
struct Caller<'a> {
    server: &'a Server,
    settings: &'a AdminSettings,
    call: &'a Call,
    query: &'a str,
    body: &'a [u8],
}

impl Caller<'_> {
    async fn answer(&self) -> Reply {
        match self.call.endpoint {
            Endpoint::Document => Ok(json(DOCUMENT.as_bytes().to_vec())),
            Endpoint::Nodes => self.nodes().await,
            Endpoint::Config => Ok(self.config()),
            Endpoint::DrainState => self.drain_state(StatusCode::OK).await,
            Endpoint::Drain => self.drain().await,
            Endpoint::Connections => self.connections().await,
            Endpoint::Connection => self.connection().await,
            Endpoint::EndConnection => self.end_connection().await,
            Endpoint::Apps
            | Endpoint::App
            | Endpoint::Keys
            | Endpoint::Key
            | Endpoint::SigningKeys
            | Endpoint::SigningKey
            | Endpoint::Revocations => self.look_up(),
            Endpoint::CreateApp
            | Endpoint::UpdateApp
            | Endpoint::DeleteApp
            | Endpoint::CreateKey
            | Endpoint::UpdateKey
            | Endpoint::DeleteKey
            | Endpoint::RotateKey
            | Endpoint::CreateSigningKey
            | Endpoint::UpdateSigningKey
            | Endpoint::DeleteSigningKey
            | Endpoint::Revoke
            | Endpoint::DeleteRevocation
            | Endpoint::MintToken => self.change().await,
            Endpoint::Plans | Endpoint::Plan => self.plans(),
            Endpoint::PutPlan | Endpoint::DeletePlan => self.change_plan().await,
            Endpoint::Usage => self.usage().await,
            Endpoint::Accounts
            | Endpoint::CreateAccount
            | Endpoint::Account
            | Endpoint::UpdateAccount
            | Endpoint::DeleteAccount
            | Endpoint::ResetAccount
            | Endpoint::Audit => self.people().await,
            Endpoint::Webhooks
            | Endpoint::CreateWebhook
            | Endpoint::Webhook
            | Endpoint::UpdateWebhook
            | Endpoint::DeleteWebhook
            | Endpoint::RotateWebhook
            | Endpoint::TestWebhook
            | Endpoint::WebhookEvents
            | Endpoint::WebhookDeliveries
            | Endpoint::DeadLetters
            | Endpoint::PurgeDeadLetters
            | Endpoint::ReplayDeadLetters
            | Endpoint::DeadLetter
            | Endpoint::PurgeDeadLetter
            | Endpoint::ReplayDeadLetter => self.webhooks().await,
            Endpoint::PushProviders | Endpoint::PutPushProvider | Endpoint::DeletePushProvider => {
                self.push_providers().await
            }
        }
    }

    /// The body as a `T`.
    ///
    /// # Errors
    /// 40001 where it is not JSON, 40003 where it is not a `T`.
    fn read<T: DeserializeOwned>(&self) -> Result<T, ProtocolError> {
        if self.body.first() != Some(&b'{') && self.body.trim_ascii_start().first() != Some(&b'{') {
            let text = "body is not a JSON object";
            return Err(ProtocolError::with_text(ErrorCode::NotJson, text));
        }
        serde_json::from_slice(self.body).map_err(|error| {
            let code = if error.is_data() {
                ErrorCode::BadField
            } else {
                ErrorCode::NotJson
            };
            ProtocolError::with_text(code, error.to_string())
        })
    }

    /// The body as a `T`, or the default where there is none.
    fn read_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, ProtocolError> {
        if self.body.trim_ascii().is_empty() {
            return Ok(T::default());
        }
        self.read()
    }

    /// The parameters of the query, the first of each; those that are not among `known` are ignored.
    fn parameters(&self, known: &[&str]) -> Result<BTreeMap<String, String>, ProtocolError> {
        let mut found = BTreeMap::new();
        for pair in shardwire_proto::url::pairs(self.query) {
            let (name, value) = pair?;
            if known.contains(&&*name) && !value.is_empty() {
                found.entry(name.into_owned()).or_insert(value.into_owned());
            }
        }
        Ok(found)
    }
}

/// The `limit` of a list, within its bounds.
fn limit(parameters: &BTreeMap<String, String>) -> Result<usize, ProtocolError> {
    let Some(text) = parameters.get("limit") else {
        return Ok(PAGE_DEFAULT);
    };
    match text.parse::<u32>() {
        Ok(0) => Ok(PAGE_DEFAULT),
        Ok(limit) => Ok(PAGE_MAX.min(limit as usize)),
        Err(_) => Err(wrong_field("`limit` must be a number")),
    }
}

/// An answer with a JSON body.
fn reply(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let written = serde_json::to_vec(body);
    debug_assert!(written.is_ok(), "replies have string keys");
    let mut response = json(written.unwrap_or_default());
    *response.status_mut() = status;
    response
}

fn wrong_field(text: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}
