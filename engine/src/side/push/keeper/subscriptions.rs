//! Subscriptions in the store: a record each, found by app, member and platform; and a record for each channel that one
//! is enrolled in, so that a channel's recipients can be paged through.
//!
//! A subscription's id follows from its address, so that the same device is one record whoever registers it.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use shardwire_proto::error::ProtocolError;
use shardwire_proto::push::request::{
    CHANNELS_MAX, Enrolment, ListQuery, Registration, Unregistration, decode_base64,
};
use shardwire_proto::push::{Address, Platform};

use super::super::crypt;
use super::super::send::Recipient;
use super::answers::cut;
use super::{ENROLMENT, Keeper, PROVIDER, SUBSCRIPTION, TALLY, now_ms, to_json, unavailable};
use crate::records::{Change, Record, RecordError, Scan};
use crate::side::egress;

/// Subscriptions read at a time when all of a member's are changed.
const STEP: usize = 500;
/// Labels of a subscription.
pub(super) const BY_APP: &str = "app";
pub(super) const BY_MEMBER: &str = "member";
const BY_PLATFORM: &str = "platform";
const BY_BOTH: &str = "member-platform";
/// Label of an enrolment.
pub(super) const BY_CHANNEL: &str = "channel";

/// What is kept of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Subscription {
    pub(super) app: String,
    pub(super) member: String,
    pub(super) platform: Platform,
    #[serde(flatten)]
    pub(super) address: Address,
    pub(super) channels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<Map<String, Value>>,
    /// Unix ms.
    updated_ms: u64,
}

impl Subscription {
    pub(super) fn read(record: &Record) -> Option<Self> {
        serde_json::from_str(&record.body).ok()
    }

    pub(super) fn into_recipient(self, id: String) -> Recipient {
        Recipient {
            id,
            member: self.member,
            platform: self.platform,
            address: self.address,
        }
    }

    fn record(&self, id: &str, created_ms: i64) -> Record {
        let (app, member, platform) = (&self.app, &self.member, self.platform.name());
        Record {
            id: id.to_owned(),
            labels: vec![
                (BY_APP.into(), app.clone()),
                (BY_MEMBER.into(), format!("{app}/{member}")),
                (BY_PLATFORM.into(), format!("{app}/{platform}")),
                (BY_BOTH.into(), format!("{app}/{platform}/{member}")),
            ],
            rank: created_ms,
            body: String::from_utf8(to_json(self)).unwrap_or_default(),
            ..Record::default()
        }
    }

    fn removal(&self, id: &str) -> impl Iterator<Item = Change> {
        let enrolments = self
            .channels
            .iter()
            .map(|channel| Change::delete(ENROLMENT, enrolment_id(&self.app, channel, id)));
        let enrolments: Vec<_> = enrolments.collect();
        std::iter::once(Change::delete(SUBSCRIPTION, id)).chain(enrolments)
    }
}

/// No app's id has a slash, and no subscription's.
fn enrolment_id(app: &str, channel: &str, id: &str) -> String {
    format!("{app}/{channel}/{id}")
}

/// The subscription that an enrolment is of.
pub(super) fn enrolled(record: &Record) -> &str {
    record.id.rsplit('/').next().unwrap_or_default()
}

fn enrolment(app: &str, channel: &str, id: &str, created_ms: i64) -> Change {
    let record = Record {
        id: enrolment_id(app, channel, id),
        labels: vec![(BY_CHANNEL.into(), format!("{app}/{channel}"))],
        rank: created_ms,
        body: "{}".into(),
        ..Record::default()
    };
    Change::put(ENROLMENT, record)
}

fn id_of(app: &str, platform: Platform, address: &Address) -> String {
    let text = format!("{app}/{}/{}", platform.name(), address.identity());
    let hash = digest(&SHA256, text.as_bytes());
    let start = hash.as_ref().get(..16).unwrap_or_default();
    format!("sub_{}", BASE64URL_NOPAD.encode(start))
}

type Done = Result<Vec<u8>, ProtocolError>;

