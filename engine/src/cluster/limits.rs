//! Limits of apps over all nodes: what each uses is told with its beats, and messages are counted in Redis.
//!
//! A node takes what others use off what it may give out, and its part of a rate by how much is wanted of it where. So for
//! `n` nodes and a beat of half a second (a second until a shard has told): of a plan's messages, connections and channels
//! at most what the nodes take in one and a half seconds is used beyond the limit; of a rate at most `n` times as much in
//! the first such time after the demand has moved to other nodes, and the limit itself otherwise. Rates of client ids and
//! channels are each node's own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use redis::RedisResult;
use serde_json::{Value, json};
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::quota::{Elsewhere, Totals, day_of, month_of};

use super::nodes::Node;
use super::session::Session;
use super::{lock, thread::Out};

/// Where a node's description has what apps use there: `{app: [connections, channels, demand]}`.
pub(super) const FIELD: &str = "uses";
/// Apps told about; of more, the rest is counted by each node for itself.
const APPS_MAX: usize = 2000;
/// How long counts of messages are kept, s: longer than a month.
const COUNTS_KEPT_S: i64 = 40 * 24 * 3600;

/// What an app uses on this node.
#[derive(Debug, Clone, Copy, Default)]
pub struct AppUse {
    pub connections: u64,
    pub channels: u64,
    /// Messages not yet counted in Redis.
    pub messages: u64,
    /// Messages and refusals since the last beat.
    pub demand: u64,
    /// Messages of the day and month, on this node.
    pub totals: Totals,
}

/// What this node says of the apps that it serves.
pub(super) fn take_uses(out: &Out) -> Value {
    let mut uses = lock(&out.shared.uses);
    let mut told = serde_json::Map::new();
    for (app, here) in uses.iter_mut() {
        // Half of what was wanted before counts on: one beat is little to judge by.
        let demand = here.demand;
        here.demand /= 2;
        if told.len() < APPS_MAX && (demand, here.connections, here.channels) != (0, 0, 0) {
            let said = json!([here.connections, here.channels, demand]);
            told.insert(app.to_string(), said);
        }
    }
    told.into()
}

/// What the shards have been told.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    told: HashMap<Arc<str>, Elsewhere>,
}

impl Exchange {
    /// Counts this node's messages, and tells the shards what the others use.
    pub(super) async fn run(
        &mut self,
        session: &Session,
        out: &Out,
        nodes: &[Node],
    ) -> RedisResult<()> {
        let counted = count_messages(session, out).await?;
        let mut elsewhere = counted;
        let mut demands: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for node in nodes {
            let is_here = node.name == out.shared.name;
            for (app, said) in node.uses.as_object().into_iter().flatten() {
                let number = |index: usize| said[index].as_u64().unwrap_or(0);
                let demand = demands.entry(app).or_default();
                demand.1 += number(2);
                if is_here {
                    demand.0 += number(2);
                    continue;
                }
                let entry = elsewhere.entry(app.as_str().into()).or_default();
                entry.connections += number(0);
                entry.channels += number(1);
            }
        }
        let others = nodes.len().max(1) as u64;
        for (app, (here, all)) in demands {
            // Everybody is taken to want a little, so that nobody begins with nothing.
            let share = (1000 * (here + 1)).div_ceil(all + others).min(1000);
            let entry = elsewhere.entry(app.into()).or_default();
            entry.share = u32::try_from(share).unwrap_or(1000);
        }
        for app in self.told.keys() {
            elsewhere.entry(app.clone()).or_default();
        }
        let news: Vec<_> = elsewhere
            .into_iter()
            .filter(|(app, now)| self.told.get(app).copied().unwrap_or_default() != *now)
            .collect();
        if news.is_empty() {
            return Ok(());
        }
        for (app, now) in &news {
            if *now == Elsewhere::default() {
                self.told.remove(app);
            } else {
                self.told.insert(app.clone(), *now);
            }
        }
        out.tell_all(SharedReply::Elsewhere(Arc::new(news))).await;
        Ok(())
    }
}

/// Adds this node's messages to those of all, and returns what the others have of the apps that are served here.
async fn count_messages(session: &Session, out: &Out) -> RedisResult<HashMap<Arc<str>, Elsewhere>> {
    let day = day_of(crate::clock::now_ms());
    let mut taken: Vec<(Arc<str>, AppUse)> = Vec::new();
    {
        let mut uses = lock(&out.shared.uses);
        for (app, here) in uses.iter_mut().take(APPS_MAX) {
            taken.push((app.clone(), *here));
            here.messages = 0;
        }
    }
    let mut found = HashMap::new();
    if taken.is_empty() {
        return Ok(found);
    }
    let counts = count(session, day, &taken).await;
    if counts.is_err() {
        let mut uses = lock(&out.shared.uses);
        for (app, here) in &taken {
            if let Some(entry) = uses.get_mut(app) {
                entry.messages += here.messages;
            }
        }
    }
    for ((app, here), (of_day, of_month)) in taken.into_iter().zip(counts?) {
        let own = here.totals.on(day);
        let others = Totals {
            day,
            messages_day: of_day.saturating_sub(own.messages_day),
            messages_month: of_month.saturating_sub(own.messages_month),
        };
        if (others.messages_day, others.messages_month) != (0, 0) {
            let elsewhere = Elsewhere {
                totals: others,
                ..Elsewhere::default()
            };
            found.insert(app, elsewhere);
        }
    }
    Ok(found)
}

async fn count(
    session: &Session,
    day: u32,
    taken: &[(Arc<str>, AppUse)],
) -> RedisResult<Vec<(u64, u64)>> {
    let mut commands = session.commands.clone();
    let month = month_of(day);
    let mut both = Vec::new();
    // Each hash by itself: in a cluster they are on different servers.
    for key in [
        format!("messages:day:{day}"),
        format!("messages:month:{month}"),
    ] {
        let key = session.keys.global(&key);
        if taken.iter().any(|(_, here)| here.messages > 0) {
            let mut pipe = redis::pipe();
            for (app, here) in taken.iter().filter(|(_, here)| here.messages > 0) {
                pipe.hincr(&key, &**app, here.messages).ignore();
            }
            pipe.expire(&key, COUNTS_KEPT_S).ignore();
            pipe.query_async::<()>(&mut commands).await?;
        }
        let apps: Vec<&str> = taken.iter().map(|(app, _)| &**app).collect();
        let counts: Vec<Option<u64>> = redis::cmd("HMGET")
            .arg(&key)
            .arg(apps)
            .query_async(&mut commands)
            .await?;
        both.push(
            counts
                .into_iter()
                .map(|count| count.unwrap_or(0))
                .collect::<Vec<_>>(),
        );
    }
    let months = both.pop().unwrap_or_default();
    let days = both.pop().unwrap_or_default();
    Ok(days.into_iter().zip(months).collect())
}
