//! Pages about what goes on in an app: channels and usage.

use hyper::Method;
use maud::Markup;
use shardwire_proto::error::ErrorCode;

use super::{Again, Form, call, fill};
use crate::dashboard::face::pages::{channels, usage};
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

/// Messages and members on a channel's page.
const SHOWN: &str = "limit=50";

pub(super) async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    match *parts {
        ["apps", app, "channels"] => {
            let mut asked = form_urlencoded::Serializer::new(String::new());
            asked.append_pair("limit", "50");
            for name in ["prefix", "cursor"] {
                if !query.get(name).is_empty() {
                    asked.append_pair(name, query.get(name));
                }
            }
            let path = call(&["apps", app, "channels"]);
            let found = visit.ask(Method::GET, &path, &asked.finish(), None).await?;
            let shell = visit.shell(Some(app), None, again).await?;
            let view = channels::Channels {
                channels: fill(&found["channels"]),
                cursor: found["cursor"].as_str().map(str::to_owned),
                prefix: query.get("prefix").to_owned(),
            };
            Ok(channels::render(&shell, &view))
        }
        ["apps", app, "channels", channel] => {
            let path = |last: &[&str]| {
                let mut parts = vec!["apps", app, "channels", channel];
                parts.extend_from_slice(last);
                call(&parts)
            };
            let state = visit.get(&path(&[])).await?;
            let members = visit
                .ask(Method::GET, &path(&["presence"]), SHOWN, None)
                .await?;
            // Nothing is kept of some channels.
            let history = visit
                .ask(Method::GET, &path(&["messages"]), SHOWN, None)
                .await;
            let shell = visit.shell(Some(app), None, again).await?;
            let view = channels::Channel {
                state: fill(&state),
                presence: fill(&members),
                history: history.ok().as_ref().map(fill).unwrap_or_default(),
            };
            Ok(channels::one(&shell, &view))
        }
        ["apps", app, "usage"] => {
            let step = match query.get("step") {
                step @ ("minute" | "hour" | "day") => step,
                _ => "hour",
            };
            let path = call(&["apps", app, "usage"]);
            let usage = visit
                .ask(Method::GET, &path, &format!("step={step}"), None)
                .await?;
            let shell = visit.shell(Some(app), None, again).await?;
            let plan = match shell.can("GET", "/apps/{app}/plan") {
                true => Some(visit.get(&call(&["apps", app, "plan"])).await?),
                false => None,
            };
            let view = usage::UsageView {
                usage: fill(&usage),
                plan: plan
                    .filter(|plan| plan["id"].is_string())
                    .as_ref()
                    .map(fill),
                push_this_month: None,
                webhooks: None,
            };
            Ok(usage::render(&shell, &view))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}
