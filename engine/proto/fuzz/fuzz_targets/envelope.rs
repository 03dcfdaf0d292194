//! wSocket envelopes as clients send them.
//! From `engine/proto`: `cargo +nightly fuzz run envelope`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shardwire_proto::wire::wsocket::fuzz_envelope(data));
