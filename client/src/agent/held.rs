//! Taking pages away from the app for a moment, and giving every one of them back.
//!
//! [`Held`] is the only way to the bytes of the quarantine: while it lives, nobody but us can see or change them, and the app
//! waits where it touches them. What was not mapped to a slot when it is dropped goes back, whatever that takes;
//! only then does anybody wake. While it lives nothing may be touched that the app mapped.

use super::{STEP_PAGES, bit_runs, bits};
use crate::space::figures::Counters;
use crate::space::journal::{Entry, Journal};
use crate::space::recover::give_back_page;
use crate::sys::memory::{OwnPages, wait_for_remote_access};
use crate::sys::remap::{self, AppPages, READ_WRITE, Replacement};
use crate::sys::uffd::{Uffd, Wait};
use ksm_engine::order::Outcome;
use ksm_engine::page::{PageBytes, PageRun, Slot};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// How often a page is tried that the kernel is busy with (migrating it, for instance).
const TRIES: u32 = 100;

/// Address space to move pages to. Each place is used once, then the memory of all is given back at once.
#[derive(Debug)]
pub struct Quarantine {
    pages: OwnPages,
    used: usize,
}

impl Quarantine {
    /// Prepares `pages`, which nobody must ever have touched.
    ///
    /// # Errors
    /// Of the registration with the userfaultfd.
    pub fn new(pages: OwnPages, uffd: &Uffd) -> Result<Self, Errno> {
        uffd.register_quarantine(pages.run())?;
        Ok(Self { pages, used: 0 })
    }

    /// Where it is.
    pub fn run(&self) -> PageRun {
        self.pages.run()
    }

    /// Frees the pages that were left in it: those that are merged now.
    pub fn empty(&mut self) {
        if self.used > 0 && self.pages.discard(self.used).is_ok() {
            self.used = 0;
        }
    }

    /// Places for `count` more pages; where the first one is.
    fn reserve(&mut self, count: usize) -> Option<usize> {
        if self.used + count > self.pages.pages_count() {
            self.empty();
        }
        let at = self.used;
        (at + count <= self.pages.pages_count()).then(|| {
            self.used += count;
            at
        })
    }
}

/// What holding pages takes.
#[derive(Clone, Copy, Debug)]
pub struct Gear<'a> {
    /// Moves them.
    pub uffd: &'a Uffd,
    /// Remembers them.
    pub journal: &'a Journal,
    /// Counts them.
    pub counters: &'a Counters,
}

/// Where held pages are to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct Intent<'a> {
    /// The arena.
    pub arena: BorrowedFd<'a>,
    /// Its inode.
    pub inode: u64,
    /// The slot of the first page.
    pub slot: Slot,
}

/// Pages that nobody but us can reach.
#[derive(Debug)]
pub struct Held<'a> {
    gear: Gear<'a>,
    pages: AppPages,
    quarantine: &'a OwnPages,
    at: usize,
    /// Pages in the quarantine.
    inside: u64,
    /// Pages that were mapped anew.
    mapped: u64,
    since: Instant,
}

impl<'a> Held<'a> {
    /// Takes as many of the pages (at most 64) as the kernel lets us; writes into `outcomes` why it did not take
    /// the others.
    ///
    /// # Errors
    /// Why it took none.
    pub fn take(
        gear: Gear<'a>,
        quarantine: &'a mut Quarantine,
        pages: AppPages,
        intent: Option<Intent<'_>>,
        outcomes: &mut [Outcome],
    ) -> Result<Self, Outcome> {
        let count = outcomes.len().min(STEP_PAGES);
        let at = quarantine.reserve(count).ok_or(Outcome::NoMemory)?;
        let quarantine = &quarantine.pages;
        let nowhere = Slot {
            arena: ksm_engine::page::ArenaId(0),
            index: 0,
        };
        gear.journal.begin(Entry::Moving {
            run: pages.run(),
            at: quarantine.run().start + at as u64,
            slot: intent.map_or(nowhere, |intent| intent.slot),
            inode: intent.map_or(0, |intent| intent.inode),
        });
        if let Err(errno) = gear.uffd.register(pages, Wait::Missing) {
            if errno == Errno::NOMEM {
                // Only then can a part be registered: the kernel checks all mappings before it splits the first.
                gear.uffd.release(pages);
            }
            gear.journal.end();
            return Err(match errno {
                Errno::BUSY => Outcome::Claimed,
                Errno::NOMEM => Outcome::NoMaps,
                _ => Outcome::Unsuitable,
            });
        }
        let mut held = Self {
            gear,
            pages,
            quarantine,
            at,
            inside: 0,
            mapped: 0,
            since: Instant::now(),
        };
        held.move_in(outcomes);
        // Before this, somebody may still write to a page that he looked up before it was moved.
        wait_for_remote_access(gear.journal).map_err(|_| Outcome::Failed)?;
        Ok(held)
    }

