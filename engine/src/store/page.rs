//! The rules of a page (contract D17), whatever the messages come from.

use std::sync::Arc;

use shardwire_proto::record::{Page, Record};

/// Takes messages in a page's order until the page is full, and sees to it that it does not end within a run of equal
/// timestamps: it goes on for the run, or gives back what it has of it.
pub(super) struct PageBuilder<'p> {
    page: &'p Page,
    messages: Vec<Arc<Record>>,
    bytes: usize,
    /// The page ends within a run.
    cut: bool,
}

impl<'p> PageBuilder<'p> {
    pub(super) fn new(page: &'p Page) -> Self {
        Self {
            page,
            messages: Vec::new(),
            bytes: 0,
            cut: false,
        }
    }

    /// Whether it takes more.
    pub(super) fn add(&mut self, message: Record) -> bool {
        let Some(last) = self.messages.last() else {
            self.bytes = message.weight();
            self.messages.push(Arc::new(message));
            return true;
        };
        let ties = message.timestamp == last.timestamp;
        let limit = self.page.limit.max(1);
        let count = self.messages.len();
        let bytes = self.bytes.saturating_add(message.weight());
        let room = if ties {
            limit.saturating_add(self.page.ties_max)
        } else {
            limit
        };
        if count >= room || bytes > self.page.bytes_max {
            self.cut = ties;
            return false;
        }
        self.bytes = bytes;
        self.messages.push(Arc::new(message));
        true
    }

    pub(super) fn finish(mut self) -> Vec<Arc<Record>> {
        if self.cut {
            let run = self.messages.last().map(|last| last.timestamp);
            let start = self
                .messages
                .iter()
                .position(|message| Some(message.timestamp) == run);
            // A run that fills a page by itself has to be cut.
            match start {
                Some(0) | None => {}
                Some(start) => self.messages.truncate(start),
            }
        }
        self.messages
    }
}
