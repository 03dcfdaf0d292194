//! `top`: what each shard does at the moment. Rates and latencies are of the last interval, from the differences of two
//! readings.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::{cursor, execute, terminal};
use serde_json::{Value, json};

use super::Session;
use super::node::sum;
use crate::cli::Top;
use crate::failure::Failure;
use crate::output::{self, bytes, cell};

/// One shard, or all of them, over an interval.
#[derive(Debug, Clone, PartialEq)]
struct Load {
    /// A shard's number, or `all`.
    name: String,
    core: String,
    connections: u64,
    subscriptions: u64,
    channels: u64,
    /// Per second.
    messages_in: f64,
    published: f64,
    delivered: f64,
    bytes_sent: f64,
    /// Percent of one core.
    cpu: f64,
    outbox_bytes: u64,
    /// Acceptance to the kernel, of what was delivered; `None` where nothing was.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

const COLUMNS: [&str; 13] = [
    "SHARD", "CORE", "CONNS", "SUBS", "CHANNELS", "IN/S", "PUB/S", "OUT/S", "SENT/S", "CPU%",
    "OUTBOX", "P50 MS", "P99 MS",
];

impl Load {
    fn cells(&self) -> Vec<String> {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), |ms| format!("{ms:.2}"));
        vec![
            self.name.clone(),
            self.core.clone(),
            self.connections.to_string(),
            self.subscriptions.to_string(),
            self.channels.to_string(),
            format!("{:.0}", self.messages_in),
            format!("{:.0}", self.published),
            format!("{:.0}", self.delivered),
            // Truncation: a part of a byte.
            bytes(self.bytes_sent as u64),
            format!("{:.1}", self.cpu),
            bytes(self.outbox_bytes),
            ms(self.p50_ms),
            ms(self.p99_ms),
        ]
    }

    fn to_json(&self) -> Value {
        json!({
            "shard": self.name.parse::<u64>().ok(),
            "connections": self.connections,
            "subscriptions": self.subscriptions,
            "channels": self.channels,
            "messagesInPerSecond": self.messages_in,
            "publishedPerSecond": self.published,
            "deliveriesPerSecond": self.delivered,
            "bytesSentPerSecond": self.bytes_sent,
            "cpuPercent": self.cpu,
            "outboxBytes": self.outbox_bytes,
            "p50Ms": self.p50_ms,
            "p99Ms": self.p99_ms,
        })
    }
}

impl Session<'_> {
    pub(super) fn top(self, command: &Top) -> Result<(), Failure> {
        let interval = Duration::from_secs_f64(command.interval);
        let live = !command.once && !self.json && io::stdout().is_terminal();
        let mut before = self.node()?;
        let screen = live.then(Screen::enter).transpose()?;
        loop {
            let due = Instant::now() + interval;
            if screen.is_some() {
                if wait_for_quit(due)? {
                    return Ok(());
                }
            } else {
                thread::sleep(interval);
            }
            let node = self.node()?;
            let loads = loads(&before, &node);
            if self.json {
                output::line(&report(&node, &loads).to_string())?;
            } else if let Some(screen) = &screen {
                screen.show(&page(&node, &loads))?;
            } else {
                output::line(&page(&node, &loads))?;
            }
            if command.once {
                return Ok(());
            }
            before = node;
        }
    }

    fn node(self) -> Result<Value, Failure> {
        let mut answer = self.client.get("/admin/nodes")?;
        match answer["nodes"][0].take() {
            Value::Null => Err(Failure::Failed("the server names no node".into())),
            node => Ok(node),
        }
    }
}

fn report(node: &Value, loads: &[Load]) -> Value {
    let (all, shards) = loads
        .split_last()
        .map_or((None, loads), |(all, shards)| (Some(all), shards));
    json!({
        "pid": node["pid"],
        "stage": node["stage"],
        "timeMs": node["timeMs"],
        "residentBytes": node["residentBytes"],
        "shards": shards.iter().map(Load::to_json).collect::<Vec<_>>(),
        "all": all.map(Load::to_json),
    })
}

