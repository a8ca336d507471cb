//! The calls for which there is no safe wrapper: mappings, broken pointers, and two that rustix lacks.
#![allow(
    unsafe_code,
    reason = "raw system calls; each block says why it is sound"
)]

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

const PAGE: usize = 4096;

fn outcome(returned: isize) -> Result<usize, Errno> {
    usize::try_from(returned).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).expect("libc left an errno")
    })
}

/// Maps the first page of a file and unmaps it again.
pub fn map(file: BorrowedFd<'_>, shared: bool, write: bool) -> Result<(), Errno> {
    let kind = if shared {
        MapFlags::SHARED
    } else {
        MapFlags::PRIVATE
    };
    let mut access = ProtFlags::READ;
    access.set(ProtFlags::WRITE, write);
    // SAFETY: the kernel chooses a free range, and nobody looks into it.
    let mapped = unsafe { rustix::mm::mmap(null_mut(), PAGE, access, kind, file, 0) }?;
    // SAFETY: this is the mapping made above, and nothing points into it.
    unsafe { rustix::mm::munmap(mapped, PAGE) }
}

/// Reads to an address at which nothing is mapped.
pub fn read_to_nowhere(file: BorrowedFd<'_>) -> Result<usize, Errno> {
    // SAFETY: the kernel checks the address itself; a null pointer gives EFAULT.
    outcome(unsafe { libc::read(file.as_raw_fd(), null_mut(), 8) })
}

/// Writes from an address at which nothing is mapped.
pub fn write_from_nowhere(file: BorrowedFd<'_>) -> Result<usize, Errno> {
    // SAFETY: the kernel checks the address itself; a null pointer gives EFAULT.
    outcome(unsafe { libc::write(file.as_raw_fd(), null_mut(), 8) })
}

/// Writes two bytes: `byte`, the last of a page, and the first of a page that cannot be read.
pub fn write_half(file: BorrowedFd<'_>, byte: u8) -> Result<usize, Errno> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses a free range of two pages, which is known to nobody else.
    let pages =
        unsafe { rustix::mm::mmap_anonymous(null_mut(), 2 * PAGE, access, MapFlags::PRIVATE) }?;
    let last = pages.cast::<u8>().wrapping_add(PAGE - 1);
    // SAFETY: the last byte of the first page of the mapping above, which is writable.
    unsafe { last.write(byte) };
    let second = pages.wrapping_byte_add(PAGE);
    // SAFETY: the second page of the mapping above, in which nothing lies.
    unsafe { rustix::mm::mprotect(second, PAGE, MprotectFlags::empty()) }?;
    // SAFETY: the kernel checks the second byte's address itself.
    let written = outcome(unsafe { libc::write(file.as_raw_fd(), last.cast(), 2) });
    // SAFETY: the mapping made above; no pointer into it is used any more.
    unsafe { rustix::mm::munmap(pages, 2 * PAGE) }?;
    written
}

/// `truncate(2)`.
pub fn truncate(path: &Path, len: i64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no path of ours has a NUL");
    // SAFETY: the path is a string that ends with a NUL and lives through the call.
    let returned = unsafe { libc::truncate(path.as_ptr(), len) };
    outcome(returned as isize).map(drop)
}

/// `name_to_handle_at`: whether files have handles.
pub fn has_handle(path: &Path) -> Result<(), Errno> {
    #[repr(C)]
    struct Handle {
        len: u32,
        kind: i32,
        bytes: [u8; 128],
    }
    let mut handle = Handle {
        len: 128,
        kind: 0,
        bytes: [0; 128],
    };
    let mut mount = 0;
    let path = CString::new(path.as_os_str().as_bytes()).expect("no path of ours has a NUL");
    let pointer = (&raw mut handle).cast();
    // SAFETY: the handle says how many bytes follow it, and all arguments live through the call.
    let returned = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), pointer, &raw mut mount, 0)
    };
    outcome(returned as isize).map(drop)
}

/// `ioctl(FIBMAP)` of block 0.
pub fn block(file: BorrowedFd<'_>) -> Result<(), Errno> {
    const FIBMAP: libc::c_ulong = 1;
    let mut block: libc::c_int = 0;
    // SAFETY: the request reads and writes one int, which lives through the call.
    let returned = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FIBMAP, &raw mut block) };
    outcome(returned as isize).map(drop)
}
