//! Leads the generator threads through the phases of a run, and measures the server meanwhile.
//!
//! It counts nothing per message: the threads do, and hand it over at the end.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::meter::Span;
use crate::opts::Scenario;
use crate::procfs::{self, Cpu, ThreadCpu};
use crate::progress::Progress;
use crate::report::{About, Joins, Report, Round, Server};
use crate::shared::{Phase, Shared};
use crate::worker::Outcome;

/// How often the coordinator looks at counters.
const POLL: Duration = Duration::from_millis(20);
/// Pause between the last connection and the first message.
const SETTLE: Duration = Duration::from_millis(300);
/// Missing deliveries are given up when none has come for this long.
const DRAIN_QUIET: Duration = Duration::from_secs(3);
/// Start of the generator threads' names.
pub(crate) const THREAD_NAME: &str = "lt-gen-";

/// CPU and memory of server and generator at the edges of the window and in between.
#[derive(Default)]
pub(crate) struct Samples {
    seconds: f64,
    /// (seconds into the window, CPU nanoseconds, resident bytes) at each look.
    server: Vec<(f64, u64, u64)>,
    server_threads: [Vec<ThreadCpu>; 2],
    own_threads: [Vec<ThreadCpu>; 2],
    rss_before: u64,
    rss_connected: u64,
    rss_after: u64,
    rounds: Vec<Round>,
    joins: Option<Joins>,
    connections: u64,
}

pub(crate) struct Coordinator<'r> {
    shared: &'r Shared,
    scenario: &'r Scenario,
    pub(crate) pids: &'r [u32],
    progress: Progress,
    rss_before: u64,
}

impl<'r> Coordinator<'r> {
    pub(crate) fn new(shared: &'r Shared, scenario: &'r Scenario) -> Self {
        let common = scenario.common();
        let pids = &common.load.server_pid;
        Self {
            shared,
            scenario,
            pids,
            progress: Progress::new(common.output.quiet),
            rss_before: procfs::rss_bytes(pids),
        }
    }

    pub(crate) fn drive(&self) -> anyhow::Result<Samples> {
        let connections = self.shared.plan.connections();
        self.wait_ready(connections)?;
        thread::sleep(SETTLE);
        let mut samples = Samples {
            rss_before: self.rss_before,
            rss_connected: procfs::rss_bytes(self.pids),
            connections,
            ..Samples::default()
        };
        match self.scenario {
            Scenario::Reconnect(opts) => self.drive_rounds(opts.rounds, &mut samples)?,
            Scenario::Presence(_) => self.drive_joins(&mut samples)?,
            Scenario::Idle(_) => {
                self.drive_load(Duration::ZERO, &mut samples)?;
            }
            _ => self.drive_load(self.scenario.common().load.warmup, &mut samples)?,
        }
        self.drain()?;
        self.progress.finish();
        Ok(samples)
    }

    fn wait_ready(&self, connections: u64) -> anyhow::Result<()> {
        let timeout = self.scenario.common().load.timeout;
        let start = Instant::now();
        loop {
            let ready = self.shared.ready.load(Ordering::Acquire);
            self.progress.connecting(ready, connections);
            if ready >= connections {
                return Ok(());
            }
            self.check_failure()?;
            ensure!(
                start.elapsed() < timeout,
                "only {ready} of {connections} connections ready after {timeout:?}"
            );
            thread::sleep(POLL.min(Duration::from_millis(2)));
        }
    }

    fn check_failure(&self) -> anyhow::Result<()> {
        match self.shared.failure() {
            Some(reason) => bail!(reason),
            None => Ok(()),
        }
    }

    /// Warm-up, then the window, sampled at each interval's end.
    fn drive_load(&self, warmup: Duration, samples: &mut Samples) -> anyhow::Result<()> {
        let duration = self.scenario.common().load.duration;
        let from_ns = self.shared.now_ns() + warmup.as_nanos() as u64;
        let span = Span::new(from_ns, duration.as_nanos() as u64);
        self.shared.set_span(span);
        self.phase(Phase::Run)?;
        let mut next_ns = span.from_ns;
        loop {
            let now_ns = self.shared.now_ns();
            if now_ns < next_ns {
                let pause = Duration::from_nanos(next_ns - now_ns).min(POLL * 5);
                thread::sleep(pause);
                self.check_failure()?;
                let seconds = now_ns.saturating_sub(span.from_ns) as f64 / 1e9;
                self.progress
                    .running(seconds, duration.as_secs_f64(), self.shared);
                continue;
            }
            self.sample(
                samples,
                now_ns.saturating_sub(span.from_ns),
                next_ns == span.from_ns,
                next_ns >= span.to_ns,
            );
            if next_ns >= span.to_ns {
                break;
            }
            next_ns = (next_ns + span.interval_ns).min(span.to_ns);
        }
        samples.seconds = duration.as_secs_f64();
        samples.rss_after = procfs::rss_bytes(self.pids);
        Ok(())
    }

