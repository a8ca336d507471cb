//! Arenas: sealed memfds that hold merged pages.
//!
//! A slot's bytes must never change while anybody can map them, whatever the daemon or a peer does. So the one
//! writable mapping is made first, then the memfd is sealed against every further way of writing, and only then does
//! a descriptor exist that may be handed out: a read-only one. A finished arena loses its writable mapping too.
//!
//! Memory is freed by the kernel, when the last descriptor and the last mapping in any process are gone.

use crate::page::{ArenaId, DomainId, NumaNode, PAGE_SIZE, PageBytes, Slot};
use crate::store::{ARENA_SLOTS, SlotStore, StoreError};
use hashbrown::HashMap;
use memmap2::{Advice, MmapMut};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use sys::filler::Filler;

mod adopt;
mod sys;

pub use adopt::{Adoptable, NotAdopted, Unfit, examine, seal_for_good};

/// Bytes of an arena.
const ARENA_BYTES: u64 = ARENA_SLOTS as u64 * PAGE_SIZE as u64;

/// Keeps merged pages in sealed memfds.
#[derive(Debug, Default)]
pub struct MemfdStore {
    arenas: HashMap<ArenaId, Arena>,
    /// Looked for when the first arena is made. Without it filling takes longer.
    filler: Option<Result<Filler, Errno>>,
    by_inode: HashMap<(DomainId, u64), ArenaId>,
    /// Let go of since anybody asked.
    released: Vec<ArenaId>,
}

#[derive(Debug)]
struct Arena {
    domain: DomainId,
    /// Names it for as long as the host runs, whoever has it.
    inode: u64,
    /// What peers get, and what slots are read through.
    read_only: OwnedFd,
    /// Present until the arena is finished.
    filling: Option<Filling>,
}

/// The only way into an arena: the descriptor it was made with, and the mapping that is older than the seals.
#[derive(Debug)]
struct Filling {
    memfd: OwnedFd,
    mapping: MmapMut,
    /// Whether the store's filler fills it.
    has_filler: bool,
}

impl MemfdStore {
    /// A store without arenas.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The read-only descriptor of an arena, for handing out.
    #[must_use]
    pub fn descriptor(&self, arena: ArenaId) -> Option<BorrowedFd<'_>> {
        self.arenas.get(&arena).map(|a| a.read_only.as_fd())
    }

    /// The arena of a domain with this inode, if it is here.
    #[must_use]
    pub fn with_inode(&self, domain: DomainId, inode: u64) -> Option<ArenaId> {
        self.by_inode.get(&(domain, inode)).copied()
    }

    /// Takes in an arena that an earlier daemon made.
    pub fn adopt(&mut self, arena: ArenaId, found: Adoptable) {
        self.insert(
            arena,
            Arena {
                domain: found.domain,
                inode: found.inode,
                read_only: found.memfd,
                filling: None,
            },
        );
    }

    /// The arenas that were let go of since this was asked last.
    pub fn take_released(&mut self) -> Vec<ArenaId> {
        std::mem::take(&mut self.released)
    }

    fn insert(&mut self, id: ArenaId, arena: Arena) {
        self.by_inode.insert((arena.domain, arena.inode), id);
        self.arenas.insert(id, arena);
    }
}

impl SlotStore for MemfdStore {
    fn create(
        &mut self,
        arena: ArenaId,
        domain: DomainId,
        node: Option<NumaNode>,
    ) -> Result<(), StoreError> {
        let filler = self.filler.get_or_insert_with(Filler::new).as_ref().ok();
        let made = Arena::create(domain, node, filler).map_err(|(call, errno)| StoreError::Os {
            call,
            arena,
            errno,
        })?;
        self.insert(arena, made);
        Ok(())
    }

    fn write(&mut self, first: Slot, pages: &[PageBytes]) -> Result<(), StoreError> {
        let not_open = StoreError::NotOpen(first.arena);
        let filling = self
            .arenas
            .get_mut(&first.arena)
            .and_then(|a| a.filling.as_mut());
        let end = first.index as usize + pages.len();
        let Some(filling) = filling.filter(|_| end <= ARENA_SLOTS as usize) else {
            return Err(not_open);
        };
        let filler = self.filler.as_ref().and_then(|filler| filler.as_ref().ok());
        filling
            .write(first.index, pages, filler)
            .map_err(|errno| StoreError::Os {
                call: "madvise",
                arena: first.arena,
                errno,
            })
    }

    fn read(&self, slot: Slot, into: &mut PageBytes) -> Result<(), StoreError> {
        let not_open = StoreError::NotOpen(slot.arena);
        let arena = self.arenas.get(&slot.arena).ok_or(not_open)?;
        arena
            .read(slot.index, into)
            .map_err(|errno| StoreError::Os {
                call: "pread",
                arena: slot.arena,
                errno,
            })
    }

