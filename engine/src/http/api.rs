//! The HTTP API's calls (contract D23): who may make them, and what they ask of the shards.
//!
//! Not here: what bodies look like (`wire::http_api`), and what a publish does (`shard`). Invariant: nothing is read of
//! a body, and no shard is asked anything, before the caller's key has been found and allows the call.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request, Response, header};
use shardwire_proto::auth::app::App;
use shardwire_proto::auth::capability::Ops;
use shardwire_proto::auth::key::{KeyKind, KeyRecord};
use shardwire_proto::auth::registry::Presented;
use shardwire_proto::auth::{self, Credential, is_valid_client_id};
use shardwire_proto::channel_name;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::limits::HISTORY_PAGE_BYTES_MAX;
use shardwire_proto::msg::{Answer, Occupants, Query};
use shardwire_proto::shard::page;
use shardwire_proto::url::{parse_target, percent_decode};
use shardwire_proto::wire::http_api::{
    ChannelPage, MemberQuery, PublishRequest, parse_disconnect, parse_messages, parse_page,
    parse_publish, parse_unsubscribe, write_channel, write_channels, write_count,
    write_publish_reply,
};
use shardwire_proto::wire::wsocket::{write_member_page, write_page};

use super::cors::Cors;
use super::pace::Pace;
use super::push::{self, PushCall};
use super::{Refusal, effective_method, everywhere, json, read_body, tell_rate};
use crate::conn::head::bearer;
use crate::shard::Server;

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    PublishTo,
    History,
    Presence,
    Clear,
    Publish,
    Channels,
    Channel,
    Disconnect,
    Unsubscribe,
    Push(PushCall),
}

/// What a path stands for: a call per method. A `HEAD` is among them wherever a `GET` is.
#[derive(Debug, Clone, Copy)]
struct Resource {
    calls: &'static [(&'static str, Endpoint)],
    /// For the `Allow` header.
    methods: &'static str,
}

impl Resource {
    const PATHS: [(&'static str, Self); 20] = [
        (
            "/channels/{channel}/messages",
            Self {
                calls: &[
                    ("GET", Endpoint::History),
                    ("POST", Endpoint::PublishTo),
                    ("DELETE", Endpoint::Clear),
                ],
                methods: "GET, HEAD, POST, DELETE, OPTIONS",
            },
        ),
        (
            "/channels/{channel}/presence",
            Self::get(&[("GET", Endpoint::Presence)]),
        ),
        ("/publish", Self::post(&[("POST", Endpoint::Publish)])),
        ("/channels", Self::get(&[("GET", Endpoint::Channels)])),
        (
            "/channels/{channel}",
            Self::get(&[("GET", Endpoint::Channel)]),
        ),
        (
            "/clients/{client}/disconnect",
            Self::post(&[("POST", Endpoint::Disconnect)]),
        ),
        (
            "/clients/{client}/unsubscribe",
            Self::post(&[("POST", Endpoint::Unsubscribe)]),
        ),
        (
            "/push/register",
            Self::post(&[("POST", Endpoint::Push(PushCall::Register))]),
        ),
        (
            "/push/unregister",
            Self {
                calls: &[
                    ("POST", Endpoint::Push(PushCall::Unregister)),
                    ("DELETE", Endpoint::Push(PushCall::Unregister)),
                ],
                methods: "POST, DELETE, OPTIONS",
            },
        ),
        (
            "/push/subscriptions",
            Self::get(&[("GET", Endpoint::Push(PushCall::List))]),
        ),
        (
            "/push/subscriptions/{id}",
            Self {
                calls: &[("DELETE", Endpoint::Push(PushCall::Delete))],
                methods: "DELETE, OPTIONS",
            },
        ),
        (
            "/push/channels/add",
            Self::post(&[("POST", Endpoint::Push(PushCall::AddChannel))]),
        ),
        (
            "/push/channels/remove",
            Self::post(&[("POST", Endpoint::Push(PushCall::RemoveChannel))]),
        ),
        (
            "/push/send",
            Self::post(&[("POST", Endpoint::Push(PushCall::Send))]),
        ),
        (
            "/push/broadcast",
            Self::post(&[("POST", Endpoint::Push(PushCall::Broadcast))]),
        ),
        (
            "/push/vapid-key",
            Self::get(&[("GET", Endpoint::Push(PushCall::VapidKey))]),
        ),
        (
            "/push/config",
            Self::get(&[("GET", Endpoint::Push(PushCall::Config))]),
        ),
        (
            "/push/stats",
            Self::get(&[("GET", Endpoint::Push(PushCall::Stats))]),
        ),
        (
            "/push/jobs",
            Self::get(&[("GET", Endpoint::Push(PushCall::Jobs))]),
        ),
        (
            "/push/jobs/{id}",
            Self {
                calls: &[
                    ("GET", Endpoint::Push(PushCall::Job)),
                    ("DELETE", Endpoint::Push(PushCall::CancelJob)),
                ],
                methods: "GET, HEAD, DELETE, OPTIONS",
            },
        ),
    ];

    const fn get(calls: &'static [(&'static str, Endpoint)]) -> Self {
        let methods = "GET, HEAD, OPTIONS";
        Self { calls, methods }
    }

    const fn post(calls: &'static [(&'static str, Endpoint)]) -> Self {
        let methods = "POST, OPTIONS";
        Self { calls, methods }
    }
}

