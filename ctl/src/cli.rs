//! The command line: what there is to say, with an example for each command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod webhooks;

pub(crate) use webhooks::{Hook, HookSettings, Webhooks};

/// Operates a Shardwire server over its admin API.
#[derive(Debug, Parser)]
#[command(
    name = "shardwirectl",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 server not reachable, 4 no such thing.\n\n\
Example:\n  shardwirectl apps list\n  shardwirectl publish chat '{\"text\": \"hello\"}'\n  shardwirectl top"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the server is, and how to answer.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The server's admin listener
    #[arg(
        long,
        global = true,
        env = "SHARDWIRE_ADMIN_URL",
        default_value = "http://127.0.0.1:9002",
        value_name = "URL"
    )]
    pub(crate) url: String,
    /// File with the admin token [default: ./data/admin-token, where SHARDWIRE_ADMIN_TOKEN is not set]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The app that a command is about.
#[derive(Debug, Args)]
pub(crate) struct AppArg {
    /// The app
    #[arg(long, env = "SHARDWIRE_APP", default_value = "dev")]
    pub(crate) app: String,
}

/// Plans.
#[derive(Debug, Subcommand)]
pub(crate) enum Plans {
    /// List plans
    List,
    /// Show a plan
    Show {
        /// The plan
        id: String,
    },
    /// Make or replace a plan
    Set {
        /// The plan
        id: String,
        /// What it limits, as a JSON object; what is absent is not limited
        limits: String,
    },
    /// Remove a plan that no app has
    Delete {
        /// The plan
        id: String,
    },
}

/// What an app has used.
#[derive(Debug, Args)]
pub(crate) struct Usage {
    /// The app
    pub(crate) app: String,
    /// minute, hour or day
    #[arg(long, default_value = "hour", value_parser = ["minute", "hour", "day"])]
    pub(crate) step: String,
    /// Unix time in ms [default: 60 steps back]
    #[arg(long)]
    pub(crate) from: Option<u64>,
    /// Unix time in ms [default: now]
    #[arg(long)]
    pub(crate) to: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Push notifications: vapid, providers, send, jobs, subscriptions
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl push vapid --subject mailto:ops@shop.example\n  \
shardwirectl push set fcm @service-account.json\n  \
shardwirectl push send --member ann --title Hello\n  shardwirectl push jobs"
    )]
    Push(crate::commands::push::Push),
    /// Apps: list, show, create, update, delete
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl apps create shop --name 'The shop'\n  \
shardwirectl apps update shop --settings '{\"allowedOrigins\": [\"https://shop.example\"]}'\n  \
shardwirectl apps update shop --disable"
    )]
    Apps(Apps),
    /// API keys of an app: list, create, change, rotate, delete
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl keys create --app shop --kind server --name billing\n  \
shardwirectl keys create --kind client --capabilities '{\"news:*\": [\"subscribe\"]}'\n  \
shardwirectl keys rotate KEY --overlap 3600"
    )]
    Keys(Keys),
    /// Keys that tokens are verified with: list, create, change, delete
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl signing-keys create --algorithm HS256\n  \
shardwirectl signing-keys create --algorithm ES256 --kid login-1 --pem public.pem"
    )]
    SigningKeys(SigningKeys),
    /// Rights taken back before their credential ends: list, create, delete
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl revocations create --client-id ann\n  \
shardwirectl revocations create --client-id ann --channel 'room:*' --ttl 3600"
    )]
    Revocations(Revocations),
    /// Tokens
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl token mint --client-id ann \
--capabilities '{\"chat\": [\"subscribe\", \"publish\"]}' --ttl 600"
    )]
    Token(Token),
    /// Channels of an app: list, show, clear
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl channels list --prefix room:\n  \
shardwirectl channels show room:1\n  shardwirectl channels clear room:1"
    )]
    Channels(Channels),
    /// Connections: list, show, end
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl connections list --client-id ann\n  \
shardwirectl connections show 0-17-3\n  shardwirectl connections end 0-17-3"
    )]
    Connections(Connections),
    /// Publish a message
    #[command(
        after_help = "Example:\n  shardwirectl publish chat '{\"text\": \"hello\"}'\n  \
shardwirectl publish chat --text hello\n  echo '[1, 2]' | shardwirectl publish chat -"
    )]
    Publish(Publish),
    /// Print a channel's messages as they come
    #[command(
        after_help = "A line per message: time, sequence, id, data. Comes back by itself after a lost connection, \
with what was missed.\n\nExample:\n  shardwirectl subscribe chat --rewind 10\n  \
shardwirectl --json subscribe chat --count 1"
    )]
    Subscribe(Subscribe),
    /// Print stored messages of a channel
    #[command(after_help = "Example:\n  shardwirectl history chat --limit 20\n  \
