//! The mounted files behave as the kernel's in /sys/kernel/mm/ksm do, call by call.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod stage;

use ksm_engine::knobs::KsmFile;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use stage::{Mounted, errno};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

const NOBODY: u32 = 65_534;

/// Runs a shell command as an unprivileged user; whether it succeeded.
fn as_nobody(mounted: &Mounted, script: &str) -> bool {
    let shell = Command::new("/bin/sh")
        .args(["-c", script])
        .current_dir(mounted.scratch.mountpoint())
        .uid(NOBODY)
        .gid(NOBODY)
        .stderr(std::process::Stdio::null())
        .status();
    shell.unwrap().success()
}

fn open(mounted: &Mounted, name: &str, flags: OFlags) -> Result<(), Errno> {
    rustix::fs::open(mounted.file(name), flags, Mode::from_raw_mode(0o600)).map(drop)
}

#[test]
fn the_directory_lists_the_24_files_in_the_kernels_order() {
    let mounted = Mounted::new();
    let listed: Vec<_> = fs::read_dir(mounted.scratch.mountpoint())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(listed, KsmFile::ALL.map(KsmFile::name));
    assert!(!mounted.file("max_kernel_pages").exists());
}

#[test]
fn attributes_are_those_of_sysfs() {
    let mounted = Mounted::new();
    let dir = fs::metadata(mounted.scratch.mountpoint()).unwrap();
    assert!(dir.is_dir());
    assert_eq!(
        (dir.mode() & 0o7777, dir.nlink(), dir.size(), dir.blocks()),
        (0o755, 2, 0, 0)
    );
    for file in KsmFile::ALL {
        let meta = fs::metadata(mounted.file(file.name())).unwrap();
        assert!(meta.is_file(), "{file}");
        let mode = if file.is_writable() { 0o644 } else { 0o444 };
        assert_eq!(meta.mode() & 0o7777, mode, "{file}");
        assert_eq!((meta.uid(), meta.gid(), meta.nlink()), (0, 0, 1), "{file}");
        assert_eq!(
            (meta.size(), meta.blocks(), meta.blksize()),
            (4096, 0, 4096),
            "{file}"
        );
    }
    let statfs = rustix::fs::statvfs(mounted.scratch.mountpoint()).unwrap();
    assert_eq!(
        (
            statfs.f_bsize,
            statfs.f_namemax,
            statfs.f_blocks,
            statfs.f_files
        ),
        (4096, 255, 0, 0)
    );
}

#[test]
fn fresh_values_are_the_kernels_defaults() {
    let mounted = Mounted::new();
    for (name, text) in [
        ("run", "0\n"),
        ("sleep_millisecs", "20\n"),
        ("pages_to_scan", "100\n"),
        ("max_page_sharing", "256\n"),
        ("merge_across_nodes", "1\n"),
        ("use_zero_pages", "0\n"),
        ("smart_scan", "1\n"),
        ("stable_node_chains_prune_millisecs", "2000\n"),
        ("advisor_mode", "[none] scan-time\n"),
        ("advisor_max_cpu", "70\n"),
        ("advisor_min_pages_to_scan", "500\n"),
        ("advisor_max_pages_to_scan", "30000\n"),
        ("advisor_target_scan_time", "200\n"),
    ] {
        assert_eq!(mounted.read(name), text, "{name}");
    }
    for file in KsmFile::ALL.into_iter().filter(|file| !file.is_writable()) {
        assert_eq!(mounted.read(file.name()), "0\n", "{file}");
    }
}

