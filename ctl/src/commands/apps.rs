//! Apps.

use serde_json::{Value, json};

use super::{Session, body, not_empty, object};
use crate::cli::Apps;
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{cell, time};

/// More apps than anyone lists.
const APPS_MAX: usize = 100_000;

impl Session<'_> {
    pub(super) fn apps(self, command: Apps) -> Result<(), Failure> {
        match command {
            Apps::List => {
                let list = self
                    .client
                    .list("/admin/apps", "apps", Query::default(), APPS_MAX)?;
                self.show_list(
                    "apps",
                    list,
                    &[
                        ("ID", |app| cell(&app["id"])),
                        ("NAME", |app| cell(&app["name"])),
                        ("STATE", super::state),
                        ("CREATED", |app| time(&app["createdMs"])),
                    ],
                )
            }
            Apps::Show { id } => self.show(&self.client.get(&path(&id))?),
            Apps::Create { id, name, settings } => {
                let app = body([
                    ("id", id.map(Value::from)),
                    ("name", name.map(Value::from)),
                    ("settings", object("--settings", settings.as_deref())?),
                ]);
                let made = self.client.post("/admin/apps", &app)?;
                self.done(&made, &format!("made app {}", cell(&made["id"])))
            }
            Apps::Update {
                id,
                name,
                settings,
                state,
            } => {
                let patch = not_empty(body([
                    ("name", name.map(Value::from)),
                    ("settings", object("--settings", settings.as_deref())?),
                    ("disabled", state.disabled()),
                ]))?;
                let app = self.client.patch(&path(&id), &patch)?;
                self.show(&app)
            }
            Apps::Delete { id } => {
                self.client.delete(&path(&id))?;
                self.done(&json!({}), &format!("removed app {id}"))
            }
        }
    }
}

fn path(id: &str) -> String {
    format!("/admin/apps/{}", part(id))
}