/// Paths to resources: each under `/api` and, with the app fixed by the path, under `/api/admin/apps/{app}`.
#[derive(Debug)]
pub(super) struct Routes(matchit::Router<Resource>);

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = matchit::Router::new();
        for (path, resource) in Resource::PATHS {
            for prefix in ["/api", "/api/admin/apps/{app}"] {
                let inserted = router.insert(format!("{prefix}{path}"), resource);
                assert!(inserted.is_ok(), "the paths above do not conflict");
            }
        }
        Self(router)
    }

    /// The paths below `/admin/apps/{app}` that [`answer_for_app`] serves, with their methods.
    #[cfg(test)]
    pub(super) fn for_app() -> impl Iterator<Item = (String, &'static str)> {
        Resource::PATHS.into_iter().flat_map(|(path, resource)| {
            let path = format!("/admin/apps/{{app}}{path}");
            resource
                .calls
                .iter()
                .map(move |(method, _)| (path.clone(), *method))
        })
    }

    /// Finds the call that a request makes.
    fn find(&self, method: &Method, path: &str) -> Result<Call, Refusal> {
        let matched = self.0.at(path).map_err(|_| ErrorCode::NotFound)?;
        let Resource { calls, methods } = *matched.value;
        let method = effective_method(method).as_str();
        let found = calls.iter().find(|(own, _)| *own == method);
        let (_, endpoint) = *found.ok_or_else(|| Refusal::method_not_allowed(methods))?;
        let param = |name| {
            let encoded = matched.params.get(name).unwrap_or_default();
            percent_decode(encoded).map(Cow::into_owned)
        };
        Ok(Call {
            endpoint,
            app: param("app")?,
            channel: param("channel")?,
            client: param("client")?,
            id: param("id")?,
        })
    }
}

/// What a request's method and path ask for. Parameters that the path does not have are empty.
struct Call {
    endpoint: Endpoint,
    app: String,
    channel: String,
    client: String,
    id: String,
}

pub(super) async fn answer(
    request: Request<Incoming>,
    server: &Server,
    remote: Option<IpAddr>,
    pace: &Pace,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let (head, body) = request.into_parts();
    let target = head.uri.path_and_query();
    let target = parse_target(target.map_or("/", |target| target.as_str()));
    if head.method == Method::OPTIONS && target.path.starts_with("/api/") {
        let mut response = json(b"{}".to_vec());
        Cors::allow_preflight(response.headers_mut());
        return Ok(response);
    }
    let call = server.http.routes.find(&head.method, &target.path)?;
    let who = authenticate(server, target.query, &head.headers, remote)?;
    call.check_right(&who)?;
    if matches!(call.endpoint, Endpoint::Push(_)) {
        push::check_app(&who, &head.headers, target.query)?;
    }
    let rate = server.with(|shard, now| shard.admit_http(&who, now));
    let rate = rate.map_err(|rate| Refusal {
        rate: Some(rate),
        ..Refusal::from(ErrorCode::RateExceeded)
    })?;
    if call.endpoint == Endpoint::History
        && !server.with(|shard, now| shard.admit_http_history(&who, &call.channel, now))
    {
        return Err(ErrorCode::RateExceeded.into());
    }
    let asked = Asked {
        method: &head.method,
        headers: &head.headers,
        query: target.query,
        body: Content::Unread(body),
    };
    let mut response = carry_out(call, &who, asked, server, pace).await?;
    if let Some(rate) = &rate {
        tell_rate(response.headers_mut(), rate);
    }
    Ok(response)
}

