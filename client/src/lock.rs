//! The lock between the app's threads and the agent.
//!
//! A lock of a library does not do here. The agent is a task of its own that can be killed while it holds the lock;
//! then the word must say so, for [`crate::space::Space::recover`] to finish what it held and let go in its place. The app
//! can be stopped while one of its threads holds it; then the agent must give up in time and report so. And parking in
//! `parking_lot` or `std` keeps its queue in the app's heap or in thread-local storage, which the agent must not touch.
//!
//! The agent takes it for one bounded step at a time, and lets app threads that wait go first, but only for a
//! moment: they may be stopped while they wait. App threads that take it again as soon as they have let go leave the agent no
//! moment to come between; so when it has waited for long, whoever comes lets it go first, and for a moment only as well: it may
//! be dead.

use crate::word::{AtomicU32, Ordering, wait, wake, wake_all};
use std::time::{Duration, Instant};
#[cfg(not(loom))]
use zerocopy::FromZeros;

const FREE: u32 = 0;
const APP: u32 = 1;
const AGENT: u32 = 2;
const HOLDER: u32 = 3;
/// Somebody waits: whoever releases must wake.
const WAITERS: u32 = 4;
/// How long the agent lets waiting app threads go first.
const COURTESY: Duration = Duration::from_millis(1);
/// When the agent has waited for so long it is its turn: at once in a model, where no time passes.
const LONG: Duration = Duration::from_millis(if cfg!(loom) { 0 } else { 4 });
/// How long an app thread leaves it to the agent then.
const TURN: Duration = Duration::from_millis(10);

/// Who holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A thread of the app.
    App,
    /// The agent.
    Agent,
}

/// The lock. All-zero bytes are a free lock.
#[derive(Debug)]
#[cfg_attr(not(loom), derive(FromZeros))]
#[cfg_attr(loom, derive(Default))]
#[repr(C)]
pub struct FutexLock {
    word: AtomicU32,
    /// App threads that wait; the agent steps back for them.
    app_waiting: AtomicU32,
    /// Not 0: the agent goes before whoever does not wait yet.
    agents_turn: AtomicU32,
}

