//! Every bound of the protocol in one place, with its unit and reason (contract D13 unless another source is given).
//!
//! The constants are the defaults and the bounds that cannot be configured; [`Limits`] is the copy an operator may
//! change. Relations that must hold between them are checked when the crate is compiled and, for [`Limits`], by
//! [`Limits::validate`]. Nothing here enforces a limit.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rate::RateLimit;
use crate::rate::network::Network;
use crate::rate::table::{Rates, Scopes, Setting};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Bytes of a publish's `data`; above it error 41300. 64 KiB as other hosted services do.
pub const PUBLISH_BYTES_MAX: usize = 64 * KIB;
/// Highest value [`Limits::publish_bytes_max`] may be set to: one message must fit [`OUTBOUND_MESSAGE_BYTES_MAX`].
pub const PUBLISH_BYTES_CAP: usize = 512 * KIB;
/// Bytes around `data` in a publish or delivery: action, channel, id and numbers, with room for escapes.
pub const ENVELOPE_BYTES_MAX: usize = 2 * KIB;
/// Bytes of one inbound message, fragments together; above it the connection is closed with 1009.
pub const INBOUND_MESSAGE_BYTES_MAX: usize = 128 * KIB;
/// Bytes of one outbound message, not configurable: python and swift fail above 1 MiB and would loop.
pub const OUTBOUND_MESSAGE_BYTES_MAX: usize = 900 * KIB;
/// Nesting of objects and arrays in a JSON message: keeps a hostile message off the stack's end; serde_json's own bound.
pub const JSON_DEPTH_MAX: usize = 128;

/// Bytes of a channel name, not configurable: the c SDK keeps 255.
pub const CHANNEL_NAME_BYTES_MAX: usize = 255;
/// Bytes of a client id (D8).
pub const CLIENT_ID_BYTES_MAX: usize = 128;
/// Bytes of a message id taken from the publisher; others get a server id (D15).
pub const MESSAGE_ID_BYTES_MAX: usize = 128;
/// Channels one connection may be subscribed to.
pub const CHANNELS_PER_CONN_MAX: usize = 256;
/// Bytes of an app's or a key's id.
pub const APP_ID_BYTES_MAX: usize = 64;
/// Bytes of a name that is for people, and of a `jti`.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a token, looked at before anything else is done with it.
pub const TOKEN_BYTES_MAX: usize = 8 * KIB;
/// Seconds by which the clocks of issuer and server may differ (D6).
pub const TOKEN_LEEWAY_S: u64 = 60;
/// Seconds from a token's `iat` to its `exp` (D6).
pub const TOKEN_LIFETIME_S_MAX: u64 = 24 * 3600;
/// Bytes of an HS256 secret: as many as the hash has (RFC 7518, 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;
/// Apps of a process.
pub const APPS_MAX: usize = 10_000;
/// Plans of a process.
pub const PLANS_MAX: usize = 1000;
/// API keys of one app, and likewise signing keys.
pub const KEYS_PER_APP_MAX: usize = 1000;
/// Revocations of one app: each handshake and each change looks through them.
pub const REVOCATIONS_PER_APP_MAX: usize = 1000;
/// Seconds that two keys of a rotation may both be valid.
pub const ROTATION_OVERLAP_S_MAX: u64 = 90 * 24 * 3600;
/// Wrong credentials of one address per second, sustained.
pub const FAILED_AUTH_RATE: RateLimit = RateLimit::new(10, 1000, 50).expect("burst >= rate > 0");
/// Addresses whose failures a shard remembers: about 5 MiB.
pub const FAILING_ADDRESSES_MAX: usize = 65_536;
/// Token holders whose publishes over HTTP a shard counts: about 4 MiB. When there are more, all begin anew.
pub const HTTP_PUBLISHERS_MAX: usize = 65_536;
/// API keys whose uses a shard notes at a time.
pub const KEY_USES_NOTED_MAX: usize = 65_536;
/// Milliseconds between two notes of one key's use.
pub const KEY_USE_INTERVAL_MS: u64 = 60_000;
/// Namespaces of one app: a channel that comes into use looks through them.
pub const APP_NAMESPACES_MAX: usize = 64;
/// Patterns in one capability map: each check looks at all of them.
pub const CAPABILITY_PATTERNS_MAX: usize = 256;

