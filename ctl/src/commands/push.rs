//! Push notifications: access to providers, sends, and how they went.

use std::fs;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{Session, body, object};
use crate::cli::AppArg;
use crate::client::{Query, part};
use crate::failure::Failure;
use crate::output::{cell, time};

/// Push notifications.
#[derive(Debug, Subcommand)]
pub(crate) enum Push {
    /// Set up Web Push: makes the app's VAPID key where it has none, and prints the public part
    Vapid {
        #[command(flatten)]
        app: AppArg,
        /// Whom push services turn to: mailto:… or https://…
        #[arg(long)]
        subject: String,
        /// File of an existing private key, 32 bytes in base64url
        #[arg(long, value_name = "FILE")]
        private_key: Option<String>,
    },
    /// Show access to providers, without secrets
    Providers {
        #[command(flatten)]
        app: AppArg,
    },
    /// Set up access to a provider
    Set {
        platform: Platform,
        /// A JSON object, or @FILE with one (for fcm also Google's service account file itself)
        credentials: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Remove access to a provider
    Remove {
        platform: Platform,
        #[command(flatten)]
        app: AppArg,
    },
    /// List subscriptions
    Subscriptions {
        #[command(flatten)]
        app: AppArg,
        /// Of this member
        #[arg(long)]
        member: Option<String>,
        /// Of this platform
        #[arg(long)]
        platform: Option<Platform>,
        /// Most of them
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Notify members, a channel's devices or everybody
    Send(Send),
    /// List sends, or show one with its results
    Jobs {
        /// The send
        id: Option<String>,
        #[command(flatten)]
        app: AppArg,
        /// Most of them
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// End a send; what is on its way may still arrive
    Cancel {
        /// The send
        id: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Subscriptions by platform, and how sends went
    Stats {
        #[command(flatten)]
        app: AppArg,
    },
}

/// A notification and who gets it.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// A member; may be repeated
    #[arg(long = "member", required_unless_present_any = ["channel", "all"])]
    members: Vec<String>,
    /// Only devices that are enrolled in it
    #[arg(long)]
    channel: Option<String>,
    /// Everybody
    #[arg(long, conflicts_with = "members")]
    all: bool,
    #[arg(long)]
    title: Option<String>,
    #[arg(long)]
    body: Option<String>,
    /// More of its content, as a JSON object
    #[arg(long, value_name = "JSON")]
    content: Option<String>,
    #[command(flatten)]
    app: AppArg,
}

/// Who delivers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Platform {
    Web,
    Fcm,
    Apns,
}

impl Platform {
    fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Fcm => "fcm",
            Self::Apns => "apns",
        }
    }
}

