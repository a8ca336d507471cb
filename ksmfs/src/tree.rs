//! The mirrored directory without FUSE: names, attributes, open files and what sysfs answers to each request.
//!
//! Values live in the engine; what is kept here is what sysfs keeps: modes, owners and times that were changed, and
//! what each open file has left of the text that it read last. [`crate::fuse`] unpacks requests, asks here, and packs the answers.

mod extended;

pub use extended::ExtendedAttributes;

use ksm_engine::knobs::KsmFile;
use ksm_engine::process_file::ProcessFile;
use parking_lot::Mutex;
use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Number of the directory itself.
pub const ROOT: u64 = 1;
/// Number of the first file; the others follow in listing order.
const FIRST_FILE: u64 = 2;
/// Size of every file, as sysfs states it.
pub const FILE_SIZE: u64 = 4096;
/// Most bytes that one write hands to a file; a longer write is cut and answered short.
pub const WRITE_LIMIT: usize = 4096;
/// Most bytes that a file can be truncated to. It has no effect, but a greater length is refused.
const LENGTH_LIMIT: u64 = (1 << 31) - 1;

const ANY_READ: u32 = 0o444;
const ANY_WRITE: u32 = 0o222;
/// As that of the kernel's files below `/proc/PID`.
const HIDDEN_MODE: u32 = 0o400;

/// Attributes of the directory or of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub ino: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub accessed: SystemTime,
    /// Last change of the content, as far as sysfs counts it: ftruncate, O_TRUNC and utimensat, not writes.
    pub modified: SystemTime,
    /// Last change of an attribute.
    pub changed: SystemTime,
}

impl Attributes {
    /// Whether these are the directory's.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.ino == ROOT
    }
}

/// Attributes to set; `None` keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length to truncate to, without any effect. The times that a truncation may set come with it.
    pub length: Option<u64>,
    /// Last access.
    pub accessed: Option<SystemTime>,
    /// Last modification.
    pub modified: Option<SystemTime>,
}

/// What a file shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A value.
    Value(KsmFile),
    /// The merging of a process, in a file that is not listed.
    Process(u32, ProcessFile),
}

/// Inodes from here on are hidden files: two for each process id.
const FIRST_HIDDEN: u64 = 1 << 32;

/// The inode of a hidden file.
#[must_use]
pub fn hidden_inode(pid: u32, file: ProcessFile) -> u64 {
    FIRST_HIDDEN + 2 * u64::from(pid) + u64::from(file == ProcessFile::MergingPages)
}

/// Which hidden file has this inode.
#[must_use]
pub fn hidden_file(ino: u64) -> Option<(u32, ProcessFile)> {
    let number = ino.checked_sub(FIRST_HIDDEN)?;
    let pid = u32::try_from(number / 2).ok()?;
    Some((pid, ProcessFile::ALL[usize::from(number % 2 == 1)]))
}

/// An open file, and what its last read has left of the text.
#[derive(Debug)]
pub struct OpenFile {
    /// What it shows.
    pub shown: Shown,
    rest: Mutex<Option<Rest>>,
}

/// What follows the last read, and where.
#[derive(Debug)]
struct Rest {
    offset: u64,
    bytes: Vec<u8>,
}

impl Rest {
    fn take(&mut self, size: u32) -> Vec<u8> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let after = self.bytes.split_off(size.min(self.bytes.len()));
        let taken = std::mem::replace(&mut self.bytes, after);
        self.offset += taken.len() as u64;
        taken
    }
}

impl OpenFile {
    fn new(shown: Shown) -> Self {
        Self {
            shown,
            rest: Mutex::new(None),
        }
    }

    /// What a read gets that goes on where the last one ended. `None`: it does not, and the value has to be read
    /// afresh, as seq_file does it.
    #[must_use]
    pub fn read_on(&self, offset: u64, size: u32) -> Option<Vec<u8>> {
        let mut rest = self.rest.lock();
        let rest = rest.as_mut()?;
        (offset != 0 && offset == rest.offset).then(|| rest.take(size))
    }

    /// What a read of the fresh `text` gets.
    #[must_use]
    pub fn read_fresh(&self, text: &str, offset: u64, size: u32) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = Rest {
            offset,
            bytes: text.as_bytes().get(start..).unwrap_or_default().to_vec(),
        };
        let taken = rest.take(size);
        *self.rest.lock() = Some(rest);
        taken
    }

    /// Whether nothing was read yet: sysfs reports such a file as changed to poll.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.rest.lock().is_none()
    }
}

/// The directory.
#[derive(Debug)]
pub struct Tree {
    /// The directory's attributes, then the files' in listing order.
    attributes: Vec<Attributes>,
    /// In the same order.
    extended: Vec<ExtendedAttributes>,
    open: HashMap<u64, Arc<OpenFile>>,
    next_handle: u64,
}

impl Tree {
    /// The directory as it is after mounting, owned by `uid` and `gid`.
    #[must_use]
    pub fn new(uid: Uid, gid: Gid, now: SystemTime) -> Self {
        let attributes = |ino, mode| Attributes {
            ino,
            mode,
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            accessed: now,
            modified: now,
            changed: now,
        };
        let mode = |file: KsmFile| if file.is_writable() { 0o644 } else { 0o444 };
        let files = (FIRST_FILE..).zip(KsmFile::ALL);
        Self {
            attributes: std::iter::once(attributes(ROOT, 0o755))
                .chain(files.map(|(ino, file)| attributes(ino, mode(file))))
                .collect(),
            extended: (0..=KsmFile::ALL.len())
                .map(|_| ExtendedAttributes::default())
                .collect(),
            open: HashMap::new(),
            next_handle: 1,
        }
    }

