//! `check`: the server's own `shardwire check`, found beside this program or on the PATH.

use std::env;
use std::path::PathBuf;
use std::process::{self, ExitCode};

use crate::cli::Check;
use crate::failure::Failure;

/// The server's program.
const SERVER: &str = "shardwire";

/// Runs it; its exit code is ours.
pub(crate) fn run(check: &Check, json: bool) -> Result<ExitCode, Failure> {
    let program = beside().unwrap_or_else(|| PathBuf::from(SERVER));
    let mut command = process::Command::new(&program);
    command.arg("check");
    if json {
        command.arg("--json");
    }
    let status = command.args(&check.flags).status().map_err(|error| {
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
