//! Calls that make threads, or have the C library make some: before the first one its code is changed.

use crate::sys::call::set_errno;
use crate::sys::next::Next;
use crate::sys::patch::divert_own_calls;
use rustix::io::Errno;
use std::ffi::{c_int, c_void};

type Two = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type Three = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;
type Four = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *mut c_void) -> c_int;

macro_rules! makes_threads {
    ($name:ident, $symbol:literal, $kind:ty, ($($argument:ident),*), $missing:expr) => {
        /// A function that makes threads. The arguments are whatever words it takes.
        ///
        /// # Safety
        /// That of the function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: *mut c_void),*) -> c_int {
            // SAFETY: the machines pass numbers and addresses alike.
            static NEXT: Next<$kind> = unsafe { Next::new($symbol) };
            divert_own_calls();
            match NEXT.get() {
                // SAFETY: the caller's promise is the same.
                Some(next) => unsafe { next($($argument),*) },
                None => $missing,
            }
        }
    };
}

fn missing() -> c_int {
    set_errno(Errno::NOSYS);
    -1
}

makes_threads!(
    pthread_create,
    c"pthread_create",
    Four,
    (thread, attributes, entry, argument),
    libc::EAGAIN
);
makes_threads!(
    thrd_create,
    c"thrd_create",
    Three,
    (thread, entry, argument),
    missing()
);
makes_threads!(
    timer_create,
    c"timer_create",
    Three,
    (clock, event, timer),
    missing()
);
makes_threads!(mq_notify, c"mq_notify", Two, (queue, event), missing());
makes_threads!(
    getaddrinfo_a,
    c"getaddrinfo_a",
    Four,
    (mode, list, count, event),
    missing()
);
makes_threads!(aio_read, c"aio_read", Two, (request, unused), missing());
makes_threads!(aio_read64, c"aio_read64", Two, (request, unused), missing());
makes_threads!(aio_write, c"aio_write", Two, (request, unused), missing());
makes_threads!(
    aio_write64,
    c"aio_write64",
    Two,
    (request, unused),
    missing()
);
makes_threads!(
    aio_fsync,
    c"aio_fsync",
    Two,
    (operation, request),
    missing()
);
makes_threads!(
    aio_fsync64,
    c"aio_fsync64",
    Two,
    (operation, request),
    missing()
);
makes_threads!(
    lio_listio,
    c"lio_listio",
    Four,
    (mode, list, count, event),
    missing()
);
makes_threads!(
    lio_listio64,
    c"lio_listio64",
    Four,
    (mode, list, count, event),
    missing()
);
