//! Calls, for pages and the API alike: routed by the permission table, let through by it, carried out, written down.
//!
//! Invariant: there is no other way from a request to what it changes or reveals.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use shardwire_proto::account::permissions::{PERMISSIONS, Permission, Standing, Who};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::url::percent_decode;

use super::own;
use super::visit::Visit;
use crate::http::{Refusal, effective_method, perform};
use crate::side::accounts::{Actor, Entry};

/// The answer to a call: JSON.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// A call that is in the table.
pub(super) struct Call<'p> {
    pub(super) row: &'static Permission,
    /// The path below `/dashboard/api`, as it was asked for.
    pub(super) path: &'p str,
    pub(super) query: &'p str,
    parameters: BTreeMap<&'static str, String>,
    /// The team that it is about, where the path names one or an app.
    pub(super) team: Option<String>,
}

impl Call<'_> {
    /// What the path has in a place; empty where it has no such place.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// Paths to the rows that they have.
static ROUTES: LazyLock<matchit::Router<Vec<&'static Permission>>> = LazyLock::new(|| {
    let mut by_path = BTreeMap::<&str, Vec<&'static Permission>>::new();
    for row in PERMISSIONS {
        by_path.entry(row.path).or_default().push(row);
    }
    let mut router = matchit::Router::new();
    for (path, rows) in by_path {
        let inserted = router.insert(path, rows);
        assert!(inserted.is_ok(), "the table's paths do not conflict");
    }
    router
});

const PARAMETERS: [&str; 6] = ["app", "team", "id", "channel", "client", "item"];

fn find<'p>(method: &Method, path: &'p str, query: &'p str) -> Result<Call<'p>, Refusal> {
    let matched = ROUTES.at(path).map_err(|_| ErrorCode::NotFound)?;
    let wanted = effective_method(method).as_str();
    let row = matched.value.iter().find(|row| row.method == wanted);
    let row = row.ok_or_else(|| Refusal::method_not_allowed(allowed(matched.value)))?;
    let mut parameters = BTreeMap::new();
    for name in PARAMETERS {
        if let Some(encoded) = matched.params.get(name) {
            parameters.insert(name, percent_decode(encoded).map(Cow::into_owned)?);
        }
    }
    Ok(Call {
        row,
        path,
        query,
        parameters,
        team: None,
    })
}

