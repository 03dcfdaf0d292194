//! People who use the dashboard, and what they have done. A link is printed alone on its line, so that a script can take it.

use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use super::{Session, body, not_empty, read_file};
use crate::cli::{Accounts, Audit};
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{self, cell, time};

/// More accounts than anyone lists.
const ACCOUNTS_MAX: usize = 100_000;

impl Session<'_> {
    pub(super) fn accounts(self, command: Accounts) -> Result<(), Failure> {
        match command {
            Accounts::List => {
                let list = self.client.list(
                    "/admin/accounts",
                    "accounts",
                    Query::default(),
                    ACCOUNTS_MAX,
                )?;
                self.show_list(
                    "accounts",
                    list,
                    &[
                        ("ID", |account| cell(&account["id"])),
                        ("EMAIL", |account| cell(&account["email"])),
                        ("NAME", |account| cell(&account["name"])),
                        ("OPERATOR", |account| cell(&account["operator"])),
                        ("2ND FACTOR", |account| cell(&account["secondFactor"])),
                        ("STATE", super::state),
                        ("LAST SIGN-IN", |account| time(&account["lastLoginMs"])),
                    ],
                )
            }
            Accounts::Show { id } => self.show(&self.client.get(&path(&id))?),
            Accounts::Create {
                email,
                name,
                operator,
                password_file,
            } => {
                let password = password_file.as_deref().map(read_password).transpose()?;
                let account = body([
                    ("email", Some(email.into())),
                    ("name", name.map(Value::from)),
                    ("operator", operator.then_some(true.into())),
                    ("password", password.map(Value::from)),
                ]);
                let made = self.client.post("/admin/accounts", &account)?;
                if made["link"].is_string() {
                    return self.show_link(&made, "set the password");
                }
                self.done(
                    &made,
                    &format!("made account {}", cell(&made["account"]["email"])),
                )
            }
            Accounts::Update {
                id,
                name,
                operator,
                remove_second_factor,
                state,
            } => {
                let patch = not_empty(body([
                    ("name", name.map(Value::from)),
                    ("operator", operator.map(Value::from)),
                    ("secondFactor", remove_second_factor.then_some(false.into())),
                    ("disabled", state.disabled()),
                ]))?;
                self.show(&self.client.patch(&path(&id), &patch)?)
            }
            Accounts::Reset { id } => {
                let made = self
                    .client
                    .post(&format!("{}/reset", path(&id)), &json!({}))?;
                self.show_link(&made, "set another password within an hour")
            }
            Accounts::Delete { id } => {
                self.client.delete(&path(&id))?;
                self.done(&json!({}), &format!("removed account {id}"))
            }
        }
    }

    pub(super) fn audit(self, command: &Audit) -> Result<(), Failure> {
        let mut query = Query::default();
        query.set_some("team", command.team.as_ref());
        query.set_some("account", command.account.as_ref());
        let list = self
            .client
            .list("/admin/audit", "entries", query, command.limit)?;
        self.show_list(
            "entries",
            list,
            &[
                ("TIME", |entry| time(&entry["timeMs"])),
                ("ACTOR", |entry| cell(&entry["actor"])),
                ("ADDRESS", |entry| cell(&entry["address"])),
                ("WHAT", |entry| cell(&entry["call"])),
                ("APP", |entry| cell(&entry["app"])),
                ("TARGET", |entry| cell(&entry["target"])),
                ("STATUS", |entry| cell(&entry["status"])),
            ],
        )
    }

    fn show_link(self, made: &Value, what_for: &str) -> Result<(), Failure> {
        if self.json {
            return output::line(&made.to_string());
        }
        eprintln!("open this link to {what_for}:");
        output::line(&output::clean(&cell(&made["link"])))
    }
}

fn read_password(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    if path == Path::new("-") {
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(|error| Failure::Usage(format!("stdin: {error}")))?;
    } else {
        text = read_file(path)?;
    }
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn path(id: &str) -> String {
    format!("/admin/accounts/{}", part(id))
}
