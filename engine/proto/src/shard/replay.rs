//! Bringing a connection up to date: rewind, resume, and the position form (contract D18, D19).
//!
//! ```text
//! conn's shard                                home shard
//!   hold live messages of the channel
//!   AskReplay ───────────────────────────────► committed = C; finds (A, C] in ring or store
//!   ◄─────────────────────────────── Replay
//!   `subscribed`, held <= A, replay (A, C], held > C, then live
//! ```
//! Lanes keep order, so what the home delivers after it has looked is behind its answer or held;
//! nothing is missed, and nothing comes twice.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::Shard;
use crate::auth::capability::Ops;
use crate::catchup::{Active, ActiveState, JOBS_MAX, Job, Purpose, Resume};
use crate::channel::local::Found as Entered;
use crate::channel::log::ReplayFrom;
use crate::channel_name;
use crate::error::{ErrorCode, ProtocolError};
use crate::ids::{ChannelKey, ConnId, Now};
use crate::limits::REPLAY_OUTBOX_BYTES;
use crate::msg::{CountTo, ReplayResult, ReplayTo, ShardMsg};
use crate::rate::table::Class;
use crate::url::Shape;
use crate::wire::resume::parse_token;
use crate::wire::wsocket::{
    Resumed, SubscribeFrom, write_replay, write_resume_ack, write_subscribed,
    write_subscribed_since,
};

impl Shard {
    /// A `subscribe` that wants something of the past.
    pub(super) fn subscribe_from(
        &mut self,
        conn: ConnId,
        channel: &str,
        from: SubscribeFrom,
        now: Now,
    ) -> Result<(), ErrorCode> {
        channel_name::validate(channel, self.options.utf8_channel_names)?;
        let rewind_max = self.options.limits.rewind_messages_max;
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let grant = &c.session.grant;
        let settings = self.apps.settings(&grant.app, channel);
        if !grant.permits(channel, Ops::SUBSCRIBE) {
            return Err(ErrorCode::NotPermitted);
        }
        let (from, purpose) = match from {
            SubscribeFrom::Rewind(count) => {
                if !grant.permits(channel, Ops::HISTORY) {
                    return Err(ErrorCode::NotPermitted);
                }
                if !settings.history {
                    return Err(ErrorCode::HistoryDisabled);
                }
                (ReplayFrom::Newest(count.min(rewind_max)), Purpose::Rewind)
            }
            SubscribeFrom::Since(None) => (ReplayFrom::Nowhere, Purpose::Since),
            SubscribeFrom::Since(Some((sequence, epoch))) => {
                (ReplayFrom::Sequence { sequence, epoch }, Purpose::Since)
            }
        };
        let catchup = c.session.catchup.get_or_insert_default();
        if catchup.queue.len() >= JOBS_MAX {
            return Err(ErrorCode::RateExceeded);
        }
        catchup.queue.push_back(Job {
            channel: channel.into(),
            from,
            purpose,
        });
        self.next_job(conn, now);
        Ok(())
    }

    /// A client's `resume`: restores its channels and sends what it has missed.
    pub(super) fn handle_resume(&mut self, conn: ConnId, token: &str, flat: bool, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        if flat {
            c.session.grant.shape = Shape::Flat;
        }
        if c.session
            .catchup
            .as_ref()
            .is_some_and(|u| u.resume.is_some())
        {
            let error = ProtocolError::with_text(
                ErrorCode::BadRequest,
                "a resume of this connection is under way",
            );
            self.error(conn, &error, None, Some("resume"), now);
            return;
        }
        if !self.admit(conn, Class::Subscribe, "", now) {
            let error = ErrorCode::RateExceeded.into();
            self.error(conn, &error, None, Some("resume"), now);
            return;
        }
        let token = match parse_token(token) {
            Ok(token) => token,
            Err(code) => {
                self.error(conn, &code.into(), None, Some("resume"), now);
                return;
            }
        };
        let mut channels: Vec<Arc<str>> = Vec::new();
        for name in &token.channels {
            if channels.iter().any(|c| **c == **name) {
                continue;
            }
            match self.check_resumed(conn, name, channels.len()) {
                Ok(()) => channels.push(name.as_str().into()),
                Err(code) => self.error(conn, &code.into(), Some(name), None, now),
            }
        }
        let overlap_ms = self.options.recovery_overlap_ms;
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let app = c.session.grant.app.clone();
        let catchup = c.session.catchup.get_or_insert_default();
        // Messages of the very millisecond are counted first, unless the bound is lowered anyway.
        let counted = overlap_ms == 0;
        catchup.resume = Some(Resume {
            last_ms: token.last_ms,
            channels: (0..).zip(channels.iter().cloned()).collect(),
            counts_missing: if counted { channels.len() } else { 0 },
            at_last_ms: 0,
            holder: None,
            outcome: Vec::new(),
        });
        if counted {
            for (index, name) in (0..).zip(channels) {
                let to = CountTo {
                    shard: self.id,
                    conn,
                    index,
                };
                self.ask_count(to, &app, &name, token.last_ms, now);
            }
        }
        self.resume_counted(conn, now);
    }

