//! Carries out a scenario: checks the arguments, starts the threads, puts the report together.

use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};

use crate::adapter::Adapter;
use crate::coordinator::{Coordinator, THREAD_NAME};
use crate::net::{self, Sources};
use crate::opts::Scenario;
use crate::plan::Plan;
use crate::procfs::Machine;
use crate::report::{About, Report};
use crate::scenario;
use crate::shared::{Phase, Settings, Shared};
use crate::worker::{Outcome, Worker};

/// Marks an error that the arguments are to blame for.
#[derive(Debug)]
pub struct BadArguments;

impl std::fmt::Display for BadArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bad arguments")
    }
}

/// Runs `scenario` and reports. `command` is the command line, for the report.
///
/// # Errors
/// With [`BadArguments`] in the chain when the arguments make no run; otherwise when connections could
/// not be made or the run could not be finished. Lost messages are no error: see the report.
pub fn run(scenario: &Scenario, command: &[String]) -> anyhow::Result<Report> {
    let (settings, plan, about) = prepare(scenario, command).context(BadArguments)?;
    net::raise_file_limit(plan.connections() + u64::from(plan.churn.slots()))?;
    let shared = Shared::new(settings, plan).context("cannot make an eventfd")?;
    let coordinator = Coordinator::new(&shared, scenario);
    let mut report = thread::scope(|scope| {
        let handles: anyhow::Result<Vec<_>> = (0..shared.settings.threads)
            .map(|index| start_thread(scope, &shared, index))
            .collect();
        let driven = match &handles {
            Ok(_) => coordinator.drive(),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        shared.set_phase(Phase::Exit);
        let join = |handle: thread::ScopedJoinHandle<'_, Outcome>| {
            handle
                .join()
                .map_err(|_| anyhow::anyhow!("a generator thread panicked"))
        };
        let outcomes = handles
            .unwrap_or_default()
            .into_iter()
            .map(join)
            .collect::<anyhow::Result<Vec<_>>>()?;
        match driven {
            Ok(samples) => Ok(samples.into_report(about, outcomes, coordinator.pids)),
            Err(error) => Err(with_samples(error, &outcomes)),
        }
    })?;
    report.add_warnings(scenario::open_rate(scenario));
    Ok(report)
}

fn prepare(scenario: &Scenario, command: &[String]) -> anyhow::Result<(Settings, Plan, About)> {
    let common = scenario.common();
    common.load.validate()?;
    let (target, host) = common.target.resolve()?;
    let subscribe_target = common.target.resolve_subscribe()?;
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let nonce = format!("{:x}", started.as_micros() as u64 & 0xffff_ffff_ffff);
    let tls = common.target.connector(&host)?;
    let adapter = Adapter::new(&common.target, &nonce);
    let resumes =
        matches!(scenario, Scenario::Churn(_) | Scenario::Reconnect(_)) && adapter.can_resume();
    let plan = scenario::plan(scenario, &adapter, &adapter.channel_prefix(&nonce))?;
    let sources = match common.load.sources {
        _ if !net::is_ipv4_loopback(target) => 0,
        0 => Sources::needed(plan.connections() + u64::from(plan.churn.slots())),
        given => given,
    };
    let settings = Settings {
        target,
        subscribe_target,
        host,
        tls,
        adapter,
        size: common.load.size,
        threads: common.load.threads,
        cpus: common.load.cpu.clone(),
        sources,
        connect_window: common.load.connect_window,
        resumes,
    };
    let about = About {
        title: common
            .output
            .title
            .clone()
            .unwrap_or_else(|| scenario.name().to_owned()),
        scenario: scenario.name().to_owned(),
        protocol: common.target.protocol.name().to_owned(),
        url: match &common.target.subscribe_url {
            Some(other) => format!("{} to {other}", common.target.url),
            None => common.target.url.clone(),
        },
        command: blank_secrets(command),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_ms: started.as_millis() as u64,
        machine: Machine::read(),
        channels: plan.channels.len(),
        subscribers: plan.subscribers(),
        publishers: plan.publishers.len(),
        payload_bytes: common.load.size,
        threads: common.load.threads,
        load: scenario::load_text(scenario),
    };
    Ok((settings, plan, about))
}

fn start_thread<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    shared: &'scope Shared,
    index: usize,
) -> anyhow::Result<thread::ScopedJoinHandle<'scope, Outcome>> {
    let worker = Worker::new(shared, index).context("cannot set up a generator thread")?;
    thread::Builder::new()
        .name(format!("{THREAD_NAME}{index}"))
        .spawn_scoped(scope, move || worker.run())
        .context("cannot start a generator thread")
}

/// Adds what the threads saw to an error that only says that something did not happen.
fn with_samples(error: anyhow::Error, outcomes: &[Outcome]) -> anyhow::Error {
    let samples: Vec<_> = outcomes
        .iter()
        .flat_map(|outcome| &outcome.tallies.samples)
        .cloned()
        .collect();
    if samples.is_empty() {
        error
    } else {
        error.context(samples.join("; "))
    }
}

fn blank_secrets(command: &[String]) -> String {
    let mut out = Vec::with_capacity(command.len());
    let mut blank = false;
    for word in command {
        let flag = word.split('=').next().unwrap_or_default();
        let is_secret = matches!(flag, "--key" | "--server-key" | "--secret");
        out.push(match (blank, is_secret, word.contains('=')) {
            (true, ..) => "***".to_owned(),
            (false, true, true) => format!("{flag}=***"),
            _ => word.clone(),
        });
        blank = !blank && is_secret && !word.contains('=');
    }
    out.join(" ")
}

/// Whether `plan` has something to do.
pub(crate) fn ensure_useful(plan: &Plan) -> anyhow::Result<()> {
    ensure!(
        plan.connections() > 0 || plan.churn.slots() > 0,
        "no connection asked for"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_the_report() {
        let words = [
            "lt",
            "fanout",
            "--key",
            "abc",
            "--server-key=def",
            "-n",
            "5",
            "--secret",
            "--x",
        ];
        let command: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        assert_eq!(
            blank_secrets(&command),
            "lt fanout --key *** --server-key=*** -n 5 --secret ***"
        );
    }
}
