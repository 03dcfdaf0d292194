//! Request heads: found or refused the same way however much has arrived.
//! From `engine/proto`: `cargo +nightly fuzz run ws_handshake`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardwire_proto::ws::fuzz::fuzz_handshake(data));
