//! Revocations.

use serde_json::{Value, json};

use super::{Session, body};
use crate::cli::Revocations;
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{cell, time};

/// More revocations than an app has.
const REVOCATIONS_MAX: usize = 100_000;

impl Session<'_> {
    pub(super) fn revocations(self, command: Revocations) -> Result<(), Failure> {
        match command {
            Revocations::List(app) => {
                let path = path(&app.app);
                let query = Query::default();
                let list = self
                    .client
                    .list(&path, "revocations", query, REVOCATIONS_MAX)?;
                self.show_list(
                    "revocations",
                    list,
                    &[
                        ("ID", |r| cell(&r["id"])),
                        ("OF", subject),
                        ("CHANNELS", |r| cell(&r["channel"])),
                        ("UNTIL", |r| time(&r["untilMs"])),
                        ("ISSUED BEFORE", |r| time(&r["issuedBeforeMs"])),
                    ],
                )
            }
            Revocations::Create {
                app,
                subject,
                channel,
                ttl,
                issued_before,
            } => {
                let revocation = body([
                    ("clientId", subject.client_id.map(Value::from)),
                    ("jti", subject.jti.map(Value::from)),
                    ("keyId", subject.key.map(Value::from)),
                    ("kid", subject.kid.map(Value::from)),
                    ("channel", channel.map(Value::from)),
                    ("ttlS", ttl.map(Value::from)),
                    ("issuedBeforeMs", issued_before.map(Value::from)),
                ]);
                let made = self.client.post(&path(&app.app), &revocation)?;
                let until = time(&made["untilMs"]);
                self.done(
                    &made,
                    &format!("made revocation {}, until {until}", cell(&made["id"])),
                )
            }
            Revocations::Delete { id, app } => {
                self.client
                    .delete(&format!("{}/{}", path(&app.app), part(&id)))?;
                self.done(&json!({}), &format!("removed revocation {id}"))
            }
        }
    }
}

fn path(app: &str) -> String {
    format!("/admin/apps/{}/revocations", part(app))
}

fn subject(revocation: &Value) -> String {
    let named = ["clientId", "jti", "keyId", "kid"].into_iter();
    let mut named = named.filter_map(|name| Some(format!("{name} {}", revocation[name].as_str()?)));
    named.next().unwrap_or_default()
}
