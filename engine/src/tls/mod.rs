//! TLS: rustls between a socket and what reads and writes it.
//!
//! `material` reads certificates and makes a rustls configuration of them, `acceptor` holds the current one and follows
//! the files, `session` is one connection's encryption. Not here: sockets that wait (`conn::transport`), and what is
//! said over them.
//!
//! Invariants: a configuration that cannot be read whole never replaces one that works; a connection keeps the one it
//! began with; no private key and no secret is logged; a session at rest holds no buffer.

mod acceptor;
mod material;
mod session;

pub use self::acceptor::{Acceptor, Acceptors, Watch};
pub(crate) use self::session::{Session, with_incoming};

/// What became of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Agreed, with certificate and key exchange.
    Full,
    /// Agreed, from a ticket.
    Resumed,
    /// The peer left, or took longer than it may.
    Incomplete,
    /// The peer speaks HTTP without TLS.
    PlainHttp,
    /// The peer's bytes are not TLS.
    NotTls,
    /// No version, cipher or protocol in common.
    Incompatible,
    /// The peer refused, as one does that does not trust the certificate.
    RefusedByPeer,
    /// The peer has shown no certificate, or one that is not trusted.
    ClientCertificate,
    /// Anything else.
    Other,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// All, in order of their index.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Full,
        Self::Resumed,
        Self::Incomplete,
        Self::PlainHttp,
        Self::NotTls,
        Self::Incompatible,
        Self::RefusedByPeer,
        Self::ClientCertificate,
        Self::Other,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::Incomplete => "incomplete",
            Self::PlainHttp => "plain_http",
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::RefusedByPeer => "refused_by_peer",
            Self::ClientCertificate => "client_certificate",
            Self::Other => "other",
        }
    }

    fn of_error(error: &rustls::Error) -> Self {
        use rustls::Error;
        match error {
            Error::InvalidMessage(_) => Self::NotTls,
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Incompatible,
            Error::AlertReceived(_) => Self::RefusedByPeer,
            Error::NoCertificatesPresented | Error::InvalidCertificate(_) => {
                Self::ClientCertificate
            }
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_in_order_of_their_index() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index, "{}", outcome.label());
        }
    }
}
