//! What a program can ask of the directory: one system call each, or the two or three that belong together.
//!
//! Operations name descriptors by slot and files by [`Target`], so that the same sequence can be made against two
//! directories.

use ksm_engine::knobs::KsmFile;
use rustix::event::PollFlags;
use rustix::fs::XattrFlags;
use rustix::fs::{Access, FallocateFlags, FileType, FlockOperation, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;
use std::fmt;

/// Descriptors that a sequence may hold at once.
pub const SLOTS: usize = 3;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    File(KsmFile),
    Directory,
    /// A name that the directory does not have.
    Missing,
    /// A file of another file system.
    Outside,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Root,
    /// No privilege, no group.
    Nobody,
}

/// Bytes to write.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(pub Vec<u8>);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            short if short.len() <= 64 => write!(f, "\"{}\"", short.escape_ascii()),
            long => {
                let (begin, end) = (&long[..16], &long[long.len() - 16..]);
                let (begin, end) = (begin.escape_ascii(), end.escape_ascii());
                write!(f, "\"{begin}...{end}\" ({} bytes)", long.len())
            }
        }
    }
}

/// One step of a sequence.
#[derive(Clone, Debug)]
pub struct Step {
    pub caller: Caller,
    /// Whether to look which times of the file the operation changes.
    pub watch_times: bool,
    pub operation: Operation,
}

#[derive(Clone, Debug)]
pub enum Operation {
    Open {
        slot: usize,
        target: Target,
        flags: OFlags,
    },
    Close {
        slot: usize,
    },
    On {
        slot: usize,
        call: FileCall,
    },
    At {
        target: Target,
        call: PathCall,
    },
    /// `copy_file_range` from the beginning of one slot's file to another slot.
    Copy {
        from: usize,
        to: usize,
        len: usize,
    },
}

/// What can be asked of a descriptor.
#[derive(Clone, Debug)]
pub enum FileCall {
    /// `read`, or `readv` with several sizes.
    Read(Vec<usize>),
    ReadAt {
        size: usize,
        offset: u64,
    },
    /// `write`, or `writev` with several pieces.
    Write(Vec<Value>),
    WriteAt {
        value: Value,
        offset: u64,
    },
    Seek(SeekFrom),
    Status,
    Truncate(u64),
    Chmod(u32),
    Chown(u32, u32),
    Sync {
        data_only: bool,
    },
    Allocate {
        mode: FallocateFlags,
        offset: u64,
        len: u64,
    },
    Lock(FlockOperation),
    LockRecord(FlockOperation),
    Poll(PollFlags),
    Map {
        shared: bool,
        write: bool,
    },
    /// `ioctl(FIONREAD)`.
    Available,
    /// `ioctl(FIBMAP)`.
    Block,
    /// `ioctl(TCGETS)`.
    Terminal,
    Flags,
    SetFlags(OFlags),
    /// Lists the whole directory through a buffer of this size.
    List {
        buffer: usize,
    },
    /// `sendfile` to a pipe, from the position or from an offset.
    Send {
        len: usize,
        offset: Option<u64>,
    },
    SpliceOut {
        len: usize,
        offset: Option<u64>,
    },
    SpliceIn(Value),
    ReadToNowhere,
    WriteFromNowhere,
    /// A write whose first byte can be read and whose others cannot.
    WriteHalf(u8),
    /// Opens what the descriptor has open again, through /proc.
    Reopen(OFlags),
}

/// What can be asked of a path.
#[derive(Clone, Debug)]
pub enum PathCall {
    Status,
    Access {
        access: Access,
        effective: bool,
    },
    Chmod(u32),
    Chown(u32, u32),
    /// Sets access and modification time, in seconds; `None`: now.
    SetTimes(Option<(i64, i64)>),
    Truncate(i64),
    Unlink,
    RemoveDirectory,
    MakeDirectory,
    MakeNode(FileType),
    Symlink,
    LinkTo(Target),
    RenameTo(Target, RenameFlags),
    ReadLink,
    FileSystem,
    /// File system type, device and inode number.
    Identity,
    /// `name_to_handle_at`.
    Handle,
    GetAttribute {
        name: &'static str,
        size: usize,
    },
    SetAttribute {
        name: &'static str,
        value: Value,
        flags: XattrFlags,
    },
    ListAttributes {
        size: usize,
    },
    RemoveAttribute(&'static str),
    /// Opens, reads everything, closes: `cat`.
    ReadAll,
    /// Opens as shells do, writes, closes: `echo >`.
    WriteAll(Value),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub result: Result<Seen, Errno>,
    /// Of the slot's descriptor, when that is a file.
    pub position: Option<u64>,
    /// Whether poll still calls that file changed since it was opened.
    pub unread: Option<bool>,
    /// Access, modification and change time: which of them changed.
    pub touched: Option<[bool; 3]>,
}

/// What a call returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Nothing,
    /// The slot is empty: nothing was called.
    NoDescriptor,
    Number(u64),
    Bytes(Value),
    Attributes(Attributes),
    Names(Vec<(String, FileType)>),
    Events(PollFlags),
    Flags(OFlags),
    FileSystem([u64; 10]),
    Identity([u64; 3]),
}

/// What `stat` says, without what names the file system or a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub mode: u32,
    pub links: u64,
    pub uid: u32,
    pub gid: u32,
    pub device: u64,
    pub size: i64,
    pub block_size: i64,
    pub blocks: i64,
}