    /// The inode of the file with this name.
    #[must_use]
    pub fn lookup(name: &str) -> Option<u64> {
        (FIRST_FILE..)
            .zip(KsmFile::ALL)
            .find_map(|(ino, file)| (file.name() == name).then_some(ino))
    }

    /// Inodes and names of all files, in listing order.
    pub fn entries() -> impl Iterator<Item = (u64, &'static str)> {
        (FIRST_FILE..).zip(KsmFile::ALL.map(KsmFile::name))
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    /// ENOENT for a number that no inode has.
    pub fn attributes(&self, ino: u64) -> Result<Attributes, Errno> {
        self.attributes
            .get(index(ino)?)
            .copied()
            .ok_or(Errno::NOENT)
    }

    /// Sets attributes and returns all of them. Whether the caller may was checked by the kernel.
    ///
    /// # Errors
    /// ENOENT for a number that no inode has, EFBIG for a length of 2 GiB or more.
    pub fn change(
        &mut self,
        ino: u64,
        change: Change,
        now: SystemTime,
    ) -> Result<Attributes, Errno> {
        let attributes = self.attributes.get_mut(index(ino)?).ok_or(Errno::NOENT)?;
        if change.length.is_some_and(|length| length > LENGTH_LIMIT) {
            return Err(Errno::FBIG);
        }
        if change.length.is_some() && change.modified.is_none() {
            return Ok(*attributes);
        }
        attributes.mode = change.mode.map_or(attributes.mode, |mode| mode & 0o7777);
        attributes.uid = change.uid.unwrap_or(attributes.uid);
        attributes.gid = change.gid.unwrap_or(attributes.gid);
        attributes.accessed = change.accessed.unwrap_or(attributes.accessed);
        attributes.modified = change.modified.unwrap_or(attributes.modified);
        attributes.changed = now;
        Ok(*attributes)
    }

    /// Opens a file and returns its handle.
    ///
    /// # Errors
    /// EACCES where the mode gives nobody the access asked for: sysfs refuses that to root as well, whom the kernel's
    /// own check lets pass. EINVAL for `O_DIRECT`. EISDIR for the directory.
    pub fn open(&mut self, ino: u64, flags: OFlags) -> Result<u64, Errno> {
        let (shown, mode) = match hidden_file(ino) {
            Some((pid, file)) => (Shown::Process(pid, file), HIDDEN_MODE),
            None => (Shown::Value(file_of(ino)?), self.attributes(ino)?.mode),
        };
        let access = flags & OFlags::RWMODE;
        // The fourth access mode, both bits, gives neither access: nothing is refused then.
        let reads = access == OFlags::RDONLY || access == OFlags::RDWR;
        let writes = access == OFlags::WRONLY || access == OFlags::RDWR;
        if (reads && mode & ANY_READ == 0) || (writes && mode & ANY_WRITE == 0) {
            return Err(Errno::ACCESS);
        }
        if flags.contains(OFlags::DIRECT) {
            return Err(Errno::INVAL);
        }
        let handle = self.next_handle;
        self.next_handle += 1;
        self.open.insert(handle, Arc::new(OpenFile::new(shown)));
        Ok(handle)
    }

    /// The attributes of a hidden file of a process of this user.
    #[must_use]
    pub fn hidden_attributes(&self, ino: u64, uid: u32) -> Attributes {
        let directory = self.attributes[0];
        Attributes {
            ino,
            mode: HIDDEN_MODE,
            uid,
            ..directory
        }
    }

    /// The extended attributes of an inode.
    ///
    /// # Errors
    /// ENOENT for a number that no inode has.
    pub fn extended(&mut self, ino: u64) -> Result<&mut ExtendedAttributes, Errno> {
        self.extended.get_mut(index(ino)?).ok_or(Errno::NOENT)
    }

    /// The open file with this handle.
    ///
    /// # Errors
    /// EBADF when there is none.
    pub fn opened(&self, handle: u64) -> Result<Arc<OpenFile>, Errno> {
        self.open.get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Forgets an open file.
    pub fn release(&mut self, handle: u64) {
        self.open.remove(&handle);
    }
}

fn index(ino: u64) -> Result<usize, Errno> {
    let index = ino.checked_sub(ROOT).ok_or(Errno::NOENT)?;
    usize::try_from(index).map_err(|_| Errno::NOENT)
}

fn file_of(ino: u64) -> Result<KsmFile, Errno> {
    if ino == ROOT {
        return Err(Errno::ISDIR);
    }
    let index = ino.checked_sub(FIRST_FILE).ok_or(Errno::NOENT)?;
    let index = usize::try_from(index).map_err(|_| Errno::NOENT)?;
    KsmFile::ALL.get(index).copied().ok_or(Errno::NOENT)
}

/// What `fallocate` of `length` bytes from `offset` on is answered.
#[must_use]
pub fn refuse_allocation(offset: u64, length: u64) -> Errno {
    if offset.saturating_add(length) > LENGTH_LIMIT {
        Errno::FBIG
    } else {
        Errno::OPNOTSUPP
    }
}

/// What a write of `value` to `file` may hand to the engine.
///
/// # Errors
/// EIO for a read-only file: who gets here made it writable by chmod, and sysfs answers that.
pub fn accepted_write(shown: Shown, value: &[u8]) -> Result<(KsmFile, &[u8]), Errno> {
    match shown {
        Shown::Value(file) if file.is_writable() => {
            Ok((file, &value[..value.len().min(WRITE_LIMIT)]))
        }
        Shown::Value(_) | Shown::Process(..) => Err(Errno::IO),
    }
}

#[cfg(test)]
mod tests;
