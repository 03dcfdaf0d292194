//! `shardwire-loadtest`: parses the command line, runs the scenario, writes the report.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use shardwire_loadtest::opts::{Cli, OutputOpts};
use shardwire_loadtest::report::{Report, html, table};
use shardwire_loadtest::run::{self, BadArguments};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for arguments that make no run, as the parser's own.
const EXIT_USAGE: u8 = 2;
/// Exit code for messages lost, duplicated or out of order.
const EXIT_NOT_CLEAN: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = &cli.scenario.common().output;
    let command: Vec<String> = std::env::args().collect();
    let result = run::run(&cli.scenario, &command).and_then(|report| {
        write(&report, output)?;
        Ok(report)
    });
    match result {
        Ok(report) if report.integrity.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(EXIT_NOT_CLEAN),
        Err(error) => {
            eprintln!("shardwire-loadtest: {error:#}");
            let is_usage = error.downcast_ref::<BadArguments>().is_some();
            if is_usage {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn write(report: &Report, output: &OutputOpts) -> anyhow::Result<()> {
    if !output.quiet {
        print!("{}", table::render(report));
    }
    if let Some(path) = &output.json {
        let json = serde_json::to_string_pretty(report).context("cannot encode the report")?;
        std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &output.html {
        let page = html::render(report).context("cannot draw the charts")?;
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
