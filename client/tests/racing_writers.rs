//! The app reads what it wrote, whatever writes: stores, `read(2)` and direct I/O, while its pages are merged as fast as
//! the agent can.
//!
//! Each page has one owner, who knows all its bytes at any time and looks at every one of them before it writes again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_client::space::Space;
use ksm_engine::order::{MapRun, OrderRef, Outcome};
use ksm_engine::page::{PAGE_SIZE, PageBytes};
use rig::sys::Memory;
use rig::{Arena, Rig, direct_file, memfd, page};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pages of one owner.
const OWNED: usize = 64;
const OWNERS: usize = 4;
const PAGES: usize = OWNED * OWNERS;
/// Contents that a page can have; each is in the arena.
const CONTENTS: usize = 4;
const ENOUGH_MERGES: u64 = 5_000;
const DEADLINE: Duration = Duration::from_secs(240);

/// What page `i` holds as its `k`th content. Contents of one page differ in some bytes only.
fn content(i: usize, k: usize) -> PageBytes {
    let mut bytes = page(i);
    for offset in (k..PAGE_SIZE).step_by(CONTENTS * 7) {
        bytes[offset] ^= 0xFF;
    }
    bytes
}

struct Stage {
    space: &'static Space,
    memory: Memory,
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Stage {
    /// Owns pages until it is told to stop: checks all bytes, then writes others.
    fn own(&self, owner: usize, seed: u64, mut write: impl FnMut(usize, usize, &PageBytes)) {
        let first = owner * OWNED;
        let mut held: Vec<PageBytes> = (0..OWNED).map(|i| content(first + i, 0)).collect();
        let mut random = seed;
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut k = 0;
        while !self.stop.load(Ordering::Relaxed) {
            // The same content for a stretch of pages, so that runs can merge, then time to merge them.
            let at = usize::try_from(next()).unwrap() % OWNED;
            let stretch = (1 + usize::try_from(next()).unwrap() % 16).min(OWNED - at);
            k = (k + 1) % CONTENTS;
            for (i, held) in held.iter_mut().enumerate().skip(at).take(stretch) {
                let place = first + i;
                assert_eq!(self.memory.read(place), *held, "page {place}");
                if next() % 2 == 0 {
                    // Back to ordinary memory, whatever it is; a broken page would never be merged again here.
                    self.space
                        .discard(self.memory.part(place as u64, 1))
                        .unwrap();
                    assert_eq!(self.memory.read(place), [0; PAGE_SIZE], "page {place}");
                }
                let bytes = content(place, k);
                write(place, k, &bytes);
                *held = bytes;
                assert_eq!(self.memory.read(place), *held, "page {place}");
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
            std::thread::yield_now();
        }
        for (i, held) in held.iter().enumerate() {
            assert_eq!(self.memory.read(first + i), *held, "page {}", first + i);
        }
    }
}

/// Tells the others to stop when a thread ends, also by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_byte_is_lost_under_four_kinds_of_writers() {
    let mut rig = Rig::new();
    let memory = rig.memory(PAGES, |i| content(i, 0));
    // Content k of page i is slot k * PAGES + i, and page k * PAGES + i of both files.
    let of_place = |place: usize| content(place % PAGES, place / PAGES);
    let arena = Arena::new(1, PAGES * CONTENTS, of_place);
    let direct = direct_file(PAGES * CONTENTS, of_place);
    let cached = std::fs::File::from(memfd(PAGES * CONTENTS));
    for place in 0..PAGES * CONTENTS {
        cached
            .write_all_at(&of_place(place), (place * PAGE_SIZE) as u64)
            .unwrap();
    }
    let stage = Stage {
        space: rig.space,
        memory,
        stop: AtomicBool::new(false),
        rounds: AtomicU64::new(0),
    };
    let place = |i: usize, k: usize| ((k * PAGES + i) * PAGE_SIZE) as u64;
    let started = Instant::now();
    let mut merges = 0;
    std::thread::scope(|scope| {
        let stage = &stage;
        let (direct, cached) = (&direct, &cached);
        for owner in 0..2 {
            scope.spawn(move || {
                let _stop = StopOnDrop(&stage.stop);
                stage.own(owner, 77 + owner as u64, |i, _, bytes| {
                    stage.memory.write(i, bytes);
                });
            });
        }
        scope.spawn(move || {
            let _stop = StopOnDrop(&stage.stop);
            stage.own(2, 99, |i, k, _| {
                let got =
                    rig::sys::pread_into(cached, stage.memory.pointer(i), PAGE_SIZE, place(i, k));
                assert_eq!(got, Ok(PAGE_SIZE), "read(2) into page {i}");
            });
        });
        scope.spawn(move || {
            let _stop = StopOnDrop(&stage.stop);
            stage.own(3, 111, |i, k, _| {
                let got =
                    rig::sys::pread_into(direct, stage.memory.pointer(i), PAGE_SIZE, place(i, k));
                assert_eq!(got, Ok(PAGE_SIZE), "direct I/O into page {i}");
            });
        });
        let _stop = StopOnDrop(&stage.stop);
        let mut turn = 0_usize;
        while !stage.stop.load(Ordering::Relaxed) && merges < ENOUGH_MERGES {
            assert!(
                started.elapsed() < DEADLINE,
                "only {merges} merges in {DEADLINE:?}"
            );
            turn += 1;
            if turn.is_multiple_of(8) {
                // Finds broken pages; the direct I/O makes all of them unsure.
                let _ = rig.states(stage.memory.run());
            }
            // A run of every owner at its `k`th content.
            let runs: [_; OWNERS] = std::array::from_fn(|owner| {
                let i = owner * OWNED + turn * 5 % (OWNED - 16);
                MapRun {
                    start: stage.memory.run().start + i as u64,
                    len: 16,
                    slot: u32::try_from(turn % CONTENTS * PAGES + i).unwrap(),
                }
            });
            let order = OrderRef::Map {
                arena: arena.id,
                runs: &runs,
            };
            let outcomes = rig.outcomes(&order, Some(&arena));
            merges += outcomes.iter().filter(|o| **o == Outcome::Done).count() as u64;
        }
    });
    assert!(merges >= ENOUGH_MERGES, "{merges} merges");
    let figures = rig.space.figures();
    println!(
        "{merges} merges, {} rounds in {:?}; outcomes {:?}; longest hold {:?}",
        stage.rounds.load(Ordering::Relaxed),
        started.elapsed(),
        figures.outcomes,
        figures.longest_hold,
    );
}
