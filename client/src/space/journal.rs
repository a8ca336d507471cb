//! What the agent holds at this moment, written down so that somebody else can finish it.
//!
//! An agent can be killed at any instruction. Each step that takes pages away from the app is entered here before its
//! first system call and struck out after its last; [`super::recover`] undoes what it finds. The stage is stored last at
//! the beginning and first at the end, so that a half-written entry is never believed.

use crate::word::{AtomicU32, AtomicU64, Ordering};
use ksm_engine::page::{ArenaId, PageRun, Slot};
#[cfg(not(loom))]
use zerocopy::FromZeros;

const MOVING: u32 = 1;
const PROTECTING: u32 = 2;

/// A step in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Each page of the run is with the app, in the quarantine from page `at` on, or mapped to `slot` and following.
    Moving {
        /// The app's pages.
        run: PageRun,
        /// Their places in the quarantine.
        at: u64,
        /// Where they are to be mapped.
        slot: Slot,
        /// Inode of that slot's arena; 0 if they are not to be mapped.
        inode: u64,
    },
    /// Writers wait for these pages; the pages themselves are where they were.
    Protecting {
        /// The app's pages.
        run: PageRun,
    },
}

/// The journal. All-zero bytes are an empty one.
#[derive(Debug)]
#[cfg_attr(not(loom), derive(FromZeros))]
#[cfg_attr(loom, derive(Default))]
#[repr(C)]
pub struct Journal {
    stage: AtomicU32,
    arena: AtomicU32,
    index: AtomicU32,
    padding: AtomicU32,
    start: AtomicU64,
    len: AtomicU64,
    at: AtomicU64,
    inode: AtomicU64,
}

impl Journal {
    /// Enters a step.
    pub fn begin(&self, entry: Entry) {
        let store = |cell: &AtomicU64, value| cell.store(value, Ordering::Relaxed);
        let (stage, run) = match entry {
            Entry::Protecting { run } => (PROTECTING, run),
            Entry::Moving {
                run,
                at,
                slot,
                inode,
            } => {
                store(&self.at, at);
                store(&self.inode, inode);
                self.arena.store(slot.arena.0, Ordering::Relaxed);
                self.index.store(slot.index, Ordering::Relaxed);
                (MOVING, run)
            }
        };
        store(&self.start, run.start);
        store(&self.len, run.len);
        self.stage.store(stage, Ordering::Release);
    }

    /// Strikes it out.
    pub fn end(&self) {
        self.stage.store(0, Ordering::Release);
    }

    /// What is in progress.
    pub fn entry(&self) -> Option<Entry> {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let stage = self.stage.load(Ordering::Acquire);
        let run = PageRun {
            start: load(&self.start),
            len: load(&self.len),
        };
        match stage {
            MOVING => Some(Entry::Moving {
                run,
                at: load(&self.at),
                slot: Slot {
                    arena: ArenaId(self.arena.load(Ordering::Relaxed)),
                    index: self.index.load(Ordering::Relaxed),
                },
                inode: load(&self.inode),
            }),
            PROTECTING => Some(Entry::Protecting { run }),
            _ => None,
        }
    }
}
