//! Messages from an agent to the daemon.

use super::format::{Full, Header, MessageBuffer, WireError};
use super::format::{array, arrays, bare, check_ascending, check_total, encode, split};
use super::label::Label;
use super::ledger::Birth;
use super::version::{Version, Versions};
use crate::order::{
    MAX_RUNS, MOST_VISITED, OrderId, Outcome, OutcomeRun, ReportRef, VISIT_PAGES, VisitRun,
    VisitState,
};
use crate::page::{ARENA_SLOT_LIMIT, Digest, PageRun};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first message of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Process id of the app (an agent has one of its own).
    pub pid: u32,
    /// Process id that the app was forked from while its pages were merged; 0 if none.
    pub parent: u32,
    /// The fork that the app came from.
    pub birth: Birth,
    /// The versions of the protocol that the agent speaks.
    pub versions: Versions,
    /// The domain that it asks to be in. Only an agent that speaks no version before 7 may ask: an older daemon would
    /// put it in with its user's other processes.
    pub label: Label,
}

/// An arena that a process still has mapped, whoever made it.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HeldArena {
    /// Its inode: names a memfd for as long as the host runs.
    pub inode: u64,
    /// What the agent calls it, to be repeated in the answer.
    pub tag: u32,
    /// Nothing.
    pub padding: u32,
}

/// The most arenas whose descriptors one message carries.
pub const HANDED_IN: usize = 32;

/// A message from an agent to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToDaemon<'a> {
    /// Opens an agent's connection.
    Hello(Hello),
    /// Opens a connection that only asks for the figures of the calling process.
    Query,
    /// Opens a connection that only asks where the daemon's files are mounted.
    Locate,
    /// Opens a connection that only asks for the figures of processes: of all for root and the daemon's own user, of the
    /// asking user's for others. Since version 5.
    Processes,
    /// Opens a connection that only has everything scanned once, now and without a pause; answered when that is over. For
    /// root and the daemon's own user. Since version 5.
    Scan,
    /// The pages may be merged from now on.
    Register {
        /// The pages.
        range: PageRun,
    },
    /// The pages are not ours any more; what was merged there is already private again or unmapped.
    Unregister {
        /// The pages.
        range: PageRun,
    },
    /// Whether all memory of the process is to be merged (`PR_SET_MEMORY_MERGE`); without a word it is not.
    Mode {
        /// It is.
        merges_any: bool,
    },
    /// The process has these arenas mapped: what is it to call them? Carries no descriptor, or one for each of them in the
    /// same order, of [`HANDED_IN`] arenas at most. Answered by [`ToAgent::Named`](super::ToAgent::Named) for those that
    /// the daemon knows or takes over, now or later. Since version 5.
    Holds {
        /// The arenas.
        arenas: &'a [HeldArena],
    },
    /// All has been said that was registered when the connection began.
    AllSaid,
    /// The report on an order.
    Report {
        /// The order.
        order: OrderId,
        /// The report.
        report: ReportRef<'a>,
    },
}

const HELLO: u16 = 1;
const QUERY: u16 = 2;
const REGISTER: u16 = 3;
const UNREGISTER: u16 = 4;
const VISITED: u16 = 5;
const DONE: u16 = 6;
const UNMERGED: u16 = 7;
const LOCATE: u16 = 8;
const COUNTED: u16 = 9;
const ALL_SAID: u16 = 10;
const MODE: u16 = 11;
const HOLDS: u16 = 12;
const PROCESSES: u16 = 13;
const SCAN: u16 = 14;
const SINCE_FIVE: Version = Version(5);
const NONE: &[u8] = &[];

