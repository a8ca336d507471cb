//! The merge routine: what is decided for each page that a visit found (the kernel's `cmp_and_merge_page`).

use super::Engine;
use super::items::{ItemRef, RmapItem, State};
use super::stable::{NodeId, SearchRules};
use super::unstable::Found;
use super::visits::Visited;
use crate::order::{Outcome, VisitState};
use crate::page::{Digest, MmId, PAGE_SIZE, PageRun, Slot};
use crate::store::SlotStore;
use std::time::Duration;

impl<S: SlotStore> Engine<S> {
    /// Decides on all pages of `looked_at`. Items of pages that were not found are freed: the pages are gone.
    pub(super) fn decide(&mut self, id: MmId, looked_at: PageRun, report: &Visited) {
        if let Some(mm) = self.mms.get_mut(id) {
            mm.zero_pages = report.zero_pages.min(mm.mergeable_pages());
            mm.counted = true;
        }
        let mut digests = report.digests.iter();
        let mut next = looked_at.start;
        for run in &report.runs {
            self.forget_items(id, PageRun::between(next, run.start));
            next = run.pages().end();
            let Some(state) = VisitState::from_number(run.state) else {
                continue;
            };
            for (page, offset) in (run.start..).zip(0..run.len) {
                let slot = Slot {
                    index: run.slot.index.saturating_add(offset),
                    ..run.slot
                };
                let digest = if state == VisitState::Calm {
                    digests.next().copied()
                } else {
                    None
                };
                self.decide_page(ItemRef::new(id, page), state, digest, slot);
            }
        }
        self.forget_items(id, PageRun::between(next, looked_at.end()));
    }

    fn decide_page(
        &mut self,
        item: ItemRef,
        state: VisitState,
        digest: Option<Digest>,
        slot: Slot,
    ) {
        if state == VisitState::Skipped {
            self.tally.skipped += 1;
            self.grow_older(item);
            self.detach(item);
            return;
        }
        self.tally.scanned += 1;
        let doubted = self
            .mms
            .get_mut(item.mm())
            .and_then(|mm| mm.items.get_mut(item.page()))
            .is_some_and(RmapItem::end_doubt);
        match state {
            VisitState::Merged => return self.found_merged(item, slot),
            // Mapped to what an earlier daemon made: nothing to save there, nothing to lose.
            VisitState::Foreign => return self.forget_item(item.mm(), item.page()),
            VisitState::Skipped
            | VisitState::Changed
            | VisitState::Calm
            | VisitState::CalmKnown
            | VisitState::CalmZero
            | VisitState::Unsure => self.grow_older(item),
        }
        self.detach(item);
        match (state, digest) {
            (VisitState::CalmZero, _) if self.knobs.use_zero_pages => {
                self.forget_digest(item);
                self.plan_zero(item);
            }
            (VisitState::CalmZero, _) => {
                let digest = self.domain_of(item.mm()).zero_digest;
                self.set_digest(item, digest);
                self.look_for_twin(item);
            }
            (VisitState::Calm, Some(digest)) => {
                self.set_digest(item, digest);
                self.look_for_twin(item);
            }
            (VisitState::CalmKnown, _) if self.item(item).state == State::Known && !doubted => {
                self.look_for_twin(item);
            }
            (VisitState::CalmKnown, _) => {
                self.forget_digest(item);
                self.plan_forget(item);
            }
            (VisitState::Unsure, _) => {
                self.forget_digest(item);
                self.note(item.mm(), Outcome::Unsure);
            }
            _ => self.forget_digest(item),
        }
    }

    fn grow_older(&mut self, item: ItemRef) {
        let smart = self.knobs.smart_scan;
        if let Some(mm) = self.mms.get_mut(item.mm()) {
            let tracked = mm.items.track(item.page());
            if smart {
                tracked.grow_older();
            }
        }
    }

