//! Messages from the daemon to an agent.

use super::format::{Full, Header, MessageBuffer, WireError};
use super::format::{array, arrays, bare, check_ascending, check_total, encode, split};
use crate::digest::Salt;
use crate::order::{DONATION_PAGES, MAP_PAGES, MapRun, OrderId, OrderRef, VISIT_PAGES};
use crate::page::{ARENA_SLOT_LIMIT, ArenaId, PageRun};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Figures of one process, as `/proc/PID/ksm_stat` has them.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Figures {
    /// Pages of the process that the engine keeps a record of.
    pub rmap_items: u64,
    /// Zero pages placed by the engine that are still in place.
    pub zero_pages: u64,
    /// Pages mapped to a merged page, the first sharer included.
    pub merging_pages: u64,
    /// Bytes saved less bytes of bookkeeping: `(merging + zero) * 4096 - rmap_items * 64`.
    pub profit: i64,
}

/// Device number of the daemon's mount: whoever sees the mount finds it by that, at whatever path. 0:0 if there is none. And who
/// has asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Process id of whoever asked, as the daemon numbers it; 0 if nobody did.
    pub asker: u32,
}

/// Why the daemon does not take a connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The process id in the greeting is not the peer's.
    WrongPid = 1,
    /// Too many connections of this user.
    TooMany = 2,
    /// The daemon is stopping.
    Stopping = 3,
    /// The policy keeps the process out.
    Policy = 4,
    /// The policy does not let the process have its label.
    Label = 5,
    /// Its user has registered too many separate regions.
    Regions = 6,
}

impl RefusalReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::WrongPid,
        Self::TooMany,
        Self::Stopping,
        Self::Policy,
        Self::Label,
        Self::Regions,
    ];

    /// The reason with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| *reason as u32 == number)
    }
}

/// A message from the daemon to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToAgent<'a> {
    /// Answers the greeting. Carries two descriptors: the donation buffer (a memfd of
    /// [`DONATION_PAGES`] pages, sealed against growing and shrinking), and `/dev/userfaultfd`, which is missing if
    /// the daemon may not open it.
    Welcome {
        /// Salt of the peer's domain.
        salt: Salt,
    },
    /// Answers the greeting; the daemon hangs up after it.
    Refused(RefusalReason),
    /// Answers a query.
    Figures(Figures),
    /// Answers the question where the files are.
    Mount(MountDevice),
    /// An order. `Map` and `Remap` carry one descriptor: the arena, read-only.
    Order {
        /// Its number, to be repeated in the report.
        id: OrderId,
        /// What is to be done.
        order: OrderRef<'a>,
    },
}

const WELCOME: u16 = 1;
const REFUSED: u16 = 2;
const FIGURES: u16 = 3;
const VISIT: u16 = 4;
const DONATE: u16 = 5;
const MAP: u16 = 6;
const ZERO: u16 = 7;
const UNMERGE: u16 = 8;
const REMAP: u16 = 9;
const MOUNT: u16 = 10;
const COUNT: u16 = 11;
const SPLIT: u16 = 12;
/// The bit of a visit's limit that asks for NUMA nodes.
const SAY_NODES: u32 = 32;
const NONE: &[u8] = &[];

