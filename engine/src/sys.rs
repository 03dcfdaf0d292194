//! Raw system calls: all of the engine's `unsafe` is here.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that may wait to be accepted: a crowd that comes back during a restart. The kernel caps it at
/// `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 65_535;

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

/// A listening socket of this process alone.
pub fn listen(addr: SocketAddr, unacked: Duration) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    tune_listener(&socket, unacked)?;
    Ok(socket)
}

/// Makes a bound socket listen as ours do, also one that listens already.
///
/// Its options are those of the connections it accepts, which inherit them at no cost: no Nagle
/// delay, TCP keepalive, and an end to peers that acknowledge nothing for `unacked` (contract D12).
pub fn tune_listener(socket: &Socket, unacked: Duration) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(15)),
    )?;
    socket.set_tcp_user_timeout(Some(unacked))?;
    socket.listen(LISTEN_BACKLOG)
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// It is not open. Then nothing is taken.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asking for the flags of a descriptor touches no memory; one that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; children do not inherit it from here on.
    unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) };
    // SAFETY: the descriptor is open, and by the caller's protocol owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hands an accepted connection to the executor of this thread.
pub fn glommio_stream(socket: Socket) -> glommio::net::TcpStream {
    // SAFETY: the descriptor is open and owned by nobody else from here on.
    unsafe { glommio::net::TcpStream::from_raw_fd(socket.into_raw_fd()) }
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

/// 32 random bytes of the system.
pub fn random_32() -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, from) in bytes.chunks_exact_mut(16).zip([random(), random()]) {
        to.copy_from_slice(&from);
    }
    bytes
}

/// Has the calling thread run only when no other wants its core.
///
/// # Errors
/// The kernel refuses.
pub fn run_when_idle() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters outlive the call, which reads them; 0 means the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
