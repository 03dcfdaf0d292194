//! The outcome of a run, as data; `table`, `html` and `chart` show it.

pub mod chart;
pub mod html;
pub mod table;

use std::collections::HashSet;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::meter::Meter;
use crate::procfs::{Machine, ThreadCpu};
use crate::worker::{Outcome, Returns, Tallies};

/// Share of a CPU from which a generator thread counts as the bottleneck.
const GENERATOR_BUSY: f64 = 0.97;

/// Percentiles of a latency, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// (percentile, microseconds), for a chart; percentiles rise towards 100.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    /// `None` when nothing was recorded.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let at = |percentile: f64| histogram.value_at_percentile(percentile) as f64 / 1e3;
        let curve = histogram
            .iter_quantiles(4)
            .filter(|step| step.quantile_iterated_to() < 1.0)
            .map(|step| {
                let percentile = step.quantile_iterated_to() * 100.0;
                (percentile, step.value_iterated_to() as f64 / 1e3)
            });
        Some(Self {
            count: histogram.len(),
            mean_us: histogram.mean() / 1e3,
            p50_us: at(50.0),
            p90_us: at(90.0),
            p99_us: at(99.0),
            p999_us: at(99.9),
            max_us: histogram.max() as f64 / 1e3,
            curve: curve.collect(),
        })
    }
}

/// What the server's processes used.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    pub pids: Vec<u32>,
    /// CPU seconds in the measuring window.
    pub cpu_s: f64,
    /// Of one CPU.
    pub cpu_percent: f64,
    pub cpu_us_per_delivery: Option<f64>,
    pub cpu_us_per_publish: Option<f64>,
    pub cpu_us_per_connect: Option<f64>,
    /// Before the first connection.
    pub rss_before_bytes: u64,
    /// With all connections ready and nothing published.
    pub rss_connected_bytes: u64,
    /// At the end of the measuring window.
    pub rss_after_bytes: u64,
    /// Growth from before to connected, per connection.
    pub rss_per_connection_bytes: Option<f64>,
    /// CPU time of each thread in the window.
    pub threads: Vec<ThreadCpu>,
}

/// Whether every message arrived once and in order, over the whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Integrity {
    /// Deliveries that had to happen.
    pub due: u64,
    /// Distinct deliveries that did.
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
    /// Messages of streams that do not belong to the channel.
    pub alien: u64,
}

impl Integrity {
    /// Nothing lost, duplicated, out of order or foreign.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.out_of_order == 0 && self.alien == 0
    }
}

/// What went wrong besides.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Faults {
    pub errors: u64,
    pub connections_ended: u64,
    pub connect_failures: u64,
    pub stalls: u64,
    pub samples: Vec<String>,
}

impl From<Tallies> for Faults {
    fn from(t: Tallies) -> Self {
        Self {
            errors: t.errors,
            connections_ended: t.closed,
            connect_failures: t.connect_failures,
            stalls: t.stalls,
            samples: t.samples,
        }
    }
}

/// One round of `reconnect`.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// From the first drop until all are subscribed again.
    pub ready_ms: f64,
    /// From the first drop until a message published then has reached all.
    pub served_ms: f64,
    /// Server CPU seconds over that time.
    pub server_cpu_s: f64,
}

/// What entering cost, in `presence`.
#[derive(Clone, Debug, Serialize)]
pub struct Joins {
    pub members: u64,
    /// From the first until all had entered.
    pub seconds: f64,
    pub joins_per_s: f64,
    pub server_cpu_us_per_join: Option<f64>,
    /// Growth from connected to entered, per member.
    pub server_rss_bytes_per_member: Option<f64>,
}

/// One interval of the measuring window.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Seconds from the start of the window to the interval's end.
    pub at_s: f64,
    pub deliveries_per_s: f64,
    pub connects_per_s: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// Of one CPU.
    pub server_cpu_percent: Option<f64>,
    pub server_rss_bytes: Option<u64>,
}

