//! Attempts: signed POSTs, on threads of their own, with bounds on everything the other side can do.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use serde::{Deserialize, Serialize};
use shardwire_proto::webhook::signature;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::DefaultConnector;

use super::WebhooksConfig;
use super::guard::PublicOnly;

/// Bytes of an answer that are read; a connection with more is closed.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// Bytes of an answer that the delivery log keeps.
const ANSWER_KEPT_BYTES: usize = 512;
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Connections that are kept open for the next delivery.
const IDLE_CONNECTIONS: usize = 64;

/// What an attempt is part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Lane(usize),
    /// A dead letter that is sent again.
    Replay(String),
    /// An operator's trial.
    Test,
}

/// An attempt to be made.
#[derive(Debug)]
pub(super) struct Shipment {
    pub(super) endpoint: Arc<str>,
    pub(super) app: Arc<str>,
    pub(super) place: Place,
    pub(super) url: String,
    pub(super) id: String,
    /// From 1.
    pub(super) attempt: u32,
    pub(super) secrets: Vec<String>,
    pub(super) body: Arc<str>,
    /// Its endpoint has failed the last time, or has nothing received yet.
    pub(super) is_probe: bool,
    /// When each event happened, ms since the Unix epoch.
    pub(super) times: Vec<u64>,
}

/// What it came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) shipment: Shipment,
    pub(super) entry: Entry,
    /// What the receiver asks to wait, ms.
    pub(super) retry_after_ms: Option<u64>,
}

/// A line of the delivery log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    /// Of the delivery.
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) events: usize,
    /// When it began, ms since the Unix epoch.
    pub(super) at: u64,
    pub(super) ms: u64,
    /// Of the answer; none where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    /// The answer's beginning.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) response: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

impl Entry {
    pub(super) fn is_delivered(&self) -> bool {
        self.status
            .is_some_and(|status| (200..300).contains(&status))
    }
}

/// Threads that make attempts; started as they are needed.
pub(super) struct Pool {
    agent: ureq::Agent,
    shipments: Sender<Shipment>,
    queue: Receiver<Shipment>,
    reports: Sender<Report>,
    threads: usize,
    threads_max: usize,
    busy: usize,
    /// Attempts at endpoints in doubt.
    probes: usize,
}

impl Pool {
    pub(super) fn new(config: &WebhooksConfig, reports: Sender<Report>) -> Self {
        // Bounded by the threads: no more is handed over than can be made at once.
        let (shipments, queue) = crossbeam_channel::unbounded();
        Self {
            agent: agent(config),
            shipments,
            queue,
            reports,
            threads: 0,
            threads_max: config.threads.max(2),
            busy: 0,
            probes: 0,
        }
    }

    /// Whether an attempt can begin; `is_probe`: at an endpoint in doubt. Half of the threads are for
    /// those that are not.
    pub(super) fn has_room(&self, is_probe: bool) -> bool {
        self.busy < self.threads_max && (!is_probe || self.probes < self.threads_max / 2)
    }

    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    pub(super) fn ship(&mut self, shipment: Shipment) {
        self.busy += 1;
        self.probes += usize::from(shipment.is_probe);
        // The queue lives as long as this does.
        _ = self.shipments.send(shipment);
        if self.busy > self.threads {
            let (agent, queue, reports) =
                (self.agent.clone(), self.queue.clone(), self.reports.clone());
            let thread = std::thread::Builder::new().name("webhook-send".to_owned());
            match thread.spawn(move || run(&agent, &queue, &reports)) {
                Ok(_) => self.threads += 1,
                Err(error) => log::error!(error:%; "webhooks: no further thread can be started"),
            }
        }
    }

    /// An attempt's report has come.
    pub(super) fn note(&mut self, report: &Report) {
        self.busy = self.busy.saturating_sub(1);
        if report.shipment.is_probe {
            self.probes = self.probes.saturating_sub(1);
        }
    }
}

fn agent(config: &WebhooksConfig) -> ureq::Agent {
    let timeout = Duration::from_millis(config.timeout_ms);
    let settings = ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .timeout_connect(Some(timeout))
        .https_only(config.require_https)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .max_response_header_size(HEAD_BYTES_MAX)
        .max_idle_connections(IDLE_CONNECTIONS)
        .user_agent(concat!("shardwire/", env!("CARGO_PKG_VERSION")))
        .build();
    if config.allow_private {
        ureq::Agent::with_parts(
            settings,
            DefaultConnector::default(),
            DefaultResolver::default(),
        )
    } else {
        ureq::Agent::with_parts(settings, DefaultConnector::default(), PublicOnly)
    }
}

fn run(agent: &ureq::Agent, queue: &Receiver<Shipment>, reports: &Sender<Report>) {
    while let Ok(shipment) = queue.recv() {
        let report = attempt(agent, shipment);
        if reports.send(report).is_err() {
            return;
        }
    }
}

fn attempt(agent: &ureq::Agent, shipment: Shipment) -> Report {
    let at = crate::clock::now_ms();
    let started = Instant::now();
    let mut entry = Entry {
        id: shipment.id.clone(),
        attempt: shipment.attempt,
        events: shipment.times.len(),
        at,
        ms: 0,
        status: None,
        response: String::new(),
        error: None,
    };
    let mut retry_after_ms = None;
    let body = shipment.body.as_bytes();
    let secrets = shipment.secrets.iter().map(String::as_str);
    let answer = agent
        .post(&shipment.url)
        .header("Content-Type", "application/json")
        .header("X-WSocket-Delivery", &shipment.id)
        .header("X-WSocket-App", header_text(&shipment.app))
        .header(
            "X-WSocket-Signature",
            signature::header(secrets, at / 1000, body),
        )
        .send(body);
    match answer {
        Ok(mut answer) => {
            entry.status = Some(answer.status().as_u16());
            let asked = answer.headers().get("retry-after");
            retry_after_ms = asked
                .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
                .map(|seconds| seconds.saturating_mul(1000));
            entry.response = beginning(answer.body_mut());
        }
        Err(error) => entry.error = Some(error.to_string()),
    }
    entry.ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Report {
        shipment,
        entry,
        retry_after_ms,
    }
}

/// A text as a header may hold it: what is not plain ASCII percent-encoded.
fn header_text(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%';
    if text.bytes().all(|byte| plain(&byte)) {
        return text.to_owned();
    }
    let encode = |byte: u8| match plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The beginning of an answer's body, as text. What cannot be read is left out: the status has decided.
fn beginning(body: &mut ureq::Body) -> String {
    let mut bytes = Vec::new();
    let reader = body.as_reader();
    _ = reader.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
    bytes.truncate(ANSWER_KEPT_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}
