//! Bytes in and out: frames, requests, deliveries.

#![expect(clippy::unwrap_used, reason = "what fails here ends the benchmark")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shardwire_proto::wire::wsocket::{FrameEncoder, Position, parse_request, write_message};
use shardwire_proto::ws::frame::{OpCode, write_frame, write_masked_frame};
use shardwire_proto::ws::{Decoder, DecoderConfig, Role};

const FRAME_BYTES: [usize; 3] = [100, 1024, 16 * 1024];
const DATA_BYTES: [usize; 2] = [100, 1024];

fn text(bytes: usize) -> Vec<u8> {
    vec![b'x'; bytes]
}

/// A JSON string of so many bytes.
fn data(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

fn frames(c: &mut Criterion) {
    let config = DecoderConfig {
        message_bytes_max: 128 * 1024,
        role: Role::Server,
        tolerate_unmasked_control: true,
    };
    let mut group = c.benchmark_group("frame parse");
    for bytes in FRAME_BYTES {
        let mut frame = Vec::new();
        write_masked_frame(
            &mut frame,
            OpCode::Text,
            &text(bytes),
            [0x37, 0xfa, 0x21, 0x3d],
        );
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            let mut decoder = Decoder::default();
            // Parsing unmasks in place, so each pass needs its own copy.
            b.iter_batched_ref(
                || frame.clone(),
                |frame| decoder.step(black_box(frame), &config).unwrap().consumed,
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
    let mut group = c.benchmark_group("frame write");
    for bytes in FRAME_BYTES {
        let payload = text(bytes);
        let mut out = Vec::new();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| {
                out.clear();
                write_frame(&mut out, OpCode::Text, black_box(&payload));
                out.len()
            });
        });
    }
    group.finish();
}

fn envelopes(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish envelope parse");
    for bytes in DATA_BYTES {
        let request = format!(
            r#"{{"action":"publish","channel":"room:1234","data":{},"id":"0199c2d4-5a1e-7cc1-9a3b-2f6d1c0e8b77","persist":false}}"#,
            data(bytes)
        );
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| parse_request(black_box(&request)).is_ok());
        });
    }
    group.finish();
    let mut group = c.benchmark_group("delivery frame encode");
    for bytes in DATA_BYTES {
        let data = data(bytes);
        let position = Position {
            timestamp: 1_764_000_000_000,
            sequence: Some(123_456),
        };
        let mut encoder = FrameEncoder::default();
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| {
                let id = "0199c2d4-5a1e-7cc1-9a3b-2f6d1c0e8b77";
                let write = |out: &mut Vec<u8>| {
                    write_message(out, "room:1234", black_box(&data), id, position);
                };
                encoder.text(write).len()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frames, envelopes);
criterion_main!(benches);
