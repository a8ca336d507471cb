//! System calls as the app makes them: any number, any arguments, no library in between.

use rustix::io::Errno;
use std::ffi::{c_int, c_void};

/// What a system call returns.
pub type Answer = Result<usize, Errno>;

/// Makes a system call that the app asked for.
pub fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Answer {
    const { assert!(N <= 6) };
    let mut six = [0; 6];
    for (place, argument) in six.iter_mut().zip(arguments) {
        *place = argument;
    }
    let returned = enter(number, six);
    // The kernel's errors are the last page of numbers.
    if returned > usize::MAX - 4096 {
        let errno = i32::try_from(returned.wrapping_neg()).unwrap_or(libc::EINVAL);
        Err(Errno::from_raw_os_error(errno))
    } else {
        Ok(returned)
    }
}

#[cfg(target_arch = "x86_64")]
fn enter(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    let returned: usize;
    // SAFETY: the app asked for this call; what it does to memory is what the app's own call would have done.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => returned,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    returned
}

#[cfg(target_arch = "aarch64")]
fn enter(number: libc::c_long, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    let returned: usize;
    // SAFETY: the app asked for this call; what it does to memory is what the app's own call would have done.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => returned,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    returned
}

/// An `int` as the kernel takes it in a register.
pub const fn wide(number: c_int) -> usize {
    (number as isize).cast_unsigned()
}

/// Does something that changes the calling thread's `errno`, and leaves it as it was: 0, perhaps.
pub fn keeping_errno(act: impl FnOnce()) {
    // SAFETY: the C library gives every thread an errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the place is the calling thread's own.
    let before = unsafe { *place };
    act();
    // SAFETY: as above.
    unsafe { *place = before };
}

/// Sets the calling thread's `errno`.
pub fn set_errno(errno: Errno) {
    // SAFETY: the C library gives every thread an errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the place is the calling thread's own.
    unsafe { *place = errno.raw_os_error() };
}

/// An answer as the C library gives it to callers that expect a number.
pub fn number(answer: Answer) -> c_int {
    match answer {
        Ok(number) => c_int::try_from(number).unwrap_or(c_int::MAX),
        Err(errno) => {
            set_errno(errno);
            -1
        }
    }
}

/// An answer as the C library gives it to callers that expect an address.
pub fn address(answer: Answer) -> *mut c_void {
    match answer {
        Ok(address) => std::ptr::with_exposed_provenance_mut(address),
        Err(errno) => {
            set_errno(errno);
            libc::MAP_FAILED
        }
    }
}

/// No signal handler of the app runs in this thread until it is dropped. Whoever holds the space lock wants that: a
/// handler that maps memory would wait for its own thread.
#[derive(Debug)]
pub struct Quiet(u64);

impl Quiet {
    /// Blocks every signal.
    pub fn begin() -> Self {
        let every = !0_u64;
        let mut before = 0_u64;
        set_mask(&every, Some(&mut before));
        Self(before)
    }
}

impl Quiet {
    /// In a child that has a copy of it and never drops it.
    pub fn end_in_child(&self) {
        set_mask(&self.0, None);
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        set_mask(&self.0, None);
    }
}

fn set_mask(mask: &u64, before: Option<&mut u64>) {
    let before = before.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // Both are kernel signal sets of eight bytes; a valid call of this kind cannot fail.
    let _ = call(
        libc::SYS_rt_sigprocmask,
        [
            libc::SIG_SETMASK.unsigned_abs() as usize,
            std::ptr::from_ref(mask).expose_provenance(),
            before.expose_provenance(),
            size_of::<u64>(),
        ],
    );
}
