//! The registered address spaces and the scan cursor over them.

use super::huge::HugePages;
use super::items::ItemTable;
use crate::order::{MAX_RUNS, VISIT_PAGES};
use crate::page::{DomainId, MmId, PageRun, UserId};
use crate::wire::OUTCOMES;
use std::time::Duration;

/// How long an agent that did not answer is given no orders.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// One address space.
#[derive(Debug)]
pub(crate) struct Mm {
    pub(crate) domain: DomainId,
    pub(crate) user: UserId,
    /// The same in processes that came from one by forks.
    pub(crate) family: u64,
    /// Mergeable ranges, ascending and disjoint.
    pub(crate) regions: Vec<PageRun>,
    pub(crate) items: ItemTable,
    /// Items attached to stable nodes.
    pub(crate) merging: u64,
    /// Zero pages in place, as last reported.
    pub(crate) zero_pages: u64,
    /// Whether it has ever been reported: a forked child begins with its parent's.
    pub(crate) counted: bool,
    /// Its agent is gone; the next scan frees its items.
    pub(crate) exiting: bool,
    /// Its agent let an order's time run out; no orders until it is heard of again.
    pub(crate) silent_since: Option<Duration>,
    /// Ranges were taken out since the last scan passed.
    pub(crate) shrunk: bool,
    /// How many pages the next visit asks to look at.
    pub(crate) stride: u64,
    /// How many of them may count.
    pub(crate) reach: u32,
    /// Its agent can be brief, and take orders that count more than it has room for digests.
    pub(crate) sums_up: bool,
    /// A donation is on its way; the peer has one buffer.
    pub(crate) donating: bool,
    /// The longest run that there was no map for since the scan began; 0 if there was none.
    pub(crate) unmappable: u64,
    pub(crate) huge_pages: HugePages,
    /// How often a page was not merged, by outcome.
    pub(crate) reasons: [u64; OUTCOMES],
    /// In a dry run: pages that would have merged in the last full scan, and in this one so far.
    pub(crate) would_merge: u64,
    pub(crate) would_merge_so_far: u64,
}

impl Mm {
    pub(crate) fn new(domain: DomainId, user: UserId, family: u64) -> Self {
        Self {
            domain,
            user,
            family,
            regions: Vec::new(),
            items: ItemTable::default(),
            merging: 0,
            zero_pages: 0,
            counted: false,
            exiting: false,
            silent_since: None,
            shrunk: false,
            stride: VISIT_PAGES.into(),
            reach: VISIT_PAGES,
            sums_up: true,
            donating: false,
            unmappable: 0,
            huge_pages: HugePages::default(),
            reasons: [0; OUTCOMES],
            would_merge: 0,
            would_merge_so_far: 0,
        }
    }

    /// Whether orders can be sent.
    pub(crate) fn answers(&self) -> bool {
        !self.exiting && self.silent_since.is_none()
    }

    /// Tries an agent again that was silent for long: what it did not answer may never have reached it.
    pub(crate) fn forgive(&mut self, now: Duration) {
        if self
            .silent_since
            .is_some_and(|since| now >= since + FORGIVEN_AFTER)
        {
            self.silent_since = None;
        }
    }

    /// Makes `run` mergeable.
    pub(crate) fn add_region(&mut self, run: PageRun) {
        let (mut start, mut end) = (run.start, run.end());
        self.regions.retain(|region| {
            let apart = region.end() < start || region.start > end;
            if !apart {
                start = start.min(region.start);
                end = end.max(region.end());
            }
            apart
        });
        let at = self.regions.partition_point(|region| region.start < start);
        self.regions.insert(at, PageRun::between(start, end));
    }

    /// Takes `run` out of the mergeable ranges. Its items stay until the next scan.
    pub(crate) fn remove_region(&mut self, run: PageRun) {
        self.shrunk = true;
        let cut = |region: PageRun| {
            [
                PageRun::between(region.start, region.end().min(run.start)),
                PageRun::between(region.start.max(run.end()), region.end()),
            ]
        };
        self.regions = self
            .regions
            .iter()
            .flat_map(|region| cut(*region))
            .filter(|r| r.len > 0)
            .collect();
    }

