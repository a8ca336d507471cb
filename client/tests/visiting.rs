//! What visits find, and what they leave out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rig;

use VisitState::{Calm, CalmKnown, CalmZero, Changed, Merged, Skipped};
use ksm_client::space::release::Release;
use ksm_engine::order::{VISIT_PAGES, VisitState};
use ksm_engine::page::PAGE_SIZE;
use rig::sys::Memory;
use rig::{Arena, Rig, SALT, page};

#[test]
fn a_page_is_changed_then_calm_with_its_digest_then_known() {
    let mut rig = Rig::untracked();
    let memory = rig.memory(3, page);
    assert_eq!(rig.states(memory.run()), [Changed; 3]);
    let (end, pages, digests, _) = rig.visit_with(memory.run(), 100, &[]);
    assert_eq!(end, memory.run().end());
    assert!(pages.iter().all(|(_, state, _)| *state == Calm));
    assert_eq!(digests, [0, 1, 2].map(|i| SALT.digest(&page(i))));
    assert_eq!(rig.states(memory.run()), [CalmKnown; 3]);
    memory.write_byte(1, 4095, memory.read(1)[4095] ^ 1);
    assert_eq!(rig.states(memory.run()), [CalmKnown, Changed, CalmKnown]);
    let (_, pages, digests, _) = rig.visit_with(memory.run(), 100, &[]);
    assert_eq!(pages[1].1, Calm);
    assert_eq!(digests, [SALT.digest(&memory.read(1))]);
    // Another daemon knows none of them.
    assert!(rig.space.on_reconnect());
    assert_eq!(rig.states(memory.run()), [Calm; 3]);
}

/// So that it need not be read again: whether it was written until the next visit is asked of the kernel.
#[test]
fn a_page_whose_writes_are_tracked_has_its_digest_said_at_first_sight() {
    let mut rig = Rig::new();
    let memory = rig.memory(4, |i| if i == 3 { [0; PAGE_SIZE] } else { page(i) });
    let (_, pages, digests, _) = rig.visit_with(memory.run(), 100, &[]);
    let states: Vec<_> = pages.iter().map(|(_, state, _)| *state).collect();
    assert_eq!(states, [Calm, Calm, Calm, Changed]);
    assert_eq!(digests, [0, 1, 2].map(|i| SALT.digest(&page(i))));
    memory.write(0, &page(0));
    memory.write(1, &page(11));
    let second = [CalmKnown, Changed, CalmKnown, CalmZero];
    assert_eq!(rig.states(memory.run()), second);
    let (_, pages, digests, _) = rig.visit_with(memory.run(), 100, &[]);
    assert_eq!(pages[1].1, Calm);
    assert_eq!(digests, [SALT.digest(&page(11))]);
}

#[test]
fn holes_and_zero_pages_of_the_kernel_are_not_there() {
    let mut rig = Rig::untracked();
    let memory = Memory::map(8);
    rig.space.register(memory.run()).unwrap();
    memory.write(2, &page(2));
    memory.write(5, &[0; PAGE_SIZE]);
    // Read only: the kernel puts its zero page there.
    assert_eq!(memory.read(6), [0; PAGE_SIZE]);
    assert_eq!(
        rig.visit(memory.run()),
        [(2, Changed, None), (5, Changed, None)]
    );
    assert_eq!(
        rig.visit(memory.run()),
        [(2, Calm, None), (5, CalmZero, None)]
    );
}

#[test]
fn what_is_seen_of_a_page_does_not_outlive_it() {
    let mut rig = Rig::untracked();
    let memory = rig.memory(2, page);
    let _ = rig.visit(memory.run());
    memory.advise(0, 1, rustix::mm::Advice::LinuxDontNeed);
    assert_eq!(rig.visit(memory.run()), [(1, Calm, None)]);
    memory.write(0, &page(0));
    assert_eq!(rig.states(memory.run()), [Changed, CalmKnown]);
}

