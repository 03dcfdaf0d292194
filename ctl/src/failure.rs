//! Why a command did not do what it was asked, and the exit code that says so.

use std::fmt;
use std::io;
use std::process::ExitCode;

use serde_json::{Value, json};

/// What went wrong, by what a script would do about it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refused, or answered what it should not: 1, and 4 where the thing asked for is not there.
    Refused {
        /// HTTP status.
        status: u16,
        /// The error code (contract D10).
        code: u64,
        /// For people.
        text: String,
    },
    /// Something here does not work: 1.
    Failed(String),
    /// The command line makes no sense: 2, as for what clap refuses.
    Usage(String),
    /// Nobody answers there: 3.
    Unreachable(String),
    /// Whoever read the output has gone: 0, there is nobody to tell.
    NobodyReads,
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::NobodyReads => 0,
            Self::Refused { status: 404, .. } => 4,
            Self::Refused { .. } | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        })
    }

    /// As programs read it.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Refused { status, code, text } => {
                json!({ "error": text, "code": code, "status": status })
            }
            other => json!({ "error": other.to_string() }),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, code, text } => {
                write!(f, "{text} [{code}]")?;
                if *status == 401 {
                    f.write_str(
                        "; give the admin token with SHARDWIRE_ADMIN_TOKEN or --token-file",
                    )?;
                }
                Ok(())
            }
            Self::Failed(text) | Self::Usage(text) | Self::Unreachable(text) => f.write_str(text),
            Self::NobodyReads => f.write_str("output closed"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::NobodyReads
        } else {
            Self::Failed(error.to_string())
        }
    }
}
