//! Takes connections from the listening sockets and deals them to the shards, in turn.
//!
//! One thread for the process, which owns the listening sockets. Not here: how fast a shard lets them in
//! ([`crate::shard`]), and where the sockets come from ([`crate::server`]).
//!
//! One accepting thread and not a socket per shard, for three reasons. Sockets that service managers and predecessors
//! pass on are one per address. The kernel resets what waits at a socket of a group (SO_REUSEPORT) when that socket is
//! closed. And an accept that waits in a ring cannot be taken back without the risk of having accepted somebody.
//!
//! A crowd is taken in faster than shards can let it in, and held here meanwhile: what overflows the kernel's queue
//! (`net.core.somaxconn`, often 4096) is silently dropped there and tried again by the peer's kernel after 1, 3 and 7 s.
//!
//! Invariants: once [`Acceptor::stop`] has returned no connection is taken any more, each that was is with a shard, and
//! those that wait in the kernel wait for whoever else holds the sockets. Connections go to shards in the order in which
//! they came. A shard whose inbox is full is passed over; when all are, connections are held, up to [`HELD_MAX`] and as long
//! as descriptors last; then they wait in the kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Resource, getrlimit};
use socket2::Socket;

use crate::config::NOFILE_RESERVE;
use crate::shard::inbox::InboxSender;

/// Connections that may wait in a shard's inbox: what it lets in while the acceptor sleeps.
pub const INBOX_CONNECTIONS: usize = 256;

/// Connections that are held for shards whose inboxes are full: as many as may wait in the kernel at best. They take their
/// descriptor, and in the kernel what they would take there anyway.
const HELD_MAX: usize = 65_536;

/// Connections taken from one socket before the others, and the order to stop, are looked at.
const BURST: usize = 64;

/// How long the acceptor waits for full shards before it looks again.
const FULL_WAIT: Duration = Duration::from_micros(500);

/// How long it waits when the kernel gives no descriptor.
const FAILED_WAIT: Duration = Duration::from_millis(50);

/// How long a stop waits for a shard to take the next of those that were accepted.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// The accepting thread. Dropping it without [`stop`](Acceptor::stop) leaves it running.
#[derive(Debug)]
pub struct Acceptor {
    stop: OwnedFd,
    thread: JoinHandle<()>,
}

struct Worker {
    listeners: Vec<Socket>,
    shards: Vec<InboxSender<Socket>>,
    /// The shard that is offered the next connection.
    next: usize,
    stop: OwnedFd,
    /// Accepted, and with no shard yet; oldest first.
    held: VecDeque<Socket>,
    /// The kernel gives the lowest free descriptor: from this one on hardly any are left.
    scarce_from: RawFd,
    /// The last that was accepted got such a one.
    is_scarce: bool,
}

impl Acceptor {
    /// Accepts from `listeners` for `shards`; neither is empty. The sockets' open files become non-blocking.
    ///
    /// # Errors
    /// The thread or what it needs cannot be made.
    pub fn start(listeners: Vec<Socket>, shards: Vec<InboxSender<Socket>>) -> io::Result<Self> {
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let worker = Worker {
            listeners,
            shards,
            next: 0,
            stop: stop.try_clone()?,
            held: VecDeque::new(),
            scarce_from: scarce_from(),
            is_scarce: false,
        };
        let thread = std::thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self { stop, thread })
    }

    /// Takes no more connections, and closes the sockets. Returns when the last that was taken is with a shard.
    pub fn stop(self) {
        // An eventfd takes a one unless it is full, which it is not.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if self.thread.join().is_err() {
            log::error!("the accepting thread had ended");
        }
    }
}

impl Worker {
    fn run(mut self) {
        loop {
            let mut waiting = vec![PollFd::new(&self.stop, PollFlags::IN)];
            let listeners = if self.has_room() {
                self.listeners.as_slice()
            } else {
                &[]
            };
            waiting.extend(
                listeners
                    .iter()
                    .map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)),
            );
            let full_wait = Timespec::try_from(FULL_WAIT).unwrap_or_default();
            let patience = (!self.held.is_empty()).then_some(&full_wait);
            if let Err(error) = poll(&mut waiting, patience) {
                if error != rustix::io::Errno::INTR {
                    log::error!("waiting for connections failed: {error}");
                    std::thread::sleep(FAILED_WAIT);
                }
                continue;
            }
            let mut ready = waiting.iter().map(|fd| !fd.revents().is_empty());
            if ready.next() == Some(true) {
                return self.finish();
            }
            let ready: Vec<bool> = ready.collect();
            for (index, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
                self.take_burst(index);
                self.deal();
            }
            self.deal();
        }
    }

    fn has_room(&self) -> bool {
        self.held.is_empty() || (self.held.len() < HELD_MAX && !self.is_scarce)
    }

    fn take_burst(&mut self, listener: usize) {
        for _ in 0..BURST {
            if !self.has_room() {
                return;
            }
            match self.listeners[listener].accept() {
                Ok((connection, _)) => {
                    self.is_scarce = connection.as_raw_fd() >= self.scarce_from;
                    self.held.push_back(connection);
                }
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, mostly: those that end make room again.
                    log::warn!("accept failed: {error}");
                    std::thread::sleep(FAILED_WAIT);
                    return;
                }
            }
        }
    }

    /// Gives what is held to the shards in turn, as far as they have room.
    fn deal(&mut self) {
        while let Some(connection) = self.held.pop_front() {
            if let Err(refused) = self.offer(connection) {
                return self.held.push_front(refused);
            }
        }
    }

    /// Gives a connection to the next shard that has room; back when none has.
    fn offer(&mut self, mut connection: Socket) -> Result<(), Socket> {
        for _ in 0..self.shards.len() {
            let shard = &self.shards[self.next];
            self.next = (self.next + 1) % self.shards.len();
            match shard.try_send(connection) {
                Ok(()) => return Ok(()),
                Err(refused) => connection = refused,
            }
        }
        Err(connection)
    }

    /// Gives the shards what is still held, unless they have stopped to take any.
    fn finish(mut self) {
        let mut until = Instant::now() + STOP_PATIENCE;
        let mut left = self.held.len();
        loop {
            self.deal();
            if self.held.is_empty() {
                return;
            }
            if self.held.len() < left {
                left = self.held.len();
                until = Instant::now() + STOP_PATIENCE;
            }
            if Instant::now() >= until {
                return log::warn!("no shard takes {left} connections that were accepted last");
            }
            std::thread::sleep(FULL_WAIT);
        }
    }
}

