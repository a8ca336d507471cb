//! The order to count the zero pages that are in place.
//!
//! The kernel keeps no list of them, and an app that writes to one tells nobody: each page that got one is looked up in the
//! page tables.

use super::{Agent, STEP_PAGES};
use crate::space::PATIENCE;
use crate::space::states::Flags;
use crate::sys::pagemap::PageIs;
use ksm_engine::page::{PAGE_LIMIT, PageRun};

/// Pages of address space that one step looks at.
const WINDOW: u64 = 4096;

impl Agent {
    /// Counts, and forgets those that are no more. If the app is in the way it is the number last known.
    pub(super) fn count_zero_pages(&mut self) -> u64 {
        let mut from = 0;
        while self.zero_pages() > 0 {
            let Some(mut tables) = self.space.step(PATIENCE) else {
                break;
            };
            let everything = PageRun::between(from, PAGE_LIMIT);
            let is_zeroed = |flags: Flags| flags.contains(Flags::ZEROED);
            let Some(first) = tables.states.first_with(everything, is_zeroed) else {
                break;
            };
            let window = PageRun::between(first, PAGE_LIMIT.min(first + WINDOW));
            let Ok(found) = self.pagemap.scan(window, STEP_PAGES as u64) else {
                break;
            };
            let end = found.end().clamp(first + 1, window.end());
            let mut rest = PageRun::between(first, end);
            while let Some(page) = tables.states.first_with(rest, is_zeroed) {
                if !found.of(page).contains(PageIs::ZERO) {
                    tables.states.forget(page);
                }
                rest = PageRun::between(page + 1, end);
            }
            from = end;
        }
        self.zero_pages()
    }
}
