//! Peers that hold the lock of their donation buffer, a file that they share with the daemon: by writing to it from memory
//! that never comes.

use crate::agent::{Agent, Heard};
use crate::attacks::{NOWHERE, PAGE, follow, pretend, run, visited};
use crate::siege::{Field, withstand};
use ksm_engine::order::{Order, OrderId, VisitState};
use ksm_engine::page::{Digest, PAGE_SIZE, PageRun};
use ksm_engine::wire::ToDaemon;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testsuite::content;
use testsuite::sys::Unreadable;

/// A lock that somebody holds, until this is dropped.
pub struct Held {
    trap: Arc<Unreadable>,
    holder: Option<JoinHandle<()>>,
}

impl Held {
    /// Takes the lock of a buffer, before long.
    pub fn take(buffer: &OwnedFd) -> Self {
        let trap = Arc::new(Unreadable::map().unwrap());
        let (caught, file) = (Arc::clone(&trap), buffer.try_clone().unwrap());
        let holder = std::thread::spawn(move || caught.write_to(&file));
        Self {
            trap,
            holder: Some(holder),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.trap.release();
        if let Some(holder) = self.holder.take() {
            let _ = holder.join();
        }
    }
}

/// Whether a thread of the daemon waits for such a lock: nothing else makes these sleep so deeply.
pub fn waits_for_a_lock(daemon: u32) -> bool {
    let process = procfs::process::Process::new(daemon.cast_signed()).unwrap();
    let mut stats = process
        .tasks()
        .unwrap()
        .filter_map(|task| task.ok()?.stat().ok());
    stats.any(|stat| stat.comm == "chores" && stat.state == 'D')
}

/// Says that each page of a visit is calm and has this digest.
fn all_alike(agent: &mut Agent, id: OrderId, range: PageRun, digest: Digest) -> bool {
    let digests = vec![digest; usize::try_from(range.len).unwrap()];
    let runs = [run(range, VisitState::Calm, NOWHERE)];
    visited(agent, id, range.end(), &runs, &digests)
}

/// How long after a donation the daemon has given the memory of its buffer back, or would have.
const FREED: Duration = Duration::from_millis(500);

/// The daemon reads what it donates, and must not wait for it.
#[test]
fn holds_the_lock_of_its_donation_buffer() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        let salt = agent.salt.unwrap();
        let buffer = agent.descriptors[0].as_fd().try_clone_to_owned().unwrap();
        agent.register(PAGE, 2);
        let page = [7; PAGE_SIZE];
        rustix::io::pwrite(&buffer, &page, 0).unwrap();
        let _held = Held::take(&buffer);
        let begun = Instant::now();
        follow(field, &mut agent, |agent, id, range| {
            // The daemon goes on.
            if begun.elapsed() > FREED {
                field.deed();
            }
            all_alike(agent, id, range, salt.digest(&page))
        });
    });
}

/// The engine's thread once waited so long, at most, for a buffer's memory to be given back.
const SHORT: Duration = Duration::from_millis(100);
/// After so many tries it is clear whether others are heard.
const TRIES: u64 = 20;

/// Before that is over it lets go, and so it is never found to be late. The daemon must hear others meanwhile.
#[test]
fn holds_the_lock_of_its_donation_buffer_a_little_less_each_time() {
    withstand(|field| {
        let Some(mut agent) = field.join() else {
            return;
        };
        let buffer = agent.descriptors[0].as_fd().try_clone_to_owned().unwrap();
        agent.register(PAGE, 2);
        let mut heard = 0;
        for donations in 1.. {
            // Each time other bytes: those that it has are not donated again.
            match donate_and_hold(field, &mut agent, &buffer, donations) {
                Some(true) => {
                    heard += 1;
                    field.deed();
                }
                Some(false) => {}
                None => return,
            }
            assert!(
                donations < TRIES || 2 * heard > donations,
                "others were heard {heard} times of {donations}"
            );
        }
    });
}

/// Donates a page and holds the lock while that is to be given back; whether another one was heard in that time.
fn donate_and_hold(
    field: &Field,
    agent: &mut Agent,
    buffer: &OwnedFd,
    donations: u64,
) -> Option<bool> {
    let mut other = Agent::connect(&field.socket);
    let page: [u8; PAGE_SIZE] = content::page(donations).try_into().unwrap();
    let digest = agent.salt.unwrap().digest(&page);
    rustix::io::pwrite(buffer, &page, 0).unwrap();
    let _held = Held::take(buffer);
    let mut before = Instant::now();
    while !field.is_over() {
        let goes_on = match agent.hear_within(Duration::from_millis(1)) {
            None => true,
            Some(Heard::Order(id, Order::Visit { range, .. })) => {
                all_alike(agent, id, range, digest)
            }
            Some(Heard::Order(id, order)) => pretend(field, agent, id, &order),
            Some(_) => false,
        };
        if !goes_on {
            return None;
        }
        let now = Instant::now();
        if waits_for_a_lock(field.daemon) {
            let asked = other.offer(&ToDaemon::Locate);
            let heard = asked && other.hear_within(SHORT / 2).is_some();
            return Some(heard && before.elapsed() < SHORT);
        }
        before = now;
    }
    None
}
