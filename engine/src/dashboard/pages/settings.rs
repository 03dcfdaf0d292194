//! An app's settings: from its form, or from JSON, to what the admin API takes.
//!
//! Fields of the form are named by where they are in the document (`limits.connectionsMax`). What is left empty is not in
//! the document; what the form does not have stays as it is. Invariant: what is sent is a merge patch (RFC 7396) of what
//! differs, so that nobody sends what they may not change along with the rest.

use maud::Markup;
use serde_json::{Map, Value, json};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::limits::APP_NAMESPACES_MAX;
use shardwire_proto::rate::table::{Class, Place, Scope, counts};

use super::{Again, Form, Next, call, fill, object};
use crate::dashboard::face::pages::settings;
use crate::dashboard::face::paths;
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

const SAVED: &str = "The settings are saved, and hold at once.";

pub(super) async fn show(
    visit: &mut Visit<'_>,
    app: &str,
    again: &Again,
) -> Result<Markup, Refusal> {
    let found = visit.get(&call(&["apps", app])).await?;
    let shell = visit.shell(Some(app), None, again).await?;
    let plans = match shell.can("GET", "/plans") {
        true => visit.get("/plans").await?,
        false => Value::Null,
    };
    let plans = plans["plans"].as_array().into_iter().flatten();
    let own = shell.team.as_ref().map_or("", |team| &*team.id);
    let others = shell.teams.iter().filter(|team| team.id != own);
    let view = settings::Settings {
        app: fill(&found),
        plans: plans
            .filter_map(|plan| plan["id"].as_str().map(str::to_owned))
            .collect(),
        other_teams: others.cloned().collect(),
    };
    Ok(settings::render(&shell, &view))
}

/// The form, or the JSON behind it.
pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let (app, name) = match *parts {
        ["apps", app] => (app, Some(form.get("name").into())),
        ["apps", app, "settings"] => (app, None),
        _ => return Err(ErrorCode::NotFound.into()),
    };
    let found = visit.get(&call(&["apps", app])).await?;
    let current = &found["settings"];
    let wanted = match name {
        Some(_) => wanted(current, form)?,
        None => form.json("settings")?.unwrap_or_else(|| json!({})),
    };
    if !wanted.is_object() {
        let text = "`settings` must be a JSON object";
        return Err(ProtocolError::with_text(ErrorCode::BadField, text).into());
    }
    let patch = object([("name", name), ("settings", Some(patch(current, &wanted)))]);
    let saved = visit.patch(&call(&["apps", app]), patch).await;
    saved.map_err(|refusal| name_namespace(refusal, form))?;
    Ok(Next::Go(paths::to(&["apps", app]), SAVED.to_owned()))
}

/// Whoever sees `namespace "chat:*": ttl_s is …` is shown the field.
fn name_namespace(mut refusal: Refusal, form: &Form) -> Refusal {
    let named = (0..=APP_NAMESPACES_MAX).find_map(|n| {
        let pattern = form.get(&format!("namespaces.{n}.pattern")).trim();
        let about = format!("namespace {pattern:?}: ");
        let rest = refusal.error.text.split_once(&about)?.1;
        let (field, rest) = rest.split_once(' ')?;
        Some(format!("`namespaces.{n}.{field}` {rest}"))
    });
    if let Some(text) = named {
        refusal.error.text = text.into();
    }
    refusal
}

/// The merge patch that makes one document of another.
fn patch(current: &Value, wanted: &Value) -> Value {
    let (Value::Object(current), Value::Object(wanted)) = (current, wanted) else {
        return wanted.clone();
    };
    let gone = current.keys().filter(|name| !wanted.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Value::Null));
    let changed = wanted.iter().filter_map(|(name, wanted)| {
        let current = current.get(name);
        let patch = patch(current.unwrap_or(&Value::Null), wanted);
        (current != Some(wanted)).then(|| (name.clone(), patch))
    });
    Value::Object(gone.chain(changed).collect())
}

