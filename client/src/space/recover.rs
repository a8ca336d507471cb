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
    /// Whether pages are held at this moment, by the agent or by a call of the app's that makes pages private.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.journal.entry().is_some()
    }

    /// Gives the app back what a dead agent held, and releases the lock in its place. To be called by an app thread, after
    /// the agent is known to be dead and before there is another one.
    pub fn recover(&self, userfaults: &Userfaults) {
        self.notice_fork();
        // What another app thread enters is entered and struck out under the lock.
        let mut tables = self.tables.lock_after_death();
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
                userfaults.protecting.release(pages);
                forget_plain(&mut tables, run);
            }
            None => {}
        }
        self.journal.end();
        tables.states.recount_arenas();
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
        uffd.release(pages.part(i, 1));
    }
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

#[cfg(test)]
mod tests {
    //! Each test leaves things as an agent leaves them that is killed at that point.
    use super::*;
    use crate::agent::arena::Arena;
    use crate::space::PATIENCE;
    use crate::sys::memory::OwnPages;
    use crate::sys::remap::{READ_WRITE, Replacement, replace};
    use crate::sys::uffd::Wait;
    use ksm_engine::page::{ArenaId, PAGE_SIZE, PageBytes};
    use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open};
    use std::os::fd::{AsFd, OwnedFd};

    const PAGES: u64 = 8;

    fn page(i: u64) -> PageBytes {
        [u8::try_from(i).expect("few pages") + 1; PAGE_SIZE]
    }

    struct Scene {
        space: &'static Space,
        userfaults: Userfaults,
        memory: OwnPages,
        quarantine: OwnPages,
        arena: OwnedFd,
    }

    impl Scene {
        /// The agent holds the lock, and is about to begin.
        fn new() -> Self {
            let space = Space::create().expect("memory");
            let device = open(c"/dev/userfaultfd", OFlags::RDWR, Mode::empty()).expect("root");
            let userfaults = Userfaults::new(Some(device.as_fd())).expect("Linux 6.8");
            let pages = usize::try_from(PAGES).expect("few");
            let mut memory = OwnPages::map(pages).expect("memory");
            let arena = memfd_create(c"arena", MemfdFlags::ALLOW_SEALING).expect("memfd");
            for (i, bytes) in (0..).zip(memory.pages_mut()) {
                *bytes = page(i);
                rustix::io::write(&arena, &page(i)).expect("written");
            }
            let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE;
            fcntl_add_seals(&arena, seals).expect("sealed");
            space.register(memory.run()).expect("registered");
            let quarantine = OwnPages::map(pages).expect("memory");
            userfaults
                .moving
                .register_quarantine(quarantine.run())
                .expect("registered");
            std::mem::forget(space.step(PATIENCE).expect("the lock is free"));
            Self {
                space,
                userfaults,
                memory,
                quarantine,
                arena,
            }
        }

        fn pages(&self) -> AppPages {
            AppPages::vouched_for(self.memory.run())
        }

        fn begin(&self) {
            let mut window = OwnPages::map(8).expect("memory");
            let arena = Arena::open(self.arena.as_fd(), 8, &mut window).expect("sealed");
            self.space.journal.begin(Entry::Moving {
                run: self.memory.run(),
                at: self.quarantine.run().start,
                slot: Slot {
                    arena: ArenaId(4),
                    index: 0,
                },
                inode: arena.inode(),
            });
        }

        fn take(&self, first: u64, len: u64) {
            let to = self.quarantine.run().start + first;
            let progress = self
                .userfaults
                .moving
                .take(self.pages().part(first, len), to);
            assert_eq!((progress.pages, progress.stopped), (len, None));
        }

        fn map(&self, first: u64, len: u64) {
            let by = Replacement::Slots {
                arena: self.arena.as_fd(),
                first: u32::try_from(first).expect("few"),
                protection: READ_WRITE,
            };
            replace(self.pages().part(first, len), by).expect("mapped");
        }

        /// Recovers, and finds the app's bytes and the lock as they should be.
        fn recover(mut self, merged: impl Fn(u64) -> bool) {
            self.space.recover(&self.userfaults);
            assert_eq!(self.space.journal.entry(), None);
            let mut tables = self.space.lock();
            for (i, number) in (0..).zip(self.memory.run().start..) {
                if i == PAGES {
                    break;
                }
                let index = usize::try_from(i).expect("few");
                let bytes = self.memory.page(index).expect("one of them");
                assert_eq!(*bytes, page(i), "page {i}");
                let state = tables.states.get(number);
                assert_eq!(state.flags.contains(Flags::MERGED), merged(i), "page {i}");
                if merged(i) {
                    assert_eq!(u64::from(state.slot.index), i);
                }
            }
            tables.forget_states(self.memory.run());
            drop(tables);
            // Nobody waits for anything any more.
            for bytes in self.memory.pages_mut() {
                bytes.fill(0xEE);
            }
        }
    }

    #[test]
    fn killed_before_it_took_anything() {
        let scene = Scene::new();
        scene.recover(|_| false);
    }

    #[test]
    fn killed_after_it_wrote_the_journal() {
        let scene = Scene::new();
        scene.begin();
        scene.recover(|_| false);
    }

    #[test]
    fn killed_after_it_registered() {
        let scene = Scene::new();
        scene.begin();
        scene
            .userfaults
            .moving
            .register(scene.pages(), Wait::Missing)
            .expect("registered");
        scene.recover(|_| false);
    }

    #[test]
    fn killed_with_some_pages_or_all_in_quarantine() {
        for taken in 1..=PAGES {
            let scene = Scene::new();
            scene.begin();
            scene
                .userfaults
                .moving
                .register(scene.pages(), Wait::Missing)
                .expect("registered");
            scene.take(0, taken);
            scene.recover(|_| false);
        }
    }

    #[test]
    fn killed_with_pages_mapped_that_it_had_not_noted() {
        for (first, len) in [(0, 8), (0, 3), (2, 4), (7, 1)] {
            let scene = Scene::new();
            scene.begin();
            scene
                .userfaults
                .moving
                .register(scene.pages(), Wait::Missing)
                .expect("registered");
            scene.take(0, 8);
            scene.map(first, len);
            scene.recover(|i| (first..first + len).contains(&i));
        }
    }

    #[test]
    fn killed_while_it_gave_pages_back() {
        let scene = Scene::new();
        scene.begin();
        scene
            .userfaults
            .moving
            .register(scene.pages(), Wait::Missing)
            .expect("registered");
        scene.take(0, 8);
        scene.map(4, 4);
        let back = scene
            .userfaults
            .moving
            .give_back(scene.quarantine.run().start, scene.pages().part(0, 2));
        assert_eq!(back.pages, 2);
        scene.recover(|i| i >= 4);
    }

    #[test]
    fn killed_while_it_held_writers_off() {
        let scene = Scene::new();
        scene.space.journal.begin(Entry::Protecting {
            run: scene.memory.run(),
        });
        scene
            .userfaults
            .protecting
            .register(scene.pages(), Wait::Protected)
            .expect("registered");
        scene
            .userfaults
            .protecting
            .protect(scene.pages())
            .expect("protected");
        scene.recover(|_| false);
    }

    #[test]
    fn the_app_changed_its_protection_while_its_pages_were_held() {
        let mut scene = Scene::new();
        scene.begin();
        scene
            .userfaults
            .moving
            .register(scene.pages(), Wait::Missing)
            .expect("registered");
        scene.take(0, 8);
        scene.memory.make_read_only().expect("mprotect");
        scene.space.recover(&scene.userfaults);
        for (i, bytes) in (0..).zip(scene.memory.pages()) {
            assert_eq!(*bytes, page(i));
        }
    }
}
