//! One request: who makes it, by which cookie or token, and whether its form is one of ours.
//!
//! Cookies are for this host and `/dashboard` only, out of scripts' reach (`HttpOnly`) and never sent along from other
//! sites (`SameSite=Strict`); over TLS, or behind a public address of `https`, they are `Secure`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderName, ORIGIN, USER_AGENT};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::Visitor;
use crate::config::Config;
use crate::conn::head::bearer;
use crate::http::{AdminSettings, Pace};
use crate::shard::Server;
use crate::side::accounts::{AccountsHandle, Client, NewSession, Principal, Refreshed};
use crate::sys;

pub(super) const ACCESS: &str = "shardwire_access";
pub(super) const REFRESH: &str = "shardwire_refresh";
/// Between the two steps of a sign-in.
pub(super) const CODE: &str = "shardwire_code";
/// What forms are bound to before there is a session.
pub(super) const FORM: &str = "shardwire_form";
/// What a page after a form has to say.
pub(super) const FLASH: &str = "shardwire_flash";

/// Where to go when both steps of a sign-in are done.
const NEXT: &str = "shardwire_next";

/// Carries the form token of a script's request.
const FORM_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Seconds that a form may be open before somebody signs in.
const FORM_S: u64 = 24 * 3600;

/// A request with all that is known about it.
pub(super) struct Visit<'a> {
    pub(super) server: &'a Server,
    pub(super) settings: &'a AdminSettings,
    pub(super) accounts: &'a AccountsHandle,
    pub(super) pace: &'a Pace,
    pub(super) config: Arc<Config>,
    pub(super) client: Client,
    pub(super) method: Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Bytes,
    /// Whoever is signed in; see [`Visit::identify`].
    pub(super) who: Option<Principal>,
    /// Whether they were known by a cookie, which a browser sends by itself.
    by_cookie: bool,
    cookies: BTreeMap<String, String>,
    /// Header values to be sent.
    pub(super) set_cookies: Vec<String>,
    pub(super) is_secure: bool,
}