    fn move_in(&mut self, outcomes: &mut [Outcome]) {
        let count = outcomes.len().min(STEP_PAGES);
        let start = self.quarantine.run().start + self.at as u64;
        let (mut i, mut most, mut tries) = (0, count, 0);
        while i < count {
            let len = most.min(count - i);
            let part = self.pages.part(i as u64, len as u64);
            let progress = self.gear.uffd.take(part, start + i as u64);
            let moved = usize::try_from(progress.pages).unwrap_or(0);
            self.inside |= bits(i, moved);
            i += moved;
            let Some(errno) = progress.stopped else {
                most = count;
                continue;
            };
            if moved > 0 {
                continue;
            }
            if errno == Errno::EXIST {
                self.fetch_home(i);
            }
            let refused = match errno {
                Errno::AGAIN | Errno::INTR | Errno::EXIST if tries < TRIES => {
                    tries += 1;
                    continue;
                }
                // One call takes pages of one mapping only.
                Errno::INVAL if len > 1 => {
                    most = len / 2;
                    continue;
                }
                Errno::BUSY | Errno::AGAIN | Errno::EXIST => Outcome::Pinned,
                Errno::NOENT => Outcome::Gone,
                Errno::INVAL => Outcome::Unsuitable,
                Errno::NOMEM => Outcome::NoMemory,
                _ => Outcome::Failed,
            };
            if let Some(outcome) = outcomes.get_mut(i) {
                *outcome = refused;
            }
            i += 1;
        }
    }

    /// The kernel says that something is in the place that a page was to be moved to. Nothing was: each place is used once. So it
    /// is the page itself. Linux 6.18 moves a page that is just being migrated, tries again, and finds what it has done.
    fn fetch_home(&self, index: usize) {
        let from = self.quarantine.run().start + (self.at + index) as u64;
        give_back_page(self.gear.uffd, from, self.pages.part(index as u64, 1));
    }

    /// Which pages are held.
    pub fn inside(&self) -> u64 {
        self.inside
    }

    /// The bytes of a held page.
    pub fn page(&self, index: usize) -> Option<&PageBytes> {
        if self.inside & bits(index, 1) == 0 {
            return None;
        }
        self.quarantine.page(self.at + index)
    }

    /// Gives the app the slots in the place of held pages.
    ///
    /// # Errors
    /// Of `mmap`; the pages are still held then.
    pub fn map(
        &mut self,
        first: usize,
        count: usize,
        arena: BorrowedFd<'_>,
        slot: u32,
    ) -> Result<(), Errno> {
        let part = self.pages.part(first as u64, count as u64);
        let by = Replacement::Slots {
            arena,
            first: slot,
            // What the kernel does not let us write it does not let us move either.
            protection: READ_WRITE,
        };
        remap::replace(part, by)?;
        self.inside &= !bits(first, count);
        self.mapped |= bits(first, count);
        Ok(())
    }

    /// Gives the app the zero page in the place of held pages; returns how many it has.
    pub fn map_zero(&mut self, first: usize, count: usize) -> usize {
        let mut done = 0;
        while done < count {
            let part = self
                .pages
                .part((first + done) as u64, (count - done) as u64);
            let progress = self.gear.uffd.zero(part);
            let zeroed = usize::try_from(progress.pages).unwrap_or(0);
            self.inside &= !bits(first + done, zeroed);
            done += zeroed;
            if zeroed == 0 && progress.stopped.is_some() {
                break;
            }
        }
        done
    }

