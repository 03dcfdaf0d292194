//! The Redis of `[broker.redis]`: whether it can be reached and does what the broker wants of it.
//!
//! Invariants: nothing is written: rights are asked for in a transaction that is thrown away. Nothing shown has a password.

use std::collections::BTreeMap;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{ConnectionAddr, Pipeline, RedisError, Value};

use super::{Finding, Grade};
use crate::broker::RedisConfig;
use crate::broker::connect::Access;

/// The first version with sharded pub/sub.
const VERSION_MIN: u64 = 7;
const ACL_MEND: &str =
    "on Redis: ACL SETUSER <user> ~<key_prefix>* &<key_prefix>* +@all -@dangerous +info";

/// Nothing where no broker is configured.
pub(super) fn findings(config: &RedisConfig) -> Vec<Finding> {
    const WHAT: &str = "redis";
    if !config.is_on() {
        return Vec::new();
    }
    let access = match Access::new(config) {
        Ok(access) => access,
        Err(error) => {
            let mend = "correct [broker.redis]";
            return vec![Finding::bad(Grade::Fail, WHAT, error, mend)];
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(look(&access, &config.key_prefix)),
        Err(error) => {
            let mend = "allow this process more descriptors and threads";
            vec![Finding::bad(Grade::Fail, WHAT, error.to_string(), mend)]
        }
    }
}

async fn look(access: &Access, prefix: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for addr in access.seeds() {
        match access.open(addr, None).await {
            Ok(connection) => findings.extend(server(addr, connection, prefix).await),
            Err(error) => findings.push(unreachable(addr, &error)),
        }
    }
    findings
}

/// A server starts without its Redis, and serves when that is there: no `fail` unless waiting will not help.
fn unreachable(addr: &ConnectionAddr, error: &RedisError) -> Finding {
    let text = error.to_string();
    let has = |word: &str| text.contains(word);
    let (grade, mend) = if has("WRONGPASS") || has("NOAUTH") || has("AuthenticationFailed") {
        let mend = "give broker.redis.username and password_file as Redis has them (ACL LIST)";
        (Grade::Fail, mend)
    } else if has("HELLO") || has("NOPROTO") || has("RESP3") {
        let mend = "it lacks RESP3: use Redis 7.0 or later, without a proxy that speaks RESP2";
        (Grade::Fail, mend)
    } else {
        let mend = "see that redis-server runs there and lets this host in (bind, protected-mode, firewall, tls-port)";
        (Grade::Warn, mend)
    };
    Finding::bad(grade, "redis", format!("{addr}: {text}"), mend)
}

async fn server(
    addr: &ConnectionAddr,
    mut connection: MultiplexedConnection,
    prefix: &str,
) -> Vec<Finding> {
    let info: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
    let info = match info {
        Ok(info) => info,
        Err(error) => {
            let value = format!("{addr}: INFO: {error}");
            return vec![Finding::bad(Grade::Fail, "redis rights", value, ACL_MEND)];
        }
    };
    let info = Info::new(&info);
    let shown = addr.to_string();
    let mut findings = vec![
        version(&shown, &info),
        eviction(&shown, &info),
        persistence(&shown, &info),
        role(&shown, &info),
    ];
    findings.push(match rights(&mut connection, prefix).await {
        Ok(denied) if denied.is_empty() => {
            Finding::ok("redis rights", format!("{shown}: all that is used"))
        }
        Ok(denied) => {
            let value = format!("{shown}: denied: {}", denied.join(", "));
            Finding::bad(Grade::Fail, "redis rights", value, ACL_MEND)
        }
        Err(error) => {
            let value = format!("{shown}: {error}");
            Finding::bad(Grade::Warn, "redis rights", value, "look again")
        }
    });
    findings
}

/// What `INFO` has told.
struct Info<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Info<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.lines().filter_map(|l| l.split_once(':')).collect())
    }

    /// Empty where it is not told.
    fn get(&self, key: &str) -> &'a str {
        self.0.get(key).copied().unwrap_or_default().trim()
    }
}

