//! Memory that the kernel does not move: read-only or locked. It merges where there is no sign of pins, so no test here may open
//! a file for direct I/O.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_engine::order::Outcome;
use rig::sys::Memory;
use rig::{Arena, Rig, page};
use rustix::io::Errno;
use rustix::mm::MprotectFlags;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DONE: Outcome = Outcome::Done;

/// The flags of the mapping of a page, as `/proc/self/smaps` has them.
fn flags(memory: &Memory, page: usize) -> String {
    let address = memory.pointer(page).addr();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line
            .split_whitespace()
            .next()
            .and_then(|word| word.split_once('-'));
        if let Some((start, end)) = range {
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            inside = (number(start)..number(end)).contains(&address);
        } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            return flags.to_owned();
        }
    }
    panic!("no mapping of page {page}");
}

/// What becomes of the pages once the other tests of this process give no sign of pins for a moment.
fn map_in_the_end(rig: &mut Rig, memory: &Memory, pages: u32, arena: &Arena) -> Vec<Outcome> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let outcomes = rig.map(memory, 0, pages, arena, 0);
        if outcomes.iter().all(|o| *o != Outcome::Unsure) || Instant::now() > deadline {
            return outcomes;
        }
    }
}

#[test]
fn read_only_memory_merges_and_stays_read_only() {
    let mut rig = Rig::new();
    let arena = Arena::new(1, 8, page);
    let memory = rig.memory(8, page);
    memory.protect(MprotectFlags::READ);
    memory.protect_part(4, 4, MprotectFlags::empty());
    let (no, done) = (Outcome::Unsuitable, DONE);
    assert_eq!(
        map_in_the_end(&mut rig, &memory, 8, &arena),
        [done, done, done, done, no, no, no, no]
    );
    for i in 0..4 {
        assert!(memory.is_shared(i));
        assert_eq!(memory.read(i), page(i));
    }
    assert!(!flags(&memory, 0).contains(" wr "), "it is not writable");
    assert_eq!(rig.unmerge(memory.run()), memory.run().end());
    assert!(!memory.is_shared(0));
    assert_eq!(memory.read(0), page(0));
    assert!(
        !flags(&memory, 0).contains(" wr "),
        "nor is the private copy"
    );
    memory.protect(MprotectFlags::READ | MprotectFlags::WRITE);
    memory.write(0, &page(77));
    assert_eq!(memory.read(0), page(77));
}

#[test]
fn locked_memory_merges_and_stays_locked() {
    let mut rig = Rig::new();
    let arena = Arena::new(1, 4, page);
    let memory = rig.memory(4, page);
    memory.lock();
    assert_eq!(map_in_the_end(&mut rig, &memory, 4, &arena), [DONE; 4]);
    for i in 0..4 {
        assert!(memory.is_shared(i));
        assert_eq!(memory.read(i), page(i));
        assert!(flags(&memory, i).contains(" lo "), "page {i} is not locked");
    }
    assert_eq!(rig.unmerge(memory.run()), memory.run().end());
    for i in 0..4 {
        assert!(!memory.is_shared(i));
        assert_eq!(memory.read(i), page(i));
        assert!(flags(&memory, i).contains(" lo "), "page {i} is not locked");
    }
    // The kernel does not discard locked memory either.
    assert_eq!(map_in_the_end(&mut rig, &memory, 4, &arena), [DONE; 4]);
    assert_eq!(rig.space.discard(memory.run()), Err(Errno::INVAL));
    assert_eq!(memory.read(1), page(1));
}

#[test]
fn threads_and_files_that_come_and_go_meanwhile_are_no_sign_of_pins() {
    let mut rig = Rig::new();
    let arena = Arena::new(1, 1, page);
    let memory = rig.memory(1, page);
    memory.lock();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let come_and_go = || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::spawn(|| File::open("/proc/self/status").unwrap())
                    .join()
                    .unwrap();
            }
        };
        scope.spawn(come_and_go);
        scope.spawn(come_and_go);
        let outcomes: Vec<_> = (0..500)
            .map(|_| {
                let outcome = rig.map(&memory, 0, 1, &arena, 0);
                assert_eq!(rig.unmerge(memory.run()), memory.run().end());
                outcome
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        let unsure = outcomes
            .iter()
            .filter(|outcome| **outcome != [DONE])
            .count();
        // What cannot be found out for a moment counts as a pin.
        assert!(unsure < 25, "{unsure} of 500");
    });
}
