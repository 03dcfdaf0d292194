//! Capability maps: which operations are granted on which channels (contract D7).
//!
//! A map is `{"<pattern>": ["<op>", …]}`. Patterns are split into segments at `:`. `*` alone matches every name; a
//! middle (or first) segment `*` matches exactly one segment; a last segment `*` matches one or more, so `a:*` matches
//! every name beginning with `a:`; any other segment matches itself. A `*` inside a longer segment is refused: no
//! channel name holds one, so such a pattern would never match.
//!
//! This is not about whether a channel name is valid, and knows no credentials. Invariants: rights are the union over
//! a map's matching entries and the intersection over the maps of one [`Capabilities`]; nothing is granted by default;
//! checking does not allocate.

use std::fmt;
use std::sync::Arc;

use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

pub use super::ops::Ops;
use crate::limits::{CAPABILITY_PATTERNS_MAX, CHANNEL_NAME_BYTES_MAX};

/// What one or several capability maps grant together. Cheap to clone; the default grants nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// All of them must permit. None at all permits nothing.
    maps: Arc<[Arc<CompiledMap>]>,
    /// Granted on every channel, by `*` entries: the answer to most questions.
    everywhere: Ops,
}

impl Capabilities {
    /// Compiles one map.
    ///
    /// # Errors
    /// When the map has more than [`CAPABILITY_PATTERNS_MAX`] patterns, or a pattern or operation is not one.
    pub fn compile(map: &Map<String, Value>) -> Result<Self, CapabilityError> {
        CompiledMap::compile(map).map(|map| Self::from_maps(vec![Arc::new(map)]))
    }

    /// Compiles a token's claim: a map, or a string that holds one as JSON (D6).
    ///
    /// # Errors
    /// As [`compile`](Self::compile), and when the claim is neither.
    pub fn from_claim(claim: &Value) -> Result<Self, CapabilityError> {
        if let Value::String(text) = claim {
            let map: Map<String, Value> =
                serde_json::from_str(text).map_err(|_| CapabilityError::NotAMap)?;
            return Self::compile(&map);
        }
        claim
            .as_object()
            .ok_or(CapabilityError::NotAMap)
            .and_then(Self::compile)
    }

    /// Grants `ops` on every channel.
    #[must_use]
    pub fn everywhere(ops: Ops) -> Self {
        Self::from_maps(vec![Arc::new(CompiledMap::new(vec![Entry {
            pattern: "*".into(),
            ops,
        }]))])
    }

    /// What both grant: every map of either must permit.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        if self.maps.is_empty() || other.maps.is_empty() {
            return Self::default();
        }
        Self::from_maps(self.maps.iter().chain(other.maps.iter()).cloned().collect())
    }

    /// Whether every operation of `ops` is granted on `channel`. False for the empty set.
    #[must_use]
    pub fn permits(&self, channel: &str, ops: Ops) -> bool {
        if self.everywhere.contains(ops) {
            return !ops.is_empty();
        }
        !self.maps.is_empty() && self.maps.iter().all(|map| map.permits(channel, ops))
    }

    /// The operations granted on `channel`.
    #[must_use]
    pub fn ops_on(&self, channel: &str) -> Ops {
        if self.maps.is_empty() {
            return Ops::NONE;
        }
        self.maps
            .iter()
            .fold(Ops::ALL, |ops, map| ops.intersection(map.ops_on(channel)))
    }

    /// Whether every operation of `ops` is granted on every channel: for what concerns the app as a whole.
    #[must_use]
    pub fn permits_everywhere(&self, ops: Ops) -> bool {
        self.everywhere.contains(ops) && !ops.is_empty()
    }

    /// Whether each map grants every operation of `ops` on some channel, though not necessarily all on the same: a
    /// cheap first refusal.
    #[must_use]
    pub fn permits_somewhere(&self, ops: Ops) -> bool {
        !self.maps.is_empty()
            && !ops.is_empty()
            && self.maps.iter().all(|map| map.somewhere.contains(ops))
    }

    fn from_maps(maps: Vec<Arc<CompiledMap>>) -> Self {
        let start = if maps.is_empty() { Ops::NONE } else { Ops::ALL };
        let everywhere = maps
            .iter()
            .fold(start, |ops, map| ops.intersection(map.everywhere));
        Self {
            maps: maps.into(),
            everywhere,
        }
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self::from_maps(Vec::new())
    }
}

