//! The server itself: nodes, configuration, drain.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::Session;
use crate::cli::Drain;
use crate::failure::Failure;
use crate::output::{self, bytes, cell, time};

/// Pause between two looks at a drain.
const DRAIN_LOOK: Duration = Duration::from_millis(200);

/// A node that has said nothing for longer is shown as silent, ms; one that is well does so twice a second.
const SILENT_MS: u64 = 2000;

impl Session<'_> {
    pub(super) fn nodes(self) -> Result<(), Failure> {
        let mut answer = self.client.get("/admin/nodes")?;
        if self.json {
            return output::line(&answer.to_string());
        }
        let (this, others) = (answer["nodes"].take(), answer["others"].take());
        let (Value::Array(mut nodes), others) = (this, others.as_array().cloned()) else {
            return Ok(());
        };
        nodes.extend(others.into_iter().flatten());
        self.show_list(
            "nodes",
            (nodes, false),
            &[
                ("NODE", |n| cell(&n["name"])),
                ("HOST", |n| cell(&n["host"])),
                ("PID", |n| cell(&n["pid"])),
                ("VERSION", |n| cell(&n["version"])),
                ("STAGE", stage),
                ("LISTEN", |n| cell(&n["listen"])),
                ("ADMIN", |n| cell(&n["adminListen"])),
                ("SINCE", |n| time(&n["startedMs"])),
                ("SHARDS", |n| match n["shards"].as_array() {
                    Some(shards) => shards.len().to_string(),
                    None => cell(&n["shards"]),
                }),
                ("CONNECTIONS", |n| match n["connections"].as_u64() {
                    Some(told) => told.to_string(),
                    None => sum(n, "connections").to_string(),
                }),
                ("MEMORY", |n| match n["residentBytes"].as_u64() {
                    Some(resident) => bytes(resident),
                    None => cell(&Value::Null),
                }),
            ],
        )
    }

    pub(super) fn config(self) -> Result<(), Failure> {
        self.show(&self.client.get("/admin/config")?)
    }

    pub(super) fn drain(self, command: &Drain) -> Result<(), Failure> {
        if command.status {
            return self.show(&self.client.get("/admin/drain")?);
        }
        let begun = self.client.post("/admin/drain", &json!({}))?;
        let text = format!(
            "draining {} connections, {} per second, {} s at most",
            cell(&begun["connections"]),
            cell(&begun["rate"]),
            cell(&begun["deadlineS"])
        );
        self.done(&begun, &text)?;
        if !command.wait {
            return Ok(());
        }
        let mut last = begun["connections"].as_u64();
        loop {
            thread::sleep(DRAIN_LOOK);
            match self.client.get("/admin/drain") {
                // Another process has taken its place.
                Ok(state) if state["draining"] == false => {
                    return self.done(&json!({ "stopped": true }), "stopped");
                }
                Ok(state) => {
                    let left = state["connections"].as_u64();
                    if left != last {
                        let text = format!("{} connections left", left.unwrap_or(0));
                        self.done(&state, &text)?;
                        last = left;
                    }
                }
                Err(Failure::Unreachable(_)) => {
                    return self.done(&json!({ "stopped": true }), "stopped");
                }
                Err(other) => return Err(other),
            }
        }
    }
}

/// What a node says of itself; of another one, whether it says anything.
fn stage(node: &Value) -> String {
    match node["silentMs"].as_u64() {
        None => cell(&node["stage"]),
        Some(silent) if silent < SILENT_MS => "there".to_owned(),
        Some(silent) => format!("silent for {silent} ms"),
    }
}

/// A number of a node's shards, summed.
pub(super) fn sum(node: &Value, field: &str) -> u64 {
    let shards = node["shards"].as_array().into_iter().flatten();
    shards.filter_map(|shard| shard[field].as_u64()).sum()
}
