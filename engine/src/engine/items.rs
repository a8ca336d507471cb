//! rmap items: what the engine remembers of each page it has seen.
//!
//! There is one item per (mm, page) that a visit found, as in the kernel. Items live in chunks of 256 consecutive
//! pages, so that a sparse address space costs what is present in it, and an item is 12 bytes.

mod chunks;

use crate::page::{MmId, NumaNode, PageRun};
use chunks::Chunks;
use std::num::NonZeroU64;

/// Names an item: its mm and page. Packed, because every sharer of a merged page is listed by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ItemRef(NonZeroU64);

const PAGE_BITS: u32 = 45;

impl ItemRef {
    pub(crate) fn new(mm: MmId, page: u64) -> Self {
        debug_assert!(page >> PAGE_BITS == 0 && mm.0 >> (64 - PAGE_BITS) == 0);
        let packed = u64::from(mm.0) << PAGE_BITS | page;
        Self(NonZeroU64::new(packed).expect("mms are numbered from 1"))
    }

    pub(crate) fn mm(self) -> MmId {
        MmId(u32::try_from(self.0.get() >> PAGE_BITS).expect("19 bits are left"))
    }

    pub(crate) fn page(self) -> u64 {
        self.0.get() & ((1 << PAGE_BITS) - 1)
    }
}

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum State {
    /// No item: never seen, or gone.
    #[default]
    Absent,
    /// In no tree; its digest is not known.
    Volatile,
    /// In no tree; `link` is its digest entry, which may still be listed from an earlier scan.
    Known,
    /// In the unstable tree, or was at the end of an earlier scan; `link` is its digest entry, `position` the
    /// sequence number of the scan that inserted it.
    Unstable,
    /// Attached to the stable node `link`, whose list has it at `position`.
    Stable,
}

/// One page that a visit found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RmapItem {
    pub(crate) link: u32,
    pub(crate) position: u32,
    pub(crate) state: State,
    /// Visits as an ordinary page, up to 255 (smart scan).
    pub(crate) age: u8,
    /// Visits still to be skipped (smart scan).
    pub(crate) skips: u8,
    marks: u8,
}

/// Still mapped to the slot that its stable node had before its arena was retired.
const ON_OLD_SLOT: u8 = 1;
/// See [`RmapItem::doubt`].
const DOUBTED: u8 = 2;

/// The agent has confirmed that the page is mapped to its stable node's slot.
const MAPPED: u8 = 4;

/// A fork shared the page's frame when it was visited last.
const FRAME_SHARED: u8 = 8;

/// Its digest entry is in the index of an unstable tree: of this scan's, if `position` is its sequence number.
const LISTED: u8 = 16;

/// See [`RmapItem::set_crowded`].
const CROWDED: u8 = 32;

impl RmapItem {
    fn mark(&mut self, mark: u8, on: bool) {
        self.marks = if on {
            self.marks | mark
        } else {
            self.marks & !mark
        };
    }

    /// Says whether a fork shares the page's frame with another process.
    pub(crate) fn share_frame(&mut self, shared: bool) {
        self.mark(FRAME_SHARED, shared);
    }

    /// Whether a fork shared the page's frame with another process at the last visit.
    pub(crate) fn shares_frame(&self) -> bool {
        self.marks & FRAME_SHARED != 0
    }

    /// Says whether the page is known to be mapped to a slot. Returns whether that is news.
    pub(crate) fn set_mapped(&mut self, mapped: bool) -> bool {
        let was = self.is_mapped();
        self.mark(MAPPED, mapped);
        was != mapped
    }

    /// Whether the page of an attached item is known to be mapped to a slot, and not only ordered to be.
    pub(crate) fn is_mapped(&self) -> bool {
        self.marks & MAPPED != 0
    }

    /// Says that the page is still mapped to the slot that its stable node had before its arena was retired.
    pub(crate) fn stay_on_old_slot(&mut self) {
        self.marks |= ON_OLD_SLOT;
    }

