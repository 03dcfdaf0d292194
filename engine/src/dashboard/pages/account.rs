//! Pages about one's own account, and of whoever runs the server: accounts and connections.

use hyper::Method;
use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::error::ErrorCode;

use super::{Again, Form, Next, call, fill, nothing, object, teams};
use crate::dashboard::face::pages::{account, server};
use crate::dashboard::face::paths;
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

pub(super) async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    match *parts {
        ["account"] => {
            let me = visit.get("/me").await?;
            let shell = visit.shell(None, None, again).await?;
            let text = |name: &str| me[name].as_str().unwrap_or_default().to_owned();
            let view = account::Profile {
                name: text("name"),
                email: text("email"),
                is_verified: me["verified"] == true,
                pending_email: me["pendingEmail"].as_str().map(str::to_owned),
                has_second_factor: me["secondFactor"] == true,
            };
            Ok(account::profile(&shell, &view))
        }
        ["account", "sessions"] => {
            let all = visit.get("/me/sessions").await?;
            let shell = visit.shell(None, None, again).await?;
            let sessions: Vec<account::Session> = fill(&all["sessions"]);
            Ok(account::sessions(&shell, &sessions))
        }
        ["account", "totp"] => enrolment(visit, again).await,
        ["account", ..] => {
            let me = visit.get("/me").await?;
            let log = teams::log(visit, "/me/audit", &Form::default()).await?;
            let shell = visit.shell(None, None, again).await?;
            let view = account::Security {
                has_second_factor: me["secondFactor"] == true,
                codes_left: me["recoveryCodesLeft"].as_u64(),
                entries: log.entries,
            };
            Ok(account::security(&shell, &view))
        }
        ["accounts"] => {
            let all = visit
                .ask(Method::GET, "/accounts", &page_of(query, &[]), None)
                .await?;
            let shell = visit.shell(None, None, again).await?;
            Ok(server::accounts(&shell, &fill(&all)))
        }
        ["connections"] => {
            let asked = page_of(query, &["app", "clientId"]);
            let found = visit.ask(Method::GET, "/connections", &asked, None).await?;
            let shell = visit.shell(None, None, again).await?;
            let mut view: server::Connections = fill(&found);
            query.get("app").clone_into(&mut view.app);
            query.get("clientId").clone_into(&mut view.client_id);
            Ok(server::connections(&shell, &view))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// The query of a page of a list, with these filters.
fn page_of(query: &Form, filters: &[&str]) -> String {
    let mut asked = form_urlencoded::Serializer::new(String::new());
    asked.append_pair("limit", "50");
    for name in ["cursor"].iter().chain(filters) {
        if !query.get(name).is_empty() {
            asked.append_pair(name, query.get(name));
        }
    }
    asked.finish()
}

/// The page that shows the secret of a second factor which is being set up.
async fn enrolment(visit: &mut Visit<'_>, again: &Again) -> Result<Markup, Refusal> {
    let id = visit
        .who
        .as_ref()
        .map(|who| who.account.clone())
        .ok_or(ErrorCode::NoCredentials)?;
    let pending = visit
        .accounts
        .ask(move |keeper| keeper.pending_second_factor(&id))
        .await?;
    let pending = pending.ok_or(ErrorCode::NotFound)?;
    let shell = visit.shell(None, None, again).await?;
    let view = account::Enrolment {
        secret: pending.secret,
        url: pending.url,
    };
    Ok(account::enrolment(&shell, &view))
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let go = |parts: &[&str], say: &str| Ok(Next::Go(paths::to(parts), say.to_owned()));
    let security = ["account", "security"];
    match *parts {
        ["account"] => {
            visit.patch("/me", form.object(&["name"])).await?;
            go(&["account"], "Your name is saved.")
        }
        ["account", "email"] => {
            let code = form.text("code");
            let body = object([
                ("email", Some(form.get("email").into())),
                ("password", Some(form.get("password").into())),
                ("code", code),
            ]);
            visit.post("/me/email", body).await?;
            go(
                &["account"],
                "A letter is on its way to the new address. Open its link.",
            )
        }
        ["account", "email", "keep"] => {
            visit.delete("/me/email").await?;
            go(&["account"], "Your address stays as it is.")
        }
        ["account", "sessions", "end-others"] => {
            visit.delete("/me/sessions").await?;
            go(&["account", "sessions"], "All other sessions have ended.")
        }
        ["account", "sessions", id, "end"] => {
            visit.delete(&call(&["me", "sessions", id])).await?;
            go(&["account", "sessions"], "The session has ended.")
        }
        ["account", "password"] => {
            visit
                .post("/me/password", form.object(&["current", "password"]))
                .await?;
            go(
                &security,
                "The password is changed; all other sessions have ended.",
            )
        }
        ["account", "totp"] => {
            visit.post("/me/totp", form.object(&["password"])).await?;
            enrolment(visit, &Again::default()).await.map(Next::Page)
        }
        ["account", "totp", "confirm"] => {
            let made = visit
                .post("/me/totp/confirm", form.object(&["code"]))
                .await?;
            recovery_codes(visit, &made).await
        }
        ["account", "totp", "remove"] => {
            visit
                .post("/me/totp/remove", form.object(&["password"]))
                .await?;
            go(&security, "The second factor is removed.")
        }
        ["account", "recovery-codes"] => {
            let made = visit
                .post("/me/recovery-codes", form.object(&["password"]))
                .await?;
            recovery_codes(visit, &made).await
        }
        ["accounts", id, verb @ ("disable" | "enable")] => {
            let patch = json!({ "disabled": verb == "disable" });
            visit.patch(&call(&["accounts", id]), patch).await?;
            go(&["accounts"], "The account is changed.")
        }
        ["accounts", id, "reset"] => {
            let made = visit
                .post(&call(&["accounts", id, "reset"]), nothing())
                .await?;
            let link = made["link"].as_str().unwrap_or_default();
            go(
                &["accounts"],
                &format!("Give them this link, good once and for an hour: {link}"),
            )
        }
        ["connections", id, "end"] => {
            visit.delete(&call(&["connections", id])).await?;
            go(&["connections"], "The connection is ended.")
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

async fn recovery_codes(visit: &mut Visit<'_>, made: &Value) -> Result<Next, Refusal> {
    let codes: Vec<String> = fill(&made["recoveryCodes"]);
    let shell = visit.shell(None, None, &Again::default()).await?;
    Ok(Next::Page(account::recovery_codes(&shell, &codes)))
}
