//! What one address space knows about its merging: the regions, the state of each page, and the lock around both.
//!
//! It lives in memory of its own, never on the heap, for three readers: the app's threads that register and discard, the
//! agent that scans and merges and must touch nothing of the app's, and the children of a fork, who inherit the merged pages and
//! so must inherit the knowledge of them. Its lock is held for one bounded step at a time.
//!
//! All functions here are the app's side, and may be called from any of its threads, inside a `malloc` too; what the agent
//! does is in [`crate::agent`].

pub mod arenas;
pub mod change;
pub mod figures;
pub mod journal;
pub mod notices;
pub mod pipes;
pub mod recover;
pub mod regions;
pub mod release;
pub mod restore;
mod room;
pub mod states;
mod told;
pub mod treatment;

use crate::agent::calm;
use crate::sys::guarded::{Guard, Guarded};
use crate::sys::maps::Maps;
use crate::sys::memory::{OncePlaced, pages_of, place, place_wiped_on_fork, unmap_of_dead_agent};
use crate::sys::remap::AppPages;
use crate::sys::uffd::Userfaults;
use figures::Counters;
use journal::Journal;
use ksm_engine::page::PageRun;
use notices::{Mark, Next, Notice, Notices};
use pipes::Pipes;
use regions::{Full, RunTable};
use rustix::io::Errno;
use states::{Flags, IN_FILE, PageState, States};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use told::Told;
use treatment::Treatments;
use zerocopy::FromZeros;

/// Regions that one process can have. What touches is one region.
pub const REGIONS: usize = 4096;
/// Ranges of our own memory: one for each table of page states, and some more.
const OWN_RANGES: usize = 4096 + 128;
/// Mappings of one agent.
const AGENT_MAPPINGS: usize = 32;
/// How long the agent waits for an app thread to get out of the way.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// Why pages could not be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Not a range of user memory.
    #[error("{0:?} is no range of user memory")]
    Range(PageRun),
    /// Too many separate regions.
    #[error("no room to register {0:?}: too many separate regions")]
    Full(PageRun),
    /// No memory for the page states.
    #[error("mmap of page states for {run:?}: {errno}")]
    Os {
        /// What was to be registered.
        run: PageRun,
        /// The error.
        errno: Errno,
    },
}

/// What is under the lock.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Tables {
    /// What the app registered, without our own memory.
    pub regions: RunTable<REGIONS>,
    /// Our own memory, which is never scanned or merged.
    own: RunTable<OWN_RANGES>,
    /// The part of it that goes with the agent.
    agent_mappings: RunTable<AGENT_MAPPINGS>,
    treatments: Treatments,
    pipes: Pipes,
    /// What is known of each page.
    pub states: States,
    notices: Notices,
}

impl Tables {
    /// The first registered pages of `within`.
    pub fn registered(&self, within: PageRun) -> Option<AppPages> {
        self.regions.first(within).map(AppPages::vouched_for)
    }

    /// The first part of `within` that may be registered and is not: not ours, not to be wiped in children.
    fn first_free(&self, mut within: PageRun) -> Option<PageRun> {
        while let Some(gap) = self.own.first_gap(within) {
            let mut rest = gap;
            while let Some(mergeable) = self.treatments.wiped_in_children.first_gap(rest) {
                if let Some(free) = self.regions.first_gap(mergeable) {
                    return Some(free);
                }
                rest = PageRun::between(mergeable.end(), gap.end());
            }
            within = PageRun::between(gap.end(), within.end());
        }
        None
    }

    /// Has the kernel treat what has taken the place of the pages as the app wanted them to be treated.
    pub(crate) fn renew_treatment(&self, run: PageRun) {
        self.treatments.renew(run);
    }

