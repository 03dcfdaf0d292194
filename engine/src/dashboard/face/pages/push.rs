//! Push notifications of an app: providers, a form to send one, sends and devices.

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::face::components::{
    Confirm, Field, Tone, badge, card, checkbox, copyable, csrf, empty, more, select, table, tile,
    time,
};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, format, paths};

/// As the admin API shows it; which fields are there depends on the platform.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Provider {
    /// `web`, `fcm` or `apns`.
    pub platform: String,
    pub subject: Option<String>,
    pub vapid_public_key: Option<String>,
    pub project: Option<String>,
    pub client_email: Option<String>,
    pub topic: Option<String>,
    pub sandbox: Option<bool>,
    pub key_id: Option<String>,
    pub team_id: Option<String>,
    pub auth: Option<String>,
}

/// The `stats` of the admin API's answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    pub subscriptions: ByPlatform,
    pub sent: u64,
    pub failed: u64,
    pub expired: u64,
    pub sent_this_month: u64,
    pub push_per_month: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ByPlatform {
    pub web: u64,
    pub fcm: u64,
    pub apns: u64,
}

/// As the admin API lists it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    pub job_id: String,
    /// `active`, `done`, `cancelled` or `stopped`.
    pub state: String,
    pub sent: u64,
    pub failed: u64,
    pub expired: u64,
    pub pending: Option<u64>,
    pub retries: u64,
    pub total: Option<u64>,
    pub channel: Option<String>,
    pub title: Option<String>,
    pub error: Option<String>,
    pub created_ms: u64,
    pub finished_ms: Option<u64>,
    pub results: Vec<SendResult>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SendResult {
    pub subscription_id: String,
    pub member_id: String,
    pub platform: String,
    pub success: bool,
    pub error: Option<String>,
}

/// As the admin API lists it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subscription {
    pub subscription_id: String,
    pub member_id: String,
    pub platform: String,
    pub channels: Vec<String>,
    pub created_at: u64,
}

#[derive(Debug, Clone, Default)]
pub struct Push {
    pub providers: Vec<Provider>,
    pub stats: Stats,
    /// The latest first.
    pub jobs: Vec<Job>,
    pub subscriptions: Vec<Subscription>,
    /// Of the next page of subscriptions.
    pub cursor: Option<String>,
    /// What subscriptions were asked for: a member's.
    pub member: String,
}

/// The name of a platform for people.
fn platform_name(platform: &str) -> &str {
    match platform {
        "web" => "Web Push",
        "fcm" => "Firebase (Android)",
        "apns" => "Apple (APNs)",
        other => other,
    }
}

pub fn render(shell: &Shell, view: &Push) -> Markup {
    let head = Head::of_app("Push", Place::Push, shell)
        .lead(html! { "Notifications to devices whose app is not open." });
    let stats = &view.stats;
    let devices = stats.subscriptions.web + stats.subscriptions.fcm + stats.subscriptions.apns;
    let split = format!(
        "{} web, {} Android, {} Apple",
        format::count(stats.subscriptions.web),
        format::count(stats.subscriptions.fcm),
        format::count(stats.subscriptions.apns)
    );
    let month = match stats.push_per_month {
        Some(limit) => format!("of {} this month", format::count(limit)),
        None => "this month".to_owned(),
    };
    let may = may_change(shell);
    let body = html! {
        dl class="tiles" {
            (tile("t-devices", "Devices", &format::count(devices), &split))
            (tile("t-month", "Sent", &format::count(stats.sent_this_month), &month))
            (tile("t-sent", "Sent ever", &format::count(stats.sent), "taken by a provider"))
            (tile("t-failed", "Failed ever", &format::count(stats.failed), "refused or given up"))
        }
        @if may && !view.providers.is_empty() { (card("send", "Send", send(shell))) }
        (card("jobs", "Sends", jobs(shell, view, may)))
        (card("providers", "Providers", providers(shell, view, may)))
        (card("devices", "Devices", subscriptions(shell, view, may)))
    };
    page(shell, &head, &body)
}

fn may_change(shell: &Shell) -> bool {
    shell.can("POST", "/apps/{app}/push/send")
}

fn send(shell: &Shell) -> Markup {
    let action = paths::app(shell.app_id(), &["push", "send"]);
    let sent = shell.sent_to(&action);
    let targets = [
        ("member", "A member"),
        ("channel", "All who are enrolled in a channel"),
        ("all", "Everybody"),
    ];
    html! {
        form method="post" action=(action) class="form" {
            (csrf(shell))
            div class="columns" {
                (select("send-target", "target", "To", &targets, sent.or("target", "member")))
                (Field::new("to", "Member id or channel").max(255).scope("send").sent(sent)
                    .hint("Empty for everybody."))
            }
            div class="columns" {
                (Field::new("title", "Title").required().scope("send").sent(sent))
                (Field::new("url", "Opens").kind("url").scope("send").sent(sent)
                    .hint("An address, for Web Push."))
            }
            (Field::new("body", "Text").scope("send").sent(sent))
            div class="actions" { button type="submit" class="button primary" { "Send" } }
        }
    }
}

