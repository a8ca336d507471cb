//! Calls that open files by name.

use crate::proc_files;
use crate::sys::call::{call, number, wide};
use crate::sys::next::Next;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::os::fd::IntoRawFd;

type Open = unsafe extern "C" fn(*const c_char, c_int, c_uint) -> c_int;
type OpenAt = unsafe extern "C" fn(c_int, *const c_char, c_int, c_uint) -> c_int;
type FOpen = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut libc::FILE;

/// A file of ours in the place of the one that is named, as a descriptor of the app's.
fn ours(path: *const c_char, flags: c_int) -> Option<c_int> {
    // The kernel looks at the path as well, and does not mind one that is no memory; but such a program is lost.
    if path.is_null() {
        return None;
    }
    // SAFETY: the app passes it as a path.
    let path = unsafe { CStr::from_ptr(path) };
    proc_files::open(path, flags).map(IntoRawFd::into_raw_fd)
}

macro_rules! open {
    ($name:ident, $symbol:literal) => {
        /// `open(2)`, under one of its names.
        ///
        /// # Safety
        /// That of the call.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
            // SAFETY: the type is that of the function.
            static NEXT: Next<Open> = unsafe { Next::new($symbol) };
            if let Some(fd) = ours(path, flags) {
                return fd;
            }
            match NEXT.get() {
                // SAFETY: the caller's promise is the same.
                Some(next) => unsafe { next(path, flags, mode) },
                None => number(call(
                    libc::SYS_openat,
                    [
                        wide(libc::AT_FDCWD),
                        path.expose_provenance(),
                        wide(flags),
                        mode as usize,
                    ],
                )),
            }
        }
    };
}

macro_rules! openat {
    ($name:ident, $symbol:literal) => {
        /// `openat(2)`, under one of its names.
        ///
        /// # Safety
        /// That of the call.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            directory: c_int,
            path: *const c_char,
            flags: c_int,
            mode: c_uint,
        ) -> c_int {
            // SAFETY: the type is that of the function.
            static NEXT: Next<OpenAt> = unsafe { Next::new($symbol) };
            if let Some(fd) = ours(path, flags) {
                return fd;
            }
            match NEXT.get() {
                // SAFETY: the caller's promise is the same.
                Some(next) => unsafe { next(directory, path, flags, mode) },
                None => number(call(
                    libc::SYS_openat,
                    [
                        wide(directory),
                        path.expose_provenance(),
                        wide(flags),
                        mode as usize,
                    ],
                )),
            }
        }
    };
}

macro_rules! fopen {
    ($name:ident, $symbol:literal) => {
        /// `fopen(3)`, under one of its names.
        ///
        /// # Safety
        /// That of the call.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            path: *const c_char,
            mode: *const c_char,
        ) -> *mut libc::FILE {
            // SAFETY: the type is that of the function.
            static NEXT: Next<FOpen> = unsafe { Next::new($symbol) };
            if let Some(fd) = ours(path, libc::O_CLOEXEC) {
                // SAFETY: the descriptor is the stream's now, and the mode is the caller's.
                return unsafe { libc::fdopen(fd, mode) };
            }
            match NEXT.get() {
                // SAFETY: the caller's promise is the same.
                Some(next) => unsafe { next(path, mode) },
                None => std::ptr::null_mut(),
            }
        }
    };
}

open!(open, c"open");
open!(open64, c"open64");
open!(__open_2, c"__open_2");
open!(__open64_2, c"__open64_2");
openat!(openat, c"openat");
openat!(openat64, c"openat64");
openat!(__openat_2, c"__openat_2");
openat!(__openat64_2, c"__openat64_2");
fopen!(fopen, c"fopen");
fopen!(fopen64, c"fopen64");