impl Serialize for Capabilities {
    /// One map as itself, so that what an operator wrote is what is listed; otherwise a list of maps.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &*self.maps {
            [map] => map.serialize(serializer),
            maps => serializer.collect_seq(maps.iter().map(Arc::as_ref)),
        }
    }
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let compiled = match Value::deserialize(deserializer)? {
            Value::Object(map) => Self::compile(&map),
            Value::Array(maps) => maps
                .iter()
                .map(|map| map.as_object().ok_or(CapabilityError::NotAMap))
                .map(|map| map.and_then(CompiledMap::compile).map(Arc::new))
                .collect::<Result<_, _>>()
                .map(Self::from_maps),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                Err(CapabilityError::NotAMap)
            }
        };
        compiled.map_err(D::Error::custom)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct CompiledMap {
    entries: Box<[Entry]>,
    /// Granted by `*` entries.
    everywhere: Ops,
    /// Granted by any entry.
    somewhere: Ops,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    pattern: Box<str>,
    ops: Ops,
}

impl CompiledMap {
    fn compile(map: &Map<String, Value>) -> Result<Self, CapabilityError> {
        if map.len() > CAPABILITY_PATTERNS_MAX {
            return Err(CapabilityError::TooManyPatterns {
                patterns: map.len(),
            });
        }
        let entry = |(pattern, ops): (&String, &Value)| {
            check_pattern(pattern)?;
            Ok(Entry {
                pattern: pattern.as_str().into(),
                ops: parse_ops(pattern, ops)?,
            })
        };
        map.iter()
            .map(entry)
            .collect::<Result<_, _>>()
            .map(Self::new)
    }

    fn new(entries: Vec<Entry>) -> Self {
        let union = |ops: Ops, entry: &Entry| ops.union(entry.ops);
        let everywhere = entries
            .iter()
            .filter(|entry| &*entry.pattern == "*")
            .fold(Ops::NONE, union);
        let somewhere = entries.iter().fold(Ops::NONE, union);
        Self {
            entries: entries.into(),
            everywhere,
            somewhere,
        }
    }

    fn permits(&self, channel: &str, ops: Ops) -> bool {
        if !self.somewhere.contains(ops) {
            return false;
        }
        let mut granted = self.everywhere;
        for entry in &self.entries {
            if granted.contains(ops) {
                break;
            }
            if entry.ops.intersects(ops) && matches(&entry.pattern, channel) {
                granted = granted.union(entry.ops);
            }
        }
        granted.contains(ops)
    }

    fn ops_on(&self, channel: &str) -> Ops {
        let matching = self
            .entries
            .iter()
            .filter(|entry| matches(&entry.pattern, channel));
        matching.fold(Ops::NONE, |ops, entry| ops.union(entry.ops))
    }
}

impl Serialize for CompiledMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.entries.len()))?;
        for entry in &self.entries {
            map.serialize_entry(&entry.pattern, &entry.ops.names().collect::<Vec<_>>())?;
        }
        map.end()
    }
}

pub(crate) fn check_pattern(pattern: &str) -> Result<(), CapabilityError> {
    let partial_wildcard = pattern
        .split(':')
        .any(|segment| segment != "*" && segment.contains('*'));
    if pattern.is_empty() || pattern.len() > CHANNEL_NAME_BYTES_MAX || partial_wildcard {
        return Err(CapabilityError::BadPattern {
            pattern: pattern.into(),
        });
    }
    Ok(())
}

fn parse_ops(pattern: &str, ops: &Value) -> Result<Ops, CapabilityError> {
    let list = ops.as_array().ok_or_else(|| CapabilityError::OpsNotAList {
        pattern: pattern.into(),
    })?;
    list.iter().try_fold(Ops::NONE, |ops, op| {
        let parsed = op.as_str().and_then(Ops::parse);
        let op = parsed.ok_or_else(|| CapabilityError::UnknownOp {
            pattern: pattern.into(),
            op: op.to_string(),
        })?;
        Ok(ops.union(op))
    })
}

/// Whether a pattern that [`check_pattern`] accepts matches `name`. Walks both once.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    loop {
        match (pattern.split_once(':'), name.split_once(':')) {
            (None, _) if pattern == "*" => return true,
            (None, _) => return pattern == name,
            (Some(_), None) => return false,
            (Some((segment, pattern_rest)), Some((name_segment, name_rest))) => {
                if segment != "*" && segment != name_segment {
                    return false;
                }
                (pattern, name) = (pattern_rest, name_rest);
            }
        }
    }
}

