//! Sessions: who is signed in, where, and until when.

use std::net::IpAddr;

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use shardwire_proto::account::access::{Bearer, Purpose as TokenPurpose};
use shardwire_proto::account::permissions::Role;
use shardwire_proto::account::session::{Tokens, Verdict};
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::documents::{Account, Document, Member, Session};
use super::keeper::{Keeper, Kept, Result, add, make_id, record};
use crate::records::Change;
use crate::sys;

/// Characters of a browser's description that are kept.
const AGENT_CHARS_MAX: usize = 160;

/// Sessions of an account: with one more the oldest ends.
const SESSIONS_MAX: usize = 50;

/// Where a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// What the browser calls itself.
    pub agent: String,
}

/// What a session gives out. Holds tokens: not `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSession {
    pub access: String,
    pub refresh: String,
    /// Seconds until it ends without use.
    pub idle_s: u64,
    pub session: String,
}

/// What a refresh token is answered with. Holds tokens: not `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// The next one.
    Rotated(NewSession),
    /// It has been replaced a moment ago: an access token alone.
    Repeated { access: String, session: String },
}

impl Refreshed {
    /// The access token.
    #[must_use]
    pub fn access(&self) -> &str {
        match self {
            Self::Rotated(session) => &session.access,
            Self::Repeated { access, .. } => access,
        }
    }
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub account: String,
    pub session: String,
    pub email: String,
    pub name: String,
    pub is_operator: bool,
    pub has_second_factor: bool,
    /// Teams with the role there.
    pub roles: Vec<(String, Role)>,
}

impl Principal {
    /// Their role in a team.
    #[must_use]
    pub fn role_in(&self, team: &str) -> Option<Role> {
        self.roles
            .iter()
            .find(|(own, _)| own == team)
            .map(|(_, role)| *role)
    }
}

/// What somebody is told about a session of theirs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    pub id: String,
    pub created_ms: u64,
    pub seen_ms: u64,
    pub expires_ms: u64,
    pub address: String,
    pub agent: String,
    /// The one that asks.
    pub current: bool,
}

impl Keeper {
    /// Begins a session of an account that has shown who it is.
    pub(super) fn begin_session(
        &mut self,
        kept: &mut Kept<Account>,
        client: &Client,
    ) -> Result<NewSession> {
        let now_ms = self.now();
        let (id, secret) = (make_id("s"), random_token());
        let tokens = Tokens::begin(&secret, now_ms);
        let ends_ms = tokens.ends_ms(&self.rules);
        let session = Session {
            account: kept.id.clone(),
            tokens,
            seen_ms: now_ms,
            address: client.address.to_canonical().to_string(),
            agent: client
                .agent
                .chars()
                .filter(|c| !c.is_control())
                .take(AGENT_CHARS_MAX)
                .collect(),
        };
        let mut record = record(id.clone(), &session, &[("account", &kept.id)], now_ms)?;
        record.expires_ms = Some(ends_ms);
        kept.document.last_login_ms = Some(now_ms);
        let mut changes = vec![kept.put()?, add::<Session>(record)];
        // In the order of their beginnings.
        let others = self.labelled::<Session>("account", &kept.id)?;
        let surplus = (others.len() + 1).saturating_sub(SESSIONS_MAX);
        let oldest = others.into_iter().take(surplus);
        changes.extend(oldest.map(|session| Change::delete(Session::KIND, session.id)));
        self.apply(&changes)?;
        self.give_out(kept.id.clone(), id, &secret, ends_ms)
    }

    fn give_out(
        &self,
        account: String,
        session: String,
        secret: &str,
        ends_ms: u64,
    ) -> Result<NewSession> {
        let now_ms = self.now();
        Ok(NewSession {
            access: self.access_token(account, &session)?,
            refresh: format!("{session}.{secret}"),
            idle_s: ends_ms.saturating_sub(now_ms) / 1000,
            session,
        })
    }

    fn access_token(&self, account: String, session: &str) -> Result<String> {
        let session = session.to_owned();
        let bearer = Bearer { account, session };
        let life_s = self.config.access_s;
        self.secrets
            .signer
            .sign(&bearer, TokenPurpose::Access, life_s, self.now())
    }

