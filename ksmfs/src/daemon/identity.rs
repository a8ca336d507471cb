//! Who a peer is.
//!
//! The kernel vouches for the uid and the process id of the connecting task (`SO_PEERCRED`). An agent is a task of
//! its own whose parent is the app, so the app's pid that it states must be its own or its parent's. The numbers it
//! states are those of its own pid namespace, which the kernel's are not.

use ksm_client::sys::peer::peer_of;
use procfs::process::Process;
use rustix::io::Errno;
use rustix::process::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// What the kernel says about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id when it connected.
    pub uid: u32,
    /// Process id, in the daemon's pid namespace.
    pub pid: Pid,
}

/// Asks the kernel who is at the other end.
///
/// # Errors
/// When it does not say, and `ESRCH` when the peer has no number here: it lives outside of the daemon's container.
pub fn credentials(socket: BorrowedFd<'_>) -> Result<Credentials, Errno> {
    let found = peer_of(socket)?;
    Ok(Credentials {
        uid: found.uid,
        pid: found.pid.ok_or(Errno::SRCH)?,
    })
}

/// The process id (in the daemon's namespace) of the app that `peer` says it serves, if `claimed` is its own or its
/// parent's number in its own namespace. `None` also when the peer is gone.
#[must_use]
pub fn app_pid(peer: Pid, claimed: u32) -> Option<Pid> {
    let peer = peer.as_raw_nonzero().get();
    let claimed = i32::try_from(claimed).ok()?;
    let own = numbers(peer)?;
    if own.innermost == claimed {
        return Pid::from_raw(peer);
    }
    let parent = numbers(own.parent)?;
    if parent.innermost == claimed {
        return Pid::from_raw(own.parent);
    }
    None
}

/// The cgroup of a process, of version 2, below the root that the daemon sees. `None` also when it has ended.
#[must_use]
pub fn cgroup(process: &OwnedFd) -> Option<String> {
    let pid = number_of(process)?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    // The number was its own all the time: it has one still.
    number_of(process)?;
    let own = text.split('\n').find_map(|line| line.strip_prefix("0::"))?;
    // So the kernel names one that was removed, which none with a process in it is, or one outside of what is seen here.
    let known = !own.ends_with(" (deleted)") && own != "/.." && !own.starts_with("/../");
    known.then(|| own.to_owned())
}

/// The process id that a descriptor of a process stands for, while it has not been reaped.
fn number_of(process: &OwnedFd) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    // 0: of another pid namespace, -1: it has been reaped.
    number.trim().parse().ok().filter(|pid| *pid != 0)
}

struct Numbers {
    /// The process's number in the innermost of the namespaces it lives in.
    innermost: i32,
    /// Its parent's number in the daemon's.
    parent: i32,
}

fn numbers(pid: i32) -> Option<Numbers> {
    let status = Process::new(pid).and_then(|p| p.status()).ok()?;
    let innermost = status.nspid.as_ref().and_then(|all| all.last().copied());
    Some(Numbers {
        innermost: innermost.unwrap_or(pid),
        parent: status.ppid,
    })
}

#[cfg(test)]
mod tests {
    use super::app_pid;
    use rustix::process::{Pid, getpid, getppid};

    fn number(pid: Pid) -> u32 {
        pid.as_raw_nonzero().get().cast_unsigned()
    }

    #[test]
    fn a_peer_may_speak_for_itself_and_for_its_parent() {
        let (own, parent) = (getpid(), getppid().unwrap());
        assert_eq!(app_pid(own, number(own)), Some(own));
        assert_eq!(app_pid(own, number(parent)), Some(parent));
    }

    #[test]
    fn a_peer_may_not_speak_for_anybody_else() {
        assert_eq!(app_pid(getpid(), 1_999_999_999), None);
        assert_eq!(app_pid(getpid(), 0), None);
        assert_eq!(app_pid(getpid(), u32::MAX), None);
        // A child is not the peer's to speak for.
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let claimed = app_pid(getpid(), child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(claimed, None);
    }

    #[test]
    fn a_peer_in_a_container_states_the_number_it_has_there() {
        let mut container = std::process::Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sleep", "60"])
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", container.id());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let inside = loop {
            assert!(std::time::Instant::now() < deadline, "no process in it");
            let children = std::fs::read_to_string(&children).unwrap();
            if let Some(child) = children.split_whitespace().next() {
                break Pid::from_raw(child.parse().unwrap()).unwrap();
            }
            std::thread::yield_now();
        };
        let by_its_number = app_pid(inside, 1);
        let by_ours = app_pid(inside, number(inside));
        rustix::process::kill_process(inside, rustix::process::Signal::KILL).unwrap();
        container.wait().unwrap();
        assert_eq!(by_its_number, Some(inside));
        assert_eq!(by_ours, None);
    }
}
