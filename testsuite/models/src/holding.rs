//! Pages that an agent holds and is killed with: the steward gives each back, and no app thread ever finds a hole.
//!
//! `lock.rs` and `journal.rs` are the client's; kernel and recovery are copies: what `UFFDIO_MOVE`, `mmap` and `UFFDIO_UNREGISTER` do
//! to a page, and the two loops of `recover.rs`.

use super::locking::Lock;
use super::word::{instruction, until_killed};
use super::{explore, fails};
use ksm_engine::page::{ArenaId, PageRun, Slot};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Where the app's pages begin, and where they go. No other pages may ever be touched.
const RUN: PageRun = PageRun { start: 7, len: 2 };
const QUARANTINE: u64 = 100;
const LONGEST: u32 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    App,
    Quarantine,
    Slot,
}

/// A copy of what the kernel does. Each call is one step.
#[derive(Debug)]
struct Kernel {
    pages: [Place; 2],
    registered: [bool; 2],
}

impl Kernel {
    fn index(page: u64) -> usize {
        assert!(RUN.contains(page), "page {page} was never the agent's");
        usize::try_from(page - RUN.start).expect("few")
    }

    fn take(&mut self, page: u64) {
        let i = Self::index(page);
        assert!(self.registered[i] && self.pages[i] == Place::App);
        self.pages[i] = Place::Quarantine;
    }

    fn map(&mut self, page: u64) {
        let i = Self::index(page);
        self.pages[i] = Place::Slot;
        self.registered[i] = false;
    }

    fn give_back(&mut self, page: u64) {
        let i = Self::index(page);
        if self.pages[i] == Place::Quarantine && self.registered[i] {
            self.pages[i] = Place::App;
        }
    }

    fn unregister(&mut self, page: u64) {
        let i = Self::index(page);
        self.registered[i] = false;
    }

    /// Whether the app can use the page; if not, it waits.
    fn is_there(&self, page: u64) -> bool {
        let i = Self::index(page);
        let there = self.pages[i] != Place::Quarantine;
        assert!(there || self.registered[i], "the app finds a hole");
        there
    }
}

pub(super) trait Log: Default + Send + Sync + 'static {
    fn begin(&self);
    fn end(&self);
    /// The run, and where its pages went.
    fn entry(&self) -> Option<(PageRun, u64)>;
}

macro_rules! journals {
    ($($variant:ident)*) => {
        $(impl Log for super::$variant::Journal {
            fn begin(&self) {
                let slot = Slot { arena: ArenaId(3), index: 4 };
                self.begin(super::$variant::Entry::Moving { run: RUN, at: QUARANTINE, slot, inode: 5 });
            }
            fn end(&self) {
                self.end();
            }
            fn entry(&self) -> Option<(PageRun, u64)> {
                match self.entry()? {
                    super::$variant::Entry::Moving { run, at, slot, inode } => {
                        assert_eq!((slot.arena.0, slot.index, inode), (3, 4, 5), "a half-written entry");
                        Some((run, at))
                    }
                    super::$variant::Entry::Protecting { .. } => panic!("nobody protects"),
                }
            }
        })*
    };
}

journals! { journal journal_stage_first }

#[derive(Default)]
struct Space<J> {
    lock: super::lock::FutexLock,
    journal: J,
    kernel: Mutex<Kernel>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            pages: [Place::App; 2],
            registered: [false; 2],
        }
    }
}

impl<J: Log> Space<J> {
    fn call<T>(&self, call: impl FnOnce(&mut Kernel) -> T) -> T {
        instruction();
        call(&mut self.kernel.lock().expect("no panic goes on"))
    }

    /// Two pages are taken; one is equal to its slot and mapped, the other one goes back.
    fn step(&self) {
        assert!(Lock::acquire_as_agent(&self.lock));
        self.journal.begin();
        self.call(|kernel| kernel.registered = [true; 2]);
        for page in RUN.start..RUN.end() {
            self.call(|kernel| kernel.take(page));
        }
        self.call(|kernel| kernel.map(RUN.start));
        self.call(|kernel| kernel.give_back(RUN.start + 1));
        self.call(|kernel| kernel.unregister(RUN.start + 1));
        self.journal.end();
        self.lock.release();
    }

    fn recover(&self) {
        if !self.lock.inherit() {
            self.lock.acquire_after_death();
        }
        if let Some((run, at)) = self.journal.entry() {
            assert_eq!((run, at), (RUN, QUARANTINE), "a half-written entry");
            for page in run.start..run.end() {
                self.call(|kernel| kernel.give_back(page));
            }
            for page in run.start..run.end() {
                self.call(|kernel| kernel.unregister(page));
            }
        }
        self.journal.end();
        self.lock.release();
    }
}

fn death<J: Log>(instructions: u32) {
    explore(2, move || {
        let space = Arc::new(Space::<J>::default());
        let agent = {
            let space = Arc::clone(&space);
            thread::spawn(move || until_killed(instructions, || space.step()))
        };
        let app = {
            let space = Arc::clone(&space);
            thread::spawn(move || {
                while !space.call(|kernel| kernel.is_there(RUN.start + 1)) {
                    thread::yield_now();
                }
            })
        };
        agent.join().expect("killed, or through");
        space.recover();
        app.join().expect("no hole");
        let kernel = space.kernel.lock().expect("no panic goes on");
        assert!(!kernel.pages.contains(&Place::Quarantine), "a page is lost");
        assert_eq!(kernel.registered, [false; 2], "somebody will wait for ever");
        assert!(space.journal.entry().is_none());
        assert!(Lock::is_free(&space.lock));
    });
}

#[test]
fn every_page_comes_back_whenever_the_agent_is_killed() {
    (0..LONGEST).for_each(death::<super::journal::Journal>);
}

/// A fork while the agent works: the child's pages are all there, since the fork waits for the lock.
fn fork(waits: bool) {
    explore(3, move || {
        let space = Arc::new(Space::<super::journal::Journal>::default());
        let agent = {
            let space = Arc::clone(&space);
            thread::spawn(move || space.step())
        };
        if waits {
            Lock::acquire(&space.lock);
        }
        let inherited = space.call(|kernel| kernel.pages);
        if waits {
            Lock::release(&space.lock);
        }
        assert!(
            !inherited.contains(&Place::Quarantine),
            "the child has a hole"
        );
        agent.join().expect("nobody panics");
    });
}

#[test]
fn no_child_inherits_a_hole() {
    fork(true);
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_a_fork_that_does_not_wait() {
    fork(false);
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_the_stage_written_first() {
    (0..LONGEST).for_each(death::<super::journal_stage_first::Journal>);
}

#[test]
fn each_protection_is_needed() {
    fails("holding::with_a_fork_that_does_not_wait");
    fails("holding::with_the_stage_written_first");
}
