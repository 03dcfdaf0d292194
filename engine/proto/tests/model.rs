//! History, dedup, rewind, resume and the position form against a naive reference: any sequence of
//! requests, one at a time, must be answered exactly as a list of all messages ever published says.
#![allow(clippy::unwrap_used, reason = "a test's own mistakes may end it")]

mod support;

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use serde_json::{Value, json};
use shardwire_proto::ids::RequestId;
use shardwire_proto::limits::LATE_COMMIT_MS;
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::shard::Options;

use support::{Chaos, World};

const CHANNELS: [&str; 3] = ["a", "b", "c"];
const MESSAGES_MAX: usize = 6;
const AGE_MS: u64 = 150_000;
const DEDUP_MS: u64 = 120_000;

#[derive(Debug, Clone)]
enum Step {
    Wait {
        ms: u64,
    },
    Publish {
        channel: usize,
        id: u8,
        persist: bool,
    },
    Rewind {
        channel: usize,
        count: u64,
    },
    /// `back` of the last timestamps of all channels lie behind what the client has.
    Resume {
        channels: Vec<usize>,
        back: usize,
        off_ms: i64,
    },
    Since {
        channel: usize,
        back: u64,
        epoch: bool,
    },
    Walk {
        channel: usize,
        limit: u64,
        forward: bool,
        by_sequence: bool,
    },
    Clear {
        channel: usize,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let channel = || 0..CHANNELS.len();
    let times = prop::sample::select(vec![
        0u64, 1, 1, 2, 7, 50, 1000, 60_000, 119_999, 120_000, 150_000, 400_000,
    ]);
    prop_oneof![
        4 => times.prop_map(|ms| Step::Wait { ms }),
        12 => (channel(), 0u8..12, prop::bool::weighted(0.85))
            .prop_map(|(channel, id, persist)| Step::Publish { channel, id, persist }),
        2 => (channel(), 1u64..9).prop_map(|(channel, count)| Step::Rewind { channel, count }),
        4 => (prop::sample::subsequence(vec![0, 1, 2], 1..=3), 0usize..12, -1i64..2)
            .prop_map(|(channels, back, off_ms)| Step::Resume { channels, back, off_ms }),
        3 => (channel(), 0u64..9, prop::bool::weighted(0.9))
            .prop_map(|(channel, back, epoch)| Step::Since { channel, back, epoch }),
        2 => (channel(), 1u64..5, any::<bool>(), any::<bool>()).prop_map(
            |(channel, limit, forward, by_sequence)| {
                Step::Walk { channel, limit, forward, by_sequence }
            },
        ),
        1 => channel().prop_map(|channel| Step::Clear { channel }),
        1 => Just(Step::Restart),
    ]
}

/// A channel as anybody would keep it who has time and memory.
#[derive(Debug, Default)]
struct Naive {
    /// Id and timestamp of every stored message, in order: sequences from 1.
    messages: Vec<(String, u64)>,
    cleared: usize,
    /// Time and sequence of the last publish of an id that was no repeat.
    ids: BTreeMap<String, (u64, Option<u64>)>,
    /// Of the last message of any kind.
    last_ms: u64,
}

impl Naive {
    fn gone_by_age(&self, now: u64) -> usize {
        let old = self.messages.iter().filter(|m| m.1 + AGE_MS <= now);
        old.count()
    }

    fn gone(&self, now: u64) -> usize {
        let by_age = self.gone_by_age(now);
        let by_number = self.messages.len().saturating_sub(MESSAGES_MAX);
        self.cleared.max(by_age).max(by_number)
    }

    /// Timestamp of the newest message that is gone.
    fn gone_ms(&self, now: u64) -> Option<u64> {
        Some(self.messages[self.gone(now).checked_sub(1)?].1)
    }

    /// Sequences of the messages kept.
    fn kept(&self, now: u64) -> impl Iterator<Item = usize> {
        self.gone(now) + 1..self.messages.len() + 1
    }

    fn ms(&self, sequence: usize) -> u64 {
        self.messages[sequence - 1].1
    }

