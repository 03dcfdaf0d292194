//! The registry's thread: takes jobs one by one, stores, and tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use shardwire_proto::auth::change::{Change, Changed};
use shardwire_proto::auth::edit::{DocumentChange, DocumentKind, within};
use shardwire_proto::auth::key::{KeyKind, default_capabilities};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::shard::KeyUse;

use super::documents::{Document, Documents};
use super::jwks::{self, Fetcher};
use super::mirrored::{Committed, Mirror};
use super::{Job, LastUsed, Shared, lock, now_ms};
use crate::cluster::{ClusterHandle, Mirrored};
use crate::shard::inbox::InboxSender;

/// How often what is over is removed, and key uses are written.
const UPKEEP: Duration = Duration::from_secs(60);
/// How soon a shard that was behind gets its snapshot.
const RETRY: Duration = Duration::from_millis(20);
/// How often it is looked whether another server has changed what is stored.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Owner<D> {
    documents: D,
    registry: Arc<Registry>,
    shards: Vec<Receiving>,
    fetcher: Fetcher,
    shared: Arc<Shared>,
    /// Uses that are not written yet.
    unwritten: LastUsed,
    upkeep_due: Instant,
    /// Where this is one of several nodes with stores of their own.
    mirror: Option<Mirror>,
    /// Where it is one of several with one store.
    cluster: Option<ClusterHandle>,
    /// What came before that was known.
    early: Option<Mirrored>,
    look_due: Instant,
}

struct Receiving {
    inbox: InboxSender<Arc<Registry>>,
    /// It has not got the last snapshot yet.
    behind: bool,
}

