//! The agent: does to the app's memory what the engine orders, and trusts nobody while it does.
//!
//! It runs as a task of its own in the app's address space, also while the app stands still with any lock taken, so after
//! [`Agent::new`] it uses no heap, takes no lock but the one of [`Space`], logs nothing and does not panic. It checks every order
//! against the region table, every arena against its seals, and every byte before it maps anything. Each step under the lock is
//! bounded: 64 pages at most are held at one time.

pub mod arena;
pub(crate) mod calm;
mod count;
mod donate;
mod headroom;
pub mod held;
pub mod kept;
mod merge;
pub(crate) mod pins;
mod remap;
pub mod report;
mod split;
mod turn;
mod visit;
mod zero;

pub use remap::REST;

use crate::space::restore::{RestoreError, Restorer};
use crate::space::{PATIENCE, Space};
use crate::sys::maps::Maps;
use crate::sys::memory::{OwnPages, SharedPages};
use crate::sys::pagemap::Pagemap;
use crate::sys::read::{Memory, Reading, read_pages};
use crate::sys::uffd::Userfaults;
use headroom::Headroom;
use held::Quarantine;
use ksm_engine::digest::Salt;
use ksm_engine::order::{DONATION_PAGES, MAP_PAGES, MapRun, OrderRef, Outcome, ReportRef};
use ksm_engine::page::{ArenaId, PageBytes, PageRun, Slot};
use report::ReportBuffer;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use turn::Turn;
use twox_hash::XxHash3_64;

/// Pages of one step under the lock.
pub const STEP_PAGES: usize = 64;
/// How long an unmerge waits for an app that is in the way: what stays merged is taken for a lack of memory. The engine
/// waits longer for an answer.
const UNMERGE_PATIENCE: Duration = Duration::from_secs(3);

/// Why there can be no agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {errno}")]
pub struct AgentError {
    /// What failed.
    pub call: &'static str,
    /// How.
    pub errno: Errno,
}

impl AgentError {
    fn of(call: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { call, errno }
    }
}

/// Files in which the kernel shows an address space. A process that has changed its user may not open its own any more,
/// but may go on using those it has.
#[derive(Debug)]
pub struct View {
    pagemap: Pagemap,
    maps: Maps,
    memory: Memory,
}

impl View {
    /// That of the caller.
    ///
    /// # Errors
    /// Of `open`.
    pub fn open() -> rustix::io::Result<Self> {
        Ok(Self {
            pagemap: Pagemap::open()?,
            maps: Maps::open()?,
            memory: Memory::open()?,
        })
    }

    /// A second pair of descriptors for the same files.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn try_clone(&self) -> rustix::io::Result<Self> {
        Ok(Self {
            pagemap: self.pagemap.try_clone()?,
            maps: self.maps.try_clone()?,
            memory: self.memory.try_clone()?,
        })
    }
}

/// The agent of one address space.
#[derive(Debug)]
pub struct Agent {
    space: &'static Space,
    userfaults: Userfaults,
    app: u32,
    salt: Salt,
    pagemap: Pagemap,
    memory: Memory,
    reading: Reading,
    donation: SharedPages,
    /// Pages to compare with slots that are in the window. Few orders need it, and until then it takes no memory.
    buffer: OwnPages,
    /// Slots for comparison, or pages that are visited; an order that needs it takes it out meanwhile.
    window: Option<OwnPages>,
    quarantine: Quarantine,
    headroom: Headroom,
    turn: Turn,
    /// When a visit last found a page broken that was not known to be.
    broken_seen: Option<Instant>,
    /// Where the last visit began, and how often they have begun anew: roughly, how many scans there were.
    last_visited: u64,
    rounds: u64,
}

impl Agent {
    /// Makes the agent of `space`, for the app with process id `app`. `donation` is the memfd of [`DONATION_PAGES`]
    /// pages that came with the daemon's welcome.
    ///
    /// # Errors
    /// When one of its mappings or descriptors cannot be had.
    pub fn new(
        space: &'static Space,
        userfaults: Userfaults,
        app: u32,
        donation: BorrowedFd<'_>,
        salt: Salt,
    ) -> Result<Self, AgentError> {
        let view = View::open().map_err(AgentError::of("open of /proc/self"))?;
        Self::with_view(space, userfaults, app, donation, salt, view)
    }

