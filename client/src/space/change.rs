//! Changes of mappings that the app makes itself, seen by somebody who stands between it and the kernel.
//!
//! While a [`Change`] lives the agent holds no page and takes none, so that a mapping can be unmapped, moved or replaced
//! and the tables follow in one step. The linked client has no need of it: its apps say beforehand what they do.

use super::release::{leave_files, process_id};
use super::restore::{RestoreError, Restorer};
use super::states::{Flags, IN_FILE};
use super::treatment::Treatment;
use super::{RegisterError, Space, Tables};
use crate::pipe_ends::PipeId;
use crate::sys::guarded::Guard;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Userfaults;
use ksm_engine::page::PageRun;
use rustix::io::Errno;

/// The agent is kept away until it is dropped. Nobody may wait for anything but the kernel while he has one.
#[derive(Debug)]
pub struct Change<'a> {
    tables: Guard<'a, Tables>,
    was_quiet: bool,
}

impl Space {
    /// Keeps the agent away.
    #[must_use]
    pub fn change(&self) -> Change<'_> {
        let tables = self.lock();
        let was_quiet = tables.notices.is_empty();
        Change { tables, was_quiet }
    }

    /// The same in the thread that forks, between the handlers of a fork: the agent is kept away already. To be forgotten
    /// and not dropped.
    #[must_use]
    pub fn change_while_forking(&self) -> Change<'_> {
        let tables = self.tables.resume();
        let was_quiet = tables.notices.is_empty();
        Change { tables, was_quiet }
    }

    /// Keeps the agent away, with all pages of `run` private; as far as userfaultfds are at hand and nothing stands
    /// against it, in plain anonymous memory.
    ///
    /// # Errors
    /// When there is not enough memory for private copies.
    pub fn change_unmerged(
        &self,
        run: PageRun,
        userfaults: Option<&Userfaults>,
    ) -> Result<Change<'_>, Errno> {
        let pagemap = Pagemap::open().ok();
        let gear = userfaults.zip(pagemap.as_ref());
        // Most of it in steps that let others in between.
        self.unmerge(run, gear).map_err(|_| Errno::NOMEM)?;
        let mut change = self.change();
        let mut restorer = Restorer::new(&self.journal, gear, process_id());
        restorer
            .restore_all(&mut change.tables, run)
            .map_err(|RestoreError { .. }| Errno::NOMEM)?;
        restorer.make_copies_plain(&mut change.tables, run);
        change.tables.forget_visits(run);
        Ok(change)
    }
}

impl Change<'_> {
    /// The first registered pages of `within`.
    #[must_use]
    pub fn first_registered(&self, within: PageRun) -> Option<PageRun> {
        self.tables.regions.first(within)
    }

    /// The first pages of `within` that are in a file mapping of ours, registered or not.
    #[must_use]
    pub fn first_in_file(&self, within: PageRun) -> Option<PageRun> {
        self.tables.states.first_in_file(within)
    }

    /// The pages have been unmapped or replaced.
    pub fn forget(&mut self, run: PageRun) {
        self.tables.remove_region(run);
        self.tables.forget_mappings(run);
        self.tables.forget_treatment(run);
        self.tables.pipes.forget(run);
    }

    /// The app has told the kernel how to treat the pages. See [`Treatment`].
    pub fn treat(&mut self, run: PageRun, treatment: Treatment, is_on: bool) {
        self.tables.treat(run, treatment, is_on);
    }

    /// Sees to it that pages can be moved there. See [`Self::moved`].
    ///
    /// # Errors
    /// As [`Space::register`].
    pub fn make_room(&mut self, run: PageRun) -> Result<(), RegisterError> {
        self.tables.make_room(run)
    }

    /// The mappings of `from` have been moved to the pages from `to` on, of which nothing is known: what has to be known
    /// of those in file mappings of ours goes along, and how the app wanted them to be treated.
    pub fn moved(&mut self, from: PageRun, to: u64) {
        let mut rest = from;
        while let Some(in_file) = self.tables.states.first_in_file(rest) {
            for page in in_file.start..in_file.end() {
                let state = self.tables.states.get(page);
                self.tables.states.set(to + (page - from.start), state);
            }
            rest = PageRun::between(in_file.end(), from.end());
        }
        self.tables.move_treatment(from, to);
        self.tables.pipes.moved(from, to);
    }

    /// Registers pages. See [`Space::register`].
    ///
    /// # Errors
    /// As there.
    pub fn register(&mut self, run: PageRun) -> Result<(), RegisterError> {
        self.tables.register(run)
    }

    /// Takes pages out of the agent's hands and leaves them as they are. What is in a file mapping of ours stays known.
    pub fn withhold(&mut self, run: PageRun) {
        self.tables.remove_region(run);
        self.tables.forget_visits(run);
    }

    /// The pages have been emptied: of those in a file mapping of ours that is known, of the others only their hashes.
    pub fn discarded(&mut self, run: PageRun) {
        let mut rest = run;
        while let Some(page) = self.tables.states.first(rest) {
            self.tables.states.update(page, |state| {
                if !state.flags.intersects(IN_FILE) {
                    state.flags &= Flags::SEEN;
                }
            });
            rest = PageRun::between(page + 1, run.end());
        }
    }

    /// Puts empty anonymous memory where file mappings of ours are, and leaves the rest as it is.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn leave_files(&mut self, run: PageRun) -> Result<(), Errno> {
        leave_files(&mut self.tables, run)
    }

    /// A call begins that puts pages into a pipe. To be followed by [`Self::end_splice`] when it has returned.
    pub fn begin_splice(&mut self) {
        self.tables.count_splice(true);
    }

    /// It puts these pages into this pipe: until that has been emptied they do not merge. False if there is no room for a
    /// note.
    pub fn note_splice(&mut self, run: PageRun, pipe: PipeId) -> bool {
        self.tables.note_splice(run, pipe)
    }

    /// Such a call has returned.
    pub fn end_splice(&mut self) {
        self.tables.count_splice(false);
    }

    /// Pages may be in a pipe, and nobody knows which: from now on none of this process merges.
    pub fn lose_splices(&mut self) {
        self.tables.lose_splices();
    }

    /// Ends the tracking of pages: the kernel does not let another userfaultfd have them, nor moves several mappings of
    /// tracked pages.
    pub fn end_tracking(&mut self, userfaults: &Userfaults, run: PageRun) {
        self.tables.end_tracking(userfaults, run);
    }

    /// Ends the tracking of all pages, for good.
    pub fn end_all_tracking(&mut self, space: &Space, userfaults: Option<&Userfaults>) {
        space.track_no_writes();
        let Some(userfaults) = userfaults else {
            return;
        };
        let mut rest = PageRun::EVERYTHING;
        while let Some(region) = self.first_registered(rest) {
            self.end_tracking(userfaults, region);
            rest = PageRun::between(region.end(), rest.end());
        }
    }

    /// Whether this change is the first one that the daemon has yet to be told of.
    #[must_use]
    pub fn is_news(&self) -> bool {
        self.was_quiet && !self.tables.notices.is_empty()
    }
}
