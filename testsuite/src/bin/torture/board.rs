//! What all processes of a run share: counts, and whether it is over.

use crate::sys;
use clap::ValueEnum;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is done, or seen. Each must happen in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Every byte of a page compared with what its owner knows.
    PageChecked,
    /// The same for all pages of an owner.
    AllChecked,
    // Ways to write to a page.
    Store,
    StoreSlowly,
    Read,
    Readv,
    Recv,
    RingPlain,
    RingFixed,
    Direct,
    FromOutside,
    MemFile,
    // What happens to its mapping.
    Protect,
    ProtectFromReading,
    WriteThroughProtection,
    RefusedByProtection,
    Move,
    Grow,
    Shrink,
    MapOver,
    UnmapAndMap,
    DontNeed,
    Free,
    Unmergeable,
    Lock,
    OwnUserfaultMissing,
    OwnUserfaultProtect,
    // Children, who check and write, too.
    Fork,
    ForkThatWrites,
    ForkThatExecs,
    Spawn,
    ExecOfApp,
    // From outside.
    ReadFromOutside,
    Stop,
    AppKilled,
    Knob,
    UnmergeAll,
    MemoryLimit,
    Reclaim,
    Compact,
    /// Sharers were seen in `pages_sharing`.
    Merged,
}

impl Kind {
    pub(crate) fn all() -> &'static [Self] {
        Self::value_variants()
    }
}

const ROOM: usize = 64;
const _: () = assert!((Kind::Merged as usize) < ROOM);

/// Lies in a file that all processes map.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Board {
    counts: [AtomicU64; ROOM],
    over: AtomicU64,
    /// Odd while memory is limited.
    limits: AtomicU64,
}

impl Board {
    pub(crate) fn open(file: &Path) -> Result<&'static Self, String> {
        sys::shared::<Self>(file).map_err(|error| format!("{}: {error}", file.display()))
    }

    pub(crate) fn count(&self, kind: Kind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counted(&self, kind: Kind) -> u64 {
        self.counts[kind as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn end(&self) {
        self.over.store(1, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn begin_or_end_limit(&self) {
        self.limits.fetch_add(1, Ordering::SeqCst);
    }

    /// A moment, to be asked later whether memory was limited since.
    pub(crate) fn moment(&self) -> u64 {
        self.limits.load(Ordering::SeqCst)
    }

    /// Whether memory was limited at any time since `moment`: who needed some may have been killed.
    pub(crate) fn limited_since(&self, moment: u64) -> bool {
        moment % 2 == 1 || self.moment() != moment
    }
}

/// The counts, one a line.
pub(crate) fn print(board: &Board) {
    for kind in Kind::all() {
        println!("{:>12} {kind:?}", board.counted(*kind));
    }
}
