//! The C interface, declared in `include/ksm_client.h`.
//!
//! Every function returns 0, or -1 with `errno` set, as `madvise` does. The client is the one of the process, so that C
//! has no handle to carry around.

use crate::api::{Client, Config, RegionError, StartError};
use crate::link_state::LinkState;
use crate::sys::memory::OwnPages;
use ksm_engine::page::PAGE_SIZE;
use ksm_engine::wire::Figures;
use rustix::io::Errno;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

const FAILED: c_int = -1;

fn set_errno(errno: Errno) {
    // SAFETY: the C library gives every thread an errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the place is the calling thread's own.
    unsafe { *place = errno.raw_os_error() };
}

fn answer(result: Result<(), Errno>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(errno) => {
            set_errno(errno);
            FAILED
        }
    }
}

/// The client of the process; `EINVAL` before `ksm_start`.
fn client() -> Result<Client, Errno> {
    Client::current().ok_or(Errno::INVAL)
}

fn start_errno(error: &StartError) -> Errno {
    match error {
        StartError::SocketPath { errno, .. } | StartError::Os { errno, .. } => *errno,
        StartError::Label(_) => Errno::INVAL,
        StartError::OtherSocket | StartError::OtherLabel | StartError::Embedded => Errno::BUSY,
    }
}

/// See the header.
///
/// # Safety
/// `socket` is NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_start(socket: *const c_char) -> c_int {
    let mut config = Config::default();
    if !socket.is_null() {
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(socket) };
        config = config.socket(Path::new(OsStr::from_bytes(path.to_bytes())));
    }
    answer(
        Client::start(&config)
            .map(|_| ())
            .map_err(|error| start_errno(&error)),
    )
}

fn with_client(act: impl FnOnce(Client) -> Result<(), RegionError>) -> c_int {
    answer(client().and_then(|client| act(client).map_err(|error| error.errno())))
}

/// See the header.
///
/// # Safety
/// That of [`Client::mergeable`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_mergeable(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise is the same.
    with_client(|client| unsafe { client.mergeable(addr.cast(), len) })
}

/// See the header.
///
/// # Safety
/// That of [`Client::unmergeable`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_unmergeable(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise is the same.
    with_client(|client| unsafe { client.unmergeable(addr.cast(), len) })
}

/// See the header.
///
/// # Safety
/// That of [`Client::forget`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_forget(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise is the same.
    with_client(|client| unsafe { client.forget(addr.cast(), len) })
}

/// See the header.
///
/// # Safety
/// That of [`Client::discard`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_discard(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: the caller's promise is the same.
    with_client(|client| unsafe { client.discard(addr.cast(), len) })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn ksm_allocate(len: usize) -> *mut c_void {
    let allocate = || {
        let client = client()?;
        let pages = len.div_ceil(PAGE_SIZE);
        let mut memory = OwnPages::map(pages)?;
        let address = memory.pages_mut().as_mut_ptr();
        let registered = client.register_pages(memory.run());
        registered.map_err(|error| error.errno())?;
        // The caller owns it now; `ksm_free` unmaps it.
        std::mem::forget(memory);
        Ok(address.cast())
    };
    allocate().unwrap_or_else(|errno| {
        set_errno(errno);
        null_mut()
    })
}

/// See the header.
///
/// # Safety
/// The memory is that of one `ksm_allocate`, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_free(addr: *mut c_void, len: usize) -> c_int {
    // SAFETY: the pages are unmapped next.
    let forgotten = unsafe { ksm_forget(addr, len) };
    if forgotten == FAILED {
        return FAILED;
    }
    let len = len.next_multiple_of(PAGE_SIZE);
    // SAFETY: the caller's promise.
    answer(unsafe { rustix::mm::munmap(addr, len) })
}

/// See the header.
///
/// # Safety
/// `figures` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ksm_figures(figures: *mut Figures) -> c_int {
    let asked = client().and_then(|client| {
        client.figures().map_err(|error| match error.0 {
            LinkState::NoDaemon(errno) | LinkState::Failed(errno) => errno,
            LinkState::Untrusted { .. } => Errno::PERM,
            LinkState::Refused(_) => Errno::CONNREFUSED,
            _ => Errno::PROTO,
        })
    });
    answer(asked.map(|asked| {
        // SAFETY: the caller's promise.
        unsafe { figures.write(asked) };
    }))
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn ksm_connected() -> c_int {
    let connected = |client: Client| client.status().link == LinkState::Connected;
    c_int::from(Client::current().is_some_and(connected))
}