#[test]
fn a_write_replaces_the_value_with_and_without_truncation_and_newline() {
    let mounted = Mounted::new();
    mounted.write("pages_to_scan", "1234\n").unwrap();
    assert_eq!(mounted.read("pages_to_scan"), "1234\n");
    let file = OpenOptions::new()
        .write(true)
        .open(mounted.file("pages_to_scan"))
        .unwrap();
    (&file).write_all(b"9").unwrap();
    assert_eq!(mounted.read("pages_to_scan"), "9\n");
    // As shells, Python and Go open: O_CREAT and O_TRUNC change nothing.
    drop(File::create(mounted.file("pages_to_scan")).unwrap());
    assert_eq!(mounted.read("pages_to_scan"), "9\n");
    mounted.write("advisor_mode", "scan-time").unwrap();
    assert_eq!(mounted.read("advisor_mode"), "none [scan-time]\n");
    mounted.write("run", "1\n").unwrap();
    assert_eq!(mounted.read("run"), "1\n");
}

#[test]
fn every_write_is_a_whole_value_whatever_its_offset() {
    let mounted = Mounted::new();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.file("pages_to_scan"))
        .unwrap();
    for (offset, value) in [(100, "7"), (4096, "8\n"), (10_000, "9")] {
        assert_eq!(
            file.write_at(value.as_bytes(), offset).unwrap(),
            value.len()
        );
        assert_eq!(mounted.read("pages_to_scan").trim_end(), value.trim_end());
    }
    let pieces = [std::io::IoSlice::new(b"5"), std::io::IoSlice::new(b"8")];
    assert_eq!(file.write_vectored(&pieces).unwrap(), 2);
    assert_eq!(mounted.read("pages_to_scan"), "58\n");
    assert_eq!(file.stream_position().unwrap(), 2);
    assert_eq!(errno(file.write(b"-1")), Some(Errno::INVAL));
    assert_eq!(
        file.stream_position().unwrap(),
        2,
        "a failed write moves nothing"
    );
    assert_eq!(file.write(b"").unwrap(), 0);
    assert_eq!(
        fs::metadata(mounted.file("pages_to_scan")).unwrap().size(),
        4096
    );
}

#[test]
fn a_long_write_is_taken_up_to_4096_bytes() {
    let mounted = Mounted::new();
    let file = OpenOptions::new()
        .write(true)
        .open(mounted.file("pages_to_scan"))
        .unwrap();
    let zeros = |count: usize, end: &str| [vec![b'0'; count], end.into()].concat();
    assert_eq!((&file).write(&zeros(4095, "5")).unwrap(), 4096);
    assert_eq!(mounted.read("pages_to_scan"), "5\n");
    assert_eq!((&file).write(&zeros(4096, "5")).unwrap(), 4096);
    assert_eq!(mounted.read("pages_to_scan"), "0\n");
    let junk = [b"6\0".to_vec(), vec![b'x'; 300_000]].concat();
    assert_eq!((&file).write(&junk).unwrap(), 4096);
    assert_eq!(mounted.read("pages_to_scan"), "6\n");
    assert_eq!(errno((&file).write(&[b'x'; 5000])), Some(Errno::INVAL));
}

#[test]
fn refused_values_have_the_kernels_errno_and_change_nothing() {
    let mounted = Mounted::new();
    for (name, value, wanted) in [
        ("run", "3", Errno::INVAL),
        ("run", "", Errno::INVAL),
        ("run", "one", Errno::INVAL),
        ("pages_to_scan", "4294967296", Errno::INVAL),
        ("pages_to_scan", "5 ", Errno::INVAL),
        ("max_page_sharing", "1", Errno::INVAL),
        ("max_page_sharing", "2147483648", Errno::RANGE),
        ("merge_across_nodes", "18446744073709551616", Errno::RANGE),
        ("merge_across_nodes", "2", Errno::INVAL),
        ("use_zero_pages", "2", Errno::INVAL),
        ("advisor_mode", "[none]", Errno::INVAL),
        ("advisor_target_scan_time", "0", Errno::INVAL),
    ] {
        let before = mounted.read(name);
        // The empty value is no write at all when it is written so; a newline alone is refused.
        let value = if value.is_empty() { "\n" } else { value };
        assert_eq!(
            errno(mounted.write(name, value)),
            Some(wanted),
            "{name} {value:?}"
        );
        assert_eq!(mounted.read(name), before, "{name} {value:?}");
    }
}

