//! A program that gives up system calls (`seccomp`).
//!
//! From then on nothing is done but what the program's own calls need: a futex and a signal mask around them. Memory that is
//! registered goes on merging, for the agent is a process of its own; it learns of changes when it has an order to follow.
//! What would take more (moving merged memory, making it plain) is refused.

use std::sync::atomic::{AtomicBool, Ordering};

static ENTERED: AtomicBool = AtomicBool::new(false);

/// The program is about to give up system calls.
pub fn enter() {
    ksm_client::sys::maps::never_open_again();
    ENTERED.store(true, Ordering::Relaxed);
}

/// Whether it has.
pub fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}
