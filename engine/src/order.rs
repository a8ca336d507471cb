//! What the engine orders an agent to do, and what the agent reports back.
//!
//! One order gets exactly one report. An order names pages; only the agent touches them. The agent may always
//! answer that a page could not be done: a lost race is an [`Outcome`], not an error.
//!
//! [`Order`] owns its runs and waits in the engine's queue. [`OrderRef`] and [`ReportRef`] borrow them, so that the
//! agent can read an order and write a report without touching the app's heap.

use crate::page::{ArenaId, Digest, NumaNode, PageBytes, PageRun, Slot};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Pages the donation buffer holds, and so the most one [`Order::Donate`] asks for.
pub const DONATION_PAGES: usize = 256;
/// The most pages whose digests one report on an [`Order::Visit`] carries, and what an order asks for where many may be new.
pub const VISIT_PAGES: u32 = 2048;
/// The most countable pages one [`Order::Visit`] asks for.
pub const MOST_VISITED: u32 = 1 << 16;
/// The most runs one order or report carries.
pub const MAX_RUNS: usize = 3072;
/// The most pages one order to map, zero or remap carries.
pub const MAP_PAGES: usize = 2048;

/// Number of an order, unique for one engine, rising.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId(pub u64);

/// Pages to map to consecutive slots of the order's arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MapRun {
    /// First page.
    pub start: u64,
    /// Number of pages, and of slots.
    pub len: u32,
    /// Slot index of the first page.
    pub slot: u32,
}

impl MapRun {
    /// The pages of the run.
    #[must_use]
    pub fn pages(&self) -> PageRun {
        PageRun {
            start: self.start,
            len: self.len.into(),
        }
    }
}

/// What a visit found in consecutive pages. Pages without a run hold nothing that could merge (holes, the zero
/// page, page cache).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct VisitRun {
    /// First page.
    pub start: u64,
    /// Number of pages.
    pub len: u32,
    /// A [`VisitState`] as number, with or without [`FRAME_SHARED`] and [`IN_HUGE_PAGE`].
    pub state: u32,
    /// For [`VisitState::Merged`]: the slot of the first page; the others follow it. For [`VisitState::Unchanged`]: see
    /// there. For ordinary pages, if the visit was to say nodes: [`Slot::of_node`] of the NUMA node that all of them are on.
    pub slot: Slot,
}

/// In [`VisitRun::state`]: a fork shares the frames of these ordinary pages with another process.
pub const FRAME_SHARED: u32 = 1 << 8;
/// In [`VisitRun::state`]: these ordinary pages are parts of huge pages.
pub const IN_HUGE_PAGE: u32 = 1 << 9;

impl VisitRun {
    /// The NUMA node of ordinary pages.
    #[must_use]
    pub fn node(&self) -> NumaNode {
        NumaNode(u16::try_from(self.slot.index).unwrap_or(0))
    }

    /// What was found.
    #[must_use]
    pub fn found(&self) -> Option<VisitState> {
        VisitState::from_number(self.state & !(FRAME_SHARED | IN_HUGE_PAGE))
    }

    /// Whether they are parts of huge pages.
    #[must_use]
    pub fn is_in_huge_page(&self) -> bool {
        self.state & IN_HUGE_PAGE != 0
    }

    /// Unchanged pages of which `counted` count for the limit.
    #[must_use]
    pub fn unchanged(start: u64, len: u32, counted: u32) -> Self {
        Self {
            start,
            len,
            state: VisitState::Unchanged as u32,
            slot: Slot {
                arena: ArenaId(0),
                index: counted,
            },
        }
    }

    /// How many of the pages count for the limit.
    #[must_use]
    pub fn counted(&self) -> u64 {
        match self.found() {
            Some(VisitState::Skipped) => 0,
            Some(VisitState::Unchanged) => self.slot.index.into(),
            _ => self.len.into(),
        }
    }

    /// Whether another process has the same frames.
    #[must_use]
    pub fn shares_frames(&self) -> bool {
        self.state & FRAME_SHARED != 0
    }

    /// The pages of the run.
    #[must_use]
    pub fn pages(&self) -> PageRun {
        PageRun {
            start: self.start,
            len: self.len.into(),
        }
    }
}

/// What happened to consecutive pages of an order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct OutcomeRun {
    /// First page.
    pub start: u64,
    /// Number of pages.
    pub len: u32,
    /// An [`Outcome`] as number.
    pub outcome: u32,
}

