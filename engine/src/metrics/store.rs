//! The store's part of the page: one store per process, so without a label for the shard.

use super::Page;
use crate::store::StoreStats;

pub(super) fn render(page: &mut Page, store: &StoreStats) {
    render_numbers(page, store);
    render_results(page, store);
    let histograms = [
        (
            "shardwire_store_commit_seconds",
            "Length of transactions, failed ones too.",
            &store.commit,
        ),
        (
            "shardwire_store_read_seconds",
            "Time to answer a question, without the wait for a reader.",
            &store.read,
        ),
    ];
    for (name, help, histogram) in histograms {
        page.family(name, "histogram", help);
        page.histogram(name, &[], histogram);
    }
}

fn render_numbers(page: &mut Page, store: &StoreStats) {
    let families = [
        (
            "shardwire_store_failing",
            "gauge",
            "1 while writing fails and messages with history are refused.",
            u64::from(store.failing_since_ms.is_some()),
        ),
        (
            "shardwire_store_queue_operations",
            "gauge",
            "Operations that wait for their commit.",
            store.queue_ops as u64,
        ),
        (
            "shardwire_store_queue_bytes",
            "gauge",
            "Bytes of those operations.",
            store.queue_bytes as u64,
        ),
        (
            "shardwire_store_queue_reads",
            "gauge",
            "Questions that wait for a reader.",
            store.reads_queued as u64,
        ),
        (
            "shardwire_store_expired_total",
            "counter",
            "Messages removed by expiry; those that a full channel pushed out are not counted.",
            store.expired,
        ),
        (
            "shardwire_store_reopened_total",
            "counter",
            "Times the storage was opened again after it had broken.",
            store.reopened,
        ),
        (
            "shardwire_store_order_errors_total",
            "counter",
            "Batches that contradicted what was stored: above 0 is a mistake of this program.",
            store.order_errors,
        ),
    ];
    for (name, kind, help, value) in families {
        page.family(name, kind, help);
        page.sample(name, &[], value);
    }
}

fn render_results(page: &mut Page, store: &StoreStats) {
    type Results<'a> = &'a [(&'a str, u64)];
    let families: [(&str, &str, Results<'_>); 3] = [
        (
            "shardwire_store_operations_total",
            "Operations by what became of them.",
            &[
                ("committed", store.ops),
                ("failed", store.ops_failed),
                ("refused", store.ops_refused),
            ],
        ),
        (
            "shardwire_store_commits_total",
            "Transactions; operations per commit is the mean batch.",
            &[
                ("committed", store.commits),
                ("failed", store.commits_failed),
            ],
        ),
        (
            "shardwire_store_reads_total",
            "Questions by what became of them; a refused one is asked again.",
            &[
                ("answered", store.reads.saturating_sub(store.reads_failed)),
                ("failed", store.reads_failed),
                ("refused", store.reads_refused),
            ],
        ),
    ];
    for (name, help, results) in families {
        page.family(name, "counter", help);
        for (result, count) in results {
            page.sample(name, &[("result", result)], count);
        }
    }
}
