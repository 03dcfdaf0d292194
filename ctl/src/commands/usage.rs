//! Plans, and what apps have used.

use serde_json::{Value, json};

use super::{Session, object};
use crate::cli::{Plans, Usage};
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{cell, time};

/// More plans than there can be.
const PLANS_MAX: usize = 10_000;

impl Session<'_> {
    pub(super) fn plans(self, command: Plans) -> Result<(), Failure> {
        match command {
            Plans::List => {
                let list =
                    self.client
                        .list("/admin/plans", "plans", Query::default(), PLANS_MAX)?;
                self.show_list(
                    "plans",
                    list,
                    &[
                        ("ID", |plan| cell(&plan["id"])),
                        ("NAME", |plan| cell(&plan["name"])),
                        ("CONNECTIONS", |plan| cell(&plan["connectionsMax"])),
                        ("CHANNELS", |plan| cell(&plan["channelsMax"])),
                        ("PER DAY", |plan| cell(&plan["messagesPerDay"])),
                        ("PER MONTH", |plan| cell(&plan["messagesPerMonth"])),
                    ],
                )
            }
            Plans::Show { id } => self.show(&self.client.get(&path(&id))?),
            Plans::Set { id, limits } => {
                let limits = object("LIMITS", Some(&limits))?.unwrap_or_default();
                self.show(&self.client.put(&path(&id), &limits)?)
            }
            Plans::Delete { id } => {
                self.client.delete(&path(&id))?;
                self.done(&json!({}), &format!("removed plan {id}"))
            }
        }
    }

    pub(super) fn usage(self, command: &Usage) -> Result<(), Failure> {
        let mut query = Query::default();
        query.set("step", &command.step);
        query.set_some("from", command.from);
        query.set_some("to", command.to);
        let app = &command.app;
        let report = self
            .client
            .get(&query.path(&format!("/admin/apps/{}/usage", part(app))))?;
        if self.json {
            return self.show(&report);
        }
        let mut totals = report.clone();
        let series = totals["series"].take();
        if let Value::Object(fields) = &mut totals {
            fields.remove("series");
            fields.remove("hasMore");
        }
        self.show(&totals)?;
        let rows = series.as_array().cloned().unwrap_or_default();
        let more = report["hasMore"] == true;
        self.show_list(
            "series",
            (rows, more),
            &[
                ("FROM", |row| time(&row["startMs"])),
                ("MESSAGES", |row| cell(&row["messages"])),
                ("DELIVERIES", |row| cell(&row["deliveries"])),
                ("REFUSED", |row| cell(&row["refused"])),
                ("CONNECTIONS", |row| cell(&row["connectionsPeak"])),
                ("CHANNELS", |row| cell(&row["channelsPeak"])),
                ("PUSH SENT", |row| cell(&row["pushSent"])),
                ("PUSH FAILED", |row| cell(&row["pushFailed"])),
            ],
        )
    }
}

fn path(id: &str) -> String {
    format!("/admin/plans/{}", part(id))
}