/// Messages replayed by `rewind`.
pub const REWIND_MESSAGES_MAX: usize = 100;
/// Messages in a history page when the request gives no `limit` (D17).
pub const HISTORY_PAGE_DEFAULT: usize = 100;
/// Messages in a history page at most; a higher `limit` is clamped (D17).
pub const HISTORY_PAGE_MAX: usize = 1000;
/// Messages a page may exceed its limit by, so that it is not cut inside a run of equal timestamps (D17).
pub const HISTORY_PAGE_TIES_MAX: usize = 100;
/// Bytes of messages in a history page of the mirrored shape, which carries them twice (D21).
pub const HISTORY_PAGE_MIRRORED_BYTES_MAX: usize = 384 * KIB;
/// Bytes of messages in a history page of the other shapes.
pub const HISTORY_PAGE_BYTES_MAX: usize = 768 * KIB;
/// Messages kept per channel (D17).
pub const HISTORY_MESSAGES_MAX: usize = 1000;
/// Milliseconds a message is kept: 24 h (D17).
pub const HISTORY_AGE_MS: u64 = 24 * 3600 * 1000;
/// Milliseconds a message is kept for resume even where history is disabled: 2 min (D17).
pub const RECOVERY_AGE_MS_MIN: u64 = 2 * 60 * 1000;
/// Channels in one resume token.
pub const RESUME_CHANNELS_MAX: usize = 256;
/// Messages replayed per channel by a resume.
pub const RESUME_MESSAGES_MAX: usize = 1000;

/// Bytes of one member's presence state.
pub const PRESENCE_STATE_BYTES_MAX: usize = 2 * KIB;
/// Members of one channel.
pub const PRESENCE_MEMBERS_MAX: usize = 1000;
/// Bytes at which a members frame is cut: the protocol has no paging.
pub const PRESENCE_FRAME_BYTES_MAX: usize = 768 * KIB;
/// Milliseconds a client whose connection was lost stays present, if its id may return (D20).
pub const PRESENCE_GRACE_MS: u64 = 15_000;
/// Members of a channel up to which its receivers are told of each; above it of their number.
pub const PRESENCE_EVENTS_MAX: usize = 1000;
/// Milliseconds between two numbers, for each so many members as follow: no room is told more than 10,000 per second.
pub const PRESENCE_COUNT_INTERVAL_MS: u64 = 1000;
/// See [`PRESENCE_COUNT_INTERVAL_MS`].
pub const PRESENCE_COUNT_MEMBERS_PER_INTERVAL: usize = 10_000;
/// Bytes of presence events that one channel's receivers are sent at once; what is more follows in the next turns.
pub const PRESENCE_BATCH_BYTES: usize = 64 * KIB;
/// `presence.get` requests of one connection under way; beyond it they are refused (42900).
pub const PRESENCE_GETS_PER_CONN_MAX: usize = 16;
/// Clients with an id of their own that connected lately, remembered per shard: 10 MiB at worst.
pub const PRESENCE_OPENED_MAX: usize = 65_536;
/// Milliseconds by which news of a connection's end may be later than its client's next connection.
pub const PRESENCE_LATE_END_MS: u64 = 2000;
/// Operations for Redis that a shard keeps for want of room in their queue; beyond it entering is refused (50300).
pub const SHARED_OPS_WAITING_MAX: usize = 16_384;
/// Members in a page over HTTP when the request gives no `limit`.
pub const PRESENCE_PAGE_DEFAULT: usize = 100;
/// Members in a page at most; a higher `limit` is clamped.
pub const PRESENCE_PAGE_MAX: usize = 1000;

/// Bytes queued towards one connection before it is ended as a slow consumer (4151).
pub const OUTBOX_BYTES_MAX: usize = MIB;
/// Frames queued towards one connection before it is ended as a slow consumer (4151).
pub const OUTBOX_FRAMES_MAX: usize = 4096;

