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

    /// For the agent, before it looks what is queued: the requests that it will have fulfilled when it has sent all that.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Acquire)
    }

    /// For the agent: what was queued when it asked for `asked` is sent.
    pub fn answer(&self, asked: u32) {
        if self.answered.swap(asked, Ordering::AcqRel) != asked {
            wake_all(&self.answered);
        }
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