    /// Whether the page is still mapped to the old slot of its stable node.
    pub(crate) fn is_on_old_slot(&self) -> bool {
        self.marks & ON_OLD_SLOT != 0
    }

    /// Says that the page is not mapped to an old slot any more. Returns whether it was.
    pub(crate) fn leave_old_slot(&mut self) -> bool {
        let was = self.is_on_old_slot();
        self.marks &= !ON_OLD_SLOT;
        was
    }

    /// A visit of the page was lost: its agent may have reported a digest that never arrived, and a "known" that it
    /// reports now may mean that one.
    pub(crate) fn doubt(&mut self) {
        self.marks |= DOUBTED;
    }

    /// A visit arrived. Returns whether one was lost before.
    pub(crate) fn end_doubt(&mut self) -> bool {
        let was = self.marks & DOUBTED != 0;
        self.marks &= !DOUBTED;
        was
    }

    /// Says whether the index of an unstable tree has its digest entry.
    pub(crate) fn set_listed(&mut self, listed: bool) {
        self.mark(LISTED, listed);
    }

    /// Whether the index of an unstable tree has its digest entry.
    pub(crate) fn is_listed(&self) -> bool {
        self.marks & LISTED != 0
    }

    /// Whether it is in the unstable tree of the scan with this number.
    pub(crate) fn is_in_tree(&self, sequence: u32) -> bool {
        self.is_listed() && self.position == sequence
    }

    /// Says whether there are merged pages with its content that had no room for it: they may have room at the next visit.
    pub(crate) fn set_crowded(&mut self, crowded: bool) {
        self.mark(CROWDED, crowded);
    }

    /// Merged, and where its stable node is.
    fn is_settled(&self) -> bool {
        self.state == State::Stable && self.marks & (MAPPED | ON_OLD_SLOT | DOUBTED) == MAPPED
    }

    /// Waits for a twin with a digest that is beyond doubt.
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Known | State::Unstable) && self.marks & DOUBTED == 0
    }

    /// Nothing has come or gone that it could meet since it was put into the unstable tree by an earlier scan.
    fn is_undisturbed(&self) -> bool {
        self.is_waiting() && self.marks & (LISTED | CROWDED) == LISTED
    }

    /// What smart scan says of an ordinary page now: whether this visit is to be skipped.
    pub(crate) fn would_skip(&self) -> bool {
        self.age >= 3 && self.skips > 0
    }

    /// What a visit that finds the page unchanged does. False if that is more than to count it.
    fn pass(&mut self, pace: Pace, passed: &mut Passed) -> bool {
        if self.is_settled() && !pace.stops_at_merged {
            passed.scanned += 1;
            return true;
        }
        let skip = pace.smart_scan && self.would_skip();
        if !self.is_undisturbed() || skip && pace.stops_at_skipped {
            return false;
        }
        if pace.smart_scan {
            self.grow_older();
        }
        let was_listed = self.state == State::Unstable;
        if skip {
            passed.skipped += 1;
            passed.unlisted += u64::from(was_listed);
            self.state = State::Known;
        } else {
            passed.scanned += 1;
            passed.searched = true;
            passed.listed += u64::from(!was_listed);
            self.state = State::Unstable;
            self.position = pace.sequence;
        }
        true
    }

    /// Counts a visit of smart scan.
    pub(crate) fn grow_older(&mut self) {
        let age = self.age;
        self.age = age.saturating_add(1);
        if age < 3 {
            return;
        }
        if self.skips > 0 {
            self.skips -= 1;
        } else {
            self.skips = match age {
                0..=3 => 1,
                4..=5 => 2,
                6..=8 => 4,
                _ => 8,
            };
        }
    }
}

const CHUNK: usize = 256;
const CHUNK_PAGES: u64 = CHUNK as u64;

#[derive(Debug)]
struct Chunk {
    items: [RmapItem; CHUNK],
    tracked: usize,
    /// The NUMA node of each page; without it, all are on node 0.
    nodes: Option<Box<[NumaNode; CHUNK]>>,
    /// All items are known to be merged and where their stable nodes are.
    settled: bool,
}

