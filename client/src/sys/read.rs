//! Reading the app's pages, whatever it does with them meanwhile.
//!
//! As the kernel reads them for a system call (`process_vm_readv` on oneself: a page that the app unmaps meanwhile is an error and
//! not a SIGSEGV, and a page that it writes meanwhile is a torn copy and not undefined behaviour), or by [loads](super::loads)
//! with the same outcome.

use super::loads::{Armed, copy_bytes};
use super::memory::{SharedPages, address_of, length_of};
use ksm_engine::page::{PAGE_SIZE, PageBytes, PageRun};
use rustix::fs::{Mode, OFlags};
use rustix::io::Result;
use rustix::process::getpid;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};

/// Runs that one call reads at most.
pub const READ_RUNS: usize = 64;

/// Pages that the kernel enters with one that is read, unless it was told otherwise.
const FAULTED_AROUND: usize = 16;

/// How an agent reads.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// By system calls.
    Calls,
    /// By loads, in a task that survives their faults.
    Loads(Armed),
}

impl Reading {
    /// Copies the pages of `runs` one after another into `into`; returns how many whole pages it got before the first one
    /// that could not be read (all of them if there was none).
    pub fn read(self, runs: &[PageRun], into: &mut [PageBytes]) -> usize {
        let length = size_of_val(into);
        self.copy(runs, into.as_mut_ptr().cast(), length)
    }

    /// The same, into a shared mapping from page `index` on.
    pub fn read_into_shared(self, runs: &[PageRun], into: &SharedPages, index: usize) -> usize {
        let wanted: u64 = runs.iter().take(READ_RUNS).map(|run| run.len).sum();
        let (local, room) = part_of(into, index);
        self.copy(runs, local, room.min(length_of(wanted)))
    }

    /// Has the kernel enter pages of a file in the page table, as many around each one as it likes to. By loads only: a
    /// system call would enter each by itself.
    pub fn touch(self, run: PageRun) {
        if let Self::Loads(armed) = self {
            let mut byte = 0_u8;
            for page in (run.start..run.end()).step_by(FAULTED_AROUND) {
                copy_bytes(armed, address_of(page), &raw mut byte, 1);
            }
        }
    }

    fn copy(self, runs: &[PageRun], local: *mut c_void, length: usize) -> usize {
        let Self::Loads(armed) = self else {
            return read(runs, local, length);
        };
        let mut done = 0;
        for run in runs.iter().take(READ_RUNS) {
            let wanted = length_of(run.len).min(length - done);
            let to = local.cast::<u8>().wrapping_add(done);
            let got = copy_bytes(armed, address_of(run.start), to, wanted);
            done += got;
            if got < wanted {
                break;
            }
        }
        done / PAGE_SIZE
    }
}

/// Copies the pages of `runs` by system calls, as [`Reading::read`] does.
pub fn read_pages(runs: &[PageRun], into: &mut [PageBytes]) -> usize {
    let length = size_of_val(into);
    read(runs, into.as_mut_ptr().cast(), length)
}

/// The memory of an address space as a file.
///
/// Slower than [`read_pages`], which pins what it reads: the kernel gives a page whose frame a fork shares a frame of its own before
/// it pins it, so that looking at the pages of forked processes would undo what the fork had saved. And it takes that
/// copy for clean: shared by the next fork, it is lost to all once one of them gives it away (`docs/kernel/lost_in_a_child.c`).
#[derive(Debug)]
pub struct Memory(OwnedFd);

impl Memory {
    /// That of the caller.
    ///
    /// # Errors
    /// Of `open`; a process that is not dumpable may not read its own.
    pub fn open() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(c"/proc/self/mem", flags, Mode::empty()).map(Self)
    }

    /// A second descriptor for the same file.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 3).map(Self)
    }

    /// Does what [`read_pages`] does.
    pub fn read(&self, runs: &[PageRun], into: &mut [PageBytes]) -> usize {
        let mut done: usize = 0;
        for run in runs {
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            let end = into.len().min(done.saturating_add(len));
            let part = into
                .get_mut(done..end)
                .unwrap_or(&mut [])
                .as_flattened_mut();
            let got = rustix::io::pread(&self.0, &mut part[..], address_of(run.start) as u64);
            let pages = got.unwrap_or(0) / PAGE_SIZE;
            done += pages;
            if pages < len {
                break;
            }
        }
        done
    }

    /// Does what [`Reading::read_into_shared`] does.
    pub fn read_into_shared(&self, runs: &[PageRun], into: &SharedPages, index: usize) -> usize {
        let mut done = 0;
        for run in runs {
            let (local, room) = part_of(into, index + done);
            let length = room.min(length_of(run.len));
            let offset = i64::try_from(address_of(run.start)).unwrap_or(i64::MAX);
            // SAFETY: `local` has room for as many bytes, in a mapping that others may write to, too.
            let got = unsafe { libc::pread(self.0.as_raw_fd(), local, length, offset) };
            let pages = usize::try_from(got).unwrap_or(0) / PAGE_SIZE;
            done += pages;
            if pages as u64 != run.len {
                break;
            }
        }
        done
    }
}

/// Where page `index` is, and how many bytes there are from there on.
fn part_of(pages: &SharedPages, index: usize) -> (*mut c_void, usize) {
    let target = pages.run();
    let room = target.len.saturating_sub(index as u64);
    let start = target.start + index as u64;
    let local = std::ptr::with_exposed_provenance_mut(address_of(start));
    (local, length_of(room))
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
