//! Numbers of subscribers, added up over shards and nodes, and told no more often than once in an interval.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::COUNT_INTERVAL_MS;

#[derive(Debug, Default)]
struct Sum {
    /// Node, shard, number.
    parts: SmallVec<[(Arc<str>, u16, u64); 1]>,
    told: u64,
    due_ms: Option<u64>,
    /// Not told again before.
    rests_until_ms: u64,
}

/// Channels with subscribers, of apps that want to know.
#[derive(Debug, Default)]
pub struct Subscribers {
    sums: BTreeMap<(String, String), Sum>,
}

impl Subscribers {
    /// A shard has so many subscribers of a channel.
    pub fn set(
        &mut self,
        (app, channel): (&str, &str),
        node: &Arc<str>,
        (shard, count): (u16, u64),
        now_ms: u64,
    ) {
        let sum = self
            .sums
            .entry((app.to_owned(), channel.to_owned()))
            .or_default();
        sum.parts.retain(|(n, s, _)| n != node || *s != shard);
        if count > 0 {
            sum.parts.push((node.clone(), shard, count));
        }
        sum.due_ms.get_or_insert(now_ms.max(sum.rests_until_ms));
    }

    /// A node is gone with its subscribers.
    pub fn lose_node(&mut self, node: &str, now_ms: u64) {
        for sum in self.sums.values_mut() {
            let before = sum.parts.len();
            sum.parts.retain(|(n, ..)| &**n != node);
            if sum.parts.len() != before {
                sum.due_ms.get_or_insert(now_ms.max(sum.rests_until_ms));
            }
        }
    }

    /// App, channel and number of what is to be told.
    pub fn take_due(&mut self, now_ms: u64) -> Vec<(String, String, u64)> {
        let mut due = Vec::new();
        self.sums.retain(|(app, channel), sum| {
            if sum.due_ms.is_some_and(|at| at <= now_ms) {
                sum.due_ms = None;
                let count = sum.parts.iter().map(|(_, _, count)| count).sum();
                if count != sum.told {
                    sum.told = count;
                    sum.rests_until_ms = now_ms + COUNT_INTERVAL_MS;
                    due.push((app.clone(), channel.clone(), count));
                }
            }
            sum.told > 0 || sum.due_ms.is_some() || !sum.parts.is_empty()
        });
        due
    }

    /// When the next is to be told, ms since the Unix epoch.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<u64> {
        self.sums.values().filter_map(|sum| sum.due_ms).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_within_an_interval_are_told_as_one() {
        let mut all = Subscribers::default();
        let node: Arc<str> = "n".into();
        let channel = ("a", "c");
        all.set(channel, &node, (0, 2), 0);
        all.set(channel, &node, (1, 1), 0);
        assert_eq!(all.take_due(0), [("a".into(), "c".into(), 3)]);
        all.set(channel, &node, (0, 5), 10);
        all.set(channel, &node, (0, 4), 20);
        assert!(all.take_due(COUNT_INTERVAL_MS - 1).is_empty());
        let told = all.take_due(COUNT_INTERVAL_MS);
        assert_eq!(told, [("a".into(), "c".into(), 5)]);
        all.lose_node("n", 5000);
        assert_eq!(all.take_due(5000), [("a".into(), "c".into(), 0)]);
        assert!(all.sums.is_empty());
    }
}
