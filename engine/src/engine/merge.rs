//! Merging: from "these pages are equal" to "they are mapped to one slot".
//!
//! An item is attached to its stable node the moment the decision falls, so that the pages after it see the node with
//! the right number of sharers; if the agent then reports that the page could not be mapped, the item is detached
//! again.
//!
//! Two equal pages *found* a node in three steps. The partner that waited in the unstable tree donates its bytes, which the
//! engine copies to a fresh slot and hashes itself: its agent has nothing else to do while the other one still visits. Then
//! the partner is mapped, and only when that worked the page visited last and all pages that joined meanwhile: a partner
//! that cannot be moved (pinned, say) keeps its equals from merging, as in the kernel, instead of leaving a merged page with
//! a single sharer.

use super::arenas::Kind;
use super::items::{ItemRef, State};
use super::stable::NodeId;
use super::{Engine, Purpose, ReportError};
use crate::order::{
    DONATION_PAGES, Donation, MAP_PAGES, MAX_RUNS, MapRun, Order, Outcome, OutcomeRun,
};
use crate::page::{ArenaId, DomainId, MmId, PAGE_SIZE, PageBytes, PageRun, Slot, UserId};
use crate::store::SlotStore;
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;

/// Donated pages that are copied before they are looked at: few enough to stay in the processor's cache meanwhile.
const COPIED_AT_ONCE: usize = 32;

/// A merged page in the making.
#[derive(Debug)]
pub(crate) struct Founding {
    /// The page that waited in the unstable tree; it gives its bytes.
    partner: ItemRef,
    /// The page that met it, and those that joined since.
    waiting: SmallVec<[ItemRef; 1]>,
}

/// What is to be ordered from one agent.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    donate: Vec<(u64, NodeId)>,
    map: Vec<(u64, Slot)>,
    zero: Vec<u64>,
    split: Vec<u64>,
    forget: Vec<u64>,
    remap: Vec<(u64, Slot)>,
    refile: Vec<(u64, Slot)>,
}

impl Plan {
    fn has_more_than_donations(&self) -> bool {
        !(self.map.is_empty()
            && self.zero.is_empty()
            && self.split.is_empty()
            && self.forget.is_empty()
            && self.remap.is_empty()
            && self.refile.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.donate.is_empty() && !self.has_more_than_donations()
    }
}

impl<S: SlotStore> Engine<S> {
    /// An item is equal to a merged page with room.
    pub(super) fn join(&mut self, item: ItemRef, node: NodeId) {
        self.forget_digest(item);
        self.splits(item);
        self.attach(item, node);
        let domain = self.domain_of(item.mm());
        if let Some(founding) = domain.foundings.get_mut(&node) {
            founding.waiting.push(item);
        } else if let Some(slot) = domain.stable.node(node).slot {
            self.plan_map(item, slot);
        }
    }

    /// Two items that are merged with nothing yet are equal.
    pub(super) fn found(&mut self, item: ItemRef, partner: ItemRef, digest: crate::page::Digest) {
        let (now, numa) = (self.now, self.numa_of(item));
        self.splits(item);
        self.splits(partner);
        self.detach(partner);
        self.forget_digest(partner);
        self.forget_digest(item);
        let domain = self.domain_of(item.mm());
        let node = domain.stable.insert(numa, digest, None, now);
        domain.foundings.insert(
            node,
            Founding {
                partner,
                waiting: smallvec![item],
            },
        );
        self.attach(partner, node);
        self.attach(item, node);
        let donations = &mut self.plan(partner.mm()).donate;
        donations.push((partner.page(), node));
    }

    fn plan(&mut self, mm: MmId) -> &mut Plan {
        self.plans.entry(mm).or_default()
    }

    fn plan_map(&mut self, item: ItemRef, slot: Slot) {
        self.plan(item.mm()).map.push((item.page(), slot));
    }

    /// A sharer is to follow its node to another slot.
    pub(super) fn plan_remap(&mut self, item: ItemRef, slot: Slot) {
        self.plan(item.mm()).remap.push((item.page(), slot));
    }

    /// A sharer is to go over to another dup.
    pub(super) fn plan_refile(&mut self, item: ItemRef, slot: Slot) {
        self.plan(item.mm()).refile.push((item.page(), slot));
    }

    pub(super) fn plan_zero(&mut self, item: ItemRef) {
        self.plan(item.mm()).zero.push(item.page());
    }

