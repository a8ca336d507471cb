//! What is measured, and what it is meant to come to.

use super::sides::Merger;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Figures by key.
pub type Sample = BTreeMap<String, f64>;

#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub key: &'static str,
    pub title: &'static str,
}

pub const CONVERGE: &str = "converge_s";
pub const CONVERGE_CPU: &str = "converge_cpu_s";
pub const CONVERGE_TASKS: &str = "converge_tasks_cpu_s";
pub const RESCAN: &str = "rescan_cpu_ms";
pub const RESCAN_SMART: &str = "rescan_smart_cpu_ms";
pub const RESCAN_TIME: &str = "rescan_ms";
pub const SAVED: &str = "saved_mib";
pub const WRITE: &str = "write_ns";
pub const UNMERGE: &str = "unmerge_us_per_page";
pub const BOOKS: &str = "engine_bytes_per_page";
pub const THROUGHPUT: &str = "throughput_of_unscanned";
pub const HELD_MOST: &str = "held_9999_us";
pub const HELD_LONGEST: &str = "held_longest_us";

pub const ALL: [Figure; 13] = [
    Figure {
        key: CONVERGE,
        title: "time to converge, s",
    },
    Figure {
        key: CONVERGE_CPU,
        title: "CPU of the whole machine to converge, s",
    },
    Figure {
        key: CONVERGE_TASKS,
        title: "of that, ksmd or daemon and agents, s",
    },
    Figure {
        key: SAVED,
        title: "memory saved, MiB",
    },
    Figure {
        key: RESCAN,
        title: "CPU of a further scan, `smart_scan` 0, ms",
    },
    Figure {
        key: RESCAN_TIME,
        title: "time of it, ms",
    },
    Figure {
        key: RESCAN_SMART,
        title: "CPU of a further scan, `smart_scan` 1, ms",
    },
    Figure {
        key: THROUGHPUT,
        title: "writer's throughput while scanned, of unscanned",
    },
    Figure {
        key: WRITE,
        title: "first write to a merged page, median, ns",
    },
    Figure {
        key: UNMERGE,
        title: "unmerging, µs per page",
    },
    Figure {
        key: BOOKS,
        title: "memory of the merger, bytes per page",
    },
    Figure {
        key: HELD_MOST,
        title: "99.99 % of the times pages were held, at most, µs",
    },
    Figure {
        key: HELD_LONGEST,
        title: "longest time pages were held, µs",
    },
];

/// What a median is meant to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Ours over the kernel's, at most.
    RatioAtMost(f64),
    /// Ours over the kernel's, at least.
    RatioAtLeast(f64),
    /// Ours, at most.
    AtMost(f64),
    /// Ours, at least.
    AtLeast(f64),
}

const TARGETS: [(&[&str], &str, Target); 18] = [
    (&["clones"], CONVERGE, Target::RatioAtMost(0.30)),
    (&["clones"], CONVERGE_CPU, Target::RatioAtMost(0.50)),
    (&["scattered"], CONVERGE, Target::RatioAtMost(0.60)),
    (&["scattered"], CONVERGE_CPU, Target::RatioAtMost(0.90)),
    (&["clustered"], CONVERGE, Target::RatioAtMost(0.35)),
    (&["clustered"], CONVERGE_CPU, Target::RatioAtMost(0.55)),
    (&["files"], CONVERGE, Target::RatioAtMost(0.50)),
    (&["files"], CONVERGE_CPU, Target::RatioAtMost(0.70)),
    (&[], RESCAN, Target::RatioAtMost(0.01)),
    (&[], RESCAN_SMART, Target::RatioAtMost(0.05)),
    (
        &["clones", "clustered", "files"],
        SAVED,
        Target::RatioAtLeast(0.97),
    ),
    (&["scattered"], SAVED, Target::RatioAtLeast(0.93)),
    (&["clones", "clustered"], WRITE, Target::RatioAtMost(1.0)),
    (&["scattered"], WRITE, Target::RatioAtMost(1.4)),
    (&["hot"], THROUGHPUT, Target::AtLeast(0.97)),
    (&[], BOOKS, Target::AtMost(40.0)),
    (&[], HELD_MOST, Target::AtMost(200.0)),
    (&[], HELD_LONGEST, Target::AtMost(2000.0)),
];

/// A target that holds for every workload that has the figure names none.
pub fn target(case: &str, figure: &str) -> Option<Target> {
    TARGETS
        .iter()
        .find(|(cases, key, _)| *key == figure && (cases.is_empty() || cases.contains(&case)))
        .map(|(_, _, target)| *target)
}

impl Target {
    /// As text, and whether it is met.
    pub fn judge(self, ours: f64, kernel: Option<f64>) -> (String, Option<bool>) {
        let ratio = kernel.map(|kernel| ours / kernel);
        match self {
            Self::RatioAtMost(most) => (format!("ratio <= {most}"), ratio.map(|r| r <= most)),
            Self::RatioAtLeast(least) => (format!("ratio >= {least}"), ratio.map(|r| r >= least)),
            Self::AtMost(most) => (format!("<= {most}"), Some(ours <= most)),
            Self::AtLeast(least) => (format!(">= {least}"), Some(ours >= least)),
        }
    }
}

/// All that was measured of one case.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Samples {
    pub mib: u64,
    pub rounds: BTreeMap<Merger, Vec<Sample>>,
    /// Seconds, and the part of the expected pages that was shared then, in the last round.
    pub curves: BTreeMap<Merger, Vec<(f64, f64)>>,
}

impl Samples {
    /// All values of a figure, in the order of the rounds.
    pub fn values(&self, merger: Merger, key: &str) -> Vec<f64> {
        let rounds = self.rounds.get(&merger).into_iter().flatten();
        rounds
            .filter_map(|sample| sample.get(key).copied())
            .collect()
    }

    pub fn median(&self, merger: Merger, key: &str) -> Option<f64> {
        median(self.values(merger, key))
    }
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
