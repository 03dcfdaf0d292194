//! Pages about push: providers, devices, and what is sent to them.

use hyper::Method;
use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::{Again, Form, Next, call, fill, object};
use crate::dashboard::face::pages::push;
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
        ["apps", app, "push"] => all(visit, app, query, again).await,
        ["apps", app, "push", "jobs", id] => {
            let job = visit.get(&call(&["apps", app, "push", "jobs", id])).await?;
            let shell = visit.shell(Some(app), None, again).await?;
            Ok(push::job(&shell, &fill(&job)))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

async fn all(
    visit: &mut Visit<'_>,
    app: &str,
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    let path = |last: &str| call(&["apps", app, "push", last]);
    let providers = visit.get(&path("providers")).await?;
    let stats = visit.get(&path("stats")).await?;
    let jobs = visit
        .ask(Method::GET, &path("jobs"), "limit=20", None)
        .await?;
    let mut asked = form_urlencoded::Serializer::new(String::new());
    asked.append_pair("limit", "50");
    for (name, ours) in [("memberId", "member"), ("cursor", "cursor")] {
        if !query.get(ours).is_empty() {
            asked.append_pair(name, query.get(ours));
        }
    }
    let devices = visit
        .ask(Method::GET, &path("subscriptions"), &asked.finish(), None)
        .await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let view = push::Push {
        providers: fill(&providers["providers"]),
        stats: fill(&stats["stats"]),
        jobs: fill(&jobs["jobs"]),
        subscriptions: fill(&devices["subscriptions"]),
        cursor: devices["cursor"].as_str().map(str::to_owned),
        member: query.get("member").to_owned(),
    };
    Ok(push::render(&shell, &view))
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let ["apps", app, "push", ref rest @ ..] = *parts else {
        return Err(ErrorCode::NotFound.into());
    };
    let go = |say: &str| Ok(Next::Go(paths::to(&["apps", app, "push"]), say.to_owned()));
    match *rest {
        ["send"] => {
            let content = object([
                ("title", form.text("title")),
                ("body", form.text("body")),
                ("url", form.text("url")),
            ]);
            let (call_name, to) = match form.get("target") {
                "member" => ("send", object([("memberId", form.text("to"))])),
                "channel" => ("broadcast", object([("channel", form.text("to"))])),
                _ => ("broadcast", json!({ "broadcast": true })),
            };
            let mut body = to;
            body["payload"] = content;
            let job = visit
                .post(&call(&["apps", app, "push", call_name]), body)
                .await?;
            match job["jobId"].as_str() {
                Some(id) => Ok(Next::Go(
                    paths::to(&["apps", app, "push", "jobs", id]),
                    String::new(),
                )),
                None => go("It is sent."),
            }
        }
        ["providers", platform] => {
            let body = provider(platform, form)?;
            visit
                .ask(
                    Method::PUT,
                    &call(&["apps", app, "push", "providers", platform]),
                    "",
                    Some(body),
                )
                .await?;
            go("The provider is set.")
        }
        ["providers", platform, "delete"] => {
            visit
                .delete(&call(&["apps", app, "push", "providers", platform]))
                .await?;
            go("The provider is removed.")
        }
        ["subscriptions", id, "delete"] => {
            visit
                .delete(&call(&["apps", app, "push", "subscriptions", id]))
                .await?;
            go("The device gets nothing more.")
        }
        ["jobs", id, "cancel"] => {
            visit
                .delete(&call(&["apps", app, "push", "jobs", id]))
                .await?;
            let there = paths::to(&["apps", app, "push", "jobs", id]);
            Ok(Next::Go(there, "The job is cancelled.".to_owned()))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// What gives access to a provider, as the admin API wants it.
fn provider(platform: &str, form: &Form) -> Result<Value, ProtocolError> {
    Ok(match platform {
        "web" => object([("subject", form.text("subject"))]),
        "fcm" => object([("serviceAccount", form.json("service_account")?)]),
        "apns" => object([
            ("topic", form.text("topic")),
            ("keyId", form.text("key_id")),
            ("teamId", form.text("team_id")),
            ("key", form.text("key")),
            ("sandbox", form.text("sandbox").map(|_| true.into())),
        ]),
        _ => return Err(ErrorCode::NotFound.into()),
    })
}
