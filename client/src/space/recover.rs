//! Finishing what an agent held when it was killed.
//!
//! Nothing has to be guessed. The kernel moves a page only where none is, only between mappings that are registered, and a page that
//! was mapped to its slot is registered no more: so trying to move each page back either gives the app its page or says that it
//! was not taken any more. Needs a copy of the dead agent's userfaultfds, which the app must have kept.

use super::journal::Entry;
use super::states::{Flags, PageState};
use super::{Space, Tables};
use crate::sys::maps::Maps;
use crate::sys::remap::AppPages;
use crate::sys::uffd::{Progress, Uffd, Userfaults};
use ksm_engine::page::{PageRun, Slot};
use rustix::io::Errno;

impl Space {
    /// Gives the app back what a dead agent held, and releases the lock in its place. To be called by an app thread, after
    /// the agent is known to be dead and before there is another one.
    pub fn recover(&self, userfaults: &Userfaults) {
        let inherited = self.tables.inherit_from_dead_agent();
        // What another app thread enters is entered and struck out under the lock.
        let mut tables = inherited.unwrap_or_else(|| self.lock());
        match self.journal.entry() {
            Some(Entry::Moving {
                run,
                at,
                slot,
                inode,
            }) => {
                let pages = AppPages::vouched_for(run);
                undo_move(&userfaults.moving, pages, at);
                note_mapped(&mut tables, run, slot, inode);
            }
            Some(Entry::Protecting { run }) => {
                let pages = AppPages::vouched_for(run);
                let _ = userfaults.protecting.unregister(pages);
                let _ = userfaults.protecting.wake(pages);
                forget_plain(&mut tables, run);
            }
            None => {}
        }
        self.journal.end();
        tables.unmap_agent();
    }
}

/// Moves back what is still in the quarantine, and lets everybody go on.
fn undo_move(uffd: &Uffd, pages: AppPages, at: u64) {
    for i in 0..pages.run().len {
        give_back_page(uffd, at + i, pages.part(i, 1));
    }
    for i in 0..pages.run().len {
        // One by one: a part that was mapped to slots must not keep the others from being released.
        let _ = uffd.unregister(pages.part(i, 1));
    }
    let _ = uffd.wake(pages);
}

/// Gives one page back, whatever it takes. Does nothing if it was not taken, or has been mapped to its slot.
pub(crate) fn give_back_page(uffd: &Uffd, from: u64, page: AppPages) {
    loop {
        let Progress { stopped, .. } = uffd.give_back(from, page);
        let copied = match stopped {
            // Moved; or never taken; or somebody is at home.
            None | Some(Errno::NOENT | Errno::EXIST) => return,
            Some(Errno::AGAIN) => Err(Errno::AGAIN),
            // The app changed the mapping's protection meanwhile, or a fork shares our copy: a copy does as well.
            Some(_) => uffd.copy_back(from, page),
        };
        match copied {
            Err(Errno::AGAIN | Errno::NOMEM | Errno::INTR) => rustix::thread::sched_yield(),
            _ => return,
        }
    }
}

/// Finds out which pages the agent had mapped to their slots before it could note it.
fn note_mapped(tables: &mut Tables, run: PageRun, slot: Slot, inode: u64) {
    let Ok(maps) = Maps::open() else {
        return;
    };
    for page in run.start..run.end() {
        let Ok(mapping) = maps.at(page) else {
            continue;
        };
        if inode == 0 || mapping.inode != inode {
            continue;
        }
        let offset = u32::try_from(page - run.start).unwrap_or(0);
        tables.states.update(page, |state| {
            *state = PageState {
                flags: Flags::MERGED | state.flags & Flags::SEEN,
                hash: state.hash,
                slot: Slot {
                    arena: slot.arena,
                    index: slot.index + offset,
                },
            };
        });
    }
}

/// Pages that had become plain memory before the agent could note it.
fn forget_plain(tables: &mut Tables, run: PageRun) {
    let Ok(maps) = Maps::open() else {
        return;
    };
    for page in run.start..run.end() {
        if maps.at(page).is_ok_and(|mapping| mapping.inode == 0) {
            tables.states.forget(page);
        }
    }
}