/// What a run was.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub title: String,
    pub scenario: String,
    pub protocol: String,
    pub url: String,
    /// As given, secrets blanked.
    pub command: String,
    pub version: String,
    pub started_unix_ms: u64,
    pub machine: Machine,
    pub channels: usize,
    pub subscribers: u64,
    pub publishers: usize,
    pub payload_bytes: usize,
    pub threads: usize,
    /// Load in words: closed loop or open loop, and how much.
    pub load: String,
}

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub about: About,
    /// Length of the measuring window.
    pub seconds: f64,
    pub deliveries: u64,
    pub deliveries_per_s: f64,
    pub published: u64,
    pub publishes_per_s: f64,
    pub connects: u64,
    pub connects_per_s: f64,
    /// From send to delivery.
    pub latency: Option<Latency>,
    /// From send to the last subscriber.
    pub completion: Option<Latency>,
    /// From send to the publisher's ack or the HTTP response.
    pub ack: Option<Latency>,
    /// From connect to ready.
    pub connect: Option<Latency>,
    pub server: Option<Server>,
    /// CPU use of each generator thread, of one CPU.
    pub generator_cpu_percent: Vec<f64>,
    pub integrity: Integrity,
    pub faults: Faults,
    /// Connections that were cut, or resumed.
    pub returns: Option<Returns>,
    pub rounds: Vec<Round>,
    pub joins: Option<Joins>,
    /// What a reader must know to trust the numbers.
    pub warnings: Vec<String>,
    pub series: Vec<Point>,
}

impl Report {
    /// Puts together what the threads measured over `seconds`.
    pub fn new(about: About, seconds: f64, outcomes: Vec<Outcome>) -> Self {
        let mut meter = Meter::default();
        let mut tallies = Tallies::default();
        let mut integrity = Integrity::default();
        let unacked: HashSet<_> = outcomes.iter().flat_map(|o| &o.unacked).copied().collect();
        for outcome in outcomes {
            meter.merge(&outcome.meter);
            tallies.merge(&outcome.tallies);
            let missing = outcome.missing.iter();
            let excused = missing.filter(|message| unacked.contains(message)).count();
            let due = outcome.due.saturating_sub(excused as u64);
            integrity.due += due;
            integrity.received += outcome.unique;
            integrity.lost += due.saturating_sub(outcome.unique);
            integrity.duplicated += outcome.duplicated;
            integrity.out_of_order += outcome.out_of_order;
        }
        integrity.alien = tallies.alien;
        let per_second = |count: u64| {
            if seconds > 0.0 {
                count as f64 / seconds
            } else {
                0.0
            }
        };
        let deliveries = meter.intervals.iter().map(|i| i.deliveries).sum();
        let connects = meter.intervals.iter().map(|i| i.connects).sum();
        Self {
            about,
            seconds,
            deliveries,
            deliveries_per_s: per_second(deliveries),
            published: meter.published,
            publishes_per_s: per_second(meter.published),
            connects,
            connects_per_s: per_second(connects),
            latency: Latency::of(&meter.latency()),
            completion: Latency::of(&meter.completion),
            ack: Latency::of(&meter.ack),
            connect: Latency::of(&meter.connect),
            server: None,
            generator_cpu_percent: Vec::new(),
            integrity,
            returns: (tallies.returns != Returns::default()).then_some(tallies.returns),
            faults: tallies.into(),
            rounds: Vec::new(),
            joins: None,
            warnings: Vec::new(),
            series: series(&meter),
        }
    }

    /// Adds what a reader must know to trust the numbers; `rate` is the open-loop rate aimed at.
    pub fn add_warnings(&mut self, rate: Option<f64>) {
        let busy = self
            .generator_cpu_percent
            .iter()
            .filter(|&&percent| percent > GENERATOR_BUSY * 100.0)
            .count();
        let server_idle = self
            .server
            .as_ref()
            .is_some_and(|server| server.cpu_percent < 90.0);
        if busy > 0 && (server_idle || self.server.is_none()) {
            self.warnings.push(format!(
                "{busy} generator thread(s) used a whole CPU: the generator, not the server, may be what was measured"
            ));
        }
        if let Some(rate) = rate
            && self.publishes_per_s < rate * 0.98
        {
            self.warnings.push(format!(
                "published {:.0}/s of the {rate:.0}/s aimed at: latencies count from the time each message was due",
                self.publishes_per_s
            ));
        }
        if let Some(returns) = self.returns {
            if returns.unrecovered > 0 {
                self.warnings.push(format!(
                    "{} resumes met a gap larger than what the server keeps: lower the rate or the time away",
                    returns.unrecovered
                ));
            }
            if returns.unacked > 0 {
                self.warnings.push(format!(
                    "{} messages were not acknowledged: nobody had to have them",
                    returns.unacked
                ));
            }
        }
        if self.faults.stalls > 0 {
            self.warnings.push(format!(
                "{} times a message in flight did not arrive for 5 s",
                self.faults.stalls
            ));
        }
        if !self.integrity.is_clean() {
            self.warnings
                .push("messages were lost, duplicated or out of order: see integrity".to_owned());
        }
    }
}

