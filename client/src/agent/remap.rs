//! Mapping pages anew that sit in a file mapping already: merged ones to another arena, broken ones to a slot again.
//!
//! The kernel does not move pages of such mappings, so writers are held off instead. For an unbroken page that is
//! all: it cannot have been pinned for writing. A broken page may be, and the kernel does not tell; it is merged again only where the
//! process shows no sign of pins, asked while no new ones can be made. That leaves other processes, which can hold a page
//! for the length of a system call that writes to it (`process_vm_writev`). So it rests first: [`REST`] passes between the visit
//! that finds it broken and the comparison of its bytes, within the same scan.

use super::arena::Arena;
use super::merge::{Outcomes, mark, note_merged, registered_parts};
use super::report::ReportBuffer;
use super::{Agent, STEP_PAGES, bit_runs, bits, pins, slot_after};
use crate::space::restore::WritersHeld;
use crate::space::states::Flags;
use crate::space::{PATIENCE, Tables};
use crate::sys::maps::Mapping;
use crate::sys::pagemap::PageIs;
use crate::sys::read::read_pages;
use crate::sys::remap::{AppPages, Replacement, is_locked, lock_again, populate_read, replace};
use ksm_engine::order::{MapRun, Outcome};
use ksm_engine::page::{ArenaId, Slot};
use rustix::io::Errno;
use rustix::mm::ProtFlags;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Much longer than another process holds a page that it writes to, and the kernel's own pause between two looks at a page.
pub const REST: Duration = Duration::from_millis(20);

/// Which pages are mapped anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Those that show their slot.
    Unbroken,
    /// Private copies.
    Broken,
    /// Not in a file mapping of ours at all, but the kernel moves pages of writable mappings only, and none from locked
    /// memory to memory that is not.
    Fixed,
}

impl Kind {
    fn is(self, is: PageIs) -> bool {
        let present = is.contains(PageIs::PRESENT) && !is.contains(PageIs::ZERO);
        present && is.contains(PageIs::FILE) == (self == Self::Unbroken)
    }

    /// Whether pages of this kind can be pinned without the kernel's telling.
    fn may_be_pinned(self) -> bool {
        self != Self::Unbroken
    }
}

impl Agent {
    /// Lets time pass if there are pages to map that were found broken a moment ago. Nothing is held and no lock taken.
    pub(super) fn let_rest(&mut self, runs: &[MapRun]) {
        let Some(left) = self.unrested() else {
            return;
        };
        let Some(tables) = self.space.step(PATIENCE) else {
            return;
        };
        let broken = |page: u64| tables.states.get(page).flags.contains(Flags::BROKEN);
        let pages = |run: &MapRun| run.start..run.pages().end();
        let any = runs.iter().flat_map(pages).any(broken);
        drop(tables);
        if any {
            std::thread::sleep(left);
        }
    }

    /// For how long broken pages have to be left alone.
    fn unrested(&self) -> Option<Duration> {
        let left = REST.saturating_sub(self.broken_seen?.elapsed());
        (!left.is_zero()).then_some(left)
    }

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
        self.turn.begin();
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
        let mut done = 0;
        while let Some(rest) = outcomes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let rest_of_pages = pages.part(done as u64, rest.len() as u64);
            let (piece, mapping) = self.alike(rest_of_pages);
            let len = usize::try_from(piece.run().len).unwrap_or(0).max(1);
            let slot = slot_after(slot, done);
            if let Some(part) = rest.get_mut(..len) {
                self.remap_alike(tables, piece, mapping, arena, slot, kind, part);
            }
            done += len;
        }
    }

    /// The first of the pages that the app may use in the same way, and the mapping of the first one.
    fn alike(&self, pages: AppPages) -> (AppPages, Mapping) {
        let maps = self.headroom.maps();
        let run = pages.run();
        let first = maps
            .at(run.start)
            .unwrap_or_else(|_| Mapping::unknown(run.start));
        let mut end = first.run.end();
        while end < run.end()
            && let Ok(next) = maps.at(end)
            && next.protection == first.protection
            && (next.inode == 0) == (first.inode == 0)
        {
            end = next.run.end();
        }
        (pages.part(0, end.min(run.end()) - run.start), first)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what, where from, where to, and the outcome"
    )]
    fn remap_alike(
        &mut self,
        tables: &mut Tables,
        pages: AppPages,
        mapping: Mapping,
        arena: &Arena<'_>,
        slot: Slot,
        kind: Kind,
        outcomes: &mut [Outcome],
    ) {
        if !self.headroom.allows_run(outcomes.len()) {
            return outcomes.fill(Outcome::NoMaps);
        }
        let unrested = kind == Kind::Broken && self.unrested().is_some();
        if unrested || kind.may_be_pinned() && pins::are_possible(self.app) {
            // Not worth holding anybody off.
            return outcomes.fill(Outcome::Unsure);
        }
        let run = pages.run();
        let locked = is_locked(pages);
        let movable = !locked && mapping.protection.contains(ProtFlags::WRITE);
        if kind == Kind::Fixed && (movable || mapping.inode != 0) {
            // There is another reason why it could not be moved.
            return outcomes.fill(Outcome::Unsuitable);
        }
        let held = WritersHeld::take(&self.userfaults, &self.space.journal, pages);
        let _held = match held {
            Ok(held) => held,
            Err(Errno::BUSY) => return outcomes.fill(Outcome::Claimed),
            Err(Errno::NOMEM) => return outcomes.fill(Outcome::NoMaps),
            Err(_) => return outcomes.fill(Outcome::Unsuitable),
        };
        let Ok(found) = self.pagemap.scan(run, run.len) else {
            return outcomes.fill(Outcome::Failed);
        };
        if kind.may_be_pinned() && pins::are_possible(self.app) {
            return outcomes.fill(Outcome::Unsure);
        }
        outcomes.fill(Outcome::Changed);
        let read = match self.buffer.pages_mut().get_mut(..outcomes.len()) {
            Some(buffer) if self.space.has_relatives() => self.memory.read(&[run], buffer),
            Some(buffer) => read_pages(&[run], buffer),
            None => 0,
        };
        mark(outcomes, !bits(0, read), Outcome::Gone);
        let mut equal = 0;
        for (i, bytes) in self.buffer.pages().iter().take(read).enumerate() {
            let right = kind.is(found.of(run.start + i as u64));
            // The engine may order too early what a visit has not seen rest.
            let state = tables.states.get(run.start + i as u64).flags;
            let right = right && (kind != Kind::Broken || state.contains(Flags::RESTED));
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
                protection: mapping.protection,
            };
            let replaced = replace(part, by);
            if replaced.is_ok() && locked && lock_again(part).is_ok() {
                // Locked memory is memory that nobody waits for.
                let _ = populate_read(part);
            }
            let outcome = match replaced {
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
