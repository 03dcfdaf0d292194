//! HTTP requests that wait for shards: their results are gathered here and wake them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_lite::future;
use shardwire_proto::auth::Caller;
use shardwire_proto::error::ErrorCode;
use shardwire_proto::ids::{RequestId, ShardId};
use shardwire_proto::msg::{Answer, Published, Query};
use shardwire_proto::record::{Page, Record};
use shardwire_proto::shard::{PublishItem, Shard};

use super::{Core, ShardRuntime};
use crate::sys;

/// A publish over HTTP is answered by then; what a stuck shard has not confirmed is reported as
/// unavailable (and may yet be delivered: retry with the same id).
const PUBLISH_DEADLINE: Duration = Duration::from_secs(10);

/// A shard that has not answered a question by then is stuck.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// Messages of a page, and whether there are more.
type PageResult = Result<(Vec<Arc<Record>>, bool), ErrorCode>;

#[derive(Debug, Default)]
pub struct Requests {
    next: Cell<u64>,
    pending: RefCell<HashMap<u64, Pending>>,
}

#[derive(Debug)]
struct Pending {
    results: Vec<Option<Result<Published, ErrorCode>>>,
    answers: Vec<(ShardId, Answer)>,
    page: Option<PageResult>,
    cleared: Option<Result<u64, ErrorCode>>,
    /// Results and answers still to come.
    missing: usize,
    waker: Option<Waker>,
}

impl Requests {
    fn begin(&self, items: usize, answers: usize) -> RequestId {
        let id = self.next.get();
        self.next.set(id + 1);
        self.pending.borrow_mut().insert(
            id,
            Pending {
                results: vec![None; items],
                answers: Vec::new(),
                page: None,
                cleared: None,
                missing: items + answers,
                waker: None,
            },
        );
        RequestId(id)
    }

    pub(super) fn published(
        &self,
        request: RequestId,
        item: u32,
        result: Result<Published, ErrorCode>,
    ) {
        self.note(request, |pending| {
            let slot = pending.results.get_mut(item as usize)?;
            slot.replace(result).is_none().then_some(())
        });
    }

    pub(super) fn answered(&self, request: RequestId, from: ShardId, answer: Answer) {
        self.note(request, |pending| {
            pending.answers.push((from, answer));
            Some(())
        });
    }

    pub(super) fn paged(&self, request: RequestId, result: PageResult) {
        self.note(request, |pending| {
            pending.page = Some(result);
            Some(())
        });
    }

    pub(super) fn cleared(&self, request: RequestId, result: Result<u64, ErrorCode>) {
        self.note(request, |pending| {
            pending.cleared = Some(result);
            Some(())
        });
    }

    fn note(&self, request: RequestId, take: impl FnOnce(&mut Pending) -> Option<()>) {
        let mut all = self.pending.borrow_mut();
        // A request that gave up has no entry.
        if let Some(pending) = all.get_mut(&request.0)
            && take(pending).is_some()
        {
            pending.missing -= 1;
            if pending.missing == 0
                && let Some(waker) = pending.waker.take()
            {
                waker.wake();
            }
        }
    }

    async fn wait(&self, request: RequestId, deadline: Duration) -> Option<Pending> {
        /// Forgets the request also when the client has gone and the future is dropped.
        struct Entry<'a>(&'a Requests, RequestId);
        impl Drop for Entry<'_> {
            fn drop(&mut self) {
                self.0.pending.borrow_mut().remove(&self.1.0);
            }
        }
        let entry = Entry(self, request);
        let complete = poll_fn(|cx| match self.pending.borrow_mut().get_mut(&request.0) {
            Some(pending) if pending.missing > 0 => {
                pending.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        });
        future::or(complete, glommio::timer::sleep(deadline)).await;
        let pending = self.pending.borrow_mut().remove(&request.0);
        drop(entry);
        pending
    }
}

impl ShardRuntime<Shard> {
    /// Publishes for an HTTP request: results in the items' order.
    pub async fn publish(
        &self,
        caller: &Caller,
        items: &[PublishItem<'_>],
    ) -> Vec<Result<Published, ErrorCode>> {
        let request = self.requests.begin(items.len(), 0);
        self.with(|shard, now| {
            for (index, item) in (0u32..).zip(items) {
                shard.publish_request(caller, request, index, item, now);
            }
        });
        let results = self
            .requests
            .wait(request, PUBLISH_DEADLINE)
            .await
            .map(|p| p.results)
            .unwrap_or_default();
        let mut results: Vec<_> = results
            .into_iter()
            .map(|r| r.unwrap_or(Err(ErrorCode::Unavailable)))
            .collect();
        results.resize(items.len(), Err(ErrorCode::Unavailable));
        results
    }

    /// A page of a channel's stored messages, and whether there are more.
    pub async fn history(&self, app: &str, channel: &str, page: Page) -> PageResult {
        let request = self.requests.begin(0, 1);
        self.with(|shard, _| shard.history_request(app, channel, page, request));
        let pending = self.requests.wait(request, PUBLISH_DEADLINE).await;
        pending
            .and_then(|p| p.page)
            .unwrap_or(Err(ErrorCode::Unavailable))
    }

    /// Removes a channel's stored messages; returns how many there were.
    pub async fn clear(&self, app: &str, channel: &str) -> Result<u64, ErrorCode> {
        let request = self.requests.begin(0, 1);
        self.with(|shard, now| shard.clear_request(app, channel, request, now));
        let pending = self.requests.wait(request, PUBLISH_DEADLINE).await;
        pending
            .and_then(|p| p.cleared)
            .unwrap_or(Err(ErrorCode::Unavailable))
    }

    /// Asks every shard: the answers of those that gave one in time.
    pub async fn ask(&self, app: &str, query: Query) -> Vec<(ShardId, Answer)> {
        let shards = self.lanes.borrow().len().max(1);
        let request = self.requests.begin(0, shards);
        self.with(|shard, now| {
            shard.note_cpu(sys::thread_cpu_us());
            shard.ask(app, request, query, now)
        });
        self.requests
            .wait(request, ASK_DEADLINE)
            .await
            .map(|p| p.answers)
            .unwrap_or_default()
    }
}