    /// Sees to it that something can be known of the pages.
    fn make_room(&mut self, run: PageRun) -> Result<(), RegisterError> {
        if !run.is_valid() {
            return Err(RegisterError::Range(run));
        }
        loop {
            match self.states.grow(run) {
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(own))) => self.add_own(own),
                Ok(Err(full)) => Err(full),
                Err(errno) => return Err(RegisterError::Os { run, errno }),
            }
            .map_err(|Full| RegisterError::Full(run))?;
        }
    }

    /// See [`Space::register`].
    fn register(&mut self, run: PageRun) -> Result<(), RegisterError> {
        self.make_room(run)?;
        let next_free = |tables: &Self, from| tables.first_free(PageRun::between(from, run.end()));
        let pieces = std::iter::successors(next_free(self, run.start), |piece| {
            next_free(self, piece.end())
        });
        if pieces.count() > self.regions.room() {
            return Err(RegisterError::Full(run));
        }
        let mut from = run.start;
        while let Some(piece) = next_free(self, from) {
            from = piece.end();
            self.regions
                .insert(piece)
                .map_err(|Full| RegisterError::Full(run))?;
            self.notices.push(Notice::Register(piece));
        }
        Ok(())
    }

    /// Takes pages out of the regions, and notes that for the daemon. Always succeeds: where the table has no room to
    /// split a region, all of that region goes.
    fn remove_region(&mut self, run: PageRun) {
        while let Some(piece) = self.regions.first(run) {
            let gone = if self.regions.remove(piece).is_ok() {
                piece
            } else {
                let all = self.regions.runs().iter().find(|all| all.covers(piece));
                let all = *all.unwrap_or(&piece);
                if self.regions.remove(all).is_err() {
                    return;
                }
                all
            };
            self.notices.push(Notice::Unregister(gone));
        }
    }

    fn forget_states(&mut self, run: PageRun) {
        let mut rest = run;
        while let Some(page) = self.states.first(rest) {
            self.states.forget(page);
            rest = PageRun::between(page + 1, run.end());
        }
    }

    /// The mappings of these pages are gone. Their hashes stay: what comes into their place with the same bytes is calm, as
    /// for ksmd, which goes by the address.
    fn forget_mappings(&mut self, run: PageRun) {
        let mut rest = run;
        while let Some(page) = self.states.first(rest) {
            self.states.update(page, |state| state.flags &= Flags::SEEN);
            rest = PageRun::between(page + 1, run.end());
        }
    }

    /// Forgets what visits found, but not which pages are in a file mapping of ours.
    pub(crate) fn forget_visits(&mut self, run: PageRun) {
        let mut rest = run;
        while let Some(page) = self.states.first(rest) {
            self.states.update(page, |state| {
                state.flags &= IN_FILE;
                state.hash = 0;
            });
            rest = PageRun::between(page + 1, run.end());
        }
    }

    /// Leaves pages to whoever wants to register them now with a userfaultfd of his own.
    fn end_tracking(&mut self, userfaults: &Userfaults, run: PageRun) {
        let mut rest = run;
        while rest.len > 0 {
            let mapping = Maps::open().and_then(|maps| maps.at_or_after(rest.start));
            // Before Linux 6.11 a mapping that cannot be registered, or a hole, keeps what is beside it tracked.
            let found = mapping.map_or(rest, |mapping| mapping.run);
            if let Some(part) = found.intersection(rest) {
                calm::end_tracking(&userfaults.moving, AppPages::vouched_for(part));
            }
            rest = PageRun::between(found.end(), run.end());
        }
        let mut rest = run;
        while let Some(page) = self.states.first(rest) {
            let louder = |state: &mut PageState| state.flags.remove(Flags::QUIET);
            self.states.update(page, louder);
            rest = PageRun::between(page + 1, run.end());
        }
    }

    fn add_own(&mut self, run: PageRun) -> Result<(), Full> {
        self.own.insert(run)?;
        self.remove_region(run);
        self.forget_states(run);
        Ok(())
    }

    /// Enters a mapping of the agent: ours, and to be unmapped when the agent dies.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add_agent_mapping(&mut self, run: PageRun) -> Result<(), Full> {
        self.agent_mappings.insert(run)?;
        self.add_own(run)
    }

    /// Strikes it out, before the agent unmaps it.
    pub fn remove_agent_mapping(&mut self, run: PageRun) {
        // Without room for a split the range stays ours: pages that are never merged, which harms nobody.
        let _ = self.agent_mappings.remove(run);
        let _ = self.own.remove(run);
    }

    fn unmap_agent(&mut self) {
        while let Some(run) = self.agent_mappings.runs().first().copied() {
            unmap_of_dead_agent(run);
            self.remove_agent_mapping(run);
            if self.agent_mappings.runs().first() == Some(&run) {
                return;
            }
        }
    }
}