    fn replay(&self, name: &str, sequences: impl IntoIterator<Item = usize>) -> Vec<String> {
        let line = |s: usize| format!("{name}#{s} {} replay", self.messages[s - 1].0);
        sequences.into_iter().map(line).collect()
    }
}

struct Pair {
    w: World,
    naive: Vec<Naive>,
    /// Subscribed to everything.
    follower: usize,
    publisher: usize,
    next_request: u64,
}

impl Pair {
    fn new(shards: u16, ring_bytes_max: usize) -> Self {
        let namespace = Namespace {
            messages_max: MESSAGES_MAX as u64,
            ttl_s: AGE_MS / 1000,
            ..Namespace::default()
        };
        let options = Options {
            hello: false,
            namespaces: Namespaces::new(vec![namespace]).unwrap(),
            ring_bytes_max,
            ..Options::default()
        };
        let mut w = World::with(shards, options, Chaos::default());
        w.keeps_uptime = true;
        let mut pair = Self {
            naive: CHANNELS.iter().map(|_| Naive::default()).collect(),
            follower: 0,
            publisher: 0,
            next_request: 0,
            w,
        };
        pair.connect_all();
        pair
    }

    fn connect_all(&mut self) {
        self.follower = self.w.connect(self.w.shards.len() - 1);
        self.publisher = self.w.connect(0);
        for channel in CHANNELS {
            let message = json!({"action": "subscribe", "channel": channel});
            self.w.say(self.follower, &message);
        }
        self.w.take(self.follower);
    }

    /// A request on a connection of its own, and its answers.
    fn ask(&mut self, message: &Value) -> (Vec<String>, Vec<Value>) {
        let client = self.w.connect(0);
        self.w.say(client, message);
        let lines = self.w.take(client);
        self.w.cut(client);
        self.w.settle();
        (lines, std::mem::take(&mut self.w.clients[client].frames))
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Wait { ms } => self.w.advance_us(ms * 1000),
            Step::Publish {
                channel,
                id,
                persist,
            } => {
                // Ephemeral messages do without the log, so they do not know what it has.
                let kind = if *persist { 'm' } else { 'e' };
                self.publish(*channel, &format!("{kind}{id}"), *persist);
            }
            Step::Rewind { channel, count } => self.rewind(*channel, *count),
            Step::Resume {
                channels,
                back,
                off_ms,
            } => self.resume(channels, *back, *off_ms),
            Step::Since {
                channel,
                back,
                epoch,
            } => self.since(*channel, *back, *epoch),
            Step::Walk {
                channel,
                limit,
                forward,
                by_sequence,
            } => self.walk(*channel, *limit, *forward, *by_sequence),
            Step::Clear { channel } => {
                self.next_request += 1;
                let now = self.w.now();
                let request = RequestId(self.next_request);
                self.w.shards[0].clear_request("app", CHANNELS[*channel], request, now);
                self.w.carry(0);
                self.w.settle();
                self.naive[*channel].cleared = self.naive[*channel].messages.len();
            }
            Step::Restart => {
                self.w.restart();
                for naive in &mut self.naive {
                    // What the file does not have is forgotten.
                    let cleared = naive.cleared as u64;
                    naive.ids.retain(|_, (_, s)| s.is_some_and(|s| s > cleared));
                    naive.last_ms = naive.messages.last().map_or(0, |m| m.1);
                }
                self.connect_all();
            }
        }
    }

    fn publish(&mut self, channel: usize, id: &str, persist: bool) {
        let now = self.w.unix_ms();
        let name = CHANNELS[channel];
        let naive = &mut self.naive[channel];
        let known = naive.ids.get(id).filter(|(ms, _)| now - ms < DEDUP_MS);
        let is_new = known.is_none();
        let sequence = match known {
            Some((_, sequence)) => *sequence,
            None => {
                naive.last_ms = now;
                let sequence = persist.then(|| {
                    naive.messages.push((id.to_owned(), now));
                    naive.messages.len() as u64
                });
                naive.ids.insert(id.to_owned(), (now, sequence));
                sequence
            }
        };
        let message = json!({
            "action": "publish", "channel": name, "id": id, "data": {}, "persist": persist,
        });
        self.w.say(self.publisher, &message);
        let place = sequence.map_or("-".to_owned(), |s| s.to_string());
        let ack = format!("ack {id} {name}#{place}");
        assert_eq!(self.answers(self.publisher), [ack]);
        let delivered = is_new.then(|| format!("{name}#{place} {id}"));
        assert_eq!(self.answers(self.follower), Vec::from_iter(delivered));
    }

