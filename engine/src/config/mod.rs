//! The configuration, resolved: flags win over the environment, the environment over the file, the file over defaults.
//!
//! Not here: keys and tokens (see [`crate::keys`]), and whether the host can serve it (see [`crate::check`]). Invariants:
//! a [`Config`] is valid, and holds no secret; whatever is wrong is told at once, each with the place it was written.

mod accounts;
pub mod cli;
mod cores;
mod source;
mod tls;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shardwire_proto::auth::app::is_origin;
use shardwire_proto::auth::jwt::ClaimNames;
use shardwire_proto::limits::{Limits, RING_BYTES_MAX, TOKEN_LEEWAY_S, TOKEN_LIFETIME_S_MAX};
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::rate::table::Place;

use crate::broker::{RedisConfig, RedisUrl};
use crate::mongo::{MongoConfig, MongoUrl};
use crate::side::push::PushConfig;
use crate::side::webhooks::WebhooksConfig;
use crate::store::StoreConfig;

pub use self::accounts::{Accounts, Dashboard, Mail, SmtpTls};
use self::cli::Flags;
pub use self::cores::{Host, SHARDS_MAX, show as show_cores};
pub use self::source::Env;
use self::source::{Name, Reader, core_list, integer, string, string_list};
pub use self::tls::{AdminTls, CertificateFiles, Tls};

/// File descriptors kept for what is not a client connection: rings, listeners, files, the HTTP API.
pub const NOFILE_RESERVE: usize = 512;
/// Longest spin before a shard parks, in microseconds: beyond it a core is simply burnt.
const SPIN_US_MAX: u64 = 10_000;
/// Longest drain in seconds.
const DRAIN_DEADLINE_S_MAX: u64 = 3600;

/// Operations that may wait for the store: above it their bookkeeping alone is hundreds of MiB.
const STORE_QUEUE_OPS_MAX: u64 = 1 << 22;
/// Longest wait for a transaction to fill, in microseconds: every ack waits as long.
const COMMIT_WAIT_US_MAX: u64 = 1_000_000;
/// Connections to a member of the database at most: every thread uses one at a time.
const MONGO_POOL_MAX: u64 = 1000;
/// Length of its name, and of what its collections' names begin with.
const MONGO_NAME_BYTES_MAX: usize = 38;
/// Longest wait for the database, in ms: publishers have given up long before.
const MONGO_WAIT_MS_MAX: u64 = 120_000;
/// Reader threads at most.
const STORE_READERS_MAX: u64 = 64;
/// Most that clocks may differ, in seconds: beyond it expiry means little.
const LEEWAY_S_MAX: u64 = 600;
/// Longest life of a token that may be allowed, in seconds: a year.
const TOKEN_AGE_S_MAX: u64 = 366 * 24 * 3600;
/// Largest overlap of a resume, in ms: beyond it every resume would repeat more than is kept for it at least.
const RECOVERY_OVERLAP_MS_MAX: u64 = 120_000;

/// Attempts at webhooks under way at once: each has a thread.
const WEBHOOK_THREADS_MAX: u64 = 1024;
/// Further attempts at a delivery.
const WEBHOOK_RETRIES_MAX: usize = 20;
/// Longest pause before one, in ms: a day.
const WEBHOOK_PAUSE_MS_MAX: u64 = 24 * 3600 * 1000;
/// Longest time that events are kept, in seconds: a year.
const WEBHOOK_RETENTION_S_MAX: u64 = 366 * 24 * 3600;

/// Every setting, resolved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// Where clients and back ends connect; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where health, metrics and administration answer; port 0 lets the kernel choose.
    pub admin_listen: SocketAddr,
    /// The folder of everything that is kept.
    pub data_dir: PathBuf,
    /// The core of each shard, one entry per shard: 1 to [`SHARDS_MAX`]. A core may appear twice.
    pub cores: Vec<usize>,
    /// Where to write the served addresses once they are served.
    pub ready_file: Option<PathBuf>,
    /// Bounds of the protocol; validated.
    pub limits: Limits,
    /// How the socket behaves.
    pub websocket: WebSocket,
    /// The public listener's certificates.
    pub tls: Tls,
    /// The admin listener's; none where it is plain.
    pub admin_tls: Option<AdminTls>,
    /// How tokens are judged.
    pub auth: Auth,
    /// What tokens call their claims.
    #[serde(rename = "auth.claims")]
    pub claims: ClaimNames,
    /// The HTTP API.
    pub http: Http,
    /// How shards run.
    pub runtime: Runtime,
    /// The database that keeps everything, if not the data folder.
    #[serde(rename = "store.mongo")]
    pub mongo: MongoConfig,
    /// How messages are written and read.
    pub store: StoreConfig,
    /// The Redis that makes several processes one.
    #[serde(rename = "broker.redis")]
    pub redis: RedisConfig,
    /// What is kept in memory, and how resume looks for it.
    pub history: History,
    /// What is kept of which channels; the file's `[[namespace]]` tables, in order.
    pub namespace: Vec<Namespace>,
    /// People.
    pub accounts: Accounts,
    /// The pages they use.
    pub dashboard: Dashboard,
    /// Letters to them.
    pub mail: Mail,
    /// Events for back ends.
    pub webhooks: WebhooksConfig,
    /// Push notifications.
    pub push: PushConfig,
    /// The log.
    pub log: Log,
    /// The planned end.
    pub drain: Drain,
    /// What is allowed but deserves a line in the log.
    pub warnings: Vec<String>,
}

