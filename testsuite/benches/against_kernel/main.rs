//! Ours against the kernel's KSM, in one run, on the same workloads.
//!
//! The two take turns, so that a machine that changes its speed changes it for both. Time and CPU to converge: from the
//! start of scanning until 99.99 % of the pages that can be shared are; CPU is the busy time of the whole machine, which
//! leaves nothing out. What a further scan costs is too little for the kernel's ticks: it is repeated for a second or more,
//! and counted by the scheduler's own clock (`/proc/PID/task/*/schedstat`) of ksmd, or of the daemon and all agents.
//! Memory is `MemAvailable` against that of the same apps with nobody to merge them, so it bears all costs.
//!
//! `cargo bench -p testsuite --bench against_kernel -- [WORKLOAD...] [--rounds N] [--mib N] [--json FILE] [--plots DIR]`

pub(crate) mod cases;
pub(crate) mod command;
pub(crate) mod figures;
mod latency;
mod measure;
mod meters;
mod plots;
pub(crate) mod report;
pub(crate) mod side_channels;
pub(crate) mod sides;
mod table;

use clap::Parser;

fn main() -> std::io::Result<()> {
    command::run(&command::Options::parse(), env!("CARGO_BIN_EXE_kit")).map(drop)
}