impl FutexLock {
    /// Takes it for an app thread.
    pub fn acquire(&self) {
        if self.agents_turn.load(Ordering::Relaxed) != 0 {
            wait(&self.agents_turn, 1, Some(TURN));
            self.agents_turn.store(0, Ordering::Relaxed);
        }
        if self.try_take(APP) {
            return;
        }
        self.app_waiting.fetch_add(1, Ordering::Relaxed);
        self.wait_and_take(APP, None);
        if self.app_waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            wake(&self.app_waiting, 1);
        }
    }

    /// Takes it for the agent; false if that took too long.
    pub fn acquire_as_agent(&self, patience: Duration) -> bool {
        let waiting = self.app_waiting.load(Ordering::Relaxed);
        if waiting > 0 {
            wait(&self.app_waiting, waiting, Some(COURTESY));
        }
        if self.try_take(AGENT) {
            return true;
        }
        let now = Instant::now();
        if self.wait_and_take(AGENT, Some(now + patience.min(LONG))) {
            return true;
        }
        self.agents_turn.store(1, Ordering::Relaxed);
        let taken = self.wait_and_take(AGENT, Some(now + patience));
        self.end_agents_turn();
        taken
    }

    fn end_agents_turn(&self) {
        self.agents_turn.store(0, Ordering::Relaxed);
        wake_all(&self.agents_turn);
    }

    /// Lets go.
    pub fn release(&self) {
        if self.word.swap(FREE, Ordering::Release) & WAITERS != 0 {
            wake(&self.word, 1);
        }
    }

    /// Who holds it.
    pub fn holder(&self) -> Option<Side> {
        match self.word.load(Ordering::Acquire) & HOLDER {
            APP => Some(Side::App),
            AGENT => Some(Side::Agent),
            _ => None,
        }
    }

    /// Makes an app thread the holder in place of an agent that is dead; false if the agent did not hold it.
    pub fn inherit(&self) -> bool {
        self.end_agents_turn();
        let take = |word| (word & HOLDER == AGENT).then_some(word & WAITERS | APP);
        self.word
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Takes it for the app thread that cleans up after an agent that died without it. The agent may have let go of it and
    /// not come to wake who waits, or have been the one who was woken: so whoever waits is woken when this thread lets go.
    pub fn acquire_after_death(&self) {
        self.wait_and_take(APP, None);
    }

    /// In a child after a fork: held by the only thread there is, waited for by nobody.
    pub fn reset_held(&self) {
        self.app_waiting.store(0, Ordering::Relaxed);
        self.agents_turn.store(0, Ordering::Relaxed);
        self.word.store(APP, Ordering::Relaxed);
    }

    /// What a fork makes of it: a copy.
    #[cfg(loom)]
    pub fn forked(&self) -> Self {
        Self {
            word: AtomicU32::new(self.word.load(Ordering::Relaxed)),
            app_waiting: AtomicU32::new(self.app_waiting.load(Ordering::Relaxed)),
            agents_turn: AtomicU32::new(self.agents_turn.load(Ordering::Relaxed)),
        }
    }

    fn try_take(&self, side: u32) -> bool {
        self.word
            .compare_exchange(FREE, side, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    fn wait_and_take(&self, side: u32, deadline: Option<Instant>) -> bool {
        loop {
            // Taken with the waiters' bit set: there may be others, and one wake too many harms nobody.
            let before = self
                .word
                .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
                    Some(if word & HOLDER == FREE {
                        side | WAITERS
                    } else {
                        word | WAITERS
                    })
                });
            let (Ok(word) | Err(word)) = before;
            if word & HOLDER == FREE {
                return true;
            }
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return false,
                    left => left,
                },
            };
            wait(&self.word, word | WAITERS, left);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    fn lock() -> FutexLock {
        FutexLock::new_zeroed()
    }

    #[test]
    fn holders_exclude_each_other() {
        let shared = Arc::new((lock(), AtomicU64::new(0)));
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        if thread == 0 {
                            while !shared.0.acquire_as_agent(Duration::from_secs(5)) {}
                        } else {
                            shared.0.acquire();
                        }
                        // Not an atomic increment: only exclusion makes it right.
                        let seen = shared.1.load(Ordering::Relaxed);
                        shared.1.store(seen + 1, Ordering::Relaxed);
                        shared.0.release();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no thread panics");
        }
        assert_eq!(shared.1.load(Ordering::Relaxed), 80_000);
        assert_eq!(shared.0.holder(), None);
    }

    /// Lets go as an agent does that is killed before it wakes anybody.
    fn die_in_release(lock: &FutexLock) {
        lock.word.swap(FREE, Ordering::Release);
    }

    fn sleeps(thread: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
        stat.is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" S"))
        })
    }

    #[test]
    fn whoever_waits_is_woken_though_the_agent_died_before_it_could() {
        let lock = Arc::new(lock());
        assert!(lock.acquire_as_agent(Duration::ZERO));
        let (say, hear) = std::sync::mpsc::channel();
        let waiter = {
            let lock = Arc::clone(&lock);
            std::thread::spawn(move || {
                say.send(rustix::thread::gettid().as_raw_pid())
                    .expect("the test listens");
                lock.acquire();
                lock.release();
            })
        };
        let thread = hear.recv().expect("it says so first");
        while lock.word.load(Ordering::Relaxed) & WAITERS == 0 || !sleeps(thread) {
            std::thread::yield_now();
        }
        die_in_release(&lock);
        assert!(!lock.inherit());
        lock.acquire_after_death();
        lock.release();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !waiter.is_finished() {
            if Instant::now() > deadline {
                wake(&lock.word, 1);
                panic!("nobody woke the waiter");
            }
            std::thread::yield_now();
        }
        waiter.join().expect("the waiter gets the lock");
    }

    #[test]
    fn the_agent_gives_up_on_an_app_that_holds_too_long() {
        let lock = lock();
        lock.acquire();
        assert!(!lock.acquire_as_agent(Duration::from_millis(20)));
        assert_eq!(lock.holder(), Some(Side::App));
        lock.release();
        assert!(lock.acquire_as_agent(Duration::from_millis(20)));
    }

    /// How often out of 20 the agent gets it, from so many threads that have it nearly all the time.
    fn taken_from(threads: usize) -> usize {
        let shared = Arc::new((lock(), AtomicU32::new(0)));
        let hog = |shared: Arc<(FutexLock, AtomicU32)>| {
            while shared.1.load(Ordering::Relaxed) == 0 {
                shared.0.acquire();
                let until = Instant::now() + Duration::from_micros(300);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                shared.0.release();
            }
        };
        let hogs: Vec<_> = std::iter::repeat_with(|| Arc::clone(&shared))
            .take(threads)
            .map(|shared| std::thread::spawn(move || hog(shared)))
            .collect();
        let takes = |_: &i32| {
            let taken = shared.0.acquire_as_agent(Duration::from_millis(20));
            if taken {
                shared.0.release();
            }
            taken
        };
        let taken = (0..20).filter(takes).count();
        shared.1.store(1, Ordering::Relaxed);
        for hog in hogs {
            hog.join().expect("it does not panic");
        }
        taken
    }

    #[test]
    fn an_app_that_takes_it_again_and_again_does_not_keep_the_agent_from_it() {
        let taken = [2, 4, 2, 4, 2, 4].map(taken_from);
        // Half of them: the machine may have other things to do.
        assert!(taken.iter().all(|taken| *taken >= 10), "{taken:?} of 20");
    }

    #[test]
    fn an_agent_that_never_takes_its_turn_holds_up_the_app_once() {
        let lock = lock();
        lock.agents_turn.store(1, Ordering::Relaxed);
        lock.acquire();
        assert_eq!(lock.agents_turn.load(Ordering::Relaxed), 0);
        lock.release();
    }

    #[test]
    fn the_lock_of_a_dead_agent_is_inherited_and_waiters_wake() {
        let lock = Arc::new(lock());
        assert!(!lock.inherit());
        assert!(lock.acquire_as_agent(Duration::ZERO));
        let waiter = {
            let lock = Arc::clone(&lock);
            std::thread::spawn(move || lock.acquire())
        };
        while lock.word.load(Ordering::Relaxed) & WAITERS == 0 {
            std::thread::yield_now();
        }
        assert!(lock.inherit());
        assert_eq!(lock.holder(), Some(Side::App));
        lock.release();
        waiter.join().expect("the waiter gets the lock");
    }
}
