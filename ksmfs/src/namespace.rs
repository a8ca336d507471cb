//! Mount namespaces: what a command and its children see, and nobody else.
//!
//! A namespace needs the privilege to mount, or a user namespace that brings it. In one of those the user keeps the own
//! user and group number; all others look like nobody's, and set-uid programs have no effect.

mod sys;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use std::fs;
use std::io;
use std::path::Path;

/// What may forbid user namespaces, and the value with which it does.
const FORBIDDING: [(&str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ),
];

/// Why there is no private namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Neither kind of namespace may be made.
    #[error(
        "a private mount namespace needs root (CAP_SYS_ADMIN) or user namespaces, and this user may make none: {0}"
    )]
    NotAllowed(String),
    /// The user namespace was made but could not be set up.
    #[error("setting up the user namespace: {0}: {1}")]
    UserMap(&'static str, io::Error),
    /// Mounts would show up outside.
    #[error("keeping mounts inside the namespace: {0} (is the root directory a mount point?)")]
    Propagation(Errno),
    /// Something else failed.
    #[error("unshare: {0}")]
    Os(Errno),
}

/// Moves this process, which must have one thread, into a mount namespace of its own. Mounts made outside later appear
/// inside, none made inside appears outside.
///
/// # Errors
/// When it is not allowed.
pub fn enter() -> Result<(), NamespaceError> {
    match sys::unshare_mounts() {
        Ok(()) => {}
        Err(Errno::PERM) => enter_as_user()?,
        Err(errno) => return Err(NamespaceError::Os(errno)),
    }
    keep_inside().map_err(NamespaceError::Propagation)
}

fn keep_inside() -> Result<(), Errno> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
}

fn enter_as_user() -> Result<(), NamespaceError> {
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    sys::unshare_user_and_mounts().map_err(|errno| NamespaceError::NotAllowed(reason(errno)))?;
    for (file, text) in [
        // Before the group map: who may drop groups may read what they are kept from.
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
    ] {
        fs::write(file, text).map_err(|error| NamespaceError::UserMap(file, error))?;
    }
    Ok(())
}

fn reason(errno: Errno) -> String {
    let is = |(file, value): &&(&str, &str)| {
        fs::read_to_string(file).is_ok_and(|text| text.trim() == *value)
    };
    match FORBIDDING.iter().find(is) {
        Some((file, value)) => format!("{file} is {value}"),
        None => format!("{errno} (a container or a security module forbids it)"),
    }
}

/// Moves this process, which must have one thread, into a mount namespace without the mount at `path`. Whoever stays
/// behind keeps it.
///
/// # Errors
/// When the system refuses.
pub fn leave_mount(path: &Path) -> Result<(), Errno> {
    sys::unshare_mounts()?;
    keep_inside()?;
    rustix::mount::unmount(path, UnmountFlags::DETACH)
}
