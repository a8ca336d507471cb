//! Whether somebody may hold pages of the app for a device to write to.
//!
//! The kernel tells only when it is asked to move a page, and it does not move broken pages. So this looks for anything
//! that could have pinned one: a descriptor that is not of a kind known to be harmless, a file opened for direct I/O, a
//! ring for asynchronous I/O, memory accounted as pinned. Asked while writers are held off, no new pin can come behind
//! it: a pin for writing is a write fault first. Whatever cannot be found out counts as a yes.

use crate::sys::kcmp::same_descriptors;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw};
use std::ffi::CStr;
use std::fmt::Write;
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
        path(format_args!("/proc/{app}"))?.as_c_str()?,
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
        if let Some(first) = first
            && same_descriptors(first, task)?
        {
            continue;
        }
        let task_dir = open_at(tasks.as_fd(), entry.file_name(), OFlags::DIRECTORY)?;
        if !descriptors_are_harmless(task_dir.as_fd())? {
            return Some(false);
        }
        first = first.or(Some(task));
    }
    Some(seen > 0)
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
            Err(rustix::io::Errno::NOENT) => continue,
            Err(_) => return None,
        };
        let target: &[u8] = target;
        if HARMLESS.iter().any(|kind| target.starts_with(kind)) {
            continue;
        }
        let in_dev =
            target.starts_with(b"/dev/") && !FILES_IN_DEV.iter().any(|dir| target.starts_with(dir));
        let is_file = target.starts_with(b"/") && !in_dev;
        if !is_file || opened_direct(infos.as_fd(), name)? {
            return Some(false);
        }
    }
    Some(true)
}

fn opened_direct(infos: BorrowedFd<'_>, name: &CStr) -> Option<bool> {
    let info = open_at(infos, name, OFlags::empty())?;
    let mut buffer = [0; 256];
    let got = rustix::io::read(&info, &mut buffer[..]).ok()?;
    let flags = field(buffer.get(..got)?, b"flags:", 8)?;
    Some(flags & DIRECT != 0)
}

fn open_at(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Option<OwnedFd> {
    openat(
        dir,
        path,
        flags | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

/// The number in the line that begins with `name`.
fn field(text: &[u8], name: &[u8], radix: u64) -> Option<u64> {
    let line = text
        .split(|byte| *byte == b'\n')
        .find(|line| line.starts_with(name))?;
    let value = line.get(name.len()..)?.trim_ascii();
    number(value.split(|byte| *byte == b' ').next()?, radix)
}

fn number(digits: &[u8], radix: u64) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let value = digits.iter().try_fold(0_u64, |value, byte| {
        value.checked_mul(radix)?.checked_add(digit(byte)?)
    })?;
    (!digits.is_empty()).then_some(value)
}

/// A path in a buffer of fixed size.
struct Path {
    bytes: [u8; 64],
    len: usize,
}

impl Path {
    fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

fn path(text: std::fmt::Arguments<'_>) -> Option<Path> {
    let mut path = Path {
        bytes: [0; 64],
        len: 0,
    };
    path.write_fmt(text).ok()?;
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_read() {
        let status = b"VmLck:\t       0 kB\nVmPin:\t      12 kB\nVmHWM:\t1 kB\n";
        assert_eq!(field(status, b"VmPin:", 10), Some(12));
        assert_eq!(
            field(b"pos:\t0\nflags:\t02140002\n", b"flags:", 8),
            Some(0o2_140_002)
        );
        assert_eq!(field(status, b"VmSwap:", 10), None);
    }
}
