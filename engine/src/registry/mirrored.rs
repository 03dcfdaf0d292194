//! The registry as one of several nodes has it, each with a store of its own: changes are made for all of them, and those
//! of others are taken over.
//!
//! When keys were last used is each node's own matter. Not for nodes that share a store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shardwire_proto::auth::edit::{DocumentChange, DocumentKind};
use shardwire_proto::auth::key::generate_key;

use super::documents::Document;
use crate::cluster::{ClusterHandle, CommitError, Mirrored};

/// What this node has taken over.
#[derive(Debug)]
pub(super) struct Mirror {
    cluster: ClusterHandle,
    /// Which numbering this data folder has followed: what it has beyond that is its own, and is not thrown away.
    marker: PathBuf,
    epoch: String,
    version: u64,
}

/// What became of a change that is for all nodes.
pub(super) enum Committed {
    Done,
    /// Take this over, decide anew and try again.
    Stale(Mirrored),
    Away,
}

impl Mirror {
    pub(super) fn new(cluster: ClusterHandle, marker: PathBuf) -> Self {
        let epoch = std::fs::read_to_string(&marker).unwrap_or_default();
        Self {
            cluster,
            marker,
            epoch: epoch.trim().to_owned(),
            version: 0,
        }
    }

    /// How often a change is tried again while others change something too.
    pub(super) const TRIES: usize = 8;

    /// Whether this has been overtaken by what this node has done itself.
    pub(super) fn is_older(&self, all: &Mirrored) -> bool {
        all.version > 0 && all.epoch == self.epoch && all.version < self.version
    }

    /// Makes changes for all nodes.
    pub(super) fn commit(&mut self, changes: &[DocumentChange]) -> Committed {
        let changes: Vec<DocumentChange> = changes
            .iter()
            .filter(|c| is_shared(kind_of(c)))
            .cloned()
            .collect();
        if changes.is_empty() {
            return Committed::Done;
        }
        let fresh = generate_key("", &crate::keys::random());
        match self.cluster.commit(self.version, &fresh, changes) {
            Ok(version) => {
                if self.version == 0 {
                    self.follow(&fresh);
                }
                self.version = version;
                Committed::Done
            }
            Err(CommitError::Stale(latest)) => Committed::Stale(latest),
            Err(CommitError::Away) => Committed::Away,
        }
    }

    /// What is to be changed here so that this node has what all have, and what of its own is to be given to all: that is
    /// where it has not been one of them.
    pub(super) fn compare(
        &mut self,
        mine: &[Document],
        theirs: Mirrored,
    ) -> (Vec<DocumentChange>, Vec<DocumentChange>) {
        let is_member = theirs.version > 0 && theirs.epoch == self.epoch;
        let key = |(kind, id, json): &Document| ((*kind, id.clone()), json.clone());
        let mine = mine.iter().filter(|d| is_shared(d.0)).map(key);
        let mine: BTreeMap<_, _> = mine.collect();
        let all: BTreeMap<_, _> = theirs.documents.iter().map(key).collect();
        let mut here = Vec::new();
        let mut for_all = Vec::new();
        for ((kind, id), json) in &all {
            if mine.get(&(*kind, id.clone())) != Some(json) {
                here.push(put(*kind, id, json));
            }
        }
        for ((kind, id), json) in &mine {
            if all.contains_key(&(*kind, id.clone())) {
                continue;
            }
            if is_member {
                here.push(DocumentChange::Delete {
                    kind: *kind,
                    id: id.clone(),
                });
            } else {
                for_all.push(put(*kind, id, json));
            }
        }
        self.version = theirs.version;
        (here, for_all)
    }

    /// This data folder follows that numbering from here on.
    pub(super) fn follow(&mut self, epoch: &str) {
        if epoch.is_empty() || self.epoch == epoch {
            return;
        }
        epoch.clone_into(&mut self.epoch);
        if let Err(error) = std::fs::write(&self.marker, epoch) {
            log::error!(error:%; "cannot note that this node is one of a cluster");
        }
    }
}

fn put(kind: DocumentKind, id: &str, json: &str) -> DocumentChange {
    DocumentChange::Put {
        kind,
        id: id.to_owned(),
        json: json.to_owned(),
    }
}

fn kind_of(change: &DocumentChange) -> DocumentKind {
    match change {
        DocumentChange::Put { kind, .. } | DocumentChange::Delete { kind, .. } => *kind,
    }
}

fn is_shared(kind: DocumentKind) -> bool {
    kind != DocumentKind::KeyUse
}
