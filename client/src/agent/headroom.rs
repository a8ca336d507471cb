//! How many more mappings we may take: `vm.max_map_count` is the app's, and its last quarter is never ours.
//!
//! Counting the mappings means reading them all, so between counts an estimate is kept: two more for each run that was
//! mapped into the middle of something.

use crate::sys::maps::{Maps, limit};
use rustix::io::Result;
use std::time::{Duration, Instant};

/// What one run can add: it splits a mapping in three.
pub const PER_RUN: usize = 2;
/// Runs below that are short, and leave an eighth of our maps to longer ones.
const SHORT: usize = 4;
/// Runs from that on are long, and may take them all; those between leave a sixteenth.
const LONG: usize = 16;
/// A count is relied on for this many times as long as it took: the app makes mappings too, but counting them is to
/// cost next to nothing.
const RELIANCE: u32 = 100;
/// And no longer than this, whatever kept us from counting.
const LONGEST_RELIANCE: Duration = Duration::from_millis(500);

/// The head-room of one process.
#[derive(Debug)]
pub struct Headroom {
    maps: Maps,
    limit: usize,
    estimate: usize,
    counted: Instant,
    /// How long the last count is relied on.
    good_for: Duration,
}

impl Headroom {
    /// Counts.
    ///
    /// # Errors
    /// When `/proc` does not say.
    pub fn new(maps: Maps) -> Result<Self> {
        Ok(Self {
            limit: limit()?,
            estimate: maps.count()?,
            maps,
            counted: Instant::now(),
            good_for: Duration::ZERO,
        })
    }

    /// The list of mappings.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    fn ours(&self) -> usize {
        self.limit - self.limit / 4
    }

    /// Looks again where that is due. To be called while nothing is held.
    pub fn refresh(&mut self) {
        // An estimate that says no may be too high, for it knows nothing of mappings that went.
        let good_for = match self.allows_run(1) {
            true => self.good_for,
            false => self.good_for / 10,
        };
        if self.counted.elapsed() < good_for {
            return;
        }
        let start = Instant::now();
        if let Ok(limit) = limit() {
            self.limit = limit;
        }
        // What cannot be counted counts as full.
        self.estimate = self.maps.count().unwrap_or(self.limit);
        self.counted = Instant::now();
        self.good_for = (start.elapsed() * RELIANCE).min(LONGEST_RELIANCE);
    }

    /// Whether one more run of so many pages may be mapped. What a map gains is pages: the last of the maps are kept for runs
    /// that are worth it, however many short ones are found before.
    pub fn allows_run(&self, pages: usize) -> bool {
        let ours = self.ours();
        let kept = match pages {
            0..SHORT => ours / 8,
            SHORT..LONG => ours / 16,
            _ => 0,
        };
        self.estimate + PER_RUN + kept <= ours
    }

    /// A run was mapped.
    pub fn add_run(&mut self) {
        self.estimate += PER_RUN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_maps_are_for_long_runs_and_the_last_quarter_for_the_app() {
        let mut headroom = Headroom::new(Maps::open().expect("own maps")).expect("a limit");
        headroom.limit = 64_000;
        let allowed = |headroom: &mut Headroom, left| {
            headroom.estimate = 48_000 - left;
            [1, 3, 4, 15, 16, 64].map(|pages| headroom.allows_run(pages))
        };
        assert_eq!(allowed(&mut headroom, 6_002), [true; 6]);
        let only_longer = [false, false, true, true, true, true];
        assert_eq!(allowed(&mut headroom, 6_001), only_longer);
        assert_eq!(allowed(&mut headroom, 3_002), only_longer);
        let only_long = [false, false, false, false, true, true];
        assert_eq!(allowed(&mut headroom, 3_001), only_long);
        assert_eq!(allowed(&mut headroom, PER_RUN), only_long);
        assert_eq!(allowed(&mut headroom, PER_RUN - 1), [false; 6]);
    }
}
