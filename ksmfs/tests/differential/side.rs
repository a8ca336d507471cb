//! One of the two directories, and the descriptors that a sequence holds in it.

use super::operation::{
    Answer, Attributes, FileCall, Operation, PathCall, SLOTS, Seen, Target, Value,
};
use super::sys;
use ksm_engine::knobs::KsmFile;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RawDir, SeekFrom, Stat, Timestamps, Uid};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A directory under comparison.
pub struct Side {
    root: PathBuf,
    outside: PathBuf,
    slots: [Option<(Target, OwnedFd)>; SLOTS],
}

fn stat_of(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode,
        links: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        device: stat.st_rdev,
        size: stat.st_size,
        block_size: stat.st_blksize,
        blocks: stat.st_blocks,
    }
}

fn number(count: usize) -> Seen {
    Seen::Number(count as u64)
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

impl Side {
    pub fn new(root: &Path, outside: &Path) -> Self {
        Self {
            root: root.into(),
            outside: outside.into(),
            slots: [const { None }; SLOTS],
        }
    }

    pub fn path(&self, target: Target) -> PathBuf {
        match target {
            Target::File(file) => self.root.join(file.name()),
            Target::Directory => self.root.clone(),
            Target::Missing => self.root.join("nothing"),
            Target::Outside => self.outside.clone(),
        }
    }

    pub fn status(&self, target: Target) -> Result<Attributes, Errno> {
        rustix::fs::stat(self.path(target)).map(|stat| stat_of(&stat))
    }

    /// The target that an operation is about.
    pub fn target(&self, operation: &Operation) -> Option<Target> {
        match operation {
            Operation::At { target, .. } | Operation::Open { target, .. } => Some(*target),
            Operation::On { slot, .. }
            | Operation::Close { slot }
            | Operation::Copy { to: slot, .. } => {
                self.slots[*slot].as_ref().map(|(target, _)| *target)
            }
        }
    }

    pub fn close(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    pub fn close_all(&mut self) {
        self.slots = [const { None }; SLOTS];
    }

    /// Makes the call, in this thread's name.
    pub fn perform(&mut self, operation: &Operation) -> Answer {
        let result = match operation {
            Operation::Open {
                slot,
                target,
                flags,
            } => self.open(*slot, *target, *flags),
            Operation::Close { slot } => {
                self.close(*slot);
                Ok(Seen::Nothing)
            }
            Operation::On {
                slot,
                call: FileCall::Reopen(flags),
            } => self.reopen(*slot, *flags),
            Operation::On { slot, call } => match &self.slots[*slot] {
                Some((_, file)) => on(file.as_fd(), call),
                None => Ok(Seen::NoDescriptor),
            },
            Operation::At { target, call } => self.at(*target, call),
            Operation::Copy { from, to, len } => match (&self.slots[*from], &self.slots[*to]) {
                (Some((_, from)), Some((_, to))) => {
                    rustix::fs::copy_file_range(from, Some(&mut 0), to, None, *len).map(number)
                }
                _ => Ok(Seen::NoDescriptor),
            },
        };
        let file = self.file(operation);
        Answer {
            result,
            position: file.and_then(|file| rustix::fs::tell(file).ok()),
            unread: file.and_then(|file| unread(file).ok()),
            touched: None,
        }
    }

    /// The descriptor of a file that an operation is about. Those of directories have positions that are the file
    /// system's own business.
    fn file(&self, operation: &Operation) -> Option<BorrowedFd<'_>> {
        let (Operation::On { slot, .. } | Operation::Copy { from: slot, .. }) = operation else {
            return None;
        };
        match &self.slots[*slot] {
            Some((Target::File(_), file)) => Some(file.as_fd()),
            _ => None,
        }
    }

    fn open(&mut self, slot: usize, target: Target, flags: OFlags) -> Result<Seen, Errno> {
        self.slots[slot] = None;
        let flags = flags | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path(target), flags, mode(0o644))?;
        self.slots[slot] = Some((target, file));
        Ok(Seen::Nothing)
    }

    fn reopen(&mut self, slot: usize, flags: OFlags) -> Result<Seen, Errno> {
        let Some((target, file)) = &self.slots[slot] else {
            return Ok(Seen::NoDescriptor);
        };
        let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        let again = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?;
        self.slots[slot] = Some((*target, again));
        Ok(Seen::Nothing)
    }

    fn at(&self, target: Target, call: &PathCall) -> Result<Seen, Errno> {
        let path = self.path(target);
        let path = path.as_path();
        let done = |()| Seen::Nothing;
        match call {
            PathCall::Status => self.status(target).map(Seen::Attributes),
            PathCall::Access { access, effective } => {
                let flags = if *effective {
                    AtFlags::EACCESS
                } else {
                    AtFlags::empty()
                };
                rustix::fs::accessat(CWD, path, *access, flags).map(done)
            }
            PathCall::Chmod(bits) => rustix::fs::chmod(path, mode(*bits)).map(done),
            PathCall::Chown(uid, gid) => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                rustix::fs::chown(path, Some(uid), Some(gid)).map(done)
            }
            PathCall::SetTimes(times) => set_times(path, *times).map(done),
            PathCall::Truncate(len) => sys::truncate(path, *len).map(done),
            PathCall::Unlink => rustix::fs::unlink(path).map(done),
            PathCall::RemoveDirectory => rustix::fs::rmdir(path).map(done),
            PathCall::MakeDirectory => rustix::fs::mkdir(path, mode(0o755)).map(done),
            PathCall::MakeNode(kind) => {
                rustix::fs::mknodat(CWD, path, *kind, mode(0o644), 0).map(done)
            }
            PathCall::Symlink => rustix::fs::symlink("run", path).map(done),
            PathCall::LinkTo(to) => rustix::fs::link(path, self.path(*to)).map(done),
            PathCall::RenameTo(to, flags) => {
                rustix::fs::renameat_with(CWD, path, CWD, self.path(*to), *flags).map(done)
            }
            PathCall::ReadLink => rustix::fs::readlink(path, Vec::new())
                .map(|name| Seen::Bytes(Value(name.into_bytes()))),
            PathCall::FileSystem => file_system(path),
            PathCall::Identity => {
                let stat = rustix::fs::stat(path)?;
                let kind = rustix::fs::statfs(path)?.f_type.cast_unsigned();
                Ok(Seen::Identity([kind, stat.st_dev, stat.st_ino]))
            }
            PathCall::Handle => sys::has_handle(path).map(done),
            PathCall::GetAttribute { name, size } => {
                let mut value = vec![0; *size];
                let len = rustix::fs::getxattr(path, *name, &mut value[..])?;
                // A size of 0 asks for the length only.
                value.truncate(len);
                Ok(if *size == 0 {
                    number(len)
                } else {
                    Seen::Bytes(Value(value))
                })
            }
            PathCall::SetAttribute { name, value, flags } => {
                rustix::fs::setxattr(path, *name, &value.0, *flags).map(done)
            }
            PathCall::ListAttributes { size } => {
                let mut names = vec![0; *size];
                let len = rustix::fs::listxattr(path, &mut names[..])?;
                names.truncate(len);
                Ok(if *size == 0 {
                    number(len)
                } else {
                    Seen::Bytes(Value(names))
                })
            }
            PathCall::RemoveAttribute(name) => rustix::fs::removexattr(path, *name).map(done),
            PathCall::ReadAll => {
                let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                let mut text = vec![0; 4097];
                let len = rustix::io::read(&file, &mut text)?;
                text.truncate(len);
                Ok(Seen::Bytes(Value(text)))
            }
            PathCall::WriteAll(value) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
                let file = rustix::fs::open(path, flags, mode(0o644))?;
                rustix::io::write(&file, &value.0).map(number)
            }
        }
    }
}