    fn check_resumed(&mut self, conn: ConnId, name: &str, before: usize) -> Result<(), ErrorCode> {
        channel_name::validate(name, self.options.utf8_channel_names)?;
        if before >= self.options.limits.resume_channels_max {
            return Err(ErrorCode::ChannelLimit);
        }
        let permitted = self
            .conns
            .open_mut(conn)
            .is_some_and(|c| c.session.grant.permits(name, Ops::SUBSCRIBE));
        if permitted {
            Ok(())
        } else {
            Err(ErrorCode::NotPermitted)
        }
    }

    fn ask_count(&mut self, to: CountTo, app: &Arc<str>, name: &Arc<str>, ms: u64, now: Now) {
        let hash = self.placement.hash(app, name);
        let channel = ChannelKey {
            app: app.clone(),
            name: name.clone(),
        };
        let msg = ShardMsg::AskCount {
            channel,
            hash,
            timestamp: ms,
            to,
        };
        self.send_or_handle(self.placement.home(hash), msg, now);
    }

    /// One channel's count of messages at a resume's last timestamp.
    pub(super) fn handle_count(&mut self, to: CountTo, count: u64, now: Now) {
        let conn = to.conn;
        let resume = self
            .conns
            .open_mut(conn)
            .and_then(|c| c.session.catchup.as_mut())
            .and_then(|u| u.resume.as_mut());
        let Some(resume) = resume else { return };
        resume.at_last_ms += count;
        if count == 1 {
            resume.holder = Some(to.index);
        }
        resume.counts_missing = resume.counts_missing.saturating_sub(1);
        if resume.counts_missing == 0 {
            self.resume_counted(conn, now);
        }
    }

    /// All counts are in: the channels are queued. With one message at the last timestamp the
    /// client has it; with more it may lack some, and gets all (contract D19).
    fn resume_counted(&mut self, conn: ConnId, now: Now) {
        let overlap_ms = self.options.recovery_overlap_ms;
        let Some(catchup) = self
            .conns
            .open_mut(conn)
            .and_then(|c| c.session.catchup.as_mut())
        else {
            return;
        };
        let Some(resume) = catchup.resume.as_mut().filter(|r| r.counts_missing == 0) else {
            return;
        };
        let ms = resume.last_ms.saturating_sub(overlap_ms);
        let inclusive = resume.at_last_ms > 1;
        // The one channel whose message has the last timestamp: of it the client has all before.
        let holder = resume.holder.filter(|_| resume.at_last_ms == 1);
        for (index, channel) in std::mem::take(&mut resume.channels) {
            catchup.queue.push_back(Job {
                channel,
                from: ReplayFrom::Timestamp {
                    ms,
                    inclusive,
                    late: holder != Some(index),
                },
                purpose: Purpose::Resume,
            });
        }
        self.next_job(conn, now);
    }

    /// Begins the next job unless one is at work; ends a resume that has none left.
    pub(super) fn next_job(&mut self, conn: ConnId, now: Now) {
        loop {
            let Some(c) = self.conns.open_mut(conn) else {
                return;
            };
            let Some(catchup) = c.session.catchup.as_mut() else {
                return;
            };
            if catchup.active.is_some() {
                return;
            }
            let Some(job) = catchup.queue.pop_front() else {
                self.finish_catchup(conn, now);
                return;
            };
            if let Err(code) = self.begin_job(conn, job.clone(), now) {
                self.error(conn, &code.into(), Some(&job.channel), None, now);
                self.note_resumed(conn, &job, None);
            }
        }
    }

    /// No job is left: a resume that has all its counts is answered.
    fn finish_catchup(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        let Some(catchup) = c.session.catchup.as_mut() else {
            return;
        };
        if catchup
            .resume
            .as_ref()
            .is_some_and(|r| r.counts_missing > 0)
        {
            return;
        }
        let resume = catchup.resume.take();
        c.session.catchup = None;
        if let Some(resume) = resume {
            self.reply(conn, now, |out| write_resume_ack(out, &resume.outcome));
        }
    }

