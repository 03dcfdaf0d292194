//! `shardwirectl`, the operator's command line over the admin HTTP API.
//!
//! Not here: anything that decides; the server does. Invariant: exit codes are 0 done, 1 refused or failed, 2 wrong
//! usage, 3 server not reachable, 4 no such thing.

mod cli;
mod client;
mod commands;
mod failure;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::commands::Session;
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    match run(cli) {
        Ok(code) => code,
        Err(failure) => {
            match &failure {
                Failure::NobodyReads => {}
                failure if json => eprintln!("{}", failure.to_json()),
                failure => eprintln!("shardwirectl: {failure}"),
            }
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shardwirectl", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Man => {
            output::line(manual()?.trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Check(check) => return commands::check::run(&check, cli.global.json),
        Command::Store(store) => return commands::check::run_store(&store, cli.global.json),
        _ => {}
    }
    let token = std::env::var("SHARDWIRE_ADMIN_TOKEN").ok();
    let client = Client::new(&cli.global.url, cli.global.token_file.as_deref(), token)?;
    let session = Session {
        client: &client,
        json: cli.global.json,
    };
    session.run(cli.command)?;
    Ok(ExitCode::SUCCESS)
}

/// The manual page, with a section for each command.
fn manual() -> Result<String, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        // A section of the same page, not pages of their own.
        let man = clap_mangen::Man::new(sub.clone());
        let title = format!("\n.SH \"{}\"\n", sub.get_name().to_uppercase());
        page.extend(title.into_bytes());
        let mut section = Vec::new();
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        man.render_subcommands_section(&mut section)?;
        man.render_extra_section(&mut section)?;
        let section = String::from_utf8_lossy(&section).replace("\n.SH ", "\n.SS ");
        let section = section
            .strip_prefix(".SH ")
            .map_or(section.clone(), |rest| format!(".SS {rest}"));
        page.extend(section.into_bytes());
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let help = sub.get_after_help().map(ToString::to_string);
            let name = sub.get_name();
            assert!(
                help.is_some_and(|text| text.contains("Example:\n  shardwirectl")),
                "{name}"
            );
        }
    }

    #[test]
    fn the_manual_has_every_command() {
        let page = manual().unwrap();
        for sub in Cli::command().get_subcommands() {
            let heading = format!(".SH \"{}\"", sub.get_name().to_uppercase());
            assert!(page.contains(&heading), "{heading}");
        }
    }
}
