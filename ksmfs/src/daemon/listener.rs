//! The socket that agents connect to.
//!
//! A socket file outlives a daemon that was killed, so an existing one is tried: nobody behind it, and it is replaced.
//! The file is removed at the end only if it is still the one that was made here.

use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Connections that may wait to be taken.
const BACKLOG: i32 = 1024;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error(
        "{0}: another daemon is listening there; stop it, or choose another path with --socket"
    )]
    Taken(PathBuf),
    /// The path names something that is no socket.
    #[error("{0}: exists and is no socket; remove it, or choose another path with --socket")]
    NotASocket(PathBuf),
    /// The path does not fit an address.
    #[error("{0}: too long for a socket path; choose a shorter one with --socket")]
    TooLong(PathBuf),
    /// A system call failed.
    #[error(
        "{path}: {call}: {errno}; check that its directory exists and that you may write there"
    )]
    Os {
        /// The path.
        path: PathBuf,
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

/// The listening socket and its file.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    made: (u64, u64),
}

impl Listener {
    /// Listens at `path`; file mode `mode` says who may connect.
    ///
    /// # Errors
    /// When the path is in use, or the system refuses. Nothing is left behind then.
    pub fn bind(path: &Path, mode: Mode) -> Result<Self, SocketError> {
        let os = |call| {
            move |errno| SocketError::Os {
                path: path.into(),
                call,
                errno,
            }
        };
        let address = SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.into()))?;
        let socket = new_socket().map_err(os("socket"))?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                rustix::net::bind(&socket, &address).map_err(|errno| match errno {
                    Errno::ADDRINUSE => SocketError::Taken(path.into()),
                    errno => os("bind")(errno),
                })?;
            }
            bound => bound.map_err(os("bind"))?,
        }
        let made = rustix::fs::lstat(path).map_err(os("stat"))?;
        let listener = Self {
            socket,
            path: path.into(),
            made: identity(&made),
        };
        // Before listen: until then nobody can connect, whatever the umask made of the mode.
        rustix::fs::chmod(path, mode).map_err(os("chmod"))?;
        rustix::net::listen(&listener.socket, BACKLOG).map_err(os("listen"))?;
        Ok(listener)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a waiting connection, if there is one.
    ///
    /// # Errors
    /// When the system refuses, for want of descriptors or memory.
    pub fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            return match rustix::net::accept_with(&self.socket, flags) {
                Ok(peer) => Ok(Some(peer)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => Err(errno),
            };
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if rustix::fs::lstat(&self.path).is_ok_and(|stat| identity(&stat) == self.made) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let os = |call, errno| SocketError::Os {
        path: path.into(),
        call,
        errno,
    };
    let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| os("stat", errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(SocketError::NotASocket(path.into()));
    }
    let probe = new_socket().map_err(|errno| os("socket", errno))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            log::info!(
                "{}: replacing the socket of a daemon that is gone",
                path.display()
            );
            rustix::fs::unlink(path).map_err(|errno| os("unlink", errno))
        }
        // A full backlog (EAGAIN) and a socket of another type (EPROTOTYPE) have somebody behind them, too.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(SocketError::Taken(path.into())),
        Err(errno) => Err(os("connect", errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Listener, SocketError};
    use rustix::fs::Mode;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_nobody_listens_at_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path, Mode::from_raw_mode(0o600)).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_somebody_listens_at_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&path, Mode::from_raw_mode(0o600)).unwrap();
        let second = Listener::bind(&path, Mode::from_raw_mode(0o600));
        assert!(matches!(second, Err(SocketError::Taken(_))));
        let other = dir.path().join("t");
        let _stream = UnixListener::bind(&other).unwrap();
        let third = Listener::bind(&other, Mode::from_raw_mode(0o600));
        assert!(matches!(third, Err(SocketError::Taken(_))));
        assert!(first.path().exists() && other.exists());
    }

    #[test]
    fn a_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let refused = Listener::bind(&path, Mode::from_raw_mode(0o600));
        assert!(matches!(refused, Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn only_the_own_socket_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&path, Mode::from_raw_mode(0o600)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path, Mode::from_raw_mode(0o600)).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
