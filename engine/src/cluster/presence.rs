//! What shards ask of members, as scripts in Redis.
//!
//! In two steps: first it is written down what has to be tidied up should this node die, then the scripts run, all of a
//! batch at once and those of a channel in their order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::future::join_all;
use redis::{RedisError, RedisResult, Value};
use shardwire_proto::cluster::view::{Position, Snapshot};
use shardwire_proto::cluster::{Held, SharedOp, SharedReply, wire};
use shardwire_proto::error::ErrorCode;
use shardwire_proto::ids::{ChannelKey, ConnName, ShardId};

use super::session::{Session, join, node_of};
use super::thread::Out;

/// Channels in which this lease is known in Redis to hold members.
pub(super) type Indexed = HashSet<(Arc<str>, Arc<str>)>;

/// Carries out a batch; every operation is answered.
pub(super) async fn carry_out(
    session: &Session,
    out: &Out,
    indexed: &mut Indexed,
    ops: Vec<(ShardId, SharedOp)>,
) {
    let noted = write_down(session, indexed, &ops).await;
    let counters = &out.shared.counters;
    counters.operations.fetch_add(ops.len() as u64, Relaxed);
    let done = ops.into_iter().map(async |(shard, op)| {
        let result = match &noted {
            Ok(()) => perform(session, out, &op).await,
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = &result {
            log::debug!("cluster: an operation has failed: {error}");
            counters.operations_failed.fetch_add(1, Relaxed);
        }
        (shard, op, result.ok())
    });
    let mut gone = Vec::new();
    for (shard, op, result) in join_all(done).await {
        if let (Some(_), Some(channel)) = (&result, last_of(&op)) {
            gone.push((channel.app.clone(), channel.name.clone()));
        }
        if let Some((shard, reply)) = reply_to(shard, op, result, out) {
            out.tell(shard, reply).await;
        }
    }
    forget(session, indexed, gone).await;
}

/// Answers a batch that cannot be carried out.
pub(super) async fn refuse(out: &Out, ops: Vec<(ShardId, SharedOp)>) {
    for (shard, op) in ops {
        if let Some((shard, reply)) = reply_to(shard, op, None, out) {
            out.tell(shard, reply).await;
        }
    }
}

/// What a script has brought.
enum Done {
    At(Position),
    Full,
    Snapshot(Snapshot),
    Nothing,
}

fn reply_to(
    shard: ShardId,
    op: SharedOp,
    done: Option<Done>,
    out: &Out,
) -> Option<(ShardId, SharedReply)> {
    let reply = match op {
        SharedOp::Put {
            ticket, channel, ..
        }
        | SharedOp::Leave {
            ticket, channel, ..
        } => {
            let result = match done {
                Some(Done::At(position)) => Ok(position),
                Some(Done::Full) => Err(ErrorCode::PresenceFull),
                Some(Done::Snapshot(_) | Done::Nothing) | None => Err(ErrorCode::Unavailable),
            };
            SharedReply::Done {
                ticket,
                channel,
                result,
            }
        }
        SharedOp::Snapshot { channel, number } => SharedReply::Snapshot {
            channel,
            number,
            snapshot: snapshot_of(done),
        },
        SharedOp::List { ticket, .. } => SharedReply::Listed {
            ticket,
            snapshot: snapshot_of(done),
        },
        SharedOp::Away { channel, .. } | SharedOp::Sync { channel, .. } => {
            if done.is_some() {
                return None;
            }
            return Some((
                out.home(&channel.app, &channel.name),
                SharedReply::Failed { channel },
            ));
        }
        SharedOp::Opened { .. } => return None,
    };
    Some((shard, reply))
}

fn snapshot_of(done: Option<Done>) -> Option<Snapshot> {
    match done {
        Some(Done::Snapshot(snapshot)) => Some(snapshot),
        Some(Done::At(_) | Done::Full | Done::Nothing) | None => None,
    }
}

/// The channel in which this node holds no member any more, after an operation.
fn last_of(op: &SharedOp) -> Option<&ChannelKey> {
    match op {
        SharedOp::Leave {
            channel,
            last: true,
            ..
        }
        | SharedOp::Away {
            channel,
            last: true,
            ..
        } => Some(channel),
        SharedOp::Sync { channel, held } if held.is_empty() => Some(channel),
        _ => None,
    }
}

/// Makes known in which channels this lease will hold members, and who will be away.
async fn write_down(
    session: &Session,
    indexed: &mut Indexed,
    ops: &[(ShardId, SharedOp)],
) -> RedisResult<()> {
    let mut channels = Vec::new();
    let mut fresh = Vec::new();
    let mut away = Vec::new();
    for (_, op) in ops {
        let channel = match op {
            SharedOp::Put { channel, .. } => channel,
            SharedOp::Sync { channel, held } if !held.is_empty() => channel,
            SharedOp::Away {
                channel,
                client_id,
                grace_ms,
                ..
            } => {
                let until_ms = crate::clock::now_ms() + grace_ms;
                away.push((until_ms, join(&[&channel.app, &channel.name, client_id])));
                continue;
            }
            _ => continue,
        };
        let place = (channel.app.clone(), channel.name.clone());
        if indexed.insert(place.clone()) {
            channels.push(join(&[&place.0, &place.1]));
            fresh.push(place);
        }
    }
    let mut commands = session.commands.clone();
    if !channels.is_empty() {
        let key = session.channels_key(&session.lease);
        let mut add = redis::cmd("SADD");
        add.arg(key).arg(channels);
        if let Err(error) = add.query_async::<()>(&mut commands).await {
            for place in fresh {
                indexed.remove(&place);
            }
            return Err(error);
        }
    }
    if !away.is_empty() {
        let mut add = redis::cmd("ZADD");
        add.arg(session.away_key()).arg(away);
        add.query_async::<()>(&mut commands).await?;
    }
    Ok(())
}

/// This lease holds nobody in these channels. Failing that they are looked at once more when it is over.
async fn forget(session: &Session, indexed: &mut Indexed, gone: Vec<(Arc<str>, Arc<str>)>) {
    let gone: Vec<String> = gone
        .into_iter()
        .filter(|place| indexed.remove(place))
        .map(|(app, name)| join(&[&app, &name]))
        .collect();
    if !gone.is_empty() {
        let key = session.channels_key(&session.lease);
        let mut remove = redis::cmd("SREM");
        remove.arg(key).arg(gone);
        _ = remove
            .query_async::<()>(&mut session.commands.clone())
            .await;
    }
}

async fn perform(session: &Session, out: &Out, op: &SharedOp) -> RedisResult<Done> {
    let lease = &*session.lease;
    match op {
        SharedOp::Put {
            channel,
            client_id,
            state,
            members_max,
            ..
        } => {
            let state = state.as_deref().unwrap_or_default();
            let most = members_max.to_string();
            let place = (&*channel.app, &*channel.name);
            let value = session
                .members::<Value>(place, "put", lease, &[client_id, state, &most])
                .await?;
            if value == Value::Nil {
                return Ok(Done::Full);
            }
            position_of(value).map(Done::At)
        }
        SharedOp::Leave {
            channel, client_id, ..
        } => {
            let place = (&*channel.app, &*channel.name);
            let value = session.members(place, "leave", lease, &[client_id]).await?;
            position_of(value).map(Done::At)
        }
        SharedOp::Away {
            channel,
            client_id,
            lost,
            silent_ms,
            grace_ms,
            ..
        } => {
            let times = (*silent_ms, *grace_ms);
            let done = let_go_away(session, out, (channel, client_id), *lost, times).await;
            done.map(|()| Done::Nothing)
        }
        SharedOp::Opened {
            app,
            client_id,
            conn,
        } => {
            let remembered = out.opened_remembered_ms.to_string();
            let conn_name = conn.to_string();
            let arguments = [lease, &conn_name, &remembered];
            let client = (&**app, &**client_id);
            let channels: Vec<String> = session.client(client, "opened", &arguments).await?;
            for name in channels {
                let channel = ChannelKey {
                    app: app.clone(),
                    name: name.into(),
                };
                bring_back(session, out, &channel, client_id, (lease, *conn)).await?;
            }
            Ok(Done::Nothing)
        }
        SharedOp::Snapshot { channel, .. } | SharedOp::List { channel, .. } => {
            let place = (&*channel.app, &*channel.name);
            let (now_us, fields) = session.members(place, "snapshot", lease, &[]).await?;
            Ok(Done::Snapshot(wire::parse_snapshot(now_us, fields)))
        }
        SharedOp::Sync { channel, held } => {
            let place = (&*channel.app, &*channel.name);
            let texts: Vec<String> = held.iter().map(|h| h.joined_at.to_string()).collect();
            let each = held.iter().zip(&texts);
            let arguments: Vec<&str> = each
                .flat_map(|(held, at)| sync_arguments(held, at))
                .collect();
            session
                .members::<Value>(place, "sync", lease, &arguments)
                .await?;
            Ok(Done::Nothing)
        }
    }
}

fn sync_arguments<'a>(held: &'a Held, joined_at: &'a str) -> [&'a str; 3] {
    let state = held.state.as_deref().unwrap_or_default();
    [&held.client_id, joined_at, state]
}

