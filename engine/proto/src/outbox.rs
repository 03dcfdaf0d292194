//! Bytes waiting for one connection.
//!
//! Holds references to encoded frames, not copies: a message that goes to many connections of a
//! shard exists once. The driver gathers what is here into one send and then tells how much the
//! kernel took.

use std::rc::Rc;

use smallvec::SmallVec;

/// An encoded frame, shared by the outboxes of one shard.
pub type Frame = Rc<[u8]>;

/// Frames kept inside the outbox itself. A fan-out walks outboxes one after another: what most of
/// them hold in a turn is then read without following a pointer.
const INLINE_FRAMES: usize = 4;

/// Sent frames at the front of a long outbox that are let go of together.
const SENT_FRAMES_KEPT: usize = 64;

#[derive(Debug, Default)]
pub struct Outbox {
    frames: SmallVec<[Frame; INLINE_FRAMES]>,
    /// Frames at the front that the kernel has.
    gone: u32,
    /// Bytes of the first frame not gone that the kernel has.
    sent: u32,
    /// Bytes not yet sent.
    bytes: usize,
}

impl Outbox {
    pub fn push(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.frames.push(frame);
    }

    /// Bytes not yet sent.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames not yet sent whole.
    pub fn frames(&self) -> usize {
        self.frames.len() - self.gone as usize
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frame put in last, if it has not been sent whole.
    pub fn last(&self) -> Option<&Frame> {
        self.frames.last()
    }

    /// Bytes of the first frame that were sent already.
    pub fn first_offset(&self) -> usize {
        self.sent as usize
    }

    /// The frames, oldest first; of the first one [`Outbox::first_offset`] bytes are gone.
    pub fn iter(&self) -> std::slice::Iter<'_, Frame> {
        self.frames
            .get(self.gone as usize..)
            .unwrap_or_default()
            .iter()
    }

    /// Takes note that the kernel accepted the next `count` bytes.
    pub fn advance(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        if self.bytes == 0 {
            self.clear();
            return;
        }
        let mut count = count + self.sent as usize;
        while let Some(first) = self.frames.get(self.gone as usize)
            && count >= first.len()
        {
            count -= first.len();
            self.gone += 1;
        }
        // Within one frame, whose length fits.
        self.sent = u32::try_from(count).unwrap_or(u32::MAX);
        if self.gone as usize >= SENT_FRAMES_KEPT {
            self.frames.drain(..self.gone as usize);
            self.gone = 0;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        if self.frames.spilled() {
            *self = Self::default();
        } else {
            self.frames.clear();
            (self.gone, self.sent, self.bytes) = (0, 0, 0);
        }
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
