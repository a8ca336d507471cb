//! Calm memory: write-protected, so that what was not written since need not be read again, and summed up.
//!
//! Memory that is new is protected as well, before it is read for the first time: if it was not written until the next visit it is
//! calm, and was read once and not twice. What was written then is protected again when it has been calm.
//!
//! The protection is asynchronous: the kernel itself resolves the fault of a write, in system calls as well, and nobody waits.
//! A page that was read *after* it was protected and is still protected has the bytes that were read, and one that shows
//! its slot still shows it. What the kernel says is believed, never a note of ours: a mapping that was replaced, moved or
//! discarded since, by whomever, is not protected, and looked at. Two ways by which bytes change remain unseen, and
//! neither can cost the app anything, because nothing is ever merged without a comparison of all bytes of a page that is held:
//!
//! - a device or a system call writes to a page that it pinned before the page was protected: so one chunk in
//!   [`ROUNDS`] is read in each scan all the same;
//! - a fork shares pages, or the kernel moves them to another NUMA node: pages that a fork has left shared are read, what was
//!   known of the others is forgotten at each fork, and visits that ask for nodes sum up nothing.

use super::report::ReportBuffer;
use super::visit::is_ordinary;
use crate::space::Tables;
use crate::space::states::{Flags, States};
use crate::sys::pagemap::{Found, PageIs, Pagemap};
use crate::sys::remap::{AppPages, populate_read};
use crate::sys::uffd::{Uffd, Wait};
use ksm_engine::page::PageRun;
use rustix::io::Errno;

/// Pages that are protected and summed up together: those of one page of the page table.
pub(super) const CHUNK: u64 = 512;
/// Pages that are registered together, so that few mappings are split.
const BLOCK: u64 = 8192;
/// Pages that one question to the kernel is about: a nanosecond each if all are merged, ten else.
const MOST_MERGED: u64 = 1 << 16;
const MOST_MIXED: u64 = 1 << 13;
/// Scans in which each chunk is read once.
const ROUNDS: u64 = 64;

/// What it takes to follow the writes of an app.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tracker<'a> {
    pub(super) pagemap: &'a Pagemap,
    pub(super) uffd: &'a Uffd,
    pub(super) skip: &'a [PageRun],
    /// Number of the scan, roughly.
    pub(super) round: u64,
    /// Whether mappings may be split.
    pub(super) may_split: bool,
}

/// What a visit need not look at page by page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passed {
    /// Nothing has changed before this page.
    pub(super) end: u64,
    /// How many of the pages count.
    pub(super) counted: u32,
    /// From there to here it is to be looked at.
    pub(super) look_to: u64,
}

/// Chunks all of whose pages are quiet.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    run: PageRun,
    is_merged: bool,
}

