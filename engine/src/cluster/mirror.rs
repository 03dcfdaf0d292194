//! Apps and credentials as all nodes have them: a hash in Redis with a version.
//!
//! Redis's version is the truth. A change is made there first, if it was based on the latest, then in the node's own
//! storage; the other nodes see with their next beat that there is another version, and take over what differs. Not here:
//! what a change means, and what a node does with another's documents (`registry`); and nodes that share a store, which is
//! the truth then and holds all that there is.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::RedisResult;
use shardwire_proto::auth::edit::{DocumentChange, DocumentKind};

use super::session::Session;
use super::thread::Out;
use super::{ClusterHandle, Job};
use crate::registry::documents::Document;

/// How long a change waits for Redis.
const COMMIT_PATIENCE: Duration = Duration::from_secs(3);

/// All documents of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrored {
    /// 0: there are none in Redis, which has lost them or never had any.
    pub version: u64,
    /// Which numbering it is.
    pub epoch: String,
    pub documents: Vec<Document>,
}

/// Why a change was not made.
#[derive(Debug)]
pub enum CommitError {
    /// It was based on another version than this, which is the latest.
    Stale(Mirrored),
    /// Redis is away; whether the change was made is not known.
    Away,
}

/// A change on its way.
#[derive(Debug)]
pub(super) struct Commit {
    version: u64,
    epoch: String,
    changes: Vec<DocumentChange>,
    reply: crossbeam_channel::Sender<Result<u64, CommitError>>,
}

impl ClusterHandle {
    /// Makes a change that was based on `version` for all nodes; `epoch` is for a first one. Blocks: for side threads.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit(
        &self,
        version: u64,
        epoch: &str,
        changes: Vec<DocumentChange>,
    ) -> Result<u64, CommitError> {
        if !self.is_up() {
            return Err(CommitError::Away);
        }
        let (reply, answer) = crossbeam_channel::bounded(1);
        let commit = Commit {
            version,
            epoch: epoch.to_owned(),
            changes,
            reply,
        };
        self.jobs
            .try_send(Job::Commit(commit))
            .map_err(|_| CommitError::Away)?;
        answer
            .recv_timeout(COMMIT_PATIENCE)
            .unwrap_or(Err(CommitError::Away))
    }
}

type Answer = (u64, BTreeMap<String, String>);

pub(super) async fn commit(session: &Session, commit: Commit) {
    let Commit {
        version,
        epoch,
        changes,
        reply,
    } = commit;
    let mut arguments = vec![version.to_string(), epoch];
    for change in changes {
        let (operation, field, json) = match change {
            DocumentChange::Put { kind, id, json } => ("put", field(kind, &id), json),
            DocumentChange::Delete { kind, id } => ("delete", field(kind, &id), String::new()),
        };
        arguments.extend([operation.to_owned(), field, json]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let answer: RedisResult<Answer> = session.registry("commit", &arguments).await;
    let result = match answer {
        Ok((made, fields)) if fields.is_empty() && made > version => Ok(made),
        Ok((latest, fields)) => Err(CommitError::Stale(read(latest, fields))),
        Err(error) => {
            log::warn!("cluster: a change of apps and credentials has failed: {error}");
            Err(CommitError::Away)
        }
    };
    // Whoever asked may have given up.
    _ = reply.try_send(result);
}

pub(super) fn refuse(commit: Commit) {
    _ = commit.reply.try_send(Err(CommitError::Away));
}

/// Looks whether there is another version than the one that was last handed over, and hands it over.
pub(super) async fn look(session: &Session, out: &Out, known: &mut Option<u64>) -> RedisResult<()> {
    if out.registry.is_shared() {
        return Ok(());
    }
    let version = known.map_or_else(|| "none".to_owned(), |version| version.to_string());
    let (latest, fields): Answer = session.registry("read", &[&version]).await?;
    if *known != Some(latest) && out.registry.mirror(read(latest, fields)) {
        *known = Some(latest);
    }
    Ok(())
}

fn read(version: u64, mut fields: BTreeMap<String, String>) -> Mirrored {
    let epoch = fields.remove("e").unwrap_or_default();
    let documents = fields.into_iter().filter_map(|(field, json)| {
        let (kind, id) = field.strip_prefix("d:")?.split_once(':')?;
        let kind = DocumentKind::ALL.into_iter().find(|k| k.name() == kind)?;
        Some((kind, id.to_owned(), json))
    });
    Mirrored {
        version,
        epoch,
        documents: documents.collect(),
    }
}

fn field(kind: DocumentKind, id: &str) -> String {
    format!("d:{}:{id}", kind.name())
}
