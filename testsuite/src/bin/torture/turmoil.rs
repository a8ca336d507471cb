//! What an owner does to the mapping of his pages. Where memory was limited a call may find none, and then did nothing.

use crate::board::Kind;
use crate::owner::Owner;
use crate::plot::{MOST_PAGES, PAGES, Plot, draw};
use crate::sys::input;
use std::io;
use std::ops::Range;
use std::sync::PoisonError;
use testsuite::content::{self, PAGE_SIZE};

const CHANGES: [Kind; 13] = [
    Kind::Protect,
    Kind::ProtectFromReading,
    Kind::WriteThroughProtection,
    Kind::RefusedByProtection,
    Kind::Move,
    Kind::Grow,
    Kind::Shrink,
    Kind::MapOver,
    Kind::UnmapAndMap,
    Kind::DontNeed,
    Kind::Free,
    Kind::Unmergeable,
    Kind::Lock,
];

impl Owner {
    pub(crate) fn change_mapping(&mut self, plot: usize) -> Result<(), String> {
        let run = self.random.stretch(self.plots[plot].len(), 16);
        let kind = self.random.one_of(&CHANGES);
        let start = self.plots[plot].memory.address(0);
        self.note(format!("{kind:?} {run:?} of plot {plot} at {start:#x}"));
        self.plots[plot].check_all(self.app.board)?;
        let moment = self.app.board.moment();
        let done = match kind {
            Kind::Move => {
                let moved = self.plots[plot].memory.move_away();
                self.moved(moment, moved)?
            }
            Kind::Grow => self.resize(plot, MOST_PAGES)?,
            Kind::Shrink => {
                let fewer = self.random.below(16);
                self.resize(plot, PAGES - fewer)?
            }
            Kind::MapOver => Some(self.map_over(plot, run)?),
            Kind::UnmapAndMap => self.unmap_and_map(plot, run)?,
            Kind::DontNeed => Some(self.empty(plot, run)?),
            Kind::Free => self.free(plot, run)?,
            Kind::Unmergeable => self.unmergeable(plot, run)?,
            Kind::Lock => self.lock(plot, run)?,
            _ => self.protect(plot, run, kind)?,
        };
        if done.is_some() {
            self.app.board.count(kind);
        }
        self.plots[plot].check_all(self.app.board)
    }

    /// All pages read as zero from now on.
    pub(crate) fn empty(&mut self, plot: usize, run: Range<usize>) -> Result<(), String> {
        let emptied = self.plots[plot]
            .memory
            .advise(run.clone(), libc::MADV_DONTNEED);
        emptied.map_err(|error| format!("MADV_DONTNEED: {error}"))?;
        self.plots[plot].contents[run.clone()].fill(0);
        if self.random.once_in(2) {
            // Otherwise they are left absent.
            self.plots[plot].check_run(run, self.app.board)?;
        }
        Ok(())
    }

    /// Each page is as it was or zero, until it is written.
    fn free(&mut self, plot: usize, run: Range<usize>) -> Result<Option<()>, String> {
        // Linux itself loses bytes of memory that is given away while a fork shares it: docs/kernel/lost_in_a_child.c.
        self.reap()?;
        let alone = self.app.children.write();
        let _alone = alone.unwrap_or_else(PoisonError::into_inner);
        let moment = self.app.board.moment();
        let freed = self.plots[plot].memory.advise(run.clone(), libc::MADV_FREE);
        if self.had("MADV_FREE", moment, freed)?.is_none() {
            return Ok(None);
        }
        self.pause(10);
        for page in run {
            let id = self.plots[plot].contents[page];
            let memory = &self.plots[plot].memory;
            // Emptied between two bytes it is empty when it is read again.
            let is_either = (0..2).any(|_| {
                let mut bytes = [0; PAGE_SIZE];
                memory.read(page, &mut bytes);
                [id, 0]
                    .into_iter()
                    .any(|id| content::first_wrong_byte(&bytes, id).is_none())
            });
            if !is_either {
                self.plots[plot].check(page, self.app.board)?;
            }
            let id = draw(&mut self.random);
            self.plots[plot].memory.store(page, self.content(id));
            self.plots[plot].contents[page] = id;
        }
        Ok(Some(()))
    }

    fn resize(&mut self, plot: usize, pages: usize) -> Result<Option<()>, String> {
        let moment = self.app.board.moment();
        let resized = self.plots[plot].memory.resize(pages);
        let done = self.moved(moment, resized)?;
        if done.is_some() {
            self.plots[plot].contents.resize(pages, 0);
        }
        Ok(done)
    }

    /// What became of `mremap`.
    pub(crate) fn moved(&self, moment: u64, result: io::Result<()>) -> Result<Option<()>, String> {
        match result {
            // The kernel does not resize several mappings at once, and older ones do not move them.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(None),
            result => self.had("mremap", moment, result),
        }
    }

    fn map_over(&mut self, plot: usize, run: Range<usize>) -> Result<(), String> {
        self.map_anew(plot, run.clone())?;
        self.fill_and_merge(plot, run)
    }

    /// New memory in the place of pages, empty and not mergeable yet.
    pub(crate) fn map_anew(&mut self, plot: usize, run: Range<usize>) -> Result<(), String> {
        loop {
            let moment = self.app.board.moment();
            let mapped = self.plots[plot].memory.map_over(run.clone());
            if self.had("mmap", moment, mapped)?.is_some() {
                break;
            }
            self.pause(10);
        }
        self.plots[plot].contents[run].fill(0);
        Ok(())
    }

