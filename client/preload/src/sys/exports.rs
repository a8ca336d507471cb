//! The functions that take the place of the C library's.
//!
//! Each hands its arguments to the module that knows what to do and gives the answer as the C library does. Functions
//! that C declares with `...` take as many arguments as any caller passes: the calling conventions of these machines
//! pass them alike.

mod files;
pub(super) mod maps;

use super::call::number;
use std::ffi::c_int;

/// `prctl(2)`.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int {
    number(crate::mode::prctl(option, [a, b, c, d]))
}

extern "C" fn begin() {
    crate::begin();
}

/// Run by the dynamic loader when the library is loaded, before the program's own code.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;
