//! Whether two tasks share a descriptor table.

/// `KCMP_FILES`.
const FILES: libc::c_long = 2;

/// Whether tasks `a` and `b` have the same descriptor table; `None` if the kernel does not say.
#[must_use]
pub fn same_descriptors(a: u32, b: u32) -> Option<bool> {
    let (a, b) = (libc::c_long::from(a), libc::c_long::from(b));
    // SAFETY: kcmp compares and touches no memory.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, FILES, 0, 0) };
    match order {
        0 => Some(true),
        1..=3 => Some(false),
        _ => None,
    }
}
