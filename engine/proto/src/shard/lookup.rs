//! What is read of the store: a channel's log when it is needed, replays and counts that memory
//! does not hold, pages of history. Work for a channel whose log is not known yet waits until it is
//! loaded. Answers come in any order.

use std::sync::Arc;

use super::cluster::Waiting;
use super::{Output, Shard};
use crate::channel::home::LogState;
use crate::channel::log::{Found, ReplayFrom, count_of_loaded, replay_of_loaded};
use crate::error::ErrorCode;
use crate::ids::{ChannelKey, ConnId, Now, RequestId, ShardId};
use crate::limits::{
    DEFERRED_PER_CHANNEL_MAX, DEFERRED_QUESTIONS_PER_CHANNEL_MAX, REPLAY_BYTES_MAX,
    RING_LOAD_BYTES, RING_LOAD_MESSAGES, STORE_QUESTIONS_WAITING_MAX,
};
use crate::msg::{Answer, CountTo, Occupants, OwnedPublish, ReplayResult, ReplayTo, ShardMsg};
use crate::record::{Page, Question, Record, StoreAnswer, StoreError, StoreRead, Ticket};

/// Logs that are tried to be loaded again per tick.
const LOADS_PER_TICK: usize = 256;

/// Who waits for a read.
#[derive(Debug)]
pub(super) enum ReadFor {
    Load {
        slot: u32,
        number: u64,
    },
    Replay {
        to: ReplayTo,
        from: ReplayFrom,
        slot: u32,
        number: u64,
    },
    Count {
        to: CountTo,
        timestamp: u64,
        /// Messages to be counted besides.
        others: u64,
    },
    History {
        conn: ConnId,
        place: u64,
    },
    HttpHistory {
        request: RequestId,
    },
    /// A publish to a channel that the broker does not know.
    Place {
        waiting: Waiting,
    },
}

/// Work that waits for a log.
#[derive(Debug)]
pub(super) enum Deferred {
    Publish(OwnedPublish),
    Replay {
        to: ReplayTo,
        from: ReplayFrom,
    },
    Count {
        timestamp: u64,
        to: CountTo,
    },
    Clear {
        shard: ShardId,
        request: RequestId,
    },
    /// An HTTP request asks where the channel stands.
    Describe {
        shard: ShardId,
        request: RequestId,
    },
}

impl Shard {
    /// The questions for the store's readers, in order. Those that their queue has no room for the
    /// driver gives back through [`Shard::keep_questions`]; one that fails is answered.
    pub fn take_questions(&mut self) -> Vec<StoreRead> {
        std::mem::take(&mut self.store.questions)
    }

    /// The readers' queue is full: these questions are asked again, before later ones. All that are
    /// too many are answered with [`StoreError::Overloaded`].
    pub fn keep_questions(&mut self, mut questions: Vec<StoreRead>, now: Now) {
        questions.append(&mut self.store.questions);
        let kept = questions.len().min(STORE_QUESTIONS_WAITING_MAX);
        let too_many = questions.split_off(kept);
        self.store.questions = questions;
        for question in too_many {
            self.handle_answer(question.ticket, Err(StoreError::Overloaded), now);
        }
    }

    /// Keeps work until the channel's log is known, asking for it if nobody has. Err gives it back
    /// when too much waits.
    pub(super) fn defer(&mut self, slot: u32, work: Deferred, now: Now) -> Result<(), Deferred> {
        let can_wait = matches!(work, Deferred::Replay { .. });
        if self.options.clustered && !self.broker_is_up() && !can_wait {
            return Err(work);
        }
        let waiting = self.store.deferred.entry(slot).or_default();
        let most = match &work {
            Deferred::Publish(_) => DEFERRED_PER_CHANNEL_MAX,
            // Small, and bounded by connections; a crowd that resumes one channel is one.
            Deferred::Replay { .. }
            | Deferred::Count { .. }
            | Deferred::Clear { .. }
            | Deferred::Describe { .. } => DEFERRED_QUESTIONS_PER_CHANNEL_MAX,
        };
        if waiting.len() >= most {
            return Err(work);
        }
        waiting.push(work);
        self.load(slot, now);
        Ok(())
    }

    pub(super) fn load_if_given_up(&mut self, slot: u32, now: Now) {
        if let Some(channel) = self.home.get(slot).filter(|c| c.is_given_up()) {
            self.store.given_up.insert(slot, channel.number);
            self.load(slot, now);
        }
    }