impl Session<'_> {
    pub(super) fn push(self, command: Push) -> Result<(), Failure> {
        match command {
            Push::Vapid {
                app,
                subject,
                private_key,
            } => {
                let key = private_key.map(|path| read(&path)).transpose()?;
                let key = key.map(|key| Value::from(key.trim()));
                let body = body([("subject", Some(subject.into())), ("privateKey", key)]);
                let set = self.client.put(&path(&app, "/providers/web"), &body)?;
                self.done(&set, &cell(&set["vapidPublicKey"]))
            }
            Push::Providers { app } => {
                let mut answer = self.client.get(&path(&app, "/providers"))?;
                let providers = answer["providers"].take();
                let providers = providers.as_array().cloned().unwrap_or_default();
                self.show_list(
                    "providers",
                    (providers, false),
                    &[
                        ("PLATFORM", |p| cell(&p["platform"])),
                        ("WHOSE", |p| {
                            let names = ["subject", "clientEmail", "topic"].iter();
                            names.map(|name| cell(&p[name])).collect()
                        }),
                        ("ENDPOINT", |p| cell(&p["endpoint"])),
                        ("AT ONCE", |p| cell(&p["concurrency"])),
                    ],
                )
            }
            Push::Set {
                platform,
                credentials,
                app,
            } => {
                let text = match credentials.strip_prefix('@') {
                    Some(file) => read(file)?,
                    None => credentials,
                };
                let mut body = object("CREDENTIALS", Some(&text))?.unwrap_or_default();
                if body["type"] == "service_account" {
                    body = json!({ "serviceAccount": body });
                }
                let place = path(&app, &format!("/providers/{}", platform.name()));
                self.show(&self.client.put(&place, &body)?)
            }
            Push::Remove { platform, app } => {
                let place = path(&app, &format!("/providers/{}", platform.name()));
                let answer = self.client.delete(&place)?;
                self.done(&answer, &format!("removed {}", platform.name()))
            }
            Push::Subscriptions {
                app,
                member,
                platform,
                limit,
            } => self.push_subscriptions(&app, member, platform, limit),
            Push::Send(send) => self.push_send(send),
            Push::Jobs {
                id: Some(id), app, ..
            } => self.show(
                &self
                    .client
                    .get(&path(&app, &format!("/jobs/{}", part(&id))))?,
            ),
            Push::Jobs {
                id: None,
                app,
                limit,
            } => self.push_jobs(&app, limit),
            Push::Cancel { id, app } => {
                let place = path(&app, &format!("/jobs/{}", part(&id)));
                let answer = self.client.delete(&place)?;
                self.done(&answer, &format!("{id} is {}", cell(&answer["state"])))
            }
            Push::Stats { app } => {
                let answer = self.client.get(&path(&app, "/stats"))?;
                self.show(&answer["stats"])
            }
        }
    }

    fn push_subscriptions(
        self,
        app: &AppArg,
        member: Option<String>,
        platform: Option<Platform>,
        limit: usize,
    ) -> Result<(), Failure> {
        let mut query = Query::default();
        if let Some(member) = member {
            query.set("memberId", member);
        }
        if let Some(platform) = platform {
            query.set("platform", platform.name());
        }
        let place = path(app, "/subscriptions");
        let list = self.client.list(&place, "subscriptions", query, limit)?;
        self.show_list(
            "subscriptions",
            list,
            &[
                ("ID", |s| cell(&s["subscriptionId"])),
                ("MEMBER", |s| cell(&s["memberId"])),
                ("PLATFORM", |s| cell(&s["platform"])),
                ("CHANNELS", |s| {
                    let channels = s["channels"].as_array().into_iter().flatten();
                    let channels: Vec<String> = channels.map(cell).collect();
                    channels.join(" ")
                }),
                ("CREATED", |s| time(&s["createdAt"])),
            ],
        )
    }

    fn push_send(self, send: Send) -> Result<(), Failure> {
        let mut content = object("--content", send.content.as_deref())?;
        let mut content = content.take().unwrap_or_else(|| json!({}));
        for (name, value) in [("title", send.title), ("body", send.body)] {
            if let Some(value) = value {
                content[name] = value.into();
            }
        }
        let members = (!send.members.is_empty()).then(|| send.members.into());
        let request = body([
            ("memberIds", members),
            ("channel", send.channel.map(Value::from)),
            ("payload", Some(content)),
        ]);
        let call = if send.all { "/broadcast" } else { "/send" };
        let answer = self.client.post(&path(&send.app, call), &request)?;
        let text = format!(
            "{} is {}: {} sent, {} failed, {} pending",
            cell(&answer["jobId"]),
            cell(&answer["state"]),
            cell(&answer["sent"]),
            cell(&answer["failed"]),
            cell(&answer["pending"]),
        );
        self.done(&answer, &text)
    }

    fn push_jobs(self, app: &AppArg, limit: usize) -> Result<(), Failure> {
        let query = Query::default();
        let list = self
            .client
            .list(&path(app, "/jobs"), "jobs", query, limit)?;
        self.show_list(
            "jobs",
            list,
            &[
                ("ID", |job| cell(&job["jobId"])),
                ("STATE", |job| cell(&job["state"])),
                ("SENT", |job| cell(&job["sent"])),
                ("FAILED", |job| cell(&job["failed"])),
                ("OF", |job| cell(&job["total"])),
                ("RETRIES", |job| cell(&job["retries"])),
                ("CREATED", |job| time(&job["createdMs"])),
                ("TITLE", |job| cell(&job["title"])),
            ],
        )
    }
}

fn path(app: &AppArg, rest: &str) -> String {
    format!("/admin/apps/{}/push{rest}", part(&app.app))
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::Usage(format!("{path}: {error}")))
}
