//! The differences that a FUSE file system cannot avoid: all of them, each with an example that shows it.
//!
//! `docs/SEMANTICS.md` has the same list, with what each means for a program; a test holds the two together.

use super::operation::{
    Answer, Attributes, Caller, FileCall, Operation, PathCall, Seen, Step, Target, Value,
};
use super::script::{KNOB, at, by, on_open, write};
use rustix::fs::{OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

/// A difference that is known.
pub struct Unavoidable {
    /// Its heading in the document.
    pub name: &'static str,
    /// Whether it is this one.
    explains: fn(&Operation, &Answer, &Answer) -> bool,
    /// What shows it.
    pub example: fn() -> Vec<Step>,
}

/// Sysfs gives its files 31 bits of positions, FUSE 63.
const FAR: u64 = 1 << 31;
/// Pages of a request.
const PIECES: usize = 256;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;

/// What went through the pipe, without the offset that is noted behind it.
fn text(spliced: &Value) -> &[u8] {
    spliced
        .0
        .split(|byte| *byte == b'@')
        .next()
        .unwrap_or_default()
}

/// The list.
pub static UNAVOIDABLE: [Unavoidable; 16] = [
    Unavoidable {
        name: "File system type, device and inode numbers",
        explains: |operation, _, _| {
            matches!(
                operation,
                Operation::At {
                    call: PathCall::Identity,
                    ..
                }
            )
        },
        example: || at(KNOB, PathCall::Identity),
    },
    Unavoidable {
        name: "The directory is a mount point",
        // So it cannot be removed or renamed, and its parent is another file system.
        explains: |operation, kernel, ours| {
            let names_it = match operation {
                Operation::At { target, call } => match call {
                    PathCall::RemoveDirectory => *target == Target::Directory,
                    PathCall::RenameTo(to, _) | PathCall::LinkTo(to) => {
                        [*target, *to].contains(&Target::Directory)
                    }
                    _ => false,
                },
                _ => false,
            };
            names_it && kernel.result.is_err() && ours.result.is_err()
        },
        example: || {
            let mut steps = at(Target::Directory, PathCall::RemoveDirectory);
            let rename = PathCall::RenameTo(Target::Missing, RenameFlags::empty());
            steps.extend(at(Target::Directory, rename));
            steps
        },
    },
    Unavoidable {
        name: "Positions beyond 2 GiB",
        // Answered by the kernel's FUSE code, which does not ask us.
        explains: |operation, kernel, ours| match operation {
            Operation::On {
                call: FileCall::Seek(_),
                ..
            } => {
                kernel.result == Err(Errno::INVAL)
                    && matches!(ours.result, Ok(Seen::Number(position)) if position >= FAR)
            }
            Operation::On {
                call: FileCall::Send { offset, .. },
                ..
            } => {
                *offset >= Some(FAR - 1)
                    && kernel.result == Err(Errno::OVERFLOW)
                    && ours.result.is_ok()
            }
            Operation::On {
                call: FileCall::Allocate { offset, len, .. },
                ..
            } => offset + len >= FAR && kernel.result == Err(Errno::FBIG) && ours.result.is_err(),
            _ => false,
        },
        example: || on_open(OFlags::RDONLY, [FileCall::Seek(SeekFrom::Start(FAR))]),
    },
    Unavoidable {
        name: "The position after an append",
        // FUSE moves to the end of the file, which has 4096 bytes, before it writes.
        explains: |operation, kernel, ours| {
            let writes = matches!(
                operation,
                Operation::On {
                    call: FileCall::Write(_) | FileCall::SpliceIn(_),
                    ..
                } | Operation::Copy { .. }
            );
            writes
                && kernel.result == ours.result
                && kernel.touched == ours.touched
                && kernel.position != ours.position
                && ours.position > Some(4096)
        },
        example: || on_open(OFlags::WRONLY | OFlags::APPEND, [write("7")]),
    },
    Unavoidable {
        name: "The size that FUSE remembers",
        // A write beyond 4096, or a splice that comes to the text's end, makes FUSE believe in another size until it
        // asks us again, at the next stat or open.
        explains: |operation, kernel, ours| match (operation, &kernel.result, &ours.result) {
            (
                Operation::On {
                    call: FileCall::Available,
                    ..
                },
                Ok(kernel),
                Ok(ours),
            ) => kernel != ours,
            (
                Operation::On {
                    call: FileCall::Send { .. } | FileCall::SpliceOut { .. },
                    ..
                },
                Ok(Seen::Bytes(kernel)),
                Ok(Seen::Bytes(ours)),
            ) => text(kernel) != text(ours) && text(kernel).starts_with(text(ours)),
            (Operation::Copy { .. }, Ok(Seen::Number(kernel)), Ok(Seen::Number(ours))) => {
                kernel > ours
            }
            // Whether a copy within a file overlaps depends on where the file ends.
            (Operation::Copy { from, to, .. }, Err(Errno::INVAL), Ok(Seen::Number(0))) => {
                from == to
            }
            _ => false,
        },
        example: || {
            let far = FileCall::WriteAt {
                value: Value(b"7".into()),
                offset: 10_000,
            };
            on_open(OFlags::RDWR, [far, FileCall::Available])
        },
    },
    Unavoidable {
        name: "A splice that goes on after a read",
        // The kernel goes on in the text that was read; FUSE splices from a cache that it fills from the beginning.
        explains: |operation, kernel, ours| {
            let (Ok(Seen::Bytes(kernel_text)), Ok(Seen::Bytes(ours_text))) =
                (&kernel.result, &ours.result)
            else {
                return false;
            };
            let begins = match operation {
                Operation::On {
                    call: FileCall::Send { offset, .. } | FileCall::SpliceOut { offset, .. },
                    ..
                } => offset.or(kernel
                    .position
                    .map(|at| at - text(kernel_text).len() as u64)),
                _ => None,
            };
            begins > Some(0) && text(kernel_text) != text(ours_text)
        },
        example: || {
            let begin = FileCall::Read(vec![1]);
            let len = 1;
            let go_on = FileCall::Send { len, offset: None };
            on_open(
                OFlags::RDWR,
                [
                    begin,
                    write("77777"),
                    FileCall::Seek(SeekFrom::Start(1)),
                    go_on,
                ],
            )
        },
    },
    Unavoidable {
        name: "The time of a truncation to nothing",
        explains: |operation, kernel, ours| {
            let truncates = matches!(
                operation,
                Operation::At {
                    call: PathCall::Truncate(0),
                    ..
                }
            );
            truncates
                && kernel.result == ours.result
                && (kernel.touched, ours.touched) == (Some([false; 3]), Some([false, true, true]))
        },
        example: || {
            let mut steps = at(KNOB, PathCall::Truncate(0));
            steps[0].watch_times = true;
            steps
        },
    },
    Unavoidable {
        name: "Poll after a splice of nothing",
        // Beyond its end FUSE does not ask us for the text, so that it still counts as unread.
        explains: |operation, kernel, ours| {
            let splices = matches!(
                operation,
                Operation::On {
                    call: FileCall::Send { .. } | FileCall::SpliceOut { .. },
                    ..
                } | Operation::Copy { .. }
            );
            splices
                && kernel.result == ours.result
                && (kernel.unread, ours.unread) == (Some(false), Some(true))
        },
        example: || {
            let len = 10;
            let beyond = FileCall::Send {
                len,
                offset: Some(5_000),
            };
            on_open(OFlags::RDONLY, [beyond])
        },
    },
    Unavoidable {
        name: "O_DIRECT by fcntl",
        // Only open asks us.
        explains: |operation, kernel, ours| {
            let sets = matches!(operation, Operation::On { call: FileCall::SetFlags(flags), .. }
                if flags.contains(OFlags::DIRECT));
            sets && kernel.result == Err(Errno::INVAL) && ours.result == Ok(Seen::Nothing)
        },
        example: || on_open(OFlags::RDONLY, [FileCall::SetFlags(OFlags::DIRECT)]),
    },
    Unavoidable {
        name: "FIBMAP",
        // Every FUSE file has it; without a block device below it finds nothing.
        explains: |operation, kernel, ours| {
            let asks = matches!(
                operation,
                Operation::On {
                    call: FileCall::Block,
                    ..
                }
            );
            asks && kernel.result == Err(Errno::INVAL) && ours.result == Ok(Seen::Nothing)
        },
        example: || on_open(OFlags::RDONLY, [FileCall::Block]),
    },
    Unavoidable {
        name: "writev of more than 256 pieces",
        // Every piece takes a page of a request, which has 256: what is more makes another request, and so a value.
        explains: |operation, kernel, ours| {
            let many = matches!(operation, Operation::On { call: FileCall::Write(pieces), .. }
                if pieces.len() > PIECES);
            let first = Ok(Seen::Number(PIECES as u64));
            many && kernel.result.is_ok() && ours.result == first
        },
        example: || {
            let pieces = ["5", "\0"].into_iter().chain(["x"; PIECES]);
            let pieces = pieces.map(|piece| Value(piece.into())).collect();
            on_open(OFlags::WRONLY, [FileCall::Write(pieces)])
        },
    },
    Unavoidable {
        name: "Buffers in unmapped memory",
        // FUSE gets at the buffer before it calls, and goes on with the bytes that it could get at.
        explains: |operation, kernel, ours| match operation {
            Operation::On {
                call: FileCall::WriteHalf(_),
                ..
            } => kernel.result == Err(Errno::FAULT) && ours.result != Err(Errno::FAULT),
            Operation::On {
                call: FileCall::ReadToNowhere,
                ..
            } => {
                // At its end a file does not look at the buffer. Before, it makes the text first.
                ours.result == Err(Errno::FAULT)
                    && (kernel.result == Ok(Seen::Number(0)) || kernel.unread == Some(false))
            }
            _ => false,
        },
        example: || {
            let half = FileCall::WriteHalf(b'x');
            on_open(OFlags::RDWR, [half])
        },
    },
    Unavoidable {
        name: "pwrite on a descriptor for reading",
        // Sysfs marks such a descriptor as one without positions for writing, which is looked at first.
        explains: |operation, kernel, ours| {
            let writes = matches!(
                operation,
                Operation::On {
                    call: FileCall::WriteAt { .. },
                    ..
                }
            );
            writes && kernel.result == Err(Errno::SPIPE) && ours.result == Err(Errno::BADF)
        },
        example: || {
            let write = FileCall::WriteAt {
                value: Value(b"7".into()),
                offset: 0,
            };
            on_open(OFlags::RDONLY, [write])
        },
    },
    Unavoidable {
        name: "POSIX ACLs set by others than the owner",
        // Neither has them; FUSE looks at the owner first.
        explains: |operation, kernel, ours| {
            let sets = match operation {
                Operation::At {
                    call: PathCall::SetAttribute { name, .. } | PathCall::RemoveAttribute(name),
                    ..
                } => name.starts_with("system.posix_acl_"),
                _ => false,
            };
            sets && kernel.result == Err(Errno::OPNOTSUPP) && ours.result == Err(Errno::PERM)
        },
        example: || {
            let call = PathCall::RemoveAttribute("system.posix_acl_access");
            by(Caller::Nobody, [Operation::At { target: KNOB, call }])
        },
    },
    Unavoidable {
        name: "The set-group-id bit without group execute",
        // Taken away from a file that a stranger to its group truncates; FUSE leaves that to us and does not say when.
        explains: |operation, kernel, ours| {
            let looks = matches!(
                operation,
                Operation::At {
                    call: PathCall::Status,
                    ..
                } | Operation::On {
                    call: FileCall::Status,
                    ..
                }
            );
            let (Ok(Seen::Attributes(kernel)), Ok(Seen::Attributes(ours))) =
                (&kernel.result, &ours.result)
            else {
                return false;
            };
            let same = Attributes {
                mode: ours.mode & !SET_GROUP_ID,
                ..*ours
            };
            looks && *kernel == same && ours.mode & GROUP_EXECUTE == 0
        },
        example: || {
            let mut all = at(KNOB, PathCall::Chmod(0o2666));
            let call = PathCall::Truncate(5);
            all.extend(by(Caller::Nobody, [Operation::At { target: KNOB, call }]));
            all.extend(at(KNOB, PathCall::Status));
            all
        },
    },
    Unavoidable {
        name: "File handles",
        explains: |operation, kernel, ours| {
            let asks = matches!(
                operation,
                Operation::At {
                    call: PathCall::Handle,
                    ..
                }
            );
            asks && kernel.result == Err(Errno::OPNOTSUPP) && ours.result == Ok(Seen::Nothing)
        },
        example: || at(KNOB, PathCall::Handle),
    },
];

/// The listed difference that this is.
pub fn explain(step: &Step, kernel: &Answer, ours: &Answer) -> Option<&'static Unavoidable> {
    let operation = &step.operation;
    UNAVOIDABLE
        .iter()
        .find(|known| (known.explains)(operation, kernel, ours))
}
