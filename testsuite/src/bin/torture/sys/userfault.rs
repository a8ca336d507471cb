//! An app's own userfaultfd.

use super::memory::Piece;
use linux_raw_sys::general as raw;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use testsuite::content::PAGE_SIZE;

// The numbers of include/uapi/linux/userfaultfd.h.
const API: libc::c_ulong = 0xC018_AA3F;
const REGISTER: libc::c_ulong = 0xC020_AA00;
const UNREGISTER: libc::c_ulong = 0x8010_AA01;
const COPY: libc::c_ulong = 0xC028_AA03;
const WRITE_PROTECT: libc::c_ulong = 0xC018_AA06;

/// What it waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum For {
    Missing,
    Writes,
}

#[derive(Debug)]
pub(crate) struct Userfault(OwnedFd);

impl Userfault {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: makes a descriptor and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: made above, and nobody else has it.
        let new = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let mut api = raw::uffdio_api {
            api: raw::UFFD_API.into(),
            features: raw::UFFD_FEATURE_THREAD_ID.into(),
            ioctls: 0,
        };
        new.call(API, &mut api)?;
        Ok(new)
    }

    fn call<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        let pointer = std::ptr::from_mut(argument);
        // SAFETY: each request above comes with the structure that it wants.
        super::done(unsafe { libc::ioctl(self.0.as_raw_fd(), request, pointer) })
    }

    pub(crate) fn register(&self, piece: &Piece, run: &Range<usize>, what: For) -> io::Result<()> {
        let mode = match what {
            For::Missing => raw::UFFDIO_REGISTER_MODE_MISSING,
            For::Writes => raw::UFFDIO_REGISTER_MODE_WP,
        };
        let mut argument = raw::uffdio_register {
            range: range(piece, run),
            mode: mode.into(),
            ioctls: 0,
        };
        self.call(REGISTER, &mut argument)
    }

    pub(crate) fn unregister(&self, piece: &Piece, run: &Range<usize>) -> io::Result<()> {
        self.call(UNREGISTER, &mut range(piece, run))
    }

    /// Fills an absent page.
    pub(crate) fn fill(&self, piece: &Piece, page: usize, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(bytes.len(), PAGE_SIZE);
        loop {
            let mut argument = raw::uffdio_copy {
                dst: piece.address(page) as u64,
                src: bytes.as_ptr().expose_provenance() as u64,
                len: PAGE_SIZE as u64,
                mode: 0,
                copy: 0,
            };
            match self.call(COPY, &mut argument) {
                // The kernel's word for a mapping that is being changed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result,
            }
        }
    }

    pub(crate) fn protect(&self, piece: &Piece, run: &Range<usize>, on: bool) -> io::Result<()> {
        loop {
            let mut argument = raw::uffdio_writeprotect {
                range: range(piece, run),
                mode: u64::from(on),
            };
            match self.call(WRITE_PROTECT, &mut argument) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result,
            }
        }
    }

    /// Waits until somebody faults.
    pub(crate) fn wait(&self) -> io::Result<Fault> {
        loop {
            let mut poll = libc::pollfd {
                fd: self.0.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one structure, borrowed for the call.
            let ready = unsafe { libc::poll(&raw mut poll, 1, 1000) };
            if ready < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            let mut message = [0; size_of::<raw::uffd_msg>()];
            // SAFETY: the buffer is as long as said.
            let got = super::counted(unsafe {
                libc::read(
                    self.0.as_raw_fd(),
                    message.as_mut_ptr().cast(),
                    message.len(),
                )
            });
            match got {
                Ok(_) => return Ok(Fault::of(&message)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Somebody waits for a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) address: u64,
    /// Whose access it is.
    thread: u32,
}

impl Fault {
    /// `msg.arg.pagefault`.
    fn of(message: &[u8; size_of::<raw::uffd_msg>()]) -> Self {
        let (mut address, mut thread) = ([0; 8], [0; 4]);
        address.copy_from_slice(&message[16..24]);
        thread.copy_from_slice(&message[24..28]);
        Self {
            address: u64::from_ne_bytes(address),
            thread: u32::from_ne_bytes(thread),
        }
    }

    /// The name of the thread, and what it does in the kernel.
    pub(crate) fn culprit(&self) -> String {
        let of = |file: &str| {
            let path = format!("/proc/{}/{file}", self.thread);
            std::fs::read_to_string(path).unwrap_or_default()
        };
        format!("{} {}{}", self.thread, of("comm"), of("stack"))
    }
}

fn range(piece: &Piece, run: &Range<usize>) -> raw::uffdio_range {
    raw::uffdio_range {
        start: piece.address(run.start) as u64,
        len: (run.len() * PAGE_SIZE) as u64,
    }
}
