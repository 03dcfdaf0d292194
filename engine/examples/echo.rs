//! A WebSocket server that sends every message back: text as text, binary as binary, up to 16 MiB.
//!
//! It runs the engine's own connection and framing code, so what a conformance suite finds here holds for the engine:
//!
//! ```text
//! cargo run --release --example echo -- --listen 127.0.0.1:9002
//! ```
//! Unlike the engine it has no credentials, paths or greeting, and it takes no unmasked frame at all.
//!
//! Invariants: a peer that does not read is not read from, so what waits for it stays within one message and the bound
//! at which reading stops; bytes leave in the order in which their causes came.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use futures_lite::future;
use glommio::{LocalExecutorBuilder, Placement};
use shardwire::accept::{Acceptor, INBOX_CONNECTIONS};
use shardwire::conn::Transport;
use shardwire::http::HttpSettings;
use shardwire::shard::{Core, Handshake, IoCounts, Settings, ShardRuntime, inbox, start_clock};
use shardwire::{check, sys};
use shardwire_proto::error::{CloseCause, ProtocolError};
use shardwire_proto::ids::{ConnId, Now, ShardId};
use shardwire_proto::msg::ShardMsg;
use shardwire_proto::outbox::{Frame, Outbox};
use shardwire_proto::shard::{Flush, Output};
use shardwire_proto::ws::close::{write_close, write_close_reply};
use shardwire_proto::ws::frame::write_frame;
use shardwire_proto::ws::handshake::write_refusal;
use shardwire_proto::ws::{DecoderConfig, Event, OpCode, Role};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::Socket;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest message in bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes waiting for one connection that are sent before more is read: small against the bound at which reading
/// stops, so that stopping is left to peers that do not read.
const FLUSH_DUE_BYTES: usize = 64 * 1024;

/// Time for the peer of a refused HTTP request to take the answer and go.
const REFUSED_LINGER: Duration = Duration::from_secs(1);

#[derive(Debug, Parser)]
#[command(about = "A WebSocket server that sends every message back")]
struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:9002")]
    listen: SocketAddr,
}

fn main() -> ExitCode {
    let args = Args::parse();
    check::raise_limits();
    match run(args.listen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT, which end the process with exit code 0; returns only with an error.
fn run(addr: SocketAddr) -> Result<(), String> {
    // Caught before anyone is told to connect: a signal that comes early still ends it cleanly.
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| format!("cannot catch signals: {error}"))?;
    let listener = sys::listen(addr, Duration::from_secs(30))
        .map_err(|error| format!("cannot listen on {addr}: {error}"))?;
    let shard = LocalExecutorBuilder::new(Placement::Unbound)
        .name("echo")
        .spawn(move || serve(listener))
        .map_err(|error| format!("the shard cannot start: {error}"))?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            std::process::exit(0);
        }
    });
    shard
        .join()
        .map_err(|error| format!("the shard ended badly: {error}"))
}

async fn serve(listener: Socket) {
    let settings = Settings {
        decoder: DecoderConfig {
            message_bytes_max: MESSAGE_BYTES_MAX,
            role: Role::Server,
            tolerate_unmasked_control: false,
        },
        handshake_deadline: Duration::from_secs(10),
        connections_max: usize::MAX,
        refusals_max: 1,
        store: None,
        tls: None,
        registry: None,
        usage: None,
        webhooks: None,
        push: None,
        broker: None,
        is_shared_store: false,
        cluster: None,
    };
    let bound = listener.local_addr().ok().and_then(|a| a.as_socket());
    let http = Rc::new(HttpSettings::new(1, &[]));
    let runtime = ShardRuntime::new(ShardId(0), Echo::default(), settings, http, start_clock());
    glommio::spawn_local(runtime.clone().run_turns()).detach();
    let (connections, inbox) = inbox::bounded(INBOX_CONNECTIONS);
    let accepting = Acceptor::start(vec![listener], vec![connections]);
    if let Some(bound) = bound {
        // Whoever closed stdout knows the address.
        let _ = writeln!(io::stdout(), "listening on {bound}");
    }
    match accepting {
        Ok(_) => runtime.admit_all(inbox).await,
        Err(error) => eprintln!("echo: cannot accept connections: {error}"),
    }
}

/// The connections and what waits for them. See [`Core`] for who calls what when.
#[derive(Debug, Default)]
struct Echo {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots with something to send, each once.
    dirty: Vec<u32>,
    flush_due: bool,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Of the tenant, or of the next one.
    generation: u32,
    conn: Option<Conn>,
}

#[derive(Debug, Default)]
struct Conn {
    outbox: Outbox,
    /// Listed in [`Echo::dirty`].
    dirty: bool,
    /// Its Close frame is queued or its peer gone: nothing more comes or goes.
    closing: bool,
}

impl Echo {
    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.conn
            .as_mut()
            .filter(|_| slot.generation == id.generation)
    }

    fn queue(&mut self, id: ConnId, frame: Frame) {
        let Some(conn) = self.conn(id).filter(|c| !c.closing) else {
            return;
        };
        conn.outbox.push(frame);
        let due = conn.outbox.bytes() >= FLUSH_DUE_BYTES;
        let listed = std::mem::replace(&mut conn.dirty, true);
        self.flush_due |= due;
        if !listed {
            self.dirty.push(id.slot);
        }
    }

    fn send(&mut self, id: ConnId, opcode: OpCode, payload: &[u8]) {
        let mut frame = Vec::new();
        write_frame(&mut frame, opcode, payload);
        self.queue(id, Frame::from(frame));
    }
}

