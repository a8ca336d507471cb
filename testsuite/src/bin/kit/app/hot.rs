//! A thread that writes to memory all the time, as fast as it can.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use testsuite::content::{self, PAGE_SIZE};

#[derive(Default)]
pub(super) struct Writer {
    orders: Mutex<Orders>,
    changed: Condvar,
    written: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Orders {
    write: bool,
    end: bool,
}

impl Writer {
    /// Writes whole pages, each time with other bytes, whenever it is switched on; returns at [`Self::end`].
    pub(super) fn run(&self, memory: &Mutex<&mut [u8]>) {
        let fresh = content::page(u64::MAX);
        let mut count = 0u64;
        while self.may_write() {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            for page in memory.chunks_exact_mut(PAGE_SIZE) {
                count += 1;
                page[8..].copy_from_slice(&fresh[8..]);
                page[..8].copy_from_slice(&count.to_le_bytes());
            }
            self.written.store(count, Relaxed);
        }
    }

    fn may_write(&self) -> bool {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = self
            .changed
            .wait_while(orders, |orders| !orders.write && !orders.end)
            .unwrap_or_else(PoisonError::into_inner);
        !orders.end
    }

    /// Switches it on or off; pages written so far.
    pub(super) fn switch(&self, write: bool) -> u64 {
        self.order(|orders| orders.write = write);
        self.written.load(Relaxed)
    }

    /// Ends [`Self::run`].
    pub(super) fn end(&self) {
        self.order(|orders| orders.end = true);
    }

    pub(super) fn has_written(&self) -> bool {
        self.written.load(Relaxed) > 0
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}
