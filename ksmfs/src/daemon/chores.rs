//! What a peer can make last: done in threads of their own, never in the one that owns the engine.
//!
//! A peer can hold the lock of a file that it shares with the daemon for as long as it likes: by writing to it from memory
//! whose page faults nobody answers. Punching holes, writing and sealing wait for that lock; reading does not.

use crossbeam_channel::{Receiver, Sender};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Threads, of which each may be held up by another peer. What comes when all are, waits.
const MOST_THREADS: usize = 16;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

type Chore = Box<dyn FnOnce() + Send>;

struct Crew {
    jobs: (Sender<Chore>, Receiver<Chore>),
    threads: AtomicUsize,
    /// Chores that are not done.
    pending: AtomicUsize,
}

static CREW: OnceLock<Crew> = OnceLock::new();

/// Has something done before long, by somebody else.
pub fn later(chore: impl FnOnce() + Send + 'static) {
    let crew = CREW.get_or_init(|| Crew {
        jobs: crossbeam_channel::unbounded(),
        threads: AtomicUsize::new(0),
        pending: AtomicUsize::new(0),
    });
    let pending = crew.pending.fetch_add(1, Ordering::AcqRel) + 1;
    // This end keeps a receiver.
    let _ = crew.jobs.0.send(Box::new(chore));
    let threads = crew.threads.load(Ordering::Acquire);
    if pending > threads && threads < MOST_THREADS {
        crew.threads.fetch_add(1, Ordering::AcqRel);
        let thread = std::thread::Builder::new().name("chores".into());
        if let Err(error) = thread.spawn(|| work(crew)) {
            crew.threads.fetch_sub(1, Ordering::AcqRel);
            log::warn!("memory of donations is freed late: {error}");
        }
    }
}

fn work(crew: &Crew) {
    loop {
        while let Ok(chore) = crew.jobs.1.recv_timeout(IDLE) {
            chore();
            crew.pending.fetch_sub(1, Ordering::AcqRel);
        }
        crew.threads.fetch_sub(1, Ordering::AcqRel);
        if crew.jobs.1.is_empty() {
            return;
        }
        // One that came while this thread was leaving.
        crew.threads.fetch_add(1, Ordering::AcqRel);
    }
}
