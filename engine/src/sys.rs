//! Raw system calls: all of the engine's `unsafe` is here.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 4096;

/// What became of a send.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took so many bytes.
    Bytes(usize),
    /// The socket's buffer is full.
    Full,
    /// The connection is gone.
    Broken,
}

/// Sends without blocking.
pub fn send(fd: RawFd, bytes: &[u8]) -> Sent {
    loop {
        // SAFETY: the pointer and length are those of a live slice; a stale descriptor gives EBADF.
        let sent = unsafe {
            libc::send(
                fd,
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        if let Ok(sent) = usize::try_from(sent) {
            return Sent::Bytes(sent);
        }
        match io::Error::last_os_error().kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Sent::Full,
            _ => return Sent::Broken,
        }
    }
}

/// The first listening socket of an address: fails when another process listens there, although
/// sockets that share an address would let it.
pub fn listen_exclusively(addr: SocketAddr, unacked: Duration) -> io::Result<Socket> {
    if addr.port() != 0 {
        let probe = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        probe.set_reuse_address(true)?;
        probe.bind(&addr.into())?;
    }
    listen(addr, unacked)
}

/// A listening socket that shares its address with those of the other shards.
///
/// Its options are those of the connections it accepts, which inherit them at no cost: no Nagle
/// delay, TCP keepalive, and an end to peers that acknowledge nothing for `unacked` (contract D12).
pub fn listen(addr: SocketAddr, unacked: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15)),
    )?;
    socket.set_tcp_user_timeout(Some(unacked))?;
    socket.bind(&addr.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket)
}

/// Hands a listening socket to the executor of this thread.
pub fn glommio_listener(socket: Socket) -> glommio::net::TcpListener {
    // SAFETY: the descriptor is open, listening, and owned by nobody else from here on.
    unsafe { glommio::net::TcpListener::from_raw_fd(socket.into_raw_fd()) }
}

/// Ends a connection's sending half, or both: at once, also while the ring still holds the
/// descriptor for a pending operation.
pub fn shutdown(fd: RawFd, how: std::net::Shutdown) {
    // SAFETY: the caller's stream keeps the descriptor open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    // It fails only where the peer has ended the connection already.
    let _ = SockRef::from(&fd).shutdown(how);
}

/// CPU time that this thread has used, us.
pub fn thread_cpu_us() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let us = used.tv_sec * 1_000_000 + used.tv_nsec / 1000;
    u64::try_from(us).unwrap_or(0)
}

/// Sends this process the signal that begins its planned end.
pub fn terminate_self() {
    use rustix::process::{Signal, getpid, kill_process};
    if let Err(error) = kill_process(getpid(), Signal::TERM) {
        log::error!("cannot signal this process: {error}");
    }
}

thread_local! {
    /// Random bytes of the system that were not given out yet.
    static RANDOM: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
}

/// 16 random bytes of the system, which is asked for many at once.
pub fn random() -> [u8; 16] {
    const ASKED: usize = 256;
    RANDOM.with_borrow_mut(|left| {
        left.pop().unwrap_or_else(|| {
            let mut bytes = [[0; 16]; ASKED];
            getrandom::fill(bytes.as_flattened_mut())
                .expect("the kernel's random source works once the system is up");
            left.extend_from_slice(&bytes);
            left.pop().unwrap_or_default()
        })
    })
}

/// A second stream over the same connection, for this thread's executor.
pub fn duplicate(fd: RawFd) -> io::Result<glommio::net::TcpStream> {
    // SAFETY: the caller's stream keeps the descriptor open during the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let owned = fd.try_clone_to_owned()?;
    // SAFETY: the descriptor was made just now and is given away whole.
    Ok(unsafe { glommio::net::TcpStream::from_raw_fd(owned.into_raw_fd()) })
}
