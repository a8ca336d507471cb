//! Reading into memory by an io_uring, into plain and into fixed (pinned) buffers.

use super::memory::Piece;
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use testsuite::content::PAGE_SIZE;

pub(crate) struct Ring(IoUring);

/// The length of a page, for a kernel structure.
const LENGTH: u32 = 4096;
const _: () = assert!(LENGTH as usize == PAGE_SIZE);

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        IoUring::new(4).map(Self)
    }

    pub(crate) fn read(
        &mut self,
        file: &impl AsRawFd,
        id: u64,
        piece: &Piece,
        page: usize,
    ) -> io::Result<usize> {
        let fd = types::Fd(file.as_raw_fd());
        let read = opcode::Read::new(fd, piece.at(page), LENGTH).offset(offset(id));
        self.submit(&read.build())
    }

    /// Pins pages until [`Ring::unpin`].
    pub(crate) fn pin(&self, piece: &Piece, run: &Range<usize>) -> io::Result<()> {
        let buffer = libc::iovec {
            iov_base: piece.at(run.start).cast(),
            iov_len: run.len() * PAGE_SIZE,
        };
        // SAFETY: the memory is the owner's, who does not unmap it while it is pinned.
        unsafe { self.0.submitter().register_buffers(&[buffer]) }
    }

    pub(crate) fn read_pinned(
        &mut self,
        file: &impl AsRawFd,
        id: u64,
        piece: &Piece,
        page: usize,
    ) -> io::Result<usize> {
        let fd = types::Fd(file.as_raw_fd());
        let read = opcode::ReadFixed::new(fd, piece.at(page), LENGTH, 0).offset(offset(id));
        self.submit(&read.build())
    }

    pub(crate) fn unpin(&self) -> io::Result<()> {
        self.0.submitter().unregister_buffers()
    }

    fn submit(&mut self, entry: &squeue::Entry) -> io::Result<usize> {
        // SAFETY: the buffer is the owner's to be written, and this waits for the end of the read.
        unsafe { self.0.submission().push(entry) }.map_err(io::Error::other)?;
        let completed = loop {
            // What was submitted before an interruption is not submitted again.
            match self.0.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            if let Some(completed) = self.0.completion().next() {
                break completed;
            }
        };
        match completed.result() {
            bytes @ 0.. => Ok(usize::try_from(bytes).unwrap_or(0)),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}

fn offset(id: u64) -> u64 {
    id * PAGE_SIZE as u64
}