    /// One look at the server; also at the threads when it is the `first` or the `last` of the window.
    fn sample(&self, samples: &mut Samples, at_ns: u64, first: bool, last: bool) {
        let server = procfs::cpu(self.pids);
        samples.server.push((
            at_ns as f64 / 1e9,
            server.total_ns,
            procfs::rss_bytes_quick(self.pids),
        ));
        let edge = if first { Some(0) } else { last.then_some(1) };
        if let Some(edge) = edge {
            samples.server_threads[edge] = server.threads;
            samples.own_threads[edge] = own_cpu().threads;
        }
    }

    fn drive_rounds(&self, rounds: u32, samples: &mut Samples) -> anyhow::Result<()> {
        let connections = self.shared.plan.connections();
        if self.shared.settings.resumes {
            // A client SDK resumes only when it has received something before.
            ensure!(self.probe()?, "no message reached everybody within 10 s");
        }
        let start_ns = self.shared.now_ns();
        // One window over all rounds, whose end is not known before.
        self.shared.set_span(Span {
            from_ns: start_ns,
            to_ns: u64::MAX / 2,
            interval_ns: u64::MAX / 2,
        });
        self.sample(samples, 0, true, false);
        for round in 1..=rounds {
            self.progress.round(round, rounds);
            let cpu_before = procfs::cpu(self.pids).total_ns;
            let start = Instant::now();
            self.phase(Phase::Drop)?;
            self.wait_ready(connections)?;
            let ready_ms = start.elapsed().as_secs_f64() * 1e3;
            ensure!(
                self.probe()?,
                "round {round}: the message after the return did not reach everybody within 10 s"
            );
            samples.rounds.push(Round {
                ready_ms,
                served_ms: start.elapsed().as_secs_f64() * 1e3,
                server_cpu_s: (procfs::cpu(self.pids).total_ns - cpu_before) as f64 / 1e9,
            });
            thread::sleep(SETTLE);
        }
        let end_ns = self.shared.now_ns() - start_ns;
        self.sample(samples, end_ns, false, true);
        samples.seconds = end_ns as f64 / 1e9;
        samples.rss_after = procfs::rss_bytes(self.pids);
        Ok(())
    }

    fn drive_joins(&self, samples: &mut Samples) -> anyhow::Result<()> {
        let members = u64::from(self.shared.plan.members);
        let start_ns = self.shared.now_ns();
        self.shared.set_span(Span {
            from_ns: start_ns,
            to_ns: u64::MAX / 2,
            interval_ns: u64::MAX / 2,
        });
        self.sample(samples, 0, true, false);
        let cpu_before = procfs::cpu(self.pids).total_ns;
        let start = Instant::now();
        self.phase(Phase::Enter)?;
        let timeout = self.scenario.common().load.timeout;
        let entered = || self.shared.entered.load(Ordering::Acquire);
        let done = self.wait_for(timeout, || entered() >= members);
        let seconds = start.elapsed().as_secs_f64();
        self.check_failure()?;
        ensure!(done, "only {} of {members} have entered", entered());
        // Others are told of the last ones, too.
        thread::sleep(SETTLE);
        let cpu_ns = procfs::cpu(self.pids).total_ns - cpu_before;
        samples.rss_after = procfs::rss_bytes(self.pids);
        let end_ns = self.shared.now_ns() - start_ns;
        self.sample(samples, end_ns, false, true);
        samples.seconds = end_ns as f64 / 1e9;
        let per = |total: f64| (!self.pids.is_empty()).then(|| total / members as f64);
        let growth = samples.rss_after.saturating_sub(samples.rss_connected);
        samples.joins = Some(Joins {
            members,
            seconds,
            joins_per_s: members as f64 / seconds.max(1e-9),
            server_cpu_us_per_join: per(cpu_ns as f64 / 1e3),
            server_rss_bytes_per_member: per(growth as f64),
        });
        Ok(())
    }

    /// Publishes one message on each stream; whether all of them reached everybody.
    fn probe(&self) -> anyhow::Result<bool> {
        let probes = self.shared.plan.streams.len() as u64;
        let wanted = self.shared.completed.load(Ordering::Acquire) + probes;
        self.phase(Phase::Probe)?;
        Ok(self.wait_for(Duration::from_secs(10), || {
            self.shared.completed.load(Ordering::Acquire) >= wanted
        }))
    }

    fn phase(&self, phase: Phase) -> anyhow::Result<()> {
        self.shared.set_phase(phase);
        let threads = self.shared.settings.threads as u32;
        let done = self.wait_for(Duration::from_secs(30), || {
            self.shared.acks.load(Ordering::Acquire) >= threads
        });
        ensure!(done, "the generator threads did not reach phase {phase:?}");
        Ok(())
    }

