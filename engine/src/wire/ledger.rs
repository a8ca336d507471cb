//! The page in which an app notes its forks, for the daemon to see before the children say anything.
//!
//! To the kernel a forked child is registered the moment it exists. Here it has to join first, and most children exec or end
//! before that would be worth while. So a fork only takes a number in this page; when the daemon is about to look at
//! everybody it calls those that have not joined, and waits for them for a moment. The page follows the donation buffer
//! in the same memfd. Both sides may write anything into it at any time: each only makes the other wait a little.

use crate::order::DONATION_PAGES;
use crate::page::PAGE_SIZE;
use std::sync::atomic::AtomicU32;
use zerocopy::FromZeros;

/// Pages of the memfd: the donation buffer, and the ledger behind it.
pub const BUFFER_PAGES: usize = DONATION_PAGES + 1;
/// Byte offset of the ledger in the memfd.
pub const LEDGER_OFFSET: u64 = (DONATION_PAGES * PAGE_SIZE) as u64;
/// Children of which the process id is kept.
pub const CHILDREN: u32 = 1020;
/// In place of a process id: the child has exec'd or ended, and will not join.
pub const GONE: u32 = u32::MAX;

/// The page. All-zero bytes are a new one.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Ledger {
    /// Number of the ledger, given by the daemon; never 0.
    pub id: AtomicU32,
    /// Forks begun so far: the number of the next child.
    pub forks: AtomicU32,
    /// Children with lower numbers are to join now.
    pub called: AtomicU32,
    unused: AtomicU32,
    /// Process ids of children, as they know them: that of number n is in place n modulo [`CHILDREN`].
    pub children: [AtomicU32; CHILDREN as usize],
}

const _: () = assert!(size_of::<Ledger>() == PAGE_SIZE);

/// Which of the forks in which ledger a process is; all zero if in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Birth {
    /// Number of the ledger.
    pub ledger: u32,
    /// Number of the fork.
    pub number: u32,
}
