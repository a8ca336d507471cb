//! Where the directory is mounted: what has to hold before, and how to leave it.
//!
//! A daemon that was killed leaves a dead mount, on which every access fails with ENOTCONN; it is cleared at start.
//! A mount with open files refuses to go (EBUSY); it is then detached, and its users get errors, as they would after
//! the daemon's end anyway.

use ksm_engine::wire::MountDevice;
use procfs::process::{MountInfo, Process};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Type of our mounts in `/proc/self/mountinfo`.
pub const FS_TYPE: &str = "fuse.ksmfs";

/// Why there cannot be a mount.
#[derive(Debug, thiserror::Error)]
pub enum MountpointError {
    /// The directory is missing.
    #[error("{0}: no such directory; create it first (mkdir -p)")]
    Missing(PathBuf),
    /// It is something else.
    #[error("{0}: not a directory; name an empty directory to mount at")]
    NotADirectory(PathBuf),
    /// A living daemon serves it.
    #[error("{0}: a ksmfs is already mounted there; stop that daemon or choose another directory")]
    InUse(PathBuf),
    /// Somebody else's dead mount is there.
    #[error("{0}: a dead mount of another program is there; unmount it first (umount -l)")]
    DeadForeign(PathBuf),
    /// No `/dev/fuse`.
    #[error("/dev/fuse is missing: load the kernel's fuse module (modprobe fuse)")]
    NoFuse,
    /// `/dev/fuse` may not be opened.
    #[error("/dev/fuse: {0}: run as root, or give this user access to the device")]
    FuseAccess(Errno),
    /// Without privilege the mount needs a program that is not there.
    #[error("fusermount3 is missing: install the fuse3 package, or run as root")]
    NoFusermount,
    /// Something else failed.
    #[error("{path}: {call}: {errno}")]
    Os {
        /// The directory.
        path: PathBuf,
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

/// Checks that `directory` can be mounted at, and clears a dead mount of ours; its full path. A living one is in the way
/// unless it may be covered.
///
/// # Errors
/// When it cannot. Nothing was changed then.
pub fn prepare(directory: &Path, may_cover: bool) -> Result<PathBuf, MountpointError> {
    let os = |call, errno| MountpointError::Os {
        path: directory.into(),
        call,
        errno,
    };
    let mut stat = rustix::fs::stat(directory);
    if stat.is_err_and(|errno| errno == Errno::NOTCONN) {
        clear_dead(directory)?;
        stat = rustix::fs::stat(directory);
    }
    let stat = stat.map_err(|errno| match errno {
        Errno::NOENT => MountpointError::Missing(directory.into()),
        Errno::NOTDIR => MountpointError::NotADirectory(directory.into()),
        errno => os("stat", errno),
    })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(MountpointError::NotADirectory(directory.into()));
    }
    let path = directory.canonicalize().map_err(|error| {
        os(
            "realpath",
            Errno::from_io_error(&error).unwrap_or(Errno::IO),
        )
    })?;
    if !may_cover && mounted_at(&path).is_some_and(|mount| mount.fs_type == FS_TYPE) {
        return Err(MountpointError::InUse(directory.into()));
    }
    check_fuse()?;
    Ok(path)
}

/// All mounts of ours that this process can see.
#[must_use]
pub fn our_mounts() -> Vec<PathBuf> {
    let mounts = mounts().into_iter();
    mounts
        .filter(|mount| mount.fs_type == FS_TYPE)
        .map(|mount| unescape(&mount.mount_point))
        .collect()
}

/// The device number of the mount at `path`, which tells it from later ones.
#[must_use]
pub fn device_at(path: &Path) -> Option<String> {
    mounted_at(path).map(|mount| mount.majmin)
}

/// The number of a device, from the text that [`device_at`] gives.
#[must_use]
pub fn number(device: &str) -> MountDevice {
    let parse = |(major, minor): (&str, &str)| {
        Some(MountDevice {
            asker: 0,
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    };
    device.split_once(':').and_then(parse).unwrap_or_default()
}

/// Where this process sees the mount of a daemon: the first path that leads to it and not to something mounted above.
#[must_use]
pub fn path_of(device: MountDevice) -> Option<PathBuf> {
    let wanted = rustix::fs::makedev(device.major, device.minor);
    let leads_there = |path: &PathBuf| rustix::fs::stat(path).is_ok_and(|s| s.st_dev == wanted);
    our_mounts().into_iter().find(leads_there)
}

/// Detaches the mount with this device number from `path`, even if files in it are open. Their users get errors.
///
/// # Errors
/// When the system refuses.
pub fn detach(path: &Path, device: &str) -> Result<(), Errno> {
    if device_at(path).as_deref() != Some(device) {
        return Ok(());
    }
    // FORCE ends the connection at once, so that nobody hangs on a daemon that is gone.
    unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH)
}

fn unmount(path: &Path, flags: UnmountFlags) -> Result<(), Errno> {
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => {
            let program = fusermount().ok_or(Errno::PERM)?;
            let done = Command::new(program)
                .args(["-u", "-z", "-q", "--"])
                .arg(path)
                .stdin(Stdio::null())
                .status();
            match done {
                Ok(status) if status.success() => Ok(()),
                _ => Err(Errno::PERM),
            }
        }
        done => done,
    }
}

/// Clears what a killed daemon left. The path cannot be resolved as a whole: its last step is what is dead.
fn clear_dead(directory: &Path) -> Result<(), MountpointError> {
    let parent = directory.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new(".")).canonicalize().ok();
    let path = parent
        .zip(directory.file_name())
        .map(|(parent, name)| parent.join(name));
    let ours = path.filter(|path| mounted_at(path).is_some_and(|m| m.fs_type == FS_TYPE));
    let Some(path) = ours else {
        return Err(MountpointError::DeadForeign(directory.into()));
    };
    log::info!(
        "{}: clearing the mount of a daemon that is gone",
        path.display()
    );
    unmount(&path, UnmountFlags::DETACH).map_err(|errno| MountpointError::Os {
        path,
        call: "umount",
        errno,
    })
}

