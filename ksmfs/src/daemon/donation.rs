//! The buffer through which an agent hands over the bytes of pages.
//!
//! It stays writable for the peer, who may change it at any time. So it is never mapped here: each page is read once,
//! with `pread`, into memory of the daemon. That also means that no hole and no lack of memory in it can become a
//! SIGBUS of the daemon. Nor is it written to or punched by the engine's thread: the peer can hold its lock.

use super::chores;
use crate::bell::Bell;
use ksm_engine::order::{DONATION_PAGES, Donation};
use ksm_engine::page::{PAGE_SIZE, PageBytes, UserId};
use ksm_engine::wire::{BUFFER_PAGES, CHILDREN, LEDGER_OFFSET, Ledger};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The donation buffer of one peer.
#[derive(Debug)]
pub struct DonationBuffer {
    memfd: Arc<OwnedFd>,
    user: UserId,
    tidying: Arc<Tidying>,
}

/// What is being done to the buffer by other threads.
#[derive(Debug, Default)]
struct Tidying {
    /// Its memory is being given back.
    empties: AtomicBool,
    /// Children are about to be called.
    calls: AtomicBool,
    /// Those with lower numbers.
    called: AtomicU32,
}

impl DonationBuffer {
    /// Makes a buffer that cannot change its size, for a process of `user`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(ledger: u32, user: UserId) -> Result<Self, Errno> {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let memfd = match rustix::fs::memfd_create(c"ksm-donation", flags | MemfdFlags::NOEXEC_SEAL)
        {
            // Kernels before 6.3 do not know the flag.
            Err(Errno::INVAL) => rustix::fs::memfd_create(c"ksm-donation", flags)?,
            made => made?,
        };
        rustix::fs::ftruncate(&memfd, (BUFFER_PAGES * PAGE_SIZE) as u64)?;
        let id = LEDGER_OFFSET + offset_of!(Ledger, id) as u64;
        rustix::io::pwrite(&memfd, &ledger.to_ne_bytes(), id)?;
        rustix::fs::fcntl_add_seals(
            &memfd,
            SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(Self {
            memfd: Arc::new(memfd),
            user,
            tidying: Arc::default(),
        })
    }

    /// Forks that the app has begun.
    #[must_use]
    pub fn forks(&self) -> u32 {
        self.number(offset_of!(Ledger, forks))
    }

    /// Process id of a child, as it states it; 0 if it did not.
    #[must_use]
    pub fn child(&self, number: u32) -> u32 {
        let place = (number % CHILDREN) as usize;
        self.number(offset_of!(Ledger, children) + place * size_of::<u32>())
    }

    /// Has the children with lower numbers called.
    pub fn call(&self, below: u32) {
        let (memfd, tidying) = (Arc::clone(&self.memfd), Arc::clone(&self.tidying));
        tidying.called.store(below, Ordering::SeqCst);
        if tidying.calls.swap(true, Ordering::SeqCst) {
            return;
        }
        let taken_on = chores::aside(self.user, move || {
            // From here on others have to be called again.
            tidying.calls.store(false, Ordering::SeqCst);
            let below = tidying.called.load(Ordering::SeqCst).to_ne_bytes();
            let at = LEDGER_OFFSET + offset_of!(Ledger, called) as u64;
            // Without memory for the page they come when they come.
            let _ = rustix::io::pwrite(&memfd, &below, at);
        });
        if !taken_on {
            self.tidying.calls.store(false, Ordering::SeqCst);
        }
    }

    fn number(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        let read = rustix::io::pread(&self.memfd, &mut bytes, LEDGER_OFFSET + offset as u64);
        if read == Ok(bytes.len()) {
            u32::from_ne_bytes(bytes)
        } else {
            0
        }
    }

