//! A client's `history` requests: answered in the order in which they came, though the store's
//! readers may finish them in another (contract section 10.10).

use std::rc::Rc;
use std::sync::Arc;

use super::Shard;
use super::lookup::page_of;
use crate::auth::capability::Ops;
use crate::channel_name;
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnId, Now};
use crate::limits::{
    HISTORIES_PER_CONN_MAX, HISTORY_PAGE_BYTES_MAX, HISTORY_PAGE_MIRRORED_BYTES_MAX,
    HISTORY_PAGE_TIES_MAX, Limits, REPLAY_OUTBOX_BYTES,
};
use crate::outbox::Frame;
use crate::rate::table::Class;
use crate::record::{Page, StoreAnswer, StoreError};
use crate::session::Gets;
use crate::url::Shape;
use crate::wire::wsocket::{PageRequest, write_error, write_history};

/// A history request that is not answered yet, or whose answer waits for earlier ones.
#[derive(Debug)]
pub struct HistorySlot {
    pub place: u64,
    pub channel: Arc<str>,
    pub answer: Option<Frame>,
}

impl Shard {
    pub(super) fn handle_history(
        &mut self,
        conn: ConnId,
        channel: &str,
        request: PageRequest,
        now: Now,
    ) {
        if let Err(code) = self.ask_for_history(conn, channel, request, now) {
            self.error(conn, &code.into(), Some(channel), None, now);
        }
    }

    fn ask_for_history(
        &mut self,
        conn: ConnId,
        channel: &str,
        request: PageRequest,
        now: Now,
    ) -> Result<(), ErrorCode> {
        channel_name::validate(channel, self.options.utf8_channel_names)?;
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let session = &mut c.session;
        let settings = self.apps.settings(&session.grant.app, channel);
        if !session.grant.permits(channel, Ops::HISTORY) {
            return Err(ErrorCode::NotPermitted);
        }
        if !settings.history || !settings.persist {
            return Err(ErrorCode::HistoryDisabled);
        }
        let waiting = session.rare.as_ref().map_or(0, |r| r.histories.len());
        if waiting >= HISTORIES_PER_CONN_MAX {
            return Err(ErrorCode::RateExceeded);
        }
        if !self.admit(conn, Class::History, channel, now) {
            return Err(ErrorCode::RateExceeded);
        }
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let session = &mut c.session;
        let bytes_max = if session.grant.shape == Shape::Mirrored {
            HISTORY_PAGE_MIRRORED_BYTES_MAX
        } else {
            HISTORY_PAGE_BYTES_MAX
        };
        let page = page(request, bytes_max, &self.options.limits);
        let app = session.grant.app.clone();
        let rare = session.rare();
        let place = rare.histories_asked;
        rare.histories_asked += 1;
        rare.histories.push_back(HistorySlot {
            place,
            channel: channel.into(),
            answer: None,
        });
        let channel = ChannelKey {
            app,
            name: channel.into(),
        };
        self.ask_history(channel, page, conn, place);
        Ok(())
    }

    pub(super) fn handle_history_page(
        &mut self,
        conn: ConnId,
        place: u64,
        answer: Result<StoreAnswer, StoreError>,
        now: Now,
    ) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let shape = c.session.grant.shape;
        let mut slots = c.session.rare.iter_mut().flat_map(|r| &mut r.histories);
        let slot = slots.find(|h| h.place == place);
        let Some(slot) = slot else { return };
        let frame = self.encoder.text(|out| match page_of(answer) {
            Ok((messages, has_more)) => {
                write_history(out, &slot.channel, &messages, has_more, shape);
            }
            Err(code) => write_error(out, &code.into(), Some(&slot.channel), None),
        });
        slot.answer = Some(Rc::from(frame));
        self.send_answers(conn, now);
    }

    /// Sends the answers to `history` and `presence.get` that are next in the order of their requests, as far as the
    /// outbox has room: they are large, and whoever asks for several must not be taken for too slow. The rest
    /// follows when the socket has taken these.
    pub(super) fn send_answers(&mut self, conn: ConnId, now: Now) {
        while let Some(c) = self.conns.open_mut(conn) {
            let session = &mut c.session;
            let next = session.rare.as_ref().and_then(|r| r.histories.front());
            let history = next.is_some_and(|h| h.answer.is_some());
            let gets = session.presence.as_mut().map(|p| &mut p.gets);
            let ready = |gets: &Gets| gets.waiting.front().is_some_and(|g| g.answer.is_some());
            let presence = gets.filter(|gets| gets.as_deref().is_some_and(ready));
            c.answers_wait = history || presence.is_some();
            if !c.answers_wait || c.outbox.bytes() >= REPLAY_OUTBOX_BYTES {
                return;
            }
            let answer = match presence {
                Some(gets) if !history => {
                    let next = gets.as_mut().and_then(|g| g.waiting.pop_front());
                    if gets.as_deref().is_some_and(|g| g.waiting.is_empty()) {
                        *gets = None;
                    }
                    next.and_then(|g| g.answer)
                }
                Some(_) | None => {
                    let next = session.rare.as_mut().and_then(|r| r.histories.pop_front());
                    next.and_then(|h| h.answer)
                }
            };
            if let Some(frame) = answer {
                self.queue(conn, frame, now);
            }
        }
    }
}

/// The page that a request asks for, within the limits (contract D17).
pub fn page(request: PageRequest, bytes_max: usize, limits: &Limits) -> Page {
    let limit = match request.limit {
        Some(limit) if limit >= 1 => usize::try_from(limit)
            .unwrap_or(usize::MAX)
            .min(limits.history_page_max),
        Some(_) | None => limits.history_page_default,
    };
    Page {
        after_sequence: request.after_sequence,
        before_sequence: request.before_sequence,
        after_ms: request.after_ms,
        before_ms: request.before_ms,
        forward: request.forward,
        limit,
        ties_max: HISTORY_PAGE_TIES_MAX,
        bytes_max,
    }
}
