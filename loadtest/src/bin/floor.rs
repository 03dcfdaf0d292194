//! `shardwire-floor`: what the kernel alone costs. It accepts connections, and for every message that
//! comes in on `/pub/...` it calls `send` once on each connection of `/sub/...`, and that is all.
//!
//! It is not a server: one topic, no coalescing, no queues (a full socket is waited for), and it answers
//! the handshake of `shardwire-loadtest` only. Each thread owns the connections that it accepted.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::Context;
use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::{CpuSet, sched_setaffinity};
use shardwire_loadtest::frame;
use shardwire_loadtest::net::raise_file_limit;

/// Token of the listener.
const LISTENER: u64 = u64::MAX;
/// Token of the wake-up descriptor.
const WAKE: u64 = u64::MAX - 1;
const BACKLOG: i32 = 4096;

/// Only accepts connections and calls `send` on each for every message.
#[derive(Parser)]
#[command(name = "shardwire-floor", version)]
struct Cli {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Threads, each with its own listener and connections.
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// CPUs to pin the threads to, in turn.
    #[arg(long, value_delimiter = ',')]
    cpu: Vec<usize>,
    /// Connections to allow for.
    #[arg(long, default_value_t = 15_000)]
    connections: u64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shardwire-floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    raise_file_limit(cli.connections)?;
    let mut peers = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..cli.threads.max(1) {
        let (sender, receiver) = mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        peers.push(Peer {
            sender,
            wake: Arc::clone(&wake),
        });
        ends.push((receiver, wake));
    }
    let mut listen = cli.listen;
    let mut threads = Vec::new();
    for (index, (receiver, wake)) in ends.into_iter().enumerate() {
        let listener =
            open_listener(listen).with_context(|| format!("cannot listen on {listen}"))?;
        listen = SocketAddr::try_from(net::getsockname(&listener)?)?;
        let others = peers
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        let others = others.map(|(_, peer)| peer.clone()).collect();
        let shard = Shard::new(listener, receiver, wake, others)?;
        let cpu = cli.cpu.get(index % cli.cpu.len().max(1)).copied();
        threads.push(thread::spawn(move || shard.run(cpu)));
    }
    println!("listening on {}", listen.port());
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(())
}

fn open_listener(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let listener = net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    net::bind(&listener, &address)?;
    net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The way to another thread.
#[derive(Clone)]
struct Peer {
    sender: mpsc::Sender<Arc<[u8]>>,
    wake: Arc<OwnedFd>,
}

struct Conn {
    fd: OwnedFd,
    input: Vec<u8>,
    upgraded: bool,
    /// Place in `Shard::subscribers`.
    subscriber: Option<usize>,
}

struct Shard {
    epoll: OwnedFd,
    listener: OwnedFd,
    wake: Arc<OwnedFd>,
    receiver: mpsc::Receiver<Arc<[u8]>>,
    others: Vec<Peer>,
    conns: HashMap<u64, Conn>,
    next_token: u64,
    /// Tokens of subscribers.
    subscribers: Vec<u64>,
    buffer: Vec<u8>,
}

impl Shard {
    fn new(
        listener: OwnedFd,
        receiver: mpsc::Receiver<Arc<[u8]>>,
        wake: Arc<OwnedFd>,
        others: Vec<Peer>,
    ) -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        epoll::add(&epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let (conns, subscribers, buffer) = (HashMap::new(), Vec::new(), vec![0; 256 * 1024]);
        Ok(Self {
            epoll,
            listener,
            wake,
            receiver,
            others,
            conns,
            next_token: 0,
            subscribers,
            buffer,
        })
    }

    fn run(mut self, cpu: Option<usize>) -> anyhow::Result<()> {
        if let Some(cpu) = cpu {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set)
                .with_context(|| format!("cannot pin a thread to CPU {cpu}"))?;
        }
        let mut events = Vec::with_capacity(512);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKE => self.take_from_others(),
                    token => {
                        if self.receive(token).is_none() {
                            self.close(token);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(fd) =
            net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)
        {
            self.next_token += 1;
            let token = self.next_token;
            let nodelay = sockopt::set_tcp_nodelay(&fd, true);
            let added = epoll::add(
                &self.epoll,
                &fd,
                EventData::new_u64(token),
                EventFlags::IN | EventFlags::RDHUP,
            );
            if nodelay.and(added).is_ok() {
                self.conns.insert(
                    token,
                    Conn {
                        fd,
                        input: Vec::new(),
                        upgraded: false,
                        subscriber: None,
                    },
                );
            }
        }
    }

    /// `None` when the connection is over.
    fn receive(&mut self, token: u64) -> Option<()> {
        let conn = self.conns.get_mut(&token)?;
        match net::recv(&conn.fd, &mut self.buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => return None,
            Ok((n, _)) => conn.input.extend_from_slice(&self.buffer[..n]),
            Err(Errno::AGAIN | Errno::INTR) => return Some(()),
            Err(_) => return None,
        }
        if !conn.upgraded {
            let end = memchr::memmem::find(&conn.input, b"\r\n\r\n");
            let Some(end) = end else { return Some(()) };
            let is_subscriber = conn.input.starts_with(b"GET /sub/");
            conn.input.drain(..end + 4);
            conn.upgraded = true;
            let mut accept = Vec::new();
            frame::encode_accept(&mut accept);
            net::send(&conn.fd, &accept, SendFlags::NOSIGNAL).ok()?;
            if is_subscriber {
                conn.subscriber = Some(self.subscribers.len());
                self.subscribers.push(token);
            }
        }
        while let Some((opcode, payload, used)) =
            frame::parse_masked(&self.conns.get(&token)?.input)
        {
            self.conns.get_mut(&token)?.input.drain(..used);
            match opcode & 0xf {
                8 => return None,
                1 | 2 => self.publish(&payload),
                _ => {}
            }
        }
        Some(())
    }

    fn publish(&mut self, payload: &[u8]) {
        let mut frame = Vec::with_capacity(payload.len() + 10);
        frame::encode_unmasked(payload, &mut frame);
        let frame: Arc<[u8]> = frame.into();
        for other in &self.others {
            // A thread that is gone has no subscribers.
            if other.sender.send(Arc::clone(&frame)).is_ok() {
                let _ = rustix::io::write(&*other.wake, &1u64.to_ne_bytes());
            }
        }
        self.send_to_all(&frame);
    }

    fn take_from_others(&mut self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        while let Ok(frame) = self.receiver.try_recv() {
            self.send_to_all(&frame);
        }
    }

    /// The loop that is measured.
    fn send_to_all(&mut self, frame: &[u8]) {
        for token in &self.subscribers {
            let Some(conn) = self.conns.get(token) else {
                continue;
            };
            let mut rest = frame;
            while !rest.is_empty() {
                match net::send(&conn.fd, rest, SendFlags::NOSIGNAL) {
                    Ok(n) => rest = &rest[n..],
                    Err(Errno::AGAIN) => {
                        let _ = poll(&mut [PollFd::new(&conn.fd, PollFlags::OUT)], None);
                    }
                    // The read side finds out that it is gone.
                    Err(_) => break,
                }
            }
        }
    }

    fn close(&mut self, token: u64) {
        let place = self.conns.remove(&token).and_then(|conn| conn.subscriber);
        if let Some(place) = place {
            self.subscribers.swap_remove(place);
            if let Some(moved) = self
                .subscribers
                .get(place)
                .and_then(|token| self.conns.get_mut(token))
            {
                moved.subscriber = Some(place);
            }
        }
    }
}