/// File section `[websocket]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebSocket {
    /// Whether a `connected` frame is sent after open (contract D9).
    pub hello: bool,
    /// Whether channel names may be UTF-8 beyond ASCII (D14).
    pub utf8_channel_names: bool,
    /// Whether `?clientId=` is honoured (D8).
    pub self_asserted_ids: bool,
    /// Whether 41xx and 42xx are sent as Close frames too (D11).
    pub close_frames_always: bool,
    /// Origins browsers may connect from; empty for any. Checked only when the header is there (D29).
    pub allowed_origins: Vec<String>,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self {
            hello: true,
            utf8_channel_names: false,
            self_asserted_ids: false,
            close_frames_always: false,
            allowed_origins: Vec::new(),
        }
    }
}

/// File section `[auth]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Auth {
    /// By how much the clocks of token issuers may differ from this one, seconds (D6).
    pub leeway_s: u64,
    /// Longest time from a token's `iat` to its `exp`, seconds (D6).
    pub max_lifetime_s: u64,
    /// What happens to a connection whose token expires (D27).
    pub on_expiry: OnExpiry,
    /// Whether key sets may be fetched by `http://`, where anybody on the way can change them.
    pub jwks_allow_http: bool,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            leeway_s: TOKEN_LEEWAY_S,
            max_lifetime_s: TOKEN_LIFETIME_S_MAX,
            on_expiry: OnExpiry::Close,
            jwks_allow_http: false,
        }
    }
}

/// What happens to a connection whose token expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    /// It is ended (4009) after a grace.
    Close,
    /// It stays until it drops.
    Keep,
}

/// File section `[http]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Origins that may call the API from a browser; `*` for any (D29).
    pub cors_origins: Vec<String>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            cors_origins: vec!["*".to_owned()],
        }
    }
}

/// File section `[history]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Bytes of recent messages that each shard keeps in memory, for rewind and resume.
    pub ring_bytes_max: usize,
    /// How far below a resume's timestamp messages are sent again, ms: for several servers whose clocks differ (D19).
    pub recovery_overlap_ms: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            ring_bytes_max: RING_BYTES_MAX,
            recovery_overlap_ms: 0,
        }
    }
}

/// File section `[runtime]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Microseconds an idle shard spins before it sleeps: lower latency between shards, paid with CPU time.
    pub spin_before_park_us: u64,
    /// Client connections of the whole process. 0 in the file; resolved: what the descriptor limit leaves.
    pub connections_max: usize,
}

/// File section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    /// What is logged: events of this level and graver ones.
    #[serde(serialize_with = "display")]
    pub level: log::LevelFilter,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// File section `[drain]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drain {
    /// Connections ended per second, over the whole process.
    pub rate: u32,
    /// Seconds from the first end to the last; what is still connected then is ended at once.
    pub deadline_s: u64,
    /// Seconds before the first end in which `/readyz` already says so and clients are still let in: for load balancers.
    pub announce_s: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            rate: 2000,
            deadline_s: 30,
            announce_s: 0,
        }
    }
}

