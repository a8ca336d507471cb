//! Memory of our own that steward and agent stand on: their stacks, their buffers, and what they share.
//!
//! It is mapped once in a process, is inherited by fork, and is never given back: a task may stand on it at any time.

use super::memory::page_of;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use zerocopy::FromZeros;

fn map(len: usize) -> Result<NonNull<c_void>, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
    NonNull::new(unsafe { mmap_anonymous(null_mut(), len, protection, flags) }?).ok_or(Errno::NOMEM)
}

/// A stack for a task, mapped for the life of the process, with a page below it that nobody can touch.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    guard: NonNull<c_void>,
    pages: usize,
}

// SAFETY: the value only says where the stack is.
unsafe impl Send for Stack {}
// SAFETY: as above.
unsafe impl Sync for Stack {}

impl Stack {
    /// Maps a stack of `pages` pages.
    ///
    /// # Errors
    /// Of `mmap` and `mprotect`.
    pub fn map(pages: usize) -> Result<Self, Errno> {
        let guard = map((pages + 1) * PAGE_SIZE)?;
        // SAFETY: the page was just mapped, and nobody knows of it.
        unsafe { mprotect(guard.as_ptr(), PAGE_SIZE, MprotectFlags::empty()) }?;
        Ok(Self { guard, pages })
    }

    /// The pages of the mapping, its guard included.
    #[must_use]
    pub fn run(self) -> PageRun {
        PageRun {
            start: page_of(self.guard.addr().get()),
            len: self.pages as u64 + 1,
        }
    }

    /// The lowest address of the stack.
    pub(super) fn bottom(self) -> *mut c_void {
        // SAFETY: the mapping is one page longer than the stack.
        unsafe { self.guard.byte_add(PAGE_SIZE) }.as_ptr()
    }

    /// Bytes from the bottom to the top.
    pub(super) fn len(self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// One past its highest address, where it begins to grow down.
    pub(super) fn top(self) -> *mut c_void {
        // SAFETY: this is the end of the mapping.
        unsafe { self.guard.byte_add(PAGE_SIZE + self.len()) }.as_ptr()
    }
}

/// Room for one `T`, all zeroes at first, that one task at a time works in.
#[derive(Debug)]
pub struct Workplace<T> {
    place: NonNull<T>,
    taken: AtomicBool,
}

// SAFETY: `take` gives the T to one task only.
unsafe impl<T: Send> Send for Workplace<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Workplace<T> {}

impl<T: FromZeros> Workplace<T> {
    /// Maps one. Only what is touched takes memory.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn map() -> Result<Self, Errno> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };
        Ok(Self {
            place: map(size_of::<T>().next_multiple_of(PAGE_SIZE))?.cast(),
            taken: AtomicBool::new(false),
        })
    }

    /// The pages it is in.
    #[must_use]
    pub fn run(&self) -> PageRun {
        PageRun {
            start: page_of(self.place.addr().get()),
            len: size_of::<T>().div_ceil(PAGE_SIZE) as u64,
        }
    }

    /// Takes it for good; `None` if somebody has.
    #[must_use]
    pub fn take(&self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        // SAFETY: zeroes are a valid T, the mapping is never unmapped, and `taken` lets only one task come here.
        Some(unsafe { &mut *self.place.as_ptr() })
    }

    /// For a child just forked, where the task that took it does not exist.
    pub fn reset_in_child(&self) {
        self.taken.store(false, Ordering::Release);
    }
}

/// Set once, to something that lives as long as the process. Never waits, so that it works in a child whatever another
/// thread was doing at the fork.
#[derive(Debug)]
pub struct Kept<T>(AtomicPtr<T>);

impl<T: Sync> Kept<T> {
    /// An empty one.
    #[must_use]
    pub const fn empty() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// What was kept.
    pub fn get(&self) -> Option<&'static T> {
        // SAFETY: only pointers made of a `&'static T` are stored.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// What was kept, or else what `make` makes; of two threads that try at once one wins.
    ///
    /// # Errors
    /// Of `make`, and of `mmap`.
    pub fn get_or_keep(
        &self,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<&'static T, Errno> {
        if let Some(kept) = self.get() {
            return Ok(kept);
        }
        let made = keep(make()?)?;
        let pointer = std::ptr::from_ref(made).cast_mut();
        let won = self
            .0
            .compare_exchange(null_mut(), pointer, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        Ok(if won {
            made
        } else {
            self.get().unwrap_or(made)
        })
    }
}

/// Moves `value` into a mapping of its own, for as long as the process lives.
fn keep<T: Sync>(value: T) -> Result<&'static T, Errno> {
    const { assert!(align_of::<T>() <= PAGE_SIZE) };
    let place = map(size_of::<T>().next_multiple_of(PAGE_SIZE))?.cast::<T>();
    // SAFETY: `place` is aligned, long enough, and nobody else knows of it.
    unsafe { place.write(value) };
    // SAFETY: it was just written, and the mapping is never unmapped.
    Ok(unsafe { place.as_ref() })
}
