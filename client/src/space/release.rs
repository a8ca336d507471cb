//! Pages that the app takes back: unregistered, or emptied.
//!
//! A page that was merged sits in a file mapping of ours, where `MADV_DONTNEED` brings the slot's bytes back and not
//! zeroes. So whoever empties pages must come through here, and a page stays known as being in a file for as long as it is, registered or not.

use super::restore::{RestoreError, Restorer};
use super::{Space, Tables};
use crate::sys::maps::{Mapping, Maps};
use crate::sys::pagemap::Pagemap;
use crate::sys::remap::{self, AppPages, Replacement};
use crate::sys::uffd::Userfaults;
use ksm_engine::page::PageRun;
use rustix::io::Errno;

/// Pages that are discarded under one hold of the lock.
const DISCARD_STEP: u64 = 1 << 14;

/// What becomes of merged pages when they are unregistered.
#[derive(Clone, Copy, Debug)]
pub enum Release<'a> {
    /// They become private again before the call returns; with the userfaultfds of this address space they become plain
    /// anonymous memory, without they stay private copies in our file mappings.
    Unmerge(Option<&'a Userfaults>),
    /// The caller has unmapped or replaced the mapping, or will before it does anything else.
    Forget,
}

/// Why pages could not be unregistered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnregisterError {
    /// Not a range of user memory.
    #[error("{0:?} is no range of user memory")]
    Range(PageRun),
    /// Not enough memory for private copies of all pages. They are still registered; those before `end` are private.
    #[error("no memory to unmerge {run:?} from page {end:#x} on")]
    NoMemory {
        /// What was to be unregistered.
        run: PageRun,
        /// The first page that is still merged.
        end: u64,
    },
}

impl Space {
    /// Takes pages out of the agent's hands.
    ///
    /// # Errors
    /// With `Unmerge`, if there is not enough memory; the pages are still registered then.
    pub fn unregister(&self, run: PageRun, release: Release<'_>) -> Result<(), UnregisterError> {
        if !run.is_valid() {
            return Err(UnregisterError::Range(run));
        }
        let Release::Unmerge(userfaults) = release else {
            let mut tables = self.lock();
            tables.remove_region(run);
            tables.forget_mappings(run);
            return Ok(());
        };
        let pagemap = Pagemap::open().ok();
        let gear = userfaults.zip(pagemap.as_ref());
        self.unmerge(run, gear)?;
        let mut tables = self.lock();
        tables.remove_region(run);
        // The agent may have merged pages between the last step and this lock.
        let done = Restorer::new(&self.journal, gear, process_id()).restore_all(&mut tables, run);
        tables.forget_visits(run);
        if let Some(userfaults) = userfaults.filter(|_| self.tracks_writes()) {
            tables.end_tracking(userfaults, run);
        }
        drop(tables);
        done.map_err(|RestoreError { end }| {
            // What was registered is so again, as far as there is room for it.
            let _ = self.register(run);
            UnregisterError::NoMemory { run, end }
        })
    }

    /// Makes merged pages private in steps, letting the agent and other threads in between.
    pub(super) fn unmerge(
        &self,
        run: PageRun,
        gear: Option<(&Userfaults, &Pagemap)>,
    ) -> Result<(), UnregisterError> {
        let mut restorer = Restorer::new(&self.journal, gear, process_id());
        let mut from = run.start;
        while from < run.end() {
            let rest = PageRun::between(from, run.end());
            from = restorer
                .step(&mut self.lock(), rest)
                .map_err(|RestoreError { end }| UnregisterError::NoMemory { run, end })?;
        }
        Ok(())
    }

    /// What `MADV_DONTNEED` does to anonymous memory: the pages read as zero from now on, merged or not.
    ///
    /// # Errors
    /// What `madvise` says.
    pub fn discard(&self, run: PageRun) -> Result<(), Errno> {
        if !run.is_valid() {
            return Err(Errno::INVAL);
        }
        let mut result = Ok(());
        let mut from = run.start;
        while from < run.end() {
            let pages = PageRun::between(from, run.end().min(from + DISCARD_STEP));
            let mut tables = self.lock();
            match discard_step(&mut tables, pages) {
                Ok(()) => {}
                // Holes do not keep the kernel from emptying what is behind them.
                Err(Errno::NOMEM) => result = Err(Errno::NOMEM),
                Err(errno) => return Err(errno),
            }
            from = pages.end();
        }
        result
    }
}

fn discard_step(tables: &mut Tables, run: PageRun) -> Result<(), Errno> {
    leave_files(tables, run)?;
    // The app asks for it itself; the pages need not be registered.
    let done = remap::discard(AppPages::vouched_for(run));
    tables.forget_mappings(run);
    done
}

/// Replaces what of `run` is in file mappings of ours by empty anonymous memory.
pub(super) fn leave_files(tables: &mut Tables, run: PageRun) -> Result<(), Errno> {
    let mut rest = run;
    while let Some(in_file) = tables.states.first_in_file(rest) {
        let replaced = replace_by_zeroes(in_file);
        tables.renew_treatment(in_file);
        replaced?;
        tables.forget_mappings(in_file);
        rest = PageRun::between(in_file.end(), run.end());
    }
    Ok(())
}

/// Replaces file mappings of ours by empty anonymous memory, with the protection that the app gave each of them.
fn replace_by_zeroes(run: PageRun) -> Result<(), Errno> {
    let maps = Maps::open();
    let mut from = run.start;
    while from < run.end() {
        let mapping = match maps.as_ref().map(|maps| maps.at(from)) {
            Ok(Ok(mapping)) => mapping,
            _ => Mapping::unknown(from),
        };
        let end = mapping.run.end().min(run.end());
        let pages = AppPages::vouched_for(PageRun::between(from, end));
        if remap::is_locked(pages) {
            // As the kernel answers for locked memory of any kind.
            return Err(Errno::INVAL);
        }
        remap::replace(pages, Replacement::Zeroes(mapping.protection))?;
        from = end.max(from + 1);
    }
    Ok(())
}

/// The process this runs in: app threads unmerge their own memory.
pub(super) fn process_id() -> u32 {
    rustix::process::getpid().as_raw_pid().unsigned_abs()
}
