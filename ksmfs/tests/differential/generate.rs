//! Sequences at random: likely ones often, absurd ones now and then.

use super::kernel::{ATTRIBUTES, is_comparable};
use super::operation::{Caller, FileCall, Operation, PathCall, SLOTS, Step, Target, Value};
use ksm_engine::knobs::KsmFile;
use proptest::collection::vec;
use proptest::option::weighted as maybe;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use rustix::event::PollFlags;
use rustix::fs::{
    Access, FallocateFlags, FileType, FlockOperation, OFlags, RenameFlags, SeekFrom, XattrFlags,
};

/// A sequence of up to a dozen operations, the first of which opens something.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let open = step(open(
        prop_oneof![8 => file(), 1 => target()].boxed(),
        likely_flags(),
    ));
    (open, vec(step(operation()), 1..12)).prop_map(|(first, mut rest)| {
        rest.insert(0, first);
        rest
    })
}

fn step(operation: impl Strategy<Value = Operation>) -> impl Strategy<Value = Step> {
    let caller = prop_oneof![7 => Just(Caller::Root), 2 => Just(Caller::Nobody)];
    // Looking at times takes a tick of the kernel's clock.
    let watch = proptest::bool::weighted(0.01);
    (caller, watch, operation).prop_map(|(caller, watch_times, operation)| Step {
        caller,
        watch_times,
        operation,
    })
}

fn operation() -> BoxedStrategy<Operation> {
    let call = prop_oneof![6 => data_call(), 3 => file_call()];
    prop_oneof![
        4 => open(file(), likely_flags()),
        2 => open(target(), flags()),
        1 => slot().prop_map(|slot| Operation::Close { slot }),
        16 => (slot(), call).prop_map(|(slot, call)| Operation::On { slot, call }),
        8 => (target(), path_call()).prop_map(|(target, call)| Operation::At { target, call }),
        3 => (file(), value()).prop_map(|(target, value)| Operation::At {
            target,
            call: PathCall::WriteAll(value),
        }),
        1 => (slot(), slot(), size()).prop_map(|(from, to, len)| Operation::Copy { from, to, len }),
    ]
    .boxed()
}

/// Slots, mostly the one that the sequence opens first.
fn slot() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0), 2 => 0..SLOTS]
}

fn open(target: BoxedStrategy<Target>, flags: BoxedStrategy<OFlags>) -> BoxedStrategy<Operation> {
    (slot(), target, flags)
        .prop_map(|(slot, target, flags)| Operation::Open {
            slot,
            target,
            flags,
        })
        .boxed()
}

/// Knobs and counters that can be compared.
fn file() -> BoxedStrategy<Target> {
    let files = KsmFile::ALL.into_iter();
    let files = files.filter(|file| is_comparable(*file));
    let (knobs, counters): (Vec<_>, Vec<_>) = files.partition(|file| file.is_writable());
    prop_oneof![5 => select(knobs), 1 => select(counters)]
        .prop_map(Target::File)
        .boxed()
}

fn target() -> BoxedStrategy<Target> {
    prop_oneof![6 => file(), 2 => Just(Target::Directory), 1 => Just(Target::Missing)].boxed()
}

fn likely_flags() -> BoxedStrategy<OFlags> {
    let access = prop_oneof![
        3 => Just(OFlags::RDWR),
        1 => Just(OFlags::RDONLY),
        1 => Just(OFlags::WRONLY)
    ];
    let more = select(vec![
        OFlags::empty(),
        OFlags::TRUNC,
        OFlags::CREATE.union(OFlags::TRUNC),
        OFlags::APPEND,
        OFlags::NONBLOCK,
    ]);
    (access, more)
        .prop_map(|(access, more)| access | more)
        .boxed()
}

fn flags() -> BoxedStrategy<OFlags> {
    // The fourth mode of access, 3, wants both permissions and gives neither access.
    let access = select(&[OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RWMODE]);
    let more = vec![
        OFlags::TRUNC,
        OFlags::APPEND,
        OFlags::CREATE,
        OFlags::EXCL,
        OFlags::DIRECTORY,
        OFlags::NONBLOCK,
        OFlags::SYNC,
        OFlags::DSYNC,
        OFlags::NOATIME,
        OFlags::PATH,
        OFlags::TMPFILE,
        OFlags::DIRECT,
        OFlags::NOFOLLOW,
        OFlags::NOCTTY,
    ];
    (access, proptest::sample::subsequence(more, 0..4))
        .prop_map(|(access, more)| more.into_iter().fold(access, |sum, flag| sum | flag))
        .boxed()
}

fn size() -> impl Strategy<Value = usize> {
    select(&[0, 1, 2, 3, 5, 64, 4095, 4096, 4097, 10_000])
}

fn offset() -> impl Strategy<Value = u64> {
    let huge = i64::MAX.cast_unsigned();
    prop_oneof![
        6 => select(&[0, 1, 2, 3, 5, 100]),
        3 => select(&[4095, 4096, 4097, 10_000]),
        1 => select(vec![(1 << 31) - 1, 1 << 31, 1 << 40, huge - 4096, huge, u64::MAX]),
    ]
}