    /// How many pages are mergeable.
    pub(crate) fn mergeable_pages(&self) -> u64 {
        self.regions.iter().map(|region| region.len).sum()
    }

    /// The regions that end behind `page`.
    fn regions_from(&self, page: u64) -> impl Iterator<Item = &PageRun> {
        let at = self.regions.partition_point(|region| region.end() <= page);
        self.regions.iter().skip(at)
    }

    /// Whether `page` is mergeable.
    pub(crate) fn is_mergeable(&self, page: u64) -> bool {
        self.covers(PageRun {
            start: page,
            len: 1,
        })
    }

    /// Whether all pages of `run` are mergeable.
    pub(crate) fn covers(&self, run: PageRun) -> bool {
        let region = self.regions_from(run.start).next();
        region.is_some_and(|region| region.intersection(run) == Some(run))
    }

    /// From the first mergeable page at or after `page`, regions that lie close together: not many, and `len` pages at most
    /// with what is between them.
    pub(crate) fn stretch_from(&self, page: u64, len: u64) -> Option<PageRun> {
        let start = self.regions_from(page).next()?.start.max(page);
        let within = PageRun { start, len };
        let near = self.regions_from(page).take(MAX_RUNS);
        let end = near.map_while(|region| Some(region.intersection(within)?.end()));
        Some(PageRun::between(start, end.last()?))
    }

    /// How many pages of `range` are mergeable.
    pub(crate) fn mergeable_within(&self, range: PageRun) -> u64 {
        self.regions_from(range.start)
            .map_while(|region| Some(region.intersection(range)?.len))
            .sum()
    }
}

/// All address spaces, each at the place of its number, so that orders to all of them always go out in the same order.
/// Numbers are used again.
#[derive(Debug, Default)]
pub(crate) struct MmTable {
    mms: Vec<Option<Mm>>,
    free: Vec<MmId>,
}

impl MmTable {
    pub(crate) fn add(&mut self, mm: Mm) -> MmId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.mms.push(None);
            MmId(u32::try_from(self.mms.len()).expect("fewer than MAX_MMS"))
        });
        if let Some(place) = self.mms.get_mut(index(id)) {
            *place = Some(mm);
        }
        id
    }

    pub(crate) fn remove(&mut self, id: MmId) {
        if self.mms.get_mut(index(id)).and_then(Option::take).is_some() {
            self.free.push(id);
        }
    }

    pub(crate) fn get(&self, id: MmId) -> Option<&Mm> {
        self.mms.get(index(id))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: MmId) -> Option<&mut Mm> {
        self.mms.get_mut(index(id))?.as_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Mm> {
        self.mms.iter_mut().flatten()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MmId, &Mm)> {
        let numbered = (1..).map(MmId).zip(&self.mms);
        numbered.filter_map(|(id, mm)| Some((id, mm.as_ref()?)))
    }
}

/// Mms are numbered from 1.
fn index(id: MmId) -> usize {
    (id.0 as usize).wrapping_sub(1)
}

/// The mms in scan order, and where the scan is: the kernel's list of mm slots and its `ksm_scan` cursor.
#[derive(Debug, Default)]
pub(crate) struct ScanList {
    slots: Vec<MmId>,
    /// Index of the current mm; `None` between two scans.
    current: Option<usize>,
    /// Next page of the current mm.
    pub(crate) page: u64,
}

impl ScanList {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn contains(&self, mm: MmId) -> bool {
        self.slots.contains(&mm)
    }

    /// The mm that the cursor is in.
    pub(crate) fn current(&self) -> Option<MmId> {
        self.slots.get(self.current?).copied()
    }

    /// Whether the cursor is between two scans.
    pub(crate) fn at_head(&self) -> bool {
        self.current.is_none()
    }