/// Bytes of an outbox below which a replay goes on: enough to keep a fast socket busy, far from what ends a slow one.
pub const REPLAY_OUTBOX_BYTES: usize = 64 * KIB;
/// Bytes of one channel's replay: held in memory while it is sent, one channel at a time.
pub const REPLAY_BYTES_MAX: usize = 4 * MIB;
/// Bytes of messages that one shard keeps in memory for replays.
pub const RING_BYTES_MAX: usize = 64 * MIB;
/// Age in ms at which a message leaves memory; older ones are read from the store.
pub const RING_AGE_MS_MAX: u64 = 10 * 60 * 1000;
/// Messages that are read into memory when a channel is loaded.
pub const RING_LOAD_MESSAGES: usize = 100;
/// The same in bytes.
pub const RING_LOAD_BYTES: usize = 256 * KIB;
/// How much later than another shard's a message may reach a connection, ms, though it left its home earlier: turns
/// and lanes. What was delivered in this time before a resume's last timestamp is sent again where it may be missing.
pub const LATE_DELIVERY_MS: u64 = 50;
/// The same, from acceptance, for messages of an earlier process: when they were committed is not known any more.
pub const LATE_COMMIT_MS: u64 = 1000;
/// Publishes and questions that may wait while one channel is loaded; beyond it they are refused (50300).
pub const DEFERRED_PER_CHANNEL_MAX: usize = 4096;
/// Replays and other questions that may wait, likewise: one of each connection of a shard.
pub const DEFERRED_QUESTIONS_PER_CHANNEL_MAX: usize = 1 << 20;
/// Publishes of one shard on their way to the broker before others are refused (50300).
pub const BROKER_PUBLISHES_PENDING_MAX: usize = 65_536;
/// How long a channel is followed that nobody on the node is interested in any more, ms: who comes back meanwhile costs
/// the broker nothing.
pub const FOLLOW_LINGER_MS: u64 = 5000;
/// Messages of one shard on their way to the store before publishes are refused (50300).
pub const STORE_OPS_PENDING_MAX: usize = 65_536;
/// Questions of one shard that wait for room in the store's queue; beyond it they fail. When all clients come back at
/// once, each asks about one channel after another, so this is a question each of as many.
pub const STORE_QUESTIONS_WAITING_MAX: usize = 131_072;
/// History requests of one connection under way; beyond it they are refused (42900).
pub const HISTORIES_PER_CONN_MAX: usize = 16;

/// Bytes that may wait for another shard before publishes towards it are refused (50300). Sockets are read no further
/// at a quarter of it, so it is reached only by what is under way by then. 64 MiB per pair of shards.
pub const MESH_PENDING_BYTES_MAX: usize = 64 * MIB;

/// Publishes per second and connection, sustained.
pub const PUBLISH_RATE_PER_SECOND: u32 = 50;
/// Publishes a connection may make at once.
pub const PUBLISH_BURST: u32 = 100;
/// Both as one limit.
pub const PUBLISH_RATE: RateLimit =
    RateLimit::new(PUBLISH_RATE_PER_SECOND, 1000, PUBLISH_BURST).expect("burst >= rate > 0");
/// Subscriptions of a connection: SDKs subscribe to everything again when they open.
pub const SUBSCRIBE_RATE: RateLimit = RateLimit::new(100, 1000, 600).expect("burst >= rate > 0");
/// History calls of a connection: each reads the store.
pub const HISTORY_RATE: RateLimit = RateLimit::new(20, 1000, 60).expect("burst >= rate > 0");
/// Handshakes of one address per shard: an office behind one address comes back at once.
pub const CONNECT_RATE: RateLimit = RateLimit::new(200, 1000, 2000).expect("burst >= rate > 0");

/// What holds where no setting says anything: bounds of a connection, and of an address.
#[must_use]
pub fn default_rates(publish: RateLimit) -> Rates {
    let per_connection = |limit| Scopes {
        connection: Some(Setting::Limit(limit)),
        ..Scopes::default()
    };
    Rates {
        publish: per_connection(publish),
        subscribe: per_connection(SUBSCRIBE_RATE),
        presence: per_connection(publish),
        history: per_connection(HISTORY_RATE),
        connect: Scopes {
            address: Some(Setting::Limit(CONNECT_RATE)),
            ..Scopes::default()
        },
        http: Scopes::default(),
    }
}

/// Rate windows in a row over the limit before the connection is ended (4150, D25).
pub const RATE_WINDOWS_OVER_MAX: u16 = 10;
/// Malformed messages per minute and connection before it is ended (4000, D31).
pub const MALFORMED_PER_MINUTE_MAX: u32 = 20;
/// Messages, or channels, in one HTTP publish (D23).
pub const PUBLISH_BATCH_MAX: usize = 100;

/// Milliseconds within which a repeated message id is recognised (D15).
pub const DEDUP_WINDOW_MS: u64 = 2 * 60 * 1000;
/// Message ids remembered per shard: about 100 MiB at worst; 8,700 publishes per second before the window shortens.
pub const DEDUP_ENTRIES_MAX: usize = 1 << 20;

