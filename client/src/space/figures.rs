//! How often what happened, for the app and for those who ask why it does not merge more.

use super::Space;
use ksm_engine::order::Outcome;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use zerocopy::FromZeros;

/// Outcomes there are.
pub const OUTCOMES: usize = 12;

/// Kinds of lengths of holds: four for each power of two of nanoseconds, up to 18 minutes.
const LENGTHS: usize = 160;

/// Running counts. All-zero bytes are a new one.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct Counters {
    outcomes: [AtomicU64; OUTCOMES],
    holds: [AtomicU64; LENGTHS],
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
    /// How many of them were how long.
    lengths: [u64; LENGTHS],
}

impl Figures {
    /// Pages with this outcome.
    #[must_use]
    pub fn pages(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome as usize).copied().unwrap_or(0)
    }

    /// The time within which at least this part of the holds ended, up to a fifth too long; zero if there were none.
    ///
    /// `part` is between 0 and 1.
    #[must_use]
    pub fn held_within(&self, part: f64) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let allowed = (1.0 - part) * self.holds as f64;
        let mut longer = self.holds;
        for (kind, count) in self.lengths.iter().enumerate() {
            longer = longer.saturating_sub(*count);
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let enough = longer as f64 <= allowed;
            if enough && self.holds > 0 {
                return end_of_kind(kind).min(self.longest_hold);
            }
        }
        self.longest_hold
    }
}

/// Which kind of length a time is of.
fn kind_of(ns: u64) -> usize {
    let power = (ns | 4).ilog2();
    let quarter = (ns >> (power - 2)) & 3;
    ((power - 2) as usize * 4 + quarter as usize).min(LENGTHS - 1)
}

/// The shortest time that is longer than those of a kind.
fn end_of_kind(kind: usize) -> Duration {
    let (power, quarter) = (kind / 4, kind as u64 % 4);
    Duration::from_nanos((5 + quarter) << power)
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
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.holds.get(kind_of(ns)) {
            count.fetch_add(1, Relaxed);
        }
        self.longest_hold_ns.fetch_max(ns, Relaxed);
    }
}

impl Space {
    /// What the agent did so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let counters = &self.counters;
        let lengths = read(&counters.holds);
        Figures {
            outcomes: read(&counters.outcomes),
            holds: lengths.iter().sum(),
            lengths,
            longest_hold: Duration::from_nanos(counters.longest_hold_ns.load(Relaxed)),
        }
    }
}

fn read<const N: usize>(counts: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|i| counts.get(i).map_or(0, |count| count.load(Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_a_kind_that_ends_after_it() {
        for ns in (0..4096).chain((12..40).map(|power| (1 << power) + 17)) {
            let kind = kind_of(ns);
            let end = end_of_kind(kind);
            assert!(Duration::from_nanos(ns) < end, "{ns} in {kind}");
            assert!(
                ns < 8 || end <= Duration::from_nanos(ns + ns / 4 + 1),
                "{ns}"
            );
        }
        assert_eq!(kind_of(u64::MAX), LENGTHS - 1);
    }

    #[test]
    fn the_part_asked_for_ended_within_that_time() {
        let counters = Counters::new_zeroed();
        for micros in 1..=1000 {
            counters.hold(Duration::from_micros(micros));
        }
        let lengths = read(&counters.holds);
        let figures = Figures {
            outcomes: [0; OUTCOMES],
            holds: lengths.iter().sum(),
            longest_hold: Duration::from_micros(1000),
            lengths,
        };
        assert_eq!(figures.holds, 1000);
        for (part, least) in [(0.5, 500), (0.9, 900), (0.999, 999), (1.0, 1000)] {
            let within = figures.held_within(part);
            assert!(within >= Duration::from_micros(least), "{part}: {within:?}");
            assert!(
                within <= Duration::from_micros(least * 5 / 4 + 1),
                "{part}: {within:?}"
            );
        }
    }
}