    fn give_back(&self) {
        let start = self.quarantine.run().start + self.at as u64;
        for (first, count) in bit_runs(self.inside) {
            let mut i = 0;
            while i < count {
                let from = start + (first + i) as u64;
                let rest = self.pages.part((first + i) as u64, (count - i) as u64);
                let moved = self.gear.uffd.give_back(from, rest).pages;
                i += usize::try_from(moved).unwrap_or(0);
                if moved == 0 {
                    give_back_page(self.gear.uffd, from, rest.part(0, 1));
                    i += 1;
                }
            }
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.give_back();
        let count = usize::try_from(self.pages.run().len).unwrap_or(STEP_PAGES);
        for (first, count) in bit_runs(bits(0, count) & !self.mapped) {
            let part = self.pages.part(first as u64, count as u64);
            self.gear.uffd.release(part);
        }
        let _ = self.gear.uffd.wake(self.pages);
        self.gear.counters.hold(self.since.elapsed());
        self.gear.journal.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::arena::Arena;
    use crate::space::Space;
    use crate::sys::uffd::Userfaults;
    use ksm_engine::page::PAGE_SIZE;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::fs::{
        MemfdFlags, Mode, OFlags, SealFlags, Timespec, fcntl_add_seals, memfd_create, open,
    };
    use std::os::fd::AsFd;

    /// Somebody reads a page that is held, in user mode or in a system call: he waits, and goes on when the hold ends.
    fn waits_and_goes_on(end: impl FnOnce(&mut Held<'_>, &Arena<'_>)) {
        let space = Space::create().expect("memory");
        let device = open(c"/dev/userfaultfd", OFlags::RDWR, Mode::empty()).expect("root");
        let userfaults = Userfaults::new(Some(device.as_fd())).expect("Linux 6.8");
        let mut memory = OwnPages::map(4).expect("memory");
        let fd = memfd_create(c"arena", MemfdFlags::ALLOW_SEALING).expect("memfd");
        for page in memory.pages_mut() {
            page.fill(7);
            rustix::io::write(&fd, page).expect("written");
        }
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE;
        fcntl_add_seals(&fd, seals).expect("sealed");
        let mut window = OwnPages::map(4).expect("memory");
        let arena = Arena::open(fd.as_fd(), 4, &mut window).expect("sealed");
        let pages = OwnPages::map(8).expect("memory");
        let mut quarantine = Quarantine::new(pages, &userfaults.moving).expect("registered");
        let gear = Gear {
            uffd: &userfaults.moving,
            journal: &space.journal,
            counters: &space.counters,
        };
        let pages = AppPages::vouched_for(memory.run());
        let mut outcomes = [Outcome::Done; 4];
        let taken = Held::take(gear, &mut quarantine, pages, None, &mut outcomes);
        let mut held = taken.expect("plain memory");
        assert_eq!(held.inside(), 0b1111);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| memory.pages().iter().all(|page| page == &[7; PAGE_SIZE]));
            // The kernel says when somebody waits.
            let [moving, _] = userfaults.descriptors();
            let mut polled = [PollFd::new(&moving, PollFlags::IN)];
            let patience = Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            assert_eq!(poll(&mut polled, Some(&patience)), Ok(1), "nobody waits");
            assert!(!reader.is_finished());
            end(&mut held, &arena);
            drop(held);
            let deadline = Instant::now() + std::time::Duration::from_secs(60);
            while !reader.is_finished() {
                if Instant::now() > deadline {
                    // Let the thread go, or the test could not even fail.
                    let _ = gear.uffd.unregister(pages);
                    let _ = gear.uffd.wake(pages);
                    panic!("the reader still waits");
                }
                std::thread::yield_now();
            }
            assert!(
                reader.join().expect("it only reads"),
                "the reader saw other bytes"
            );
        });
    }

    #[test]
    fn a_reader_waits_until_the_pages_are_back() {
        waits_and_goes_on(|_, _| {});
    }

    #[test]
    fn a_reader_waits_until_the_slots_are_mapped() {
        waits_and_goes_on(|held, arena| {
            held.map(0, 4, arena.fd(), 0).expect("mapped");
        });
    }

    #[test]
    fn a_reader_waits_until_some_are_mapped_and_some_are_back() {
        waits_and_goes_on(|held, arena| {
            held.map(0, 1, arena.fd(), 0).expect("mapped");
            held.map(2, 1, arena.fd(), 2).expect("mapped");
        });
    }
}
