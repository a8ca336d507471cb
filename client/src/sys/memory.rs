//! Memory that we mapped ourselves.
//!
//! The agent may not touch the app's heap (the heap may be the page it holds, and its lock may be frozen), so every
//! byte it works with lives in a mapping of one of these kinds: [`OwnPages`] that nobody else knows of, [`SharedPages`]
//! of a file that other processes map too, and structures in memory of their own, [`place`]d for good or
//! [`Placed`] until dropped.

use ksm_engine::page::{PAGE_SIZE, PageBytes, PageRun};
use rustix::io::{Errno, Result};
use rustix::mm::{
    Advice, MapFlags, MlockFlags, MprotectFlags, ProtFlags, madvise, mlock_with, mmap,
    mmap_anonymous, mprotect, munlock, munmap,
};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use zerocopy::FromZeros;

/// The address of a page. A page number beyond the address space gives an address that every system call refuses.
#[must_use]
pub fn address_of(page: u64) -> usize {
    usize::try_from(page)
        .ok()
        .and_then(|page| page.checked_mul(PAGE_SIZE))
        .unwrap_or(usize::MAX & !(PAGE_SIZE - 1))
}

/// The bytes of a run as a length for a system call.
#[must_use]
pub fn length_of(pages: u64) -> usize {
    address_of(pages)
}

/// The page number of an address.
#[must_use]
pub fn page_of(address: usize) -> u64 {
    (address / PAGE_SIZE) as u64
}

/// The pages that `value` lies in.
#[must_use]
pub fn pages_of<T: ?Sized>(value: &T) -> PageRun {
    let start = std::ptr::from_ref(value).addr();
    let end = start + size_of_val(value);
    PageRun::between(page_of(start), page_of(end + PAGE_SIZE - 1))
}

fn run_at(first: NonNull<PageBytes>, pages: usize) -> PageRun {
    PageRun {
        start: page_of(first.addr().get()),
        len: pages as u64,
    }
}

fn mapped(pointer: *mut c_void) -> Result<NonNull<PageBytes>> {
    // Rust code cannot use a mapping at address zero.
    NonNull::new(pointer.cast()).ok_or(Errno::NOMEM)
}

fn anonymous(bytes: usize) -> Result<NonNull<PageBytes>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
    mapped(unsafe { mmap_anonymous(null_mut(), bytes, protection, flags) }?)
}

/// Maps zeroed memory for a `T` that lives as long as the process. Only the pages that are touched take memory.
///
/// # Errors
/// Of `mmap`.
pub fn place<T: FromZeros>() -> Result<&'static T> {
    let value = place_raw::<T>()?;
    // SAFETY: the mapping is aligned, long enough, never unmapped, and all-zero bytes are a valid T.
    Ok(unsafe { value.as_ref() })
}

fn place_raw<T: FromZeros>() -> Result<NonNull<T>> {
    const { assert!(align_of::<T>() <= PAGE_SIZE) };
    let bytes = size_of::<T>().next_multiple_of(PAGE_SIZE);
    Ok(anonymous(bytes)?.cast())
}

/// A value in a mapping of its own, as a `Box` has it on the heap. Starts as all zeroes.
#[derive(Debug)]
pub struct Placed<T: FromZeros>(NonNull<T>);

// SAFETY: the value belongs to its owner alone, as that of a `Box` does.
unsafe impl<T: FromZeros + Send> Send for Placed<T> {}

impl<T: FromZeros> Placed<T> {
    /// Maps a zeroed value.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn new() -> Result<Self> {
        place_raw().map(Self)
    }

    /// Where it is.
    #[must_use]
    pub fn run(&self) -> PageRun {
        pages_of::<T>(self)
    }
}

impl<T: FromZeros> Deref for Placed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping holds a valid T and lives as long as self.
        unsafe { self.0.as_ref() }
    }
}

impl<T: FromZeros> DerefMut for Placed<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and self is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T: FromZeros> Drop for Placed<T> {
    fn drop(&mut self) {
        let bytes = size_of::<T>().next_multiple_of(PAGE_SIZE);
        // SAFETY: the mapping is ours and nothing borrows it any more; values made of zeroes own nothing.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), bytes) };
    }
}

/// Private anonymous pages that only their owner knows of. Unmapped when dropped.
#[derive(Debug)]
pub struct OwnPages {
    first: NonNull<PageBytes>,
    pages: usize,
}

