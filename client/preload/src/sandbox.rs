//! A program that gives up system calls (`seccomp`).
//!
//! From then on nothing is done but what the program's own calls need: a futex and a signal mask around them. Memory that is
//! registered goes on merging, for the agent is a process of its own; it learns of changes when it has an order to follow.
//! What would take more (moving merged memory, making it plain) is refused. Writes are no longer tracked: calm memory is read
//! again in each scan.

use crate::changing::Changing;
use crate::sys::call::Answer;
use ksm_client::Client;
use ksm_client::sys::maps;
use std::sync::atomic::{AtomicBool, Ordering};

static ENTERED: AtomicBool = AtomicBool::new(false);

/// The program gives up system calls by `call`. Believed before, for it may be the last one to be allowed; and taken back
/// if the kernel refuses it: programs try with arguments that cannot work what it knows of filters.
pub fn enter(call: impl FnOnce() -> Answer) -> Answer {
    let tracking = Tracking::end();
    let was_entered = ENTERED.swap(true, Ordering::Relaxed);
    maps::give_up_opening(true);
    let answer = call();
    if answer.is_err() && !was_entered {
        ENTERED.store(false, Ordering::Relaxed);
        maps::give_up_opening(false);
        tracking.resume();
    }
    answer
}

/// Whether it has.
pub fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// The tracking of writes, which cannot be ended from inside.
struct Tracking(Option<Client>);

impl Tracking {
    fn end() -> Self {
        let client = Client::current().filter(|_| !is_entered());
        Self(client.filter(|client| {
            Changing::begin().is_some_and(|mut changing| client.end_all_tracking(&mut changing))
        }))
    }

    fn resume(self) {
        if let Some(client) = self.0 {
            client.track_writes();
        }
    }
}
