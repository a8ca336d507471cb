//! Making merged pages private again.
//!
//! While a page is merged and unbroken nobody can write to its frame, so it can be given back as what it was before it
//! was merged: hold writers off, copy the bytes to a staged anonymous page, move that over. After that it merges again as any other page.
//! A page that is already a private copy, or all of them where there is no userfaultfd, only gets a private copy
//! inside our file mapping and stays known as `BROKEN`.

use super::Tables;
use super::journal::{Entry, Journal};
use super::room::has_room_for;
use super::states::{Flags, IN_FILE};
use crate::agent::calm::end_tracking;
use crate::agent::pins;
use crate::sys::maps::{Mapping, Maps};
use crate::sys::memory::{OwnPages, wait_for_remote_access};
use crate::sys::pagemap::{PageIs, Pagemap};
use crate::sys::read::read_pages;
use crate::sys::remap::{self, AppPages};
use crate::sys::uffd::{Uffd, Userfaults, Wait};
use ksm_engine::page::PageRun;
use rustix::io::Errno;

/// Pages that writers wait for at one time.
pub const STEP: u64 = 64;
/// Pages between two questions whether there is memory left.
const ROOM_STEP: u64 = 256;
/// The same where there is room for so many: asking takes as long as unmerging a hundred pages.
const PLENTY: u64 = 1 << 18;
const PLENTY_STEP: u64 = 4096;

/// There is not enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory to unmerge from page {end:#x} on")]
pub struct RestoreError {
    /// The first page that is still merged.
    pub end: u64,
}

/// Writers to these pages wait until it is dropped.
#[derive(Debug)]
pub struct WritersHeld<'a> {
    uffd: &'a Uffd,
    journal: &'a Journal,
    pages: AppPages,
}

impl<'a> WritersHeld<'a> {
    /// Holds them off.
    ///
    /// # Errors
    /// `EBUSY` if the app's own userfaultfd is there, others if the mapping cannot or is gone.
    pub fn take(
        userfaults: &'a Userfaults,
        journal: &'a Journal,
        pages: AppPages,
    ) -> Result<Self, Errno> {
        let uffd = &userfaults.protecting;
        // Present pages are protected in their page table entries, where a scan sees both.
        remap::populate_read(pages)?;
        journal.begin(Entry::Protecting { run: pages.run() });
        let mut registered = uffd.register(pages, Wait::Protected);
        if registered == Err(Errno::BUSY) && end_tracking(&userfaults.moving, pages) {
            registered = uffd.register(pages, Wait::Protected);
        }
        if let Err(errno) = registered {
            if errno == Errno::NOMEM {
                // Only then can a part be registered: the kernel checks all mappings before it splits the first.
                uffd.release(pages);
            }
            journal.end();
            return Err(errno);
        }
        let held = Self {
            uffd,
            journal,
            pages,
        };
        uffd.protect(pages)?;
        // Before this, somebody may still write to a page that he looked up before it was protected.
        wait_for_remote_access(journal)?;
        Ok(held)
    }

    /// The pages.
    pub fn pages(&self) -> AppPages {
        self.pages
    }
}

impl Drop for WritersHeld<'_> {
    fn drop(&mut self) {
        // Pages that were replaced meanwhile are not registered any more, and not meant.
        self.uffd.release(self.pages);
        self.journal.end();
    }
}

/// What becomes of pages that are private copies already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    /// They stay in our file mapping.
    Stay,
    /// They become plain memory.
    Go,
}

/// Makes pages private.
#[derive(Debug)]
pub struct Restorer<'a> {
    journal: &'a Journal,
    gear: Option<(&'a Userfaults, &'a Pagemap)>,
    app: u32,
    maps: Option<Maps>,
    /// Pages that there was room for when it was last asked.
    room: u64,
}

impl<'a> Restorer<'a> {
    /// With or without the means (the userfaultfds, the page tables) to make them plain anonymous memory again.
    /// `app` is the process whose memory it is.
    pub fn new(
        journal: &'a Journal,
        gear: Option<(&'a Userfaults, &'a Pagemap)>,
        app: u32,
    ) -> Self {
        Self {
            app,
            journal,
            gear,
            maps: gear.and_then(|_| Maps::open().ok()),
            room: 0,
        }
    }

