//! The end of a turn: what the shard's state asks for is done, messages for peers leave, and every
//! touched connection gets one send.

use std::future::poll_fn;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Poll;

use shardwire_proto::ids::ConnId;
use shardwire_proto::outbox::{Frame, Outbox};
use shardwire_proto::shard::{Flush, Output};

use super::{Core, Ending, Gather, IoCounts, ShardRuntime};
use crate::sys::{self, Sent};
use crate::tls::Session;

/// Most bytes put together for one send.
const GATHER_BYTES: usize = 256 * 1024;

/// Connections woken per turn of those whose app had had its part: rather more than get it then, far fewer than there may
/// be.
const DEFERRED_PER_TURN: usize = 64;

/// What a flush of one connection came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    Done,
    Blocked,
    Broken,
}

impl<C: Core> ShardRuntime<C> {
    /// Wakes the turn task, behind all that is ready.
    pub(crate) fn schedule_turn(&self) {
        if !self.turn_scheduled.replace(true)
            && let Some(waker) = self.turn.borrow().as_ref()
        {
            waker.wake_by_ref();
        }
    }

    /// The task that ends turns.
    pub async fn run_turns(self: Rc<Self>) {
        loop {
            poll_fn(|cx| {
                let mut turn = self.turn.borrow_mut();
                if !turn.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *turn = Some(cx.waker().clone());
                }
                if self.turn_scheduled.replace(false) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            self.end_turn();
            if self.lanes_held() || self.has_deferred() || self.core.borrow().turn_due() {
                // A peer's inbox is full, or there is more to do than one turn does: go on when
                // everything else has run.
                self.schedule_turn();
                glommio::executor().yield_now().await;
            }
        }
    }

    /// Peers first, so that they work while this shard sends.
    pub(crate) fn end_turn(&self) {
        self.core.borrow_mut().finish_turn(self.now());
        self.submit();
        self.carry_outputs();
        self.fill_lanes();
        self.flush();
        self.carry_outputs();
        self.turn_now.set(None);
        self.core.borrow_mut().end_turn();
        if !self.must_pause() {
            for waker in self.paused.take() {
                waker.wake();
            }
        }
        let mut deferred = self.deferred.borrow_mut();
        let due = deferred.len().min(DEFERRED_PER_TURN);
        for waker in deferred.drain(..due) {
            waker.wake();
        }
    }

    /// Connections wait for the next turn that nothing else may bring about.
    fn has_deferred(&self) -> bool {
        !self.deferred.borrow().is_empty()
    }

    /// Sockets are not read while a peer is far behind or this shard has not caught up with what
    /// its peers sent.
    pub(crate) fn must_pause(&self) -> bool {
        self.inbox_behind.get() || self.core.borrow().congested()
    }

    /// Store first: the sooner it has the messages, the sooner they are delivered.
    fn submit(&self) {
        if let Some(cluster) = &self.settings.cluster {
            self.core.borrow_mut().submit_shared(cluster, self.now());
        }
        let store = self.settings.store.as_ref();
        if let Some(broker) = &self.settings.broker {
            let shared = store.filter(|_| self.settings.is_shared_store);
            let mut core = self.core.borrow_mut();
            core.submit_to_broker(broker, shared, self.now());
        } else if let Some(store) = store {
            self.core.borrow_mut().submit(store, self.now());
        }
        if let Some(webhooks) = &self.settings.webhooks {
            self.core.borrow_mut().raise(webhooks, false, self.now());
        }
    }

    fn carry_outputs(&self) {
        loop {
            let Some(output) = self.core.borrow_mut().take_output() else {
                return;
            };
            match output {
                Output::Close { conn, cause, flush } => {
                    log::debug!(
                        "shard {}: connection {}.{} ends: {cause}",
                        self.id.0,
                        conn.slot,
                        conn.generation
                    );
                    let ending = if flush {
                        Ending::Flushed {
                            linger: cause.sends_close_frame(),
                        }
                    } else {
                        Ending::Now
                    };
                    self.end(conn, ending);
                }
                Output::Published {
                    request,
                    item,
                    result,
                } => self.requests.published(request, item, result),
                Output::History { request, result } => self.requests.paged(request, result),
                Output::Members { request, page } => self.requests.listed(request, page),
                Output::Cleared { request, result } => self.requests.cleared(request, result),
                Output::Notice(notice) => {
                    if let Some(push) = &self.settings.push {
                        push.notice(*notice);
                    }
                }
                Output::Answer {
                    from,
                    request,
                    answer,
                } => self.requests.answered(request, from, answer),
            }
        }
    }

    fn end(&self, conn: ConnId, ending: Ending) {
        let empty = self
            .core
            .borrow_mut()
            .outbox(conn)
            .is_none_or(|o| o.is_empty());
        let mut links = self.links.borrow_mut();
        if let Some(link) = links.get(conn) {
            link.ending = ending;
            if ending == Ending::Now || empty {
                links.wake(conn);
            }
        }
    }

    /// One send for each connection with something to send.
    pub(crate) fn flush(&self) {
        let mut core = self.core.borrow_mut();
        let mut io = self.io.replace(IoCounts::default());
        let dirty = core.take_dirty();
        if dirty.is_empty() {
            core.note_io(io);
            return;
        }
        let started = self.clock.now();
        let mut links = self.links.borrow_mut();
        let mut gather = self.gather.borrow_mut();
        let mut caught_up = Vec::new();
        for slot in &dirty {
            let Some(Flush {
                conn,
                outbox,
                catching_up,
            }) = core.flush(*slot)
            else {
                continue;
            };
            let Some(link) = links.get(conn) else {
                continue;
            };
            if link.blocked {
                continue;
            }
            let fd = link.fd;
            let flushed = if link.is_secure
                && let Some(session) = links.session(conn)
            {
                let session = &mut session.borrow_mut();
                flush_secure(fd, session, outbox, &mut gather, &mut io)
            } else {
                flush_outbox(fd, outbox, &mut gather, &mut io)
            };
            let Some(link) = links.get(conn) else {
                continue;
            };
            link.blocked = flushed == Flushed::Blocked;
            if catching_up && flushed == Flushed::Done {
                caught_up.push(conn);
            }
            if flushed == Flushed::Broken {
                link.ending = Ending::Now;
            }
            // Its task has to wait for room, or to end it.
            if flushed != Flushed::Done || link.ending != Ending::No {
                links.wake(conn);
            }
        }
        gather.forget();
        core.note_io(io);
        let now = self.clock.now();
        core.note_flushed(started, now);
        core.reuse_dirty(dirty);
        for conn in caught_up {
            core.pump(conn, now);
            self.schedule_turn();
        }
    }
}

impl Gather {
    /// The unsent bytes of an outbox, up to [`GATHER_BYTES`] and a frame.
    pub(crate) fn collect<'a>(&'a mut self, outbox: &'a Outbox) -> &'a [u8] {
        let offset = outbox.first_offset();
        let first = outbox
            .iter()
            .next()
            .and_then(|f| f.get(offset..))
            .unwrap_or_default();
        if outbox.frames() == 1 || first.len() >= GATHER_BYTES {
            // Straight from the frame that all of the channel's subscribers share.
            return first;
        }
        if offset == 0 && self.holds(outbox) {
            return &self.bytes;
        }
        self.bytes.clear();
        self.frames.clear();
        let mut skip = offset;
        for frame in outbox.iter() {
            self.bytes
                .extend_from_slice(frame.get(skip..).unwrap_or_default());
            skip = 0;
            if offset == 0 {
                self.frames.push(frame.clone());
            }
            if self.bytes.len() >= GATHER_BYTES {
                break;
            }
        }
        &self.bytes
    }

