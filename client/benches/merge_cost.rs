//! What merging a page costs, by the length of the run; and what a visit, an unmerge and a remap cost.
//!
//! Prints microseconds per page: the median of a few rounds. For ratios, not for absolute truth.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../tests/rig/mod.rs"]
mod rig;

use ksm_engine::order::{MapRun, OrderRef, Outcome};
use ksm_engine::page::PAGE_SIZE;
use rig::{Arena, Rig, page};
use std::time::{Duration, Instant};

const PAGES: usize = 2048;
const ROUNDS: usize = 15;

fn median(mut round: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
    times.sort();
    times[ROUNDS / 2].as_secs_f64() * 1e6 / PAGES as f64
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn main() {
    let mut rig = Rig::new();
    let arena = Arena::new(1, PAGES, page);
    let other = Arena::new(2, PAGES, page);
    println!("µs per page");
    for len in [1_u32, 4, 16, 64] {
        let micros = median(|| {
            // Runs apart from each other: every second stretch of twice the memory.
            let stride = 2 * len as usize;
            let memory = rig.memory(2 * PAGES, |i| page(i / stride * len as usize + i % stride));
            let runs: Vec<_> = (0..PAGES / len as usize)
                .map(|n| MapRun {
                    start: memory.run().start + (n * stride) as u64,
                    len,
                    slot: u32::try_from(n).unwrap() * len,
                })
                .collect();
            let mut outcomes = Vec::new();
            let time = timed(|| {
                // 2048 pages are the most that one order carries.
                outcomes = rig.outcomes(
                    &OrderRef::Map {
                        arena: arena.id,
                        runs: &runs,
                    },
                    Some(&arena),
                );
            });
            let done = outcomes.iter().filter(|o| **o == Outcome::Done).count();
            assert_eq!(done, PAGES, "{outcomes:?}");
            forget(&rig, &memory);
            time
        });
        println!("merge, runs of {len:2}: {micros:6.2}");
    }
    println!(
        "longest hold so far: {:?}",
        rig.space.figures().longest_hold
    );

    let memory = rig.memory(PAGES, page);
    let first = timed(|| drop(rig.visit(memory.run())));
    let digests = timed(|| drop(rig.visit(memory.run())));
    let calm = median(|| timed(|| drop(rig.visit(memory.run()))));
    rig.merge(&memory, &arena);
    let merged = median(|| timed(|| drop(rig.visit(memory.run()))));
    let per_page = |time: Duration| time.as_secs_f64() * 1e6 / PAGES as f64;
    println!(
        "visit: first {:.2}, with digests {:.2}, calm and known {calm:.2}, merged {merged:.3}",
        per_page(first),
        per_page(digests)
    );
    let mut turn = 0;
    let remap = median(|| {
        turn += 1;
        timed(|| drop(rig.remap(&memory, if turn % 2 == 1 { &other } else { &arena })))
    });
    println!("remap: {remap:.2}");
    let (mut unmerge, mut again) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        unmerge.push(timed(|| {
            assert_eq!(rig.unmerge(memory.run()), memory.run().end());
        }));
        again.push(timed(|| rig.merge(&memory, &arena)));
    }
    unmerge.sort();
    again.sort();
    println!(
        "unmerge to plain memory: {:.2}; merge again: {:.2}",
        per_page(unmerge[ROUNDS / 2]),
        per_page(again[ROUNDS / 2])
    );
    for i in 0..PAGES {
        memory.write_byte(i, 0, memory.read(i)[0]);
    }
    let _ = rig.visit(memory.run());
    let _ = rig.visit(memory.run());
    let broken = timed(|| rig.merge(&memory, &arena));
    println!("merge of broken pages: {:.2}", per_page(broken));
    forget(&rig, &memory);
    let zero = median(|| {
        let memory = rig.memory(PAGES, |_| [0; PAGE_SIZE]);
        let runs = [memory.run()];
        let time = timed(|| drop(rig.outcomes(&OrderRef::Zero { runs: &runs }, None)));
        forget(&rig, &memory);
        time
    });
    println!("zero: {zero:.2}");
    println!("longest hold: {:?}", rig.space.figures().longest_hold);
}

fn forget(rig: &Rig, memory: &rig::sys::Memory) {
    let forget = ksm_client::space::release::Release::Forget;
    rig.space.unregister(memory.run(), forget).unwrap();
}
