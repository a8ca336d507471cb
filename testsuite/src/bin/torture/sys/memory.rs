//! The memory that is merged, read and written through raw pointers: others change it, or its mapping, at any time.

use super::done;
use std::io;
use std::ops::Range;
use std::ptr::null_mut;
use testsuite::content::PAGE_SIZE;

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Private anonymous memory. Whoever has it owns the mapping; it is unmapped by nobody else.
#[derive(Debug)]
pub(crate) struct Piece {
    start: *mut u8,
    pages: usize,
}

// SAFETY: the pointer says where the memory is; it is used through one owner.
unsafe impl Send for Piece {}
// SAFETY: as above; where threads share one they only read and write the bytes.
unsafe impl Sync for Piece {}

fn map(at: *mut u8, pages: usize, protection: i32, more: i32) -> io::Result<*mut u8> {
    let length = pages * PAGE_SIZE;
    // SAFETY: callers that ask for a fixed place own what is there.
    let at = unsafe { libc::mmap(at.cast(), length, protection, ANONYMOUS | more, -1, 0) };
    match at {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => Ok(at.cast()),
    }
}

impl Piece {
    pub(crate) fn map(pages: usize) -> io::Result<Self> {
        let start = map(null_mut(), pages, READ_WRITE, 0)?;
        Ok(Self { start, pages })
    }

    /// The first byte of a page.
    pub(crate) fn at(&self, page: usize) -> *mut u8 {
        assert!(page < self.pages);
        self.start.wrapping_add(page * PAGE_SIZE)
    }

    pub(crate) fn address(&self, page: usize) -> usize {
        self.at(page).expose_provenance()
    }

    fn part(&self, run: &Range<usize>) -> (*mut libc::c_void, usize) {
        assert!(run.start < run.end && run.end <= self.pages);
        (self.at(run.start).cast(), run.len() * PAGE_SIZE)
    }

    pub(crate) fn read(&self, page: usize, into: &mut [u8; PAGE_SIZE]) {
        let from = self.at(page);
        // SAFETY: the page is mapped readable by its owner, and the buffer is as long.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE_SIZE) };
    }

    /// Writes a page at once.
    pub(crate) fn store(&self, page: usize, bytes: &[u8]) {
        assert_eq!(bytes.len(), PAGE_SIZE);
        let to = self.at(page);
        // SAFETY: the page is mapped writable by its owner, and the bytes are as many.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, PAGE_SIZE) };
    }

    /// Writes part of a page.
    pub(crate) fn store_part(&self, page: usize, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE);
        let to = self.at(page).wrapping_add(offset);
        // SAFETY: the page is mapped writable by its owner, and the bytes fit behind the offset.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    pub(crate) fn advise(&self, run: Range<usize>, advice: libc::c_int) -> io::Result<()> {
        let (at, length) = self.part(&run);
        // SAFETY: what an advice does to the owner's memory, the owner asked for.
        done(unsafe { libc::madvise(at, length, advice) })
    }

    pub(crate) fn protect(&self, run: Range<usize>, protection: libc::c_int) -> io::Result<()> {
        let (at, length) = self.part(&run);
        // SAFETY: the owner does not touch it in other ways until it is given back.
        done(unsafe { libc::mprotect(at, length, protection) })
    }

    pub(crate) fn allow_all(&self, run: Range<usize>) -> io::Result<()> {
        self.protect(run, READ_WRITE)
    }

    pub(crate) fn lock(&self, run: Range<usize>) -> io::Result<()> {
        let (at, length) = self.part(&run);
        // SAFETY: locking changes no byte.
        done(unsafe { libc::mlock(at, length) })
    }

    pub(crate) fn unlock(&self, run: Range<usize>) -> io::Result<()> {
        let (at, length) = self.part(&run);
        // SAFETY: unlocking changes no byte.
        done(unsafe { libc::munlock(at, length) })
    }

    /// New memory in the same place, in one step.
    pub(crate) fn map_over(&self, run: Range<usize>) -> io::Result<()> {
        map(self.at(run.start), run.len(), READ_WRITE, libc::MAP_FIXED).map(drop)
    }

    /// New memory in the same place, in two. If another thread mapped something there meanwhile, this piece ends before
    /// it, and false is the answer.
    pub(crate) fn unmap_and_map(&mut self, run: Range<usize>) -> io::Result<bool> {
        let (at, length) = self.part(&run);
        // SAFETY: the owner has given up what was there.
        done(unsafe { libc::munmap(at, length) })?;
        match map(at.cast(), run.len(), READ_WRITE, libc::MAP_FIXED_NOREPLACE) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if run.end < self.pages {
                    self.unmap(run.end..self.pages)?;
                }
                self.pages = run.start;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn unmap(&self, run: Range<usize>) -> io::Result<()> {
        let (at, length) = self.part(&run);
        // SAFETY: the owner has given up what was there.
        done(unsafe { libc::munmap(at, length) })
    }

    /// To another place, over memory that was reserved there.
    pub(crate) fn move_away(&mut self) -> io::Result<()> {
        let place = map(null_mut(), self.pages, libc::PROT_NONE, 0)?;
        let length = self.pages * PAGE_SIZE;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the place was reserved above, and this owner is the only one who knows the address.
        let moved = unsafe {
            libc::mremap(
                self.start.cast(),
                length,
                length,
                flags,
                place.cast::<libc::c_void>(),
            )
        };
        let followed = self.follow(moved, self.pages);
        if followed.is_err() {
            // SAFETY: reserved above, and nothing was moved there.
            let _ = unsafe { libc::munmap(place.cast(), length) };
        }
        followed
    }

    /// Makes it longer or shorter, where it is or elsewhere.
    pub(crate) fn resize(&mut self, pages: usize) -> io::Result<()> {
        let (old, new) = (self.pages * PAGE_SIZE, pages * PAGE_SIZE);
        // SAFETY: this owner is the only one who knows the address.
        let moved = unsafe { libc::mremap(self.start.cast(), old, new, libc::MREMAP_MAYMOVE) };
        self.follow(moved, pages)
    }

    fn follow(&mut self, moved: *mut libc::c_void, pages: usize) -> io::Result<()> {
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.start = moved.cast();
        self.pages = pages;
        Ok(())
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.pages > 0 {
            let _ = self.unmap(0..self.pages);
        }
    }
}
