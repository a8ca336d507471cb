//! Calls that start programs with an environment of the caller's choice.
//!
//! Whoever merges all of his memory has the programs merge theirs that he starts, as the kernel has it, unless he starts
//! them without this library.

use crate::mode;
use crate::sys::environment::Widened;
use crate::sys::next::Next;
use std::ffi::{c_char, c_int, c_void};

type Strings = *const *const c_char;
type Exec = unsafe extern "C" fn(*const c_char, Strings, Strings) -> c_int;
type FdExec = unsafe extern "C" fn(c_int, Strings, Strings) -> c_int;
type ExecAt = unsafe extern "C" fn(c_int, *const c_char, Strings, Strings, c_int) -> c_int;
type Spawn = unsafe extern "C" fn(
    *mut libc::pid_t,
    *const c_char,
    *const c_void,
    *const c_void,
    Strings,
    Strings,
) -> c_int;

/// The environment to pass on.
fn widened(environment: Strings) -> Widened {
    if mode::merges_any() {
        // SAFETY: every caller passes what an exec takes.
        unsafe { Widened::of(environment) }
    } else {
        Widened::not(environment)
    }
}

fn missing() -> c_int {
    crate::sys::call::set_errno(rustix::io::Errno::NOSYS);
    -1
}

macro_rules! exec {
    ($name:ident, $symbol:literal, $kind:ty, ($($argument:ident: $type:ty),*), $environment:ident, ($($flags:ident: $flags_type:ty)?)) => {
        /// One of the `exec` functions.
        ///
        /// # Safety
        /// That of the function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type,)* $environment: Strings $(, $flags: $flags_type)?) -> c_int {
            // SAFETY: the type is that of the function.
            static NEXT: Next<$kind> = unsafe { Next::new($symbol) };
            let environment = widened($environment);
            match NEXT.get() {
                // SAFETY: the caller's promise is the same.
                Some(next) => unsafe { next($($argument,)* environment.strings() $(, $flags)?) },
                None => missing(),
            }
        }
    };
}

exec!(execve, c"execve", Exec, (path: *const c_char, arguments: Strings), environment, ());
exec!(execvpe, c"execvpe", Exec, (path: *const c_char, arguments: Strings), environment, ());
exec!(fexecve, c"fexecve", FdExec, (fd: c_int, arguments: Strings), environment, ());
exec!(execveat, c"execveat", ExecAt, (fd: c_int, path: *const c_char, arguments: Strings), environment, (flags: c_int));
exec!(posix_spawn, c"posix_spawn", Spawn, (pid: *mut libc::pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: Strings), environment, ());
exec!(posix_spawnp, c"posix_spawnp", Spawn, (pid: *mut libc::pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, arguments: Strings), environment, ());