    fn begin_job(&mut self, conn: ConnId, job: Job, now: Now) -> Result<(), ErrorCode> {
        let Some(c) = self.conns.open_mut(conn) else {
            return Ok(());
        };
        let policy = self.apps.policy(c.session.grant.app_index);
        let most = policy.map_or(0, |policy| policy.channels_per_conn_max);
        let app = c.session.grant.app.clone();
        let hash = self.placement.hash(&app, &job.channel);
        let subscribed = self
            .local
            .find(&app, &job.channel, hash)
            .and_then(|slot| c.subscriptions.iter().position(|s| s.channel == slot));
        if subscribed.is_none() && c.subscriptions.len() >= most {
            return Err(ErrorCode::ChannelLimit);
        }
        let index = c.session.grant.app_index;
        if self.local.find(&app, &job.channel, hash).is_none() {
            self.take_channel(index, now)?;
        }
        let (slot, entered) = self.local.enter(&app, &job.channel, hash);
        // Held before it leaves the list of subscribers, so that the entry stays.
        self.local.hold(slot, conn);
        if let Some(index) = subscribed {
            self.take_subscription(conn, index, now);
        }
        self.counters.subscriptions += 1;
        let channel = ChannelKey {
            app,
            name: job.channel.clone(),
        };
        let home = self.placement.home(hash);
        if let Entered::First(local) = entered {
            let msg = ShardMsg::Interest {
                channel: channel.clone(),
                hash,
                local,
            };
            self.send_or_handle(home, msg, now);
        }
        let Some(session) = self.conns.open_mut(conn).map(|c| &mut c.session) else {
            return Ok(());
        };
        session.replays_begun = session.replays_begun.wrapping_add(1);
        let number = session.replays_begun;
        let Some(catchup) = session.catchup.as_mut() else {
            return Ok(());
        };
        let from = job.from.clone();
        catchup.active = Some(Active {
            job,
            number,
            slot,
            state: ActiveState::Asked,
        });
        let to = ReplayTo {
            shard: self.id,
            conn,
            job: number,
        };
        let msg = ShardMsg::AskReplay {
            channel,
            hash,
            to,
            from,
        };
        self.send_or_handle(home, msg, now);
        Ok(())
    }

    /// The home shard's answer.
    pub(super) fn handle_replay(&mut self, to: ReplayTo, result: ReplayResult, now: Now) {
        let Some(active) = self
            .conns
            .open_mut(to.conn)
            .and_then(|c| c.session.catchup.as_mut())
            .and_then(|u| u.active.as_mut())
            .filter(|a| a.number == to.job)
        else {
            return;
        };
        let (slot, purpose, channel) =
            (active.slot, active.job.purpose, active.job.channel.clone());
        let known = match active.job.from {
            ReplayFrom::Sequence { sequence, .. } if result.recovered => sequence,
            _ => 0,
        };
        active.state = ActiveState::Sending {
            records: VecDeque::from(result.records),
            recovered: result.recovered,
            replayed: 0,
        };
        let ActiveState::Sending { records, .. } = &active.state else {
            return;
        };
        // Held messages that the replay does not cover come before it, those it covers are dropped,
        // and those that the client says it has.
        let covered_from = records.front().map_or(result.through + 1, |r| r.sequence);
        self.reply(to.conn, now, |out| match purpose {
            Purpose::Rewind | Purpose::Resume => write_subscribed(out, &channel),
            Purpose::Since => write_subscribed_since(
                out,
                &channel,
                result.recovered,
                &result.epoch,
                result.through,
            ),
        });
        if result.failed {
            let error = ErrorCode::Unavailable.into();
            self.error(to.conn, &error, Some(&channel), None, now);
        }
        let before = self.local.take_held(slot, to.conn, |s| {
            s.is_some_and(|s| known < s && s < covered_from)
        });
        for frame in before {
            self.queue(to.conn, frame, now);
        }
        drop(
            self.local
                .take_held(slot, to.conn, |s| s.is_some_and(|s| s <= result.through)),
        );
        if let Some(c) = self.conns.open_mut(to.conn) {
            c.catching_up = true;
        }
        self.pump(to.conn, now);
    }

