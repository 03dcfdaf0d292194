//! Pages: from a request to what `face` shows, and from its forms to calls.
//!
//! Whatever a page shows and a form does goes through `calls`, so that a page can neither show nor change what the API
//! would refuse. Forms that succeed are answered with a redirect, so that a reload does not send them again; those that
//! make a secret with the page that shows it, once.

mod account;
mod apps;
mod door;
mod push;
mod settings;
mod teams;
mod traffic;
mod webhooks;

use std::collections::BTreeMap;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Response, StatusCode};
use maud::Markup;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::url::percent_decode;

use super::answer::{html, redirect};
use super::face::format::sentence;
use super::face::{Flash, Named, Person, Sent, Shell, assets, pages as face, paths};
use super::visit::{FLASH, Visit};
use crate::http::{Refusal, effective_method};

/// Characters of what is said at the top of the next page.
const FLASH_CHARS_MAX: usize = 300;
/// Seconds until nobody needs to hear it any more.
const FLASH_S: u64 = 60;

/// What comes of a form.
enum Next {
    /// Another page, with something to say at its top.
    Go(String, String),
    Page(Markup),
}

/// What a form was sent with, and what was wrong with it: for the page that shows it again.
#[derive(Default)]
struct Again {
    form: Form,
    sent: Sent,
    problem: Option<String>,
}

/// Said at the top of a page where it says beside the field what is wrong.
const LOOK_BELOW: &str = "Nothing was changed: look at the field that is marked.";

impl Again {
    /// A form that was refused with a text. One that begins with a field's name, as the API's do, is shown beside it.
    fn of(parts: &[&str], form: Form, text: &str) -> Self {
        let wrong = wrong_field(text, &form);
        let problem = match wrong {
            Some(_) => LOOK_BELOW.to_owned(),
            None => sentence(&text.replace('`', "")),
        };
        let sent = Sent {
            action: paths::to(parts),
            values: form.1.clone(),
            errors: wrong.into_iter().collect(),
        };
        Self {
            form,
            sent,
            problem: Some(problem),
        }
    }
}

/// The field of a form that a refusal is about, and what it says of it. `batch.maxEvents` may be `max_events` there.
fn wrong_field(text: &str, form: &Form) -> Option<(String, String)> {
    let (path, rest) = text.strip_prefix('`')?.split_once('`')?;
    let last = path.rsplit('.').next().unwrap_or(path);
    let mut snake = String::new();
    for c in last.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    let names = [path, last, &snake];
    let name = names.into_iter().find(|name| form.has(name))?;
    Some((name.to_owned(), rest.replace('`', "")))
}

/// Names and values of a form or a query: the first of each, and all in order.
#[derive(Debug, Clone, Default)]
struct Form(BTreeMap<String, String>, Vec<(String, String)>);

