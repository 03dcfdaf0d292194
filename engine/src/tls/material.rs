//! Certificates and keys from PEM files, and the rustls configuration made of them.
//!
//! Not here: when files are read again (`acceptor`). Invariant: what is returned has been read and checked whole, each
//! key belongs to its certificate, and an error names the file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;

use crate::config::CertificateFiles;

/// The only protocol spoken over TLS, for upgrades to WebSocket too.
const ALPN: &[u8] = b"http/1.1";

/// What a listener's TLS is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The first one is shown where no name fits.
    pub(super) certificates: Vec<CertificateFiles>,
    /// Who signs the certificates that clients have to show; none where they need none.
    pub(super) client_ca: Option<PathBuf>,
}

impl Source {
    /// Every file it is read from.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.certificates
            .iter()
            .flat_map(|files| [files.cert.as_path(), files.key.as_path()])
            .chain(self.client_ca.as_deref())
    }

    /// Reads all files.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(super) fn read(&self, tickets: &Arc<dyn ProducesTickets>) -> Result<ServerConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certificates = Certificates::read(&self.certificates, &provider)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(read_roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if self.client_ca.is_none() {
            config.ticketer = tickets.clone();
            config.send_tls13_tickets = 1;
        } else {
            // A ticket would outlive what the certificate was trusted for.
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error| format!("cannot read certificates from {}: {error}", path.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    if chain.is_empty() {
        return Err(format!("no certificate in {}", path.display()));
    }
    Ok(chain)
}

/// Certificates by the names in them.
#[derive(Debug)]
struct Certificates {
    default: Arc<CertifiedKey>,
    /// Names in lower case, wildcards as `*.example.com`. Several where their keys are of different kinds.
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    fn read(files: &[CertificateFiles], provider: &CryptoProvider) -> Result<Self, String> {
        let mut default = None;
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        for CertificateFiles { cert, key } in files {
            let chain = read_chain(cert)?;
            let names = dns_names(&chain)
                .map_err(|error| format!("certificate in {}: {error}", cert.display()))?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("cannot read a key from {}: {error}", key.display()))?;
            let certified = CertifiedKey::from_der(chain, private, provider)
                .map_err(|error| format!("{} and {}: {error}", cert.display(), key.display()))?;
            let certified = Arc::new(certified);
            if names.is_empty() && default.is_some() {
                return Err(format!(
                    "certificate in {} has no DNS name, so no client would get it",
                    cert.display()
                ));
            }
            for name in names {
                by_name.entry(name).or_default().push(certified.clone());
            }
            default.get_or_insert(certified);
        }
        Ok(Self {
            default: default.ok_or("no certificates")?,
            by_name,
        })
    }

    /// The certificates for a name: those that have it, else those with a wildcard for it.
    fn of_name(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let name = name.to_ascii_lowercase();
        let wildcard = || {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        };
        self.by_name
            .get(&name)
            .or_else(wildcard)
            .map_or(&[], Vec::as_slice)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fitting = hello
            .server_name()
            .map_or(&[][..], |name| self.of_name(name));
        let usable = fitting
            .iter()
            .find(|c| c.key.choose_scheme(hello.signature_schemes()).is_some());
        Some(usable.unwrap_or(&self.default).clone())
    }
}

fn dns_names(chain: &[CertificateDer<'_>]) -> Result<Vec<String>, String> {
    let first = chain.first().ok_or("no certificate")?;
    let parsed = webpki::EndEntityCert::try_from(first).map_err(|error| error.to_string())?;
    Ok(parsed
        .valid_dns_names()
        .map(str::to_ascii_lowercase)
        .collect())
}
