//! The FUSE side: unpacks a request, asks [`crate::tree`] or posts to [`crate::mailbox`], packs the answer.
//!
//! Access is checked by the kernel (`default_permissions`) against the attributes given here, groups and capabilities
//! included; [`Tree::open`] adds what sysfs refuses even to root. Files are opened for direct I/O, so that every read
//! and every write arrives here as it was made.

mod unmappable;

use crate::mailbox::{Mailbox, Request as KnobRequest};
use crate::tree::{self, Attributes, Change, FILE_SIZE, OpenFile, ROOT, Shown, Tree};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use ksm_engine::process_file::ProcessFile;
use parking_lot::Mutex;
use rustix::fs::{OFlags, XattrFlags};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use unmappable::Unmappable;

/// Names never change.
const NAME_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The kernel moves the size it caches along with writes and cached reads, where sysfs keeps 4096: ask every time.
const ATTRIBUTE_TTL: Duration = Duration::ZERO;
/// Longest write that arrives at once. Far above the 4096 bytes that count: every piece of a `writev` takes a page of
/// this, and 256 pages are the most that the kernel has by default.
const MAX_WRITE: u32 = 1024 * 1024;

/// The mounted directory.
#[derive(Debug)]
pub struct KsmFs {
    tree: Mutex<Tree>,
    mailbox: Mailbox,
    unmappable: Unmappable,
    /// Only dropped: says that the file system is gone.
    _ended: crate::running::EndNote,
}

impl KsmFs {
    /// The directory, whose values are asked for through `mailbox`.
    #[must_use]
    pub fn new(tree: Tree, mailbox: Mailbox, ended: crate::running::EndNote) -> Self {
        Self {
            tree: Mutex::new(tree),
            mailbox,
            unmappable: Unmappable::default(),
            _ended: ended,
        }
    }

    /// Has the engine's thread find the process that a hidden file is of.
    fn find_process(
        &self,
        ino: u64,
        pid: u32,
        reply: impl FnOnce(Option<FileAttr>) + Send + 'static,
    ) {
        let of_user = self.tree.lock().hidden_attributes(ino, 0);
        self.mailbox.post(KnobRequest::FindProcess {
            pid,
            reply: Box::new(move |uid| {
                reply(uid.map(|uid| file_attr(&Attributes { uid, ..of_user })));
            }),
        });
    }

    fn opened(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        self.tree.lock().opened(handle.0).map_err(errno)
    }

