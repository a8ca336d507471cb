//! The messages between daemon and agent, as bytes.
//!
//! One message is one packet of a `SOCK_SEQPACKET` Unix socket: a fixed header, then up to two arrays of fixed-size
//! elements whose counts the header states. Both sides decode without copying and without the heap, and believe
//! nothing: every length, number and range is checked here, before anybody acts on it. Descriptors travel beside the
//! bytes (`SCM_RIGHTS`); which message may carry how many is written at its variant.

mod format;
mod label;
mod ledger;
mod to_agent;
mod to_daemon;
mod version;

pub use format::{Full, MAX_MESSAGE, MessageBuffer, WireError};
pub use label::Label;
pub use ledger::{BUFFER_PAGES, Birth, CHILDREN, GONE, LEDGER_OFFSET, Ledger};
pub use to_agent::{
    Figures, MountDevice, NamedArena, OUTCOMES, ProcessFigures, RefusalReason, ToAgent,
};
pub use to_daemon::{HANDED_IN, HeldArena, Hello, ToDaemon};
pub use version::{Version, Versions};
