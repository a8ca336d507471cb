//! Whether this process has been told that it is one: a child made by a bare system call has not, and finds out.

use crate::word::{AtomicU32, Ordering, sched_yield};
#[cfg(not(loom))]
use zerocopy::FromZeros;

const UNTOLD: u32 = 0;
const TOLD: u32 = 1;
const TELLING: u32 = 2;

/// Lies in memory that is wiped in children. All zero: not told.
#[derive(Debug)]
#[cfg_attr(not(loom), derive(FromZeros))]
#[cfg_attr(loom, derive(Default))]
#[repr(C)]
pub struct Told(AtomicU32);

impl Told {
    /// The process knows.
    pub fn is_told(&self) {
        self.0.store(TOLD, Ordering::Release);
    }

    /// Has the first thread that comes here `tell`, which ends with [`Self::is_told`]; all others wait for that.
    pub fn tell_once(&self, tell: impl Fn()) {
        while self.0.load(Ordering::Acquire) != TOLD {
            let first = self
                .0
                .compare_exchange(UNTOLD, TELLING, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
            if first {
                tell();
            } else {
                sched_yield();
            }
        }
    }
}
