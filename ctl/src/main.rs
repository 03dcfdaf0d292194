//! `shardwirectl`, the operator's command line over the admin HTTP API. It has no commands yet and says so.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "shardwirectl: no commands yet; the admin listener serves /healthz, /readyz and /metrics"
    );
    ExitCode::from(2)
}
