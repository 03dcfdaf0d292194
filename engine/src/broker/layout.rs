//! Who has which slots: asked of the cluster, or all with one server where there is none.

use std::rc::Rc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ConnectionAddr, Value};

use super::connect::{Access, is_cluster};
use super::core::{Core, SLOTS};
use super::scripts::integer;

/// Between two questions while something is wrong, and while nothing is.
const SOON: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_secs(5);

/// Ranges of slots with their owner.
type Layout = Vec<(u16, u16, ConnectionAddr)>;

/// Follows the layout, until dropped.
pub(super) async fn keep(core: Rc<Core>) {
    let mut connection = None;
    let mut last: Option<Layout> = None;
    let mut told = false;
    loop {
        match ask(&core, &mut connection).await {
            Ok(layout) => {
                told = false;
                if last.as_ref() != Some(&layout) || core.is_unsure() {
                    core.apply(&layout);
                    last = Some(layout);
                }
            }
            Err(error) => {
                connection = None;
                if !std::mem::replace(&mut told, true) {
                    log::warn!("broker: cannot ask who has which slots: {error}");
                }
                core.note_health();
            }
        }
        let wait = if core.all_up() { LATER } else { SOON };
        if tokio::time::timeout(wait, core.discovery_wanted())
            .await
            .is_ok()
        {
            // However many want it.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn ask(
    core: &Core,
    connection: &mut Option<(ConnectionAddr, MultiplexedConnection)>,
) -> redis::RedisResult<Layout> {
    if let Some((addr, open)) = connection {
        return of_connection(&core.access, addr, open).await;
    }
    let mut last = None;
    let seeds: Vec<_> = core.access.seeds().cloned().collect();
    for addr in core.addresses().into_iter().chain(seeds) {
        let answer = match core.access.open(&addr, None).await {
            Ok(mut open) => {
                let layout = of_connection(&core.access, &addr, &mut open).await;
                layout.map(|layout| (open, layout))
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok((open, layout)) => {
                *connection = Some((addr, open));
                return Ok(layout);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        redis::RedisError::from((redis::ErrorKind::InvalidClientConfig, "no URL"))
    }))
}

async fn of_connection(
    access: &Access,
    addr: &ConnectionAddr,
    connection: &mut MultiplexedConnection,
) -> redis::RedisResult<Layout> {
    if !is_cluster(connection).await? {
        let last = u16::try_from(SLOTS - 1).unwrap_or(u16::MAX);
        return Ok(vec![(0, last, addr.clone())]);
    }
    let answer: Value = redis::cmd("CLUSTER")
        .arg("SLOTS")
        .query_async(connection)
        .await?;
    parse(access, addr, &answer).ok_or_else(|| {
        redis::RedisError::from((redis::ErrorKind::Parse, "CLUSTER SLOTS is not understood"))
    })
}

/// `[[first, last, [host, port, …], replicas…], …]`; an absent host is that of the server asked.
fn parse(access: &Access, asked: &ConnectionAddr, answer: &Value) -> Option<Layout> {
    let Value::Array(ranges) = answer else {
        return None;
    };
    let own_host = match asked {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
        _ => "",
    };
    let mut layout = Vec::new();
    for range in ranges {
        let Value::Array(parts) = range else {
            return None;
        };
        let [first, last, Value::Array(owner), ..] = parts.as_slice() else {
            return None;
        };
        let [host, port, ..] = owner.as_slice() else {
            return None;
        };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() => std::str::from_utf8(host).ok()?,
            _ => own_host,
        };
        let number = |value| u16::try_from(integer(value)?).ok();
        let (first, last) = (number(first)?, number(last)?);
        if first > last || usize::from(last) >= SLOTS {
            return None;
        }
        layout.push((first, last, access.at(host, number(port)?)));
    }
    layout.sort_by_key(|(first, _, _)| *first);
    Some(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{RedisConfig, RedisUrl};

    #[test]
    fn ranges_are_read_and_absent_hosts_are_the_server_asked() {
        let access = Access::new(&RedisConfig {
            urls: vec![RedisUrl("redis://seed:7000".into())],
            ..RedisConfig::default()
        })
        .unwrap();
        let owner = |host: &str, port| {
            let host = Value::BulkString(host.as_bytes().to_vec());
            Value::Array(vec![host, Value::Int(port)])
        };
        let range =
            |first, last, owner| Value::Array(vec![Value::Int(first), Value::Int(last), owner]);
        let answer = Value::Array(vec![
            range(8000, 16383, owner("b", 2)),
            range(0, 7999, owner("", 1)),
        ]);
        let asked = ConnectionAddr::Tcp("a".into(), 9);
        let layout = parse(&access, &asked, &answer).unwrap();
        assert_eq!(layout[0], (0, 7999, ConnectionAddr::Tcp("a".into(), 1)));
        assert_eq!(layout[1], (8000, 16383, ConnectionAddr::Tcp("b".into(), 2)));
        let bad = Value::Array(vec![range(5, 70000, owner("b", 2))]);
        assert_eq!(parse(&access, &asked, &bad), None);
    }
}
