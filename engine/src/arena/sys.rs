//! Mapping an arena for filling.
#![allow(unsafe_code, reason = "mapping a file is unsafe")]

use memmap2::{MmapMut, MmapOptions};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Maps the first `len` bytes of `memfd` shared and writable.
///
/// `memfd` must be as long and must not have been handed to anybody yet: the caller seals it before it is.
pub(super) fn map_shared(memfd: BorrowedFd<'_>, len: usize) -> Result<MmapMut, Errno> {
    let mut options = MmapOptions::new();
    options.len(len);
    // SAFETY: the memfd is ours alone until F_SEAL_SHRINK and F_SEAL_FUTURE_WRITE are set, so the mapped bytes can
    // neither vanish nor change but through the returned value.
    let mapping = unsafe { options.map_mut(memfd.as_raw_fd()) };
    mapping.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Maps shared but only for reading, to see what can be made of that.
#[cfg(test)]
pub(super) fn map_shared_read_only(
    memfd: BorrowedFd<'_>,
    len: usize,
) -> std::io::Result<memmap2::Mmap> {
    let mut options = MmapOptions::new();
    options.len(len);
    // SAFETY: the memfd cannot shrink, and the test that maps it writes to it nowhere else.
    unsafe { options.map(memfd.as_raw_fd()) }
}
