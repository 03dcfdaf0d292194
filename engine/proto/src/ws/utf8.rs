//! Text that arrives in pieces, checked as it arrives (RFC 6455 section 8.1).
//!
//! Invariant: `text` is valid UTF-8 and `tail` is the beginning of one more character, so the first byte that can
//! belong to no valid text is refused at once, wherever the pieces are cut.

/// The text of a message whose end has not arrived.
#[derive(Debug, Default)]
pub(super) struct TextBuffer {
    /// Whole characters.
    text: String,
    /// A character cut by the end of the last piece.
    tail: [u8; 4],
    /// Bytes used of `tail`, 0 to 3.
    tail_len: usize,
}

/// The bytes are not, and cannot become, UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidUtf8;

impl TextBuffer {
    /// Appends a piece. `announced` is the number of bytes frame headers have promised so far, and the bound of what is allocated.
    pub(super) fn push(&mut self, piece: &[u8], announced: usize) -> Result<(), InvalidUtf8> {
        self.text.reserve_exact(growth(
            self.text.len(),
            self.text.capacity(),
            self.tail_len + piece.len(),
            announced,
        ));
        let piece = self.complete_tail(piece)?;
        match str::from_utf8(piece) {
            Ok(text) => self.text.push_str(text),
            // Only the end of the piece is missing: what precedes it is text, and it waits in the tail.
            Err(error) if error.error_len().is_none() => {
                let (whole, cut) = piece.split_at(error.valid_up_to());
                self.text
                    .push_str(str::from_utf8(whole).map_err(|_| InvalidUtf8)?);
                for (slot, byte) in self.tail.iter_mut().zip(cut) {
                    *slot = *byte;
                }
                self.tail_len = cut.len();
            }
            Err(_) => return Err(InvalidUtf8),
        }
        Ok(())
    }

    /// Feeds the cut character byte by byte until it is whole; gives back the rest of the piece.
    fn complete_tail<'p>(&mut self, mut piece: &'p [u8]) -> Result<&'p [u8], InvalidUtf8> {
        while self.tail_len > 0 {
            let Some((&byte, rest)) = piece.split_first() else {
                break;
            };
            let Some(slot) = self.tail.get_mut(self.tail_len) else {
                return Err(InvalidUtf8);
            };
            *slot = byte;
            self.tail_len += 1;
            piece = rest;
            match str::from_utf8(self.tail.get(..self.tail_len).unwrap_or_default()) {
                Ok(character) => {
                    self.text.push_str(character);
                    self.tail_len = 0;
                }
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(InvalidUtf8),
            }
        }
        Ok(piece)
    }

    /// Called when the message ends: no character may be left open.
    pub(super) fn finish(&self) -> Result<(), InvalidUtf8> {
        if self.tail_len == 0 {
            Ok(())
        } else {
            Err(InvalidUtf8)
        }
    }

    /// The whole characters received so far.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Bytes allocated.
    pub(super) fn capacity(&self) -> usize {
        self.text.capacity()
    }
}

/// How much to add to a buffer of `len` bytes so that `more` fit: doubling, so that memory follows what was received
/// and not what was promised, but never past `announced`.
pub(super) fn growth(len: usize, capacity: usize, more: usize, announced: usize) -> usize {
    let needed = len.saturating_add(more);
    if needed <= capacity {
        return 0;
    }
    needed.max(capacity.saturating_mul(2).min(announced)) - len
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Index of the first piece that is refused, with one byte per piece.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let mut buffer = TextBuffer::default();
        bytes
            .iter()
            .position(|byte| buffer.push(&[*byte], bytes.len()).is_err())
    }

    #[test]
    fn bad_byte_is_refused_at_once() {
        assert_eq!(refused_at(b"ab\xc0\x80"), Some(2)); // overlong
        assert_eq!(refused_at(b"\xed\xa0\x80"), Some(1)); // surrogate
        assert_eq!(refused_at(b"\xf4\x90\x80\x80"), Some(1)); // past U+10FFFF
        assert_eq!(refused_at(b"\xe2\x82x"), Some(2));
        assert_eq!(refused_at("κόσμε \u{10ffff}".as_bytes()), None);
    }

    #[test]
    fn cut_character_is_an_error_only_at_the_end() {
        let mut buffer = TextBuffer::default();
        assert_eq!(buffer.push(b"x\xe2\x82", 4), Ok(()));
        assert_eq!(buffer.finish(), Err(InvalidUtf8));
        assert_eq!(buffer.push(b"\xac", 4), Ok(()));
        assert_eq!(buffer.finish(), Ok(()));
        assert_eq!(buffer.as_str(), "x€");
    }

    #[test]
    fn allocation_follows_received_bytes_and_stops_at_announced() {
        assert_eq!(growth(0, 0, 10, 1 << 20), 10);
        assert_eq!(growth(10, 10, 1, 1 << 20), 10);
        assert_eq!(growth(10, 10, 1, 12), 2);
        assert_eq!(growth(10, 12, 2, 12), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_std_whatever_the_cuts(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..12),
                any::<String>().prop_map(String::into_bytes),
            ],
            cut in 1usize..5,
        ) {
            let mut buffer = TextBuffer::default();
            let result = bytes.chunks(cut).try_for_each(|piece| buffer.push(piece, bytes.len())).and_then(|()| buffer.finish());
            match str::from_utf8(&bytes) {
                Ok(text) => {
                    prop_assert_eq!(result, Ok(()));
                    prop_assert_eq!(buffer.as_str(), text);
                }
                Err(_) => prop_assert_eq!(result, Err(InvalidUtf8)),
            }
            prop_assert!(buffer.capacity() <= bytes.len().max(8));
        }
    }
}