/// What may be written: a number, a word, or something like it, perhaps with something wrong about it.
pub fn value() -> BoxedStrategy<Value> {
    let number = prop_oneof![
        4 => any::<u16>().prop_map(|number| number.to_string()),
        3 => (0..4_u8).prop_map(|number| number.to_string()),
        2 => edge(),
        1 => any::<u64>().prop_map(|number| number.to_string()),
    ];
    let words = &[
        "none",
        "scan-time",
        "None",
        "scan_time",
        "[none]",
        "scan-time none",
        "y",
        "Yes",
        "true",
        "TRUE",
        "enable",
        "on",
        "ON",
        "of",
        "off",
        "oFf",
        "o",
        "ox",
        "n",
        "no",
        "False",
        "disable",
        "1abc",
        "abc",
        "0x10",
        "0X10",
        "0b1",
        "1e3",
        "1.5",
        "1_0",
        "1,0",
        "010",
        "",
    ];
    let word = select(&words[..]).prop_map(String::from);
    let body = prop_oneof![3 => number, 2 => word];
    let before = prop_oneof![
        8 => Just(""),
        3 => select(&["+", "-", "++", "-+", "00", " ", "\t", "\n", "\0", "0x", "~"][..]),
    ];
    let after = prop_oneof![
        8 => select(&["", "\n"][..]),
        3 => select(&[
            "\n\n", " ", " \n", "\r\n", "\n7", "\n7\n", "\0", "\0junk", "\n\0", "\0\n", "abc", "-", ";",
            "\t", "\u{b}",
        ][..]),
    ];
    let text = (before, body, after)
        .prop_map(|(before, body, after)| format!("{before}{body}{after}").into_bytes());
    let long = (
        3_900..10_000_usize,
        select(&[b'0', b'x', b'\n', b' ', 0][..]),
        0..10_u8,
    );
    let long = (
        prop_oneof![Just(""), Just("5\0"), Just("1"), Just("+")],
        long,
    )
        .prop_map(|(begin, (len, filler, digit))| {
            [begin.into(), vec![filler; len], vec![b'0' + digit]].concat()
        });
    prop_oneof![
        30 => text,
        3 => long,
        2 => vec(any::<u8>(), 0..24),
    ]
    .prop_map(Value)
    .boxed()
}

/// Around the ends of every type that a file may store its value in.
fn edge() -> impl Strategy<Value = String> {
    let ends = vec![
        1_i128 << 8,
        1 << 16,
        1 << 31,
        1 << 32,
        1 << 63,
        1 << 64,
        -(1 << 31),
        -(1 << 63),
        10 << 64,
    ];
    (select(ends), -2..3_i128).prop_map(|(end, by)| (end + by).to_string())
}

/// Values for the files they suit more often than chance would have it.
fn suited() -> impl Strategy<Value = Value> {
    prop_oneof![
        2 => value(),
        1 => select(&["0", "1", "2", "100\n", "scan-time", "none\n"][..])
            .prop_map(|text| Value(text.into())),
    ]
}

/// Reading, writing and moving about.
fn data_call() -> BoxedStrategy<FileCall> {
    let seek = prop_oneof![
        offset().prop_map(SeekFrom::Start),
        offset().prop_map(|by| SeekFrom::Current(by.cast_signed())),
        (0..5_i64).prop_map(|by| SeekFrom::Current(-by)),
        offset().prop_map(|by| SeekFrom::End(by.cast_signed())),
        (0..5_000_i64).prop_map(|by| SeekFrom::End(-by)),
        offset().prop_map(SeekFrom::Data),
        offset().prop_map(SeekFrom::Hole),
        Just(SeekFrom::Start(0)),
    ];
    let digits = select(&["", "0", "1", "\0"][..]).prop_map(|digit| Value(digit.into()));
    let asked = select(vec![
        PollFlags::all(),
        PollFlags::IN,
        PollFlags::OUT,
        PollFlags::PRI,
        PollFlags::empty(),
    ]);
    prop_oneof![
        4 => vec(size(), 1..2).prop_map(FileCall::Read),
        1 => vec(size(), 2..5).prop_map(FileCall::Read),
        3 => (size(), offset()).prop_map(|(size, offset)| FileCall::ReadAt { size, offset }),
        6 => vec(suited(), 1..2).prop_map(FileCall::Write),
        2 => vec(value(), 2..5).prop_map(FileCall::Write),
        1 => vec(digits, 1..250).prop_map(FileCall::Write),
        3 => (suited(), offset()).prop_map(|(value, offset)| FileCall::WriteAt { value, offset }),
        4 => seek.prop_map(FileCall::Seek),
        1 => (size(), maybe(0.5, offset())).prop_map(|(len, offset)| FileCall::Send { len, offset }),
        1 => (size(), maybe(0.5, offset()))
            .prop_map(|(len, offset)| FileCall::SpliceOut { len, offset }),
        1 => value().prop_map(FileCall::SpliceIn),
        2 => asked.prop_map(FileCall::Poll),
        1 => Just(FileCall::Available),
    ]
    .boxed()
}

