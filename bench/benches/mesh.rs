//! The way from one shard to another and back: batches over the engine's lanes, each end an executor of its own on a
//! core of its own where there are two.

#![expect(clippy::unwrap_used, reason = "what fails here ends the benchmark")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_lite::StreamExt;
use glommio::channels::channel_mesh::{Full, MeshBuilder};
use glommio::{LocalExecutorBuilder, Placement};
use shardwire::shard::{Batch, LANE_BATCHES};
use shardwire_proto::msg::{LocalRef, ShardMsg};

/// Messages in a batch: a quiet turn, a busy one.
const BATCH_MESSAGES: [usize; 2] = [1, 64];

/// One end of the mesh as the engine makes it.
fn executor(core: usize) -> LocalExecutorBuilder {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    LocalExecutorBuilder::new(Placement::Fixed(core % cores))
        .name("mesh")
        .io_memory(64 * 1024)
        .ring_depth(1024)
}

fn batch(messages: usize) -> Batch {
    let frame: Arc<[u8]> = vec![b'x'; 200].into();
    let deliver = |slot| ShardMsg::Deliver {
        to: LocalRef {
            slot,
            generation: 0,
        },
        frame: frame.clone(),
        sequence: None,
        exclude: None,
        accepted_us: 0,
    };
    (0..messages as u32).map(deliver).collect()
}

/// Time that `hops` round trips of one batch take.
fn round_trips(messages: usize, hops: u64) -> Duration {
    let mesh: MeshBuilder<Batch, Full> = MeshBuilder::full(2, LANE_BATCHES);
    let ends = [0, 1].map(|core| {
        let mesh = mesh.clone();
        let body = move || async move {
            let (senders, mut receivers) = mesh.join().await.unwrap();
            let peer = 1 - senders.peer_id();
            let (_, mut lane) = receivers.streams().pop().unwrap();
            let is_first = senders.peer_id() == 0;
            let mut travelling = is_first.then(|| batch(messages));
            let start = Instant::now();
            for _ in 0..hops {
                if let Some(batch) = travelling.take() {
                    senders.try_send_to(peer, batch).unwrap();
                }
                let batch = lane.next().await.unwrap();
                if is_first {
                    travelling = Some(batch);
                } else {
                    senders.try_send_to(peer, batch).unwrap();
                }
            }
            // The first end's time: it has sent and got back everything.
            is_first.then(|| start.elapsed())
        };
        executor(core).spawn(body).unwrap()
    });
    let times = ends.map(|end| end.join().unwrap());
    times.into_iter().flatten().next().unwrap()
}

fn mesh(c: &mut Criterion) {
    let mut group = c.benchmark_group("mesh round trip");
    for messages in BATCH_MESSAGES {
        group.throughput(Throughput::Elements(2 * messages as u64));
        group.bench_function(BenchmarkId::from_parameter(messages), |b| {
            b.iter_custom(|hops| round_trips(messages, hops));
        });
    }
    group.finish();
}

criterion_group!(benches, mesh);
criterion_main!(benches);
