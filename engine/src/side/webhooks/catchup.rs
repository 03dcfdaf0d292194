//! Messages whose process died between the store's commit and the outbox's: found in the store of messages, as every
//! process keeps up to when its messages are in the outbox.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use shardwire_proto::record::{Page, Question, StoreAnswer, StoreRead, Ticket};
use shardwire_proto::webhook::{Kind, Note, Raised, Wanted, What};

use super::outbox::{self, CHUNK, Chunk, OF, PAGE};
use crate::records::{RecordError, Records, Scan};
use crate::store::StoreHandle;

/// By how much clocks may have been set back, ms: so much more is looked through.
const SLACK_MS: u64 = 5_000;
/// Channels in a page of the list of those that have changed.
const CHANNELS_PAGE: usize = 500;
/// Messages in a page.
const MESSAGES_PAGE: usize = 1_000;
/// Bytes of them.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// App and name.
type Channel = (Arc<str>, Arc<str>);
/// Place of a stored message: app, channel, sequence.
type Message = (String, String, u64);

/// Messages whose events are in the outbox, by endpoint.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<String, HashSet<(String, u64)>>);

impl Seen {
    /// Of what an endpoint got since a time.
    pub(super) fn read(
        &mut self,
        records: &mut dyn Records,
        endpoint: &str,
        since_ms: u64,
        now_ms: u64,
    ) -> Result<(), RecordError> {
        #[derive(Deserialize)]
        struct Told {
            channel: Option<String>,
            sequence: Option<u64>,
        }
        let seen = self.0.entry(endpoint.to_owned()).or_default();
        let mut scan = Scan::of(CHUNK, PAGE).labelled(OF, endpoint);
        scan.newest_first = true;
        loop {
            let page = records.scan(&scan, now_ms)?;
            scan.after = page.last().map(|record| (record.rank, record.id.clone()));
            let is_last = page.len() < PAGE;
            for chunk in page.iter().filter_map(outbox::parse::<Chunk>) {
                if chunk.ms.saturating_add(SLACK_MS) < since_ms {
                    return Ok(());
                }
                for event in chunk.events() {
                    if let Ok(Told {
                        channel: Some(channel),
                        sequence: Some(sequence),
                    }) = serde_json::from_str(&event.text)
                    {
                        seen.insert((channel, sequence));
                    }
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    pub(super) fn has(&self, endpoint: &str, note: &Note) -> bool {
        let (Some(channel), Some(sequence)) = (&note.channel, note.sequence) else {
            return false;
        };
        let seen = self.0.get(endpoint);
        seen.is_some_and(|seen| seen.contains(&(channel.clone(), sequence)))
    }
}

/// The stored messages since a time that somebody wants, those of each channel in order.
///
/// # Errors
/// The store does not answer.
pub(super) fn messages(
    store: &StoreHandle,
    wanted: &Wanted,
    since_ms: u64,
) -> Result<Vec<Note>, String> {
    let since_ms = since_ms.saturating_sub(SLACK_MS);
    let mut notes = Vec::new();
    let mut after: Option<Channel> = None;
    loop {
        let page = changed_channels(store, since_ms, after.clone())?;
        let is_last = page.len() < CHANNELS_PAGE;
        after = page.last().cloned();
        for (app, channel) in page {
            let is_wanted = wanted
                .of(&app)
                .is_some_and(|wanted| wanted.wants(Kind::Published, Some(&channel)));
            if is_wanted {
                read_channel(store, &app, &channel, since_ms, &mut notes)?;
            }
        }
        if is_last {
            return Ok(notes);
        }
    }
}

fn changed_channels(
    store: &StoreHandle,
    timestamp: u64,
    after: Option<Channel>,
) -> Result<Vec<Channel>, String> {
    let (app, channel) = after.unwrap_or_else(|| ("".into(), "".into()));
    let limit = CHANNELS_PAGE;
    match ask(
        store,
        (&app, &channel),
        Question::ChangedSince { timestamp, limit },
    )? {
        StoreAnswer::Channels(channels) => Ok(channels),
        _ => Err("an answer to another question".into()),
    }
}

fn read_channel(
    store: &StoreHandle,
    app: &Arc<str>,
    channel: &Arc<str>,
    since_ms: u64,
    notes: &mut Vec<Note>,
) -> Result<(), String> {
    let mut page = Page {
        after_ms: Some(since_ms.saturating_sub(1)),
        forward: true,
        limit: MESSAGES_PAGE,
        ties_max: MESSAGES_PAGE,
        bytes_max: PAGE_BYTES_MAX,
        ..Page::default()
    };
    loop {
        let StoreAnswer::Page { messages, has_more } =
            ask(store, (app, channel), Question::Page(page))?
        else {
            return Err("an answer to another question".into());
        };
        for record in messages {
            page.after_sequence = Some(record.sequence);
            let timestamp = record.timestamp;
            let channel = channel.clone();
            let raised = Raised {
                app: app.clone(),
                timestamp,
                what: What::Message { channel, record },
            };
            notes.push(Note::of(&raised, ""));
        }
        if !has_more {
            return Ok(());
        }
    }
}

fn ask(
    store: &StoreHandle,
    (app, channel): (&Arc<str>, &Arc<str>),
    question: Question,
) -> Result<StoreAnswer, String> {
    let read = StoreRead {
        ticket: Ticket(0),
        app: app.clone(),
        channel: channel.clone(),
        question,
    };
    let answer = store.ask(read);
    answer.map_err(|error| format!("the store of messages does not answer: {error:?}"))
}

/// Puts the messages of each channel into the order of their sequences, each once; everything else stays in its place.
pub(super) fn put_in_order(notes: &mut Vec<(Arc<str>, Note)>) {
    let place = |note: &Note| -> Option<Message> {
        Some((note.app.clone(), note.channel.clone()?, note.sequence?))
    };
    let mut seen = HashSet::new();
    notes.retain(|(_, note)| place(note).is_none_or(|message| seen.insert(message)));
    let mut channels: HashMap<(String, String), Vec<usize>> = HashMap::new();
    for (index, (_, note)) in notes.iter().enumerate() {
        if let Some((app, channel, _)) = place(note) {
            channels.entry((app, channel)).or_default().push(index);
        }
    }
    for places in channels.into_values() {
        let mut messages: Vec<(Arc<str>, Note)> =
            places.iter().map(|place| notes[*place].clone()).collect();
        messages.sort_by_key(|(_, note)| note.sequence);
        for (place, message) in places.into_iter().zip(messages) {
            notes[place] = message;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(channel: &str, sequence: Option<u64>) -> (Arc<str>, Note) {
        let mut note = Note::count_of("a", channel, 1, 0);
        note.sequence = sequence;
        ("n".into(), note)
    }

    #[test]
    fn messages_come_in_the_order_of_their_channel() {
        let mut notes = vec![
            message("c", Some(4)),
            message("c", None),
            message("d", Some(9)),
            message("c", Some(2)),
            message("c", Some(4)),
            message("c", Some(3)),
        ];
        put_in_order(&mut notes);
        let order: Vec<_> = notes.iter().map(|(_, n)| n.sequence).collect();
        assert_eq!(order, [Some(2), None, Some(9), Some(3), Some(4)]);
    }
}