/// Everything that is wrong with a configuration; [`Display`](fmt::Display) gives a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// One message per mistake, naming where it was written. Never empty.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Resolves and checks every setting. Reads the configuration file and may ask the resolver for the two addresses;
    /// opens nothing else.
    ///
    /// # Errors
    /// All mistakes found.
    pub fn load(flags: &Flags, env: &Env, host: &Host) -> Result<Self, ConfigError> {
        let mut reader = Reader::open(flags.config.as_deref(), env);
        let (cores, cores_warning) = read_cores(&mut reader, flags, host);
        let config = Self {
            listen: read_address(&mut reader, &LISTEN, flags.listen.as_deref(), 9001),
            admin_listen: read_address(
                &mut reader,
                &ADMIN_LISTEN,
                flags.admin_listen.as_deref(),
                9002,
            ),
            data_dir: reader
                .setting(&DATA_DIR, flags.data_dir.as_deref(), string, parse_path)
                .unwrap_or_else(|| PathBuf::from("./data")),
            cores,
            ready_file: flags.ready_file.as_ref().map(PathBuf::from),
            limits: reader.take_section("limits", Limits::default()),
            websocket: reader.take_section("websocket", WebSocket::default()),
            tls: reader.take_section("tls", Tls::default()),
            admin_tls: reader.take("admin.tls", None),
            claims: reader.take_section("auth.claims", ClaimNames::default()),
            auth: reader.take_section("auth", Auth::default()),
            http: reader.take_section("http", Http::default()),
            runtime: reader.take_section("runtime", Runtime::default()),
            mongo: read_mongo(&mut reader, flags),
            store: reader.take_section("store", StoreConfig::default()),
            redis: read_redis(&mut reader, flags),
            history: reader.take_section("history", History::default()),
            namespace: reader.take("namespace", Vec::new()),
            accounts: reader.take_section("accounts", Accounts::default()),
            dashboard: reader.take_section("dashboard", Dashboard::default()),
            mail: reader.take_section("mail", Mail::default()),
            webhooks: reader.take_section("webhooks", WebhooksConfig::default()),
            push: reader.take_section("push", PushConfig::default()),
            log: Log {
                level: reader
                    .setting(&LOG_LEVEL, flags.log_level.as_deref(), string, parse_level)
                    .unwrap_or(log::LevelFilter::Info),
                format: reader.take("log.format", LogFormat::default()),
            },
            drain: reader.take_section("drain", Drain::default()),
            file: reader.path.clone(),
            warnings: Vec::new(),
        };
        config.finish(reader, cores_warning, host)
    }

    /// Checks what holds between settings, and resolves what depends on the host.
    fn finish(
        mut self,
        mut reader: Reader<'_>,
        warning: Option<String>,
        host: &Host,
    ) -> Result<Self, ConfigError> {
        if let Err(error) = self.limits.validate() {
            reader.problem(error.to_string());
        }
        if let Err(error) = self.limits.rates.validate(Place::Process) {
            let place = reader.place("limits");
            reader.problem(format!("{place}.{error}"));
        }
        if let Err(error) = Namespaces::new(self.namespace.clone()) {
            let place = reader.place("namespace");
            reader.problem(format!("{place}: {error}"));
        }
        if share_port(self.listen, self.admin_listen) {
            // The listeners share their ports with other processes, so the kernel would not object.
            let (listen, admin) = (self.listen, self.admin_listen);
            reader.problem(format!(
                "listen and admin.listen have the same port: {listen} and {admin}"
            ));
        }
        self::accounts::check(&self, &mut reader);
        for (key, text) in self.redis.problems() {
            let place = reader.place(&format!("broker.redis.{key}"));
            reader.problem(format!("{place}: {text}"));
        }
        let bounds = [
            (
                "runtime.spin_before_park_us",
                self.runtime.spin_before_park_us,
                0,
                SPIN_US_MAX,
            ),
            (
                "store.mongo.pool_max",
                u64::from(self.mongo.pool_max),
                4,
                MONGO_POOL_MAX,
            ),
            (
                "store.mongo.timeout_ms",
                self.mongo.timeout_ms,
                100,
                MONGO_WAIT_MS_MAX,
            ),
            (
                "store.mongo.retry_ms",
                self.mongo.retry_ms,
                0,
                MONGO_WAIT_MS_MAX,
            ),
            (
                "store.queue_ops_max",
                self.store.queue_ops_max as u64,
                1,
                STORE_QUEUE_OPS_MAX,
            ),
            (
                "store.batch_ops_max",
                self.store.batch_ops_max as u64,
                1,
                STORE_QUEUE_OPS_MAX,
            ),
            (
                "store.commit_wait_us",
                self.store.commit_wait_us,
                0,
                COMMIT_WAIT_US_MAX,
            ),
            (
                "store.readers",
                self.store.readers as u64,
                1,
                STORE_READERS_MAX,
            ),
            (
                "history.recovery_overlap_ms",
                self.history.recovery_overlap_ms,
                0,
                RECOVERY_OVERLAP_MS_MAX,
            ),
            ("webhooks.timeout_ms", self.webhooks.timeout_ms, 100, 60_000),
            (
                "webhooks.threads",
                self.webhooks.threads as u64,
                2,
                WEBHOOK_THREADS_MAX,
            ),
            (
                "webhooks.retention_s",
                self.webhooks.retention_s,
                60,
                WEBHOOK_RETENTION_S_MAX,
            ),
            (
                "webhooks.dead_letters_s",
                self.webhooks.dead_letters_s,
                60,
                WEBHOOK_RETENTION_S_MAX,
            ),
            ("auth.leeway_s", self.auth.leeway_s, 0, LEEWAY_S_MAX),
            (
                "auth.max_lifetime_s",
                self.auth.max_lifetime_s,
                1,
                TOKEN_AGE_S_MAX,
            ),
            (
                "drain.rate",
                u64::from(self.drain.rate),
                1,
                u64::from(u32::MAX),
            ),
            (
                "drain.deadline_s",
                self.drain.deadline_s,
                1,
                DRAIN_DEADLINE_S_MAX,
            ),
            (
                "drain.announce_s",
                self.drain.announce_s,
                0,
                DRAIN_DEADLINE_S_MAX,
            ),
        ];
        for (key, value, min, max) in bounds.into_iter().chain(self.push.bounds()) {
            if !(min..=max).contains(&value) {
                let place = reader.place(key);
                reader.problem(format!("{place}: {value} is not between {min} and {max}"));
            }
        }
        let retries = &self.webhooks.retry_ms;
        if retries.len() > WEBHOOK_RETRIES_MAX
            || retries
                .iter()
                .any(|ms| !(1..=WEBHOOK_PAUSE_MS_MAX).contains(ms))
        {
            let place = reader.place("webhooks.retry_ms");
            reader.problem(format!(
                "{place}: at most {WEBHOOK_RETRIES_MAX} pauses, from 1 to {WEBHOOK_PAUSE_MS_MAX} ms each"
            ));
        }
        for (key, name) in [
            ("store.mongo.database", &self.mongo.database),
            ("store.mongo.prefix", &self.mongo.prefix),
        ] {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            let is_empty = key == "store.mongo.database" && name.is_empty();
            if name.len() > MONGO_NAME_BYTES_MAX || !name.bytes().all(is_plain) || is_empty {
                let place = reader.place(key);
                reader.problem(format!(
                    "{place}: {name:?} is not a name; use up to {MONGO_NAME_BYTES_MAX} of A-Z, a-z, 0-9, _ and -"
                ));
            }
        }
        let (allowed, cors) = (&self.websocket.allowed_origins, &self.http.cors_origins);
        let any = cors.iter().filter(|origin| *origin != "*");
        let origins = allowed
            .iter()
            .map(|origin| ("websocket.allowed_origins", origin));
        for (key, origin) in origins.chain(any.map(|origin| ("http.cors_origins", origin))) {
            if !is_origin(origin) {
                let place = reader.place(key);
                reader.problem(format!(
                    "{place}: {origin:?} is not an origin; write https://example.com"
                ));
            }
        }
        let (problems, mut warnings) = reader.finish();
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        warnings.extend(warning);
        let room = usize::try_from(host.nofile)
            .unwrap_or(usize::MAX)
            .min(u32::MAX as usize);
        let room = room.saturating_sub(NOFILE_RESERVE).max(1);
        if self.runtime.connections_max > room {
            let asked = self.runtime.connections_max;
            warnings.push(format!(
                "connections_max {asked} is above the {room} that RLIMIT_NOFILE leaves"
            ));
        }
        if self.runtime.connections_max == 0 || self.runtime.connections_max > room {
            self.runtime.connections_max = room;
        }
        self.warnings = warnings;
        Ok(self)
    }

    /// Whether several nodes write one store.
    #[must_use]
    pub fn has_shared_store(&self) -> bool {
        self.redis.is_on() && self.mongo.url.is_some()
    }

    /// The settings that differ, as dotted paths of the file: for telling which of them a reload cannot apply.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let (Ok(a), Ok(b)) = (serde_json::to_value(self), serde_json::to_value(other)) else {
            return Vec::new();
        };
        let mut paths = Vec::new();
        differences(&a, &b, "", &mut paths);
        paths.retain(|path| !matches!(path.as_str(), "file" | "warnings"));
        for path in &mut paths {
            if path == "admin_listen" {
                *path = ADMIN_LISTEN.key.to_owned();
            } else if let Some(rest) = path.strip_prefix("admin_tls") {
                *path = format!("admin.tls{rest}");
            } else if path == "cores" && self.cores.len() != other.cores.len() {
                *path = SHARDS.key.to_owned();
            }
        }
        paths
    }
}