/// For the `Allow` header.
fn allowed(rows: &[&'static Permission]) -> &'static str {
    static TEXTS: LazyLock<BTreeMap<&str, String>> = LazyLock::new(|| {
        let mut texts = BTreeMap::<&str, String>::new();
        for row in PERMISSIONS {
            let text = texts.entry(row.path).or_default();
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(row.method);
        }
        texts
    });
    let path = rows.first().map_or("", |row| row.path);
    TEXTS.get(path).map_or("GET", String::as_str)
}

impl Visit<'_> {
    /// Makes a call for whoever is signed in, if it is theirs to make.
    pub(super) async fn call(
        &mut self,
        method: &Method,
        path: &str,
        query: &str,
        body: Bytes,
    ) -> Result<Answer, Refusal> {
        let mut call = find(method, path, query)?;
        let detail = detail_of(&body);
        let mut permitted = self.permit(&mut call).await;
        if permitted.is_ok() {
            permitted = self.check_fields(&call, &body).map_err(Refusal::from);
        }
        let answered = match permitted {
            Ok(()) => self.carry_out(method, &call, body).await,
            Err(refusal) => Err(refusal),
        };
        // What happens at the door is noted where it is known whose door it is.
        let is_door = matches!(call.row.who, Who::Anyone);
        if !method.is_safe() && !is_door && self.who.is_some() {
            let status = match &answered {
                Ok(answer) => answer.status,
                Err(refusal) => refusal.status,
            };
            let made = answered.as_ref().ok().and_then(made_id);
            self.note(&call, status, detail, made).await;
        }
        answered
    }

    /// Finds out where they stand in what the call is about, and asks the table.
    ///
    /// # Errors
    /// 40100 for whoever is not signed in; 40400 for what is not theirs to know of; 40300 for what they may not do.
    async fn permit(&mut self, call: &mut Call<'_>) -> Result<(), Refusal> {
        call.team = match call.row.who {
            Who::Team(_) => Some(call.parameter("team").to_owned()),
            Who::App(_) => {
                let app = call.parameter("app").to_owned();
                let registry = self.server.settings.registry.as_ref();
                let snapshot = registry.ok_or(ErrorCode::Unavailable)?.snapshot();
                if self.who.is_some() && snapshot.app(&app).is_none() {
                    return Err(ErrorCode::NotFound.into());
                }
                self.accounts
                    .ask(move |keeper| keeper.team_of(&app))
                    .await?
            }
            Who::Anyone | Who::Account | Who::Operator => None,
        };
        let standing = self.standing(call.team.as_deref());
        if call.row.who.admits(standing) {
            return Ok(());
        }
        let Some(standing) = standing else {
            return Err(ProtocolError::with_text(ErrorCode::NoCredentials, "sign in first").into());
        };
        let is_stranger =
            matches!(call.row.who, Who::Team(_) | Who::App(_)) && standing.role.is_none();
        if is_stranger {
            return Err(ErrorCode::NotFound.into());
        }
        let text = "your role does not allow this";
        Err(ProtocolError::with_text(ErrorCode::NotPermitted, text).into())
    }

    /// Where whoever is signed in stands in a team.
    pub(super) fn standing(&self, team: Option<&str>) -> Option<Standing> {
        let who = self.who.as_ref()?;
        Some(Standing {
            is_operator: who.is_operator,
            role: team.and_then(|team| who.role_in(team)),
        })
    }

    /// Keeps from members of a team what is the server's: files of its host, and which plan limits an app.
    ///
    /// # Errors
    /// 40300.
    fn check_fields(&self, call: &Call<'_>, body: &[u8]) -> Result<(), ProtocolError> {
        let sets = [
            ("PATCH", "/apps/{app}"),
            ("POST", "/teams/{team}/apps"),
            ("PUT", "/apps/{app}/push/providers/{id}"),
        ];
        let is_of_team = self.who.as_ref().is_some_and(|who| !who.is_operator);
        if !is_of_team || !sets.contains(&(call.row.method, call.row.path)) {
            return Ok(());
        }
        // What is not JSON is refused by whoever reads it.
        let Ok(mut body) = serde_json::from_slice::<Value>(body) else {
            return Ok(());
        };
        let registry = self.server.settings.registry.as_ref();
        let snapshot = registry.ok_or(ErrorCode::Unavailable)?.snapshot();
        let app = snapshot.app(call.parameter("app"));
        let settings = app.and_then(|app| serde_json::to_value(&app.settings).ok());
        let settings = settings.unwrap_or_default();
        if let Some(wanted) = body.get_mut("settings").and_then(Value::as_object_mut) {
            // Unchanged, they may be sent along with the rest.
            wanted.retain(|name, value| settings.get(name) != Some(value));
            if wanted.contains_key("plan") {
                let text = "only whoever runs the server gives an app a plan";
                return Err(not_permitted(text));
            }
        }
        if names_file(&body) {
            return Err(not_permitted(
                "only whoever runs the server names its files",
            ));
        }
        Ok(())
    }

    async fn carry_out(
        &mut self,
        method: &Method,
        call: &Call<'_>,
        body: Bytes,
    ) -> Result<Answer, Refusal> {
        if let Some(answer) = own::answer(self, call, &body).await? {
            return Ok(answer);
        }
        self.pass_on(method, call.path, call.query, body).await
    }

    /// Has the admin API answer.
    pub(super) async fn pass_on(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        body: Bytes,
    ) -> Result<Answer, Refusal> {
        let headers = HeaderMap::new();
        let path = format!("/admin{path}");
        let target = (method, &*path, query);
        let response = perform(
            target,
            &headers,
            body,
            self.server,
            self.settings,
            self.pace,
        )
        .await?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes());
        Ok(Answer {
            status,
            body: body.unwrap_or_default(),
        })
    }

    /// Writes a call into the audit log.
    async fn note(
        &self,
        call: &Call<'_>,
        status: StatusCode,
        detail: Option<String>,
        made: Option<String>,
    ) {
        let Some(who) = &self.who else { return };
        let actor = Actor {
            account: Some(who.account.clone()),
            name: who.email.clone(),
            address: Some(self.client.address),
        };
        let some =
            |name: &str| Some(call.parameter(name).to_owned()).filter(|text| !text.is_empty());
        let mut entry = Entry::of(
            &actor,
            format!("{} {}", call.row.method, call.row.path),
            status.as_u16(),
        );
        entry.team = call.team.clone();
        entry.app = some("app");
        entry.target = some("id").or(some("channel")).or(some("client")).or(made);
        entry.detail = detail;
        let noted = self.accounts.ask(move |keeper| {
            keeper.note(entry);
            Ok(())
        });
        if let Err(error) = noted.await {
            log::error!(call = call.row.path, error:%; "an entry of the audit log is lost");
        }
    }
}

