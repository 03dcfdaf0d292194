//! Key sets of other issuers (RFC 7517): read from files, or fetched by URL on a thread of its own.
//!
//! A fetched set is asked for again every [`REFRESH`]; after a failure sooner, at growing intervals. The last good set
//! stays in use however long the issuer is away. Redirects are not followed.

use std::collections::HashMap;
use std::io::Read;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use shardwire_proto::auth::capability::Capabilities;
use shardwire_proto::auth::jwt::parse_key_set;
use shardwire_proto::auth::key::{KeyKind, default_capabilities};
use shardwire_proto::auth::signing::SigningKey;

use super::Job;

/// Between two fetches that succeed.
const REFRESH: Duration = Duration::from_secs(300);
/// After a first failure; doubled with each further one, up to [`REFRESH`].
const BACKOFF: Duration = Duration::from_secs(1);
/// One fetch, from name lookup to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a key set.
const KEY_SET_BYTES_MAX: u64 = 1024 * 1024;

/// An app and its key set's URL.
type Wanted = (String, String);

/// The way to the fetching thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Fetcher {
    wanted: Sender<Vec<Wanted>>,
    /// What was last asked for.
    last: Vec<Wanted>,
}

impl Fetcher {
    /// Replaces what is fetched. What was among it before keeps its time.
    pub(super) fn want(&mut self, wanted: Vec<Wanted>) {
        if wanted != self.last {
            self.last.clone_from(&wanted);
            // The thread is there as long as this is.
            _ = self.wanted.send(wanted);
        }
    }
}

/// When a URL is asked for next, and how often it has failed in a row.
#[derive(Debug, Clone, Copy)]
struct Turn {
    due: Instant,
    failures: u32,
}

pub(super) fn start(jobs: Sender<Job>, allow_http: bool) -> Fetcher {
    let (wanted, asked) = crossbeam_channel::unbounded();
    let thread = std::thread::Builder::new().name("jwks".to_owned());
    let thread = thread.spawn(move || run(&asked, &jobs, allow_http));
    // Left behind at the end of the process: a fetch may be under way.
    drop(thread.expect("a thread can be started"));
    Fetcher {
        wanted,
        last: Vec::new(),
    }
}

fn run(asked: &Receiver<Vec<Wanted>>, jobs: &Sender<Job>, allow_http: bool) {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(FETCH_TIMEOUT))
        .https_only(!allow_http)
        .max_redirects(0)
        .build()
        .new_agent();
    let mut turns: HashMap<Wanted, Turn> = HashMap::new();
    loop {
        let now = Instant::now();
        let next = turns.values().map(|turn| turn.due).min();
        let wait = next.map_or(REFRESH, |due| due.saturating_duration_since(now));
        match asked.recv_timeout(wait) {
            Ok(wanted) => {
                turns.retain(|known, _| wanted.contains(known));
                for one in wanted {
                    turns.entry(one).or_insert(Turn {
                        due: now,
                        failures: 0,
                    });
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for ((app, url), turn) in &mut turns {
            if turn.due > Instant::now() {
                continue;
            }
            match fetch(&agent, url, app) {
                Ok(keys) => {
                    log::debug!(app = app.as_str(), keys = keys.len(); "key set fetched");
                    let (app, url) = (app.clone(), url.clone());
                    if jobs.send(Job::Fetched { app, url, keys }).is_err() {
                        return;
                    }
                    turn.failures = 0;
                    turn.due = Instant::now() + REFRESH;
                }
                Err(error) => {
                    log::warn!(app = app.as_str(), url = url.as_str(), error; "cannot fetch a key set; the last one stays");
                    let delay = BACKOFF
                        .saturating_mul(1 << turn.failures.min(9))
                        .min(REFRESH);
                    turn.failures += 1;
                    turn.due = Instant::now() + delay;
                }
            }
        }
    }
}

fn fetch(agent: &ureq::Agent, url: &str, app: &str) -> Result<Vec<SigningKey>, String> {
    let mut answer = agent.get(url).call().map_err(|error| error.to_string())?;
    if answer.status() != 200 {
        return Err(format!("status {}", answer.status()));
    }
    let body = answer.body_mut().with_config().limit(KEY_SET_BYTES_MAX);
    let text = body.read_to_vec().map_err(|error| error.to_string())?;
    parse_key_set(&text, app, &default_capabilities(KeyKind::Client))
}

/// Reads a key set from a file.
pub(super) fn read_file(
    path: &str,
    app: &str,
    capabilities: &Capabilities,
) -> Result<Vec<SigningKey>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    let mut bounded = file.take(KEY_SET_BYTES_MAX + 1);
    let read = bounded.read_to_end(&mut text);
    if read.map_err(|error| error.to_string())? as u64 > KEY_SET_BYTES_MAX {
        return Err(format!("is above {KEY_SET_BYTES_MAX} bytes"));
    }
    parse_key_set(&text, app, capabilities)
}
