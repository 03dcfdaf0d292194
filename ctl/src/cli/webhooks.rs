//! What there is to say about webhooks.

use clap::{Args, Subcommand};

use super::AppArg;

#[derive(Debug, Subcommand)]
pub(crate) enum Webhooks {
    /// List an app's webhooks
    List(#[command(flatten)] AppArg),
    /// Show a webhook
    Show(#[command(flatten)] Hook),
    /// Make a webhook and print its secret, this once
    Create {
        /// Where events go
        target: String,
        #[command(flatten)]
        app: AppArg,
        #[command(flatten)]
        settings: HookSettings,
        /// Make it disabled
        #[arg(long)]
        disable: bool,
    },
    /// Change a webhook
    Update {
        #[command(flatten)]
        hook: Hook,
        /// Where events go
        #[arg(long, value_name = "URL")]
        target: Option<String>,
        #[command(flatten)]
        settings: HookSettings,
        #[command(flatten)]
        state: super::State,
    },
    /// Remove a webhook with its events and dead letters
    Delete(#[command(flatten)] Hook),
    /// Make another secret and print it; both sign for the overlap
    Rotate {
        #[command(flatten)]
        hook: Hook,
        /// Seconds that the old secret signs too
        #[arg(long, default_value_t = 86400, value_name = "SECONDS")]
        overlap: u64,
    },
    /// Send a signed sample and print what came of it
    Test(#[command(flatten)] Hook),
    /// Print the last attempts
    Deliveries(#[command(flatten)] Hook),
    /// Print events again, a line each
    Events {
        #[command(flatten)]
        hook: Hook,
        /// Number of the first
        #[arg(long, default_value_t = 1, value_name = "NUMBER")]
        from: u64,
        /// Events at most
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// List deliveries that were given up, or show one
    DeadLetters {
        #[command(flatten)]
        hook: Hook,
        /// Show this one with its events
        #[arg(long, value_name = "ID")]
        letter: Option<String>,
    },
    /// Send dead letters again: one, or all
    Replay {
        #[command(flatten)]
        hook: Hook,
        /// This one alone
        #[arg(long, value_name = "ID")]
        letter: Option<String>,
    },
    /// Remove dead letters: one, or all
    Purge {
        #[command(flatten)]
        hook: Hook,
        /// This one alone
        #[arg(long, value_name = "ID")]
        letter: Option<String>,
    },
}

/// Which webhook.
#[derive(Debug, Args)]
pub(crate) struct Hook {
    /// The webhook's id
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) app: AppArg,
}

/// What a webhook gets, and how.
#[derive(Debug, Args)]
pub(crate) struct HookSettings {
    /// What people call it
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// An event that it gets; may be given several times [default: all but message.published and subscription.count]
    #[arg(long = "event", value_name = "EVENT")]
    pub(crate) events: Vec<String>,
    /// A pattern of channels; may be given several times [default: every channel]
    #[arg(long = "channel", value_name = "PATTERN")]
    pub(crate) channels: Vec<String>,
    /// Events of a delivery at most, up to 100
    #[arg(long, value_name = "N", requires = "batch_ms")]
    pub(crate) batch_events: Option<u64>,
    /// Time that events wait for others of their delivery, up to 60000 ms
    #[arg(long, value_name = "MS", requires = "batch_events")]
    pub(crate) batch_ms: Option<u64>,
    /// Deliveries under way at once, up to 16; above 1 order holds per channel
    #[arg(long, value_name = "N")]
    pub(crate) concurrency: Option<u64>,
    /// Whose names events have
    #[arg(long, value_parser = ["wsocket", "pusher"])]
    pub(crate) names: Option<String>,
}