fn series(meter: &Meter) -> Vec<Point> {
    let span = meter.span();
    let to_point = |(index, interval): (usize, &crate::meter::Interval)| {
        let start_ns = index as u64 * span.interval_ns;
        let end_ns = (start_ns + span.interval_ns).min(span.to_ns - span.from_ns);
        let seconds = (end_ns - start_ns).max(1) as f64 / 1e9;
        let percentile = |p: f64| {
            (!interval.latency.is_empty())
                .then(|| interval.latency.value_at_percentile(p) as f64 / 1e3)
        };
        Point {
            at_s: end_ns as f64 / 1e9,
            deliveries_per_s: interval.deliveries as f64 / seconds,
            connects_per_s: interval.connects as f64 / seconds,
            p50_us: percentile(50.0),
            p99_us: percentile(99.0),
            server_cpu_percent: None,
            server_rss_bytes: None,
        }
    };
    meter.intervals.iter().enumerate().map(to_point).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::meter::Span;

    pub(crate) fn sample() -> Report {
        let about = About {
            title: "A & B <test>".into(),
            scenario: "fanout".into(),
            protocol: "wsocket".into(),
            url: "ws://127.0.0.1:1".into(),
            command: "shardwire-loadtest fanout".into(),
            version: "0".into(),
            started_unix_ms: 0,
            machine: Machine::read(),
            channels: 1,
            subscribers: 10,
            publishers: 1,
            payload_bytes: 100,
            threads: 1,
            load: "closed loop".into(),
        };
        let mut meter = Meter::default();
        meter.start(Span::new(0, 1_000_000_000));
        for now in 0..10 {
            meter.enter(now * 100_000_000);
            (1..=100).for_each(|i| meter.delivery(i * 1000));
        }
        let outcome = Outcome {
            meter,
            tallies: Tallies::default(),
            due: 1001,
            unique: 1000,
            duplicated: 0,
            out_of_order: 0,
            missing: Vec::new(),
            unacked: Vec::new(),
        };
        Report::new(about, 1.0, vec![outcome])
    }

    #[test]
    fn totals_and_percentiles() {
        let report = sample();
        assert_eq!((report.deliveries, report.deliveries_per_s), (1000, 1000.0));
        let latency = report.latency.unwrap();
        assert!((latency.p50_us - 50.0).abs() < 0.2 && (latency.p99_us - 99.0).abs() < 0.2);
        assert!((latency.max_us - 100.0).abs() < 0.2);
        assert!(
            latency
                .curve
                .windows(2)
                .all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1)
        );
        assert_eq!(report.series.len(), 10);
        assert!(
            report
                .series
                .iter()
                .all(|p| (p.deliveries_per_s - 1000.0).abs() < 1e-6)
        );
    }

    #[test]
    fn a_lost_message_is_not_clean() {
        let mut report = sample();
        assert_eq!(report.integrity.lost, 1);
        assert!(!report.integrity.is_clean());
        report.add_warnings(None);
        assert_eq!(report.warnings.len(), 1);
        assert!(Integrity::default().is_clean());
    }

    #[test]
    fn falling_short_of_the_rate_is_said() {
        let mut report = sample();
        report.integrity = Integrity::default();
        report.publishes_per_s = 97.0;
        report.add_warnings(Some(100.0));
        assert_eq!(report.warnings.len(), 1);
    }
}
