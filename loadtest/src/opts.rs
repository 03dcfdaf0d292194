//! The command line.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::stamp::PAYLOAD_BYTES_MIN;
use crate::tls::{Connector, Trust};

/// Load generator for Shardwire and other WebSocket servers.
///
/// Exit codes: 0 all well, 1 the run failed, 2 bad arguments, 3 messages were lost, duplicated or out
/// of order.
#[derive(Debug, Parser)]
#[command(name = "shardwire-loadtest", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Scenario {
    /// A few publishers, many subscribers, one channel.
    Fanout(Fanout),
    /// Many small channels.
    Channels(Channels),
    /// Connect, authenticate, subscribe, as often as possible.
    Storm(Storm),
    /// Hold subscribed connections and report the server's memory.
    Idle(Idle),
    /// Named clients enter the presence of one channel.
    Presence(Presence),
    /// All connections drop at once and come back.
    Reconnect(Reconnect),
    /// Clients are cut at random and resume, while others publish stored messages.
    Churn(Churn),
    /// Publish over the HTTP API.
    Http(Http),
    /// A large channel, many small ones, HTTP publishes and comings and goings, together.
    Mixed(Mixed),
}

/// Options of `fanout`.
#[derive(Args, Clone, Debug)]
pub struct Fanout {
    /// Connections subscribed to the channel.
    #[arg(short = 'n', long, default_value_t = 1000)]
    pub subscribers: u32,
    /// Connections that publish.
    #[arg(short = 'p', long, default_value_t = 1)]
    pub publishers: u32,
    /// Messages in flight of each publisher (closed loop).
    #[arg(long, default_value_t = 4)]
    pub in_flight: u32,
    /// Messages per second of all publishers together (open loop); overrides `--in-flight`.
    #[arg(long)]
    pub rate: Option<f64>,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `channels`.
#[derive(Args, Clone, Debug)]
pub struct Channels {
    /// Number of channels.
    #[arg(short = 'c', long, default_value_t = 10_000)]
    pub channels: u32,
    /// Subscribers of each channel.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub subscribers: u32,
    /// Publisher connections of each channel.
    #[arg(short = 'p', long, default_value_t = 1)]
    pub publishers: u32,
    /// Each subscriber publishes to its own channel on its own connection, and gets its messages back:
    /// one connection for each channel (not for the Pusher protocol).
    #[arg(long, conflicts_with_all = ["subscribers", "publishers", "shared_publishers"])]
    pub echo: bool,
    /// Publish to all channels from this many connections instead (not for the plain and Pusher protocols).
    #[arg(long)]
    pub shared_publishers: Option<u32>,
    /// Messages in flight of each publisher on each channel (closed loop).
    #[arg(long, default_value_t = 1)]
    pub in_flight: u32,
    /// Messages per second over all channels (open loop); overrides `--in-flight`.
    #[arg(long)]
    pub rate: Option<f64>,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `storm`.
#[derive(Args, Clone, Debug)]
pub struct Storm {
    /// Connections held open, besides those being made; beyond it the oldest is closed.
    #[arg(long, default_value_t = 1000)]
    pub hold: u32,
    /// Connections being made at a time.
    #[arg(long, default_value_t = 256)]
    pub window: u32,
    /// Connects per second (open loop) instead of as many as complete.
    #[arg(long)]
    pub rate: Option<f64>,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `idle`.
#[derive(Args, Clone, Debug)]
pub struct Idle {
    /// Connections to hold.
    #[arg(short = 'n', long, default_value_t = 10_000)]
    pub connections: u32,
    /// Channels they are spread over.
    #[arg(short = 'c', long, default_value_t = 1)]
    pub channels: u32,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `presence`.
#[derive(Args, Clone, Debug)]
pub struct Presence {
    /// Clients that enter; the server must accept the ids that clients give themselves.
    #[arg(short = 'n', long, default_value_t = 1000)]
    pub clients: u32,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `reconnect`.
#[derive(Args, Clone, Debug)]
pub struct Reconnect {
    /// Connections that drop and come back.
    #[arg(short = 'n', long, default_value_t = 10_000)]
    pub connections: u32,
    /// Channels they are spread over.
    #[arg(short = 'c', long, default_value_t = 1)]
    pub channels: u32,
    /// How often.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `churn`.
///
/// Each client comes back as the client SDKs do: with one `resume` that names its channels and the highest
/// timestamp it has received. At the end every client must have every acknowledged message of its channels,
/// in order; messages sent again are allowed only where the contract allows them, and are counted.
///
/// A token of that kind does not name a message with an earlier timestamp that was still on its way from
/// another channel when the connection broke: a server that loses none sends some again that were
/// accepted up to `--overlap-ms` earlier.
#[derive(Args, Clone, Debug)]
pub struct Churn {
    /// Clients that are cut and come back.
    #[arg(short = 'n', long, default_value_t = 200)]
    pub clients: u32,
    /// Channels in all.
    #[arg(short = 'c', long, default_value_t = 50)]
    pub channels: u32,
    /// Channels that each client subscribes to.
    #[arg(short = 'k', long, default_value_t = 4)]
    pub channels_per_client: u32,
    /// Connections that publish; the channels are spread over them.
    #[arg(short = 'p', long, default_value_t = 4)]
    pub publishers: u32,
    /// Messages per second over all channels. What a client misses of one channel must stay below what the
    /// server keeps.
    #[arg(long, default_value_t = 500.0)]
    pub rate: f64,
    /// Clients cut per second.
    #[arg(long, default_value_t = 100.0)]
    pub cut_rate: f64,
    /// Longest time that a client stays away, in milliseconds; at least 1, below 2000.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..2000))]
    pub away_ms: u64,
    /// Messages that may come again: accepted so many milliseconds before the token's timestamp.
    #[arg(long, default_value_t = 1000)]
    pub overlap_ms: u64,
    /// Also cut clients whose resume is not complete. Only with one channel per client can such a client
    /// know what it has.
    #[arg(long)]
    pub cut_resuming: bool,
    /// Seed of who is cut and for how long; with several threads each has its own.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `http`.
#[derive(Args, Clone, Debug)]
pub struct Http {
    /// Kept-alive HTTP connections, each with one request at a time.
    #[arg(short = 'p', long, default_value_t = 16)]
    pub publishers: u32,
    /// Subscribers of each channel.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub subscribers: u32,
    /// Channels; publishers are spread over them.
    #[arg(short = 'c', long, default_value_t = 1)]
    pub channels: u32,
    /// Requests per second (open loop) instead of as many as complete.
    #[arg(long)]
    pub rate: Option<f64>,
    #[command(flatten)]
    pub common: Common,
}

/// Options of `mixed`.
#[derive(Args, Clone, Debug)]
pub struct Mixed {
    /// Subscribers of the large channel.
    #[arg(short = 'n', long, default_value_t = 1000)]
    pub subscribers: u32,
    /// Messages per second to the large channel.
    #[arg(long, default_value_t = 10.0)]
    pub rate: f64,
    /// Small channels, with two subscribers each.
    #[arg(short = 'c', long, default_value_t = 500)]
    pub channels: u32,
    /// Messages per second over all small channels.
    #[arg(long, default_value_t = 5000.0)]
    pub channel_rate: f64,
    /// HTTP publishes per second, to a channel with 10 subscribers; 0 for none.
    #[arg(long, default_value_t = 500.0)]
    pub http_rate: f64,
    /// Connections per second that come, subscribe to the large channel, and go.
    #[arg(long, default_value_t = 100.0)]
    pub churn_rate: f64,
    #[command(flatten)]
    pub common: Common,
}

/// Options of all scenarios.
#[derive(Args, Clone, Debug)]
pub struct Common {
    #[command(flatten)]
    pub target: TargetOpts,
    #[command(flatten)]
    pub load: LoadOpts,
    #[command(flatten)]
    pub output: OutputOpts,
}

/// Protocols that can be spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// The wSocket contract (Shardwire).
    Wsocket,
    /// Pusher protocol 7.
    Pusher,
    /// NATS over WebSocket.
    Nats,
    /// Every frame relayed to the others on the path (Bun example, Nchan).
    Plain,
}

impl Protocol {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wsocket => "wsocket",
            Self::Pusher => "pusher",
            Self::Nats => "nats",
            Self::Plain => "plain",
        }
    }
}

/// What is measured and how to speak to it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Target")]
pub struct TargetOpts {
    /// Server, as ws://HOST:PORT or wss://HOST:PORT.
    #[arg(long, default_value = "ws://127.0.0.1:9001")]
    pub url: String,
    /// Another node of the same cluster for the subscribers, as ws://HOST:PORT: what is measured goes from node to node.
    #[arg(long)]
    pub subscribe_url: Option<String>,
    /// Protocol to speak.
    #[arg(long, value_enum, default_value_t = Protocol::Wsocket)]
    pub protocol: Protocol,
    /// Client key (wSocket) or app key (Pusher).
    #[arg(long, env = "SHARDWIRE_DEV_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// Server key for publishers and the HTTP API (wSocket); without it publishers use the client key.
    #[arg(long, env = "SHARDWIRE_DEV_SERVER_KEY", hide_env_values = true)]
    pub server_key: Option<String>,
    /// App secret (Pusher).
    #[arg(long, env = "SHARDWIRE_LOADTEST_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// App id, for the HTTP API (Pusher).
    #[arg(long)]
    pub app_id: Option<String>,
    /// Whether published messages are to be stored (wSocket).
    #[arg(long, action = clap::ArgAction::Set, default_value_t = true)]
    pub persist: bool,
    /// Publishers ask for no acks (wSocket), as servers without any have none: for a comparison of like with
    /// like. In a closed loop there must be subscribers.
    #[arg(long)]
    pub no_acks: bool,
    /// Path that subscribers open (plain).
    #[arg(long, default_value = "/{channel}")]
    pub subscribe_path: String,
    /// Path that publishers open or post to (plain).
    #[arg(long, default_value = "/{channel}")]
    pub publish_path: String,
    /// Path that subscribers open which publish and get their own messages (plain).
    #[arg(long, default_value = "/{channel}")]
    pub echo_path: String,
    /// TLS: trust certificates signed by one in this PEM file.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// TLS: trust any certificate.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// TLS: every connection makes a full handshake; without it those after the first resume with tickets.
    #[arg(long)]
    pub full_handshakes: bool,
    /// Allow a server on another host. Only measure servers that you run yourself.
    #[arg(long)]
    pub allow_remote: bool,
}

impl TargetOpts {
    /// Resolves the URL; refuses hosts other than this one unless allowed.
    pub fn resolve(&self) -> anyhow::Result<(SocketAddr, String)> {
        self.resolve_url(&self.url)
    }

