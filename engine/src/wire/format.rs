//! Header, limits and the checks that every message shares.

use super::version::{Version, Versions};
use crate::order::{MAX_RUNS, OrderId};
use crate::page::PageRun;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The longest message in bytes.
pub const MAX_MESSAGE: usize = 128 * 1024;
const MAGIC: u32 = u32::from_le_bytes(*b"ksm\x01");

/// A buffer that a message is received in, or encoded to: aligned for its elements.
#[repr(C, align(16))]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct MessageBuffer(pub [u8; MAX_MESSAGE]);

impl std::fmt::Debug for MessageBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MessageBuffer(..)")
    }
}

/// What can be wrong with a message. The peer that sent it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Shorter than its header, or not a message of ours.
    #[error("not a message of this protocol")]
    NotOurs,
    /// Another version of the protocol.
    #[error("protocol version {0}")]
    Version(u16),
    /// A kind that this direction does not have.
    #[error("unknown message kind {0}")]
    Kind(u16),
    /// Stated counts and real length differ, or a count is over its limit.
    #[error("message length does not fit its counts")]
    Length,
    /// A range is empty or outside user memory, or runs are not ascending and disjoint.
    #[error("bad page range")]
    Range,
    /// A label that cannot be one.
    #[error("bad label")]
    Label,
    /// An enumerated number without meaning.
    #[error("bad number {0} in message")]
    Number(u32),
}

/// The message does not fit the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message does not fit its buffer")]
pub struct Full;

/// Start of every message.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct Header {
    magic: u32,
    version: u16,
    pub(super) kind: u16,
    pub(super) order: u64,
    pub(super) scalars: [u64; 3],
    /// Elements of the first array.
    pub(super) first: u32,
    /// Elements of the second array.
    pub(super) second: u32,
}

impl Header {
    pub(super) fn new(kind: u16) -> Self {
        Self {
            magic: MAGIC,
            version: Versions::SPOKEN.newest.0,
            kind,
            ..Self::default()
        }
    }

    pub(super) fn order(mut self, id: OrderId) -> Self {
        self.order = id.0;
        self
    }

    pub(super) fn scalars(mut self, scalars: [u64; 3]) -> Self {
        self.scalars = scalars;
        self
    }

    /// Makes it a message of another version.
    pub(super) fn of_version(mut self, version: Version) -> Self {
        self.version = version.0;
        self
    }

    pub(super) fn version(&self) -> Version {
        Version(self.version)
    }

    /// Checks that the version is one that is spoken, and not older than `since`.
    pub(super) fn check_version(&self, since: Version) -> Result<(), WireError> {
        if !Versions::SPOKEN.contain(self.version()) {
            return Err(WireError::Version(self.version));
        }
        if self.version() < since {
            return Err(WireError::Kind(self.kind));
        }
        Ok(())
    }

    /// The run in the first two scalars, checked.
    pub(super) fn run(&self) -> Result<PageRun, WireError> {
        let run = PageRun {
            start: self.scalars[0],
            len: self.scalars[1],
        };
        if run.is_valid() {
            Ok(run)
        } else {
            Err(WireError::Range)
        }
    }
}

/// Writes a message; returns its length in bytes.
pub(super) fn encode<A, B>(
    buffer: &mut MessageBuffer,
    mut header: Header,
    first: &[A],
    second: &[B],
) -> Result<usize, Full>
where
    A: IntoBytes + Immutable,
    B: IntoBytes + Immutable,
{
    header.first = u32::try_from(first.len()).map_err(|_| Full)?;
    header.second = u32::try_from(second.len()).map_err(|_| Full)?;
    let mut at = 0;
    for part in [header.as_bytes(), first.as_bytes(), second.as_bytes()] {
        buffer
            .0
            .get_mut(at..at + part.len())
            .ok_or(Full)?
            .copy_from_slice(part);
        at += part.len();
    }
    Ok(at)
}

/// Splits a message into header and body, of whatever version. `message` must begin at the start of a [`MessageBuffer`].
pub(super) fn split(message: &[u8]) -> Result<(&Header, &[u8]), WireError> {
    let (header, body) = Header::ref_from_prefix(message).map_err(|_| WireError::NotOurs)?;
    if header.magic != MAGIC {
        return Err(WireError::NotOurs);
    }
    Ok((header, body))
}

/// The two arrays of a body, which must fill it exactly.
pub(super) fn arrays<'a, A, B>(
    header: &Header,
    body: &'a [u8],
    most: (usize, usize),
) -> Result<(&'a [A], &'a [B]), WireError>
where
    A: FromBytes + Immutable + KnownLayout,
    B: FromBytes + Immutable + KnownLayout,
{
    let (first, second) = (header.first as usize, header.second as usize);
    if first > most.0 || second > most.1 {
        return Err(WireError::Length);
    }
    let (a, rest) =
        <[A]>::ref_from_prefix_with_elems(body, first).map_err(|_| WireError::Length)?;
    let b = <[B]>::ref_from_bytes_with_elems(rest, second).map_err(|_| WireError::Length)?;
    Ok((a, b))
}

/// A body of one array.
pub(super) fn array<'a, A>(header: &Header, body: &'a [u8]) -> Result<&'a [A], WireError>
where
    A: FromBytes + Immutable + KnownLayout,
{
    Ok(arrays::<A, u8>(header, body, (MAX_RUNS, 0))?.0)
}

/// A message without body.
pub(super) fn bare(header: &Header, body: &[u8]) -> Result<(), WireError> {
    arrays::<u8, u8>(header, body, (0, 0)).map(|_| ())
}

/// Checks that runs are valid, ascending and disjoint.
pub(super) fn check_ascending(runs: impl Iterator<Item = PageRun>) -> Result<(), WireError> {
    let mut last_end = 0;
    for run in runs {
        if !run.is_valid() || run.start < last_end {
            return Err(WireError::Range);
        }
        last_end = run.end();
    }
    Ok(())
}

/// Checks that runs are valid and together not longer than `most` pages.
pub(super) fn check_total(
    runs: impl Iterator<Item = PageRun>,
    most: usize,
) -> Result<(), WireError> {
    let mut total = 0;
    for run in runs {
        if !run.is_valid() {
            return Err(WireError::Range);
        }
        total += run.len;
        if total > most as u64 {
            return Err(WireError::Range);
        }
    }
    Ok(())
}
