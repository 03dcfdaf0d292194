//! What a shard's driver drives: the seam between sockets and state.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use shardwire_proto::broker::BrokerReply;
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::error::{CloseCause, ProtocolError};
use shardwire_proto::ids::{ConnId, Now, ShardId};
use shardwire_proto::msg::ShardMsg;
use shardwire_proto::outbox::Outbox;
use shardwire_proto::record::{Question, StoreError, StoreReply};
pub use shardwire_proto::shard::Handshake;
use shardwire_proto::shard::{Flush, Output, Shard};
use shardwire_proto::ws::Event;

use super::ShardRuntime;
use crate::broker::BrokerHandle;
use crate::cluster::ClusterHandle;
use crate::conn::Transport;
use crate::side::webhooks::WebhookHandle;
use crate::store::StoreHandle;
use crate::tls::Outcome;

/// The state behind the sockets of one shard. The engine's is [`Shard`]; see there for the calling
/// contract, which is this trait's too.
pub trait Core: Sized + 'static {
    type Grant;

    fn authorize(
        &mut self,
        handshake: Handshake<'_>,
        random: [u8; 16],
        now: Now,
    ) -> Result<Self::Grant, ProtocolError>;
    /// Makes a connection whose first bytes are `accept`, the handshake's answer.
    fn open(&mut self, grant: Self::Grant, accept: &[u8], now: Now) -> ConnId;
    fn handle_event(&mut self, conn: ConnId, event: Event<'_>, now: Now);
    fn close(&mut self, conn: ConnId, cause: CloseCause, now: Now);
    fn is_open(&self, conn: ConnId) -> bool;
    fn release(&mut self, conn: ConnId, now: Now);
    fn tick(&mut self, now: Now);

    fn handle_shard_msg(&mut self, from: ShardId, msg: ShardMsg, now: Now);
    fn take_mesh(&mut self, peer: ShardId) -> Vec<ShardMsg>;
    fn mesh_pending(&self, peer: ShardId) -> usize;
    fn congested(&self) -> bool;

    /// All of a turn's input has been handled.
    fn finish_turn(&mut self, _now: Now) {}
    /// Another turn is wanted at once, though nothing may come in.
    fn turn_due(&self) -> bool {
        false
    }
    fn take_output(&mut self) -> Option<Output>;
    fn flush_due(&self) -> bool;
    fn take_dirty(&mut self) -> Vec<u32>;
    fn reuse_dirty(&mut self, list: Vec<u32>);
    fn flush(&mut self, slot: u32) -> Option<Flush<'_>>;
    /// A connection that is catching up has been flushed whole.
    fn pump(&mut self, _conn: ConnId, _now: Now) {}
    /// Whether the connection may be read in this turn; if not, in the next, so that others get theirs.
    fn may_read(&mut self, _conn: ConnId) -> bool {
        true
    }
    /// The turn is over.
    fn end_turn(&mut self) {}
    /// Hands the store what has gathered for it.
    fn submit(&mut self, _store: &StoreHandle, _now: Now) {}
    fn handle_store(&mut self, _reply: StoreReply, _now: Now) {}
    /// Hands over what back ends are to be told; `always`: also that it is nothing.
    fn raise(&mut self, _webhooks: &WebhookHandle, _always: bool, _now: Now) {}
    /// Hands the broker what has gathered for it, and the store that all nodes write, if there is one; otherwise the broker
    /// is asked what the store is.
    fn submit_to_broker(
        &mut self,
        _broker: &BrokerHandle,
        _shared: Option<&StoreHandle>,
        _now: Now,
    ) {
    }
    fn handle_broker(&mut self, _reply: BrokerReply, _now: Now) {}
    /// Hands over what has gathered for the other nodes.
    fn submit_shared(&mut self, _cluster: &ClusterHandle, _now: Now) {}
    fn handle_shared(&mut self, _reply: SharedReply, _now: Now) {}
    fn outbox(&mut self, conn: ConnId) -> Option<&mut Outbox>;
    fn note_flushed(&mut self, started: Now, now: Now);
    /// Takes note of what only the driver sees.
    fn note_io(&mut self, io: IoCounts);
    /// Takes note of the CPU time of the thread, us.
    fn note_cpu(&mut self, _us: u64) {}

    /// Serves a connection that began with a request other than an upgrade; `head` is what was
    /// read of it.
    fn serve_http(
        runtime: Rc<ShardRuntime<Self>>,
        transport: Transport,
        head: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// What the driver has counted since it last told.
#[derive(Debug, Default, Clone, Copy)]
pub struct IoCounts {
    pub sends: u64,
    pub bytes_sent: u64,
    pub sends_blocked: u64,
    pub heads_failed: u64,
    /// TLS handshakes by [`Outcome`].
    tls_handshakes: [u32; Outcome::COUNT],
}

impl IoCounts {
    pub(crate) fn count_tls(&mut self, outcome: Outcome) {
        if let Some(count) = self.tls_handshakes.get_mut(outcome as usize) {
            *count += 1;
        }
    }
}

impl Core for Shard {
    type Grant = shardwire_proto::session::Grant;

    fn authorize(
        &mut self,
        handshake: Handshake<'_>,
        random: [u8; 16],
        now: Now,
    ) -> Result<Self::Grant, ProtocolError> {
        Shard::authorize(self, handshake, random, now)
    }

    fn open(&mut self, grant: Self::Grant, accept: &[u8], now: Now) -> ConnId {
        Shard::open(self, grant, accept, now)
    }

    fn handle_event(&mut self, conn: ConnId, event: Event<'_>, now: Now) {
        match event {
            Event::Text(text) => self.handle_message(conn, text, now),
            Event::Binary(bytes) => self.handle_binary(conn, bytes, now),
            Event::Ping(payload) => self.handle_ping(conn, payload, now),
            Event::Pong(_) => self.handle_pong(conn, now),
            Event::Close(received) => {
                let code = received.map(|(code, _)| code);
                Shard::close(self, conn, CloseCause::PeerClosed { code }, now);
            }
        }
    }

    fn close(&mut self, conn: ConnId, cause: CloseCause, now: Now) {
        Shard::close(self, conn, cause, now);
    }

    fn is_open(&self, conn: ConnId) -> bool {
        Shard::is_open(self, conn)
    }

    fn release(&mut self, conn: ConnId, now: Now) {
        Shard::release(self, conn, now);
    }

    fn tick(&mut self, now: Now) {
        Shard::tick(self, now);
    }

    fn handle_shard_msg(&mut self, from: ShardId, msg: ShardMsg, now: Now) {
        Shard::handle_shard_msg(self, from, msg, now);
    }

    fn take_mesh(&mut self, peer: ShardId) -> Vec<ShardMsg> {
        Shard::take_mesh(self, peer)
    }

    fn mesh_pending(&self, peer: ShardId) -> usize {
        Shard::mesh_pending(self, peer)
    }

    fn congested(&self) -> bool {
        Shard::congested(self)
    }

    fn finish_turn(&mut self, now: Now) {
        Shard::finish_turn(self, now);
    }

    fn turn_due(&self) -> bool {
        Shard::turn_due(self)
    }

    fn take_output(&mut self) -> Option<Output> {
        Shard::take_output(self)
    }

    fn flush_due(&self) -> bool {
        Shard::flush_due(self)
    }

    fn take_dirty(&mut self) -> Vec<u32> {
        Shard::take_dirty(self)
    }

    fn reuse_dirty(&mut self, list: Vec<u32>) {
        Shard::reuse_dirty(self, list);
    }

    fn flush(&mut self, slot: u32) -> Option<Flush<'_>> {
        Shard::flush(self, slot)
    }

    fn may_read(&mut self, conn: ConnId) -> bool {
        Shard::may_read(self, conn)
    }

    fn end_turn(&mut self) {
        Shard::end_turn(self);
    }

    fn pump(&mut self, conn: ConnId, now: Now) {
        Shard::pump(self, conn, now);
    }

    fn submit_shared(&mut self, cluster: &ClusterHandle, now: Now) {
        let ops = self.take_shared();
        if !ops.is_empty()
            && let Err(refused) = cluster.submit(self.id(), ops)
        {
            self.refuse_shared(refused, now);
        }
    }

    fn handle_shared(&mut self, reply: SharedReply, now: Now) {
        Shard::handle_shared(self, reply, now);
    }

    fn submit(&mut self, store: &StoreHandle, now: Now) {
        let shard = self.id();
        let ops = self.take_ops();
        if !ops.is_empty()
            && let Err(refused) = store.submit(shard, ops)
        {
            self.refuse_ops(refused, now);
        }
        let mut questions = self.take_questions().into_iter();
        while let Some(question) = questions.next() {
            let ticket = question.ticket;
            match store.read(shard, question.clone()) {
                Ok(()) => {}
                // Each answer that comes back makes room, and ends in a turn.
                Err(StoreError::Overloaded) => {
                    let rest = std::iter::once(question).chain(questions).collect();
                    self.keep_questions(rest, now);
                    return;
                }
                Err(error @ StoreError::Failed) => {
                    let answer = Err(error);
                    Shard::handle_store(self, StoreReply::Answer { ticket, answer }, now);
                }
            }
        }
    }

    fn raise(&mut self, webhooks: &WebhookHandle, always: bool, now: Now) {
        if let Some(events) = self.take_hook_events(always, now)
            && let Err(refused) = webhooks.take(self.id(), events)
        {
            self.keep_hook_events(refused);
        }
    }

    fn handle_store(&mut self, reply: StoreReply, now: Now) {
        Shard::handle_store(self, reply, now);
    }

    fn submit_to_broker(&mut self, broker: &BrokerHandle, shared: Option<&StoreHandle>, now: Now) {
        let shard = self.id();
        let stores = self.take_ops();
        if !stores.is_empty()
            && let Some(store) = shared
            && let Err(refused) = store.submit(shard, stores)
        {
            self.refuse_ops(refused, now);
        }
        let ops = self.take_broker_ops();
        if !ops.is_empty()
            && let Err(refused) = broker.submit(shard, ops)
        {
            self.refuse_broker_ops(refused, now);
        }
        for question in self.take_questions() {
            let ticket = question.ticket;
            // What resume needs is what nodes have heard of, which the store may not have yet.
            let asked = match shared {
                Some(store) if !is_of_broker(&question.question) => store.read(shard, question),
                _ => broker.read(shard, question),
            };
            if let Err(error) = asked {
                let answer = Err(error);
                Shard::handle_store(self, StoreReply::Answer { ticket, answer }, now);
            }
        }
    }

    fn handle_broker(&mut self, reply: BrokerReply, now: Now) {
        Shard::handle_broker(self, reply, now);
    }

    fn outbox(&mut self, conn: ConnId) -> Option<&mut Outbox> {
        Shard::outbox(self, conn)
    }

    fn note_flushed(&mut self, started: Now, now: Now) {
        Shard::note_flushed(self, started, now);
    }

    fn note_io(&mut self, io: IoCounts) {
        let counters = self.counters_mut();
        counters.sends += io.sends;
        counters.bytes_sent += io.bytes_sent;
        counters.sends_blocked += io.sends_blocked;
        counters.heads_failed += io.heads_failed;
        for (outcome, count) in Outcome::ALL.into_iter().zip(io.tls_handshakes) {
            counters.count_tls_handshakes(outcome.label(), u64::from(count));
        }
    }

    fn note_cpu(&mut self, us: u64) {
        self.counters_mut().cpu_us = us;
    }

    fn serve_http(
        runtime: Rc<ShardRuntime<Self>>,
        transport: Transport,
        head: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(crate::http::serve(transport, head, runtime))
    }
}

/// Whether a question to the store is about what nodes have heard of, not about where the store itself stands.
fn is_of_broker(question: &Question) -> bool {
    matches!(question, Question::Load { messages_max, .. } if *messages_max > 0)
}
