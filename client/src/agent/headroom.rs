//! How many more mappings we may take: `vm.max_map_count` is the app's, and its last quarter is never ours.
//!
//! Counting the mappings means reading them all, so between counts an estimate is kept: two more for each run that was
//! mapped into the middle of something.

use crate::sys::maps::{Maps, limit};
use rustix::io::Result;
use std::time::{Duration, Instant};

/// What one run can add: it splits a mapping in three.
pub const PER_RUN: usize = 2;
/// A count this old is not relied on near the limit: the app makes mappings too.
const STALE: Duration = Duration::from_secs(1);
/// A count this old is not relied on at all.
const OLD: Duration = Duration::from_secs(10);

/// The head-room of one process.
#[derive(Debug)]
pub struct Headroom {
    maps: Maps,
    limit: usize,
    estimate: usize,
    counted: Instant,
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
        let near = self.estimate >= self.ours() / 2;
        if self.counted.elapsed() < if near { STALE } else { OLD } {
            return;
        }
        if let (Ok(limit), Ok(count)) = (limit(), self.maps.count()) {
            self.limit = limit;
            self.estimate = count;
        }
        self.counted = Instant::now();
    }

    /// Whether one more run may be mapped.
    pub fn allows_run(&self) -> bool {
        self.estimate + PER_RUN <= self.ours()
    }

    /// A run was mapped.
    pub fn add_run(&mut self) {
        self.estimate += PER_RUN;
    }
}
