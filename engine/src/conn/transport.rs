//! A socket, plain or with TLS, as those see it that read and write plaintext.
//!
//! The seam between connections and encryption. Not here: what is encrypted how ([`crate::tls`]); and the flush at the
//! end of a turn, which sends plain frames itself and shares the session of the others.
//!
//! Invariants: a handshake happens inside of reading, so whoever bounds the time of the first bytes bounds the
//! handshake; the end of a TLS connection and that of TCP look alike.

use std::cell::RefCell;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use crate::sys::{self, Sent};
use crate::tls::{Acceptor, Outcome, Session, with_incoming};

/// Reads in a row that brought no plaintext before others get their turn.
const READS_PER_POLL: usize = 4;

/// A TLS session, shared by a connection's task and the flush.
pub(crate) type SharedSession = Rc<RefCell<Session>>;

/// An accepted connection.
pub struct Transport {
    stream: TcpStream,
    session: Option<SharedSession>,
}

impl From<TcpStream> for Transport {
    /// Without TLS.
    fn from(stream: TcpStream) -> Self {
        Self {
            stream,
            session: None,
        }
    }
}

impl Transport {
    /// With TLS where there is an acceptor.
    ///
    /// # Errors
    /// rustls cannot make a session, which a configuration that was checked does not cause.
    pub fn accept(stream: TcpStream, tls: Option<&Acceptor>) -> Result<Self, rustls::Error> {
        let session = match tls {
            None => None,
            Some(acceptor) => Some(Rc::new(RefCell::new(acceptor.session()?))),
        };
        Ok(Self { stream, session })
    }

    /// The peer's address; none where it has gone already.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// Reads plaintext; 0 where the peer has ended.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(session) = &self.session else {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        };
        let session = &mut *session.borrow_mut();
        let stream = &mut self.stream;
        let fd = stream.as_raw_fd();
        for _ in 0..READS_PER_POLL {
            let waiting = session.take_plain(buf);
            if waiting > 0 || session.is_ended() {
                return Poll::Ready(Ok(waiting));
            }
            if session.outcome().is_none() {
                // The peer's next word depends on it.
                ready!(poll_send_unsent(stream, session, cx))?;
            }
            let received = ready!(with_incoming(|incoming| {
                let before = session.restore_partial(incoming);
                let count =
                    ready!(Pin::new(&mut *stream).poll_read(cx, incoming.split_at_mut(before).1))?;
                if count == 0 {
                    return Poll::Ready(Ok(None));
                }
                let (ciphertext, _) = incoming.split_at_mut(before + count);
                Poll::Ready(session.receive(fd, ciphertext, buf).map(Some))
            }))?;
            match received {
                None => return Poll::Ready(Ok(0)),
                Some(0) => {}
                Some(count) => return Poll::Ready(Ok(count)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes plaintext; what was encrypted and not sent is for [`Transport::poll_flush`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(session) = &self.session else {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        };
        let session = &mut *session.borrow_mut();
        ready!(poll_send_unsent(&mut self.stream, session, cx))?;
        match session.send(self.stream.as_raw_fd(), buf) {
            (0, Sent::Broken) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            (taken, _) => Poll::Ready(Ok(taken)),
        }
    }

    /// Ready when the kernel has all that was written.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.session {
            None => Poll::Ready(Ok(())),
            Some(session) => poll_send_unsent(&mut self.stream, &mut session.borrow_mut(), cx),
        }
    }

    /// Ends the sending half, behind all that was written.
    pub fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        self.say_goodbye();
        Pin::new(&mut self.stream).poll_close(cx)
    }

    /// Sends a last few bytes to a peer that nothing was sent to, and ends the sending half. A fresh socket has room
    /// for them; a peer that cannot take them has lost interest.
    pub fn send_last(&mut self, bytes: &[u8]) {
        let fd = self.stream.as_raw_fd();
        let sent = match &self.session {
            None => sys::send(fd, bytes),
            Some(session) => session.borrow_mut().send(fd, bytes).1,
        };
        if matches!(sent, Sent::Bytes(_)) {
            self.say_goodbye();
            sys::shutdown(fd, Shutdown::Write);
        }
    }

    /// Tells the peer that TLS ends here; nothing where there is none.
    pub fn say_goodbye(&self) {
        if let Some(session) = &self.session {
            session.borrow_mut().say_goodbye(self.stream.as_raw_fd());
        }
    }

    /// What has become of the TLS handshake, once it is over.
    pub fn outcome(&self) -> Option<Outcome> {
        self.session.as_ref()?.borrow().outcome()
    }

    /// Whether this is TLS.
    pub fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// Whether ciphertext waits for the kernel.
    pub fn has_unsent(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| !session.borrow().unsent().is_empty())
    }

    pub(crate) fn session(&self) -> Option<&SharedSession> {
        self.session.as_ref()
    }
}

impl AsRawFd for Transport {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

fn poll_send_unsent(
    stream: &mut TcpStream,
    session: &mut Session,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while !session.unsent().is_empty() {
        match ready!(Pin::new(&mut *stream).poll_write(cx, session.unsent()))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            sent => session.advance_unsent(sent),
        }
    }
    Poll::Ready(Ok(()))
}