/// Puts a value where a path says, or takes away what is there.
fn set(document: &mut Value, path: &str, value: Option<Value>) {
    if !document.is_object() {
        *document = json!({});
    }
    let Some(fields) = document.as_object_mut() else {
        return;
    };
    match (path.split_once('.'), value) {
        (Some((first, _)), None) if !fields.contains_key(first) => {}
        (Some((first, rest)), value) => {
            let inner = fields.entry(first).or_insert_with(|| json!({}));
            set(inner, rest, value);
            if inner.as_object().is_some_and(Map::is_empty) {
                fields.remove(first);
            }
        }
        (None, Some(value)) => _ = fields.insert(path.to_owned(), value),
        (None, None) => _ = fields.remove(path),
    }
}

/// `true` and `false` of a choice whose third is to leave it to the server.
fn switch(form: &Form, name: &str) -> Option<Value> {
    match form.get(name) {
        "true" => Some(true.into()),
        "false" => Some(false.into()),
        _ => None,
    }
}

/// The settings that a form describes.
fn wanted(current: &Value, form: &Form) -> Result<Value, ProtocolError> {
    let mut all = current.clone();
    for name in ["selfAssertedIds", "hello", "pushOpenMembers"] {
        if form.has(name) {
            set(&mut all, name, switch(form, name));
        }
    }
    for name in ["jwksUrl", "jwksFile", "plan"] {
        if form.has(name) {
            set(&mut all, name, form.text(name));
        }
    }
    if form.has("allowedOrigins") {
        let origins = form.lines("allowedOrigins");
        let is_any = form.has("origins.any");
        let origins = (is_any || !origins.is_empty()).then(|| match is_any {
            true => json!([]),
            false => json!(origins),
        });
        set(&mut all, "allowedOrigins", origins);
    }
    for name in [
        "limits.connectionsMax",
        "limits.channelsPerConnMax",
        "limits.publishBytesMax",
    ] {
        if form.has(name) {
            set(&mut all, name, form.number(name)?.map(Value::from));
        }
    }
    let rates = Class::ALL.into_iter().flat_map(|class| {
        let scopes = Scope::ALL.into_iter();
        let counted = scopes.filter(move |scope| counts(class, *scope, Place::App));
        counted.map(move |scope| format!("limits.rates.{}.{}", class.label(), scope.label()))
    });
    for name in rates.chain(["limits.publishRate".to_owned()]) {
        if form.has(&format!("{name}.per_window")) {
            set(&mut all, &name, rate(form, &name)?);
        }
    }
    if form.has("namespaces.0.pattern") {
        let list = namespaces(current, form)?;
        let list = (!list.is_empty()).then_some(Value::Array(list));
        set(&mut all, "namespaces", list);
    }
    Ok(all)
}

fn rate(form: &Form, name: &str) -> Result<Option<Value>, ProtocolError> {
    if form.has(&format!("{name}.off")) {
        return Ok(Some(false.into()));
    }
    let number = |part: &str| form.number(&format!("{name}.{part}"));
    let Some(per_window) = number("per_window")? else {
        return Ok(None);
    };
    let window_ms = number("window_ms")?.unwrap_or(1000);
    let burst = number("burst")?.unwrap_or(per_window);
    if burst < per_window {
        let text = format!("`{name}.burst` must not be below the number per window");
        return Err(ProtocolError::with_text(ErrorCode::BadField, text));
    }
    Ok(Some(
        json!({ "per_window": per_window, "window_ms": window_ms, "burst": burst }),
    ))
}

