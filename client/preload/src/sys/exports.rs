//! The functions that take the place of the C library's.
//!
//! Each hands its arguments to the module that knows what to do and gives the answer as the C library does. Functions
//! that C declares with `...` take as many arguments as any caller passes: the calling conventions of these machines
//! pass them alike.

mod files;
#[cfg(target_arch = "x86_64")]
mod indirect;
pub(super) mod maps;
mod processes;
mod threads;

use super::call::{call, number, set_errno, wide};
use crate::userfaults;
use ksm_client::space::Space;
use std::ffi::{c_int, c_uint, c_void};

/// `prctl(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
    number(crate::mode::prctl(option, [a, b, c, d]))
}

/// `ioctl(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: usize, argument: usize) -> c_int {
    // The kernel looks at no more of the request than this.
    let [a, b, c, d, ..] = request.to_le_bytes();
    if u32::from_le_bytes([a, b, c, d]) == userfaults::REGISTER && Space::get().is_some() {
        let range: *const [u64; 2] = std::ptr::with_exposed_provenance(argument);
        // SAFETY: the caller's promise: the request takes a structure that begins with a range.
        let [start, len] = unsafe { range.read() };
        return number(userfaults::register(fd, argument, start, len));
    }
    number(call(libc::SYS_ioctl, [wide(fd), request, argument]))
}

/// `vmsplice(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsplice(
    fd: c_int,
    vectors: *const c_void,
    count: usize,
    flags: c_uint,
) -> isize {
    match crate::pipes::vmsplice(fd, vectors.expose_provenance(), count, flags as usize) {
        Ok(bytes) => bytes.cast_signed(),
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

extern "C" fn begin() {
    crate::begin();
}

/// Run by the dynamic loader when the library is loaded, before the program's own code.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;
