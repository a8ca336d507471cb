//! An arena as the agent gets it: a descriptor from somebody it does not trust.
//!
//! What it maps must never change and never shrink, or the app would read other bytes or die of a SIGBUS. The seals
//! say so; a descriptor without them is not mapped. Slots are read into memory of ours before their pages are held: that takes
//! less than mapping them for a look, and leaves nothing to wait for while somebody waits for us.

use crate::sys::memory::OwnPages;
use ksm_engine::page::{PAGE_SIZE, PageBytes};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// The arena of an order, and a window on its slots for comparison.
#[derive(Debug)]
pub struct Arena<'a> {
    fd: BorrowedFd<'a>,
    inode: u64,
    window: &'a mut OwnPages,
    /// The slots that are in the window.
    shown: Range<u32>,
}

impl<'a> Arena<'a> {
    /// Checks the arena. `None` if it cannot be trusted, or has no slots up to `end`.
    #[must_use]
    pub fn open(fd: BorrowedFd<'a>, end: u32, window: &'a mut OwnPages) -> Option<Self> {
        let stat = fstat(fd).ok()?;
        let slots = u64::try_from(stat.st_size).ok()? / PAGE_SIZE as u64;
        if u64::from(end) > slots || end == 0 {
            return None;
        }
        let seals = fcntl_get_seals(fd).ok()?;
        let size_is_fixed = seals.contains(SealFlags::SHRINK | SealFlags::GROW);
        if !size_is_fixed || !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
            return None;
        }
        Some(Self {
            fd,
            inode: stat.st_ino,
            window,
            shown: 0..0,
        })
    }

    /// The descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'a> {
        self.fd
    }

    /// Its inode.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Reads slots, so that pages can be compared with them, and those behind them up to before `end` as far as there is
    /// room. False if that cannot be.
    #[must_use]
    pub fn read(&mut self, slots: Range<u32>, end: u32) -> bool {
        if self.shown.start <= slots.start && slots.end <= self.shown.end {
            return true;
        }
        self.shown = 0..0;
        let room = u32::try_from(self.window.pages().len()).unwrap_or(u32::MAX);
        let end = end.clamp(slots.end, slots.start.saturating_add(room).max(slots.end));
        let wanted = usize::try_from(end - slots.start).unwrap_or(usize::MAX);
        let Some(into) = self.window.pages_mut().get_mut(..wanted) else {
            return false;
        };
        let into = into.as_flattened_mut();
        let offset = u64::from(slots.start) * PAGE_SIZE as u64;
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(self.fd, rest, offset + done as u64) {
                Ok(got) if got > 0 => done += got,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return false,
            }
        }
        self.shown = slots.start..end;
        true
    }

    /// Whether a slot that was read has these bytes, all of them.
    #[must_use]
    pub fn equals(&self, slot: u32, page: &PageBytes) -> bool {
        let index = slot.checked_sub(self.shown.start);
        let index = index.filter(|_| self.shown.contains(&slot));
        let shown = index.and_then(|index| self.window.page(usize::try_from(index).ok()?));
        shown.is_some_and(|shown| shown == page)
    }
}

/// The end of the slots that follow each other, from the first run on.
pub fn end_of_stretch(runs: &[ksm_engine::order::MapRun]) -> u32 {
    let mut end = runs.first().map_or(0, |run| run.slot);
    for run in runs {
        if run.slot != end {
            break;
        }
        end = end.saturating_add(run.len);
    }
    end
}
