//! Connections and channels.

use serde_json::Value;

use super::Session;
use crate::cli::{Channels, Connections};
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{bytes, cell, time};

impl Session<'_> {
    pub(super) fn connections(self, command: Connections) -> Result<(), Failure> {
        match command {
            Connections::List {
                app,
                client_id,
                limit,
            } => {
                let mut query = Query::default();
                query.set_some("app", app);
                query.set_some("clientId", client_id);
                let list = self
                    .client
                    .list("/admin/connections", "connections", query, limit)?;
                self.show_list(
                    "connections",
                    list,
                    &[
                        ("ID", |c| cell(&c["id"])),
                        ("APP", |c| cell(&c["app"])),
                        ("CLIENT", |c| cell(&c["clientId"])),
                        ("CREDENTIAL", credential),
                        ("FROM", |c| cell(&c["remote"])),
                        ("SINCE", |c| time(&c["connectedMs"])),
                        ("CHANNELS", |c| cell(&c["subscriptions"])),
                        ("OUTBOX", |c| bytes(c["outboxBytes"].as_u64().unwrap_or(0))),
                    ],
                )
            }
            Connections::Show { id } => self.show(&self.client.get(&path(&id))?),
            Connections::End { id } => {
                let answer = self.client.delete(&path(&id))?;
                self.done(&answer, &format!("ended connection {id}"))
            }
        }
    }

    pub(super) fn channels(self, command: Channels) -> Result<(), Failure> {
        match command {
            Channels::List { app, prefix, limit } => {
                let mut query = Query::default();
                query.set_some("prefix", prefix);
                let path = format!("/admin/apps/{}/channels", part(&app.app));
                let list = self.client.list(&path, "channels", query, limit)?;
                self.show_list(
                    "channels",
                    list,
                    &[
                        ("CHANNEL", |c| cell(&c["channel"])),
                        ("SUBSCRIBERS", |c| cell(&c["subscribers"])),
                        ("MEMBERS", |c| cell(&c["members"])),
                    ],
                )
            }
            Channels::Show { channel, app } => {
                self.show(&self.client.get(&channel_path(&app.app, &channel))?)
            }
            Channels::Clear { channel, app } => {
                let path = format!("{}/messages", channel_path(&app.app, &channel));
                let answer = self.client.delete(&path)?;
                let text = format!("removed {} messages of {channel}", cell(&answer["deleted"]));
                self.done(&answer, &text)
            }
        }
    }
}

fn path(id: &str) -> String {
    format!("/admin/connections/{}", part(id))
}

/// The path of a channel.
pub(super) fn channel_path(app: &str, channel: &str) -> String {
    format!("/admin/apps/{}/channels/{}", part(app), part(channel))
}

fn credential(connection: &Value) -> String {
    match (connection["keyId"].as_str(), connection["kid"].as_str()) {
        (Some(key), _) => format!("key {key}"),
        (_, Some(kid)) => format!("token {kid}"),
        _ => String::new(),
    }
}
