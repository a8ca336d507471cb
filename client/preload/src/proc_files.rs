//! `ksm_stat` and `ksm_merging_pages` below `/proc`, with our figures in the kernel's format.
//!
//! The daemon has them as hidden files of its mount, for each process that takes part: whoever keeps one open reads what is
//! true at that moment. After a `chroot` they are found where the agent is. Where that is not to be seen either, a process
//! gets its own in a file in memory, as far as it knows them.

use crate::mode;
use crate::sandbox;
use ksm_client::space::Space;
use ksm_client::{Client, Figures, first_surroundings, locate};
use ksm_engine::page::PageRun;
use ksm_engine::process_file::ProcessFile;
use ksm_engine::wire::MountDevice;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use std::ffi::{CStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Whose files are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Own,
    /// Of the process with this number here.
    Other(u32),
}

/// Opens a file of ours if `path` names one.
pub fn open(path: &CStr, flags: libc::c_int) -> Option<OwnedFd> {
    let (file, whose) = which(path.to_bytes())?;
    let reads = flags & (libc::O_PATH | libc::O_ACCMODE) == libc::O_RDONLY;
    if !reads || sandbox::is_entered() {
        return None;
    }
    let takes_part = whose != Whose::Own || Client::current().is_some();
    if let Some(live) = takes_part.then(|| hidden(file, whose, flags)).flatten() {
        return Some(live);
    }
    match whose {
        Whose::Own => in_memory(text(file).as_bytes(), flags & libc::O_CLOEXEC != 0),
        Whose::Other(_) => None,
    }
}

/// Which file of which process a path names.
fn which(path: &[u8]) -> Option<(ProcessFile, Whose)> {
    let path = path.strip_prefix(b"/proc/")?;
    let (directory, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/')?);
    let name = name.strip_prefix(b"/")?;
    let is = |file: &ProcessFile| file.name().as_bytes() == name;
    let file = ProcessFile::ALL.into_iter().find(is)?;
    let mut parts = directory.split(|byte| *byte == b'/');
    let whose = match parts.next()? {
        b"self" | b"thread-self" => Whose::Own,
        number => match std::str::from_utf8(number).ok()?.parse().ok()? {
            number if number == own_number() => Whose::Own,
            number => Whose::Other(number),
        },
    };
    match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) | (Some(b"task"), Some(_), None) => Some((file, whose)),
        _ => None,
    }
}

fn own_number() -> u32 {
    rustix::process::getpid().as_raw_pid().unsigned_abs()
}

/// The daemon's file. Numbers of other processes are known only where the daemon counts as we do.
fn hidden(file: ProcessFile, whose: Whose, flags: libc::c_int) -> Option<OwnedFd> {
    let device = locate()?;
    let number = match whose {
        Whose::Own => device.asker,
        Whose::Other(number) if device.asker == own_number() => number,
        Whose::Other(_) => return None,
    };
    let path = mount(device)?.join(file.hidden_name(number));
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    let flags = flags.difference(OFlags::CREATE | OFlags::TRUNC | OFlags::EXCL);
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// Where the mount with this device number is seen: from here, or from where the agent is.
fn mount(device: MountDevice) -> Option<PathBuf> {
    let here = mount_in(Path::new("/proc/self/mountinfo"), Path::new("/"), device);
    here.or_else(|| {
        let place = first_surroundings()?;
        mount_in(&place.join("mountinfo"), &place.join("root"), device)
    })
}

/// The same of a list of mounts whose paths begin at `root`.
fn mount_in(list: &Path, root: &Path, device: MountDevice) -> Option<PathBuf> {
    let wanted = format!("{}:{}", device.major, device.minor);
    let mounts = std::fs::read(list).ok()?;
    let lines = mounts.split(|byte| *byte == b'\n');
    let mut places = lines.filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ').skip(2);
        let is_it = words.next()? == wanted.as_bytes();
        // The root of the mount within its file system.
        words.next()?;
        let place = PathBuf::from(unescaped(words.next().filter(|_| is_it)?));
        Some(root.join(place.strip_prefix("/").ok()?))
    });
    let number = rustix::fs::makedev(device.major, device.minor);
    let leads_there = |path: &PathBuf| rustix::fs::stat(path).is_ok_and(|s| s.st_dev == number);
    places.find(leads_there)
}

/// Blanks and the like are written as octal numbers in that file.
fn unescaped(word: &[u8]) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let [first, after @ ..] = rest {
        let escaped = after.get(..3).filter(|_| *first == b'\\');
        let number = escaped
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(number.unwrap_or(*first));
        rest = if number.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

fn text(file: ProcessFile) -> String {
    let client = Client::current();
    let figures: Option<Figures> = client.and_then(|client| client.figures().ok());
    let has_region =
        Space::get().is_some_and(|space| space.first_registered(PageRun::EVERYTHING).is_some());
    file.text(&figures.unwrap_or_default(), mode::merges_any(), has_region)
}

fn in_memory(text: &[u8], close_on_exec: bool) -> Option<OwnedFd> {
    let mut flags = MemfdFlags::ALLOW_SEALING;
    flags.set(MemfdFlags::CLOEXEC, close_on_exec);
    let file = rustix::fs::memfd_create(c"ksm_stat", flags).ok()?;
    rustix::io::write(&file, text).ok()?;
    rustix::fs::seek(&file, SeekFrom::Start(0)).ok()?;
    let sealed = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, sealed).ok()?;
    Some(file)
}
