//! The TLS configurations in use, and how they follow their files.
//!
//! Shards only load a pointer per accepted connection; reading files is for the main thread (a reload) and a thread that
//! looks at the files every few seconds. Invariants: what cannot be read whole changes nothing and is logged once per
//! change of the files; tickets outlive reloads, so that clients resume across them.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{ProducesTickets, ServerConfig};

use super::Session;
use super::material::Source;
use crate::config::{AdminTls, CertificateFiles, Config};

/// How often the files are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// One listener's TLS; all shards share it.
#[derive(Clone)]
pub struct Acceptor(Arc<Inner>);

struct Inner {
    /// What it is for, in the log.
    name: &'static str,
    current: ArcSwap<ServerConfig>,
    tickets: Arc<dyn ProducesTickets>,
    /// Of those who reload; shards do not touch it.
    origin: Mutex<Origin>,
}

/// Where the configuration comes from.
struct Origin {
    source: Source,
    /// The files as they were when last read.
    stamps: Vec<Option<Stamp>>,
}

/// Changes with a file's content: inode, length, time of change in ns.
type Stamp = (u64, u64, i128);

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.0.name).finish()
    }
}

impl Acceptor {
    fn new(name: &'static str, source: Source) -> Result<Self, String> {
        let tickets =
            rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
        // Before they are read: a change meanwhile is seen.
        let stamps = stamps(&source);
        let config = source
            .read(&tickets)
            .map_err(|error| format!("{name}: {error}"))?;
        Ok(Self(Arc::new(Inner {
            name,
            current: ArcSwap::from_pointee(config),
            tickets,
            origin: Mutex::new(Origin { source, stamps }),
        })))
    }

    pub(crate) fn session(&self) -> Result<Session, rustls::Error> {
        Session::new(self.0.current.load_full())
    }

    /// Reads the files of `source`, and uses them from here on.
    fn reload(&self, source: Source) {
        let mut origin = self.origin();
        let stamps = stamps(&source);
        self.take(&mut origin, source, stamps);
    }

    /// Reads the files again where they have changed.
    fn look(&self) {
        let mut origin = self.origin();
        let stamps = stamps(&origin.source);
        if stamps != origin.stamps {
            let source = origin.source.clone();
            self.take(&mut origin, source, stamps);
        }
    }

    fn take(&self, origin: &mut Origin, source: Source, stamps: Vec<Option<Stamp>>) {
        let name = self.0.name;
        match source.read(&self.0.tickets) {
            Ok(config) => {
                self.0.current.store(Arc::new(config));
                log::info!("{name}: certificates loaded");
            }
            Err(error) => log::error!("{name}: the certificates in use stay: {error}"),
        }
        *origin = Origin { source, stamps };
    }

    fn origin(&self) -> MutexGuard<'_, Origin> {
        self.0.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(source: &Source) -> Vec<Option<Stamp>> {
    let stamp = |path| {
        // Follows links: certificates are often exchanged by turning one.
        let meta = fs::metadata(path).ok()?;
        let time = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Some((meta.ino(), meta.len(), time))
    };
    source.files().map(stamp).collect()
}

/// The TLS of both listeners, where they have it.
#[derive(Debug, Clone, Default)]
pub struct Acceptors {
    /// Clients and back ends.
    pub public: Option<Acceptor>,
    /// Health, metrics and administration.
    pub admin: Option<Acceptor>,
}

impl Acceptors {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(config: &Config) -> Result<Self, String> {
        let load = |name, source: Option<Source>| {
            source.map(|source| Acceptor::new(name, source)).transpose()
        };
        Ok(Self {
            public: load("tls", public(config))?,
            admin: load("admin.tls", admin(config))?,
        })
    }

    /// Reads all files again, also those that have not changed, from where `config` says. Whether a listener has TLS
    /// is settled at the start.
    pub fn reload(&self, config: &Config) {
        for (acceptor, source) in [(&self.public, public(config)), (&self.admin, admin(config))] {
            if let (Some(acceptor), Some(source)) = (acceptor, source) {
                acceptor.reload(source);
            }
        }
    }

    /// Follows the files on a thread of its own until the result is dropped.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn watch(&self) -> std::io::Result<Watch> {
        let acceptors: Vec<_> = [&self.public, &self.admin]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let (stop, stopped) = mpsc::channel();
        if !acceptors.is_empty() {
            std::thread::Builder::new()
                .name("tls-files".into())
                .spawn(move || {
                    while stopped.recv_timeout(WATCH_EVERY) == Err(RecvTimeoutError::Timeout) {
                        acceptors.iter().for_each(Acceptor::look);
                    }
                })?;
        }
        Ok(Watch { _stop: stop })
    }
}

/// Ends the thread that follows certificate files when dropped.
#[derive(Debug)]
pub struct Watch {
    _stop: mpsc::Sender<()>,
}

fn public(config: &Config) -> Option<Source> {
    config.tls.is_on().then(|| Source {
        certificates: config.tls.certificates.clone(),
        client_ca: None,
    })
}

fn admin(config: &Config) -> Option<Source> {
    let AdminTls {
        cert,
        key,
        client_ca,
    } = config.admin_tls.clone()?;
    Some(Source {
        certificates: vec![CertificateFiles { cert, key }],
        client_ca,
    })
}
