//! Webhooks.

use serde_json::{Map, Value, json};

use super::{Session, not_empty};
use crate::cli::{Hook, HookSettings, Webhooks};
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{self, cell, time};

/// More webhooks than an app has, and more dead letters than are looked at.
const LIST_MAX: usize = 10_000;

impl Session<'_> {
    pub(super) fn webhooks(self, command: Webhooks) -> Result<(), Failure> {
        match command {
            Webhooks::List(app) => {
                let query = Query::default();
                let list = self
                    .client
                    .list(&all(&app.app), "webhooks", query, LIST_MAX)?;
                self.show_list(
                    "webhooks",
                    list,
                    &[
                        ("ID", |hook| cell(&hook["id"])),
                        ("NAME", |hook| cell(&hook["name"])),
                        ("STATE", state),
                        ("TARGET", |hook| cell(&hook["url"])),
                        ("EVENTS", |hook| joined(&hook["events"])),
                        ("CHANNELS", |hook| joined(&hook["channels"])),
                    ],
                )
            }
            Webhooks::Show(hook) => self.show(&self.client.get(&path(&hook))?),
            Webhooks::Create {
                target,
                app,
                settings,
                disable,
            } => {
                let mut body = fields(settings);
                body.insert("url".into(), target.into());
                if disable {
                    body.insert("enabled".into(), false.into());
                }
                let made = self.client.post(&all(&app.app), &Value::Object(body))?;
                self.show_hook_secret(&made)
            }
            Webhooks::Update {
                hook,
                target,
                settings,
                state,
            } => {
                let mut body = fields(settings);
                if let Some(target) = target {
                    body.insert("url".into(), target.into());
                }
                if state.enable || state.disable {
                    body.insert("enabled".into(), state.enable.into());
                }
                let patch = not_empty(Value::Object(body))?;
                self.show(&self.client.patch(&path(&hook), &patch)?)
            }
            Webhooks::Delete(hook) => {
                self.client.delete(&path(&hook))?;
                self.done(&json!({}), &format!("removed webhook {}", hook.id))
            }
            Webhooks::Rotate { hook, overlap } => {
                let body = json!({ "overlapSeconds": overlap });
                let made = self.client.post(&below(&hook, "rotate"), &body)?;
                self.show_hook_secret(&made)
            }
            Webhooks::Test(hook) => {
                let came = self.client.post(&below(&hook, "test"), &json!({}))?;
                self.show(&came)
            }
            Webhooks::Deliveries(hook) => self.webhook_attempts(&hook),
            Webhooks::Events { hook, from, limit } => self.webhook_events(&hook, from, limit),
            Webhooks::DeadLetters { hook, letter: None } => self.dead_letters(&hook),
            Webhooks::DeadLetters {
                hook,
                letter: Some(letter),
            } => self.show(&self.client.get(&letters(&hook, Some(&letter)))?),
            Webhooks::Replay { hook, letter } => {
                let path = match &letter {
                    Some(_) => format!("{}/replay", letters(&hook, letter.as_deref())),
                    None => letters(&hook, None),
                };
                let answer = self.client.post(&path, &json!({}))?;
                self.done(
                    &answer,
                    &format!("{} are sent again", cell(&answer["queued"])),
                )
            }
            Webhooks::Purge { hook, letter } => {
                let answer = self.client.delete(&letters(&hook, letter.as_deref()))?;
                self.done(&answer, &format!("removed {}", cell(&answer["purged"])))
            }
        }
    }

    fn show_hook_secret(self, made: &Value) -> Result<(), Failure> {
        if self.json {
            return self.show(made);
        }
        eprintln!("the secret is shown this once");
        output::line(&format!("{}  {}", cell(&made["id"]), cell(&made["secret"])))
    }

    fn webhook_attempts(self, hook: &Hook) -> Result<(), Failure> {
        let answer = self.client.get(&below(hook, "deliveries"))?;
        if self.json {
            return self.show(&answer);
        }
        let rows = answer["deliveries"].as_array().cloned().unwrap_or_default();
        self.show_list(
            "deliveries",
            (rows, false),
            &[
                ("AT", |entry| time(&entry["at"])),
                ("DELIVERY", |entry| cell(&entry["id"])),
                ("ATTEMPT", |entry| cell(&entry["attempt"])),
                ("EVENTS", |entry| cell(&entry["events"])),
                ("MS", |entry| cell(&entry["ms"])),
                ("STATUS", |entry| cell(&entry["status"])),
                ("ANSWER", |entry| match &entry["error"] {
                    Value::Null => cell(&entry["response"]),
                    error => cell(error),
                }),
            ],
        )
    }

    fn webhook_events(self, hook: &Hook, from: u64, limit: u64) -> Result<(), Failure> {
        let mut query = Query::default();
        query.set("from", from.to_string());
        query.set("limit", limit.to_string());
        let answer = self.client.get(&query.path(&below(hook, "events")))?;
        if self.json {
            return self.show(&answer);
        }
        for event in answer["events"].as_array().into_iter().flatten() {
            output::line(&output::clean(&event.to_string()))?;
        }
        if answer["hasMore"] == true {
            eprintln!("there are more; ask with --from {}", answer["next"]);
        }
        Ok(())
    }

    fn dead_letters(self, hook: &Hook) -> Result<(), Failure> {
        let path = letters(hook, None);
        let list = self
            .client
            .list(&path, "deadLetters", Query::default(), LIST_MAX)?;
        self.show_list(
            "deadLetters",
            list,
            &[
                ("ID", |letter| cell(&letter["id"])),
                ("GIVEN UP", |letter| time(&letter["at"])),
                ("ATTEMPTS", |letter| cell(&letter["attempts"])),
                ("EVENTS", |letter| cell(&letter["count"])),
                ("ERROR", |letter| cell(&letter["error"])),
            ],
        )
    }
}

/// What was said of a webhook's settings.
fn fields(settings: HookSettings) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    set("name", settings.name.map(Value::from));
    let some = |list: Vec<String>| (!list.is_empty()).then(|| Value::from(list));
    set("events", some(settings.events));
    set("channels", some(settings.channels));
    let batch = settings.batch_events.zip(settings.batch_ms);
    let batch = batch.map(|(events, ms)| json!({ "maxEvents": events, "maxMs": ms }));
    set("batch", batch);
    set("concurrency", settings.concurrency.map(Value::from));
    set("names", settings.names.map(Value::from));
    fields
}

fn all(app: &str) -> String {
    format!("/admin/apps/{}/webhooks", part(app))
}

fn path(hook: &Hook) -> String {
    format!("{}/{}", all(&hook.app.app), part(&hook.id))
}

fn below(hook: &Hook, name: &str) -> String {
    format!("{}/{name}", path(hook))
}

fn letters(hook: &Hook, letter: Option<&str>) -> String {
    match letter {
        Some(letter) => format!("{}/{}", below(hook, "dead-letters"), part(letter)),
        None => below(hook, "dead-letters"),
    }
}

fn state(hook: &Value) -> String {
    match (hook["enabled"].as_bool(), hook["disabledReason"].as_str()) {
        (Some(true), _) => "enabled".into(),
        (_, Some(reason)) => format!("disabled: {reason}"),
        _ => "disabled".into(),
    }
}

fn joined(list: &Value) -> String {
    let texts = list.as_array().into_iter().flatten();
    let texts: Vec<&str> = texts.filter_map(Value::as_str).collect();
    texts.join(" ")
}
