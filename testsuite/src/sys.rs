//! The unsafe system calls that the test programs need.
#![allow(unsafe_code)]

use ksm_client::Client;
use ksm_engine::page::PAGE_SIZE;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::c_void;
use std::io;

/// Has the kernel kill this process when its parent dies.
pub fn end_with_parent() {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
}

/// Becomes another user for good, in all threads.
///
/// # Errors
/// When the kernel refuses.
pub fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: the C library's calls change nothing but the credentials of this process.
    let group = unsafe { libc::setgid(uid) };
    // SAFETY: as above.
    let user = unsafe { libc::setuid(uid) };
    // The kernel made the process untraceable with the change, as for any other program that does it; a program that
    // was started by that user would not be.
    // SAFETY: as above.
    let dumpable = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    if group == 0 && user == 0 && dumpable == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes part of a region mergeable or takes it back.
///
/// # Errors
/// When the client refuses.
pub fn advise(client: &Client, part: &mut [u8], mergeable: bool) -> Result<(), String> {
    let (start, len) = (part.as_mut_ptr(), part.len());
    let result = if mergeable {
        // SAFETY: the memory is private and anonymous and outlives the client.
        unsafe { client.mergeable(start, len) }.map_err(|e| e.to_string())
    } else {
        // SAFETY: as above.
        unsafe { client.unmergeable(start, len) }.map_err(|e| e.to_string())
    };
    result.map(|_| ())
}

/// Discards part of a region.
///
/// # Errors
/// When the client refuses.
pub fn discard(client: &Client, part: &mut [u8]) -> Result<(), String> {
    // SAFETY: the memory is private and anonymous, and exclusively borrowed.
    unsafe { client.discard(part.as_mut_ptr(), part.len()) }.map_err(|e| e.to_string())
}

/// Takes the cache line of a byte out of all caches.
pub fn flush(byte: &u8) {
    // SAFETY: the address is that of a byte which may be read; its value stays.
    unsafe { std::arch::x86_64::_mm_clflush(byte) };
    // SAFETY: orders accesses, and does nothing else.
    unsafe { std::arch::x86_64::_mm_mfence() };
}

/// Runs `check` in a forked child; whether it said yes.
///
/// # Errors
/// When there is no child to be had.
pub fn in_child(check: impl FnOnce() -> bool) -> io::Result<bool> {
    // SAFETY: the child only reads memory and leaves by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => leave(i32::from(!check())),
        child => {
            let mut status = 0;
            // SAFETY: status is a valid place for the result.
            let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
            if ended != child {
                return Err(io::Error::last_os_error());
            }
            Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
        }
    }
}

/// Runs `work` in a forked child that nobody waits for; returns its process id.
///
/// # Errors
/// When there is no child to be had.
pub fn spawn_child(work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: the child only does `work` and leaves by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            work();
            leave(0)
        }
        child => Ok(child),
    }
}

fn leave(status: i32) -> ! {
    // SAFETY: ends the process at once, without running anything of the parent's.
    unsafe { libc::_exit(status) }
}

/// Tries to map a file shared and writable.
///
/// # Errors
/// As mmap.
pub fn map_shared_writable(file: &impl AsFd) -> Result<(), Errno> {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let at = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            PAGE_SIZE,
            prot,
            MapFlags::SHARED,
            file,
            0,
        )?
    };
    // SAFETY: it was mapped above and nobody else knows it.
    unsafe { rustix::mm::munmap(at, PAGE_SIZE) }
}

/// A page that takes a map of its own.
#[derive(Debug)]
pub struct OnePage(*mut c_void);

impl OnePage {
    /// Maps a page, writable or not.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn map(writable: bool) -> Result<Self, Errno> {
        let prot = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), PAGE_SIZE, prot, MapFlags::PRIVATE)?
        };
        Ok(Self(at))
    }
}

impl Drop for OnePage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody else knows it.
        let _ = unsafe { rustix::mm::munmap(self.0, PAGE_SIZE) };
    }
}

/// Private anonymous memory, page-aligned, with small pages only.
#[derive(Debug)]
pub struct Anonymous {
    at: *mut c_void,
    len: usize,
}

impl Anonymous {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn map(len: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE)?
        };
        Ok(Self { at, len })
    }

    /// The memory.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped readable and writable by `map`, for as long as `self` lives, and nobody else knows it.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.len) }
    }

    /// Hands it to the kernel's KSM.
    ///
    /// # Errors
    /// As madvise.
    pub fn advise_mergeable(&self) -> Result<(), Errno> {
        // SAFETY: merging does not change what is read from the memory.
        unsafe { rustix::mm::madvise(self.at, self.len, rustix::mm::Advice::LinuxMergeable) }
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; the borrows of `bytes` have ended.
        let _ = unsafe { rustix::mm::munmap(self.at, self.len) };
    }
}
