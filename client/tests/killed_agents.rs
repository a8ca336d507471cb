//! An agent that is killed at any instruction costs the app no byte and no moment of more than a recovery.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_client::agent::Agent;
use ksm_client::agent::report::ReportBuffer;
use ksm_client::space::Space;
use ksm_client::sys::memory::Placed;
use ksm_client::sys::uffd::Userfaults;
use ksm_engine::order::{DONATION_PAGES, MapRun, OrderRef};
use rig::sys::{Memory, Task};
use rig::{Arena, memfd, page};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PAGES: usize = 64;
const KILLS: u32 = 300;
/// Agents that held pages when they were killed, at least.
const ENOUGH_HELD: u32 = 16;

#[test]
fn three_hundred_agents_are_killed_while_two_threads_write() {
    let space = Space::create().unwrap();
    let device = rustix::fs::open(
        c"/dev/userfaultfd",
        rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    let userfaults = Userfaults::new(Some(device.as_fd())).unwrap();
    let memory = Memory::map(PAGES);
    for i in 0..PAGES {
        memory.write(i, &page(i));
    }
    space.register(memory.run()).unwrap();
    let arena = Arena::new(1, PAGES, page);
    let donation = memfd(DONATION_PAGES);
    let stop = AtomicBool::new(false);
    let steps = AtomicU64::new(0);
    let (mut held, mut killed) = (0, 0);
    std::thread::scope(|scope| {
        let (memory, stop) = (&memory, &stop);
        for owner in 0..2 {
            scope.spawn(move || {
                let mut round = 0;
                while !stop.load(Ordering::Relaxed) {
                    for i in (owner..PAGES).step_by(2) {
                        // What the agent wants, or something else; in ordinary memory, or where it is.
                        let seed = if round % 7 == 6 { i + 5000 } else { i };
                        if round % 2 == 0 {
                            space.discard(memory.part(i as u64, 1)).unwrap();
                            assert_eq!(memory.read(i), [0; 4096], "page {i}");
                        }
                        memory.write(i, &page(seed));
                        assert_eq!(memory.read(i), page(seed), "page {i}");
                    }
                    round += 1;
                }
            });
        }
        let _stop = StopOnDrop(stop);
        // Few moments are holds: more agents are killed where they were not met often enough.
        for kill in 0..20 * KILLS {
            if kill >= KILLS && held >= ENOUGH_HELD {
                break;
            }
            killed = kill + 1;
            let agent = || {
                // The threads may be in the way for longer than an agent waits, on a busy machine.
                let mut agent = loop {
                    let agent = Agent::new(
                        space,
                        userfaults.try_clone().unwrap(),
                        std::process::id(),
                        donation.as_fd(),
                        rig::SALT,
                    );
                    match agent {
                        Err(error) if error.errno == rustix::io::Errno::BUSY => {}
                        agent => break agent.unwrap(),
                    }
                };
                let mut out = Placed::<ReportBuffer>::new().unwrap();
                loop {
                    let runs = [MapRun {
                        start: memory.run().start,
                        len: 64,
                        slot: 0,
                    }];
                    let map = OrderRef::Map {
                        arena: arena.id,
                        runs: &runs,
                    };
                    agent.handle(&map, Some(arena.fd.as_fd()), &mut out);
                    steps.fetch_add(1, Ordering::Relaxed);
                    let unmerge = OrderRef::Unmerge {
                        range: memory.run(),
                    };
                    agent.handle(&unmerge, None, &mut out);
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            };
            let before = steps.load(Ordering::Relaxed);
            let task = Task::start(&agent);
            let deadline = Instant::now() + Duration::from_secs(240);
            while steps.load(Ordering::Relaxed) < before + 2 {
                assert!(Instant::now() < deadline, "the agent does nothing");
                std::thread::yield_now();
            }
            // Some instruction or other, of the next order or the one after it.
            for _ in 0..kill * 7919 % 32_768 {
                std::hint::spin_loop();
            }
            task.kill();
            held += u32::from(space.is_holding());
            space.recover(&userfaults);
            assert!(!space.is_holding());
            // The app gets through: its calls, and its threads.
            assert!(space.is_registered(memory.run()));
        }
    });
    println!("{held} of {killed} agents held something");
    assert!(
        held >= ENOUGH_HELD,
        "only {held} of {killed} agents held something"
    );
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
