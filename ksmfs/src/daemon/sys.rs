//! What the daemon needs from the C library: giving freed memory back.
#![allow(unsafe_code, reason = "a call of the C library")]

use std::time::{Duration, Instant};

/// Trimming walks the whole heap: milliseconds, where merging left much behind.
const PAUSE: Duration = Duration::from_secs(1);

/// Gives memory back to the system that a burst of merging needed and freed. The C library keeps it otherwise, and the
/// daemon's memory is what its promises of saved memory are measured against.
#[derive(Debug)]
pub struct Trimmer {
    last: Instant,
    scans: u64,
}

impl Trimmer {
    /// Has nothing to trim yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            last: Instant::now(),
            scans: 0,
        }
    }

    /// To be called with the number of full scans: trims once after each, but not all the time.
    pub fn trim(&mut self, scans: u64) {
        if scans == self.scans || self.last.elapsed() < PAUSE {
            return;
        }
        self.scans = scans;
        #[cfg(target_env = "gnu")]
        {
            // SAFETY: releases free memory only; it may be called at any time.
            unsafe { libc::malloc_trim(0) };
        }
        self.last = Instant::now();
    }
}
