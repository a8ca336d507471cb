//! The two userfaultfd requests the daemon makes.
#![allow(unsafe_code, reason = "ioctl")]

use linux_raw_sys::general::{UFFD_API, USERFAULTFD_IOC, uffdio_api};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, opcode};
use std::ffi::c_void;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

#[expect(clippy::cast_possible_truncation, reason = "0xAA")]
const GROUP: u8 = USERFAULTFD_IOC as u8;
const NEW: Opcode = opcode::none(GROUP, 0);
const API: Opcode = opcode::read_write::<uffdio_api>(GROUP, 0x3f);

/// `USERFAULTFD_IOC_NEW`: the flags are passed by value, the answer is a descriptor.
struct New;

// SAFETY: the request reads its argument as a number and writes no memory; a result of 0 or more is a new descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        std::ptr::without_provenance_mut(flags.cast_unsigned() as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// A new userfaultfd for this process, from an open `/dev/userfaultfd`.
pub(super) fn new_userfaultfd(device: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: `New` describes the request truly.
    unsafe { rustix::ioctl::ioctl(device, New) }
}

/// The features the kernel has, by opening the conversation on `uffd`.
pub(super) fn features(uffd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut api = uffdio_api {
        api: UFFD_API.into(),
        features: 0,
        ioctls: 0,
    };
    // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
    let request = unsafe { Updater::<API, uffdio_api>::new(&mut api) };
    // SAFETY: a userfaultfd that was not asked before takes this request.
    unsafe { rustix::ioctl::ioctl(uffd, request) }?;
    Ok(api.features)
}
