//! The scenarios of `golden.rs` again, on this host: unmodified programs, the preloaded library, and a mounted ksmfs.
//!
//! Each has a daemon of its own. All knobs are written and all counters read as files, and in the end every process
//! compares every byte with what it wrote. Scenarios about what no file shows are with the models only.

#[path = "golden/chains.rs"]
mod chains;
#[path = "golden_real/frames.rs"]
mod frames;
#[path = "golden/free_running.rs"]
mod free_running;
#[path = "golden_real/host.rs"]
mod host;
#[path = "golden/huge_pages.rs"]
mod huge_pages;
#[path = "golden/knobs.rs"]
mod knobs;
#[path = "golden/leaving.rs"]
mod leaving;
#[path = "golden/merging.rs"]
mod merging;
#[path = "golden/pace.rs"]
mod pace;
#[path = "golden_real/puppet.rs"]
mod puppet;
#[path = "golden/scenario.rs"]
mod scenario;
#[path = "golden/smart_scan.rs"]
mod smart_scan;
#[path = "golden/steps.rs"]
mod steps;
#[path = "golden/zero_pages.rs"]
mod zero_pages;