/// Half of the descriptors that are kept back from connections are left at this one.
fn scarce_from() -> RawFd {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    RawFd::try_from(limit.saturating_sub(NOFILE_RESERVE as u64 / 2)).unwrap_or(RawFd::MAX)
}

/// Errors of a connection that ended before it was accepted: nothing of the listening socket's (accept(2)).
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionAborted | Interrupted | HostUnreachable | NetworkUnreachable
    ) || error.raw_os_error() == Some(libc::EPROTO)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};

    use super::*;
    use crate::shard::inbox::{self, Inbox};
    use crate::sys;

    fn listening() -> (Socket, SocketAddr) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = sys::listen(any, Duration::from_secs(10)).unwrap();
        let bound = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, bound)
    }

    fn take(inbox: &Inbox<Socket>) -> Option<Socket> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Some(connection) = inbox.try_recv() {
                return Some(connection);
            }
            std::thread::yield_now();
        }
        None
    }

    #[test]
    fn connections_of_all_sockets_go_to_the_shards_in_turn_and_a_full_one_is_passed_over() {
        let ((a, at_a), (b, at_b)) = (listening(), listening());
        let (to_first, first) = inbox::bounded(2);
        let (to_second, second) = inbox::bounded(16);
        let acceptor = Acceptor::start(vec![a, b], vec![to_first, to_second]).unwrap();
        let mut clients: Vec<_> = (0..4).map(|_| TcpStream::connect(at_a).unwrap()).collect();
        clients.extend((0..4).map(|_| TcpStream::connect(at_b).unwrap()));
        for _ in 0..6 {
            take(&second).expect("the second shard takes what the first has no room for");
        }
        assert!(take(&first).is_some() && take(&first).is_some());
        acceptor.stop();
        assert!(first.try_recv().is_none() && second.try_recv().is_none());
    }

    #[test]
    fn after_a_stop_connections_wait_for_the_next_holder_of_the_socket() {
        let (socket, at) = listening();
        let kept = socket.try_clone().unwrap();
        let (to_shard, shard) = inbox::bounded(4);
        let acceptor = Acceptor::start(vec![socket], vec![to_shard]).unwrap();
        let _first = TcpStream::connect(at).unwrap();
        assert!(take(&shard).is_some());
        acceptor.stop();
        let waiting = TcpStream::connect(at).unwrap();
        assert!(shard.try_recv().is_none());
        let (to_next, next) = inbox::bounded(4);
        let acceptor = Acceptor::start(vec![kept], vec![to_next]).unwrap();
        let served = take(&next).unwrap();
        assert_eq!(
            served.peer_addr().unwrap().as_socket(),
            waiting.local_addr().ok()
        );
        acceptor.stop();
        assert!(TcpStream::connect(at).is_err(), "nobody holds it any more");
    }

    #[test]
    fn a_crowd_does_not_wait_in_the_kernel_and_is_served_in_its_order() {
        const CROWD: usize = 50;
        let (socket, at) = listening();
        // The kernel holds a few.
        socket.listen(16).unwrap();
        let (to_shard, shard) = inbox::bounded(1);
        let acceptor = Acceptor::start(vec![socket], vec![to_shard]).unwrap();
        let connect = |_| TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
        let came: Vec<_> = (0..CROWD).map(connect).collect();
        let served: Vec<_> = std::iter::from_fn(|| take(&shard)).take(CROWD).collect();
        acceptor.stop();
        let peer = |socket: &Socket| socket.peer_addr().unwrap().as_socket();
        assert_eq!(
            served.iter().map(peer).collect::<Vec<_>>(),
            came.iter().map(|c| c.local_addr().ok()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_stop_does_not_wait_for_ever_for_full_shards() {
        let (socket, at) = listening();
        let (to_shard, shard) = inbox::bounded(1);
        let acceptor = Acceptor::start(vec![socket], vec![to_shard]).unwrap();
        let _clients = [(); 3].map(|()| TcpStream::connect(at).unwrap());
        assert!(take(&shard).is_some(), "it is at work");
        let asked = Instant::now();
        acceptor.stop();
        assert!(asked.elapsed() < STOP_PATIENCE * 5);
    }
}
