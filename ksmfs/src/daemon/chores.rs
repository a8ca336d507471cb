//! What a peer can make last: done in threads of their own, never in the one that owns the engine.
//!
//! A peer can hold the lock of a file that it shares with the daemon for as long as it likes: by writing to it from memory
//! whose page faults nobody answers. Punching holes and writing wait for that lock; reading does not. Nobody can end such a
//! wait, so a user may have only so many threads wait for him; what else he wants done then is not done.

use ksm_engine::page::UserId;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Chores under way. Each has a thread.
const MOST_THREADS: usize = 64;
/// Those of one user.
const MOST_OF_USER: usize = 4;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

type Chore = Box<dyn FnOnce() + Send>;

struct Crew {
    /// Chores that a thread is about to take up.
    waiting: VecDeque<(UserId, Chore)>,
    /// How many of each user are not done.
    of_users: BTreeMap<UserId, usize>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
}

static CREW: Mutex<Crew> = Mutex::new(Crew {
    waiting: VecDeque::new(),
    of_users: BTreeMap::new(),
    threads: 0,
    idle: 0,
});
static WORK: Condvar = Condvar::new();

/// Has something done now, by somebody else. `false` if nobody is there for it: then it is not done.
pub fn aside(user: UserId, chore: impl FnOnce() + Send + 'static) -> bool {
    let mut crew = CREW.lock();
    let of_user = crew.of_users.get(&user).copied().unwrap_or(0);
    if of_user >= MOST_OF_USER {
        return false;
    }
    if crew.waiting.len() >= crew.idle {
        if crew.threads >= MOST_THREADS {
            return false;
        }
        let thread = std::thread::Builder::new().name("chores".into());
        if let Err(error) = thread.spawn(work) {
            log::warn!("no thread for what may take long: {error}");
            return false;
        }
        crew.threads += 1;
    }
    crew.of_users.insert(user, of_user + 1);
    crew.waiting.push_back((user, Box::new(chore)));
    WORK.notify_one();
    true
}

fn work() {
    let mut crew = CREW.lock();
    loop {
        let Some((user, chore)) = crew.waiting.pop_front() else {
            crew.idle += 1;
            let waited = WORK.wait_for(&mut crew, IDLE);
            crew.idle -= 1;
            if waited.timed_out() && crew.waiting.is_empty() {
                crew.threads -= 1;
                return;
            }
            continue;
        };
        drop(crew);
        chore();
        crew = CREW.lock();
        let of_user = crew.of_users.entry(user).or_default();
        *of_user = of_user.saturating_sub(1);
        if *of_user == 0 {
            crew.of_users.remove(&user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_OF_USER, aside};
    use crossbeam_channel::bounded;
    use ksm_engine::page::UserId;
    use std::time::Duration;

    #[test]
    fn who_holds_up_threads_gets_no_more_of_them_and_others_do() {
        let (hostile, honest) = (UserId(7_000_001), UserId(7_000_002));
        let (release, held) = bounded::<()>(0);
        for _ in 0..MOST_OF_USER {
            let held = held.clone();
            assert!(aside(hostile, move || {
                let _ = held.recv();
            }));
        }
        assert!(!aside(hostile, || ()));
        // More than there are threads: each comes back.
        for _ in 0..200 {
            let (tell, told) = bounded(1);
            let tells = || {
                let tell = tell.clone();
                aside(honest, move || {
                    let _ = tell.send(());
                })
            };
            // Those of the round before may not be counted out yet.
            while !tells() {
                std::thread::yield_now();
            }
            told.recv_timeout(Duration::from_secs(60)).unwrap();
            while !aside(honest, || ()) {
                std::thread::yield_now();
            }
        }
        drop(release);
        while !aside(hostile, || ()) {
            std::thread::yield_now();
        }
    }
}
