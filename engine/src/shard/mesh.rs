//! Lanes between shards: lock-free, single producer and single consumer, whole turns at a time.
//!
//! A turn's messages for a peer travel as one batch, so a busy shard wakes its peer once per turn.
//! A full lane holds the batch back; what gathers behind it is bounded by the core, which refuses
//! publishes towards a peer that is too far behind.

use std::rc::Rc;

use futures_lite::StreamExt;
use glommio::channels::channel_mesh::{Receivers, Senders};
use glommio::channels::shared_channel::ConnectedReceiver;
use glommio::{GlommioError, ResourceType};
use shardwire_proto::ids::ShardId;
use shardwire_proto::msg::ShardMsg;

use super::{Core, ShardRuntime};
use crate::sys;

/// One turn's messages for one peer, in order.
pub type Batch = Vec<ShardMsg>;

/// Batches that a lane holds.
pub const LANE_BATCHES: usize = 256;

/// Batches handled in a row before sockets get their turn.
const INBOX_TURN_BATCHES: usize = 16;

/// The way to one peer.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// The batch that the full lane did not take.
    held: Option<Batch>,
}

impl<C: Core> ShardRuntime<C> {
    /// Joins the mesh: from here on messages flow both ways.
    pub fn connect_mesh(self: &Rc<Self>, senders: Senders<Batch>, mut receivers: Receivers<Batch>) {
        self.lanes
            .borrow_mut()
            .resize_with(senders.nr_consumers(), Lane::default);
        *self.senders.borrow_mut() = Some(senders);
        for (from, stream) in receivers.streams() {
            let from = ShardId(u16::try_from(from).unwrap_or(u16::MAX));
            glommio::spawn_local(self.clone().receive(from, stream)).detach();
        }
    }

    async fn receive(self: Rc<Self>, from: ShardId, mut lane: ConnectedReceiver<Batch>) {
        let mut in_a_row = 0;
        while let Some(batch) = lane.next().await {
            self.handle_batch(from, batch);
            in_a_row += 1;
            if in_a_row >= INBOX_TURN_BATCHES {
                in_a_row = 0;
                self.inbox_behind.set(true);
                glommio::executor().yield_now().await;
                self.inbox_behind.set(false);
            }
        }
    }

    fn handle_batch(&self, from: ShardId, batch: Batch) {
        let now = self.now();
        for msg in batch {
            self.take_in(|core, _| {
                if matches!(msg, ShardMsg::Ask { .. }) {
                    core.note_cpu(sys::thread_cpu_us());
                }
                core.handle_shard_msg(from, msg, now);
            });
        }
        self.schedule_turn();
    }

    /// Hands each lane what waits for it, as far as there is room.
    pub(super) fn fill_lanes(&self) {
        let senders = self.senders.borrow();
        let Some(senders) = senders.as_ref() else {
            return;
        };
        let mut lanes = self.lanes.borrow_mut();
        let mut core = self.core.borrow_mut();
        for (index, lane) in lanes.iter_mut().enumerate() {
            let peer = ShardId(u16::try_from(index).unwrap_or(u16::MAX));
            if peer == self.id {
                continue;
            }
            loop {
                let batch = match lane.held.take() {
                    Some(batch) => batch,
                    None if core.mesh_pending(peer) > 0 => core.take_mesh(peer),
                    None => break,
                };
                match senders.try_send_to(index, batch) {
                    Ok(()) => {}
                    Err(GlommioError::WouldBlock(ResourceType::Channel(batch))) => {
                        lane.held = Some(batch);
                        break;
                    }
                    // The peer has stopped: the process is going down.
                    Err(_) => break,
                }
            }
        }
    }

    pub(super) fn lanes_held(&self) -> bool {
        self.lanes.borrow().iter().any(|l| l.held.is_some())
    }
}
