//! What must always hold, and what must hold once everything has calmed down.
//!
//! Nothing here looks into the engine: it is judged by the orders it gives, by its counters, and by what the models
//! of the processes hold.

use super::arenas::{Arenas, Frame, Key};
use super::play::DOMAINS;
use super::process::{Page, Process};
use super::{Content, World};
use ksm_engine::page::{DomainId, NumaNode};
use std::collections::{BTreeMap, BTreeSet};

/// An honest agent is told to map a page to a slot.
pub(super) fn may_be_mapped(process: &Process, page: u64, frame: Frame, arenas: &Arenas) {
    of_own_domain(process, frame, arenas);
    let Some(seen) = process.seen.get(&page) else {
        // Taken out while the order was on its way, and perhaps put back.
        return;
    };
    assert!(
        seen.content == arenas.content(frame) && (seen.told || seen.content == Content::ZERO),
        "process {}: page {page} reported {seen:?}, and is to be mapped to {:?}",
        process.pid,
        arenas.content(frame)
    );
    let node = arenas.arena(frame).numa;
    assert!(
        node.is_none() || seen.node == node,
        "process {}: page {page} reported {seen:?}, and is to be mapped to memory of {node:?}",
        process.pid
    );
}

/// An honest agent is told to map a merged page to another slot.
pub(super) fn may_be_remapped(
    process: &Process,
    page: u64,
    old: Frame,
    new: Frame,
    arenas: &Arenas,
) {
    of_own_domain(process, new, arenas);
    assert_eq!(
        (arenas.content(old), arenas.arena(old).numa),
        (arenas.content(new), arenas.arena(new).numa),
        "process {}: page {page} is to be remapped to other bytes",
        process.pid
    );
}

fn of_own_domain(process: &Process, frame: Frame, arenas: &Arenas) {
    assert_eq!(
        arenas.arena(frame).domain,
        process.domain,
        "process {}: {frame:?} is of another domain",
        process.pid
    );
}

/// What one domain is left with.
#[derive(Debug, Default)]
struct Recount {
    /// Sharers of each slot.
    sharers: BTreeMap<Frame, u64>,
    /// Those of them that were ordered to share it.
    invited: BTreeMap<Frame, u64>,
    /// Pages (process and number) that could merge and are not merged, by node and content.
    alone: BTreeMap<(NumaNode, Content), Vec<(u32, u64)>>,
    /// Frames that forks share, which are one page each: what is equal at one address of a family is taken for one.
    frames: BTreeSet<(Option<u64>, u64, NumaNode, Content)>,
}

/// What decides which pages a slot is for.
fn place(frame: Frame, arenas: &Arenas) -> (NumaNode, Content) {
    let node = arenas.arena(frame).numa;
    (node.unwrap_or_default(), arenas.content(frame))
}

impl Recount {
    /// Contents with more than one slot, and how many slots those have.
    fn chains(&self, arenas: &Arenas) -> (u64, u64) {
        let mut slots: BTreeMap<(NumaNode, Content), u64> = BTreeMap::new();
        for frame in self.sharers.keys() {
            *slots.entry(place(*frame, arenas)).or_default() += 1;
        }
        let several = slots.values().filter(|count| **count > 1);
        several.fold((0, 0), |(heads, dups), count| (heads + 1, dups + count))
    }
}

impl World {
    /// Checks what holds after every step.
    ///
    /// # Panics
    /// When it does not.
    pub fn check(&self) {
        if let Err(problem) = self.engine.audit() {
            panic!("the engine's books are wrong: {problem}");
        }
        let arenas = self.arenas.borrow();
        for process in &self.processes {
            let pages: BTreeSet<u64> = process
                .pages
                .keys()
                .chain(process.wrote.keys())
                .copied()
                .collect();
            for page in pages {
                let wrote = process.wrote.get(&page).copied().unwrap_or(Content::ZERO);
                let shows = process.shows(page, &arenas);
                assert_eq!(
                    wrote, shows,
                    "process {} reads what it did not write at page {page}",
                    process.pid
                );
                if let Some(Page::Merged { frame }) = process.page(page) {
                    of_own_domain(process, frame, &arenas);
                    let counted = self.must_be_counted(process, page, frame);
                    assert!(
                        !counted || arenas.name(self.daemon, frame.arena()).is_some(),
                        "process {}: page {page} is merged, and {frame:?} was let go",
                        process.pid
                    );
                }
            }
        }
    }

    /// Whether the engine has to know that the page is merged.
    fn must_be_counted(&self, process: &Process, page: u64, frame: Frame) -> bool {
        process.connection.is_some()
            && !process.liar
            && !process.late
            && process.names.contains_key(&frame.arena())
            && process.mergeable.contains(&page)
            && !process.inherited.contains(&page)
    }