    /// The same with files that were opened earlier.
    ///
    /// # Errors
    /// See above.
    pub fn with_view(
        space: &'static Space,
        userfaults: Userfaults,
        app: u32,
        donation: BorrowedFd<'_>,
        salt: Salt,
        View {
            pagemap,
            maps,
            memory,
        }: View,
    ) -> Result<Self, AgentError> {
        let size =
            rustix::fs::fstat(donation).map_err(AgentError::of("fstat of the donation buffer"))?;
        if size.st_size < (DONATION_PAGES * 4096).try_into().unwrap_or(i64::MAX) {
            return Err(AgentError::of("donation buffer")(Errno::INVAL));
        }
        let donation = SharedPages::map(donation, 0, DONATION_PAGES, true)
            .map_err(AgentError::of("mmap of the donation buffer"))?;
        let buffer = OwnPages::map(STEP_PAGES).map_err(AgentError::of("mmap of the buffer"))?;
        let window = OwnPages::map(STEP_PAGES).map_err(AgentError::of("mmap of the window"))?;
        let pages = OwnPages::map(MAP_PAGES).map_err(AgentError::of("mmap of the quarantine"))?;
        let quarantine = Quarantine::new(pages, &userfaults.moving)
            .map_err(AgentError::of("UFFDIO_REGISTER of the quarantine"))?;
        let mut agent = Self {
            space,
            userfaults,
            app,
            salt,
            pagemap,
            memory,
            reading: Reading::Calls,
            donation,
            buffer,
            window: Some(window),
            quarantine,
            headroom: Headroom::new(maps).map_err(AgentError::of("vm.max_map_count"))?,
            turn: Turn::default(),
            broken_seen: None,
            last_visited: 0,
            rounds: 0,
        };
        // Only now, when nothing but `drop` can unmap them: what is entered here and unmapped by an early return may be
        // the app's memory by the time that a dead agent is cleaned up after.
        for run in agent.mappings().into_iter().flatten() {
            // As the agent, also if an app thread makes it: whoever dies in here must be known for what he is.
            space
                .step(PATIENCE)
                .ok_or(AgentError::of("lock of the space")(Errno::BUSY))?
                .add_agent_mapping(run)
                .map_err(|_| AgentError::of("own memory")(Errno::NOMEM))?;
        }
        agent.warm_up();
        Ok(agent)
    }

    /// Has it read in another way than by system calls.
    #[must_use]
    pub fn reading(mut self, reading: Reading) -> Self {
        self.reading = reading;
        self
    }

    /// Its memory that others must know of.
    fn mappings(&self) -> [Option<PageRun>; 4] {
        [
            Some(self.donation.run()),
            Some(self.buffer.run()),
            self.window.as_ref().map(OwnPages::run),
            Some(self.quarantine.run()),
        ]
    }

    /// Calls once what looks something up at its first call (CPU features, the vDSO, symbols of a library that is
    /// bound lazily): later the app may stand still in the middle of such a look-up.
    fn warm_up(&mut self) {
        let run = self.buffer.run();
        let second = PageRun {
            start: run.start + 1,
            len: 1,
        };
        if let Some(first) = self.buffer.pages_mut().first_mut() {
            let got = read_pages(&[second], std::slice::from_mut(first));
            debug_assert_eq!(got, 1);
            let _ = (quick_hash(first), self.salt.digest(first), is_zero(first));
            let other = self.window.as_ref().and_then(|window| window.page(0));
            let _ = std::hint::black_box(other.is_some_and(|other| other == first));
        }
        let _ = Instant::now();
    }

    /// Does what is ordered and reports on it. `arena` is the descriptor that came with an order to map or remap.
    pub fn handle<'out>(
        &mut self,
        order: &OrderRef<'_>,
        arena: Option<BorrowedFd<'_>>,
        out: &'out mut ReportBuffer,
    ) -> ReportRef<'out> {
        out.clear();
        let ready = match order {
            OrderRef::Unmerge { .. } => patiently(|| self.space.sweep().then_some(())).is_some(),
            _ => self.space.sweep(),
        };
        match *order {
            OrderRef::Visit {
                range,
                limit,
                skip,
                nodes,
                brief,
            } => {
                let how = visit::How { skip, nodes, brief };
                let end = if ready {
                    self.visit(range, limit, how, out)
                } else {
                    range.start
                };
                return out.visited(end, self.zero_pages());
            }
            OrderRef::Unmerge { range } => {
                let end = if ready {
                    self.unmerge(range)
                } else {
                    range.start
                };
                return ReportRef::Unmerged { end };
            }
            OrderRef::Count => {
                return ReportRef::Counted {
                    zero_pages: self.count_zero_pages(),
                };
            }
            OrderRef::Donate { runs } if ready => self.donate(runs, out),
            OrderRef::Zero { runs } if ready => self.zero(runs, out),
            OrderRef::Split { runs } if ready => self.split(runs, out),
            OrderRef::Map { arena: id, runs } if ready => match self.enter(id, arena) {
                Ok(own) => self.map(own, arena, runs, out),
                Err(outcome) => refuse(runs, outcome, out),
            },
            OrderRef::Remap { arena: id, runs } if ready => match self.enter(id, arena) {
                Ok(own) => self.remap(own, arena, runs, out),
                Err(outcome) => refuse(runs, outcome, out),
            },
            OrderRef::Donate { runs } | OrderRef::Zero { runs } | OrderRef::Split { runs } => {
                for run in runs {
                    out.outcome(*run, Outcome::Busy);
                }
            }
            OrderRef::Map { runs, .. } | OrderRef::Remap { runs, .. } => {
                refuse(runs, Outcome::Busy, out);
            }
        }
        out.count_outcomes(&self.space.counters);
        out.done()
    }

    /// Our number for the arena that comes with an order under the daemon's.
    fn enter(&self, name: ArenaId, arena: Option<BorrowedFd<'_>>) -> Result<ArenaId, Outcome> {
        let arena = arena.ok_or(Outcome::Failed)?;
        // What has seals is memory, and answers at once.
        rustix::fs::fcntl_get_seals(arena).map_err(|_| Outcome::Failed)?;
        let stat = rustix::fs::fstat(arena).map_err(|_| Outcome::Failed)?;
        let mut tables = self.space.step(PATIENCE).ok_or(Outcome::Busy)?;
        let entered = tables.states.arenas.enter(stat.st_ino, name);
        entered.ok_or(Outcome::NoMaps)
    }

    fn zero_pages(&self) -> u64 {
        self.space
            .step(PATIENCE)
            .map_or(0, |tables| tables.states.zeroed())
    }

    /// Makes the merged pages of the range private; returns how far it came.
    fn unmerge(&mut self, range: PageRun) -> u64 {
        let gear = Some((&self.userfaults, &self.pagemap));
        let mut restorer = Restorer::new(&self.space.journal, gear, self.app);
        let mut from = range.start;
        while from < range.end() {
            let Some(mut tables) = patiently(|| self.space.step(PATIENCE)) else {
                return from;
            };
            let rest = PageRun::between(from, range.end());
            let (end, full) = match restorer.step(&mut tables, rest) {
                Ok(end) => (end, false),
                Err(RestoreError { end }) => (end, true),
            };
            tables.forget_visits(PageRun::between(from, end));
            if full {
                return end;
            }
            from = end;
        }
        from
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut tables = loop {
            if let Some(tables) = self.space.step(PATIENCE) {
                break tables;
            }
        };
        for run in self.mappings().into_iter().flatten() {
            tables.remove_agent_mapping(run);
        }
    }
}