/// What is shown: a line on the process, and the table.
fn page(node: &Value, loads: &[Load]) -> String {
    let up_s = (number(node, "timeMs") - number(node, "startedMs")) / 1000.0;
    // Truncation: whole seconds.
    let up = humantime::format_duration(Duration::from_secs(up_s.max(0.0) as u64));
    let head = format!(
        "shardwire {}  pid {}  {}  up {up}  {}  memory {}  outboxes {}",
        cell(&node["version"]),
        cell(&node["pid"]),
        cell(&node["stage"]),
        cell(&node["listen"]),
        bytes(node["residentBytes"].as_u64().unwrap_or(0)),
        bytes(sum(node, "outboxBytes")),
    );
    let rows: Vec<Vec<String>> = loads.iter().map(Load::cells).collect();
    format!("{head}\n\n{}", output::render(&COLUMNS, &rows, false))
}

/// Each shard that has answered, and the sum of them last.
fn loads(before: &Value, after: &Value) -> Vec<Load> {
    let seconds = ((number(after, "timeMs") - number(before, "timeMs")) / 1000.0).max(0.001);
    let bounds: Vec<f64> = after["latencyBoundsUs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_f64)
        .collect();
    let mut all = Load {
        name: "all".into(),
        core: String::new(),
        connections: 0,
        subscriptions: 0,
        channels: 0,
        messages_in: 0.0,
        published: 0.0,
        delivered: 0.0,
        bytes_sent: 0.0,
        cpu: 0.0,
        outbox_bytes: 0,
        p50_ms: None,
        p99_ms: None,
    };
    let mut all_buckets = vec![0.0; bounds.len() + 1];
    let mut loads = Vec::new();
    for shard in after["shards"].as_array().into_iter().flatten() {
        if shard["up"] != true {
            continue;
        }
        // One that has not answered before, or has been started anew, has no differences yet.
        let mut earlier = before["shards"].as_array().into_iter().flatten();
        let earlier = earlier.find(|s| s["shard"] == shard["shard"] && s["up"] == true);
        let rate = |field: &str| {
            let earlier = earlier.map_or_else(|| number(shard, field), |s| number(s, field));
            (number(shard, field) - earlier).max(0.0) / seconds
        };
        let buckets = differences(earlier.unwrap_or(shard), shard);
        for (sum, count) in all_buckets.iter_mut().zip(&buckets) {
            *sum += count;
        }
        let load = Load {
            name: cell(&shard["shard"]),
            core: cell(&shard["core"]),
            connections: shard["connections"].as_u64().unwrap_or(0),
            subscriptions: shard["subscriptions"].as_u64().unwrap_or(0),
            channels: shard["channels"].as_u64().unwrap_or(0),
            messages_in: rate("messagesIn"),
            published: rate("published"),
            delivered: rate("deliveries"),
            bytes_sent: rate("bytesSent"),
            cpu: rate("cpuSeconds") * 100.0,
            outbox_bytes: shard["outboxBytes"].as_u64().unwrap_or(0),
            p50_ms: quantile(&buckets, &bounds, 0.5),
            p99_ms: quantile(&buckets, &bounds, 0.99),
        };
        all.connections += load.connections;
        all.subscriptions += load.subscriptions;
        all.channels += load.channels;
        all.messages_in += load.messages_in;
        all.published += load.published;
        all.delivered += load.delivered;
        all.bytes_sent += load.bytes_sent;
        all.cpu += load.cpu;
        all.outbox_bytes += load.outbox_bytes;
        loads.push(load);
    }
    all.p50_ms = quantile(&all_buckets, &bounds, 0.5);
    all.p99_ms = quantile(&all_buckets, &bounds, 0.99);
    loads.push(all);
    loads
}

fn differences(before: &Value, after: &Value) -> Vec<f64> {
    let counts = |shard: &Value| -> Vec<f64> {
        let buckets = shard["delivery"]["buckets"].as_array();
        buckets
            .into_iter()
            .flatten()
            .filter_map(Value::as_f64)
            .collect()
    };
    let before = counts(before);
    let difference = |(at, count): (usize, f64)| (count - before.get(at).unwrap_or(&0.0)).max(0.0);
    counts(after)
        .into_iter()
        .enumerate()
        .map(difference)
        .collect()
}

/// The quantile of a histogram in ms, evenly spread inside its bucket; of the last, open bucket its lower bound.
fn quantile(buckets: &[f64], bounds_us: &[f64], q: f64) -> Option<f64> {
    let total: f64 = buckets.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let rank = total * q;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, upper) in buckets.iter().zip(bounds_us) {
        if below + count >= rank && *count > 0.0 {
            return Some((lower + (upper - lower) * (rank - below) / count) / 1000.0);
        }
        below += count;
        lower = *upper;
    }
    Some(lower / 1000.0)
}

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or(0.0)
}

