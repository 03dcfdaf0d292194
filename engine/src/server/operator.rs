//! Orders to a running server, from wherever they come: one queue, which the main thread works off.

use std::io;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Orders that may wait: more than anybody gives in a row. A full queue forgets further ones, which say the same.
const ORDERS_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Read the configuration again.
    Reload,
    /// Drain and end; while that is under way it means at once.
    Stop,
    /// Drain and end; once is enough.
    Drain,
}

/// Gives orders. Any thread may; cheap to clone.
#[derive(Debug, Clone)]
pub struct Operator(Sender<Order>);

impl Operator {
    /// An operator, and the orders to be worked off.
    pub(crate) fn new() -> (Self, Receiver<Order>) {
        let (sender, orders) = bounded(ORDERS_MAX);
        (Self(sender), orders)
    }

    /// Signals give orders too from here on.
    pub(super) fn follow_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let of_signals = self.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    of_signals.give(if signal == SIGHUP {
                        Order::Reload
                    } else {
                        Order::Stop
                    });
                }
            })?;
        Ok(())
    }

    /// Has the server drain and end, as the first SIGTERM does. Asking again changes nothing.
    pub fn drain(&self) {
        self.give(Order::Drain);
    }

    fn give(&self, order: Order) {
        match self.0.try_send(order) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(order)) => log::warn!("too many orders: {order:?} is left out"),
        }
    }
}
