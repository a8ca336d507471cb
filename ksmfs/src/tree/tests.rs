use super::{Change, FILE_SIZE, ROOT, Shown, Tree, WRITE_LIMIT, accepted_write};
use ksm_engine::knobs::KsmFile;
use ksm_engine::process_file::ProcessFile;
use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::Errno;
use std::time::{Duration, SystemTime};

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn tree() -> Tree {
    Tree::new(Uid::ROOT, Gid::ROOT, at(1))
}

fn ino(name: &str) -> u64 {
    Tree::lookup(name).unwrap()
}

#[test]
fn the_listing_has_the_24_files_in_kernel_order() {
    let names: Vec<_> = Tree::entries().map(|(_, name)| name).collect();
    assert_eq!(names.len(), 24);
    assert_eq!(names[0], "stable_node_dups");
    assert_eq!(names[23], "pages_sharing");
    for (ino, name) in Tree::entries() {
        assert_eq!(Tree::lookup(name), Some(ino));
    }
    assert_eq!(Tree::lookup("max_kernel_pages"), None);
}

#[test]
fn fresh_modes_tell_writable_files_from_counters() {
    let tree = tree();
    assert_eq!(tree.attributes(ROOT).unwrap().mode, 0o755);
    assert!(tree.attributes(ROOT).unwrap().is_directory());
    assert_eq!(tree.attributes(ino("run")).unwrap().mode, 0o644);
    assert_eq!(tree.attributes(ino("pages_shared")).unwrap().mode, 0o444);
    assert_eq!(tree.attributes(26), Err(Errno::NOENT));
    assert_eq!(tree.attributes(0), Err(Errno::NOENT));
}

#[test]
fn a_counter_refuses_to_be_opened_for_writing() {
    let mut tree = tree();
    for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR | OFlags::APPEND] {
        assert_eq!(tree.open(ino("full_scans"), flags), Err(Errno::ACCESS));
        assert!(tree.open(ino("run"), flags).is_ok());
    }
    assert!(tree.open(ino("full_scans"), OFlags::RDONLY).is_ok());
}

#[test]
fn chmod_decides_which_opens_are_refused() {
    let mut tree = tree();
    let chmod = |mode| Change {
        mode: Some(mode),
        ..Change::default()
    };
    let run = ino("run");
    tree.change(run, chmod(0o444), at(2)).unwrap();
    assert_eq!(tree.open(run, OFlags::WRONLY), Err(Errno::ACCESS));
    tree.change(run, chmod(0o222), at(3)).unwrap();
    assert_eq!(tree.open(run, OFlags::RDONLY), Err(Errno::ACCESS));
    assert_eq!(tree.open(run, OFlags::RDWR), Err(Errno::ACCESS));
    assert!(tree.open(run, OFlags::WRONLY).is_ok());
    tree.change(ino("pages_shared"), chmod(0o666), at(4))
        .unwrap();
    assert!(tree.open(ino("pages_shared"), OFlags::WRONLY).is_ok());
}

#[test]
fn direct_io_and_the_directory_cannot_be_opened_as_files() {
    let mut tree = tree();
    assert_eq!(tree.open(ino("run"), OFlags::DIRECT), Err(Errno::INVAL));
    assert_eq!(tree.open(ROOT, OFlags::RDONLY), Err(Errno::ISDIR));
    assert_eq!(tree.open(99, OFlags::RDONLY), Err(Errno::NOENT));
}

#[test]
fn attributes_that_were_changed_are_remembered() {
    let mut tree = tree();
    let change = Change {
        mode: Some(0o100_600),
        uid: Some(5),
        gid: Some(6),
        accessed: Some(at(10)),
        modified: Some(at(11)),
        length: None,
    };
    tree.change(ino("run"), change, at(12)).unwrap();
    let now = tree.attributes(ino("run")).unwrap();
    assert_eq!((now.mode, now.uid, now.gid), (0o600, 5, 6));
    assert_eq!(
        (now.accessed, now.modified, now.changed),
        (at(10), at(11), at(12))
    );
}

#[test]
fn truncation_changes_no_more_than_the_times_that_come_with_it() {
    let mut tree = tree();
    let before = tree.attributes(ino("run")).unwrap();
    let mut truncate = |length, modified| {
        let change = Change {
            length: Some(length),
            modified,
            ..Change::default()
        };
        tree.change(ino("run"), change, at(7))
    };
    assert_eq!(truncate(100, None), Ok(before));
    let after = truncate(0, Some(at(6))).unwrap();
    assert_eq!((after.modified, after.changed), (at(6), at(7)));
    assert_eq!((after.mode, after.accessed), (before.mode, before.accessed));
    assert_eq!(truncate((1 << 31) - 1, None), Ok(after));
    assert_eq!(truncate(1 << 31, None), Err(Errno::FBIG));
}

#[test]
fn reads_continue_in_the_text_of_the_read_at_zero() {
    let mut tree = tree();
    let handle = tree.open(ino("run"), OFlags::RDONLY).unwrap();
    let file = tree.opened(handle).unwrap();
    assert!(file.is_unread());
    assert_eq!(
        file.read_on(1, 9),
        None,
        "the first read is fresh wherever it is"
    );
    assert_eq!(file.read_fresh("123\n", 1, 2), b"23");
    assert!(!file.is_unread());
    assert_eq!(file.read_on(1, 9), None, "not where the last one ended");
    assert_eq!(file.read_on(3, 9).as_deref(), Some(&b"\n"[..]));
    assert_eq!(
        file.read_on(4, 9).as_deref(),
        Some(&b""[..]),
        "the end stays the end"
    );
    assert_eq!(file.read_fresh("5\n", 0, 9), b"5\n");
    assert_eq!(file.read_fresh("5\n", 0, 0), b"");
    assert_eq!(file.read_on(0, 9), None, "a read at 0 is always fresh");
    let other = tree.open(ino("run"), OFlags::RDONLY).unwrap();
    assert!(
        tree.opened(other).unwrap().is_unread(),
        "every open file has its own text"
    );
    tree.release(handle);
    assert_eq!(tree.opened(handle).map(|f| f.shown), Err(Errno::BADF));
}

#[test]
fn a_read_beyond_the_text_gets_nothing() {
    let mut tree = tree();
    let handle = tree.open(ino("run"), OFlags::RDONLY).unwrap();
    let file = tree.opened(handle).unwrap();
    for offset in [2, 4096, u64::MAX] {
        assert_eq!(file.read_fresh("1\n", offset, u32::MAX), b"");
        assert_eq!(file.read_on(offset, u32::MAX).as_deref(), Some(&b""[..]));
    }
}

#[test]
fn a_long_write_is_cut_and_a_counter_takes_none() {
    let long = vec![b'0'; WRITE_LIMIT + 5];
    let run = Shown::Value(KsmFile::Run);
    assert_eq!(accepted_write(run, &long).unwrap().1.len(), 4096);
    assert_eq!(accepted_write(run, b"1"), Ok((KsmFile::Run, &b"1"[..])));
    for shown in [
        Shown::Value(KsmFile::PagesShared),
        Shown::Process(1, ProcessFile::Stat),
    ] {
        assert_eq!(accepted_write(shown, b"1"), Err(Errno::IO));
    }
    assert_eq!(FILE_SIZE, 4096);
}
