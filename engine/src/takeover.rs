//! A restart by hand: the listening sockets pass from a running server to its successor.
//!
//! ```text
//! successor                                    predecessor
//!   connects to takeover.sock in the data folder ──►
//!   ◄── which sockets, how long a drain may take, and the descriptors (SCM_RIGHTS)
//!   "go": it can use them ──►                  drains, flushes, exits, which frees the data folder
//!   locks the data folder, starts, accepts
//! ```
//! Both never serve at once: the store has one writer, and a channel one place that orders it. Meanwhile connections wait
//! in the sockets' backlogs; nobody is refused. Without "go" the predecessor goes on as if nothing had been asked.
//!
//! Not here: the drain ([`crate::server`]). Who may connect is settled by the mode of the data folder (0700).

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::Socket;

use crate::activation::{ADMIN, CLIENT, Inherited};
use crate::sync::lock;

/// Name of the socket in the data folder.
const SOCKET_FILE: &str = "takeover.sock";
/// Sockets that can be passed on.
const SOCKETS_MAX: usize = 64;
/// Bytes of an offer: its names and their quotes.
const OFFER_BYTES_MAX: usize = 4096;
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the successor says when it has what it needs.
const GO: u8 = b'g';

/// What a predecessor says of itself beside its sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Offer {
    pid: u32,
    /// Seconds until it has gone, at most.
    gone_within_s: u64,
    /// One for each descriptor.
    names: Vec<String>,
}

/// What a successor has got.
#[derive(Debug)]
pub struct Taken {
    pub sockets: Inherited,
    /// The predecessor's process.
    pub pid: u32,
    /// How long it may take to go.
    pub gone_within: Duration,
}

/// Sockets that are offered to a successor.
#[derive(Debug)]
pub struct Offered(Arc<Mutex<Vec<(&'static str, Socket)>>>);

impl Offered {
    /// Closes this process's share of the sockets: while it ends nobody accepts, and without a successor clients are to
    /// be refused rather than kept waiting. One that comes now waits for the end and makes its own.
    pub fn withdraw(self) {
        lock(&self.0).clear();
    }
}

/// Whatever a thread that panicked was at, it has not left the list half changed.
/// Offers the sockets to a successor, from a thread of its own: when one has taken them, `taken` is called, once.
///
/// # Errors
/// The socket in the data folder or the thread cannot be made. The server runs well without, save for this.
pub fn offer(
    data_dir: &Path,
    sockets: Inherited,
    gone_within: Duration,
    taken: impl FnOnce() + Send + 'static,
) -> io::Result<Offered> {
    let folder = File::open(data_dir)?;
    match std::fs::remove_file(data_dir.join(SOCKET_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // A leftover: this process has the folder's lock.
        _ => {}
    }
    let listener = UnixListener::bind(short_path(&folder))?;
    let named = |name: &'static str, sockets: Vec<Socket>| {
        sockets.into_iter().map(move |socket| (name, socket))
    };
    let sockets = named(CLIENT, sockets.client).chain(named(ADMIN, sockets.admin));
    let sockets = Arc::new(Mutex::new(sockets.take(SOCKETS_MAX).collect::<Vec<_>>()));
    let offered = Offered(sockets.clone());
    std::thread::Builder::new()
        .name("takeover".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                match stream.and_then(|stream| hand_over(&stream, &lock(&sockets), gone_within)) {
                    Ok(()) => return taken(),
                    Err(error) => {
                        log::warn!("a successor has not taken the sockets: {error}");
                        // Should accepting itself fail.
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        })?;
    Ok(offered)
}

fn hand_over(
    stream: &UnixStream,
    sockets: &[(&str, Socket)],
    gone_within: Duration,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let offer = Offer {
        pid: std::process::id(),
        gone_within_s: gone_within.as_secs(),
        names: sockets.iter().map(|(name, _)| (*name).to_owned()).collect(),
    };
    let text = serde_json::to_vec(&offer)?;
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !rights.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("too many sockets"));
    }
    sendmsg(
        stream,
        &[IoSlice::new(&text)],
        &mut rights,
        SendFlags::NOSIGNAL,
    )?;
    let mut said = [0];
    (&*stream).read_exact(&mut said)?;
    if said == [GO] {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// Takes the sockets of the server that runs on a data folder, and has it end. `None` when none does.
///
/// # Errors
/// One runs and does not hand them over; it goes on.
pub fn take(data_dir: &Path) -> io::Result<Option<Taken>> {
    let Ok(folder) = File::open(data_dir) else {
        return Ok(None);
    };
    let mut stream = match UnixStream::connect(short_path(&folder)) {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(error),
            };
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = [0; OFFER_BYTES_MAX];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut text)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds: Vec<OwnedFd> = rights
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let offer: Offer = serde_json::from_slice(&text[..received.bytes])?;
    if offer.names.len() != fds.len() {
        return Err(io::Error::other("not all sockets have arrived"));
    }
    let mut sockets = Inherited::default();
    for (name, fd) in offer.names.iter().zip(fds) {
        sockets.add(name, fd).map_err(io::Error::other)?;
    }
    stream.write_all(&[GO])?;
    Ok(Some(Taken {
        sockets,
        pid: offer.pid,
        gone_within: Duration::from_secs(offer.gone_within_s),
    }))
}

/// The socket's path by way of the open folder: addresses of Unix sockets have 107 bytes at most, paths have not.
fn short_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(SOCKET_FILE)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn sockets_and_what_waits_at_them_pass_to_the_successor() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than the address of a Unix socket may be.
        let data_dir = folder.path().join("d".repeat(150));
        std::fs::create_dir(&data_dir).unwrap();
        assert!(take(&data_dir).unwrap().is_none(), "nobody runs there");
        let client = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = client.local_addr().unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = Inherited {
            client: vec![OwnedFd::from(client).into()],
            admin: vec![OwnedFd::from(admin).into()],
        };
        let (told, taken) = mpsc::channel();
        let _offered = offer(&data_dir, sockets, Duration::from_secs(7), move || {
            told.send(()).unwrap()
        })
        .unwrap();
        // Whoever hangs up without "go" changes nothing.
        drop(UnixStream::connect(short_path(&File::open(&data_dir).unwrap())).unwrap());
        assert!(taken.recv_timeout(Duration::from_millis(50)).is_err());

        let waiting = TcpStream::connect(at).unwrap();
        let got = take(&data_dir).unwrap().unwrap();
        taken.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(
            (got.pid, got.gone_within.as_secs()),
            (std::process::id(), 7)
        );
        assert_eq!((got.sockets.client.len(), got.sockets.admin.len()), (1, 1));
        let (_, peer) = got.sockets.client[0].accept().unwrap();
        assert_eq!(peer.as_socket(), waiting.local_addr().ok());
    }

    #[test]
    fn a_socket_left_by_a_crash_is_no_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(folder.path().join(SOCKET_FILE)).unwrap());
        assert!(take(folder.path()).unwrap().is_none());
        let client = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = client.local_addr().unwrap();
        let sockets = Inherited {
            client: vec![OwnedFd::from(client).into()],
            admin: Vec::new(),
        };
        let offered = offer(folder.path(), sockets, PATIENCE, || {}).unwrap();
        TcpStream::connect(at).unwrap();
        offered.withdraw();
        assert!(
            TcpStream::connect(at).is_err(),
            "nobody holds the socket any more"
        );
        assert!(
            take(folder.path())
                .unwrap()
                .unwrap()
                .sockets
                .client
                .is_empty()
        );
    }
}
