//! What is done to the mappings of the app's own pages.
//!
//! `MAP_FIXED` stands in one function here and nowhere else. Everything takes [`AppPages`]: pages that the app
//! registered, taken from the region table under the lock.

use super::memory::{OwnPages, address_of, length_of};
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::{Errno, Result};
use rustix::mm::{
    Advice, MapFlags, MlockFlags, MremapFlags, ProtFlags, madvise, mlock_with, mmap,
    mmap_anonymous, mremap_fixed,
};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;

/// Pages that the app put into our hands by registering them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppPages(PageRun);

impl AppPages {
    /// Only for the region table, which has checked that the app registered the pages and that none is our own.
    pub(crate) fn vouched_for(run: PageRun) -> Self {
        Self(run)
    }

    /// Which pages.
    #[must_use]
    pub fn run(self) -> PageRun {
        self.0
    }

    /// `len` pages from the `skip`th on, cut to what there is.
    #[must_use]
    pub fn part(self, skip: u64, len: u64) -> Self {
        let start = self.0.start + skip.min(self.0.len);
        Self(PageRun::between(start, self.0.end().min(start + len)))
    }

    fn start(self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(address_of(self.0.start))
    }

    fn length(self) -> usize {
        length_of(self.0.len)
    }
}

/// What takes the place of pages.
#[derive(Clone, Copy, Debug)]
pub enum Replacement<'a> {
    /// A private mapping of consecutive slots of an arena.
    Slots {
        /// The arena.
        arena: BorrowedFd<'a>,
        /// The slot of the first page.
        first: u32,
        /// As the app set it.
        protection: ProtFlags,
    },
    /// Fresh anonymous memory that reads as zero, with the protection given.
    Zeroes(ProtFlags),
}

/// Replaces pages in one step: whoever touches them sees the old ones or the new ones.
///
/// # Errors
/// Of `mmap`; then nothing has changed.
pub fn replace(pages: AppPages, by: Replacement<'_>) -> Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    match by {
        Replacement::Slots {
            arena,
            first,
            protection,
        } => {
            let offset = u64::from(first) * PAGE_SIZE as u64;
            // SAFETY: the app registered the pages, so their old mapping is ours to replace.
            unsafe {
                mmap(
                    pages.start(),
                    pages.length(),
                    protection,
                    flags,
                    arena,
                    offset,
                )
            }?;
        }
        Replacement::Zeroes(protection) => {
            // SAFETY: the app asked for zeroes in its registered pages.
            unsafe { mmap_anonymous(pages.start(), pages.length(), protection, flags) }?;
        }
    }
    Ok(())
}

/// Moves staged pages of our own over the app's, in one step. The first pages of `staged` go; the rest is unmapped.
///
/// # Errors
/// Of `mremap`; then nothing has changed for the app.
pub fn move_over(staged: OwnPages, pages: AppPages) -> Result<()> {
    let from = staged.run();
    let length = pages.length();
    let target = pages.start();
    let source = std::ptr::with_exposed_provenance_mut(address_of(from.start));
    debug_assert_eq!(from.len, pages.run().len);
    // SAFETY: `staged` is given up below, and the app registered the target.
    unsafe { mremap_fixed(source, length, length, MremapFlags::MAYMOVE, target) }?;
    // Its address range is free, and may be somebody else's already.
    std::mem::forget(staged);
    Ok(())
}

/// What a plain mapping may be used for.
pub const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Whether the app locked the mapping of the pages (`mlock`). Asked by an advice that locked memory refuses; where it
/// is taken the pages become the next ones to be swapped out, which costs them nothing.
#[must_use]
pub fn is_locked(pages: AppPages) -> bool {
    // SAFETY: the advice changes no byte.
    let advised = unsafe { madvise(pages.start(), pages.length(), Advice::LinuxCold) };
    advised == Err(Errno::INVAL)
}

/// Locks pages again that were replaced, without touching them: populating would break what is merged.
///
/// # Errors
/// Of `mlock2`: over the limit of locked memory.
pub fn lock_again(pages: AppPages) -> Result<()> {
    // SAFETY: locking changes no byte.
    unsafe { mlock_with(pages.start(), pages.length(), MlockFlags::ONFAULT) }
}

/// `MADV_DONTNEED`, in the app's name.
///
/// # Errors
/// Of `madvise`, as the app would have got it.
pub fn discard(pages: AppPages) -> Result<()> {
    // SAFETY: the app asked for it.
    unsafe { madvise(pages.start(), pages.length(), Advice::LinuxDontNeed) }
}

/// Any other advice, in the app's name.
///
/// # Errors
/// Of `madvise`, as the app would have got it.
pub fn advise(pages: AppPages, advice: Advice) -> Result<()> {
    // SAFETY: the app asked for it.
    unsafe { madvise(pages.start(), pages.length(), advice) }
}

/// Gives each page a private, exclusive copy without changing a byte of it.
///
/// # Errors
/// Of `madvise`: out of memory, or not a writable mapping.
pub fn populate_write(pages: AppPages) -> Result<()> {
    // SAFETY: populating changes no byte.
    unsafe { madvise(pages.start(), pages.length(), Advice::LinuxPopulateWrite) }
}

/// Makes each page present for reading.
///
/// # Errors
/// Of `madvise`.
pub fn populate_read(pages: AppPages) -> Result<()> {
    // SAFETY: populating changes no byte.
    unsafe { madvise(pages.start(), pages.length(), Advice::LinuxPopulateRead) }
}