fn refuse(runs: &[MapRun], outcome: Outcome, out: &mut ReportBuffer) {
    for run in runs {
        out.outcome(run.pages(), outcome);
    }
}

/// Tries what waits for the app, with [`UNMERGE_PATIENCE`].
fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        let done = attempt();
        if done.is_some() || start.elapsed() > UNMERGE_PATIENCE {
            return done;
        }
    }
}

/// Pieces of a run that fit into one step.
fn steps(run: PageRun) -> impl Iterator<Item = PageRun> {
    let step = STEP_PAGES as u64;
    (0..run.len.div_ceil(step)).map(move |i| {
        let start = run.start + i * step;
        PageRun::between(start, run.end().min(start + step))
    })
}

/// Pieces of a run to map, with their slots.
fn map_steps(run: MapRun) -> impl Iterator<Item = MapRun> {
    steps(run.pages()).map(move |pages| MapRun {
        start: pages.start,
        len: u32::try_from(pages.len).unwrap_or(0),
        slot: run
            .slot
            .saturating_add(u32::try_from(pages.start - run.start).unwrap_or(u32::MAX)),
    })
}

/// The slot `offset` pages behind another one.
fn slot_after(slot: Slot, offset: usize) -> Slot {
    Slot {
        arena: slot.arena,
        index: slot
            .index
            .saturating_add(u32::try_from(offset).unwrap_or(u32::MAX)),
    }
}

/// Runs of set bits, as (first, count).
fn bit_runs(mut mask: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let first = mask.trailing_zeros();
        let count = (mask >> first).trailing_ones();
        let run = bits(first as usize, count as usize);
        mask &= !run;
        Some((first as usize, count as usize))
    })
}

/// `count` bits from bit `first` on.
fn bits(first: usize, count: usize) -> u64 {
    let ones = if count >= 64 {
        u64::MAX
    } else {
        (1 << count) - 1
    };
    if first >= 64 { 0 } else { ones << first }
}

/// The fast hash that tells a calm page from a changed one; never 0.
fn quick_hash(page: &PageBytes) -> u32 {
    let [a, b, c, d, ..] = XxHash3_64::oneshot(page).to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) | 1
}

fn is_zero(page: &PageBytes) -> bool {
    let (blocks, _) = page.as_chunks::<64>();
    blocks.iter().all(|block| {
        let (words, _) = block.as_chunks::<8>();
        let any = words
            .iter()
            .fold(0, |any, word| any | u64::from_ne_bytes(*word));
        any == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits_cover_the_mask() {
        for mask in [0, 1, u64::MAX, 0x8000_0000_0000_0001, 0x00FF_0F00_1234_0000] {
            let covered = bit_runs(mask).fold(0, |all, (first, count)| {
                assert_eq!(all & bits(first, count), 0);
                all | bits(first, count)
            });
            assert_eq!(covered, mask);
        }
        assert_eq!(bit_runs(0b1_1101).collect::<Vec<_>>(), [(0, 1), (2, 3)]);
    }

    #[test]
    fn steps_cover_a_run_with_the_slots_it_had() {
        let run = MapRun {
            start: 1000,
            len: 150,
            slot: 7,
        };
        let steps: Vec<_> = map_steps(run).collect();
        assert_eq!(
            steps.iter().map(|step| step.len).collect::<Vec<_>>(),
            [64, 64, 22]
        );
        assert!(
            steps
                .iter()
                .all(|step| step.start - 1000 == u64::from(step.slot) - 7)
        );
    }
}
