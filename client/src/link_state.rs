//! How this process and the daemon stand to each other, in one word that every task may read and write.

use ksm_engine::wire::RefusalReason;
use rustix::io::Errno;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// How this process and the daemon stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Nobody has tried yet.
    Starting,
    /// The daemon knows this process.
    Connected,
    /// Nobody listens, or the daemon went away.
    NoDaemon(Errno),
    /// Somebody listens who is neither root nor us.
    Untrusted {
        /// The user.
        uid: u32,
    },
    /// The daemon does not take us.
    Refused(RefusalReason),
    /// The daemon said something that this version does not understand.
    Protocol,
    /// Neither we nor the daemon may use userfaultfd.
    NoUserfaultfd(Errno),
    /// The kernel is older than 6.8.
    OldKernel,
    /// A system call failed: memory, descriptors or tasks are short.
    Failed(Errno),
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("not yet connected"),
            Self::Connected => f.write_str("connected"),
            Self::NoDaemon(errno) => write!(f, "no daemon answers ({errno}); is ksmfs running?"),
            Self::Untrusted { uid } => write!(
                f,
                "the socket belongs to user {uid}, who is neither root nor this user: not trusted"
            ),
            Self::Refused(RefusalReason::WrongPid) => {
                f.write_str("the daemon takes this process for another one")
            }
            Self::Refused(RefusalReason::TooMany) => {
                f.write_str("the daemon has too many connections of this user")
            }
            Self::Refused(RefusalReason::Version) => f.write_str(
                "the daemon speaks no version of the protocol that this program speaks: one of the two is too old",
            ),
            Self::Refused(RefusalReason::Stopping) => f.write_str("the daemon is stopping"),
            Self::Refused(RefusalReason::Policy) => {
                f.write_str("the daemon's policy keeps this process from being merged")
            }
            Self::Refused(RefusalReason::Label) => {
                f.write_str("the daemon's policy does not let this process have its label")
            }
            Self::Refused(RefusalReason::Regions) => {
                f.write_str("this user has registered too many separate regions")
            }
            Self::Protocol => f.write_str("the daemon speaks another version of the protocol"),
            Self::NoUserfaultfd(errno) => write!(
                f,
                "no access to userfaultfd ({errno}): let the daemon open /dev/userfaultfd (run it as root), or give \
                 this user access to that device"
            ),
            Self::OldKernel => f.write_str(
                "the kernel's userfaultfd cannot move pages: Linux 6.8 or later is needed",
            ),
            Self::Failed(errno) => write!(f, "a system call failed: {errno}"),
        }
    }
}

/// A [`LinkState`] that tasks share.
#[derive(Debug)]
pub struct LinkWord(AtomicU64);

impl LinkWord {
    /// A word that says `state`.
    #[must_use]
    pub const fn new(state: LinkState) -> Self {
        Self(AtomicU64::new(to_word(state)))
    }

    /// What it says.
    pub fn get(&self) -> LinkState {
        from_word(self.0.load(Ordering::Acquire))
    }

    /// Changes it.
    pub fn set(&self, state: LinkState) {
        self.0.store(to_word(state), Ordering::Release);
    }
}

const fn to_word(state: LinkState) -> u64 {
    let (kind, detail) = match state {
        LinkState::Starting => (0, 0),
        LinkState::Connected => (1, 0),
        LinkState::NoDaemon(errno) => (2, number(errno)),
        LinkState::Untrusted { uid } => (3, uid),
        LinkState::Refused(reason) => (4, reason as u32),
        LinkState::Protocol => (5, 0),
        LinkState::NoUserfaultfd(errno) => (6, number(errno)),
        LinkState::OldKernel => (7, 0),
        LinkState::Failed(errno) => (8, number(errno)),
    };
    (detail as u64) << 8 | kind
}

const fn number(errno: Errno) -> u32 {
    errno.raw_os_error().unsigned_abs()
}

fn from_word(word: u64) -> LinkState {
    let detail = u32::try_from(word >> 8).unwrap_or(0);
    let errno = || Errno::from_raw_os_error(detail.cast_signed());
    match word & 0xff {
        0 => LinkState::Starting,
        1 => LinkState::Connected,
        2 => LinkState::NoDaemon(errno()),
        3 => LinkState::Untrusted { uid: detail },
        4 => LinkState::Refused(
            RefusalReason::from_number(detail).unwrap_or(RefusalReason::Stopping),
        ),
        5 => LinkState::Protocol,
        6 => LinkState::NoUserfaultfd(errno()),
        7 => LinkState::OldKernel,
        _ => LinkState::Failed(errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_the_word() {
        for reason in RefusalReason::ALL {
            let state = LinkState::Refused(reason);
            assert_eq!(LinkWord::new(state).get(), state);
        }
        for state in [
            LinkState::Starting,
            LinkState::Connected,
            LinkState::NoDaemon(Errno::CONNREFUSED),
            LinkState::Untrusted { uid: u32::MAX },
            LinkState::Protocol,
            LinkState::NoUserfaultfd(Errno::PERM),
            LinkState::OldKernel,
            LinkState::Failed(Errno::NOMEM),
        ] {
            assert_eq!(LinkWord::new(state).get(), state);
        }
    }
}