    /// What a client was sent but heartbeats.
    fn answers(&mut self, client: usize) -> Vec<String> {
        let mut lines = self.w.take(client);
        lines.retain(|l| l != "pong");
        lines
    }

    fn rewind(&mut self, channel: usize, count: u64) {
        let name = CHANNELS[channel];
        let naive = &self.naive[channel];
        let kept: Vec<usize> = naive.kept(self.w.unix_ms()).collect();
        let newest = &kept[kept.len().saturating_sub(count as usize)..];
        let mut expected = vec![format!("subscribed {name}")];
        expected.extend(naive.replay(name, newest.iter().copied()));
        let message = json!({"action": "subscribe", "channel": name, "rewind": count});
        assert_eq!(self.ask(&message).0, expected);
    }

    fn resume(&mut self, channels: &[usize], back: usize, off_ms: i64) {
        let now = self.w.unix_ms();
        let mut times: Vec<u64> = self
            .naive
            .iter()
            .flat_map(|n| &n.messages)
            .map(|m| m.1)
            .collect();
        times.sort_unstable();
        let index = times.len().saturating_sub(back + 1);
        let last_ts = times.get(index).copied().unwrap_or(now);
        let last_ts = last_ts.saturating_add_signed(off_ms);

        // Of messages that are gone it is not known how many had which timestamp: at least those
        // kept are known, at most there was one more for every gap that reaches so far.
        let at_last = |most: bool| -> usize {
            let of_channel = |c: &usize| {
                let naive = &self.naive[*c];
                if now.max(naive.last_ms) <= last_ts {
                    return 2;
                }
                let is_last = |s: &usize| naive.ms(*s) == last_ts;
                let gone = (1..=naive.gone(now)).filter(is_last).count();
                let reaches = naive.gone_ms(now).is_some_and(|ms| ms >= last_ts);
                let by_age = naive.gone(now) == naive.gone_by_age(now);
                naive.kept(now).filter(is_last).count()
                    + match most {
                        true => gone.max(usize::from(reaches)),
                        false => gone.min(usize::from(!by_age)),
                    }
            };
            channels.iter().map(of_channel).sum()
        };
        let (least, most) = (at_last(false), at_last(true));
        let names: Vec<&str> = channels.iter().map(|c| CHANNELS[*c]).collect();
        let token = json!({"channels": names, "lastTs": last_ts}).to_string();
        let token = BASE64URL_NOPAD.encode(token.as_bytes());
        let message = json!({"action": "resume", "resumeToken": token});
        let answer = self.ask(&message).0;
        let is_right = |inclusive| {
            let expected = self.resumed(channels, last_ts, inclusive, most == 1, &answer);
            expected.as_ref() == Some(&answer)
        };
        assert!(
            is_right(least > 1) || is_right(most > 1),
            "{answer:?} at {last_ts} of {:?}",
            self.naive
        );
    }

