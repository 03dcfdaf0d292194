//! Names of keys and topics in Redis. All of one channel share a hash tag, so that a cluster keeps them on one node and
//! one script may change them together.

use std::fmt::Write;

/// The keys of one cluster of ours; clones are cheap enough for start-up only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

/// One channel's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelKeys {
    /// Prefix and hash tag: what all of them begin with.
    base: String,
}

impl Keys {
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The names of a channel: `<prefix>{<app>:<channel>}…`, braces and percent signs escaped, and colons in the app.
    #[must_use]
    pub fn channel(&self, app: &str, channel: &str) -> ChannelKeys {
        let mut base = String::with_capacity(self.prefix.len() + app.len() + channel.len() + 8);
        base.push_str(&self.prefix);
        base.push('{');
        escape(app, &['{', '}', '%', ':'], &mut base);
        base.push(':');
        escape(channel, &['{', '}', '%'], &mut base);
        base.push('}');
        ChannelKeys { base }
    }

    /// The pattern of the keys of all channels with this suffix; as of [`ChannelKeys::key`].
    #[must_use]
    pub fn pattern(&self, suffix: &str) -> String {
        let mut pattern = String::new();
        escape_pattern(&self.prefix, &mut pattern);
        pattern.push_str("{*}:");
        pattern.push_str(suffix);
        pattern
    }

    /// App and channel of a key of one; `None` where it is another's.
    #[must_use]
    pub fn parse(&self, key: &str) -> Option<(String, String)> {
        let rest = key.strip_prefix(self.prefix.as_str())?.strip_prefix('{')?;
        let (tag, _) = rest.rsplit_once('}')?;
        let (app, channel) = tag.split_once(':')?;
        Some((unescape(app)?, unescape(channel)?))
    }

    /// A key that belongs to no channel.
    #[must_use]
    pub fn global(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl ChannelKeys {
    /// Any key of the channel: its hash tag with this behind.
    #[must_use]
    pub fn key(&self, suffix: &str) -> String {
        format!("{}:{suffix}", self.base)
    }

    /// Where the channel stands: epoch, last sequence and timestamp, what was cleared, retention. A hash.
    #[must_use]
    pub fn meta(&self) -> String {
        self.key("m")
    }

    /// Its messages. A stream whose ids are `<sequence>-<timestamp>`.
    #[must_use]
    pub fn stream(&self) -> String {
        self.key("s")
    }

    /// Ids of its messages, in two halves of which each covers every other window of time. Hashes.
    #[must_use]
    pub fn ids(&self) -> [String; 2] {
        [self.key("i0"), self.key("i1")]
    }

    /// Sequences that the store is owed, by when they were published. A sorted set.
    #[must_use]
    pub fn owed(&self) -> String {
        self.key("w")
    }

    /// The sharded topic on which nodes hear of it.
    #[must_use]
    pub fn topic(&self) -> String {
        self.key("t")
    }

    /// The part of Redis Cluster's 16,384 that they are in.
    #[must_use]
    pub fn slot(&self) -> u16 {
        slot_of(self.base.as_bytes())
    }
}

/// The slot of a key: of what is between its first brace and the next that closes one, if that is anything.
#[must_use]
pub fn slot_of(key: &[u8]) -> u16 {
    let hashed = key
        .iter()
        .position(|b| *b == b'{')
        .and_then(|open| {
            let rest = &key[open + 1..];
            let length = rest.iter().position(|b| *b == b'}')?;
            (length > 0).then(|| &rest[..length])
        })
        .unwrap_or(key);
    crc16::State::<crc16::XMODEM>::calculate(hashed) % 16_384
}

/// A literal of a pattern of Redis.
fn escape_pattern(text: &str, out: &mut String) {
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '^' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut parts = text.split('%');
    out.push_str(parts.next()?);
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        out.push(char::from(u8::from_str_radix(code, 16).ok()?));
        out.push_str(rest);
    }
    Some(out)
}

fn escape(text: &str, special: &[char], out: &mut String) {
    for c in text.chars() {
        if special.contains(&c) {
            // All of them are ASCII.
            _ = write!(out, "%{:02X}", c as u32);
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_channel_share_a_slot_and_those_of_others_differ() {
        let keys = Keys::new("sw:");
        let c = keys.channel("dev", "room:1");
        assert_eq!(c.stream(), "sw:{dev:room:1}:s");
        assert_eq!(
            slot_of(c.stream().as_bytes()),
            slot_of(c.topic().as_bytes())
        );
        assert_eq!(slot_of(c.meta().as_bytes()), c.slot());
        assert_ne!(keys.channel("a:b", "c"), keys.channel("a", "b:c"));
        assert_ne!(keys.channel("a", "%7B"), keys.channel("a", "{"));
        let braces = keys.channel("a", "}x{y}");
        assert_eq!(braces.meta(), "sw:{a:%7Dx%7By%7D}:m");
        assert_eq!(slot_of(braces.meta().as_bytes()), braces.slot());
    }

    #[test]
    fn a_key_tells_its_channel() {
        let keys = Keys::new("a*:");
        for (app, channel) in [("dev", "room:1"), ("a:b", "x{y}%7D"), ("é", "ü:{")] {
            let key = keys.channel(app, channel).owed();
            assert_eq!(keys.parse(&key), Some((app.to_owned(), channel.to_owned())));
        }
        assert_eq!(keys.parse("b{a:b}:w"), None);
        assert_eq!(keys.parse("a*:nodes"), None);
        assert_eq!(keys.pattern("w"), "a\\*:{*}:w");
    }

    #[test]
    fn slots_are_those_of_redis() {
        // CLUSTER KEYSLOT of the same.
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{}{bar}"), slot_of(b"foo{}{bar}"));
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    }
}
