//! Whether something is in a pipe, found out without keeping it open.
//!
//! Who has put pages into a pipe may close it long before they are read, and a descriptor of ours would keep its readers
//! from ever seeing its end. So a pipe is known by its inode, looked for among the descriptors of the app and then of all
//! processes, and opened for as long as it takes to ask how much is in it. What cannot be found out counts as
//! filled; a pipe that nobody has is no more.

use crate::proc_file::{Path, number, open_at};
use ksm_engine::page::PAGE_SIZE;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, FileType, OFlags, RawDir, fcntl_getfl, fstat, statat};
use rustix::io::ioctl_fionread;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use zerocopy::FromZeros;

/// A pipe, or a named one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(C)]
pub struct PipeId {
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl PipeId {
    /// The pipe into which can be written through `fd`.
    #[must_use]
    pub fn of_writer(fd: BorrowedFd<'_>) -> Option<Self> {
        let writes = fcntl_getfl(fd)
            .ok()?
            .intersects(OFlags::WRONLY | OFlags::RDWR);
        let status = fstat(fd).ok().filter(|_| writes)?;
        let is_pipe = FileType::from_raw_mode(status.st_mode) == FileType::Fifo;
        is_pipe.then_some(Self {
            device: status.st_dev,
            inode: status.st_ino,
        })
    }
}

/// Which of up to 64 pipes have something in them, as bits. `app` is the process that is likely to have them.
pub(crate) fn filled(app: u32, pipes: &[PipeId]) -> u64 {
    let all = (0..pipes.len()).fold(0, |mask, i| mask | 1 << i);
    let mut search = Search {
        pipes,
        filled: 0,
        missing: all,
    };
    let complete = search
        .look_at_process(app)
        .and_then(|()| search.look_everywhere());
    match complete {
        Some(()) => search.filled,
        None => search.filled | search.missing,
    }
}

struct Search<'a> {
    pipes: &'a [PipeId],
    filled: u64,
    /// Not found yet.
    missing: u64,
}

impl Search<'_> {
    fn look_everywhere(&mut self) -> Option<()> {
        if self.missing == 0 {
            return Some(());
        }
        let proc = open_at(CWD, c"/proc", OFlags::DIRECTORY)?;
        each_number(proc.as_fd(), |_, process| {
            // Another user's processes are out of reach, and some have ended since.
            self.look_at_process(u32::try_from(process).unwrap_or(0));
            self.missing != 0
        })
    }

    fn look_at_process(&mut self, process: u32) -> Option<()> {
        let path = Path::<64>::new(format_args!("/proc/{process}/fd"))?;
        let links = open_at(CWD, path.as_c_str()?, OFlags::DIRECTORY)?;
        each_number(links.as_fd(), |name, _| {
            self.look_at_descriptor(links.as_fd(), name);
            self.missing != 0
        })
    }

    fn look_at_descriptor(&mut self, links: BorrowedFd<'_>, name: &CStr) {
        let Ok(status) = statat(links, name, AtFlags::empty()) else {
            return;
        };
        let found = PipeId {
            device: status.st_dev,
            inode: status.st_ino,
        };
        let same = |(_, pipe): &(usize, &PipeId)| **pipe == found;
        let which = self.pipes.iter().enumerate().filter(same);
        let which = self.missing & which.fold(0, |mask, (i, _)| mask | 1 << i);
        if which != 0
            && let Some(empty) = is_empty(links, name)
        {
            self.missing &= !which;
            self.filled |= if empty { 0 } else { which };
        }
    }
}

fn is_empty(links: BorrowedFd<'_>, name: &CStr) -> Option<bool> {
    let pipe = open_at(links, name, OFlags::NONBLOCK)?;
    Some(ioctl_fionread(&pipe).ok()? == 0)
}

/// The entries of a directory that are numbers, until `each` says to stop.
fn each_number(directory: BorrowedFd<'_>, mut each: impl FnMut(&CStr, u64) -> bool) -> Option<()> {
    let mut buffer = [MaybeUninit::uninit(); PAGE_SIZE];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.ok()?;
        let name = entry.file_name();
        if let Some(value) = number(name.to_bytes(), 10)
            && !each(name, value)
        {
            break;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{read, write};
    use rustix::pipe::pipe;

    fn myself() -> u32 {
        rustix::process::getpid().as_raw_pid().unsigned_abs()
    }

    #[test]
    fn a_pipe_is_filled_until_everything_has_been_read() {
        let (reader, writer) = pipe().expect("a pipe");
        let id = PipeId::of_writer(writer.as_fd()).expect("its writing end");
        assert_eq!(PipeId::of_writer(reader.as_fd()), None);
        assert_eq!(filled(myself(), &[id]), 0);
        write(&writer, b"ab").expect("room");
        assert_eq!(filled(myself(), &[id, id]), 0b11);
        read(&reader, &mut [0; 1]).expect("something");
        assert_eq!(filled(myself(), &[id]), 1);
        read(&reader, &mut [0; 1]).expect("something");
        assert_eq!(filled(myself(), &[id]), 0);
    }

    #[test]
    fn a_pipe_that_only_another_process_has_is_found() {
        let (reader, writer) = pipe().expect("a pipe");
        let id = PipeId::of_writer(writer.as_fd()).expect("its writing end");
        write(&writer, b"a").expect("room");
        let child = std::process::Command::new("sleep")
            .arg("1000")
            .stdin(reader)
            .spawn();
        let mut child = child.expect("it runs");
        drop(writer);
        assert_eq!(filled(myself(), &[id]), 1);
        child.kill().expect("own child");
        child.wait().expect("own child");
        assert_eq!(filled(myself(), &[id]), 0, "nobody has it");
    }

    #[test]
    fn asking_does_not_keep_a_pipe_open() {
        let (reader, writer) = pipe().expect("a pipe");
        let id = PipeId::of_writer(writer.as_fd()).expect("its writing end");
        write(&writer, b"a").expect("room");
        assert_eq!(filled(myself(), &[id]), 1);
        drop(writer);
        assert_eq!(read(&reader, &mut [0; 8]), Ok(1));
        assert_eq!(read(&reader, &mut [0; 8]), Ok(0), "the end");
    }
}
