//! Requests of app threads to have sent what is queued, and how many of them the agent has fulfilled.

use crate::word::{AtomicU32, Ordering, wait, wake_all};
use std::time::{Duration, Instant};

/// How often one who waits looks whether there still is something to wait for.
pub const LOOK: Duration = Duration::from_millis(20);

/// The requests. All zero: none yet.
#[derive(Debug, Default)]
pub struct Tickets {
    asked: AtomicU32,
    answered: AtomicU32,
}

impl Tickets {
    /// Asks for all that is queued by now; the agent has to be woken then.
    pub fn ask(&self) -> u32 {
        self.asked.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// For the agent: sends everything, and says so to those who asked before it began.
    ///
    /// # Errors
    /// Of `send_all`; then nobody is told anything.
    pub fn answer_after<E>(&self, send_all: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let asked = self.asked.load(Ordering::Acquire);
        send_all()?;
        if self.answered.swap(asked, Ordering::AcqRel) != asked {
            wake_all(&self.answered);
        }
        Ok(())
    }

    /// Waits until the request with this number is fulfilled, the time is up, or there is nothing more to wait for.
    pub fn wait_for(&self, ticket: u32, patience: Duration, is_vain: impl Fn() -> bool) {
        wait_until(&self.answered, patience, |answered| {
            ticket.wrapping_sub(answered).cast_signed() <= 0 || is_vain()
        });
    }

    /// In a child after a fork: nobody has asked for anything.
    pub fn reset(&self) {
        self.asked.store(0, Ordering::Relaxed);
        self.answered.store(0, Ordering::Relaxed);
    }
}

/// Waits until the word is as wanted, or the time is up.
pub fn wait_until(word: &AtomicU32, patience: Duration, done: impl Fn(u32) -> bool) {
    let deadline = Instant::now() + patience;
    loop {
        let seen = word.load(Ordering::Acquire);
        if done(seen) || Instant::now() >= deadline || !wait(word, seen, Some(LOOK)) {
            return;
        }
    }
}
