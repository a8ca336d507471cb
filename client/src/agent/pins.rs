//! Whether somebody may hold pages of the app for a device to write to.
//!
//! The kernel tells only when it is asked to move a page, and it does not move broken pages. So this looks for anything
//! that could have pinned one: a descriptor that is not of a kind known to be harmless, a file opened for direct I/O, a
//! ring for asynchronous I/O, memory accounted as pinned. Asked while writers are held off, no new pin can come behind
//! it: a pin for writing is a write fault first. Whatever cannot be found out counts as a yes.

use crate::proc_file::{Path, field, number, open_at};
use crate::sys::kcmp::same_descriptors;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, OFlags, RawDir, readlinkat_raw, statat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;

/// Descriptors and threads that are looked at; a process with more counts as one with pins, since writers wait for this.
const MOST: usize = 256;
/// `O_DIRECT`.
const DIRECT: u64 = 0o40000;
/// Link targets of descriptors that pin nothing, apart from files of the file systems.
const HARMLESS: [&[u8]; 21] = [
    b"pipe:[",
    b"socket:[",
    b"anon_inode:[eventfd]",
    b"anon_inode:[eventpoll]",
    b"anon_inode:[timerfd]",
    b"anon_inode:[signalfd]",
    b"anon_inode:[pidfd]",
    b"anon_inode:[userfaultfd]",
    b"anon_inode:[fanotify]",
    b"anon_inode:inotify",
    b"anon_inode:kvm-",
    b"/dev/null",
    b"/dev/zero",
    b"/dev/full",
    b"/dev/random",
    b"/dev/urandom",
    b"/dev/tty",
    b"/dev/pts/",
    b"/dev/ptmx",
    b"/dev/kvm",
    b"/dev/userfaultfd",
];
/// Below `/dev`, but files as any other.
const FILES_IN_DEV: [&[u8]; 3] = [b"/dev/shm/", b"/dev/hugepages/", b"/dev/mqueue/"];

/// Whether the process with id `app` may have pinned pages.
pub fn are_possible(app: u32) -> bool {
    !seems_free_of_pins(app).unwrap_or(false)
}

fn seems_free_of_pins(app: u32) -> Option<bool> {
    let process = open_at(
        CWD,
        Path::<64>::new(format_args!("/proc/{app}"))?.as_c_str()?,
        OFlags::DIRECTORY,
    )?;
    Some(
        pinned_bytes(process.as_fd())? == 0
            && rings(process.as_fd())? == 0
            && tasks_are_harmless(process.as_fd())?,
    )
}

/// `VmPin`, what drivers account as pinned.
fn pinned_bytes(process: BorrowedFd<'_>) -> Option<u64> {
    let status = open_at(process, c"status", OFlags::empty())?;
    let mut buffer = [0; 2048];
    let got = rustix::io::read(&status, &mut buffer[..]).ok()?;
    field(buffer.get(..got)?, b"VmPin:", 10)
}

/// Rings of the old asynchronous I/O. Their requests live on when the descriptor of the file is closed.
fn rings(process: BorrowedFd<'_>) -> Option<usize> {
    let all = open_at(CWD, c"/proc/sys/fs/aio-nr", OFlags::empty())?;
    let mut buffer = [0; 4096];
    let got = rustix::io::read(&all, &mut buffer[..]).ok()?;
    if buffer.get(..got)? == b"0\n" {
        return Some(0);
    }
    // Somebody has one. It is a mapping of its own name.
    let maps = open_at(process, c"maps", OFlags::empty())?;
    let name = b"[aio]";
    let mut matched = 0;
    let mut found = 0;
    loop {
        let got = rustix::io::read(&maps, &mut buffer[..]).ok()?;
        if got == 0 {
            return Some(found);
        }
        for byte in buffer.get(..got)? {
            matched = match name.get(matched) == Some(byte) {
                true => matched + 1,
                false => usize::from(*byte == b'['),
            };
            if matched == name.len() {
                (found, matched) = (found + 1, 0);
            }
        }
    }
}

/// Looks at the descriptors of all threads; those that share a table with the first one are looked at once.
fn tasks_are_harmless(process: BorrowedFd<'_>) -> Option<bool> {
    let tasks = open_at(process, c"task", OFlags::DIRECTORY)?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&tasks, &mut buffer);
    let mut first = None;
    let mut seen = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.ok()?;
        let Some(task) = number(entry.file_name().to_bytes(), 10) else {
            continue;
        };
        seen += 1;
        if seen > MOST {
            return None;
        }
        let task = u32::try_from(task).ok()?;
        match task_is_harmless(tasks.as_fd(), entry.file_name(), task, first) {
            Some(true) => first = first.or(Some(task)),
            // The thread has ended meanwhile.
            None if is_gone(tasks.as_fd(), entry.file_name()) => (),
            harmless => return harmless,
        }
    }
    Some(seen > 0)
}

/// Looks at the descriptors of one thread, if they are not those of the `first`.
fn task_is_harmless(
    tasks: BorrowedFd<'_>,
    name: &CStr,
    task: u32,
    first: Option<u32>,
) -> Option<bool> {
    if let Some(first) = first
        && same_descriptors(first, task)?
    {
        return Some(true);
    }
    descriptors_are_harmless(open_at(tasks, name, OFlags::DIRECTORY)?.as_fd())
}

fn descriptors_are_harmless(task: BorrowedFd<'_>) -> Option<bool> {
    let links = open_at(task, c"fd", OFlags::DIRECTORY)?;
    let infos = open_at(task, c"fdinfo", OFlags::DIRECTORY)?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&links, &mut buffer);
    let mut seen = 0;
    while let Some(entry) = entries.next() {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if number(name.to_bytes(), 10).is_none() {
            continue;
        }
        seen += 1;
        if seen > MOST {
            return None;
        }
        let mut target = [MaybeUninit::uninit(); 256];
        let (target, _) = match readlinkat_raw(&links, name, &mut target[..]) {
            Ok(read) => read,
            // Closed since the directory was read.
            Err(Errno::NOENT) => continue,
            Err(_) => return None,
        };
        let target: &[u8] = target;
        if HARMLESS.iter().any(|kind| target.starts_with(kind)) {
            continue;
        }
        let in_dev =
            target.starts_with(b"/dev/") && !FILES_IN_DEV.iter().any(|dir| target.starts_with(dir));
        let is_file = target.starts_with(b"/") && !in_dev;
        // Reads of the daemon's files go right into the reader's memory.
        if !is_file || is_hidden(target) {
            return Some(false);
        }
        match opened_direct(infos.as_fd(), name) {
            Some(false) => (),
            None if is_gone(links.as_fd(), name) => (),
            direct => return direct.map(|_| false),
        }
    }
    Some(true)
}

/// Whether what a directory of `/proc` had by this name is no longer there.
fn is_gone(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).err() == Some(Errno::NOENT)
}

/// Whether it is one of the mount's files about a process, which some programs keep open.
fn is_hidden(target: &[u8]) -> bool {
    let name = target.rsplit(|byte| *byte == b'/').next().unwrap_or(&[]);
    name.starts_with(b".ksm_")
}

fn opened_direct(infos: BorrowedFd<'_>, name: &CStr) -> Option<bool> {
    let info = open_at(infos, name, OFlags::empty())?;
    let mut buffer = [0; 256];
    let got = rustix::io::read(&info, &mut buffer[..]).ok()?;
    let flags = field(buffer.get(..got)?, b"flags:", 8)?;
    Some(flags & DIRECT != 0)
}
