//! The topics that this node hears, and what comes over them.
//!
//! ```text
//!            Follow                     confirmed                     looked up
//!  (none) ──────────► wished ─────────────────────────► heard ─────────────────► Followed
//!                       ▲  connection lost, slot moved    │ Unheard
//!                       └─────────────────────────────────┘
//! ```
//! A channel is looked up after its topic is confirmed, so that what the look does not see is heard. Invariant: what a
//! shard is told of a channel is told in the order in which it came.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use redis::{PushInfo, PushKind, Value};
use shardwire_proto::broker::{BrokerMessage, BrokerReply, Follow, FollowRef};
use shardwire_proto::ids::{ChannelKey, ShardId};
use tokio::sync::{mpsc, oneshot};

use super::codec::{self, Heard};
use super::core::Core;
use super::ear::{Ear, Waiting, Wish};
use super::keys::ChannelKeys;
use super::lane::{Done, Failure, Job};
use super::scripts;

/// Until a channel is looked up again that could not be.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Pushes handled before others get their turn.
const PUSHES_PER_TURN: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is to be heard.
    Wished,
    /// The server has confirmed it.
    Heard,
}

struct Topic {
    keys: ChannelKeys,
    slot: u16,
    shard: ShardId,
    follow: FollowRef,
    state: State,
    /// The server it is heard of, as of the last layout.
    ear: Option<Rc<Ear>>,
    /// A question that waits for its turn, and its number: an answer to an earlier one is of no use.
    want: Option<Box<Follow>>,
    looks: u64,
    epoch: Arc<str>,
}

#[derive(Default)]
pub(super) struct Topics {
    by_name: HashMap<Box<[u8]>, Topic>,
    /// Messages that wait to be handled.
    pub(super) waiting: Waiting,
}

impl Topics {
    fn count(&self, core: &Core) {
        core.shared.topics.store(self.by_name.len(), Relaxed);
    }
}

/// A shard wants to hear a channel, or to know what it has missed of it.
pub(super) fn follow(core: &Rc<Core>, shard: ShardId, follow: Box<Follow>) {
    let keys = core.keys.channel(&follow.channel.app, &follow.channel.name);
    let name = keys.topic().into_bytes().into_boxed_slice();
    let slot = keys.slot();
    {
        let mut topics = core.topics.borrow_mut();
        let topic = topics.by_name.entry(name.clone()).or_insert_with(|| {
            let ear = core.owner(slot).map(|server| server.ear.clone());
            if let Some(ear) = &ear {
                ear.wish(Wish::Hear, &name);
            }
            Topic {
                keys,
                slot,
                shard,
                follow: follow.follow,
                state: State::Wished,
                ear,
                want: None,
                looks: 0,
                epoch: "".into(),
            }
        });
        topic.shard = shard;
        topic.follow = follow.follow;
        topic.want = Some(follow);
        topics.count(core);
    }
    look(core, &name);
}

/// A shard does not want to hear a channel any more.
pub(super) fn unfollow(core: &Core, channel: &ChannelKey, follow: FollowRef) {
    let name = core.keys.channel(&channel.app, &channel.name).topic();
    let mut topics = core.topics.borrow_mut();
    let name = name.as_bytes();
    if topics.by_name.get(name).is_some_and(|t| t.follow == follow)
        && let Some(topic) = topics.by_name.remove(name)
    {
        if topic.state == State::Heard {
            core.shared.topics_heard.fetch_sub(1, Relaxed);
        }
        if let Some(ear) = &topic.ear {
            ear.wish(Wish::Leave, name);
        }
    }
    topics.count(core);
}

/// An ear's connection has opened: all its topics are to be heard on it.
pub(super) fn hear_all(core: &Core, ear: &Rc<Ear>) {
    for (name, topic) in &core.topics.borrow().by_name {
        if is_of(topic, ear) {
            ear.wish(Wish::Hear, name);
        }
    }
}

