//! Micro-benchmarks of the engine: none yet. The comparison with other servers is measured by `shardwire-loadtest`.

fn main() {}