/// The kernel is asked where each page is. On a machine with one node that is node 0 for all of them.
#[test]
fn a_visit_says_on_which_nodes_pages_are_if_it_is_asked() {
    let mut rig = Rig::new();
    let online = std::fs::read_to_string("/sys/devices/system/node/online");
    let online = online.unwrap_or_else(|_| "0\n".into());
    println!("NUMA nodes of this machine: {online}");
    let nodes = rig::nodes_online(&online);
    let memory = Memory::map(8 * nodes.len());
    rig.space.register(memory.run()).unwrap();
    let mut want = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        memory.prefer_node(8 * i, 8, *node);
        for page_of_node in 8 * i..8 * (i + 1) {
            memory.write(page_of_node, &page(page_of_node));
            want.push(*node);
        }
    }
    assert_eq!(rig.nodes(memory.run()), want);
}

#[test]
fn a_visit_ends_at_its_limit_and_goes_on_from_there() {
    let mut rig = Rig::untracked();
    let memory = rig.memory(5000, page);
    let arena = Arena::new(1, 5000, page);
    for first in (0..5000).step_by(1000) {
        rig.map(&memory, first, 500, &arena, u32::try_from(first).unwrap());
    }
    let mut from = memory.run().start;
    let mut seen = Vec::new();
    for limit in [1, 63, 64, 65, 700, VISIT_PAGES, VISIT_PAGES, VISIT_PAGES] {
        let rest = ksm_engine::page::PageRun::between(from, memory.run().end());
        let (end, pages, ..) = rig.visit_with(rest, limit, &[]);
        assert_eq!(pages.len() as u64, u64::from(limit).min(rest.len));
        assert_eq!(end, from + pages.len() as u64);
        let base = from - memory.run().start;
        seen.extend(
            pages
                .into_iter()
                .map(|(i, state, slot)| (base + i, state, slot)),
        );
        from = end;
    }
    for (i, (page, state, slot)) in seen.iter().enumerate() {
        assert_eq!(*page, i as u64);
        if i % 1000 < 500 {
            assert_eq!((*state, slot.unwrap().index as usize), (Merged, i));
        } else {
            assert_eq!(*state, Changed);
        }
    }
    assert_eq!(seen.len(), 5000);
}

#[test]
fn skipped_pages_are_not_read_and_do_not_count() {
    let mut rig = Rig::untracked();
    let memory = rig.memory(10, page);
    let arena = Arena::new(1, 10, page);
    assert_eq!(rig.map(&memory, 4, 1, &arena, 4).len(), 1);
    let skip = [memory.part(1, 2), memory.part(4, 3)];
    let (end, pages, ..) = rig.visit_with(memory.run(), 5, &skip);
    let states: Vec<_> = pages.iter().map(|(_, state, _)| *state).collect();
    assert_eq!(
        states,
        [
            Changed, Skipped, Skipped, Changed, Merged, Skipped, Skipped, Changed, Changed
        ]
    );
    assert_eq!(end, memory.run().start + 9);
    // They were not read: they are seen for the first time now.
    assert_eq!(rig.states(memory.part(1, 2)), [Changed; 2]);
}

#[test]
fn only_registered_pages_are_visited() {
    let mut rig = Rig::new();
    let memory = rig.memory(10, page);
    rig.space
        .unregister(memory.part(3, 4), Release::Forget)
        .unwrap();
    let pages: Vec<_> = rig
        .visit(memory.run())
        .into_iter()
        .map(|(i, ..)| i)
        .collect();
    assert_eq!(pages, [0, 1, 2, 7, 8, 9]);
}

#[test]
fn memory_that_is_unmapped_meanwhile_is_not_an_error() {
    let mut rig = Rig::new();
    let memory = rig.memory(200, page);
    memory.unmap(50, 100);
    let pages = rig.visit(memory.run());
    assert_eq!(pages.len(), 100);
}
