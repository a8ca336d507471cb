//! Mapping an arena for filling.
#![allow(unsafe_code, reason = "mapping a file is unsafe")]

pub(super) mod filler;

use crate::page::NumaNode;
use memmap2::{MmapMut, MmapOptions};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The most NUMA nodes that a kernel is built for are 1024.
const NODE_WORDS: usize = 16;

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

/// Has the memfd behind `mapping` take its memory from `node` for as long as there is any. The policy belongs to the memfd
/// and not to the mapping: shared memory has one, which `fallocate` follows too.
pub(super) fn prefer_node(mapping: &MmapMut, node: NumaNode) -> Result<(), Errno> {
    let mut mask = [0_u64; NODE_WORDS];
    let word = mask.get_mut(usize::from(node.0) / 64).ok_or(Errno::INVAL)?;
    *word = 1 << (node.0 % 64);
    // SAFETY: `mask` has as many bits as the call is told, and the policy of memory changes no byte of it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            mapping.as_ptr(),
            mapping.len(),
            libc::MPOL_PREFERRED,
            mask.as_ptr(),
            NODE_WORDS * 64 + 1,
            0,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
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

/// The node that a byte in memory is on.
#[cfg(test)]
pub(super) fn node_of(byte: &u8) -> Result<NumaNode, Errno> {
    let address = std::ptr::from_ref(byte);
    let mut status: std::ffi::c_int = -1;
    // SAFETY: one address and one place for its status; without a list of nodes nothing is moved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            1_usize,
            &raw const address,
            std::ptr::null::<std::ffi::c_int>(),
            &raw mut status,
            0,
        )
    };
    let node = u16::try_from(status).map_err(|_| Errno::NOENT)?;
    if result == 0 {
        Ok(NumaNode(node))
    } else {
        Err(Errno::NOSYS)
    }
}
