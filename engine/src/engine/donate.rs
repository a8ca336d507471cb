//! Donations: the bytes of merged pages come from one of the processes that have them.
//!
//! They are copied out of the buffer that the process can write to, and the next donation is ordered before anybody has looked at
//! them: [`Engine::take_order`] does, when it has no other orders to give. What is not what was announced founds nothing.

use super::arenas::Kind;
use super::items::{ItemRef, State};
use super::merge::page_runs;
use super::stable::NodeId;
use super::{Engine, Purpose, ReportError};
use crate::digest::Fingerprint;
use crate::order::{DONATION_PAGES, Donation, Order, Outcome, OutcomeRun};
use crate::page::{DomainId, MmId, PAGE_SIZE, PageBytes, Slot, UserId};
use crate::store::SlotStore;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// Pages that are hashed and then written to slots: few enough to stay in the processor's cache meanwhile.
const TAKEN_AT_ONCE: usize = 32;
/// Donations that are copied and not looked at: they take memory.
const MOST_DONATED: usize = 2;

/// The bytes that a process gave.
#[derive(Debug)]
pub(crate) struct Donated {
    mm: MmId,
    nodes: Vec<NodeId>,
    outcomes: Vec<Outcome>,
    copies: Vec<PageBytes>,
}

impl<S: SlotStore> Engine<S> {
    pub(super) fn order_donation(&mut self, id: MmId, donate: &mut Vec<(u64, NodeId)>) {
        let Some(mm) = self.mms.get_mut(id) else {
            return;
        };
        if mm.donating || donate.is_empty() {
            return;
        }
        mm.donating = true;
        let rest = donate.split_off(donate.len().min(DONATION_PAGES));
        let now = std::mem::replace(donate, rest);
        let order = Order::Donate {
            runs: page_runs(now.iter().map(|(page, _)| *page)),
        };
        let nodes = now.into_iter().map(|(_, node)| node).collect();
        self.outbox
            .send(id, order, Purpose::Donate(nodes), self.now);
    }

    /// Copies donated pages out of their buffer. What they are is looked at later: the agent can fill the buffer anew meanwhile.
    pub(super) fn donation_arrived(
        &mut self,
        id: MmId,
        nodes: &[NodeId],
        outcomes: &[OutcomeRun],
        donation: &dyn Donation,
    ) -> Result<(), ReportError> {
        if let Some(mm) = self.mms.get_mut(id) {
            mm.donating = false;
        }
        let total: u64 = outcomes.iter().map(|run| u64::from(run.len)).sum();
        if total != nodes.len() as u64 {
            for node in nodes {
                self.give_up(id, *node, Outcome::Lost);
            }
            return Err(ReportError::WrongPages);
        }
        let each = outcomes
            .iter()
            .flat_map(|run| (0..run.len).map(|_| run.outcome));
        let outcomes: Vec<_> = each
            .map(|outcome| Outcome::from_number(outcome).unwrap_or(Outcome::Failed))
            .collect();
        let mut copies = self.spare.pop().unwrap_or_default();
        copies.resize(nodes.len(), [0; PAGE_SIZE]);
        donation.copy_pages(0, &mut copies);
        self.donated.push_back(Donated {
            mm: id,
            nodes: nodes.to_vec(),
            outcomes,
            copies,
        });
        if self.donated.len() > MOST_DONATED {
            self.take_donation();
        }
        Ok(())
    }

    /// Looks at what was donated first. False if nothing was.
    pub(super) fn take_donation(&mut self) -> bool {
        let Some(donated) = self.donated.pop_front() else {
            return false;
        };
        let mut first = 0;
        let parts = donated.nodes.chunks(TAKEN_AT_ONCE);
        for (nodes, outcomes) in parts.zip(donated.outcomes.chunks(TAKEN_AT_ONCE)) {
            let copies = &donated.copies[first..first + nodes.len()];
            self.take_copies(donated.mm, nodes, outcomes, copies);
            first += nodes.len();
        }
        self.spare.push(donated.copies);
        true
    }

    /// What a process has donated that is gone, or does not answer, is not looked at any more.
    pub(super) fn lose_donations(&mut self, mm: MmId) {
        let (lost, rest) = std::mem::take(&mut self.donated)
            .into_iter()
            .partition::<VecDeque<_>, _>(|donated| donated.mm == mm);
        self.donated = rest;
        for node in lost.into_iter().flat_map(|donated| donated.nodes) {
            self.give_up(mm, node, Outcome::Lost);
        }
    }

    /// The partner of a node in the making, if it and another page are still there: pages may be taken out of the
    /// mergeable ranges while orders are on their way.
    fn partner_in_place(&mut self, mm: MmId, node: NodeId) -> Option<ItemRef> {
        let domain = self.domain_of(mm);
        let partner = domain.foundings.get(&node)?.partner;
        let others = domain.stable.node(node).items().len() > 1;
        let known = self.item(partner);
        (others && known.state == State::Stable && known.link == node.0).then_some(partner)
    }

