//! Leaving namespaces.
#![allow(unsafe_code, reason = "unshare is unsafe because of its other flags")]

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A mount namespace of its own for the calling thread.
pub(super) fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: only sharing the descriptor table's end is unsafe, and the table stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
}

/// The same in a user namespace of its own.
pub(super) fn unshare_user_and_mounts() -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
}
