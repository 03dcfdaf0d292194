//! The commands, by what they are about.

mod accounts;
mod apps;
pub(crate) mod check;
mod connections;
mod keys;
mod messages;
mod node;
pub(crate) mod push;
mod revocations;
mod subscribe;
mod top;
mod usage;
mod webhooks;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::{Command, State};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

/// One run of the program: the server, and how to answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session<'a> {
    pub(crate) client: &'a Client,
    pub(crate) json: bool,
}

/// The columns of a table, each with the field that fills it.
type Columns = [(&'static str, fn(&Value) -> String)];

impl Session<'_> {
    /// Does what was asked for.
    pub(crate) fn run(self, command: Command) -> Result<(), Failure> {
        match command {
            Command::Apps(command) => self.apps(command),
            Command::Keys(command) => self.keys(command),
            Command::SigningKeys(command) => self.signing_keys(command),
            Command::Revocations(command) => self.revocations(command),
            Command::Token(command) => self.token(command),
            Command::Channels(command) => self.channels(command),
            Command::Connections(command) => self.connections(command),
            Command::Publish(command) => self.publish(command),
            Command::Subscribe(command) => self.subscribe(&command),
            Command::History(command) => self.history(&command),
            Command::Presence(command) => self.presence(&command),
            Command::Accounts(command) => self.accounts(command),
            Command::Audit(command) => self.audit(&command),
            Command::Top(command) => self.top(&command),
            Command::Plans(command) => self.plans(command),
            Command::Usage(command) => self.usage(&command),
            Command::Webhooks(command) => self.webhooks(command),
            Command::Push(command) => self.push(command),
            Command::Nodes => self.nodes(),
            Command::Drain(command) => self.drain(&command),
            Command::Config => self.config(),
            // They need no server, and have been done.
            Command::Check(_) | Command::Store(_) | Command::Completions { .. } | Command::Man => {
                Ok(())
            }
        }
    }

    /// Shows a list under its name.
    fn show_list(
        self,
        name: &str,
        (entries, more): (Vec<Value>, bool),
        columns: &Columns,
    ) -> Result<(), Failure> {
        if self.json {
            return output::line(&json!({ name: entries, "more": more }).to_string());
        }
        let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
        let rows: Vec<Vec<String>> = entries
            .iter()
            .map(|entry| columns.iter().map(|(_, read)| read(entry)).collect())
            .collect();
        output::table(&heads, &rows)?;
        if more {
            eprintln!("there are more; ask with a higher --limit");
        }
        Ok(())
    }

    /// Shows one thing, a field a line.
    fn show(self, thing: &Value) -> Result<(), Failure> {
        if self.json {
            return output::line(&thing.to_string());
        }
        let mut lines = Vec::new();
        flatten(thing, "", &mut lines);
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in lines {
            let value = output::clean(&value).into_owned();
            output::line(format!("{name:width$}  {value}").trim_end())?;
        }
        Ok(())
    }

    /// Says that something is done.
    fn done(self, answer: &Value, text: &str) -> Result<(), Failure> {
        if self.json {
            return output::line(&answer.to_string());
        }
        output::line(&output::clean(text))
    }
}

/// The fields of a thing with their dotted names; times as times.
fn flatten(value: &Value, prefix: &str, out: &mut Vec<(String, String)>) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, value) in fields {
        let path = format!("{prefix}{name}");
        match value {
            Value::Object(inner) if !inner.is_empty() && name != "capabilities" => {
                flatten(value, &format!("{path}."), out);
            }
            Value::Number(_) if name.ends_with("Ms") => out.push((path, output::time(value))),
            _ => out.push((path, output::cell(value))),
        }
    }
}

/// A flag's JSON text, which has to be an object.
fn object(flag: &str, text: Option<&str>) -> Result<Option<Value>, Failure> {
    let Some(text) = text else {
        return Ok(None);
    };
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => Err(Failure::Usage(format!("{flag}: not a JSON object"))),
        Err(error) => Err(Failure::Usage(format!("{flag}: not JSON: {error}"))),
    }
}

/// A body of the fields that were given.
fn body<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let given = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect::<Map<_, _>>())
}

impl State {
    /// The field `disabled`, where something was said about it.
    fn disabled(&self) -> Option<Value> {
        (self.enable || self.disable).then(|| self.disable.into())
    }
}

/// What a patch needs: something to change.
fn not_empty(patch: Value) -> Result<Value, Failure> {
    if patch.as_object().is_some_and(Map::is_empty) {
        return Err(Failure::Usage("nothing to change; see --help".into()));
    }
    Ok(patch)
}

fn read_file(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

/// What a credential grants, in short.
fn grants(entry: &Value) -> String {
    let Some(patterns) = entry["capabilities"].as_object() else {
        return String::new();
    };
    let each = patterns.iter().map(|(pattern, ops)| {
        let ops: Vec<&str> = ops
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        format!("{pattern}={}", ops.join("+"))
    });
    each.collect::<Vec<_>>().join(" ")
}

/// Enabled, disabled, or ending.
fn state(entry: &Value) -> String {
    match (entry["disabled"].as_bool(), entry["expiresMs"].as_u64()) {
        (Some(true), _) => "disabled".into(),
        (_, Some(_)) => format!("until {}", output::time(&entry["expiresMs"])),
        _ => "enabled".into(),
    }
}
