//! Whose daemon an app believes: root's and its own user's.
//!
//! In a user namespace that has no number for root, root's daemon cannot be told from anybody else's: the kernel shows
//! the overflow number for all of them. `ksmfs exec` sees the daemon before it makes such a namespace, and leaves the
//! daemon's process id, which the kernel vouches for as well, in the environment.

use crate::sys::peer::Peer;
use std::env;
use std::sync::atomic::{AtomicI32, Ordering};

/// The environment variable with the process id of a daemon that was found to be root's.
pub const VARIABLE: &str = "KSMFS_DAEMON_PID";
/// What the kernel shows for users without a number here (`/proc/sys/kernel/overflowuid`; hardly anybody changes it).
const OVERFLOW: u32 = 65_534;

static VOUCHED: AtomicI32 = AtomicI32::new(0);

/// Takes note of the environment, once, before the first connection: later the app may be changing it.
pub fn look_around() {
    let stated = env::var(VARIABLE).ok().and_then(|pid| pid.parse().ok());
    VOUCHED.store(stated.unwrap_or(0), Ordering::Relaxed);
}

/// Whether the daemon at the other end may be believed.
#[must_use]
pub fn is_trusted(peer: Peer) -> bool {
    let vouched = VOUCHED.load(Ordering::Relaxed);
    trusts(peer, rustix::process::geteuid().as_raw(), vouched)
}

fn trusts(peer: Peer, own: u32, vouched: i32) -> bool {
    let uid = peer.uid;
    let pid = peer.pid.map(|pid| pid.as_raw_nonzero().get());
    let is_vouched = pid == Some(vouched);
    uid == 0 || uid == own || uid == OVERFLOW && is_vouched
}

#[cfg(test)]
mod tests {
    use super::trusts;
    use crate::sys::peer::Peer;
    use rustix::process::Pid;

    fn peer(uid: u32) -> Peer {
        Peer {
            pid: Pid::from_raw(7),
            uid,
        }
    }

    #[test]
    fn roots_and_the_own_daemon_are_trusted_and_no_other() {
        assert!(trusts(peer(0), 1000, 0));
        assert!(trusts(peer(1000), 1000, 0));
        assert!(!trusts(peer(1001), 1000, 7));
        assert!(!trusts(peer(1000), 0, 7));
    }

    #[test]
    fn a_daemon_without_a_number_is_trusted_if_it_was_vouched_for() {
        assert!(trusts(peer(65_534), 1000, 7));
        assert!(!trusts(peer(65_534), 1000, 8));
        assert!(!trusts(peer(65_534), 1000, 0));
        let outside = Peer {
            pid: None,
            ..peer(65_534)
        };
        assert!(!trusts(outside, 1000, 0), "it has no number here");
    }
}
