//! The audit log: who did what, when, from where, and what came of it.
//!
//! An entry is written for every change that an account or the admin token asks for, also one that is refused, and for
//! what happens at the door: sign-ins and their failures, resets, second factors. Bodies of requests are not in it, as
//! they may hold secrets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::documents::Document;
use super::keeper::{Keeper, Result, bad, make_id, record};
use crate::records::{Change, Scan};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The account, if one was known.
    pub account: Option<String>,
    /// Its address, the address that was tried, or what else acted.
    pub name: String,
    pub address: Option<IpAddr>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    pub id: String,
    pub time_ms: u64,
    pub account: Option<String>,
    pub actor: String,
    pub address: Option<String>,
    /// What was asked for: `POST /apps/{app}/keys`, or an event such as `login failed`.
    pub call: String,
    pub team: Option<String>,
    pub app: Option<String>,
    /// What it was done to: a key, a member, a channel.
    pub target: Option<String>,
    pub detail: Option<String>,
    /// HTTP status of the answer.
    pub status: u16,
}

impl Document for Entry {
    const KIND: &'static str = "audit";
}

/// A part of the log, the newest first.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AuditPage {
    pub entries: Vec<Entry>,
    /// For the next part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl Entry {
    /// By somebody, on a call.
    #[must_use]
    pub fn of(actor: &Actor, call: impl Into<String>, status: u16) -> Self {
        Self {
            account: actor.account.clone(),
            actor: actor.name.clone(),
            address: actor
                .address
                .map(|address| address.to_canonical().to_string()),
            call: call.into(),
            status,
            ..Self::default()
        }
    }
}

impl Keeper {
    /// Writes an entry. A failure is in the program's log: what was done cannot be undone for it.
    pub fn note(&mut self, entry: Entry) {
        let what = (entry.actor.clone(), entry.call.clone());
        match self.audit_change(entry).and_then(|put| self.apply(&[put])) {
            Ok(()) => {}
            Err(error) => {
                log::error!(actor = what.0, call = what.1, error:%; "an entry of the audit log is lost")
            }
        }
    }

    /// The change that writes an entry, to be made with what it is about.
    pub(super) fn audit_change(&mut self, mut entry: Entry) -> Result<Change> {
        let now_ms = self.now();
        entry.id = make_id("e");
        entry.time_ms = now_ms;
        let mut labels = vec![("all", "")];
        labels.extend(entry.account.as_deref().map(|account| ("account", account)));
        labels.extend(entry.team.as_deref().map(|team| ("team", team)));
        let mut record = record(entry.id.clone(), &entry, &labels, now_ms)?;
        record.expires_ms =
            Some(now_ms.saturating_add(self.config.audit_days.saturating_mul(DAY_MS)));
        Ok(Change::put(Entry::KIND, record))
    }

    /// Entries of a team (`("team", id)`), an account (`("account", id)`), or all (`("all", "")`).
    pub fn audit(
        &mut self,
        label: (&str, &str),
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<AuditPage> {
        let scan = Scan {
            after: cursor.map(parse_cursor).transpose()?,
            newest_first: true,
            ..Scan::of(Entry::KIND, limit + 1).labelled(label.0, label.1)
        };
        let mut found = self.scan::<Entry>(&scan)?;
        let has_more = found.len() > limit;
        found.truncate(limit);
        let cursor = found.last().filter(|_| has_more).map(|last| {
            let (rank, id) = last.place();
            format!("{rank}.{id}")
        });
        Ok(AuditPage {
            entries: found.into_iter().map(|kept| kept.document).collect(),
            cursor,
        })
    }
}

fn parse_cursor(cursor: &str) -> Result<(i64, String)> {
    let wrong = || bad("`cursor` is not one of this list");
    let (rank, id) = cursor.split_once('.').ok_or_else(wrong)?;
    Ok((rank.parse().map_err(|_| wrong())?, id.to_owned()))
}
