//! What apps have used, in MongoDB: a document per app, step and start.
//!
//! Several servers add to the same documents; peaks are the highest that one of them has seen.

use std::collections::HashMap;
use std::sync::Arc;

use futures_lite::StreamExt;
use mongodb::bson::{DateTime, Document, doc};
use mongodb::error::Error;
use mongodb::options::Hint;
use mongodb::{ClientSession, Collection};
use shardwire_proto::quota::{Totals, first_day_of, month_of};

use super::{Mongo, MongoError, names};
use crate::usage::{POINTS_MAX, Point, RowKey, Series, Step, Unwritten, Used};

/// The collection.
pub(crate) struct MongoSeries {
    mongo: Mongo,
    usage: Collection<Document>,
}

impl MongoSeries {
    pub(crate) fn new(mongo: Mongo) -> Self {
        Self {
            usage: mongo.collection(names::USAGE),
            mongo,
        }
    }

    fn find(
        &self,
        filter: Document,
        order: Document,
        index: &str,
        limit: i64,
    ) -> Result<Vec<Document>, MongoError> {
        let hint = Hint::Name(index.to_owned());
        self.mongo.retrying(|| async {
            let find = self
                .usage
                .find(filter.clone())
                .sort(order.clone())
                .limit(limit);
            let found = find.hint(hint.clone()).await?;
            let found: Vec<Result<Document, Error>> = found.collect().await;
            found.into_iter().collect::<Result<Vec<Document>, Error>>()
        })
    }

    /// As [`SqliteSeries::rows`](crate::usage::SqliteSeries::rows).
    pub(crate) fn rows(&self, after: &RowKey, limit: usize) -> Result<Vec<(RowKey, Used)>, String> {
        let (app, step, start) = (&after.0, int(after.1), int(after.2));
        let behind = doc! {"app": {"$gte": app}, "$or": [
            {"app": {"$gt": app}},
            {"app": app, "step": {"$gt": step}},
            {"app": app, "step": step, "start": {"$gt": start}},
        ]};
        let order = doc! {"app": 1, "step": 1, "start": 1};
        let found = self.find(behind, order, "by_start", limit as i64);
        let found = found.map_err(|error| error.to_string())?;
        let rows = found.iter().map(|row| {
            let app = row.get_str("app").unwrap_or_default().to_owned();
            ((app, uint(row, "step"), uint(row, "start")), used_of(row))
        });
        Ok(rows.collect())
    }

    /// As [`SqliteSeries::put_rows`](crate::usage::SqliteSeries::put_rows).
    pub(crate) fn put_rows(&self, rows: &[(RowKey, Used)]) -> Result<(), String> {
        let put = self.mongo.transact(async |session: &mut ClientSession| {
            for ((app, step, start), used) in rows {
                let numbers = doc! {
                    "messages": int(used.messages),
                    "deliveries": int(used.deliveries),
                    "refused": int(used.refused),
                    "connections": int(used.connections_peak),
                    "channels": int(used.channels_peak),
                    "push_sent": int(used.push_sent),
                    "push_failed": int(used.push_failed),
                };
                let mut set = fixed(app, *step, *start);
                set.extend(numbers);
                let update = self
                    .usage
                    .update_one(id(app, *step, *start), doc! {"$set": set});
                update.upsert(true).session(&mut *session).await?;
            }
            Ok(Ok::<_, MongoError>(()))
        });
        put.and_then(|put| put).map_err(|error| error.to_string())
    }
}

