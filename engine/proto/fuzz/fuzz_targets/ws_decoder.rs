//! WebSocket frames: any cut of a stream gives the same events or error.
//! From `engine/proto`: `cargo +nightly fuzz run ws_decoder`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardwire_proto::ws::fuzz::fuzz_decoder(data));