    /// A page that is mapped to a slot: attached already, or inherited by a fork.
    fn found_merged(&mut self, item: ItemRef, slot: Slot) {
        let node = self.domain_of(item.mm()).arenas.node_at(slot);
        let known = self.item(item);
        if known.state == State::Stable && node == Some(NodeId(known.link)) {
            self.confirm(item);
            return self.leave_old_slot(item, NodeId(known.link));
        }
        if known.state == State::Stable && known.is_on_old_slot() {
            let own = self
                .domain_of(item.mm())
                .stable
                .node(NodeId(known.link))
                .slot;
            return own.into_iter().for_each(|slot| self.plan_remap(item, slot));
        }
        let Some(node) = node.or_else(|| self.adopt(item.mm(), slot)) else {
            // Its arena has been let go: the bytes live on in the mapping, and nobody else can have them.
            return self.forget_item(item.mm(), item.page());
        };
        if let Some(mm) = self.mms.get_mut(item.mm()) {
            mm.items.track(item.page());
        }
        self.detach(item);
        self.forget_digest(item);
        self.attach(item, node);
        self.confirm(item);
    }

    /// Makes a stable node for a slot that a process still maps although its node is gone.
    fn adopt(&mut self, mm: MmId, slot: Slot) -> Option<NodeId> {
        let now = self.now;
        let mut bytes = [0; PAGE_SIZE];
        if !self.domain_of(mm).arenas.knows(slot) || self.store.read(slot, &mut bytes).is_err() {
            return None;
        }
        let domain = self.domain_of(mm);
        let node = domain
            .stable
            .insert(domain.salt.digest(&bytes), Some(slot), now);
        domain.arenas.reuse(slot, node);
        Some(node)
    }

    /// Looks for an equal page, first among the merged ones, then among those that wait for a twin.
    fn look_for_twin(&mut self, item: ItemRef) {
        let rules = SearchRules {
            now: self.now,
            max_page_sharing: self.knobs.max_page_sharing,
            prune_after: Duration::from_millis(self.knobs.prune_millisecs.into()),
        };
        let entry = self.item(item).link;
        let sequence = self.sequence();
        let domain = self.domain_of(item.mm());
        let digest = domain.unstable.digest(entry);
        if let Some(node) = domain.stable.search(&digest, &rules) {
            return self.join(item, node);
        }
        match domain.unstable.search_or_insert(entry) {
            Found::Inserted => self.now_unstable(item, sequence),
            Found::Equal(twin) => {
                if self.mms.get(twin.mm()).is_some_and(super::mm::Mm::answers) {
                    self.found(item, twin, digest);
                }
            }
        }
    }

    /// Low bits of the number of the scan: tells whether an item was put into the tree in this one.
    pub(super) fn sequence(&self) -> u32 {
        u32::try_from(self.tally.full_scans & u64::from(u32::MAX)).expect("masked to 32 bits")
    }

    /// Marks an item that was just put into the unstable tree.
    pub(super) fn now_unstable(&mut self, item: ItemRef, sequence: u32) {
        let Some(mm) = self.mms.get_mut(item.mm()) else {
            return;
        };
        if let Some(tracked) = mm.items.get_mut(item.page()) {
            tracked.state = State::Unstable;
            tracked.position = sequence;
            self.tally.unshared += 1;
        }
    }

    /// Attaches an item in no tree to a stable node.
    pub(super) fn attach(&mut self, item: ItemRef, node: NodeId) {
        let domain = self.domain_of(item.mm());
        let items = &mut domain.stable.node_mut(node).items;
        let position = u32::try_from(items.len()).expect("fewer than 2^32 sharers");
        items.push(item);
        if let Some(mm) = self.mms.get_mut(item.mm())
            && let Some(tracked) = mm.items.get_mut(item.page())
        {
            tracked.state = State::Stable;
            tracked.link = node.0;
            tracked.position = position;
            tracked.leave_old_slot();
        }
    }

    /// An attached item's page is mapped to its slot: now, not when that was ordered, it counts as merged.
    pub(super) fn confirm(&mut self, item: ItemRef) {
        let Some(mm) = self.mms.get_mut(item.mm()) else {
            return;
        };
        let Some(tracked) = mm.items.get_mut(item.page()) else {
            return;
        };
        if tracked.state != State::Stable || !tracked.set_mapped(true) {
            return;
        }
        let node = NodeId(tracked.link);
        mm.merging += 1;
        self.tally.attached += 1;
        let stable = self.domain_of(item.mm()).stable.node_mut(node);
        stable.mapped += 1;
        if stable.mapped == 1 {
            self.tally.shared += 1;
        }
    }

