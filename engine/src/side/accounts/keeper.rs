//! The accounts thread's state, and how it reads and writes documents.

use std::sync::Arc;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use serde::Serialize;
use shardwire_proto::account::attempts::Attempts;
use shardwire_proto::account::session::SessionRules;
use shardwire_proto::auth::key::KeyHash;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::documents::{Document, Link, Purpose};
use super::mail::{Letter, Post};
use super::secrets::Secrets;
use crate::config;
use crate::records::{Change, Condition, Record, RecordError, Records, Scan};
use crate::sys;

pub(super) type Result<T> = std::result::Result<T, ProtocolError>;

/// How long the refresh token before last may still come: as long as a page's requests are under way.
const REPEAT_MS: u64 = 30_000;
/// Entries of a list that has no pages.
pub(super) const LIST_MAX: usize = 1000;

/// Owned by the accounts thread.
pub struct Keeper {
    pub(super) records: Box<dyn Records>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) post: Post,
    pub(super) attempts: Attempts,
    pub(super) config: config::Accounts,
    pub(super) rules: SessionRules,
    /// Where people find the dashboard.
    url: String,
    /// Time in tests; 0: the clock's.
    pub(super) fixed_ms: u64,
}

/// A document as it was read.
pub(super) struct Kept<D> {
    pub(super) id: String,
    pub(super) document: D,
    record: Record,
}

impl<D: Document> Kept<D> {
    /// Puts the document back if nobody else has changed it meanwhile.
    pub(super) fn put(&self) -> Result<Change> {
        let mut record = self.record.clone();
        record.body = write(&self.document)?;
        let when = Condition::Version(record.version);
        Ok(Change::Put {
            kind: D::KIND,
            record,
            when,
        })
    }

    /// As [`Self::put`], good until another time.
    pub(super) fn put_until(&mut self, expires_ms: u64) -> Result<Change> {
        self.record.expires_ms = Some(expires_ms);
        self.put()
    }

    /// As [`Self::put`], for as long as nobody deletes it.
    pub(super) fn put_for_good(&mut self) -> Result<Change> {
        self.record.expires_ms = None;
        self.put()
    }

    /// Deletes it if it is as it was read.
    pub(super) fn delete(&self) -> Change {
        Change::Delete {
            kind: D::KIND,
            id: self.id.clone(),
            when: Condition::Version(self.record.version),
        }
    }

    /// Where it is in scans.
    pub(super) fn place(&self) -> (i64, String) {
        (self.record.rank, self.id.clone())
    }
}

impl Keeper {
    pub(super) fn new(
        records: Box<dyn Records>,
        secrets: Arc<Secrets>,
        post: Post,
        config: &config::Accounts,
        url: &str,
    ) -> Self {
        Self {
            records,
            secrets,
            post,
            attempts: Attempts::default(),
            config: config.clone(),
            rules: SessionRules {
                life_ms: config.session_life_s.saturating_mul(1000),
                idle_ms: config.session_idle_s.saturating_mul(1000),
                repeat_ms: REPEAT_MS,
            },
            url: url.trim_end_matches('/').to_owned(),
            fixed_ms: 0,
        }
    }

    /// Wall clock, Unix ms.
    pub(super) fn now(&self) -> u64 {
        match self.fixed_ms {
            0 => crate::clock::now_ms(),
            fixed => fixed,
        }
    }

    /// Removes what has expired.
    pub(super) fn expire(&mut self, limit: usize) {
        let now_ms = self.now();
        if let Err(error) = self.records.expire(now_ms, limit) {
            log::warn!(error:%; "expired accounts' records cannot be removed");
        }
    }

    pub(super) fn find<D: Document>(&mut self, id: &str) -> Result<Option<Kept<D>>> {
        let now_ms = self.now();
        let found = self.records.get(D::KIND, id, now_ms).map_err(unavailable)?;
        found.map(read).transpose()
    }

    /// # Errors
    /// 40400 where there is none.
    pub(super) fn get<D: Document>(&mut self, id: &str) -> Result<Kept<D>> {
        self.find(id)?.ok_or_else(|| ErrorCode::NotFound.into())
    }

    pub(super) fn scan<D: Document>(&mut self, scan: &Scan) -> Result<Vec<Kept<D>>> {
        let now_ms = self.now();
        let found = self.records.scan(scan, now_ms).map_err(unavailable)?;
        found.into_iter().map(read).collect()
    }

