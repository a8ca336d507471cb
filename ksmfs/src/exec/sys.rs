//! Making a process without running a program, and closing what it inherits.
#![allow(unsafe_code, reason = "fork, _exit, close_range")]

use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, OwnedFd};

/// On which side of a fork one is.
pub(super) enum Fork {
    Child,
    Parent(Pid),
}

/// Doubles this process, which must have one thread.
pub(super) fn fork() -> Result<Fork, Errno> {
    // SAFETY: with one thread no lock is held by somebody whom the child lacks.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .map(Fork::Parent)
            .ok_or_else(last_errno),
    }
}

/// Ends this process at once, without what is done at exit: that is the other process's.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Closes all descriptors but the first three and `kept`.
pub(super) fn close_all_but(kept: &OwnedFd) -> Result<(), Errno> {
    let kept = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process opened nothing but `kept`, so that no owner of a descriptor loses it.
            let done = unsafe { libc::close_range(first, last, 0) };
            if done != 0 {
                return Err(last_errno());
            }
        }
    }
    Ok(())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
