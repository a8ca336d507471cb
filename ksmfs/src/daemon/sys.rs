//! What the daemon needs from the C library: giving freed memory back, and who is at the other end of a socket.
#![allow(unsafe_code, reason = "calls of the C library")]

use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Trimming walks the whole heap: milliseconds, where merging left much behind.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives memory back to the system that a burst of merging needed and freed. The C library keeps it otherwise, and the
/// daemon's memory is what its promises of saved memory are measured against.
#[derive(Debug)]
pub struct Trimmer {
    last: Instant,
    scans: u64,
}

impl Trimmer {
    /// Has nothing to trim yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            last: Instant::now(),
            scans: 0,
        }
    }

    /// To be called with the number of full scans: trims once after each, but not all the time.
    pub fn trim(&mut self, scans: u64) {
        if scans == self.scans || self.last.elapsed() < PAUSE {
            return;
        }
        self.scans = scans;
        #[cfg(target_env = "gnu")]
        {
            // SAFETY: releases free memory only; it may be called at any time.
            unsafe { libc::malloc_trim(0) };
        }
        self.last = Instant::now();
    }
}

/// From `asm-generic/socket.h`.
const SO_PEERPIDFD: libc::c_int = 77;

/// A descriptor of the process that made the connection (`SO_PEERPIDFD`, Linux 6.5).
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let mut number: libc::c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel writes at most `len` bytes to the number, and the length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut number).cast(),
            &raw mut len,
        )
    };
    if done != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