/// How a scan goes over items of which nothing has changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Number of the scan.
    pub(crate) sequence: u32,
    pub(crate) smart_scan: bool,
    /// Merged pages are to be looked at one by one.
    pub(crate) stops_at_merged: bool,
    /// Pages that are passed over are to be looked at one by one.
    pub(crate) stops_at_skipped: bool,
}

/// What a scan has counted in passing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) scanned: u64,
    pub(crate) skipped: u64,
    /// Items that came into the unstable tree, and those that left it.
    pub(crate) listed: u64,
    pub(crate) unlisted: u64,
    /// There were items that a visit looks for a twin of.
    pub(crate) searched: bool,
}

/// The items of one mm.
#[derive(Debug, Default)]
pub(crate) struct ItemTable {
    chunks: Chunks<Chunk>,
    tracked: u64,
}

/// Which items of a chunk are in `run`.
fn part_of(number: u64, run: PageRun) -> std::ops::Range<usize> {
    let base = number * CHUNK_PAGES;
    let within = |page: u64| {
        let offset = page.saturating_sub(base).min(CHUNK_PAGES);
        usize::try_from(offset).expect("a chunk index fits")
    };
    within(run.start)..within(run.end())
}

fn place(page: u64) -> (u64, usize) {
    let within = usize::try_from(page % CHUNK_PAGES).expect("a chunk index fits");
    (page / CHUNK_PAGES, within)
}

impl ItemTable {
    /// Number of items.
    pub(crate) fn len(&self) -> u64 {
        self.tracked
    }

    /// The item of `page`, absent if there is none.
    pub(crate) fn get(&self, page: u64) -> RmapItem {
        let (chunk, within) = place(page);
        self.chunks
            .get(chunk)
            .map_or_else(RmapItem::default, |chunk| chunk.items[within])
    }

    /// The item of `page`, if there is one.
    pub(crate) fn get_mut(&mut self, page: u64) -> Option<&mut RmapItem> {
        let (chunk, within) = place(page);
        let chunk = self.chunks.get_mut(chunk)?;
        let item = &mut chunk.items[within];
        (item.state != State::Absent).then(|| {
            chunk.settled = false;
            item
        })
    }

    /// The item of `page`, made now if there was none.
    pub(crate) fn track(&mut self, page: u64) -> &mut RmapItem {
        let (chunk, within) = place(page);
        let chunk = self.chunks.get_or_insert_with(chunk, || Chunk {
            items: [RmapItem::default(); CHUNK],
            tracked: 0,
            nodes: None,
            settled: false,
        });
        chunk.settled = false;
        let item = &mut chunk.items[within];
        if item.state == State::Absent {
            item.state = State::Volatile;
            chunk.tracked += 1;
            self.tracked += 1;
        }
        item
    }

    /// The NUMA node that `page` was on when it was looked at last.
    pub(crate) fn node(&self, page: u64) -> NumaNode {
        let (chunk, within) = place(page);
        let nodes = self.chunks.get(chunk).and_then(|c| c.nodes.as_ref());
        nodes.map_or(NumaNode(0), |nodes| nodes[within])
    }

    /// Notes the NUMA node of a page that has an item.
    pub(crate) fn set_node(&mut self, page: u64, node: NumaNode) {
        let (chunk, within) = place(page);
        if let Some(chunk) = self.chunks.get_mut(chunk)
            && (node != NumaNode(0) || chunk.nodes.is_some())
        {
            let nodes = &mut chunk.nodes;
            nodes.get_or_insert_with(|| Box::new([NumaNode(0); CHUNK]))[within] = node;
        }
    }

    /// Forgets the item of `page`; it must be in no tree.
    pub(crate) fn untrack(&mut self, page: u64) {
        let (number, within) = place(page);
        let Some(chunk) = self.chunks.get_mut(number) else {
            return;
        };
        if chunk.items[within].state != State::Absent {
            chunk.items[within] = RmapItem::default();
            chunk.tracked -= 1;
            self.tracked -= 1;
            if chunk.tracked == 0 {
                self.chunks.remove(number);
            }
        }
    }

