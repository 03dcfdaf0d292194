//! `check` and `store`: the server's own commands of these names; its program is found beside this one or on the PATH.

use std::env;
use std::path::PathBuf;
use std::process::{self, ExitCode};

use crate::cli::{Check, Destination, Store};
use crate::failure::Failure;

/// The server's program.
const SERVER: &str = "shardwire";

/// `shardwire check`.
pub(crate) fn run(check: &Check, json: bool) -> Result<ExitCode, Failure> {
    run_server(&["check"], json, &check.flags)
}

/// `shardwire store copy`.
pub(crate) fn run_store(store: &Store, json: bool) -> Result<ExitCode, Failure> {
    let Store::Copy { to, flags } = store;
    let to = match to {
        Destination::Mongo => "mongo",
        Destination::Files => "files",
    };
    run_server(&["store", "copy", "--to", to], json, flags)
}

/// Runs the server's program; its exit code is ours.
fn run_server(arguments: &[&str], json: bool, flags: &[String]) -> Result<ExitCode, Failure> {
    let program = beside().unwrap_or_else(|| PathBuf::from(SERVER));
    let mut command = process::Command::new(&program);
    command.args(arguments);
    if json {
        command.arg("--json");
    }
    let status = command.args(flags).status().map_err(|error| {
        let program = program.display();
        Failure::Failed(format!("cannot run {program}: {error}; is it on the PATH?"))
    })?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

fn beside() -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    let path = own.with_file_name(SERVER);
    path.is_file().then_some(path)
}
