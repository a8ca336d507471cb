//! Orders: those that wait to be sent, and those that are out.

use super::control::Ticket;
use super::stable::NodeId;
use crate::order::{Order, OrderId};
use crate::page::{MmId, PageRun};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long an agent may take over an order before it counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What an order that is out was for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// The most pages that are to be looked at.
    Visit(u64),
    /// The node of each page, in the order's order.
    Donate(Vec<NodeId>),
    Map(Vec<PageRun>),
    Zero(Vec<PageRun>),
    Split(Vec<PageRun>),
    Unmerge(PageRun),
    /// An unmerge of pages that are not merged, so that the agent hashes them anew.
    Forget,
    Remap(Vec<PageRun>),
    /// For whoever waits for this ticket.
    Count(Ticket),
    /// A remap to another dup of the same chain.
    Refile(Vec<PageRun>),
}

impl Purpose {
    /// How many pages it is about, where that says how much work it is.
    pub(crate) fn pages(&self) -> u64 {
        match self {
            Self::Visit(pages) => *pages,
            Self::Donate(nodes) => nodes.len() as u64,
            Self::Map(runs)
            | Self::Zero(runs)
            | Self::Split(runs)
            | Self::Remap(runs)
            | Self::Refile(runs) => runs.iter().map(|run| run.len).sum(),
            Self::Unmerge(_) | Self::Forget | Self::Count(_) => 0,
        }
    }
}

/// An order that is out.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) mm: MmId,
    pub(crate) purpose: Purpose,
    pub(crate) due: Duration,
}

/// All orders. Each gets one report, unless its agent dies or takes too long.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: VecDeque<(MmId, OrderId, Order)>,
    sent: BTreeMap<OrderId, Sent>,
    next: u64,
}

impl Outbox {
    pub(crate) fn send(
        &mut self,
        mm: MmId,
        order: Order,
        purpose: Purpose,
        now: Duration,
    ) -> OrderId {
        self.next += 1;
        let id = OrderId(self.next);
        self.sent.insert(
            id,
            Sent {
                mm,
                purpose,
                due: now + PATIENCE,
            },
        );
        self.waiting.push_back((mm, id, order));
        id
    }

    pub(crate) fn take(&mut self) -> Option<(MmId, OrderId, Order)> {
        self.waiting.pop_front()
    }

    /// The order that a report of `mm` answers.
    pub(crate) fn answered(&mut self, id: OrderId, mm: MmId) -> Option<Sent> {
        if self.sent.get(&id)?.mm == mm {
            self.sent.remove(&id)
        } else {
            None
        }
    }

    /// Takes an order that was answered as open again.
    pub(crate) fn reopen(&mut self, id: OrderId, sent: Sent) {
        self.sent.insert(id, sent);
    }

    /// Whether an order of this number was ever sent.
    pub(crate) fn was_sent(&self, id: OrderId) -> bool {
        id.0 != 0 && id.0 <= self.next
    }

    /// Takes back all orders to `mm`.
    pub(crate) fn withdraw(&mut self, mm: MmId) -> Vec<(OrderId, Sent)> {
        self.waiting.retain(|(to, _, _)| *to != mm);
        let ids: Vec<_> = self
            .sent
            .iter()
            .filter(|(_, sent)| sent.mm == mm)
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter()
            .filter_map(|id| Some((id, self.sent.remove(&id)?)))
            .collect()
    }

    /// Whether any order is out or waiting.
    pub(crate) fn is_busy(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Whether any is out that belongs to a batch or an unmerge: counts come from those who read, at any time.
    pub(crate) fn has_work(&self) -> bool {
        let counts = |sent: &Sent| matches!(sent.purpose, Purpose::Count(_));
        !self.sent.values().all(counts)
    }

    /// The agents whose time is up at `now`.
    pub(crate) fn overdue(&self, now: Duration) -> Vec<MmId> {
        let mut late: Vec<_> = self
            .sent
            .values()
            .filter(|sent| sent.due <= now)
            .map(|sent| sent.mm)
            .collect();
        late.dedup();
        late
    }

    /// Who has let an order wait longest.
    pub(crate) fn oldest(&self) -> Option<MmId> {
        self.sent.values().next().map(|sent| sent.mm)
    }

    /// Who has orders to answer.
    pub(crate) fn asked(&self) -> impl Iterator<Item = MmId> {
        self.sent.values().map(|sent| sent.mm)
    }

    /// When the next order becomes overdue. Orders get the same time, so it is the oldest one.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.sent.values().next().map(|sent| sent.due)
    }
}
