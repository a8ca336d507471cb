//! Looking at pages: which are there, which are calm, which are still merged.
//!
//! The page tables say what a page is before it is touched; only ordinary pages that are not in the skip list are read, 64 at a time,
//! into a buffer of ours. Whatever the app does meanwhile, a hash and a digest are of the same bytes.

use super::calm::{CHUNK, Tracker};
use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bits, is_zero, pins, quick_hash};
use crate::space::states::{Flags, IN_FILE, PageState};
use crate::space::{PATIENCE, Tables};
use crate::sys::maps::Maps;
use crate::sys::memory::OwnPages;
use crate::sys::numa::nodes_of;
use crate::sys::pagemap::{Found, PageIs, Pagemap};
use crate::sys::read::{Memory, READ_RUNS, Reading};
use ksm_engine::digest::Salt;
use ksm_engine::order::{FRAME_SHARED, IN_HUGE_PAGE, VisitState};
use ksm_engine::page::{NumaNode, PageBytes, PageRun, Slot};
use std::time::Instant;

/// Pages of address space that one step looks at, most of them holes.
const WINDOW: u64 = 1 << 14;

/// How a visit is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct How<'a> {
    /// Pages not to read.
    pub(super) skip: &'a [PageRun],
    /// Whether to say on which NUMA node each page is.
    pub(super) nodes: bool,
    /// Whether what has not changed may be summed up.
    pub(super) brief: bool,
}

/// Where a step stopped.
struct Stop {
    page: u64,
    /// The report takes no more, or the limit is reached.
    full: bool,
}

impl Agent {
    /// Visits pages until there are `limit`; returns where it stopped.
    pub(super) fn visit(
        &mut self,
        range: PageRun,
        limit: u32,
        how: How<'_>,
        out: &mut ReportBuffer,
    ) -> u64 {
        let Some(mut window) = self.window.take() else {
            return range.start;
        };
        let end = self.visit_through(&mut window, range, limit, how, out);
        self.window = Some(window);
        end
    }

    fn visit_through(
        &mut self,
        buffer: &mut OwnPages,
        range: PageRun,
        limit: u32,
        How { skip, nodes, brief }: How<'_>,
        out: &mut ReportBuffer,
    ) -> u64 {
        self.rounds += u64::from(range.start <= self.last_visited);
        self.last_visited = range.start;
        let tracker = (!nodes).then_some(Tracker {
            pagemap: &self.pagemap,
            uffd: &self.userfaults.moving,
            skip,
            round: self.rounds,
            may_split: self.headroom.allows_run(STEP_PAGES),
        });
        let (mut look_to, mut protected_to) = (range.start, range.start);
        let mut visitor = Visitor {
            salt: self.salt,
            reading: self.reading,
            app: self.app,
            maps: self.headroom.maps(),
            skip,
            left: limit,
            pins: None,
            says_nodes: nodes,
            broken_seen: &mut self.broken_seen,
            relatives: self
                .space
                .has_relatives()
                .then_some((&self.pagemap, &self.memory)),
            shared_now: false,
            huge_now: false,
            tracks: false,
            trusts: false,
            out,
        };
        let mut at = range.start;
        while at < range.end() && visitor.left > 0 && visitor.out.has_room() {
            let Some(mut tables) = self.space.step(PATIENCE) else {
                return at;
            };
            let Some(region) = tables.registered(PageRun::between(at, range.end())) else {
                return range.end();
            };
            // Asked under the lock: an app that gives up tracking relies on it from then on.
            if let Some(tracker) = tracker.as_ref().filter(|_| self.space.tracks_writes()) {
                let rest = region.run();
                if brief && rest.start >= look_to {
                    let passed = tracker.pass(&tables, rest, visitor.left, visitor.out);
                    (at, look_to) = (passed.end, passed.look_to);
                    visitor.left -= passed.counted;
                    if at > rest.start {
                        continue;
                    }
                }
                if rest.start >= protected_to {
                    let ahead = PageRun {
                        start: rest.start,
                        len: rest.len.min(WINDOW),
                    };
                    let chunk = tracker.first_chunk(&tables.states, ahead);
                    protected_to = chunk.unwrap_or(ahead.end());
                    protected_to = protected_to.max(rest.start / CHUNK * CHUNK + CHUNK);
                    visitor.tracks = tracker.protect(&tables, region, rest.start);
                    visitor.trusts = visitor.tracks && !tracker.is_due(rest.start);
                }
            } else {
                (visitor.tracks, visitor.trusts) = (false, false);
            }
            let region = region.run();
            let mut window = PageRun {
                start: region.start,
                len: region.len.min(WINDOW),
            };
            if protected_to > window.start {
                // What is looked at has been protected before.
                window.len = window.len.min(protected_to - window.start);
            }
            let most = u64::from(visitor.left).clamp(1, STEP_PAGES as u64);
            let Ok(found) = self.pagemap.scan(window, most) else {
                at = window.end();
                continue;
            };
            let end = found.end().clamp(window.start + 1, window.end());
            let window = PageRun::between(window.start, end);
            let stop = visitor.step(&mut tables, buffer, &found, window);
            at = stop.page;
            if stop.full {
                break;
            }
        }
        at
    }
}