/// A member's last connection on this node was lost: it is away, or its client has come back already.
async fn let_go_away(
    session: &Session,
    out: &Out,
    (channel, client_id): (&ChannelKey, &str),
    lost: ConnName,
    (silent_ms, grace_ms): (u64, u64),
) -> RedisResult<()> {
    let lease = &*session.lease;
    let place = (&*channel.app, &*channel.name);
    let grace = grace_ms.to_string();
    let is_away: bool = session
        .members(place, "away", lease, &[client_id, &grace])
        .await?;
    if !is_away {
        return Ok(());
    }
    let (lost, silent) = (lost.to_string(), silent_ms.to_string());
    let arguments = [&*channel.name, &*grace, lease, &*lost, &*silent];
    let client = (&*channel.app, client_id);
    let back: Vec<String> = session.client(client, "away", &arguments).await?;
    // Back on a node that is dead since: the member is away until its grace is over.
    if let [opened_by, conn] = back.as_slice()
        && let Some(lease) = out.lease_of(session, opened_by)
        && let Ok(conn) = conn.parse()
    {
        let lease = &*lease;
        bring_back(session, out, channel, client_id, (lease, conn)).await?;
    }
    Ok(())
}

/// Gives a member that is away to a connection, of this node or another, whose node is told.
async fn bring_back(
    session: &Session,
    out: &Out,
    channel: &ChannelKey,
    client_id: &str,
    (lease, conn): (&str, ConnName),
) -> RedisResult<()> {
    let place = join(&[&channel.app, &channel.name]);
    redis::cmd("SADD")
        .arg(session.channels_key(lease))
        .arg(place)
        .query_async::<()>(&mut session.commands.clone())
        .await?;
    let place = (&*channel.app, &*channel.name);
    let attached: bool = session
        .members(place, "attach", lease, &[client_id])
        .await?;
    if !attached {
        return Ok(());
    }
    let reply = SharedReply::Returned {
        channel: channel.clone(),
        client_id: client_id.into(),
        conn,
    };
    if node_of(lease) == &*out.shared.name {
        out.tell(out.home(&channel.app, &channel.name), reply).await;
        return Ok(());
    }
    super::bus::tell_returned(session, lease, channel, client_id, conn).await
}

fn position_of(value: Value) -> RedisResult<Position> {
    let (epoch, version): (String, String) =
        redis::from_redis_value(value).map_err(RedisError::from)?;
    Ok(Position {
        epoch: epoch.parse().unwrap_or(0),
        version: version.parse().unwrap_or(0),
    })
}
