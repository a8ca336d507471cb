//! The functions that ours stand in front of.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The next definition of a function behind ours, looked up once.
#[derive(Debug)]
pub struct Next<F> {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
    kind: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// The function `name`.
    ///
    /// # Safety
    /// `F` is the type of a C function pointer, and the one that `name` has.
    pub const unsafe fn new(name: &'static CStr) -> Self {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        Self {
            name,
            address: AtomicPtr::new(std::ptr::null_mut()),
            kind: PhantomData,
        }
    }

    /// It; `None` if there is none.
    pub fn get(&self) -> Option<F> {
        let mut address = self.address.load(Ordering::Relaxed);
        if address.is_null() {
            // SAFETY: the name is a C string.
            address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.address.store(address, Ordering::Relaxed);
        }
        if address.is_null() {
            return None;
        }
        // SAFETY: F is the type of this function, by the promise made to `new`.
        Some(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&address) })
    }
}