shardwirectl history chat --forward --after 1767225600000")]
    History(History),
    /// Print who is present in a channel
    #[command(after_help = "Example:\n  shardwirectl presence room:1")]
    Presence(Presence),
    /// Plans that limit what apps may use: list, show, set, delete
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl plans set free '{\"connectionsMax\": 100, \"messagesPerDay\": 10000}'\n  \
shardwirectl apps update shop --settings '{\"plan\": \"free\"}'"
    )]
    Plans(Plans),
    /// What an app has used: totals, and a series
    #[command(after_help = "Example:\n  shardwirectl usage shop\n  \
shardwirectl usage shop --step day\n  shardwirectl --json usage shop --step hour --from 1767225600000")]
    Usage(Usage),
    /// People who use the dashboard: list, show, create, change, reset, delete
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl accounts create ann@example.com --operator\n  \
shardwirectl accounts update ann@example.com --disable\n  \
shardwirectl accounts reset ann@example.com"
    )]
    Accounts(Accounts),
    /// The audit log: who has changed what
    #[command(after_help = "Example:\n  shardwirectl audit --limit 20\n  \
shardwirectl --json audit --account a_4x2e")]
    Audit(Audit),
    /// Webhooks of an app: endpoints, attempts, events again, dead letters
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl webhooks create https://shop.example/hooks --event channel.occupied --event channel.vacated\n  \
shardwirectl webhooks test ID\n  shardwirectl webhooks deliveries ID\n  shardwirectl webhooks replay ID"
    )]
    Webhooks(Webhooks),
    /// Live table of the server's shards
    #[command(
        after_help = "Rates are of the last interval. q quits.\n\nExample:\n  shardwirectl top\n  \
shardwirectl --json top --once"
    )]
    Top(Top),
    /// The server's processes
    #[command(after_help = "Example:\n  shardwirectl nodes")]
    Nodes,
    /// Begin the planned end of the server, as SIGTERM does
    #[command(after_help = "Example:\n  shardwirectl drain --wait\n  shardwirectl drain --status")]
    Drain(Drain),
    /// Whether a configuration and this host can serve: runs `shardwire check`
    #[command(
        after_help = "Example:\n  shardwirectl check\n  shardwirectl check -- --config /etc/shardwire.toml"
    )]
    Check(Check),
    /// What a server keeps, while it does not run: copy it between the data folder and MongoDB
    #[command(
        subcommand,
        after_help = "Example:\n  shardwirectl store copy --to mongo -- --mongo-url mongodb://db1:27017\n  \
shardwirectl store copy --to files -- --config /etc/shardwire.toml"
    )]
    Store(Store),
    /// The configuration in force, secrets masked
    #[command(after_help = "Example:\n  shardwirectl config")]
    Config,
    /// Print a script that completes commands in a shell
    #[command(
        after_help = "Example:\n  shardwirectl completions bash > /etc/bash_completion.d/shardwirectl"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(after_help = "Example:\n  shardwirectl man > shardwirectl.1")]
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Apps {
    /// List all apps
    List,
    /// Show an app with its settings
    Show {
        /// The app's id
        id: String,
    },
    /// Make an app
    Create {
        /// Its id [default: a random one]
        id: Option<String>,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        /// Its settings
        #[arg(long, value_name = "JSON")]
        settings: Option<String>,
    },
    /// Change an app
    Update {
        /// The app's id
        id: String,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        /// A JSON merge patch of its settings: null takes one back to the process's
        #[arg(long, value_name = "JSON")]
        settings: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// Remove an app with its keys; its connections end
    Delete {
        /// The app's id
        id: String,
    },
}

/// Whether a thing may be used.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct State {
    /// Let it be used
    #[arg(long)]
    pub(crate) enable: bool,
    /// Refuse it, and end its connections
    #[arg(long)]
    pub(crate) disable: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Client,
    Server,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// List an app's keys
    List(#[command(flatten)] AppArg),
    /// Make a key and print it, this once
    Create {
        #[command(flatten)]
        app: AppArg,
        /// For clients or back ends
        #[arg(long)]
        kind: Kind,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        /// What it grants, by channel pattern [default: what is usual for its kind]
        #[arg(long, value_name = "JSON")]
        capabilities: Option<String>,
        /// Seconds until it ends [default: never]
        #[arg(long, value_name = "SECONDS")]
        expires_in: Option<u64>,
        /// Publishes of each connection: {"per_window": 50} [default: as the app has it, for back ends none]
        #[arg(long, value_name = "JSON")]
        publish_rate: Option<String>,
    },
    /// Change a key
    Update {
        /// The key's id
        id: String,
        #[command(flatten)]
        app: AppArg,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        /// What it grants, by channel pattern
        #[arg(long, value_name = "JSON")]
        capabilities: Option<String>,
        /// Publishes of each connection: {"per_window": 50}, or false
        #[arg(long, value_name = "JSON")]
        publish_rate: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// Make a second key like this one and print it; this one ends after the overlap
    Rotate {
        /// The key's id
        id: String,
        #[command(flatten)]
        app: AppArg,
        /// Seconds that the old key stays valid
        #[arg(long, default_value_t = 86400, value_name = "SECONDS")]
        overlap: u64,
    },
    /// Remove a key; its connections end
    Delete {
        /// The key's id
        id: String,
        #[command(flatten)]
        app: AppArg,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SigningKeys {
    /// List an app's signing keys
    List(#[command(flatten)] AppArg),
    /// Make an HS256 secret and print it, or take in a secret or public key
    Create {
        #[command(flatten)]
        app: AppArg,
        /// HS256, RS256, ES256 or EdDSA
        #[arg(long, value_parser = ["HS256", "RS256", "ES256", "EdDSA"])]
        algorithm: String,
        /// What tokens name it by [default: a random one]
        #[arg(long)]
        kid: Option<String>,
        /// File with a public key in PEM
        #[arg(long, value_name = "FILE", conflicts_with_all = ["jwk", "secret"])]
        pem: Option<PathBuf>,
        /// File with a public JSON Web Key
        #[arg(long, value_name = "FILE", conflicts_with = "secret")]
        jwk: Option<PathBuf>,
        /// File with an HS256 secret; a line end behind it does not count
        #[arg(long, value_name = "FILE")]
        secret: Option<PathBuf>,
        /// What its tokens grant at most, by channel pattern
        #[arg(long, value_name = "JSON")]
        capabilities: Option<String>,
    },
    /// Change a signing key
    Update {
        /// The key's kid
        kid: String,
        #[command(flatten)]
        app: AppArg,
        /// What its tokens grant at most, by channel pattern
        #[arg(long, value_name = "JSON")]
        capabilities: Option<String>,
        #[command(flatten)]
        state: State,
    },
    /// Remove a signing key; connections of its tokens end
    Delete {
        /// The key's kid
        kid: String,
        #[command(flatten)]
        app: AppArg,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Revocations {
    /// List revocations that last
    List(#[command(flatten)] AppArg),
    /// Take rights back
    Create {
        #[command(flatten)]
        app: AppArg,
        #[command(flatten)]
        subject: Subject,
        /// Only on channels that match; without it connections end
        #[arg(long, value_name = "PATTERN")]
        channel: Option<String>,
        /// Seconds it lasts [default: the longest life of a token]
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
        /// Only tokens issued before this Unix time in ms
        #[arg(long, value_name = "MS")]
        issued_before: Option<u64>,
    },
    /// End a revocation early
    Delete {
        /// The revocation's id
        id: String,
        #[command(flatten)]
        app: AppArg,
    },
}

/// Whom a revocation concerns.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Subject {
    /// A client id
    #[arg(long, value_name = "ID")]
    pub(crate) client_id: Option<String>,
    /// One token
    #[arg(long)]
    pub(crate) jti: Option<String>,
    /// Whoever came with this API key
    #[arg(long, value_name = "ID")]
    pub(crate) key: Option<String>,
    /// Whoever came with a token of this signing key
    #[arg(long)]
    pub(crate) kid: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Sign a token for trying, and print it
    Mint {
        #[command(flatten)]
        app: AppArg,
        /// Who it speaks for [default: an anonymous client]
        #[arg(long, value_name = "ID")]
        client_id: Option<String>,
        /// What it grants, by channel pattern [default: what its signing key grants]
        #[arg(long, value_name = "JSON")]
        capabilities: Option<String>,
        /// Seconds it is valid
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        ttl: u64,
        /// The signing key [default: the app's first HS256 one]
        #[arg(long)]
        kid: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Channels {
    /// List channels in use
    List {
        #[command(flatten)]
        app: AppArg,
        /// Only names that begin with this
        #[arg(long)]
        prefix: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show a channel
    Show {
        /// The channel
        channel: String,
        #[command(flatten)]
        app: AppArg,
    },
    /// Remove a channel's stored messages
    Clear {
        /// The channel
        channel: String,
        #[command(flatten)]
        app: AppArg,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Connections {
    /// List connections, of all apps unless one is named
    List {
        /// Only those of this app
        #[arg(long)]
        app: Option<String>,
        /// Only those of this client id
        #[arg(long, value_name = "ID")]
        client_id: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show a connection with its channels
    Show {
        /// The connection's id, as in its `connected` frame
        id: String,
    },
    /// End a connection
    End {
        /// The connection's id, as in its `connected` frame
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The channel
    pub(crate) channel: String,
    /// JSON, or text with --text; `-` reads it from stdin
    pub(crate) data: String,
    /// The data is text and not JSON
    #[arg(long)]
    pub(crate) text: bool,
    /// The message's id: the same id again within two minutes is one message
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Do not store it
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Who it is from
    #[arg(long, value_name = "ID")]
    pub(crate) client_id: Option<String>,
    #[command(flatten)]
    pub(crate) app: AppArg,
}

#[derive(Debug, Args)]
pub(crate) struct Subscribe {
    /// The channel
    pub(crate) channel: String,
    /// Stored messages to print first, at most 1000
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(..=1000))]
    pub(crate) rewind: u64,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// The public listener, ws://host:port [default: as the server names it]
    #[arg(long, value_name = "URL")]
    pub(crate) socket: Option<String>,
    #[command(flatten)]
    pub(crate) app: AppArg,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// The channel
    pub(crate) channel: String,
    /// Messages at most
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u64,
    /// Only messages before this Unix time in ms
    #[arg(long, value_name = "MS")]
    pub(crate) before: Option<u64>,
    /// Only messages after this Unix time in ms
    #[arg(long, value_name = "MS")]
    pub(crate) after: Option<u64>,
    /// The oldest first
    #[arg(long)]
    pub(crate) forward: bool,
    #[command(flatten)]
    pub(crate) app: AppArg,
}

#[derive(Debug, Args)]
pub(crate) struct Presence {
    /// The channel
    pub(crate) channel: String,
    /// Members at most
    #[arg(long, default_value_t = 1000)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) app: AppArg,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Seconds between two readings
    #[arg(long, default_value_t = 1.0, value_parser = interval, value_name = "SECONDS")]
    pub(crate) interval: f64,
    /// Print one table and end
    #[arg(long)]
    pub(crate) once: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be from 0.1 to 3600".into()),
    }
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Drain {
    /// Stay until the server has ended
    #[arg(long)]
    pub(crate) wait: bool,
    /// Only say how far it is
    #[arg(long)]
    pub(crate) status: bool,
}

/// What a server keeps.
#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Copy everything and compare: runs `shardwire store copy`. Done again after an interruption it goes on
    Copy {
        /// Where to: the database that is configured, or the data folder
        #[arg(long, value_enum)]
        to: Destination,
        /// Flags for `shardwire`: --config, --data-dir, --mongo-url
        #[arg(last = true)]
        flags: Vec<String>,
    },
}

/// Where a copy goes to.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Destination {
    Mongo,
    Files,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Flags for `shardwire check`
    #[arg(last = true)]
    pub(crate) flags: Vec<String>,
}

/// People.
#[derive(Debug, Subcommand)]
pub(crate) enum Accounts {
    /// List accounts
    List,
    /// Show an account
    Show {
        /// Its id or address
        id: String,
    },
    /// Make an account, and print a link with which its password is set
    Create {
        /// The e-mail address
        email: String,
        /// What to call them [default: the first part of the address]
        #[arg(long)]
        name: Option<String>,
        /// They run this server, and own its first team
        #[arg(long)]
        operator: bool,
        /// File with the password; `-` reads it from stdin. A line end behind it does not count
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Change an account
    Update {
        /// Its id or address
        id: String,
        /// What to call them
        #[arg(long)]
        name: Option<String>,
        /// Whether they run this server
        #[arg(long)]
        operator: Option<bool>,
        /// Take a second factor away that is lost
        #[arg(long)]
        remove_second_factor: bool,
        #[command(flatten)]
        state: State,
    },
    /// Print a link with which the password is set, once, within an hour
    Reset {
        /// Its id or address
        id: String,
    },
    /// Remove an account with its sessions and memberships
    Delete {
        /// Its id or address
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Only entries of this team
    #[arg(long)]
    pub(crate) team: Option<String>,
    /// Only entries of this account
    #[arg(long)]
    pub(crate) account: Option<String>,
    /// Entries at most
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
}