    /// Copies to slots what of the donated pages is as announced, as many at a time as lie side by side.
    fn take_copies(
        &mut self,
        mm: MmId,
        nodes: &[NodeId],
        outcomes: &[Outcome],
        copies: &[PageBytes],
    ) {
        let Some(domain_id) = self.mms.get(mm).map(|mm| mm.domain) else {
            return;
        };
        let mut good: Vec<(NodeId, ItemRef)> = Vec::new();
        let mut first = 0;
        for (index, (node, outcome)) in nodes.iter().zip(outcomes).enumerate() {
            let taken = self.check_donated(mm, *node, *outcome, &copies[index]);
            let numa = |node: NodeId| {
                self.domains
                    .get(&domain_id)
                    .map(|d| d.stable.node(node).numa)
            };
            if let Some(partner) = taken
                && good
                    .last()
                    .is_none_or(|(last, _)| numa(*last) == numa(*node))
            {
                good.push((*node, partner));
                continue;
            }
            self.found_slots(
                mm,
                domain_id,
                &std::mem::take(&mut good),
                &copies[first..index],
            );
            first = index + usize::from(taken.is_none());
            good.extend(taken.map(|partner| (*node, partner)));
        }
        self.found_slots(mm, domain_id, &good, &copies[first..]);
    }

    /// The partner of a donated page if that is what was announced; else its node is given up.
    fn check_donated(
        &mut self,
        mm: MmId,
        node: NodeId,
        outcome: Outcome,
        copy: &PageBytes,
    ) -> Option<ItemRef> {
        if outcome != Outcome::Done {
            self.give_up(mm, node, outcome);
            return None;
        }
        let domain = self.domain_of(mm);
        if Fingerprint::of(&domain.salt.digest(copy)) != domain.stable.node(node).fingerprint {
            self.give_up(mm, node, Outcome::Changed);
            return None;
        }
        let partner = self.partner_in_place(mm, node);
        if partner.is_none() {
            self.give_up(mm, node, Outcome::Gone);
        }
        partner
    }

    /// Gives slots to nodes in the making, and has their partners mapped there.
    fn found_slots(
        &mut self,
        mm: MmId,
        domain: DomainId,
        nodes: &[(NodeId, ItemRef)],
        copies: &[PageBytes],
    ) {
        let Some(user) = self.mms.get(mm).map(|mm| mm.user) else {
            return;
        };
        let (nodes, beyond) = nodes.split_at(self.may_fill(user, nodes.len()));
        for (node, _) in beyond {
            self.give_up(mm, *node, Outcome::NoMemory);
        }
        let mut done = 0;
        while let Some(rest) = nodes.get(done..).filter(|rest| !rest.is_empty()) {
            let ids: SmallVec<[NodeId; TAKEN_AT_ONCE]> = rest.iter().map(|(id, _)| *id).collect();
            let Some((first, count)) = self.fill_slots(domain, user, &ids, &copies[done..]) else {
                for (node, _) in rest {
                    self.give_up(mm, *node, Outcome::NoMemory);
                }
                return;
            };
            for (index, (_, partner)) in (first.index..).zip(&rest[..count]) {
                self.plan_map(*partner, Slot { index, ..first });
            }
            done += count;
        }
    }

    /// Writes pages to the next free slots of the domain, as many as the open arena takes: the first slot, and how many.
    /// They are charged to `user`. All nodes are of one NUMA node.
    pub(super) fn fill_slots(
        &mut self,
        id: DomainId,
        user: UserId,
        nodes: &[NodeId],
        pages: &[PageBytes],
    ) -> Option<(Slot, usize)> {
        let domain = self.domains.get(&id)?;
        let numa = domain.stable.node(*nodes.first()?).numa;
        let numa = (!self.knobs.merge_across_nodes).then_some(numa);
        let kind = Kind { user, numa };
        if domain.arenas.next(kind).is_none() {
            self.open_arena(id, kind)?;
        }
        let domain = self.domains.get_mut(&id)?;
        let first = domain.arenas.next(kind)?;
        let count = domain.arenas.room(kind).min(nodes.len());
        if let Err(error) = self.store.write(first, &pages[..count]) {
            log::warn!("merging is held back: {error}");
            return None;
        }
        for (index, node) in (first.index..).zip(&nodes[..count]) {
            if domain.arenas.take(kind, *node) {
                self.store.finish(first.arena);
            }
            domain.stable.node_mut(*node).slot = Some(Slot { index, ..first });
        }
        self.filled.add(user, count as u64);
        Some((first, count))
    }
}