impl OutcomeRun {
    /// The pages of the run.
    #[must_use]
    pub fn pages(&self) -> PageRun {
        PageRun {
            start: self.start,
            len: self.len.into(),
        }
    }
}

/// What a visit can find in a page.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisitState {
    /// An ordinary page, seen for the first time or with other bytes than at its last visit.
    Changed = 1,
    /// The same bytes as at its last visit; its digest is in [`ReportRef::Visited`]. Or it is seen for the first time, and its writes
    /// are tracked: the engine, which knows nothing of the page, only notes the digest then.
    Calm = 2,
    /// Calm, and its digest has been reported before, with the same bytes.
    CalmKnown = 3,
    /// Calm, and all its bytes are zero.
    CalmZero = 4,
    /// Mapped to the slot given, unbroken.
    Merged = 5,
    /// Mapped to a slot of an arena that this engine has not named on the present connection (an earlier daemon's).
    Foreign = 6,
    /// An ordinary page in the skip list: there, but not read.
    Skipped = 7,
    /// Calm, but was merged once and may be pinned since: cannot be merged again safely.
    Unsure = 8,
    /// Not pages but a range that is as it was last reported: those pages of it that were `Merged`, `Calm` or `CalmKnown`
    /// still are, and no others are there. The index in the place of a slot says how many of them count: all but
    /// ordinary ones in the skip list. Only where the order asks for it.
    Unchanged = 9,
}

impl VisitState {
    /// The state with this number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Changed,
            2 => Self::Calm,
            3 => Self::CalmKnown,
            4 => Self::CalmZero,
            5 => Self::Merged,
            6 => Self::Foreign,
            7 => Self::Skipped,
            8 => Self::Unsure,
            9 => Self::Unchanged,
            _ => return None,
        })
    }
}

/// What became of one page of an order.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// As ordered.
    Done = 0,
    /// Its bytes are not the slot's (any more).
    Changed = 1,
    /// Somebody holds the page (direct I/O, a fixed buffer, a pipe): the kernel refused to move it.
    Pinned = 2,
    /// No page is there (any more).
    Gone = 3,
    /// The mapping is not private anonymous writable memory.
    Unsuitable = 4,
    /// The process is near its limit of maps (`vm.max_map_count`).
    NoMaps = 5,
    /// There is no memory for it.
    NoMemory = 6,
    /// Was merged once, broken since, and may be pinned.
    Unsure = 7,
    /// The app holds the agent's lock too long (it is forking, or was stopped inside a call of ours).
    Busy = 8,
    /// The app has its own userfaultfd there.
    Claimed = 9,
    /// The agent is gone or gave no answer in time.
    Lost = 10,
    /// A system call failed in a way that has no name here.
    Failed = 11,
}

impl Outcome {
    /// The outcome with this number.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Done,
            1 => Self::Changed,
            2 => Self::Pinned,
            3 => Self::Gone,
            4 => Self::Unsuitable,
            5 => Self::NoMaps,
            6 => Self::NoMemory,
            7 => Self::Unsure,
            8 => Self::Busy,
            9 => Self::Claimed,
            10 => Self::Lost,
            11 => Self::Failed,
            _ => return None,
        })
    }
}

/// An order, as the engine keeps it until it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// See [`OrderRef::Visit`].
    Visit {
        /// Where to look.
        range: PageRun,
        /// How many countable pages at most.
        limit: u32,
        /// Pages not to read.
        skip: Vec<PageRun>,
        /// Whether to say on which NUMA node each page is.
        nodes: bool,
        /// Whether what is [`VisitState::Unchanged`] may be summed up.
        brief: bool,
    },
    /// See [`OrderRef::Donate`].
    Donate {
        /// The pages.
        runs: Vec<PageRun>,
    },
    /// See [`OrderRef::Map`].
    Map {
        /// The arena.
        arena: ArenaId,
        /// The pages and slots.
        runs: Vec<MapRun>,
    },
    /// See [`OrderRef::Zero`].
    Zero {
        /// The pages.
        runs: Vec<PageRun>,
    },
    /// See [`OrderRef::Split`].
    Split {
        /// The pages.
        runs: Vec<PageRun>,
    },
    /// See [`OrderRef::Unmerge`].
    Unmerge {
        /// The pages.
        range: PageRun,
    },
    /// See [`OrderRef::Count`].
    Count,
    /// See [`OrderRef::Remap`].
    Remap {
        /// The new arena.
        arena: ArenaId,
        /// The pages and their new slots.
        runs: Vec<MapRun>,
    },
}

