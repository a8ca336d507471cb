//! Donation buffers have turns: a peer that was ordered to donate writes, or the daemon gives the memory back, never both.
//!
//! Giving back waits for the buffer's lock, which the peer can hold; so it is begun aside, the engine's thread goes on, and
//! the peer's next order to donate is withheld until it is done. To the engine that order is out: whoever makes others wait
//! by it is charged as with any other that he does not answer.

use super::Daemon;
use super::peers::{Peer, Role};
use ksm_engine::order::{Order, OrderId};
use ksm_engine::wire::MessageBuffer;
use std::time::Duration;

/// How long the memory of a donation buffer is kept for the next donation.
const BUFFER_REST: Duration = Duration::from_millis(100);

/// The turns of one buffer.
#[derive(Debug, Default)]
pub struct Turns {
    /// The order to donate that was given last and not answered yet.
    ordered: Option<OrderId>,
    /// The last donation whose memory is still to be given back.
    donated: Option<Duration>,
    /// An order to donate that has to wait. One that came before it is lost to the engine.
    withheld: Option<(OrderId, Order)>,
}

impl Daemon {
    /// Whether an order has to wait, which is kept then.
    pub(super) fn withholds(
        &mut self,
        token: u64,
        peer: &mut Peer,
        id: OrderId,
        order: &Order,
    ) -> bool {
        let (Order::Donate { .. }, Role::Agent(agent)) = (order, &mut peer.role) else {
            return false;
        };
        if !agent.donation.is_being_emptied() {
            agent.turns.ordered = Some(id);
            return false;
        }
        if agent.turns.withheld.replace((id, order.clone())).is_none() {
            self.withheld.push(token);
        }
        true
    }

    /// Gives the orders that do not have to wait any more.
    pub(super) fn give_withheld(&mut self, buffer: &mut MessageBuffer) {
        self.emptied.hush();
        for token in std::mem::take(&mut self.withheld) {
            self.with_peer(token, |daemon, peer| {
                let Role::Agent(agent) = &mut peer.role else {
                    return Ok(());
                };
                match agent.turns.withheld.take() {
                    Some((id, order)) => daemon.give_order(token, peer, id, &order, buffer),
                    None => Ok(()),
                }
            });
        }
    }

    /// A peer has answered an order.
    pub(super) fn end_turn(&mut self, token: u64, turns: &mut Turns, order: OrderId) {
        if turns.ordered == Some(order) {
            turns.ordered = None;
            let now = self.started.elapsed();
            if turns.donated.replace(now).is_none() {
                self.donated.push_back((now + BUFFER_REST, token));
            }
        }
    }

    /// Begins to give the memory of buffers back that nothing was donated through for a while. Not at once: a buffer whose
    /// pages are new to the system each time costs more than the copying.
    pub(super) fn free_buffers(&mut self) {
        let now = self.started.elapsed();
        while let Some((_, token)) = self.donated.front().copied().filter(|(due, _)| *due <= now) {
            self.donated.pop_front();
            let mut again = None;
            self.with_peer(token, |daemon, peer| {
                if let Role::Agent(agent) = &mut peer.role
                    && let Some(last) = agent.turns.donated
                {
                    again = Some(last + BUFFER_REST).filter(|due| *due > now);
                    if again.is_none() {
                        agent.turns.donated = None;
                        // With the answer to an order that is out this begins anew.
                        if agent.turns.ordered.is_none() {
                            agent.donation.empty(&daemon.emptied);
                        }
                    }
                }
                Ok(())
            });
            self.donated.extend(again.map(|due| (due, token)));
        }
    }
}
