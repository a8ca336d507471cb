//! `PAGEMAP_SCAN`: what the page tables say about a range, without touching its pages (Linux 6.7).

use super::memory::address_of;
use bitflags::bitflags;
use ksm_engine::page::{PAGE_SIZE, PageRun};
use linux_raw_sys::general as raw;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Result;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use zerocopy::IntoBytes;

const SCAN: Opcode = opcode::read_write::<raw::pm_scan_arg>(b'f', 16);
/// In an entry of the file: the page is mapped once.
const EXCLUSIVE: u64 = 1 << 56;
/// Runs that one scan returns at most.
pub const SCAN_RUNS: usize = 128;

bitflags! {
    /// What is known of a page.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageIs: u64 {
        /// In memory.
        const PRESENT = raw::PAGE_IS_PRESENT as u64;
        /// In swap, or just being migrated.
        const SWAPPED = raw::PAGE_IS_SWAPPED as u64;
        /// Page cache or shared memory, not a private page.
        const FILE = raw::PAGE_IS_FILE as u64;
        /// The kernel's zero page.
        const ZERO = raw::PAGE_IS_PFNZERO as u64;
        /// Part of a huge page that is mapped as a whole.
        const HUGE = raw::PAGE_IS_HUGE as u64;
        /// In a mapping whose writes are tracked.
        const TRACKED = raw::PAGE_IS_WPALLOWED as u64;
        /// Not write-protected.
        const WRITTEN = raw::PAGE_IS_WRITTEN as u64;
    }
}

impl PageIs {
    /// Whether it was not written since it was protected.
    #[must_use]
    pub fn is_intact(self) -> bool {
        self.contains(Self::TRACKED) && !self.contains(Self::WRITTEN)
    }
}

/// Consecutive pages of one kind, as the kernel writes them.
#[derive(Clone, Copy, Debug, zerocopy::FromZeros)]
#[repr(C)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// What a scan found, in ascending order.
#[derive(Debug)]
pub struct Found {
    regions: [Region; SCAN_RUNS],
    count: usize,
    end: u64,
}

impl Found {
    /// The pages that are present or swapped.
    pub fn runs(&self) -> impl Iterator<Item = (PageRun, PageIs)> + '_ {
        let page = |address: u64| address / PAGE_SIZE as u64;
        self.regions.iter().take(self.count).map(move |region| {
            (
                PageRun::between(page(region.start), page(region.end)),
                PageIs::from_bits_truncate(region.categories),
            )
        })
    }

    /// Whether all pages of `run` are in memory.
    #[must_use]
    pub fn has_all(&self, run: PageRun) -> bool {
        let present = self.runs().filter(|(_, is)| is.contains(PageIs::PRESENT));
        let parts = present.filter_map(|(present, _)| present.intersection(run));
        parts.map(|part| part.len).sum::<u64>() == run.len
    }

    /// One past the last page that was looked at.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// What is known of one page; empty if it is neither present nor swapped.
    #[must_use]
    pub fn of(&self, page: u64) -> PageIs {
        self.runs()
            .find(|(run, _)| run.contains(page))
            .map_or(PageIs::empty(), |(_, is)| is)
    }
}

/// The page tables of one address space.
#[derive(Debug)]
pub struct Pagemap(OwnedFd);

