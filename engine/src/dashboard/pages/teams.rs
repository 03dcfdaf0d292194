//! Pages about teams and the audit log.

use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::{Again, Form, Next, call, fill, nothing};
use crate::dashboard::face::pages::{audit, teams};
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
        ["teams"] => {
            let all = visit.get("/teams").await?;
            let shell = visit.shell(None, None, again).await?;
            let view = teams::Teams {
                teams: fill(&all["teams"]),
            };
            Ok(teams::list(&shell, &view))
        }
        ["teams", team] => one(visit, team, again).await,
        ["teams", team, "audit"] => {
            let path = call(&["teams", team, "audit"]);
            let view = log(visit, &path, query).await?;
            let shell = visit.shell(None, Some(team), again).await?;
            Ok(audit::render(&shell, &view, false))
        }
        ["audit"] => {
            let view = log(visit, "/audit", query).await?;
            let shell = visit.shell(None, None, again).await?;
            Ok(audit::render(&shell, &view, true))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

async fn one(visit: &mut Visit<'_>, team: &str, again: &Again) -> Result<Markup, Refusal> {
    let info = visit.get(&call(&["teams", team])).await?;
    let members = visit.get(&call(&["teams", team, "members"])).await?;
    let shell = visit.shell(None, Some(team), again).await?;
    let invitations = match shell.can("GET", "/teams/{team}/invitations") {
        true => visit.get(&call(&["teams", team, "invitations"])).await?,
        false => Value::Null,
    };
    let view = teams::TeamView {
        team: fill(&info),
        members: fill(&members["members"]),
        invitations: invitations.get("invitations").map(fill).unwrap_or_default(),
        own_id: visit
            .who
            .as_ref()
            .map_or_else(String::new, |who| who.account.clone()),
        link: None,
    };
    Ok(teams::one(&shell, &view))
}

/// A part of an audit log.
pub(super) async fn log(
    visit: &mut Visit<'_>,
    path: &str,
    query: &Form,
) -> Result<audit::Audit, Refusal> {
    let query: String = form_urlencoded::Serializer::new(String::new())
        .append_pair("limit", "50")
        .append_pair("cursor", query.get("cursor"))
        .finish();
    let page = visit.ask(hyper::Method::GET, path, &query, None).await?;
    Ok(fill(&page))
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let go = |parts: &[&str], say: &str| Ok(Next::Go(paths::to(parts), say.to_owned()));
    match *parts {
        ["teams"] => {
            let team = visit.post("/teams", form.object(&["name"])).await?;
            go(
                &["teams", team["id"].as_str().unwrap_or_default()],
                "The team is there.",
            )
        }
        ["teams", team] => {
            visit
                .patch(&call(&["teams", team]), form.object(&["name"]))
                .await?;
            go(&["teams", team], "The team has its name.")
        }
        ["teams", team, "members", id] => {
            visit
                .patch(
                    &call(&["teams", team, "members", id]),
                    form.object(&["role"]),
                )
                .await?;
            go(&["teams", team], "The role is changed, and holds at once.")
        }
        ["teams", team, "members", id, "remove"] => {
            visit.delete(&call(&["teams", team, "members", id])).await?;
            go(&["teams", team], "They are not in the team any more.")
        }
        ["teams", team, "invitations"] => {
            visit
                .post(
                    &call(&["teams", team, "invitations"]),
                    form.object(&["email", "role"]),
                )
                .await?;
            let way = match visit.config.mail.smtp_host.is_empty() {
                true => "The invitation is in the server's log, as no mail server is set.",
                false => "The invitation is on its way.",
            };
            go(&["teams", team], way)
        }
        ["teams", team, "invitations", id, "remove"] => {
            visit
                .delete(&call(&["teams", team, "invitations", id]))
                .await?;
            go(&["teams", team], "The invitation is taken back.")
        }
        ["teams", team, "leave"] => {
            visit
                .post(&call(&["teams", team, "leave"]), nothing())
                .await?;
            go(&["teams"], "You have left the team.")
        }
        ["teams", team, "transfer"] => {
            let body = json!({ "account": form.get("account") });
            visit
                .post(&call(&["teams", team, "transfer"]), body)
                .await?;
            go(&["teams", team], "The team has another owner.")
        }
        ["teams", team, "delete"] => {
            let name = visit.get(&call(&["teams", team])).await?["name"].take();
            if name != form.get("confirm") {
                let text = "`confirm`: that is not the team's name; nothing was deleted";
                return Err(ProtocolError::with_text(ErrorCode::BadField, text).into());
            }
            visit.delete(&call(&["teams", team])).await?;
            go(&["teams"], "The team is deleted.")
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}
