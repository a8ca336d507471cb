//! Who is at the other end of a socket.
//!
//! Not by rustix: its process ids are never 0, and 0 is what the kernel says of a process that has no number in the
//! caller's pid namespace, such as a daemon outside of the app's container.

use rustix::io::{Errno, Result};
use rustix::process::Pid;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the kernel vouches for, as it was when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id; `None` if it has none here.
    pub pid: Option<Pid>,
    /// User id.
    pub uid: u32,
}

/// Asks the kernel.
///
/// # Errors
/// Of `getsockopt`.
pub fn peer_of(socket: BorrowedFd<'_>) -> Result<Peer> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = libc::socklen_t::try_from(size_of_val(&found)).map_err(|_| Errno::INVAL)?;
    // SAFETY: `found` has `len` bytes to be written, and any bytes are a valid ucred.
    let returned = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    if returned != 0 {
        let number = std::io::Error::last_os_error().raw_os_error();
        return Err(Errno::from_raw_os_error(number.unwrap_or(libc::EINVAL)));
    }
    Ok(Peer {
        pid: Pid::from_raw(found.pid),
        uid: found.uid,
    })
}