/// The shared state of one address space.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Space {
    tables: Guarded<Tables>,
    /// What the agent holds.
    pub(crate) journal: Journal,
    /// What happened so far.
    pub(crate) counters: Counters,
    /// Zero in a child that was made by a fork we were not told of.
    told: OncePlaced<Told>,
    sweep: Sweep,
    /// There was a fork, from this process or to it: 0 or 1.
    relatives: AtomicU32,
    /// The agent may keep memory registered with its userfaultfd: 0 or 1.
    tracks_writes: AtomicU32,
    padding: AtomicU32,
}

/// What is still to be forgotten of all pages from here on: that digests were reported, or only that pages are quiet. Done by
/// the agent, step by step.
#[derive(Debug, FromZeros)]
#[repr(C)]
struct Sweep {
    due: AtomicU32,
    padding: AtomicU32,
    from: AtomicU64,
}

const SWEEP_KNOWN: u32 = 1;
const SWEEP_QUIET: u32 = 2;
/// Pages of one step of a sweep.
const SWEEP_STEP: u64 = 1 << 15;

static SPACE: OncePlaced<Space> = OncePlaced::empty();

impl Space {
    /// The one of this process.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn get_or_create() -> rustix::io::Result<&'static Self> {
        SPACE.get_or_set(Self::create)
    }

    /// The one of this process, if it has been made.
    #[must_use]
    pub fn get() -> Option<&'static Self> {
        SPACE.get()
    }

    /// Makes another one. For tests: two spaces do not know of each other's registrations.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn create() -> rustix::io::Result<&'static Self> {
        let space = place::<Self>()?;
        let told = space.told.get_or_set(place_wiped_on_fork::<Told>)?;
        told.is_told();
        let mut tables = space.tables.lock();
        for own in [pages_of(space), pages_of(told)] {
            tables.add_own(own).map_err(|Full| Errno::NOMEM)?;
        }
        drop(tables);
        Ok(space)
    }

    /// Takes the lock for an app thread.
    pub(crate) fn lock(&self) -> Guard<'_, Tables> {
        self.notice_fork();
        self.tables.lock()
    }

    /// Takes the lock for one step of the agent.
    pub fn step(&self, patience: Duration) -> Option<Guard<'_, Tables>> {
        self.tables.lock_as_agent(patience)
    }

    /// Puts pages into the agent's hands. Our own memory is left out, pages that are registered already stay so.
    ///
    /// # Errors
    /// Then none of the pages has become registered.
    pub fn register(&self, run: PageRun) -> Result<(), RegisterError> {
        self.lock().register(run)
    }

    /// Whether all pages are registered.
    #[must_use]
    pub fn is_registered(&self, run: PageRun) -> bool {
        self.lock().regions.first_gap(run).is_none()
    }

    /// The first registered pages of `within`.
    #[must_use]
    pub fn first_registered(&self, within: PageRun) -> Option<PageRun> {
        self.lock().regions.first(within)
    }

    /// Declares memory that is never to be registered, scanned or merged, whatever the app asks for.
    ///
    /// # Errors
    /// When there are too many such ranges.
    pub fn add_own_range(&self, run: PageRun) -> Result<(), Full> {
        self.lock().add_own(run)
    }

    /// Takes that back, before the memory is unmapped.
    pub fn remove_own_range(&self, run: PageRun) {
        // Without room for a split it stays: pages that are never merged, which harms nobody.
        let _ = self.lock().own.remove(run);
    }

    /// Keeps the agent from every page while it lives, for a change of mappings that the app makes itself. Short, please.
    #[must_use]
    pub fn hold_off(&self) -> HoldOff<'_> {
        HoldOff(self.lock())
    }

    /// The end of what the daemon is to be told by now. For the agent; `None` when the app is in the way.
    #[must_use]
    pub fn end_of_notices(&self) -> Option<Mark> {
        self.step(PATIENCE).map(|tables| tables.notices.mark())
    }

    /// The next thing the daemon is to be told. For the agent.
    #[must_use]
    pub fn next_notice(&self, until: Mark) -> Next {
        let Some(mut tables) = self.step(PATIENCE) else {
            return Next::InTheWay;
        };
        let Tables {
            notices, regions, ..
        } = &mut *tables;
        if notices.has_passed(until) {
            return Next::Nothing;
        }
        notices.pop(regions).map_or(Next::Nothing, Next::Notice)
    }

    /// Whether there is something to tell the daemon.
    #[must_use]
    pub fn has_notices(&self) -> bool {
        !self.lock().notices.is_empty()
    }

    /// The daemon is to be told everything again.
    pub fn resend_all(&self) {
        self.lock().notices.resend_all();
    }

    /// The agent talks over another connection than before: whoever is there knows no digest of ours, and has yet to name
    /// the arenas. For the agent; false if the app is in the way, and then to be called again.
    #[must_use]
    pub fn on_reconnect(&self) -> bool {
        let Some(mut tables) = self.step(PATIENCE) else {
            return false;
        };
        tables.notices.resend_all();
        tables.states.arenas.forget_names();
        self.start_sweep(SWEEP_KNOWN);
        true
    }

    fn start_sweep(&self, kind: u32) {
        self.sweep.from.store(0, Ordering::Relaxed);
        self.sweep.due.fetch_or(kind, Ordering::Release);
    }

    /// Finishes a sweep that is due. False if the app is in the way.
    pub fn sweep(&self) -> bool {
        if self.sweep.due.load(Ordering::Acquire) == 0 {
            return true;
        }
        loop {
            let Some(mut tables) = self.step(PATIENCE) else {
                return false;
            };
            // A fork may have made another one due meanwhile.
            let due = self.sweep.due.load(Ordering::Relaxed);
            let from = self.sweep.from.load(Ordering::Relaxed);
            let all = PageRun::between(from, ksm_engine::page::PAGE_LIMIT);
            let Some(first) = tables.states.first(all) else {
                self.sweep.due.store(0, Ordering::Release);
                return true;
            };
            let end = first + SWEEP_STEP;
            let mut rest = PageRun::between(first, end);
            while let Some(page) = tables.states.first(rest) {
                tables.states.update(page, |state| sweep_page(due, state));
                rest = PageRun::between(page + 1, end);
            }
            self.sweep.from.store(end, Ordering::Relaxed);
        }
    }

    /// Lets the agent track the writes of the app. Whoever allows it sees to it that the agent gives way where the app
    /// registers memory with a userfaultfd of its own.
    pub fn track_writes(&self) {
        self.tracks_writes.store(1, Ordering::Relaxed);
    }

    /// Ends it.
    fn track_no_writes(&self) {
        self.tracks_writes.store(0, Ordering::Relaxed);
    }

    /// Whether the agent may.
    pub fn tracks_writes(&self) -> bool {
        self.tracks_writes.load(Ordering::Relaxed) != 0
    }

    /// Whether pages of this process can have frames that another process has as well.
    pub fn has_relatives(&self) -> bool {
        self.relatives.load(Ordering::Relaxed) != 0
    }

    /// Before a fork: waits until the agent holds nothing, and keeps it so.
    pub fn lock_for_fork(&self) {
        self.relatives.store(1, Ordering::Relaxed);
        std::mem::forget(self.lock());
        // Frames that were this process's alone are so no more.
        if self.tracks_writes() {
            self.start_sweep(SWEEP_QUIET);
        }
    }

    /// After a fork, in the parent.
    pub fn unlock_parent(&self) {
        drop(self.tables.resume());
    }

    /// After a fork, in the child: it has the merged pages, but no agent and no connection.
    pub fn reset_child(&self) {
        let mut tables = self.tables.resume_in_child();
        self.journal.end();
        tables.unmap_agent();
        tables.forget_what_was_not_inherited();
        tables.pipes.forget_calls();
        tables.notices.resend_all();
        tables.states.arenas.forget_names();
        self.start_sweep(SWEEP_KNOWN);
        if let Some(told) = self.told.get() {
            told.is_told();
        }
    }

    /// A child that was made by a bare system call finds out here.
    fn notice_fork(&self) {
        if let Some(told) = self.told.get() {
            told.tell_once(|| self.reset_child());
        }
    }
}

/// While it lives the agent holds no page and takes none.
#[derive(Debug)]
pub struct HoldOff<'a>(#[expect(dead_code, reason = "held, not looked at")] Guard<'a, Tables>);

fn sweep_page(kind: u32, state: &mut PageState) {
    state.flags.remove(Flags::QUIET);
    if kind & SWEEP_KNOWN != 0 {
        state.flags.remove(Flags::KNOWN);
    }
}