    /// The item of a page that counted as merged does not any more.
    fn discount(&mut self, item: ItemRef, node: NodeId) {
        let Some(mm) = self.mms.get_mut(item.mm()) else {
            return;
        };
        let tracked = mm.items.get_mut(item.page());
        if !tracked.is_some_and(|tracked| tracked.set_mapped(false)) {
            return;
        }
        mm.merging -= 1;
        self.tally.attached -= 1;
        let stable = self.domain_of(item.mm()).stable.node_mut(node);
        stable.mapped -= 1;
        if stable.mapped == 0 {
            self.tally.shared -= 1;
        }
    }

    /// Takes an item out of whatever tree it is in (the kernel's `remove_rmap_item_from_tree`). Its digest stays
    /// known, if it was. A stable node that loses its last item is stale, and removed.
    pub(super) fn detach(&mut self, item: ItemRef) {
        let known = self.item(item);
        match known.state {
            State::Absent | State::Volatile | State::Known => {}
            State::Unstable => {
                if known.position == self.sequence() {
                    self.domain_of(item.mm()).unstable.remove(known.link);
                }
                self.tally.unshared -= 1;
                self.set_state(item, State::Known, known.link);
            }
            State::Stable => self.detach_stable(item, NodeId(known.link), known.position),
        }
    }

    fn detach_stable(&mut self, item: ItemRef, node: NodeId, position: u32) {
        self.discount(item, node);
        let domain = self.domain_of(item.mm());
        let stable = domain.stable.node_mut(node);
        let digest = stable.digest;
        stable.items.swap_remove(position as usize);
        let moved = stable.items.get(position as usize).copied();
        let empty = stable.items.is_empty();
        let entry = domain.unstable.remember(digest, item);
        if empty && !domain.foundings.contains_key(&node) {
            domain.remove_node(node);
        }
        if let Some(moved) = moved
            && let Some(mm) = self.mms.get_mut(moved.mm())
            && let Some(tracked) = mm.items.get_mut(moved.page())
        {
            tracked.position = position;
        }
        self.leave_old_slot(item, node);
        self.set_state(item, State::Known, entry);
    }

    fn set_state(&mut self, item: ItemRef, state: State, link: u32) {
        if let Some(mm) = self.mms.get_mut(item.mm())
            && let Some(tracked) = mm.items.get_mut(item.page())
        {
            tracked.state = state;
            tracked.link = link;
        }
    }

    /// Remembers the digest of an item in no tree.
    fn set_digest(&mut self, item: ItemRef, digest: Digest) {
        self.forget_digest(item);
        let entry = self.domain_of(item.mm()).unstable.remember(digest, item);
        self.set_state(item, State::Known, entry);
    }

    /// Forgets the digest of an item in no tree.
    pub(super) fn forget_digest(&mut self, item: ItemRef) {
        let known = self.item(item);
        if known.state == State::Known {
            self.domain_of(item.mm()).unstable.forget(known.link);
            self.set_state(item, State::Volatile, 0);
        }
    }

    /// Frees the item of a page, if there is one.
    pub(super) fn forget_item(&mut self, id: MmId, page: u64) {
        let item = ItemRef::new(id, page);
        self.detach(item);
        self.forget_digest(item);
        if let Some(mm) = self.mms.get_mut(id) {
            mm.items.untrack(page);
        }
    }

    /// Frees the items of all pages in `run`.
    pub(super) fn forget_items(&mut self, id: MmId, run: PageRun) {
        let Some(mm) = self.mms.get(id) else { return };
        if run.len == 0 || mm.items.len() == 0 {
            return;
        }
        let pages: Vec<u64> = mm.items.within(run).map(|(page, _)| page).collect();
        for page in pages {
            self.forget_item(id, page);
        }
    }

    /// Frees all items of an mm.
    pub(super) fn forget_all(&mut self, id: MmId) {
        self.forget_items(
            id,
            PageRun {
                start: 0,
                len: crate::page::PAGE_LIMIT,
            },
        );
    }
}