struct Visitor<'a> {
    salt: Salt,
    reading: Reading,
    app: u32,
    maps: &'a Maps,
    skip: &'a [PageRun],
    left: u32,
    /// Whether the process can have pins; asked once in a visit, and only if a broken page is calm.
    pins: Option<bool>,
    says_nodes: bool,
    /// When a page was found broken for the first time.
    broken_seen: &'a mut Option<Instant>,
    /// Tells whose frames a fork has left in other processes, and reads those; only where there was a fork.
    relatives: Option<(&'a Pagemap, &'a Memory)>,
    /// So it is with the page that is being looked at.
    shared_now: bool,
    /// It is part of a huge page.
    huge_now: bool,
    /// If a page is protected, it is so by us.
    tracks: bool,
    /// Pages that are known to be protected need not be read.
    trusts: bool,
    out: &'a mut ReportBuffer,
}

/// The pages of a step that are read, in ascending order.
struct ToRead {
    pages: [u64; STEP_PAGES],
    count: usize,
    unreadable: u64,
    /// Those whose frame another process has as well.
    shared: u64,
    nodes: [NumaNode; STEP_PAGES],
}

impl Visitor<'_> {
    fn step(
        &mut self,
        tables: &mut Tables,
        buffer: &mut OwnPages,
        found: &Found,
        window: PageRun,
    ) -> Stop {
        let read = self.read(tables, buffer, found);
        let mut bytes = read
            .pages
            .iter()
            .zip(buffer.pages())
            .take(read.count)
            .enumerate()
            .zip(&read.nodes)
            .map(|((i, (_, bytes)), node)| {
                let good = read.unreadable & 1 << i == 0;
                (good.then_some((bytes, *node)), read.shared & 1 << i != 0)
            });
        let mut at = window.start;
        for (run, is) in found.runs() {
            if let Some(stop) = self.absent(tables, PageRun::between(at, run.start)) {
                return stop;
            }
            self.huge_now = is.contains(PageIs::HUGE);
            for page in run.start..run.end() {
                let is_read = self.is_to_be_read(tables, page, is);
                let (read, shared) = match is_read {
                    true => bytes.next().unwrap_or((None, false)),
                    false => (None, false),
                };
                if !self.out.has_room() || self.left == 0 {
                    return Stop { page, full: true };
                }
                self.shared_now = shared;
                self.present(tables, page, is, read);
            }
            at = run.end();
        }
        match self.absent(tables, PageRun::between(at, window.end())) {
            Some(stop) => stop,
            None => Stop {
                page: window.end(),
                full: false,
            },
        }
    }

    /// Copies the ordinary pages that are not skipped.
    fn read(&self, tables: &Tables, buffer: &mut OwnPages, found: &Found) -> ToRead {
        let mut read = ToRead {
            pages: [0; STEP_PAGES],
            count: 0,
            unreadable: 0,
            shared: 0,
            nodes: [NumaNode(0); STEP_PAGES],
        };
        let wanted = found
            .runs()
            .flat_map(|(run, is)| (run.start..run.end()).map(move |page| (page, is)))
            .filter(|(page, is)| self.is_to_be_read(tables, *page, *is));
        for (place, (page, _)) in read.pages.iter_mut().zip(wanted) {
            *place = page;
            read.count += 1;
        }
        if let Some((pagemap, _)) = self.relatives {
            read.shared = shared_ones(pagemap, read.pages.get(..read.count).unwrap_or(&[]));
        }
        let mut done = 0;
        while let Some(rest) = read
            .pages
            .get(done..read.count)
            .filter(|rest| !rest.is_empty())
        {
            let shared = read.shared >> done & 1 != 0;
            let alike = match shared {
                true => (read.shared >> done).trailing_ones(),
                false => (read.shared >> done).trailing_zeros(),
            };
            let len = rest.len().min(alike as usize);
            let (runs, count) = as_runs(rest.get(..len).unwrap_or(rest));
            let runs = runs.get(..count).unwrap_or(&[]);
            let into = buffer
                .pages_mut()
                .get_mut(done..done + len)
                .unwrap_or(&mut []);
            let got = match self.relatives {
                Some((_, memory)) if shared && matches!(self.reading, Reading::Calls) => {
                    memory.read(runs, into)
                }
                _ => self.reading.read(runs, into),
            };
            done += got;
            if got < len {
                read.unreadable |= 1 << done;
                done += 1;
            }
        }
        if self.says_nodes {
            nodes_of(&read.pages, read.count, &mut read.nodes);
        }
        read
    }

    fn is_to_be_read(&self, tables: &Tables, page: u64, is: PageIs) -> bool {
        is_ordinary(is) && !self.is_skipped(page) && !self.is_unwritten(tables, page, is)
    }

    /// Whether an ordinary page has the bytes that it had when it was last read.
    fn is_unwritten(&self, tables: &Tables, page: u64, is: PageIs) -> bool {
        let as_read = Flags::KNOWN | Flags::QUIET;
        let state = || tables.states.get(page).flags;
        self.trusts && is.is_intact() && state() & (as_read | IN_FILE) == as_read
    }

    fn is_skipped(&self, page: u64) -> bool {
        let index = self.skip.partition_point(|run| run.end() <= page);
        self.skip.get(index).is_some_and(|run| run.contains(page))
    }

    fn report(&mut self, page: u64, state: VisitState, node: NumaNode) {
        let slot = Some(Slot::of_node(node));
        let shared = if self.shared_now { FRAME_SHARED } else { 0 };
        let huge = if self.huge_now { IN_HUGE_PAGE } else { 0 };
        self.out.visit_with(page, state, shared | huge, slot);
        if state != VisitState::Skipped {
            self.left -= 1;
        }
    }

    /// Pages without an entry in the page table: nothing, but for merged pages that nobody has touched.
    fn absent(&mut self, tables: &mut Tables, run: PageRun) -> Option<Stop> {
        let mut rest = run;
        while let Some(page) = tables.states.first(rest) {
            if !self.out.has_room() || self.left == 0 {
                return Some(Stop { page, full: true });
            }
            let state = tables.states.get(page);
            self.at_its_slot(tables, page, state, PageIs::empty());
            rest = PageRun::between(page + 1, run.end());
        }
        None
    }

    /// A page that is not private: if its mapping is ours it shows its slot, also if it was broken and then discarded.
    fn at_its_slot(&mut self, tables: &mut Tables, page: u64, mut state: PageState, is: PageIs) {
        if !state.flags.intersects(Flags::MERGED | Flags::BROKEN) {
            tables.states.forget(page);
            return;
        }
        if state.flags.contains(Flags::BROKEN) {
            // The hash is that of the private copy; the slot's bytes are not known to have it.
            state.flags = Flags::MERGED;
            state.hash = 0;
            tables.states.set(page, state);
        }
        self.left -= 1;
        let name = tables.states.arenas.name_of(state.slot.arena);
        match name {
            Some(arena) => {
                let index = state.slot.index;
                let slot = Some(Slot { arena, index });
                self.out.visit(page, VisitState::Merged, slot);
            }
            None => self.out.visit(page, VisitState::Foreign, None),
        }
        let quiet = name.is_some() && is.is_intact() && self.tracks;
        if state.flags.contains(Flags::QUIET) != quiet {
            state.flags.set(Flags::QUIET, quiet);
            tables.states.set(page, state);
        }
    }

    fn present(
        &mut self,
        tables: &mut Tables,
        page: u64,
        is: PageIs,
        read: Option<(&PageBytes, NumaNode)>,
    ) {
        let mut state = tables.states.get(page);
        if is.contains(PageIs::ZERO) {
            if !state.flags.contains(Flags::ZEROED) {
                tables.states.forget(page);
            }
            return;
        }
        if is.contains(PageIs::FILE) || is_marker(state.flags, is) {
            self.at_its_slot(tables, page, state, is);
            return;
        }
        state.flags.remove(Flags::ZEROED);
        if state.flags.contains(Flags::MERGED) && self.is_plain(page) {
            // The app unmapped it without telling, and this is another page. With the bytes of the old one it is calm at
            // once: ksmd goes by the address, too.
            state.flags = Flags::SEEN;
        } else if state.flags.contains(Flags::MERGED) {
            // The hash stays: a page that was written with the bytes it had is calm at once, as with ksmd.
            state
                .flags
                .remove(Flags::MERGED | Flags::KNOWN | Flags::QUIET);
            state.flags.insert(Flags::BROKEN);
        }
        if !is.contains(PageIs::PRESENT) {
            // It is not reported.
            state.flags.remove(Flags::QUIET);
            tables.states.set(page, state);
        } else if self.is_unwritten(tables, page, is) && !self.is_skipped(page) {
            self.report(page, VisitState::CalmKnown, NumaNode(0));
        } else if let Some((bytes, node)) = read {
            let alone = !self.shared_now && !self.huge_now;
            let protected = is.is_intact() && self.tracks && alone;
            let found = self.ordinary(&mut state, bytes, protected);
            let calm = matches!(found, VisitState::Calm | VisitState::CalmKnown);
            let quiet = protected && calm && !state.flags.contains(Flags::BROKEN);
            state.flags.set(Flags::QUIET, quiet);
            self.report(page, found, node);
            tables.states.set(page, state);
        } else {
            tables.states.set(page, state);
            if self.is_skipped(page) {
                self.report(page, VisitState::Skipped, NumaNode(0));
            }
        }
    }

    fn is_plain(&self, page: u64) -> bool {
        self.maps.at(page).is_ok_and(|mapping| mapping.inode == 0)
    }

    /// `protected`: it is known at the next visit whether it was written since this one.
    fn ordinary(
        &mut self,
        state: &mut PageState,
        bytes: &PageBytes,
        protected: bool,
    ) -> VisitState {
        let hash = quick_hash(bytes);
        let new = state.flags.is_empty();
        if !state.flags.contains(Flags::SEEN) || state.hash != hash {
            state.hash = hash;
            state.flags.remove(Flags::KNOWN | Flags::RESTED);
            state.flags.insert(Flags::SEEN);
            if new && protected && !is_zero(bytes) {
                // If it is not written until then, it need not be read at the next visit, when it counts as calm.
                return self.calm(state, bytes);
            }
            VisitState::Changed
        } else if state.flags.contains(Flags::BROKEN) && !self.may_merge_again(state) {
            VisitState::Unsure
        } else if is_zero(bytes) {
            VisitState::CalmZero
        } else if state.flags.contains(Flags::KNOWN) {
            VisitState::CalmKnown
        } else {
            self.calm(state, bytes)
        }
    }

    fn calm(&mut self, state: &mut PageState, bytes: &PageBytes) -> VisitState {
        state.flags.insert(Flags::KNOWN);
        self.out.digest(self.salt.digest(bytes));
        VisitState::Calm
    }

    /// A page that was merged once can be pinned without our seeing it. It is tried again where the process seems to have no
    /// pins, and only some time after it was first seen so: whether it has pins, and the bytes, is then asked again.
    fn may_merge_again(&mut self, state: &mut PageState) -> bool {
        if !state.flags.contains(Flags::RESTED) {
            state.flags.insert(Flags::RESTED);
            *self.broken_seen = Some(Instant::now());
        }
        let app = self.app;
        !*self.pins.get_or_insert_with(|| pins::are_possible(app))
    }
}