/// What a request brings beside its path.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) query: &'a str,
    pub(super) body: Content,
}

/// A body that may have been read already.
pub(super) enum Content {
    Unread(Incoming),
    Read(Bytes),
}

/// Serves to the operator what the public API serves of one app: `path` is `/admin/apps/{app}/…` where that has
/// `/api/admin/apps/{app}/…`.
pub(super) async fn answer_for_app(
    path: &str,
    asked: Asked<'_>,
    server: &Server,
    pace: &Pace,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let routes = &server.http.routes;
    let call = routes.find(asked.method, &format!("/api{path}"))?;
    let registry = server.settings.registry.as_ref();
    let snapshot = registry.ok_or(ErrorCode::Unavailable)?.snapshot();
    let app = snapshot.app(&call.app).ok_or(ErrorCode::NotFound)?;
    let who = operator(app);
    carry_out(call, &who, asked, server, pace).await
}

/// Reads the body of a call that its caller may make, and answers it.
async fn carry_out(
    call: Call,
    who: &auth::Caller,
    asked: Asked<'_>,
    server: &Server,
    pace: &Pace,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let idempotency_key = idempotency_key(asked.headers)?;
    let body_max = server.with(|shard, _| shard.limits().http_body_bytes_max);
    let body = match (asked.body, asked.method) {
        (Content::Unread(body), &Method::POST) => read_body(body, body_max, pace).await?,
        // Who is to be unregistered is in a body.
        (Content::Unread(body), &Method::DELETE) if matches!(call.endpoint, Endpoint::Push(_)) => {
            read_body(body, body_max, pace).await?
        }
        (Content::Unread(_), _) => Bytes::new(),
        (Content::Read(body), _) => body,
    };
    let caller = Caller {
        server,
        who,
        idempotency_key: idempotency_key.as_deref(),
    };
    caller.answer(call, asked.query, &body).await
}

/// What stands for the operator where a caller's rights are asked for: every right in the app.
fn operator(app: &Arc<App>) -> auth::Caller {
    let key = KeyRecord::of_nobody("operator", &app.id);
    auth::Caller {
        app: app.clone(),
        capabilities: key.capabilities.clone(),
        credential: Credential::Key(Arc::new(key)),
        denied: None,
    }
}

impl Call {
    /// Refuses before the body is read what no body could make right. Rights on the channels that a body names are
    /// checked when it is read: publishing by the shard, item by item.
    fn check_right(&self, who: &auth::Caller) -> Result<(), ProtocolError> {
        if !self.app.is_empty() && self.app != who.app.id {
            return Err(not_permitted("the credentials belong to another app"));
        }
        if let Endpoint::Push(call) = self.endpoint {
            return call.check_right(who);
        }
        if let Credential::Key(key) = &who.credential
            && key.kind != KeyKind::Server
        {
            return Err(not_permitted("this call needs a server key or a token"));
        }
        let grants = &who.capabilities;
        let permitted = match self.endpoint {
            Endpoint::PublishTo | Endpoint::Publish => grants.permits_somewhere(Ops::PUBLISH),
            Endpoint::History => who.permits(&self.channel, Ops::HISTORY),
            Endpoint::Presence => {
                who.permits(&self.channel, Ops::SUBSCRIBE)
                    || who.permits(&self.channel, Ops::PRESENCE)
            }
            Endpoint::Channels | Endpoint::Disconnect => grants.permits_everywhere(Ops::ADMIN),
            Endpoint::Channel | Endpoint::Clear => who.permits(&self.channel, Ops::ADMIN),
            Endpoint::Unsubscribe => grants.permits_somewhere(Ops::ADMIN),
            Endpoint::Push(_) => false,
        };
        if permitted {
            Ok(())
        } else {
            Err(ErrorCode::NotPermitted.into())
        }
    }
}