/// Milliseconds from accept to a complete request head.
pub const HANDSHAKE_DEADLINE_MS: u64 = 10_000;
/// Milliseconds of outbound silence before a heartbeat: php fails a connection after 60 s (D12).
pub const HEARTBEAT_MS: u64 = 25_000;
/// Milliseconds without an inbound frame before a connection that has shown a sign of life is closed (D12).
pub const LIVENESS_MS: u64 = 90_000;
/// Milliseconds sent data may stay unacknowledged by the peer's TCP (D12).
pub const UNACKED_DATA_MS: u64 = 60_000;
/// Milliseconds between a token's `exp` and the end of its connection (D27).
pub const TOKEN_EXPIRY_GRACE_MS: u64 = 30_000;

/// Bytes of a request head, upgrade or REST. Room for a large JWT in the query.
pub const HTTP_HEAD_BYTES_MAX: usize = 8 * KIB;
/// Bytes of a REST body: a full batch of the largest messages.
pub const HTTP_BODY_BYTES_MAX: usize = 8 * MIB;

const _: () = {
    assert!(PUBLISH_BYTES_MAX <= PUBLISH_BYTES_CAP);
    assert!(PUBLISH_BYTES_MAX + ENVELOPE_BYTES_MAX <= INBOUND_MESSAGE_BYTES_MAX);
    assert!(PUBLISH_BYTES_CAP + ENVELOPE_BYTES_MAX <= OUTBOUND_MESSAGE_BYTES_MAX);
    assert!(2 * HISTORY_PAGE_MIRRORED_BYTES_MAX <= HISTORY_PAGE_BYTES_MAX);
    assert!(HISTORY_PAGE_BYTES_MAX + ENVELOPE_BYTES_MAX <= OUTBOUND_MESSAGE_BYTES_MAX);
    assert!(PRESENCE_FRAME_BYTES_MAX + ENVELOPE_BYTES_MAX <= OUTBOUND_MESSAGE_BYTES_MAX);
    assert!(
        2 * PRESENCE_BATCH_BYTES <= OUTBOX_BYTES_MAX / 4,
        "a room full of events is sent in parts that no outbox minds"
    );
    assert!(
        OUTBOUND_MESSAGE_BYTES_MAX <= OUTBOX_BYTES_MAX,
        "the largest message must fit an empty outbox"
    );
    assert!(HISTORY_PAGE_DEFAULT <= HISTORY_PAGE_MAX);
    assert!(
        REWIND_MESSAGES_MAX <= HISTORY_MESSAGES_MAX && RESUME_MESSAGES_MAX <= HISTORY_MESSAGES_MAX
    );
    assert!(
        RESUME_CHANNELS_MAX <= CHANNELS_PER_CONN_MAX,
        "a resume subscribes to all of its channels"
    );
    assert!(
        CHANNEL_NAME_BYTES_MAX + MESSAGE_ID_BYTES_MAX + CLIENT_ID_BYTES_MAX < ENVELOPE_BYTES_MAX
    );
    assert!(PUBLISH_BATCH_MAX * (PUBLISH_BYTES_MAX + ENVELOPE_BYTES_MAX) <= HTTP_BODY_BYTES_MAX);
    assert!(
        MESH_PENDING_BYTES_MAX / 4 >= 4 * OUTBOUND_MESSAGE_BYTES_MAX,
        "a few large messages are no congestion"
    );
    assert!(
        MESH_PENDING_BYTES_MAX >= 2 * HTTP_BODY_BYTES_MAX,
        "a full batch towards one shard fits"
    );
    assert!(RECOVERY_AGE_MS_MIN <= HISTORY_AGE_MS && DEDUP_WINDOW_MS <= RECOVERY_AGE_MS_MIN);
    assert!(
        2 * HEARTBEAT_MS < 60_000,
        "two heartbeats inside php's 60 s"
    );
    assert!(
        3 * 30_000 <= LIVENESS_MS,
        "clients ping every 30 s; two may be lost"
    );
    assert!(
        DEDUP_ENTRIES_MAX * MESSAGE_ID_BYTES_MAX <= u32::MAX as usize,
        "id offsets are u32"
    );
};

