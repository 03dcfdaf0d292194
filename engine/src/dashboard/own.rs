//! Calls that are about people, and the JSON API's way to all of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shardwire_proto::account::permissions::Role;
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::calls::{Answer, Call};
use super::visit::{CODE, Visit};
use crate::http::{Refusal, json as json_response};
use crate::side::accounts::{LoginStep, NewAddress, NewSession, Principal, Refreshed};

/// Entries of a part of the audit log when the request gives no `limit`, and at most.
const AUDIT_PAGE: usize = 100;
/// Seconds that the second step of a sign-in may take.
const CODE_S: u64 = 300;

/// Answers a request to the JSON API: `path` is below `/dashboard/api`.
pub(super) async fn api(visit: &mut Visit<'_>, path: &str, query: &str) -> Response<Full<Bytes>> {
    let answered = async {
        visit.identify().await?;
        visit.check_call()?;
        let (method, body) = (visit.method.clone(), visit.body.clone());
        visit.call(&method, path, query, body).await
    };
    match answered.await {
        Ok(answer) => {
            let mut response = json_response(answer.body.to_vec());
            *response.status_mut() = answer.status;
            response
        }
        Err(refusal) => refusal.into_response(),
    }
}

#[derive(Deserialize)]
struct Login {
    email: String,
    password: String,
}

#[derive(Deserialize)]
struct Code {
    code: String,
    /// Where the browser keeps none.
    challenge: Option<String>,
}

#[derive(Deserialize)]
struct SignUp {
    email: String,
    name: String,
    password: String,
}

#[derive(Deserialize)]
struct WithToken {
    token: String,
    #[serde(default)]
    email: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    password: String,
}

#[derive(Deserialize)]
struct Email {
    email: String,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Password {
    password: String,
}

#[derive(Deserialize)]
struct ChangePassword {
    current: String,
    password: String,
}

#[derive(Deserialize)]
struct Refresh {
    refresh: String,
}

#[derive(Deserialize)]
struct To {
    account: String,
}

#[derive(Deserialize)]
struct ToTeam {
    team: String,
}

#[derive(Deserialize)]
struct NewRole {
    role: Role,
}

#[derive(Deserialize)]
struct Invite {
    email: String,
    role: Role,
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ProtocolError> {
    serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() {
            ErrorCode::BadField
        } else {
            ErrorCode::NotJson
        };
        ProtocolError::with_text(code, error.to_string())
    })
}

fn done(body: &impl serde::Serialize) -> Answer {
    of_status(StatusCode::OK, body)
}

fn made(body: &impl serde::Serialize) -> Answer {
    of_status(StatusCode::CREATED, body)
}

fn of_status(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    Answer {
        status,
        body: serde_json::to_vec(body).unwrap_or_default().into(),
    }
}

/// Answers a call that is about people; none where it is the admin API's.
pub(super) async fn answer(
    visit: &mut Visit<'_>,
    call: &Call<'_>,
    body: &[u8],
) -> Result<Option<Answer>, Refusal> {
    let answered = match (call.row.method, call.row.path) {
        (_, path) if path.starts_with("/me") || path == "/logout" => me(visit, call, body).await?,
        (_, path) if path == "/teams" || path.starts_with("/teams/") => {
            team(visit, call, body).await?
        }
        ("GET", "/apps") => apps(visit).await?,
        ("POST", "/apps/{app}/transfer") => {
            let (app, to) = (call.parameter("app").to_owned(), read::<ToTeam>(body)?.team);
            let who = principal(visit)?;
            // Into a team in which they could make one.
            if !who.is_operator && !matches!(who.role_in(&to), Some(Role::Owner | Role::Admin)) {
                let text = "you have to be an owner or admin of the other team too";
                return Err(ProtocolError::with_text(ErrorCode::NotPermitted, text).into());
            }
            visit
                .accounts
                .ask(move |keeper| keeper.give_app(&app, &to))
                .await?;
            done(&json!({}))
        }
        ("DELETE", "/apps/{app}") => {
            let answer = visit
                .pass_on(&Method::DELETE, call.path, call.query, Bytes::new())
                .await?;
            let app = call.parameter("app").to_owned();
            visit
                .accounts
                .ask(move |keeper| keeper.forget_app(&app))
                .await?;
            answer
        }
        ("GET", "/apps/{app}/plan") => plan(visit, call.parameter("app"))?,
        (
            "POST",
            "/login" | "/login/code" | "/refresh" | "/signup" | "/setup" | "/verify" | "/forgot"
            | "/reset" | "/join" | "/email/confirm" | "/email/undo",
        ) => door(visit, call, body).await?,
        _ => return Ok(None),
    };
    Ok(Some(answered))
}

