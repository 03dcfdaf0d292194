//! What an app has used, over time and against its plan.

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::face::chart::{Bar, bars, meter};
use crate::dashboard::face::components::{card, tile};
use crate::dashboard::face::layout::{Head, Place, page};
use crate::dashboard::face::{Shell, format, paths};

/// As the admin API answers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// `minute`, `hour` or `day`.
    pub step: String,
    pub total: Amounts,
    /// Steps in which there was something, the oldest first.
    pub series: Vec<Point>,
    pub messages_today: Option<u64>,
    pub messages_this_month: Option<u64>,
    pub connections: Option<u64>,
    pub channels: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Amounts {
    pub messages: u64,
    pub deliveries: u64,
    pub refused: u64,
    pub connections_peak: u64,
    pub channels_peak: u64,
    pub push_sent: u64,
    pub push_failed: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Point {
    pub start_ms: u64,
    #[serde(flatten)]
    pub amounts: Amounts,
}

/// What a plan limits; as the admin API answers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Plan {
    pub id: String,
    pub name: Option<String>,
    pub connections_max: Option<u64>,
    pub channels_max: Option<u64>,
    pub messages_per_day: Option<u64>,
    pub messages_per_month: Option<u64>,
    pub push_per_month: Option<u64>,
    pub webhooks_max: Option<u64>,
    pub message_bytes_max: Option<u64>,
    pub history_ttl_s_max: Option<u64>,
    pub on_exhausted: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct UsageView {
    pub usage: Usage,
    /// `None`: the app has none, or whoever looks may not see it.
    pub plan: Option<Plan>,
    /// Where they are known.
    pub push_this_month: Option<u64>,
    pub webhooks: Option<u64>,
}

/// Bars of a chart.
const STEPS: u64 = 60;
const VIEWS: [(&str, &str); 3] = [
    ("minute", "Last hour"),
    ("hour", "60 hours"),
    ("day", "60 days"),
];

pub fn render(shell: &Shell, view: &UsageView) -> Markup {
    let head = Head::of_app("Usage", Place::Usage, shell)
        .lead(html! { "Times and days are UTC." })
        .actions(tabs(shell, &view.usage.step));
    let total = &view.usage.total;
    let chart = |id: &str, title: &str, of: fn(&Amounts) -> u64| {
        bars(id, title, &series(&view.usage, shell.now_ms, of))
    };
    let body = html! {
        (against_plan(view))
        dl class="tiles" {
            (tile("t-messages", "Messages", &format::count(total.messages), "accepted in this time"))
            (tile("t-deliveries", "Deliveries", &format::count(total.deliveries), "to connections"))
            (tile("t-refused", "Refused", &format::count(total.refused), "by limits"))
            (tile("t-peak", "Connections", &format::count(total.connections_peak), "at most at once"))
            (tile("t-channels", "Channels", &format::count(total.channels_peak), "at most at once"))
        }
        div class="charts" {
            (chart("c-messages", "Messages", |amounts| amounts.messages))
            (chart("c-deliveries", "Deliveries", |amounts| amounts.deliveries))
            (chart("c-connections", "Connections, at most", |amounts| amounts.connections_peak))
            (chart("c-channels", "Channels, at most", |amounts| amounts.channels_peak))
            @if total.push_sent > 0 { (chart("c-push", "Notifications", |amounts| amounts.push_sent)) }
            @if total.push_failed > 0 { (chart("c-push-failed", "Notifications that failed", |amounts| amounts.push_failed)) }
            @if total.refused > 0 { (chart("c-refused", "Refused", |amounts| amounts.refused)) }
        }
    };
    page(shell, &head, &body)
}

fn tabs(shell: &Shell, step: &str) -> Markup {
    let path = paths::app(shell.app_id(), &["usage"]);
    html! {
        nav class="tabs" aria-label="Time" {
            @for (value, label) in VIEWS {
                @let current = (value == step).then_some("page");
                a href=(paths::with_query(&path, &[("step", value)])) aria-current=[current] { (label) }
            }
        }
    }
}

fn against_plan(view: &UsageView) -> Markup {
    let usage = &view.usage;
    let none = Plan::default();
    let plan = view.plan.as_ref().unwrap_or(&none);
    let name = match (&view.plan, &plan.name) {
        (Some(_), Some(name)) if !name.is_empty() => format!("Plan: {name}"),
        (Some(plan), _) => format!("Plan: {}", plan.id),
        (None, _) => "No plan".to_owned(),
    };
    let meters = [
        (
            "Messages today",
            usage.messages_today,
            plan.messages_per_day,
        ),
        (
            "Messages this month",
            usage.messages_this_month,
            plan.messages_per_month,
        ),
        ("Connections now", usage.connections, plan.connections_max),
        ("Channels now", usage.channels, plan.channels_max),
        (
            "Notifications this month",
            view.push_this_month,
            plan.push_per_month,
        ),
        ("Webhooks", view.webhooks, plan.webhooks_max),
    ];
    card(
        "plan",
        &name,
        html! {
            div class="meters" {
                @for (label, used, limit) in meters {
                    @if let Some(used) = used { (meter(label, used, limit)) }
                }
            }
            @if view.plan.is_some() { (plan_facts(plan)) }
        },
    )
}

fn plan_facts(plan: &Plan) -> Markup {
    let exhausted = match plan.on_exhausted.as_deref() {
        Some("close") => "connections end",
        _ => "messages are refused",
    };
    html! {
        p class="hint" {
            @if let Some(bytes) = plan.message_bytes_max { "A message may have " (format::bytes(bytes)) ". " }
            @if let Some(seconds) = plan.history_ttl_s_max { "History is kept " (format::duration_s(seconds)) " at most. " }
            "What is used up: " (exhausted) "."
        }
    }
}

/// One bar per step up to now: steps in which there was nothing are not in the answer.
fn series(usage: &Usage, now_ms: u64, of: fn(&Amounts) -> u64) -> Vec<Bar> {
    let step_ms = match usage.step.as_str() {
        "day" => 86_400_000,
        "hour" => 3_600_000,
        _ => 60_000,
    };
    let last = now_ms / step_ms;
    let from = last.saturating_sub(STEPS - 1);
    (from..=last)
        .map(|index| {
            let start_ms = index * step_ms;
            let points = usage.series.iter();
            let found = points.filter(|point| point.start_ms / step_ms == index);
            let (date, clock) = (format::date(start_ms), format::time_of_day(start_ms));
            let clock = clock.get(..5).unwrap_or_default();
            let (label, name) = match step_ms {
                86_400_000 => (date.get(5..).unwrap_or_default().to_owned(), date),
                3_600_000 => (
                    format!("{} {clock}", date.get(5..).unwrap_or_default()),
                    format!("{date} {clock}"),
                ),
                _ => (clock.to_owned(), format!("{date} {clock}")),
            };
            Bar {
                label,
                name,
                value: found.map(|point| of(&point.amounts)).sum(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_without_anything_are_empty_bars() {
        let at = |start_ms, messages| Point {
            start_ms,
            amounts: Amounts {
                messages,
                ..Amounts::default()
            },
        };
        let now_ms = 1_795_515_330_000;
        let usage = Usage {
            step: "minute".to_owned(),
            series: vec![at(1_795_515_180_000, 7), at(1_795_515_300_000, 9), at(0, 5)],
            ..Usage::default()
        };
        let bars = series(&usage, now_ms, |amounts| amounts.messages);
        let values: Vec<_> = bars.iter().rev().take(4).map(|bar| bar.value).collect();
        assert_eq!((bars.len(), values), (60, vec![9, 0, 7, 0]));
        assert_eq!(
            bars.last().map(|bar| bar.name.as_str()),
            Some("2026-11-24 10:15")
        );
    }

    #[test]
    fn an_answer_of_the_admin_api_is_read() {
        let answer = serde_json::json!({"app": "a", "step": "hour", "total": {"messages": 3}, "hasMore": false,
            "series": [{"startMs": 5, "messages": 3, "connectionsPeak": 1}], "messagesToday": 3});
        let usage: Usage = serde_json::from_value(answer).expect("read");
        assert_eq!(usage.series[0].amounts.connections_peak, 1);
        assert_eq!((usage.messages_today, usage.connections), (Some(3), None));
    }
}
