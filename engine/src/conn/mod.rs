//! A connection: its request head (`head`), then its WebSocket life (here).
//!
//! One task per connection, which waits for its socket and holds next to nothing while it does:
//! what it reads goes into its shard's buffer, what it sends waits in the core's outbox. It reads
//! and decodes; writing is the turn's work, save when the kernel had no room: then this task
//! waits for it.

pub mod head;
mod transport;

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncRead, future};
use glommio::net::TcpStream;
use shardwire_proto::error::CloseCause;
use shardwire_proto::ids::ConnId;
use shardwire_proto::ws::{DecodeError, Decoder};

pub(crate) use self::transport::SharedSession;
pub use self::transport::Transport;
use crate::shard::{Core, Ending, Occupied, ShardRuntime};
use crate::sys;

/// Reads in a row from one socket before others get their turn.
const READS_PER_POLL: usize = 4;

/// A connection with more than this waiting in a full outbox is not read: whoever does not take
/// answers gets to ask no more questions.
const READ_PAUSE_BYTES: usize = 256 * 1024;

/// Time for a peer to answer a Close frame or to take the last bytes.
const LINGER: Duration = Duration::from_secs(3);

/// The task of one open connection.
pub(crate) struct ConnTask<C: Core> {
    runtime: Rc<ShardRuntime<C>>,
    transport: Transport,
    decoder: Decoder,
    conn: ConnId,
    /// Given on to whoever ends the socket.
    occupied: Option<Occupied<C>>,
    /// The peer has ended the connection: closing the descriptor is all that is left.
    peer_gone: bool,
}

impl<C: Core> ConnTask<C> {
    /// Takes over a connection of the core; `early` is what came behind its request head.
    pub(crate) fn start(
        runtime: Rc<ShardRuntime<C>>,
        transport: Transport,
        conn: ConnId,
        occupied: Occupied<C>,
        early: &mut [u8],
    ) {
        runtime.link(conn, &transport);
        let mut task = Self {
            runtime,
            transport,
            decoder: Decoder::default(),
            conn,
            occupied: Some(occupied),
            peer_gone: false,
        };
        task.handle_bytes(early);
        glommio::spawn_local(task).detach();
    }

    /// Feeds received bytes to the core, event by event.
    fn handle_bytes(&mut self, mut rest: &mut [u8]) {
        let now = self.runtime.now();
        let config = &self.runtime.settings.decoder;
        loop {
            match self.decoder.step(rest, config) {
                Ok(step) => {
                    let consumed = step.consumed;
                    let Some(event) = step.event else { break };
                    let due = {
                        let mut core = self.runtime.core.borrow_mut();
                        core.handle_event(self.conn, event, now);
                        core.flush_due()
                    };
                    if due {
                        self.runtime.end_turn();
                    }
                    rest = rest.split_at_mut(consumed).1;
                }
                Err(error) => {
                    let mut core = self.runtime.core.borrow_mut();
                    core.close(self.conn, cause_of(error), now);
                    break;
                }
            }
        }
        self.runtime.schedule_turn();
    }

