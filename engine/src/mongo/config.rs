//! File section `[store.mongo]`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Which database, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MongoConfig {
    /// Connection string; none: what is kept is in the data folder.
    pub url: Option<MongoUrl>,
    /// Name of the database; the one of the connection string wins.
    pub database: String,
    /// What the names of all collections begin with.
    pub prefix: String,
    /// Which members of the replica set have a write before it is acknowledged.
    pub write_concern: Acks,
    /// Whether these members must have it in their journal, which outlasts a power cut.
    pub journal: bool,
    /// Connections to each member.
    pub pool_max: u32,
    /// Longest wait for an answer of the database, ms.
    pub timeout_ms: u64,
    /// How long a batch is tried again while the database is away, ms; then its messages are refused.
    pub retry_ms: u64,
}

impl Default for MongoConfig {
    fn default() -> Self {
        Self {
            url: None,
            database: "shardwire".to_owned(),
            prefix: String::new(),
            write_concern: Acks::Majority,
            journal: true,
            pool_max: 16,
            timeout_ms: 5_000,
            retry_ms: 10_000,
        }
    }
}

/// A connection string. May hold a password, so it is never shown whole.
#[derive(Clone, PartialEq, Eq)]
pub struct MongoUrl(String);

impl MongoUrl {
    /// # Errors
    /// It is not `mongodb://…` or `mongodb+srv://…`; the text does not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("mongodb://")
            .or_else(|| text.strip_prefix("mongodb+srv://"));
        match rest {
            Some(rest) if !rest.is_empty() => Ok(Self(text.to_owned())),
            _ => Err("not a MongoDB URL; write mongodb://host:27017".to_owned()),
        }
    }

    /// As it was given.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

/// Without user, password and options.
impl fmt::Display for MongoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or_default();
        let rest = rest.split('?').next().unwrap_or_default();
        let hosts = rest.rsplit_once('@').map_or(rest, |(_, hosts)| hosts);
        write!(f, "{scheme}://{hosts}")
    }
}

impl fmt::Debug for MongoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MongoUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MongoUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// `"majority"`, or a number of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    Majority,
    /// At least 1: a write that nobody has acknowledged is no write.
    Members(u32),
}

impl Serialize for Acks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Majority => serializer.serialize_str("majority"),
            Self::Members(members) => serializer.serialize_u32(*members),
        }
    }
}

impl<'de> Deserialize<'de> for Acks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            Word(String),
            Members(u32),
        }
        match Given::deserialize(deserializer) {
            Ok(Given::Word(word)) if word == "majority" => Ok(Self::Majority),
            Ok(Given::Members(members @ 1..=50)) => Ok(Self::Members(members)),
            _ => Err(de::Error::custom(
                "write \"majority\", or the number of members, 1 to 50",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        let url = MongoUrl::parse("mongodb://ann:pa%40ss@a:1,b:2/db?replicaSet=r&tls=true");
        let shown = [
            url.as_ref().unwrap().to_string(),
            format!("{url:?}"),
            serde_json::to_string(&url.unwrap()).unwrap(),
        ];
        for text in shown {
            assert!(text.contains("mongodb://a:1,b:2/db"), "{text}");
            assert!(!text.contains("pa%40ss") && !text.contains("ann"), "{text}");
        }
        let wrong = MongoUrl::parse("mysql://ann:secret@a").unwrap_err();
        assert!(!wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn acks_are_majority_or_a_number() {
        let read = |text: &str| serde_json::from_str::<Acks>(text).ok();
        assert_eq!(read("\"majority\""), Some(Acks::Majority));
        assert_eq!(read("2"), Some(Acks::Members(2)));
        assert_eq!((read("0"), read("\"most\"")), (None, None));
    }
}