fn set_times(path: &Path, times: Option<(i64, i64)>) -> Result<(), Errno> {
    let time = |second: Option<i64>| Timespec {
        tv_sec: second.unwrap_or(0),
        tv_nsec: if second.is_some() {
            0
        } else {
            rustix::fs::UTIME_NOW
        },
    };
    let times = Timestamps {
        last_access: time(times.map(|t| t.0)),
        last_modification: time(times.map(|t| t.1)),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())
}

fn file_system(path: &Path) -> Result<Seen, Errno> {
    let fs = rustix::fs::statvfs(path)?;
    // Whether it is mounted nosuid, nodev and noexec is decided by who mounted it.
    let by_mount = libc::ST_NOSUID | libc::ST_NODEV | libc::ST_NOEXEC;
    Ok(Seen::FileSystem([
        fs.f_bsize,
        fs.f_frsize,
        fs.f_blocks,
        fs.f_bfree,
        fs.f_bavail,
        fs.f_files,
        fs.f_ffree,
        fs.f_favail,
        fs.f_flag.bits() & !by_mount,
        fs.f_namemax,
    ]))
}

fn on(file: BorrowedFd<'_>, call: &FileCall) -> Result<Seen, Errno> {
    let done = |()| Seen::Nothing;
    match call {
        FileCall::Read(sizes) => read(file, sizes),
        FileCall::ReadAt { size, offset } => {
            let mut text = vec![0; *size];
            let len = rustix::io::pread(file, &mut text[..], *offset)?;
            text.truncate(len);
            Ok(Seen::Bytes(Value(text)))
        }
        FileCall::Write(pieces) => match &pieces[..] {
            [value] => rustix::io::write(file, &value.0).map(number),
            pieces => {
                let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(&piece.0)).collect();
                rustix::io::writev(file, &pieces).map(number)
            }
        },
        FileCall::WriteAt { value, offset } => {
            rustix::io::pwrite(file, &value.0, *offset).map(number)
        }
        FileCall::Seek(to) => rustix::fs::seek(file, *to).map(Seen::Number),
        FileCall::Status => rustix::fs::fstat(file).map(|s| Seen::Attributes(stat_of(&s))),
        FileCall::Truncate(len) => rustix::fs::ftruncate(file, *len).map(done),
        FileCall::Chmod(bits) => rustix::fs::fchmod(file, mode(*bits)).map(done),
        FileCall::Chown(uid, gid) => {
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            rustix::fs::fchown(file, Some(uid), Some(gid)).map(done)
        }
        FileCall::Sync { data_only: true } => rustix::fs::fdatasync(file).map(done),
        FileCall::Sync { data_only: false } => rustix::fs::fsync(file).map(done),
        FileCall::Allocate { mode, offset, len } => {
            rustix::fs::fallocate(file, *mode, *offset, *len).map(done)
        }
        FileCall::Lock(lock) => rustix::fs::flock(file, *lock).map(done),
        FileCall::LockRecord(lock) => rustix::fs::fcntl_lock(file, *lock).map(done),
        FileCall::Poll(asked) => poll(file, *asked),
        FileCall::Map { shared, write } => sys::map(file, *shared, *write).map(done),
        FileCall::Available => rustix::io::ioctl_fionread(file).map(Seen::Number),
        FileCall::Block => sys::block(file).map(done),
        FileCall::Terminal => rustix::termios::tcgetattr(file).map(|_| Seen::Nothing),
        FileCall::Flags => rustix::fs::fcntl_getfl(file).map(Seen::Flags),
        FileCall::SetFlags(flags) => rustix::fs::fcntl_setfl(file, *flags).map(done),
        FileCall::List { buffer } => list(file, *buffer),
        FileCall::Send { len, offset } => through_pipe(*offset, |pipe, offset| {
            rustix::fs::sendfile(pipe, file, offset, *len)
        }),
        FileCall::SpliceOut { len, offset } => through_pipe(*offset, |pipe, offset| {
            rustix::pipe::splice(file, offset, pipe, None, *len, SpliceFlags::empty())
        }),
        FileCall::SpliceIn(value) => {
            let (reader, writer) = rustix::pipe::pipe()?;
            rustix::io::write(&writer, &value.0)?;
            let flags = SpliceFlags::NONBLOCK;
            rustix::pipe::splice(&reader, None, file, None, value.0.len(), flags).map(number)
        }
        FileCall::ReadToNowhere => sys::read_to_nowhere(file).map(number),
        FileCall::WriteFromNowhere => sys::write_from_nowhere(file).map(number),
        FileCall::WriteHalf(byte) => sys::write_half(file, *byte).map(number),
        FileCall::Reopen(_) => unreachable!("made by Side::perform, which owns the descriptor"),
    }
}

