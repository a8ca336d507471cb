//! Messages from the daemon to an agent.

use super::format::{Full, Header, MessageBuffer, WireError};
use super::format::{array, arrays, bare, check_ascending, check_total, encode, split};
use super::version::{Version, Versions};
use crate::digest::Salt;
use crate::order::{
    DONATION_PAGES, MAP_PAGES, MOST_VISITED, MapRun, OrderId, OrderRef, VISIT_PAGES,
};
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

/// What the daemon calls an arena that an agent holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NamedArena {
    /// What the agent calls it.
    pub tag: u32,
    /// What the daemon does.
    pub arena: ArenaId,
}

/// Outcomes there are.
pub const OUTCOMES: usize = 12;

/// What merging came to in one process, and why not to more.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ProcessFigures {
    /// Its process id, as the daemon sees it.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Number of its domain: pages merge within one only.
    pub domain: u64,
    /// Mergeable pages, present or not.
    pub registered: u64,
    /// Pages that the engine keeps a record of.
    pub rmap_items: u64,
    /// Pages mapped to a merged page.
    pub merged: u64,
    /// Zero pages placed by the engine.
    pub zero: u64,
    /// Pages that wait for a twin.
    pub unshared: u64,
    /// Pages that would have merged in the last full scan, had it not been a dry run.
    pub would_merge: u64,
    /// As in [`Figures`].
    pub profit: i64,
    /// How often a page was not merged, ever, by [`Outcome`](crate::order::Outcome) as number.
    pub reasons: [u64; OUTCOMES],
}

impl ProcessFigures {
    /// Pages that are new, or change too often.
    #[must_use]
    pub fn volatile(&self) -> u64 {
        self.rmap_items.saturating_sub(self.merged + self.unshared)
    }
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
    /// Daemon and agent speak no version of the protocol in common.
    Version = 4,
    /// The policy keeps the process out. Since version 7.
    Policy = 5,
    /// The policy does not let the process have its label. Since version 7.
    Label = 6,
    /// Its user has registered too many separate regions. The one reason that may come later than as the first answer.
    /// Since version 7.
    Regions = 7,
}

impl RefusalReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::WrongPid,
        Self::TooMany,
        Self::Stopping,
        Self::Version,
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

    /// The reason that a peer of this version is told: those before version 7 do not know the later ones, and would
    /// take the refusal for a broken message.
    #[must_use]
    pub fn told_to(self, version: Version) -> Self {
        match self {
            Self::Policy | Self::Label | Self::Regions if !version.knows_labels() => Self::TooMany,
            _ => self,
        }
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
    /// The daemon has these arenas. Since version 5.
    Named {
        /// Their names.
        names: &'a [NamedArena],
    },
    /// An arena that the agent has mapped and has no descriptor of, to be handed in to a daemon that comes after this one.
    /// Carries the descriptor, read-only. Since version 5.
    Keep {
        /// The arena.
        arena: ArenaId,
    },
    /// The daemon has let these arenas go: their names mean nothing any more. Since version 5.
    LetGo {
        /// The arenas.
        arenas: &'a [ArenaId],
    },
    /// Figures of processes, in several messages; an empty one is the last. Since version 5.
    Processes {
        /// Some of them.
        list: &'a [ProcessFigures],
    },
    /// The full scan that was asked for is over. Since version 5.
    Scanned {
        /// Full scans since the start.
        full_scans: u64,
    },
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
const NAMED: u16 = 13;
const KEEP: u16 = 14;
const LET_GO: u16 = 15;
const PROCESSES: u16 = 16;
const SCANNED: u16 = 17;
const SINCE_FIVE: Version = Version(5);
/// The bit of a visit's limit that asks for NUMA nodes.
const SAY_NODES: u32 = 32;
/// The one that allows what is unchanged to be summed up.
const BE_BRIEF: u32 = 33;
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
            Self::Named { names } => encode(buffer, Header::new(NAMED), names, NONE),
            Self::Keep { arena } => {
                let header = Header::new(KEEP).scalars([arena.0.into(), 0, 0]);
                encode(buffer, header, NONE, NONE)
            }
            Self::Processes { list } => encode(buffer, Header::new(PROCESSES), list, NONE),
            Self::Scanned { full_scans } => {
                let header = Header::new(SCANNED).scalars([full_scans, 0, 0]);
                encode(buffer, header, NONE, NONE)
            }
            Self::LetGo { arenas } => encode(buffer, Header::new(LET_GO), arenas, NONE),
            Self::Order { id, order } => {
                let header = |kind| Header::new(kind).order(id);
                match order {
                    OrderRef::Visit {
                        range,
                        limit,
                        skip,
                        nodes,
                        brief,
                    } => {
                        let how = u64::from(limit)
                            | u64::from(nodes) << SAY_NODES
                            | u64::from(brief) << BE_BRIEF;
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
        match header.kind {
            REFUSED => {}
            NAMED | KEEP | LET_GO | PROCESSES | SCANNED => header.check_version(SINCE_FIVE)?,
            _ => header.check_version(Versions::SPOKEN.oldest)?,
        }
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
            NAMED => return array::<NamedArena>(header, body).map(|names| Self::Named { names }),
            KEEP => {
                bare(header, body)?;
                let arena = arena(header)?;
                return Ok(Self::Keep { arena });
            }
            LET_GO => return array::<ArenaId>(header, body).map(|arenas| Self::LetGo { arenas }),
            PROCESSES => {
                let list = array::<ProcessFigures>(header, body);
                return list.map(|list| Self::Processes { list });
            }
            SCANNED => {
                bare(header, body)?;
                let [full_scans, ..] = header.scalars;
                return Ok(Self::Scanned { full_scans });
            }
            VISIT => {
                let skip = array::<PageRun>(header, body)?;
                check_ascending(skip.iter().copied())?;
                let how = header.scalars[2];
                let (bits, most) = if header.version().sums_up() {
                    (1 << SAY_NODES | 1 << BE_BRIEF, MOST_VISITED)
                } else {
                    (1 << SAY_NODES, VISIT_PAGES)
                };
                let limit = number(how & !bits)?;
                if limit == 0 || limit > most {
                    return Err(WireError::Number(limit));
                }
                OrderRef::Visit {
                    range: header.run()?,
                    limit,
                    skip,
                    nodes: how >> SAY_NODES & 1 == 1,
                    brief: how >> BE_BRIEF & 1 == 1,
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
            Self::Keep { .. }
            | Self::Order {
                order: OrderRef::Map { .. } | OrderRef::Remap { .. },
                ..
            } => 1,
            Self::Refused(_)
            | Self::Figures(_)
            | Self::Mount(_)
            | Self::Named { .. }
            | Self::LetGo { .. }
            | Self::Processes { .. }
            | Self::Scanned { .. }
            | Self::Order { .. } => 0,
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