    /// What an attempt to make something called `name` in the directory gets.
    fn refuse_new(name: &OsStr, errno: Errno) -> Errno {
        match find(name) {
            Some(_) => Errno::EEXIST,
            None => errno,
        }
    }
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

fn answer(outcome: Result<(), rustix::io::Errno>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// Gives `bytes`, or how many they are to a caller who asks with a size of 0.
fn answer_xattr(bytes: Result<&[u8], rustix::io::Errno>, size: u32, reply: ReplyXattr) {
    let len = bytes.map(|bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    match (bytes, len) {
        (Ok(_), Ok(len)) if size == 0 => reply.size(len),
        (Ok(bytes), Ok(len)) if len <= size => reply.data(bytes),
        (Ok(_), Ok(_)) => reply.error(Errno::ERANGE),
        (Err(e), _) | (_, Err(e)) => reply.error(errno(e)),
    }
}

fn find(name: &OsStr) -> Option<u64> {
    name.to_str().and_then(Tree::lookup)
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let directory = attributes.is_directory();
    FileAttr {
        ino: INodeNo(attributes.ino),
        size: if directory { 0 } else { FILE_SIZE },
        blocks: 0,
        atime: attributes.accessed,
        mtime: attributes.modified,
        ctime: attributes.changed,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if directory {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: u16::try_from(attributes.mode).unwrap_or(0),
        nlink: if directory { 2 } else { 1 },
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn system_time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for KsmFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let refused = |nearest| std::io::Error::other(format!("max_write: at most {nearest}"));
        config.set_max_write(MAX_WRITE).map_err(refused)?;
        self.unmappable.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent.0 != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let hidden = name.to_str().and_then(ProcessFile::from_hidden_name);
        if let Some((file, pid)) = hidden {
            let ino = tree::hidden_inode(pid, file);
            return self.find_process(ino, pid, |found| match found {
                Some(attr) => {
                    reply.entry_with_ttls(&ATTRIBUTE_TTL, &Duration::ZERO, &attr, Generation(0));
                }
                None => reply.error(Errno::ENOENT),
            });
        }
        let found = find(name).and_then(|ino| self.tree.lock().attributes(ino).ok());
        match found {
            Some(found) => {
                let attr = file_attr(&found);
                reply.entry_with_ttls(&ATTRIBUTE_TTL, &NAME_TTL, &attr, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if let Some((pid, _)) = tree::hidden_file(ino.0) {
            return self.find_process(ino.0, pid, |found| match found {
                Some(attr) => reply.attr(&ATTRIBUTE_TTL, &attr),
                None => reply.error(Errno::ESRCH),
            });
        }
        match self.tree.lock().attributes(ino.0) {
            Ok(attributes) => reply.attr(&ATTRIBUTE_TTL, &file_attr(&attributes)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = SystemTime::now();
        // O_TRUNC and ftruncate set the time, truncate does not. FUSE says which it was for ftruncate only; to nothing
        // it is far more often O_TRUNC than truncate.
        let truncates = size == Some(0) || (size.is_some() && fh.is_some());
        let truncated = truncates.then_some(now);
        let change = Change {
            mode,
            uid,
            gid,
            length: size,
            accessed: atime.map(system_time),
            modified: mtime.map(system_time).or(truncated),
        };
        match self.tree.lock().change(ino.0, change, now) {
            Ok(attributes) => reply.attr(&ATTRIBUTE_TTL, &file_attr(&attributes)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let flags = OFlags::from_bits_retain(flags.0.cast_unsigned());
        match self.tree.lock().open(ino.0, flags) {
            Ok(handle) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                self.unmappable.opened(reply, FileHandle(handle), flags);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let open = match self.opened(fh) {
            Ok(open) => open,
            Err(e) => return reply.error(e),
        };
        if let Some(rest) = open.read_on(offset, size) {
            return reply.data(&rest);
        }
        match open.shown {
            Shown::Value(file) => self.mailbox.post(KnobRequest::Read {
                file,
                reply: Box::new(move |text| reply.data(&open.read_fresh(text, offset, size))),
            }),
            Shown::Process(pid, file) => self.mailbox.post(KnobRequest::ReadProcess {
                pid,
                file,
                reply: Box::new(move |text| match text {
                    Some(text) => reply.data(&open.read_fresh(text, offset, size)),
                    None => reply.error(Errno::ESRCH),
                }),
            }),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let open = match self.opened(fh) {
            Ok(open) => open,
            Err(e) => return reply.error(e),
        };
        let (file, value) = match tree::accepted_write(open.shown, data) {
            Ok((file, value)) => (file, value.to_vec()),
            Err(e) => return reply.error(errno(e)),
        };
        let written = u32::try_from(value.len()).unwrap_or(0);
        self.mailbox.post(KnobRequest::Write {
            file,
            value,
            reply: Box::new(move |outcome| match outcome {
                Ok(()) => reply.written(written),
                Err(e) => reply.error(errno(e)),
            }),
        });
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.lock().release(fh.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino.0 != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [(ROOT, "."), (ROOT, "..")].into_iter();
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (ino, name)) in (1..).zip(dots.chain(Tree::entries())).skip(skip) {
            let kind = if ino == ROOT {
                FileType::Directory
            } else {
                FileType::RegularFile
            };
            if reply.add(INodeNo(ino), place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::EINVAL);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Self::refuse_new(name, Errno::EACCES));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let regular = mode & libc::S_IFMT == libc::S_IFREG;
        let refused = if regular { Errno::EACCES } else { Errno::EPERM };
        reply.error(Self::refuse_new(name, refused));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Self::refuse_new(name, Errno::EPERM));
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, name: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Self::refuse_new(name, Errno::EPERM));
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(if flags.is_empty() {
            Errno::EPERM
        } else {
            Errno::EINVAL
        });
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply.error(Self::refuse_new(name, Errno::EPERM));
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(Errno::EINVAL);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        let mut tree = self.tree.lock();
        let extended = tree.extended(ino.0);
        answer(
            extended.and_then(|extended| extended.set(name, value, flags)),
            reply,
        );
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mut tree = self.tree.lock();
        let extended = tree.extended(ino.0);
        answer_xattr(
            extended.and_then(|extended| extended.get(name)),
            size,
            reply,
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        // The capability that sysfs asks for cannot be seen from here.
        let privileged = req.uid() == 0;
        let mut tree = self.tree.lock();
        let names = tree
            .extended(ino.0)
            .map(|extended| extended.list(privileged));
        answer_xattr(names.as_deref().map_err(|e| *e), size, reply);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut tree = self.tree.lock();
        let extended = tree.extended(ino.0);
        answer(extended.and_then(|extended| extended.remove(name)), reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let ready = PollEvents::POLLIN
            | PollEvents::POLLOUT
            | PollEvents::POLLRDNORM
            | PollEvents::POLLWRNORM;
        match self.opened(fh) {
            Ok(open) if open.is_unread() => {
                reply.poll(ready | PollEvents::POLLPRI | PollEvents::POLLERR);
            }
            Ok(_) => reply.poll(ready),
            Err(e) => reply.error(e),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(tree::refuse_allocation(offset, length)));
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel asks here for SEEK_DATA and SEEK_HOLE only. To those a sysfs file is all data, up to its size.
        let size = FILE_SIZE.cast_signed();
        match whence {
            _ if offset < 0 || offset >= size => reply.error(Errno::ENXIO),
            libc::SEEK_DATA => reply.offset(offset),
            libc::SEEK_HOLE => reply.offset(size),
            _ => reply.error(Errno::EINVAL),
        }
    }
}