/// Everything else that a descriptor can be asked.
fn file_call() -> BoxedStrategy<FileCall> {
    let flock = select(&[
        FlockOperation::NonBlockingLockShared,
        FlockOperation::NonBlockingLockExclusive,
        FlockOperation::NonBlockingUnlock,
    ]);
    let allocate =
        (0..128_u32, offset(), offset()).prop_map(|(mode, offset, len)| FileCall::Allocate {
            mode: FallocateFlags::from_bits_retain(mode),
            offset,
            len,
        });
    let set = select(vec![
        OFlags::empty(),
        OFlags::APPEND,
        OFlags::NONBLOCK,
        OFlags::NOATIME,
        OFlags::DIRECT,
    ]);
    prop_oneof![
        Just(FileCall::Status),
        offset().prop_map(FileCall::Truncate),
        mode().prop_map(FileCall::Chmod),
        (owner(), owner()).prop_map(|(uid, gid)| FileCall::Chown(uid, gid)),
        any::<bool>().prop_map(|data_only| FileCall::Sync { data_only }),
        allocate,
        flock.clone().prop_map(FileCall::Lock),
        flock.prop_map(FileCall::LockRecord),
        any::<(bool, bool)>().prop_map(|(shared, write)| FileCall::Map { shared, write }),
        Just(FileCall::Block),
        Just(FileCall::Terminal),
        Just(FileCall::Flags),
        set.prop_map(FileCall::SetFlags),
        select(&[16, 32, 64, 256, 4096, 32_768][..]).prop_map(|buffer| FileCall::List { buffer }),
        Just(FileCall::ReadToNowhere),
        Just(FileCall::WriteFromNowhere),
        // A byte that no file takes: the kernel refuses the write for the buffer, FUSE may hand it over.
        Just(FileCall::WriteHalf(b'x')),
        prop_oneof![likely_flags(), flags()].prop_map(FileCall::Reopen),
    ]
    .boxed()
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![
        select(
            &[
                0o644, 0o444, 0o222, 0o666, 0o600, 0o755, 0o000, 0o002, 0o111
            ][..]
        ),
        0..0o10000_u32,
    ]
}

fn owner() -> impl Strategy<Value = u32> {
    select(&[0, 1, 65_534][..])
}

fn path_call() -> BoxedStrategy<PathCall> {
    let kind = select(&[
        FileType::RegularFile,
        FileType::Fifo,
        FileType::Socket,
        FileType::CharacterDevice,
        FileType::Directory,
    ]);
    let rename = select(vec![
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
        RenameFlags::WHITEOUT,
        RenameFlags::NOREPLACE.union(RenameFlags::EXCHANGE),
    ]);
    let other = || prop_oneof![3 => target(), 1 => Just(Target::Outside)];
    let times = maybe(0.5, (0..2_000_000_000_i64, 0..2_000_000_000_i64));
    let names = || {
        let more = [
            "user.differential",
            "system.posix_acl_access",
            "system.x",
            "differential",
        ];
        select([ATTRIBUTES.as_slice(), &ATTRIBUTES, &more].concat())
    };
    let attribute = || select(&[0, 1, 3, 64, 256][..]);
    let xattr_flags = select(vec![
        XattrFlags::empty(),
        XattrFlags::CREATE,
        XattrFlags::REPLACE,
    ]);
    let contents = vec(any::<u8>(), 0..5).prop_map(Value);
    let access = select(vec![
        Access::EXISTS,
        Access::READ_OK,
        Access::WRITE_OK,
        Access::EXEC_OK,
        Access::READ_OK.union(Access::WRITE_OK),
    ]);
    prop_oneof![
        2 => Just(PathCall::Status),
        2 => (access, any::<bool>())
            .prop_map(|(access, effective)| PathCall::Access { access, effective }),
        4 => mode().prop_map(PathCall::Chmod),
        3 => (owner(), owner()).prop_map(|(uid, gid)| PathCall::Chown(uid, gid)),
        1 => times.prop_map(PathCall::SetTimes),
        1 => offset().prop_map(|len| PathCall::Truncate(len.cast_signed())),
        1 => Just(PathCall::Unlink),
        1 => Just(PathCall::RemoveDirectory),
        1 => Just(PathCall::MakeDirectory),
        1 => kind.prop_map(PathCall::MakeNode),
        1 => Just(PathCall::Symlink),
        1 => other().prop_map(PathCall::LinkTo),
        2 => (other(), rename).prop_map(|(to, flags)| PathCall::RenameTo(to, flags)),
        1 => Just(PathCall::ReadLink),
        1 => Just(PathCall::FileSystem),
        2 => (names(), attribute()).prop_map(|(name, size)| PathCall::GetAttribute { name, size }),
        3 => (names(), contents, xattr_flags)
            .prop_map(|(name, value, flags)| PathCall::SetAttribute { name, value, flags }),
        1 => attribute().prop_map(|size| PathCall::ListAttributes { size }),
        1 => names().prop_map(PathCall::RemoveAttribute),
        4 => Just(PathCall::ReadAll),
        2 => value().prop_map(PathCall::WriteAll),
    ]
    .boxed()
}
