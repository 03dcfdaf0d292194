//! Several changes as one.

use std::time::Instant;

use mongodb::ClientSession;
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::TransactionOptions;

use super::{DUPLICATE_KEY, Mongo, MongoError, pause_before};

impl Mongo {
    /// Runs `body` as one transaction: what it does with the session is done, or nothing of it. The inner error is the
    /// caller's own; then nothing is done either. The body is run again where somebody else was in the way or the
    /// database was away, for `retry_ms` at most.
    ///
    /// # Errors
    /// Nothing was done; only where the database goes away while it commits, and stays away, that is not known.
    pub(crate) fn transact<T, E>(
        &self,
        body: impl AsyncFn(&mut ClientSession) -> Result<Result<T, E>, Error>,
    ) -> Result<Result<T, E>, MongoError> {
        let until = self.retry_until();
        loop {
            let tried = self.run(async {
                let mut session = self.client().start_session().await?;
                let options = TransactionOptions::builder().write_concern(self.write_concern(true));
                let start = session.start_transaction().with_options(options.build());
                start.await?;
                let done = body(&mut session).await;
                if !matches!(done, Ok(Ok(_))) {
                    // The server ends it anyway.
                    _ = session.abort_transaction().await;
                }
                match done {
                    Err(error) if is_duplicate(&error) => Err(MongoError::Away(error.to_string())),
                    done => Ok((session, done?)),
                }
            });
            let error = match tried {
                Ok((_, Err(error))) => return Ok(Err(error)),
                Ok((session, Ok(value))) => match self.commit(session, until) {
                    Ok(()) => return Ok(Ok(value)),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match error {
                MongoError::Away(_) if pause_before(until) => {}
                error => return Err(error),
            }
        }
    }

    /// Whether a commit that was not answered was made is found out by committing again. An error that is worth another
    /// try means that nothing was done.
    fn commit(&self, mut session: ClientSession, until: Instant) -> Result<(), MongoError> {
        loop {
            let limit = self.timeout();
            let committed = self.run(async {
                let commit = tokio::time::timeout(limit, session.commit_transaction());
                Ok::<_, MongoError>(commit.await)
            });
            let error = match committed {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Ok(Err(error))) if error.contains_label("TransientTransactionError") => {
                    return Err(MongoError::Away(error.to_string()));
                }
                Ok(Ok(Err(error))) if error.contains_label("UnknownTransactionCommitResult") => {
                    error.to_string()
                }
                Ok(Ok(Err(error))) => match error.into() {
                    MongoError::Away(text) => text,
                    refused @ MongoError::Refused(_) => return Err(refused),
                },
                Ok(Err(_)) => "no answer in time".to_owned(),
                Err(error) => error.to_string(),
            };
            if !pause_before(until) {
                return Err(MongoError::Refused(format!(
                    "whether a change was made is not known: {error}"
                )));
            }
        }
    }
}

/// Whether two transactions have made the same document at once.
fn is_duplicate(error: &Error) -> bool {
    matches!(
        &*error.kind,
        ErrorKind::Write(WriteFailure::WriteError(write)) if write.code == DUPLICATE_KEY
    )
}