    /// Begins to give the memory of donated pages back, if it is not being done and somebody is there for it. What is
    /// written to the buffer meanwhile may be lost. The bell is rung when it is done, which the peer can put off.
    pub fn empty(&self, emptied: &Bell) {
        if self.tidying.empties.swap(true, Ordering::AcqRel) {
            return;
        }
        let (memfd, tidying) = (Arc::clone(&self.memfd), Arc::clone(&self.tidying));
        let emptied = emptied.clone();
        let taken_on = chores::aside(self.user, move || {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let bytes = DONATION_PAGES * PAGE_SIZE;
            // A peer may have forbidden it, by sealing: then it is his memory that stays in use.
            let _ = rustix::fs::fallocate(&memfd, punch, 0, bytes as u64);
            tidying.empties.store(false, Ordering::Release);
            emptied.ring();
        });
        if !taken_on {
            self.tidying.empties.store(false, Ordering::Release);
        }
    }

    /// Whether its memory is being given back.
    #[must_use]
    pub fn is_being_emptied(&self) -> bool {
        self.tidying.empties.load(Ordering::Acquire)
    }

    /// What the agent gets.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Donation for DonationBuffer {
    fn copy_pages(&self, first: usize, into: &mut [PageBytes]) {
        let start = first as u64 * PAGE_SIZE as u64;
        let into = into.as_flattened_mut();
        let mut done = 0;
        while done < into.len() {
            match rustix::io::pread(&self.memfd, &mut into[done..], start + done as u64) {
                Ok(n) if n > 0 => done += n,
                Err(Errno::INTR) => {}
                // Past the end, or no memory: bytes that were never donated. The digest will not match.
                Ok(_) | Err(_) => {
                    into[done..].fill(0);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DonationBuffer;
    use crate::bell::Bell;
    use ksm_engine::order::{DONATION_PAGES, Donation};
    use ksm_engine::page::{PAGE_SIZE, UserId};
    use ksm_engine::wire::BUFFER_PAGES;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::FallocateFlags;
    use rustix::io::Errno;

    #[test]
    fn pages_arrive_as_the_peer_wrote_them() {
        let buffer = DonationBuffer::new(1, UserId(1)).unwrap();
        let last = DONATION_PAGES - 1;
        let at = last as u64 * PAGE_SIZE as u64;
        rustix::io::pwrite(buffer.descriptor(), &[7; PAGE_SIZE], at).unwrap();
        let mut pages = [[1; PAGE_SIZE]; 2];
        buffer.copy_pages(last - 1, &mut pages);
        assert_eq!(pages, [[0; PAGE_SIZE], [7; PAGE_SIZE]]);
    }

    #[test]
    fn an_emptied_buffer_holds_no_memory_and_the_bell_is_rung() {
        let buffer = DonationBuffer::new(1, UserId(1)).unwrap();
        let blocks = || rustix::fs::fstat(buffer.descriptor()).unwrap().st_blocks;
        let of_ledger = blocks();
        rustix::io::pwrite(buffer.descriptor(), &[7; PAGE_SIZE], 0).unwrap();
        assert!(blocks() > of_ledger);
        let bell = Bell::new().unwrap();
        buffer.empty(&bell);
        let minute = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        assert_eq!(
            poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&minute)),
            Ok(1)
        );
        assert!(!buffer.is_being_emptied());
        assert_eq!(blocks(), of_ledger);
    }

    #[test]
    fn a_peer_that_punches_and_shrinks_does_no_harm() {
        let buffer = DonationBuffer::new(1, UserId(1)).unwrap();
        let fd = buffer.descriptor();
        assert_eq!(rustix::fs::ftruncate(fd, 0), Err(Errno::PERM));
        rustix::io::pwrite(fd, &[7; PAGE_SIZE], 0).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(fd, punch, 0, 4096).unwrap();
        let mut page = [[1; PAGE_SIZE]];
        buffer.copy_pages(0, &mut page);
        assert_eq!(page, [[0; PAGE_SIZE]]);
        buffer.copy_pages(BUFFER_PAGES, &mut page);
        assert_eq!(page, [[0; PAGE_SIZE]]);
    }
}
