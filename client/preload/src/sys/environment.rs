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

/// What a program is told that is to merge all of its memory.
const SAID: &CStr = c"KSMFS_MEMORY_MERGE=1";
/// How that begins.
const FIRST: u8 = SAID.to_bytes()[0];

/// Whether this program is told that it is to merge all of its memory. Asked at the start of every program: so it takes no
/// page of code or data that is not in use by then.
pub fn asks_for_merging() -> bool {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: the C library's variable, which nobody changes while the program starts.
    let mut strings = Strings(unsafe { environ });
    strings.any(|string| {
        // SAFETY: a C string has a first byte.
        let first = unsafe { string.read() };
        // SAFETY: it is a C string.
        first.cast_unsigned() == FIRST && unsafe { CStr::from_ptr(string) } == SAID
    })
}

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
    if strings.is_null() {
        return None;
    }
    let (mut count, mut loads, mut said) = (0, false, false);
    for string in Strings(strings) {
        // SAFETY: each is a C string.
        let string = unsafe { CStr::from_ptr(string) }.to_bytes();
        loads |= string.strip_prefix(PRELOAD).is_some_and(names_us);
        said |= string == SAID.to_bytes();
        count += 1;
    }
    Some((count, loads && !said))
}

/// The strings of an environment. Made of null, or of an array of C strings that ends with a null pointer.
struct Strings(*const *const c_char);

impl Iterator for Strings {
    type Item = *const c_char;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the null pointer at the end has not come yet.
        let string = unsafe { self.0.read() };
        // SAFETY: as above; it is not gone beyond.
        self.0 = unsafe { self.0.add(1) };
        (!string.is_null()).then_some(string)
    }
}

fn names_us(libraries: &[u8]) -> bool {
    let name = b"libksm_preload";
    libraries.windows(name.len()).any(|window| window == name)
}