/// Why a capability map is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CapabilityError {
    /// Not a JSON object.
    NotAMap,
    /// More patterns than [`CAPABILITY_PATTERNS_MAX`].
    TooManyPatterns {
        /// How many there are.
        patterns: usize,
    },
    /// Empty, longer than a channel name, or with `*` as part of a segment.
    BadPattern {
        /// The pattern as given.
        pattern: String,
    },
    /// The operations of a pattern are not a list.
    OpsNotAList {
        /// The pattern as given.
        pattern: String,
    },
    /// An operation that does not exist.
    UnknownOp {
        /// The pattern as given.
        pattern: String,
        /// The operation as JSON.
        op: String,
    },
}

impl fmt::Display for CapabilityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAMap => f.write_str("capabilities are not an object of pattern to operations"),
            Self::TooManyPatterns { patterns } => {
                write!(
                    f,
                    "{patterns} capability patterns, at most {CAPABILITY_PATTERNS_MAX} are allowed"
                )
            }
            Self::BadPattern { pattern } => write!(
                f,
                "capability pattern {pattern:?} is empty, above {CHANNEL_NAME_BYTES_MAX} bytes, or has `*` as part of a segment"
            ),
            Self::OpsNotAList { pattern } => write!(
                f,
                "operations of capability pattern {pattern:?} are not a list"
            ),
            Self::UnknownOp { pattern, op } => write!(
                f,
                "unknown operation {op} for capability pattern {pattern:?}"
            ),
        }
    }
}

