//! The app's memory, read and written as another language would: through raw pointers.
#![allow(unsafe_code, reason = "plays the part of the app")]

use ksm_engine::page::{PAGE_SIZE, PageBytes, PageRun};
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap,
};
use std::ptr::null_mut;

/// Anonymous memory. Unmapped when dropped.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    pages: usize,
}

// SAFETY: all access is through volatile reads and writes, or the kernel.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn map(pages: usize) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let bytes = pages * PAGE_SIZE;
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { mmap_anonymous(null_mut(), bytes, protection, MapFlags::PRIVATE) };
        Self {
            start: start.unwrap().cast(),
            pages,
        }
    }

    pub fn run(&self) -> PageRun {
        PageRun {
            start: (self.start.addr() / PAGE_SIZE) as u64,
            len: self.pages as u64,
        }
    }

    pub fn part(&self, first: u64, len: u64) -> PageRun {
        PageRun {
            start: self.run().start + first,
            len,
        }
    }

    pub fn pointer(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(page * PAGE_SIZE) }
    }

    /// Has pages that are not there yet come to lie on a node.
    pub fn prefer_node(&self, page: usize, count: usize, node: u16) {
        assert!(page + count <= self.pages);
        let mask: [u64; 16] = std::array::from_fn(|word| {
            let bit = usize::from(node).checked_sub(64 * word);
            bit.filter(|bit| *bit < 64).map_or(0, |bit| 1 << bit)
        });
        let start = self.pointer(page);
        // SAFETY: the mask has as many bits as stated, and the policy of memory changes no byte of it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                start,
                count * PAGE_SIZE,
                libc::MPOL_PREFERRED,
                mask.as_ptr(),
                mask.len() * 64 + 1,
                0,
            )
        };
        assert_eq!(result, 0, "mbind");
    }

    pub fn write(&self, page: usize, bytes: &PageBytes) {
        let target = self.pointer(page).cast::<u64>();
        for (i, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let place = target.wrapping_add(i);
            // SAFETY: inside the page, which is mapped and aligned.
            unsafe { place.write_volatile(u64::from_ne_bytes(*word)) };
        }
    }

    pub fn write_byte(&self, page: usize, offset: usize, byte: u8) {
        assert!(offset < PAGE_SIZE);
        let place = self.pointer(page).wrapping_add(offset);
        // SAFETY: inside the page.
        unsafe { place.write_volatile(byte) };
    }

    pub fn read(&self, page: usize) -> PageBytes {
        let source = self.pointer(page).cast::<u64>();
        let mut bytes = [0; PAGE_SIZE];
        for (i, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let place = source.wrapping_add(i);
            // SAFETY: inside the page, which is mapped and aligned.
            *word = unsafe { place.read_volatile() }.to_ne_bytes();
        }
        bytes
    }

    pub fn protect(&self, flags: MprotectFlags) {
        // SAFETY: the memory is ours.
        unsafe { mprotect(self.start.cast(), self.pages * PAGE_SIZE, flags) }.unwrap();
    }

    pub fn advise(&self, page: usize, pages: usize, advice: Advice) {
        // SAFETY: the memory is ours.
        unsafe { madvise(self.pointer(page).cast(), pages * PAGE_SIZE, advice) }.unwrap();
    }

    /// Asks the kernel to make it a huge page.
    pub fn try_collapse(&self, page: usize, pages: usize) {
        let start = self.pointer(page).cast();
        // SAFETY: the memory is ours, and stays as it is.
        let _ = unsafe { libc::madvise(start, pages * PAGE_SIZE, libc::MADV_COLLAPSE) };
    }

    pub fn protect_part(&self, page: usize, pages: usize, flags: MprotectFlags) {
        // SAFETY: the pages are part of the mapping, and tests know what they may do with them.
        let result = unsafe { mprotect(self.pointer(page).cast(), pages * PAGE_SIZE, flags) };
        result.unwrap();
    }

    pub fn lock(&self) {
        // SAFETY: the memory is ours.
        unsafe { rustix::mm::mlock(self.start.cast(), self.pages * PAGE_SIZE) }.unwrap();
    }

    /// New memory in the same place, as a bare system call of the app puts it there.
    pub fn replace_behind_our_back(&self) {
        self.replace_part(0, self.pages);
    }

    /// The same for some pages.
    pub fn replace_part(&self, page: usize, pages: usize) {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let start = self.pointer(page).cast();
        // SAFETY: the memory is ours.
        unsafe { mmap_anonymous(start, pages * PAGE_SIZE, protection, flags) }.unwrap();
    }

    pub fn unmap(&self, page: usize, pages: usize) {
        // SAFETY: the caller touches them no more.
        unsafe { munmap(self.pointer(page).cast(), pages * PAGE_SIZE) }.unwrap();
    }

    /// What the kernel says about the pages: its pagemap entries.
    pub fn pagemap(&self) -> Vec<u64> {
        let file = std::fs::File::open("/proc/self/pagemap").unwrap();
        let mut bytes = vec![0; self.pages * 8];
        let offset = self.run().start * 8;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset).unwrap();
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|entry| u64::from_le_bytes(*entry))
            .collect()
    }

    /// Whether a page is part of a huge page: the mapping around it has some, as `smaps` says.
    pub fn is_huge(&self, page: usize) -> bool {
        let address = self.pointer(page).addr();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some((start, end)) = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'))
            {
                let number = |text| usize::from_str_radix(text, 16).ok();
                if let (Some(start), Some(end)) = (number(start), number(end)) {
                    inside = (start..end).contains(&address);
                }
            } else if let Some(huge) = line.strip_prefix("AnonHugePages:")
                && inside
            {
                return huge.trim() != "0 kB";
            }
        }
        false
    }

    /// Whether a page is present and page cache or shared (bit 61 of its pagemap entry).
    pub fn is_shared(&self, page: usize) -> bool {
        let _ = self.read(page);
        self.pagemap()[page] >> 61 & 1 == 1
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the memory is ours.
        let _ = unsafe { munmap(self.start.cast(), self.pages * PAGE_SIZE) };
    }
}

