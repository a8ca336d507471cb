//! Refiling: moving rmap items from dups with few sharers to fuller dups of the same chain, so that dups are given back.
//!
//! The kernel's design note calls for it, and the kernel never got it. When a visit finds a sharer where it was, and its
//! chain could do with a dup less, the sharer is told to map the slot of the dup that is being filled: other memory with the
//! same bytes. As with a merge, it is attached there at once, and goes back if it could not be mapped. In each full scan no
//! more are told to than a stated share of the pages that the one before visited, so that it cannot crowd out the scanning.
//!
//! Where arenas of an earlier daemon were taken over it is not a matter of choice: that may have died while it moved pages from
//! one arena to another, and left half of the sharers of a page with each.

use super::Engine;
use super::items::{ItemRef, State};
use super::stable::NodeId;
use crate::order::Outcome;
use crate::page::Slot;
use crate::store::SlotStore;
use std::collections::HashMap;

/// What refiling is doing.
#[derive(Debug, Default)]
pub(crate) struct Refiling {
    /// Pages ever visited when this full scan began.
    scanned_before: u64,
    /// Pages that the full scan before this one visited.
    last_scan: u64,
    /// Pages that this full scan has told to move.
    ordered: u64,
    /// Pages moved, ever.
    moved: u64,
    /// Pages that have been told to: the dup that they are attached to already, the slot that they come from.
    under_way: HashMap<ItemRef, (NodeId, Slot)>,
}

impl Refiling {
    pub(crate) fn scan_starts(&mut self, scanned: u64) {
        self.last_scan = scanned - self.scanned_before;
        self.scanned_before = scanned;
        self.ordered = 0;
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    pub(crate) fn under_way(&self) -> u64 {
        self.under_way.len() as u64
    }
}

impl<S: SlotStore> Engine<S> {
    /// Moves an item that is mapped to `slot` of `node` to a fuller dup, if that is worth while and allowed now.
    pub(super) fn refile(&mut self, item: ItemRef, node: NodeId, slot: Slot) {
        let percent = u64::from(self.extras.refile_percent);
        let now = self.now;
        let put_together = self.domain_of(item.mm()).arenas.put_together(now);
        if !put_together
            && self.refiling.ordered >= percent.saturating_mul(self.refiling.last_scan) / 100
        {
            return;
        }
        let rules = self.search_rules();
        let domain = self.domain_of(item.mm());
        let Some(target) = domain.stable.refile_to(node, &rules) else {
            return;
        };
        let in_the_making = domain.foundings.contains_key(&target);
        let Some(to) = domain.stable.node(target).slot.filter(|_| !in_the_making) else {
            return;
        };
        self.refiling.ordered += 1;
        self.refiling.under_way.insert(item, (target, slot));
        self.detach(item);
        self.forget_digest(item);
        self.attach(item, target);
        self.plan_refile(item, to);
    }

    /// A page was mapped to the other dup's slot, or could not be: then it is where it was.
    pub(super) fn refiled(&mut self, item: ItemRef, outcome: Outcome) {
        let Some((target, from)) = self.refiling.under_way.remove(&item) else {
            return;
        };
        let known = self.item(item);
        if known.state != State::Stable || known.link != target.0 {
            return;
        }
        if outcome == Outcome::Done {
            self.refiling.moved += 1;
            return self.confirm(item);
        }
        self.note(item.mm(), outcome);
        let node = self.domain_of(item.mm()).arenas.node_at(from);
        match node.or_else(|| self.adopt(item.mm(), from)) {
            Some(node) => self.settle_on(item, node),
            None => self.forget_item(item.mm(), item.page()),
        }
    }
}
