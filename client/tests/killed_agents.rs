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
    let mut held = 0;
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
        for kill in 0..KILLS {
            let agent = || {
                let mut agent = Agent::new(
                    space,
                    userfaults.try_clone().unwrap(),
                    std::process::id(),
                    donation.as_fd(),
                    rig::SALT,
                )
                .unwrap();
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
            // Some instruction or other.
            for _ in 0..kill * 7919 % 4096 {
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
    println!("{held} of {KILLS} agents held something");
    assert!(
        held > KILLS / 20,
        "only {held} of {KILLS} agents held something"
    );
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
