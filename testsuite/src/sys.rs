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

/// A page that whoever reads waits for, in system calls, too, until this is dropped.
#[derive(Debug)]
pub struct Unreadable {
    at: *mut c_void,
    /// Whose end lets everybody go on.
    uffd: std::sync::Mutex<Option<rustix::fd::OwnedFd>>,
}

// SAFETY: the mapping is never read or written through this.
unsafe impl Send for Unreadable {}
// SAFETY: as above.
unsafe impl Sync for Unreadable {}

impl Unreadable {
    /// Maps such a page.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn map() -> Result<Self, Errno> {
        use linux_raw_sys::general::{
            UFFD_API, UFFDIO_REGISTER_MODE_MISSING, uffdio_api, uffdio_range, uffdio_register,
        };
        use rustix::ioctl::{Updater, ioctl, opcode};
        use rustix::mm::UserfaultfdFlags;
        const GROUP: u8 = 0xaa;
        const API: rustix::ioctl::Opcode = opcode::read_write::<uffdio_api>(GROUP, 0x3f);
        const REGISTER: rustix::ioctl::Opcode = opcode::read_write::<uffdio_register>(GROUP, 0);
        // SAFETY: a new mapping where the kernel likes.
        let at = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                PAGE_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: it changes nothing of this process until memory is registered.
        let uffd = unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
        let mut api = uffdio_api {
            api: UFFD_API.into(),
            features: 0,
            ioctls: 0,
        };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
        let request = unsafe { Updater::<API, _>::new(&mut api) };
        // SAFETY: as above.
        unsafe { ioctl(&uffd, request) }?;
        let mut register = uffdio_register {
            range: uffdio_range {
                start: at.addr() as u64,
                len: PAGE_SIZE as u64,
            },
            mode: UFFDIO_REGISTER_MODE_MISSING.into(),
            ioctls: 0,
        };
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`.
        let request = unsafe { Updater::<REGISTER, _>::new(&mut register) };
        // SAFETY: the page was mapped above, and nobody reads it but those who are to wait.
        unsafe { ioctl(&uffd, request) }?;
        let uffd = std::sync::Mutex::new(Some(uffd));
        Ok(Self { at, uffd })
    }

    /// Writes the page to a file: takes the file's lock and waits.
    pub fn write_to(&self, file: impl AsFd) {
        let file = std::os::fd::AsRawFd::as_raw_fd(&file.as_fd());
        // SAFETY: the page is mapped; what is read from it does not matter.
        unsafe { libc::pwrite(file, self.at, PAGE_SIZE, 0) };
    }

    /// Lets everybody go on.
    ///
    /// # Panics
    /// When somebody has panicked here.
    pub fn release(&self) {
        *self.uffd.lock().expect("nobody panics here") = None;
    }
}
