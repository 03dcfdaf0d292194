//! From a plain thread into a shard: a bounded lock-free queue and a waker.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};

/// The sending side, for any thread.
#[derive(Debug)]
pub struct InboxSender<T> {
    queue: Sender<T>,
    waker: Arc<AtomicWaker>,
}

impl<T> Clone for InboxSender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            waker: self.waker.clone(),
        }
    }
}

/// The shard's side.
#[derive(Debug)]
pub struct Inbox<T> {
    queue: Receiver<T>,
    waker: Arc<AtomicWaker>,
}

/// A queue of at most `capacity` entries; a full one refuses.
pub fn bounded<T>(capacity: usize) -> (InboxSender<T>, Inbox<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let waker = Arc::new(AtomicWaker::new());
    (
        InboxSender {
            queue: sender,
            waker: waker.clone(),
        },
        Inbox {
            queue: receiver,
            waker,
        },
    )
}

impl<T> InboxSender<T> {
    /// Gives the entry back when the queue is full or the shard has gone.
    pub fn try_send(&self, entry: T) -> Result<(), T> {
        self.queue.try_send(entry).map_err(|e| match e {
            TrySendError::Full(entry) | TrySendError::Disconnected(entry) => entry,
        })?;
        self.waker.wake();
        Ok(())
    }
}

impl<T> Inbox<T> {
    /// The next entry, if one waits.
    pub fn try_recv(&self) -> Option<T> {
        self.queue.try_recv().ok()
    }

    /// The next entry. Waits for ever when the senders are gone: a shard is told to stop.
    pub async fn recv(&self) -> T {
        poll_fn(|cx| {
            // Registered before the look, so that a send in between wakes.
            self.waker.register(cx.waker());
            match self.queue.try_recv() {
                Ok(entry) => Poll::Ready(entry),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => Poll::Pending,
            }
        })
        .await
    }
}
