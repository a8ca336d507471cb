//! The system calls of the torture program, all of them through the C library: a preloaded one must see them.
#![allow(unsafe_code)]

pub(crate) mod input;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod ring;
pub(crate) mod userfault;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Zero or an error.
fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A count or an error.
fn counted(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A `T` in a file, mapped for good by all who ask. All zeroes must be a `T`, and others change it at any time.
pub(crate) fn shared<T: Sync>(file: &Path) -> io::Result<&'static T> {
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    file.set_len(size_of::<T>() as u64)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let (length, fd) = (size_of::<T>(), file.as_raw_fd());
    // SAFETY: a mapping at a place of the kernel's choice replaces nothing.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: mapped above for the life of the process, as long as a T, and aligned to a page.
    Ok(unsafe { &*at.cast::<T>() })
}
