//! The order to map: each run is taken from the app, compared with its slots, and mapped to them.
//!
//! A page that the kernel refuses to move may only be shared with a forked child, or have been so once. Populating it for writing
//! makes it this process's own without changing a byte; if it is still refused after that, somebody has pinned it.

use super::arena::{Arena, end_of_stretch};
use super::held::{Gear, Held, Intent};
use super::remap::Kind;
use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bit_runs, bits, map_steps, slot_after};
use crate::space::states::{Flags, IN_FILE};
use crate::space::{PATIENCE, Tables};
use crate::sys::remap::{AppPages, populate_write};
use ksm_engine::order::{MapRun, Outcome};
use ksm_engine::page::{ArenaId, PageRun, Slot};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Fewer neighbours are entered in the page table with what lies around them.
const WORTH_TOUCHING: usize = 4;

/// Outcomes of one step. Pages that nothing is done to are not registered.
pub(super) type Outcomes = [Outcome; STEP_PAGES];

impl Agent {
    pub(super) fn map(
        &mut self,
        id: ArenaId,
        fd: Option<BorrowedFd<'_>>,
        runs: &[MapRun],
        out: &mut ReportBuffer,
    ) {
        self.let_rest(runs);
        self.space.forget_emptied_pipes(self.app);
        self.with_arena(fd, runs, out, |agent, arena, step, outcomes| {
            agent.map_step(id, arena, step, outcomes)
        });
        self.quarantine.empty();
    }

