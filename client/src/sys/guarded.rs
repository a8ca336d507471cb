//! A value that only the holder of its lock reaches.
//!
//! What `Mutex<T>` is, for a lock whose word must outlive the death of its holder (see [`crate::lock`]) and for a value
//! that lives in zeroed memory of our own.

use crate::lock::{FutexLock, Side};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use zerocopy::FromZeros;

/// A value and the lock around it. All-zero bytes are an unlocked zero value.
#[derive(FromZeros, Debug)]
#[repr(C)]
pub struct Guarded<T> {
    lock: FutexLock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a guard, and the lock grants one guard at a time.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    /// Takes the lock for an app thread, however long the agent's step takes.
    pub fn lock(&self) -> Guard<'_, T> {
        self.lock.acquire();
        Guard { of: self }
    }

    /// Takes the lock for the agent, if it gets it in time.
    pub fn lock_as_agent(&self, patience: Duration) -> Option<Guard<'_, T>> {
        // Not `then_some`: a guard that is made and dropped would release somebody else's lock.
        self.lock
            .acquire_as_agent(patience)
            .then(|| Guard { of: self })
    }

    /// Takes over the lock of an agent that is dead. `None` if it did not hold it.
    fn inherit_from_dead_agent(&self) -> Option<Guard<'_, T>> {
        self.lock.inherit().then(|| Guard { of: self })
    }

    /// Takes the lock to clean up after an agent that is dead, held by it or not.
    pub fn lock_after_death(&self) -> Guard<'_, T> {
        self.inherit_from_dead_agent().unwrap_or_else(|| {
            self.lock.acquire_after_death();
            Guard { of: self }
        })
    }

    /// Who holds the lock.
    pub fn holder(&self) -> Option<Side> {
        self.lock.holder()
    }

    /// The guard of a lock that was taken by [`std::mem::forget`]ting a guard on this thread, for the two sides of a
    /// fork: `lock` before it, this in the parent after it.
    pub fn resume(&self) -> Guard<'_, T> {
        Guard { of: self }
    }

    /// In a child after a fork, whose only thread this is: the lock is as new, and held.
    pub fn resume_in_child(&self) -> Guard<'_, T> {
        self.lock.reset_held();
        Guard { of: self }
    }
}

/// Proof that the lock is held.
#[derive(Debug)]
pub struct Guard<'a, T> {
    of: &'a Guarded<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so the lock is held, and only through it.
        unsafe { &*self.of.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.of.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.of.lock.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giving_up_leaves_the_lock_with_its_holder() {
        let guarded = Guarded::<u64>::new_zeroed();
        let held = guarded.lock();
        assert!(guarded.lock_as_agent(Duration::ZERO).is_none());
        assert!(guarded.inherit_from_dead_agent().is_none());
        assert_eq!(guarded.holder(), Some(Side::App));
        drop(held);
        assert_eq!(guarded.holder(), None);
    }
}
