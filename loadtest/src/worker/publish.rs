//! When a stream sends, and sending.
//!
//! Closed loop: a message leaves when an earlier one has reached its last subscriber. Open loop: it
//! leaves when it is due, and its stamp carries that time even if it leaves late.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Worker;
use super::slot::{Role, State};
use super::timers::Due;
use crate::adapter::Outgoing;
use crate::plan::Pace;
use crate::shared::Phase;
use crate::stamp::Stamp;
use crate::tls::Session;

/// A closed-loop stream that waits longer sends again, so that one lost message does not end the load.
const STALL_NS: u64 = 5_000_000_000;
/// Bytes that a publisher's connection may owe; past it the server is not taking the offered rate.
const BACKLOG_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A stream's progress, on the thread of its publisher.
pub(super) struct StreamState {
    pace: Pace,
    next_seq: u32,
    outstanding: u32,
    /// Time of the last completion.
    progress_ns: u64,
}

impl StreamState {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            next_seq: 0,
            outstanding: 0,
            progress_ns: 0,
        }
    }
}

/// A publisher's connection, seen from its streams.
pub(super) struct PublisherState {
    slot: u32,
    /// HTTP: stream of the request under way, and when it was due.
    request: Option<(u32, u64)>,
    /// Messages (stream, due) that wait for the response under way.
    queue: VecDeque<(u32, u64)>,
}

impl PublisherState {
    pub(super) fn new(slot: u32) -> Self {
        Self {
            slot,
            request: None,
            queue: VecDeque::new(),
        }
    }
}

