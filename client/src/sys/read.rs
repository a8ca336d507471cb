//! Reading the app's pages as the kernel reads them for a system call.
//!
//! `process_vm_readv` on oneself: a page that the app unmaps meanwhile is an error and not a SIGSEGV, and a page that it
//! writes meanwhile is a torn copy and not undefined behaviour.

use super::memory::{SharedPages, address_of, length_of};
use ksm_engine::page::{PAGE_SIZE, PageBytes, PageRun};
use rustix::process::getpid;
use std::ffi::c_void;

/// Runs that one call reads at most.
pub const READ_RUNS: usize = 64;

/// Copies the pages of `runs` one after another into `into`; returns how many whole pages it got before the first one
/// that could not be read (all of them if there was none).
pub fn read_pages(runs: &[PageRun], into: &mut [PageBytes]) -> usize {
    let length = size_of_val(into);
    read(runs, into.as_mut_ptr().cast(), length)
}

/// The same, into a shared mapping from page `index` on.
pub fn read_pages_into_shared(run: PageRun, into: &SharedPages, index: usize) -> usize {
    let target = into.run();
    let room = target.len.saturating_sub(index as u64);
    let start = target.start + index as u64;
    let local = std::ptr::with_exposed_provenance_mut(address_of(start));
    read(&[run], local, length_of(room))
}

fn read(runs: &[PageRun], local: *mut c_void, length: usize) -> usize {
    let empty = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut remote = [empty; READ_RUNS];
    let mut count = 0;
    for (vector, run) in remote.iter_mut().zip(runs) {
        vector.iov_base = std::ptr::with_exposed_provenance_mut(address_of(run.start));
        vector.iov_len = length_of(run.len);
        count += 1;
    }
    let into = libc::iovec {
        iov_base: local,
        iov_len: length,
    };
    let pid = getpid().as_raw_pid();
    // SAFETY: `into` is memory of `length` bytes that the caller lent for writing; the remote side is only read, and
    // an address without memory is an error.
    let got = unsafe { libc::process_vm_readv(pid, &raw const into, 1, remote.as_ptr(), count, 0) };
    usize::try_from(got).unwrap_or(0) / PAGE_SIZE
}
