//! Peers that mean harm, beside two honest processes of another user.
//!
//! The attackers run as root: the kernel denies them nothing, only the daemon can. During each attack the honest pair
//! gets new pages to merge, round by round; all of them must merge, and every byte must stay what it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../ksmfs/tests/stage/agent.rs"]
mod agent;
mod attacks;
mod donating;
mod locks;
mod siege;
mod storms;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);

fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}
