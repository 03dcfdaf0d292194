//! HTTP/1.1 and HTTP/2 over TLS to providers. No redirects; answers are read up to a bound.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::http::Uri;
use hyper::{HeaderMap, Request, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::side::egress::{REFUSED, Resolver, is_allowed_host};
use crate::side::push::PushConfig;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// A connection without a request is kept for this long.
const IDLE: Duration = Duration::from_secs(60);
/// Idle connections to one host.
const IDLE_CONNECTIONS_MAX: usize = 16;
/// Between two pings of an HTTP/2 connection in use.
const PING: Duration = Duration::from_secs(30);

pub(super) type Http = Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// There never will be one: we do not ask.
    Refused(String),
    /// There may be one later.
    Unreachable(String),
}

/// A provider's answer.
pub(super) struct Answer {
    pub(super) status: u16,
    /// `Retry-After`, in ms.
    pub(super) after_ms: Option<u64>,
    pub(super) body: Bytes,
}

/// The clients of all apps.
pub(super) struct Clients {
    /// For addresses that clients name.
    web: Http,
    /// For addresses that the operator names, HTTP/2 where it is spoken.
    pub(super) trusted: Http,
    /// The same, HTTP/2 only.
    pub(super) http2: Http,
    roots: Arc<RootCertStore>,
    allow_private: bool,
}

impl Clients {
    pub(super) fn new(config: &PushConfig) -> Result<Self, String> {
        let roots = Arc::new(roots(config)?);
        let allow_private = config.allow_private;
        Ok(Self {
            web: client(tls(&roots, None)?, allow_private, false),
            trusted: client(tls(&roots, None)?, true, false),
            http2: client(tls(&roots, None)?, true, true),
            roots,
            allow_private,
        })
    }

    /// An HTTP/2 client that shows a certificate.
    pub(super) fn with_certificate(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Http, Trouble> {
        let tls = tls(&self.roots, Some((chain, key))).map_err(Trouble::Refused)?;
        Ok(client(tls, true, true))
    }

    /// Asks an address that a client has named.
    pub(super) async fn ask_web(&self, request: Request<Full<Bytes>>) -> Result<Answer, Trouble> {
        let uri = request.uri();
        let is_secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        if !(is_secure || self.allow_private) || !is_allowed_host(host, self.allow_private) {
            return Err(Trouble::Refused(REFUSED.to_owned()));
        }
        ask(&self.web, request).await
    }
}

/// Asks, and reads the answer.
pub(super) async fn ask(http: &Http, request: Request<Full<Bytes>>) -> Result<Answer, Trouble> {
    let unreachable = |error: &dyn std::error::Error| Trouble::Unreachable(causes(error));
    let response = http.request(request).await.map_err(|error| {
        let text = causes(&error);
        match text.contains(REFUSED) {
            true => Trouble::Refused(REFUSED.to_owned()),
            false => Trouble::Unreachable(text),
        }
    })?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(Answer {
        status: head.status.as_u16(),
        after_ms: retry_after_ms(&head.headers),
        body: body.map_err(|error| unreachable(&*error))?.to_bytes(),
    })
}

/// The host and port of an address, for telling providers apart.
pub(super) fn host_of(url: &str) -> String {
    let uri: Option<Uri> = url.parse().ok();
    let authority = uri.as_ref().and_then(Uri::authority);
    authority.map_or_else(String::new, |authority| authority.as_str().to_owned())
}

/// RFC 9110, 10.2.3: seconds or a date.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    let wait = at.duration_since(SystemTime::now()).unwrap_or_default();
    u64::try_from(wait.as_millis()).ok()
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn roots(config: &PushConfig) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let file = &config.ca_file;
    if !file.as_os_str().is_empty() {
        let failed = |error: String| format!("push.ca_file {}: {error}", file.display());
        let found = CertificateDer::pem_file_iter(file).map_err(|e| failed(e.to_string()))?;
        for certificate in found {
            let certificate = certificate.map_err(|e| failed(e.to_string()))?;
            roots.add(certificate).map_err(|e| failed(e.to_string()))?;
        }
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn tls(roots: &Arc<RootCertStore>, identity: Option<Identity>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots.clone());
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| error.to_string()),
    }
}

fn client(tls: ClientConfig, allow_private: bool, http2_only: bool) -> Http {
    let mut http = HttpConnector::new_with_resolver(Resolver { allow_private });
    http.enforce_http(false);
    http.set_nodelay(true);
    let tls = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    let connector = match http2_only {
        true => tls.enable_http2().wrap_connector(http),
        false => tls.enable_all_versions().wrap_connector(http),
    };
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http2_only(http2_only)
        .http2_keep_alive_interval(PING)
        .build(connector)
}