    /// Opens the arena and goes through the order step by step. After one step that found the lock taken for too long, the rest
    /// is not tried.
    pub(super) fn with_arena(
        &mut self,
        fd: Option<BorrowedFd<'_>>,
        runs: &[MapRun],
        out: &mut ReportBuffer,
        mut each: impl FnMut(&mut Self, &Arena<'_>, MapRun, &mut Outcomes) -> bool,
    ) {
        self.headroom.refresh();
        let Some(mut window) = self.window.take() else {
            return;
        };
        let end = runs
            .iter()
            .map(|run| run.slot.saturating_add(run.len))
            .max();
        let mut arena = fd.and_then(|fd| Arena::open(fd, end.unwrap_or(0), &mut window));
        let mut busy = false;
        let mut stretch_end = 0;
        let mut next_slot = 0;
        for (i, run) in runs.iter().enumerate() {
            if i == 0 || run.slot != next_slot {
                stretch_end = end_of_stretch(runs.get(i..).unwrap_or(&[]));
            }
            next_slot = run.slot.saturating_add(run.len);
            for step in map_steps(*run) {
                let slots = step.slot..step.slot.saturating_add(step.len);
                let mut outcomes = [Outcome::Unsuitable; STEP_PAGES];
                match &mut arena {
                    None => outcomes = [Outcome::Failed; STEP_PAGES],
                    Some(_) if busy => outcomes = [Outcome::Busy; STEP_PAGES],
                    Some(arena) => match arena.read(slots, stretch_end) {
                        true => busy = !each(self, arena, step, &mut outcomes),
                        false => outcomes = [Outcome::NoMemory; STEP_PAGES],
                    },
                }
                out.outcomes(step.pages(), &outcomes);
            }
        }
        self.window = Some(window);
    }

    /// False if the app is in the way.
    fn map_step(
        &mut self,
        id: ArenaId,
        arena: &Arena<'_>,
        step: MapRun,
        outcomes: &mut Outcomes,
    ) -> bool {
        let count = usize::try_from(step.len).unwrap_or(0).min(STEP_PAGES);
        let slot = Slot {
            arena: id,
            index: step.slot,
        };
        let mut todo = bits(0, count);
        for last in [false, true] {
            self.turn.begin();
            let Some(mut tables) = self.space.step(PATIENCE) else {
                mark(outcomes, todo, Outcome::Busy);
                return false;
            };
            todo = leave_out_pipes(&tables, step.pages(), todo, outcomes);
            for (first, pages) in registered_parts(&tables, step.pages(), todo) {
                if last && populate_write(pages).is_err() {
                    continue;
                }
                let len = usize::try_from(pages.run().len).unwrap_or(0);
                let Some(part) = outcomes.get_mut(first..first + len) else {
                    continue;
                };
                let slot = slot_after(slot, first);
                let flags = tables.states.get(pages.run().start).flags;
                if flags.contains(Flags::MERGED) {
                    self.remap_part(&mut tables, pages, arena, slot, Kind::Unbroken, part);
                } else if flags.contains(Flags::BROKEN) {
                    self.remap_part(&mut tables, pages, arena, slot, Kind::Broken, part);
                } else {
                    self.map_part(&mut tables, pages, arena, slot, part);
                }
            }
            let fixed = todo & with_outcome(outcomes, Outcome::Unsuitable);
            for (first, pages) in registered_parts(&tables, step.pages(), fixed) {
                let len = usize::try_from(pages.run().len).unwrap_or(0);
                if let Some(part) = outcomes.get_mut(first..first + len) {
                    let slot = slot_after(slot, first);
                    self.remap_part(&mut tables, pages, arena, slot, Kind::Fixed, part);
                }
            }
            drop(tables);
            todo &= with_outcome(outcomes, Outcome::Pinned);
            if todo == 0 {
                break;
            }
        }
        true
    }

    fn map_part(
        &mut self,
        tables: &mut Tables,
        pages: AppPages,
        arena: &Arena<'_>,
        slot: Slot,
        outcomes: &mut [Outcome],
    ) {
        if !self.headroom.allows_run(outcomes.len()) {
            outcomes.fill(Outcome::NoMaps);
            return;
        }
        let gear = Gear {
            uffd: &self.userfaults.moving,
            journal: &self.space.journal,
            counters: &self.space.counters,
        };
        let intent = Intent {
            arena: arena.fd(),
            inode: arena.inode(),
            slot,
        };
        let taken = Held::take(gear, &mut self.quarantine, pages, Some(intent), outcomes);
        let mut held = match taken {
            Ok(held) => held,
            Err(outcome) => return outcomes.fill(outcome),
        };
        let mut equal = 0;
        for i in 0..outcomes.len() {
            if let Some(bytes) = held.page(i)
                && arena.equals(slot_after(slot, i).index, bytes)
            {
                equal |= bits(i, 1);
            }
        }
        mark(outcomes, held.inside() & !equal, Outcome::Changed);
        let mut mapped = 0;
        for (first, count) in bit_runs(equal) {
            let slot = slot_after(slot, first);
            let result = if self.headroom.allows_run(count) {
                held.map(first, count, arena.fd(), slot.index)
            } else {
                Err(Errno::NOMEM)
            };
            let outcome = match result {
                Ok(()) => Outcome::Done,
                Err(Errno::NOMEM) => Outcome::NoMaps,
                Err(_) => Outcome::Failed,
            };
            mark(outcomes, bits(first, count), outcome);
            if outcome == Outcome::Done {
                self.headroom.add_run();
                let run = pages.part(first as u64, count as u64).run();
                note_merged(tables, run, slot);
                mapped |= bits(first, count);
            }
        }
        drop(held);
        for (first, count) in bit_runs(mapped).filter(|(_, count)| *count >= WORTH_TOUCHING) {
            // Before writes are tracked there, when the kernel enters each page by itself.
            self.reading
                .touch(pages.part(first as u64, count as u64).run());
        }
    }
}

/// Notes that pages show their slots now.
pub(super) fn note_merged(tables: &mut Tables, run: PageRun, slot: Slot) {
    tables.renew_treatment(run);
    for (i, page) in (run.start..run.end()).enumerate() {
        tables.states.update(page, |state| {
            state.flags = Flags::MERGED | state.flags & Flags::SEEN;
            state.slot = slot_after(slot, i);
        });
    }
}

/// The wanted pages of a step that are registered, in runs of one kind (ordinary, merged, broken), each with its place
/// in the step.
pub(super) fn registered_parts(
    tables: &Tables,
    step: PageRun,
    wanted: u64,
) -> impl Iterator<Item = (usize, AppPages)> + use<> {
    let mut parts = [None; STEP_PAGES];
    let mut count = 0;
    let kind = |page: u64| tables.states.get(page).flags & IN_FILE;
    for (first, len) in bit_runs(wanted) {
        let mut rest = PageRun {
            start: step.start + first as u64,
            len: len as u64,
        };
        while let Some(pages) = tables.registered(rest) {
            let run = pages.run();
            let end = (run.start..run.end()).find(|page| kind(*page) != kind(run.start));
            let len = end.unwrap_or(run.end()) - run.start;
            if let Some(place) = parts.get_mut(count) {
                let first = usize::try_from(run.start - step.start).unwrap_or(STEP_PAGES);
                *place = Some((first, pages.part(0, len)));
                count += 1;
            }
            rest = PageRun::between(run.start + len, rest.end());
        }
    }
    parts.into_iter().flatten()
}

/// Which of the wanted pages are not in a pipe; the others count as pinned.
pub(super) fn leave_out_pipes(
    tables: &Tables,
    step: PageRun,
    wanted: u64,
    outcomes: &mut [Outcome],
) -> u64 {
    let held = wanted & tables.in_pipes(step);
    mark(outcomes, held, Outcome::Pinned);
    wanted & !held
}

pub(super) fn mark(outcomes: &mut [Outcome], pages: u64, outcome: Outcome) {
    for (i, place) in outcomes.iter_mut().enumerate() {
        if pages & bits(i, 1) != 0 {
            *place = outcome;
        }
    }
}

pub(super) fn with_outcome(outcomes: &[Outcome], outcome: Outcome) -> u64 {
    let matching = outcomes
        .iter()
        .enumerate()
        .filter(|(_, found)| **found == outcome);
    matching.fold(0, |mask, (i, _)| mask | bits(i, 1))
}
