//! What an error of the driver means for the one who called.

use std::fmt;

use mongodb::bson::{Bson, Document};
use mongodb::error::{Error, ErrorKind, WriteFailure};

/// Code of a write that a unique index refuses.
pub(crate) const DUPLICATE_KEY: i32 = 11000;

/// Codes of a member that does not take this just now: a step-down, a shutdown, an election, a time limit, a network
/// between members, a write that was not confirmed in time, somebody else's transaction.
const AWAY_CODES: [i32; 22] = [
    6, 7, 24, 50, 63, 64, 89, 91, 112, 133, 134, 150, 189, 202, 234, 262, 9001, 10058, 10107,
    11600, 11602, 13435,
];
const NOT_PRIMARY_OR_RECOVERING: i32 = 13436;

/// Why the database did not do something. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MongoError {
    /// It cannot be reached, or has nobody who takes writes: worth another try. What was asked for may have been done.
    Away(String),
    /// It answers, and refuses.
    Refused(String),
}

impl MongoError {
    /// The same, saying where.
    pub(crate) fn within(self, place: &str) -> Self {
        match self {
            Self::Away(text) => Self::Away(format!("{place}: {text}")),
            Self::Refused(text) => Self::Refused(format!("{place}: {text}")),
        }
    }

    /// By a code of the server.
    pub(crate) fn of_code(code: i32, text: String) -> Self {
        if AWAY_CODES.contains(&code) || code == NOT_PRIMARY_OR_RECOVERING {
            Self::Away(text)
        } else {
            Self::Refused(text)
        }
    }
}

impl fmt::Display for MongoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(text) | Self::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for MongoError {}

impl From<Error> for MongoError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let labels = ["RetryableWriteError", "TransientTransactionError"];
        if labels.iter().any(|label| error.contains_label(label)) {
            return Self::Away(text);
        }
        match &*error.kind {
            ErrorKind::Io(_)
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::DnsResolve { .. } => Self::Away(text),
            ErrorKind::Command(command) => Self::of_code(command.code, text),
            ErrorKind::Write(WriteFailure::WriteConcernError(concern)) => {
                Self::of_code(concern.code, text)
            }
            ErrorKind::Write(WriteFailure::WriteError(write)) => Self::of_code(write.code, text),
            ErrorKind::InsertMany(many) => match &many.write_concern_error {
                Some(concern) => Self::of_code(concern.code, text),
                None => Self::Refused(text),
            },
            _ => Self::Refused(text),
        }
    }
}

/// What the answer to a write command says beside `ok`: that single writes failed, or that their write concern is not
/// met. The first of these, with its code.
pub(crate) fn check_write(answer: &Document) -> Result<(), (i32, MongoError)> {
    let failed = answer
        .get_array("writeErrors")
        .ok()
        .and_then(|errors| errors.first())
        .and_then(Bson::as_document);
    let failed = failed.or_else(|| answer.get_document("writeConcernError").ok());
    let Some(failed) = failed else {
        return Ok(());
    };
    let code = failed
        .get_i32("code")
        .or_else(|_| failed.get_i64("code").map(|code| code as i32))
        .unwrap_or(0);
    let text = failed.get_str("errmsg").unwrap_or("a write failed");
    Err((code, MongoError::of_code(code, text.to_owned())))
}