    /// Puts the cursor on the first mm.
    pub(crate) fn start(&mut self) {
        self.current = Some(0);
        self.page = 0;
    }

    /// Goes on to the next mm; past the last one the cursor has no mm, but is not at the head either.
    pub(crate) fn next_mm(&mut self) {
        self.current = self.current.map(|at| at + 1);
        self.page = 0;
    }

    /// Ends the scan.
    pub(crate) fn finish(&mut self) {
        self.current = None;
    }

    /// Registers an mm directly behind the cursor: it is the last to be reached.
    pub(crate) fn insert_behind_cursor(&mut self, mm: MmId) {
        match self.current {
            Some(at) => {
                let at = at.min(self.slots.len());
                self.slots.insert(at, mm);
                self.current = Some(at + 1);
            }
            None => self.slots.push(mm),
        }
    }

    /// Registers an mm at the end of the list.
    pub(crate) fn push(&mut self, mm: MmId) {
        self.slots.push(mm);
    }

    /// Makes an mm that ends the next to be reached, unless the cursor is in it: the kernel frees what is left of a process
    /// with the next batch.
    pub(crate) fn reach_next(&mut self, mm: MmId) {
        if self.current() == Some(mm) || !self.contains(mm) {
            return;
        }
        self.remove(mm);
        let next = self.current.map_or(0, |at| at + 1);
        self.slots.insert(next.min(self.slots.len()), mm);
    }

    /// Takes an mm out.
    pub(crate) fn remove(&mut self, mm: MmId) {
        let Some(at) = self.slots.iter().position(|slot| *slot == mm) else {
            return;
        };
        self.slots.remove(at);
        if let Some(current) = self.current
            && at < current
        {
            self.current = Some(current - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, len: u64) -> PageRun {
        PageRun { start, len }
    }

    #[test]
    fn regions_join_and_split() {
        let mut mm = Mm::new(DomainId(0), UserId(0), 1);
        mm.add_region(run(10, 10));
        mm.add_region(run(30, 10));
        mm.add_region(run(20, 10));
        assert_eq!(mm.regions, [run(10, 30)]);
        mm.remove_region(run(15, 5));
        assert_eq!(mm.regions, [run(10, 5), run(20, 20)]);
        assert!(mm.is_mergeable(14) && !mm.is_mergeable(15) && mm.is_mergeable(20));
        for (page, len, stretch, mergeable) in [
            (12, 3, run(12, 3), 3),
            (12, 8, run(12, 3), 3),
            (12, 9, run(12, 9), 4),
            (12, 100, run(12, 28), 23),
            (15, 5, run(20, 5), 5),
        ] {
            assert_eq!(mm.stretch_from(page, len), Some(stretch));
            assert_eq!(mm.mergeable_within(stretch), mergeable);
        }
        assert_eq!(mm.stretch_from(40, 100), None);
        assert!(mm.covers(run(11, 4)) && !mm.covers(run(11, 5)) && !mm.covers(run(12, 20)));
    }

    #[test]
    fn a_silent_agent_is_tried_again_after_a_while() {
        let mut mm = Mm::new(DomainId(0), UserId(0), 1);
        let silent = Duration::from_secs(5);
        mm.silent_since = Some(silent);
        mm.forgive(silent + FORGIVEN_AFTER - Duration::from_millis(1));
        assert!(!mm.answers());
        mm.forgive(silent + FORGIVEN_AFTER);
        assert!(mm.answers());
    }

    #[test]
    fn a_new_mm_is_reached_last() {
        let mut list = ScanList::default();
        list.insert_behind_cursor(MmId(1));
        list.insert_behind_cursor(MmId(2));
        list.start();
        list.next_mm();
        list.insert_behind_cursor(MmId(3));
        assert_eq!(list.current(), Some(MmId(2)));
        list.next_mm();
        assert_eq!(list.current(), None);
        assert!(!list.at_head());
        list.finish();
        assert_eq!(list.slots, [MmId(1), MmId(3), MmId(2)]);
    }
}