impl Keeper {
    /// Adds a device, or updates it: named channels take the place of those it had, none leaves them.
    pub(super) fn register(&mut self, app: &Arc<str>, from: Registration) -> Done {
        check(&from.address, self.config.allow_private)?;
        let id = id_of(app, from.platform, &from.address);
        if self.work.touched.contains(&id) {
            self.commit()?;
        }
        let known = self.subscription(&id)?;
        let created_ms = match &known {
            Some((record, _)) => record.rank,
            None => i64::try_from(now_ms()).unwrap_or(i64::MAX),
        };
        let known = known.map(|(_, subscription)| subscription);
        let channels = match &known {
            Some(known) if !from.channels_named => known.channels.clone(),
            _ => from.channels,
        };
        let subscription = Subscription {
            app: app.to_string(),
            member: from.member,
            platform: from.platform,
            address: from.address,
            channels,
            metadata: from.metadata,
            updated_ms: now_ms(),
        };
        let before = known.iter().flat_map(|known| &known.channels);
        for channel in before.filter(|channel| !subscription.channels.contains(channel)) {
            let gone = Change::delete(ENROLMENT, enrolment_id(app, channel, &id));
            self.work.asked.push(gone);
        }
        for channel in &subscription.channels {
            self.work
                .asked
                .push(enrolment(app, channel, &id, created_ms));
        }
        let record = subscription.record(&id, created_ms);
        self.work.asked.push(Change::put(SUBSCRIPTION, record));
        self.work.touched.insert(id.clone());
        Ok(to_json(&json!({ "subscriptionId": id })))
    }

    pub(super) fn unregister(&mut self, app: &Arc<str>, who: &Unregistration) -> Done {
        let count = self.each_of(app, &who.member, |keeper, id, _, subscription| {
            let is_meant = who.platform.is_none_or(|p| p == subscription.platform);
            if is_meant {
                keeper.work.asked.extend(subscription.removal(id));
            }
            is_meant
        })?;
        Ok(to_json(&json!({ "unregistered": count, "removed": count })))
    }

    pub(super) fn delete(&mut self, app: &Arc<str>, id: &str, of: Option<&str>) -> Done {
        self.commit()?;
        let found = self.subscription(id)?.filter(|(_, subscription)| {
            *subscription.app == **app && of.is_none_or(|member| member == subscription.member)
        });
        if let Some((_, subscription)) = &found {
            self.work.asked.extend(subscription.removal(id));
        }
        Ok(to_json(&json!({ "deleted": found.is_some() })))
    }

    /// Enrols all of a member's devices in a channel, or takes them out.
    pub(super) fn enrol(&mut self, app: &Arc<str>, what: &Enrolment, enters: bool) -> Done {
        let channel = &what.channel;
        let updated = self.each_of(app, &what.member, |keeper, id, record, subscription| {
            let mut next = subscription.clone();
            let is_enrolled = next.channels.contains(channel);
            if enters == is_enrolled {
                return enters;
            }
            if enters {
                if next.channels.len() >= CHANNELS_MAX {
                    return false;
                }
                next.channels.push(channel.clone());
                keeper
                    .work
                    .asked
                    .push(enrolment(app, channel, id, record.rank));
            } else {
                next.channels.retain(|own| own != channel);
                let gone = Change::delete(ENROLMENT, enrolment_id(app, channel, id));
                keeper.work.asked.push(gone);
            }
            let changed = Change::put(SUBSCRIPTION, next.record(id, record.rank));
            keeper.work.asked.push(changed);
            true
        })?;
        Ok(to_json(&json!({ "updated": updated })))
    }

    /// Calls for each of a member's subscriptions; returns for how many that was true. What the calls ask for is
    /// written step by step.
    fn each_of(
        &mut self,
        app: &str,
        member: &str,
        mut call: impl FnMut(&mut Self, &str, &Record, &Subscription) -> bool,
    ) -> Result<u64, ProtocolError> {
        self.commit()?;
        let (mut count, mut after) = (0, None);
        loop {
            let mut scan =
                Scan::of(SUBSCRIPTION, STEP).labelled(BY_MEMBER, format!("{app}/{member}"));
            scan.after = after;
            let found = self
                .store
                .scan(&scan, now_ms())
                .map_err(|e| unavailable(&e))?;
            for record in &found {
                if let Some(subscription) = Subscription::read(record)
                    && call(self, &record.id, record, &subscription)
                {
                    count += 1;
                }
            }
            after = found.last().map(|record| (record.rank, record.id.clone()));
            if found.len() < STEP {
                return Ok(count);
            }
            self.commit()?;
        }
    }

    /// Removes what is kept of an app. Its sends find that it is gone, and their records expire.
    pub(super) fn forget_app(&mut self, app: &Arc<str>) -> Done {
        self.commit()?;
        loop {
            let scan = Scan::of(SUBSCRIPTION, STEP).labelled(BY_APP, &**app);
            let found = self
                .store
                .scan(&scan, now_ms())
                .map_err(|e| unavailable(&e))?;
            for record in &found {
                match Subscription::read(record) {
                    Some(subscription) => self.work.asked.extend(subscription.removal(&record.id)),
                    None => self
                        .work
                        .asked
                        .push(Change::delete(SUBSCRIPTION, &*record.id)),
                }
            }
            if found.len() < STEP {
                break;
            }
            self.commit()?;
        }
        for platform in Platform::ALL {
            let id = format!("{app}/{}", platform.name());
            self.work.asked.push(Change::delete(PROVIDER, id));
        }
        self.tallies.remove(app);
        self.work.asked.push(Change::delete(TALLY, &**app));
        Ok(to_json(&json!({})))
    }

