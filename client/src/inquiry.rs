//! What is asked of the daemon on a connection of its own: the figures of this process, and where the daemon's files are.
//!
//! An app that has changed its root directory does not find the socket any more. But its agent has kept the one that it was made
//! in, and the kernel shows below `/proc` what is there.

use crate::fork::PRESENCE;
use crate::link::Link;
use crate::link_state::LinkState;
use crate::presence::Presence;
use crate::sys::memory::Placed;
use ksm_engine::wire::{Figures, MessageBuffer, MountDevice, ToAgent, ToDaemon};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// Where a daemon may listen.
pub(crate) type Addresses = [Option<SocketAddrUnix>; 2];

/// What the daemon counts for this process.
pub(crate) fn figures(addresses: &Addresses) -> Result<Figures, LinkState> {
    ask(addresses, &ToDaemon::Query, |answer| match answer {
        ToAgent::Figures(figures) => Ok(figures),
        ToAgent::Refused(reason) => Err(LinkState::Refused(reason)),
        _ => Err(LinkState::Protocol),
    })
}

/// Where the daemon's files are, and which process id this process has for it.
pub(crate) fn locate(addresses: &Addresses) -> Result<MountDevice, LinkState> {
    ask(addresses, &ToDaemon::Locate, |answer| match answer {
        ToAgent::Mount(device) => Ok(device),
        _ => Err(LinkState::Protocol),
    })
}

/// A directory of `/proc` whose `root` is the root directory that this process had when it began to merge. `None` without an
/// agent. It may not be there: after a `chroot` to where no `/proc` is, or when the app has become another user.
#[must_use]
pub fn first_surroundings() -> Option<PathBuf> {
    let presence = PRESENCE.get().filter(is_native)?;
    let agent = presence.agent.load(Ordering::Acquire);
    (agent != 0).then(|| format!("/proc/{agent}").into())
}

fn is_native(presence: &&Presence) -> bool {
    !presence.is_inherited()
}

fn ask<T>(
    addresses: &Addresses,
    question: &ToDaemon<'_>,
    understand: impl Fn(ToAgent<'_>) -> Result<T, LinkState>,
) -> Result<T, LinkState> {
    let mut buffer = Placed::<MessageBuffer>::new().map_err(LinkState::Failed)?;
    let mut ask_at = |address: &SocketAddrUnix| {
        let link = Link::connect(address)?;
        link.send(question, &mut buffer)?;
        understand(link.answer(&mut buffer)?.0)
    };
    let mut why = LinkState::NoDaemon(Errno::NOENT);
    for address in addresses.iter().flatten() {
        match ask_at(address) {
            Ok(answer) => return Ok(answer),
            Err(state) => why = state,
        }
    }
    let elsewhere = first_surroundings().map(|place| place.join("root"));
    for address in addresses.iter().flatten() {
        let elsewhere = elsewhere.as_deref().and_then(|root| below(root, address));
        if let Some(Ok(answer)) = elsewhere.map(|address| ask_at(&address)) {
            return Ok(answer);
        }
    }
    Err(why)
}

/// The address of a socket, seen from a place where `root` is its root directory.
fn below(root: &Path, address: &SocketAddrUnix) -> Option<SocketAddrUnix> {
    let path = Path::new(OsStr::from_bytes(address.path_bytes()?));
    SocketAddrUnix::new(root.join(path.strip_prefix("/").ok()?)).ok()
}