const LISTEN: Name = Name {
    flag: "--listen",
    env: "SHARDWIRE_LISTEN",
    key: "listen",
};
const ADMIN_LISTEN: Name = Name {
    flag: "--admin-listen",
    env: "SHARDWIRE_ADMIN_LISTEN",
    key: "admin.listen",
};
const MONGO_URL: Name = Name {
    flag: "--mongo-url",
    env: "SHARDWIRE_MONGO_URL",
    key: "store.mongo.url",
};
const DATA_DIR: Name = Name {
    flag: "--data-dir",
    env: "SHARDWIRE_DATA_DIR",
    key: "data_dir",
};
const SHARDS: Name = Name {
    flag: "--shards",
    env: "SHARDWIRE_SHARDS",
    key: "shards",
};
const CORES: Name = Name {
    flag: "--cores",
    env: "SHARDWIRE_CORES",
    key: "cores",
};
const REDIS_URL: Name = Name {
    flag: "--redis-url",
    env: "SHARDWIRE_REDIS_URL",
    key: "broker.redis.urls",
};
const LOG_LEVEL: Name = Name {
    flag: "--log-level",
    env: "SHARDWIRE_LOG_LEVEL",
    key: "log.level",
};

fn read_address(reader: &mut Reader<'_>, name: &Name, flag: Option<&str>, port: u16) -> SocketAddr {
    let default = SocketAddr::from(([127, 0, 0, 1], port));
    reader
        .setting(name, flag, string, parse_address)
        .unwrap_or(default)
}