#[test]
fn reads_continue_in_one_text_and_begin_afresh_at_zero() {
    let mounted = Mounted::new();
    let mut file = File::open(mounted.file("pages_to_scan")).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"1");
    mounted.write("pages_to_scan", "777").unwrap();
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "00\n", "still the text of 100");
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "00\n777\n");
    let mut page = [0; 4097];
    assert_eq!(file.read_at(&mut page, 0).unwrap(), 4);
    assert_eq!(file.read_at(&mut page, 4).unwrap(), 0);
    assert_eq!(file.read_at(&mut page, 1 << 30).unwrap(), 0);
    assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
}

#[test]
fn a_descriptor_kept_open_never_reads_a_stale_value() {
    let mounted = Mounted::new();
    let file = File::open(mounted.file("pages_to_scan")).unwrap();
    for value in 0..200 {
        mounted.write("pages_to_scan", &value.to_string()).unwrap();
        let mut text = [0; 64];
        let len = file.read_at(&mut text, 0).unwrap();
        assert_eq!(text[..len], *format!("{value}\n").as_bytes());
    }
}

#[test]
fn read_only_files_refuse_a_write_open_even_to_root() {
    let mounted = Mounted::new();
    for flags in [
        OFlags::WRONLY,
        OFlags::RDWR,
        OFlags::WRONLY | OFlags::TRUNC,
        OFlags::RDWR | OFlags::CREATE,
    ] {
        assert_eq!(
            open(&mounted, "pages_shared", flags),
            Err(Errno::ACCESS),
            "{flags:?}"
        );
        assert_eq!(open(&mounted, "run", flags), Ok(()), "{flags:?}");
    }
    assert_eq!(
        open(&mounted, "pages_shared", OFlags::RDONLY | OFlags::TRUNC),
        Ok(())
    );
    let may_write = |name: &str| {
        let access = rustix::fs::Access::WRITE_OK;
        rustix::fs::accessat(
            rustix::fs::CWD,
            mounted.file(name),
            access,
            AtFlags::EACCESS,
        )
    };
    assert_eq!(
        may_write("pages_shared"),
        Ok(()),
        "root passes access(2) and yet cannot open"
    );
}

#[test]
fn opens_that_sysfs_refuses_are_refused() {
    let mounted = Mounted::new();
    for (name, flags, wanted) in [
        (
            "run",
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY,
            Errno::EXIST,
        ),
        ("run", OFlags::DIRECT, Errno::INVAL),
        ("run", OFlags::DIRECTORY, Errno::NOTDIR),
        ("nothing", OFlags::RDONLY, Errno::NOENT),
        ("nothing", OFlags::CREATE | OFlags::WRONLY, Errno::ACCESS),
        (".", OFlags::TMPFILE | OFlags::RDWR, Errno::OPNOTSUPP),
        (".", OFlags::RDWR, Errno::ISDIR),
    ] {
        assert_eq!(open(&mounted, name, flags), Err(wanted), "{name} {flags:?}");
    }
}

#[test]
fn the_directory_cannot_be_changed() {
    let mounted = Mounted::new();
    let new = mounted.file("new");
    let run = mounted.file("run");
    let cwd = rustix::fs::CWD;
    let node = |kind, mode| rustix::fs::mknodat(cwd, &new, kind, mode, 0);
    let mode = Mode::from_raw_mode(0o600);
    assert_eq!(rustix::fs::mkdir(&new, mode), Err(Errno::PERM));
    assert_eq!(rustix::fs::mkdir(&run, mode), Err(Errno::EXIST));
    assert_eq!(node(FileType::Fifo, mode), Err(Errno::PERM));
    assert_eq!(node(FileType::RegularFile, mode), Err(Errno::ACCESS));
    assert_eq!(rustix::fs::symlink("a", &new), Err(Errno::PERM));
    assert_eq!(rustix::fs::link(&run, &new), Err(Errno::PERM));
    assert_eq!(rustix::fs::unlink(&run), Err(Errno::PERM));
    assert_eq!(rustix::fs::rename(&run, &new), Err(Errno::PERM));
    assert_eq!(rustix::fs::unlink(&new), Err(Errno::NOENT));
    assert_eq!(rustix::fs::rmdir(&new), Err(Errno::NOENT));
    let outside = mounted.scratch.path("outside");
    fs::write(&outside, "").unwrap();
    assert_eq!(rustix::fs::rename(&outside, &new), Err(Errno::XDEV));
    assert_eq!(
        fs::read_dir(mounted.scratch.mountpoint()).unwrap().count(),
        24
    );
}

