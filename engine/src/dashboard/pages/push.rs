//! Pages about an app's push notifications.

use hyper::Method;
use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::{Again, Form, Next, call, fill, object};
use crate::dashboard::face::pages::push;
use crate::dashboard::face::{Errors, paths};
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

pub(super) async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    match *parts {
        ["apps", app, "push"] => overview(visit, app, query, again).await,
        ["apps", app, "push", "jobs", id] => {
            let job = visit.get(&call(&["apps", app, "push", "jobs", id])).await?;
            let shell = visit.shell(Some(app), None, again).await?;
            Ok(push::job(&shell, &fill(&job)))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

async fn overview(
    visit: &mut Visit<'_>,
    app: &str,
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    let path = |last: &str| call(&["apps", app, "push", last]);
    let stats = visit.get(&path("stats")).await?;
    let jobs = visit
        .ask(Method::GET, &path("jobs"), "limit=10", None)
        .await?;
    let providers = visit.get(&path("providers")).await?;
    let mut asked = form_urlencoded::Serializer::new(String::new());
    asked.append_pair("limit", "25");
    for (field, name) in [("member", "memberId"), ("cursor", "cursor")] {
        if !query.get(field).is_empty() {
            asked.append_pair(name, query.get(field));
        }
    }
    let devices = visit
        .ask(Method::GET, &path("subscriptions"), &asked.finish(), None)
        .await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let typed = |name: &str| again.form.get(name).to_owned();
    let view = push::Push {
        providers: fill(&providers["providers"]),
        stats: fill(&stats["stats"]),
        jobs: fill(&jobs["jobs"]),
        subscriptions: fill(&devices["subscriptions"]),
        cursor: devices["cursor"].as_str().map(str::to_owned),
        member: query.get("member").to_owned(),
        form: push::SendForm {
            target: typed("target"),
            to: typed("to"),
            title: typed("title"),
            body: typed("body"),
            url: typed("url"),
        },
        errors: Errors::new(),
    };
    Ok(push::render(&shell, &view))
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    app: &str,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let path = |last: &[&str]| {
        let mut all = vec!["apps", app, "push"];
        all.extend_from_slice(last);
        call(&all)
    };
    let say = match *parts {
        ["send"] => {
            let (last, body) = notification(form)?;
            let job = visit.post(&path(&[last]), body).await?;
            let id = job["jobId"].as_str().unwrap_or_default();
            let page = paths::to(&["apps", app, "push", "jobs", id]);
            return Ok(Next::Go(page, "The send has begun.".to_owned()));
        }
        ["providers", platform, "delete"] => {
            visit.delete(&path(&["providers", platform])).await?;
            "The provider is removed."
        }
        ["providers", platform] => {
            let body = provider(platform, form)?;
            let path = path(&["providers", platform]);
            visit.ask(Method::PUT, &path, "", Some(body)).await?;
            "The provider is set up."
        }
        ["subscriptions", id, "delete"] => {
            visit.delete(&path(&["subscriptions", id])).await?;
            "The device is forgotten."
        }
        ["jobs", id, "cancel"] => {
            visit.delete(&path(&["jobs", id])).await?;
            "The send is cancelled."
        }
        _ => return Err(ErrorCode::NotFound.into()),
    };
    Ok(Next::Go(paths::to(&["apps", app, "push"]), say.to_owned()))
}

/// The call that sends it, and its body.
fn notification(form: &Form) -> Result<(&'static str, Value), Refusal> {
    let payload = object([
        ("title", form.text("title")),
        ("body", form.text("body")),
        ("url", form.text("url")),
    ]);
    let to = form.text("to");
    let needed = |to: Option<Value>| {
        let text = "say to whom: a member's id or a channel";
        to.ok_or_else(|| Refusal::from(ProtocolError::with_text(ErrorCode::BadField, text)))
    };
    Ok(match form.get("target") {
        "all" => ("broadcast", json!({ "payload": payload })),
        "channel" => (
            "broadcast",
            json!({ "channel": needed(to)?, "payload": payload }),
        ),
        _ => (
            "send",
            json!({ "memberId": needed(to)?, "payload": payload }),
        ),
    })
}

/// What a provider is set up with.
fn provider(platform: &str, form: &Form) -> Result<Value, Refusal> {
    Ok(match platform {
        "web" => object([("subject", form.text("subject"))]),
        "fcm" => object([("serviceAccount", form.json("service_account")?)]),
        _ => object([
            ("topic", form.text("topic")),
            ("keyId", form.text("key_id")),
            ("teamId", form.text("team_id")),
            ("key", form.text("key")),
            ("sandbox", Some((form.get("sandbox") == "1").into())),
        ]),
    })
}