impl Tracker<'_> {
    /// Sums up what has not changed from the start of `rest` on, as long as no more than `left` pages count.
    pub(super) fn pass(
        &self,
        tables: &Tables,
        rest: PageRun,
        left: u32,
        out: &mut ReportBuffer,
    ) -> Passed {
        let chunk_end = end_of_chunk(rest.start, rest);
        let nothing = Passed {
            end: rest.start,
            counted: 0,
            look_to: chunk_end,
        };
        let Some(stretch) = self.stretch(&tables.states, rest, left) else {
            return nothing;
        };
        let touched = if stretch.is_merged {
            self.pagemap.first_written(stretch.run)
        } else {
            self.first_other(&tables.states, stretch.run)
        };
        let (end, look_to) = match touched {
            Ok(None) => (stretch.run.end(), stretch.run.end()),
            Ok(Some(page)) => {
                let page = page.clamp(rest.start, stretch.run.end() - 1);
                let start = (page / CHUNK * CHUNK).max(rest.start);
                (start, end_of_chunk(page, rest))
            }
            // Not all of it is tracked: what was mapped lately is not.
            Err(_) => return nothing,
        };
        let run = PageRun::between(rest.start, end);
        let counted = self.counted(&tables.states, run);
        let (Some(counted), true) = (counted.and_then(|n| u32::try_from(n).ok()), run.len > 0)
        else {
            return nothing;
        };
        if !out.unchanged(run, counted) {
            return nothing;
        }
        Passed {
            end,
            counted,
            look_to,
        }
    }

    fn stretch(&self, states: &States, rest: PageRun, left: u32) -> Option<Stretch> {
        let mut stretch: Option<Stretch> = None;
        let mut counted = 0;
        let mut at = rest.start;
        while at < rest.end() {
            let mut chunk = PageRun::between(at, end_of_chunk(at, rest));
            chunk.len = chunk.len.min(u64::from(left) - counted);
            let Some(quiet) = states.quiet(chunk).filter(|quiet| quiet.pages() > 0) else {
                break;
            };
            let is_merged = quiet.known == 0;
            counted += self.counted(states, chunk)?;
            let most = if is_merged { MOST_MERGED } else { MOST_MIXED };
            let due = !is_merged && self.is_due(chunk.start);
            if due || chunk.end() - rest.start > most {
                break;
            }
            match &mut stretch {
                None => {
                    stretch = Some(Stretch {
                        run: chunk,
                        is_merged,
                    });
                }
                Some(stretch) if stretch.is_merged == is_merged => {
                    stretch.run.len += chunk.len;
                }
                Some(_) => break,
            }
            at = chunk.end();
        }
        stretch
    }

    /// How many pages of a quiet run count for the limit.
    fn counted(&self, states: &States, run: PageRun) -> Option<u64> {
        let mut counted = states.quiet(run)?.pages();
        let first = self.skip.partition_point(|skip| skip.end() <= run.start);
        for skip in self.skip.iter().skip(first) {
            let Some(part) = skip.intersection(run) else {
                break;
            };
            counted -= states.quiet(part)?.known;
        }
        Some(counted)
    }

    /// About the first page of a quiet run that is not as it was.
    fn first_other(&self, states: &States, run: PageRun) -> Result<Option<u64>, Errno> {
        let found = self.pagemap.scan_writes(run)?;
        let mut at = run.start;
        let none = |run: PageRun| states.quiet(run).is_some_and(|quiet| quiet.pages() == 0);
        for (part, is) in found.runs() {
            if !none(PageRun::between(at, part.start)) {
                return Ok(Some(at));
            }
            let quiet = states.quiet(part).unwrap_or_default();
            let there = is.contains(PageIs::PRESENT) || quiet.known == 0;
            if quiet.pages() != part.len || !is.is_intact() || !there {
                return Ok(Some(part.start));
            }
            at = part.end();
        }
        let complete = found.end() >= run.end() && none(PageRun::between(at, run.end()));
        Ok((!complete).then_some(at))
    }

    /// Where there is something to protect first: the chunk of a page that is there, or of which anything is known.
    pub(super) fn first_chunk(&self, states: &States, within: PageRun) -> Option<u64> {
        let known = states.first(within);
        let before = known.map_or(within, |page| PageRun::between(within.start, page));
        let found = (before.len > 0).then(|| self.pagemap.scan(before, 1).ok());
        let there = found.flatten();
        let there = there.and_then(|found| found.runs().next().map(|(run, _)| run.start));
        there.or(known).map(|page| page / CHUNK * CHUNK)
    }

    /// Protects the pages of the chunk at `page` that are calm, and those that were never looked at. To be done before they are
    /// looked at. False if what the kernel says of protection there may be about somebody else's.
    pub(super) fn protect(&self, tables: &Tables, pages: AppPages, page: u64) -> bool {
        let region = pages.run();
        let chunk = PageRun::between(page, end_of_chunk(page, region));
        let mut is_ours = false;
        let mut protect = |run: PageRun, kind: Kind| {
            is_ours = is_ours || self.register(tables, page);
            let part = pages.part(run.start - region.start, run.len);
            let is_there = || self.is_there(run) || populate_read(part).is_ok();
            if is_ours && (kind != Kind::Merged || is_there()) {
                let _ = self.uffd.protect(part);
            }
            is_ours
        };
        let mut there: Option<Found> = None;
        let mut at = chunk.start;
        while let Some((run, kind)) = calm_run(&tables.states, PageRun::between(at, chunk.end())) {
            at = run.end();
            if kind != Kind::New {
                if !protect(run, kind) {
                    return false;
                }
                continue;
            }
            // Asked for the rest of the chunk, however many holes it has; again where the answer had no room for all.
            if there.as_ref().is_none_or(|found| found.end() <= run.start) {
                there = self
                    .pagemap
                    .scan(PageRun::between(run.start, chunk.end()), CHUNK)
                    .ok();
            }
            let found = there.iter().flat_map(Found::runs);
            let mut new = found
                .filter(|(_, is)| is_ordinary(*is) && !is.contains(PageIs::HUGE))
                .filter_map(|(found, _)| found.intersection(run));
            // What is not there would get an entry in the page table, and a huge page would be split when it is written to.
            if !new.all(|run| protect(run, kind)) {
                return false;
            }
        }
        true
    }

    /// Whether all pages are in the page table.
    fn is_there(&self, run: PageRun) -> bool {
        let found = self.pagemap.scan_writes(run);
        found.is_ok_and(|found| found.has_all(run))
    }

    /// Whether the pages of the chunk at `page` are to be read whatever the kernel says.
    pub(super) fn is_due(&self, page: u64) -> bool {
        (page / CHUNK + self.round).is_multiple_of(ROUNDS)
    }

    /// Registers what is ours of the block that `page` is in. A page of somebody else's there keeps us from all of it.
    fn register(&self, tables: &Tables, page: u64) -> bool {
        let start = page / BLOCK * BLOCK;
        let mut rest = PageRun { start, len: BLOCK };
        while let Some(pages) = tables.registered(rest) {
            if pages.run().contains(page) {
                return self.may_split && self.uffd.register(pages, Wait::Written).is_ok();
            }
            rest = PageRun::between(pages.run().end(), rest.end());
        }
        false
    }
}

