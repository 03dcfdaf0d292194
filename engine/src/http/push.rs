//! The push calls (contract section 6, D22): who may make them, and what they ask of the push service.
//!
//! Not here: bodies (`shardwire_proto::push::request`) and what is done about them (`side::push`). Invariant: a client
//! key and a token change nobody's devices but those that contract D22 lets them.

use hyper::HeaderMap;
use shardwire_proto::auth::capability::Ops;
use shardwire_proto::auth::key::KeyKind;
use shardwire_proto::auth::{Caller, Credential};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::push::request::{
    ListQuery, parse_enrolment, parse_register, parse_send, parse_unregister,
};

use crate::side::push::{PushHandle, Question};

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushCall {
    Register,
    Unregister,
    Delete,
    AddChannel,
    RemoveChannel,
    Send,
    Broadcast,
    VapidKey,
    Config,
    List,
    Stats,
    Jobs,
    Job,
    CancelJob,
}

impl PushCall {
    /// Whether the call changes devices of one member.
    fn is_of_member(self) -> bool {
        matches!(
            self,
            Self::Register
                | Self::Unregister
                | Self::Delete
                | Self::AddChannel
                | Self::RemoveChannel
        )
    }

    /// Refuses before the body is read what no body could make right.
    pub(super) fn check_right(self, who: &Caller) -> Result<(), ProtocolError> {
        if matches!(self, Self::VapidKey | Self::Config) {
            return Ok(());
        }
        let grants = &who.capabilities;
        let is_admin = grants.permits_somewhere(Ops::PUSH_ADMIN);
        if let Credential::Key(key) = &who.credential
            && key.kind != KeyKind::Server
        {
            let is_open = who.app.settings.push_open_members.unwrap_or_default();
            let may = self == Self::Register || (self.is_of_member() && is_open);
            if !may {
                return Err(not_permitted("this call needs a server key or a token"));
            }
        }
        let permitted = match self {
            Self::Send | Self::Broadcast => is_admin,
            _ if self.is_of_member() => is_admin || grants.permits_somewhere(Ops::PUSH_SUBSCRIBE),
            _ => grants.permits_everywhere(Ops::PUSH_ADMIN),
        };
        match permitted {
            true => Ok(()),
            false => Err(not_permitted("push is not permitted")),
        }
    }

    /// Reads the request and asks.
    pub(super) async fn answer(
        self,
        push: Option<&PushHandle>,
        who: &Caller,
        id: &str,
        query: &str,
        body: &[u8],
        key: Option<&str>,
    ) -> Result<Vec<u8>, ProtocolError> {
        let push = push.ok_or(ErrorCode::Unavailable)?;
        let question = self.question(who, id, query, body, key)?;
        push.ask(&who.app.id, question).await
    }

    fn question(
        self,
        who: &Caller,
        id: &str,
        query: &str,
        body: &[u8],
        key: Option<&str>,
    ) -> Result<Question, ProtocolError> {
        Ok(match self {
            Self::Register => {
                let registration = parse_register(body)?;
                check_member(who, &registration.member)?;
                if registration.channels_named {
                    for channel in &registration.channels {
                        check_channel(who, channel)?;
                    }
                }
                Question::Register(registration.into())
            }
            Self::Unregister => {
                let who_goes = parse_unregister(body)?;
                check_member(who, &who_goes.member)?;
                Question::Unregister(who_goes)
            }
            Self::Delete => Question::Delete {
                id: id.to_owned(),
                of: own_member(who)?.map(str::to_owned),
            },
            Self::AddChannel | Self::RemoveChannel => {
                let enrolment = parse_enrolment(body)?;
                check_member(who, &enrolment.member)?;
                check_channel(who, &enrolment.channel)?;
                match self {
                    Self::AddChannel => Question::AddChannel(enrolment),
                    _ => Question::RemoveChannel(enrolment),
                }
            }
            Self::Send | Self::Broadcast => {
                let request = parse_send(body, self == Self::Broadcast)?;
                let permitted = match &request.audience.channel {
                    Some(channel) => who.permits(channel, Ops::PUSH_ADMIN),
                    None => who.capabilities.permits_everywhere(Ops::PUSH_ADMIN),
                };
                if !permitted {
                    return Err(ErrorCode::NotPermitted.into());
                }
                Question::Send {
                    request: request.into(),
                    key: key.map(str::to_owned),
                }
            }
            Self::VapidKey => Question::VapidKey,
            Self::Config => Question::Config,
            Self::List => Question::List(ListQuery::parse(query)?),
            Self::Stats => Question::Stats,
            Self::Jobs => Question::Jobs(ListQuery::parse(query)?),
            Self::Job => Question::Job(id.to_owned()),
            Self::CancelJob => Question::CancelJob(id.to_owned()),
        })
    }
}

/// Refuses a request that names another app than its credentials (contract D22).
pub(super) fn check_app(
    who: &Caller,
    headers: &HeaderMap,
    query: &str,
) -> Result<(), ProtocolError> {
    let other = || not_permitted("the credentials belong to another app");
    if let Some(named) = headers.get("x-app-id")
        && !named.is_empty()
        && named.as_bytes() != who.app.id.as_bytes()
    {
        return Err(other());
    }
    for pair in shardwire_proto::url::pairs(query) {
        let (name, value) = pair?;
        if name == "appId" && !value.is_empty() && *value != *who.app.id {
            return Err(other());
        }
    }
    Ok(())
}

/// Whose devices alone a caller may change; `None`: anybody's.
fn own_member(who: &Caller) -> Result<Option<&str>, ProtocolError> {
    if matches!(who.credential, Credential::Key(_))
        || who.capabilities.permits_everywhere(Ops::PUSH_ADMIN)
    {
        return Ok(None);
    }
    match who.credential.client_id() {
        Some(own) => Ok(Some(own)),
        None => Err(not_permitted(
            "the token names nobody whose devices these could be",
        )),
    }
}

fn check_member(who: &Caller, member: &str) -> Result<(), ProtocolError> {
    match own_member(who)? {
        Some(own) if own != member => Err(not_permitted("`memberId` is not the token's `sub`")),
        _ => Ok(()),
    }
}

fn check_channel(who: &Caller, channel: &str) -> Result<(), ProtocolError> {
    if who.permits(channel, Ops::PUSH_SUBSCRIBE) || who.permits(channel, Ops::PUSH_ADMIN) {
        return Ok(());
    }
    Err(ErrorCode::NotPermitted.into())
}

fn not_permitted(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::NotPermitted, text)
}
