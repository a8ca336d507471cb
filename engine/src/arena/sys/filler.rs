//! Giving pages of an arena memory and bytes in one step.
//!
//! A page of a memfd that is touched for the first time is cleared before it is written; `UFFDIO_COPY` puts a new page
//! in its place with the bytes in it, many in one call, and says so where there is no memory. Nobody waits for faults of
//! this userfaultfd: the daemon touches a slot through the mapping only to fill it.

use crate::page::{PAGE_SIZE, PageBytes};
use linux_raw_sys::general as raw;
use memmap2::MmapMut;
use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::os::fd::OwnedFd;

const TYPE: u8 = 0xAA;
const API: Opcode = opcode::read_write::<raw::uffdio_api>(TYPE, 0x3F);
const REGISTER: Opcode = opcode::read_write::<raw::uffdio_register>(TYPE, 0);
const COPY: Opcode = opcode::read_write::<raw::uffdio_copy>(TYPE, 3);
/// `UFFD_USER_MODE_ONLY`: what needs no privilege. Only the copying is wanted.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

/// Fills absent pages of shared mappings.
#[derive(Debug)]
pub(in crate::arena) struct Filler(OwnedFd);

impl Filler {
    /// Makes one.
    ///
    /// # Errors
    /// Where the kernel has no userfaultfd, or none for us.
    pub(in crate::arena) fn new() -> Result<Self> {
        // SAFETY: the call makes a descriptor and touches no memory.
        let fd = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | USER_MODE_ONLY) }?;
        let mut api = raw::uffdio_api {
            api: raw::UFFD_API.into(),
            features: raw::UFFD_FEATURE_MISSING_SHMEM.into(),
            ioctls: 0,
        };
        update::<API, _>(&fd, &mut api)?;
        Ok(Self(fd))
    }

    /// Prepares a mapping. From then on its absent pages are to be touched by nobody but [`Self::fill`].
    ///
    /// # Errors
    /// Where the kernel cannot.
    pub(in crate::arena) fn register(&self, mapping: &MmapMut) -> Result<()> {
        let mut argument = raw::uffdio_register {
            range: raw::uffdio_range {
                start: mapping.as_ptr() as u64,
                len: mapping.len() as u64,
            },
            mode: raw::UFFDIO_REGISTER_MODE_MISSING.into(),
            ioctls: 0,
        };
        update::<REGISTER, _>(&self.0, &mut argument)
    }

    /// Fills absent pages of the mapping; returns how many, from the first one on.
    pub(in crate::arena) fn fill(
        &self,
        mapping: &mut MmapMut,
        first: usize,
        pages: &[PageBytes],
    ) -> usize {
        let Some(target) = mapping.get_mut(first * PAGE_SIZE..(first + pages.len()) * PAGE_SIZE)
        else {
            return 0;
        };
        let bytes = pages.as_flattened();
        let mut done = 0;
        while done < bytes.len() {
            let mut argument = raw::uffdio_copy {
                dst: target.as_mut_ptr() as u64 + done as u64,
                src: bytes.as_ptr() as u64 + done as u64,
                len: (bytes.len() - done) as u64,
                mode: 0,
                copy: 0,
            };
            let result = update::<COPY, _>(&self.0, &mut argument);
            let copied = usize::try_from(argument.copy).unwrap_or(0);
            done += copied;
            match result {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::INTR) if copied > 0 => {}
                Err(_) => break,
            }
        }
        done / PAGE_SIZE
    }
}

fn update<const CODE: Opcode, T>(fd: &OwnedFd, argument: &mut T) -> Result<()> {
    // SAFETY: every opcode of this file is built from the type of its argument.
    let call = unsafe { Updater::<CODE, T>::new(argument) };
    // SAFETY: the kernel reads and writes the argument, and fills absent pages of a mapping that the caller has for itself.
    unsafe { ioctl(fd, call) }
}
