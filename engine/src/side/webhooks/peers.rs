//! What the owner of the outbox takes over: the state that the last owner has left, and the events of processes that are
//! not the owner, or are gone.

use std::collections::VecDeque;
use std::sync::Arc;

use shardwire_proto::webhook::sender::{Cursor, Sender};
use shardwire_proto::webhook::standing::{Kept, Standing};
use shardwire_proto::webhook::subscribers::Subscribers;
use shardwire_proto::webhook::{Endpoint, Kind, Note};

use super::catchup::{self, Seen};
use super::deliver::Entry;
use super::keeper::Keeper;
use super::outbox::{self, CURSOR, INBOX, LOG, NODE, Node, REPLAY, Raisings, Replay, STANDING};
use crate::records::{Change, RecordError, Scan};

/// Records of other processes taken over at once.
const ADOPT_MAX: usize = 100;
/// How long it is remembered which messages were caught up with, ms.
const CAUGHT_MS: u64 = 120_000;

impl Keeper {
    /// Goes on from what the last owner has left.
    pub(super) fn take_over(&mut self, now_ms: u64) -> Result<(), RecordError> {
        let records = &mut *self.records;
        for line in self.lines.values_mut() {
            let cursor = records.get(CURSOR, &line.id, now_ms)?;
            let cursor: Cursor = cursor.as_ref().and_then(outbox::parse).unwrap_or_default();
            let log = records.get(LOG, &line.id, now_ms)?;
            let log: Option<VecDeque<Entry>> = log.as_ref().and_then(outbox::parse);
            line.log = log.unwrap_or_default();
            let Endpoint {
                batch, concurrency, ..
            } = *line.endpoint;
            line.sender = Some(Sender::new(
                &cursor,
                batch,
                concurrency,
                self.retry_ms.clone(),
            ));
        }
        self.standing = Standing::default();
        for kept in outbox::read_all::<Kept>(records, STANDING, now_ms)? {
            self.standing.restore(kept, now_ms, self.grace_ms);
        }
        self.subscribers = Subscribers::default();
        self.due.peers = 0;
        log::info!(endpoints = self.lines.len(), standing = self.standing.len(); "webhooks: this process delivers");
        Ok(())
    }

    /// Looks for processes that are gone: what stood there ends, and their messages are caught up with.
    pub(super) fn bury(
        &mut self,
        now_ms: u64,
        notes: &mut Vec<(Arc<str>, Note)>,
        changes: &mut Vec<Change>,
        seen: &mut Seen,
    ) -> Result<(), RecordError> {
        let nodes: Vec<Node> = outbox::read_all(&mut *self.records, NODE, now_ms)?;
        let is_alive = |node: &Node| now_ms < node.alive_until_ms || *node.id == *self.node;
        let (alive, dead): (Vec<Node>, Vec<Node>) = nodes.into_iter().partition(is_alive);
        self.has_peers = alive.iter().any(|node| *node.id != *self.node);
        let mut since_ms: Option<u64> = None;
        for node in &dead {
            changes.push(Change::delete(NODE, node.id.clone()));
            let complete = node.complete_ms;
            since_ms = since_ms.into_iter().chain(complete).min();
        }
        for node in self.standing.nodes() {
            if *node != *self.node && !alive.iter().any(|known| *known.id == *node) {
                self.standing.lose_node(&node, now_ms, self.grace_ms);
            }
        }
        for node in &dead {
            self.subscribers.lose_node(&node.id, now_ms);
        }
        let Some(since_ms) = since_ms.filter(|_| self.wanted.has(Kind::Published)) else {
            return Ok(());
        };
        for line in self.lines.values() {
            seen.read(&mut *self.records, &line.id, since_ms, now_ms)?;
        }
        let found = catchup::messages(&self.store, &self.wanted, since_ms);
        let found = found.map_err(RecordError::Busy)?;
        log::info!(messages = found.len(), since_ms; "webhooks: looked through the messages of a process that is gone");
        for note in found {
            if let (Some(channel), Some(sequence)) = (&note.channel, note.sequence) {
                self.caught
                    .insert((note.app.clone(), channel.clone(), sequence));
            }
            notes.push(("".into(), note));
        }
        self.caught_until_ms = now_ms + CAUGHT_MS;
        Ok(())
    }

    /// Takes over what other processes have raised.
    pub(super) fn adopt(
        &mut self,
        now_ms: u64,
        notes: &mut Vec<(Arc<str>, Note)>,
        changes: &mut Vec<Change>,
    ) -> Result<(), RecordError> {
        let found = self.records.scan(&Scan::of(INBOX, ADOPT_MAX), now_ms)?;
        if found.len() == ADOPT_MAX {
            self.due.peers = 0;
        }
        for record in &found {
            changes.push(Change::delete(INBOX, record.id.clone()));
            let Some(raisings) = outbox::parse::<Raisings>(record) else {
                continue;
            };
            let node: Arc<str> = raisings.node.as_str().into();
            notes.extend(raisings.notes.into_iter().map(|note| (node.clone(), note)));
        }
        Ok(())
    }

    /// Takes up what any process was asked to send again, and what the last owner had not got to.
    pub(super) fn adopt_replays(&mut self, now_ms: u64) -> Result<(), RecordError> {
        let asked: Vec<Replay> = outbox::read_all(&mut *self.records, REPLAY, now_ms)?;
        for line in self.lines.values_mut() {
            line.replays.clear();
        }
        for Replay { endpoint, letter } in asked {
            let is_done = self.edits.iter().any(
                |edit| matches!(edit, Change::Delete { kind, id, .. } if *kind == REPLAY && *id == letter),
            );
            if let Some(line) = self.lines.get_mut(&endpoint)
                && !is_done
                && line.replaying.as_ref() != Some(&letter)
            {
                line.replays.push_back(letter);
            }
        }
        Ok(())
    }
}