// SAFETY: the pages belong to the value alone, as a `Box` does.
unsafe impl Send for OwnPages {}
// SAFETY: a shared borrow only reads.
unsafe impl Sync for OwnPages {}

impl OwnPages {
    /// Maps `pages` zero pages.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn map(pages: usize) -> Result<Self> {
        let bytes = pages.checked_mul(PAGE_SIZE).ok_or(Errno::NOMEM)?;
        let first = anonymous(bytes)?;
        Ok(Self { first, pages })
    }

    /// Where they are.
    #[must_use]
    pub fn run(&self) -> PageRun {
        run_at(self.first, self.pages)
    }

    /// How many.
    #[must_use]
    pub fn pages_count(&self) -> usize {
        self.pages
    }

    /// All of them.
    #[must_use]
    pub fn pages(&self) -> &[PageBytes] {
        // SAFETY: the mapping has that many pages and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.pages) }
    }

    /// All of them, to write to.
    pub fn pages_mut(&mut self) -> &mut [PageBytes] {
        // SAFETY: the mapping has that many pages, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.pages) }
    }

    /// One page, without touching the others (some may be absent, and waiting for a fault).
    #[must_use]
    pub fn page(&self, index: usize) -> Option<&PageBytes> {
        if index >= self.pages {
            return None;
        }
        // SAFETY: index is inside the mapping.
        let page = unsafe { self.first.add(index) };
        // SAFETY: the mapping lives as long as self.
        Some(unsafe { page.as_ref() })
    }

    /// Makes them what the app's pages are whose place they take. No access but by `move_over` may follow that this
    /// protection does not allow.
    ///
    /// # Errors
    /// Of `mprotect`, and of `mlock2` (over the limit of locked memory).
    pub fn imitate(&mut self, protection: ProtFlags, locked: bool) -> Result<()> {
        let (start, length) = (self.first.as_ptr().cast(), self.pages * PAGE_SIZE);
        if locked {
            // SAFETY: locking changes no byte.
            unsafe { mlock_with(start, length, MlockFlags::ONFAULT) }?;
        }
        // SAFETY: self is borrowed exclusively.
        unsafe {
            mprotect(
                start,
                length,
                MprotectFlags::from_bits_retain(protection.bits()),
            )
        }
    }

    /// What an app may do with its memory at any time.
    #[cfg(test)]
    pub fn make_read_only(&mut self) -> Result<()> {
        self.imitate(ProtFlags::READ, false)
    }

    /// Gives every page memory of its own, in one call.
    ///
    /// # Errors
    /// Of `madvise`: out of memory.
    pub fn populate(&mut self) -> Result<()> {
        let start = self.first.as_ptr().cast();
        // SAFETY: the pages are ours, and populating changes no byte.
        unsafe { madvise(start, self.pages * PAGE_SIZE, Advice::LinuxPopulateWrite) }
    }

    /// Gives the memory of the first `pages` pages back; they read as zero afterwards.
    ///
    /// # Errors
    /// Of `madvise`.
    pub fn discard(&mut self, pages: usize) -> Result<()> {
        let length = pages.min(self.pages) * PAGE_SIZE;
        let start = self.first.as_ptr().cast();
        // SAFETY: the pages are ours, and zeroes are valid for what is kept in them.
        match unsafe { madvise(start, length, Advice::LinuxDontNeed) } {
            // The app called mlockall: ours are locked too. They may not be written to instead, for some of a
            // quarantine are absent, and whoever touches those waits for ever.
            Err(Errno::INVAL) => {
                // SAFETY: unlocking changes no byte.
                unsafe { munlock(start, self.pages * PAGE_SIZE) }?;
                // SAFETY: as above.
                unsafe { madvise(start, length, Advice::LinuxDontNeed) }
            }
            other => other,
        }
    }
}

impl Drop for OwnPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows it any more.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.pages * PAGE_SIZE) };
    }
}

/// Waits until everybody is through who reads or writes this address space through `/proc/PID/mem` or ptrace: they hold
/// its lock for reading from the look-up of a page to the end of the copy, without a pin that anybody could see. Takes the
/// lock for writing, by a change of protection that is none, of the memory that `ours` lies in.
///
/// # Errors
/// Of `mprotect`.
pub fn wait_for_remote_access<T>(ours: &T) -> Result<()> {
    let run = pages_of(ours);
    let start = std::ptr::with_exposed_provenance_mut(address_of(run.start));
    let same = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: memory that holds a value with interior mutability is readable and writable already.
    unsafe { mprotect(start, length_of(run.len), same) }
}