fn version(addr: &str, info: &Info<'_>) -> Finding {
    let version = info.get("redis_version");
    let major: u64 = version
        .split('.')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let value = format!("{addr}: version {version}, RESP3");
    if major < VERSION_MIN {
        let mend = "use Redis 7.0 or later: the broker needs sharded pub/sub";
        return Finding::bad(Grade::Fail, "redis", value, mend);
    }
    Finding::ok("redis", value)
}

fn eviction(addr: &str, info: &Info<'_>) -> Finding {
    const WHAT: &str = "redis memory";
    let policy = info.get("maxmemory_policy");
    let value = format!("{addr}: maxmemory-policy {policy}");
    match (policy, info.get("maxmemory")) {
        ("noeviction", _) => Finding::ok(WHAT, value),
        (_, "0") => Finding::bad(
            Grade::Warn,
            WHAT,
            format!("{value}, without effect while maxmemory is 0"),
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        ),
        _ => Finding::bad(
            Grade::Warn,
            WHAT,
            format!("{value}: it may throw messages and members away"),
            "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        ),
    }
}

fn persistence(addr: &str, info: &Info<'_>) -> Finding {
    const WHAT: &str = "redis persistence";
    if info.get("aof_enabled") == "1" {
        return Finding::ok(WHAT, format!("{addr}: append-only file"));
    }
    Finding::bad(
        Grade::Warn,
        WHAT,
        format!("{addr}: no append-only file: its crash loses acknowledged messages"),
        "appendonly yes in redis.conf, appendfsync always where a power cut may lose nothing either",
    )
}

/// A cluster, a single one, or what is not to be written to.
fn role(addr: &str, info: &Info<'_>) -> Finding {
    const WHAT: &str = "redis mode";
    let role = info.get("role");
    if info.get("cluster_enabled") == "1" {
        return Finding::ok(WHAT, format!("{addr}: cluster, {role}"));
    }
    if role == "slave" {
        let mend = "give the master's address in broker.redis.urls";
        return Finding::bad(Grade::Fail, WHAT, format!("{addr}: replica"), mend);
    }
    Finding::ok(WHAT, format!("{addr}: single"))
}

/// Commands that are used, with arguments after the key; `SCRIPT LOAD` and the like have none.
const KEYED: [(&str, &[&str]); 27] = [
    ("EVALSHA", &[]),
    ("GET", &[]),
    ("SET", &["1"]),
    ("DEL", &[]),
    ("UNLINK", &[]),
    ("PEXPIRE", &["1"]),
    ("PERSIST", &[]),
    ("PTTL", &[]),
    ("HGET", &["f"]),
    ("HMGET", &["f"]),
    ("HGETALL", &[]),
    ("HEXISTS", &["f"]),
    ("HSET", &["f", "1"]),
    ("HSETNX", &["f", "1"]),
    ("HDEL", &["f"]),
    ("HINCRBY", &["f", "1"]),
    ("SADD", &["m"]),
    ("SREM", &["m"]),
    ("SRANDMEMBER", &[]),
    ("ZADD", &["1", "m"]),
    ("ZREM", &["m"]),
    ("ZRANGEBYSCORE", &["0", "1"]),
    ("XADD", &["*", "f", "1"]),
    ("XRANGE", &["-", "+"]),
    ("XREVRANGE", &["+", "-"]),
    ("XTRIM", &["MAXLEN", "0"]),
    ("SPUBLISH", &["m"]),
];

/// Those that name no key.
const KEYLESS: [(&str, &[&str]); 4] = [
    ("SCRIPT", &["LOAD", "return 1"]),
    ("SCAN", &["0"]),
    ("TIME", &[]),
    ("WAIT", &["0", "1"]),
];

/// The commands among those used that this user may not send. They are queued and thrown away: Redis looks at the rights
/// when it queues.
async fn rights(
    connection: &mut MultiplexedConnection,
    prefix: &str,
) -> redis::RedisResult<Vec<String>> {
    let key = format!("{prefix}{{check}}");
    let mut pipeline = Pipeline::new();
    let mut names = vec!["MULTI"];
    pipeline.cmd("MULTI");
    for (name, arguments) in KEYED {
        names.push(name);
        match name {
            "EVALSHA" => pipeline.cmd(name).arg("0").arg(1).arg(&key),
            _ => pipeline.cmd(name).arg(&key).arg(arguments),
        };
    }
    for (name, arguments) in KEYLESS {
        names.push(name);
        pipeline.cmd(name).arg(arguments);
    }
    names.push("PUBLISH");
    pipeline.cmd("PUBLISH").arg(&key).arg("m");
    names.push("DISCARD");
    pipeline.cmd("DISCARD");
    let values = connection
        .req_packed_commands(&pipeline, 0, names.len())
        .await?;
    let denied = |value: &Value| matches!(value, Value::ServerError(e) if e.code() == "NOPERM");
    Ok(names
        .into_iter()
        .zip(&values)
        .filter(|(_, value)| denied(value))
        .map(|(name, _)| name.to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_a_script_is_looked_at() {
        let scripts = [
            include_str!("../broker/scripts/clear.lua"),
            include_str!("../broker/scripts/count.lua"),
            include_str!("../broker/scripts/load.lua"),
            include_str!("../broker/scripts/owed.lua"),
            include_str!("../broker/scripts/page.lua"),
            include_str!("../broker/scripts/place.lua"),
            include_str!("../broker/scripts/publish.lua"),
            include_str!("../cluster/presence.lua"),
            include_str!("../cluster/client.lua"),
            include_str!("../cluster/nodes.lua"),
            include_str!("../cluster/registry.lua"),
        ];
        let looked_at = |name: &str| {
            let mut all = KEYED.iter().chain(&KEYLESS);
            name == "PUBLISH" || all.any(|(known, _)| *known == name)
        };
        let mut count = 0;
        for call in scripts.iter().flat_map(|s| s.split("call('").skip(1)) {
            let name = call.split('\'').next().unwrap();
            assert!(looked_at(name), "{name}");
            count += 1;
        }
        assert!(count > 20, "{count}");
    }

    #[test]
    fn what_a_server_tells_is_graded() {
        let grade =
            |look: fn(&str, &Info<'_>) -> Finding, text: &str| look("h:1", &Info::new(text)).grade;
        assert_eq!(grade(version, "redis_version:7.0.15\r\n"), Grade::Ok);
        assert_eq!(grade(version, "redis_version:6.2.1\r\n"), Grade::Fail);
        assert_eq!(grade(version, ""), Grade::Fail);
        assert_eq!(grade(eviction, "maxmemory_policy:noeviction"), Grade::Ok);
        let lru = "maxmemory:9\r\nmaxmemory_policy:allkeys-lru\r\n";
        assert_eq!(grade(eviction, lru), Grade::Warn);
        assert_eq!(grade(persistence, "aof_enabled:0"), Grade::Warn);
        assert_eq!(grade(persistence, "aof_enabled:1"), Grade::Ok);
        assert_eq!(grade(role, "role:slave\r\ncluster_enabled:0"), Grade::Fail);
        assert_eq!(grade(role, "role:slave\r\ncluster_enabled:1"), Grade::Ok);
    }

    #[test]
    fn one_that_is_not_there_is_named() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = gone.local_addr().unwrap();
        drop(gone);
        let config = RedisConfig {
            urls: vec![crate::broker::RedisUrl(format!("redis://u:secret@{addr}"))],
            ..RedisConfig::default()
        };
        let found = findings(&config);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].grade, Grade::Warn);
        assert!(found[0].value.contains(&addr.to_string()));
        assert!(!found[0].value.contains("secret"));
        assert!(findings(&RedisConfig::default()).is_empty());
    }
}