impl<'a> ToDaemon<'a> {
    /// Writes the message; returns its length in bytes.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn encode(&self, buffer: &mut MessageBuffer) -> Result<usize, Full> {
        match *self {
            Self::Hello(Hello {
                pid,
                parent,
                birth,
                versions,
                label,
            }) => {
                let birth = u64::from(birth.ledger) << 32 | u64::from(birth.number);
                // A daemon that knows nothing of ranges takes the version of the message for the only one.
                let header = Header::new(HELLO)
                    .of_version(versions.oldest)
                    .order(OrderId(versions.newest.0.into()))
                    .scalars([pid.into(), parent.into(), birth]);
                encode(buffer, header, label.as_bytes(), NONE)
            }
            Self::Query => encode(buffer, Header::new(QUERY), NONE, NONE),
            Self::Locate => encode(buffer, Header::new(LOCATE), NONE, NONE),
            Self::Processes => encode(buffer, Header::new(PROCESSES), NONE, NONE),
            Self::Scan => encode(buffer, Header::new(SCAN), NONE, NONE),
            Self::AllSaid => encode(buffer, Header::new(ALL_SAID), NONE, NONE),
            Self::Mode { merges_any } => {
                let header = Header::new(MODE).scalars([merges_any.into(), 0, 0]);
                encode(buffer, header, NONE, NONE)
            }
            Self::Holds { arenas } => encode(buffer, Header::new(HOLDS), arenas, NONE),
            Self::Register { range } => {
                let header = Header::new(REGISTER).scalars([range.start, range.len, 0]);
                encode(buffer, header, NONE, NONE)
            }
            Self::Unregister { range } => {
                let header = Header::new(UNREGISTER).scalars([range.start, range.len, 0]);
                encode(buffer, header, NONE, NONE)
            }
            Self::Report { order, report } => match report {
                ReportRef::Visited {
                    end,
                    zero_pages,
                    runs,
                    digests,
                } => {
                    let header = Header::new(VISITED)
                        .order(order)
                        .scalars([end, zero_pages, 0]);
                    encode(buffer, header, runs, digests)
                }
                ReportRef::Done { outcomes } => {
                    encode(buffer, Header::new(DONE).order(order), outcomes, NONE)
                }
                ReportRef::Unmerged { end } => {
                    let header = Header::new(UNMERGED).order(order).scalars([end, 0, 0]);
                    encode(buffer, header, NONE, NONE)
                }
                ReportRef::Counted { zero_pages } => {
                    let scalars = [zero_pages, 0, 0];
                    let header = Header::new(COUNTED).order(order).scalars(scalars);
                    encode(buffer, header, NONE, NONE)
                }
            },
        }
    }

    /// Reads and checks a message that begins at the start of a [`MessageBuffer`].
    ///
    /// # Errors
    /// When anything in it breaks the protocol.
    pub fn decode(message: &'a [u8]) -> Result<Self, WireError> {
        let (header, body) = split(message)?;
        let order = OrderId(header.order);
        match header.kind {
            HELLO => {}
            HOLDS | PROCESSES | SCAN => header.check_version(SINCE_FIVE)?,
            _ => header.check_version(Versions::SPOKEN.oldest)?,
        }
        match header.kind {
            HELLO => {
                let [pid, parent, birth] = header.scalars;
                let number = |n: u64| u32::try_from(n).map_err(|_| WireError::Number(u32::MAX));
                Ok(Self::Hello(Hello {
                    pid: number(pid)?,
                    parent: number(parent)?,
                    birth: Birth {
                        ledger: number(birth >> 32)?,
                        number: number(birth & u64::from(u32::MAX))?,
                    },
                    versions: Versions {
                        oldest: header.version(),
                        newest: newest(header)?,
                    },
                    label: label(header, body)?,
                }))
            }
            QUERY => bare(header, body).map(|()| Self::Query),
            LOCATE => bare(header, body).map(|()| Self::Locate),
            PROCESSES => bare(header, body).map(|()| Self::Processes),
            SCAN => bare(header, body).map(|()| Self::Scan),
            ALL_SAID => bare(header, body).map(|()| Self::AllSaid),
            HOLDS => array::<HeldArena>(header, body).map(|arenas| Self::Holds { arenas }),
            REGISTER => {
                bare(header, body)?;
                Ok(Self::Register {
                    range: header.run()?,
                })
            }
            UNREGISTER => {
                bare(header, body)?;
                Ok(Self::Unregister {
                    range: header.run()?,
                })
            }
            VISITED => {
                let most = (MAX_RUNS, VISIT_PAGES as usize);
                let (runs, digests) = arrays::<VisitRun, Digest>(header, body, most)?;
                check_visit(header.version(), runs, digests)?;
                let [end, zero_pages, _] = header.scalars;
                let report = ReportRef::Visited {
                    end,
                    zero_pages,
                    runs,
                    digests,
                };
                Ok(Self::Report { order, report })
            }
            DONE => {
                let outcomes = array::<OutcomeRun>(header, body)?;
                check_total(outcomes.iter().map(OutcomeRun::pages), usize::MAX)?;
                for run in outcomes {
                    Outcome::from_number(run.outcome).ok_or(WireError::Number(run.outcome))?;
                }
                Ok(Self::Report {
                    order,
                    report: ReportRef::Done { outcomes },
                })
            }
            UNMERGED => {
                bare(header, body)?;
                Ok(Self::Report {
                    order,
                    report: ReportRef::Unmerged {
                        end: header.scalars[0],
                    },
                })
            }
            MODE => {
                bare(header, body)?;
                match header.scalars[0] {
                    0 => Ok(Self::Mode { merges_any: false }),
                    1 => Ok(Self::Mode { merges_any: true }),
                    _ => Err(WireError::Number(u32::MAX)),
                }
            }
            COUNTED => {
                bare(header, body)?;
                Ok(Self::Report {
                    order,
                    report: ReportRef::Counted {
                        zero_pages: header.scalars[0],
                    },
                })
            }
            kind => Err(WireError::Kind(kind)),
        }
    }
}

/// An agent that knows nothing of ranges speaks one version.
fn newest(header: &Header) -> Result<Version, WireError> {
    match u16::try_from(header.order) {
        Ok(0) => Ok(header.version()),
        Ok(newest) => Ok(Version(newest)),
        Err(_) => Err(WireError::Version(u16::MAX)),
    }
}

/// Older agents have none.
fn label(header: &Header, body: &[u8]) -> Result<Label, WireError> {
    if !header.version().knows_labels() {
        return bare(header, body).map(|()| Label::default());
    }
    let (label, _) = arrays::<u8, u8>(header, body, (Label::LONGEST, 0))?;
    Label::from_bytes(label).ok_or(WireError::Label)
}

fn check_visit(version: Version, runs: &[VisitRun], digests: &[Digest]) -> Result<(), WireError> {
    check_ascending(runs.iter().map(VisitRun::pages))?;
    let (mut calm, mut counted) = (0, 0);
    for run in runs {
        let state = run.found().ok_or(WireError::Number(run.state))?;
        if state == VisitState::Unchanged && !version.sums_up() {
            return Err(WireError::Number(run.state));
        }
        if state == VisitState::Calm {
            calm += u64::from(run.len);
        }
        counted += run.counted();
        if run.counted() > u64::from(run.len) {
            return Err(WireError::Range);
        }
        if u64::from(run.slot.index) + u64::from(run.len) > u64::from(ARENA_SLOT_LIMIT)
            && state == VisitState::Merged
        {
            return Err(WireError::Range);
        }
    }
    let most = if version.sums_up() {
        MOST_VISITED
    } else {
        VISIT_PAGES
    };
    if calm != digests.len() as u64 || counted > u64::from(most) {
        return Err(WireError::Length);
    }
    Ok(())
}
