//! The command line, as written: nothing is resolved or checked here, so that flags, environment and file go through
//! the same checks and all mistakes are told at once.

use clap::{Args, Parser, Subcommand};

use crate::copy::Destination;

/// Realtime messaging engine: WebSocket publish and subscribe, sharded over the cores of one machine.
///
/// Without a command it serves. Settings come from flags, then environment, then the file, then defaults.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "shardwire", version, about, long_about)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Takes over from the server that runs on the same data folder: its listening sockets first, so that nobody is
    /// refused, then its place. Without one it just starts
    #[arg(long)]
    pub takeover: bool,
    /// Settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// What to do instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Checks the configuration and this host, and says what to mend. Exit code 2 when the server could not run.
    Check {
        /// Prints a JSON array of findings.
        #[arg(long)]
        json: bool,
    },
    /// What is kept, while no server runs
    Store {
        #[command(subcommand)]
        command: StoreCommand,
    },
}

/// What to do with what is kept.
#[derive(Debug, Clone, Subcommand)]
pub enum StoreCommand {
    /// Copies everything between the data folder and MongoDB, and compares. Done again after an interruption it goes on
    Copy {
        /// Where to
        #[arg(long, value_name = "DESTINATION")]
        to: Destination,
        /// Prints what was copied as JSON
        #[arg(long)]
        json: bool,
    },
}

/// The settings that have a flag.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Configuration file [env: SHARDWIRE_CONFIG] [default: ./shardwire.toml if there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<String>,
    /// Where clients and back ends connect: WebSocket and HTTP [env: SHARDWIRE_LISTEN] [default: 127.0.0.1:9001]
    #[arg(long, global = true, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Where health, metrics and administration answer [env: SHARDWIRE_ADMIN_LISTEN] [default: 127.0.0.1:9002]
    #[arg(long, global = true, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Folder for keys and everything else that is kept [env: SHARDWIRE_DATA_DIR] [default: ./data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Number of shards [env: SHARDWIRE_SHARDS] [default: one per core the process may use]
    #[arg(long, global = true, value_name = "N")]
    pub shards: Option<String>,
    /// Cores to pin shards to, such as 0-3,6 [env: SHARDWIRE_CORES] [default: the process's affinity mask]
    #[arg(long, global = true, value_name = "LIST")]
    pub cores: Option<String>,
    /// A Redis that makes several processes one cluster; repeat it for the nodes of a Redis Cluster
    /// [env: SHARDWIRE_REDIS_URL, separated by commas] [default: none]
    #[arg(long, global = true, value_name = "URL")]
    pub redis_url: Vec<String>,
    /// Database for everything that is kept, instead of the data folder: mongodb://host:27017 [env: SHARDWIRE_MONGO_URL]
    /// [default: none]
    #[arg(long, global = true, value_name = "URL")]
    pub mongo_url: Option<String>,
    /// error, warn, info, debug or trace [env: SHARDWIRE_LOG_LEVEL] [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Writes the addresses that are served to this file, as JSON, once they are
    #[arg(long, global = true, value_name = "FILE")]
    pub ready_file: Option<String>,
}