/// The configurable bounds. [`Default`] gives the contract's values; a file may set any of them by name. Each field is
/// the constant of the same name; see there for unit and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// See [`PUBLISH_BYTES_MAX`].
    pub publish_bytes_max: usize,
    /// See [`INBOUND_MESSAGE_BYTES_MAX`].
    pub inbound_message_bytes_max: usize,
    /// See [`CHANNELS_PER_CONN_MAX`].
    pub channels_per_conn_max: usize,
    /// See [`REWIND_MESSAGES_MAX`].
    pub rewind_messages_max: usize,
    /// See [`HISTORY_PAGE_DEFAULT`].
    pub history_page_default: usize,
    /// See [`HISTORY_PAGE_MAX`].
    pub history_page_max: usize,
    /// See [`RESUME_CHANNELS_MAX`].
    pub resume_channels_max: usize,
    /// See [`RESUME_MESSAGES_MAX`].
    pub resume_messages_max: usize,
    /// See [`PRESENCE_STATE_BYTES_MAX`].
    pub presence_state_bytes_max: usize,
    /// See [`PRESENCE_MEMBERS_MAX`].
    pub presence_members_max: usize,
    /// See [`PRESENCE_GRACE_MS`].
    pub presence_grace_ms: u64,
    /// See [`OUTBOX_BYTES_MAX`].
    pub outbox_bytes_max: usize,
    /// See [`OUTBOX_FRAMES_MAX`].
    pub outbox_frames_max: usize,
    /// Per connection; see [`PUBLISH_RATE`].
    pub publish_rate: RateLimit,
    /// By class and scope; what they do not say is [`default_rates`].
    pub rates: Rates,
    /// Networks whose addresses are not limited in connecting; see [`crate::rate::network::Network`].
    pub address_exempt: Vec<Network>,
    /// See [`RATE_WINDOWS_OVER_MAX`].
    pub rate_windows_over_max: u16,
    /// See [`MALFORMED_PER_MINUTE_MAX`].
    pub malformed_per_minute_max: u32,
    /// See [`PUBLISH_BATCH_MAX`].
    pub publish_batch_max: usize,
    /// See [`DEDUP_WINDOW_MS`].
    pub dedup_window_ms: u64,
    /// See [`DEDUP_ENTRIES_MAX`].
    pub dedup_entries_max: usize,
    /// See [`HANDSHAKE_DEADLINE_MS`].
    pub handshake_deadline_ms: u64,
    /// See [`HEARTBEAT_MS`].
    pub heartbeat_ms: u64,
    /// See [`LIVENESS_MS`].
    pub liveness_ms: u64,
    /// See [`UNACKED_DATA_MS`].
    pub unacked_data_ms: u64,
    /// See [`TOKEN_EXPIRY_GRACE_MS`].
    pub token_expiry_grace_ms: u64,
    /// See [`FAILED_AUTH_RATE`]; `None`: not limited.
    #[serde(with = "crate::rate::or_off")]
    pub failed_auth_per_address_rate: Option<RateLimit>,
    /// See [`HTTP_HEAD_BYTES_MAX`].
    pub http_head_bytes_max: usize,
    /// See [`HTTP_BODY_BYTES_MAX`].
    pub http_body_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            publish_bytes_max: PUBLISH_BYTES_MAX,
            inbound_message_bytes_max: INBOUND_MESSAGE_BYTES_MAX,
            channels_per_conn_max: CHANNELS_PER_CONN_MAX,
            rewind_messages_max: REWIND_MESSAGES_MAX,
            history_page_default: HISTORY_PAGE_DEFAULT,
            history_page_max: HISTORY_PAGE_MAX,
            resume_channels_max: RESUME_CHANNELS_MAX,
            resume_messages_max: RESUME_MESSAGES_MAX,
            presence_state_bytes_max: PRESENCE_STATE_BYTES_MAX,
            presence_members_max: PRESENCE_MEMBERS_MAX,
            presence_grace_ms: PRESENCE_GRACE_MS,
            outbox_bytes_max: OUTBOX_BYTES_MAX,
            outbox_frames_max: OUTBOX_FRAMES_MAX,
            publish_rate: PUBLISH_RATE,
            rates: Rates::default(),
            address_exempt: Network::LOOPBACK.to_vec(),
            rate_windows_over_max: RATE_WINDOWS_OVER_MAX,
            malformed_per_minute_max: MALFORMED_PER_MINUTE_MAX,
            publish_batch_max: PUBLISH_BATCH_MAX,
            dedup_window_ms: DEDUP_WINDOW_MS,
            dedup_entries_max: DEDUP_ENTRIES_MAX,
            handshake_deadline_ms: HANDSHAKE_DEADLINE_MS,
            heartbeat_ms: HEARTBEAT_MS,
            liveness_ms: LIVENESS_MS,
            unacked_data_ms: UNACKED_DATA_MS,
            token_expiry_grace_ms: TOKEN_EXPIRY_GRACE_MS,
            failed_auth_per_address_rate: Some(FAILED_AUTH_RATE),
            http_head_bytes_max: HTTP_HEAD_BYTES_MAX,
            http_body_bytes_max: HTTP_BODY_BYTES_MAX,
        }
    }
}