fn read_mongo(reader: &mut Reader<'_>, flags: &Flags) -> MongoConfig {
    let flag = flags.mongo_url.as_deref();
    let url = reader.setting(&MONGO_URL, flag, string, MongoUrl::parse);
    let section = reader.take_section("store.mongo", MongoConfig::default());
    MongoConfig { url, ..section }
}

fn read_cores(reader: &mut Reader<'_>, flags: &Flags, host: &Host) -> (Vec<usize>, Option<String>) {
    let shards = reader.setting(&SHARDS, flags.shards.as_deref(), integer, parse_shards);
    let list = reader.setting(&CORES, flags.cores.as_deref(), core_list, |text| {
        cores::parse_list(text, host)
    });
    cores::assign(shards, list, host)
}

/// The section, with its URLs from wherever they are given.
fn read_redis(reader: &mut Reader<'_>, flags: &Flags) -> RedisConfig {
    let flag = (!flags.redis_url.is_empty()).then(|| flags.redis_url.join(" "));
    let urls = reader.setting(&REDIS_URL, flag.as_deref(), string_list, |text| {
        let urls = text.split([' ', ',']).filter(|url| !url.is_empty());
        Ok(urls.map(|url| RedisUrl(url.to_owned())).collect())
    });
    let section = reader.take_section("broker.redis", RedisConfig::default());
    RedisConfig {
        urls: urls.unwrap_or_default(),
        ..section
    }
}

/// An address or a name with a port. Of a name's addresses the first is taken.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: String| {
        format!("{text:?} is not an address with a port ({why}); write 0.0.0.0:9001 or [::]:9001")
    };
    let mut found = text
        .to_socket_addrs()
        .map_err(|error| wrong(error.to_string()))?;
    found
        .next()
        .ok_or_else(|| wrong("the name has no address".to_owned()))
}

/// Whether connections to one address could arrive at the other.
fn share_port(a: SocketAddr, b: SocketAddr) -> bool {
    let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && overlap
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        Err("is empty".to_owned())
    } else {
        Ok(PathBuf::from(text))
    }
}

fn parse_shards(text: &str) -> Result<usize, String> {
    let count = text
        .parse()
        .ok()
        .filter(|count| (1..=SHARDS_MAX).contains(count));
    count.ok_or_else(|| format!("{text:?} is not a number of shards from 1 to {SHARDS_MAX}"))
}

fn parse_level(text: &str) -> Result<log::LevelFilter, String> {
    let level = text
        .parse()
        .ok()
        .filter(|level| *level != log::LevelFilter::Off);
    level.ok_or_else(|| format!("{text:?} is not a level; write error, warn, info, debug or trace"))
}

/// Dotted paths at which two JSON trees differ; arrays are compared whole.
fn differences(a: &serde_json::Value, b: &serde_json::Value, prefix: &str, out: &mut Vec<String>) {
    match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            for (key, value) in a {
                let other = b.get(key).unwrap_or(&serde_json::Value::Null);
                let path = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                differences(value, other, &path, out);
            }
        }
        _ if a != b => out.push(prefix.to_owned()),
        _ => {}
    }
}

fn display<T: fmt::Display, S: serde::Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests;