impl Series for MongoSeries {
    fn totals(&mut self, day: u32) -> Result<HashMap<Arc<str>, Totals>, String> {
        let start = |day: u32| int(u64::from(day) * Step::Day.seconds());
        let first = start(first_day_of(month_of(day)));
        let days = doc! {
            "step": int(Step::Day.seconds()),
            "start": {"$gte": first, "$lte": start(day)},
        };
        let found = self.find(days, doc! {}, "by_day", 0);
        let found = found.map_err(|error| error.to_string())?;
        let mut totals: HashMap<Arc<str>, Totals> = HashMap::new();
        for row in &found {
            let app = row.get_str("app").unwrap_or_default();
            let of_app = totals.entry(app.into()).or_insert(Totals {
                day,
                messages_day: 0,
                messages_month: 0,
            });
            let messages = uint(row, "messages");
            of_app.messages_month += messages;
            if row.get_i64("start").is_ok_and(|at| at == start(day)) {
                of_app.messages_day += messages;
            }
        }
        Ok(totals)
    }

    fn add(&mut self, used: &Unwritten) -> Result<(), String> {
        let added = self.mongo.transact(async |session: &mut ClientSession| {
            for ((app, minute_s), used) in used {
                for step in Step::ALL {
                    let seconds = step.seconds();
                    let start = minute_s - minute_s % seconds;
                    let add = doc! {
                        "$inc": {
                            "messages": int(used.messages),
                            "deliveries": int(used.deliveries),
                            "refused": int(used.refused),
                            "push_sent": int(used.push_sent),
                            "push_failed": int(used.push_failed),
                        },
                        "$max": {
                            "connections": int(used.connections_peak),
                            "channels": int(used.channels_peak),
                        },
                        "$setOnInsert": fixed(app, seconds, start),
                    };
                    let update = self.usage.update_one(id(app, seconds, start), add);
                    update.upsert(true).session(&mut *session).await?;
                }
            }
            Ok(Ok::<_, MongoError>(()))
        });
        added
            .and_then(|added| added)
            .map_err(|error| error.to_string())
    }

    fn read(
        &mut self,
        app: &str,
        step: Step,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<Vec<Point>, String> {
        let (from, to) = (from_ms / 1000, to_ms.div_ceil(1000));
        let from = from - from % step.seconds();
        let filter = doc! {
            "app": app,
            "step": int(step.seconds()),
            "start": {"$gte": int(from), "$lt": int(to)},
        };
        let order = doc! {"start": 1};
        let found = self.find(filter, order, "by_start", POINTS_MAX as i64);
        let found = found.map_err(|error| error.to_string())?;
        let points = found.iter().map(|row| Point {
            start_ms: uint(row, "start") * 1000,
            used: used_of(row),
        });
        Ok(points.collect())
    }

    /// The database does so by itself; this is for those that were not told when.
    fn forget_old(&mut self, now_s: u64) -> Result<(), String> {
        for step in Step::ALL {
            let before = int(now_s.saturating_sub(step.kept_s()));
            let old = doc! {"step": int(step.seconds()), "start": {"$lt": before}};
            let forget = || self.usage.delete_many(old.clone());
            self.mongo
                .retrying(forget)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

fn id(app: &str, step_s: u64, start_s: u64) -> Document {
    doc! {"_id": format!("{app}/{step_s}/{start_s}")}
}

/// What a row is of.
fn fixed(app: &str, step_s: u64, start_s: u64) -> Document {
    let mut fixed = doc! {"app": app, "step": int(step_s), "start": int(start_s)};
    let kept = Step::ALL.into_iter().find(|step| step.seconds() == step_s);
    if let Some(kept) = kept {
        let until = start_s.saturating_add(kept.kept_s()).saturating_mul(1000);
        fixed.insert("expires", DateTime::from_millis(int(until)));
    }
    fixed
}

fn used_of(row: &Document) -> Used {
    Used {
        messages: uint(row, "messages"),
        deliveries: uint(row, "deliveries"),
        refused: uint(row, "refused"),
        connections_peak: uint(row, "connections"),
        channels_peak: uint(row, "channels"),
        // A row from before there were notifications has neither.
        push_sent: uint(row, "push_sent"),
        push_failed: uint(row, "push_failed"),
    }
}

fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(row: &Document, name: &str) -> u64 {
    u64::try_from(row.get_i64(name).unwrap_or(0)).unwrap_or(0)
}
