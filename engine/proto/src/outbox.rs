//! Bytes waiting for one connection.
//!
//! Holds references to encoded frames, not copies: a message that goes to many connections of a
//! shard exists once. The driver gathers what is here into one send and then tells how much the
//! kernel took.

use std::collections::VecDeque;
use std::rc::Rc;

/// An encoded frame, shared by the outboxes of one shard.
pub type Frame = Rc<[u8]>;

/// Heap that an emptied outbox keeps, in frames: most connections need no more per turn.
const IDLE_FRAMES_KEPT: usize = 8;

#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that the kernel already has.
    sent: usize,
    /// Bytes not yet sent.
    bytes: usize,
}

impl Outbox {
    pub fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Bytes not yet sent.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames not yet sent whole.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes of the first frame that were sent already.
    pub fn first_offset(&self) -> usize {
        self.sent
    }

    /// The frames, oldest first; of the first one [`Outbox::first_offset`] bytes are gone.
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter()
    }

    /// Takes note that the kernel accepted the next `count` bytes.
    pub fn advance(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(first) = self.frames.front() {
            let left = first.len() - self.sent;
            if count < left {
                self.sent += count;
                return;
            }
            count -= left;
            self.sent = 0;
            self.frames.pop_front();
        }
        if self.frames.capacity() > IDLE_FRAMES_KEPT {
            self.frames.shrink_to(IDLE_FRAMES_KEPT);
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..20),
            cuts in proptest::collection::vec(0usize..30, 0..100),
        ) {
            let mut outbox = Outbox::default();
            for frame in &frames {
                outbox.push(Rc::from(frame.as_slice()));
            }
            let all: Vec<u8> = frames.concat();
            let mut left = all.as_slice();
            for cut in cuts {
                let pending: Vec<u8> = outbox.iter().flat_map(|f| f.iter().copied()).skip(outbox.first_offset()).collect();
                prop_assert_eq!(&pending, left);
                prop_assert_eq!(outbox.bytes(), left.len());
                let cut = cut.min(left.len());
                outbox.advance(cut);
                left = &left[cut..];
            }
            prop_assert_eq!(outbox.is_empty(), left.is_empty());
        }
    }
}