    pub(super) fn plan_split(&mut self, item: ItemRef) {
        self.plan(item.mm()).split.push(item.page());
    }

    /// The agent has reported the digest of a page, but the report was lost: it is to start over with the page.
    pub(super) fn plan_forget(&mut self, item: ItemRef) {
        self.plan(item.mm()).forget.push(item.page());
    }

    /// Whether anything is planned and not ordered yet.
    pub(super) fn has_plans(&self) -> bool {
        !self.plans.is_empty()
    }

    /// Turns plans into orders.
    pub(super) fn flush_plans(&mut self) {
        // Losing an order may plan nothing new for others, but giving up on a founding may; hence the loop.
        loop {
            let ready: Vec<MmId> = self
                .plans
                .iter()
                .filter(|(mm, plan)| {
                    let donating = self.mms.get(**mm).is_some_and(|mm| mm.donating);
                    !donating || plan.has_more_than_donations()
                })
                .map(|(mm, _)| *mm)
                .collect();
            if ready.is_empty() {
                return;
            }
            for mm in ready {
                let Some(mut plan) = self.plans.remove(&mm) else {
                    continue;
                };
                if self.mms.get(mm).is_some_and(super::mm::Mm::answers) {
                    self.order_maps(mm, std::mem::take(&mut plan.map), map_order);
                    self.order_maps(mm, std::mem::take(&mut plan.remap), remap_order);
                    self.order_maps(mm, std::mem::take(&mut plan.refile), refile_order);
                    self.order_splits(mm, &std::mem::take(&mut plan.split));
                    self.order_zeroes(mm, &std::mem::take(&mut plan.zero));
                    self.order_to_forget(mm, &std::mem::take(&mut plan.forget));
                    self.order_donation(mm, &mut plan.donate);
                    if !plan.is_empty() {
                        self.plans.insert(mm, plan);
                    }
                } else {
                    self.lose_plan(mm, plan);
                }
            }
        }
    }

    fn order_maps(
        &mut self,
        mm: MmId,
        map: Vec<(u64, Slot)>,
        make: fn(ArenaId, Vec<MapRun>) -> (Order, Purpose),
    ) {
        let mut by_arena: BTreeMap<_, Vec<(u64, u32)>> = BTreeMap::new();
        for (page, slot) in map {
            by_arena
                .entry(slot.arena)
                .or_default()
                .push((page, slot.index));
        }
        for (arena, mut pages) in by_arena {
            pages.sort_unstable();
            for pages in pages.chunks(MAP_PAGES.min(MAX_RUNS)) {
                let (order, purpose) = make(arena, map_runs(pages));
                self.outbox.send(mm, order, purpose, self.now);
            }
        }
    }

    fn order_splits(&mut self, mm: MmId, pages: &[u64]) {
        for pages in pages.chunks(MAP_PAGES.min(MAX_RUNS)) {
            let runs = page_runs(pages.iter().copied());
            let order = Order::Split { runs: runs.clone() };
            self.outbox.send(mm, order, Purpose::Split(runs), self.now);
        }
    }

    fn order_zeroes(&mut self, mm: MmId, pages: &[u64]) {
        for pages in pages.chunks(MAP_PAGES.min(MAX_RUNS)) {
            let runs = page_runs(pages.iter().copied());
            let order = Order::Zero { runs: runs.clone() };
            self.outbox.send(mm, order, Purpose::Zero(runs), self.now);
        }
    }

    fn order_to_forget(&mut self, mm: MmId, pages: &[u64]) {
        for range in page_runs(pages.iter().copied()) {
            let order = Order::Unmerge { range };
            self.outbox.send(mm, order, Purpose::Forget, self.now);
        }
    }

