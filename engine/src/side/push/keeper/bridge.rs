//! Messages for absent members: held back, made into sends, and asked of the shards who is absent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use shardwire_proto::push::bridge::Notice;
use shardwire_proto::push::job::{Cursor, Job};
use shardwire_proto::push::request::Audience;

use super::super::WhoIsThere;
use super::super::send::Recipient;
use super::subscriptions::BY_CHANNEL;
use super::{Active, ENROLMENT, JOBS_MAX, Keeper, now_ms};

/// Channels whose further messages are held back, at most; of more, messages are left out and counted.
const QUIET_MAX: usize = 10_000;
/// The shards are asked again when they have not answered by then.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Channels that have notified lately, by app and name: until when others are held back, and the last of these.
pub(super) type Quiet = HashMap<(Arc<str>, Arc<str>), (Instant, Option<Notice>)>;

/// A page that waits for the shards to say who is connected.
pub(super) struct Asked {
    pub(super) found: Vec<Recipient>,
    pub(super) cursor: Cursor,
    pub(super) planned: bool,
    since: Instant,
}

impl Keeper {
    /// A message was accepted on a channel whose absent members are to know.
    pub(super) fn take_notice(&mut self, notice: Notice) {
        let key = (notice.app.clone(), notice.channel.clone());
        if let Some((_, held_back)) = self.quiet.get_mut(&key) {
            *held_back = Some(notice);
            return;
        }
        if self.quiet.len() >= QUIET_MAX {
            self.notices_dropped += 1;
            return;
        }
        let until = Instant::now() + Duration::from_millis(notice.debounce_ms);
        self.quiet.insert(key, (until, None));
        self.notify_absent(&notice);
    }

    /// Notifies of what was held back long enough; returns when that is next.
    pub(super) fn end_quiet(&mut self, now: Instant) -> Option<Instant> {
        let over: Vec<_> = self
            .quiet
            .iter()
            .filter(|(_, (until, _))| *until <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            let Some((_, Some(notice))) = self.quiet.remove(&key) else {
                continue;
            };
            let until = now + Duration::from_millis(notice.debounce_ms);
            self.quiet.insert(key, (until, None));
            self.notify_absent(&notice);
        }
        self.quiet.values().map(|(until, _)| *until).min()
    }

    fn notify_absent(&mut self, notice: &Notice) {
        let app = &notice.app;
        let channel = format!("{app}/{}", notice.channel);
        let enrolled = self
            .store
            .count(ENROLMENT, Some((BY_CHANNEL, &channel)), now_ms());
        match enrolled {
            Ok(0) => return,
            Ok(_) if self.jobs.len() < JOBS_MAX && !self.is_exhausted(app) => {}
            Ok(_) => {
                self.notices_dropped += 1;
                return;
            }
            Err(error) => {
                log::warn!(error:display; "push: absent members cannot be looked up");
                self.notices_dropped += 1;
                return;
            }
        }
        let audience = Audience {
            channel: Some(notice.channel.to_string()),
            absent: true,
            ..Audience::default()
        };
        let id = format!("job_{}", BASE64URL_NOPAD.encode(&crate::sys::random()));
        let job = Job::new(
            id.clone(),
            app.to_string(),
            audience,
            notice.content(),
            None,
            now_ms(),
        );
        let mut active = Active::new(job, 0);
        active.is_dirty = true;
        let id: Arc<str> = id.into();
        self.jobs.insert(id.clone(), active);
        self.order.push_back(id);
        self.unwritten_since.get_or_insert_with(Instant::now);
    }

    /// Asks the shards who of a page is connected.
    pub(super) fn ask_who(
        &self,
        id: &Arc<str>,
        active: &mut Active,
        asked: (Vec<Recipient>, Cursor, bool),
    ) {
        let (found, cursor, planned) = asked;
        let mut members: Vec<Box<str>> = found.iter().map(|r| r.member.as_str().into()).collect();
        members.sort();
        members.dedup();
        let question = WhoIsThere {
            app: active.job.app.as_str().into(),
            members,
            job: id.clone(),
            reply: self.own.clone(),
        };
        // Without an answer it is asked again.
        _ = self.who.try_send(question);
        active.asked = Some(Asked {
            found,
            cursor,
            planned,
            since: Instant::now(),
        });
    }

    /// The shards have answered: those who are absent are the page.
    pub(super) fn take_connected(&mut self, id: &Arc<str>, members: Option<Vec<Box<str>>>) {
        let Some(mut active) = self.jobs.remove(id) else {
            return;
        };
        if let (Some(asked), Some(members)) = (active.asked.take(), members) {
            let Asked {
                mut found,
                cursor,
                planned,
                ..
            } = asked;
            found.retain(|r| !members.iter().any(|member| **member == *r.member));
            active.add_page(found, cursor, planned);
            self.after_plan(&active);
        }
        self.jobs.insert(id.clone(), active);
    }
}

impl Active {
    /// Whether the shards have been asked and may still answer.
    pub(super) fn is_waiting(&mut self) -> bool {
        let is_late = self
            .asked
            .as_ref()
            .is_some_and(|asked| asked.since.elapsed() > ANSWER_WITHIN);
        if is_late {
            self.asked = None;
        }
        self.asked.is_some()
    }
}
