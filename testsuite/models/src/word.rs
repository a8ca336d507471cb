//! What the client's `word.rs` is, in a model: loom's words, each with a futex, and a task that can be killed.
//!
//! A time-out never comes: a wake that gets lost is a deadlock, which loom reports.

use loom::cell::Cell;
use loom::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::ops::Deref;
use std::time::Duration;

pub use loom::sync::atomic::Ordering;

/// Who sleeps on a word, the first one first.
#[derive(Debug, Default)]
struct Sleepers {
    next: u64,
    queue: VecDeque<u64>,
}

/// A word of loom's, with a futex.
#[derive(Debug)]
pub struct Word<T> {
    value: T,
    sleepers: Mutex<Sleepers>,
    bell: Condvar,
}

pub type AtomicU32 = Word<loom::sync::atomic::AtomicU32>;
pub type AtomicU64 = Word<loom::sync::atomic::AtomicU64>;

impl<T> Word<T> {
    fn of(value: T) -> Self {
        Self {
            value,
            sleepers: Mutex::default(),
            bell: Condvar::new(),
        }
    }
}

impl AtomicU32 {
    pub fn new(value: u32) -> Self {
        Self::of(loom::sync::atomic::AtomicU32::new(value))
    }
}

impl Default for AtomicU32 {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Default for AtomicU64 {
    fn default() -> Self {
        Self::of(loom::sync::atomic::AtomicU64::new(0))
    }
}

/// Every access is an instruction that a task can be killed before.
impl<T> Deref for Word<T> {
    type Target = T;

    fn deref(&self) -> &T {
        live_on();
        &self.value
    }
}

pub fn wait(word: &AtomicU32, value: u32, _timeout: Option<Duration>) -> bool {
    live_on();
    let mut sleepers = word.sleepers.lock().expect("nobody panics with it");
    // Behind the lock, as the kernel reads it: a wake either sees the sleeper, or comes after a change that he sees.
    if word.value.load(Ordering::SeqCst) != value {
        return true;
    }
    let me = sleepers.next;
    sleepers.next += 1;
    sleepers.queue.push_back(me);
    while sleepers.queue.contains(&me) {
        sleepers = word.bell.wait(sleepers).expect("nobody panics with it");
    }
    drop(sleepers);
    // Killed as the one who was woken.
    live_on();
    true
}

pub fn wake(word: &AtomicU32, count: u32) {
    live_on();
    let mut sleepers = word.sleepers.lock().expect("nobody panics with it");
    let count = sleepers.queue.len().min(count as usize);
    sleepers.queue.drain(..count);
    drop(sleepers);
    word.bell.notify_all();
}

pub fn wake_all(word: &AtomicU32) {
    wake(word, u32::MAX);
}

pub fn sched_yield() {
    loom::thread::yield_now();
}

loom::thread_local! {
    /// Instructions until the calling task is killed.
    static LEFT: Cell<Option<u32>> = Cell::new(None);
}

/// What a killed task ends with. Nothing of it runs any more: whatever it holds, it must not hold by a guard.
struct Killed;

fn live_on() {
    let left = LEFT.with(Cell::get);
    match left {
        None => {}
        Some(0) => {
            LEFT.with(|left| left.set(None));
            std::panic::resume_unwind(Box::new(Killed));
        }
        Some(more) => LEFT.with(|left| left.set(Some(more - 1))),
    }
}

/// Does `task` until it ends or has come so far. True if it was killed.
pub fn until_killed(instructions: u32, task: impl FnOnce()) -> bool {
    LEFT.with(|left| left.set(Some(instructions)));
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
    LEFT.with(|left| left.set(None));
    match ended {
        Ok(()) => false,
        Err(end) if end.is::<Killed>() => true,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Another place where a task can be killed.
pub fn instruction() {
    live_on();
}