/// Whose credentials a request presents: of `?key=`, `?token=` or `Authorization: Bearer`.
fn authenticate(
    server: &Server,
    query: &str,
    headers: &HeaderMap,
    remote: Option<IpAddr>,
) -> Result<auth::Caller, ProtocolError> {
    let (mut key, mut token) = (None, None);
    for pair in shardwire_proto::url::pairs(query) {
        let (name, value) = pair?;
        let slot = match &*name {
            "key" => &mut key,
            "token" => &mut token,
            _ => continue,
        };
        if slot.is_none() && !value.is_empty() {
            *slot = Some(value);
        }
    }
    let authorization = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let presented = Presented {
        key: key.as_deref(),
        token: token.as_deref(),
        bearer: authorization.and_then(bearer),
    };
    server.with(|shard, now| shard.authenticate(presented, remote, now))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ProtocolError> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| {
        ProtocolError::with_text(
            ErrorCode::BadField,
            "`Idempotency-Key` must be printable ASCII",
        )
    })?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}

fn not_permitted(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::NotPermitted, text)
}

type Reply = Result<Vec<u8>, ProtocolError>;

/// Who calls, once known and permitted.
struct Caller<'a> {
    server: &'a Server,
    who: &'a auth::Caller,
    idempotency_key: Option<&'a str>,
}

