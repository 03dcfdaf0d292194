//! The fuzz entry points over the kept corpus and over seeded mutations of it: short, and the same on every run.
//!
//! A crash that libFuzzer finds is kept as a file under `fuzz/corpus/<target>` and is checked here from then on.

use std::path::Path;

use shardwire_proto::wire::wsocket::fuzz_envelope;
use shardwire_proto::ws::fuzz::{fuzz_decoder, fuzz_handshake};

/// Mutations per target.
const ROUNDS: usize = 20_000;

/// xorshift64*: enough spread for picking mutations, and the same everywhere.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    }
}

/// The files of a target's corpus, by name.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("corpus entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("corpus file"))
        .collect()
}

/// Flips, cuts, repeats, and splices entries of `corpus`, starting from one of them.
fn mutate(corpus: &[Vec<u8>], seeded: &mut Seeded) -> Vec<u8> {
    let mut data = corpus[seeded.below(corpus.len())].clone();
    for _ in 0..=seeded.below(4) {
        let at = seeded.below(data.len());
        match seeded.below(5) {
            0 => data.truncate(at),
            1 => data.extend_from_slice(&corpus[seeded.below(corpus.len())]),
            2 => data.insert(at, seeded.below(256) as u8),
            3 => data.extend_from_within(at..),
            _ => {
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << seeded.below(8);
                }
            }
        }
        data.truncate(20_000);
    }
    data
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|data| run(data));
    let mut seeded = Seeded(0x5EED_0F5A_11DE_C0DE);
    for _ in 0..ROUNDS {
        run(&mutate(&corpus, &mut seeded));
    }
}

#[test]
fn ws_decoder() {
    replay("ws_decoder", fuzz_decoder);
}

#[test]
fn ws_handshake() {
    replay("ws_handshake", fuzz_handshake);
}

#[test]
fn envelope() {
    replay("envelope", fuzz_envelope);
}