    /// Tries again to load logs that were given up, a bounded number of them.
    pub(super) fn load_given_up(&mut self, now: Now) {
        let home = &self.home;
        self.store.given_up.retain(|slot, number| {
            home.get(*slot)
                .is_some_and(|c| c.number == *number && c.is_given_up())
        });
        let slots: Vec<u32> = self.store.given_up.keys().copied().collect();
        for slot in slots.into_iter().take(LOADS_PER_TICK) {
            self.load(slot, now);
        }
    }

    /// Asks the store for a channel's log unless it is known or asked for.
    pub(super) fn load(&mut self, slot: u32, now: Now) {
        if self.options.clustered {
            self.follow_channel(slot);
            return;
        }
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        if matches!(channel.log, LogState::Unknown) {
            channel.log = LogState::Loading;
            let purpose = ReadFor::Load {
                slot,
                number: channel.number,
            };
            let key = channel.key.clone();
            // Of a log that was given up everything is wanted that may not have been delivered.
            let (messages_max, bytes_max) = if channel.is_given_up() {
                (self.options.limits.resume_messages_max, REPLAY_BYTES_MAX)
            } else {
                (RING_LOAD_MESSAGES, RING_LOAD_BYTES)
            };
            let question = Question::Load {
                messages_max,
                bytes_max,
                ids_after_ms: now
                    .unix_ms
                    .saturating_sub(self.options.limits.dedup_window_ms),
            };
            self.ask_store(key, question, purpose);
        }
    }

    pub(super) fn ask_store(&mut self, channel: ChannelKey, question: Question, purpose: ReadFor) {
        let ticket = Ticket(self.store.next_ticket);
        self.store.next_ticket += 1;
        self.store.reads.insert(ticket, purpose);
        self.store.questions.push(StoreRead {
            ticket,
            app: channel.app,
            channel: channel.name,
            question,
        });
    }

    pub(super) fn handle_answer(
        &mut self,
        ticket: Ticket,
        answer: Result<StoreAnswer, StoreError>,
        now: Now,
    ) {
        let Some(purpose) = self.store.reads.remove(&ticket) else {
            return;
        };
        match purpose {
            ReadFor::Load { slot, number } => self.handle_loaded(slot, number, answer, now),
            ReadFor::Replay {
                to,
                from,
                slot,
                number,
            } => {
                let result = self.replay_from_store(slot, number, &from, answer);
                self.send_or_handle(to.shard, ShardMsg::Replay { to, result }, now);
            }
            ReadFor::Count {
                to,
                timestamp,
                others,
            } => {
                let count = match answer {
                    Ok(StoreAnswer::Count(count)) => count + others,
                    Ok(StoreAnswer::Loaded(Some(loaded))) => {
                        count_of_loaded(&loaded, timestamp) + others
                    }
                    // Unknown: as if there were several, so that none is missed.
                    _ => 2,
                };
                self.send_or_handle(to.shard, ShardMsg::Count { to, count }, now);
            }
            ReadFor::Place { waiting } => self.handle_place(waiting, answer, now),
            ReadFor::History { conn, place } => self.handle_history_page(conn, place, answer, now),
            ReadFor::HttpHistory { request } => {
                let result = page_of(answer);
                self.outputs.push_back(Output::History { request, result });
            }
        }
    }

    fn handle_loaded(
        &mut self,
        slot: u32,
        number: u64,
        answer: Result<StoreAnswer, StoreError>,
        now: Now,
    ) {
        if self.home.get(slot).is_none_or(|c| c.number != number) {
            debug_assert!(false, "a channel that is loading is not forgotten");
            return;
        }
        let waiting = self.store.deferred.remove(&slot).unwrap_or_default();
        if let Ok(StoreAnswer::Loaded(loaded)) = answer {
            let epoch = crate::ulid::encode(now.unix_ms, u128::from(self.next_random()) << 16);
            self.home
                .set_loaded(slot, loaded.map(|l| *l), epoch.into(), now);
            for record in self.home.take_undelivered(slot) {
                self.deliver_record(slot, &record, None, now.mono_us, now);
            }
        } else if let Some(channel) = self.home.get_mut(slot) {
            channel.log = LogState::Unknown;
            for work in waiting {
                self.refuse_deferred(work, now);
            }
            return;
        }
        self.do_work(slot, waiting, now);
    }

