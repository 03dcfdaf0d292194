//! One connection of the generator and what it is there for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::adapter::Duty;
use crate::plan::Plan;
use crate::tls::Session;

/// What a slot's connection is there for, for the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Subscribed to a channel and checked from `cell` of the order check on; some publish, too.
    Subscriber {
        channel: u32,
        cell: u32,
        publishes: bool,
    },
    /// Publishes on a WebSocket.
    Publisher { publisher: u32 },
    /// Publishes over HTTP.
    Http { publisher: u32 },
    /// Comes, subscribes and goes; `cell` is in the order check of churning connections.
    Churn { channel: u32, cell: u32 },
    /// Subscribed to several channels, cut now and then; `client` as in the plan, `state` on its thread.
    Client { client: u32, state: u32 },
    /// Enters the first channel; `member` as in the plan.
    Member { member: u32 },
}

impl Role {
    pub(super) fn duty(self) -> Duty {
        match self {
            Self::Subscriber {
                publishes: true, ..
            } => Duty::Echo,
            Self::Subscriber { .. } | Self::Churn { .. } | Self::Client { .. } => Duty::Subscribe,
            Self::Publisher { .. } | Self::Http { .. } => Duty::Publish,
            Self::Member { .. } => Duty::Member,
        }
    }

    /// Name of the channel that it connects for, or of the first of them.
    pub(super) fn channel(self, plan: &Plan) -> &str {
        let channel = match self {
            Self::Subscriber { channel, .. } | Self::Churn { channel, .. } => Some(channel),
            Self::Client { client, .. } => plan.clients[client as usize].first().copied(),
            Self::Member { .. } => Some(0),
            Self::Publisher { publisher } | Self::Http { publisher } => {
                let streams = &plan.publishers[publisher as usize].streams;
                streams
                    .first()
                    .map(|&stream| plan.streams[stream as usize].channel)
            }
        };
        channel.map_or("", |channel| &plan.channels[channel as usize].name)
    }
}

/// How far a connection has come.
///
/// `Connecting` to `Handshaking` to `Opening` to `Ready`; HTTP connections go from `Connecting` to `Ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The TCP handshake is under way.
    Connecting,
    /// The upgrade request is sent or queued.
    Handshaking,
    /// The protocol's own opening is under way.
    Opening,
    /// Doing its duty.
    Ready,
}

/// A live connection. Its buffers are empty, and take no memory, while nothing is cut short.
pub(super) struct Conn {
    pub(super) fd: OwnedFd,
    /// The TLS session, where there is one.
    pub(super) tls: Option<Session>,
    pub(super) state: State,
    /// Received bytes that do not make a whole frame yet.
    pub(super) partial: Vec<u8>,
    /// Bytes of a protocol stream that do not make a whole operation yet.
    pub(super) partial_stream: Vec<u8>,
    /// Bytes to send.
    pub(super) out: Vec<u8>,
}

impl Conn {
    /// Reads; 0 at the peer's end.
    pub(super) fn recv(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => Ok(recv(&self.fd, buf, RecvFlags::empty())?.0),
            Some(session) => session.recv(self.fd.as_fd(), buf),
        }
    }

    /// Sends what the socket takes of `out` from `from` on; how much was taken. With TLS, what it has encrypted and
    /// not sent yet counts as taken.
    pub(super) fn send_from(&mut self, from: usize) -> io::Result<usize> {
        let bytes = &self.out[from..];
        match &mut self.tls {
            None => Ok(send(&self.fd, bytes, SendFlags::NOSIGNAL)?),
            Some(session) => session.send(self.fd.as_fd(), bytes),
        }
    }

    /// Whether something waits for the socket to be writable.
    pub(super) fn wants_write(&self) -> bool {
        !self.out.is_empty() || self.tls.as_ref().is_some_and(Session::wants_write)
    }
}

/// What a client keeps from one connection to the next, and how far its return has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Highest timestamp received, in the server's milliseconds; 0 for none.
    pub(super) last_ts: u64,
    /// The timestamp in the token of this connection's resume; 0: it was opened without.
    pub(super) token_ts: u64,
    /// Channels whose subscription is not confirmed yet.
    pub(super) awaited: u32,
}

/// A place for one connection at a time.
pub(super) struct Slot {
    pub(super) role: Role,
    /// Rises with every connection, so that a late event does not hit the next one.
    pub(super) generation: u32,
    pub(super) conn: Option<Conn>,
    /// When the first try to connect was begun, or should have been.
    pub(super) since_ns: u64,
    /// Failed tries in a row.
    pub(super) failures: u32,
    /// Listed as having bytes to send.
    pub(super) dirty: bool,
    pub(super) memory: Memory,
}

impl Slot {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            generation: 0,
            conn: None,
            since_ns: 0,
            failures: 0,
            dirty: false,
            memory: Memory::default(),
        }
    }
}