/// Ends the tracking of pages, so that others can register them. For pages of which it is not known whose they are.
pub(crate) fn end_tracking(uffd: &Uffd, pages: AppPages) -> bool {
    // Registering fails for pages that another userfaultfd has, which must not be unregistered.
    uffd.register(pages, Wait::Written).is_ok() && uffd.unregister(pages).is_ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Merged,
    Known,
    /// Nothing is known of it, nor whether it is there.
    New,
}

/// The first run of calm or new pages of one kind that are not known to be protected. Those that are stay out of it: to protect
/// again what was written since would be to say that it was not.
fn calm_run(states: &States, within: PageRun) -> Option<(PageRun, Kind)> {
    let kind_of = |page: u64| {
        let state = states.get(page);
        let flags = state.flags;
        if flags.intersects(Flags::BROKEN | Flags::ZEROED | Flags::QUIET) {
            None
        } else if flags.contains(Flags::MERGED) {
            // What the daemon has no name for is looked at each time.
            let name = states.arenas.name_of(state.slot.arena);
            name.map(|_| Kind::Merged)
        } else if flags.is_empty() {
            Some(Kind::New)
        } else {
            flags.contains(Flags::KNOWN).then_some(Kind::Known)
        }
    };
    let start = (within.start..within.end()).find(|page| kind_of(*page).is_some())?;
    let kind = kind_of(start)?;
    let end = (start..within.end()).find(|page| kind_of(*page) != Some(kind));
    let run = PageRun::between(start, end.unwrap_or(within.end()));
    Some((run, kind))
}

fn end_of_chunk(page: u64, within: PageRun) -> u64 {
    ((page / CHUNK + 1) * CHUNK).min(within.end())
}
