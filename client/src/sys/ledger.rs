//! The page that is shared with the daemon and inherited by children: see [`Ledger`].

use super::memory::{SharedPages, pages_of, place};
use ksm_engine::page::{PAGE_SIZE, PageRun};
use ksm_engine::wire::{BUFFER_PAGES, LEDGER_OFFSET, Ledger};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::{Errno, Result};
use rustix::mm::{MremapFlags, mremap_fixed};
use std::os::fd::BorrowedFd;

/// A place for the ledger that stays where it is when the daemon changes. Before the first daemon it is a page of our own.
#[derive(Clone, Copy, Debug)]
pub struct LedgerPlace(&'static Ledger);

impl LedgerPlace {
    /// A place with an empty ledger.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn map() -> Result<Self> {
        place().map(Self)
    }

    /// The ledger.
    #[must_use]
    pub fn get(self) -> &'static Ledger {
        self.0
    }

    /// Where it is.
    #[must_use]
    pub fn run(self) -> PageRun {
        pages_of(self.0)
    }

    /// Puts the ledger of another daemon in its place: that which follows the donation buffer in `memfd`.
    ///
    /// # Errors
    /// When the memfd could be shrunk under it, which would make a fork of the app crash; of `mmap` and `mremap`.
    pub fn attach(self, memfd: BorrowedFd<'_>) -> Result<()> {
        let bytes = u64::try_from(fstat(memfd)?.st_size).unwrap_or(0);
        let fixed = fcntl_get_seals(memfd)?.contains(SealFlags::SHRINK);
        if !fixed || bytes < (BUFFER_PAGES * PAGE_SIZE) as u64 {
            return Err(Errno::INVAL);
        }
        let shared = SharedPages::map(memfd, LEDGER_OFFSET / PAGE_SIZE as u64, 1, true)?;
        shared.populate(0, 1)?;
        shared.move_over(self.0)
    }
}

impl SharedPages {
    fn move_over(self, ledger: &'static Ledger) -> Result<()> {
        let target = std::ptr::from_ref(ledger).cast_mut().cast();
        // SAFETY: both mappings are ours, a page long, and any bytes are a valid ledger; all access to it is atomic.
        unsafe {
            mremap_fixed(
                self.start(),
                PAGE_SIZE,
                PAGE_SIZE,
                MremapFlags::MAYMOVE,
                target,
            )
        }?;
        // Its address range is free, and may be somebody else's already.
        std::mem::forget(self);
        Ok(())
    }
}
