//! Children of a fork have the bytes their parent had, merged or not, held or not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_client::space::release::Release;
use ksm_engine::order::{MapRun, OrderRef, Outcome};
use rig::sys::{Memory, in_fork};
use rig::{Arena, Rig, page};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PAGES: usize = 64;

#[test]
fn a_fork_in_the_middle_of_merging_finds_no_holes() {
    let mut rig = Rig::new();
    let space = rig.space;
    let memory = rig.memory(PAGES, page);
    let arena = Arena::new(1, PAGES, page);
    let stop = AtomicBool::new(false);
    let merges = AtomicU64::new(0);
    let deadline = Instant::now() + Duration::from_secs(240);
    std::thread::scope(|scope| {
        let (memory, stop, merges) = (&memory, &stop, &merges);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let runs = [MapRun {
                    start: memory.run().start,
                    len: 64,
                    slot: 0,
                }];
                let order = OrderRef::Map {
                    arena: arena.id,
                    runs: &runs,
                };
                let done = rig.outcomes(&order, Some(&arena));
                assert!(!done.contains(&Outcome::Failed), "{done:?}");
                merges.fetch_add(1, Ordering::Relaxed);
                let _ = rig.unmerge(memory.run());
            }
        });
        let mut forks = 0;
        let mut fine = true;
        while fine
            && (forks < 200 || merges.load(Ordering::Relaxed) < 200)
            && Instant::now() < deadline
        {
            space.lock_for_fork();
            fine = in_fork(|| {
                space.reset_child();
                let right = (0..PAGES).all(|i| memory.read(i) == page(i));
                // Its own copy, which the parent does not see.
                memory.write(3, &page(1000));
                right && memory.read(3) == page(1000) && memory.read(4) == page(4)
            });
            // The parent waits for the child in `in_fork`, so its side of the fork comes late; no harm.
            space.unlock_parent();
            forks += 1;
            // The lock is nobody's for a while, or the merging would hardly ever get it.
            let free = Instant::now();
            while free.elapsed() < Duration::from_micros(forks * 97 % 400) {
                std::hint::spin_loop();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(fine, "a child read something else");
        assert!(
            forks >= 200 && merges.load(Ordering::Relaxed) >= 200,
            "{forks} forks"
        );
    });
    for i in 0..PAGES {
        assert_eq!(memory.read(i), page(i));
    }
}

#[test]
fn pages_that_were_shared_by_a_fork_merge_afterwards_and_while_the_child_lives() {
    let mut rig = Rig::new();
    let memory = rig.memory(PAGES, page);
    let arena = Arena::new(1, PAGES, page);
    assert!(in_fork(|| true));
    merge_part(&mut rig, &memory, &arena, 0);
    let (wait, go) = rustix::pipe::pipe().unwrap();
    let (said, say) = rustix::pipe::pipe().unwrap();
    std::thread::scope(|scope| {
        let memory = &memory;
        let child = scope.spawn(move || {
            in_fork(|| {
                rustix::io::write(&say, &[1]).unwrap();
                let mut byte = [0];
                rustix::io::read(&wait, &mut byte).unwrap();
                (0..PAGES).all(|i| memory.read(i) == page(i))
            })
        });
        let mut byte = [0];
        rustix::io::read(&said, &mut byte).unwrap();
        merge_part(&mut rig, memory, &arena, 32);
        memory.write(40, &page(2000));
        rustix::io::write(&go, &[1]).unwrap();
        assert!(child.join().unwrap(), "the child read something else");
    });
}

/// Merges 32 pages from page `first` on, in several tries: the other tests of this process fork, too.
fn merge_part(rig: &mut Rig, memory: &Memory, arena: &Arena, first: u32) {
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let outcomes = rig.map(memory, first as usize, 32, arena, first);
        if outcomes == [Outcome::Done; 32] {
            return;
        }
        assert!(Instant::now() < deadline, "{outcomes:?}");
    }
}

#[test]
fn a_child_that_nobody_told_us_of_can_use_its_space() {
    let mut rig = Rig::new();
    let memory = rig.memory(PAGES, page);
    let arena = Arena::new(1, PAGES, page);
    merge_part(&mut rig, &memory, &arena, 0);
    merge_part(&mut rig, &memory, &arena, 32);
    // As a thread of the parent that is just in a call of ours: in the child it is not.
    let held = rig.space.hold_off();
    let fine = in_fork(|| {
        rig.space
            .unregister(memory.part(0, 8), Release::Unmerge(None))
            .unwrap();
        rig.space.discard(memory.part(8, 8)).unwrap();
        let told = rig.notices().len();
        (0..8).all(|i| memory.read(i) == page(i))
            && (8..16).all(|i| memory.read(i) == [0; 4096])
            && (16..PAGES).all(|i| memory.read(i) == page(i))
            && told >= 2
    });
    drop(held);
    assert!(fine);
    assert!((0..PAGES).all(|i| memory.read(i) == page(i)));
}
