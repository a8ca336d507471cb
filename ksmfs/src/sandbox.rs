//! Rights that the daemon gives up once it is mounted and listens.
//!
//! What is left to root's daemon: `CAP_SYS_ADMIN`, with which it unmounts at its end, `CAP_DAC_OVERRIDE` where it could not
//! reach its mount or remove its socket without, as below another user's home, and system calls that such a daemon makes.
//! Threads that are started later are restricted alike. A user's daemon has no capabilities, and unmounts with a set-user-id
//! program, which would not work without new privileges: it stays as it is.

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Why not all rights were given up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Capabilities or new privileges.
    #[error("giving up rights: {0}: {1}")]
    Os(&'static str, Errno),
    /// The filter could not be made.
    #[error("making a filter of system calls: {0}")]
    Filter(#[from] BackendError),
    /// The kernel did not take it.
    #[error("installing a filter of system calls: {0}")]
    Install(#[from] seccompiler::Error),
}

/// System calls that are answered with EPERM: what turns a hole in the daemon into the host's. No list of what is
/// allowed: one that misses a call of some C library or kernel would break a daemon that did nothing wrong.
const DENIED: &[i64] = &[
    // Other programs, other identities, other processes' memory.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // Mounts and namespaces, but for unmounting.
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_mknodat,
    libc::SYS_personality,
];

/// Gives up what is not needed any more. To be called by the one thread that there is, as root. `mount` and `socket` are what
/// it unmounts and removes at its end.
///
/// # Errors
/// When the system refuses. What was given up stays given up.
pub fn enter(mount: &Path, socket: &Path) -> Result<(), SandboxError> {
    let mut kept = CapabilitySet::SYS_ADMIN;
    keep_effective(kept)?;
    let socket_access = Access::EXEC_OK | Access::WRITE_OK;
    if !allows_above(mount, Access::EXEC_OK) || !allows_above(socket, socket_access) {
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    drop_capabilities(kept)?;
    let os = |call| move |errno| SandboxError::Os(call, errno);
    rustix::thread::set_no_new_privs(true).map_err(os("PR_SET_NO_NEW_PRIVS"))?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(())
}

/// Whether the directory that something is in can be used so.
fn allows_above(path: &Path, access: Access) -> bool {
    let above = path
        .parent()
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    accessat(CWD, above, access, AtFlags::EACCESS).is_ok()
}

/// Puts all capabilities but these aside.
fn keep_effective(kept: CapabilitySet) -> Result<(), SandboxError> {
    let os = |call| move |errno| SandboxError::Os(call, errno);
    let mut sets = rustix::thread::capabilities(None).map_err(os("capget"))?;
    sets.effective = sets.permitted & kept;
    rustix::thread::set_capabilities(None, sets).map_err(os("capset"))
}

fn drop_capabilities(kept: CapabilitySet) -> Result<(), SandboxError> {
    let os = |call| move |errno| SandboxError::Os(call, errno);
    keep_effective(CapabilitySet::all())?;
    let had = rustix::thread::capabilities(None).map_err(os("capget"))?;
    if had.permitted.contains(CapabilitySet::SETPCAP) {
        // Up to the first number that the kernel does not know.
        for capability in (0..64).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
            match rustix::thread::capability_is_in_bounding_set(capability) {
                Ok(true) if !kept.contains(capability) => {
                    rustix::thread::remove_capability_from_bounding_set(capability)
                        .map_err(os("PR_CAPBSET_DROP"))?;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    let kept = had.permitted & kept;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(os("capset"))
}

fn filter() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|call| (*call, Vec::new())).collect();
    // To whom it listens and whom it tells that it is ready are all on this host.
    let abroad = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        libc::AF_UNIX.unsigned_abs().into(),
    )?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![abroad])?]);
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::mount::UnmountFlags;
    use std::io::ErrorKind;

    const INSIDE: &str = "sandbox::tests::inside";

    /// Rights given up do not come back, so that this is a process of its own.
    #[test]
    fn what_was_given_up_cannot_be_done() {
        let own = std::env::current_exe().unwrap();
        let run = std::process::Command::new(own)
            .args([
                INSIDE,
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(
            run.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&run.stderr)
        );
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "a process of its own"]
    fn inside() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        rustix::fs::chown(
            &secret,
            Some(rustix::fs::Uid::from_raw(65534)),
            Some(rustix::fs::Gid::from_raw(65534)),
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&secret, mode).unwrap();
        assert!(std::fs::read(&secret).is_ok(), "root reads everything");
        super::enter(&dir.path().join("mount"), &dir.path().join("socket")).unwrap();
        let denied = |result: std::io::Result<()>| {
            let kind = result.expect_err("it was allowed").kind();
            assert_eq!(kind, ErrorKind::PermissionDenied);
        };
        denied(std::fs::read(&secret).map(drop));
        denied(std::process::Command::new("true").status().map(drop));
        denied(std::net::TcpListener::bind("127.0.0.1:0").map(drop));
        let mount = rustix::mount::mount_bind(dir.path(), dir.path());
        assert_eq!(mount, Err(Errno::PERM));
        // What it does until its end.
        assert_eq!(
            rustix::mount::unmount(dir.path(), UnmountFlags::DETACH),
            Err(Errno::INVAL)
        );
        let memfd = rustix::fs::memfd_create(c"m", rustix::fs::MemfdFlags::ALLOW_SEALING);
        rustix::fs::ftruncate(memfd.unwrap(), 4096).unwrap();
        std::os::unix::net::UnixStream::pair().unwrap();
        std::fs::read_to_string("/proc/1/status").unwrap();
        std::thread::spawn(|| ()).join().unwrap();
    }
}
