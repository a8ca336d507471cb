//! What the kernel's KSM was measured to do, step by step (Linux 6.18), done by the engine.
//!
//! Each scenario is a few processes, some writes and some scans; each row is what all counters showed then. The
//! processes are models, and time is a number; `golden_real.rs` plays the same scenarios with real ones. Not here is
//! what only the kernel can know: that two pages are still one frame after a fork.

#[path = "golden/chains.rs"]
mod chains;
#[path = "golden/extras.rs"]
mod extras;
#[path = "golden/free_running.rs"]
mod free_running;
#[path = "golden/host.rs"]
mod host;
#[path = "golden/huge_pages.rs"]
mod huge_pages;
#[path = "golden/knobs.rs"]
mod knobs;
#[path = "golden/leaving.rs"]
mod leaving;
#[path = "golden/merging.rs"]
mod merging;
#[path = "golden/modelled.rs"]
mod modelled;
#[path = "golden/nodes.rs"]
mod nodes;
#[path = "golden/pace.rs"]
mod pace;
#[path = "golden/scenario.rs"]
mod scenario;
#[path = "golden/smart_scan.rs"]
mod smart_scan;
#[path = "golden/steps.rs"]
mod steps;
#[path = "golden/zero_pages.rs"]
mod zero_pages;
