//! The HTTP front over real sockets, against one shard: here the harness, the tests in the modules.

mod admin;
mod calls;
mod connection;
mod history;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder};
use serde_json::{Value, json};
use shardwire_proto::auth::app::App;
use shardwire_proto::auth::capability::Capabilities;
use shardwire_proto::auth::key::{KeyKind, KeyRecord, default_capabilities};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::ids::{Placement, ShardId};
use shardwire_proto::limits::Limits;
use shardwire_proto::namespace::{Namespace, Namespaces};
use shardwire_proto::shard::{Options, Shard, ShardConfig};
use shardwire_proto::ws::{DecoderConfig, Role};
use tempfile::TempDir;

use super::{AdminSettings, AdminStart, HttpSettings, Port, Stage, serve_admin};
use crate::accept::Acceptor;
use crate::server::Operator;
use crate::shard::{Settings, ShardRuntime, inbox, read_clock, start_clock};
use crate::store::sqlite::Sqlite;
use crate::store::{self, StoreConfig, StoreHandle};
use crate::sys;

const ADMIN_TOKEN: &str = "at_0123456789abcdef";
const SERVER_KEY: &str = "sk_0123456789abcdef";
const CLIENT_KEY: &str = "ck_0123456789abcdef";
const OTHER_APP_KEY: &str = "sk_other_app_0123456";
const DISABLED_KEY: &str = "sk_disabled_01234567";
/// May publish to `a:*`, and nothing else.
const NARROW_KEY: &str = "sk_narrow_0123456789";
/// May read the history of `a:*`, and nothing else.
const READER_KEY: &str = "sk_reader_0123456789";

/// A shard with its two ports on a thread of its own, and a store; stopped and joined when dropped.
struct Node {
    store: StoreHandle,
    /// Where the store's file is.
    _folder: TempDir,
    public: SocketAddr,
    admin: SocketAddr,
    stage: inbox::InboxSender<Option<Stage>>,
    thread: Option<ExecutorJoinHandle<()>>,
    acceptor: Option<Acceptor>,
}

impl Node {
    fn start(cors_origins: &'static [&'static str], shards: usize) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = || sys::listen(any, Duration::from_secs(10)).unwrap();
        let (public, admin) = (listen(), listen());
        let address = |socket: &socket2::Socket| socket.local_addr().unwrap().as_socket().unwrap();
        let (public_address, admin_address) = (address(&public), address(&admin));
        let (stage, stages) = inbox::bounded(4);
        let (to_shard, connections) = inbox::bounded(4);
        let acceptor = Acceptor::start(vec![public], vec![to_shard]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (inbox, replies) = inbox::bounded(store::INBOX_ENTRIES);
        let storage = Sqlite::new(folder.path().join("messages.db"));
        let store = store::start(storage, &StoreConfig::default(), vec![inbox]).unwrap();
        let for_shard = store.clone();
        let serve = move || async move {
            let clock = start_clock();
            let options = Options {
                limits: Limits {
                    http_body_bytes_max: 256 * 1024,
                    ..Limits::default()
                },
                self_asserted_ids: true,
                namespaces: namespaces(),
                ..Options::default()
            };
            let decoder = DecoderConfig {
                message_bytes_max: 1024,
                role: Role::Server,
                tolerate_unmasked_control: true,
            };
            let settings = Settings {
                decoder,
                handshake_deadline: Duration::from_secs(10),
                connections_max: 1000,
                refusals_max: 1,
                store: Some(for_shard),
                tls: None,
                registry: None,
                cluster: None,
                usage: None,
                webhooks: None,
                push: None,
                broker: None,
                is_shared_store: false,
            };
            let config = ShardConfig {
                id: ShardId(0),
                placement: Placement::new(1, 1),
                registry: Arc::new(registry()),
                options,
                seed: 1,
            };
            let origins: Vec<String> = cors_origins
                .iter()
                .map(|origin| (*origin).to_owned())
                .collect();
            let http = Rc::new(HttpSettings::new(shards, &origins));
            let core = Shard::new(config, read_clock(clock));
            let server = ShardRuntime::new(ShardId(0), core, settings, http, clock);
            glommio::spawn_local(server.clone().run_turns()).detach();
            glommio::spawn_local(server.clone().hear_store(replies)).detach();
            glommio::spawn_local(server.clone().admit_all(connections)).detach();
            let settings = Rc::new(AdminSettings::new(
                admin_start(),
                shards,
                Stage::Starting,
                read_clock(clock).unix_ms,
            ));
            let listener = sys::glommio_listener(admin);
            let (for_admin, admin_settings) = (server.clone(), settings.clone());
            glommio::spawn_local(async move {
                while let Ok(stream) = listener.accept().await {
                    let served = serve_admin(
                        stream.into(),
                        Vec::new(),
                        for_admin.clone(),
                        admin_settings.clone(),
                        Port::Admin,
                    );
                    glommio::spawn_local(served).detach();
                }
            })
            .detach();
            while let Some(stage) = stages.recv().await {
                settings.stage.set(stage);
                server.http.stage.set(stage);
            }
        };
        let thread = LocalExecutorBuilder::default().spawn(serve).unwrap();
        Self {
            store,
            _folder: folder,
            public: public_address,
            admin: admin_address,
            stage,
            thread: Some(thread),
            acceptor: Some(acceptor),
        }
    }

    fn enter(&self, stage: Stage) {
        self.stage.try_send(Some(stage)).unwrap();
    }

    fn call(&self, method: &str, path: &str, key: &str, body: &str) -> Reply {
        let headers = format!("Authorization: Bearer {key}\r\n");
        Peer::connect(self.public).call(method, path, &headers, body)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.stop();
        }
        let _ = self.stage.try_send(None);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
        }
        let stopped = self.store.shutdown(Duration::from_secs(10));
        assert!(stopped || std::thread::panicking());
    }
}