fn jobs(shell: &Shell, view: &Push, may_change: bool) -> Markup {
    let rows: Vec<_> = view
        .jobs
        .iter()
        .map(|job| job_row(shell, job, may_change))
        .collect();
    html! {
        @if rows.is_empty() { (empty("Nothing was sent yet", "Sends and how far they are are listed here.")) }
        @else {
            (table("Sends", &["Send", "State", "#Sent", "#Failed", "#Waiting", "Begun", ""], &rows))
        }
    }
}

fn job_state(job: &Job) -> Markup {
    let tone = match job.state.as_str() {
        "active" => Tone::Accent,
        "done" => Tone::Good,
        "cancelled" => Tone::Warn,
        _ => Tone::Bad,
    };
    html! {
        (badge(tone, &job.state))
        @if let Some(error) = &job.error { span class="sub" { (error) } }
    }
}

fn job_row(shell: &Shell, job: &Job, may_change: bool) -> Markup {
    html! {
        tr {
            th scope="row" {
                a href=(paths::app(shell.app_id(), &["push", "jobs", &job.job_id])) {
                    (job.title.as_deref().filter(|title| !title.is_empty()).unwrap_or("Without a title"))
                }
                span class="sub" {
                    @match &job.channel { Some(channel) => { "to channel " (channel) } None => { (job.job_id) } }
                }
            }
            td { (job_state(job)) }
            td class="num" { (format::count(job.sent)) }
            td class="num" { (format::count(job.failed)) }
            td class="num" { (job.pending.map_or("–".to_owned(), format::count)) }
            td { (time(shell, job.created_ms)) }
            td class="row-actions" {
                @if may_change && job.state == "active" { (cancel(shell, job)) }
            }
        }
    }
}

fn cancel(shell: &Shell, job: &Job) -> Markup {
    Confirm {
        id: &format!("cancel-{}", job.job_id),
        label: "Cancel",
        title: "Cancel the send?",
        text: "What is with a provider already may still arrive.",
        action: &paths::app(shell.app_id(), &["push", "jobs", &job.job_id, "cancel"]),
        verb: "Cancel the send",
        fields: html! {},
        is_dangerous: true,
    }
    .render(shell)
}

/// A send with its results.
pub fn job(shell: &Shell, view: &Job) -> Markup {
    let title = view
        .title
        .as_deref()
        .filter(|title| !title.is_empty())
        .unwrap_or("Without a title");
    let mut head = Head::of_app(title, Place::Push, shell)
        .lead(html! { (job_state(view)) " begun " (time(shell, view.created_ms)) })
        .actions(
            html! { @if may_change(shell) && view.state == "active" { (cancel(shell, view)) } },
        );
    head.crumb("Push", paths::app(shell.app_id(), &["push"]));
    let number = |value: Option<u64>| value.map_or("–".to_owned(), format::count);
    let rows: Vec<_> = view
        .results
        .iter()
        .map(|result| {
            html! {
                tr {
                    th scope="row" { (result.member_id) code class="sub" { (result.subscription_id) } }
                    td { (platform_name(&result.platform)) }
                    td {
                        @if result.success { (badge(Tone::Good, "taken")) } @else { (badge(Tone::Bad, "failed")) }
                        @if let Some(error) = &result.error { span class="sub" { (error) } }
                    }
                }
            }
        })
        .collect();
    let body = html! {
        dl class="tiles" {
            (tile("t-total", "Devices", &number(view.total), "to be reached"))
            (tile("t-sent", "Sent", &format::count(view.sent), "taken by a provider"))
            (tile("t-failed", "Failed", &format::count(view.failed), &format!("{} devices are no more", view.expired)))
            (tile("t-waiting", "Waiting", &number(view.pending), &format!("{} tries were repeated", view.retries)))
        }
        (card("results", "Results", html! {
            @if rows.is_empty() { (empty("No results", "There are none yet, or they are kept no longer.")) }
            @else { (table("Results", &["Member", "Provider", "Outcome"], &rows)) }
        }))
    };
    page(shell, &head, &body)
}