    fn order_donation(&mut self, id: MmId, donate: &mut Vec<(u64, NodeId)>) {
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

    /// Copies donated pages to slots, if they are what was announced.
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
        let Some(domain_id) = self.mms.get(id).map(|mm| mm.domain) else {
            return Ok(());
        };
        let outcomes: Vec<_> = each
            .map(|outcome| Outcome::from_number(outcome).unwrap_or(Outcome::Failed))
            .collect();
        let mut copies = std::mem::take(&mut self.copies);
        copies.resize(COPIED_AT_ONCE, [0; PAGE_SIZE]);
        let parts = nodes.chunks(COPIED_AT_ONCE);
        for (part, (nodes, outcomes)) in parts.zip(outcomes.chunks(COPIED_AT_ONCE)).enumerate() {
            let copies = &mut copies[..nodes.len()];
            donation.copy_pages(part * COPIED_AT_ONCE, copies);
            self.take_copies(id, domain_id, nodes, outcomes, copies);
        }
        self.copies = copies;
        Ok(())
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
        domain_id: DomainId,
        nodes: &[NodeId],
        outcomes: &[Outcome],
        copies: &[PageBytes],
    ) {
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
        if domain.salt.digest(copy) != domain.stable.node(node).digest {
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
            let ids: SmallVec<[NodeId; COPIED_AT_ONCE]> = rest.iter().map(|(id, _)| *id).collect();
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

    /// Walks the outcomes of an order page by page.
    pub(super) fn for_outcomes(
        &mut self,
        mm: MmId,
        runs: &[PageRun],
        outcomes: &[OutcomeRun],
        mut each: impl FnMut(&mut Self, ItemRef, Outcome),
    ) -> Result<(), ReportError> {
        let ordered = || runs.iter().flat_map(|run| run.start..run.end());
        let total = |lens: &mut dyn Iterator<Item = u64>| lens.sum::<u64>();
        let fits = total(&mut runs.iter().map(|run| run.len))
            == total(&mut outcomes.iter().map(|run| u64::from(run.len)))
            && outcomes
                .iter()
                .flat_map(|run| run.start..run.pages().end())
                .eq(ordered());
        if !fits {
            for page in ordered() {
                each(self, ItemRef::new(mm, page), Outcome::Lost);
            }
            return Err(ReportError::WrongPages);
        }
        for run in outcomes {
            let outcome = Outcome::from_number(run.outcome).unwrap_or(Outcome::Failed);
            for page in run.start..run.pages().end() {
                each(self, ItemRef::new(mm, page), outcome);
            }
        }
        Ok(())
    }

    /// A page was mapped to its slot, or could not be.
    pub(super) fn mapped(&mut self, item: ItemRef, outcome: Outcome) {
        let known = self.item(item);
        if known.state != State::Stable {
            return self.partner_left(item);
        }
        let node = NodeId(known.link);
        let founding = self.domain_of(item.mm()).foundings.get(&node);
        let founds = founding.is_some_and(|founding| founding.partner == item);
        if outcome == Outcome::Done {
            self.confirm(item);
        }
        match (outcome, founds) {
            (Outcome::Done, true) => self.founded(item.mm(), node),
            (Outcome::Done, false) => {}
            (_, true) => self.give_up(item.mm(), node, outcome),
            (_, false) => {
                self.note(item.mm(), outcome);
                self.detach(item);
            }
        }
    }

    /// An item was to be mapped that is not mergeable any more. If a node in the making waited for it, that is over.
    fn partner_left(&mut self, item: ItemRef) {
        let domain = self.domain_of(item.mm());
        let node = domain.foundings.iter().find(|(node, founding)| {
            founding.partner == item && domain.stable.node(**node).slot.is_some()
        });
        if let Some(node) = node.map(|(node, _)| *node) {
            self.give_up(item.mm(), node, Outcome::Gone);
        }
    }

    /// The partner is mapped: the node is a merged page, and the others follow.
    fn founded(&mut self, mm: MmId, node: NodeId) {
        let domain = self.domain_of(mm);
        let Some(founding) = domain.foundings.remove(&node) else {
            return;
        };
        let Some(slot) = domain.stable.node(node).slot else {
            return;
        };
        for item in founding.waiting {
            let known = self.item(item);
            if known.state == State::Stable && known.link == node.0 {
                self.plan_map(item, slot);
            }
        }
    }

    /// A node could not be founded: its items go back to where they were.
    fn give_up(&mut self, mm: MmId, node: NodeId, outcome: Outcome) {
        let Some(founding) = self.domain_of(mm).foundings.remove(&node) else {
            return;
        };
        self.note(founding.partner.mm(), outcome);
        let domain = self.domain_of(mm);
        if domain.stable.node(node).items().is_empty() {
            domain.remove_node(node);
        }
        let items = founding.waiting.into_iter().chain([founding.partner]);
        for item in items {
            let known = self.item(item);
            if known.state == State::Stable && known.link == node.0 {
                self.detach(item);
            }
        }
        // A partner that only could not be moved goes on waiting for a twin, as in the kernel.
        let partner = founding.partner;
        let known = self.item(partner);
        let as_it_was = !matches!(outcome, Outcome::Changed | Outcome::Gone | Outcome::Lost);
        if as_it_was && known.state == State::Known && self.search_or_insert(partner).is_none() {
            self.now_unstable(partner);
        }
    }

    /// A page got the zero page, or could not. Its item is freed when the next scan finds no page there.
    pub(super) fn zeroed(&mut self, item: ItemRef, outcome: Outcome) {
        if outcome == Outcome::Done {
            if let Some(mm) = self.mms.get_mut(item.mm()) {
                mm.zero_pages += 1;
            }
        } else {
            self.note(item.mm(), outcome);
        }
    }

    /// A huge page was split, or could not be: the next scan sees which.
    pub(super) fn was_split(&mut self, item: ItemRef, outcome: Outcome) {
        if outcome != Outcome::Done {
            self.note(item.mm(), outcome);
        }
    }

    /// The agent of `mm` will not answer: everything it was to do counts as lost.
    pub(super) fn lose_orders(&mut self, mm: MmId) {
        for (id, sent) in self.outbox.withdraw(mm) {
            let lost =
                |engine: &mut Self, runs: Vec<PageRun>, each: fn(&mut Self, ItemRef, Outcome)| {
                    for page in runs.into_iter().flat_map(|run| run.start..run.end()) {
                        each(engine, ItemRef::new(mm, page), Outcome::Lost);
                    }
                };
            match sent.purpose {
                Purpose::Visit(_) => self.visit_lost(id),
                Purpose::Donate(nodes) => {
                    for node in nodes {
                        self.give_up(mm, node, Outcome::Lost);
                    }
                }
                Purpose::Map(runs) => lost(self, runs, Self::mapped),
                Purpose::Zero(runs) => lost(self, runs, Self::zeroed),
                Purpose::Split(runs) => lost(self, runs, Self::was_split),
                Purpose::Remap(runs) => lost(self, runs, Self::remapped),
                Purpose::Refile(runs) => lost(self, runs, Self::refiled),
                Purpose::Unmerge { .. } => self.unmerge_lost(mm),
                Purpose::Forget => {}
                Purpose::Count(ticket) => self.count_answered(ticket),
            }
        }
        if let Some(mm) = self.mms.get_mut(mm) {
            mm.donating = false;
        }
        if let Some(plan) = self.plans.remove(&mm) {
            self.lose_plan(mm, plan);
        }
    }

    fn lose_plan(&mut self, mm: MmId, plan: Plan) {
        for (_, node) in plan.donate {
            self.give_up(mm, node, Outcome::Lost);
        }
        for (page, _) in plan.map {
            self.mapped(ItemRef::new(mm, page), Outcome::Lost);
        }
        for (page, _) in plan.refile {
            self.refiled(ItemRef::new(mm, page), Outcome::Lost);
        }
    }
}

fn map_order(arena: ArenaId, runs: Vec<MapRun>) -> (Order, Purpose) {
    let covered = runs.iter().map(MapRun::pages).collect();
    (Order::Map { arena, runs }, Purpose::Map(covered))
}

fn remap_order(arena: ArenaId, runs: Vec<MapRun>) -> (Order, Purpose) {
    let covered = runs.iter().map(MapRun::pages).collect();
    (Order::Remap { arena, runs }, Purpose::Remap(covered))
}

fn refile_order(arena: ArenaId, runs: Vec<MapRun>) -> (Order, Purpose) {
    let covered = runs.iter().map(MapRun::pages).collect();
    (Order::Remap { arena, runs }, Purpose::Refile(covered))
}

/// Consecutive pages as runs, in the order given.
fn page_runs(pages: impl Iterator<Item = u64>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(last) if last.end() == page => last.len += 1,
            _ => runs.push(PageRun {
                start: page,
                len: 1,
            }),
        }
    }
    runs
}

/// Consecutive pages with consecutive slots as runs.
fn map_runs(pages: &[(u64, u32)]) -> Vec<MapRun> {
    let mut runs: Vec<MapRun> = Vec::new();
    for &(page, slot) in pages {
        match runs.last_mut() {
            Some(last) if last.pages().end() == page && last.slot + last.len == slot => {
                last.len += 1;
            }
            _ => runs.push(MapRun {
                start: page,
                len: 1,
                slot,
            }),
        }
    }
    runs
}