    pub(super) fn subscription(
        &mut self,
        id: &str,
    ) -> Result<Option<(Record, Subscription)>, ProtocolError> {
        let found = self.store.get(SUBSCRIPTION, id, now_ms());
        let found = found.map_err(|e| unavailable(&e))?;
        Ok(found.and_then(|record| {
            let subscription = Subscription::read(&record)?;
            Some((record, subscription))
        }))
    }

    /// A provider has said that a device is no more.
    pub(super) fn forget(&mut self, id: &str, since_ms: Option<u64>) {
        if self.work.touched.contains(id) && self.commit().is_err() {
            return;
        }
        let Ok(Some((_, subscription))) = self.subscription(id) else {
            return;
        };
        if since_ms.is_none_or(|since| subscription.updated_ms <= since) {
            self.work.removals.extend(subscription.removal(id));
        }
    }

    pub(super) fn list(&mut self, app: &str, query: &ListQuery) -> Done {
        let (name, value) = match (&query.member, query.platform) {
            (None, None) => (BY_APP, app.to_owned()),
            (Some(member), None) => (BY_MEMBER, format!("{app}/{member}")),
            (None, Some(platform)) => (BY_PLATFORM, format!("{app}/{}", platform.name())),
            (Some(member), Some(platform)) => {
                (BY_BOTH, format!("{app}/{}/{member}", platform.name()))
            }
        };
        let mut scan = Scan::of(SUBSCRIPTION, query.limit + 1).labelled(name, value.clone());
        scan.after.clone_from(&query.cursor);
        let now_ms = now_ms();
        let mut found = self
            .store
            .scan(&scan, now_ms)
            .map_err(|e| unavailable(&e))?;
        let total = self.store.count(SUBSCRIPTION, Some((name, &value)), now_ms);
        let total = total.map_err(|e| unavailable(&e))?;
        let cursor = cut(&mut found, query.limit);
        let shown: Vec<Value> = found
            .iter()
            .filter_map(|record| {
                let subscription = Subscription::read(record)?;
                let mut shown = json!({
                    "subscriptionId": record.id, "memberId": subscription.member,
                    "platform": subscription.platform, "channels": subscription.channels,
                    "createdAt": record.rank, "updatedAt": subscription.updated_ms,
                });
                if let Some(metadata) = subscription.metadata {
                    shown["metadata"] = metadata.into();
                }
                Some(shown)
            })
            .collect();
        let mut answer = json!({ "subscriptions": shown, "total": total });
        if let Some(cursor) = cursor {
            answer["cursor"] = cursor.into();
        }
        Ok(to_json(&answer))
    }

    /// Subscriptions by platform.
    pub(super) fn count_subscriptions(&mut self, app: &str) -> Result<Value, RecordError> {
        let mut counts = Map::new();
        for platform in Platform::ALL {
            let value = format!("{app}/{}", platform.name());
            let count = self
                .store
                .count(SUBSCRIPTION, Some((BY_PLATFORM, &value)), now_ms())?;
            counts.insert(platform.name().into(), count.into());
        }
        Ok(counts.into())
    }
}

/// Refuses addresses that could never be sent to.
fn check(address: &Address, allow_private: bool) -> Result<(), ProtocolError> {
    use shardwire_proto::error::ErrorCode;
    let Address::Web {
        endpoint, p256dh, ..
    } = address
    else {
        return Ok(());
    };
    let wrong = |text: &'static str| ProtocolError::with_text(ErrorCode::BadField, text);
    let uri: Option<hyper::http::Uri> = endpoint.parse().ok();
    let uri = uri.ok_or_else(|| wrong("`endpoint` is not a URL"))?;
    let host = uri.host().ok_or_else(|| wrong("`endpoint` has no host"))?;
    if uri.scheme_str() != Some("https") && !allow_private {
        return Err(wrong("`endpoint` must begin with https://"));
    }
    if !egress::is_allowed_host(host, allow_private) {
        return Err(wrong("`endpoint` has an address that is not public"));
    }
    let point = decode_base64(p256dh).unwrap_or_default();
    if !crypt::is_point(&point) {
        return Err(wrong("`keys.p256dh` is not a point of P-256"));
    }
    Ok(())
}
