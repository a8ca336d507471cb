//! The environment of this process, and those it makes for programs that it starts.

use super::call::call;
use std::ffi::{CStr, c_char};

/// Sets or removes a variable. Like `setenv`, it must not run while another thread looks into the environment.
pub fn set(name: &CStr, value: Option<&CStr>) {
    // Without memory for it the programs that this one starts run unmerged.
    let _ = match value {
        // SAFETY: both are C strings, and `prctl(PR_SET_MEMORY_MERGE)` is documented as a call that changes the environment.
        Some(value) => unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) },
        // SAFETY: as above.
        None => unsafe { libc::unsetenv(name.as_ptr()) },
    };
}

/// Whether a variable has this value. Uses no heap: it is asked at the start of every program.
pub fn has(name: &CStr, value: &CStr) -> bool {
    // SAFETY: the name is a C string.
    let found = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: the C library gives a C string, which nobody changes while the program starts.
    !found.is_null() && unsafe { CStr::from_ptr(found) } == value
}

/// What a program is told that is to merge all of its memory.
const SAID: &CStr = c"KSMFS_MEMORY_MERGE=1";
/// Where a program is told of this library.
const PRELOAD: &[u8] = b"LD_PRELOAD=";

/// An environment with one string more, in memory of its own: it may be made in a child that shares the address space,
/// where the heap is out of reach.
#[derive(Debug)]
pub struct Widened {
    strings: *const *const c_char,
    /// Bytes of the mapping; 0 if it is as the app gave it.
    len: usize,
}

impl Widened {
    /// As it is.
    pub fn not(strings: *const *const c_char) -> Self {
        Self { strings, len: 0 }
    }

    /// With the mode in it, if a program that is given it loads this library and it is not in it yet.
    ///
    /// # Safety
    /// `strings` is null or an array of C strings that ends with a null pointer.
    pub unsafe fn of(strings: *const *const c_char) -> Self {
        let Some((count, true)) = look(strings) else {
            return Self::not(strings);
        };
        let len = (count + 2) * size_of::<*const c_char>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let number = |n: i32| n.unsigned_abs() as usize;
        let arguments = [0, len, number(protection), number(flags), usize::MAX, 0];
        let Ok(start) = call(libc::SYS_mmap, arguments) else {
            return Self::not(strings);
        };
        let copy: *mut *const c_char = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the new mapping has room for `count` strings and two more.
        unsafe { copy.copy_from_nonoverlapping(strings, count) };
        // SAFETY: as above.
        let last = unsafe { copy.add(count) };
        // SAFETY: as above; the end behind it is zero already.
        unsafe { last.write(SAID.as_ptr()) };
        Self { strings: copy, len }
    }

    /// The strings, as `exec` takes them.
    pub fn strings(&self) -> *const *const c_char {
        self.strings
    }
}

impl Drop for Widened {
    fn drop(&mut self) {
        if self.len > 0 {
            // Nobody knows of it any more; for want of a better way a failure leaves it there.
            let _ = call(
                libc::SYS_munmap,
                [self.strings.expose_provenance(), self.len],
            );
        }
    }
}

/// How many strings there are, and whether one has to be added.
fn look(strings: *const *const c_char) -> Option<(usize, bool)> {
    let (mut count, mut loads, mut said) = (0, false, false);
    if strings.is_null() {
        return None;
    }
    loop {
        // SAFETY: the app passes an array of strings that ends with a null pointer, which has not come yet.
        let place = unsafe { strings.add(count) };
        // SAFETY: as above.
        let string = unsafe { place.read() };
        if string.is_null() {
            return Some((count, loads && !said));
        }
        // SAFETY: each is a C string.
        let string = unsafe { CStr::from_ptr(string) }.to_bytes();
        loads |= string.strip_prefix(PRELOAD).is_some_and(names_us);
        said |= string == SAID.to_bytes();
        count += 1;
    }
}

fn names_us(libraries: &[u8]) -> bool {
    let name = b"libksm_preload";
    libraries.windows(name.len()).any(|window| window == name)
}
