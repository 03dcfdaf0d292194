//! ULIDs: 48 bits of milliseconds and 80 random bits in Crockford's base 32, 26 characters that
//! sort by time.

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The ULID of a time (ms since the Unix epoch) and the low 80 bits of `random`.
pub fn encode(unix_ms: u64, random: u128) -> String {
    let value = (u128::from(unix_ms) << 80) | (random & ((1 << 80) - 1));
    (0..26)
        .rev()
        .map(|group| {
            let index = usize::try_from((value >> (group * 5)) & 31).unwrap_or(0);
            ALPHABET.get(index).map_or('0', |b| char::from(*b))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_s_example_and_order() {
        assert_eq!(encode(1_469_918_176_385, 0), "01ARYZ6S410000000000000000");
        assert!(encode(1, u128::MAX) < encode(2, 0));
        assert!(encode(5, 1) < encode(5, 2));
    }
}
