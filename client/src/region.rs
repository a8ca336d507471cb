//! Memory that the library maps, registers, and unmaps for the app.

use crate::api::{Client, RegionError};
use crate::embedded::Embedded;
use crate::sys::memory::OwnPages;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;
use std::ops::{Deref, DerefMut, Range};

/// Who merges a region.
#[derive(Clone, Debug)]
pub(crate) enum Keeper {
    Client(Client),
    Embedded(Embedded),
}

impl Keeper {
    fn register_pages(&self, run: PageRun) -> Result<(), RegionError> {
        match self {
            Self::Client(client) => client.register_pages(run),
            Self::Embedded(embedded) => embedded.register_pages(run),
        }
    }

    fn discard_pages(&self, run: PageRun) -> Result<(), RegionError> {
        match self {
            Self::Client(client) => client.discard_pages(run),
            Self::Embedded(embedded) => embedded.discard_pages(run),
        }
    }

    fn forget_pages(&self, run: PageRun) {
        match self {
            Self::Client(client) => client.forget_pages(run),
            Self::Embedded(embedded) => embedded.forget_pages(run),
        }
    }
}

/// Anonymous memory that is merged while it lives. Reads and writes like a slice.
#[derive(Debug)]
pub struct MergeableRegion {
    pages: OwnPages,
    len: usize,
    keeper: Keeper,
}

impl MergeableRegion {
    pub(crate) fn map(keeper: Keeper, len: usize) -> Result<Self, RegionError> {
        let call = "mmap";
        if len == 0 {
            let errno = Errno::INVAL;
            return Err(RegionError::Os { call, errno });
        }
        let pages = OwnPages::map(len.div_ceil(PAGE_SIZE))
            .map_err(|errno| RegionError::Os { call, errno })?;
        keeper.register_pages(pages.run())?;
        Ok(Self { pages, len, keeper })
    }

    /// Empties a range of bytes: it reads as zero afterwards, and whole pages of it take no memory any more.
    ///
    /// # Errors
    /// What `madvise` says.
    ///
    /// # Panics
    /// When the range is not inside the region, as slices do.
    pub fn discard(&mut self, range: Range<usize>) -> Result<(), RegionError> {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "range {range:?} is not inside a region of {} bytes",
            self.len
        );
        // The last page may be emptied whole: what follows the region's end in it is nobody's.
        let end = if range.end == self.len {
            self.len.next_multiple_of(PAGE_SIZE)
        } else {
            range.end
        };
        let (first, last) = (range.start.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        if first >= last {
            self[range].fill(0);
            return Ok(());
        }
        self[range.start..first * PAGE_SIZE].fill(0);
        let tail = last * PAGE_SIZE..range.end.max(last * PAGE_SIZE);
        if !tail.is_empty() {
            self[tail].fill(0);
        }
        let all = self.pages.run();
        self.keeper.discard_pages(PageRun {
            start: all.start + first as u64,
            len: (last - first) as u64,
        })
    }
}

impl Deref for MergeableRegion {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.pages().as_flattened()[..self.len]
    }
}

impl DerefMut for MergeableRegion {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.pages_mut().as_flattened_mut()[..self.len]
    }
}

impl Drop for MergeableRegion {
    fn drop(&mut self) {
        // Before the field is dropped, and the memory with it.
        self.keeper.forget_pages(self.pages.run());
    }
}