fn check_fuse() -> Result<(), MountpointError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open("/dev/fuse", flags, Mode::empty()) {
        Ok(_) => {}
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return Err(MountpointError::NoFuse),
        Err(errno) => return Err(MountpointError::FuseAccess(errno)),
    }
    if !rustix::process::geteuid().is_root() && fusermount().is_none() {
        return Err(MountpointError::NoFusermount);
    }
    Ok(())
}

/// The helper that mounts and unmounts for users.
fn fusermount() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/bin", "/sbin"].map(PathBuf::from))
        .flat_map(|dir| ["fusermount3", "fusermount"].map(|name| dir.join(name)))
        .find(|candidate| candidate.is_file())
}

fn mounts() -> Vec<MountInfo> {
    let mounts = Process::myself().and_then(|own| own.mountinfo());
    mounts.map(|mounts| mounts.0).unwrap_or_default()
}

/// The topmost mount at exactly this path.
fn mounted_at(path: &Path) -> Option<MountInfo> {
    mounts()
        .into_iter()
        .rev()
        .find(|mount| unescape(&mount.mount_point) == path)
}

/// The kernel writes blanks, tabs, newlines and backslashes in mountinfo as three octal digits.
fn unescape(path: &Path) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut rest = path.as_os_str().as_bytes();
    let mut plain = Vec::with_capacity(rest.len());
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::{MountpointError, prepare, unescape};
    use std::path::Path;

    #[test]
    fn escaped_paths_become_plain() {
        let plain = |path: &str| unescape(Path::new(path)).display().to_string();
        assert_eq!(plain(r"/a\040b\011c"), "/a b\tc");
        assert_eq!(plain(r"/a\134b"), r"/a\b");
        assert_eq!(plain(r"/a\04"), r"/a\04");
        assert_eq!(plain(r"/a\"), r"/a\");
    }

    #[test]
    fn only_a_directory_can_be_mounted_at() {
        let dir = tempfile::tempdir().unwrap();
        let missing = prepare(&dir.path().join("missing"), false);
        assert!(matches!(missing, Err(MountpointError::Missing(_))));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            prepare(&file, false),
            Err(MountpointError::NotADirectory(_))
        ));
        let below = prepare(&file.join("below"), false);
        assert!(matches!(below, Err(MountpointError::NotADirectory(_))));
    }
}