fn not_permitted(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::NotPermitted, text)
}

/// Fields of a body that the audit log shows. None of them may hold a secret.
const SHOWN: [&str; 10] = [
    "email", "role", "kind", "name", "disabled", "enabled", "operator", "team", "account", "url",
];
/// Characters of them.
const DETAIL_CHARS_MAX: usize = 200;

/// What a body says, for the audit log.
fn detail_of(body: &[u8]) -> Option<String> {
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
        return None;
    };
    let shown = SHOWN.iter().filter_map(|name| match fields.get(*name)? {
        Value::String(text) if !text.is_empty() => Some(format!("{name}: {text}")),
        Value::Bool(is_so) => Some(format!("{name}: {is_so}")),
        _ => None,
    });
    let text = shown.collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then(|| text.chars().take(DETAIL_CHARS_MAX).collect())
}

/// The id of what a call has made.
fn made_id(answer: &Answer) -> Option<String> {
    if answer.status != StatusCode::CREATED {
        return None;
    }
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    let id = body.get("id").or(body.get("kid"))?;
    id.as_str().map(str::to_owned)
}

/// Whether a body names a file of the host somewhere: in a field whose name ends so.
fn names_file(body: &Value) -> bool {
    match body {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            (name.ends_with("File") && value.is_string()) || names_file(value)
        }),
        Value::Array(items) => items.iter().any(names_file),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_of_the_host_are_told() {
        assert!(names_file(&json!({ "settings": { "jwksFile": "/etc/x" } })));
        assert!(names_file(&json!([{ "serviceAccountFile": "x" }])));
        assert!(!names_file(
            &json!({ "settings": { "jwksFile": null }, "name": "File", "file": "x" })
        ));
    }

    #[test]
    fn the_table_routes_and_names_what_else_is_allowed() {
        let call = find(&Method::POST, "/apps/a%2Fb/keys/k/rotate", "")
            .ok()
            .unwrap();
        assert_eq!(call.row.path, "/apps/{app}/keys/{id}/rotate");
        assert_eq!((call.parameter("app"), call.parameter("id")), ("a/b", "k"));
        assert!(find(&Method::HEAD, "/apps", "").is_ok());
        assert_eq!(find(&Method::PUT, "/apps", "").err().unwrap().status, 405);
        assert_eq!(
            find(&Method::GET, "/elsewhere", "").err().unwrap().status,
            404
        );
        for row in PERMISSIONS {
            let path = row.path.replace(['{', '}'], "");
            let method: Method = row.method.parse().unwrap();
            assert_eq!(find(&method, &path, "").ok().unwrap().row, row);
        }
    }
}
