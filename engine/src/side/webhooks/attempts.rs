//! Attempts: which are made, and what follows from them.

use std::ops::Bound;
use std::sync::Arc;

use shardwire_proto::webhook::event::encode_body;
use shardwire_proto::webhook::sender::{Outcome, Step};

use super::LATENCY_BOUNDS_MS;
use super::deliver::{Place, Report};
use super::keeper::{Keeper, RELOAD_MS};
use super::outbox::{self, DEAD, Dead, REPLAY};
use crate::records::{Change, Condition};
use crate::sys;

impl Keeper {
    pub(super) fn start_attempts(&mut self, now_ms: u64) {
        let after = std::mem::take(&mut self.served);
        let order: Vec<String> = {
            let behind = (Bound::Excluded(&*after), Bound::Unbounded);
            let before = (Bound::Unbounded, Bound::Included(&*after));
            let behind = self.lines.range::<str, _>(behind);
            let all = behind.chain(self.lines.range::<str, _>(before));
            all.filter(|(_, line)| line.endpoint.enabled)
                .map(|(id, _)| id.clone())
                .collect()
        };
        self.served = after;
        for id in order {
            if !self.pool.has_room(false) {
                return;
            }
            self.start_replay(&id, now_ms);
            let Some(line) = self.lines.get_mut(&id) else {
                continue;
            };
            while let Some(is_probe) = line.sender.as_ref().map(|sender| sender.is_doubtful())
                && self.pool.has_room(is_probe)
                && let Some(attempt) = line.sender.as_mut().and_then(|sender| sender.start(now_ms))
            {
                let shipment = line.shipment(attempt, is_probe, now_ms);
                self.pool.ship(shipment);
                self.served.clone_from(&id);
            }
        }
    }

    pub(super) fn start_replay(&mut self, id: &str, now_ms: u64) {
        let Some(line) = self.lines.get_mut(id) else {
            return;
        };
        if line.replaying.is_some() || !self.pool.has_room(true) {
            return;
        }
        while let Some(dead_id) = line.replays.pop_front() {
            let found = match self.records.get(DEAD, &dead_id, now_ms) {
                Ok(found) => found,
                Err(error) => {
                    line.replays.push_front(dead_id);
                    return self.note_failure(&error);
                }
            };
            let Some(dead) = found.as_ref().and_then(outbox::parse::<Dead>) else {
                // It was removed meanwhile.
                self.edits.push(Change::delete(REPLAY, dead_id));
                continue;
            };
            let events = dead.events.iter().map(|event| event.get());
            let body = encode_body(&dead.id, &line.app, dead.time_ms, events);
            let attempt = (dead.id, dead.attempts + 1);
            let place = Place::Replay(dead_id.clone());
            let shipment = line.ship(place, attempt, body, dead.times, true, now_ms);
            line.replaying = Some(dead_id);
            self.pool.ship(shipment);
            return;
        }
    }

    pub(super) fn hear(&mut self, report: Report, now_ms: u64) {
        self.pool.note(&report);
        let Report {
            shipment,
            entry,
            retry_after_ms,
        } = report;
        if let Some(reply) = self.trials.remove(&shipment.id) {
            // Whoever asked may have given up.
            _ = reply.try_send(Ok(serde_json::to_value(&entry).unwrap_or_default()));
        }
        let Some(line) = self.lines.get_mut(&*shipment.endpoint) else {
            return;
        };
        let (is_delivered, status) = (entry.is_delivered(), entry.status);
        let error = entry
            .error
            .clone()
            .or(status.map(|s| format!("status {s}")));
        line.note_attempt(entry);
        match shipment.place {
            Place::Test => return,
            Place::Replay(id) => {
                line.replaying = None;
                self.hear_replay(&id, is_delivered, error, now_ms);
                return;
            }
            Place::Lane(lane) => {
                let outcome = match (is_delivered, status) {
                    (true, _) => Outcome::Delivered,
                    // It waits until somebody enables the endpoint again.
                    (_, Some(410)) => Outcome::Abandoned,
                    _ => Outcome::Failed { retry_after_ms },
                };
                let Some(sender) = &mut line.sender else {
                    return;
                };
                let [random, ..] = sys::random();
                let step = sender.finish(lane, outcome, f64::from(random) / 255.0, now_ms);
                line.dirty = true;
                match step {
                    Some(Step::Delivered) => {
                        for at_ms in &shipment.times {
                            let ms = now_ms.saturating_sub(*at_ms);
                            let bound = LATENCY_BOUNDS_MS.iter().position(|bound| ms <= *bound);
                            self.stats.latency[bound.unwrap_or(LATENCY_BOUNDS_MS.len())] += 1;
                            self.stats.latency_sum_ms += ms;
                        }
                        self.stats.delivered += shipment.times.len() as u64;
                    }
                    Some(Step::Again { .. }) => self.stats.failures += 1,
                    Some(Step::Dead {
                        id,
                        formed_ms,
                        events,
                    }) => {
                        self.stats.failures += 1;
                        self.stats.dead += 1;
                        let text = |text: &Arc<str>| serde_json::from_str(text).ok();
                        let dead = Dead {
                            endpoint: line.id.to_string(),
                            app: line.app.to_string(),
                            id,
                            time_ms: formed_ms,
                            at: now_ms,
                            attempts: shipment.attempt,
                            error: error.unwrap_or_default(),
                            times: events.iter().map(|event| event.at_ms).collect(),
                            events: events
                                .iter()
                                .filter_map(|event| text(&event.text))
                                .collect(),
                        };
                        log::warn!(endpoint = dead.endpoint.as_str(), id = dead.id.as_str(), error = dead.error.as_str(); "webhooks: a delivery is given up");
                        let until_ms = now_ms + self.config.dead_letters_s * 1000;
                        let put = outbox::put_dead(&dead, until_ms, Condition::Always);
                        self.edits.push(put);
                    }
                    None => {}
                }
            }
        }
        if status == Some(410) {
            self.disable(&shipment.endpoint, "the endpoint answered 410 Gone", now_ms);
        }
    }

    pub(super) fn hear_replay(
        &mut self,
        id: &str,
        is_delivered: bool,
        error: Option<String>,
        now_ms: u64,
    ) {
        self.edits.push(Change::delete(REPLAY, id));
        if is_delivered {
            self.edits.push(Change::delete(DEAD, id));
            return;
        }
        let found = self.records.get(DEAD, id, now_ms);
        if let Some(mut dead) = found
            .ok()
            .flatten()
            .as_ref()
            .and_then(outbox::parse::<Dead>)
        {
            dead.attempts += 1;
            dead.error = error.unwrap_or_default();
            let until_ms = now_ms + self.config.dead_letters_s * 1000;
            let put = outbox::put_dead(&dead, until_ms, Condition::Always);
            self.edits.push(put);
        }
    }

    pub(super) fn disable(&mut self, id: &str, reason: &str, now_ms: u64) {
        let Some(line) = self.lines.get_mut(id) else {
            return;
        };
        log::warn!(endpoint = id, url = line.endpoint.url.as_str(); "webhooks: disabled: {reason}");
        let mut endpoint = (*line.endpoint).clone();
        endpoint.enabled = false;
        endpoint.disabled_reason = Some(reason.to_owned());
        self.edits
            .push(outbox::put_endpoint(&endpoint, Condition::Always));
        line.change(endpoint);
        self.due.reload = now_ms + RELOAD_MS;
        self.settle_wanted();
    }
}
