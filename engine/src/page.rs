//! Pages, runs of pages, and the names of the things that own or hold them.
//!
//! Addresses of an app never travel as pointers: a page is its number (address / 4096), and only the agent that
//! owns the address space turns a number back into memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a page. The project supports 4 KiB pages only.
pub const PAGE_SIZE: usize = 4096;

/// The bytes of one page.
pub type PageBytes = [u8; PAGE_SIZE];

/// Consecutive pages of one address space: `len` pages from page number `start`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PageRun {
    /// Number of the first page (address / 4096).
    pub start: u64,
    /// Number of pages.
    pub len: u64,
}

/// One past the highest page number a user address can have (57-bit addresses).
pub const PAGE_LIMIT: u64 = 1 << 45;

impl PageRun {
    /// All of user memory.
    pub const EVERYTHING: Self = Self {
        start: 0,
        len: PAGE_LIMIT,
    };

    /// The run `[start, end)`; empty when `end <= start`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self {
            start,
            len: end.saturating_sub(start),
        }
    }

    /// One past the last page.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.len
    }

    /// Whether the run is not empty and lies below [`PAGE_LIMIT`]; what every run from a peer is checked for.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.len > 0 && self.start < PAGE_LIMIT && self.len <= PAGE_LIMIT - self.start
    }

    /// Whether `page` is in the run.
    #[must_use]
    pub const fn contains(self, page: u64) -> bool {
        page >= self.start && page < self.end()
    }

    /// Whether all of `other` is in the run.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// The pages in both runs, if any.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let run = Self::between(self.start.max(other.start), self.end().min(other.end()));
        (run.len > 0).then_some(run)
    }
}

/// No arena has this many slots, whoever made it.
pub const ARENA_SLOT_LIMIT: u32 = 1 << 24;

/// Content identity of a calm page: a salted hash of 128 bits (see [`crate::digest`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Digest(pub [u8; 16]);

/// One registered address space (the kernel's `mm_struct`), as the engine numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MmId(pub u32);

/// Pages merge only within one domain. By default it is the uid of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainId(pub u32);

/// Whose process it is: the uid of the peer. What is counted for a user is counted for him in whatever domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub u32);

/// A NUMA node, as the kernel numbers them. Where pages merge across nodes, everything is on node 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NumaNode(pub u16);

/// One arena: a sealed memfd of merged pages.
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct ArenaId(pub u32);

/// One page of an arena. Written once, never changed.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Slot {
    /// The arena.
    pub arena: ArenaId,
    /// Index of the page in it: byte offset / 4096.
    pub index: u32,
}

impl Slot {
    /// What stands in the place of a slot for an ordinary page, and says its node.
    #[must_use]
    pub fn of_node(node: NumaNode) -> Self {
        Self {
            arena: ArenaId(0),
            index: node.0.into(),
        }
    }
}
