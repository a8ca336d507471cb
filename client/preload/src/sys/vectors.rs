//! What a system call's arguments point to, looked at before the call is made.

use super::call::{call, wide};
use rustix::io::Errno;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

/// A descriptor of the app's, for as long as its call takes. `None` if the number cannot be one.
pub fn descriptor(fd: c_int) -> Option<BorrowedFd<'static>> {
    // SAFETY: it is not -1; system calls say so themselves if nothing is open under the number.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// The bytes of a segment of shared memory.
pub fn segment_len(id: c_int) -> Result<usize, Errno> {
    let mut found = MaybeUninit::<libc::shmid_ds>::uninit();
    let place = found.as_mut_ptr().expose_provenance();
    call(libc::SYS_shmctl, [wide(id), wide(libc::IPC_STAT), place])?;
    // SAFETY: the call has succeeded, and filled it in.
    Ok(unsafe { found.assume_init() }.shm_segsz)
}

/// Vectors that are copied at a time.
const SOME: usize = 64;

/// The vectors of a call, as addresses and lengths.
#[derive(Debug)]
pub struct Vectors {
    next: usize,
    left: usize,
    some: [[usize; 2]; SOME],
}

impl Vectors {
    /// `count` vectors from an address on.
    pub fn new(start: usize, count: usize) -> Self {
        Self {
            next: start,
            left: count,
            some: [[0; 2]; SOME],
        }
    }

    /// Whether all of them have been seen.
    pub fn is_at_end(&self) -> bool {
        self.left == 0
    }

    /// The next ones; `None` behind the last one, and where there is no memory: the call will say so.
    pub fn next_some(&mut self) -> Option<&[[usize; 2]]> {
        let count = self.left.min(SOME);
        let bytes = count * size_of::<[usize; 2]>();
        let vector = |base, len| libc::iovec {
            iov_base: base,
            iov_len: len,
        };
        let own = rustix::process::getpid().as_raw_pid();
        let local = vector(self.some.as_mut_ptr().cast(), bytes);
        let remote = vector(std::ptr::with_exposed_provenance_mut(self.next), bytes);
        // SAFETY: `local` is memory of ours with room for `bytes`; the remote side is only read, and an address without
        // memory is an error.
        let got =
            unsafe { libc::process_vm_readv(own, &raw const local, 1, &raw const remote, 1, 0) };
        if count == 0 || usize::try_from(got) != Ok(bytes) {
            return None;
        }
        self.next += bytes;
        self.left -= count;
        self.some.get(..count)
    }
}
