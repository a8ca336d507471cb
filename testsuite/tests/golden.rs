//! What the kernel's KSM was measured to do, step by step (Linux 6.18), done by the engine.
//!
//! Each scenario is a few processes, some writes and some scans; each row is what all counters showed then. The
//! processes are models, so a page that was merged and written to may be merged again at once, as in the kernel. Two
//! things that only the kernel can know are not here: that two pages are still one frame after a fork, and that the
//! zero page was dropped before anybody has looked.

#[path = "golden/chains.rs"]
mod chains;
#[path = "golden/extras.rs"]
mod extras;
#[path = "golden/free_running.rs"]
mod free_running;
#[path = "golden/host.rs"]
mod host;
#[path = "golden/knobs.rs"]
mod knobs;
#[path = "golden/leaving.rs"]
mod leaving;
#[path = "golden/merging.rs"]
mod merging;
#[path = "golden/nodes.rs"]
mod nodes;
#[path = "golden/pace.rs"]
mod pace;
#[path = "golden/smart_scan.rs"]
mod smart_scan;
#[path = "golden/zero_pages.rs"]
mod zero_pages;