    fn finish(&mut self, arena: ArenaId) {
        let Some(Filling { memfd, mapping, .. }) =
            self.arenas.get_mut(&arena).and_then(|a| a.filling.take())
        else {
            return;
        };
        // F_SEAL_WRITE is refused while a writable mapping exists.
        drop(mapping);
        let seals = SealFlags::WRITE | SealFlags::SEAL;
        if let Err(errno) = rustix::fs::fcntl_add_seals(&memfd, seals) {
            // Nothing is lost: F_SEAL_FUTURE_WRITE already forbids every write but through the mapping just dropped.
            log::warn!("the last seals of arena {arena:?} could not be set: {errno}");
        }
    }

    fn release(&mut self, arena: ArenaId) {
        if let Some(old) = self.arenas.remove(&arena) {
            self.by_inode.remove(&(old.domain, old.inode));
            self.released.push(arena);
        }
    }
}

type CallError = (&'static str, Errno);

impl Arena {
    fn create(
        domain: DomainId,
        node: Option<NumaNode>,
        filler: Option<&Filler>,
    ) -> Result<Self, CallError> {
        let name = adopt::name_of(domain, node);
        let memfd = create_memfd(&name).map_err(|e| ("memfd_create", e))?;
        rustix::fs::ftruncate(&memfd, ARENA_BYTES).map_err(|e| ("ftruncate", e))?;
        // Keeps processes of other users from opening it for writing through /proc, before any seal is asked.
        rustix::fs::fchmod(&memfd, Mode::RUSR).map_err(|e| ("fchmod", e))?;
        let mapping = sys::map_shared(memfd.as_fd(), PAGE_SIZE * ARENA_SLOTS as usize)
            .map_err(|e| ("mmap", e))?;
        if let Some(node) = node
            && let Err(errno) = sys::prefer_node(&mapping, node)
        {
            // A kernel without NUMA. Where the pages come to lie changes no byte of them.
            log::debug!("an arena cannot be kept on NUMA node {}: {errno}", node.0);
        }
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
        rustix::fs::fcntl_add_seals(&memfd, seals).map_err(|e| ("fcntl(F_ADD_SEALS)", e))?;
        let read_only = reopen_read_only(&memfd).map_err(|e| ("open of /proc/self/fd", e))?;
        let stat = rustix::fs::fstat(&memfd).map_err(|e| ("fstat", e))?;
        Ok(Self {
            domain,
            inode: stat.st_ino,
            read_only,
            filling: Some(Filling {
                has_filler: filler.is_some_and(|filler| filler.register(&mapping).is_ok()),
                memfd,
                mapping,
            }),
        })
    }

    fn read(&self, index: u32, into: &mut PageBytes) -> Result<(), Errno> {
        let mut done = 0;
        while done < PAGE_SIZE {
            let at = slot_offset(index) + done as u64;
            match rustix::io::pread(&self.read_only, &mut into[done..], at) {
                Ok(0) => return Err(Errno::NXIO),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

impl Filling {
    fn write(
        &mut self,
        first: u32,
        pages: &[PageBytes],
        filler: Option<&Filler>,
    ) -> Result<(), Errno> {
        let (mut first, mut pages) = (first as usize, pages);
        if let Some(filler) = filler.filter(|_| self.has_filler) {
            loop {
                let filled = filler.fill(&mut self.mapping, first, pages);
                let Some((page, rest)) = pages.get(filled..).and_then(<[_]>::split_first) else {
                    return Ok(());
                };
                // It is there already, from a time when there was no memory for all of them; or there is none now.
                first += filled;
                self.write_populated(first, std::slice::from_ref(page))?;
                first += 1;
                pages = rest;
            }
        }
        self.write_populated(first, pages)
    }

    fn write_populated(&mut self, first: usize, pages: &[PageBytes]) -> Result<(), Errno> {
        let start = first * PAGE_SIZE;
        let bytes = pages.as_flattened();
        // A store to a page that cannot be allocated is a SIGBUS; populating fails instead, and takes one call for all.
        while let Err(error) = self
            .mapping
            .advise_range(Advice::PopulateWrite, start, bytes.len())
        {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            if errno != Errno::INTR && errno != Errno::AGAIN {
                return Err(errno);
            }
        }
        self.mapping[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

fn slot_offset(index: u32) -> u64 {
    u64::from(index) * PAGE_SIZE as u64
}

fn create_memfd(name: &str) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Kernels before 6.3 do not know the flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        made => made,
    }
}

/// The kernel keeps the access mode in the open file, so a descriptor that cannot write needs an open of its own.
fn reopen_read_only(memfd: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests;