fn providers(shell: &Shell, view: &Push, may_change: bool) -> Markup {
    let rows: Vec<_> = view
        .providers
        .iter()
        .map(|provider| {
            html! {
                tr {
                    th scope="row" { (platform_name(&provider.platform)) }
                    td { (provider_facts(provider)) }
                    td class="row-actions" {
                        @if may_change {
                            (Confirm {
                                id: &format!("pdel-{}", provider.platform),
                                label: "Remove",
                                title: "Remove the provider?",
                                text: "Nothing is sent to its devices any more. The devices stay.",
                                action: &paths::app(shell.app_id(), &["push", "providers", &provider.platform, "delete"]),
                                verb: "Remove",
                                fields: html! {},
                                is_dangerous: true,
                            }.render(shell))
                        }
                    }
                }
            }
        })
        .collect();
    html! {
        @if rows.is_empty() { (empty("No providers", "Set one up, and devices can register.")) }
        @else { (table("Providers", &["Provider", "Set up as", ""], &rows)) }
        @for provider in &view.providers {
            @if let Some(key) = &provider.vapid_public_key {
                p class="hint" { "Browsers subscribe with this key (VAPID):" }
                (copyable("vapid", "Public key for Web Push", key))
            }
        }
        @if may_change { (set_up(shell)) }
    }
}

fn provider_facts(provider: &Provider) -> Markup {
    let facts = [
        ("contact", &provider.subject),
        ("project", &provider.project),
        ("account", &provider.client_email),
        ("topic", &provider.topic),
        ("key", &provider.key_id),
        ("team", &provider.team_id),
        ("by", &provider.auth),
    ];
    html! {
        @for (name, value) in facts {
            @if let Some(value) = value { span class="fact" { span class="muted" { (name) " " } (value) } " " }
        }
        @if provider.sandbox == Some(true) { (badge(Tone::Warn, "sandbox")) }
    }
}

/// Forms of the three: `subject` · `service_account` · `topic`, `key_id`, `team_id`, `key`, `sandbox`.
fn set_up(shell: &Shell) -> Markup {
    let action = |platform: &str| paths::app(shell.app_id(), &["push", "providers", platform]);
    let block = |title: &str, platform: &str, fields: Markup| {
        html! {
            details class="disclosure" open[shell.sent_to(&action(platform)).is_some()] {
                summary { h3 { "Set up " (title) } }
                form method="post" action=(action(platform)) class="form" {
                    (csrf(shell))
                    (fields)
                    div class="actions" { button type="submit" class="button primary" { "Save" } }
                }
            }
        }
    };
    let [web, fcm, apns] = ["web", "fcm", "apns"].map(|platform| shell.sent_to(&action(platform)));
    html! {
        (block("Web Push", "web", html! {
            (Field::new("subject", "Contact").required().scope("web").sent(web)
                .hint("mailto: or https: address where browser makers reach you. A key pair is made if there is none."))
        }))
        (block("Firebase", "fcm", html! {
            (Field::new("service_account", "Service account").rows(5).required().scope("fcm").sent(fcm)
                .hint("The JSON file of the service account. It is kept encrypted and never shown."))
        }))
        (block("Apple", "apns", html! {
            div class="columns" {
                (Field::new("topic", "Topic").required().scope("apns").sent(apns).hint("The app’s bundle id."))
                (Field::new("key_id", "Key id").required().scope("apns").sent(apns))
                (Field::new("team_id", "Team id").required().scope("apns").sent(apns))
            }
            (Field::new("key", "Key").rows(4).required().scope("apns").sent(apns)
                .hint("The .p8 file. It is kept encrypted and never shown."))
            (checkbox("apns-sandbox", "sandbox", "1", "Sandbox, for builds that are not from the store", apns.ticked("sandbox", "1", false)))
        }))
    }
}

fn subscriptions(shell: &Shell, view: &Push, may_change: bool) -> Markup {
    let path = paths::app(shell.app_id(), &["push"]);
    let next = view
        .cursor
        .as_deref()
        .map(|cursor| paths::with_query(&path, &[("member", &view.member), ("cursor", cursor)]));
    let rows: Vec<_> = view
        .subscriptions
        .iter()
        .map(|device| {
            html! {
                tr {
                    th scope="row" { (device.member_id) code class="sub" { (device.subscription_id) } }
                    td { (platform_name(&device.platform)) }
                    td { (device.channels.join(", ")) }
                    td { (time(shell, device.created_at)) }
                    td class="row-actions" {
                        @if may_change {
                            (Confirm {
                                id: &format!("forget-{}", device.subscription_id),
                                label: "Forget",
                                title: "Forget the device?",
                                text: "It gets no notifications until it registers again.",
                                action: &paths::app(shell.app_id(), &["push", "subscriptions", &device.subscription_id, "delete"]),
                                verb: "Forget it",
                                fields: html! {},
                                is_dangerous: true,
                            }.render(shell))
                        }
                    }
                }
            }
        })
        .collect();
    html! {
        form method="get" action=(path) class="filter" role="search" {
            (Field::new("member", "Member").value(&view.member).scope("device"))
            button type="submit" class="button" { "Show" }
        }
        @if rows.is_empty() { (empty("No devices", "Clients register them with the SDK’s push calls.")) }
        @else { (table("Devices", &["Member", "Provider", "Channels", "Since", ""], &rows)) }
        (more(next.as_deref()))
    }
}
