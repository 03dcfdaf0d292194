//! Pages about an app's webhooks.

use hyper::Method;
use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::error::ErrorCode;

use super::{Again, Form, Next, call, fill, object};
use crate::dashboard::face::Errors;
use crate::dashboard::face::pages::keys::Secret;
use crate::dashboard::face::pages::webhooks::{self, Batch, Webhook};
use crate::dashboard::face::paths;
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

/// Dead letters on the page of a webhook.
const SHOWN: &str = "limit=50";

pub(super) async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    match *parts {
        ["apps", app, "webhooks"] => list(visit, app, query, again, None).await,
        ["apps", app, "webhooks", id] => one(visit, app, id, again, None).await,
        _ => Err(ErrorCode::NotFound.into()),
    }
}

async fn list(
    visit: &mut Visit<'_>,
    app: &str,
    query: &Form,
    again: &Again,
    secret: Option<Secret>,
) -> Result<Markup, Refusal> {
    let mut asked = form_urlencoded::Serializer::new(String::new());
    asked.append_pair("limit", "50");
    if !query.get("cursor").is_empty() {
        asked.append_pair("cursor", query.get("cursor"));
    }
    let path = call(&["apps", app, "webhooks"]);
    let all = visit.ask(Method::GET, &path, &asked.finish(), None).await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let view = webhooks::Webhooks {
        webhooks: fill(&all["webhooks"]),
        cursor: all["cursor"].as_str().map(str::to_owned),
        form: typed(visit, again),
        errors: Errors::new(),
        secret,
    };
    Ok(webhooks::list(&shell, &view))
}

async fn one(
    visit: &mut Visit<'_>,
    app: &str,
    id: &str,
    again: &Again,
    secret: Option<Secret>,
) -> Result<Markup, Refusal> {
    let path = |last: &[&str]| {
        let mut parts = vec!["apps", app, "webhooks", id];
        parts.extend_from_slice(last);
        call(&parts)
    };
    let webhook = visit.get(&path(&[])).await?;
    let log = visit.get(&path(&["deliveries"])).await?;
    let dead = visit
        .ask(Method::GET, &path(&["dead-letters"]), SHOWN, None)
        .await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let view = webhooks::WebhookView {
        webhook: fill(&webhook),
        attempts: fill(&log["deliveries"]),
        behind: log["behind"].as_u64(),
        failures_in_a_row: log["failuresInARow"].as_u64(),
        dead_letters: fill(&dead["deadLetters"]),
        errors: Errors::new(),
        secret,
    };
    Ok(webhooks::one(&shell, &view))
}

/// What the form was sent with, for the page that shows it again.
fn typed(visit: &Visit<'_>, again: &Again) -> Webhook {
    let form = &again.form;
    Webhook {
        url: form.get("url").to_owned(),
        name: form.get("name").to_owned(),
        events: ticked(&visit.body),
        channels: lines(form.get("channels")),
        batch: Batch {
            max_events: form.get("max_events").parse().unwrap_or_default(),
            max_ms: form.get("max_ms").parse().unwrap_or_default(),
        },
        concurrency: form.get("concurrency").parse().unwrap_or_default(),
        names: form.get("names").to_owned(),
        ..Webhook::default()
    }
}

/// The boxes of events that are ticked: a field of a form that comes more than once.
fn ticked(body: &[u8]) -> Vec<String> {
    form_urlencoded::parse(body)
        .filter(|(name, _)| name == "events")
        .map(|(_, value)| value.into_owned())
        .collect()
}

