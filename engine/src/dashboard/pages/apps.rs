//! Pages about apps: overview, settings, keys, channels, console, usage.

use hyper::Method;
use maud::Markup;
use serde_json::{Value, json};
use shardwire_proto::account::permissions::Role;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::{Again, Form, Next, call, fill, named, nothing, object};
use crate::dashboard::face::pages::{apps, console, keys, overview};
use crate::dashboard::face::{Named, Shell, paths};
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

pub(super) async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    match *parts {
        [] => {
            let mut view = overview::Overview::default();
            let shell = visit.shell(None, None, again).await?;
            view.apps = summaries(visit, &shell).await?;
            if visit.who.as_ref().is_some_and(|who| who.is_operator) {
                view.nodes = fill(&visit.get("/nodes").await?["nodes"]);
            }
            Ok(overview::render(&shell, &view))
        }
        ["apps"] => {
            let shell = visit.shell(None, None, again).await?;
            let view = apps::Apps {
                apps: summaries(visit, &shell).await?,
                teams: teams_to_build_in(visit, &shell),
            };
            Ok(apps::render(&shell, &view))
        }
        ["apps", app] => super::settings::show(visit, app, again).await,
        ["apps", app, "keys"] => keys_page(visit, app, None, again).await,
        ["apps", app, "console"] => {
            visit.get(&call(&["apps", app, "channels"])).await?;
            let shell = visit.shell(Some(app), None, again).await?;
            let view = console::Console {
                ws_url: format!("{}/", visit.socket_url().trim_end_matches('/')),
                channel: query.get("channel").to_owned(),
            };
            Ok(console::render(&shell, &view))
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// Apps of whoever looks, with what they use at this moment.
async fn summaries(visit: &mut Visit<'_>, shell: &Shell) -> Result<Vec<apps::AppSummary>, Refusal> {
    let all = visit.get("/apps").await?;
    let mut found = Vec::new();
    for app in all["apps"].as_array().into_iter().flatten() {
        let id = app["id"].as_str().unwrap_or_default();
        let usage = visit
            .get(&call(&["apps", id, "usage"]))
            .await
            .unwrap_or_default();
        found.push(apps::AppSummary {
            id: id.to_owned(),
            name: app["name"].as_str().unwrap_or_default().to_owned(),
            team: named(&shell.teams, app["team"].as_str().unwrap_or_default()),
            disabled: app["disabled"] == true,
            connections: usage["connections"].as_u64().unwrap_or(0),
            channels: usage["channels"].as_u64().unwrap_or(0),
            messages_today: usage["messagesToday"].as_u64().unwrap_or(0),
        });
    }
    Ok(found)
}

/// Teams in which whoever looks may make apps.
fn teams_to_build_in(visit: &Visit<'_>, shell: &Shell) -> Vec<Named> {
    let Some(who) = &visit.who else {
        return Vec::new();
    };
    let may = |team: &&Named| {
        let role = who.role_in(&team.id);
        who.is_operator || matches!(role, Some(Role::Owner | Role::Admin | Role::Developer))
    };
    shell.teams.iter().filter(may).cloned().collect()
}

async fn keys_page(
    visit: &mut Visit<'_>,
    app: &str,
    secret: Option<keys::Secret>,
    again: &Again,
) -> Result<Markup, Refusal> {
    let all = visit.get(&call(&["apps", app, "keys"])).await?;
    let signing = visit.get(&call(&["apps", app, "signing-keys"])).await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let view = keys::Keys {
        keys: fill(&all["keys"]),
        signing_keys: fill(&signing["signingKeys"]),
        secret,
    };
    Ok(keys::render(&shell, &view))
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let go = |parts: &[&str], say: &str| Ok(Next::Go(paths::to(parts), say.to_owned()));
    match *parts {
        ["teams", team, "apps"] => {
            let body = object([("id", form.text("id")), ("name", form.text("name"))]);
            let app = visit.post(&call(&["teams", team, "apps"]), body).await?;
            let id = app["id"].as_str().unwrap_or_default();
            go(
                &["apps", id, "keys"],
                "The app is there. Make a key for it.",
            )
        }
        ["apps", app, verb @ ("disable" | "enable")] => {
            let patch = json!({ "disabled": verb == "disable" });
            visit.patch(&call(&["apps", app]), patch).await?;
            go(
                &["apps", app],
                if verb == "disable" {
                    "The app is disabled."
                } else {
                    "The app is enabled."
                },
            )
        }
        ["apps", app, "delete"] => {
            if form.get("confirm") != app {
                let text = "`confirm`: that is not the app's id; nothing was deleted";
                return Err(ProtocolError::with_text(ErrorCode::BadField, text).into());
            }
            visit.delete(&call(&["apps", app])).await?;
            go(&["apps"], "The app is deleted.")
        }
        ["apps", app, "transfer"] => {
            visit
                .post(&call(&["apps", app, "transfer"]), form.object(&["team"]))
                .await?;
            go(&["apps"], "The app belongs to the other team.")
        }
        ["apps", app, "channels", channel, "clear"] => {
            visit
                .delete(&call(&["apps", app, "channels", channel, "messages"]))
                .await?;
            go(
                &["apps", app, "channels", channel],
                "The channel's stored messages are deleted.",
            )
        }
        ["apps", app, "keys", ..] | ["apps", app, "signing-keys", ..] => {
            credentials(visit, app, parts, form).await
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// Keys and signing keys.
async fn credentials(
    visit: &mut Visit<'_>,
    app: &str,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let go = |say: &str| Ok(Next::Go(paths::to(&["apps", app, "keys"]), say.to_owned()));
    match *parts {
        [_, _, "keys"] => {
            let now_ms = visit.server.now().unix_ms;
            let expires = form.number("expires_in_s")?.filter(|seconds| *seconds > 0);
            let body = object([
                ("kind", form.text("kind")),
                ("name", form.text("name")),
                ("capabilities", form.json("capabilities")?),
                (
                    "expiresMs",
                    expires
                        .map(|seconds| now_ms.saturating_add(seconds.saturating_mul(1000)).into()),
                ),
            ]);
            let made = visit.post(&call(&["apps", app, "keys"]), body).await?;
            shown_once(visit, app, &made).await
        }
        [_, _, "keys", id, "rotate"] => {
            let body = object([("overlapSeconds", form.number("overlap_s")?.map(Value::from))]);
            let made = visit
                .post(&call(&["apps", app, "keys", id, "rotate"]), body)
                .await?;
            shown_once(visit, app, &made).await
        }
        [_, _, "signing-keys"] => {
            let pem = form.text("pem").map(|pem| json!({ "pem": pem }));
            let body = object([
                ("algorithm", form.text("algorithm")),
                ("kid", form.text("kid")),
                ("material", pem),
            ]);
            let made = visit
                .post(&call(&["apps", app, "signing-keys"]), body)
                .await?;
            match made["secret"].as_str() {
                Some(_) => shown_once(visit, app, &made).await,
                None => go("The signing key is there."),
            }
        }
        [_, _, kind @ ("keys" | "signing-keys"), id, verb] => {
            let path = call(&["apps", app, kind, id]);
            match verb {
                "disable" => visit.patch(&path, json!({ "disabled": true })).await?,
                "enable" => visit.patch(&path, json!({ "disabled": false })).await?,
                "delete" => visit.ask(Method::DELETE, &path, "", None).await?,
                _ => nothing(),
            };
            go(match verb {
                "disable" => "The key is disabled; its connections have ended.",
                "enable" => "The key is enabled.",
                _ => "The key is deleted; its connections have ended.",
            })
        }
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// The page with a secret that was made.
async fn shown_once(visit: &mut Visit<'_>, app: &str, made: &Value) -> Result<Next, Refusal> {
    let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
    let is_client_key = made["kind"] == "client";
    let secret = match made["key"].as_str() {
        Some(key) => {
            let kind = if is_client_key {
                "Client key"
            } else {
                "Server key"
            };
            let name = text("name");
            keys::Secret {
                label: if name.is_empty() {
                    kind.to_owned()
                } else {
                    format!("{kind} “{name}”")
                },
                value: key.to_owned(),
                is_client_key,
            }
        }
        None => keys::Secret {
            label: format!("Secret of signing key {}", text("kid")),
            value: text("secret"),
            is_client_key: false,
        },
    };
    keys_page(visit, app, Some(secret), &Again::default())
        .await
        .map(Next::Page)
}