    fn holds(&self, outbox: &Outbox) -> bool {
        self.frames.len() == outbox.frames()
            && self
                .frames
                .iter()
                .zip(outbox.iter())
                .all(|(a, b)| Frame::ptr_eq(a, b))
    }

    /// Lets go of the frames.
    fn forget(&mut self) {
        self.frames.clear();
        if self.bytes.capacity() > 2 * GATHER_BYTES {
            self.bytes = Vec::new();
        }
    }
}

/// Sends until the outbox is empty or the kernel takes no more.
pub(crate) fn flush_outbox(
    fd: RawFd,
    outbox: &mut Outbox,
    gather: &mut Gather,
    io: &mut IoCounts,
) -> Flushed {
    while !outbox.is_empty() {
        let bytes = gather.collect(outbox);
        let offered = bytes.len();
        io.sends += 1;
        match sys::send(fd, bytes) {
            Sent::Bytes(sent) => {
                io.bytes_sent += sent as u64;
                outbox.advance(sent);
                if sent < offered {
                    io.sends_blocked += 1;
                    return Flushed::Blocked;
                }
            }
            Sent::Full => {
                io.sends_blocked += 1;
                return Flushed::Blocked;
            }
            Sent::Broken => return Flushed::Broken,
        }
    }
    Flushed::Done
}

/// As [`flush_outbox`], encrypted: what a session takes, it sends or keeps.
fn flush_secure(
    fd: RawFd,
    session: &mut Session,
    outbox: &mut Outbox,
    gather: &mut Gather,
    io: &mut IoCounts,
) -> Flushed {
    while !outbox.is_empty() {
        io.sends += 1;
        let (taken, sent) = session.send(fd, gather.collect(outbox));
        io.bytes_sent += taken as u64;
        outbox.advance(taken);
        match sent {
            Sent::Bytes(_) => {}
            Sent::Full => {
                io.sends_blocked += 1;
                return Flushed::Blocked;
            }
            Sent::Broken => return Flushed::Broken,
        }
    }
    Flushed::Done
}
