//! Which mappings can be merged: private anonymous memory, but for what the kernel grows or keeps for itself.
//!
//! The kernel takes private file mappings as well, and merges the private copies in them; here they are left unmerged.

use crate::changing::Changing;
use ksm_client::sys::maps::{Mapping, Maps};
use ksm_engine::page::PageRun;
use rustix::io::Errno;

/// Mappings without a file that are not the app's own to merge. A stack grows downwards by itself; replacing a part of
/// it would end that.
const SPECIAL: [&[u8]; 4] = [b"[stack]", b"[vdso]", b"[vvar]", b"[vvar_vclock]"];

const fn bits(flags: libc::c_int) -> usize {
    flags.unsigned_abs() as usize
}

/// `PROT_WRITE`.
pub const WRITE: usize = bits(libc::PROT_WRITE);
/// `MAP_DROPPABLE` (Linux 6.11), a type of mapping of its own.
const DROPPABLE: usize = 8;

/// Whether memory mapped with these arguments is to be merged in a process that merges all of its memory.
pub fn is_new_mapping(protection: usize, flags: usize) -> bool {
    let kind = flags & bits(libc::MAP_TYPE);
    let unsuitable = bits(libc::MAP_HUGETLB | libc::MAP_GROWSDOWN);
    kind == bits(libc::MAP_PRIVATE)
        && kind != DROPPABLE
        && flags & bits(libc::MAP_ANONYMOUS) != 0
        && flags & unsuitable == 0
        // Reserved address space is looked at again when it is made usable.
        && protection & WRITE != 0
}

/// What there is in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// No mapping.
    Hole,
    /// Memory to merge.
    Suitable(PageRun),
    /// Other memory.
    Other(PageRun),
}

/// The mappings of this process.
#[derive(Debug)]
pub struct Survey(Option<Maps>);

impl Survey {
    /// Opens the kernel's list.
    pub fn begin() -> Self {
        // Linux 6.11 answers questions; before that, and without /proc, the agent finds out what it cannot merge.
        let maps = Maps::open().ok();
        Self(maps.filter(|maps| maps.at_or_after(0).is_ok()))
    }

    /// What comes first in `within`.
    pub fn first(&self, within: PageRun, changing: &Changing) -> Option<Part> {
        if within.len == 0 {
            return None;
        }
        let Some(maps) = &self.0 else {
            return Some(Part::Suitable(within));
        };
        let mapping = match maps.at_or_after(within.start) {
            Ok(mapping) => mapping,
            Err(Errno::NOENT) => return Some(Part::Hole),
            Err(_) => return Some(Part::Other(within)),
        };
        if mapping.run.start > within.start {
            return Some(Part::Hole);
        }
        let run = PageRun::between(within.start, within.end().min(mapping.run.end()));
        Some(if is_suitable(maps, &mapping, run, changing) {
            Part::Suitable(run)
        } else {
            Part::Other(run)
        })
    }

    /// Where the next mapping begins behind `page`.
    pub fn next(&self, page: u64) -> u64 {
        let next = self.0.as_ref().map(|maps| maps.at_or_after(page));
        match next {
            Some(Ok(mapping)) => mapping.run.start.max(page),
            _ => u64::MAX,
        }
    }
}

fn is_suitable(maps: &Maps, mapping: &Mapping, run: PageRun, changing: &Changing) -> bool {
    if mapping.shared {
        return false;
    }
    if mapping.inode != 0 {
        // Merged pages that the app took back and gives again.
        return changing.first_in_file(run).is_some();
    }
    maps.is_named(mapping.run.start, &SPECIAL) == Ok(false)
}

/// What registering a range came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Not all of the range is mapped.
    pub has_holes: bool,
    /// Some of it did not fit into the tables.
    pub is_full: bool,
}

/// Registers the suitable mappings in a range. Without heap: the lock is held.
pub fn register(within: PageRun, changing: &mut Changing) -> Registered {
    let survey = Survey::begin();
    let mut done = Registered::default();
    let mut at = within.start;
    while let Some(part) = survey.first(PageRun::between(at, within.end()), changing) {
        at = match part {
            Part::Hole => {
                done.has_holes = true;
                survey.next(at)
            }
            Part::Suitable(run) => {
                done.is_full |= changing.register(run).is_err();
                run.end()
            }
            Part::Other(run) => run.end(),
        };
    }
    done
}

/// Registers all suitable memory of the process; nothing where the kernel does not list it.
pub fn register_all(changing: &mut Changing) {
    if Survey::begin().0.is_some() {
        register(PageRun::EVERYTHING, changing);
    }
}

/// Whether some page of the range is not mapped.
pub fn has_holes(within: PageRun) -> bool {
    let Some(maps) = Survey::begin().0 else {
        return false;
    };
    let mut at = within.start;
    while at < within.end() {
        match maps.at(at) {
            Ok(mapping) => at = mapping.run.end(),
            Err(errno) => return errno == Errno::NOENT,
        }
    }
    false
}
