//! A program's own userfaultfd.
//!
//! Memory that it watches has to be plain memory. Whatever was merged of a range is made private before the kernel
//! registers it; then the kernel keeps the agent out for as long as the program watches.

use crate::changing::{Changing, pages};
use crate::sys::call::{Answer, call, wide};
use rustix::io::Errno;

/// `UFFDIO_REGISTER`.
pub const REGISTER: u32 = 0xC020_AA00;

/// `ioctl` with that request, on pages from `start` on.
pub fn register(fd: libc::c_int, argument: usize, start: u64, len: u64) -> Answer {
    let make = || call(libc::SYS_ioctl, [wide(fd), REGISTER as usize, argument]);
    let number = |n: u64| usize::try_from(n).map_err(|_| Errno::INVAL);
    let run = pages(number(start)?, number(len)?);
    let mut changing = Changing::begin_unmerged(run)?;
    if let Some(changing) = &mut changing {
        changing.end_tracking(run);
    }
    make()
}
