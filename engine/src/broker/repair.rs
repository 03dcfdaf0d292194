//! Messages that Redis has and the shared store may lack, because their node has died between the two, or the store was
//! away: one node at a time looks for them and has them stored.
//!
//! Each stored message is owed to the store from its publish on, in a set beside its stream, until its node says that the
//! store has it. Invariant: storing twice does no harm, so that it does not matter who repairs, or when.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use shardwire_proto::broker::BrokerReply;
use shardwire_proto::ids::{ChannelKey, ShardId};

use super::core::Core;
use super::{keys, scripts, topics};

/// Between two rounds of one node.
const EVERY: Duration = Duration::from_secs(5);
/// How long a message may be owed before others look after it, ms: longer than a node's own write may take.
const AGE_MS: u64 = 5000;
/// Messages of one channel per round.
const MESSAGES_MAX: usize = 256;
/// Keys looked at by one command.
const SCAN_COUNT: usize = 1000;
/// How long one node has the task, ms: more than a round takes, or another helps, which does no harm.
const TURN_MS: u64 = 15_000;

/// Goes on until dropped.
pub(super) async fn keep(core: Rc<Core>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if take_turn(&core).await {
            for server in core.first_slots() {
                round(&core, server).await;
            }
        }
    }
}

/// Whether it is this node's turn.
async fn take_turn(core: &Core) -> bool {
    let key = core.keys.global("repair");
    let slot = keys::slot_of(key.as_bytes());
    let mut take = redis::cmd("SET");
    take.arg(&key).arg(core.settings.node);
    take.arg("NX").arg("PX").arg(TURN_MS);
    matches!(topics::call(core, take, slot).await, Ok(Value::Okay))
}

/// Looks through the server that has a slot.
async fn round(core: &Rc<Core>, slot: u16) {
    let pattern = core.keys.pattern("w");
    let mut cursor = "0".to_owned();
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(&pattern);
        scan.arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg("zset");
        let Ok(answer) = topics::call(core, scan, slot).await else {
            return;
        };
        let Ok((next, found)) = redis::from_redis_value::<(String, Vec<String>)>(answer) else {
            return;
        };
        for key in found {
            repair(core, &key).await;
        }
        if next == "0" {
            return;
        }
        cursor = next;
    }
}

async fn repair(core: &Rc<Core>, key: &str) {
    let Some((app, name)) = core.keys.parse(key) else {
        return;
    };
    let channel_keys = core.keys.channel(&app, &name);
    let cmd = scripts::owed(&channel_keys, AGE_MS, MESSAGES_MAX);
    let answer = topics::call(core, cmd, channel_keys.slot()).await;
    let Some((epoch, records)) = answer.ok().and_then(scripts::owed_messages) else {
        return;
    };
    if records.is_empty() {
        return;
    }
    log::info!(
        "broker: {} messages of {app}:{name} are stored anew",
        records.len()
    );
    let channel = ChannelKey {
        app: Arc::from(app),
        name: Arc::from(name),
    };
    // Any shard will do: it is not a matter of order.
    let reply = BrokerReply::Repair {
        channel,
        epoch,
        records,
    };
    core.reply(ShardId(0), reply);
    core.flush();
}
