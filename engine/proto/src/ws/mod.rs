//! The server side of RFC 6455 over buffers the caller owns.
//!
//! Not here: sockets, timers, and what a message means. Nothing in this module blocks, and nothing is held for a
//! conn that is between two frames but the 16 bytes of its [`Decoder`].
//!
//! Invariants:
//! - How the byte stream is cut into reads never changes the events or the error that come out.
//! - A length is checked against its limit before memory is set aside for it.
//! - No subprotocol and no extension is ever selected (contract 2.1), so RSV bits are always an error.

pub mod close;
pub mod decoder;
mod error;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod handshake;
pub mod mask;
mod utf8;

pub use decoder::{Decoder, DecoderConfig, Event, Role, Step};
pub use error::DecodeError;
pub use frame::OpCode;
pub use handshake::{HEAD_BYTES_MAX, Head, HeadError, HeadKind, Upgrade, UpgradeError, parse_head};