/// The terminal while `top` has it; dropping gives it back as it was.
struct Screen;

impl Screen {
    fn enter() -> Result<Self, Failure> {
        terminal::enable_raw_mode()?;
        // From here on, so that a failure below gives the terminal back.
        let screen = Self;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        screen.show("…")?;
        Ok(screen)
    }

    /// Replaces what is shown; what does not fit is left out.
    fn show(&self, page: &str) -> Result<(), Failure> {
        let (width, height) = terminal::size().unwrap_or((80, 24));
        let mut out = io::stdout().lock();
        execute!(out, cursor::MoveTo(0, 0))?;
        let foot = ["", "q quits"];
        let lines = page.lines().chain(foot).take(usize::from(height));
        for (at, line) in lines.enumerate() {
            let line: String = line.chars().take(usize::from(width)).collect();
            // Raw mode: the line end does not bring the cursor back.
            let end = if at == 0 { "" } else { "\r\n" };
            write!(out, "{end}{line}")?;
            execute!(out, terminal::Clear(terminal::ClearType::UntilNewLine))?;
        }
        execute!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing is left to be done where the terminal has gone.
        let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

/// Waits until `due`; true as soon as `q`, Escape or Ctrl-C is pressed.
fn wait_for_quit(due: Instant) -> Result<bool, Failure> {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
                KeyCode::Char('c') if control => return Ok(true),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(time_ms: u64, deliveries: u64, cpu: f64, buckets: [u64; 3]) -> Value {
        json!({
            "timeMs": time_ms, "startedMs": 0, "latencyBoundsUs": [1000, 2000],
            "shards": [
                {"shard": 0, "core": 1, "up": true, "connections": 3, "subscriptions": 4, "channels": 2,
                 "messagesIn": 0, "published": 0, "deliveries": deliveries, "bytesSent": 0,
                 "cpuSeconds": cpu, "outboxBytes": 5, "delivery": {"buckets": buckets}},
                {"shard": 1, "core": 2, "up": false},
            ],
        })
    }

    #[test]
    fn rates_and_latencies_are_of_the_interval() {
        let loads = loads(
            &node(1000, 50, 1.0, [9, 9, 0]),
            &node(3000, 250, 2.0, [9, 109, 0]),
        );
        assert_eq!(loads.len(), 2, "{loads:?}");
        let shard = &loads[0];
        assert_eq!(
            (shard.delivered, shard.cpu, shard.connections),
            (100.0, 50.0, 3)
        );
        assert_eq!((shard.p50_ms, shard.p99_ms), (Some(1.5), Some(1.99)));
        assert_eq!(
            (&*loads[1].name, loads[1].delivered, loads[1].p50_ms),
            ("all", 100.0, Some(1.5))
        );
    }

    #[test]
    fn nothing_delivered_has_no_latency_and_the_open_bucket_its_bound() {
        let bounds = [1000.0, 2000.0];
        assert_eq!(quantile(&[0.0, 0.0, 0.0], &bounds, 0.5), None);
        assert_eq!(quantile(&[0.0, 0.0, 7.0], &bounds, 0.5), Some(2.0));
    }

    #[test]
    fn a_page_has_a_row_for_each_shard_that_answers() {
        let (before, after) = (node(1000, 50, 1.0, [0; 3]), node(62_000, 50, 1.0, [0; 3]));
        let page = page(&after, &loads(&before, &after));
        let lines: Vec<&str> = page.lines().collect();
        assert!(lines[0].contains("up 1m 2s"), "{page}");
        assert!(
            lines[2].starts_with("SHARD") && lines[2].ends_with("P99 MS"),
            "{page}"
        );
        assert!(
            lines[3].starts_with('0') && lines[4].starts_with("all"),
            "{page}"
        );
        assert_eq!(lines.len(), 5);
    }
}
