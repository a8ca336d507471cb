//! The merge routine: what is decided for each page that a visit found (the kernel's `cmp_and_merge_page`).

use super::Engine;
use super::items::{ItemRef, Pace, Passed, RmapItem, State};
use super::mm::Mm;
use super::stable::{NodeId, Search, SearchRules};
use super::unstable::Found;
use super::visits::Visited;
use crate::digest::Fingerprint;
use crate::order::{Outcome, VisitRun, VisitState};
use crate::page::{Digest, MmId, NumaNode, PAGE_SIZE, PageRun, Slot};
use crate::store::SlotStore;
use std::time::Duration;

/// What a visit found in one page.
#[derive(Clone, Copy, Debug)]
struct Seen {
    state: VisitState,
    digest: Option<Digest>,
    slot: Slot,
    node: NumaNode,
    /// A fork shares its frame with another process.
    shares_frame: bool,
    /// It is part of a huge page, and that makes a difference.
    in_huge_page: bool,
}

impl<S: SlotStore> Engine<S> {
    /// Decides on all pages of `looked_at`. Items of pages that were not found are freed: the pages are gone. Returns how
    /// many had not changed and were only counted.
    pub(super) fn decide(&mut self, id: MmId, looked_at: PageRun, report: &Visited) -> u64 {
        if let Some(mm) = self.mms.get_mut(id) {
            mm.zero_pages = report.zero_pages.min(mm.mergeable_pages());
            mm.counted = true;
        }
        let mut digests = report.digests.iter();
        let mut next = looked_at.start;
        let mut passed = 0;
        for run in &report.runs {
            self.forget_items(id, PageRun::between(next, run.start));
            next = run.pages().end();
            let Some(state) = run.found() else {
                continue;
            };
            if let Some(mm) = self.mms.get_mut(id)
                && !mm.covers(run.pages())
            {
                // Taken out meanwhile, or put in and not said yet.
                mm.items.each_within(run.pages(), RmapItem::doubt);
                if state == VisitState::Calm {
                    digests.by_ref().take(run.len as usize).for_each(drop);
                }
                continue;
            }
            if state == VisitState::Unchanged {
                passed += self.pass_unchanged(id, run.pages());
                continue;
            }
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
                let seen = Seen {
                    state,
                    digest,
                    slot,
                    node: if self.knobs.merge_across_nodes {
                        NumaNode(0)
                    } else {
                        run.node()
                    },
                    shares_frame: run.shares_frames(),
                    in_huge_page: self.extras.huge_pages_as_ksmd && run.is_in_huge_page(),
                };
                self.decide_page(ItemRef::new(id, page), seen);
            }
        }
        self.forget_items(id, PageRun::between(next, looked_at.end()));
        passed
    }

    fn decide_page(&mut self, item: ItemRef, seen: Seen) {
        let Seen {
            state,
            digest,
            slot,
            node,
            shares_frame,
            in_huge_page,
        } = seen;
        let new = self.item(item).state == State::Absent;
        if new && state != VisitState::Foreign && !self.may_track(item.mm()) {
            self.tally.scanned += u64::from(state != VisitState::Skipped);
            return;
        }
        if state == VisitState::Skipped {
            self.tally.skipped += 1;
            self.grow_older(item, shares_frame);
            self.detach(item);
            if self.extras.meet_phases && self.knobs.merge_across_nodes {
                self.meet_in_passing(item);
            }
            return;
        }
        if in_huge_page && self.vanished_in_split(item, state == VisitState::CalmZero) {
            return self.forget_item(item.mm(), item.page());
        }
        self.tally.scanned += 1;
        let doubted = self
            .mms
            .get_mut(item.mm())
            .and_then(|mm| mm.items.get_mut(item.page()))
            .is_some_and(RmapItem::end_doubt);
        match state {
            VisitState::Merged => return self.found_merged(item, slot),
            // Mapped to what an earlier daemon made, and not taken over (yet): nothing to save there, nothing to lose.
            VisitState::Foreign => return self.forget_item(item.mm(), item.page()),
            VisitState::Skipped
            | VisitState::Unchanged
            | VisitState::Changed
            | VisitState::Calm
            | VisitState::CalmKnown
            | VisitState::CalmZero
            | VisitState::Unsure => self.grow_older(item, shares_frame),
        }
        self.detach(item);
        if self.numa_of(item) != node {
            self.unlist(item);
        }
        if let Some(mm) = self.mms.get_mut(item.mm()) {
            mm.items.set_node(item.page(), node);
        }
        match (state, digest) {
            // Whatever the agent remembers of the address: without an item there was no page, and this is its first visit.
            (VisitState::Calm, Some(digest)) if new => self.set_digest(item, digest),
            (VisitState::CalmZero, _) if new => {}
            // Splitting has put the kernel's own zero page there; ksmd goes on with what it had looked at.
            (VisitState::CalmZero, _) if self.knobs.use_zero_pages && !self.split(item) => {
                self.forget_digest(item);
                if self.extras.dry_run {
                    self.would_merge(item.mm());
                } else {
                    self.plan_zero(item);
                }
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

    /// Whether the engine knows of the pages that are reported as unchanged, and how many of them count.
    pub(super) fn can_pass(&self, id: MmId, run: &VisitRun) -> bool {
        let counted = self
            .mms
            .get(id)
            .and_then(|mm| mm.items.unchanged(run.pages(), self.knobs.smart_scan));
        counted == Some(run.counted())
    }

    /// Decides on pages that are as they were reported last. Returns how many of them were only counted.
    fn pass_unchanged(&mut self, id: MmId, run: PageRun) -> u64 {
        let pace = Pace {
            sequence: self.sequence(),
            smart_scan: self.knobs.smart_scan,
            stops_at_merged: self.extras.refile_percent > 0,
            stops_at_skipped: self.extras.meet_phases && self.knobs.merge_across_nodes,
        };
        let mut rest = run;
        let mut counted = 0;
        loop {
            let mut passed = Passed::default();
            let Some(mm) = self.mms.get_mut(id) else {
                return counted;
            };
            let stopped = mm.items.pass(rest, pace, &mut passed);
            self.tally.scanned += passed.scanned;
            self.tally.skipped += passed.skipped;
            self.tally.unshared += passed.listed;
            self.tally.unshared -= passed.unlisted;
            if passed.searched {
                // What a search does to others than the one it finds.
                self.domain_of(id).stable.dissolve_short_chains();
            }
            counted += passed.scanned;
            let Some(page) = stopped else { return counted };
            self.decide_unchanged(ItemRef::new(id, page));
            rest = PageRun::between(page + 1, run.end());
        }
    }

    fn decide_unchanged(&mut self, item: ItemRef) {
        let known = self.item(item);
        let own = NodeId(known.link);
        if known.state == State::Stable {
            self.tally.scanned += 1;
            self.change_item(item, |tracked| {
                tracked.end_doubt();
            });
            let slot = self.domain_of(item.mm()).stable.node(own).slot;
            return match slot {
                Some(slot) if known.is_on_old_slot() => self.plan_remap(item, slot),
                Some(slot) => self.found_merged(item, slot),
                None => {}
            };
        }
        let skipped = self.knobs.smart_scan && known.would_skip();
        let seen = Seen {
            state: if skipped {
                VisitState::Skipped
            } else {
                VisitState::CalmKnown
            },
            digest: None,
            slot: Slot::of_node(NumaNode(0)),
            node: NumaNode(0),
            shares_frame: known.shares_frame(),
            in_huge_page: false,
        };
        self.decide_page(item, seen);
    }

    fn grow_older(&mut self, item: ItemRef, shares_frame: bool) {
        let smart = self.knobs.smart_scan;
        if let Some(mm) = self.mms.get_mut(item.mm()) {
            let tracked = mm.items.track(item.page());
            tracked.share_frame(shares_frame);
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
            self.leave_old_slot(item, NodeId(known.link));
            return self.refile(item, NodeId(known.link), slot);
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
        self.settle_on(item, node);
    }

    /// Attaches an item whose page is mapped to a node's slot, wherever it was before.
    pub(super) fn settle_on(&mut self, item: ItemRef, node: NodeId) {
        self.detach(item);
        self.forget_digest(item);
        let numa = self.domain_of(item.mm()).stable.node(node).numa;
        if let Some(mm) = self.mms.get_mut(item.mm()) {
            mm.items.set_node(item.page(), numa);
        }
        self.attach(item, node);
        self.confirm(item);
    }

    /// Makes a stable node for a slot that a process still maps although its node is gone.
    pub(super) fn adopt(&mut self, mm: MmId, slot: Slot) -> Option<NodeId> {
        let now = self.now;
        let mut bytes = [0; PAGE_SIZE];
        let numa = self.domain_of(mm).arenas.numa_of(slot);
        if numa.is_none() != self.knobs.merge_across_nodes {
            // Made when the other rule was in force.
            return None;
        }
        if !self.domain_of(mm).arenas.knows(slot) || self.store.read(slot, &mut bytes).is_err() {
            return None;
        }
        let domain = self.domain_of(mm);
        let numa = numa.unwrap_or_default();
        let fingerprint = Fingerprint::of(&domain.salt.digest(&bytes));
        let node = domain.stable.insert(numa, fingerprint, Some(slot), now);
        domain.arenas.reuse(slot, node);
        // Nobody has met it who waits for such a page.
        if let Some(waiting) = domain.unstable.find(numa, &fingerprint) {
            self.change_item(waiting, |tracked| tracked.set_crowded(true));
        }
        Some(node)
    }

    /// Looks for an equal page, first among the merged ones, then among those that wait for a twin.
    fn look_for_twin(&mut self, item: ItemRef) {
        let rules = self.search_rules();
        let entry = self.item(item).link;
        let numa = self.numa_of(item);
        let fingerprint = self.domain_of(item.mm()).unstable.fingerprint(entry);
        let crowded = loop {
            let stable = &mut self.domain_of(item.mm()).stable;
            match stable.search(numa, &fingerprint, &rules) {
                Search::Room(node) => return self.join(item, node),
                Search::Nothing => break false,
                Search::Full => break true,
                Search::Stale(node) => {
                    let items = stable.node(node).items().to_vec();
                    items.into_iter().for_each(|item| self.detach(item));
                }
            }
        };
        let twin = self.search_or_insert(item);
        self.change_item(item, |tracked| tracked.set_crowded(crowded));
        match twin {
            None => self.now_unstable(item),
            Some(twin) => self.meet(item, twin, fingerprint),
        }
    }

    /// Looks in the unstable tree of this scan for a page with the digest of an item; puts the item there if there is none.
    pub(super) fn search_or_insert(&mut self, item: ItemRef) -> Option<ItemRef> {
        let (sequence, numa) = (self.sequence(), self.numa_of(item));
        let entry = self.item(item).link;
        let trees = &mut self.domain_of(item.mm()).unstable;
        if let Found::Other(other) = trees.search_or_list(numa, entry) {
            if self.item(other).is_in_tree(sequence) {
                return Some(other);
            }
            let trees = &mut self.domain_of(item.mm()).unstable;
            trees.list_instead(numa, entry);
            self.change_item(other, |tracked| tracked.set_listed(false));
        }
        self.change_item(item, |tracked| {
            if !tracked.is_listed() {
                // Unless it was looked for among the merged pages before, its next visit has to do that.
                tracked.set_crowded(true);
            }
            tracked.set_listed(true);
            tracked.position = sequence;
        });
        None
    }

    /// Takes the digest of an item out of the index of the unstable tree, whichever scan put it there.
    fn unlist(&mut self, item: ItemRef) {
        let known = self.item(item);
        if known.is_listed() {
            let numa = self.numa_of(item);
            self.domain_of(item.mm()).unstable.unlist(numa, known.link);
            self.change_item(item, |tracked| tracked.set_listed(false));
        }
    }

    fn change_item(&mut self, item: ItemRef, change: impl FnOnce(&mut RmapItem)) {
        let mm = self.mms.get_mut(item.mm());
        if let Some(tracked) = mm.and_then(|mm| mm.items.get_mut(item.page())) {
            change(tracked);
        }
    }

    /// A page that smart scan passes over has a digest from before: it waits in the tree for a twin all the same. Whether
    /// it still has those bytes is seen when it is merged.
    fn meet_in_passing(&mut self, item: ItemRef) {
        let known = self.item(item);
        if known.state != State::Known {
            return;
        }
        let fingerprint = self.domain_of(item.mm()).unstable.fingerprint(known.link);
        if let Some(twin) = self.search_or_insert(item) {
            self.meet(item, twin, fingerprint);
        }
    }

    fn meet(&mut self, item: ItemRef, twin: ItemRef, fingerprint: Fingerprint) {
        let answers = self.mms.get(twin.mm()).is_some_and(Mm::answers);
        if self.are_in_one_huge_page(item, twin) {
            self.split(item);
        } else if answers && !self.have_one_frame(item, twin) {
            if self.extras.dry_run {
                return self.would_merge(item.mm());
            }
            self.found(item, twin, fingerprint);
        }
    }

    pub(super) fn search_rules(&self) -> SearchRules {
        SearchRules {
            now: self.now,
            max_page_sharing: self.knobs.max_page_sharing,
            prune_after: Duration::from_millis(self.knobs.prune_millisecs.into()),
        }
    }

    /// The NUMA node whose trees an item goes into.
    pub(super) fn numa_of(&self, item: ItemRef) -> NumaNode {
        let mm = self.mms.get(item.mm());
        mm.map_or(NumaNode(0), |mm| mm.items.node(item.page()))
    }

    /// Whether two equal pages are one frame that a fork has left in both processes: there is nothing to merge. Nobody can
    /// say so for sure without privilege, but equal pages at one address in relatives, both not their process's alone,
    /// hardly are anything else.
    fn have_one_frame(&self, item: ItemRef, twin: ItemRef) -> bool {
        let family = |item: ItemRef| self.mms.get(item.mm()).map(|mm| mm.family);
        item.page() == twin.page()
            && item.mm() != twin.mm()
            && family(item) == family(twin)
            && self.item(item).shares_frame()
            && self.item(twin).shares_frame()
    }

    /// Low bits of the number of the scan: tells whether an item was put into the tree in this one.
    pub(super) fn sequence(&self) -> u32 {
        u32::try_from(self.tally.full_scans & u64::from(u32::MAX)).expect("masked to 32 bits")
    }

    /// Marks an item that was just put into the unstable tree.
    pub(super) fn now_unstable(&mut self, item: ItemRef) {
        self.change_item(item, |tracked| tracked.state = State::Unstable);
        self.tally.unshared += 1;
    }

    /// Attaches an item in no tree to a stable node.
    pub(super) fn attach(&mut self, item: ItemRef, node: NodeId) {
        let living = self.lives(item);
        let stable = &mut self.domain_of(item.mm()).stable;
        let position = stable.attach(node, item, living);
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
                let earlier = self.sequence().wrapping_sub(1);
                self.tally.unshared -= 1;
                // Its digest stays listed, as if by an earlier scan: the next visit need not look for its place.
                self.change_item(item, |tracked| {
                    tracked.state = State::Known;
                    tracked.position = earlier;
                });
            }
            State::Stable => self.detach_stable(item, NodeId(known.link), known.position),
        }
    }

    fn detach_stable(&mut self, item: ItemRef, node: NodeId, position: u32) {
        self.discount(item, node);
        let living = self.lives(item);
        let domain = self.domain_of(item.mm());
        let moved = domain.stable.detach(node, position, living);
        let stable = domain.stable.node(node);
        let (fingerprint, empty) = (stable.fingerprint, stable.items().is_empty());
        let entry = domain.unstable.remember(fingerprint, item);
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

    fn lives(&self, item: ItemRef) -> bool {
        self.mms.get(item.mm()).is_some_and(|mm| !mm.exiting)
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
        let entry = self
            .domain_of(item.mm())
            .unstable
            .remember(Fingerprint::of(&digest), item);
        self.set_state(item, State::Known, entry);
    }

    /// Forgets the digest of an item in no tree.
    pub(super) fn forget_digest(&mut self, item: ItemRef) {
        let known = self.item(item);
        if known.state == State::Known {
            self.unlist(item);
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
        self.forget_items(id, PageRun::EVERYTHING);
    }
}