fn principal(visit: &Visit<'_>) -> Result<Principal, ProtocolError> {
    visit
        .who
        .clone()
        .ok_or_else(|| ErrorCode::NoCredentials.into())
}

/// What shows who somebody is.
async fn door(
    visit: &mut Visit<'_>,
    call: &Call<'_>,
    body: &[u8],
) -> Result<Answer, ProtocolError> {
    let (accounts, client) = (visit.accounts, visit.client.clone());
    match call.row.path {
        "/login" => {
            let login: Login = read(body)?;
            match accounts.login(&login.email, login.password, client).await? {
                LoginStep::Done(session) => Ok(signed_in(visit, &session)),
                LoginStep::CodeWanted(challenge) => {
                    visit.set_cookie(CODE, &challenge, CODE_S);
                    Ok(done(&json!({ "codeWanted": true, "challenge": challenge })))
                }
                LoginStep::Unverified => {
                    let text = "show first that the address is yours: the link is in your mail";
                    Err(ProtocolError::with_text(ErrorCode::Disabled, text))
                }
            }
        }
        "/login/code" => {
            let code: Code = read(body)?;
            let challenge = code
                .challenge
                .or_else(|| visit.cookie(CODE).map(str::to_owned));
            let challenge = challenge.ok_or_else(|| {
                ProtocolError::with_text(
                    ErrorCode::NoCredentials,
                    "begin with address and password",
                )
            })?;
            let entered = code.code;
            let session = accounts
                .ask(move |keeper| keeper.login_code(&challenge, &entered, &client))
                .await?;
            visit.set_cookie(CODE, "", 0);
            Ok(signed_in(visit, &session))
        }
        "/refresh" => {
            let given = read::<Refresh>(body).ok().map(|refresh| refresh.refresh);
            let is_given = given.is_some();
            let refresh = given
                .or_else(|| visit.refresh_cookie())
                .ok_or(ErrorCode::NoCredentials)?;
            let refreshed = accounts
                .ask(move |keeper| keeper.refresh(&refresh, &client))
                .await;
            match refreshed {
                Ok(Refreshed::Rotated(session)) => {
                    let mut answer =
                        json!({ "accessToken": session.access, "expiresInS": accounts.access_s() });
                    if is_given {
                        answer["refreshToken"] = session.refresh.into();
                    } else {
                        visit.remember(&session);
                    }
                    Ok(done(&answer))
                }
                Ok(Refreshed::Repeated { access, .. }) => Ok(done(
                    &json!({ "accessToken": access, "expiresInS": accounts.access_s() }),
                )),
                Err(error) => {
                    if !is_given && error.code != ErrorCode::Unavailable {
                        visit.forget_session();
                    }
                    Err(error)
                }
            }
        }
        "/signup" => {
            let new: SignUp = read(body)?;
            accounts
                .sign_up(&new.email, new.name, new.password, client)
                .await?;
            Ok(done(&json!({ "mailSent": true })))
        }
        "/setup" => {
            let new: WithToken = read(body)?;
            let session = accounts
                .set_up(new.token, new.email, new.name, new.password, client)
                .await?;
            Ok(signed_in(visit, &session))
        }
        "/verify" => {
            let token = read::<WithToken>(body)?.token;
            accounts
                .ask(move |keeper| keeper.verify_address(&token, &client))
                .await?;
            Ok(done(&json!({})))
        }
        "/forgot" => {
            let email = read::<Email>(body)?.email;
            accounts
                .ask(move |keeper| keeper.forgot(&email, &client))
                .await?;
            Ok(done(&json!({ "mailSent": true })))
        }
        "/reset" => {
            let new: WithToken = read(body)?;
            accounts.reset(new.token, new.password, client).await?;
            visit.forget_session();
            Ok(done(&json!({})))
        }
        "/email/confirm" => {
            let token = read::<WithToken>(body)?.token;
            accounts
                .ask(move |keeper| keeper.confirm_address(&token, &client))
                .await?;
            Ok(done(&json!({})))
        }
        "/email/undo" => {
            let token = read::<WithToken>(body)?.token;
            let link = accounts
                .ask(move |keeper| keeper.undo_address(&token, &client))
                .await?;
            visit.forget_session();
            Ok(done(&json!({ "link": link })))
        }
        _ => {
            let new: WithToken = read(body)?;
            let session = accounts
                .join(new.token, new.name, new.password, client)
                .await?;
            Ok(signed_in(visit, &session))
        }
    }
}

