//! Mapping pages anew that sit in a file mapping already: merged ones to another arena, broken ones to a slot again.
//!
//! The kernel does not move pages of such mappings, so writers are held off instead. For an unbroken page that is
//! all: it cannot have been pinned for writing. A broken page may be, and the kernel does not tell; it is merged again only where the
//! process shows no sign of pins, asked while no new ones can be made.

use super::arena::Arena;
use super::merge::{Outcomes, mark, note_merged, registered_parts};
use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bit_runs, bits, pins, slot_after};
use crate::space::restore::WritersHeld;
use crate::space::states::Flags;
use crate::space::{PATIENCE, Tables};
use crate::sys::pagemap::PageIs;
use crate::sys::read::read_pages;
use crate::sys::remap::{AppPages, Replacement, replace};
use ksm_engine::order::{MapRun, Outcome};
use ksm_engine::page::{ArenaId, Slot};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Which pages are mapped anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those that show their slot.
    Unbroken,
    /// Private copies.
    Broken,
}

impl Kind {
    fn is(self, is: PageIs) -> bool {
        let present = is.contains(PageIs::PRESENT) && !is.contains(PageIs::ZERO);
        present && is.contains(PageIs::FILE) == (self == Self::Unbroken)
    }
}

impl Agent {
    pub(super) fn remap(
        &mut self,
        id: ArenaId,
        fd: Option<BorrowedFd<'_>>,
        runs: &[MapRun],
        out: &mut ReportBuffer,
    ) {
        self.with_arena(fd, runs, out, |agent, arena, step, outcomes| {
            agent.remap_step(id, arena, step, outcomes)
        });
    }

    /// False if the app is in the way.
    fn remap_step(
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
        let Some(mut tables) = self.space.step(PATIENCE) else {
            *outcomes = [Outcome::Busy; STEP_PAGES];
            return false;
        };
        for (first, pages) in registered_parts(&tables, step.pages(), bits(0, count)) {
            let len = usize::try_from(pages.run().len).unwrap_or(0);
            let Some(part) = outcomes.get_mut(first..first + len) else {
                continue;
            };
            let flags = tables.states.get(pages.run().start).flags;
            if flags.contains(Flags::MERGED) {
                let slot = slot_after(slot, first);
                self.remap_part(&mut tables, pages, arena, slot, Kind::Unbroken, part);
            } else {
                part.fill(Outcome::Changed);
            }
        }
        true
    }

    pub(super) fn remap_part(
        &mut self,
        tables: &mut Tables,
        pages: AppPages,
        arena: &Arena<'_>,
        slot: Slot,
        kind: Kind,
        outcomes: &mut [Outcome],
    ) {
        if !self.headroom.allows_run() {
            return outcomes.fill(Outcome::NoMaps);
        }
        if kind == Kind::Broken && pins::are_possible(self.app) {
            // Not worth holding anybody off.
            return outcomes.fill(Outcome::Unsure);
        }
        let run = pages.run();
        let held = WritersHeld::take(&self.userfaults.protecting, &self.space.journal, pages);
        let _held = match held {
            Ok(held) => held,
            Err(Errno::BUSY) => return outcomes.fill(Outcome::Claimed),
            Err(Errno::NOMEM) => return outcomes.fill(Outcome::NoMaps),
            Err(_) => return outcomes.fill(Outcome::Unsuitable),
        };
        let Ok(found) = self.pagemap.scan(run, run.len) else {
            return outcomes.fill(Outcome::Failed);
        };
        if kind == Kind::Broken && pins::are_possible(self.app) {
            return outcomes.fill(Outcome::Unsure);
        }
        outcomes.fill(Outcome::Changed);
        let read = match self.buffer.pages_mut().get_mut(..outcomes.len()) {
            Some(buffer) => read_pages(&[run], buffer),
            None => 0,
        };
        mark(outcomes, !bits(0, read), Outcome::Gone);
        let mut equal = 0;
        for (i, bytes) in self.buffer.pages().iter().take(read).enumerate() {
            let right = kind.is(found.of(run.start + i as u64));
            // The engine may order too early what a visit has not seen rest.
            let state = tables.states.get(run.start + i as u64).flags;
            let right = right && (kind == Kind::Unbroken || state.contains(Flags::RESTED));
            if right && arena.equals(slot_after(slot, i).index, bytes) {
                equal |= bits(i, 1);
            }
        }
        for (first, count) in bit_runs(equal) {
            let part = pages.part(first as u64, count as u64);
            let slot = slot_after(slot, first);
            let by = Replacement::Slots {
                arena: arena.fd(),
                first: slot.index,
            };
            let outcome = match replace(part, by) {
                Ok(()) => Outcome::Done,
                Err(Errno::NOMEM) => Outcome::NoMaps,
                Err(_) => Outcome::Failed,
            };
            mark(outcomes, bits(first, count), outcome);
            if outcome == Outcome::Done {
                self.headroom.add_run();
                note_merged(tables, part.run(), slot);
            }
        }
    }
}
