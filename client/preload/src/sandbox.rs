//! A program that gives up system calls (`seccomp`).
//!
//! From then on nothing is done but what the program's own calls need: a futex and a signal mask around them. Memory that is
//! registered goes on merging, for the agent is a process of its own; it learns of changes when it has an order to follow.

use std::sync::atomic::{AtomicBool, Ordering};

static ENTERED: AtomicBool = AtomicBool::new(false);

/// The program is about to give up system calls.
pub fn enter() {
    ENTERED.store(true, Ordering::Relaxed);
}

/// Whether it has.
pub fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}
