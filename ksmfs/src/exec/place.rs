//! The place for the files: `/sys/kernel/mm/ksm`, also where the kernel has no such directory.
//!
//! Sysfs lets nobody make directories. Without KSM in the kernel the nearest directory that exists is therefore covered
//! with a small read-only file system which has the same entries, each bound to what it was, and the missing one.

use super::DIRECTORY;
use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Why the files cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// There is no sysfs at all.
    #[error("/sys is missing: {DIRECTORY} cannot be shown without it")]
    NoSys,
    /// A call failed.
    #[error("{path}: {call}: {errno}")]
    Os {
        /// Where.
        path: PathBuf,
        /// Which.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

fn os(path: &Path, call: &'static str) -> impl Fn(Errno) -> PlaceError {
    move |errno| PlaceError::Os {
        path: path.into(),
        call,
        errno,
    }
}

fn io(path: &Path, call: &'static str) -> impl Fn(io::Error) -> PlaceError {
    move |error| os(path, call)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Sees to it that the directory exists. This process must be in a mount namespace of its own.
pub(super) fn make() -> Result<(), PlaceError> {
    let directory = Path::new(DIRECTORY);
    // A daemon that was killed leaves a mount on which every call fails; the one below it may be alive.
    while rustix::fs::stat(directory).is_err_and(|errno| errno == Errno::NOTCONN) {
        rustix::mount::unmount(directory, UnmountFlags::DETACH).map_err(os(directory, "umount"))?;
    }
    if directory.is_dir() {
        return Ok(());
    }
    let above = directory.ancestors().skip(1).find(|path| path.is_dir());
    match above {
        Some(above) if above != Path::new("/") => rebuild(above, directory),
        _ => Err(PlaceError::NoSys),
    }
}

/// Shows what is mounted at `mount` in the directory.
pub(super) fn bind(mount: &Path) -> Result<(), PlaceError> {
    rustix::mount::mount_bind(mount, DIRECTORY).map_err(os(DIRECTORY.as_ref(), "bind mount"))
}

/// An entry of the directory that is covered.
enum Entry {
    /// Everything mounted at and below it.
    Tree {
        tree: OwnedFd,
        is_directory: bool,
    },
    Link(PathBuf),
}

/// Covers `above` with the same entries and, below it, `wanted`.
fn rebuild(above: &Path, wanted: &Path) -> Result<(), PlaceError> {
    // Taken hold of while they can still be reached.
    let entries = entries_of(above)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("ksmfs-exec", above, "tmpfs", flags, Some(c"mode=755"))
        .map_err(os(above, "mount"))?;
    for (name, entry) in entries {
        put(&above.join(name), entry)?;
    }
    fs::create_dir_all(wanted).map_err(io(wanted, "mkdir"))?;
    let flags = flags | MountFlags::RDONLY | MountFlags::BIND;
    rustix::mount::mount_remount(above, flags, c"").map_err(os(above, "remount"))
}

fn entries_of(directory: &Path) -> Result<Vec<(OsString, Entry)>, PlaceError> {
    let mut entries = Vec::new();
    for found in fs::read_dir(directory).map_err(io(directory, "readdir"))? {
        let name = found.map_err(io(directory, "readdir"))?.file_name();
        let path = directory.join(&name);
        let stat =
            rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).map_err(os(&path, "stat"))?;
        let entry = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Entry::Link(fs::read_link(&path).map_err(io(&path, "readlink"))?),
            kind => Entry::Tree {
                tree: rustix::mount::open_tree(CWD, &path, CLONE)
                    .map_err(os(&path, "open_tree"))?,
                is_directory: kind == FileType::Directory,
            },
        };
        entries.push((name, entry));
    }
    Ok(entries)
}

/// A copy of all mounts at and below a path.
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_RECURSIVE);

fn put(path: &Path, entry: Entry) -> Result<(), PlaceError> {
    match entry {
        Entry::Link(target) => {
            std::os::unix::fs::symlink(target, path).map_err(io(path, "symlink"))
        }
        Entry::Tree { tree, is_directory } => {
            if is_directory {
                rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(os(path, "mkdir"))?;
            } else {
                fs::File::create_new(path).map_err(io(path, "create"))?;
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&tree, "", CWD, path, flags).map_err(os(path, "move_mount"))
        }
    }
}