impl Core for Echo {
    type Grant = ();

    /// Anyone, at any path.
    fn authorize(&mut self, _: Handshake<'_>, _: [u8; 16], _: Now) -> Result<(), ProtocolError> {
        Ok(())
    }

    fn open(&mut self, (): (), accept: &[u8], _: Now) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Descriptors run out long before.
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 connections")
        });
        let tenant = &mut self.slots[slot as usize];
        tenant.conn = Some(Conn::default());
        let id = ConnId {
            slot,
            generation: tenant.generation,
        };
        self.queue(id, Frame::from(accept));
        id
    }

    fn handle_event(&mut self, id: ConnId, event: Event<'_>, now: Now) {
        match event {
            Event::Text(text) => self.send(id, OpCode::Text, text.as_bytes()),
            Event::Binary(bytes) => self.send(id, OpCode::Binary, bytes),
            Event::Ping(payload) => self.send(id, OpCode::Pong, payload),
            Event::Pong(_) => {}
            Event::Close(received) => {
                let code = received.map(|(code, _)| code);
                self.close(id, CloseCause::PeerClosed { code }, now);
            }
        }
    }

    fn close(&mut self, id: ConnId, cause: CloseCause, _: Now) {
        if !self.is_open(id) {
            return;
        }
        let mut frame = Vec::new();
        match &cause {
            CloseCause::PeerGone => {}
            CloseCause::PeerClosed { code } => write_close_reply(&mut frame, *code),
            _ => write_close(&mut frame, cause.code(), cause.reason()),
        }
        let flush = cause != CloseCause::PeerGone;
        if flush {
            self.queue(id, Frame::from(frame));
        }
        if let Some(conn) = self.conn(id) {
            conn.closing = true;
            if !flush {
                conn.outbox.clear();
            }
        }
        self.outputs.push_back(Output::Close {
            conn: id,
            cause,
            flush,
        });
    }

    fn is_open(&self, id: ConnId) -> bool {
        self.slots
            .get(id.slot as usize)
            .filter(|slot| slot.generation == id.generation)
            .and_then(|slot| slot.conn.as_ref())
            .is_some_and(|conn| !conn.closing)
    }

    fn release(&mut self, id: ConnId, _: Now) {
        if self.conn(id).is_some() {
            let slot = &mut self.slots[id.slot as usize];
            slot.conn = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(id.slot);
        }
    }

    /// Nothing here depends on time; connections may be silent for as long as they like.
    fn tick(&mut self, _: Now) {}

    // One shard has no peers.
    fn handle_shard_msg(&mut self, _: ShardId, _: ShardMsg, _: Now) {}

    fn take_mesh(&mut self, _: ShardId) -> Vec<ShardMsg> {
        Vec::new()
    }

    fn mesh_pending(&self, _: ShardId) -> usize {
        0
    }

    fn congested(&self) -> bool {
        false
    }

    fn take_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn flush_due(&self) -> bool {
        self.flush_due
    }

    fn take_dirty(&mut self) -> Vec<u32> {
        self.flush_due = false;
        std::mem::take(&mut self.dirty)
    }

    fn reuse_dirty(&mut self, mut list: Vec<u32>) {
        if self.dirty.is_empty() {
            list.clear();
            self.dirty = list;
        }
    }

    fn flush(&mut self, slot: u32) -> Option<Flush<'_>> {
        let tenant = self.slots.get_mut(slot as usize)?;
        let conn = tenant.conn.as_mut()?;
        conn.dirty = false;
        Some(Flush {
            conn: ConnId {
                slot,
                generation: tenant.generation,
            },
            outbox: &mut conn.outbox,
            catching_up: false,
        })
    }

    fn outbox(&mut self, id: ConnId) -> Option<&mut Outbox> {
        self.conn(id).map(|conn| &mut conn.outbox)
    }

    fn note_flushed(&mut self, _: Now, _: Now) {}

    fn note_io(&mut self, _: IoCounts) {}

    fn serve_http(
        _: Rc<ShardRuntime<Self>>,
        transport: Transport,
        _: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(require_upgrade(transport))
    }
}

/// Answers a request that is not a handshake with 426 (RFC 9110 section 15.5.22), and ends the connection.
async fn require_upgrade(mut transport: Transport) {
    let mut response = Vec::new();
    write_refusal(
        &mut response,
        426,
        "Upgrade Required",
        &[("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")],
        r#"{"error":"this server speaks WebSocket only","code":40000,"status":426}"#,
    );
    transport.send_last(&response);
    // A body may be under way, and a close before it is read would reset the connection and lose the answer.
    let drained = async {
        let mut scrap = [0; 4096];
        while matches!(
            future::poll_fn(|cx| transport.poll_read(cx, &mut scrap)).await,
            Ok(1..)
        ) {}
    };
    future::or(drained, async {
        glommio::timer::sleep(REFUSED_LINGER).await;
    })
    .await;
}
