//! The endpoints as they are kept, and what they want together.

use std::collections::HashMap;
use std::sync::Arc;

use shardwire_proto::webhook::sender::{Cursor, Sender};
use shardwire_proto::webhook::{AppWanted, Endpoint, Wanted};

use super::keeper::{Keeper, RELOAD_MS};
use super::lines::Line;
use super::outbox::{self, ENDPOINT};
use crate::records::RecordError;

/// How often what is over is removed.
const EXPIRE_MS: u64 = 30_000;
/// Expired records that are removed at once.
const EXPIRE_MAX: usize = 10_000;

impl Keeper {
    /// Takes over the endpoints as they are kept.
    pub(super) fn reload(&mut self, now_ms: u64) -> Result<(), RecordError> {
        self.due.reload = now_ms + RELOAD_MS;
        if !self.edits.is_empty() {
            // What is kept is not what holds.
            return Ok(());
        }
        let endpoints: Vec<Endpoint> = outbox::read_all(&mut *self.records, ENDPOINT, now_ms)?;
        let registry = self.registry.snapshot();
        let mut gone: Vec<String> = self.lines.keys().cloned().collect();
        let mut has_changed = false;
        for endpoint in endpoints {
            if registry.app(&endpoint.app).is_none() {
                self.remove_endpoint(&endpoint.id, now_ms)?;
                continue;
            }
            gone.retain(|id| *id != endpoint.id);
            match self.lines.get_mut(&endpoint.id) {
                Some(line) if *line.endpoint == endpoint => {}
                Some(line) => {
                    line.change(endpoint);
                    has_changed = true;
                }
                None => {
                    if let Some(mut line) = Line::new(endpoint) {
                        if self.ownership.is_owner() {
                            let Endpoint {
                                batch, concurrency, ..
                            } = *line.endpoint;
                            line.sender = Some(Sender::new(
                                &Cursor::default(),
                                batch,
                                concurrency,
                                self.retry_ms.clone(),
                            ));
                        }
                        self.lines.insert(line.id.to_string(), line);
                        has_changed = true;
                    }
                }
            }
        }
        for id in gone {
            self.lines.remove(&id);
            has_changed = true;
        }
        if has_changed {
            self.settle_wanted();
        }
        if now_ms >= self.due.expire {
            self.due.expire = now_ms + EXPIRE_MS;
            self.records.expire(now_ms, EXPIRE_MAX)?;
            self.caught.retain(|_| now_ms < self.caught_until_ms);
        }
        Ok(())
    }

    /// Works out what is wanted, for the shards and for this thread.
    pub(super) fn settle_wanted(&mut self) {
        let mut wanted = Wanted::default();
        let mut filters: HashMap<&str, Vec<_>> = HashMap::new();
        self.by_app.clear();
        for (id, line) in &self.lines {
            let of_app = self.by_app.entry(line.app.to_string()).or_default();
            of_app.push(id.clone());
            if line.endpoint.enabled {
                let of_app = filters.entry(&line.app).or_default();
                of_app.push(line.filter().clone());
            }
        }
        for (app, filters) in filters {
            wanted.set(app, AppWanted::new(filters));
        }
        self.wanted = Arc::new(wanted);
        self.shards
            .iter_mut()
            .for_each(|(_, behind)| *behind = true);
        self.tell_shards();
    }

    pub(super) fn tell_shards(&mut self) {
        for (inbox, behind) in self.shards.iter_mut().filter(|(_, behind)| *behind) {
            *behind = inbox.try_send(self.wanted.clone()).is_err();
        }
    }
}