impl<D: Documents> Owner<D> {
    pub(super) fn new(
        documents: D,
        registry: Registry,
        shards: Vec<InboxSender<Arc<Registry>>>,
        fetcher: Fetcher,
        shared: Arc<Shared>,
    ) -> Self {
        let registry = Arc::new(registry);
        *lock(&shared.snapshot) = registry.clone();
        let shards = shards.into_iter().map(|inbox| Receiving {
            inbox,
            behind: false,
        });
        Self {
            documents,
            registry,
            shards: shards.collect(),
            fetcher,
            shared,
            unwritten: LastUsed::default(),
            upkeep_due: Instant::now() + UPKEEP,
            mirror: None,
            cluster: None,
            early: None,
            look_due: Instant::now() + LOOK,
        }
    }

    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        if let Ok(documents) = self.documents.load() {
            *lock(&self.shared.last_used) = read_uses(&documents);
            // Another server may have changed them since the start has read them.
            if self.documents.is_shared()
                && let Ok(registry) = Registry::from_documents(&documents)
            {
                self.install(registry);
            }
        }
        self.read_key_sets(true);
        loop {
            let behind = self.shards.iter().any(|shard| shard.behind);
            let due = self.upkeep_due.min(self.look_due);
            let wait = due.saturating_duration_since(Instant::now());
            match jobs.recv_timeout(if behind { wait.min(RETRY) } else { wait }) {
                Ok(Job::Change { change, reply }) => {
                    let changed = self.change(*change);
                    // Whoever asked may have given up.
                    _ = reply.try_send(changed);
                }
                Ok(Job::Used(uses)) => self.note_uses(uses),
                Ok(Job::Reload) => self.reload(),
                Ok(Job::Join { cluster, .. }) if self.documents.is_shared() => {
                    self.cluster = Some(cluster);
                }
                Ok(Job::Join { cluster, marker }) => {
                    self.mirror = Some(Mirror::new(cluster, marker));
                    if let Some(early) = self.early.take() {
                        self.take_over(early);
                    }
                }
                Ok(Job::Mirrored(all)) if self.mirror.is_none() => self.early = Some(all),
                Ok(Job::Mirrored(all)) => self.take_over(all),
                Ok(Job::Look) => _ = self.look(),
                Ok(Job::Fetched { app, url, keys }) => {
                    let current = self.registry.app(&app);
                    if current.is_some_and(|app| app.settings.jwks_url.as_ref() == Some(&url)) {
                        self.install(self.registry.with_fetched(&app, keys));
                    }
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.send_snapshots();
            if Instant::now() >= self.look_due {
                self.look_due = Instant::now() + LOOK;
                self.look();
            }
            if Instant::now() >= self.upkeep_due {
                self.upkeep_due = Instant::now() + UPKEEP;
                self.upkeep();
            }
        }
        self.write_uses();
    }

    /// Takes over what another server has changed; whether it has.
    fn look(&mut self) -> bool {
        let is_changed = self.documents.is_changed();
        if is_changed {
            self.reload();
        }
        is_changed
    }

    fn change(&mut self, change: Change) -> Result<Changed, ProtocolError> {
        // Somebody else may be quicker: then it is decided anew, of the state that is there.
        for _ in 0..Mirror::TRIES {
            let edited =
                self.registry
                    .changed(change.clone(), &mut crate::keys::random, now_ms())?;
            if edited.documents.is_empty() {
                return Ok(edited.changed);
            }
            match self.mirror.as_mut().map(|m| m.commit(&edited.documents)) {
                None | Some(Committed::Done) => {}
                Some(Committed::Stale(latest)) => {
                    self.take_over(latest);
                    continue;
                }
                Some(Committed::Away) => return Err(unreachable_nodes()),
            }
            match self.documents.apply(&edited.documents) {
                Ok(()) => {
                    self.forget_uses(&edited.documents);
                    self.install(edited.registry);
                    self.read_key_sets(false);
                    self.tell_others();
                    return Ok(edited.changed);
                }
                Err(_) if self.look() => {}
                Err(error) => {
                    log::error!(error; "apps and credentials cannot be stored");
                    let text = format!("cannot be stored: {error}");
                    return Err(ProtocolError::with_text(ErrorCode::Unavailable, text));
                }
            }
        }
        let text = "others change apps and credentials all the time: try again";
        Err(ProtocolError::with_text(ErrorCode::Unavailable, text))
    }

    /// Has the other nodes look at the store at once; without that they do within a second.
    fn tell_others(&self) {
        if let Some(cluster) = &self.cluster {
            cluster.tell_stored();
        }
    }

    fn install(&mut self, registry: Registry) {
        self.registry = Arc::new(registry);
        *lock(&self.shared.snapshot) = self.registry.clone();
        for shard in &mut self.shards {
            shard.behind = true;
        }
        self.send_snapshots();
    }

    fn send_snapshots(&mut self) {
        for shard in self.shards.iter_mut().filter(|shard| shard.behind) {
            shard.behind = shard.inbox.try_send(self.registry.clone()).is_err();
        }
    }

    /// Takes over what somebody else has stored: another process's tool, or a restored backup.
    fn reload(&mut self) {
        let read = self.documents.load();
        match read.and_then(|documents| Registry::from_documents(&documents)) {
            Ok(registry) => {
                self.install(registry);
                self.read_key_sets(true);
            }
            Err(error) => {
                log::error!(error; "apps and credentials cannot be read again; they stay as they were");
            }
        }
    }

    /// Makes what all nodes have this node's own, and what only this one has everybody's if it has not been one of them.
    fn take_over(&mut self, all: Mirrored) {
        let Some(mirror) = self.mirror.as_mut().filter(|m| !m.is_older(&all)) else {
            return;
        };
        let epoch = all.epoch.clone();
        let taken = self.documents.load().and_then(|mine| {
            let (here, for_all) = mirror.compare(&mine, all);
            if !here.is_empty() {
                self.documents.apply(&here)?;
            }
            Ok((here, for_all))
        });
        let (here, for_all) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                log::error!(error; "what other nodes have changed of apps and credentials cannot be stored");
                return;
            }
        };
        // Failing that it is tried again with the next version, which others' changes or this node's make.
        if matches!(mirror.commit(&for_all), Committed::Done) {
            mirror.follow(&epoch);
        }
        if !here.is_empty() {
            log::info!(documents = here.len(); "apps and credentials: taken over from other nodes");
            self.forget_uses(&here);
            self.reload();
        }
    }

    /// Sees to it that each app has the keys of its key set: of a file they are read, a URL is given to the fetcher.
    fn read_key_sets(&mut self, again: bool) {
        let mut wanted = Vec::new();
        let apps: Vec<_> = self.registry.apps().cloned().collect();
        for app in apps {
            if let Some(url) = &app.settings.jwks_url {
                wanted.push((app.id.clone(), url.clone()));
            } else if let Some(file) = &app.settings.jwks_file
                && (again || !self.registry.has_fetched(&app.id))
            {
                let grants = default_capabilities(KeyKind::Client);
                match jwks::read_file(file, &app.id, &grants) {
                    Ok(keys) => self.install(self.registry.with_fetched(&app.id, keys)),
                    Err(error) => {
                        log::error!(app = app.id.as_str(), file = file.as_str(), error; "cannot read a key set");
                    }
                }
            }
        }
        self.fetcher.want(wanted);
    }

    fn note_uses(&mut self, uses: Vec<KeyUse>) {
        let mut last = lock(&self.shared.last_used);
        for (app, id, used_ms) in uses {
            if self.registry.key(&app, &id).is_none() {
                continue;
            }
            let known = last.entry((app.clone(), id.clone())).or_default();
            *known = used_ms.max(*known);
            self.unwritten.insert((app, id), *known);
        }
    }

    fn forget_uses(&mut self, changes: &[DocumentChange]) {
        let gone = changes.iter().filter_map(|change| match change {
            DocumentChange::Delete {
                kind: DocumentKind::KeyUse,
                id,
            } => split(id),
            _ => None,
        });
        let mut last = lock(&self.shared.last_used);
        for key in gone {
            last.remove(&key);
            self.unwritten.remove(&key);
        }
    }

    fn write_uses(&mut self) {
        let changes: Vec<_> = self
            .unwritten
            .drain()
            .map(|((app, id), used_ms)| DocumentChange::Put {
                kind: DocumentKind::KeyUse,
                id: within(&app, &id),
                json: used_ms.to_string(),
            })
            .collect();
        if !changes.is_empty()
            && let Err(error) = self.apply_anyway(&changes)
        {
            log::warn!(error; "when keys were last used cannot be stored");
        }
    }

    /// Makes changes that do not depend on what else is stored.
    fn apply_anyway(&mut self, changes: &[DocumentChange]) -> Result<(), String> {
        match self.documents.apply(changes) {
            Err(_) if self.look() => self.documents.apply(changes),
            done => done,
        }
    }

    fn upkeep(&mut self) {
        self.write_uses();
        if let Some((registry, documents)) = self.registry.pruned(now_ms()) {
            let told = self.mirror.as_mut().map(|m| m.commit(&documents));
            if !matches!(told, None | Some(Committed::Done)) {
                // Another time, or by another node.
                return;
            }
            match self.documents.apply(&documents) {
                Ok(()) => {
                    self.forget_uses(&documents);
                    self.install(registry);
                }
                Err(error) => log::warn!(error; "what is over cannot be removed"),
            }
        }
    }
}

fn unreachable_nodes() -> ProtocolError {
    let text = "the other nodes cannot be told: Redis does not answer";
    ProtocolError::with_text(ErrorCode::Unavailable, text)
}

fn read_uses(documents: &[Document]) -> LastUsed {
    let uses = documents.iter().filter_map(|(kind, id, json)| {
        let used_ms = json
            .parse()
            .ok()
            .filter(|_| *kind == DocumentKind::KeyUse)?;
        Some((split(id)?, used_ms))
    });
    uses.collect()
}

fn split(id: &str) -> Option<(Arc<str>, Box<str>)> {
    let (app, id) = id.split_once('/')?;
    Some((app.into(), id.into()))
}