    /// The socket has taken what was queued: sends more of the replay (contract D13: paced by the
    /// socket). The driver calls it for connections that are catching up.
    pub fn pump(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        // The next job may be answered before it has begun: by the loop below, not by one inside
        // of it, so that no client decides how deep the stack is.
        if std::mem::replace(&mut c.session.pumping, true) {
            return;
        }
        while self.pump_one(conn, now) {}
        self.send_answers(conn, now);
        if let Some(c) = self.conns.get_mut(conn) {
            c.session.pumping = false;
        }
    }

    /// Sends one message of the replay, or ends it; false where there is nothing to go on with.
    fn pump_one(&mut self, conn: ConnId, now: Now) -> bool {
        let Some(c) = self.conns.open_mut(conn) else {
            return false;
        };
        let frames_max = self.options.limits.outbox_frames_max / 2;
        if c.outbox.bytes() >= REPLAY_OUTBOX_BYTES || c.outbox.frames() > frames_max {
            return false;
        }
        let Some(active) = c.session.catchup.as_mut().and_then(|u| u.active.as_mut()) else {
            c.catching_up = false;
            return false;
        };
        let ActiveState::Sending {
            records, replayed, ..
        } = &mut active.state
        else {
            return false;
        };
        let Some(record) = records.pop_front() else {
            self.finish_job(conn, now);
            return true;
        };
        *replayed += 1;
        let channel = active.job.channel.clone();
        self.counters.replayed += 1;
        let frame = self
            .encoder
            .text(|out| write_replay(out, &channel, &record));
        let frame = Rc::from(frame);
        self.queue(conn, frame, now);
        true
    }

    /// The replay is sent: what was held follows, then the connection is a subscriber like others.
    fn finish_job(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.open_mut(conn) else {
            return;
        };
        c.catching_up = false;
        let Some(active) = c.session.catchup.as_mut().and_then(|u| u.active.take()) else {
            return;
        };
        let place = u16::try_from(c.subscriptions.len()).unwrap_or(u16::MAX);
        let held = self.local.release(active.slot, conn);
        if let Some(subscription) = self.local.add(active.slot, conn.slot, place) {
            c.subscriptions.push(subscription);
        }
        for (_, frame) in held.map(|h| h.frames).unwrap_or_default() {
            self.queue(conn, frame, now);
        }
        let outcome = match active.state {
            ActiveState::Sending {
                recovered,
                replayed,
                ..
            } => Some(Resumed {
                recovered,
                replayed,
            }),
            ActiveState::Asked => None,
        };
        self.note_resumed(conn, &active.job, outcome);
        self.next_job(conn, now);
    }

    fn note_resumed(&mut self, conn: ConnId, job: &Job, outcome: Option<Resumed>) {
        if job.purpose != Purpose::Resume {
            return;
        }
        let resume = self
            .conns
            .open_mut(conn)
            .and_then(|c| c.session.catchup.as_mut())
            .and_then(|u| u.resume.as_mut());
        if let (Some(resume), Some(outcome)) = (resume, outcome) {
            resume.outcome.push((job.channel.clone(), outcome));
        }
    }

    /// An `unsubscribe` of a channel whose replay waits or is at work. True if its `subscribed` is
    /// still owed.
    pub(super) fn cancel_replay(&mut self, conn: ConnId, channel: &str, now: Now) -> bool {
        let Some(catchup) = self
            .conns
            .open_mut(conn)
            .and_then(|c| c.session.catchup.as_mut())
        else {
            return false;
        };
        let sent = catchup.is_sending(channel);
        let concerned = catchup.concerns(channel);
        catchup.queue.retain(|j| &*j.channel != channel);
        if let Some(resume) = &mut catchup.resume {
            resume.channels.retain(|(_, c)| **c != *channel);
        }
        let is_active = catchup
            .active
            .as_ref()
            .is_some_and(|a| &*a.job.channel == channel);
        if is_active {
            self.abandon_active(conn, now);
            self.next_job(conn, now);
        }
        concerned && !sent
    }

    /// Gives up the active job: the connection leaves the channel.
    pub(super) fn abandon_active(&mut self, conn: ConnId, now: Now) {
        let Some(c) = self.conns.get_mut(conn) else {
            return;
        };
        c.catching_up = false;
        let Some(active) = c.session.catchup.as_mut().and_then(|u| u.active.take()) else {
            return;
        };
        self.local.stop_waiting(active.slot, conn);
        if self.local.release(active.slot, conn).is_some() {
            self.counters.subscriptions -= 1;
        }
        self.free_channel(active.slot, now);
    }
}
