//! `/dev/userfaultfd`: what an agent needs to hold pages without privilege, and whether the kernel can.
//!
//! The daemon opens the device once and passes the descriptor on; the agent makes its own userfaultfd from it, for its
//! own memory. What the kernel can do is asked, not guessed from its version.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};

mod sys;

const DEVICE: &str = "/dev/userfaultfd";

/// What merging needs: `UFFDIO_MOVE` (6.8), asynchronous write protection (6.7), also of absent pages (6.4).
const NEEDED: [(u64, &str); 3] = [
    (1 << 16, "UFFD_FEATURE_MOVE"),
    (1 << 15, "UFFD_FEATURE_WP_ASYNC"),
    (1 << 13, "UFFD_FEATURE_WP_UNPOPULATED"),
];

/// Why agents cannot get a userfaultfd here.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// The device is not there.
    #[error("{DEVICE} is missing: the kernel needs CONFIG_USERFAULTFD (Linux 6.8 or newer)")]
    Missing,
    /// The device may not be opened.
    #[error(
        "{DEVICE}: no access; run as root, or let your group open it (chgrp and chmod g+rw {DEVICE})"
    )]
    NoAccess,
    /// The kernel is too old.
    #[error("this kernel lacks {0}: Linux 6.8 or newer is needed")]
    TooOld(&'static str),
    /// Something else failed.
    #[error("{DEVICE}: {0}: {1}")]
    Os(&'static str, Errno),
}

/// Opens the device, for handing on, after checking that the kernel has what merging needs.
///
/// # Errors
/// When it has not, or the device cannot be opened.
pub fn open_device() -> Result<OwnedFd, UffdError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => UffdError::Missing,
        Errno::ACCESS | Errno::PERM => UffdError::NoAccess,
        errno => UffdError::Os("open", errno),
    })?;
    let uffd = sys::new_userfaultfd(device.as_fd())
        .map_err(|errno| UffdError::Os("USERFAULTFD_IOC_NEW", errno))?;
    let features =
        sys::features(uffd.as_fd()).map_err(|errno| UffdError::Os("UFFDIO_API", errno))?;
    check(features)?;
    Ok(device)
}

fn check(features: u64) -> Result<(), UffdError> {
    match NEEDED.iter().find(|(bit, _)| features & bit == 0) {
        Some((_, name)) => Err(UffdError::TooOld(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{NEEDED, UffdError, check};

    #[test]
    fn a_kernel_without_one_of_the_features_is_named_too_old() {
        let all = NEEDED.iter().fold(0, |all, (bit, _)| all | bit);
        assert!(check(all).is_ok());
        for (bit, name) in NEEDED {
            let found = check(all & !bit);
            assert!(matches!(found, Err(UffdError::TooOld(missing)) if missing == name));
        }
    }
}
