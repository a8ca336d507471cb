//! Saying once, in the app's log, why nothing merges.
//!
//! Steward and agent cannot log: a logger takes the app's locks and writes to the app's descriptors. So it is said in
//! the next call of a thread of the app.

use crate::link_state::LinkState;
use std::sync::atomic::{AtomicU32, Ordering};

/// One bit for each kind of complaint that was uttered.
static UTTERED: AtomicU32 = AtomicU32::new(0);

/// Logs what is wrong, if it was not said before.
pub(crate) fn utter(state: LinkState) {
    let (bit, level) = match state {
        LinkState::Starting | LinkState::Connected => return,
        LinkState::NoDaemon(_) => (1, log::Level::Info),
        LinkState::Untrusted { .. } => (1 << 1, log::Level::Warn),
        LinkState::Refused(_) => (1 << 2, log::Level::Warn),
        LinkState::Protocol => (1 << 3, log::Level::Warn),
        LinkState::NoUserfaultfd(_) => (1 << 4, log::Level::Warn),
        LinkState::OldKernel => (1 << 5, log::Level::Warn),
        LinkState::Failed(_) => (1 << 6, log::Level::Warn),
    };
    if UTTERED.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        log::log!(level, "memory is not merged: {state}");
    }
}
