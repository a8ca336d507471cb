//! A daemon that runs: whether it may be trusted, and where its files are.

use crate::mountpoint;
use ksm_client::sys::peer::{Peer, peer_of};
use ksm_client::trust;
use ksm_engine::wire::{MAX_MESSAGE, MessageBuffer, MountDevice, ToAgent, ToDaemon, Versions};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};
use rustix::process::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    /// Nobody listens there.
    #[error("{0}: no daemon there: {1}; start one with `ksmfs mount`, or leave out --socket")]
    NoDaemon(PathBuf, Errno),
    /// Somebody else's.
    #[error("{0}: the daemon there belongs to uid {1}: only root's and one's own are used")]
    Untrusted(PathBuf, u32),
    /// It does not answer as it should.
    #[error("{0}: the daemon there does not answer: {1}")]
    NoAnswer(PathBuf, String),
    /// Its files are nowhere in this mount namespace.
    #[error(
        "{0}: the mount of the daemon there cannot be seen from here: it is in another mount namespace, hidden, or gone"
    )]
    MountNotSeen(PathBuf),
}

/// A daemon that answered.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: PathBuf,
    device: MountDevice,
    pid: Option<Pid>,
}

/// Asks the daemon that listens at `socket`.
pub(super) fn daemon_at(socket: &Path) -> Result<Daemon, ContactError> {
    let mute = |errno: Errno| ContactError::NoAnswer(socket.into(), errno.to_string());
    let (connection, peer) = trusted(socket)?;
    let mut buffer = Box::new(MessageBuffer([0; MAX_MESSAGE]));
    let len = ask(&connection, &mut buffer).map_err(mute)?;
    match ToAgent::decode(&buffer.0[..len]) {
        Ok(ToAgent::Mount(device)) => Ok(Daemon {
            // The command may change its directory.
            socket: std::path::absolute(socket).unwrap_or_else(|_| socket.into()),
            device,
            pid: peer.pid,
        }),
        Ok(other) => Err(ContactError::NoAnswer(socket.into(), format!("{other:?}"))),
        Err(error) => Err(ContactError::NoAnswer(socket.into(), error.to_string())),
    }
}

/// Connects to the daemon that listens at `socket`, if it may be trusted.
pub(crate) fn trusted(socket: &Path) -> Result<(OwnedFd, Peer), ContactError> {
    let none = |errno| ContactError::NoDaemon(socket.into(), errno);
    let mute = |errno: Errno| ContactError::NoAnswer(socket.into(), errno.to_string());
    let connection = open(socket).map_err(none)?;
    let peer = peer_of(connection.as_fd()).map_err(mute)?;
    trust::look_around();
    if trust::is_trusted(peer) {
        Ok((connection, peer))
    } else {
        Err(ContactError::Untrusted(socket.into(), peer.uid))
    }
}

fn open(socket: &Path) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(socket)?;
    let flags = SocketFlags::CLOEXEC;
    let connection = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(&connection, end, Some(PATIENCE))?;
    }
    connect(&connection, &address)?;
    Ok(connection)
}

fn ask(connection: &OwnedFd, buffer: &mut MessageBuffer) -> Result<usize, Errno> {
    let len = ToDaemon::Locate
        .encode(buffer)
        .map_err(|_| Errno::MSGSIZE)?;
    // An older daemon answers as well.
    Versions::SPOKEN.oldest.stamp(buffer);
    send(connection, &buffer.0[..len], SendFlags::NOSIGNAL)?;
    let (_, len) = recv(connection, &mut buffer.0[..], RecvFlags::empty())?;
    Ok(len)
}

impl Daemon {
    /// Whether its files are what is seen at `path`.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let device = rustix::fs::makedev(self.device.major, self.device.minor);
        rustix::fs::stat(path).is_ok_and(|stat| stat.st_dev == device)
    }

    /// Where its files are seen.
    pub(super) fn mount(&self) -> Result<PathBuf, ContactError> {
        mountpoint::path_of(self.device)
            .ok_or_else(|| ContactError::MountNotSeen(self.socket.clone()))
    }

    /// Its process id, if it has one here.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Where it listens.
    pub(super) fn into_socket(self) -> PathBuf {
        self.socket
    }
}