    /// Where subscribers connect: the same, unless there is another URL for them.
    pub fn resolve_subscribe(&self) -> anyhow::Result<SocketAddr> {
        let url = self.subscribe_url.as_ref().unwrap_or(&self.url);
        Ok(self.resolve_url(url)?.0)
    }

    fn resolve_url(&self, url: &str) -> anyhow::Result<(SocketAddr, String)> {
        let (scheme, host) = url.split_once("://").unwrap_or_default();
        ensure!(
            matches!(scheme, "ws" | "http" | "wss" | "https"),
            "{url}: expected ws://HOST:PORT or wss://HOST:PORT"
        );
        let host = host.split(['/', '?']).next().unwrap_or_default().to_owned();
        let addr = host
            .to_socket_addrs()
            .with_context(|| format!("{host}: expected HOST:PORT"))?
            .min_by_key(|addr| !addr.is_ipv4())
            .with_context(|| format!("{host}: no address"))?;
        if !addr.ip().is_loopback() && !self.allow_remote {
            bail!(
                "{addr} is not this host; give --allow-remote if the server there is yours to measure"
            );
        }
        Ok((addr, host))
    }

    /// What makes TLS sessions to `host`, where the URL asks for TLS.
    pub fn connector(&self, host: &str) -> anyhow::Result<Option<Connector>> {
        let is_secure = self.url.starts_with("wss:") || self.url.starts_with("https:");
        let trust = match &self.ca {
            _ if !is_secure => return Ok(None),
            Some(file) => Trust::Authority(file),
            None if self.insecure => Trust::Anybody,
            None => bail!("{}: give --ca FILE, or --insecure", self.url),
        };
        Connector::new(host, trust, !self.full_handshakes).map(Some)
    }
}

/// Load and how it is accounted.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub struct LoadOpts {
    /// Seconds measured.
    #[arg(short = 'd', long, default_value = "10", value_parser = parse_seconds)]
    pub duration: Duration,
    /// Seconds of load before measuring.
    #[arg(short = 'w', long, default_value = "2", value_parser = parse_seconds)]
    pub warmup: Duration,
    /// Payload size in bytes.
    #[arg(short = 's', long, default_value_t = 100)]
    pub size: usize,
    /// Generator threads.
    #[arg(short = 't', long, default_value_t = 1)]
    pub threads: usize,
    /// CPUs to pin the generator threads to, in turn, for example 2,3.
    #[arg(long, value_delimiter = ',')]
    pub cpu: Vec<usize>,
    /// Source addresses 127.0.0.2 and up to connect from; 0: as many as the connections need.
    #[arg(long, default_value_t = 0)]
    pub sources: u8,
    /// Connections being made at a time, per thread.
    #[arg(long, default_value_t = 256)]
    pub connect_window: usize,
    /// Seconds that setting up, and at the end the last deliveries, may take.
    #[arg(long, default_value = "60", value_parser = parse_seconds)]
    pub timeout: Duration,
    /// Processes of the server, to account their CPU time and memory.
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
}

impl LoadOpts {
    /// Checks what the parser cannot.
    pub fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            self.size >= PAYLOAD_BYTES_MIN,
            "--size: at least {PAYLOAD_BYTES_MIN} bytes"
        );
        ensure!((1..=64).contains(&self.threads), "--threads: 1 to 64");
        ensure!(!self.duration.is_zero(), "--duration: more than 0");
        ensure!(self.connect_window > 0, "--connect-window: at least 1");
        Ok(())
    }
}

/// Where results go.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputOpts {
    /// Write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one self-contained HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Title of the report.
    #[arg(long)]
    pub title: Option<String>,
    /// Print nothing but errors.
    #[arg(short, long)]
    pub quiet: bool,
}