impl Form {
    fn parse(text: &[u8]) -> Self {
        let all: Vec<(String, String)> = form_urlencoded::parse(text).into_owned().collect();
        let mut first = BTreeMap::new();
        for (name, value) in &all {
            first.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Self(first, all)
    }

    /// Every value of a name that is not empty.
    fn every(&self, name: &str) -> Vec<&str> {
        let all = self.1.iter();
        let named = all.filter(|(own, value)| own == name && !value.is_empty());
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether it is there, perhaps empty.
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The lines of a text, trimmed, that are not empty.
    fn lines(&self, name: &str) -> Vec<&str> {
        let lines = self.get(name).lines().map(str::trim);
        lines.filter(|line| !line.is_empty()).collect()
    }

    /// Empty where it is absent.
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// As a JSON text, where it is there and not empty.
    fn text(&self, name: &str) -> Option<Value> {
        Some(self.get(name).trim())
            .filter(|text| !text.is_empty())
            .map(Value::from)
    }

    /// As JSON, where it is there and not empty.
    fn json(&self, name: &str) -> Result<Option<Value>, ProtocolError> {
        let text = self.get(name).trim();
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |error: serde_json::Error| {
            ProtocolError::with_text(
                ErrorCode::BadField,
                format!("`{name}` is not JSON: {error}"),
            )
        };
        serde_json::from_str(text).map(Some).map_err(wrong)
    }

    /// As a number, where it is there and not empty.
    fn number(&self, name: &str) -> Result<Option<u64>, ProtocolError> {
        let text = self.get(name).trim();
        if text.is_empty() {
            return Ok(None);
        }
        let wrong =
            |_| ProtocolError::with_text(ErrorCode::BadField, format!("`{name}` is not a number"));
        text.parse().map(Some).map_err(wrong)
    }

    /// The named fields as a JSON object, as they are.
    fn object(&self, names: &[&str]) -> Value {
        let fields = names
            .iter()
            .map(|name| ((*name).to_owned(), self.get(name).into()));
        Value::Object(fields.collect::<Map<_, _>>())
    }
}

/// A JSON object of the fields that are there.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let there = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}

/// Answers a request to a page: `path` is below `/dashboard`.
pub(super) async fn answer(
    visit: &mut Visit<'_>,
    path: &str,
    query: &str,
) -> Response<Full<Bytes>> {
    let parts: Result<Vec<String>, ErrorCode> = path
        .split('/')
        .filter(|part| !part.is_empty())
        .map(|part| percent_decode(part).map(std::borrow::Cow::into_owned))
        .collect();
    let parts = parts.unwrap_or_default();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if let ["assets", version, name] = *parts {
        return asset(version, name);
    }
    let is_get = *effective_method(&visit.method) == Method::GET;
    let is_known = paths::ROUTES.iter().any(|(method, pattern)| {
        *method == if is_get { "GET" } else { "POST" } && fits(pattern, &parts)
    });
    if let Err(error) = visit.identify().await {
        return failed(visit, &error.into()).await;
    }
    if !is_known || !(is_get || visit.method == Method::POST) {
        return failed(visit, &ErrorCode::NotFound.into()).await;
    }
    let query = Form::parse(query.as_bytes());
    let shown = match is_get {
        true => show(visit, &parts, &query, &Again::default())
            .await
            .map(|page| html(StatusCode::OK, page.into_string())),
        false => send(visit, &parts, &query).await,
    };
    match shown {
        Ok(response) => response,
        Err(refusal) if refusal.status == StatusCode::UNAUTHORIZED && visit.who.is_none() => {
            let here = if is_get {
                paths::to(&parts)
            } else {
                String::new()
            };
            redirect(&paths::with_query(
                &paths::to(&["login"]),
                &[("next", &here)],
            ))
        }
        Err(refusal) => failed(visit, &refusal).await,
    }
}

/// Whether a path is one of a pattern.
fn fits(pattern: &str, parts: &[&str]) -> bool {
    let wanted: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    wanted.len() == parts.len()
        && wanted
            .iter()
            .zip(parts)
            .all(|(wanted, part)| wanted.starts_with('{') || wanted == part)
}

fn asset(version: &str, name: &str) -> Response<Full<Bytes>> {
    let Some(asset) = assets::find(name) else {
        return Refusal::from(ErrorCode::NotFound).into_response();
    };
    let mut response = Response::new(Full::new(Bytes::from_static(asset.bytes)));
    let kept = match version == assets::version() {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(asset.content_type),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(kept));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", assets::version())) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// The page of a path.
async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    match parts {
        ["login" | "email", ..] | ["signup" | "setup" | "verify" | "forgot" | "reset" | "join"] => {
            door::show(visit, parts, query, again).await
        }
        ["teams", ..] | ["audit"] => teams::show(visit, parts, query, again).await,
        ["account", ..] | ["accounts"] | ["connections"] => {
            account::show(visit, parts, query, again).await
        }
        ["apps", _, "channels" | "usage", ..] => traffic::show(visit, parts, query, again).await,
        ["apps", _, "webhooks", ..] => webhooks::show(visit, parts, query, again).await,
        ["apps", _, "push", ..] => push::show(visit, parts, query, again).await,
        _ => apps::show(visit, parts, query, again).await,
    }
}

/// Does what a form asks for. Where that is refused, its page is shown again with the reason.
async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let form = Form::parse(&visit.body);
    visit.check_form(Some(form.get("csrf")))?;
    let sent = match parts {
        ["login" | "email", ..]
        | ["signup" | "setup" | "verify" | "forgot" | "reset" | "join" | "logout"] => {
            door::send(visit, parts, &form).await
        }
        ["apps", _, "webhooks", ..] => webhooks::send(visit, parts, &form).await,
        ["apps", _, "push", ..] => push::send(visit, parts, &form).await,
        ["apps", _] | ["apps", _, "settings"] => settings::send(visit, parts, &form).await,
        ["teams", _, "apps"] | ["apps", ..] => apps::send(visit, parts, &form).await,
        ["teams", ..] => teams::send(visit, parts, &form).await,
        _ => account::send(visit, parts, &form).await,
    };
    let refusal = match sent {
        Ok(Next::Go(to, say)) => {
            visit.say(&say);
            return Ok(redirect(&to));
        }
        Ok(Next::Page(page)) => return Ok(html(StatusCode::OK, page.into_string())),
        Err(refusal) => refusal,
    };
    if refusal.status == StatusCode::UNAUTHORIZED && visit.who.is_none() && !door::is_at(parts) {
        return Err(refusal);
    }
    let status = refusal.status;
    let again = Again::of(parts, form, &refusal.error.text);
    let page = show(visit, &form_page(parts), query, &again).await?;
    Ok(html(status, page.into_string()))
}

/// The page that has the form that is sent to a path.
fn form_page<'p>(parts: &[&'p str]) -> Vec<&'p str> {
    let kept = |count: usize| parts.iter().take(count).copied().collect();
    match *parts {
        ["teams", _, "apps"] => vec!["apps"],
        ["apps", app, "signing-keys", ..] => vec!["apps", app, "keys"],
        ["apps", _, "webhooks" | "channels", _, ..] => kept(4),
        ["apps", _, "push", "jobs", _, ..] => kept(5),
        ["apps", _, "keys" | "push" | "webhooks", ..] => kept(3),
        ["apps" | "teams", ..] => kept(2),
        ["account", "sessions", ..] => vec!["account", "sessions"],
        ["account", "totp", "confirm"] => vec!["account", "totp"],
        ["account", "email", ..] => vec!["account"],
        ["account", _, ..] => vec!["account", "security"],
        ["accounts" | "connections", ..] => kept(1),
        _ => parts.to_vec(),
    }
}

