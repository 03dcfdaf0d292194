//! Passwords to hashes: Argon2id on threads of its own.
//!
//! A hash takes tens of milliseconds of a core and 19 MiB, so the threads run when nothing else wants to (`SCHED_IDLE`),
//! there are few of them, and each keeps its memory. The queue is short: who comes when it is full is told to come back.
//!
//! Hashes are PHC strings. Not here: which passwords are taken (`shardwire_proto::account::password`).

use std::sync::OnceLock;
use std::thread::JoinHandle;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use crossbeam_channel::{Receiver, Sender};
use data_encoding::BASE64_NOPAD;
use shardwire_proto::auth::key::KeyHash;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::answer_within;
use crate::shard::inbox::{self, InboxSender};
use crate::sys;

/// Hashes that may wait: about two seconds of one thread.
pub(super) const QUEUE_MAX: usize = 64;
/// KiB of memory, passes and lanes (OWASP Password Storage Cheat Sheet).
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
const HASH_BYTES: usize = 32;
const SALT_BYTES: usize = 16;

#[derive(Debug)]
pub(super) enum Work {
    Hash(String, InboxSender<Option<String>>),
    /// A password, and the hash that it may be of; none: takes as long, and is wrong.
    Verify(String, Option<String>, InboxSender<bool>),
}

/// The way to the threads; they end when all clones are gone.
#[derive(Debug, Clone)]
pub(super) struct Hashing(Sender<Work>);

impl Hashing {
    pub(super) fn start(threads: usize) -> (Self, Vec<JoinHandle<()>>) {
        let (work, queue) = crossbeam_channel::bounded(QUEUE_MAX);
        let threads = (0..threads.max(1)).map(|n| {
            let queue: Receiver<Work> = queue.clone();
            let thread = std::thread::Builder::new().name(format!("hash-{n}"));
            thread
                .spawn(move || run(&queue))
                .expect("a thread can be started")
        });
        (Self(work), threads.collect())
    }

    /// The hash of a password.
    pub(super) async fn hash(&self, password: String) -> Result<String, ProtocolError> {
        let (reply, answer) = inbox::bounded(1);
        self.0
            .try_send(Work::Hash(password, reply))
            .map_err(|_| full())?;
        answer_within(answer.recv())
            .await?
            .ok_or_else(|| ErrorCode::Internal.into())
    }

    /// Whether a password is that of the hash.
    pub(super) async fn verify(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, ProtocolError> {
        let (reply, answer) = inbox::bounded(1);
        self.0
            .try_send(Work::Verify(password, hash, reply))
            .map_err(|_| full())?;
        answer_within(answer.recv()).await
    }
}

fn full() -> ProtocolError {
    let text = "too many sign-ins at once; try again shortly";
    ProtocolError::with_text(ErrorCode::Unavailable, text)
}

fn run(queue: &Receiver<Work>) {
    if let Err(error) = sys::run_when_idle() {
        log::warn!(error:%; "password hashing competes with the shards");
    }
    let mut hasher = Hasher::default();
    while let Ok(work) = queue.recv() {
        // Whoever asked may have given up.
        match work {
            Work::Hash(password, reply) => _ = reply.try_send(hasher.hash(&password)),
            Work::Verify(password, hash, reply) => {
                _ = reply.try_send(hasher.verify(&password, hash.as_deref()));
            }
        }
    }
}

/// Argon2id, and the memory that it fills.
#[derive(Default)]
pub(super) struct Hasher {
    blocks: Vec<Block>,
}

impl Hasher {
    pub(super) fn hash(&mut self, password: &str) -> Option<String> {
        let salt = sys::random();
        let hash = self.compute(password, &salt, COST)?;
        let (m, t, p) = COST;
        let [salt, hash] = [salt.as_slice(), &hash].map(|bytes| BASE64_NOPAD.encode(bytes));
        Some(format!("$argon2id$v=19$m={m},t={t},p={p}${salt}${hash}"))
    }

    pub(super) fn verify(&mut self, password: &str, hash: Option<&str>) -> bool {
        static OF_NOBODY: OnceLock<Option<String>> = OnceLock::new();
        let Some(hash) = hash else {
            let other = OF_NOBODY.get_or_init(|| self.hash("nobody's password"));
            if let Some((cost, salt, _)) = other.as_deref().and_then(parse) {
                _ = self.compute(password, &salt, cost);
            }
            return false;
        };
        let Some((cost, salt, expected)) = parse(hash) else {
            log::error!("the hash of a password is not one");
            return false;
        };
        let computed = self.compute(password, &salt, cost);
        // By hashes of them, which are compared in constant time.
        let of = |bytes: &[u8]| KeyHash::of(&BASE64_NOPAD.encode(bytes));
        computed.is_some_and(|computed| of(&computed) == of(&expected))
    }

    fn compute(
        &mut self,
        password: &str,
        salt: &[u8],
        (m, t, p): (u32, u32, u32),
    ) -> Option<[u8; HASH_BYTES]> {
        let params = Params::new(m, t, p, Some(HASH_BYTES)).ok()?;
        self.blocks.resize(params.block_count(), Block::default());
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut out = [0; HASH_BYTES];
        let done = argon2.hash_password_into_with_memory(
            password.as_bytes(),
            salt,
            &mut out,
            &mut self.blocks,
        );
        done.ok().map(|()| out)
    }
}

/// Memory, passes and lanes; salt; hash.
type Parsed = ((u32, u32, u32), Vec<u8>, Vec<u8>);

/// The parts of a PHC string that [`Hasher::hash`] has made, also at other costs.
fn parse(text: &str) -> Option<Parsed> {
    let rest = text.strip_prefix("$argon2id$v=19$")?;
    let mut parts = rest.split('$');
    let (cost, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let mut cost = cost.split(',');
    let mut number = |name| cost.next()?.strip_prefix(name)?.parse::<u32>().ok();
    let cost = (number("m=")?, number("t=")?, number("p=")?);
    let [salt, hash] = [salt, hash].map(|text| BASE64_NOPAD.decode(text.as_bytes()).ok());
    let (salt, hash) = (salt?, hash?);
    (salt.len() >= SALT_BYTES && hash.len() == HASH_BYTES && cost.0 <= 1 << 20)
        .then_some((cost, salt, hash))
}

#[cfg(test)]
mod tests {
    use argon2::{PasswordHash, PasswordVerifier};

    use super::*;

    #[test]
    fn a_hash_is_one_that_others_can_verify_and_of_one_password() {
        let mut hasher = Hasher::default();
        let hash = hasher.hash("wide lamp seven").unwrap();
        let parsed = PasswordHash::new(&hash).unwrap();
        assert!(
            Argon2::default()
                .verify_password(b"wide lamp seven", &parsed)
                .is_ok()
        );
        assert!(hasher.verify("wide lamp seven", Some(&hash)));
        assert!(!hasher.verify("wide lamp eight", Some(&hash)));
        assert!(!hasher.verify("wide lamp seven", None));
        assert!(!hasher.verify("", Some("$argon2id$v=19$m=1,t=1,p=1$$")));
        assert_ne!(hash, hasher.hash("wide lamp seven").unwrap());
    }
}
