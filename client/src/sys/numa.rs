//! Asking the kernel on which NUMA nodes pages are.
#![allow(unsafe_code, reason = "a system call that libraries do not wrap")]

use super::memory::address_of;
use ksm_engine::page::NumaNode;
use std::ffi::{c_int, c_void};

/// Pages that one call asks for at most.
const MOST: usize = 64;

/// Says on which nodes the first `count` of `pages` of this address space are. Pages that are not there any more, and all
/// of them on a kernel without NUMA, count as on node 0.
pub fn nodes_of(pages: &[u64; MOST], count: usize, into: &mut [NumaNode; MOST]) {
    let count = count.min(MOST);
    let addresses: [*const c_void; MOST] =
        pages.map(|page| std::ptr::without_provenance(address_of(page)));
    let mut status: [c_int; MOST] = [0; MOST];
    // SAFETY: both arrays have at least `count` elements; without a list of nodes nothing is moved, only `status` written.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            count,
            addresses.as_ptr(),
            std::ptr::null::<c_int>(),
            status.as_mut_ptr(),
            0,
        )
    };
    for (node, status) in into.iter_mut().zip(status).take(count) {
        let found = u16::try_from(status).ok().filter(|_| result == 0);
        *node = NumaNode(found.unwrap_or(0));
    }
}