impl<'a> Visit<'a> {
    pub(super) fn new(
        server: &'a Server,
        settings: &'a AdminSettings,
        accounts: &'a AccountsHandle,
        pace: &'a Pace,
        visitor: Visitor,
        head: &'a Parts,
        body: Bytes,
    ) -> Self {
        let config = settings.config.borrow().clone();
        let text = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        let cookies = head
            .headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let cookies = cookies.flat_map(|line| line.split(';')).filter_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self {
            server,
            settings,
            accounts,
            pace,
            client: Client {
                address: visitor.peer.ip(),
                agent: text(USER_AGENT).unwrap_or_default().to_owned(),
            },
            method: head.method.clone(),
            headers: &head.headers,
            body,
            who: None,
            by_cookie: false,
            cookies: cookies.collect(),
            set_cookies: Vec::new(),
            is_secure: visitor.is_secure || config.dashboard.public_url.starts_with("https://"),
            config,
        }
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// Sets a cookie for so many seconds; 0 removes it.
    pub(super) fn set_cookie(&mut self, name: &str, value: &str, life_s: u64) {
        let secure = if self.is_secure { "; Secure" } else { "" };
        self.set_cookies.push(format!(
            "{name}={value}; Path=/dashboard; Max-Age={life_s}; HttpOnly; SameSite=Strict{secure}"
        ));
        self.cookies.insert(name.to_owned(), value.to_owned());
    }

    /// Finds out who makes the request: by an access token, or by a refresh token in its stead, which is replaced.
    ///
    /// # Errors
    /// 401xx for a token in `Authorization` that is not good, 50300 when nobody can tell. Bad cookies are removed.
    pub(super) async fn identify(&mut self) -> Result<(), ProtocolError> {
        if let Some(presented) = self.header(AUTHORIZATION) {
            let token = bearer(presented).ok_or(ErrorCode::BadToken)?.to_owned();
            self.who = Some(
                self.accounts
                    .ask(move |keeper| keeper.principal(&token))
                    .await?,
            );
            return Ok(());
        }
        self.by_cookie = true;
        if let Some(access) = self.cookie(ACCESS).map(str::to_owned) {
            match self
                .accounts
                .ask(move |keeper| keeper.principal(&access))
                .await
            {
                Ok(who) => {
                    self.who = Some(who);
                    return Ok(());
                }
                Err(error) if error.code == ErrorCode::Unavailable => return Err(error),
                Err(_) => {}
            }
        }
        let Some(refresh) = self.cookie(REFRESH).map(str::to_owned) else {
            return Ok(());
        };
        let client = self.client.clone();
        let refreshed = self.accounts.ask(move |keeper| {
            let refreshed = keeper.refresh(&refresh, &client)?;
            let who = keeper.principal(refreshed.access())?;
            Ok((refreshed, who))
        });
        match refreshed.await {
            Ok((Refreshed::Rotated(session), who)) => {
                self.remember(&session);
                self.who = Some(who);
            }
            Ok((Refreshed::Repeated { access, .. }, who)) => {
                self.set_cookie(ACCESS, &access, self.accounts.access_s());
                self.who = Some(who);
            }
            Err(error) if error.code == ErrorCode::Unavailable => return Err(error),
            Err(_) => self.forget_session(),
        }
        Ok(())
    }

    /// Has the browser keep a session's tokens.
    pub(super) fn remember(&mut self, session: &NewSession) {
        self.set_cookie(ACCESS, &session.access, self.accounts.access_s());
        self.set_cookie(REFRESH, &session.refresh, session.idle_s);
    }

    pub(super) fn forget_session(&mut self) {
        self.set_cookie(ACCESS, "", 0);
        self.set_cookie(REFRESH, "", 0);
    }

    /// Keeps where to go until the second step of a sign-in is done.
    pub(super) fn keep_next(&mut self, next: &str) {
        let encoded: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        self.set_cookie(NEXT, &encoded, FORM_S);
    }

    /// Where to go.
    pub(super) fn take_next(&mut self) -> Option<String> {
        let pair = format!("next={}", self.cookie(NEXT)?);
        self.set_cookie(NEXT, "", 0);
        let (_, next) = form_urlencoded::parse(pair.as_bytes()).next()?;
        Some(next.into_owned())
    }

    /// The refresh token that the browser keeps.
    pub(super) fn refresh_cookie(&self) -> Option<String> {
        self.cookie(REFRESH).map(str::to_owned)
    }

    /// What forms of the answer carry. Before there is a session they are bound to a cookie of their own.
    pub(super) fn form_token(&mut self) -> String {
        if let Some(who) = &self.who {
            return self.accounts.form_token(&who.session);
        }
        let bound = match self.cookie(FORM) {
            Some(bound) => bound.to_owned(),
            None => {
                let bound = data_encoding::BASE64URL_NOPAD.encode(&sys::random());
                self.set_cookie(FORM, &bound, FORM_S);
                bound
            }
        };
        self.accounts.form_token(&format!("before {bound}"))
    }

    /// Whether a form's token is that of a page that was made for this browser.
    fn is_form_token(&self, token: &str) -> bool {
        match (&self.who, self.cookie(FORM)) {
            (Some(who), _) => self.accounts.is_form_token(&who.session, token),
            (None, Some(bound)) => self
                .accounts
                .is_form_token(&format!("before {bound}"), token),
            (None, None) => false,
        }
    }

    /// Refuses what another site has a browser send.
    fn check_origin(&self) -> Result<(), ProtocolError> {
        let foreign = || {
            ProtocolError::with_text(
                ErrorCode::NotPermitted,
                "the request comes from another site",
            )
        };
        // No page can set this header: where it is there, it is the browser's word.
        match self.header(FETCH_SITE) {
            Some("same-origin") => return Ok(()),
            Some("none") | None => {}
            Some(_) => return Err(foreign()),
        }
        let Some(origin) = self.header(ORIGIN) else {
            return Ok(());
        };
        let host = self.header(HOST).unwrap_or_default();
        let own = origin.split_once("://").map(|(_, host)| host);
        let public = self.config.dashboard.public_url.as_str();
        let is_public =
            !public.is_empty() && (public == origin || public.starts_with(&format!("{origin}/")));
        if own == Some(host) || is_public {
            Ok(())
        } else {
            Err(foreign())
        }
    }

    /// Lets a form change something.
    ///
    /// # Errors
    /// 40300 where it is not one that this server has made for this browser.
    pub(super) fn check_form(&self, token: Option<&str>) -> Result<(), ProtocolError> {
        self.check_origin()?;
        if token.is_some_and(|token| self.is_form_token(token)) {
            return Ok(());
        }
        let text = "the form is too old, or not of this page; load the page again";
        Err(ProtocolError::with_text(ErrorCode::NotPermitted, text))
    }

    /// Lets a call of the API change something: with a token of its own it may, with a cookie it has to show that a page of
    /// ours makes it, and before there is either, it must be JSON, which no form of another site can send.
    ///
    /// # Errors
    /// 40300.
    pub(super) fn check_call(&self) -> Result<(), ProtocolError> {
        if self.method.is_safe() || (self.who.is_some() && !self.by_cookie) {
            return Ok(());
        }
        if self.who.is_some() {
            return self.check_form(self.header(FORM_TOKEN));
        }
        self.check_origin()?;
        let content_type = self.header(hyper::header::CONTENT_TYPE).unwrap_or_default();
        if content_type
            .split(';')
            .next()
            .is_some_and(|kind| kind.trim() == "application/json")
        {
            return Ok(());
        }
        let text = "the body must be application/json";
        Err(ProtocolError::with_text(ErrorCode::NotPermitted, text))
    }

    /// Where browsers find the WebSocket.
    pub(super) fn socket_url(&self) -> String {
        let configured = &self.config.dashboard.socket_url;
        if !configured.is_empty() {
            return configured.clone();
        }
        let host = self.header(HOST).unwrap_or("localhost");
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        // It becomes a part of the content security policy.
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-[]:".contains(c);
        let name = if name.chars().all(is_name) {
            name
        } else {
            "localhost"
        };
        let scheme = if self.config.tls.is_on() { "wss" } else { "ws" };
        format!("{scheme}://{name}:{}", self.settings.listen.port())
    }
}