impl Caller<'_> {
    async fn answer(
        &self,
        call: Call,
        query: &str,
        body: &[u8],
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let reply = match call.endpoint {
            Endpoint::PublishTo => self.publish_to(&call.channel, body).await,
            Endpoint::History => self.history(&call.channel, query).await,
            Endpoint::Presence => self.members(&call.channel, query).await,
            Endpoint::Clear => self.clear(&call.channel).await,
            Endpoint::Publish => self.publish(body).await,
            Endpoint::Channels => self.list_channels(query).await,
            Endpoint::Channel => self.describe_channel(&call.channel).await,
            Endpoint::Disconnect => self.disconnect(call.client, body).await,
            Endpoint::Unsubscribe => self.unsubscribe(call.client, body).await,
            Endpoint::Push(what) => {
                let push = self.server.settings.push.as_ref();
                let key = self.idempotency_key;
                what.answer(push, self.who, &call.id, query, body, key)
                    .await
            }
        }?;
        Ok(json(reply))
    }

    async fn publish_to(&self, channel: &str, body: &[u8]) -> Reply {
        let request = parse_messages(body, channel, self.idempotency_key, self.batch_max())?;
        self.publish_all(&request).await
    }

    async fn publish(&self, body: &[u8]) -> Reply {
        let request = parse_publish(body, self.idempotency_key, self.batch_max())?;
        self.publish_all(&request).await
    }

    fn batch_max(&self) -> usize {
        self.server
            .with(|shard, _| shard.limits().publish_batch_max)
    }

    /// One message's failure is the request's; several report one by one.
    async fn publish_all(&self, request: &PublishRequest<'_>) -> Reply {
        let results = self.server.publish(self.who, &request.items).await;
        if let (true, [Err(code)]) = (request.single, results.as_slice()) {
            return Err((*code).into());
        }
        let failed = results.iter().filter_map(|result| result.as_ref().err());
        self.server
            .with(|shard, _| failed.for_each(|code| shard.counters_mut().count_error(*code)));
        let mut reply = Vec::new();
        write_publish_reply(&mut reply, &request.items, &results);
        Ok(reply)
    }

    /// The twin of a client's `history` (contract D17).
    async fn history(&self, channel: &str, query: &str) -> Reply {
        channel_name::validate(channel, true)?;
        let request = parse_page(query)?;
        let page = self.server.with(|shard, _| {
            let settings = shard.channel_settings(&self.who.app.id, channel);
            (settings.history && settings.persist)
                .then(|| page(request, HISTORY_PAGE_BYTES_MAX, shard.limits()))
        });
        let page = page.ok_or(ErrorCode::HistoryDisabled)?;
        let (messages, has_more) = self.server.history(&self.who.app.id, channel, page).await?;
        let mut reply = Vec::new();
        write_page(&mut reply, channel, &messages, has_more);
        Ok(reply)
    }

    /// A page of a channel's members.
    async fn members(&self, channel: &str, query: &str) -> Reply {
        channel_name::validate(channel, true)?;
        let page = MemberQuery::parse(query)?;
        let app = &self.who.app.id;
        let members = self.server.members(app, channel, page.after, page.limit);
        let mut reply = Vec::new();
        write_member_page(&mut reply, channel, &members.await?);
        Ok(reply)
    }

    /// Removes what is stored of a channel; its numbering goes on.
    async fn clear(&self, channel: &str) -> Reply {
        channel_name::validate(channel, true)?;
        let deleted = self.server.clear(&self.who.app.id, channel).await?;
        let mut reply = Vec::new();
        write_count(&mut reply, "deleted", deleted);
        Ok(reply)
    }

    async fn list_channels(&self, query: &str) -> Reply {
        let page = ChannelPage::parse(query)?;
        let limit = page.limit;
        let query = Query::Channels {
            prefix: page.prefix,
            after: page.after,
            limit: limit + 1,
        };
        let mut channels = BTreeMap::<Arc<str>, Occupants>::new();
        for node in self.ask(query).await? {
            let mut of_node = BTreeMap::<Arc<str>, Occupants>::new();
            for answer in node {
                if let Answer::Channels(part) = answer {
                    for (name, occupants) in part {
                        *of_node.entry(name).or_default() += occupants;
                    }
                }
            }
            for (name, occupants) in of_node {
                add_node(channels.entry(name).or_default(), occupants);
            }
        }
        // Each shard gave its first names; the first of all are among them, and these are whole.
        let channels = channels
            .iter()
            .map(|(name, occupants)| (&**name, *occupants));
        let channels: Vec<_> = channels.take(limit + 1).collect();
        let mut reply = Vec::new();
        write_channels(&mut reply, &channels, limit);
        Ok(reply)
    }

    async fn describe_channel(&self, channel: &str) -> Reply {
        channel_name::validate(channel, true)?;
        let (mut total, mut sequence) = (Occupants::default(), None);
        let name = channel.to_owned();
        for node in self.ask(Query::Channel { name }).await? {
            let mut of_node = Occupants::default();
            for answer in node {
                if let Answer::Channel {
                    occupants,
                    last_sequence,
                } = answer
                {
                    of_node += occupants;
                    sequence = sequence.max(last_sequence);
                }
            }
            add_node(&mut total, of_node);
        }
        let text = "the store cannot be read";
        let sequence =
            sequence.ok_or_else(|| ProtocolError::with_text(ErrorCode::Unavailable, text))?;
        let mut reply = Vec::new();
        write_channel(&mut reply, channel, total, sequence);
        Ok(reply)
    }

    async fn disconnect(&self, client_id: String, body: &[u8]) -> Reply {
        check_client(&client_id)?;
        let (code, reason) = parse_disconnect(body)?;
        self.count(
            "disconnected",
            Query::Disconnect {
                client_id,
                code,
                reason,
            },
        )
        .await
    }

    async fn unsubscribe(&self, client_id: String, body: &[u8]) -> Reply {
        check_client(&client_id)?;
        let channel = parse_unsubscribe(body)?;
        channel_name::validate(&channel, true)?;
        if !self.who.permits(&channel, Ops::ADMIN) {
            return Err(ErrorCode::NotPermitted.into());
        }
        self.count("unsubscribed", Query::Unsubscribe { client_id, channel })
            .await
    }

    async fn count(&self, name: &str, query: Query) -> Reply {
        let mut total = 0;
        for answer in self.ask(query).await?.into_iter().flatten() {
            if let Answer::Count(count) = answer {
                total += count;
            }
        }
        let mut reply = Vec::new();
        write_count(&mut reply, name, total as u64);
        Ok(reply)
    }

    /// The answers of all shards of each node.
    async fn ask(&self, query: Query) -> Result<Vec<Vec<Answer>>, ProtocolError> {
        everywhere::ask(self.server, &self.who.app.id, query, None).await
    }
}

/// Adds what one node has: its subscribers, and the members, which it knows of all nodes if it knows any.
fn add_node(total: &mut Occupants, node: Occupants) {
    total.subscribers += node.subscribers;
    total.members = total.members.max(node.members);
}

fn check_client(client_id: &str) -> Result<(), ProtocolError> {
    if is_valid_client_id(client_id) {
        return Ok(());
    }
    let text = "a client id has 1 to 128 bytes and no control characters";
    Err(ProtocolError::with_text(ErrorCode::BadField, text))
}