    /// All with a label, [`LIST_MAX`] at most.
    pub(super) fn labelled<D: Document>(
        &mut self,
        name: &str,
        value: &str,
    ) -> Result<Vec<Kept<D>>> {
        self.scan(&Scan::of(D::KIND, LIST_MAX).labelled(name, value))
    }

    pub(super) fn count<D: Document>(&mut self, label: Option<(&str, &str)>) -> Result<u64> {
        let now_ms = self.now();
        self.records
            .count(D::KIND, label, now_ms)
            .map_err(unavailable)
    }

    /// Makes all changes or none.
    pub(super) fn apply(&mut self, changes: &[Change]) -> Result<()> {
        let now_ms = self.now();
        self.records.apply(changes, now_ms).map_err(unavailable)
    }

    /// The page of a link that works once: what it does is asked for with the token in it. Returned with the change that
    /// lets it work.
    pub(super) fn link(
        &self,
        purpose: Purpose,
        subject: &str,
        label: Option<&str>,
    ) -> Result<(String, Change)> {
        self.link_to(purpose, subject, label, None)
    }

    /// As [`Self::link`], of an address change.
    pub(super) fn link_to(
        &self,
        purpose: Purpose,
        subject: &str,
        label: Option<&str>,
        address: Option<&str>,
    ) -> Result<(String, Change)> {
        let token = BASE64URL_NOPAD.encode(&sys::random_32());
        let (page, life_ms) = purpose.page();
        let now_ms = self.now();
        let link = Link {
            purpose,
            subject: subject.to_owned(),
            address: address.map(str::to_owned),
        };
        let labels: Vec<(&str, &str)> = label.map(|value| ("account", value)).into_iter().collect();
        let mut record = record(KeyHash::of(&token).to_string(), &link, &labels, now_ms)?;
        record.expires_ms = Some(now_ms.saturating_add(life_ms));
        let put = Change::put(Link::KIND, record);
        Ok((format!("{}/{page}?token={token}", self.url), put))
    }

    /// What a link is for.
    ///
    /// # Errors
    /// 40400 for one that is used up, too old, or for something else.
    pub(super) fn find_link(&mut self, token: &str, purpose: Purpose) -> Result<Kept<Link>> {
        let found = self.find::<Link>(&KeyHash::of(token).to_string())?;
        let found = found.filter(|link| link.document.purpose == purpose);
        found.ok_or_else(|| {
            let text = "this link has been used already, or is too old";
            ProtocolError::with_text(ErrorCode::NotFound, text)
        })
    }

    pub(super) fn send(&self, to: &str, subject: &str, text: String) {
        self.post.send(Letter {
            to: to.to_owned(),
            subject: subject.to_owned(),
            text,
        });
    }
}

/// A record of a document.
pub(super) fn record<D: Document>(
    id: impl Into<String>,
    document: &D,
    labels: &[(&str, &str)],
    rank_ms: u64,
) -> Result<Record> {
    Ok(Record {
        id: id.into(),
        labels: labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        rank: i64::try_from(rank_ms).unwrap_or(i64::MAX),
        expires_ms: None,
        body: write(document)?,
        version: 0,
    })
}

/// Puts a document whose id must not be there.
pub(super) fn add<D: Document>(record: Record) -> Change {
    Change::Put {
        kind: D::KIND,
        record,
        when: Condition::Absent,
    }
}

/// A random id, 128 bits.
pub(super) fn make_id(prefix: &str) -> String {
    format!(
        "{prefix}_{}",
        BASE32_NOPAD.encode(&sys::random()).to_lowercase()
    )
}

fn write(document: &impl Serialize) -> Result<String> {
    serde_json::to_string(document).map_err(|_| ErrorCode::Internal.into())
}

fn read<D: Document>(record: Record) -> Result<Kept<D>> {
    let document = serde_json::from_str(&record.body).map_err(|error| {
        log::error!(kind = D::KIND, id = record.id, error:%; "a record of the accounts cannot be read");
        ProtocolError::from(ErrorCode::Internal)
    })?;
    Ok(Kept {
        id: record.id.clone(),
        document,
        record,
    })
}

fn unavailable(error: RecordError) -> ProtocolError {
    match error {
        RecordError::Conflict(_) => bad("somebody else has changed this just now; look again"),
        RecordError::Busy(_) | RecordError::Failed(_) => {
            log::error!(error:%; "the accounts' records cannot be used");
            ErrorCode::Unavailable.into()
        }
    }
}

pub(super) fn bad(text: impl Into<std::borrow::Cow<'static, str>>) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadField, text)
}

pub(super) fn not_permitted(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::NotPermitted, text)
}
