//! The list of mappings of this process: how many there are, and what one of them is.
//!
//! Read through a fixed buffer, since the agent has no heap.

use super::memory::{address_of, page_of};
use ksm_engine::page::PageRun;
use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Result;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use rustix::mm::ProtFlags;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

const QUERY: Opcode = opcode::read_write::<raw::procmap_query>(b'f', 17);

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it is.
    pub run: PageRun,
    /// Whether writes to it are seen by others.
    pub shared: bool,
    /// What the app may do with it.
    pub protection: ProtFlags,
    /// Inode of the mapped file, 0 for anonymous memory.
    pub inode: u64,
    /// The page of the file at its start.
    pub file_page: u64,
}

impl Mapping {
    /// That of a page of which the kernel does not say (before Linux 6.11): writable, as it was when it was merged.
    #[must_use]
    pub fn unknown(page: u64) -> Self {
        Self {
            run: PageRun::between(page, ksm_engine::page::PAGE_LIMIT),
            protection: super::remap::READ_WRITE,
            shared: false,
            inode: 0,
            file_page: 0,
        }
    }
}

/// Whether the process has given up opening files.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether the process has given up opening files, on pain of death: app threads make do without the list then.
pub fn give_up_opening(given_up: bool) {
    CLOSED.store(given_up, Ordering::Relaxed);
}

/// The list of mappings of one address space.
#[derive(Debug)]
pub struct Maps(OwnedFd);

impl Maps {
    /// That of the caller.
    ///
    /// # Errors
    /// Of `open`.
    pub fn open() -> Result<Self> {
        if CLOSED.load(Ordering::Relaxed) {
            return Err(rustix::io::Errno::PERM);
        }
        open(
            c"/proc/self/maps",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Self)
    }

    /// A second descriptor for the same file.
    ///
    /// # Errors
    /// When there are too many descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 3).map(Self)
    }

    /// How many mappings there are. Takes about half a microsecond for each.
    ///
    /// # Errors
    /// Of `read`.
    pub fn count(&self) -> Result<usize> {
        let mut buffer = [0; 8192];
        rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Start(0))?;
        let mut lines = 0;
        loop {
            let got = rustix::io::read(&self.0, &mut buffer[..])?;
            if got == 0 {
                return Ok(lines);
            }
            lines += buffer
                .iter()
                .take(got)
                .filter(|byte| **byte == b'\n')
                .count();
        }
    }

    /// The mapping that has the page (Linux 6.11).
    ///
    /// # Errors
    /// `ENOENT` if there is none, `ENOTTY` on an older kernel.
    pub fn at(&self, page: u64) -> Result<Mapping> {
        self.query(page, 0, &mut []).map(|(mapping, _)| mapping)
    }

    /// The mapping that has the page, or else the first one behind it (Linux 6.11).
    ///
    /// # Errors
    /// As [`Self::at`].
    pub fn at_or_after(&self, page: u64) -> Result<Mapping> {
        let or_next = raw::procmap_query_flags::PROCMAP_QUERY_COVERING_OR_NEXT_VMA as u64;
        self.query(page, or_next, &mut [])
            .map(|(mapping, _)| mapping)
    }

    /// Whether the mapping that has the page bears this name, as `[stack]` does.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub fn is_named(&self, page: u64, names: &[&[u8]]) -> Result<bool> {
        let mut buffer = [0; 128];
        match self.query(page, 0, &mut buffer) {
            Ok((_, len)) => {
                // The length counts the terminating zero.
                let name = buffer.get(..len.saturating_sub(1)).unwrap_or(&[]);
                Ok(names.contains(&name))
            }
            Err(rustix::io::Errno::NAMETOOLONG) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn query(&self, page: u64, flags: u64, name: &mut [u8]) -> Result<(Mapping, usize)> {
        // SAFETY: the kernel's argument is plain numbers.
        let mut query: raw::procmap_query = unsafe { MaybeUninit::zeroed().assume_init() };
        query.size = size_of::<raw::procmap_query>() as u64;
        query.query_addr = address_of(page) as u64;
        query.query_flags = flags;
        if !name.is_empty() {
            query.vma_name_addr = name.as_mut_ptr().expose_provenance() as u64;
            query.vma_name_size = u32::try_from(name.len()).unwrap_or(0);
        }
        // SAFETY: the opcode belongs to the argument's type.
        let call = unsafe { Updater::<QUERY, _>::new(&mut query) };
        // SAFETY: the kernel writes the argument and the buffer that it names, with its length.
        unsafe { ioctl::ioctl(&self.0, call) }?;
        let name_len = usize::try_from(query.vma_name_size).unwrap_or(0);
        let number = |address: u64| page_of(usize::try_from(address).unwrap_or(usize::MAX));
        let has = |flag: raw::procmap_query_flags| query.vma_flags & flag as u64 != 0;
        let mut protection = ProtFlags::empty();
        protection.set(
            ProtFlags::READ,
            has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_READABLE),
        );
        protection.set(
            ProtFlags::WRITE,
            has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_WRITABLE),
        );
        protection.set(
            ProtFlags::EXEC,
            has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_EXECUTABLE),
        );
        let mapping = Mapping {
            run: PageRun::between(number(query.vma_start), number(query.vma_end)),
            shared: has(raw::procmap_query_flags::PROCMAP_QUERY_VMA_SHARED),
            protection,
            inode: query.inode,
            file_page: number(query.vma_offset),
        };
        Ok((mapping, name_len))
    }
}

/// The most mappings a process may have, as it is set now.
///
/// # Errors
/// When `/proc` does not say.
pub fn limit() -> Result<usize> {
    let file = open(
        c"/proc/sys/vm/max_map_count",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut buffer = [0; 32];
    let got = rustix::io::read(&file, &mut buffer[..])?;
    let digits = buffer
        .iter()
        .take(got)
        .take_while(|byte| byte.is_ascii_digit());
    Ok(digits.fold(0_usize, |number, digit| {
        number
            .saturating_mul(10)
            .saturating_add(usize::from(digit - b'0'))
    }))
}