impl Limits {
    /// Checks the relations the protocol depends on.
    ///
    /// # Errors
    /// The first relation that does not hold, naming the settings.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let needed_inbound = self.publish_bytes_max.saturating_add(ENVELOPE_BYTES_MAX);
        let rules = [
            (
                self.publish_bytes_max <= PUBLISH_BYTES_CAP,
                "publish_bytes_max is above 524288",
            ),
            (
                needed_inbound <= self.inbound_message_bytes_max,
                "inbound_message_bytes_max must exceed publish_bytes_max by 2048",
            ),
            (
                self.outbox_bytes_max >= OUTBOUND_MESSAGE_BYTES_MAX,
                "outbox_bytes_max is below 921600, the largest message",
            ),
            (self.outbox_frames_max > 0, "outbox_frames_max is 0"),
            (self.channels_per_conn_max > 0, "channels_per_conn_max is 0"),
            (
                self.resume_channels_max <= self.channels_per_conn_max,
                "resume_channels_max is above channels_per_conn_max",
            ),
            (
                (1..=self.history_page_max).contains(&self.history_page_default),
                "history_page_default must be between 1 and history_page_max",
            ),
            (self.presence_members_max > 0, "presence_members_max is 0"),
            (
                self.presence_state_bytes_max <= PUBLISH_BYTES_MAX,
                "presence_state_bytes_max is above 65536",
            ),
            (
                self.presence_grace_ms <= 3_600_000,
                "presence_grace_ms is above 3600000",
            ),
            (self.publish_batch_max > 0, "publish_batch_max is 0"),
            (
                (1..=DEDUP_ENTRIES_MAX * 8).contains(&self.dedup_entries_max),
                "dedup_entries_max must be between 1 and 8388608",
            ),
            (
                (1..60_000).contains(&self.heartbeat_ms),
                "heartbeat_ms must be between 1 and 59999: php gives up after 60 s",
            ),
            (
                self.liveness_ms > 30_000,
                "liveness_ms must exceed 30000: clients ping every 30 s",
            ),
            (self.handshake_deadline_ms > 0, "handshake_deadline_ms is 0"),
            (
                self.http_head_bytes_max >= KIB,
                "http_head_bytes_max is below 1024",
            ),
            (
                self.http_body_bytes_max >= needed_inbound,
                "http_body_bytes_max is too small for one message of publish_bytes_max",
            ),
        ];
        rules
            .into_iter()
            .find(|(holds, _)| !holds)
            .map_or(Ok(()), |(_, text)| Err(LimitsError(text)))
    }
}

/// A relation between limits that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsError(&'static str);

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limits: {}", self.0)
    }
}

impl std::error::Error for LimitsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Limits::default().validate(), Ok(()));
    }

    #[test]
    fn a_broken_relation_is_named() {
        let limits = Limits {
            inbound_message_bytes_max: PUBLISH_BYTES_MAX,
            ..Limits::default()
        };
        assert!(
            limits
                .validate()
                .unwrap_err()
                .to_string()
                .contains("inbound_message_bytes_max")
        );
        let limits = Limits {
            heartbeat_ms: 60_000,
            ..Limits::default()
        };
        assert!(
            limits
                .validate()
                .unwrap_err()
                .to_string()
                .contains("heartbeat_ms")
        );
    }

    #[test]
    fn a_partial_file_keeps_the_other_defaults_and_unknown_names_are_errors() {
        let limits: Limits = serde_json::from_str(r#"{"publish_rate":{"per_window":5}}"#).unwrap();
        let publish_rate = RateLimit::new(5, 1000, 5).unwrap();
        assert_eq!(
            limits,
            Limits {
                publish_rate,
                ..Limits::default()
            }
        );
        for bad in [
            r#"{"publish_rat":{}}"#,
            r#"{"publish_rate":{"per_window":5,"burst":4}}"#,
        ] {
            assert!(serde_json::from_str::<Limits>(bad).is_err(), "{bad}");
        }
    }
}
