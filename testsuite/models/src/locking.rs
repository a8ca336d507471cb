//! The space lock: it excludes, nobody sleeps for ever, whoever dies where, and a fork's child has a lock of its own.
//!
//! `lock.rs` is the client's. The guard around it is a copy: calls in pairs.

use super::word::until_killed;
use super::{explore, fails};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use std::time::Duration;

/// Time-outs never come.
const PATIENCE: Duration = Duration::from_secs(1 << 20);
/// More instructions than a step of the agent has.
const LONGEST: u32 = 32;

/// The lock, whole or with a protection removed.
pub(super) trait Lock: Default + Send + Sync + 'static {
    fn acquire(&self);
    fn acquire_as_agent(&self) -> bool;
    fn release(&self);
    fn inherit(&self) -> bool;
    fn acquire_after_death(&self);
    fn forked(&self) -> Self;
    fn reset_held(&self);
    fn is_free(&self) -> bool;
}

macro_rules! locks {
    ($($variant:ident)*) => {
        $(impl Lock for super::$variant::FutexLock {
            fn acquire(&self) {
                self.acquire();
            }
            fn acquire_as_agent(&self) -> bool {
                self.acquire_as_agent(PATIENCE)
            }
            fn release(&self) {
                self.release();
            }
            fn inherit(&self) -> bool {
                self.inherit()
            }
            fn acquire_after_death(&self) {
                self.acquire_after_death();
            }
            fn forked(&self) -> Self {
                self.forked()
            }
            fn reset_held(&self) {
                self.reset_held();
            }
            fn is_free(&self) -> bool {
                self.holder().is_none()
            }
        })*
    };
}

locks! { lock lock_without_waiters_bit lock_taken_without_waiters_bit lock_after_death_as_always lock_kept_by_child
    lock_with_the_turn_of_the_dead }

/// What only the holder touches: loom finds two that do.
#[derive(Default)]
struct Shared<L> {
    lock: L,
    value: UnsafeCell<u32>,
}

impl<L: Lock> Shared<L> {
    fn touch(&self) {
        self.value.with_mut(|value| {
            // SAFETY: loom has checked that nobody else is in here.
            unsafe { *value += 1 }
        });
    }

    fn use_as_app(&self) {
        self.lock.acquire();
        self.touch();
        self.lock.release();
    }

    fn use_as_agent(&self) {
        assert!(self.lock.acquire_as_agent());
        self.touch();
        self.lock.release();
    }
}

fn exclusion<L: Lock>() {
    explore(2, || {
        let shared = Arc::new(Shared::<L>::default());
        let apps = [0, 1].map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.use_as_app())
        });
        shared.use_as_agent();
        for app in apps {
            app.join().expect("nobody panics");
        }
        assert!(shared.lock.is_free());
    });
}

/// The agent is killed after so many instructions, an app thread wants the lock twice, and the steward cleans up.
fn death<L: Lock>(instructions: u32) {
    explore(2, move || {
        let shared = Arc::new(Shared::<L>::default());
        let agent = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                until_killed(instructions, || {
                    assert!(shared.lock.acquire_as_agent());
                    shared.lock.release();
                })
            })
        };
        let app = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.use_as_app();
                shared.use_as_app();
            })
        };
        // The steward, who waits for the agent's death.
        agent.join().expect("killed, or through");
        if !shared.lock.inherit() {
            shared.lock.acquire_after_death();
        }
        shared.touch();
        shared.lock.release();
        app.join().expect("nobody panics");
        assert!(shared.lock.is_free());
    });
}

/// A fork while agent and app want the lock: both sides of it go on, each with a lock of its own.
fn fork<L: Lock>() {
    explore(2, || {
        let parent = Arc::new(Shared::<L>::default());
        let agent = {
            let parent = Arc::clone(&parent);
            thread::spawn(move || parent.use_as_agent())
        };
        let app = {
            let parent = Arc::clone(&parent);
            thread::spawn(move || parent.use_as_app())
        };
        parent.lock.acquire();
        let child = Shared {
            lock: parent.lock.forked(),
            value: UnsafeCell::new(0),
        };
        parent.lock.release();
        // The child: the only thread there is.
        child.lock.reset_held();
        assert!(!child.lock.is_free());
        child.lock.release();
        child.use_as_app();
        child.use_as_agent();
        for thread in [agent, app] {
            thread.join().expect("nobody panics");
        }
    });
}

#[test]
fn holders_exclude_each_other_and_nobody_sleeps_for_ever() {
    exclusion::<super::lock::FutexLock>();
}

#[test]
fn nobody_sleeps_for_ever_whenever_the_agent_is_killed() {
    (0..LONGEST).for_each(death::<super::lock::FutexLock>);
}

#[test]
fn both_sides_of_a_fork_have_a_lock() {
    fork::<super::lock::FutexLock>();
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn without_the_bit_of_those_who_wait() {
    exclusion::<super::lock_without_waiters_bit::FutexLock>();
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn without_the_bit_of_those_who_still_wait() {
    exclusion::<super::lock_taken_without_waiters_bit::FutexLock>();
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_a_steward_who_wakes_nobody() {
    (0..LONGEST).for_each(death::<super::lock_after_death_as_always::FutexLock>);
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_a_child_that_waits_for_its_parents_threads() {
    fork::<super::lock_kept_by_child::FutexLock>();
}

#[test]
#[ignore = "fails, and is run by the test of that"]
fn with_a_dead_agent_whose_turn_it_is() {
    (0..LONGEST).for_each(death::<super::lock_with_the_turn_of_the_dead::FutexLock>);
}

#[test]
fn each_protection_is_needed() {
    fails("locking::without_the_bit_of_those_who_wait");
    fails("locking::without_the_bit_of_those_who_still_wait");
    fails("locking::with_a_steward_who_wakes_nobody");
    fails("locking::with_a_child_that_waits_for_its_parents_threads");
    fails("locking::with_a_dead_agent_whose_turn_it_is");
}