    fn unmap_and_map(&mut self, plot: usize, run: Range<usize>) -> Result<Option<()>, String> {
        let mapped = self.plots[plot].memory.unmap_and_map(run.clone());
        if mapped.map_err(|error| format!("munmap, mmap: {error}"))? {
            self.plots[plot].contents[run.clone()].fill(0);
            return self.fill_and_merge(plot, run).map(Some);
        }
        // Somebody else got the place; what is left before it may be nothing.
        self.plots[plot].contents.truncate(run.start);
        if run.start < PAGES / 4 {
            let new = Plot::new().map_err(|error| format!("mmap: {error}"))?;
            self.plots[plot] = new;
        }
        Ok(None)
    }

    /// Makes new memory mergeable, before or after it is written to.
    fn fill_and_merge(&mut self, plot: usize, run: Range<usize>) -> Result<(), String> {
        let before = self.random.once_in(2);
        if before {
            self.advise_mergeable(plot, run.clone())?;
        }
        for page in run.clone() {
            let id = draw(&mut self.random);
            self.write(plot, page, id, Kind::Store)?;
        }
        if !before {
            self.advise_mergeable(plot, run)?;
        }
        Ok(())
    }

    pub(crate) fn advise_mergeable(
        &mut self,
        plot: usize,
        run: Range<usize>,
    ) -> Result<(), String> {
        loop {
            let moment = self.app.board.moment();
            let advised = self.plots[plot]
                .memory
                .advise(run.clone(), libc::MADV_MERGEABLE);
            if self.had("MADV_MERGEABLE", moment, advised)?.is_some() {
                return Ok(());
            }
            self.pause(10);
        }
    }

    fn unmergeable(&mut self, plot: usize, run: Range<usize>) -> Result<Option<()>, String> {
        let moment = self.app.board.moment();
        let advised = self.plots[plot]
            .memory
            .advise(run.clone(), libc::MADV_UNMERGEABLE);
        let done = self.had("MADV_UNMERGEABLE", moment, advised)?;
        self.pause(5);
        self.plots[plot].check_run(run.clone(), self.app.board)?;
        if self.random.once_in(2) {
            self.write_run(plot, run.clone(), None)?;
        }
        self.advise_mergeable(plot, run)?;
        Ok(done)
    }

    fn lock(&mut self, plot: usize, run: Range<usize>) -> Result<Option<()>, String> {
        let moment = self.app.board.moment();
        let locked = self.plots[plot].memory.lock(run.clone());
        let done = self.had("mlock", moment, locked)?;
        if done.is_some() {
            let refused = self.plots[plot]
                .memory
                .advise(run.clone(), libc::MADV_DONTNEED);
            let refused = refused.map_err(|error| error.raw_os_error());
            if refused != Err(Some(libc::EINVAL)) {
                return Err(format!("MADV_DONTNEED of locked memory: {refused:?}"));
            }
            self.pause(20);
            self.write_run(plot, run.clone(), None)?;
            self.pause(20);
            self.plots[plot].check_run(run.clone(), self.app.board)?;
        }
        // A call that failed may have locked some of it.
        let unlocked = self.plots[plot].memory.unlock(run);
        unlocked.map_err(|error| format!("munlock: {error}"))?;
        Ok(done)
    }

    fn protect(
        &mut self,
        plot: usize,
        run: Range<usize>,
        kind: Kind,
    ) -> Result<Option<()>, String> {
        let board = self.app.board;
        let protection = match kind {
            Kind::ProtectFromReading => libc::PROT_NONE,
            Kind::WriteThroughProtection if self.random.once_in(2) => libc::PROT_NONE,
            _ => libc::PROT_READ,
        };
        let moment = board.moment();
        let protected = self.plots[plot].memory.protect(run.clone(), protection);
        if self.had("mprotect", moment, protected)?.is_none() {
            return Ok(None);
        }
        self.pause(15);
        match kind {
            Kind::WriteThroughProtection => {
                for page in run.clone() {
                    let id = draw(&mut self.random);
                    self.write_through(plot, page, id)?;
                }
            }
            Kind::RefusedByProtection => {
                let page = run.start;
                let memory = &self.plots[plot].memory;
                let refused = input::pread(&self.app.plain, 1, memory, page);
                let refused = refused.map_err(|error| error.raw_os_error());
                if refused != Err(Some(libc::EFAULT)) {
                    return Err(format!("read(2) into read-only memory: {refused:?}"));
                }
            }
            _ => {}
        }
        if protection == libc::PROT_READ {
            self.plots[plot].check_run(run.clone(), board)?;
        }
        loop {
            let moment = board.moment();
            let allowed = self.plots[plot].memory.allow_all(run.clone());
            if self.had("mprotect", moment, allowed)?.is_some() {
                return Ok(Some(()));
            }
            self.pause(10);
        }
    }

    /// As a debugger writes.
    fn write_through(&mut self, plot: usize, page: usize, id: u64) -> Result<(), String> {
        let address = self.plots[plot].memory.address(page);
        loop {
            let moment = self.app.board.moment();
            let got = self.write_as_debugger(self.content(id), address);
            match self.had("/proc/self/mem", moment, got)? {
                Some(PAGE_SIZE) => break,
                Some(part) => return Err(format!("/proc/self/mem: {part} bytes")),
                None => self.pause(10),
            }
        }
        self.plots[plot].contents[page] = id;
        Ok(())
    }
}