impl Worker<'_> {
    fn own_streams(&self) -> Vec<u32> {
        let publishers = self.publishers.iter().zip(&self.shared.plan.publishers);
        publishers
            .filter(|(own, _)| own.is_some())
            .flat_map(|(_, plan)| plan.streams.iter().copied())
            .collect()
    }

    pub(super) fn start_streams(&mut self) {
        let total = self.shared.plan.streams.len() as f64;
        for stream in self.own_streams() {
            match self.streams[stream as usize].pace {
                Pace::InFlight(count) => (0..count).for_each(|_| self.publish(stream, self.now_ns)),
                // Spread over one period, so that many slow streams do not send in step.
                Pace::Rate(rate) => {
                    let offset = 1e9 / rate * (f64::from(stream) / total);
                    self.timers
                        .at(self.now_ns + offset as u64, Due::Stream(stream));
                }
                Pace::OnDemand => {}
            }
        }
    }

    pub(super) fn stop_streams(&mut self) {
        self.timers.stop_load();
        self.stop_churn();
        for publisher in self.publishers.iter_mut().flatten() {
            publisher.queue.clear();
        }
        for stream in self.own_streams() {
            let published = self.streams[stream as usize].next_seq;
            self.shared.finals[stream as usize].store(published, Ordering::Release);
        }
    }

    pub(super) fn probe_streams(&mut self) {
        for stream in self.own_streams() {
            self.publish(stream, self.now_ns);
        }
    }

    pub(super) fn on_stream_due(&mut self, stream: u32, due_ns: u64) {
        if let Pace::Rate(rate) = self.streams[stream as usize].pace {
            self.timers
                .at(due_ns + (1e9 / rate) as u64, Due::Stream(stream));
            self.publish(stream, due_ns);
        }
    }

    /// All subscribers of this thread have the message.
    pub(super) fn on_all_local(&mut self, channel: u32, stamp: Stamp, latency_ns: u64) {
        let threads = self.threads_of_channel[channel as usize];
        if threads > 1
            && !self
                .shared
                .flights
                .thread_done(stamp.stream, stamp.seq, threads)
        {
            return;
        }
        self.meter.completion(latency_ns);
        self.shared.completed.fetch_add(1, Ordering::Relaxed);
        let publisher = self.shared.plan.streams[stamp.stream as usize].publisher;
        let owner = self
            .shared
            .plan
            .thread_of_publisher(publisher, self.shared.settings.threads);
        if owner == self.index {
            self.on_completed(stamp.stream);
        } else {
            self.outboxes[owner].push(stamp.stream);
        }
    }

    /// A message of an own stream has reached its last subscriber.
    pub(super) fn on_completed(&mut self, stream: u32) {
        let state = &mut self.streams[stream as usize];
        state.outstanding = state.outstanding.saturating_sub(1);
        state.progress_ns = self.now_ns;
        if self.phase == Phase::Run && matches!(state.pace, Pace::InFlight(_)) {
            self.publish(stream, self.now_ns);
        }
    }

    pub(super) fn mend_stalls(&mut self) {
        if self.phase != Phase::Run {
            return;
        }
        for stream in self.own_streams() {
            let state = &mut self.streams[stream as usize];
            if let Pace::InFlight(count) = state.pace
                && self.now_ns.saturating_sub(state.progress_ns) > STALL_NS
            {
                state.outstanding = 0;
                self.tallies.stalls += 1;
                (0..count).for_each(|_| self.publish(stream, self.now_ns));
            }
        }
    }

    fn publish(&mut self, stream: u32, due_ns: u64) {
        let publisher = self.shared.plan.streams[stream as usize].publisher;
        let Some(own) = &mut self.publishers[publisher as usize] else {
            return;
        };
        let slot = own.slot;
        self.streams[stream as usize].progress_ns = self.now_ns;
        if let Role::Http { .. } = self.slots[slot as usize].role {
            own.queue.push_back((stream, due_ns));
            self.send_request(publisher);
        } else {
            self.encode(slot, stream, due_ns);
        }
    }

    /// HTTP: sends the next request, if there is one and the connection is free for it.
    pub(super) fn send_request(&mut self, publisher: u32) {
        let Some(own) = &mut self.publishers[publisher as usize] else {
            return;
        };
        let conn = self.slots[own.slot as usize].conn.as_ref();
        if own.request.is_some() || conn.is_none_or(|conn| conn.state != State::Ready) {
            return;
        }
        own.request = own.queue.pop_front();
        if let (Some((stream, due_ns)), slot) = (own.request, own.slot) {
            self.encode(slot, stream, due_ns);
        }
    }

    fn encode(&mut self, slot: u32, stream: u32, due_ns: u64) {
        let shared = self.shared;
        let role = self.slots[slot as usize].role;
        let Some(conn) = self.slots[slot as usize]
            .conn
            .as_mut()
            .filter(|conn| conn.state == State::Ready)
        else {
            return;
        };
        let state = &mut self.streams[stream as usize];
        let stamp = Stamp {
            stream,
            seq: state.next_seq,
            sent_ns: due_ns,
        };
        state.next_seq += 1;
        state.outstanding += 1;
        if !shared.plan.clients.is_empty() {
            self.clients.unacked.insert((stream, stamp.seq));
        }
        self.meter.publish();
        let channel = shared.plan.streams[stream as usize].channel;
        let channel = &shared.plan.channels[channel as usize].name;
        let message = Outgoing {
            channel,
            stamp,
            size: shared.settings.size,
        };
        if let Role::Http { .. } = role {
            let unix_s = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs());
            shared.settings.adapter.encode_http(
                &shared.settings.host,
                message,
                unix_s,
                &mut conn.out,
            );
        } else {
            shared
                .settings
                .adapter
                .encode_publish(message, &mut conn.out);
        }
        if conn.out.len() > BACKLOG_BYTES_MAX {
            shared.fail(
                "the server does not take the offered rate: a publisher's backlog is full"
                    .to_owned(),
            );
        }
        self.mark_dirty(slot);
    }

    /// The server has taken (or refused) a message. Where nobody subscribes, or it was refused, that is
    /// all that will happen to it.
    pub(super) fn on_ack(&mut self, stream: u32, since_ns: u64, accepted: bool) {
        self.meter.ack(self.now_ns.saturating_sub(since_ns));
        let plan = &self.shared.plan;
        let Some(of_plan) = plan.streams.get(stream as usize) else {
            return;
        };
        if !accepted || plan.channels[of_plan.channel as usize].subscribers == 0 {
            self.on_completed(stream);
        }
    }

    /// HTTP: whether a request of `publisher` is under way.
    pub(super) fn has_request(&self, publisher: u32) -> bool {
        self.publishers[publisher as usize]
            .as_ref()
            .is_some_and(|own| own.request.is_some())
    }

    /// HTTP: the request of `publisher` is answered.
    pub(super) fn on_response(&mut self, publisher: u32, accepted: bool) {
        let Some(own) = &mut self.publishers[publisher as usize] else {
            return;
        };
        let Some((stream, since_ns)) = own.request.take() else {
            return;
        };
        self.send_request(publisher);
        self.on_ack(stream, since_ns, accepted);
    }

    pub(super) fn mark_dirty(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(index);
        }
    }

    pub(super) fn flush_dirty(&mut self) {
        while let Some(index) = self.dirty.pop() {
            self.slots[index as usize].dirty = false;
            self.flush(index);
        }
    }

    /// Sends what the socket takes; the rest goes when it is writable again.
    pub(super) fn flush(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let Some(conn) = &mut slot.conn else { return };
        let mut sent = 0;
        while sent < conn.out.len() || conn.tls.as_ref().is_some_and(Session::wants_write) {
            match conn.send_from(sent) {
                Ok(0) => break,
                Ok(n) => sent += n,
                Err(error) if is_temporary(&error) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.on_lost(index, error.to_string());
                    return;
                }
            }
        }
        if sent > 0 && conn.state == State::Connecting {
            conn.state = State::Handshaking;
        }
        if sent == conn.out.len() {
            // Mere subscribers send next to nothing: their buffers are given back.
            match slot.role {
                Role::Publisher { .. } | Role::Http { .. } => conn.out.clear(),
                Role::Subscriber {
                    publishes: true, ..
                } => conn.out.clear(),
                Role::Subscriber { .. }
                | Role::Churn { .. }
                | Role::Client { .. }
                | Role::Member { .. } => {
                    conn.out = Vec::new();
                }
            }
        } else {
            conn.out.drain(..sent);
        }
    }
}

/// The socket takes no more for now, or is not connected yet.
fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::NotConnected
    )
}