    /// Changes all items in `run`.
    pub(crate) fn each_within(&mut self, run: PageRun, change: impl Fn(&mut RmapItem)) {
        let pages: Vec<u64> = self.within(run).map(|(page, _)| page).collect();
        for page in pages {
            if let Some(item) = self.get_mut(page) {
                change(item);
            }
        }
    }

    /// How many pages of `run` count for the limit of a visit that finds them unchanged. `None` if there are some of which
    /// that cannot be: in the making, volatile, or in doubt.
    pub(crate) fn unchanged(&self, run: PageRun, smart_scan: bool) -> Option<u64> {
        let mut counted = 0;
        for (number, chunk) in self.chunks_within(run) {
            let part = part_of(number, run);
            if chunk.settled && part == (0..CHUNK) {
                counted += chunk.tracked as u64;
                continue;
            }
            for item in &chunk.items[part] {
                let settled =
                    item.state == State::Stable && item.is_mapped() && item.marks & DOUBTED == 0;
                match item.state {
                    State::Absent => {}
                    _ if settled => counted += 1,
                    _ if !item.is_waiting() => return None,
                    _ => counted += u64::from(!(smart_scan && item.would_skip())),
                }
            }
        }
        Some(counted)
    }

    /// The pages in `run` that smart scan passes over now.
    pub(crate) fn to_skip(&self, run: PageRun) -> impl Iterator<Item = u64> {
        self.chunks_within(run)
            .filter(|(_, chunk)| !chunk.settled)
            .flat_map(|(number, chunk)| (number * CHUNK_PAGES..).zip(chunk.items.iter()))
            .filter(move |(page, item)| run.contains(*page) && item.would_skip())
            .map(|(page, _)| page)
    }

    /// Goes over unchanged items as [`super::Engine::decide`] would, up to the first page that has to be decided on by itself.
    pub(crate) fn pass(&mut self, run: PageRun, pace: Pace, passed: &mut Passed) -> Option<u64> {
        let mut first = run.start / CHUNK_PAGES;
        let last = run.end().div_ceil(CHUNK_PAGES).max(first);
        while let Some((number, chunk)) = self.chunks.first_mut(first..last) {
            first = number + 1;
            let part = part_of(number, run);
            let whole = part == (0..CHUNK);
            if whole && chunk.settled && !pace.stops_at_merged {
                passed.scanned += chunk.tracked as u64;
                continue;
            }
            let mut settled = true;
            let start = part.start;
            for (i, item) in chunk.items[part].iter_mut().enumerate() {
                if item.state == State::Absent {
                    continue;
                }
                settled &= item.is_settled();
                if !item.pass(pace, passed) {
                    return Some(number * CHUNK_PAGES + (start + i) as u64);
                }
            }
            if whole {
                chunk.settled = settled;
            }
        }
        None
    }

    fn chunks_within(&self, run: PageRun) -> impl Iterator<Item = (u64, &Chunk)> {
        let first = run.start / CHUNK_PAGES;
        let last = run.end().div_ceil(CHUNK_PAGES).max(first);
        self.chunks.range(first..last)
    }

