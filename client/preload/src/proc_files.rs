//! `ksm_stat` and `ksm_merging_pages` of this process, below `/proc`, with our figures in the kernel's format.
//!
//! Opening one gives a file in memory with what is true at that moment. Whoever keeps it open reads the same again.

use crate::mode;
use ksm_client::space::Space;
use ksm_client::{Client, Figures};
use ksm_engine::page::PageRun;
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use std::ffi::CStr;
use std::os::fd::OwnedFd;

/// Files of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Stat,
    MergingPages,
}

/// Opens a file of ours if `path` names one.
pub fn open(path: &CStr, flags: libc::c_int) -> Option<OwnedFd> {
    let file = which(path.to_bytes())?;
    if flags & libc::O_PATH != 0 {
        return None;
    }
    in_memory(text(file).as_bytes(), flags & libc::O_CLOEXEC != 0)
}

/// Which file of this process a path names.
fn which(path: &[u8]) -> Option<File> {
    let path = path.strip_prefix(b"/proc/")?;
    let (directory, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/')?);
    let file = match name {
        b"/ksm_stat" => File::Stat,
        b"/ksm_merging_pages" => File::MergingPages,
        _ => return None,
    };
    let mut parts = directory.split(|byte| *byte == b'/');
    let process = parts.next()?;
    let own = match process {
        b"self" | b"thread-self" => true,
        number => {
            number
                == rustix::process::getpid()
                    .as_raw_pid()
                    .to_string()
                    .as_bytes()
        }
    };
    let rest = (parts.next(), parts.next(), parts.next());
    let own = own && matches!(rest, (None, None, None) | (Some(b"task"), Some(_), None));
    own.then_some(file)
}

fn text(file: File) -> String {
    let none = Figures {
        rmap_items: 0,
        zero_pages: 0,
        merging_pages: 0,
        profit: 0,
    };
    let client = Client::current();
    let figures = client.and_then(|client| client.figures().ok());
    let figures = figures.unwrap_or(none);
    let yes = |is| if is { "yes" } else { "no" };
    let has_region =
        Space::get().is_some_and(|space| space.first_registered(PageRun::EVERYTHING).is_some());
    match file {
        File::MergingPages => format!("{}\n", figures.merging_pages),
        File::Stat => format!(
            "ksm_rmap_items {}\nksm_zero_pages {}\nksm_merging_pages {}\nksm_process_profit {}\n\
             ksm_merge_any: {}\nksm_mergeable: {}\n",
            figures.rmap_items,
            figures.zero_pages,
            figures.merging_pages,
            figures.profit,
            yes(mode::merges_any()),
            yes(has_region),
        ),
    }
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