    /// Sends what waits, after the kernel had no room. Ready when nothing waits any more.
    fn poll_unblock(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let sent = {
                let mut links = self.runtime.links.borrow_mut();
                let Some(link) = links.get(self.conn) else {
                    return Poll::Ready(Ok(()));
                };
                let mut core = self.runtime.core.borrow_mut();
                let Some(outbox) = core.outbox(self.conn).filter(|o| !o.is_empty()) else {
                    ready!(self.transport.poll_flush(cx))?;
                    link.blocked = false;
                    core.pump(self.conn, self.runtime.now());
                    self.runtime.schedule_turn();
                    return Poll::Ready(Ok(()));
                };
                let mut gather = self.runtime.gather.borrow_mut();
                let bytes = gather.collect(outbox);
                let sent = ready!(self.transport.poll_write(cx, bytes))?;
                outbox.advance(sent);
                sent
            };
            self.runtime.count(|io| {
                io.sends += 1;
                io.bytes_sent += sent as u64;
            });
        }
    }

    /// Waits for room for what TLS has to say itself. Ready when the connection is gone.
    fn poll_blocked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(link) = self.runtime.links.borrow_mut().get(self.conn) {
            link.blocked = true;
        }
        match self.poll_unblock(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }

    /// Whether reading has to wait; if so the task will be woken when that ends.
    fn must_pause(&self, cx: &Context<'_>) -> bool {
        let list = if self.runtime.must_pause() {
            Some(&self.runtime.paused)
        } else if !self.runtime.core.borrow_mut().may_read(self.conn) {
            Some(&self.runtime.deferred)
        } else {
            None
        };
        if let Some(list) = list {
            // Without work of its own left, the turn that wakes it is still to come.
            self.runtime.schedule_turn();
            list.borrow_mut().push_back(cx.waker().clone());
            return true;
        }
        // Its own outbox: the wait for the kernel's room wakes it.
        let mut links = self.runtime.links.borrow_mut();
        let blocked = links.get(self.conn).is_some_and(|l| l.blocked);
        blocked
            && self
                .runtime
                .core
                .borrow_mut()
                .outbox(self.conn)
                .is_some_and(|o| o.bytes() > READ_PAUSE_BYTES)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..READS_PER_POLL {
            if self.must_pause(cx) {
                return Poll::Pending;
            }
            let runtime = self.runtime.clone();
            let mut buffer = runtime.read_buffer.borrow_mut();
            match ready!(self.transport.poll_read(cx, &mut buffer)) {
                Ok(0) | Err(_) => {
                    // TLS may have ended on a connection that goes on.
                    self.peer_gone = !self.transport.is_secure();
                    let now = runtime.now();
                    let mut core = runtime.core.borrow_mut();
                    core.close(self.conn, CloseCause::PeerGone, now);
                    return Poll::Ready(());
                }
                Ok(count) => {
                    let (bytes, _) = buffer.split_at_mut(count);
                    self.handle_bytes(bytes);
                }
            }
            if !runtime.core.borrow().is_open(self.conn) {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// How the connection is to end, as far as it is decided.
    fn ending(&self) -> Ending {
        let mut links = self.runtime.links.borrow_mut();
        links.get(self.conn).map_or(Ending::Now, |l| l.ending)
    }

    fn register(&self, cx: &Context<'_>) {
        let mut links = self.runtime.links.borrow_mut();
        links.register(self.conn, cx.waker());
    }
}

impl<C: Core> Future for ConnTask<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.register(cx);
        if this.ending() == Ending::Now {
            return Poll::Ready(());
        }
        let blocked = {
            let mut links = this.runtime.links.borrow_mut();
            links.get(this.conn).is_some_and(|l| l.blocked)
        };
        if blocked && let Poll::Ready(Err(_)) = this.poll_unblock(cx) {
            return Poll::Ready(());
        }
        match this.ending() {
            Ending::Now => Poll::Ready(()),
            Ending::Flushed { linger } => {
                let unsent = {
                    let mut core = this.runtime.core.borrow_mut();
                    core.outbox(this.conn).is_some_and(|o| !o.is_empty())
                };
                if unsent || this.transport.has_unsent() {
                    return Poll::Pending;
                }
                if linger {
                    this.linger();
                }
                Poll::Ready(())
            }
            // Ready when the connection has ended in the core; how, comes with the turn.
            Ending::No => {
                if this.poll_read(cx).is_ready() {
                    this.runtime.schedule_turn();
                }
                if this.transport.has_unsent() && this.poll_blocked(cx).is_ready() {
                    return Poll::Ready(());
                }
                Poll::Pending
            }
        }
    }
}

impl<C: Core> ConnTask<C> {
    /// The Close frame is on its way: the peer gets time to read it. Closing at once would reset
    /// the connection if bytes of the peer are still unread, and the frame could be lost.
    fn linger(&mut self) {
        let fd = self.transport.as_raw_fd();
        self.transport.say_goodbye();
        sys::shutdown(fd, Shutdown::Write);
        // A second descriptor: the stream itself ends with this task.
        let Ok(stream) = sys::duplicate(fd) else {
            return;
        };
        let occupied = self.occupied.take();
        glommio::spawn_local(async move {
            let _occupied = occupied;
            let mut stream = stream;
            let drained = async {
                let mut scrap = vec![0; 4096];
                while matches!(read(&mut stream, &mut scrap).await, Ok(1..)) {}
            };
            future::or(drained, glommio::timer::sleep(LINGER)).await;
            sys::shutdown(stream.as_raw_fd(), Shutdown::Both);
        })
        .detach();
    }
}

impl<C: Core> Drop for ConnTask<C> {
    fn drop(&mut self) {
        // `linger` has taken the place, and with it the socket's end.
        if self.occupied.is_some() && !self.peer_gone {
            self.transport.say_goodbye();
            sys::shutdown(self.transport.as_raw_fd(), Shutdown::Both);
        }
        self.runtime.unlink(self.conn);
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, buffer)).await
}

fn cause_of(error: DecodeError) -> CloseCause {
    match error.close_code() {
        1007 => CloseCause::InvalidUtf8,
        1009 => CloseCause::FrameTooLarge,
        _ => CloseCause::ProtocolError,
    }
}