    /// The pages in `run` that have an item, ascending, with the items.
    pub(crate) fn within(&self, run: PageRun) -> impl Iterator<Item = (u64, &RmapItem)> {
        let first = run.start / CHUNK_PAGES;
        let last = run.end().div_ceil(CHUNK_PAGES);
        self.chunks
            .range(first..last.max(first))
            .flat_map(|(number, chunk)| (number * CHUNK_PAGES..).zip(chunk.items.iter()))
            .filter(move |(page, item)| run.contains(*page) && item.state != State::Absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scans in which a page that is there from scan 1 is looked at (kernel-measured: every 9th from 14 on).
    #[test]
    fn smart_scan_looks_at_an_old_page_ever_more_seldom() {
        let mut item = RmapItem::default();
        let mut seen = Vec::new();
        for scan in 1..=45 {
            if !item.would_skip() {
                seen.push(scan);
            }
            item.grow_older();
        }
        assert_eq!(seen, [1, 2, 3, 4, 6, 9, 14, 23, 32, 41]);
    }

    #[test]
    fn items_are_found_again_in_order_and_forgotten() {
        let mut table = ItemTable::default();
        for page in [5, 255, 256, 1 << 40] {
            table.track(page);
        }
        let pages = |table: &ItemTable, run| table.within(run).map(|(p, _)| p).collect::<Vec<_>>();
        let all = PageRun {
            start: 0,
            len: 1 << 45,
        };
        assert_eq!(pages(&table, all), [5, 255, 256, 1 << 40]);
        assert_eq!(pages(&table, PageRun { start: 6, len: 250 }), [255]);
        table.untrack(255);
        table.untrack(255);
        assert_eq!(pages(&table, all), [5, 256, 1 << 40]);
        assert_eq!(table.len(), 3);
    }

    const PACE: Pace = Pace {
        sequence: 7,
        smart_scan: false,
        stops_at_merged: false,
        stops_at_skipped: false,
    };

    #[test]
    fn merged_pages_are_counted_by_chunks_until_one_of_them_is_touched() {
        let mut table = ItemTable::default();
        let run = PageRun::between(100, 900);
        for page in run.start..run.end() {
            let item = table.track(page);
            item.state = State::Stable;
            item.set_mapped(true);
        }
        let settled = |table: &ItemTable| {
            table
                .chunks_within(run)
                .filter(|(_, chunk)| chunk.settled)
                .count()
        };
        for _ in 0..2 {
            let mut passed = Passed::default();
            assert_eq!(table.unchanged(run, false), Some(800));
            assert_eq!(table.pass(run, PACE, &mut passed), None);
            assert_eq!((passed.scanned, passed.searched), (800, false));
            assert_eq!(settled(&table), 2);
        }
        table.get_mut(300).expect("tracked").set_mapped(false);
        assert_eq!(settled(&table), 1);
        assert_eq!(table.unchanged(run, false), None);
        let mut passed = Passed::default();
        assert_eq!(table.pass(run, PACE, &mut passed), Some(300));
        assert_eq!(passed.scanned, 200);
        let one_by_one = Pace {
            stops_at_merged: true,
            ..PACE
        };
        let rest = PageRun::between(512, 900);
        assert_eq!(table.pass(rest, one_by_one, &mut passed), Some(512));
    }

    #[test]
    fn waiting_pages_come_into_the_tree_again_unless_they_were_driven_out() {
        let mut table = ItemTable::default();
        let run = PageRun::between(0, 300);
        for page in run.start..run.end() {
            let item = table.track(page);
            item.state = if page < 10 {
                State::Unstable
            } else {
                State::Known
            };
            item.set_listed(page != 290);
            item.age = 9;
            item.skips = u8::from(page >= 280);
        }
        let smart = Pace {
            smart_scan: true,
            ..PACE
        };
        assert_eq!(table.unchanged(run, true), Some(280));
        let mut passed = Passed::default();
        assert_eq!(table.pass(run, smart, &mut passed), Some(290));
        let counted = (
            passed.scanned,
            passed.skipped,
            passed.listed,
            passed.unlisted,
        );
        assert_eq!(counted, (280, 10, 270, 0));
        assert!(table.get(0).is_in_tree(7) && !table.get(285).is_in_tree(7));
        assert_eq!(table.get(285).skips, 0);
        table.get_mut(5).expect("tracked").doubt();
        assert_eq!(table.unchanged(run, true), None);
    }

    #[test]
    fn references_keep_mm_and_page() {
        let item = ItemRef::new(MmId((1 << 19) - 1), (1 << 45) - 1);
        assert_eq!(
            (item.mm(), item.page()),
            (MmId((1 << 19) - 1), (1 << 45) - 1)
        );
    }
}
