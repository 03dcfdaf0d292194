//! One endpoint at work: its settings, what is due to it, and what its last attempts came to.

use std::collections::VecDeque;
use std::sync::Arc;

use shardwire_proto::webhook::event::encode_body;
use shardwire_proto::webhook::sender::{Attempt, Queued, Sender, key_hash};
use shardwire_proto::webhook::{Endpoint, Filter, Kind, Note};

use super::deliver::{Entry, Place, Shipment};

/// Attempts that the delivery log keeps.
pub(super) const LOG_ENTRIES: usize = 50;

#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: Arc<str>,
    pub(super) app: Arc<str>,
    pub(super) endpoint: Arc<Endpoint>,
    filter: Filter,
    /// Only the owner of the outbox has one.
    pub(super) sender: Option<Sender>,
    /// Numbered, and not in the outbox yet.
    pub(super) fresh: Vec<Queued>,
    /// How far it is has changed since it was kept.
    pub(super) dirty: bool,
    /// The newest last.
    pub(super) log: VecDeque<Entry>,
    pub(super) log_dirty: bool,
    /// Dead letters to be sent again, as far as they are known; and the one that is under way.
    pub(super) replays: VecDeque<String>,
    pub(super) replaying: Option<String>,
}

impl Line {
    /// None where the endpoint is not one: somebody else has written it.
    pub(super) fn new(endpoint: Endpoint) -> Option<Self> {
        Some(Self {
            id: endpoint.id.as_str().into(),
            app: endpoint.app.as_str().into(),
            filter: endpoint.filter()?,
            endpoint: Arc::new(endpoint),
            sender: None,
            fresh: Vec::new(),
            dirty: false,
            log: VecDeque::new(),
            log_dirty: false,
            replays: VecDeque::new(),
            replaying: None,
        })
    }

    /// Takes over changed settings.
    pub(super) fn change(&mut self, endpoint: Endpoint) {
        let Some(filter) = endpoint.filter() else {
            return;
        };
        self.filter = filter;
        let is_elsewhere = endpoint.url != self.endpoint.url;
        let is_back = endpoint.enabled && !self.endpoint.enabled;
        let lanes_change = endpoint.concurrency != self.endpoint.concurrency;
        if let Some(sender) = &mut self.sender {
            sender.set_batch(endpoint.batch);
            if is_elsewhere || is_back {
                sender.hurry(crate::clock::now_ms());
            }
            // Other lanes are begun when nothing is under way; what was under way is sent again.
            if lanes_change && sender.in_flight() == 0 {
                *sender = sender.relaned(endpoint.concurrency);
                self.dirty = true;
            }
        }
        self.endpoint = Arc::new(endpoint);
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    pub(super) fn wants(&self, kind: Kind, channel: Option<&str>) -> bool {
        self.endpoint.enabled && self.filter.wants(kind, channel)
    }

    /// Gives an event its number.
    pub(super) fn append(&mut self, note: &Note) {
        let Some(sender) = &mut self.sender else {
            return;
        };
        let number = sender.take_number();
        let event = Queued {
            number,
            key: key_hash(note.order_key()),
            at_ms: note.at_ms,
            text: note
                .encode(number, self.endpoint.names.of(note.kind))
                .into(),
        };
        self.fresh.push(event.clone());
        sender.push(event);
    }

    pub(super) fn note_attempt(&mut self, entry: Entry) {
        if self.log.len() >= LOG_ENTRIES {
            self.log.pop_front();
        }
        self.log.push_back(entry);
        self.log_dirty = true;
    }

    /// An attempt as it is made.
    pub(super) fn shipment(&self, attempt: Attempt, is_probe: bool, now_ms: u64) -> Shipment {
        let texts = attempt.events.iter().map(|event| &*event.text);
        let body = encode_body(&attempt.id, &self.app, attempt.formed_ms, texts);
        let times = attempt.events.iter().map(|event| event.at_ms).collect();
        let place = Place::Lane(attempt.lane);
        self.ship(
            place,
            (attempt.id, attempt.number),
            body,
            times,
            is_probe,
            now_ms,
        )
    }

    pub(super) fn ship(
        &self,
        place: Place,
        (id, attempt): (String, u32),
        body: String,
        times: Vec<u64>,
        is_probe: bool,
        now_ms: u64,
    ) -> Shipment {
        Shipment {
            endpoint: self.id.clone(),
            app: self.app.clone(),
            place,
            url: self.endpoint.url.clone(),
            id,
            attempt,
            secrets: self.endpoint.secrets(now_ms).map(str::to_owned).collect(),
            body: body.into(),
            is_probe,
            times,
        }
    }
}
