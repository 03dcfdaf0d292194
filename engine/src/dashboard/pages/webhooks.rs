//! Pages about webhooks: endpoints, what was delivered to them, and what could not be.

use hyper::Method;
use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::error::ErrorCode;

use super::{Again, Form, Next, call, fill, nothing, object};
use crate::dashboard::face::pages::keys::Secret;
use crate::dashboard::face::pages::webhooks;
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
        ["apps", app, "webhooks"] => list(visit, app, query, None, again).await,
        ["apps", app, "webhooks", id] => one(visit, app, id, None, again).await,
        _ => Err(ErrorCode::NotFound.into()),
    }
}

async fn list(
    visit: &mut Visit<'_>,
    app: &str,
    query: &Form,
    secret: Option<Secret>,
    again: &Again,
) -> Result<Markup, Refusal> {
    let asked = form_urlencoded::Serializer::new(String::new())
        .append_pair("cursor", query.get("cursor"))
        .finish();
    let path = call(&["apps", app, "webhooks"]);
    let found = visit.ask(Method::GET, &path, &asked, None).await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let view = webhooks::Webhooks {
        webhooks: fill(&found["webhooks"]),
        cursor: found["cursor"].as_str().map(str::to_owned),
        secret,
    };
    Ok(webhooks::list(&shell, &view))
}

async fn one(
    visit: &mut Visit<'_>,
    app: &str,
    id: &str,
    secret: Option<Secret>,
    again: &Again,
) -> Result<Markup, Refusal> {
    let path = |last: &str| format!("{}{last}", call(&["apps", app, "webhooks", id]));
    let webhook = visit.get(&path("")).await?;
    let deliveries = visit.get(&path("/deliveries")).await?;
    let dead = visit.get(&path("/dead-letters")).await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let view = webhooks::WebhookView {
        webhook: fill(&webhook),
        attempts: fill(&deliveries["deliveries"]),
        behind: deliveries["behind"].as_u64(),
        failures_in_a_row: deliveries["failuresInARow"].as_u64(),
        dead_letters: fill(&dead["deadLetters"]),
        secret,
    };
    Ok(webhooks::one(&shell, &view))
}

/// What the form for an endpoint says, as the admin API wants it.
fn fields(form: &Form) -> Result<Value, Refusal> {
    let batch = object([
        ("maxEvents", form.number("max_events")?.map(Value::from)),
        ("maxMs", form.number("max_ms")?.map(Value::from)),
    ]);
    Ok(object([
        ("url", form.text("url")),
        ("name", Some(form.get("name").into())),
        ("events", Some(form.every("events").into())),
        ("channels", Some(form.lines("channels").into())),
        ("batch", Some(batch)),
        ("concurrency", form.number("concurrency")?.map(Value::from)),
        ("names", form.text("names")),
    ]))
}

fn secret_of(made: &Value) -> Option<Secret> {
    Some(Secret {
        label: "Signing secret of the webhook".to_owned(),
        value: made["secret"].as_str()?.to_owned(),
        is_client_key: false,
    })
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let ["apps", app, "webhooks", ref rest @ ..] = *parts else {
        return Err(ErrorCode::NotFound.into());
    };
    let [id, ref verbs @ ..] = *rest else {
        let made = visit
            .post(&call(&["apps", app, "webhooks"]), fields(form)?)
            .await?;
        let page = list(
            visit,
            app,
            &Form::default(),
            secret_of(&made),
            &Again::default(),
        )
        .await?;
        return Ok(Next::Page(page));
    };
    let path = call(&["apps", app, "webhooks", id]);
    let here = paths::to(&["apps", app, "webhooks", id]);
    let go = |say: String| Ok(Next::Go(here.clone(), say));
    match *verbs {
        [] => {
            visit.patch(&path, fields(form)?).await?;
            go("The webhook is saved.".into())
        }
        [verb @ ("enable" | "disable")] => {
            visit
                .patch(&path, json!({ "enabled": verb == "enable" }))
                .await?;
            go(format!("The webhook is {verb}d."))
        }
        ["delete"] => {
            visit.delete(&path).await?;
            Ok(Next::Go(
                paths::to(&["apps", app, "webhooks"]),
                "The webhook is deleted.".into(),
            ))
        }
        ["rotate"] => {
            let body = object([("overlapSeconds", form.number("overlap_s")?.map(Value::from))]);
            let made = visit.post(&format!("{path}/rotate"), body).await?;
            one(visit, app, id, secret_of(&made), &Again::default())
                .await
                .map(Next::Page)
        }
        ["test"] => {
            let attempt = visit.post(&format!("{path}/test"), nothing()).await?;
            let came_of_it = match (attempt["status"].as_u64(), attempt["error"].as_str()) {
                (Some(status), _) => format!("answered {status}"),
                (None, Some(error)) => error.to_owned(),
                (None, None) => "did not answer".to_owned(),
            };
            go(format!(
                "A test event was sent; the endpoint: {came_of_it}."
            ))
        }
        ["dead-letters", "replay"] => {
            let done = visit
                .post(&format!("{path}/dead-letters"), nothing())
                .await?;
            go(format!(
                "{} dead letters are sent again.",
                done["queued"].as_u64().unwrap_or(0)
            ))
        }
        ["dead-letters", "purge"] => {
            let done = visit.delete(&format!("{path}/dead-letters")).await?;
            go(format!(
                "{} dead letters are gone.",
                done["purged"].as_u64().unwrap_or(0)
            ))
        }
        ["dead-letters", item, "replay"] => {
            let path = call(&["apps", app, "webhooks", id, "dead-letters", item, "replay"]);
            visit.post(&path, nothing()).await?;
            go("The dead letter is sent again.".into())
        }
        ["dead-letters", item, "purge"] => {
            let path = call(&["apps", app, "webhooks", id, "dead-letters", item]);
            visit.delete(&path).await?;
            go("The dead letter is gone.".into())
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}