    /// Replaces a refresh token.
    ///
    /// # Errors
    /// 40102 where it is none, 40142 where its session has ended; one that comes again ends its session.
    pub fn refresh(&mut self, refresh: &str, client: &Client) -> Result<Refreshed> {
        let (id, secret) = refresh.split_once('.').ok_or(ErrorCode::BadToken)?;
        let mut kept = self.find::<Session>(id)?.ok_or(ErrorCode::TokenExpired)?;
        let now_ms = self.now();
        let account = kept.document.account.clone();
        match kept.document.tokens.judge(secret, &self.rules, now_ms) {
            Verdict::Rotate => {
                let next = random_token();
                let tokens = kept.document.tokens.rotate(&next, now_ms);
                let ends_ms = tokens.ends_ms(&self.rules);
                kept.document.tokens = tokens;
                kept.document.seen_ms = now_ms;
                kept.document.address = client.address.to_canonical().to_string();
                let put = kept.put_until(ends_ms)?;
                self.apply(&[put])?;
                self.give_out(account, id.to_owned(), &next, ends_ms)
                    .map(Refreshed::Rotated)
            }
            Verdict::Repeat => Ok(Refreshed::Repeated {
                access: self.access_token(account, id)?,
                session: id.to_owned(),
            }),
            Verdict::Over => Err(ErrorCode::TokenExpired.into()),
            Verdict::Reused => {
                self.apply(&[Change::delete(Session::KIND, id)])?;
                let email = self
                    .find::<Account>(&account)?
                    .map(|kept| kept.document.email);
                let email = email.unwrap_or_default();
                self.note_event(
                    Some(account),
                    &email,
                    client,
                    "session ended: its token came twice",
                    401,
                );
                let text = "this session was ended, as its token came twice; sign in again";
                Err(ProtocolError::with_text(ErrorCode::BadToken, text))
            }
        }
    }

    /// Who an access token speaks for, as things are at this moment.
    ///
    /// # Errors
    /// 40102 and 40142 as for any token, also when the session or the account has ended.
    pub fn principal(&mut self, access: &str) -> Result<Principal> {
        let now_ms = self.now();
        let bearer = self
            .secrets
            .signer
            .verify(access, TokenPurpose::Access, now_ms)?;
        let over = || ProtocolError::from(ErrorCode::TokenExpired);
        let session = self.find::<Session>(&bearer.session)?.ok_or_else(over)?;
        let kept = self.find::<Account>(&bearer.account)?.ok_or_else(over)?;
        let account = kept.document;
        if session.document.account != kept.id || account.is_disabled {
            return Err(over());
        }
        let members = self.labelled::<Member>("account", &kept.id)?;
        Ok(Principal {
            account: kept.id,
            session: session.id,
            email: account.email,
            name: account.name,
            is_operator: account.is_operator,
            has_second_factor: account.second_factor.is_some(),
            roles: members
                .into_iter()
                .map(|member| (member.document.team, member.document.role))
                .collect(),
        })
    }

    /// An account's sessions, the latest first.
    pub fn sessions(&mut self, account: &str, current: &str) -> Result<Vec<SessionInfo>> {
        let mut found = self.labelled::<Session>("account", account)?;
        found.sort_by_key(|kept| std::cmp::Reverse(kept.document.seen_ms));
        let info = |kept: Kept<Session>| SessionInfo {
            current: kept.id == current,
            created_ms: kept.document.tokens.created_ms(),
            seen_ms: kept.document.seen_ms,
            expires_ms: kept.document.tokens.ends_ms(&self.rules),
            address: kept.document.address,
            agent: kept.document.agent,
            id: kept.id,
        };
        Ok(found.into_iter().map(info).collect())
    }

    /// Ends one session of an account.
    pub fn end_session(&mut self, account: &str, session: &str) -> Result<()> {
        let kept = self.get::<Session>(session)?;
        if kept.document.account != account {
            return Err(ErrorCode::NotFound.into());
        }
        self.apply(&[Change::delete(Session::KIND, session)])
    }

    /// Ends all sessions of an account but one.
    pub fn end_other_sessions(&mut self, account: &str, session: &str) -> Result<()> {
        let ends = self.session_ends(account, Some(session))?;
        self.apply(&ends)
    }
}

/// 256 random bits.
fn random_token() -> String {
    BASE64URL_NOPAD.encode(&sys::random_32())
}
