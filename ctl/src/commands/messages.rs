//! Messages: publish and history; and presence.

use std::io::Read as _;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Session;
use super::connections::channel_path;
use crate::cli::{History, Presence, Publish};
use crate::client::Query;
use crate::failure::Failure;
use crate::output::{self, cell, time};

impl Session<'_> {
    pub(super) fn publish(self, command: Publish) -> Result<(), Failure> {
        let mut data = command.data;
        if data == "-" {
            data.clear();
            std::io::stdin()
                .read_to_string(&mut data)
                .map_err(|error| Failure::Failed(format!("stdin: {error}")))?;
        }
        let data = if command.text {
            Value::from(data.trim_end_matches(['\r', '\n'])).to_string()
        } else {
            let raw: &RawValue = serde_json::from_str(&data).map_err(|error| {
                Failure::Usage(format!("the data is not JSON ({error}); is it --text?"))
            })?;
            raw.get().to_owned()
        };
        let mut rest = serde_json::Map::new();
        for (name, text) in [("id", command.id), ("clientId", command.client_id)] {
            if let Some(text) = text {
                rest.insert(name.into(), text.into());
            }
        }
        if command.ephemeral {
            rest.insert("persist".into(), false.into());
        }
        let rest = Value::Object(rest).to_string();
        let rest = rest.trim_start_matches('{').trim_end_matches('}');
        let comma = if rest.is_empty() { "" } else { "," };
        // The data goes out as it was given: numbers keep their spelling, objects their order.
        let body = format!("{{\"data\":{data}{comma}{rest}}}");
        let path = format!(
            "{}/messages",
            channel_path(&command.app.app, &command.channel)
        );
        let answer = self.client.post_text(&path, body)?;
        let message = &answer["messages"][0];
        let id = cell(&message["id"]);
        let text = match message["sequence"].as_u64() {
            Some(sequence) => format!("published {id} as {sequence} of {}", command.channel),
            None => format!("published {id} to {}", command.channel),
        };
        self.done(&answer, &text)
    }

    pub(super) fn history(self, command: &History) -> Result<(), Failure> {
        let mut query = Query::default();
        query.set("limit", command.limit);
        query.set_some("before", command.before);
        query.set_some("after", command.after);
        if command.forward {
            query.set("direction", "forward");
        }
        let path = format!(
            "{}/messages",
            channel_path(&command.app.app, &command.channel)
        );
        let mut page = self.client.get(&query.path(&path))?;
        if self.json {
            return output::line(&page.to_string());
        }
        let more = page["hasMore"].as_bool().unwrap_or(false);
        let Value::Array(messages) = page["messages"].take() else {
            return Ok(());
        };
        self.show_list(
            "messages",
            (messages, more),
            &[
                ("TIME", |m| time(&m["timestamp"])),
                ("SEQ", |m| cell(&m["sequence"])),
                ("ID", |m| cell(&m["id"])),
                ("FROM", |m| cell(&m["publisherId"])),
                ("DATA", |m| m["data"].to_string()),
            ],
        )
    }

    pub(super) fn presence(self, command: &Presence) -> Result<(), Failure> {
        let path = format!(
            "{}/presence",
            channel_path(&command.app.app, &command.channel)
        );
        let list = self
            .client
            .list(&path, "members", Query::default(), command.limit)?;
        if self.json {
            let (members, more) = list;
            let body = json!({ "channel": command.channel, "members": members, "more": more });
            return output::line(&body.to_string());
        }
        self.show_list(
            "members",
            list,
            &[
                ("CLIENT", |m| cell(&m["clientId"])),
                ("JOINED", |m| time(&m["joinedAt"])),
                ("CONNECTIONS", |m| cell(&m["connections"])),
                ("STATE", |m| cell(&m["data"])),
            ],
        )
    }
}
