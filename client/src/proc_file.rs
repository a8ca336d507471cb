//! Reading files of the kernel's without the heap, for the agent.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use std::ffi::CStr;
use std::fmt::{Arguments, Write};

/// Opens a file below `dir` for reading.
pub(crate) fn open_at(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Option<OwnedFd> {
    openat(
        dir,
        path,
        flags | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

/// The number in the line that begins with `name`.
pub(crate) fn field(text: &[u8], name: &[u8], radix: u64) -> Option<u64> {
    let line = text
        .split(|byte| *byte == b'\n')
        .find(|line| line.starts_with(name))?;
    let value = line.get(name.len()..)?.trim_ascii();
    number(value.split(|byte| *byte == b' ').next()?, radix)
}

/// The number that these digits are, all of them.
pub(crate) fn number(digits: &[u8], radix: u64) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let value = digits.iter().try_fold(0_u64, |value, byte| {
        value.checked_mul(radix)?.checked_add(digit(byte)?)
    })?;
    (!digits.is_empty()).then_some(value)
}

/// A path in a buffer of fixed size.
#[derive(Debug)]
pub(crate) struct Path<const SIZE: usize> {
    bytes: [u8; SIZE],
    len: usize,
}

impl<const SIZE: usize> Path<SIZE> {
    /// The path with this text, if it fits.
    pub(crate) fn new(text: Arguments<'_>) -> Option<Self> {
        let mut path = Self {
            bytes: [0; SIZE],
            len: 0,
        };
        path.write_fmt(text).ok()?;
        Some(path)
    }

    pub(crate) fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

impl<const SIZE: usize> Write for Path<SIZE> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
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