    /// Does what has waited for a log that is known by now.
    pub(super) fn do_deferred(&mut self, slot: u32, now: Now) {
        let waiting = self.store.deferred.remove(&slot).unwrap_or_default();
        self.do_work(slot, waiting, now);
    }

    fn do_work(&mut self, slot: u32, waiting: Vec<Deferred>, now: Now) {
        for work in waiting {
            match work {
                Deferred::Publish(publish) => self.accept_publish(&publish.borrow(), now),
                Deferred::Replay { to, from } => self.find_replay(slot, to, from, now),
                Deferred::Count { timestamp, to } => self.find_count(slot, timestamp, to, now),
                Deferred::Clear { shard, request } => self.clear(slot, shard, request),
                Deferred::Describe { shard, request } => {
                    let key = self.home.get(slot).map(|c| c.key.clone());
                    if let Some(ChannelKey { app, name }) = key {
                        let answer = self.describe_channel(&app, &name);
                        self.send_answer(shard, request, answer);
                    }
                }
            }
        }
    }

    /// Answers work that cannot be done because the store cannot be read.
    pub(super) fn refuse_deferred(&mut self, work: Deferred, now: Now) {
        match work {
            Deferred::Publish(publish) => {
                let publish = publish.borrow();
                self.counters.publishes_refused += 1;
                self.answer_publisher(
                    publish.origin,
                    publish.channel,
                    publish.id,
                    Err(ErrorCode::Unavailable),
                    now,
                );
            }
            Deferred::Replay { to, .. } => {
                let result = ReplayResult {
                    records: Vec::new(),
                    through: 0,
                    recovered: false,
                    epoch: "".into(),
                    failed: true,
                };
                self.send_or_handle(to.shard, ShardMsg::Replay { to, result }, now);
            }
            Deferred::Count { to, .. } => {
                self.send_or_handle(to.shard, ShardMsg::Count { to, count: 2 }, now);
            }
            Deferred::Clear { shard, request } => {
                self.answer_clear(shard, request, Err(ErrorCode::Unavailable));
            }
            Deferred::Describe { shard, request } => {
                let answer = Answer::Channel {
                    occupants: Occupants::default(),
                    last_sequence: None,
                };
                self.send_answer(shard, request, answer);
            }
        }
    }

    /// Home shard: somebody asks what it has missed.
    pub(super) fn handle_ask_replay(
        &mut self,
        channel: &ChannelKey,
        hash: u64,
        to: ReplayTo,
        from: ReplayFrom,
        now: Now,
    ) {
        let slot = self.enter_home(&channel.app, &channel.name, hash, now);
        match self.home.log(slot) {
            Some(_) => self.find_replay(slot, to, from, now),
            None => {
                if let Err(work) = self.defer(slot, Deferred::Replay { to, from }, now) {
                    self.refuse_deferred(work, now);
                }
            }
        }
    }

    fn find_replay(&mut self, slot: u32, to: ReplayTo, from: ReplayFrom, now: Now) {
        let most = self.options.limits.resume_messages_max;
        let Some(channel) = self.home.get_mut(slot) else {
            return;
        };
        let retention = channel.settings.retention;
        let (key, number) = (channel.key.clone(), channel.number);
        let LogState::Known(log) = &mut channel.log else {
            return;
        };
        log.expire(&retention, now.unix_ms);
        match log.find_replay(&from, most, REPLAY_BYTES_MAX) {
            Found::Here { records, recovered } => {
                let result = ReplayResult {
                    records,
                    through: log.committed,
                    recovered,
                    epoch: log.channel.epoch.clone(),
                    failed: false,
                };
                self.send_or_handle(to.shard, ShardMsg::Replay { to, result }, now);
            }
            Found::InStore => {
                let question = self.newest_question(match from {
                    ReplayFrom::Newest(count) => count,
                    ReplayFrom::Timestamp { .. }
                    | ReplayFrom::Sequence { .. }
                    | ReplayFrom::Nowhere => usize::MAX,
                });
                let purpose = ReadFor::Replay {
                    to,
                    from,
                    slot,
                    number,
                };
                self.ask_store(key, question, purpose);
            }
        }
    }