#[test]
fn truncation_succeeds_and_keeps_size_and_value() {
    let mounted = Mounted::new();
    let file = OpenOptions::new()
        .write(true)
        .open(mounted.file("run"))
        .unwrap();
    for size in [0, 100, 8192] {
        file.set_len(size).unwrap();
        assert_eq!(fs::metadata(mounted.file("run")).unwrap().size(), 4096);
    }
    for name in ["run", "pages_shared"] {
        assert_eq!(open(&mounted, name, OFlags::RDONLY | OFlags::TRUNC), Ok(()));
        assert_eq!(fs::metadata(mounted.file(name)).unwrap().size(), 4096);
        assert_eq!(mounted.read(name), "0\n");
    }
}

#[test]
fn modes_owners_and_times_that_root_sets_persist() {
    let mounted = Mounted::new();
    let chmod = |name: &str, mode| {
        fs::set_permissions(mounted.file(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod("run", 0o444);
    assert_eq!(open(&mounted, "run", OFlags::WRONLY), Err(Errno::ACCESS));
    chmod("run", 0o222);
    assert_eq!(open(&mounted, "run", OFlags::RDONLY), Err(Errno::ACCESS));
    chmod("run", 0o644);
    chmod("pages_shared", 0o666);
    let counter = OpenOptions::new()
        .write(true)
        .open(mounted.file("pages_shared"))
        .unwrap();
    assert_eq!(errno((&counter).write(b"1")), Some(Errno::IO));
    assert_eq!((&counter).write(b"").unwrap(), 0);
    std::os::unix::fs::chown(mounted.file("run"), Some(NOBODY), Some(7)).unwrap();
    let meta = fs::metadata(mounted.file("run")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (NOBODY, 7));
    assert!(as_nobody(&mounted, "echo 1 > run"), "the owner may write");
    assert_eq!(mounted.read("run"), "1\n");
    let second = |tv_sec| Timespec { tv_sec, tv_nsec: 5 };
    let times = Timestamps {
        last_access: second(11),
        last_modification: second(22),
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        mounted.file("run"),
        &times,
        AtFlags::empty(),
    )
    .unwrap();
    mounted.write("run", "0").unwrap();
    mounted.read("run");
    let meta = fs::metadata(mounted.file("run")).unwrap();
    assert_eq!(
        (meta.atime(), meta.atime_nsec()),
        (11, 5),
        "reads do not count as access"
    );
    let kept = OpenOptions::new()
        .write(true)
        .open(mounted.file("smart_scan"))
        .unwrap();
    rustix::fs::futimens(&kept, &times).unwrap();
    (&kept).write_all(b"0").unwrap();
    assert_eq!(
        fs::metadata(mounted.file("smart_scan")).unwrap().mtime(),
        22
    );
}

#[test]
fn everybody_reads_and_only_the_owner_changes() {
    let mounted = Mounted::new();
    assert!(as_nobody(
        &mounted,
        "test \"$(cat run pages_shared | tr -d '\\n')\" = 00"
    ));
    assert!(as_nobody(
        &mounted,
        "test -r run && ! test -w run && ! test -x run"
    ));
    for refused in [
        "echo 1 > run",
        "echo 1 <> run 1<&0",
        "chmod 777 run",
        "rm -f run",
        "mkdir new",
        "touch new",
        "mv run new",
        "truncate -s 0 run",
    ] {
        assert!(!as_nobody(&mounted, refused), "{refused}");
    }
    assert_eq!(mounted.read("run"), "0\n");
}

#[test]
fn seeking_knows_a_size_of_4096() {
    let mounted = Mounted::new();
    let mut file = File::open(mounted.file("run")).unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 4096);
    assert_eq!(
        file.seek(SeekFrom::Start((1 << 31) - 1)).unwrap(),
        (1 << 31) - 1
    );
    assert_eq!(
        errno(file.seek(SeekFrom::Current(-(1 << 40)))),
        Some(Errno::INVAL)
    );
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), Ok(0));
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), Ok(4096));
}

