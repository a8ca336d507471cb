//! Calls on mappings.

use crate::advice;
use crate::maps;
use crate::moving;
use crate::sys::call::{address, number, set_errno, wide};
use std::ffi::{c_int, c_uint, c_void};

/// `mmap(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: usize,
) -> *mut c_void {
    address(maps::mmap(
        addr.expose_provenance(),
        len,
        wide(protection),
        wide(flags),
        wide(fd),
        offset,
    ))
}

/// `mmap(2)` by its other name.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: usize,
) -> *mut c_void {
    // SAFETY: the caller's promise is the same.
    unsafe { mmap(addr, len, protection, flags, fd, offset) }
}

/// `munmap(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    number(maps::munmap(addr.expose_provenance(), len))
}

/// `mremap(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mremap(
    addr: *mut c_void,
    old_len: usize,
    new_len: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    address(moving::mremap(
        addr.expose_provenance(),
        old_len,
        new_len,
        wide(flags),
        to.expose_provenance(),
    ))
}

/// `mprotect(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mprotect(addr: *mut c_void, len: usize, protection: c_int) -> c_int {
    number(maps::mprotect(
        addr.expose_provenance(),
        len,
        wide(protection),
        None,
    ))
}

/// `pkey_mprotect(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pkey_mprotect(
    addr: *mut c_void,
    len: usize,
    protection: c_int,
    key: c_int,
) -> c_int {
    // The C library takes -1 for no key, and calls `mprotect`.
    let key = (key != -1).then_some(wide(key));
    number(maps::mprotect(
        addr.expose_provenance(),
        len,
        wide(protection),
        key,
    ))
}

/// `madvise(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    number(advice::madvise(addr.expose_provenance(), len, advice))
}

/// `process_madvise(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn process_madvise(
    fd: c_int,
    vectors: *const c_void,
    count: usize,
    advice: c_int,
    flags: c_uint,
) -> isize {
    let vectors = vectors.expose_provenance();
    match advice::process_madvise(fd, vectors, count, advice, flags as usize) {
        Ok(bytes) => bytes.cast_signed(),
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// `shmat(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn shmat(id: c_int, addr: *const c_void, flags: c_int) -> *mut c_void {
    address(maps::shmat(id, addr.expose_provenance(), flags))
}

/// `posix_madvise(3)`: its `POSIX_MADV_DONTNEED` does nothing, and the others only advise.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    if advice == libc::POSIX_MADV_DONTNEED {
        return 0;
    }
    match advice::madvise(addr.expose_provenance(), len, advice) {
        Ok(_) => 0,
        Err(errno) => errno.raw_os_error(),
    }
}

/// `mlock(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock(addr: *const c_void, len: usize) -> c_int {
    number(maps::lock(libc::SYS_mlock, [addr.expose_provenance(), len]))
}

/// `mlock2(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlock2(addr: *const c_void, len: usize, flags: c_uint) -> c_int {
    let addr = addr.expose_provenance();
    // The C library does without the newer call where it can.
    number(match flags {
        0 => maps::lock(libc::SYS_mlock, [addr, len]),
        flags => maps::lock(libc::SYS_mlock2, [addr, len, flags as usize]),
    })
}

/// `munlock(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlock(addr: *const c_void, len: usize) -> c_int {
    number(maps::lock(
        libc::SYS_munlock,
        [addr.expose_provenance(), len],
    ))
}

/// `mlockall(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    number(maps::lock(libc::SYS_mlockall, [wide(flags)]))
}

/// `munlockall(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munlockall() -> c_int {
    number(maps::lock(libc::SYS_munlockall, []))
}

/// `brk(2)`, as the C library has it: it keeps the end of the heap in a variable that `sbrk` reads.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn brk(end: *mut c_void) -> c_int {
    unsafe extern "C" {
        static mut __curbrk: *mut c_void;
    }
    let known = &raw mut __curbrk;
    // SAFETY: the C library's variable; as with its own function, threads that call this at once are at fault.
    let old = unsafe { known.read() };
    let Ok(new) = maps::brk(end.expose_provenance(), old.addr()) else {
        set_errno(rustix::io::Errno::NOMEM);
        return -1;
    };
    // SAFETY: as above.
    unsafe { known.write(std::ptr::with_exposed_provenance_mut(new)) };
    if new < end.addr() {
        set_errno(rustix::io::Errno::NOMEM);
        return -1;
    }
    0
}