impl Pagemap {
    /// Those of the caller.
    ///
    /// # Errors
    /// Of `open`; a process that is not dumpable may not read its own.
    pub fn open() -> Result<Self> {
        open(
            c"/proc/self/pagemap",
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

    /// Which of the pages, 64 at most, no other process has in its page tables. None of them where that cannot be read.
    #[must_use]
    pub fn exclusive(&self, run: PageRun) -> u64 {
        let mut entries = [0_u64; 64];
        let count = usize::try_from(run.len).unwrap_or(64).min(64);
        let (Some(wanted), offset) = (entries.get_mut(..count), run.start * 8) else {
            return 0;
        };
        let got = rustix::io::pread(&self.0, wanted.as_mut_bytes(), offset).unwrap_or(0) / 8;
        entries
            .iter()
            .take(got)
            .enumerate()
            .filter(|(_, entry)| *entry & EXCLUSIVE != 0)
            .fold(0, |mask, (i, _)| mask | 1 << i)
    }

    /// Finds pages of `run` that are present or swapped, until there are `most` of them.
    ///
    /// # Errors
    /// Of the ioctl.
    pub fn scan(&self, run: PageRun, most: u64) -> Result<Found> {
        let there = PageIs::PRESENT | PageIs::SWAPPED;
        self.ask(run, |argument| {
            argument.max_pages = most;
            argument.category_anyof_mask = there.bits();
            argument.return_mask = PageIs::all().bits();
        })
    }

    /// The same for all of `run`, without asking what is a file's: that is a look at every page's frame.
    ///
    /// # Errors
    /// Of the ioctl.
    pub fn scan_writes(&self, run: PageRun) -> Result<Found> {
        let there = PageIs::PRESENT | PageIs::SWAPPED;
        let wanted = PageIs::PRESENT | PageIs::TRACKED | PageIs::WRITTEN;
        self.ask(run, |argument| {
            argument.category_anyof_mask = there.bits();
            argument.return_mask = wanted.bits();
        })
    }

    /// The first page of `run` that is not write-protected, present or not, in the fastest way that the kernel has. Where the
    /// page table itself is missing there are no such pages.
    ///
    /// # Errors
    /// `EPERM` if there are mappings whose writes are not tracked, else of the ioctl.
    pub fn first_written(&self, run: PageRun) -> Result<Option<u64>> {
        let found = self.ask(run, |argument| {
            argument.flags = raw::PM_SCAN_CHECK_WPASYNC.into();
            argument.max_pages = 1;
            argument.category_mask = PageIs::WRITTEN.bits();
            argument.return_mask = PageIs::WRITTEN.bits();
        })?;
        let first = found.runs().next();
        Ok(first.map(|(run, _)| run.start))
    }

    fn ask(&self, run: PageRun, what: impl FnOnce(&mut raw::pm_scan_arg)) -> Result<Found> {
        let mut found = Found {
            regions: [Region {
                start: 0,
                end: 0,
                categories: 0,
            }; SCAN_RUNS],
            count: 0,
            end: run.start,
        };
        // SAFETY: the kernel's argument is plain numbers.
        let mut argument: raw::pm_scan_arg = unsafe { MaybeUninit::zeroed().assume_init() };
        argument.size = size_of::<raw::pm_scan_arg>() as u64;
        argument.start = address_of(run.start) as u64;
        argument.end = address_of(run.end()) as u64;
        argument.vec = found.regions.as_mut_ptr().expose_provenance() as u64;
        argument.vec_len = SCAN_RUNS as u64;
        what(&mut argument);
        // SAFETY: the opcode belongs to the argument's type.
        let call = unsafe { CountingUpdater::new(&mut argument) };
        // SAFETY: vec points to SCAN_RUNS regions that are ours to be written.
        found.count = unsafe { ioctl::ioctl(&self.0, call) }?;
        found.end = argument.walk_end / PAGE_SIZE as u64;
        Ok(found)
    }
}

/// An ioctl that updates its argument and returns a count, which `Updater` would throw away.
struct CountingUpdater<'a>(Updater<'a, SCAN, raw::pm_scan_arg>);

impl<'a> CountingUpdater<'a> {
    unsafe fn new(argument: &'a mut raw::pm_scan_arg) -> Self {
        // SAFETY: SCAN is the opcode of this argument.
        Self(unsafe { Updater::new(argument) })
    }
}

// SAFETY: passes on the Updater's pointer, and reads the kernel's return value as a count.
unsafe impl ioctl::Ioctl for CountingUpdater<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(out: ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> Result<usize> {
        Ok(usize::try_from(out).unwrap_or(0).min(SCAN_RUNS))
    }
}
