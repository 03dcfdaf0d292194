//! How fast a shard lets new connections in: as fast as it can serve them without delaying those it has.
//!
//! Connections come in the inbox that the acceptor fills. A turn takes a burst of them, everything else that is ready has
//! its turn, and the burst follows what that took: more by a step while turns are short, half when one was long. A crowd
//! that reconnects waits in the inbox and in the kernel's backlog; nobody is refused.

use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::inbox::Inbox;
use super::{Core, ShardRuntime};
use crate::sys;

/// A turn that is longer is felt by those who are connected.
const TURN_MAX: Duration = Duration::from_millis(5);
/// Connections per turn, however long turns are: admission never stands still.
const BURST_MIN: usize = 4;
/// Connections per turn at most: of more the acceptor could not hand over in time.
const BURST_MAX: usize = 128;
const BURST_STEP: usize = 4;

/// Through the ring and back: sockets that are ready are seen before the next burst. A mere yield would come back ahead of
/// them.
const REST: Duration = Duration::from_micros(1);

/// Connections to let in per turn.
#[derive(Debug)]
struct Burst(usize);

impl Burst {
    /// A whole burst was let in, and with all that followed it took `turn`.
    fn note(&mut self, turn: Duration) {
        self.0 = if turn > TURN_MAX {
            (self.0 / 2).max(BURST_MIN)
        } else {
            (self.0 + BURST_STEP).min(BURST_MAX)
        };
    }
}

impl<C: Core> ShardRuntime<C> {
    /// Serves the connections that come in the inbox, until the task is dropped.
    pub async fn admit_all(self: Rc<Self>, inbox: Inbox<Socket>) {
        let mut burst = Burst(32);
        loop {
            let mut next = Some(inbox.recv().await);
            let started = Instant::now();
            let mut admitted = 0;
            while let Some(connection) = next {
                self.admit(sys::glommio_stream(connection));
                admitted += 1;
                next = (admitted < burst.0).then(|| inbox.try_recv()).flatten();
            }
            if admitted == burst.0 {
                glommio::timer::sleep(REST).await;
                burst.note(started.elapsed());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_turns_halve_a_burst_and_short_ones_widen_it_within_bounds() {
        let mut burst = Burst(32);
        burst.note(TURN_MAX * 2);
        assert_eq!(burst.0, 16);
        burst.note(TURN_MAX / 2);
        assert_eq!(burst.0, 20);
        for _ in 0..100 {
            burst.note(TURN_MAX * 2);
        }
        assert_eq!(burst.0, BURST_MIN);
        for _ in 0..100 {
            burst.note(Duration::ZERO);
        }
        assert_eq!(burst.0, BURST_MAX);
    }
}
