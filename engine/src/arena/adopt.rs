//! Arenas that an earlier daemon made, handed in by somebody who still has them mapped.
//!
//! Whoever hands one in is not believed. What has to hold can be asked of the kernel: that its bytes can never change
//! (seals), that a process of our own user made it (owner), and for which domain (its name, which only its maker could
//! choose). Its slots are read, and their digests computed, by ourselves.
//!
//! Everything in [`examine`] answers at once, whatever the descriptor is of: the seals are asked first, and the kernel
//! answers that without asking a file system; what has seals is memory. [`seal_for_good`] can take a while.

use crate::page::{DomainId, NumaNode, PAGE_SIZE};
use crate::store::ARENA_SLOTS;
use rustix::fs::{FileType, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// What the names of all arenas of this kind begin with.
const NAME: &str = "ksm-arena-1";
/// What `/proc/PID/fd` shows before and after the name of a memfd.
const SHOWN: (&str, &str) = ("/memfd:", " (deleted)");
/// More slots than any daemon ever gave an arena.
const MOST_SLOTS: u32 = 1 << 16;
/// The number that users without one of their own in this user namespace are shown with.
const OVERFLOW_USER: u32 = 65_534;
/// A tmpfs, as `statfs` says it. Memory of huge pages is something else.
const TMPFS: u64 = 0x0102_1994;

/// An arena of an earlier daemon that can be taken over.
#[derive(Debug)]
pub struct Adoptable {
    /// The domain whose pages are in it.
    pub domain: DomainId,
    /// The node that its memory is on, if that was asked for.
    pub numa: Option<NumaNode>,
    /// How many slots it has.
    pub slots: u32,
    /// Its inode.
    pub inode: u64,
    /// Cannot write.
    pub memfd: OwnedFd,
    /// Whether it can still be written to through a mapping that is older than its seals.
    pub is_open: bool,
}

/// Why a descriptor is not taken over. It comes back: closing it can take as long as a stranger likes.
#[derive(Debug)]
pub struct NotAdopted {
    /// The descriptor.
    pub descriptor: OwnedFd,
    /// Why.
    pub why: Unfit,
}

/// What is wrong with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not a memfd.
    #[error("no memfd")]
    NotMemory,
    /// Not open for reading only.
    #[error("not read-only")]
    Access,
    /// Its size or its bytes may change.
    #[error("not sealed as an arena is")]
    Unsealed,
    /// Another user made it.
    #[error("made by user {0}")]
    Owner(u32),
    /// Not named as an arena is, or not as long as one.
    #[error("not an arena")]
    Name,
    /// A system call failed.
    #[error("{0}: {1}")]
    Os(&'static str, Errno),
}

/// The name of an arena: its domain, its node, and how many slots it has.
pub(super) fn name_of(domain: DomainId, numa: Option<NumaNode>) -> String {
    let node = numa.map_or_else(|| "any".to_owned(), |node| node.0.to_string());
    format!("{NAME} domain={} node={node} slots={ARENA_SLOTS}", domain.0)
}

/// The parts of a name that [`name_of`] made.
fn parts_of(name: &str) -> Option<(DomainId, Option<NumaNode>, u32)> {
    let (domain, rest) = name
        .strip_prefix(NAME)?
        .strip_prefix(" domain=")?
        .split_once(" node=")?;
    let (node, slots) = rest.split_once(" slots=")?;
    let node = match node {
        "any" => None,
        number => Some(NumaNode(number.parse().ok()?)),
    };
    let slots = slots.parse().ok()?;
    Some((DomainId(domain.parse().ok()?), node, slots))
}

/// Looks whether a descriptor is of an arena that a daemon of this user made.
///
/// # Errors
/// When it is not, or may not be.
pub fn examine(descriptor: OwnedFd) -> Result<Adoptable, NotAdopted> {
    match look_at(&descriptor) {
        Ok((domain, numa, slots, inode, is_open)) => Ok(Adoptable {
            domain,
            numa,
            slots,
            inode,
            memfd: descriptor,
            is_open,
        }),
        Err(why) => Err(NotAdopted { descriptor, why }),
    }
}

type Seen = (DomainId, Option<NumaNode>, u32, u64, bool);

fn look_at(descriptor: &OwnedFd) -> Result<Seen, Unfit> {
    let seals = rustix::fs::fcntl_get_seals(descriptor).map_err(|_| Unfit::NotMemory)?;
    let access = rustix::fs::fcntl_getfl(descriptor).map_err(|errno| Unfit::Os("fcntl", errno))?;
    if access & OFlags::RWMODE != OFlags::RDONLY {
        return Err(Unfit::Access);
    }
    let fixed = SealFlags::GROW | SealFlags::SHRINK;
    let unwritable = SealFlags::WRITE | SealFlags::FUTURE_WRITE;
    if !seals.contains(fixed) || !seals.intersects(unwritable) {
        return Err(Unfit::Unsealed);
    }
    let system = rustix::fs::fstatfs(descriptor).map_err(|errno| Unfit::Os("fstatfs", errno))?;
    let stat = rustix::fs::fstat(descriptor).map_err(|errno| Unfit::Os("fstat", errno))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if u64::try_from(system.f_type) != Ok(TMPFS) || !is_file {
        return Err(Unfit::NotMemory);
    }
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != own || own == OVERFLOW_USER {
        return Err(Unfit::Owner(stat.st_uid));
    }
    let link = rustix::fs::readlink(path_of(descriptor), Vec::new());
    let link = link.map_err(|errno| Unfit::Os("readlink of /proc/self/fd", errno))?;
    let name = link.to_str().ok().and_then(|shown| {
        let name = shown.strip_prefix(SHOWN.0)?;
        name.strip_suffix(SHOWN.1)
    });
    let (domain, numa, slots) = name.and_then(parts_of).ok_or(Unfit::Name)?;
    let bytes = u64::from(slots) * PAGE_SIZE as u64;
    if slots == 0 || slots > MOST_SLOTS || u64::try_from(stat.st_size) != Ok(bytes) {
        return Err(Unfit::Name);
    }
    let is_open = !seals.contains(SealFlags::WRITE);
    Ok((domain, numa, slots, stat.st_ino, is_open))
}

/// Sets the last seals of an arena that its daemon was filling when it died. Waits for whoever has pinned pages of it.
///
/// # Errors
/// `EBUSY` while somebody has it mapped for writing: its daemon lives. Others if it cannot be opened.
pub fn seal_for_good(arena: &mut Adoptable) -> Result<(), Errno> {
    if !arena.is_open {
        return Ok(());
    }
    // Seals are set through a descriptor that can write. What it is opened for the seals forbid all the same.
    rustix::fs::fchmod(&arena.memfd, Mode::RUSR | Mode::WUSR)?;
    // A lease of the peer's must not make us wait.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let writable = rustix::fs::open(path_of(&arena.memfd), flags, Mode::empty());
    rustix::fs::fchmod(&arena.memfd, Mode::RUSR)?;
    let seals = SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(writable?, seals)?;
    arena.is_open = false;
    Ok(())
}

fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

#[cfg(test)]
mod tests;