fn read(file: BorrowedFd<'_>, sizes: &[usize]) -> Result<Seen, Errno> {
    let mut text = vec![0; sizes.iter().sum()];
    let len = if let [_] = sizes {
        rustix::io::read(file, &mut text[..])?
    } else {
        let mut rest = &mut text[..];
        let mut pieces = Vec::new();
        for size in sizes {
            let (piece, after) = rest.split_at_mut(*size);
            pieces.push(IoSliceMut::new(piece));
            rest = after;
        }
        rustix::io::readv(file, &mut pieces)?
    };
    text.truncate(len);
    Ok(Seen::Bytes(Value(text)))
}

fn poll(file: BorrowedFd<'_>, asked: PollFlags) -> Result<Seen, Errno> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(file, asked)];
    rustix::event::poll(&mut polled, Some(&now))?;
    Ok(Seen::Events(polled[0].revents()))
}

fn unread(file: BorrowedFd<'_>) -> Result<bool, Errno> {
    let events = poll(file, PollFlags::PRI)?;
    Ok(matches!(events, Seen::Events(events) if events.contains(PollFlags::PRI)))
}

/// What `copy` puts into a pipe, and where it leaves the offset.
fn through_pipe(
    offset: Option<u64>,
    copy: impl FnOnce(BorrowedFd<'_>, Option<&mut u64>) -> Result<usize, Errno>,
) -> Result<Seen, Errno> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let mut offset = offset;
    let copied = copy(writer.as_fd(), offset.as_mut())?;
    drop(writer);
    let mut bytes = vec![0; 8192];
    let len = rustix::io::read(&reader, &mut bytes[..])?;
    assert_eq!(len, copied, "the pipe has what was copied");
    bytes.truncate(len);
    bytes.extend_from_slice(format!("@{offset:?}").as_bytes());
    Ok(Seen::Bytes(Value(bytes)))
}

/// All names but those of the dots, which every directory has somewhere. Every entry's number is the one stat tells.
fn list(directory: BorrowedFd<'_>, buffer: usize) -> Result<Seen, Errno> {
    rustix::fs::seek(directory, SeekFrom::Start(0))?;
    let mut names = Vec::new();
    let mut buffer = vec![MaybeUninit::uninit(); buffer];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_str().expect("plain names").to_owned();
        if KsmFile::from_name(&name).is_some() {
            let stat = rustix::fs::statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW);
            // Whoever may list a directory may not always search it.
            if let Ok(stat) = stat {
                assert_eq!(entry.ino(), stat.st_ino, "{name}");
            }
        }
        names.push((name, entry.file_type()));
    }
    rustix::fs::seek(directory, SeekFrom::Start(0))?;
    Ok(Seen::Names(names))
}