fn admin_start() -> AdminStart {
    let config = crate::config::Config::load(
        &crate::config::cli::Flags::default(),
        &std::iter::empty::<(String, String)>().collect(),
        &crate::config::Host::of_process(),
    );
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    AdminStart {
        token: ADMIN_TOKEN.into(),
        config: Arc::new(config.unwrap()),
        listen: nowhere,
        admin: nowhere,
        operator: Operator::new().0,
        accounts: None,
    }
}

/// `quiet:*` keeps messages for resume alone.
fn namespaces() -> Namespaces {
    let quiet = Namespace {
        pattern: "quiet:*".into(),
        history: false,
        ..Namespace::default()
    };
    Namespaces::new(vec![quiet]).unwrap()
}

fn registry() -> Registry {
    let record = |key: &str, app: &str, kind, grants: Capabilities| {
        KeyRecord::new(key.into(), app.into(), kind, key, grants).unwrap()
    };
    let all = || default_capabilities(KeyKind::Server);
    let reader = Capabilities::from_claim(&json!({"a:*": ["history"]})).unwrap();
    let narrow = Capabilities::from_claim(&json!({"a:*": ["publish"]})).unwrap();
    let keys = [
        record(SERVER_KEY, "app", KeyKind::Server, all()),
        record(CLIENT_KEY, "app", KeyKind::Client, all()),
        record(OTHER_APP_KEY, "other", KeyKind::Server, all()),
        KeyRecord {
            disabled: true,
            ..record(DISABLED_KEY, "app", KeyKind::Server, all())
        },
        record(NARROW_KEY, "app", KeyKind::Server, narrow),
        record(READER_KEY, "app", KeyKind::Server, reader),
    ];
    Registry::new(["app", "other"].map(App::new), keys, [], []).unwrap()
}

#[derive(Debug)]
struct Reply {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn json(&self) -> Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{self:?}"
        );
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts the form of contract D10.
    fn is_error(&self, status: u16, code: u16) {
        let body = self.json();
        assert_eq!(
            (self.status, &body["code"], &body["status"]),
            (status, &json!(code), &json!(status)),
            "{self:?}"
        );
        assert!(
            body["error"].as_str().is_some_and(|text| !text.is_empty()),
            "{self:?}"
        );
        assert_eq!(body.as_object().unwrap().len(), 3, "{self:?}");
    }
}

/// A client that writes what it is told, byte by byte.
struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream,
            read: Vec::new(),
        }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn call(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        ));
        self.reply(method != "HEAD")
    }

    fn fill(&mut self) -> usize {
        let mut chunk = [0; 4096];
        let count = self
            .stream
            .read(&mut chunk)
            .expect("an answer or the end in time");
        self.read.extend_from_slice(&chunk[..count]);
        count
    }

    fn reply(&mut self, has_body: bool) -> Reply {
        let end = loop {
            if let Some(at) = self
                .read
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at + 4;
            }
            assert!(
                self.fill() > 0,
                "ended inside a head: {:?}",
                String::from_utf8_lossy(&self.read)
            );
        };
        let head: Vec<u8> = self.read.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers
            .iter()
            .find(|(name, _)| name == "content-length")
            .map_or(Ok(0), |(_, value)| value.parse())
            .unwrap();
        let length: usize = if has_body { length } else { 0 };
        while self.read.len() < length {
            assert!(self.fill() > 0, "ended inside a body");
        }
        let body = String::from_utf8(self.read.drain(..length).collect()).unwrap();
        Reply {
            status,
            headers,
            body,
        }
    }

    fn is_ended(&mut self) -> bool {
        self.read.is_empty() && self.fill() == 0
    }
}

/// A WebSocket client for small frames.
struct Socket(Peer);

impl Socket {
    fn open(address: SocketAddr, target: &str) -> Self {
        let mut peer = Peer::connect(address);
        peer.send(&format!(
            "GET {target} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ));
        let reply = peer.reply(false);
        assert_eq!(reply.status, 101, "{reply:?}");
        let mut socket = Self(peer);
        assert_eq!(socket.next()["action"], "connected");
        socket
    }

    /// A mask of zeros leaves the payload as it is (RFC 6455, 5.3).
    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        let length = u8::try_from(text.len())
            .ok()
            .filter(|length| *length < 126)
            .unwrap();
        self.0
            .stream
            .write_all(&[0x81, 0x80 | length, 0, 0, 0, 0])
            .unwrap();
        self.0.send(&text);
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text()).unwrap()
    }

    fn next_text(&mut self) -> String {
        let (opcode, payload) = self.next_frame();
        assert_eq!(opcode, 1, "{payload:?}");
        String::from_utf8(payload).unwrap()
    }

    fn next_frame(&mut self) -> (u8, Vec<u8>) {
        let peer = &mut self.0;
        loop {
            let (header, length) = match peer.read[..] {
                [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
                [_, short, ..] if short < 126 => (2, usize::from(short)),
                _ => (0, 0),
            };
            if header > 0 && peer.read.len() >= header + length {
                let frame: Vec<u8> = peer.read.drain(..header + length).collect();
                return (frame[0] & 0x0f, frame[header..].to_vec());
            }
            assert!(peer.fill() > 0, "ended inside a frame");
        }
    }
}