    /// Up to `messages_max` of the newest messages, within a replay's limits. Not a page: with the
    /// messages it tells what is gone at that moment.
    fn newest_question(&self, messages_max: usize) -> Question {
        Question::Load {
            messages_max: messages_max.min(self.options.limits.resume_messages_max),
            bytes_max: REPLAY_BYTES_MAX,
            ids_after_ms: u64::MAX,
        }
    }

    fn replay_from_store(
        &self,
        slot: u32,
        number: u64,
        from: &ReplayFrom,
        answer: Result<StoreAnswer, StoreError>,
    ) -> ReplayResult {
        let log = self
            .home
            .get(slot)
            .filter(|c| c.number == number)
            .and_then(|_| self.home.log(slot));
        let mut result = ReplayResult {
            records: Vec::new(),
            through: log.map_or(0, |l| l.committed),
            recovered: false,
            epoch: log.map_or_else(|| "".into(), |l| l.channel.epoch.clone()),
            failed: true,
        };
        let Ok(StoreAnswer::Loaded(Some(loaded))) = answer else {
            return result;
        };
        if loaded.epoch != result.epoch {
            return result;
        }
        result.failed = false;
        // What was committed since the question is on its way to the connection, what this shard
        // does not know to be committed will be: a message in neither comes twice or never.
        result.through = result.through.min(loaded.last_sequence);
        (result.records, result.recovered) = replay_of_loaded(&loaded, from, result.through);
        result
    }

    /// Home shard: a resume asks how many messages have its last timestamp.
    pub(super) fn handle_ask_count(
        &mut self,
        channel: &ChannelKey,
        hash: u64,
        timestamp: u64,
        to: CountTo,
        now: Now,
    ) {
        let slot = self.enter_home(&channel.app, &channel.name, hash, now);
        if self.home.log(slot).is_some() {
            self.find_count(slot, timestamp, to, now);
            return;
        }
        let work = Deferred::Count { timestamp, to };
        if let Err(work) = self.defer(slot, work, now) {
            self.refuse_deferred(work, now);
        }
    }

    fn find_count(&mut self, slot: u32, timestamp: u64, to: CountTo, now: Now) {
        let Some(channel) = self.home.get(slot) else {
            return;
        };
        let LogState::Known(log) = &channel.log else {
            return;
        };
        let pending = log.pending_at(timestamp);
        let gone = log.may_be_gone_at(timestamp);
        let others = pending + u64::from(gone == Some(true));
        let known = if channel.next_timestamp(self.broker_now(now)) <= timestamp {
            // More may come: as if there were several.
            Some(2)
        } else if gone.is_some() {
            log.count_at(timestamp).map(|count| count + others)
        } else {
            None
        };
        match known {
            Some(count) => self.send_or_handle(to.shard, ShardMsg::Count { to, count }, now),
            None => {
                let key = channel.key.clone();
                let question = match gone {
                    Some(_) => Question::CountAt { timestamp },
                    None => self.newest_question(usize::MAX),
                };
                let purpose = ReadFor::Count {
                    to,
                    timestamp,
                    others,
                };
                self.ask_store(key, question, purpose);
            }
        }
    }

    /// Asks the store for a page on behalf of a connection.
    pub(super) fn ask_history(
        &mut self,
        channel: ChannelKey,
        page: Page,
        conn: ConnId,
        place: u64,
    ) {
        self.ask_store(
            channel,
            Question::Page(page),
            ReadFor::History { conn, place },
        );
    }

    /// Asks the store for a page on behalf of an HTTP request; the answer is [`Output::History`].
    pub fn history_request(&mut self, app: &str, channel: &str, page: Page, request: RequestId) {
        let channel = ChannelKey {
            app: self.intern(app),
            name: channel.into(),
        };
        self.ask_store(
            channel,
            Question::Page(page),
            ReadFor::HttpHistory { request },
        );
    }
}

/// A page or why there is none.
pub(super) fn page_of(
    answer: Result<StoreAnswer, StoreError>,
) -> Result<(Vec<Arc<Record>>, bool), ErrorCode> {
    match answer {
        Ok(StoreAnswer::Page { messages, has_more }) => Ok((messages, has_more)),
        Ok(_) => Err(ErrorCode::Internal),
        Err(StoreError::Overloaded | StoreError::Failed) => Err(ErrorCode::Unavailable),
    }
}