impl Scenario {
    /// Name as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fanout(_) => "fanout",
            Self::Channels(_) => "channels",
            Self::Storm(_) => "storm",
            Self::Idle(_) => "idle",
            Self::Presence(_) => "presence",
            Self::Reconnect(_) => "reconnect",
            Self::Churn(_) => "churn",
            Self::Http(_) => "http",
            Self::Mixed(_) => "mixed",
        }
    }

    /// Options that all scenarios have.
    pub fn common(&self) -> &Common {
        match self {
            Self::Fanout(o) => &o.common,
            Self::Channels(o) => &o.common,
            Self::Storm(o) => &o.common,
            Self::Idle(o) => &o.common,
            Self::Presence(o) => &o.common,
            Self::Reconnect(o) => &o.common,
            Self::Churn(o) => &o.common,
            Self::Http(o) => &o.common,
            Self::Mixed(o) => &o.common,
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .trim_end_matches('s')
        .parse()
        .map_err(|_| format!("{text}: not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn target(args: &[&str]) -> TargetOpts {
        let cli = Cli::parse_from([&["shardwire-loadtest", "fanout"], args].concat());
        cli.scenario.common().target.clone()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_this_host_unless_allowed() {
        assert!(target(&[]).resolve().is_ok());
        assert!(target(&["--url", "ws://127.9.9.9:1"]).resolve().is_ok());
        assert!(target(&["--url", "ws://192.0.2.1:80"]).resolve().is_err());
        assert!(
            target(&["--url", "ws://192.0.2.1:80", "--allow-remote"])
                .resolve()
                .is_ok()
        );
        assert!(target(&["--url", "127.0.0.1:80"]).resolve().is_err());
        assert!(target(&["--url", "ftp://127.0.0.1:80"]).resolve().is_err());
    }

    #[test]
    fn tls_needs_to_know_whom_to_trust() {
        let connector = |args: &[&str]| target(args).connector("127.0.0.1:1");
        assert!(connector(&["--insecure"]).unwrap().is_none(), "plain");
        let secure = ["--url", "wss://127.0.0.1:1"];
        assert!(connector(&secure).is_err());
        assert!(
            connector(&[&secure[..], &["--insecure"]].concat())
                .unwrap()
                .is_some()
        );
        let missing = connector(&[&secure[..], &["--ca", "/nowhere.pem"]].concat());
        assert!(missing.unwrap_err().to_string().contains("/nowhere.pem"));
    }

    #[test]
    fn seconds_may_be_fractions() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_seconds("2s"), Ok(Duration::from_secs(2)));
        assert!(parse_seconds("-1").is_err() && parse_seconds("x").is_err());
    }
}
