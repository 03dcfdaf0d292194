//! Accounts, teams, sessions and the audit log: who uses the dashboard.
//!
//! ```text
//!  dashboard, admin API ──questions──► accounts thread ──► records (Area::Accounts)
//!   (on a shard)        ──passwords──► hashing threads        └──► mail thread
//! ```
//! Shards ask over bounded queues and await the answer; nothing here runs on a shard but the asking. What decides is in
//! `shardwire_proto::account`. Not here: who may make which call (its permission table, asked by `dashboard`).
//!
//! Invariants: passwords, refresh tokens and links are kept as hashes, secrets of second factors encrypted; what is
//! answered is stored; from the outside nobody learns whether an address has an account.

mod address;
mod audit;
mod documents;
mod hashing;
mod keeper;
mod login;
mod mail;
mod people;
mod second_factor;
mod secrets;
mod sessions;
mod teams;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use futures_lite::future;
use shardwire_proto::error::{ErrorCode, ProtocolError};

pub use self::address::NewAddress;
pub use self::audit::{Actor, AuditPage, Entry};
pub use self::keeper::Keeper;
pub use self::login::{Begun, LoginStep};
pub use self::mail::{Letter, Mailer};
pub use self::people::{AccountInfo, AccountPatch, NewAccount};
pub use self::second_factor::Enrolment;
pub use self::secrets::SECRET_FILE;
pub use self::sessions::{Client, NewSession, Principal, Refreshed, SessionInfo};
pub use self::teams::{InvitationInfo, MemberInfo, TeamInfo};

use self::hashing::Hashing;
use self::mail::Post;
use self::secrets::Secrets;
use crate::config::Config;
use crate::records::{Area, RecordStorage};
use crate::shard::inbox;

/// Questions that may wait; of more, those who ask are told to come back.
const QUESTIONS_MAX: usize = 256;
/// A question that is not answered by then is given up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How often expired records are removed.
const UPKEEP: Duration = Duration::from_secs(60);
/// Expired records removed at once.
const EXPIRE_MAX: usize = 1000;

type Question = Box<dyn FnOnce(&mut Keeper) + Send>;

enum Job {
    Ask(Question),
    Stop,
}

/// The way to the accounts, for any thread. Clones are the same.
#[derive(Clone)]
pub struct AccountsHandle {
    jobs: Sender<Job>,
    hashing: Hashing,
    secrets: Arc<Secrets>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Seconds that an access token is good for.
    access_s: u64,
}

impl fmt::Debug for AccountsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccountsHandle")
    }
}

/// Opens the records and starts the threads. With no account yet, a link for the first one is returned too: the path of a
/// page below the dashboard's address.
///
/// # Errors
/// Records, the secret or the mail settings cannot be used.
///
/// # Panics
/// A thread cannot be started: there is no process without it.
pub fn start(
    config: &Config,
    dashboard_url: &str,
    data_dir: &Path,
    storage: &dyn RecordStorage,
) -> Result<(AccountsHandle, Option<String>), String> {
    let records = storage
        .open(Area::Accounts)
        .map_err(|error| error.to_string())?;
    let secrets = Secrets::open(data_dir).map_err(|error| error.to_string())?;
    let secrets = Arc::new(secrets);
    let post = Post::start(&config.mail)?;
    let mut keeper = Keeper::new(
        records,
        secrets.clone(),
        post,
        &config.accounts,
        dashboard_url,
    );
    let setup = keeper.setup_link().map_err(|error| error.to_string())?;
    let (hashing, _) = Hashing::start(usize::try_from(config.accounts.hash_threads).unwrap_or(1));
    let (jobs, queue) = crossbeam_channel::bounded(QUESTIONS_MAX);
    let thread = std::thread::Builder::new().name("accounts".to_owned());
    let thread = thread.spawn(move || run(keeper, &queue));
    let handle = AccountsHandle {
        jobs,
        hashing,
        secrets,
        thread: Arc::new(Mutex::new(Some(thread.expect("a thread can be started")))),
        access_s: config.accounts.access_s,
    };
    Ok((handle, setup))
}

fn run(mut keeper: Keeper, jobs: &Receiver<Job>) {
    let mut upkeep_due = Instant::now() + UPKEEP;
    loop {
        match jobs.recv_timeout(upkeep_due.saturating_duration_since(Instant::now())) {
            Ok(Job::Ask(question)) => question(&mut keeper),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
        }
        if Instant::now() >= upkeep_due {
            keeper.expire(EXPIRE_MAX);
            upkeep_due = Instant::now() + UPKEEP;
        }
    }
}

impl AccountsHandle {
    /// Has the accounts thread answer a question; waits on a shard's executor.
    ///
    /// # Errors
    /// What the question is answered with; 50300 when too many wait, or it takes too long.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Keeper) -> Result<T, ProtocolError> + Send + 'static,
    ) -> Result<T, ProtocolError> {
        let (reply, answer) = inbox::bounded(1);
        let question: Question = Box::new(move |keeper| {
            // Whoever asked may have given up.
            _ = reply.try_send(question(keeper));
        });
        self.jobs.try_send(Job::Ask(question)).map_err(|_| {
            let text = "too many requests at once; try again shortly";
            ProtocolError::with_text(ErrorCode::Unavailable, text)
        })?;
        answer_within(answer.recv()).await?
    }

    /// Has the accounts thread do something that nobody waits for. Where too much waits it is dropped; false then.
    pub fn tell(&self, what: impl FnOnce(&mut Keeper) + Send + 'static) -> bool {
        self.jobs.try_send(Job::Ask(Box::new(what))).is_ok()
    }

    /// What a form carries to show that it comes from a page that was made for this session.
    #[must_use]
    pub fn form_token(&self, session: &str) -> String {
        self.secrets.form_token(session)
    }

    /// Whether a form carries the right token.
    #[must_use]
    pub fn is_form_token(&self, session: &str, token: &str) -> bool {
        self.secrets.is_form_token(session, token)
    }

    /// Seconds that an access token is good for.
    #[must_use]
    pub fn access_s(&self) -> u64 {
        self.access_s
    }

    /// Ends the thread once it has answered what waits.
    pub fn shutdown(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && self.jobs.send_timeout(Job::Stop, ANSWER_DEADLINE).is_ok()
            && thread.join().is_err()
        {
            log::error!("the accounts thread ended badly");
        }
    }
}

/// An answer that comes in time.
async fn answer_within<T>(answer: impl Future<Output = T>) -> Result<T, ProtocolError> {
    let late = async {
        glommio::timer::sleep(ANSWER_DEADLINE).await;
        Err(ErrorCode::Unavailable.into())
    };
    future::or(async { Ok(answer.await) }, late).await
}
