//! Children, and what a process does to itself.

use std::ffi::CString;
use std::io;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    Killed,
    Badly(i32),
}

/// Forks; the child lives `life`, and ends with what it says.
pub(crate) fn fork(life: impl FnOnce() -> bool) -> io::Result<i32> {
    // SAFETY: the child goes on with its copy of this thread's data, and leaves by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            testsuite::sys::end_with_parent();
            let status = i32::from(!life());
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(status) }
        }
        child => Ok(child),
    }
}

pub(crate) fn wait_for(child: i32) -> io::Result<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place for the result.
        let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
        if ended == child {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(match status {
        0 => Ended::Well,
        _ if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL => Ended::Killed,
        _ => Ended::Badly(status),
    })
}

/// Takes the ends of children that an earlier program of this process left behind.
pub(crate) fn forget_children() {
    let mut status = 0;
    // SAFETY: status is a valid place for the result.
    while unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) } > 0 {}
}

/// Replaces this program; returns only if that fails.
pub(crate) fn exec(program: &str, arguments: &[String]) -> io::Error {
    let words: Result<Vec<CString>, _> = std::iter::once(program)
        .chain(arguments.iter().map(String::as_str))
        .map(CString::new)
        .collect();
    let Ok(words) = words else {
        return io::ErrorKind::InvalidInput.into();
    };
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: the list ends with a null pointer, and its strings outlive the call.
    unsafe { libc::execv(pointers[0], pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Has all memory of this process merged, from now on.
pub(crate) fn merge_everything() -> io::Result<()> {
    // SAFETY: merging changes no byte.
    super::done(unsafe { libc::prctl(libc::PR_SET_MEMORY_MERGE, 1, 0, 0, 0) })
}
