//! Masking (RFC 6455 section 5.3): XOR with a repeated four-byte key, its own inverse.

/// Masks or unmasks `bytes` in place; `key[0]` belongs to `bytes[0]`. For the middle of a payload, turn the key with
/// [`rotate`] first.
#[inline]
pub fn apply(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    // Eight bytes at a time: the compiler turns this loop into vector instructions.
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(wide.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// The key as it applies to the payload byte `offset` bytes further on.
#[inline]
#[must_use]
pub fn rotate(mut key: [u8; 4], offset: usize) -> [u8; 4] {
    key.rotate_left(offset % 4);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_formula_of_the_rfc_at_every_cut(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            key in any::<[u8; 4]>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let expected: Vec<u8> = payload.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]).collect();
            let mut masked = payload.clone();
            let (left, right) = masked.split_at_mut(cut.index(payload.len() + 1));
            apply(left, key);
            apply(right, rotate(key, left.len()));
            prop_assert_eq!(masked, expected);
        }
    }
}