#[test]
fn calls_that_make_no_sense_here_get_the_kernels_answer() {
    let mounted = Mounted::new();
    let path = mounted.file("run");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let dir = File::open(mounted.scratch.mountpoint()).unwrap();
    let none = rustix::fs::FallocateFlags::empty();
    assert_eq!(
        rustix::fs::fallocate(&file, none, 0, 10),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(rustix::fs::fsync(&file), Ok(()));
    assert_eq!(rustix::fs::fdatasync(&file), Ok(()));
    assert_eq!(rustix::fs::fsync(&dir), Err(Errno::INVAL));
    assert_eq!(rustix::io::read(&dir, &mut [0; 1]), Err(Errno::ISDIR));
    assert_eq!(rustix::io::ioctl_fionread(&file), Ok(4096));
    assert_eq!(
        rustix::termios::tcgetattr(&file).map(drop),
        Err(Errno::NOTTY)
    );
    assert_eq!(
        rustix::fs::readlink(&path, Vec::new()).map(drop),
        Err(Errno::INVAL)
    );
    assert_eq!(
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive),
        Ok(())
    );
    let flags = rustix::fs::XattrFlags::empty();
    assert_eq!(
        rustix::fs::setxattr(&path, "user.a", b"1", flags),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(
        rustix::fs::getxattr(&path, "user.a", &mut [0; 9][..]),
        Err(Errno::NODATA)
    );
    assert_eq!(rustix::fs::listxattr(&path, &mut [0; 9][..]), Ok(0));
    let write_only = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(errno((&write_only).read(&mut [0])), Some(Errno::BADF));
    let read_only = File::open(&path).unwrap();
    assert_eq!(errno((&read_only).write(b"1")), Some(Errno::BADF));
    let appending = OpenOptions::new()
        .append(true)
        .custom_flags(0)
        .open(&path)
        .unwrap();
    (&appending).write_all(b"1").unwrap();
    assert_eq!(mounted.read("run"), "1\n");
}

#[test]
fn poll_reports_a_file_that_was_not_read_as_changed() {
    use rustix::event::{PollFd, PollFlags, poll};
    let mounted = Mounted::new();
    let file = File::open(mounted.file("run")).unwrap();
    let asked = PollFlags::IN | PollFlags::OUT | PollFlags::PRI;
    let state = || {
        let mut fds = [PollFd::new(&file, asked)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut fds, Some(&now)), Ok(1));
        fds[0].revents()
    };
    assert_eq!(state(), asked | PollFlags::ERR);
    file.read_at(&mut [0; 8], 0).unwrap();
    assert_eq!(state(), PollFlags::IN | PollFlags::OUT);
}

#[test]
fn values_given_at_the_start_are_in_force_when_the_mount_appears() {
    let mounted = Mounted::with(|options| {
        options
            .knob(KsmFile::PagesToScan, "321")
            .knob(KsmFile::Run, "1")
    });
    assert_eq!(
        (mounted.read("pages_to_scan"), mounted.read("run")),
        ("321\n".into(), "1\n".into())
    );
}