    /// Polls every millisecond until `done`; false after `timeout`.
    fn wait_for(&self, timeout: Duration, done: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > timeout {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Stops the load and waits for what is on its way. What does not come is found lost later.
    fn drain(&self) -> anyhow::Result<()> {
        self.phase(Phase::Stop)?;
        self.shared.set_phase(Phase::Drain);
        let threads = self.shared.settings.threads as u32;
        let start = Instant::now();
        let mut last = (
            self.shared.delivered.load(Ordering::Relaxed),
            Instant::now(),
        );
        while self.shared.acks.load(Ordering::Acquire) < threads {
            thread::sleep(POLL);
            let delivered = self.shared.delivered.load(Ordering::Relaxed);
            if delivered != last.0 {
                last = (delivered, Instant::now());
            }
            if last.1.elapsed() > DRAIN_QUIET
                || start.elapsed() > self.scenario.common().load.timeout
            {
                break;
            }
        }
        Ok(())
    }
}

fn own_cpu() -> Cpu {
    procfs::cpu(&[std::process::id()])
}

/// CPU time of each thread between two samples, busiest first.
fn thread_difference(samples: &[Vec<ThreadCpu>; 2]) -> Vec<ThreadCpu> {
    let mut threads = samples[1].clone();
    for thread in &mut threads {
        let before = samples[0].iter().find(|before| before.tid == thread.tid);
        thread.cpu_ns = thread
            .cpu_ns
            .saturating_sub(before.map_or(0, |before| before.cpu_ns));
    }
    threads.sort_by_key(|thread| std::cmp::Reverse(thread.cpu_ns));
    threads
}

impl Samples {
    pub(crate) fn into_report(self, about: About, outcomes: Vec<Outcome>, pids: &[u32]) -> Report {
        let mut report = Report::new(about, self.seconds, outcomes);
        let own = thread_difference(&self.own_threads);
        let generators = own
            .iter()
            .filter(|thread| thread.name.starts_with(THREAD_NAME));
        report.generator_cpu_percent = generators
            .map(|thread| thread.cpu_ns as f64 / 1e7 / self.seconds.max(1e-9))
            .collect();
        report.rounds = self.rounds.clone();
        report.joins = self.joins.clone();
        for (point, pair) in report
            .series
            .iter_mut()
            .zip(self.server.windows(2))
            .filter(|_| !pids.is_empty())
        {
            let seconds = (pair[1].0 - pair[0].0).max(1e-9);
            point.server_cpu_percent =
                Some(pair[1].1.saturating_sub(pair[0].1) as f64 / 1e7 / seconds);
            point.server_rss_bytes = Some(pair[1].2);
        }
        if !self.rounds.is_empty() || self.joins.is_some() {
            report.series.clear();
        }
        if !pids.is_empty() {
            report.server = Some(self.server(&report, pids));
        }
        report
    }

    /// Server CPU in the window. Samples are taken a little late, so the time between them is scaled to it.
    fn server_cpu_ns(&self) -> f64 {
        let (Some(first), Some(last)) = (self.server.first(), self.server.last()) else {
            return 0.0;
        };
        let used = last.1.saturating_sub(first.1) as f64;
        used * self.seconds / (last.0 - first.0).max(1e-9)
    }

    fn server(&self, report: &Report, pids: &[u32]) -> Server {
        let cpu_ns = self.server_cpu_ns();
        let per =
            |count: u64, wanted: bool| (wanted && count > 0).then(|| cpu_ns / 1e3 / count as f64);
        let is_connecting = matches!(report.about.scenario.as_str(), "storm" | "reconnect");
        let growth = self.rss_connected.saturating_sub(self.rss_before) as f64;
        Server {
            pids: pids.to_vec(),
            cpu_s: cpu_ns / 1e9,
            cpu_percent: cpu_ns / 1e7 / self.seconds.max(1e-9),
            cpu_us_per_delivery: per(report.deliveries, !is_connecting),
            cpu_us_per_publish: per(report.published, !is_connecting),
            cpu_us_per_connect: per(report.connects, is_connecting),
            rss_before_bytes: self.rss_before,
            rss_connected_bytes: self.rss_connected,
            rss_after_bytes: self.rss_after,
            rss_per_connection_bytes: (self.connections > 0)
                .then(|| growth / self.connections as f64),
            threads: thread_difference(&self.server_threads),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_times_are_differences() {
        let thread = |tid, cpu_ns| ThreadCpu {
            tid,
            name: "t".into(),
            cpu_ns,
        };
        let difference = thread_difference(&[vec![thread(1, 5)], vec![thread(1, 8), thread(2, 4)]]);
        assert_eq!(
            difference
                .iter()
                .map(|t| (t.tid, t.cpu_ns))
                .collect::<Vec<_>>(),
            [(2, 4), (1, 3)]
        );
    }
}
