//! Calls that start programs with an environment of the caller's choice.
//!
//! Whoever merges all of his memory has the programs merge theirs that he starts, as the kernel has it, unless he starts
//! them without this library.

use crate::mode;
use crate::sys::environment::Widened;
use crate::sys::next::Next;
use ksm_client::BareFork;
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

type Entry = extern "C" fn(*mut c_void) -> c_int;
type Clone = unsafe extern "C" fn(
    Entry,
    *mut c_void,
    c_int,
    *mut c_void,
    *mut c_void,
    *mut c_void,
    *mut c_void,
) -> c_int;

/// What a child of `clone` begins with.
struct Child {
    entry: Entry,
    argument: *mut c_void,
    fork: std::cell::Cell<Option<BareFork>>,
    mask: crate::sys::call::Quiet,
}

extern "C" fn child(begins: *mut c_void) -> c_int {
    // SAFETY: `clone` below passed one, and the child has a copy of the stack that it is on.
    let begins = unsafe { &*begins.cast::<Child>() };
    if let Some(fork) = begins.fork.take() {
        fork.end_in_child();
    }
    begins.mask.end_in_child();
    (begins.entry)(begins.argument)
}

/// `clone(2)`, as the C library has it: with a function that the child runs on a stack of its own.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clone(
    entry: Option<Entry>,
    stack: *mut c_void,
    flags: c_int,
    argument: *mut c_void,
    parent_id: *mut c_void,
    storage: *mut c_void,
    child_id: *mut c_void,
) -> c_int {
    // SAFETY: the type is that of the function on these machines, which pass arguments of `...` as others.
    static NEXT: Next<Clone> = unsafe { Next::new(c"clone") };
    let Some(next) = NEXT.get() else {
        return missing();
    };
    let Some(entry) = entry else {
        crate::sys::call::set_errno(rustix::io::Errno::INVAL);
        return -1;
    };
    let copies = crate::processes::copies_memory(crate::sys::call::wide(flags));
    if !copies {
        // It may be a thread.
        crate::sys::patch::divert_own_calls();
    }
    if !copies || stack.is_null() || ksm_client::space::Space::get().is_none() {
        // SAFETY: the caller's promise is the same.
        return unsafe { next(entry, stack, flags, argument, parent_id, storage, child_id) };
    }
    let begins = Child {
        entry,
        argument,
        mask: crate::sys::call::Quiet::begin(),
        fork: std::cell::Cell::new(BareFork::begin()),
    };
    let passed = (&raw const begins).cast_mut().cast();
    // SAFETY: the caller's promise is the same, and the child's copy of `begins` outlives what it is read for.
    let made = unsafe { next(child, stack, flags, passed, parent_id, storage, child_id) };
    if let Some(fork) = begins.fork.take() {
        fork.end_in_parent();
    }
    made
}

type Handler = Option<unsafe extern "C" fn()>;
type RegisterAtFork = unsafe extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int;

/// What `pthread_atfork(3)` calls: ours are registered before the first of the program's, and so are the last to run before a fork
/// and the first after it. A handler may wait for a thread that is changing mappings.
///
/// # Safety
/// That of the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __register_atfork(
    before: Handler,
    in_parent: Handler,
    in_child: Handler,
    library: *mut c_void,
) -> c_int {
    // SAFETY: the type is that of the function.
    static NEXT: Next<RegisterAtFork> = unsafe { Next::new(c"__register_atfork") };
    // Comes by here again. Without memory for it now it is tried again when something is registered.
    let _ = ksm_client::Client::watch_forks();
    match NEXT.get() {
        // SAFETY: the caller's promise is the same.
        Some(next) => unsafe { next(before, in_parent, in_child, library) },
        None => libc::ENOSYS,
    }
}

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