    /// The answer to a resume that replays as many messages of each channel as a given one does;
    /// none where those are too few or too many. All later ones are due; earlier ones may come
    /// where they may have been delivered late, but not of the one channel that has the last one.
    fn resumed(
        &self,
        channels: &[usize],
        last_ts: u64,
        inclusive: bool,
        one_has_it: bool,
        answer: &[String],
    ) -> Option<Vec<String>> {
        let now = self.w.unix_ms();
        let is_missed = |ms: u64| ms > last_ts || (inclusive && ms == last_ts);
        let mut expected = Vec::new();
        let mut ack = "resumed".to_owned();
        for channel in channels {
            let (name, naive) = (CHANNELS[*channel], &self.naive[*channel]);
            let kept: Vec<usize> = naive.kept(now).collect();
            let of_channel = format!("{name}#");
            let count = answer.iter().filter(|l| l.starts_with(&of_channel)).count();
            let (left, replayed) = kept.split_at(kept.len().checked_sub(count)?);
            let has_it = one_has_it && kept.iter().any(|s| naive.ms(*s) == last_ts);
            let is_allowed = |s: &usize| {
                let ms = naive.ms(*s);
                is_missed(ms) || (!has_it && ms + LATE_COMMIT_MS >= last_ts)
            };
            if left.iter().any(|s| is_missed(naive.ms(*s))) || !replayed.iter().all(is_allowed) {
                return None;
            }
            let recovered = !naive.gone_ms(now).is_some_and(is_missed);
            ack += &format!(" {name}:{recovered}:{count}");
            expected.push(format!("subscribed {name}"));
            expected.extend(naive.replay(name, replayed.iter().copied()));
        }
        expected.push(ack);
        Some(expected)
    }

    fn since(&mut self, channel: usize, back: u64, known_epoch: bool) {
        let (name, naive) = (CHANNELS[channel], &self.naive[channel]);
        let last = naive.messages.len() as u64;
        // From one beyond the end to far before.
        let Some(sequence) = (last + 1).checked_sub(back) else {
            return;
        };
        let stored = self.w.store.model.get(name);
        let epoch = stored.map_or("unknown".to_owned(), |s| s.epoch.to_string());
        let epoch = if known_epoch { epoch } else { "other".into() };
        let gone = naive.gone(self.w.unix_ms()) as u64;
        let known = known_epoch && stored.is_some();
        let recovered = known && (gone..=last).contains(&sequence);
        let mut expected = vec![format!("subscribed {name} recovered={recovered} at {last}")];
        if recovered {
            let missed = sequence as usize + 1..=last as usize;
            expected.extend(naive.replay(name, missed));
        }
        let since = json!({"sequence": sequence, "epoch": epoch});
        let message = json!({"action": "subscribe", "channel": name, "since": since});
        assert_eq!(self.ask(&message).0, expected);
    }

    /// Page after page, as the caller of the contract does.
    fn walk(&mut self, channel: usize, limit: u64, forward: bool, by_sequence: bool) {
        let (name, now) = (CHANNELS[channel], self.w.unix_ms());
        let mut found = Vec::new();
        let mut message = json!({
            "action": "history", "channel": name, "limit": limit,
            "direction": if forward { "forward" } else { "backward" },
        });
        for _ in 0..=MESSAGES_MAX {
            let (_, frames) = self.ask(&message);
            let page = &frames[0]["data"];
            let messages = page["messages"].as_array().unwrap();
            for m in messages {
                let sequence = m["sequence"].as_u64().unwrap() as usize;
                let naive = &self.naive[channel];
                assert_eq!(m["id"], naive.messages[sequence - 1].0);
                assert_eq!(m["timestamp"], naive.ms(sequence));
                found.push(sequence);
            }
            let ties = |m: &Value| m["timestamp"] == messages[messages.len() - 1]["timestamp"];
            assert!(
                messages.iter().skip(limit as usize).all(ties),
                "more than asked for"
            );
            if page["hasMore"] == false {
                break;
            }
            let last = messages.last().expect("a page with more has some");
            let (field, value) = match (forward, by_sequence) {
                (true, true) => ("afterSeq", &last["sequence"]),
                (true, false) => ("after", &last["timestamp"]),
                (false, true) => ("beforeSeq", &last["sequence"]),
                (false, false) => ("before", &last["timestamp"]),
            };
            message[field] = value.clone();
        }
        let mut kept: Vec<usize> = self.naive[channel].kept(now).collect();
        if !forward {
            kept.reverse();
        }
        assert_eq!(found, kept);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_answer_is_that_of_the_naive_reference(
        shards in 1u16..4,
        ring_bytes_max in prop::sample::select(vec![0usize, 500, 1200, 1 << 20]),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut pair = Pair::new(shards, ring_bytes_max);
        for step in &steps {
            pair.run(step);
        }
    }
}