/// What the kernel leaves of a page of a file when it takes the frame from under a protected page. It looks like a page in swap,
/// but a page that was never written is nowhere but in its file.
fn is_marker(flags: Flags, is: PageIs) -> bool {
    let quiet = Flags::MERGED | Flags::QUIET;
    is.is_intact() && !is.contains(PageIs::PRESENT) && flags.contains(quiet)
}

pub(super) fn is_ordinary(is: PageIs) -> bool {
    is.contains(PageIs::PRESENT) && !is.intersects(PageIs::FILE | PageIs::ZERO)
}

/// Which of the pages are not this process's alone.
fn shared_ones(pagemap: &Pagemap, pages: &[u64]) -> u64 {
    let (runs, count) = as_runs(pages);
    let mut at = 0;
    let mut shared = 0;
    for run in runs.iter().take(count) {
        let len = usize::try_from(run.len).unwrap_or(STEP_PAGES);
        shared |= (!pagemap.exclusive(*run) & bits(0, len)) << at;
        at += len;
    }
    shared
}

fn as_runs(pages: &[u64]) -> ([PageRun; READ_RUNS], usize) {
    let mut runs = [PageRun { start: 0, len: 0 }; READ_RUNS];
    let mut count: usize = 0;
    for page in pages {
        if let Some(last) = count.checked_sub(1).and_then(|last| runs.get_mut(last))
            && last.end() == *page
        {
            last.len += 1;
        } else if let Some(next) = runs.get_mut(count) {
            *next = PageRun {
                start: *page,
                len: 1,
            };
            count += 1;
        }
    }
    (runs, count)
}
