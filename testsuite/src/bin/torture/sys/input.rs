//! System calls that write into memory.

use super::counted;
use super::memory::Piece;
use std::io;
use std::os::fd::AsRawFd;
use testsuite::content::PAGE_SIZE;

fn offset(id: u64) -> i64 {
    i64::try_from(id * PAGE_SIZE as u64).unwrap_or(i64::MAX)
}

/// `pread(2)` of pattern `id` of a file into a page: threads and children share the descriptor.
pub(crate) fn pread(file: &impl AsRawFd, id: u64, piece: &Piece, page: usize) -> io::Result<usize> {
    let (fd, at) = (file.as_raw_fd(), piece.at(page).cast());
    // SAFETY: the page is the owner's to be written.
    counted(unsafe { libc::pread(fd, at, PAGE_SIZE, offset(id)) })
}

/// `preadv(2)` of the patterns from `first` on into pages that need not be neighbours.
pub(crate) fn readv(
    file: &impl AsRawFd,
    first: u64,
    piece: &Piece,
    pages: &[usize],
) -> io::Result<usize> {
    let vectors: Vec<libc::iovec> = pages
        .iter()
        .map(|page| libc::iovec {
            iov_base: piece.at(*page).cast(),
            iov_len: PAGE_SIZE,
        })
        .collect();
    let count = i32::try_from(vectors.len()).unwrap_or(0);
    // SAFETY: the pages are the owner's to be written, and the vectors live through the call.
    counted(unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), count, offset(first)) })
}

/// `recv(2)` of a whole page.
pub(crate) fn recv(socket: &impl AsRawFd, piece: &Piece, page: usize) -> io::Result<usize> {
    let mut done = 0;
    while done < PAGE_SIZE {
        let at = piece.at(page).wrapping_add(done);
        // SAFETY: the page is the owner's to be written, from `done` to its end.
        let got = counted(unsafe {
            libc::recv(
                socket.as_raw_fd(),
                at.cast(),
                PAGE_SIZE - done,
                libc::MSG_WAITALL,
            )
        });
        match got {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes to memory of another process, as debuggers do.
pub(crate) fn write_to(app: i32, address: usize, bytes: &[u8]) -> io::Result<usize> {
    let local = vector(bytes.as_ptr().cast_mut().cast(), bytes.len());
    let remote = vector(std::ptr::without_provenance_mut(address), bytes.len());
    // SAFETY: the local side is only read; the other address means nothing here.
    counted(unsafe { libc::process_vm_writev(app, &raw const local, 1, &raw const remote, 1, 0) })
}

/// Reads memory of another process.
pub(crate) fn read_from(app: i32, address: usize, bytes: &mut [u8]) -> io::Result<usize> {
    let local = vector(bytes.as_mut_ptr().cast(), bytes.len());
    let remote = vector(std::ptr::without_provenance_mut(address), bytes.len());
    // SAFETY: the local side is borrowed for writing; the other address means nothing here.
    counted(unsafe { libc::process_vm_readv(app, &raw const local, 1, &raw const remote, 1, 0) })
}

fn vector(base: *mut libc::c_void, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base,
        iov_len: len,
    }
}