/// An ear has lost its connection: whoever followed its topics has to ask again.
pub(super) fn lose_all(core: &Core, ear: &Rc<Ear>) {
    for topic in core.topics.borrow_mut().by_name.values_mut() {
        if is_of(topic, ear) {
            lose(core, topic);
        }
    }
    core.flush();
}

fn lose(core: &Core, topic: &mut Topic) {
    if std::mem::replace(&mut topic.state, State::Wished) == State::Heard {
        core.shared.topics_heard.fetch_sub(1, Relaxed);
        topic.looks += 1;
        // Asked for again by the shard, with what it knows by then.
        topic.want = None;
        let follow = topic.follow;
        core.reply(topic.shard, BrokerReply::Unheard { follow });
    }
}

fn is_of(topic: &Topic, ear: &Rc<Ear>) -> bool {
    topic.ear.as_ref().is_some_and(|e| Rc::ptr_eq(e, ear))
}

/// Topics that their server did not take: they may have another one by now.
pub(super) fn hear_again(core: &Core, ear: &Ear, batch: &[(Wish, Box<[u8]>)]) {
    let topics = core.topics.borrow();
    for (wish, name) in batch {
        if *wish == Wish::Hear
            && let Some(topic) = topics.by_name.get(name)
            && topic.state == State::Wished
            && topic
                .ear
                .as_ref()
                .is_some_and(|e| std::ptr::eq(Rc::as_ptr(e), ear))
        {
            ear.wish(Wish::Hear, name);
        }
    }
}

