//! An arena as the agent gets it: a descriptor from somebody it does not trust.
//!
//! What it maps must never change and never shrink, or the app would read other bytes or die of a SIGBUS. The seals
//! say so; a descriptor without them is not mapped.

use crate::sys::memory::SharedPages;
use ksm_engine::page::{PAGE_SIZE, PageBytes, PageRun};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// The slots of an order, mapped for comparison.
#[derive(Debug)]
pub struct Arena<'fd> {
    fd: BorrowedFd<'fd>,
    inode: u64,
    first: u32,
    slots: SharedPages,
}

impl<'fd> Arena<'fd> {
    /// Checks the arena and maps the slots from `first` to before `end`. `None` if it cannot be trusted or mapped.
    #[must_use]
    pub fn open(fd: BorrowedFd<'fd>, first: u32, end: u32) -> Option<Self> {
        let stat = fstat(fd).ok()?;
        let slots = u64::try_from(stat.st_size).ok()? / PAGE_SIZE as u64;
        if u64::from(end) > slots || first >= end {
            return None;
        }
        let seals = fcntl_get_seals(fd).ok()?;
        let size_is_fixed = seals.contains(SealFlags::SHRINK | SealFlags::GROW);
        if !size_is_fixed || !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
            return None;
        }
        let count = usize::try_from(end - first).ok()?;
        Some(Self {
            fd,
            inode: stat.st_ino,
            first,
            slots: SharedPages::map(fd, first.into(), count, false).ok()?,
        })
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'fd> {
        self.fd
    }

    /// Its inode.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Where it is mapped for comparison.
    #[must_use]
    pub fn run(&self) -> PageRun {
        self.slots.run()
    }

    /// Makes slots present, so that comparing does not wait. False if that cannot be.
    #[must_use]
    pub fn populate(&self, slots: Range<u32>) -> bool {
        let index = self.index(slots.start);
        let count = usize::try_from(slots.end.saturating_sub(slots.start));
        match (index, count) {
            (_, Ok(0)) => true,
            (Some(index), Ok(count)) => self.slots.populate(index, count).is_ok(),
            _ => false,
        }
    }

    /// Whether a slot has these bytes, all of them.
    #[must_use]
    pub fn equals(&self, slot: u32, page: &PageBytes) -> bool {
        self.index(slot)
            .is_some_and(|index| self.slots.equals(index, page))
    }

    fn index(&self, slot: u32) -> Option<usize> {
        usize::try_from(slot.checked_sub(self.first)?).ok()
    }
}
