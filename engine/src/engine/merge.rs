//! Merging: from "these pages are equal" to "they are mapped to one slot".
//!
//! An item is attached to its stable node the moment the decision falls, so that the pages after it see the node with
//! the right number of sharers; if the agent then reports that the page could not be mapped, the item is detached
//! again.
//!
//! Two equal pages *found* a node in three steps. The partner that waited in the unstable tree donates its bytes (`donate.rs`), which
//! the engine copies to a fresh slot and hashes itself: its agent has nothing else to do while the other one still visits. Then
//! the partner is mapped, and only when that worked the page visited last and all pages that joined meanwhile: a partner
//! that cannot be moved (pinned, say) keeps its equals from merging, as in the kernel, instead of leaving a merged page with
//! a single sharer.

use super::items::{ItemRef, State};
use super::stable::NodeId;
use super::{Engine, Purpose, ReportError};
use crate::digest::Fingerprint;
use crate::order::{MAP_PAGES, MAX_RUNS, MapRun, Order, Outcome, OutcomeRun};
use crate::page::{ArenaId, MmId, PageRun, Slot};
use crate::store::SlotStore;
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeMap;

/// A merged page in the making.
#[derive(Debug)]
pub(crate) struct Founding {
    /// The page that waited in the unstable tree; it gives its bytes.
    pub(super) partner: ItemRef,
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
    pub(super) fn found(&mut self, item: ItemRef, partner: ItemRef, fingerprint: Fingerprint) {
        let (now, numa) = (self.now, self.numa_of(item));
        self.splits(item);
        self.splits(partner);
        self.detach(partner);
        self.forget_digest(partner);
        self.forget_digest(item);
        let domain = self.domain_of(item.mm());
        let node = domain.stable.insert(numa, fingerprint, None, now);
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

    pub(super) fn plan_map(&mut self, item: ItemRef, slot: Slot) {
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
                let unmappable = self.take_unmappable(mm, &mut plan);
                if self.mms.get(mm).is_some_and(super::mm::Mm::answers) {
                    // First, for it is waited for: what is donated is copied while the agent maps.
                    self.order_donation(mm, &mut plan.donate);
                    self.order_maps(mm, std::mem::take(&mut plan.map), map_order);
                    self.order_maps(mm, std::mem::take(&mut plan.remap), remap_order);
                    self.order_maps(mm, std::mem::take(&mut plan.refile), refile_order);
                    self.order_splits(mm, &std::mem::take(&mut plan.split));
                    self.order_zeroes(mm, &std::mem::take(&mut plan.zero));
                    self.order_to_forget(mm, &std::mem::take(&mut plan.forget));
                    if !plan.is_empty() {
                        self.plans.insert(mm, plan);
                    }
                } else {
                    self.lose_plan(mm, plan, Outcome::Lost);
                }
                self.lose_plan(mm, unmappable, Outcome::NoMaps);
            }
        }
    }

    /// A process that has no maps left for some runs will have none for others of that length before the next scan.
    pub(super) fn note_unmappable(&mut self, mm: MmId, runs: &[PageRun], outcomes: &[OutcomeRun]) {
        let no_maps = |run: &OutcomeRun| run.outcome == Outcome::NoMaps as u32;
        let refused = |run: &&PageRun| {
            let first = outcomes.partition_point(|outcome| outcome.pages().end() <= run.start);
            let mut within = outcomes[first..].iter();
            within
                .by_ref()
                .take_while(|outcome| outcome.start < run.end())
                .any(no_maps)
        };
        let longest = runs.iter().filter(refused).map(|run| run.len).max();
        if let (Some(longest), Some(mm)) = (longest, self.mms.get_mut(mm)) {
            mm.unmappable = mm.unmappable.max(longest);
        }
    }

    /// Takes out of a plan what there are no maps for: pages that would be donated in vain, above all.
    fn take_unmappable(&self, mm: MmId, plan: &mut Plan) -> Plan {
        let most = self.mms.get(mm).map_or(0, |mm| mm.unmappable);
        let mut short = Plan::default();
        if most > 0 {
            plan.map.sort_unstable();
            plan.donate.sort_unstable();
            short.map = take_short_runs(&mut plan.map, most, |(page, slot)| {
                (*page, u64::from(slot.arena.0) << 32 | u64::from(slot.index))
            });
            // Slots are given out in the order of donations.
            short.donate = take_short_runs(&mut plan.donate, most, |(page, _)| (*page, *page));
        }
        short
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
    pub(super) fn give_up(&mut self, mm: MmId, node: NodeId, outcome: Outcome) {
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
        self.lose_donations(mm);
        if let Some(plan) = self.plans.remove(&mm) {
            self.lose_plan(mm, plan, Outcome::Lost);
        }
    }

    fn lose_plan(&mut self, mm: MmId, plan: Plan, outcome: Outcome) {
        for (_, node) in plan.donate {
            self.give_up(mm, node, outcome);
        }
        for (page, _) in plan.map {
            self.mapped(ItemRef::new(mm, page), outcome);
        }
        for (page, _) in plan.refile {
            self.refiled(ItemRef::new(mm, page), outcome);
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
pub(super) fn page_runs(pages: impl Iterator<Item = u64>) -> Vec<PageRun> {
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

/// Takes out the runs of at most `most` pages, in which page and place both rise by one.
fn take_short_runs<T>(pages: &mut Vec<T>, most: u64, place: impl Fn(&T) -> (u64, u64)) -> Vec<T> {
    let follows = |last: &T, next: &T| {
        let (page, at) = place(last);
        place(next) == (page + 1, at + 1)
    };
    let (mut short, mut long) = (Vec::new(), Vec::new());
    let mut rest = std::mem::take(pages).into_iter().peekable();
    while let Some(first) = rest.next() {
        let mut run = vec![first];
        while let Some(next) =
            rest.next_if(|next| run.last().is_some_and(|last| follows(last, next)))
        {
            run.push(next);
        }
        let kept = if run.len() as u64 > most {
            &mut long
        } else {
            &mut short
        };
        kept.append(&mut run);
    }
    *pages = long;
    short
}