    /// Recounts the pages of all processes, and compares that with the counters and with what the kernel's rules
    /// promise for memory that is not written to. Only meaningful after some scans of a settled world.
    ///
    /// # Panics
    /// When anything is off.
    pub fn check_settled(&self) {
        let arenas = self.arenas.borrow();
        let mut domains: BTreeMap<DomainId, Recount> = BTreeMap::new();
        let (mut items, mut zeroed) = (0, 0);
        for process in &self.processes {
            let Some(connection) = &process.connection else {
                continue;
            };
            let recount = domains.entry(process.domain).or_default();
            let merged = self.recount(process, &arenas, recount);
            let figures = self.engine.figures(connection.mm);
            let pid = process.pid;
            assert_eq!(figures.merging_pages, merged.0, "merging pages of {pid}");
            assert_eq!(figures.rmap_items, merged.1, "rmap items of {pid}");
            assert_eq!(figures.zero_pages, process.zeroed(), "zero pages of {pid}");
            items += merged.1;
            zeroed += process.zeroed();
        }
        let slots: usize = domains.values().map(|d| d.sharers.len()).sum();
        let attached: u64 = domains.values().flat_map(|d| d.sharers.values()).sum();
        let counters = self.engine.counters();
        assert_eq!(counters.pages_shared, slots as u64, "pages_shared");
        assert_eq!(
            counters.pages_sharing,
            attached - slots as u64,
            "pages_sharing"
        );
        assert_eq!(counters.rmap_items, items, "rmap items");
        assert_eq!(counters.zero_pages, zeroed, "ksm_zero_pages");
        assert_eq!(counters.slots_used, slots as u64, "slots in use");
        let alone = |d: &Recount| d.alone.values().map(Vec::len).sum::<usize>();
        let unshared: usize = domains.values().map(alone).sum();
        assert_eq!(counters.pages_unshared, unshared as u64, "pages_unshared");
        let chains = domains.values().map(|d| d.chains(&arenas));
        let chains = chains.fold((0, 0), |sum, (heads, dups)| (sum.0 + heads, sum.1 + dups));
        let counted = (counters.stable_node_chains, counters.stable_node_dups);
        if domains.len() == DOMAINS as usize && domains.values().all(|d| alone(d) > 0) {
            assert_eq!(counted, chains, "chains and dups");
        } else {
            // Chains that have become short are dissolved by the next search in their domain, and there was none.
            assert!(
                counted >= chains,
                "{counted:?} chains and dups, not {chains:?}"
            );
        }
        for (domain, recount) in &domains {
            self.all_merged(*domain, recount, &arenas);
        }
    }

    /// Checks that memory comes back: a full arena with a quarter of its slots in use or less has been moved out of and
    /// let go. Only meaningful after many scans of a settled world; with nobody to scan none comes to do it.
    ///
    /// # Panics
    /// When there is such an arena.
    pub fn check_reclaimed(&self) {
        if self.nothing_to_scan() {
            return;
        }
        let arenas = self.arenas.borrow();
        let mut in_use: BTreeMap<Key, BTreeSet<u32>> = BTreeMap::new();
        for process in &self.processes {
            for (page, mapped) in &process.pages {
                if let Page::Merged { frame } = mapped
                    && process.connection.is_some()
                    && process.mergeable.contains(page)
                    && process.names.contains_key(&frame.arena())
                {
                    let slots = in_use.entry(frame.arena()).or_default();
                    slots.insert(frame.slot.index);
                }
            }
        }
        for arena in arenas.full(self.daemon) {
            let used = in_use.get(&arena).map_or(0, BTreeSet::len);
            assert!(
                used > self.slots_per_arena as usize / 4,
                "{arena:?} is held for {used} slots"
            );
        }
    }

    /// Counts a process's merged pages and items.
    fn recount(&self, process: &Process, arenas: &Arenas, recount: &mut Recount) -> (u64, u64) {
        let (mut merged, mut items) = (0, 0);
        for page in &process.mergeable {
            match process.page(*page) {
                None | Some(Page::ReadOnce | Page::Zeroed) => {}
                Some(Page::Merged { frame }) => {
                    let key = frame.arena();
                    let here = arenas.name(self.daemon, key).is_some();
                    let across = self.engine.knobs().merge_across_nodes;
                    let by_the_rule = arenas.arena(frame).numa.is_none() == across;
                    if process.names.contains_key(&key) && here && by_the_rule {
                        *recount.sharers.entry(frame).or_default() += 1;
                        if self.must_be_counted(process, *page, frame) {
                            *recount.invited.entry(frame).or_default() += 1;
                        }
                        merged += 1;
                        items += 1;
                    }
                }
                Some(Page::Private(content) | Page::Broken(content)) => {
                    items += 1;
                    let unsure = matches!(process.page(*page), Some(Page::Broken(_)));
                    let cannot = unsure && process.may_pin;
                    let across = self.engine.knobs().merge_across_nodes;
                    let node = if across {
                        NumaNode(0)
                    } else {
                        process.node(*page)
                    };
                    let frame = (process.family(), *page, node, content);
                    let mut is_counted =
                        || process.shares_frame(*page) && !recount.frames.insert(frame);
                    if !cannot && !is_counted() {
                        let alone = recount.alone.entry((node, content)).or_default();
                        alone.push((process.pid, *page));
                    }
                }
            }
        }
        (merged, items)
    }

    /// Of each content, at most one page may be left alone, and only if no slot has room for it.
    fn all_merged(&self, domain: DomainId, recount: &Recount, arenas: &Arenas) {
        let limit = u64::from(self.engine.knobs().max_page_sharing);
        for (frame, invited) in &recount.invited {
            assert!(
                *invited <= limit,
                "{frame:?} has {invited} sharers, and may have {limit}"
            );
        }
        for ((node, content), alone) in &recount.alone {
            let zero_page = *content == Content::ZERO && self.engine.knobs().use_zero_pages;
            assert!(
                alone.len() <= 1 && !zero_page,
                "{domain:?}: pages of {content:?} are not merged: {alone:?}"
            );
            for (frame, sharers) in &recount.sharers {
                assert!(
                    place(*frame, arenas) != (*node, *content) || *sharers >= limit,
                    "{domain:?}: {alone:?} of {content:?} is left out, and {frame:?} has {sharers} sharers"
                );
            }
        }
    }
}
