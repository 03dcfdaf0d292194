//! `shardwire store copy`: everything that is kept, from the data folder to MongoDB or back.
//!
//! The server does not run meanwhile: the data folder is locked, and whoever uses the database is the operator's matter.
//! A copy that was interrupted goes on where it was: the destination says how far it is. Nothing is copied onto what was
//! there before: a destination has to be empty, or begun by a copy, which a mark in it says until the copy has ended.
//! At the end both sides are read whole and compared.

mod messages;
mod sides;

use std::fmt;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::messages::Messages;
use self::sides::Side;
use crate::config::Config;
use crate::keys::DataDir;
use crate::mongo::Mongo;

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Destination {
    /// From the data folder to the database that is configured
    Mongo,
    /// From the database to the data folder
    Files,
}

/// What was copied, and found equal on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub channels: u64,
    pub messages: u64,
    /// Apps, keys and what else the registry keeps.
    pub documents: u64,
    /// Rows of usage.
    pub usage: u64,
    /// Records of side services.
    pub records: u64,
    /// SHA-256 over all of it, in hexadecimal.
    pub checksum: String,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            channels,
            messages,
            documents,
            usage,
            records,
            checksum,
        } = self;
        write!(
            f,
            "{messages} messages of {channels} channels, {documents} apps, keys and the like, {usage} rows of usage, {records} other records: equal on both sides ({checksum})"
        )
    }
}

/// What a copy gives a database for an answer at least, ms: no client waits for it, and a slow one is slow at nothing as
/// it is at writing much.
const TIMEOUT_MS: u64 = 60_000;

/// Copies everything. `shows`: draws how far it is on stderr, where that is a terminal.
///
/// # Errors
/// It is not done, or the sides differ; the text is for the operator. Doing it again goes on.
pub fn run(config: &Config, to: Destination, shows: bool) -> Result<Copied, String> {
    if config.mongo.url.is_none() {
        return Err(
            "no database is configured: give --mongo-url, SHARDWIRE_MONGO_URL or store.mongo.url"
                .to_owned(),
        );
    }
    let dir = DataDir::lock(&config.data_dir).map_err(|error| error.to_string())?;
    let mut patient = config.mongo.clone();
    patient.timeout_ms = patient.timeout_ms.max(TIMEOUT_MS);
    let mongo = Mongo::connect(&patient).map_err(|error| error.to_string())?;
    let mut files = Side::files(&config.data_dir)?;
    let mut database = Side::mongo(&mongo)?;
    let (from, into) = match to {
        Destination::Mongo => (&mut files, &mut database),
        Destination::Files => (&mut database, &mut files),
    };
    into.begin()?;
    let target = if shows {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    bar.set_style(style());
    let copied = copy(from, into, &bar);
    bar.finish_and_clear();
    let copied = copied?;
    into.end()?;
    drop(dir);
    Ok(copied)
}

fn style() -> ProgressStyle {
    let template = "{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn copy(from: &mut Side, into: &mut Side, bar: &ProgressBar) -> Result<Copied, String> {
    bar.set_message("apps and keys");
    sides::copy_documents(from, into)?;
    bar.set_message("usage");
    sides::copy_usage(from, into)?;
    bar.set_message("records");
    sides::copy_records(from, into)?;
    bar.set_message("messages");
    messages::copy(&mut from.messages, &mut into.messages, bar)?;
    bar.set_message("comparing");
    bar.set_position(0);
    let before = count(from, bar)?;
    bar.set_position(0);
    let after = count(into, bar)?;
    if before == after {
        Ok(after)
    } else {
        Err(format!(
            "the copy differs: there are {before}; the copy has {after}"
        ))
    }
}

/// Reads a side whole.
fn count(side: &mut Side, bar: &ProgressBar) -> Result<Copied, String> {
    let mut sum = sides::Sum::default();
    let documents = sides::sum_documents(side, &mut sum)?;
    let usage = sides::sum_usage(side, &mut sum)?;
    let records = sides::sum_records(side, &mut sum)?;
    let Messages { channels, messages } = messages::sum(&mut side.messages, &mut sum, bar)?;
    Ok(Copied {
        channels,
        messages,
        documents,
        usage,
        records,
        checksum: sum.finish(),
    })
}

/// Small steps, so that little is done again after an interruption.
const AT_ONCE: usize = 2000;

#[cfg(test)]
mod tests;
