//! Pages that a device may write to are not merged, neither for the first time nor again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use ksm_engine::order::{Outcome, VisitState};
use rig::sys::FixedBuffer;
use rig::{Arena, Rig, page};
use rustix::mm::MprotectFlags;

#[test]
fn a_fixed_buffer_keeps_its_page_and_its_neighbours_merge() {
    let mut rig = Rig::new();
    let memory = rig.memory(5, page);
    let arena = Arena::new(1, 5, page);
    let ring = FixedBuffer::register(memory.pointer(2), 1);
    let outcomes = rig.map(&memory, 0, 5, &arena, 0);
    let (done, pinned) = (Outcome::Done, Outcome::Pinned);
    assert_eq!(outcomes, [done, done, pinned, done, done]);
    assert!(!memory.is_shared(2));
    assert_eq!(memory.read(2), page(2));
    drop(ring);
    // The kernel lets go of the page some time after the ring is closed.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(240);
    while rig.map(&memory, 2, 1, &arena, 2) != [done] {
        assert!(std::time::Instant::now() < deadline, "still pinned");
        std::thread::yield_now();
    }
    assert!(memory.is_shared(2));
}

#[test]
fn a_page_that_is_pinned_after_it_was_merged_is_not_merged_again() {
    let mut rig = Rig::new();
    let memory = rig.memory(3, page);
    let arena = Arena::new(1, 3, page);
    let _ = rig.visit(memory.run());
    rig.merge(&memory, &arena);
    // Pinned for writing: the kernel breaks it, with the bytes it has. Nothing in the page tells.
    let ring = FixedBuffer::register(memory.pointer(1), 1);
    for _ in 0..4 {
        assert_eq!(rig.states(memory.run())[1], VisitState::Unsure);
    }
    assert_eq!(rig.map(&memory, 1, 1, &arena, 1), [Outcome::Unsure]);
    // What the device writes now arrives where the app reads.
    ring.read_into(&rig::memfd_with(&page(50)));
    assert_eq!(memory.read(1), page(50));
    assert_eq!(memory.read(0), page(0));
}

#[test]
fn a_zero_page_that_is_pinned_stays() {
    let mut rig = Rig::new();
    let memory = rig.memory(3, |_| [0; 4096]);
    let ring = FixedBuffer::register(memory.pointer(1), 1);
    let order = ksm_engine::order::OrderRef::Zero {
        runs: &[memory.run()],
    };
    let (done, pinned) = (Outcome::Done, Outcome::Pinned);
    assert_eq!(rig.outcomes(&order, None), [done, pinned, done]);
    ring.read_into(&rig::memfd_with(&page(5)));
    assert_eq!(memory.read(1), page(5));
}

#[test]
fn read_only_memory_of_a_process_that_may_have_pins_is_left_alone() {
    let mut rig = Rig::new();
    let arena = Arena::new(1, 4, page);
    let memory = rig.memory(4, page);
    memory.protect(MprotectFlags::READ);
    let _direct = rig::direct_file(1, page);
    assert_eq!(rig.map(&memory, 0, 4, &arena, 0), [Outcome::Unsure; 4]);
    assert!(!memory.is_shared(0));
}