fn lines(text: &str) -> Vec<String> {
    text.split(['\n', ','])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What is to be made or changed.
fn body(visit: &Visit<'_>, form: &Form) -> Result<Value, Refusal> {
    let batch = object([
        ("maxEvents", form.number("max_events")?.map(Value::from)),
        ("maxMs", form.number("max_ms")?.map(Value::from)),
    ]);
    Ok(object([
        ("url", Some(form.get("url").trim().into())),
        ("name", Some(form.get("name").into())),
        ("events", Some(ticked(&visit.body).into())),
        ("channels", Some(lines(form.get("channels")).into())),
        ("batch", Some(batch)),
        ("concurrency", form.number("concurrency")?.map(Value::from)),
        ("names", form.text("names")),
    ]))
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    app: &str,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let go = |parts: &[&str], say: &str| {
        let mut all = vec!["apps", app, "webhooks"];
        all.extend_from_slice(parts);
        Ok(Next::Go(paths::to(&all), say.to_owned()))
    };
    let base = call(&["apps", app, "webhooks"]);
    match *parts {
        [] => {
            let body = body(visit, form)?;
            let made = visit.post(&base, body).await?;
            let query = Form::default();
            let page = list(visit, app, &query, &Again::default(), secret_of(&made)).await?;
            Ok(Next::Page(page))
        }
        [id] => {
            let body = body(visit, form)?;
            visit
                .patch(&call(&["apps", app, "webhooks", id]), body)
                .await?;
            go(&[id], "The webhook is saved.")
        }
        [id, verb @ ("enable" | "disable")] => {
            let patch = json!({ "enabled": verb == "enable" });
            visit
                .patch(&call(&["apps", app, "webhooks", id]), patch)
                .await?;
            let say = match verb {
                "enable" => "The webhook is enabled.",
                _ => "The webhook is disabled. What happens meanwhile is not delivered.",
            };
            go(&[id], say)
        }
        [id, "delete"] => {
            visit.delete(&call(&["apps", app, "webhooks", id])).await?;
            go(&[], "The webhook is deleted.")
        }
        [id, "rotate"] => {
            let body = object([("overlapSeconds", form.number("overlap_s")?.map(Value::from))]);
            let path = call(&["apps", app, "webhooks", id, "rotate"]);
            let made = visit.post(&path, body).await?;
            let page = one(visit, app, id, &Again::default(), secret_of(&made)).await?;
            Ok(Next::Page(page))
        }
        [id, "test"] => {
            let path = call(&["apps", app, "webhooks", id, "test"]);
            let attempt = visit.post(&path, json!({})).await?;
            let say = match (attempt["status"].as_u64(), attempt["error"].as_str()) {
                (Some(status), None) => format!("The endpoint has answered {status}."),
                (_, Some(error)) => format!("The sample was not taken: {error}"),
                (None, None) => "There was no answer.".to_owned(),
            };
            go(&[id], &say)
        }
        [id, "dead-letters", ..] => dead_letters(visit, app, parts)
            .await
            .and_then(|say| go(&[id], &say)),
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// Replays or removes dead letters, all or one; says what came of it.
async fn dead_letters(visit: &mut Visit<'_>, app: &str, parts: &[&str]) -> Result<String, Refusal> {
    let (answer, verb) = match *parts {
        [id, _, "replay"] => {
            let path = call(&["apps", app, "webhooks", id, "dead-letters"]);
            (visit.post(&path, json!({})).await?, "queued")
        }
        [id, _, "purge"] => {
            let path = call(&["apps", app, "webhooks", id, "dead-letters"]);
            (visit.delete(&path).await?, "purged")
        }
        [id, _, item, "replay"] => {
            let path = call(&["apps", app, "webhooks", id, "dead-letters", item, "replay"]);
            (visit.post(&path, json!({})).await?, "queued")
        }
        [id, _, item, "purge"] => {
            let path = call(&["apps", app, "webhooks", id, "dead-letters", item]);
            (visit.delete(&path).await?, "purged")
        }
        _ => return Err(ErrorCode::NotFound.into()),
    };
    let count = answer[verb].as_u64().unwrap_or(0);
    let things = if count == 1 { "delivery" } else { "deliveries" };
    Ok(match verb {
        "queued" => format!("{count} {things} queued again."),
        _ => format!("{count} {things} removed."),
    })
}

fn secret_of(made: &Value) -> Option<Secret> {
    let value = made["secret"].as_str()?.to_owned();
    let name = made["name"].as_str().filter(|name| !name.is_empty());
    let name = name.or(made["url"].as_str()).unwrap_or_default();
    Some(Secret {
        label: format!("Secret of “{name}”"),
        value,
        is_client_key: false,
    })
}
