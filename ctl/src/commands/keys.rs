//! API keys, signing keys and tokens. A secret is printed alone on its line, so that a script can take it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Session, body, grants, not_empty, object, read_file, state};
use crate::cli::{Keys, Kind, SigningKeys, Token};
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{self, cell, time};

/// More keys than an app has.
const KEYS_MAX: usize = 100_000;

impl Session<'_> {
    pub(super) fn keys(self, command: Keys) -> Result<(), Failure> {
        match command {
            Keys::List(app) => {
                let path = keys_path(&app.app);
                let list = self
                    .client
                    .list(&path, "keys", Query::default(), KEYS_MAX)?;
                self.show_list(
                    "keys",
                    list,
                    &[
                        ("ID", |key| cell(&key["id"])),
                        ("KIND", |key| cell(&key["kind"])),
                        ("NAME", |key| cell(&key["name"])),
                        ("KEY", |key| format!("{}…", cell(&key["prefix"]))),
                        ("STATE", state),
                        ("LAST USED", |key| time(&key["lastUsedMs"])),
                        ("GRANTS", grants),
                    ],
                )
            }
            Keys::Create {
                app,
                kind,
                name,
                capabilities,
                expires_in,
                publish_rate,
            } => {
                let kind = match kind {
                    Kind::Client => "client",
                    Kind::Server => "server",
                };
                let key = body([
                    ("kind", Some(kind.into())),
                    ("name", name.map(Value::from)),
                    (
                        "capabilities",
                        object("--capabilities", capabilities.as_deref())?,
                    ),
                    (
                        "expiresMs",
                        expires_in.map(|s| (now_ms() + s * 1000).into()),
                    ),
                    (
                        "publishRate",
                        object("--publish-rate", publish_rate.as_deref())?,
                    ),
                ]);
                let made = self.client.post(&keys_path(&app.app), &key)?;
                self.show_secret(&made, "key", "id")
            }
            Keys::Update {
                id,
                app,
                name,
                capabilities,
                publish_rate,
                state,
            } => {
                let patch = not_empty(body([
                    ("name", name.map(Value::from)),
                    (
                        "capabilities",
                        object("--capabilities", capabilities.as_deref())?,
                    ),
                    (
                        "publishRate",
                        match publish_rate.as_deref() {
                            Some("false") => Some(false.into()),
                            rate => object("--publish-rate", rate)?,
                        },
                    ),
                    ("disabled", state.disabled()),
                ]))?;
                let path = format!("{}/{}", keys_path(&app.app), part(&id));
                self.show(&self.client.patch(&path, &patch)?)
            }
            Keys::Rotate { id, app, overlap } => {
                let path = format!("{}/{}/rotate", keys_path(&app.app), part(&id));
                let made = self
                    .client
                    .post(&path, &json!({ "overlapSeconds": overlap }))?;
                self.show_secret(&made, "key", "id")
            }
            Keys::Delete { id, app } => {
                self.client
                    .delete(&format!("{}/{}", keys_path(&app.app), part(&id)))?;
                self.done(&json!({}), &format!("removed key {id}"))
            }
        }
    }

    pub(super) fn signing_keys(self, command: SigningKeys) -> Result<(), Failure> {
        match command {
            SigningKeys::List(app) => {
                let path = signing_path(&app.app);
                let list = self
                    .client
                    .list(&path, "signingKeys", Query::default(), KEYS_MAX)?;
                self.show_list(
                    "signingKeys",
                    list,
                    &[
                        ("KID", |key| cell(&key["kid"])),
                        ("ALGORITHM", |key| cell(&key["algorithm"])),
                        ("STATE", state),
                        ("CREATED", |key| time(&key["createdMs"])),
                        ("GRANTS", grants),
                    ],
                )
            }
            SigningKeys::Create {
                app,
                algorithm,
                kid,
                pem,
                jwk,
                secret,
                capabilities,
            } => {
                let material = match (pem, jwk, secret) {
                    (Some(path), _, _) => Some(json!({ "pem": read_file(&path)? })),
                    (_, Some(path), _) => {
                        let jwk = object("--jwk", Some(&read_file(&path)?))?;
                        Some(json!({ "jwk": jwk }))
                    }
                    (_, _, Some(path)) => {
                        let text = read_file(&path)?;
                        Some(json!({ "secret": text.trim_end_matches(['\r', '\n']) }))
                    }
                    _ => None,
                };
                let key = body([
                    ("algorithm", Some(algorithm.into())),
                    ("kid", kid.map(Value::from)),
                    ("material", material),
                    (
                        "capabilities",
                        object("--capabilities", capabilities.as_deref())?,
                    ),
                ]);
                let made = self.client.post(&signing_path(&app.app), &key)?;
                self.show_secret(&made, "secret", "kid")
            }
            SigningKeys::Update {
                kid,
                app,
                capabilities,
                state,
            } => {
                let patch = not_empty(body([
                    (
                        "capabilities",
                        object("--capabilities", capabilities.as_deref())?,
                    ),
                    ("disabled", state.disabled()),
                ]))?;
                let path = format!("{}/{}", signing_path(&app.app), part(&kid));
                self.show(&self.client.patch(&path, &patch)?)
            }
            SigningKeys::Delete { kid, app } => {
                self.client
                    .delete(&format!("{}/{}", signing_path(&app.app), part(&kid)))?;
                self.done(&json!({}), &format!("removed signing key {kid}"))
            }
        }
    }

    pub(super) fn token(self, command: Token) -> Result<(), Failure> {
        let Token::Mint {
            app,
            client_id,
            capabilities,
            ttl,
            kid,
        } = command;
        let token = body([
            ("clientId", client_id.map(Value::from)),
            (
                "capabilities",
                object("--capabilities", capabilities.as_deref())?,
            ),
            ("ttlS", Some(ttl.into())),
            ("kid", kid.map(Value::from)),
        ]);
        let path = format!("/admin/apps/{}/tokens", part(&app.app));
        let made = self.client.post(&path, &token)?;
        self.done(&made, &cell(&made["token"]))
    }

    /// Prints what was made: its secret, where it has one, alone on stdout; its name on stderr.
    fn show_secret(self, made: &Value, secret: &str, name: &str) -> Result<(), Failure> {
        if self.json {
            return output::line(&made.to_string());
        }
        let name = cell(&made[name]);
        let name = output::clean(&name);
        match made[secret].as_str() {
            Some(text) => {
                eprintln!("{name}; it is shown this once:");
                output::line(text)
            }
            None => output::line(&name),
        }
    }
}

fn keys_path(app: &str) -> String {
    format!("/admin/apps/{}/keys", part(app))
}

fn signing_path(app: &str) -> String {
    format!("/admin/apps/{}/signing-keys", part(app))
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