/// Slots may have other owners: topics go with them.
pub(super) fn reassign(core: &Core) {
    for (name, topic) in &mut core.topics.borrow_mut().by_name {
        let ear = core.owner(topic.slot).map(|server| server.ear.clone());
        let same = match (&ear, &topic.ear) {
            (Some(new), Some(old)) => Rc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if same {
            continue;
        }
        lose(core, topic);
        if let Some(old) = &topic.ear {
            old.wish(Wish::Leave, name);
        }
        if let Some(new) = &ear {
            new.wish(Wish::Hear, name);
        }
        topic.ear = ear;
    }
}

/// Looks up where a channel stands, if it is heard and somebody wants to know.
fn look(core: &Rc<Core>, name: &[u8]) {
    let mut topics = core.topics.borrow_mut();
    let Some(topic) = topics.by_name.get_mut(name) else {
        return;
    };
    if topic.state != State::Heard || topic.want.is_none() {
        return;
    }
    topic.looks += 1;
    let look = topic.looks;
    let name: Box<[u8]> = name.into();
    tokio::task::spawn_local(look_up(core.clone(), name, look));
}

async fn look_up(core: Rc<Core>, name: Box<[u8]>, look: u64) {
    loop {
        let epoch = core.next_epoch();
        let asked = {
            let topics = core.topics.borrow();
            topics
                .by_name
                .get(&name)
                .filter(|t| t.looks == look)
                .and_then(|t| Some((scripts::follow(&t.keys, t.want.as_ref()?, &epoch), t.slot)))
        };
        let Some((cmd, slot)) = asked else {
            return;
        };
        let answer = call(&core, cmd, slot).await.ok().and_then(scripts::loaded);
        let Some((loaded, epoch_from)) = answer else {
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
            continue;
        };
        let mut topics = core.topics.borrow_mut();
        if let Some(topic) = topics.by_name.get_mut(&name).filter(|t| t.looks == look) {
            topic.want = None;
            let reply = BrokerReply::Followed {
                follow: topic.follow,
                loaded: Box::new(loaded),
                epoch_from,
            };
            core.reply(topic.shard, reply);
        }
        drop(topics);
        core.flush();
        return;
    }
}

/// Asks one question, and waits for the answer.
pub(super) async fn call(core: &Core, cmd: redis::Cmd, slot: u16) -> Result<Value, Failure> {
    let (done, answer) = oneshot::channel();
    let patience = Duration::from_millis(core.config.publish_timeout_ms);
    let job = Job {
        cmd,
        slot,
        deadline: Instant::now() + patience,
        done: Done::Call(done),
        asking: false,
        held: None,
    };
    core.push(job, false);
    answer.await.unwrap_or(Err(Failure::Away))
}

/// Handles what all ears hear, until they are gone.
pub(super) async fn hear(core: Rc<Core>, mut pushes: mpsc::UnboundedReceiver<(u64, PushInfo)>) {
    let mut batch = Vec::new();
    while pushes.recv_many(&mut batch, PUSHES_PER_TURN).await > 0 {
        for (number, info) in batch.drain(..) {
            handle_push(&core, number, info);
        }
        core.flush();
        tokio::task::yield_now().await;
    }
}

fn handle_push(core: &Rc<Core>, number: u64, info: PushInfo) {
    if info.kind == PushKind::SMessage {
        core.topics.borrow().waiting.fetch_sub(1, Relaxed);
    }
    if info.kind == PushKind::Disconnection {
        core.for_each_ear(|ear| ear.note_closed(number));
        return;
    }
    let mut data = info.data.into_iter();
    let Some(Value::BulkString(name)) = data.next() else {
        return;
    };
    match info.kind {
        PushKind::SMessage => {
            if let Some(Value::BulkString(payload)) = data.next() {
                handle_message(core, number, &name, payload);
            }
        }
        PushKind::SSubscribe => {
            let mut topics = core.topics.borrow_mut();
            let topic = topics.by_name.get_mut(name.as_slice());
            let Some(topic) = topic.filter(|t| is_numbered(t, number)) else {
                return;
            };
            if topic.state == State::Wished {
                topic.state = State::Heard;
                core.shared.topics_heard.fetch_add(1, Relaxed);
            }
            drop(topics);
            look(core, &name);
        }
        PushKind::SUnsubscribe => {
            // Of what was left nothing is known any more; else its slot has gone elsewhere.
            let mut topics = core.topics.borrow_mut();
            let topic = topics.by_name.get_mut(name.as_slice());
            if let Some(topic) = topic.filter(|t| is_numbered(t, number) && t.state == State::Heard)
            {
                lose(core, topic);
                if let Some(ear) = &topic.ear {
                    ear.wish(Wish::Hear, &name);
                }
                core.discover_soon();
            }
        }
        _ => {}
    }
}

fn is_numbered(topic: &Topic, number: u64) -> bool {
    topic.ear.as_ref().is_some_and(|e| e.number() == number)
}

fn handle_message(core: &Core, number: u64, name: &[u8], payload: Vec<u8>) {
    let mut topics = core.topics.borrow_mut();
    let topic = topics.by_name.get_mut(name);
    let Some(topic) = topic.filter(|t| is_numbered(t, number)) else {
        return;
    };
    core.shared.received.fetch_add(1, Relaxed);
    let follow = topic.follow;
    let reply = match codec::hear(&payload) {
        Some(Heard::Message {
            sequence,
            timestamp,
            epoch,
            text,
        }) => codec::decode(text, sequence, timestamp).map(|(record, origin)| {
            if *topic.epoch != *epoch {
                topic.epoch = epoch.into();
            }
            let exclude = origin
                .filter(|o| o.node == core.settings.node)
                .map(|o| (o.shard, o.conn));
            BrokerReply::Message {
                follow,
                message: BrokerMessage {
                    record: Arc::new(record),
                    epoch: topic.epoch.clone(),
                    exclude,
                },
            }
        }),
        Some(Heard::Cleared { through }) => Some(BrokerReply::Cleared { follow, through }),
        Some(Heard::Presence) => Some(BrokerReply::Presence {
            follow,
            payload: payload.into_boxed_slice(),
        }),
        None => None,
    };
    match reply {
        Some(reply) => core.reply(topic.shard, reply),
        None => _ = core.shared.unreadable.fetch_add(1, Relaxed),
    }
}
