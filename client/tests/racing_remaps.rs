//! The app reads what it wrote while pages in file mappings of ours are merged again, remapped and made plain: the steps
//! for which writers are held off instead of pages taken.
//!
//! No direct I/O here, in all of the process: broken pages are to be merged again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_engine::order::Outcome;
use rig::sys::{Memory, pread_into};
use rig::{Arena, Rig, memfd, page};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const OWNED: usize = 32;
const OWNERS: usize = 3;
const PAGES: usize = OWNED * OWNERS;
const DEADLINE: Duration = Duration::from_secs(240);

/// Owns pages until it is told to stop: changes one byte of one of them, looks at all, changes it back, looks again.
fn own(memory: &Memory, owner: usize, stop: &AtomicBool, mut write: impl FnMut(usize, usize, u8)) {
    let _stop = StopOnDrop(stop);
    let mut random = 77 + owner as u64;
    while !stop.load(Ordering::Relaxed) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let [i, high, low, pause, ..] = random.to_le_bytes();
        let i = owner * OWNED + usize::from(i) % OWNED;
        let offset = usize::from(high) << 4 | usize::from(low) >> 4;
        let mut held = page(i);
        assert_eq!(memory.read(i), held, "page {i}");
        held[offset] ^= 0xFF;
        write(i, offset, held[offset]);
        assert_eq!(memory.read(i), held, "page {i} changed at {offset}");
        for _ in 0..u32::from(pause) * 64 {
            std::hint::spin_loop();
        }
        assert_eq!(memory.read(i), held, "page {i} changed at {offset}, later");
        held[offset] ^= 0xFF;
        write(i, offset, held[offset]);
        assert_eq!(memory.read(i), held, "page {i} changed back at {offset}");
        std::thread::yield_now();
    }
}

#[test]
fn no_byte_is_lost_while_mappings_of_slots_are_replaced() {
    let mut rig = Rig::new();
    let memory = rig.memory(PAGES, page);
    let arenas = [Arena::new(1, PAGES, page), Arena::new(2, PAGES, page)];
    // Every byte value, to be read by read(2).
    let bytes = std::fs::File::from(memfd(1));
    bytes
        .write_all_at(
            &std::array::from_fn::<u8, 256, _>(|i| i.to_le_bytes()[0]),
            0,
        )
        .unwrap();
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let (mut merged, mut remapped, mut unmerges) = (0, 0, 0);
    std::thread::scope(|scope| {
        let (memory, stop, bytes) = (&memory, &stop, &bytes);
        for owner in 0..2 {
            scope.spawn(move || {
                own(memory, owner, stop, |i, at, byte| {
                    memory.write_byte(i, at, byte);
                });
            });
        }
        scope.spawn(move || {
            own(memory, 2, stop, |i, at, byte| {
                let target = memory.pointer(i).wrapping_add(at);
                assert_eq!(pread_into(bytes, target, 1, byte.into()), Ok(1));
            });
        });
        let _stop = StopOnDrop(stop);
        let done =
            |outcomes: Vec<Outcome>| outcomes.iter().filter(|o| **o == Outcome::Done).count();
        let mut turn = 0_usize;
        while !stop.load(Ordering::Relaxed) && (merged < 3000 || remapped < 3000 || unmerges < 20) {
            assert!(
                started.elapsed() < DEADLINE,
                "only {merged}, {remapped}, {unmerges}"
            );
            turn += 1;
            let _ = rig.states(memory.run());
            merged += done(rig.map(
                memory,
                0,
                u32::try_from(PAGES).unwrap(),
                &arenas[turn % 2],
                0,
            ));
            remapped += done(rig.remap(memory, &arenas[(turn + 1) % 2]));
            if turn.is_multiple_of(5) {
                assert_eq!(rig.unmerge(memory.run()), memory.run().end());
                unmerges += 1;
            }
        }
    });
    assert!(
        merged >= 3000 && remapped >= 3000 && unmerges >= 20,
        "{merged}, {remapped}, {unmerges}"
    );
    println!(
        "{merged} merged (again), {remapped} remapped, {unmerges} unmerged in {:?}; outcomes {:?}",
        started.elapsed(),
        rig.space.figures().outcomes,
    );
}

/// Tells the others to stop when a thread ends, also by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
