//! Parts of huge pages, treated as ksmd treats them: only on demand ([`Extras`](super::Extras)).
//!
//! ksmd splits a huge page when it first wants to merge a part of it, and two things are lost on the way. Two parts of
//! one huge page that meet keep each other from being split for merging, so ksmd splits it without: the part visited
//! last stays out of the tree for this scan. And the kernel, when it splits, gives parts that are all zero its own zero
//! page, which ksmd never sees again and counts nowhere. The agent's orders split huge pages by themselves; here it is
//! only known in time what has been split since the agent looked.

use super::Engine;
use super::items::ItemRef;
use crate::store::SlotStore;
use std::collections::BTreeMap;

/// Parts of a huge page.
const PARTS: u64 = 512;

/// Huge pages that were seen in this scan, by number of their first page, and whether they were split since.
#[derive(Debug, Default)]
pub(crate) struct HugePages(BTreeMap<u64, bool>);

impl HugePages {
    /// A visit has found the page to be part of one.
    fn see(&mut self, page: u64) {
        self.0.entry(page / PARTS).or_insert(false);
    }

    /// Another scan begins.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

impl<S: SlotStore> Engine<S> {
    fn huge_page_of(&mut self, item: ItemRef) -> Option<&mut bool> {
        let mm = self.mms.get_mut(item.mm())?;
        mm.huge_pages.0.get_mut(&(item.page() / PARTS))
    }

    /// A visit has found the page to be part of a huge page. True if it is not there any more: it was zero, and the
    /// huge page has been split since.
    pub(super) fn vanished_in_split(&mut self, item: ItemRef, is_zero: bool) -> bool {
        if let Some(mm) = self.mms.get_mut(item.mm()) {
            mm.huge_pages.see(item.page());
        }
        is_zero && self.huge_page_of(item) == Some(&mut true)
    }

    /// The page is about to be merged, which splits the huge page that it is part of.
    pub(super) fn splits(&mut self, item: ItemRef) {
        if let Some(split) = self.huge_page_of(item) {
            *split = true;
        }
    }

    /// Splits the huge page that the page is part of, merging nothing. False if it is part of none.
    pub(super) fn split(&mut self, item: ItemRef) -> bool {
        let is_whole = self.huge_page_of(item) == Some(&mut false);
        if is_whole {
            self.splits(item);
            self.plan_split(item);
        }
        is_whole
    }

    /// Whether two pages are parts of one huge page that has not been split.
    pub(super) fn are_in_one_huge_page(&mut self, item: ItemRef, other: ItemRef) -> bool {
        let number = |item: ItemRef| (item.mm(), item.page() / PARTS);
        number(item) == number(other) && self.huge_page_of(item) == Some(&mut false)
    }

    /// Forgets them all, at the start of a scan.
    pub(super) fn forget_huge_pages(&mut self) {
        self.mms.iter_mut().for_each(|mm| mm.huge_pages.forget());
    }
}