/// Gives back what an agent that was killed had mapped.
pub fn unmap_of_dead_agent(run: PageRun) {
    let start = std::ptr::with_exposed_provenance_mut(address_of(run.start));
    // SAFETY: the task that owned these pages is dead, and the run was noted when it mapped them.
    let _ = unsafe { munmap(start, length_of(run.len)) };
}

/// Pages of a file that other processes may map and change. Never a slice: only whole copies and comparisons.
#[derive(Debug)]
pub struct SharedPages {
    first: NonNull<PageBytes>,
    pages: usize,
}

// SAFETY: all access is through raw volatile reads or system calls, which any thread may do.
unsafe impl Send for SharedPages {}

impl SharedPages {
    /// Maps `pages` pages of a file from page `offset` on.
    ///
    /// # Errors
    /// Of `mmap`.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, pages: usize, write: bool) -> Result<Self> {
        let bytes = pages.checked_mul(PAGE_SIZE).ok_or(Errno::NOMEM)?;
        let offset = offset.checked_mul(PAGE_SIZE as u64).ok_or(Errno::INVAL)?;
        let protection = if write {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap(null_mut(), bytes, protection, MapFlags::SHARED, fd, offset) }?;
        let first = mapped(start)?;
        Ok(Self { first, pages })
    }

    /// Where they are.
    #[must_use]
    pub fn run(&self) -> PageRun {
        run_at(self.first, self.pages)
    }

    pub(super) fn start(&self) -> *mut c_void {
        self.first.as_ptr().cast()
    }

    /// Maps pages before they are needed, so that looking at them later neither waits nor fails.
    ///
    /// # Errors
    /// Of `madvise`; also where an access would have been a SIGBUS.
    pub fn populate(&self, index: usize, pages: usize) -> Result<()> {
        let start = self.page(index, pages).ok_or(Errno::INVAL)?;
        let length = pages * PAGE_SIZE;
        // SAFETY: the range is inside the mapping, and populating changes nothing in it.
        unsafe { madvise(start.as_ptr().cast(), length, Advice::LinuxPopulateRead) }
    }

    fn page(&self, index: usize, pages: usize) -> Option<NonNull<PageBytes>> {
        if index.checked_add(pages)? > self.pages {
            return None;
        }
        // SAFETY: index is inside the mapping.
        Some(unsafe { self.first.add(index) })
    }
}

impl Drop for SharedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no pointer into it leaves this module.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), self.pages * PAGE_SIZE) };
    }
}

/// A place for a reference that is set once. All-zero bytes are an empty one.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct OncePlaced<T> {
    address: AtomicUsize,
    kind: PhantomData<T>,
}

impl<T: FromZeros + Sync> OncePlaced<T> {
    /// An empty one.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            address: AtomicUsize::new(0),
            kind: PhantomData,
        }
    }

    /// What was set.
    pub fn get(&self) -> Option<&'static T> {
        let pointer = std::ptr::with_exposed_provenance_mut(self.address.load(Ordering::Acquire));
        // SAFETY: only the address of a `&'static T` is ever stored.
        NonNull::new(pointer).map(|pointer| unsafe { pointer.as_ref() })
    }

    /// Returns what was set, or makes it and sets it; of two threads that try at once one wins.
    ///
    /// # Errors
    /// Of `make`.
    pub fn get_or_set(&self, make: impl FnOnce() -> Result<&'static T>) -> Result<&'static T> {
        if let Some(value) = self.get() {
            return Ok(value);
        }
        let value = make()?;
        let address = std::ptr::from_ref(value).expose_provenance();
        let set = self
            .address
            .compare_exchange(0, address, Ordering::AcqRel, Ordering::Acquire);
        Ok(match set {
            Ok(_) => value,
            // The loser's mapping is address space without memory, once in the life of a process.
            Err(_) => self.get().unwrap_or(value),
        })
    }
}

/// Zeroed memory that is zeroed again in every child that gets a copy of the address space (not in one that shares it).
///
/// # Errors
/// Of `mmap` and `madvise`.
pub fn place_wiped_on_fork<T: FromZeros>() -> Result<&'static T> {
    let value = place::<T>()?;
    let start = std::ptr::from_ref(value).cast_mut().cast();
    let bytes = size_of::<T>().next_multiple_of(PAGE_SIZE);
    // SAFETY: the mapping is ours, and zeroes are a valid T.
    unsafe { madvise(start, bytes, Advice::LinuxWipeOnFork) }?;
    Ok(value)
}