/// Namespaces in the order of their places. What the form does not have of one, its rates, is kept.
fn namespaces(current: &Value, form: &Form) -> Result<Vec<Value>, ProtocolError> {
    let mut found = Vec::new();
    for n in 0..=APP_NAMESPACES_MAX {
        let name = |field: &str| format!("namespaces.{n}.{field}");
        let Some(pattern) = form.text(&name("pattern")) else {
            continue;
        };
        let was = form.get(&name("was"));
        let all = current["namespaces"].as_array().into_iter().flatten();
        let mut one = all
            .filter(|_| !was.is_empty())
            .find(|one| one["pattern"] == was)
            .cloned()
            .unwrap_or_else(|| json!({}));
        one["pattern"] = pattern;
        for field in settings::NAMESPACE_SWITCHES.map(|(field, ..)| field) {
            one[field] = form.has(&name(field)).into();
        }
        for field in settings::NAMESPACE_NUMBERS.map(|(field, ..)| field) {
            set(&mut one, field, form.number(&name(field))?.map(Value::from));
        }
        set(&mut one, "sync", form.text(&name("sync")));
        found.push((form.number(&name("place"))?.unwrap_or(u64::MAX), one));
    }
    found.sort_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, one)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(pairs: &[(&str, &str)]) -> Form {
        let mut text = form_urlencoded::Serializer::new(String::new());
        Form::parse(text.extend_pairs(pairs).finish().as_bytes())
    }

    #[test]
    fn what_is_left_empty_goes_and_what_the_form_has_not_stays() {
        let current = json!({
            "hello": true, "plan": "p", "selfAssertedIds": false,
            "limits": { "connectionsMax": 5, "rates": { "publish": { "app": false } } },
        });
        let sent = form(&[
            ("hello", ""),
            ("limits.connectionsMax", ""),
            ("limits.publishRate.per_window", "5"),
            ("limits.publishRate.window_ms", ""),
            ("allowedOrigins", " https://a.example \n\n"),
        ]);
        let wanted = wanted(&current, &sent).unwrap();
        let rate = json!({ "per_window": 5, "window_ms": 1000, "burst": 5 });
        assert_eq!(
            patch(&current, &wanted),
            json!({
                "hello": null, "allowedOrigins": ["https://a.example"],
                "limits": { "connectionsMax": null, "publishRate": rate },
            })
        );
        assert_eq!(patch(&current, &current), json!({}));
        assert_eq!(
            patch(&current, &json!({})),
            json!({ "hello": null, "plan": null, "selfAssertedIds": null, "limits": null })
        );
    }

    #[test]
    fn namespaces_are_ordered_by_place_and_keep_their_rates() {
        let rates = json!({ "publish": { "channel": false } });
        let current =
            json!({ "namespaces": [{ "pattern": "a", "rates": rates }, { "pattern": "b" }] });
        let sent = form(&[
            ("namespaces.0.pattern", "a:*"),
            ("namespaces.0.was", "a"),
            ("namespaces.0.place", "2"),
            ("namespaces.0.history", "1"),
            ("namespaces.0.ttl_s", "600"),
            ("namespaces.1.pattern", ""),
            ("namespaces.1.was", "b"),
            ("namespaces.2.pattern", "c"),
            ("namespaces.2.place", "1"),
        ]);
        let list = wanted(&current, &sent).unwrap()["namespaces"].take();
        assert_eq!(list[0]["pattern"], "c");
        assert_eq!(list[1]["pattern"], "a:*");
        assert_eq!(list[1]["rates"], rates);
        assert!(list[1]["history"] == true && list[1]["persist"] == false);
        assert!(list[1]["ttl_s"] == 600 && list.as_array().unwrap().len() == 2);
    }

    #[test]
    fn a_number_that_is_none_and_a_burst_too_small_are_told_by_field() {
        let wrong = |pairs| wanted(&json!({}), &form(pairs)).unwrap_err().text;
        assert!(
            wrong(&[("limits.connectionsMax", "many")]).starts_with("`limits.connectionsMax` ")
        );
        let burst = [
            ("limits.publishRate.per_window", "5"),
            ("limits.publishRate.burst", "4"),
        ];
        assert!(wrong(&burst).starts_with("`limits.publishRate.burst` "));
    }
}
