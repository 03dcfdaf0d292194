//! TLS of the generator's connections: whom to trust, and bytes in and out of one socket.
//!
//! Not here: when to read and write (`worker`). Invariant: plaintext that was given is encrypted in order, and sent once the
//! handshake is done; what the kernel does not take waits in the session.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Plaintext encrypted at once; the rest waits for the next round.
const CHUNK_BYTES: usize = 64 * 1024;

/// Makes the sessions of all connections.
#[derive(Clone, Debug)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Whom connections trust.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'p> {
    /// Certificates signed by one in this PEM file.
    Authority(&'p Path),
    /// Everybody: for a server of one's own with a certificate made for the occasion.
    Anybody,
}

impl Connector {
    /// Connections to `host` (`NAME:PORT`). With `resumes`, those that follow the first resume its session with tickets.
    ///
    /// # Errors
    /// The file cannot be used, or `host` has no name that a certificate could bear.
    pub fn new(host: &str, trust: Trust<'_>, resumes: bool) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .context("no TLS version")?;
        let mut config = match trust {
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
                .with_no_client_auth(),
            Trust::Authority(file) => builder
                .with_root_certificates(read_roots(file)?)
                .with_no_client_auth(),
        };
        if !resumes {
            config.resumption = Resumption::disabled();
        }
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(name.to_owned())
            .with_context(|| format!("{name}: not a name of a server"))?;
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// A session for a connection that is being made.
    ///
    /// # Errors
    /// The configuration makes no session.
    pub fn session(&self) -> Result<Session, rustls::Error> {
        let mut state = ClientConnection::new(self.config.clone(), self.name.clone())?;
        state.set_buffer_limit(None);
        Ok(Session(Box::new(state)))
    }
}

fn read_roots(file: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    for certificate in certificates {
        let certificate = certificate.with_context(|| file.display().to_string())?;
        roots
            .add(certificate)
            .with_context(|| file.display().to_string())?;
    }
    ensure!(!roots.is_empty(), "{}: no certificate", file.display());
    Ok(roots)
}

/// The client's side of one connection.
#[derive(Debug)]
pub struct Session(Box<ClientConnection>);

impl Session {
    /// Reads plaintext into `buf`; 0 at the peer's orderly end. Answers of the handshake are sent on the way.
    ///
    /// # Errors
    /// `WouldBlock` when the socket has no more; otherwise what ended the connection.
    pub fn recv(&mut self, fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            // 0: the peer has closed TCP; the reader says what that means.
            self.0.read_tls(&mut Raw(fd))?;
            let processed = self.0.process_new_packets();
            self.flush(fd)?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Encrypts and sends what the socket takes of `plain`; how much of it was taken in.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn send(&mut self, fd: BorrowedFd<'_>, plain: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            self.flush(fd)?;
            // While ciphertext waits for the kernel no more is made of it.
            let rest = &plain[taken..];
            if rest.is_empty() || (self.0.wants_write() && !self.0.is_handshaking()) {
                return Ok(taken);
            }
            taken += self
                .0
                .writer()
                .write(&rest[..rest.len().min(CHUNK_BYTES)])?;
        }
    }

    /// Whether ciphertext waits for the kernel.
    pub fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        while self.0.wants_write() {
            match self.0.write_tls(&mut Raw(fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A non-blocking socket. One that is not connected yet would block.
struct Raw<'f>(BorrowedFd<'f>);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0, &mut *buf, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::NOTCONN) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match send(self.0.as_fd(), bytes, SendFlags::NOSIGNAL) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::NOTCONN) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes any certificate; signatures are checked all the same, so that the work is that of a real client.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