    /// Makes the next few merged pages of `run` private; returns the page up to which none is merged.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn step(&mut self, tables: &mut Tables, run: PageRun) -> Result<u64, RestoreError> {
        let Some(merged) = first_merged(tables, run) else {
            return Ok(run.end());
        };
        let no_memory = RestoreError { end: merged.start };
        if self.room < merged.len {
            self.room = if has_room_for(PLENTY, self.app) {
                PLENTY_STEP
            } else if has_room_for(ROOM_STEP, self.app) {
                ROOM_STEP
            } else {
                return Err(no_memory);
            };
        }
        self.room -= merged.len;
        let pages = AppPages::vouched_for(merged);
        self.make_plain(tables, pages, Copies::Stay);
        let mut rest = merged;
        while let Some(still) = first_merged(tables, rest) {
            match remap::populate_write(AppPages::vouched_for(still)) {
                Ok(()) => mark_broken(tables, still),
                Err(Errno::NOMEM | Errno::FAULT | Errno::AGAIN) if is_mapped(still) => {
                    return Err(no_memory);
                }
                // Nothing of ours is there any more, or nothing that may be written: nothing to make private.
                Err(_) => mark_broken(tables, still),
            }
            rest = PageRun::between(still.end(), merged.end());
        }
        Ok(merged.end())
    }

    /// All of them at once.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn restore_all(&mut self, tables: &mut Tables, run: PageRun) -> Result<(), RestoreError> {
        let mut from = run.start;
        while from < run.end() {
            from = self.step(tables, PageRun::between(from, run.end()))?;
        }
        Ok(())
    }

    /// Puts plain anonymous memory in the place of private copies in our file mappings, too, where there is no sign that
    /// somebody has pinned one.
    pub fn make_copies_plain(&self, tables: &mut Tables, run: PageRun) {
        let mut at = run.start;
        while let Some(pages) = tables.states.first_in_file(PageRun::between(at, run.end())) {
            let pages = PageRun {
                start: pages.start,
                len: pages.len.min(STEP),
            };
            self.make_plain(tables, AppPages::vouched_for(pages), Copies::Go);
            at = pages.end();
        }
    }

    /// Puts plain anonymous memory with the same bytes in the place of merged pages, where that can be done.
    fn make_plain(&self, tables: &mut Tables, pages: AppPages, copies: Copies) {
        let Some((userfaults, pagemap)) = self.gear else {
            return;
        };
        let Ok(held) = WritersHeld::take(userfaults, self.journal, pages) else {
            return;
        };
        let run = pages.run();
        let Ok(found) = pagemap.scan(run, run.len) else {
            return;
        };
        // Asked while no new pins can be made.
        let copies = copies == Copies::Go && !pins::are_possible(self.app);
        for (unbroken, is) in found.runs() {
            if !is.contains(PageIs::PRESENT) || !is.contains(PageIs::FILE) && !copies {
                continue;
            }
            let part = held.pages().part(unbroken.start - run.start, unbroken.len);
            let moved = self.stage_and_move(part);
            for page in unbroken.start..unbroken.start + moved {
                tables.states.forget(page);
            }
        }
    }

    /// Returns how many pages were done, from the first one on.
    fn stage_and_move(&self, pages: AppPages) -> u64 {
        let mut done = 0;
        while done < pages.run().len {
            let rest = pages.part(done, pages.run().len - done);
            let start = rest.run().start;
            let mapping = self.maps.as_ref().and_then(|maps| maps.at(start).ok());
            let mapping = mapping.unwrap_or_else(|| Mapping::unknown(start));
            let part = rest.part(0, mapping.run.end() - start);
            if stage_part(part, mapping).is_none() {
                break;
            }
            done += part.run().len;
        }
        done
    }
}

fn stage_part(pages: AppPages, mapping: Mapping) -> Option<()> {
    let run = pages.run();
    let count = usize::try_from(run.len).ok()?;
    let mut staged = OwnPages::map(count).ok()?;
    // In one call: else each page is a fault inside of the call that fills it.
    staged.populate().ok()?;
    if read_pages(&[run], staged.pages_mut()) != count {
        return None;
    }
    staged
        .imitate(mapping.protection, remap::is_locked(pages))
        .ok()?;
    remap::move_over(staged, pages).ok()
}

/// The first merged pages of `run`, as far as they follow each other, at most [`STEP`].
fn first_merged(tables: &Tables, run: PageRun) -> Option<PageRun> {
    let merged = |flags: Flags| flags.contains(Flags::MERGED);
    let start = tables.states.first_with(run, merged)?;
    let most = run.end().min(start + STEP);
    let end = (start..most).find(|page| !merged(tables.states.get(*page).flags));
    Some(PageRun::between(start, end.unwrap_or(most)))
}

fn mark_broken(tables: &mut Tables, run: PageRun) {
    for page in run.start..run.end() {
        tables.states.update(page, |state| {
            if state.flags.intersects(IN_FILE) {
                state.flags = Flags::BROKEN;
                state.hash = 0;
            }
        });
    }
}

fn is_mapped(run: PageRun) -> bool {
    let maps = Maps::open();
    maps.is_ok_and(|maps| {
        maps.at(run.start)
            .is_ok_and(|mapping| mapping.run.covers(run))
    })
}