impl std::error::Error for CapabilityError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn capabilities(map: Value) -> Capabilities {
        Capabilities::from_claim(&map).unwrap()
    }

    #[test]
    fn patterns_match_as_the_contract_says() {
        let cases = [
            ("*", "a:b:c", true),
            ("a:*", "a:b", true),
            ("a:*", "a:b:c", true),
            ("a:*", "a:", true),
            ("a:*", "a", false),
            ("a:*", "ab:c", false),
            ("a:*:c", "a:b:c", true),
            ("a:*:c", "a:b:b:c", false),
            ("a:*:c", "a::c", true),
            ("*:b", "a:b", true),
            ("*:b", "b", false),
            ("*:*", "a:b:c", true),
            ("*:*", "a", false),
            ("a", "a", true),
            ("a", "a:b", false),
            ("a:b", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn rights_are_the_union_of_matching_entries() {
        let caps = capabilities(json!({"a:*": ["subscribe"], "a:b": ["publish"], "c": ["*"]}));
        assert!(caps.permits("a:b", Ops::SUBSCRIBE.union(Ops::PUBLISH)));
        assert!(!caps.permits("a:c", Ops::PUBLISH));
        assert!(caps.permits("c", Ops::ADMIN));
        assert!(!caps.permits("a:b", Ops::ADMIN));
        assert!(!caps.permits("c", Ops::NONE));
        assert_eq!(caps.ops_on("a:b"), Ops::SUBSCRIBE.union(Ops::PUBLISH));
        assert!(caps.permits_somewhere(Ops::ADMIN) && !caps.permits_everywhere(Ops::ADMIN));
    }

    #[test]
    fn an_intersection_needs_every_map() {
        let key = capabilities(json!({"*": ["subscribe"], "a:*": ["publish"]}));
        let token = capabilities(json!({"a:*": ["*"]}));
        for caps in [key.intersect(&token), token.intersect(&key)] {
            assert!(caps.permits("a:b", Ops::SUBSCRIBE.union(Ops::PUBLISH)));
            assert!(!caps.permits("a:b", Ops::ADMIN));
            assert!(!caps.permits("b", Ops::SUBSCRIBE));
        }
        assert_eq!(
            key.intersect(&Capabilities::default()).ops_on("a:b"),
            Ops::NONE
        );
    }

    #[test]
    fn nothing_is_granted_by_default_or_by_an_empty_map() {
        for caps in [
            Capabilities::default(),
            capabilities(json!({})),
            capabilities(json!({"*": []})),
        ] {
            assert!(!caps.permits("a", Ops::SUBSCRIBE));
            assert!(
                !caps.permits_somewhere(Ops::SUBSCRIBE) && !caps.permits_everywhere(Ops::SUBSCRIBE)
            );
            assert_eq!(caps.ops_on("a"), Ops::NONE);
        }
    }

    #[test]
    fn errors_name_the_pattern_and_the_operation() {
        let error = |map| Capabilities::from_claim(&map).unwrap_err();
        assert_eq!(
            error(json!({"a:*": ["publsh"]})).to_string(),
            r#"unknown operation "publsh" for capability pattern "a:*""#
        );
        assert_eq!(
            error(json!({"a": [1]})),
            CapabilityError::UnknownOp {
                pattern: "a".into(),
                op: "1".into()
            }
        );
        assert_eq!(
            error(json!({"a": "*"})),
            CapabilityError::OpsNotAList {
                pattern: "a".into()
            }
        );
        for pattern in ["", "a*", "a:b*:c", &"x".repeat(256)] {
            assert_eq!(
                error(json!({pattern: []})),
                CapabilityError::BadPattern {
                    pattern: pattern.into()
                }
            );
        }
        assert_eq!(error(json!([])), CapabilityError::NotAMap);
        assert_eq!(error(json!("[]")), CapabilityError::NotAMap);
        let many: Map<_, _> = (0..257).map(|n| (n.to_string(), json!([]))).collect();
        assert_eq!(
            error(Value::Object(many)),
            CapabilityError::TooManyPatterns { patterns: 257 }
        );
    }

    #[test]
    fn a_claim_may_be_a_json_string() {
        let caps = Capabilities::from_claim(&json!(r#"{"a":["publish"]}"#)).unwrap();
        assert!(caps.permits("a", Ops::PUBLISH));
    }

    #[test]
    fn serialising_keeps_what_was_granted() {
        let map = json!({"*": ["*"], "a:*:b": ["subscribe", "history"]});
        let caps = capabilities(map.clone());
        assert_eq!(serde_json::to_value(&caps).unwrap(), map);
        for caps in [
            caps.intersect(&capabilities(json!({"c": ["admin"]}))),
            caps,
            Capabilities::default(),
        ] {
            let text = serde_json::to_string(&caps).unwrap();
            assert_eq!(serde_json::from_str::<Capabilities>(&text).unwrap(), caps);
        }
        assert!(serde_json::from_str::<Capabilities>(r#"[{"a":["nope"]}]"#).is_err());
    }

    /// The contract's words, segment by segment.
    fn matches_naively(pattern: &str, name: &str) -> bool {
        let pattern: Vec<_> = pattern.split(':').collect();
        let name: Vec<_> = name.split(':').collect();
        let trailing = pattern[pattern.len() - 1] == "*";
        let lengths = if trailing {
            name.len() >= pattern.len()
        } else {
            name.len() == pattern.len()
        };
        lengths && pattern.iter().zip(&name).all(|(p, n)| *p == "*" || p == n)
    }

    fn dotted(segment: &'static str) -> impl Strategy<Value = String> {
        prop::collection::vec(segment, 1..5).prop_map(|segments| segments.join(":"))
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_matcher(
            maps in prop::collection::vec(
                prop::collection::btree_map(dotted("[ab*]|"), 0..128_u8, 0..5), 1..3),
            name in dotted("[ab]|"),
            asked in 1..128_u8,
        ) {
            let maps: Vec<Vec<(String, Ops)>> = maps.into_iter()
                .map(|map| map.into_iter().filter(|(p, _)| !p.is_empty()).map(|(p, ops)| (p, Ops(ops))).collect())
                .collect();
            let caps = maps.iter()
                .map(|map| map.iter().map(|(p, ops)| (p.clone(), json!(ops.names().collect::<Vec<_>>()))).collect())
                .map(|map| Capabilities::compile(&map).unwrap())
                .reduce(|a, b| a.intersect(&b)).unwrap();
            let granted = maps.iter()
                .map(|map| map.iter().filter(|(p, _)| matches_naively(p, &name)).fold(0, |ops, (_, o)| ops | o.0))
                .fold(127, |a, b| a & b);
            prop_assert_eq!(caps.ops_on(&name), Ops(granted));
            prop_assert_eq!(caps.permits(&name, Ops(asked)), granted & asked == asked);
        }

        #[test]
        fn a_trailing_wildcard_is_a_prefix(prefix in "[a-c:]{0,6}", name in "[a-c:]{0,8}") {
            let expected = name.starts_with(&format!("{prefix}:"));
            prop_assert_eq!(matches(&format!("{prefix}:*"), &name), expected);
        }
    }
}
