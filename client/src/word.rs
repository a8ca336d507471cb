//! Words that tasks share, and waiting for one to change.
//!
//! A seam: the models in `testsuite/models` put loom's words and a model of the futex in this place, and run the very
//! files that use it.

use rustix::thread::futex::{self, Flags};
use std::time::Duration;

pub use rustix::thread::sched_yield;
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Waits while the word has this value. Whatever ended the wait (a wake, a changed value, a signal, the time), the caller
/// looks again. False if waiting is not possible at all.
pub fn wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) -> bool {
    use rustix::io::Errno;
    let timeout = timeout.and_then(|duration| duration.try_into().ok());
    let ended = futex::wait(word, Flags::PRIVATE, value, timeout.as_ref());
    matches!(
        ended,
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT)
    )
}

/// Wakes so many of those who wait.
pub fn wake(word: &AtomicU32, count: u32) {
    let _ = futex::wake(word, Flags::PRIVATE, count);
}

/// Wakes everybody who waits.
pub fn wake_all(word: &AtomicU32) {
    wake(word, i32::MAX.unsigned_abs());
}
