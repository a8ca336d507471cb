//! How often what happened, for the app and for those who ask why it does not merge more.

use super::Space;
use ksm_engine::order::Outcome;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zerocopy::FromZeros;

/// Outcomes there are.
pub const OUTCOMES: usize = 12;

/// Running counts. All-zero bytes are a new one.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Counters {
    outcomes: [AtomicU64; OUTCOMES],
    holds: AtomicU64,
    longest_hold_ns: AtomicU64,
}

/// What the agent of this process did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Pages by [`Outcome`], of all orders to map, zero, remap or donate.
    pub outcomes: [u64; OUTCOMES],
    /// Runs of pages that were taken from the app for a moment.
    pub holds: u64,
    /// The longest of these moments.
    pub longest_hold: Duration,
}

impl Figures {
    /// Pages with this outcome.
    #[must_use]
    pub fn pages(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome as usize).copied().unwrap_or(0)
    }
}

impl Counters {
    /// Counts pages of an order.
    pub fn outcome(&self, outcome: Outcome, pages: u64) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(pages, Relaxed);
        }
    }

    /// Counts a hold that took this long.
    pub fn hold(&self, time: Duration) {
        self.holds.fetch_add(1, Relaxed);
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.longest_hold_ns.fetch_max(ns, Relaxed);
    }
}

impl Space {
    /// What the agent did so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let counters = &self.counters;
        Figures {
            outcomes: std::array::from_fn(|i| {
                counters
                    .outcomes
                    .get(i)
                    .map_or(0, |count| count.load(Relaxed))
            }),
            holds: counters.holds.load(Relaxed),
            longest_hold: Duration::from_nanos(counters.longest_hold_ns.load(Relaxed)),
        }
    }
}