fn signed_in(visit: &mut Visit<'_>, session: &NewSession) -> Answer {
    visit.remember(session);
    done(&json!({
        "accessToken": session.access,
        "expiresInS": visit.accounts.access_s(),
        "formToken": visit.accounts.form_token(&session.session),
    }))
}

/// One's own account.
async fn me(visit: &mut Visit<'_>, call: &Call<'_>, body: &[u8]) -> Result<Answer, ProtocolError> {
    let (accounts, client, who) = (visit.accounts, visit.client.clone(), principal(visit)?);
    let (account, session) = (who.account.clone(), who.session.clone());
    match (call.row.method, call.row.path) {
        ("POST", "/logout") => {
            accounts
                .ask(move |keeper| keeper.end_session(&account, &session))
                .await?;
            visit.forget_session();
            Ok(done(&json!({})))
        }
        ("GET", "/me") => {
            let (info, codes, pending) = accounts
                .ask(move |keeper| {
                    let codes = keeper.recovery_codes_left(&account)?;
                    let pending = keeper.pending_address(&account)?;
                    Ok((keeper.me(&account)?, codes, pending))
                })
                .await?;
            let mut answer = serde_json::to_value(info).map_err(|_| ErrorCode::Internal)?;
            answer["recoveryCodesLeft"] = codes.into();
            answer["pendingEmail"] = pending.into();
            answer["formToken"] = accounts.form_token(&who.session).into();
            Ok(done(&answer))
        }
        ("PATCH", "/me") => {
            let name = read::<Name>(body)?.name;
            Ok(done(
                &accounts
                    .ask(move |keeper| keeper.rename(&account, &name))
                    .await?,
            ))
        }
        ("POST", "/me/password") => {
            let new: ChangePassword = read(body)?;
            accounts
                .change_password(&who, new.current, new.password, client)
                .await?;
            Ok(done(&json!({})))
        }
        ("POST", "/me/email") => {
            let new: NewAddress = read(body)?;
            accounts.change_address(&who, new, client).await?;
            Ok(done(&json!({ "mailSent": true })))
        }
        ("DELETE", "/me/email") => {
            accounts
                .ask(move |keeper| keeper.keep_address(&account))
                .await?;
            Ok(done(&json!({})))
        }
        ("GET", "/me/sessions") => {
            let sessions = accounts
                .ask(move |keeper| keeper.sessions(&account, &session))
                .await?;
            Ok(done(&json!({ "sessions": sessions })))
        }
        ("DELETE", "/me/sessions") => {
            accounts
                .ask(move |keeper| keeper.end_other_sessions(&account, &session))
                .await?;
            Ok(done(&json!({})))
        }
        ("DELETE", "/me/sessions/{id}") => {
            let id = call.parameter("id").to_owned();
            if id == who.session {
                visit.forget_session();
            }
            accounts
                .ask(move |keeper| keeper.end_session(&account, &id))
                .await?;
            Ok(done(&json!({})))
        }
        ("GET", "/me/audit") => audit(visit, call, "account", account).await,
        ("POST", "/me/totp") => {
            let password = read::<Password>(body)?.password;
            accounts.confirm(account.clone(), password, client).await?;
            let enrolment = accounts
                .ask(move |keeper| keeper.begin_second_factor(&account))
                .await?;
            Ok(made(&enrolment))
        }
        ("POST", "/me/totp/confirm") => {
            let code = read::<Code>(body)?.code;
            let codes = accounts
                .ask(move |keeper| keeper.confirm_second_factor(&account, &code))
                .await?;
            Ok(made(&json!({ "recoveryCodes": codes })))
        }
        ("POST", "/me/totp/remove") => {
            let password = read::<Password>(body)?.password;
            accounts.confirm(account.clone(), password, client).await?;
            accounts
                .ask(move |keeper| keeper.remove_second_factor(&account))
                .await?;
            Ok(done(&json!({})))
        }
        ("POST", "/me/recovery-codes") => {
            let password = read::<Password>(body)?.password;
            accounts.confirm(account.clone(), password, client).await?;
            let codes = accounts
                .ask(move |keeper| keeper.renew_recovery_codes(&account))
                .await?;
            Ok(made(&json!({ "recoveryCodes": codes })))
        }
        ("POST", "/me/join") => {
            let token = read::<WithToken>(body)?.token;
            Ok(made(
                &accounts
                    .ask(move |keeper| keeper.join(&token, &who))
                    .await?,
            ))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// Teams.
async fn team(visit: &mut Visit<'_>, call: &Call<'_>, body: &[u8]) -> Result<Answer, Refusal> {
    let (accounts, who) = (visit.accounts, principal(visit)?);
    let (team, id) = (
        call.parameter("team").to_owned(),
        call.parameter("id").to_owned(),
    );
    let own = who.role_in(&team).filter(|_| !who.is_operator);
    Ok(match (call.row.method, call.row.path) {
        ("GET", "/teams") => {
            let teams = accounts.ask(move |keeper| keeper.teams(&who)).await?;
            done(&json!({ "teams": teams }))
        }
        ("POST", "/teams") => {
            let name = read::<Name>(body)?.name;
            made(
                &accounts
                    .ask(move |keeper| keeper.create_team(&name, &who.account))
                    .await?,
            )
        }
        ("GET", "/teams/{team}") => {
            let role = who.role_in(&team);
            done(&accounts.ask(move |keeper| keeper.team(&team, role)).await?)
        }
        ("PATCH", "/teams/{team}") => {
            let name = read::<Name>(body)?.name;
            done(
                &accounts
                    .ask(move |keeper| keeper.rename_team(&team, &name))
                    .await?,
            )
        }
        ("DELETE", "/teams/{team}") => {
            accounts
                .ask(move |keeper| keeper.delete_team(&team))
                .await?;
            done(&json!({}))
        }
        ("GET", "/teams/{team}/members") => {
            let members = accounts.ask(move |keeper| keeper.members(&team)).await?;
            done(&json!({ "members": members }))
        }
        ("PATCH", "/teams/{team}/members/{id}") => {
            let role = read::<NewRole>(body)?.role;
            accounts
                .ask(move |keeper| keeper.set_role(&team, &id, role, own))
                .await?;
            done(&json!({}))
        }
        ("DELETE", "/teams/{team}/members/{id}") => {
            accounts
                .ask(move |keeper| keeper.remove_member(&team, &id, own))
                .await?;
            done(&json!({}))
        }
        ("POST", "/teams/{team}/leave") => {
            accounts
                .ask(move |keeper| keeper.remove_member(&team, &who.account, None))
                .await?;
            done(&json!({}))
        }
        ("POST", "/teams/{team}/transfer") => {
            let to = read::<To>(body)?.account;
            accounts
                .ask(move |keeper| keeper.transfer_team(&team, &who.account, &to))
                .await?;
            done(&json!({}))
        }
        ("GET", "/teams/{team}/invitations") => {
            let invitations = accounts
                .ask(move |keeper| keeper.invitations(&team))
                .await?;
            done(&json!({ "invitations": invitations }))
        }
        ("POST", "/teams/{team}/invitations") => {
            let invite: Invite = read(body)?;
            made(
                &accounts
                    .ask(move |keeper| keeper.invite(&team, &invite.email, invite.role, &who))
                    .await?,
            )
        }
        ("DELETE", "/teams/{team}/invitations/{id}") => {
            accounts
                .ask(move |keeper| keeper.withdraw(&team, &id))
                .await?;
            done(&json!({}))
        }
        ("GET", "/teams/{team}/audit") => audit(visit, call, "team", team).await?,
        ("POST", "/teams/{team}/apps") => {
            let known = team.clone();
            accounts
                .ask(move |keeper| keeper.team(&known, None))
                .await?;
            let body = Bytes::copy_from_slice(body);
            let answer = visit.pass_on(&Method::POST, "/apps", "", body).await?;
            let app: Value = read(&answer.body)?;
            let app = app["id"].as_str().unwrap_or_default().to_owned();
            accounts
                .ask(move |keeper| keeper.give_app(&app, &team))
                .await?;
            answer
        }
        _ => return Err(ErrorCode::NotFound.into()),
    })
}

/// A part of the audit log, of a label.
async fn audit(
    visit: &Visit<'_>,
    call: &Call<'_>,
    label: &'static str,
    value: String,
) -> Result<Answer, ProtocolError> {
    let mut parameters: BTreeMap<String, String> = form_urlencoded::parse(call.query.as_bytes())
        .into_owned()
        .collect();
    let limit = parameters
        .get("limit")
        .and_then(|text| text.parse::<usize>().ok());
    let limit = limit.unwrap_or(AUDIT_PAGE).clamp(1, AUDIT_PAGE);
    let cursor = parameters
        .remove("cursor")
        .filter(|cursor| !cursor.is_empty());
    let page = visit
        .accounts
        .ask(move |keeper| keeper.audit((label, &value), cursor.as_deref(), limit));
    Ok(done(&page.await?))
}

/// Apps and credentials as they are at this moment.
fn snapshot(visit: &Visit<'_>) -> Result<Arc<Registry>, ProtocolError> {
    let registry = visit.server.settings.registry.as_ref();
    Ok(registry.ok_or(ErrorCode::Unavailable)?.snapshot())
}

/// Apps of the teams that somebody is in; of whoever runs the server all.
async fn apps(visit: &Visit<'_>) -> Result<Answer, ProtocolError> {
    let who = principal(visit)?;
    let snapshot = snapshot(visit)?;
    let ids: Vec<String> = snapshot.apps().map(|app| app.id.clone()).collect();
    let teams = visit
        .accounts
        .ask(move |keeper| keeper.teams_of(&ids))
        .await?;
    let mut shown = Vec::new();
    for (app, team) in snapshot.apps().zip(teams) {
        let role = team.as_deref().and_then(|team| who.role_in(team));
        if !who.is_operator && role.is_none() {
            continue;
        }
        let mut app = serde_json::to_value(&**app).map_err(|_| ErrorCode::Internal)?;
        app["team"] = team.into();
        shown.push(app);
    }
    Ok(done(&json!({ "apps": shown })))
}

/// The plan that limits an app; an empty object where none does.
fn plan(visit: &Visit<'_>, app: &str) -> Result<Answer, ProtocolError> {
    let snapshot = snapshot(visit)?;
    let app = snapshot.app(app).ok_or(ErrorCode::NotFound)?;
    Ok(match snapshot.plan_of(app) {
        Some(plan) => done(&**plan),
        None => done(&json!({})),
    })
}
