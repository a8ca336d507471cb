//! The scan-time advisor: chooses `pages_to_scan` so that a full scan takes a given time.
//!
//! The kernel's integer arithmetic, step by step and in its order (`scan_time_advisor` in `mm/ksm.c`).

use super::Engine;
use crate::knobs::AdvisorMode;
use crate::store::SlotStore;
use std::time::Duration;

/// Weight of the newest change in the moving average, in per cent.
const EWMA_WEIGHT: u64 = 30;
/// The least CPU that the advisor plans for, in per cent.
const MIN_CPU: u64 = 10;

/// What the advisor remembers between scans.
#[derive(Debug, Default)]
pub(crate) struct Advisor {
    scan_started: Duration,
    change: u64,
    previous_scan_time: u64,
    previous_cpu: Duration,
}

/// The knobs of the advisor.
#[derive(Clone, Copy, Debug)]
struct Limits {
    max_cpu: u64,
    max_pages: u64,
    target_seconds: u64,
}

impl Advisor {
    pub(crate) fn scan_starts(&mut self, now: Duration) {
        self.scan_started = now;
    }

    /// The new `pages_to_scan` after a full scan that ended at `now`.
    fn next(&mut self, now: Duration, cpu: Duration, pages_to_scan: u64, limits: Limits) -> u64 {
        let seconds = now.saturating_sub(self.scan_started).as_secs().max(1);
        let cpu_millis = cpu.saturating_sub(self.previous_cpu).as_millis();
        let cpu_millis = u64::try_from(cpu_millis).unwrap_or(u64::MAX);
        let cpu_percent = (cpu_millis.saturating_mul(100) / (seconds * 1000)).max(1);
        let factor = (limits.target_seconds.saturating_mul(100) / seconds).max(1);
        let before = if self.previous_scan_time == 0 {
            seconds
        } else {
            self.previous_scan_time
        };
        let change = (seconds * 100 / before).max(1);
        self.change = ((100 - EWMA_WEIGHT) * self.change + EWMA_WEIGHT * change) / 100;

        let mut pages = pages_to_scan.saturating_mul(100) / factor;
        pages = pages.saturating_mul(self.change) / 100;
        let per_percent = (pages_to_scan / cpu_percent).max(1);
        pages = pages.min(per_percent.saturating_mul(limits.max_cpu));
        pages = pages.max(per_percent.saturating_mul(MIN_CPU));
        pages = pages.min(limits.max_pages);

        self.previous_scan_time = seconds;
        self.previous_cpu = cpu;
        pages
    }
}

impl<S: SlotStore> Engine<S> {
    /// Lets the advisor act after a full scan.
    pub(super) fn advise(&mut self) {
        if self.knobs.advisor_mode != AdvisorMode::ScanTime {
            return;
        }
        let limits = Limits {
            max_cpu: self.knobs.advisor_max_cpu.into(),
            max_pages: self.knobs.advisor_max_pages_to_scan,
            target_seconds: self.knobs.advisor_target_scan_time,
        };
        let pages = self.knobs.pages_to_scan.into();
        let pages = self.advisor.next(self.now, self.cpu_time, pages, limits);
        self.knobs.pages_to_scan = u32::try_from(pages).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(limits: Limits, start: u64, count: usize) -> Vec<u64> {
        let mut advisor = Advisor::default();
        let mut pages = start;
        // A ksmd that has used 40 s of CPU since boot, and next to nothing in each scan.
        let mut cpu = Duration::from_secs(40);
        (0..count)
            .map(|_| {
                pages = advisor.next(Duration::from_millis(5), cpu, pages, limits);
                cpu += Duration::from_millis(1);
                pages
            })
            .collect()
    }

    /// Measured on a 6.18 kernel: 500, then these.
    #[test]
    fn an_under_loaded_scan_grows_tenfold_up_to_the_limit() {
        let limits = Limits {
            max_cpu: 70,
            max_pages: 30_000,
            target_seconds: 200,
        };
        assert_eq!(
            steps(limits, 500, 6),
            [10, 100, 1000, 10_000, 30_000, 30_000]
        );
        let limits = Limits {
            max_cpu: 70,
            max_pages: 1000,
            target_seconds: 1,
        };
        assert_eq!(steps(limits, 500, 4), [70, 700, 1000, 1000]);
    }
}