/// The page that says why there is no other.
async fn failed(visit: &mut Visit<'_>, refusal: &Refusal) -> Response<Full<Bytes>> {
    let shell = visit
        .shell(None, None, &Again::default())
        .await
        .unwrap_or_default();
    let text = sentence(&refusal.error.text);
    let page = face::error::render(&shell, refusal.status.as_u16(), &text);
    html(refusal.status, page.into_string())
}

impl Visit<'_> {
    /// Has the next page say something at its top.
    fn say(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let text: String = text.chars().take(FLASH_CHARS_MAX).collect();
        let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
        self.set_cookie(FLASH, &encoded, FLASH_S);
    }

    /// What is to be said, this once.
    fn said(&mut self) -> Option<Flash> {
        let encoded = self.cookie(FLASH)?.to_owned();
        self.set_cookie(FLASH, "", 0);
        let pair = format!("text={encoded}");
        let (_, text) = form_urlencoded::parse(pair.as_bytes()).next()?;
        Some(Flash::Done(text.into_owned()))
    }

    /// A call for whoever looks, with a JSON body or none; the answer's body.
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        query: &str,
        body: Option<Value>,
    ) -> Result<Value, Refusal> {
        let body = body
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        let answer = self.call(&method, path, query, body.into()).await?;
        serde_json::from_slice(&answer.body).map_err(|_| ErrorCode::Internal.into())
    }

    async fn get(&mut self, path: &str) -> Result<Value, Refusal> {
        self.ask(Method::GET, path, "", None).await
    }

    async fn post(&mut self, path: &str, body: Value) -> Result<Value, Refusal> {
        self.ask(Method::POST, path, "", Some(body)).await
    }

    async fn delete(&mut self, path: &str) -> Result<Value, Refusal> {
        self.ask(Method::DELETE, path, "", None).await
    }

    async fn patch(&mut self, path: &str, body: Value) -> Result<Value, Refusal> {
        self.ask(Method::PATCH, path, "", Some(body)).await
    }

    /// What is around a page about an app or a team, or neither.
    async fn shell(
        &mut self,
        app: Option<&str>,
        team: Option<&str>,
        again: &Again,
    ) -> Result<Shell, Refusal> {
        let flash = self.said();
        let mut shell = Shell {
            csrf: self.form_token(),
            sent: again.sent.clone(),
            flash: again.problem.clone().map(Flash::Failed).or(flash),
            now_ms: self.server.now().unix_ms,
            has_webhooks: self.settings.serves("/admin/apps/{app}/webhooks"),
            has_push: self.settings.serves("/admin/apps/{app}/push/providers"),
            ..Shell::default()
        };
        let Some(who) = self.who.clone() else {
            return Ok(shell);
        };
        shell.account = Some(Person {
            name: who.name.clone(),
            email: who.email.clone(),
            is_operator: who.is_operator,
        });
        let teams = self.get("/teams").await?;
        shell.teams = fill(&teams["teams"]);
        let apps = self.get("/apps").await?;
        shell.apps = fill(&apps["apps"]);
        let of_app = app.and_then(|app| {
            let all = apps["apps"].as_array()?;
            all.iter().find(|one| one["id"] == app)?["team"]
                .as_str()
                .map(str::to_owned)
        });
        shell.app = app.and_then(|app| shell.apps.iter().find(|one| one.id == app).cloned());
        let team = team.map(str::to_owned).or(of_app);
        shell.standing = self.standing(team.as_deref());
        shell.team = team.and_then(|team| shell.teams.iter().find(|one| one.id == team).cloned());
        Ok(shell)
    }
}

/// A view's part from an answer; the default where it does not fit, which no answer of this server does.
fn fill<T: DeserializeOwned + Default>(value: &Value) -> T {
    T::deserialize(value).unwrap_or_else(|error| {
        log::error!(error:%; "a page cannot be filled");
        T::default()
    })
}

/// The path of a call: parts below `/dashboard/api`.
fn call(parts: &[&str]) -> String {
    let path = paths::to(parts);
    path.strip_prefix(paths::BASE).unwrap_or(&path).to_owned()
}

/// Named things that are in a list.
fn named(list: &[Named], id: &str) -> String {
    list.iter()
        .find(|one| one.id == id)
        .map_or_else(|| id.to_owned(), |one| one.name.clone())
}

/// The answer to a question that has none.
fn nothing() -> Value {
    json!({})
}