impl<'a> ToAgent<'a> {
    /// Writes the message; returns its length in bytes.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, buffer: &mut MessageBuffer) -> Result<usize, Full> {
        match *self {
            Self::Welcome { salt } => encode(buffer, Header::new(WELCOME), &salt.0, NONE),
            Self::Refused(reason) => encode(
                buffer,
                Header::new(REFUSED).scalars([reason as u64, 0, 0]),
                NONE,
                NONE,
            ),
            Self::Figures(figures) => encode(buffer, Header::new(FIGURES), &[figures], NONE),
            Self::Mount(MountDevice {
                major,
                minor,
                asker,
            }) => {
                let header = Header::new(MOUNT).scalars([major.into(), minor.into(), asker.into()]);
                encode(buffer, header, NONE, NONE)
            }
            Self::Order { id, order } => {
                let header = |kind| Header::new(kind).order(id);
                match order {
                    OrderRef::Visit {
                        range,
                        limit,
                        skip,
                        nodes,
                    } => {
                        let how = u64::from(limit) | u64::from(nodes) << SAY_NODES;
                        let scalars = [range.start, range.len, how];
                        encode(buffer, header(VISIT).scalars(scalars), skip, NONE)
                    }
                    OrderRef::Donate { runs } => encode(buffer, header(DONATE), runs, NONE),
                    OrderRef::Map { arena, runs } => encode(
                        buffer,
                        header(MAP).scalars([arena.0.into(), 0, 0]),
                        runs,
                        NONE,
                    ),
                    OrderRef::Zero { runs } => encode(buffer, header(ZERO), runs, NONE),
                    OrderRef::Split { runs } => encode(buffer, header(SPLIT), runs, NONE),
                    OrderRef::Unmerge { range } => {
                        let scalars = [range.start, range.len, 0];
                        encode(buffer, header(UNMERGE).scalars(scalars), NONE, NONE)
                    }
                    OrderRef::Count => encode(buffer, header(COUNT), NONE, NONE),
                    OrderRef::Remap { arena, runs } => encode(
                        buffer,
                        header(REMAP).scalars([arena.0.into(), 0, 0]),
                        runs,
                        NONE,
                    ),
                }
            }
        }
    }

    /// Reads and checks a message that begins at the start of a [`MessageBuffer`].
    ///
    /// # Errors
    /// When anything in it breaks the protocol.
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let (header, body) = split(message)?;
        let id = OrderId(header.order);
        let order = match header.kind {
            WELCOME => {
                let (salt, _) = arrays::<u8, u8>(header, body, (32, 0))?;
                let salt = Salt(salt.try_into().map_err(|_| WireError::Length)?);
                return Ok(Self::Welcome { salt });
            }
            REFUSED => {
                bare(header, body)?;
                return refusal(header).map(Self::Refused);
            }
            FIGURES => {
                let (figures, _) = arrays::<Figures, u8>(header, body, (1, 0))?;
                return figures
                    .first()
                    .map(|f| Self::Figures(*f))
                    .ok_or(WireError::Length);
            }
            MOUNT => {
                bare(header, body)?;
                let [major, minor, asker] = header.scalars;
                return Ok(Self::Mount(MountDevice {
                    major: number(major)?,
                    minor: number(minor)?,
                    asker: number(asker)?,
                }));
            }
            VISIT => {
                let skip = array::<PageRun>(header, body)?;
                check_ascending(skip.iter().copied())?;
                let how = header.scalars[2];
                let limit = number(how & !(1 << SAY_NODES))?;
                if limit == 0 || limit > VISIT_PAGES {
                    return Err(WireError::Number(limit));
                }
                OrderRef::Visit {
                    range: header.run()?,
                    limit,
                    skip,
                    nodes: how >> SAY_NODES == 1,
                }
            }
            DONATE => {
                let runs = array::<PageRun>(header, body)?;
                check_total(runs.iter().copied(), DONATION_PAGES)?;
                OrderRef::Donate { runs }
            }
            MAP => OrderRef::Map {
                arena: arena(header)?,
                runs: map_runs(header, body)?,
            },
            ZERO => {
                let runs = array::<PageRun>(header, body)?;
                check_total(runs.iter().copied(), MAP_PAGES)?;
                OrderRef::Zero { runs }
            }
            SPLIT => {
                let runs = array::<PageRun>(header, body)?;
                check_total(runs.iter().copied(), MAP_PAGES)?;
                OrderRef::Split { runs }
            }
            UNMERGE => {
                bare(header, body)?;
                OrderRef::Unmerge {
                    range: header.run()?,
                }
            }
            COUNT => {
                bare(header, body)?;
                OrderRef::Count
            }
            REMAP => OrderRef::Remap {
                arena: arena(header)?,
                runs: map_runs(header, body)?,
            },
            kind => return Err(WireError::Kind(kind)),
        };
        Ok(Self::Order { id, order })
    }

    /// How many descriptors the message may carry.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Welcome { .. } => 2,
            Self::Order {
                order: OrderRef::Map { .. } | OrderRef::Remap { .. },
                ..
            } => 1,
            Self::Refused(_) | Self::Figures(_) | Self::Mount(_) | Self::Order { .. } => 0,
        }
    }
}

fn number(scalar: u64) -> Result<u32, WireError> {
    u32::try_from(scalar).map_err(|_| WireError::Number(u32::MAX))
}

fn arena(header: &Header) -> Result<ArenaId, WireError> {
    number(header.scalars[0]).map(ArenaId)
}

fn refusal(header: &Header) -> Result<RefusalReason, WireError> {
    let number = number(header.scalars[0])?;
    RefusalReason::from_number(number).ok_or(WireError::Number(number))
}

fn map_runs<'a>(header: &Header, body: &'a [u8]) -> Result<&'a [MapRun], WireError> {
    let runs = array::<MapRun>(header, body)?;
    check_ascending(runs.iter().map(MapRun::pages))?;
    check_total(runs.iter().map(MapRun::pages), MAP_PAGES)?;
    let fits =
        |run: &MapRun| u64::from(run.slot) + u64::from(run.len) <= u64::from(ARENA_SLOT_LIMIT);
    if runs.iter().all(fits) {
        Ok(runs)
    } else {
        Err(WireError::Range)
    }
}