impl Order {
    /// The order with its runs borrowed.
    #[must_use]
    pub fn borrow(&self) -> OrderRef<'_> {
        match self {
            Self::Visit {
                range,
                limit,
                skip,
                nodes,
                brief,
            } => OrderRef::Visit {
                range: *range,
                limit: *limit,
                skip,
                nodes: *nodes,
                brief: *brief,
            },
            Self::Donate { runs } => OrderRef::Donate { runs },
            Self::Map { arena, runs } => OrderRef::Map {
                arena: *arena,
                runs,
            },
            Self::Zero { runs } => OrderRef::Zero { runs },
            Self::Split { runs } => OrderRef::Split { runs },
            Self::Unmerge { range } => OrderRef::Unmerge { range: *range },
            Self::Count => OrderRef::Count,
            Self::Remap { arena, runs } => OrderRef::Remap {
                arena: *arena,
                runs,
            },
        }
    }
}

/// An order, as the agent reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderRef<'a> {
    /// Look at the pages of `range` in ascending order; report each anonymous page that is present. Stop after
    /// `limit` countable pages (all that are reported, but for `Skipped`, count), or when the report is full.
    Visit {
        /// Where to look.
        range: PageRun,
        /// How many countable pages at most.
        limit: u32,
        /// Pages that are only to be reported as `Skipped` if they are ordinary pages (merged ones are reported as
        /// such). Sorted, disjoint.
        skip: &'a [PageRun],
        /// Whether to say on which NUMA node each ordinary page is: runs then are of one node each.
        nodes: bool,
        /// Whether what is [`VisitState::Unchanged`] may be summed up.
        brief: bool,
    },
    /// Copy the bytes of the pages into the donation buffer, in the order given: page k of all runs together goes to
    /// byte offset k * 4096. At most [`DONATION_PAGES`]. The page itself is not touched.
    Donate {
        /// The pages.
        runs: &'a [PageRun],
    },
    /// Merge: map the slots over the pages, after comparing all bytes while the page is held.
    Map {
        /// The arena whose descriptor comes with the order.
        arena: ArenaId,
        /// The pages and slots. Sorted by page.
        runs: &'a [MapRun],
    },
    /// Put the kernel's zero page under pages that are all zero, after checking that while the page is held.
    Zero {
        /// The pages.
        runs: &'a [PageRun],
    },
    /// Split the huge pages that these pages are parts of.
    Split {
        /// The pages.
        runs: &'a [PageRun],
    },
    /// Give every merged page of the range a private copy again, and forget what was seen of all of them.
    Unmerge {
        /// The pages.
        range: PageRun,
    },
    /// Count the zero pages placed by orders that are still in place.
    Count,
    /// Map pages that are merged and unbroken to new slots with the same bytes, so that an old arena can go.
    Remap {
        /// The new arena, whose descriptor comes with the order.
        arena: ArenaId,
        /// The pages and their new slots.
        runs: &'a [MapRun],
    },
}

/// What an agent reports on an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportRef<'a> {
    /// To a visit: what is there, ascending and disjoint, from the start of the ordered range to `end`.
    Visited {
        /// One past the last page looked at; below the end of the range only if the limit was reached or the report
        /// is full.
        end: u64,
        /// Zero pages placed by orders that are still in place, in all of the process.
        zero_pages: u64,
        /// What was found.
        runs: &'a [VisitRun],
        /// One digest for each page of the `Calm` runs, in order.
        digests: &'a [Digest],
    },
    /// To an order to donate, map, zero, split or remap: outcomes that cover its pages, in the order's order.
    Done {
        /// The outcomes.
        outcomes: &'a [OutcomeRun],
    },
    /// To an order to unmerge: how far it came. Below the end of the range only if memory ran out.
    Unmerged {
        /// One past the last page that is unmerged.
        end: u64,
    },
    /// To an order to count.
    Counted {
        /// Zero pages placed by orders that are still in place, in all of the process.
        zero_pages: u64,
    },
}

/// Where the bytes of donated pages are read from. The memory belongs to a peer, who may change it at any time: each
/// page is copied once, and only the copy is looked at.
pub trait Donation {
    /// Copies pages of the donation buffer, from page `first` on.
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]);
}