/// Forks; the child runs `body` and exits with 0 if it returns true. Returns whether it did.
pub fn in_fork(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only reads and writes memory it has, and exits.
    match unsafe { libc::fork() } {
        -1 => panic!("fork"),
        0 => {
            let code = if body() { 0 } else { 1 };
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        child => wait_for(child),
    }
}

pub fn wait_for(child: i32) -> bool {
    let mut status = 0;
    // SAFETY: status is ours to be written.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}

/// `read(2)` into the app's memory; the number of bytes or the error number.
pub fn read_into(
    fd: &impl std::os::fd::AsRawFd,
    target: *mut u8,
    length: usize,
) -> Result<usize, i32> {
    // SAFETY: the target is the app's memory, or an address that the kernel refuses.
    let got = unsafe { libc::read(fd.as_raw_fd(), target.cast(), length) };
    usize::try_from(got).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// `pread(2)` into the app's memory; the number of bytes or the error number.
pub fn pread_into(
    fd: &impl std::os::fd::AsRawFd,
    target: *mut u8,
    length: usize,
    offset: u64,
) -> Result<usize, i32> {
    let offset = offset.try_into().unwrap_or(i64::MAX);
    // SAFETY: the target is the app's memory, or an address that the kernel refuses.
    let got = unsafe { libc::pread(fd.as_raw_fd(), target.cast(), length, offset) };
    usize::try_from(got).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// Another process writes into the app's memory (`process_vm_writev`).
pub fn write_from_outside(target: *mut u8, bytes: &PageBytes) {
    let app = i32::try_from(std::process::id()).unwrap();
    assert!(in_fork(|| {
        let local = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: PAGE_SIZE,
        };
        let remote = libc::iovec {
            iov_base: target.cast(),
            iov_len: PAGE_SIZE,
        };
        // SAFETY: the kernel reads `bytes`, and writes to the app's memory as the app wants it to.
        let done =
            unsafe { libc::process_vm_writev(app, &raw const local, 1, &raw const remote, 1, 0) };
        usize::try_from(done) == Ok(PAGE_SIZE)
    }));
}

/// Memory of the app that an io_uring has pinned as its fixed buffer. Unpinned some time after it is dropped.
pub struct FixedBuffer {
    ring: io_uring::IoUring,
    target: *mut u8,
}

impl FixedBuffer {
    pub fn register(target: *mut u8, pages: usize) -> Self {
        let ring = io_uring::IoUring::new(2).unwrap();
        let buffer = libc::iovec {
            iov_base: target.cast(),
            iov_len: pages * PAGE_SIZE,
        };
        // SAFETY: the memory outlives the test's use of the ring.
        unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();
        Self { ring, target }
    }

    /// Has the kernel write the first page of the file into the buffer, as it does for a device.
    pub fn read_into(mut self, file: &impl std::os::fd::AsRawFd) {
        let fd = io_uring::types::Fd(file.as_raw_fd());
        let length = u32::try_from(PAGE_SIZE).unwrap();
        let read = io_uring::opcode::ReadFixed::new(fd, self.target, length, 0).build();
        // SAFETY: the buffer is registered, and this call waits for the end of the read.
        unsafe { self.ring.submission().push(&read) }.unwrap();
        self.ring.submit_and_wait(1).unwrap();
        let result = self.ring.completion().next().unwrap().result();
        assert_eq!(usize::try_from(result), Ok(PAGE_SIZE));
    }
}

/// A task that shares the address space and nothing else, and borrows the thread-local storage of the thread that
/// made it, which only waits meanwhile.
#[derive(Debug)]
pub struct Task {
    pid: i32,
    stack: Memory,
}

const STACK_PAGES: usize = 256;

impl Task {
    pub fn start<F: Fn()>(body: &F) -> Self {
        extern "C" fn enter<F: Fn()>(body: *mut libc::c_void) -> i32 {
            // SAFETY: `start` passed a reference to it, which lives until the task is killed.
            let body = unsafe { &*body.cast::<F>() };
            body();
            0
        }
        let stack = Memory::map(STACK_PAGES);
        let top = stack.pointer(STACK_PAGES - 1).wrapping_add(PAGE_SIZE);
        let argument = std::ptr::from_ref(body).cast_mut().cast();
        // SAFETY: the stack is the task's alone; it is killed before its stack and its body go.
        let pid = unsafe { libc::clone(enter::<F>, top.cast(), libc::CLONE_VM, argument) };
        assert!(pid > 0, "clone");
        Self { pid, stack }
    }

    pub fn kill(self) {
        // SAFETY: the task is ours, and has not been waited for.
        let killed = unsafe { libc::kill(self.pid, libc::SIGKILL) };
        assert_eq!(killed, 0);
        let mut status = 0;
        // SAFETY: status is ours to be written.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WCLONE) };
        assert_eq!(waited, self.pid);
        assert!(
            libc::WIFSIGNALED(status),
            "the agent ended by itself: {status}"
        );
        drop(self.stack);
    }
}
