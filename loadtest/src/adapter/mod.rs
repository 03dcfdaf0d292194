//! What differs between the protocols that can be measured: targets, subscribing, publishing, replies.
//!
//! Adapters turn intents into bytes and messages into [`Event`]s. They own no socket and keep no state
//! per connection; deliveries never reach them, since a stamp is found in a message without parsing it.

pub mod nats;
pub mod plain;
pub mod pusher;
pub mod wsocket;

use crate::opts::{Protocol, TargetOpts};
use crate::stamp::Stamp;

/// What a connection is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Subscribes to a channel.
    Subscribe,
    /// Publishes to a channel.
    Publish,
    /// Subscribes to a channel, publishes to it, and gets its own messages.
    Echo,
    /// Becomes a member of a channel, when told.
    Member,
}

/// What an unstamped message means for the run.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing.
    None,
    /// The connection is ready for its duty.
    Ready,
    /// A resume is complete: whether nothing is missing on any of its channels.
    Resumed(bool),
    /// A connection has been heard in a channel's presence.
    Entered,
    /// A publish was acknowledged.
    Ack(Stamp),
    /// The server reports a fault.
    Error(String),
}

/// Where a delivered message stands in its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The server's clock, in milliseconds.
    pub timestamp: u64,
    /// Place in the channel, from 1; 0 for a message that is not stored.
    pub sequence: u64,
    /// Sent as one of the past.
    pub is_replay: bool,
}

/// A message to publish.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Channel name.
    pub channel: &'a str,
    /// Identity and time.
    pub stamp: Stamp,
    /// Payload size in bytes.
    pub size: usize,
}

/// One protocol with its settings.
#[derive(Clone, Debug)]
pub enum Adapter {
    /// The wSocket contract.
    Wsocket(wsocket::Wsocket),
    /// Pusher protocol 7.
    Pusher(pusher::Pusher),
    /// NATS over WebSocket.
    Nats(nats::Nats),
    /// Frames relayed as they are.
    Plain(plain::Plain),
}

impl Adapter {
    /// The adapter that the options ask for; `nonce` sets message ids of this run apart from others'.
    pub fn new(opts: &TargetOpts, nonce: &str) -> Self {
        match opts.protocol {
            Protocol::Wsocket => Self::Wsocket(wsocket::Wsocket::new(opts, nonce)),
            Protocol::Pusher => Self::Pusher(pusher::Pusher::new(opts)),
            Protocol::Nats => Self::Nats(nats::Nats),
            Protocol::Plain => Self::Plain(plain::Plain::new(opts)),
        }
    }

    /// Start of the channel names, so that a run meets no other run's messages.
    pub fn channel_prefix(&self, nonce: &str) -> String {
        match self {
            Self::Pusher(_) => format!("private-lt-{nonce}"),
            Self::Wsocket(_) | Self::Nats(_) | Self::Plain(_) => format!("lt-{nonce}"),
        }
    }

    /// Request target of the opening handshake.
    pub fn target(&self, duty: Duty, channel: &str) -> String {
        match self {
            Self::Wsocket(a) => a.target(duty),
            Self::Pusher(a) => a.target(),
            Self::Nats(_) => "/".to_owned(),
            Self::Plain(a) => a.target(duty, channel),
        }
    }

    /// Request target of a client that gives itself an id: the `member`th. Only for [`Duty::Member`].
    pub fn member_target(&self, member: u32) -> String {
        match self {
            Self::Wsocket(a) => a.member_target(member),
            Self::Pusher(_) | Self::Nats(_) | Self::Plain(_) => "/".to_owned(),
        }
    }

    /// Appends what enters a channel; [`Event::Entered`] follows. Only for [`Duty::Member`].
    pub fn encode_enter(&self, channel: &str, out: &mut Vec<u8>) {
        if let Self::Wsocket(a) = self {
            a.encode_enter(channel, out);
        }
    }

    /// The upgrade is done: appends what is to be sent first; says whether the connection is ready.
    pub fn on_open(&self, duty: Duty, channel: &str, out: &mut Vec<u8>) -> Event {
        match self {
            Self::Wsocket(a) => a.on_open(duty, channel, out),
            Self::Pusher(_) => Event::None,
            Self::Nats(a) => a.on_open(duty, channel, out),
            Self::Plain(_) => Event::Ready,
        }
    }

    /// Comes back for `channels` with all that is newer than `last_ts` (see [`Position`]), in place of
    /// [`Self::on_open`]; [`Event::Resumed`] follows. `variant` picks one of the forms in use. Only where
    /// [`Self::can_resume`].
    pub fn on_reopen(&self, channels: &[&str], last_ts: u64, variant: u32, out: &mut Vec<u8>) {
        if let Self::Wsocket(a) = self {
            a.on_reopen(channels, last_ts, variant, out);
        }
    }

    /// Where a delivered message stands in its channel.
    pub fn position(&self, message: &[u8]) -> Option<Position> {
        match self {
            Self::Wsocket(_) => wsocket::parse_position(message),
            Self::Pusher(_) | Self::Nats(_) | Self::Plain(_) => None,
        }
    }

    /// A message without a stamp; appends the reply, if it needs one.
    pub fn on_message(&self, channel: &str, message: &[u8], out: &mut Vec<u8>) -> Event {
        match self {
            Self::Wsocket(a) => a.on_message(message),
            Self::Pusher(a) => a.on_message(channel, message, out),
            Self::Nats(a) => a.on_message(message, out),
            Self::Plain(_) => Event::None,
        }
    }

    /// Appends the frame that publishes `message`.
    pub fn encode_publish(&self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Wsocket(a) => a.encode_publish(message, out),
            Self::Pusher(a) => a.encode_publish(message, out),
            Self::Nats(a) => a.encode_publish(message, out),
            Self::Plain(a) => a.encode_publish(message, out),
        }
    }

    /// Appends the HTTP request that publishes `message`. `false`: the protocol has no HTTP API.
    pub fn encode_http(
        &self,
        host: &str,
        message: Outgoing<'_>,
        unix_s: u64,
        out: &mut Vec<u8>,
    ) -> bool {
        match self {
            Self::Wsocket(a) => a.encode_http(host, message, out),
            Self::Pusher(a) => a.encode_http(host, message, unix_s, out),
            Self::Plain(a) => a.encode_http(host, message, out),
            Self::Nats(_) => return false,
        }
        true
    }

    /// Whether messages form a byte stream that ignores frame boundaries; see [`nats::split`].
    pub fn is_stream(&self) -> bool {
        matches!(self, Self::Nats(_))
    }

    /// Whether a connection can come back for what it has missed.
    pub fn can_resume(&self) -> bool {
        matches!(self, Self::Wsocket(_))
    }

    /// Whether a publisher can be sent its own messages.
    pub fn can_echo(&self) -> bool {
        !matches!(self, Self::Pusher(_))
    }

    /// Whether a publisher connection serves one channel only.
    pub fn is_bound_to_channel(&self) -> bool {
        matches!(self, Self::Plain(_) | Self::Pusher(_))
    }
}

/// Appends an HTTP/1.1 POST; header lines in `headers` end with CRLF.
fn encode_post(host: &str, target: &str, headers: &str, body: &[u8], out: &mut Vec<u8>) {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body);
}

#[cfg(test)]
pub(crate) mod testing {
    /// Payload of the one client frame in `frame`, unmasked.
    pub(crate) fn unmask(frame: &[u8]) -> Vec<u8> {
        crate::frame::parse_masked(frame).unwrap().1
    }
}
